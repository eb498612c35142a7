//! Room: what goes so that something else fits, what never does, and what is said when nothing may.

use std::fs;
use std::time::Duration;

use crate::support::client::{get, head};
use crate::support::larder::{blob, files, manifest, until};
use crate::support::site::{Desk, Named, Site, set_back};
use crate::support::{FakeRegistry, Fault, Gate, Image, On, bytes};

/// What one layer has. With its config, its manifest, records and directories, an image takes less than
/// 60,000 bytes more.
const LAYER: usize = 1_000_000;
/// Three images fit, and a fourth one does once one of them has gone.
const CAP: &str = "cacheSize: 3900kB";
const NOT_CACHED: Option<&str> = Some("larder; fwd=miss; detail=not-cached");
const EVICTED: &str = "larder_removed_images_total{why=\"evicted\"}";
const PASSED: &str = "larder_not_cached_total{kind=\"blob\"}";

fn image(label: &str, layer: usize) -> Image {
    let seed = label.bytes().map(u64::from).sum();
    Image::new(label).layer(bytes(layer, seed))
}

fn images() -> Vec<Image> {
    ["a", "b", "c", "d"].map(|label| image(label, LAYER)).into()
}

/// Three images that were used two, four and three hours ago.
fn three(images: &[Image]) -> [Named<'_>; 3] {
    [named("a", &images[0]), named("b", &images[1]), named("c", &images[2])]
}

fn named<'a>(repository: &'a str, image: &'a Image) -> Named<'a> {
    Named { repository, tag: "1", image }
}

/// A cache that holds three images, and a registry with a fourth one.
fn site(registry: &FakeRegistry, images: &[Image]) -> Site {
    let site = Site::new(registry, "");
    let all = three(images);
    site.fill(registry, &all);
    for (each, hours) in all.iter().zip([2, 4, 3]) {
        site.unused_for(each, hours);
    }
    named("d", &images[3]).publish(registry);
    site
}

fn serve(site: &Site, further: &str) -> Desk {
    site.configure(further);
    let desk = site.serve();
    desk.wait_until_counted();
    desk
}

/// Which of the three are whole.
fn kept(site: &Site, images: &[Image]) -> [bool; 3] {
    three(images).map(|each| site.has_all(&each))
}

/// A pull that does not fit and comes all the same.
#[track_caller]
fn passes(desk: &Desk, new: &Named<'_>) {
    assert_eq!(get(desk.serving(), &manifest(&new.path(), new.tag)).status, 200);
    let layer = &new.image.layers()[0];
    let got = get(desk.serving(), &blob(&new.path(), &layer.digest));
    assert!(got.status == 200 && got.complete && got.body == layer.bytes, "{got:?}");
    assert_eq!(got.header("cache-status"), NOT_CACHED);
}

#[test]
fn least_recently_used_image_is_evicted_for_a_pull_that_does_not_fit() {
    let registry = FakeRegistry::start();
    let images = images();
    let site = site(&registry, &images);
    let mut desk = serve(&site, CAP);
    let new = named("d", &images[3]);
    new.pull(desk.serving());
    site.wait_for(&new);
    assert_eq!(kept(&site, &images), [true, false, true]);
    assert!(!site.has(&images[1].layers()[0].digest));
    desk.process.wait_until_it_logs("evicted 1 images and 0 other files");
    assert_eq!((desk.metric(EVICTED), desk.metric(PASSED)), (1.0, 0.0));
    let status = desk.look("status");
    assert_eq!(status["counts"]["imagesEvicted"], 1);
    assert_eq!(status["disk"]["cacheSizeBytes"], 3_900_000);
    assert!(status["disk"]["usedBytes"].as_u64().is_some_and(|used| used < 3_900_000), "{status}");
    registry.clear_requests();
    for each in [&three(&images)[0], &three(&images)[2], &new] {
        each.pull(desk.serving());
    }
    assert_eq!(registry.requests().len(), 0);
    three(&images)[1].pull(desk.serving());
    assert_eq!(registry.count("GET", &manifest("library/b", "1")), 1, "what has gone comes again");
}

#[test]
fn pinned_and_just_used_images_are_not_evicted() {
    let registry = FakeRegistry::start();
    let images = images();
    let site = site(&registry, &images);
    // The least recently used is pinned, the second least was just pulled.
    let desk = serve(&site, &format!("{CAP}\npin: [b]"));
    three(&images)[2].pull(desk.serving());
    let new = named("d", &images[3]);
    new.pull(desk.serving());
    site.wait_for(&new);
    assert_eq!(kept(&site, &images), [false, true, true]);
    assert_eq!(desk.metric(EVICTED), 1.0);
}

