//! Images that are removed because somebody says so, or because it is time; and what stays.

use std::fs::{self, File};
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::support::client::get;
use crate::support::larder::{blob, files, manifest, until};
use crate::support::site::{Named, Site, report, set_back};
use crate::support::{FakeRegistry, Fault, Gate, Image, On, bytes};

const HOURS: Duration = Duration::from_secs(2 * 3600);

/// Two images that share their first layer.
fn sharing() -> [Image; 2] {
    [("one", 8), ("two", 9)]
        .map(|(label, seed)| Image::new(label).layer(bytes(3000, 7)).layer(bytes(4000, seed)))
}

#[test]
fn pruned_image_is_pulled_cold_again_and_shared_layers_stay_and_are_served() {
    let registry = FakeRegistry::start();
    let images = sharing();
    let (one, two) = (Named::new("app", "1", &images[0]), Named::new("app", "2", &images[1]));
    let site = Site::new(&registry, "");
    site.fill(&registry, &[Named::new("app", "1", &images[0]), Named::new("app", "2", &images[1])]);
    let desk = site.serve();
    two.pull(desk.serving());
    let shared = images[0].layers()[0].digest.clone();

    let said = site.done(&["prune", "app:1"]);
    assert!(said.starts_with("docker.io/library/app:1\n1 image removed, "), "{said}");
    assert!(said.contains("3 blobs removed, 1 kept for other images"), "{said}");
    assert_eq!(site.listed(&[]), [two.full()]);
    for digest in one.digests() {
        assert_eq!(site.has(&digest), digest == shared, "{digest}");
    }
    registry.clear_requests();
    two.pull(desk.serving());
    assert_eq!(registry.requests().len(), 0, "all of the other one is here");

    // The server may have the manifest in memory for a moment.
    until("a cold pull", || {
        get(desk.serving(), &manifest("library/app", "1"));
        registry.count("GET", &manifest("library/app", "1")) == 1
    });
    one.pull(desk.serving());
    assert_eq!(registry.count("GET", &blob("library/app", &shared)), 0);
    assert_eq!(registry.count("GET", "/v2/library/app/blobs/*"), 2, "its config and its layer");
    site.wait_for(&one);
    let log = desk.log();
    assert!(!log.contains("[ERROR]") && !log.contains("[WARN]"), "{log}");
}

#[test]
fn dry_run_changes_nothing_and_says_what_the_real_one_will() {
    let registry = FakeRegistry::start();
    let images = sharing();
    let site = Site::new(&registry, "");
    site.fill(&registry, &[Named::new("app", "1", &images[0]), Named::new("app", "2", &images[1])]);
    let before = site.listed(&[]);
    let dry = report(&site.done(&["prune", "app:1", "--dry-run", "--json"]));
    let said = site.done(&["prune", "app:1", "--dry-run"]);
    assert!(
        said.contains("1 image would be removed, ") && said.contains("would be freed"),
        "{said}"
    );
    assert_eq!(site.listed(&[]), before);
    assert!(images.iter().all(|image| site.has(&image.digest())));
    let mut real = report(&site.done(&["prune", "app:1", "--json"]));
    assert_eq!((&dry["dryRun"], &real["dryRun"]), (&json!(true), &json!(false)));
    real["dryRun"] = json!(true);
    assert_eq!(dry, real);
    assert_eq!(dry["images"], json!(["docker.io/library/app:1"]));
    let freed = images[0].layers()[1].bytes.len()
        + images[0].config().bytes.len()
        + images[0].manifest().len();
    assert_eq!(
        [&dry["removed"], &dry["freedBytes"], &dry["blobsRemoved"], &dry["blobsShared"]],
        [&json!(1), &json!(freed), &json!(3), &json!(1)]
    );
    for field in ["blobsYoung", "partials", "keptPinned", "keptInUse"] {
        assert_eq!(dry[field], json!(0), "{field}");
    }
    assert_eq!(dry["partial"], json!(false));
}

