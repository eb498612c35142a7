//! Eviction: what is removed to make space, what is never removed, and what is reported when nothing can be.

use std::fs;
use std::slice;
use std::time::Duration;

use crate::support::client::{get, head};
use crate::support::larder::{blob, files, manifest, until};
use crate::support::site::{NamedImage, RunningServer, Site, set_back};
use crate::support::{FakeBucket, FakeRegistry, Fault, Gate, Image, On, bytes};

/// The size of one layer. Config, manifest, records and directories add less than 60,000 bytes to an image.
const LAYER: usize = 1_000_000;
/// Three images fit. A fourth fits once one of them has been evicted.
const LIMIT: &str = "cacheSize: 3900kB";
const NOT_CACHED: Option<&str> = Some("larder; fwd=miss; detail=not-cached");
const EVICTED: &str = "larder_removed_images_total{why=\"evicted\"}";
const PASSED_THROUGH: &str = "larder_not_cached_total{kind=\"blob\"}";

/// An image with one layer of that size, to be published as `repository:1`.
fn image(repository: &str, layer: usize) -> NamedImage {
    let seed = repository.bytes().map(u64::from).sum();
    NamedImage::new(repository, "1", &Image::new(repository).layer(bytes(layer, seed)))
}

/// A registry with the images `a`, `b`, `c` and `d`. The first three are cached, and were last used two, four and
/// three hours ago.
fn three_cached() -> (FakeRegistry, Site, Vec<NamedImage>) {
    let (registry, site) = Site::empty("");
    let images = ["a", "b", "c", "d"].map(|repository| image(repository, LAYER));
    site.fill(&registry, &images[..3]);
    for (each, hours) in images.iter().zip([2, 4, 3]) {
        site.unused_for(each, hours);
    }
    images[3].publish(&registry);
    (registry, site, images.into())
}

fn serve(site: &Site, extra: &str) -> RunningServer {
    site.configure(extra);
    let server = site.serve();
    server.wait_until_counted();
    server
}

/// Which of the first three images are still complete.
fn kept(site: &Site, images: &[NamedImage]) -> [bool; 3] {
    [0, 1, 2].map(|place| site.has_all(&images[place]))
}

/// Pulls an image that does not fit. The pull must succeed without being cached.
#[track_caller]
fn passes_through(server: &RunningServer, new: &NamedImage) {
    assert_eq!(get(server.address(), &new.target()).status, 200);
    let layer = &new.image.layers()[0];
    let got = get(server.address(), &blob(&new.path(), &layer.digest));
    assert!(got.status == 200 && got.complete && got.body == layer.bytes, "{got:?}");
    assert_eq!(got.header("cache-status"), NOT_CACHED);
}

#[test]
fn least_recently_used_image_is_evicted_for_a_pull_that_does_not_fit() {
    let (registry, site, images) = three_cached();
    let mut server = serve(&site, LIMIT);
    let new = &images[3];
    new.pull(server.address());
    site.wait_for(new);
    assert_eq!(kept(&site, &images), [true, false, true]);
    assert!(!site.has(&images[1].image.layers()[0].digest));
    server.process.wait_until_it_logs("other files images=1 files=0 ");
    assert_eq!((server.metric(EVICTED), server.metric(PASSED_THROUGH)), (1.0, 0.0));
    let status = server.api("status");
    assert_eq!(status["counts"]["imagesEvicted"], 1);
    assert_eq!(status["disk"]["cacheSizeBytes"], 3_900_000);
    assert!(status["disk"]["usedBytes"].as_u64().is_some_and(|used| used < 3_900_000), "{status}");
    registry.clear_requests();
    for each in [&images[0], &images[2], new] {
        each.pull(server.address());
    }
    assert_eq!(registry.requests().len(), 0);
    images[1].pull(server.address());
    assert_eq!(
        registry.count("GET", &manifest("library/b", "1")),
        1,
        "the evicted image is fetched again"
    );
}

