//! Pruning a store on disk, from the scan to the report.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::io::Errno;
use serde_json::{Value, json};

use super::*;
use crate::oci::{Algorithm, Choice, Digest, ImageName, MediaType, Upstream};
use crate::store::{Access, Begin, Ingest, ManifestRecord, Settings, Store, TagRecord};

/// A store with images.
struct Fixture {
    directory: tempfile::TempDir,
    store: Store,
    now: SystemTime,
}

impl Fixture {
    fn new() -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().to_owned();
        let store = Store::open(&Settings { root, fsync: false }).unwrap();
        Fixture { directory, store, now: SystemTime::now() }
    }

    fn put(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(Algorithm::Sha256, bytes);
        self.store.ingest_bytes(&digest, bytes).unwrap();
        digest
    }

    /// Stores a tag of `quay.io/…` with these layers.
    fn image(&self, repository: &str, tag: &str, layers: &[&str]) -> Digest {
        let layer = |text: &str| {
            let digest = self.put(text.as_bytes());
            json!({ "digest": digest.to_string(), "size": text.len() })
        };
        let layers: Vec<Value> = layers.iter().map(|text| layer(text)).collect();
        let config = layer(&format!("config of {repository}:{tag}"));
        let document = json!({ "schemaVersion": 2, "config": config, "layers": layers });
        let bytes = document.to_string().into_bytes();
        let (digest, size) = (self.put(&bytes), bytes.len() as u64);
        let media_type = MediaType::parse(MediaType::OCI_MANIFEST).unwrap();
        let name = name(repository);
        let (fetched, checked) = (self.now, self.now);
        let record = ManifestRecord { media_type: media_type.clone(), size, fetched };
        self.store.put_manifest(&name, &digest, &record).unwrap();
        let record = TagRecord::new(digest, media_type, size, fetched, checked);
        self.store.put_tag(&name, &tag.parse().unwrap(), &record).unwrap();
        digest
    }

    /// Begins the download of a blob with this content.
    fn ingest(&self, content: &[u8]) -> Box<Ingest> {
        let upstream: Upstream = "quay.io".parse().unwrap();
        let digest = Digest::of(Algorithm::Sha256, content);
        match self.store.ingest(&upstream, &digest, None).unwrap() {
            Begin::Writing(ingest) => ingest,
            other => panic!("expected to write, found {other:?}"),
        }
    }

    /// Sets the times of everything stored to this many hours ago.
    fn age(&self, hours: u64) {
        let then = self.now - Duration::from_secs(hours * 3600);
        for part in ["blobs", "refs", "incoming", "partials"] {
            age(&self.directory.path().join(part), then);
        }
    }

    fn images(&self) -> Vec<String> {
        let mut all = Vec::new();
        let mut visit = |image: &crate::store::StoredImage| {
            let graph = self.store.graph_of(image);
            assert!(graph.is_complete(), "{} has lost content", image.full_reference());
            all.push(image.full_reference());
            Ok(())
        };
        self.store.each_image(&mut visit).unwrap();
        all
    }

    /// Evicts until `bytes` bytes are freed.
    fn evict(&self, bytes: u64) -> Result<Eviction, PruneError> {
        self.evict_by(&mut Evictor::default(), bytes)
    }

    fn evict_by(&self, evictor: &mut Evictor, bytes: u64) -> Result<Eviction, PruneError> {
        self.store.count_disk(&mut || true).unwrap();
        let before = self.store.disk_bytes().unwrap();
        let is_enough = || self.store.disk_bytes().unwrap().saturating_add(bytes) <= before;
        let (pins, mut eviction) = (PinSettings::default(), Eviction::default());
        let clock = || self.now;
        let evicted =
            evictor.evict(&self.store, &pins, &clock, &is_enough, &mut || true, &mut eviction);
        evicted.map(|()| eviction)
    }

    fn prune(&self, request: Request<'_>) -> Result<Report, PruneError> {
        prune(&self.store, &PinSettings::default(), request, self.now, &mut || true)
    }
}

fn age(path: &Path, then: SystemTime) {
    if path.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| age(&entry.unwrap().path(), then));
    }
    let _ = fs::File::open(path).unwrap().set_modified(then);
}

fn name(repository: &str) -> ImageName {
    ImageName::new("quay.io".parse().unwrap(), repository.parse().unwrap())
}

fn all(criteria: &Criteria) -> Request<'_> {
    Request::Matching { criteria, choices: &[], is_dry_run: false }
}