#[test]
fn what_is_said_has_to_hold_altogether() {
    let registry = FakeRegistry::start();
    let images: Vec<Image> = ["a", "b", "c", "d"].map(Image::sample).into();
    let site = Site::new(&registry, "");
    let all = || {
        [
            Named::new("alpine", "3", &images[0]),
            Named::new("alpine", "edge", &images[1]),
            Named::new("busybox", "3", &images[2]),
            Named::new("debian", "12", &images[3]),
        ]
    };
    site.fill(&registry, &all());
    for (each, hours) in all().iter().zip([50, 40, 30, 20]) {
        site.unused_for(each, hours);
    }
    site.fetched_ago(&all()[3], 24 * 60);
    site.unused_for(&all()[3], 20);
    let short = |name: &Value| name.as_str().unwrap().replace("docker.io/library/", "");
    for (words, gone) in [
        (&["alpine:3"][..], &["alpine:3"][..]),
        (&["alpine"], &["alpine:3", "alpine:edge"]),
        (&["docker.io/library/alpine:3"], &["alpine:3"]),
        (&["*:3"], &["alpine:3", "busybox:3"]),
        (&["/(edge|12)$/"], &["alpine:edge", "debian:12"]),
        (&["--pattern", "busybox,debian"], &["busybox:3", "debian:12"]),
        (&["--unused-for", "35h"], &["alpine:3", "alpine:edge"]),
        (&["--unused-for", "60h"], &[]),
        (&["--created-before", "30d"], &["debian:12"]),
        (&["--created-before", "2001-01-01"], &[]),
        (&["--prune-before", "2999-01-01", "busybox"], &["busybox:3"]),
        (&["--date", "2999-01-01T00:00:00", "--count", "1"], &["alpine:3"]),
        (&["*", "--count", "3"], &["alpine:3", "alpine:edge", "busybox:3"]),
        (&["*", "--count", "0"], &[]),
        (&["alpine", "--unused-for", "45h"], &["alpine:3"]),
        (&["*:3", "--unused-for", "35h", "--created-before", "30d"], &[]),
        (&["quay.io/*", "nginx"], &[]),
    ] {
        let said = site.done(&[&["prune", "--dry-run", "--json"], words].concat());
        let said = report(&said);
        let names: Vec<String> = said["images"].as_array().unwrap().iter().map(short).collect();
        assert_eq!(names, gone, "{words:?}");
        assert_eq!(said["removed"], json!(gone.len()), "{words:?}");
    }
    site.done(&["prune", "*", "--unused-for", "25h"]);
    assert_eq!(site.listed(&[]), [all()[3].full()]);
}

#[test]
fn nothing_said_is_a_usage_error_and_so_is_nonsense() {
    let registry = FakeRegistry::start();
    let image = Image::sample("v1");
    let site = Site::new(&registry, "");
    site.fill(&registry, &[Named::new("app", "1", &image)]);
    for (words, said) in [
        (&[][..], "select images by name"),
        (&["--dry-run"], "select images by name"),
        (&["--count", "3"], "select images by name"),
        (&["--include-pinned"], "select images by name"),
        (&["--unused-for", "30"], "--unused-for: a duration"),
        (&["--created-before", "yesterday"], "--created-before: \"yesterday\""),
        (&["--date", "7d", "--prune-before", "7d"], "use one of them"),
        (&["a b"], "a b: "),
        (&["/(/"], "not a pattern"),
        (&["--pattern", "("], "--pattern"),
    ] {
        let (code, stdout, stderr) = site.run(&[&["prune"], words].concat());
        assert!(code == Some(2) && stderr.contains(said), "{words:?}: {stderr}");
        assert_eq!(stdout, "", "{words:?}");
    }
    assert_eq!(site.listed(&[]).len(), 1);
}

#[test]
fn what_is_younger_than_ten_minutes_goes_the_next_time() {
    let registry = FakeRegistry::start();
    let image = Image::sample("v1");
    let site = Site::new(&registry, "");
    site.fill(&registry, &[Named::new("app", "1", &image)]);
    let young = &image.layers()[0].digest;
    let file = site.root().join("blobs").join(young.replace(':', "/"));
    set_back(&file, Duration::ZERO);
    let first = report(&site.done(&["prune", "*", "--json"]));
    assert_eq!([&first["blobsRemoved"], &first["blobsYoung"]], [&json!(3), &json!(1)]);
    assert!(site.listed(&[]).is_empty() && file.exists());
    set_back(&file, HOURS);
    let second = report(&site.done(&["prune", "*", "--json"]));
    assert_eq!([&second["removed"], &second["blobsRemoved"]], [&json!(0), &json!(1)]);
    assert!(!file.exists());
}

#[test]
fn clients_in_the_middle_of_a_download_and_of_a_cached_blob_get_all_of_it() {
    let registry = FakeRegistry::start();
    // Larger than what the sockets between server and client hold.
    let cached = Image::new("cached").layer(bytes(12_000_000, 1));
    let arriving = Image::new("arriving").layer(bytes(400_000, 2));
    let site = Site::new(&registry, "");
    site.fill(&registry, &[Named::new("cached", "1", &cached)]);
    Named::new("arriving", "1", &arriving).publish(&registry);
    let gate = Gate::new();
    let layer = &arriving.layers()[0];
    registry.fault(On::get_blob(&layer.digest), Fault::GateAfter(200_000, gate.clone()));
    let desk = site.serve();
    let path = "library/arriving";
    assert_eq!(get(desk.serving(), &manifest(path, "1")).status, 200);
    let mut downloading = desk.begin(&blob(path, &layer.digest));
    assert_eq!(downloading.read_head().status, 200);
    assert!(downloading.read_body(100_000) == layer.bytes[..100_000]);
    let slow_layer = &cached.layers()[0];
    let mut slow = desk.begin(&blob("library/cached", &slow_layer.digest));
    assert_eq!(slow.read_head().status, 200);
    assert!(slow.read_body(1000) == slow_layer.bytes[..1000]);

    site.make_old();
    site.done(&["prune", "*", "--include-pinned"]);
    assert!(site.listed(&[]).is_empty() && !site.has(&slow_layer.digest));
    let (rest, complete) = slow.read_to_end();
    assert!(complete && rest == slow_layer.bytes[1000..]);
    gate.open();
    let (rest, complete) = downloading.read_to_end();
    assert!(complete && rest == layer.bytes[100_000..]);
    until("the layer's name", || site.has(&layer.digest));
}