#[test]
fn image_is_not_evicted_before_its_upload() {
    let bucket = FakeBucket::start();
    bucket.full(true);
    let (_registry, site, images) = three_cached();
    let extra = format!(
        "{LIMIT}\nobjectStore: {{endpoint: '{}', bucket: larder-test, accessKeyId: test, \
         secretAccessKey: s}}",
        bucket.endpoint()
    );
    let mut server = serve(&site, &extra);
    let new = &images[3];
    // Its first bytes fit, but nothing may be evicted for the rest.
    new.pull(server.address());
    let line = server.wait_for_log("error=\"not enough");
    assert!(line.contains(", or waits for its upload to the bucket (3 images)"), "{line}");
    assert!(!site.has_all(new));
    assert_eq!(kept(&site, &images), [true, true, true]);
    bucket.full(false);
    let outgoing = site.root().join("outgoing");
    until("the uploads", || files(&outgoing) == [outgoing.join("seeded")]);
    // A server that has found nothing to evict tries again after 30 s.
    drop(server);
    let server = serve(&site, &extra);
    new.pull(server.address());
    site.wait_for(new);
    assert_eq!(kept(&site, &images), [true, false, true]);
}

#[test]
fn pinned_and_just_used_images_are_not_evicted() {
    let (_registry, site, images) = three_cached();
    // The least recently used image is pinned, and the second was just pulled.
    let server = serve(&site, &format!("{LIMIT}\npin: [b]"));
    images[2].pull(server.address());
    let new = &images[3];
    new.pull(server.address());
    site.wait_for(new);
    assert_eq!(kept(&site, &images), [false, true, true]);
    until("the metric", || server.metric(EVICTED) == 1.0);
}

#[test]
fn pull_succeeds_without_caching_and_logs_why_when_everything_is_pinned() {
    let (_registry, site, images) = three_cached();
    let mut server = serve(&site, &format!("{LIMIT}\npin: ['*/b*', '*/c*']"));
    site.run_ok(&["pin", "a:1"]);
    let new = &images[3];
    // Its first bytes fit, but nothing may be evicted for the rest.
    new.pull(server.address());
    let message = server.wait_for_log(" ERROR ");
    for words in [
        "the cache has reached cacheSize",
        "everything else is pinned (3 images)",
        "unpin or prune something",
        "streamed to clients without being cached",
    ] {
        assert!(message.contains(words), "{words}: {message}");
    }
    until("the metric", || server.metric(PASSED_THROUGH) == 1.0);
    assert_eq!(server.api("status")["counts"]["blobsNotCached"], 1);
    passes_through(&server, new);
    until("the metric", || server.metric(PASSED_THROUGH) == 2.0);
    assert_eq!(server.metric(EVICTED), 0.0);
    assert_eq!(kept(&site, &images), [true; 3]);
    let layer = &images[3].image.layers()[0].digest;
    assert!(!site.has(layer) && files(&site.root().join("partials/docker.io")).is_empty());
    let log = server.log();
    assert_eq!(log.matches(" ERROR ").count(), 1, "it is logged once in a while: {log}");
}

#[test]
fn blob_larger_than_the_limit_evicts_nothing() {
    let (registry, site, images) = three_cached();
    let new = image("huge", 4_000_000);
    new.publish(&registry);
    let server = serve(&site, LIMIT);
    passes_through(&server, &new);
    let layer = blob(&new.path(), &new.image.layers()[0].digest);
    assert_eq!(registry.count("GET", &layer), 1, "one request is enough for a client");
    assert_eq!(kept(&site, &images), [true; 3]);
    assert_eq!(server.metric(EVICTED), 0.0);
    // A blob that does fit can still evict others.
    images[3].pull(server.address());
    site.wait_for(&images[3]);
    let log = server.log();
    assert!(log.contains("larger than the limit itself"), "{log}");
}