#[test]
fn unused_images_are_removed_and_shared_content_stays() {
    let cache = Fixture::new();
    cache.image("a", "old", &["base", "only old"]);
    cache.image("b", "old", &["base", "only b"]);
    cache.age(48);
    cache.image("a", "new", &["base", "only new"]);
    let day = Duration::from_secs(86_400);
    let criteria = Criteria { unused_for: Some(day), ..Criteria::default() };

    let dry = Request::Matching { criteria: &criteria, choices: &[], is_dry_run: true };
    let planned = cache.prune(dry).unwrap();
    assert_eq!(cache.images(), ["quay.io/a:new", "quay.io/a:old", "quay.io/b:old"]);

    let report = cache.prune(all(&criteria)).unwrap();
    assert_eq!(cache.images(), ["quay.io/a:new"]);
    assert_eq!((report.removed, report.blobs_shared, report.kept_in_use), (2, 1, 0));
    // A config, a layer and a manifest of each.
    assert_eq!(report.blobs_removed, 6);
    assert_eq!(planned, report, "a dry run reports the same");
    assert_eq!(cache.prune(all(&criteria)).unwrap(), Report::default());
}

#[test]
fn a_dry_run_accounts_for_young_unreferenced_and_missing_blobs() {
    let cache = Fixture::new();
    cache.put(b"rubbish");
    cache.image("a", "old", &["base", "only old"]);
    let lost = cache.put(b"lost");
    cache.image("a", "lossy", &["lost"]);
    cache.age(48);
    fs::remove_file(cache.directory.path().join("blobs/sha256").join(lost.hex())).unwrap();
    cache.image("a", "new", &["only new"]);
    cache.put(b"young rubbish");
    let run = |is_dry_run| {
        let criteria = Criteria::default();
        cache.prune(Request::Matching { criteria: &criteria, choices: &[], is_dry_run }).unwrap()
    };
    let planned = run(true);
    assert_eq!((planned.removed, planned.blobs_removed, planned.blobs_young), (3, 7, 4));
    assert_eq!(planned, run(false));
}

#[test]
fn patterns_and_counts_select_images() {
    let cache = Fixture::new();
    for (hours, tag) in [(4, "v1"), (3, "v2"), (2, "w1")] {
        cache.image("a", tag, &[tag]);
        cache.age(hours);
    }
    for tag in ["v1", "v2"] {
        let tag = tag.parse().unwrap();
        cache.store.tag(&name("a"), &tag, Access::Pull(cache.now)).unwrap();
    }
    let patterns: Vec<Choice> = vec!["quay.io/a:v*".parse().unwrap()];
    let criteria = Criteria { count: Some(1), ..Criteria::default() };
    let request = Request::Matching { criteria: &criteria, choices: &patterns, is_dry_run: false };
    assert_eq!(cache.prune(request).unwrap().images, ["quay.io/a:v1"]);
    assert_eq!(cache.images(), ["quay.io/a:v2", "quay.io/a:w1"]);
}

#[test]
fn a_manifest_with_two_tags_stays_for_the_second() {
    let cache = Fixture::new();
    let digest = cache.image("a", "one", &["layer"]);
    let record = cache.store.tag(&name("a"), &"one".parse().unwrap(), Access::Look).unwrap();
    cache.store.put_tag(&name("a"), &"two".parse().unwrap(), &record).unwrap();
    cache.age(1);
    let patterns: Vec<Choice> = vec!["*:one".parse().unwrap()];
    let criteria = Criteria::default();
    let request = Request::Matching { criteria: &criteria, choices: &patterns, is_dry_run: false };
    let report = cache.prune(request).unwrap();
    assert_eq!((report.blobs_removed, report.blobs_shared), (0, 3));
    assert_eq!(cache.images(), ["quay.io/a:two"]);
    assert!(cache.store.stored_manifest(&name("a"), &digest).is_some());
}

#[test]
fn pinned_images_stay_unless_they_are_included_explicitly() {
    let cache = Fixture::new();
    cache.image("a", "v1", &["one"]);
    cache.image("a", "v2", &["two"]);
    cache.age(1);
    cache.store.add_pins(&["quay.io/a:v1".into()]).unwrap();
    let criteria = Criteria::default();
    let report = cache.prune(all(&criteria)).unwrap();
    assert_eq!((report.images.as_slice(), report.kept_pinned), (&["quay.io/a:v2".into()][..], 1));
    let eviction = cache.evict(1 << 40).unwrap();
    assert_eq!((eviction.images, eviction.pinned), (0, 1));
    assert_eq!(cache.images(), ["quay.io/a:v1"]);
    let criteria = Criteria { include_pinned: true, ..Criteria::default() };
    assert_eq!(cache.prune(all(&criteria)).unwrap().removed, 1);
    assert!(cache.images().is_empty());
}

