//! `sync`: images that are kept present on a schedule.
//!
//! The thread runs in this process, with an injected clock. `image_sync_server.rs` has the API and the commands.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use larder::bundle::{Newest, NewestBy, Wanted};
use larder::image_sync::{
    ImageSync, RequestError, Schedule, Settings, Suspension, SyncEntry, SyncStage, SyncStatus,
};
use larder::oci::{ImageName, Platforms, to_seconds};
use larder::store::{Store, SyncRecord};

use crate::support::larder::{blob, manifest, seconds, until};
use crate::support::{FakeRegistry, Fault, Gate, Image, Index, Larder, On, Publish, bytes};

const REPOSITORY: &str = "team/app";
const HOUR: Duration = Duration::from_secs(3600);

/// An entry that runs every hour. `$` in the list is replaced by the registry.
fn hourly(name: &str, registry: &FakeRegistry, list: &str) -> SyncEntry {
    let list = list.replace('$', &registry.host());
    SyncEntry {
        name: name.to_owned(),
        images: Wanted::parse_list(&list, str::to_owned).expect("a list"),
        lists: Vec::new(),
        newest: None,
        schedule: Schedule::Every(HOUR),
        platforms: Platforms::All,
        referrers: false,
    }
}

fn newest(count: usize, by: NewestBy, entry: SyncEntry) -> SyncEntry {
    SyncEntry { newest: Some(Newest { count, by }), ..entry }
}

/// The thread, which is stopped when this is dropped, and the store.
struct Syncing(ImageSync, Store);

impl Drop for Syncing {
    fn drop(&mut self) {
        self.0.stop();
    }
}

fn settings(entries: Vec<SyncEntry>) -> Settings {
    Settings { entries, expand: Arc::new(str::to_owned) }
}

impl Syncing {
    fn start(larder: &Larder, entries: Vec<SyncEntry>) -> Syncing {
        let sync = ImageSync::start(larder.cache(), settings(entries)).expect("a thread");
        Syncing(sync, larder.store())
    }

    fn status(&self, name: &str) -> SyncStatus {
        let all = self.0.statuses();
        all.into_iter().find(|status| status.name == name).expect("an entry")
    }

    /// Waits until so many runs of an entry have ended and are recorded.
    #[track_caller]
    fn after(&self, name: &str, runs: u64) -> SyncStatus {
        until("the run to end", || self.status(name).runs >= runs);
        let status = self.status(name);
        let started = status.started.map(to_seconds);
        let is_it = |record: &SyncRecord| record.name == name && Some(record.started) == started;
        until("the record of the run", || self.1.sync_records().iter().any(is_it));
        status
    }

    /// Requests a run and waits for its end.
    #[track_caller]
    fn run(&self, name: &str) -> SyncStatus {
        let requested = self.0.request(Some(name)).expect("an entry");
        self.after(name, requested[0].run)
    }
}

fn has_all(larder: &Larder, image: &Image) -> bool {
    image.blobs().iter().all(|each| larder.has(&each.digest)) && larder.has(&image.digest())
}

fn tags(larder: &Larder, registry: &FakeRegistry) -> Vec<String> {
    let upstream = registry.host().parse().expect("a registry");
    let name = ImageName::new(upstream, REPOSITORY.parse().expect("a repository"));
    let mut tags: Vec<String> =
        larder.store().tags(&name).iter().map(|tag| tag.as_str().to_owned()).collect();
    tags.sort();
    tags
}

#[test]
fn image_that_was_removed_comes_back_at_the_next_run() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let larder = Larder::start(&registry);
    let sync = Syncing::start(&larder, vec![hourly("one", &registry, "$/team/app:v1")]);
    let status = sync.after("one", 1);
    assert!(has_all(&larder, &image), "the first run is at the start");
    assert_eq!((status.present, status.missing), (1, 0));
    assert_eq!(status.succeeded, Some(larder.cache().now()));
    let layer = &image.layers()[0].digest;
    fs::remove_file(larder.blob_file(layer)).expect("a file");
    assert_eq!(status.next, Some(larder.cache().now() + HOUR));
    larder.advance(HOUR);
    sync.after("one", 2);
    assert!(has_all(&larder, &image));
    assert_eq!(registry.count("GET", &blob(REPOSITORY, layer)), 2);
    assert_eq!(registry.count("GET", &blob(REPOSITORY, &image.layers()[1].digest)), 1);
}

