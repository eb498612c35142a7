//! Eviction by an index, with every kind of change between its build and an eviction.

use super::images::{image, index, publish};
use super::*;
use crate::store::gc::eviction::{Evictable, Evicted, EvictionCandidate, EvictionIndex};
use rustix::io::Errno;
use serde_json::json;

const HOUR: Duration = Duration::from_secs(3600);

/// Sets the times of all files and directories to this many hours ago.
fn grow_old(path: &Path, hours: u32) {
    if path.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| grow_old(&entry.unwrap().path(), hours));
    }
    let then = SystemTime::now() - HOUR * hours;
    File::open(path).unwrap().set_modified(then).unwrap();
}

fn build(store: &Store) -> (Sweep, EvictionIndex) {
    let sweep = store.begin_sweep().unwrap().unwrap();
    let built = sweep.eviction_index(SystemTime::now(), &Pins::default(), &mut || true);
    (sweep, built.unwrap().unwrap())
}

fn pins(store: &Store, pin: &str) -> Pins {
    let settings = PinSettings { pins: vec![pin.parse().unwrap()], ..PinSettings::default() };
    Pins::load(store, &settings).unwrap()
}

/// Evicts the next candidate. Returns its name and the result.
fn evict_next(sweep: &Sweep, index: &mut EvictionIndex) -> Option<(String, Evicted)> {
    let candidate = index.next(SystemTime::now())?;
    let shown = match candidate.item() {
        Evictable::Image(name, reference) => name.with(reference),
        Evictable::Partial(partial) => partial.digest().to_string(),
        Evictable::List(path) | Evictable::Quarantined(path) => path.display().to_string(),
    };
    Some((shown, sweep.evict(index, candidate, &Pins::default()).unwrap()))
}

#[track_caller]
fn evicts(sweep: &Sweep, index: &mut EvictionIndex, expected: &str) {
    let (shown, evicted) = evict_next(sweep, index).unwrap();
    assert_eq!(shown, expected);
    assert!(matches!(evicted, Evicted::Removed { .. }), "{shown}: {evicted:?}");
}

fn has(store: &Store, content: &[u8]) -> bool {
    store.blob(&sha256(content), None).is_some()
}

/// Stores a tag with an image of these layers.
fn tagged(store: &Store, of: &str, as_tag: &str, layers: &[&[u8]]) -> Digest {
    put(store, b"config");
    for layer in layers {
        put(store, layer);
    }
    let (digest, size) = image(store, of, layers);
    store.put_tag(&name(of), &tag(as_tag), &record(digest, size)).unwrap();
    digest
}

/// Stores two images that share a layer; `quay.io/a:v` is older.
fn two() -> (tempfile::TempDir, Store) {
    let (directory, store) = fresh();
    tagged(&store, "quay.io/a", "v", &[b"shared", b"only a"]);
    tagged(&store, "quay.io/b", "v", &[b"shared", b"only b"]);
    grow_old(directory.path(), 2);
    grow_old(&directory.path().join("refs/quay.io/a"), 3);
    (directory, store)
}

#[test]
fn the_least_recently_used_image_is_evicted_with_its_unshared_blobs() {
    let (directory, store) = two();
    let (sweep, mut index) = build(&store);
    evicts(&sweep, &mut index, "quay.io/a:v");
    assert!(has(&store, b"shared") && has(&store, b"config") && !has(&store, b"only a"));
    assert!(!directory.path().join("refs/quay.io/a").exists());
    evicts(&sweep, &mut index, "quay.io/b:v");
    assert!(!has(&store, b"shared") && !has(&store, b"config"));
    assert_eq!(evict_next(&sweep, &mut index), None);
    let blobs = fs::read_dir(directory.path().join("blobs/sha256")).unwrap();
    assert_eq!(blobs.count(), 0);
}

#[test]
fn a_blob_that_another_process_references_after_the_build_stays() {
    let (directory, store) = two();
    let (sweep, mut index) = build(&store);
    let other = open(directory.path());
    image(&other, "quay.io/c", &[b"only a"]);
    evicts(&sweep, &mut index, "quay.io/a:v");
    assert!(has(&store, b"only a"));
}