#[test]
fn signatures_stay_as_long_as_their_subjects() {
    let cache = Fixture::new();
    let [old, kept, pinned] = ["old", "kept", "pinned"].map(|tag| cache.image("a", tag, &[tag]));
    for signed in [&old, &kept, &pinned] {
        let signature = format!("{}.sig", signed.dashed());
        cache.image("a", &signature, &["signature"]);
    }
    cache.age(48);
    let tag = "kept".parse().unwrap();
    cache.store.tag(&name("a"), &tag, Access::Pull(cache.now)).unwrap();
    cache.store.add_pins(&["quay.io/a:pinned".into()]).unwrap();
    let criteria =
        Criteria { unused_for: Some(Duration::from_secs(86_400)), ..Criteria::default() };
    let report = cache.prune(all(&criteria)).unwrap();
    let mut removed = report.images;
    removed.sort();
    assert_eq!(removed, ["quay.io/a:old".into(), format!("quay.io/a:{}.sig", old.dashed())]);
}

#[test]
fn an_unreadable_record_stops_every_removal() {
    let cache = Fixture::new();
    cache.image("a", "v1", &["one"]);
    cache.image("b", "v1", &["two"]);
    cache.age(48);
    let path = cache.directory.path().join("refs/quay.io/a/_tags/v9");
    std::os::unix::fs::symlink("v9", &path).unwrap();
    let errors = [cache.prune(all(&Criteria::default())).unwrap_err(), cache.evict(1).unwrap_err()];
    for error in errors.map(|error| error.to_string()) {
        assert!(error.contains("_tags/v9") && error.contains("nothing is removed"), "{error}");
    }
    fs::remove_file(path).unwrap();
    assert_eq!(cache.images().len(), 2);
}

#[test]
fn content_that_a_damaged_manifest_may_need_stays() {
    let cache = Fixture::new();
    let damaged = cache.image("a", "v1", &["layer of the damaged one"]);
    let layer = cache.put(b"layer of the damaged one");
    cache.image("b", "v1", &["another layer"]);
    let rubbish = cache.put(b"rubbish");
    let path = cache.directory.path().join("blobs/sha256").join(damaged.hex());
    fs::write(&path, b"not what it was").unwrap();
    cache.age(48);
    let choices: Vec<Choice> = vec!["quay.io/b:v1".parse().unwrap()];
    let criteria = Criteria::default();
    let request = Request::Matching { criteria: &criteria, choices: &choices, is_dry_run: false };
    // Its manifest, its config and its layer.
    assert_eq!(cache.prune(request).unwrap().blobs_removed, 3);
    assert!(cache.store.blob(&layer, None).is_some() && cache.store.blob(&rubbish, None).is_some());
}

#[test]
fn a_pin_by_digest_also_keeps_a_tagged_image() {
    let cache = Fixture::new();
    let digest = cache.image("a", "v1", &["one"]);
    cache.image("a", "v2", &["two"]);
    cache.age(48);
    cache.store.add_pins(&[format!("quay.io/a@{digest}")]).unwrap();
    let report = cache.prune(all(&Criteria::default())).unwrap();
    assert_eq!((report.images.as_slice(), report.kept_pinned), (&["quay.io/a:v2".into()][..], 1));
    let choices: Vec<Choice> = vec![format!("quay.io/a@{digest}").parse().unwrap()];
    let criteria = Criteria { include_pinned: true, ..Criteria::default() };
    let request = Request::Matching { criteria: &criteria, choices: &choices, is_dry_run: false };
    assert_eq!(cache.prune(request).unwrap().images, ["quay.io/a:v1"]);
}

#[test]
fn a_partial_that_is_being_written_is_not_evicted() {
    let cache = Fixture::new();
    let mut ingest = cache.ingest(b"being resumed");
    ingest.write(&[0; 5000]).unwrap();
    cache.image("a", "v", &["layer"]);
    cache.age(48);
    let eviction = cache.evict(10).unwrap();
    assert_eq!((eviction.leftovers, eviction.images), (0, 1));
    assert_eq!(ingest.bytes_written(), 5000);
}