#[test]
fn pull_succeeds_without_caching_and_logs_why_when_everything_is_pinned() {
    let registry = FakeRegistry::start();
    let images = images();
    let site = site(&registry, &images);
    let mut desk = serve(&site, &format!("{CAP}\npin: ['*/b*', '*/c*']"));
    site.done(&["pin", "a:1"]);
    let new = named("d", &images[3]);
    // Its first bytes fit, and nothing may go for the next ones.
    new.pull(desk.serving());
    let said = desk.hear("[ERROR]");
    for words in [
        "the cache has reached cacheSize",
        "everything else is pinned (3 images)",
        "unpin or prune something",
        "streamed to clients without being cached",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    until("its count", || desk.metric(PASSED) == 1.0);
    assert_eq!(desk.look("status")["counts"]["blobsNotCached"], 1);
    passes(&desk, &new);
    until("its count", || desk.metric(PASSED) == 2.0);
    assert_eq!(desk.metric(EVICTED), 0.0);
    assert_eq!(kept(&site, &images), [true; 3]);
    let layer = &images[3].layers()[0].digest;
    assert!(!site.has(layer) && files(&site.root().join("partials/docker.io")).is_empty());
    let log = desk.log();
    assert_eq!(log.matches("[ERROR]").count(), 1, "it is said once in a while: {log}");
}

#[test]
fn blob_larger_than_the_limit_evicts_nothing() {
    let registry = FakeRegistry::start();
    let images = images();
    let site = site(&registry, &images);
    let huge = image("huge", 4_000_000);
    let new = named("huge", &huge);
    new.publish(&registry);
    let desk = serve(&site, CAP);
    passes(&desk, &new);
    assert_eq!(kept(&site, &images), [true; 3]);
    assert_eq!(desk.metric(EVICTED), 0.0);
    // And it keeps nobody from making room for what does fit.
    let fits = named("d", &images[3]);
    fits.pull(desk.serving());
    site.wait_for(&fits);
    let log = desk.log();
    assert!(log.contains("larger than the limit itself"), "{log}");
}

#[test]
fn partial_download_is_evicted_in_its_turn() {
    for (hours, stays) in [(5, false), (1, true)] {
        let registry = FakeRegistry::start();
        let images = images();
        let site = Site::new(&registry, "");
        let old = named("a", &images[0]);
        site.fill(&registry, &[named("a", &images[0])]);
        site.unused_for(&old, 3);
        let digest = registry.add_blob("library/broken", &bytes(3_000_000, 99));
        let gate = Gate::new();
        registry.fault(On::get_blob(&digest), Fault::GateAfter(1_500_000, gate.clone()));
        let desk = site.serve();
        let mut client = desk.begin(&blob("library/broken", &digest));
        client.read_head();
        client.read_body(1_500_000);
        desk.process.signal("KILL");
        desk.process.wait();
        let partials = || files(&site.root().join("partials/docker.io"));
        assert_eq!(partials().len(), 2, "its bytes, and whose they are");
        for path in partials() {
            set_back(&path, Duration::from_secs(hours * 3600));
        }
        let large = image("large", 1_500_000);
        let new = named("large", &large);
        new.publish(&registry);
        let mut desk = serve(&site, &format!("{CAP}\nresumeOnStart: false"));
        assert_eq!(desk.look("flights")["partials"][0]["bytes"], 1_500_000);
        new.pull(desk.serving());
        site.wait_for(&new);
        let said = desk.process.wait_until_it_logs("bytes in all");
        let expected =
            if stays { "evicted 1 images and 0 other" } else { "evicted 0 images and 1 other" };
        assert!(said.contains(expected), "{said}");
        assert_eq!((!partials().is_empty(), site.has_all(&old)), (stays, !stays));
    }
}

#[test]
fn unreadable_pins_stop_eviction_and_are_reported() {
    let registry = FakeRegistry::start();
    let images = images();
    let site = site(&registry, &images);
    let list = site.path("pins.txt");
    let mut desk = serve(&site, &format!("{CAP}\npinLists: [{}]", list.display()));
    let new = named("d", &images[3]);
    new.pull(desk.serving());
    let said = desk.hear("[ERROR]");
    assert!(said.contains("cannot read the pins in") && said.contains("pins.txt"), "{said}");
    assert_eq!(kept(&site, &images), [true; 3]);
    let problem = desk.look("pins")["problem"].as_str().map(str::to_owned).unwrap_or_default();
    assert!(problem.contains("nothing is evicted until they can be read"), "{problem}");
    let got = desk.change("POST", "prune?pattern=*");
    assert!(got.status == 500 && got.text().contains("cannot read the pins"), "{got:?}");
    fs::write(&list, "nothing:of-these\n").expect("a file");
    assert!(desk.look("pins")["problem"].is_null());
    assert_eq!(desk.change("POST", "prune?pattern=*/b:1").json()["removed"], 1);
}

#[test]
fn unattainable_free_space_evicts_old_images_and_pulls_pass_through() {
    let registry = FakeRegistry::start();
    let images = images();
    let site = site(&registry, &images);
    let mut desk = serve(&site, "freeSpace: 99%");
    let said = desk.hear("[ERROR]");
    assert!(said.contains("the disk has no more than freeSpace left"), "{said}");
    passes(&desk, &named("d", &images[3]));
    assert_eq!(kept(&site, &images), [false; 3]);
    let disk = &desk.look("status")["disk"];
    assert!(disk["freeSpaceBytes"].as_u64() > disk["freeBytes"].as_u64(), "{disk}");
    assert!(disk["cacheSizeBytes"].is_null());
}

#[test]
fn limit_lowered_by_a_reload_is_enforced_in_the_background() {
    let registry = FakeRegistry::start();
    let images = images();
    let site = site(&registry, &images);
    let mut desk = serve(&site, "cacheSize: 1GB");
    for (cap, kept_now) in [("2600kB", [true, false, true]), ("1500kB", [true, false, false])] {
        site.configure(&format!("cacheSize: {cap}"));
        desk.process.signal("HUP");
        let said = desk.process.wait_until_it_logs("configuration reloaded (SIGHUP)");
        assert!(said.contains("cacheSize"), "{said}");
        desk.process.wait_until_it_logs("evicted 1 images");
        assert_eq!(kept(&site, &images), kept_now);
    }
    // What is gone is not listed any more, soon.
    until("the list of images", || desk.look("images")["total"] == 1);
    assert_eq!(head(desk.serving(), &manifest("library/a", "1")).status, 200);
}

#[test]
fn unreferenced_content_is_evicted_before_any_image() {
    let registry = FakeRegistry::start();
    let images = images();
    let site = site(&registry, &images);
    site.done(&["prune", "b"]);
    let stray = bytes(LAYER, 1234);
    let digest = registry.add_blob("library/stray", &stray);
    let desk = site.serve();
    assert!(get(desk.serving(), &blob("library/stray", &digest)).body == stray);
    until("the blob's name", || site.has(&digest));
    desk.log();
    set_back(&site.root().join("blobs").join(digest.replace(':', "/")), Duration::from_secs(3600));
    let desk = serve(&site, CAP);
    let new = named("d", &images[3]);
    new.pull(desk.serving());
    site.wait_for(&new);
    assert!(!site.has(&digest));
    assert_eq!(kept(&site, &images), [true, false, true]);
    assert_eq!(desk.metric(EVICTED), 0.0);
}

#[test]
fn announced_size_evicts_nothing_until_the_bytes_arrive() {
    let registry = FakeRegistry::start();
    let images = images();
    let site = site(&registry, &images);
    let promised = registry.add_blob("library/promised", &bytes(3_500_000, 7));
    let gate = Gate::new();
    registry.fault(On::get_blob(&promised), Fault::GateAfter(1000, gate.clone()));
    let desk = serve(&site, CAP);
    let mut client = desk.begin(&blob("library/promised", &promised));
    client.read_head();
    client.read_body(999);
    // A pull that fits comes and goes: the thread has compared the disk with the watermarks meanwhile.
    let small = image("small", 100_000);
    let fits = named("small", &small);
    fits.publish(&registry);
    fits.pull(desk.serving());
    site.wait_for(&fits);
    assert_eq!(kept(&site, &images), [true; 3]);
    assert_eq!(desk.metric(EVICTED), 0.0);
    gate.open();
    until("the blob's name", || site.has(&promised));
    assert_eq!(kept(&site, &images), [false; 3], "now they arrived");
}

#[test]
fn eviction_begins_in_the_background_before_the_limit() {
    let registry = FakeRegistry::start();
    let images = images();
    let site = site(&registry, &images);
    let mut desk = serve(&site, "cacheSize: 4300kB");
    // All four fit, above the high watermark.
    let new = named("d", &images[3]);
    new.pull(desk.serving());
    site.wait_for(&new);
    desk.process.wait_until_it_logs("evicted 1 images");
    assert_eq!(kept(&site, &images), [true, false, true]);
    assert_eq!(desk.metric(PASSED), 0.0);
}

#[test]
fn tag_lists_count_and_are_evicted_before_images_used_later() {
    let registry = FakeRegistry::start();
    let images = images();
    let site = site(&registry, &images);
    let lists = site.root().join("refs/docker.io/library/a/_lists");
    fs::create_dir_all(&lists).expect("a directory");
    for number in 0..10 {
        let path = lists.join(format!("{number:064}"));
        fs::write(&path, bytes(100_000, number)).expect("a file");
        set_back(&path, Duration::from_secs(5 * 3600));
    }
    let mut desk = serve(&site, CAP);
    desk.process.wait_until_it_logs("evicted 0 images and");
    until("the low watermark", || files(&lists).len() <= 4);
    assert_eq!(kept(&site, &images), [true; 3]);
}

#[test]
fn two_servers_on_one_directory_share_one_limit() {
    let registry = FakeRegistry::start();
    let images = images();
    let site = site(&registry, &images);
    let one = serve(&site, CAP);
    let other = serve(&site, CAP);
    let more = ["e", "f", "g"].map(|label| image(label, LAYER));
    for (place, image) in more.iter().enumerate() {
        let new = named(["e", "f", "g"][place], image);
        new.publish(&registry);
        new.pull([&one, &other][place % 2].serving());
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
        "each knows at most a minute later what the other one wrote: {used}"
    );
}