#[test]
fn content_that_is_referenced_and_evicted_again_is_not_released_twice() {
    let (directory, store) = two();
    let (sweep, mut index) = build(&store);
    evicts(&sweep, &mut index, "quay.io/a:v");
    // It is stored again. Its records are old, but its content is young.
    let other = open(directory.path());
    tagged(&other, "quay.io/a", "v", &[b"shared", b"only a"]);
    grow_old(&directory.path().join("refs/quay.io/a"), 3);
    let back = EvictionCandidate::for_tests(&name("quay.io/a"), &tag("v"), SystemTime::now());
    let evicted = sweep.evict(&mut index, back, &Pins::default()).unwrap();
    assert!(matches!(evicted, Evicted::Removed { .. }), "{evicted:?}");
    assert!(has(&store, b"shared"), "quay.io/b:v names it");
    assert!(has(&store, b"only a"), "it stays until the next index");
}

#[test]
fn an_image_that_is_pulled_after_the_build_is_evicted_later() {
    let (directory, store) = two();
    let (sweep, mut index) = build(&store);
    grow_old(&directory.path().join("refs/quay.io/a/_tags/v"), 1);
    assert_eq!(evict_next(&sweep, &mut index), Some(("quay.io/a:v".into(), Evicted::InUse)));
    evicts(&sweep, &mut index, "quay.io/b:v");
    evicts(&sweep, &mut index, "quay.io/a:v");
}

#[test]
fn a_manifest_that_another_process_tags_after_the_build_stays() {
    let (directory, store) = two();
    let (sweep, mut index) = build(&store);
    let other = open(directory.path());
    let was = other.tag(&name("quay.io/a"), &tag("v"), Access::Look).unwrap();
    other.put_tag(&name("quay.io/a"), &tag("w"), &was).unwrap();
    evicts(&sweep, &mut index, "quay.io/a:v");
    assert!(has(&store, b"only a"));
    assert!(store.stored_manifest(&name("quay.io/a"), &was.digest).is_some());
    assert_eq!(store.tags(&name("quay.io/a")), [tag("w")]);
}

#[test]
fn an_untagged_image_that_gets_a_tag_after_the_build_stays() {
    let (directory, store) = fresh();
    put(&store, b"layer");
    let (digest, size) = image(&store, "quay.io/a", &[b"layer"]);
    grow_old(directory.path(), 2);
    let (sweep, mut index) = build(&store);
    let other = open(directory.path());
    other.put_tag(&name("quay.io/a"), &tag("v"), &record(digest, size)).unwrap();
    let (shown, evicted) = evict_next(&sweep, &mut index).unwrap();
    assert_eq!((shown, evicted), (format!("quay.io/a@{digest}"), Evicted::Absent));
    assert!(has(&store, b"layer"));
}

#[test]
fn a_commit_between_the_names_and_the_blobs_keeps_the_blobs() {
    let (directory, store) = two();
    let (sweep, mut index) = build(&store);
    let other = open(directory.path());
    // The steps of an eviction on the names, before it takes the lock again.
    let unnamed = [sha256(b"only a")];
    image(&other, "quay.io/c", &[b"only a"]);
    assert_eq!(sweep.remove_settled(&index, &unnamed, &mut || true).unwrap(), Some(0));
    assert!(has(&store, b"only a"));
    evicts(&sweep, &mut index, "quay.io/a:v");
    assert!(has(&store, b"only a"));
}

#[test]
fn blobs_left_by_a_kill_are_found_by_the_next_index() {
    let (directory, store) = two();
    fs::remove_dir_all(directory.path().join("refs/quay.io/a")).unwrap();
    let young = put(&store, b"young and unnamed");
    let (sweep, index) = build(&store);
    assert!(sweep.evict_unnamed(&index, &mut || true).unwrap() > 0);
    assert!(!has(&store, b"only a") && has(&store, b"only b") && has(&store, b"shared"));
    assert!(store.blob(&young, None).is_some());
}

#[test]
fn a_kill_between_a_tag_and_its_manifest_leaves_an_untagged_image() {
    let (directory, store) = two();
    fs::remove_dir_all(directory.path().join("refs/quay.io/a/_tags")).unwrap();
    grow_old(&directory.path().join("refs/quay.io/a"), 3);
    let (sweep, mut index) = build(&store);
    let (shown, evicted) = evict_next(&sweep, &mut index).unwrap();
    assert!(shown.starts_with("quay.io/a@") && matches!(evicted, Evicted::Removed { .. }));
    assert!(!has(&store, b"only a") && has(&store, b"only b"));
}