#[test]
fn partial_download_is_evicted_in_its_turn() {
    for (hours, stays) in [(5, false), (1, true)] {
        let (registry, site) = Site::empty("");
        let old = image("a", LAYER);
        site.fill(&registry, slice::from_ref(&old));
        site.unused_for(&old, 3);
        let digest = registry.add_blob("library/broken", &bytes(3_000_000, 99));
        let gate = Gate::new();
        registry.fault(On::get_blob(&digest), Fault::GateAfter(1_500_000, gate.clone()));
        let server = site.serve();
        let mut client = server.begin(&blob("library/broken", &digest));
        client.read_head();
        client.read_body(1_500_000);
        server.process.signal("KILL");
        server.process.wait();
        let partials = || files(&site.root().join("partials/docker.io"));
        assert_eq!(partials().len(), 2, "the bytes and their owner");
        for path in partials() {
            set_back(&path, Duration::from_secs(hours * 3600));
        }
        let new = image("large", 1_500_000);
        new.publish(&registry);
        let mut server = serve(&site, &format!("{LIMIT}\nresumeOnStart: false"));
        assert_eq!(server.api("flights")["partials"][0]["bytes"], 1_500_000);
        new.pull(server.address());
        site.wait_for(&new);
        let message = server.process.wait_until_it_logs("evicted images and other files");
        let expected = if stays { " images=1 files=0 " } else { " images=0 files=1 " };
        assert!(message.contains(expected), "{message}");
        assert_eq!((!partials().is_empty(), site.has_all(&old)), (stays, !stays));
    }
}

#[test]
fn unreadable_pins_stop_eviction_and_are_reported() {
    let (_registry, site, images) = three_cached();
    let list = site.path("pins.txt");
    let mut server = serve(&site, &format!("{LIMIT}\npinLists: [{}]", list.display()));
    let new = &images[3];
    new.pull(server.address());
    let message = server.wait_for_log(" ERROR ");
    assert!(
        message.contains("cannot read the pins in") && message.contains("pins.txt"),
        "{message}"
    );
    assert_eq!(kept(&site, &images), [true; 3]);
    let problem = server.api("pins")["problem"].as_str().map(str::to_owned).unwrap_or_default();
    assert!(problem.contains("nothing is evicted until they can be read"), "{problem}");
    let got = server.call("POST", "prune?pattern=*");
    assert!(got.status == 500 && got.text().contains("cannot read the pins"), "{got:?}");
    fs::write(&list, "nothing:of-these\n").expect("a file");
    assert!(server.api("pins")["problem"].is_null());
    assert_eq!(server.call("POST", "prune?pattern=*/b:1").json()["removed"], 1);
}

#[test]
fn unattainable_free_space_evicts_old_images_and_pulls_pass_through() {
    let (_registry, site, images) = three_cached();
    let mut server = serve(&site, "freeSpace: 99%");
    let message = server.wait_for_log(" ERROR ");
    assert!(message.contains("the disk has no more than freeSpace left"), "{message}");
    passes_through(&server, &images[3]);
    assert_eq!(kept(&site, &images), [false; 3]);
    let disk = &server.api("status")["disk"];
    assert!(disk["freeSpaceBytes"].as_u64() > disk["freeBytes"].as_u64(), "{disk}");
    assert!(disk["cacheSizeBytes"].is_null());
}

#[test]
fn limit_lowered_by_a_reload_is_enforced_in_the_background() {
    let (_registry, site, images) = three_cached();
    let mut server = serve(&site, "cacheSize: 1GB");
    for (cap, kept_now) in [("2600kB", [true, false, true]), ("1500kB", [true, false, false])] {
        site.configure(&format!("cacheSize: {cap}"));
        server.process.signal("HUP");
        let message = server.process.wait_until_it_logs("configuration reloaded after SIGHUP");
        assert!(message.contains("cacheSize"), "{message}");
        server.process.wait_until_it_logs("other files images=1 ");
        assert_eq!(kept(&site, &images), kept_now);
    }
    // The list soon shows what is left.
    until("the list of images to shrink", || server.api("images")["total"] == 1);
    assert_eq!(head(server.address(), &manifest("library/a", "1")).status, 200);
}