#[test]
fn pulls_at_the_same_time_as_prunes_get_the_right_bytes() {
    let registry = FakeRegistry::start();
    let images = sharing();
    let all = || [Named::new("app", "1", &images[0]), Named::new("app", "2", &images[1])];
    let site = Site::new(&registry, "");
    site.fill(&registry, &all());
    let desk = site.serve();
    for round in 0..5 {
        let (code, stdout, stderr) = thread::scope(|scope| {
            for each in all() {
                let serving = desk.serving();
                // As many as its log, which nobody reads, has room for.
                scope.spawn(move || (0..3).for_each(|_| each.pull(serving)));
            }
            // Files go and come meanwhile; those that are there are made old.
            for path in files(&site.root().join("blobs")) {
                if let Ok(file) = File::options().append(true).open(path) {
                    let _ = file.set_modified(SystemTime::now() - HOURS);
                }
            }
            site.run(&["prune", "*"])
        });
        assert_eq!(code, Some(0), "{round}: {stdout}{stderr}");
    }
    for each in all() {
        each.pull(desk.serving());
    }
}

#[test]
fn what_is_old_is_pruned_by_the_clock_and_only_said_in_a_dry_run() {
    for is_dry_run in [false, true] {
        let registry = FakeRegistry::start();
        let images = [Image::sample("old"), Image::sample("new"), Image::sample("kept")];
        let site = Site::new(&registry, "");
        let all = [
            Named::new("app", "old", &images[0]),
            Named::new("app", "new", &images[1]),
            Named::new("app", "kept", &images[2]),
        ];
        site.fill(&registry, &all);
        site.unused_for(&all[0], 30);
        site.unused_for(&all[2], 40);
        site.configure(&format!(
            "pin: ['app:kept']\n\
             pruneConfig: {{enabled: true, duration: 1d, frequency: 1h, dryRun: {is_dry_run}}}"
        ));
        let mark = site.root().join("pruned");
        fs::write(&mark, "").expect("a file");
        set_back(&mark, HOURS);
        let mut desk = site.serve();
        let words =
            if is_dry_run { "pruneConfig (dryRun): 1 images" } else { "pruneConfig: 1 images" };
        let said = desk.hear(words);
        assert!(said.contains("1 images are pinned"), "{said}");
        assert_eq!(site.listed(&[]).len(), if is_dry_run { 3 } else { 2 });
        assert_eq!(site.has_all(&all[0]), is_dry_run);
        assert!(site.has_all(&all[1]) && site.has_all(&all[2]));
        until("the mark's renewal", || is_new(&mark));
    }
}

fn is_new(mark: &Path) -> bool {
    let modified = fs::metadata(mark).and_then(|is| is.modified()).expect("it has a time");
    modified.elapsed().is_ok_and(|age| age < HOURS / 2)
}

#[test]
fn what_came_long_ago_is_pruned_by_the_clock_as_many_at_a_time_as_is_said() {
    let registry = FakeRegistry::start();
    let images: Vec<Image> = ["a", "b", "c"].map(Image::sample).into();
    let site = Site::new(&registry, "");
    let all = || {
        ["1", "2", "3"].into_iter().zip(&images).map(|(tag, image)| Named::new("app", tag, image))
    };
    site.fill(&registry, &all().collect::<Vec<_>>());
    for (each, unused) in all().take(2).zip([2, 3]) {
        site.fetched_ago(&each, 48);
        site.unused_for(&each, unused);
    }
    site.configure(
        "pruneConfig: {enabled: true, type: created, duration: 1d, frequency: 1h, count: 1}",
    );
    let mark = site.root().join("pruned");
    fs::write(&mark, "").expect("a file");
    set_back(&mark, HOURS);
    let mut desk = site.serve();
    desk.hear("pruneConfig: 1 images");
    assert_eq!(site.listed(&[]), ["docker.io/library/app:1", "docker.io/library/app:3"]);
    until("the mark's renewal", || is_new(&mark));
    set_back(&mark, HOURS);
    desk.process.wait_until_it_logs("pruneConfig: 1 images");
    assert_eq!(site.listed(&[]), ["docker.io/library/app:3"]);
    assert_eq!(desk.metric("larder_removed_images_total{why=\"pruned\"}"), 2.0);
}

#[test]
fn image_that_was_just_pulled_is_not_unused() {
    let registry = FakeRegistry::start();
    let images = [Image::sample("a"), Image::sample("b")];
    let (one, two) = (Named::new("app", "1", &images[0]), Named::new("app", "2", &images[1]));
    let site = Site::new(&registry, "");
    site.fill(&registry, &[Named::new("app", "1", &images[0]), Named::new("app", "2", &images[1])]);
    let desk = site.serve();
    one.pull(desk.serving());
    site.done(&["prune", "--unused-for", "30m"]);
    assert_eq!(site.listed(&[]), [one.full()]);
    assert!(!site.has(&two.image.digest()));
}