#[test]
fn images_of_one_repository_are_evicted_one_by_one_with_their_unshared_children() {
    let (directory, store) = fresh();
    put(&store, b"config");
    let layers: [&[u8]; 3] = [b"amd64", b"arm64", b"s390x"];
    for layer in layers {
        put(&store, layer);
    }
    let [amd64, arm64, s390x] = layers.map(|layer| image(&store, "quay.io/a", &[layer]));
    let children = |of: &[((Digest, u64), &'static str)]| -> Vec<(Digest, u64, &'static str)> {
        of.iter().map(|((digest, size), platform)| (*digest, *size, *platform)).collect()
    };
    let one = index(&store, "quay.io/a", &children(&[(amd64, "amd64"), (arm64, "arm64")]));
    let two = index(&store, "quay.io/a", &children(&[(arm64, "arm64"), (s390x, "s390x")]));
    let repository = name("quay.io/a");
    for (as_tag, (digest, size)) in [("one", one), ("same", one), ("two", two)] {
        store.put_tag(&repository, &tag(as_tag), &record(digest, size)).unwrap();
    }
    grow_old(directory.path(), 2);
    for (hours, as_tag) in [(5, "one"), (4, "same"), (3, "two")] {
        grow_old(&directory.path().join("refs/quay.io/a/_tags").join(as_tag), hours);
    }
    let used = SystemTime::now() - HOUR * 6;
    for entry in fs::read_dir(directory.path().join("refs/quay.io/a/_manifests/sha256")).unwrap() {
        File::open(entry.unwrap().path()).unwrap().set_modified(used).unwrap();
    }
    let (sweep, mut index) = build(&store);
    let times = || store.repository_times(&repository).fingerprint();
    for (as_tag, left) in
        [("one", [true, true, true]), ("same", [false, true, true]), ("two", [false, false, false])]
    {
        let before = times();
        evicts(&sweep, &mut index, &format!("quay.io/a:{as_tag}"));
        assert_eq!(layers.map(|layer| has(&store, layer)), left, "{as_tag}");
        assert_ne!(times(), before, "the usage walk sees the removal");
        assert!(index.reread.is_none(), "the removal causes no second read");
    }
    assert!(!directory.path().join("refs/quay.io").exists());
}

#[test]
fn a_changed_repository_is_read_again_and_its_references_are_exact() {
    let (directory, store) = fresh();
    for as_tag in ["one", "two", "three"] {
        tagged(&store, "quay.io/a", as_tag, &[b"shared", as_tag.as_bytes()]);
    }
    grow_old(directory.path(), 2);
    for (hours, as_tag) in [(5, "one"), (4, "two"), (3, "three")] {
        grow_old(&directory.path().join("refs/quay.io/a/_tags").join(as_tag), hours);
    }
    let manifests = directory.path().join("refs/quay.io/a/_manifests");
    grow_old(&manifests, 9);
    let (sweep, mut index) = build(&store);
    tagged(&open(directory.path()), "quay.io/a", "new", &[b"shared", b"new"]);
    evicts(&sweep, &mut index, "quay.io/a:one");
    assert!(index.reread.is_some());
    evicts(&sweep, &mut index, "quay.io/a:two");
    evicts(&sweep, &mut index, "quay.io/a:three");
    let left = [&b"one"[..], b"two", b"three", b"shared", b"new"].map(|each| has(&store, each));
    assert_eq!(left, [false, false, false, true, true]);
}

#[test]
fn a_signature_is_evicted_after_its_subject() {
    let (directory, store) = fresh();
    let signed = tagged(&store, "quay.io/a", "signed", &[b"layer"]);
    let signature = format!("{}.sig", signed.dashed());
    tagged(&store, "quay.io/a", &signature, &[b"signature"]);
    let subject = json!({ "digest": signed.to_string(), "size": 1 });
    let document = json!({ "schemaVersion": 2, "layers": [], "subject": subject });
    let (attestation, _) = publish(&store, "quay.io/a", MediaType::OCI_MANIFEST, &document);
    grow_old(directory.path(), 9);
    grow_old(&directory.path().join("refs/quay.io/a/_tags/signed"), 2);
    let (sweep, mut index) = build(&store);
    evicts(&sweep, &mut index, "quay.io/a:signed");
    let mut others: Vec<String> = Vec::new();
    while let Some((shown, _)) = evict_next(&sweep, &mut index) {
        others.push(shown);
    }
    others.sort();
    assert_eq!(others, [format!("quay.io/a:{signature}"), format!("quay.io/a@{attestation}")]);
}

#[test]
fn pins_of_a_subject_keep_its_signature_and_pinned_images_are_counted() {
    let (directory, store) = fresh();
    let signed = tagged(&store, "quay.io/a", "signed", &[b"layer"]);
    tagged(&store, "quay.io/a", &format!("{}.sig", signed.dashed()), &[b"signature"]);
    tagged(&store, "quay.io/b", "v", &[b"other"]);
    grow_old(directory.path(), 2);
    let sweep = store.begin_sweep().unwrap().unwrap();
    let pins = pins(&store, &format!("quay.io/a@{signed}"));
    let index = sweep.eviction_index(SystemTime::now(), &pins, &mut || true);
    let mut index = index.unwrap().unwrap();
    assert_eq!(index.pinned(), 2);
    evicts(&sweep, &mut index, "quay.io/b:v");
    assert_eq!(evict_next(&sweep, &mut index), None);
}

#[test]
fn blobs_that_a_damaged_record_may_reference_stay() {
    let (directory, store) = two();
    let stray = put(&store, b"stray");
    let damaged = store.tag(&name("quay.io/a"), &tag("v"), Access::Look).unwrap().digest;
    fs::write(store.inner.layout.blob(&damaged), b"damaged").unwrap();
    grow_old(directory.path(), 2);
    let (sweep, mut index) = build(&store);
    assert_eq!(sweep.evict_unnamed(&index, &mut || true).unwrap(), 0);
    assert!(store.blob(&stray, None).is_some());
    while evict_next(&sweep, &mut index).is_some() {}
    assert!(has(&store, b"only a") && !has(&store, b"only b"));
}

#[test]
fn an_image_whose_tag_is_damaged_stays_since_it_may_be_pinned() {
    let (directory, store) = two();
    fs::write(store.inner.layout.tag(&name("quay.io/a"), &tag("v")), b"").unwrap();
    grow_old(directory.path(), 2);
    let (sweep, mut index) = build(&store);
    while evict_next(&sweep, &mut index).is_some() {}
    assert!(has(&store, b"only a") && !has(&store, b"only b"));
}

#[test]
fn leftovers_are_evicted_by_age_and_damaged_blobs_first() {
    let (directory, store) = two();
    let mut ingest = begin(&store, &sha256(b"partial"));
    ingest.write(b"part").unwrap();
    drop(ingest);
    assert!(store.put_list(&name("quay.io/b"), "tags", &empty_list(), u64::MAX).unwrap());
    fs::create_dir_all(directory.path().join("quarantine")).unwrap();
    fs::write(directory.path().join("quarantine/sha256-00"), b"damaged").unwrap();
    for part in ["incoming", "partials"].map(|part| directory.path().join(part)) {
        if part.exists() {
            grow_old(&part, 5);
        }
    }
    grow_old(&directory.path().join("lists"), 4);
    let (sweep, mut index) = build(&store);
    let mut all = Vec::new();
    while let Some((shown, evicted)) = evict_next(&sweep, &mut index) {
        assert!(matches!(evicted, Evicted::Removed { .. }), "{shown}: {evicted:?}");
        all.push(shown);
    }
    assert!(all[0].ends_with("quarantine/sha256-00") && all[2].contains("/lists/"), "{all:?}");
    assert_eq!(all[1], sha256(b"partial").to_string());
    assert_eq!(all[3..], ["quay.io/a:v", "quay.io/b:v"]);
}

#[test]
fn content_within_the_grace_period_is_not_a_candidate() {
    let (directory, store) = fresh();
    tagged(&store, "quay.io/a", "v", &[b"layer"]);
    let (sweep, mut index) = build(&store);
    assert_eq!(evict_next(&sweep, &mut index), None);
    drop(sweep);
    grow_old(directory.path(), 2);
    let (sweep, mut index) = build(&store);
    evicts(&sweep, &mut index, "quay.io/a:v");
}

#[test]
fn eviction_waits_for_a_commit_and_reports_an_import() {
    let (directory, store) = two();
    let (sweep, mut index) = build(&store);
    let import = open(directory.path()).bundle_lock().unwrap();
    let (_, evicted) = evict_next(&sweep, &mut index).unwrap();
    assert_eq!(evicted, Evicted::Locked(SweepLocked::Bundle));
    assert!(has(&store, b"only a"));
    drop(import);
}

#[test]
fn a_time_in_the_future_counts_as_now() {
    let (directory, store) = two();
    let ahead = SystemTime::now() + HOUR * 1000;
    for path in
        ["refs/quay.io/a/_tags/v".into(), format!("blobs/sha256/{}", sha256(b"only a").hex())]
    {
        File::open(directory.path().join(path)).unwrap().set_modified(ahead).unwrap();
    }
    store.count_disk(&mut || true).unwrap();
    let (sweep, mut index) = build(&store);
    evicts(&sweep, &mut index, "quay.io/b:v");
    assert_eq!(evict_next(&sweep, &mut index), None, "it was just used");
    drop(sweep);
    grow_old(&directory.path().join("refs"), 1);
    let age = store.blob_age(&sha256(b"only a"), SystemTime::now() + HOUR).unwrap();
    assert!(age >= HOUR, "it ages from now on: {age:?}");
}

#[test]
fn images_named_before_the_clock_was_set_back_can_be_evicted() {
    let (directory, store) = two();
    let ahead = SystemTime::now() + HOUR * 1000;
    let names = directory.path().join("refs/quay.io/a");
    for path in ["_tags", "_manifests", "_manifests/sha256"].map(|path| names.join(path)) {
        File::open(path).unwrap().set_modified(ahead).unwrap();
    }
    store.count_disk(&mut || true).unwrap();
    for path in ["_tags", "_manifests", "_manifests/sha256"].map(|path| names.join(path)) {
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        assert!(modified < SystemTime::now() + HOUR, "{}", path.display());
    }
    // So that this does not depend on the resolution of the clock.
    grow_old(&names, 3);
    let (sweep, mut index) = build(&store);
    evicts(&sweep, &mut index, "quay.io/a:v");
}

#[test]
fn the_disk_usage_follows_evictions() {
    let (_directory, store) = two();
    store.count_disk(&mut || true).unwrap();
    let (sweep, mut index) = build(&store);
    while evict_next(&sweep, &mut index).is_some() {}
    let followed = store.disk_bytes().unwrap();
    let counted = store.count_disk(&mut || true).unwrap().allocated_bytes;
    // The removal of empty directories is not tracked.
    assert!((counted..counted + 20 * 4096).contains(&followed), "{followed} {counted}");
}

#[test]
fn lists_of_version_0_1_go_at_once_with_their_directories() {
    let (directory, store) = fresh();
    let former = directory.path().join("refs/quay.io/a/b/c/_lists");
    fs::create_dir_all(&former).unwrap();
    fs::write(former.join("0".repeat(64)), "{}").unwrap();
    let (sweep, mut index) = build(&store);
    let (shown, evicted) = evict_next(&sweep, &mut index).unwrap();
    assert!(shown.contains("_lists") && matches!(evicted, Evicted::Removed { .. }));
    assert!(!directory.path().join("refs/quay.io").exists());
}

fn empty_list() -> ListRecord {
    let body = Document::Memory(b"[]".as_slice().into());
    ListRecord { checked: 1, body, next: None, filters_applied: None }
}

/// Makes each read of an eviction fail once, as when descriptors run out. The pinned image is a child of the oldest
/// one, which only its index shows.
#[test]
fn a_temporary_read_error_never_evicts_a_pinned_or_used_image() {
    for errno in [Errno::MFILE, Errno::IO, Errno::NOMEM, Errno::STALE] {
        for spared in 0.. {
            let (directory, store) = fresh();
            for content in [&b"config"[..], b"of the child", b"of the other"] {
                put(&store, content);
            }
            let (child, size) = image(&store, "quay.io/a", &[b"of the child"]);
            let (root, size) = index(&store, "quay.io/a", &[(child, size, "amd64")]);
            store.put_tag(&name("quay.io/a"), &tag("v"), &record(root, size)).unwrap();
            tagged(&store, "quay.io/b", "v", &[b"of the other"]);
            grow_old(directory.path(), 3);
            let pins = pins(&store, &format!("quay.io/a@{child}"));
            let now = SystemTime::now();
            let sweep = store.begin_sweep().unwrap().unwrap();
            store.fail_reads("", spared, 1, errno);
            let built = sweep.eviction_index(now, &pins, &mut || true);
            // Another client uses the other image and confirms a tag of the first one.
            File::open(store.inner.layout.tag(&name("quay.io/b"), &tag("v")))
                .unwrap()
                .set_modified(now)
                .unwrap();
            if let Ok(Some(mut index)) = built {
                while let Some(candidate) = index.next(now) {
                    let _ = sweep.evict(&mut index, candidate, &pins);
                }
                let _ = sweep.evict_unnamed(&index, &mut || true);
            }
            let is_over = !store.has_failed_reads();
            store.fail_reads("", 0, 0, errno);
            for content in [&b"config"[..], b"of the child", b"of the other"] {
                assert!(has(&store, content), "{errno:?} at read {spared}");
            }
            for of in ["quay.io/a", "quay.io/b"] {
                let is_there = store.tag(&name(of), &tag("v"), Access::Look).is_some();
                assert!(is_there, "{of}: {errno:?} at read {spared}");
            }
            if is_over {
                assert!(spared > 10, "there were reads to fail");
                break;
            }
        }
    }
}