#[test]
fn newest_versions_are_kept_and_pinned_and_older_ones_are_not() {
    let registry = FakeRegistry::start();
    let versions = ["v1.9.0", "v1.10.0", "v1.2.0", "v2.0.0-rc.1", "latest", "vnext"];
    for tag in versions {
        registry.add(REPOSITORY, tag, &Image::sample(tag));
    }
    let larder = Larder::start(&registry);
    let entry = hourly("one", &registry, "$/team/app:/^v1|^vn/");
    let sync = Syncing::start(&larder, vec![newest(2, NewestBy::Semver, entry)]);
    assert_eq!(sync.after("one", 1).present, 2);
    assert_eq!(tags(&larder, &registry), ["v1.10.0", "v1.9.0"]);
    let pinned = || larder.store().synced_pins().expect("pins");
    let names = |tags: [&str; 2]| tags.map(|tag| format!("{}/{REPOSITORY}:{tag}", registry.host()));
    assert_eq!(pinned(), names(["v1.10.0", "v1.9.0"]));
    registry.add(REPOSITORY, "v1.11.0", &Image::sample("v1.11.0"));
    assert_eq!(sync.run("one").present, 2, "the list of tags is not an hour old");
    assert_eq!(tags(&larder, &registry), ["v1.10.0", "v1.11.0", "v1.9.0"]);
    assert_eq!(pinned(), names(["v1.10.0", "v1.11.0"]));
    // A registry that is down changes nothing.
    registry.fault(On::tags(REPOSITORY), Fault::status(403));
    let status = sync.run("one");
    assert_eq!((status.present, status.missing), (0, 1));
    assert_eq!(pinned(), names(["v1.10.0", "v1.11.0"]));
}

#[test]
fn newest_dates_are_compared_without_storing_the_other_images() {
    let registry = FakeRegistry::start();
    let built = |day: u32| {
        Image::sample(&format!("day {day}")).created(&format!("2026-11-{day:02}T00:00:00Z"))
    };
    let index = Index::new().image(&built(20)).image(&built(1).platform("linux", "arm64"));
    registry.add(REPOSITORY, "b", &index);
    for (tag, image) in [("a", built(10)), ("c", built(15)), ("d", Image::sample("no date"))] {
        registry.add(REPOSITORY, tag, &image);
    }
    let larder = Larder::start(&registry);
    let entry = hourly("one", &registry, "$/team/app:?");
    let entry =
        SyncEntry { platforms: Platforms::parse(["linux/amd64"]).expect("it is one"), ..entry };
    let sync = Syncing::start(&larder, vec![newest(2, NewestBy::Date, entry)]);
    assert_eq!(sync.after("one", 1).present, 2);
    assert_eq!(tags(&larder, &registry), ["b", "c"]);
    assert!(!larder.has(&built(10).config().digest) && !larder.has(&built(10).digest()));
    registry.clear_requests();
    assert_eq!(sync.run("one").missing, 0);
    assert_eq!(registry.count("GET", "*/manifests/*"), 0, "HEAD suffices for what is known");
    assert_eq!(registry.count("GET", "*/blobs/*"), 0);
}

#[test]
fn tag_that_has_moved_is_followed_even_while_it_is_fresh() {
    let (registry, first) = FakeRegistry::with_image(REPOSITORY);
    let larder = Larder::start(&registry);
    let sync = Syncing::start(&larder, vec![hourly("one", &registry, "$/team/app:v1")]);
    sync.after("one", 1);
    assert!(larder.get(&manifest(REPOSITORY, "v1")).body == first.manifest());
    let second = Image::sample("second");
    registry.add(REPOSITORY, "v1", &second);
    sync.run("one");
    assert!(larder.get(&manifest(REPOSITORY, "v1")).body == second.manifest());
    assert!(has_all(&larder, &second));
}

#[test]
fn tag_that_its_registry_has_deleted_is_present_and_not_confirmed() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let larder = Larder::start(&registry);
    let sync = Syncing::start(&larder, vec![hourly("one", &registry, "$/team/app:v1")]);
    let succeeded = sync.after("one", 1).succeeded;
    registry.remove_tag(REPOSITORY, "v1");
    registry.expect_unknown(&manifest(REPOSITORY, "v1"));
    larder.advance(seconds(60));
    let status = sync.run("one");
    assert_eq!((status.present, status.unconfirmed, status.missing), (1, 1, 0));
    assert_eq!(status.succeeded, succeeded);
    let (_, reason) = &status.unconfirmed_reasons[0];
    assert!(reason.contains("does not exist"), "{reason}");
    assert!(has_all(&larder, &image));
}

#[test]
fn missing_image_is_reported_and_the_others_are_loaded() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    registry.expect_unknown(&manifest(REPOSITORY, "gone"));
    let larder = Larder::start(&registry);
    let list = "$/team/app:gone, $/team/app:v1";
    let sync = Syncing::start(&larder, vec![hourly("one", &registry, list)]);
    let status = sync.after("one", 1);
    assert!(has_all(&larder, &image));
    assert_eq!((status.present, status.missing, status.succeeded), (1, 1, None));
    let (name, reason) = &status.reasons[0];
    assert!(
        name.ends_with("/team/app:gone") && reason.contains("no such content"),
        "{name}: {reason}"
    );
    registry.add(REPOSITORY, "gone", &Image::sample("back"));
    let status = sync.run("one");
    assert_eq!((status.present, status.missing), (2, 0));
    assert_eq!(status.succeeded, Some(larder.cache().now()));
}