#[test]
fn pins_that_cannot_be_read_stop_everything() {
    let cache = Fixture::new();
    cache.image("a", "v1", &["one"]);
    cache.age(1);
    fs::write(cache.directory.path().join("pins"), "/(/\n").unwrap();
    assert!(matches!(cache.prune(all(&Criteria::default())), Err(PruneError::Pins(_))));
    assert!(matches!(cache.evict(1), Err(PruneError::Pins(_))));
    assert_eq!(cache.images().len(), 1);
}

#[test]
fn no_more_is_evicted_than_is_needed() {
    let cache = Fixture::new();
    let big = "x".repeat(100_000);
    for (hours, tag) in [(4, "a"), (3, "b"), (2, "c")] {
        cache.image(tag, "v", &[&format!("{tag}{big}")]);
        let tree = cache.directory.path().join("refs/quay.io").join(tag);
        age(&tree, cache.now - Duration::from_secs(hours * 3600));
    }
    age(&cache.directory.path().join("blobs"), cache.now - Duration::from_secs(7200));
    assert_eq!(cache.evict(0).unwrap(), Eviction::default());
    let eviction = cache.evict(150_000).unwrap();
    assert_eq!(eviction.images, 2);
    assert!(eviction.freed_bytes >= 200_000);
    assert_eq!(cache.images(), ["quay.io/c:v"]);
}

#[test]
fn unreferenced_blobs_are_evicted_before_images_and_used_images_never() {
    let cache = Fixture::new();
    cache.put("rubbish".repeat(10_000).as_bytes());
    cache.image("a", "v", &["layer"]);
    cache.age(1);
    assert!(cache.evict(50_000).unwrap().freed_bytes >= 70_000);
    assert_eq!(cache.images(), ["quay.io/a:v"]);
    cache.store.tag(&name("a"), &"v".parse().unwrap(), Access::Pull(cache.now)).unwrap();
    assert_eq!(cache.evict(500).unwrap(), Eviction::default());
}

#[test]
fn an_idle_partial_is_evicted_by_age() {
    let cache = Fixture::new();
    let mut ingest = cache.ingest(b"never finished");
    ingest.write(b"never").unwrap();
    drop(ingest);
    cache.age(2);
    cache.image("a", "v", &["layer"]);
    let tree = cache.directory.path().join("refs");
    age(&tree, cache.now - Duration::from_secs(3600));
    let eviction = cache.evict(5).unwrap();
    assert_eq!((eviction.leftovers, eviction.freed_bytes, eviction.images), (1, 5, 0));
}

#[test]
fn pins_that_are_set_between_two_evictions_count() {
    let cache = Fixture::new();
    for tag in ["one", "two"] {
        cache.image(tag, "v", &[tag]);
    }
    cache.age(3);
    age(&cache.directory.path().join("refs/quay.io/one"), cache.now - Duration::from_secs(18_000));
    let mut evictor = Evictor::default();
    assert_eq!(cache.evict_by(&mut evictor, 1).unwrap().images, 1);
    cache.store.add_pins(&["quay.io/two:v".into()]).unwrap();
    let eviction = cache.evict_by(&mut evictor, 1).unwrap();
    assert_eq!((eviction.images, eviction.pinned), (0, 1));
    assert_eq!(cache.images(), ["quay.io/two:v"]);
}

#[test]
fn an_image_that_is_used_during_the_scan_stays_and_the_others_are_removed() {
    let cache = Fixture::new();
    cache.image("a", "v", &["one"]);
    cache.image("b", "v", &["two"]);
    cache.age(48);
    let day = Duration::from_secs(86_400);
    let criteria = Criteria { unused_for: Some(day), ..Criteria::default() };
    let mut calls = 0;
    // Called before each repository is read and before each is removed: the third call.
    let mut pull_meanwhile = || {
        calls += 1;
        if calls == 3 {
            let tag = "v".parse().unwrap();
            cache.store.tag(&name("a"), &tag, Access::Pull(cache.now)).unwrap();
        }
        true
    };
    let pins = PinSettings::default();
    let report = prune(&cache.store, &pins, all(&criteria), cache.now, &mut pull_meanwhile);
    let report = report.unwrap();
    assert_eq!((report.removed, report.kept_in_use), (1, 0), "the second scan spares it");
    assert_eq!(cache.images(), ["quay.io/a:v"]);
}