#[test]
fn unreferenced_content_is_evicted_before_any_image() {
    let (registry, site, images) = three_cached();
    site.run_ok(&["prune", "b"]);
    let stray = bytes(LAYER, 1234);
    let digest = registry.add_blob("library/stray", &stray);
    let server = site.serve();
    assert!(get(server.address(), &blob("library/stray", &digest)).body == stray);
    until("the blob to be published", || site.has(&digest));
    server.log();
    set_back(&site.root().join("blobs").join(digest.replace(':', "/")), Duration::from_secs(3600));
    let server = serve(&site, LIMIT);
    let new = &images[3];
    new.pull(server.address());
    site.wait_for(new);
    assert!(!site.has(&digest));
    assert_eq!(kept(&site, &images), [true, false, true]);
    assert_eq!(server.metric(EVICTED), 0.0);
}

#[test]
fn announced_size_evicts_nothing_until_the_bytes_arrive() {
    let (registry, site, images) = three_cached();
    let promised = registry.add_blob("library/promised", &bytes(3_500_000, 7));
    let gate = Gate::new();
    registry.fault(On::get_blob(&promised), Fault::GateAfter(1000, gate.clone()));
    let server = serve(&site, LIMIT);
    let mut client = server.begin(&blob("library/promised", &promised));
    client.read_head();
    client.read_body(999);
    // Pull an image that fits. By then the eviction thread has compared disk usage with the watermarks.
    let fits = image("small", 100_000);
    fits.publish(&registry);
    fits.pull(server.address());
    site.wait_for(&fits);
    assert_eq!(kept(&site, &images), [true; 3]);
    assert_eq!(server.metric(EVICTED), 0.0);
    gate.open();
    until("the blob to be published", || site.has(&promised));
    assert_eq!(kept(&site, &images), [false; 3], "the bytes have arrived");
}

#[test]
fn eviction_begins_in_the_background_before_the_limit() {
    let (_registry, site, images) = three_cached();
    let mut server = serve(&site, "cacheSize: 4300kB");
    // All four images fit, but exceed the high watermark.
    let new = &images[3];
    new.pull(server.address());
    site.wait_for(new);
    server.process.wait_until_it_logs("other files images=1 ");
    assert_eq!(kept(&site, &images), [true, false, true]);
    assert_eq!(server.metric(PASSED_THROUGH), 0.0);
}

#[test]
fn tag_lists_count_and_are_evicted_before_images_used_later() {
    let (_registry, site, images) = three_cached();
    let lists = site.root().join("refs/docker.io/library/a/_lists");
    fs::create_dir_all(&lists).expect("a directory");
    for number in 0..10 {
        let path = lists.join(format!("{number:064}"));
        fs::write(&path, bytes(100_000, number)).expect("a file");
        set_back(&path, Duration::from_secs(5 * 3600));
    }
    let mut server = serve(&site, LIMIT);
    server.process.wait_until_it_logs("other files images=0 ");
    until("the low watermark", || files(&lists).len() <= 4);
    assert_eq!(kept(&site, &images), [true; 3]);
}

#[test]
fn two_servers_on_one_directory_share_one_limit() {
    let (registry, site, _) = three_cached();
    let one = serve(&site, LIMIT);
    let other = serve(&site, LIMIT);
    for (place, repository) in ["e", "f", "g"].into_iter().enumerate() {
        let new = image(repository, LAYER);
        new.publish(&registry);
        new.pull([&one, &other][place % 2].address());
        site.wait_for(&new);
        site.unused_for(&new, 1);
        site.make_old();
    }
    let (one, other) = (one.metric(EVICTED), other.metric(EVICTED));
    assert!(one + other >= 2.0, "{one} {other}");
    let used: u64 =
        files(&site.root()).iter().map(|path| fs::metadata(path).map_or(0, |is| is.len())).sum();
    assert!(
        used <= 5_000_000,
        "each server learns within a minute what the other one wrote: {used}"
    );
}