#[test]
fn failure_is_retried_after_a_wait_and_only_what_failed() {
    let (registry, _) = FakeRegistry::with_image(REPOSITORY);
    let other = Image::sample("other");
    registry.add(REPOSITORY, "v2", &other);
    registry.fault(On::manifest("v2").times(1), Fault::status(500));
    let larder = Larder::start(&registry);
    let list = "$/team/app:v1, $/team/app:v2";
    let sync = Syncing::start(&larder, vec![hourly("one", &registry, list)]);
    until("the first attempt to end", || sync.status("one").stage == SyncStage::Retrying);
    let status = sync.status("one");
    assert_eq!((status.runs, status.attempt), (0, 1));
    assert_eq!(status.next, Some(larder.cache().now() + seconds(2)));
    let requests = || registry.count("*", &manifest(REPOSITORY, "v1"));
    let before = requests();
    larder.advance(seconds(2));
    let status = sync.after("one", 1);
    assert_eq!((status.present, status.missing), (2, 0));
    assert!(has_all(&larder, &other) && requests() == before);
}

#[test]
fn rest_of_a_rate_limit_is_kept_for_clients() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    registry.add(REPOSITORY, "v2", &Image::sample("v2"));
    let limit = [("ratelimit-limit", "100"), ("ratelimit-remaining", "5")];
    let limit = limit.map(|(name, value)| Fault::extra_header(name, &format!("{value};w=21600")));
    registry.fault(On::get_manifest("v1"), Fault::All(limit.to_vec()));
    let larder = Larder::start(&registry);
    assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
    let list = "$/team/app:v1, $/team/app:v2";
    let sync = Syncing::start(&larder, vec![hourly("one", &registry, list)]);
    until("the first attempt to end", || sync.status("one").stage == SyncStage::Retrying);
    let status = sync.status("one");
    assert_eq!((status.present, status.unconfirmed, status.missing), (1, 0, 1));
    assert!(status.reasons[0].1.contains("kept for clients"), "{:?}", status.reasons);
    assert_eq!(
        registry.count("GET", "*/manifests/*"),
        1,
        "HEAD confirms a tag, and does not count"
    );
    assert!(has_all(&larder, &image), "its layers do not count as pulls");
}

#[test]
fn missed_run_is_made_up_after_a_restart_and_others_are_not_repeated() {
    let (registry, _) = FakeRegistry::with_image(REPOSITORY);
    let mut larder = Larder::start(&registry);
    let one = || hourly("one", &registry, "$/team/app:v1");
    let other = |name: &str| hourly(name, &registry, &format!("$/team/app:v1, $/team/app:{name}"));
    registry.add(REPOSITORY, "two", &Image::sample("two"));
    registry.add(REPOSITORY, "three", &Image::sample("three"));
    let sync = Syncing::start(&larder, vec![one()]);
    let succeeded = sync.after("one", 1).succeeded;
    drop(sync);
    larder.restart();
    larder.advance(seconds(1));
    let sync = Syncing::start(&larder, vec![one(), other("two")]);
    sync.after("two", 1);
    let status = sync.status("one");
    assert_eq!((status.runs, status.succeeded), (0, succeeded), "it was not due");
    drop(sync);
    larder.restart();
    larder.advance(HOUR);
    let sync = Syncing::start(&larder, vec![one(), other("three")]);
    sync.after("three", 1);
    assert_eq!(sync.after("one", 1).succeeded, Some(larder.cache().now()));
}

#[test]
fn entries_of_two_processes_run_in_one_of_them() {
    let (registry, _) = FakeRegistry::with_image(REPOSITORY);
    let first = Larder::start(&registry);
    let second = first.second();
    let entry = || hourly("one", &registry, "$/team/app:v1");
    let one = Syncing::start(&first, vec![entry()]);
    let succeeded = one.after("one", 1).succeeded;
    let other = Syncing::start(&second, vec![entry()]);
    assert_eq!(other.status("one").succeeded, succeeded);
    first.advance(HOUR);
    let has_run = || {
        let all = [one.status("one"), other.status("one")];
        all.map(|status| status.runs).iter().sum::<u64>()
    };
    until("the next run", || has_run() == 2);
    // The process whose clock says that it is due takes over the record of the other one.
    let next = || [one.status("one").next, other.status("one").next];
    until("both to wait", || next() == [Some(first.cache().now() + HOUR); 2]);
    assert_eq!(has_run(), 2);
}