#[test]
fn the_next_prune_removes_blobs_left_by_a_kill() {
    let cache = Fixture::new();
    cache.image("a", "v", &["one"]);
    cache.image("b", "v", &["two"]);
    cache.age(48);
    let criteria = Criteria { ..Criteria::default() };
    let mut calls = 0;
    let mut killed = || {
        calls += 1;
        // Two repositories scanned and two removed; the next call precedes the first blobs.
        calls <= 4
    };
    let pins = PinSettings::default();
    let report = prune(&cache.store, &pins, all(&criteria), cache.now, &mut killed).unwrap();
    assert!(report.is_partial && report.removed == 2 && report.blobs_removed == 0);
    let report = cache.prune(all(&criteria)).unwrap();
    assert_eq!((report.removed, report.blobs_removed), (0, 6));
}

#[test]
fn a_second_prune_is_locked_out() {
    let cache = Fixture::new();
    let sweep = cache.store.begin_sweep().unwrap().unwrap();
    let locked = cache.prune(all(&Criteria::default())).unwrap_err();
    assert!(locked.to_string().contains("already being removed"), "{locked}");
    drop(sweep);
    assert!(cache.prune(all(&Criteria::default())).is_ok());
}

/// Makes each read of a prune fail once, as when descriptors run out.
#[test]
fn a_temporary_read_error_never_costs_a_remaining_image() {
    for errno in [Errno::MFILE, Errno::IO, Errno::NOMEM, Errno::STALE] {
        for spared in 0.. {
            let cache = Fixture::new();
            cache.image("stays", "v", &["shared", "of what stays"]);
            cache.image("goes", "v", &["shared", "of what goes"]);
            cache.age(48);
            let pins = PinSettings {
                pins: vec!["quay.io/stays:*".parse().unwrap()],
                ..PinSettings::default()
            };
            cache.store.fail_reads("", spared, 1, errno);
            let criteria = Criteria::default();
            let request =
                Request::Matching { criteria: &criteria, choices: &[], is_dry_run: false };
            let pruned = prune(&cache.store, &pins, request, cache.now, &mut || true);
            let is_over = !cache.store.has_failed_reads();
            cache.store.fail_reads("", 0, 0, errno);
            for text in ["shared", "of what stays", "config of stays:v"] {
                let digest = Digest::of(Algorithm::Sha256, text.as_bytes());
                let is_there = cache.store.blob(&digest, None).is_some();
                assert!(is_there, "{errno:?} at read {spared} lost {text}: {pruned:?}");
            }
            let stays = cache.store.tag(&name("stays"), &"v".parse().unwrap(), Access::Look);
            assert!(stays.is_some(), "{errno:?} at read {spared}");
            // The next prune removes the rest.
            let again = prune(&cache.store, &pins, request, cache.now, &mut || true);
            assert!(again.is_ok(), "{errno:?} at read {spared}: {again:?}");
            assert!(cache.store.tag(&name("goes"), &"v".parse().unwrap(), Access::Look).is_none());
            if is_over {
                assert!(spared > 10, "there were reads to fail");
                break;
            }
        }
    }
}

#[test]
fn a_foreign_name_stops_a_prune_and_is_reported() {
    for strange in ["refs/quay.io/goes/Upper Case", "refs/quay.io/_notes", "refs/not a host"] {
        let cache = Fixture::new();
        cache.image("goes", "v", &["layer"]);
        cache.age(48);
        fs::create_dir_all(cache.directory.path().join(strange)).unwrap();
        let criteria = Criteria::default();
        let request = Request::Matching { criteria: &criteria, choices: &[], is_dry_run: false };
        let pruned = prune(&cache.store, &PinSettings::default(), request, cache.now, &mut || true);
        let error = pruned.unwrap_err().to_string();
        assert!(error.contains(strange), "{error}");
        assert!(cache.store.tag(&name("goes"), &"v".parse().unwrap(), Access::Look).is_some());
    }
}

#[test]
fn an_image_with_a_future_time_counts_as_used_now_and_ages() {
    let cache = Fixture::new();
    cache.image("goes", "v", &["layer"]);
    cache.age(48);
    let year = Duration::from_secs(365 * 86_400);
    let path = cache.directory.path().join("refs/quay.io/goes/_tags/v");
    age(&path, SystemTime::now() + year);
    let criteria = Criteria { unused_for: Some(Duration::from_secs(3600)), ..Criteria::default() };
    assert_eq!(cache.prune(all(&criteria)).unwrap().removed, 0);
    let used = fs::metadata(&path).unwrap().modified().unwrap();
    assert!(used < SystemTime::now() + year / 2, "its time is that of the first scan");
    cache.age(48);
    assert_eq!(cache.prune(all(&criteria)).unwrap().removed, 1);
}