#[test]
fn nothing_is_loaded_offline() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let mut larder = Larder::start_with(&registry, |settings| settings.cache.air_gapped = true);
    let entry = || hourly("one", &registry, "$/team/app:v1");
    let sync = Syncing::start(&larder, vec![entry()]);
    assert_eq!(sync.0.suspension(), Some(Suspension::Offline));
    assert_eq!(sync.0.request(None), Err(RequestError::Suspended(Suspension::Offline)));
    drop(sync);
    larder.restart_with(|settings| settings.cache.air_gapped = false);
    assert_eq!(registry.requests().len(), 0);
    let sync = Syncing::start(&larder, vec![entry()]);
    sync.after("one", 1);
    assert!(has_all(&larder, &image));
}

#[test]
fn outage_changes_no_pins() {
    let registry = FakeRegistry::start();
    for tag in ["v1", "v2", "v3"] {
        registry.add(REPOSITORY, tag, &Image::sample(tag));
    }
    let larder = Larder::start(&registry);
    let sync = Syncing::start(&larder, vec![hourly("one", &registry, "$/team/app:/^v/")]);
    assert_eq!(sync.after("one", 1).present, 3);
    let pinned = larder.store().synced_pins_by_entry().expect("pins");
    assert_eq!(pinned["one"].len(), 3);
    registry.fault(On::tags(REPOSITORY), Fault::status(503));
    let requested = sync.0.request(None).expect("an entry");
    for attempt in 1..=7 {
        until("the attempt to end", || {
            let status = sync.status("one");
            status.stage == SyncStage::Retrying && status.attempt == attempt
        });
        assert_eq!(larder.store().synced_pins_by_entry().expect("pins"), pinned, "{attempt}");
        larder.advance(seconds(60));
    }
    let status = sync.after("one", requested[0].run);
    assert_eq!((status.present, status.missing), (0, 1));
    assert_eq!(larder.store().synced_pins_by_entry().expect("pins"), pinned);
}

#[test]
fn lists_are_read_by_each_run() {
    let (registry, _) = FakeRegistry::with_image(REPOSITORY);
    registry.add(REPOSITORY, "v2", &Image::sample("v2"));
    let larder = Larder::start(&registry);
    let directory = tempfile::tempdir().expect("a directory");
    let list = directory.path().join("list");
    let put = |text: &str| fs::write(&list, text.replace('$', &registry.host())).expect("a file");
    put("# ours\n$/team/app:v1\n");
    let entry = SyncEntry { lists: vec![list.clone()], ..hourly("one", &registry, "") };
    let sync = Syncing::start(&larder, vec![entry]);
    assert_eq!(sync.after("one", 1).present, 1);
    put("$/team/app:v1, $/team/app:v2");
    assert_eq!(sync.run("one").present, 2);
    let pinned = larder.store().synced_pins().expect("pins");
    assert_eq!(pinned.len(), 2);
    fs::remove_file(&list).expect("a file");
    let requested = sync.0.request(None).expect("an entry");
    until("the attempt to end", || sync.status("one").stage == SyncStage::Retrying);
    assert_eq!(larder.store().synced_pins().expect("pins"), pinned, "what it named stays pinned");
    put("$/team/app:v2");
    larder.advance(seconds(2));
    let status = sync.after("one", requested[0].run);
    assert_eq!((status.present, status.missing), (1, 0));
    assert_eq!(larder.store().synced_pins().expect("pins"), pinned[1..]);
}

#[test]
fn client_does_not_wait_for_the_queue_of_the_background() {
    let registry = FakeRegistry::start();
    let image = Image::new("large").layer(bytes(1_500_000, 1)).layer(bytes(1_500_000, 2));
    registry.add(REPOSITORY, "v1", &image);
    let gate = Gate::new();
    let layers = image.layers();
    registry.fault(On::get_blob(&layers[0].digest), Fault::GateAfter(10, gate.clone()));
    // One of two fetchers serves large blobs of the background.
    let upstream = registry.host().parse().expect("a registry");
    let larder = Larder::start_with(&registry, |settings| {
        settings.cache.downloads_per_upstream.insert(upstream, 2);
    });
    let sync = Syncing::start(&larder, vec![hourly("one", &registry, "$/team/app:v1")]);
    registry.wait_for("GET", &blob(REPOSITORY, &layers[0].digest), 1);
    let got = larder.get(&blob(REPOSITORY, &layers[1].digest));
    assert!(got.status == 200 && got.body == layers[1].bytes);
    assert_eq!(larder.cache().load().blob_pool.queued_in_background, 1);
    gate.open();
    sync.after("one", 1);
    assert!(has_all(&larder, &image));
    assert_eq!(registry.count("GET", &blob(REPOSITORY, &layers[1].digest)), 1);
}
