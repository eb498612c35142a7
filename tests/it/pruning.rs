//! Images that are removed by a command or by a schedule, and what is kept.

use std::fs::{self, File};
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::support::client::get;
use crate::support::larder::{blob, files, manifest, until};
use crate::support::site::{NamedImage, Site, report, set_back};
use crate::support::{FakeRegistry, Fault, Gate, Image, On, bytes};

const HOURS: Duration = Duration::from_secs(2 * 3600);

/// A cache with `app:1` and `app:2`, which share their first layer.
fn sharing_a_layer() -> (FakeRegistry, Site, Vec<NamedImage>) {
    let [one, two] = [("one", 8), ("two", 9)]
        .map(|(label, seed)| Image::new(label).layer(bytes(3000, 7)).layer(bytes(4000, seed)));
    Site::filled(&[("app:1", &one), ("app:2", &two)])
}

#[test]
fn pruned_image_is_fetched_again_and_shared_layers_are_kept() {
    let (registry, site, images) = sharing_a_layer();
    let [one, two] = &images[..] else { panic!("two images") };
    let server = site.serve();
    two.pull(server.address());
    let shared = one.image.layers()[0].digest.clone();

    let message = site.run_ok(&["prune", "app:1"]);
    assert!(message.starts_with("docker.io/library/app:1\n1 image removed, "), "{message}");
    assert!(message.contains("3 blobs removed, 1 kept for other images"), "{message}");
    assert_eq!(site.listed(&[]), [two.full()]);
    for digest in one.digests() {
        assert_eq!(site.has(&digest), digest == shared, "{digest}");
    }
    registry.clear_requests();
    two.pull(server.address());
    assert_eq!(registry.requests().len(), 0, "the other image is still complete");

    // The server may still have the manifest in memory for a moment.
    until("a cold pull", || {
        get(server.address(), &one.target());
        registry.count("GET", &one.target()) == 1
    });
    one.pull(server.address());
    assert_eq!(registry.count("GET", &blob("library/app", &shared)), 0);
    assert_eq!(registry.count("GET", "/v2/library/app/blobs/*"), 2, "its config and its own layer");
    site.wait_for(one);
    let log = server.log();
    assert!(!log.contains(" ERROR ") && !log.contains(" WARN "), "{log}");
}

#[test]
fn dry_run_changes_nothing_and_reports_what_would_be_removed() {
    let (_registry, site, images) = sharing_a_layer();
    let before = site.listed(&[]);
    let dry = report(&site.run_ok(&["prune", "app:1", "--dry-run", "--json"]));
    let message = site.run_ok(&["prune", "app:1", "--dry-run"]);
    assert!(
        message.contains("1 image would be removed, ") && message.contains("would be freed"),
        "{message}"
    );
    assert_eq!(site.listed(&[]), before);
    assert!(images.iter().all(|each| site.has_all(each)));
    let mut real = report(&site.run_ok(&["prune", "app:1", "--json"]));
    assert_eq!((&dry["dryRun"], &real["dryRun"]), (&json!(true), &json!(false)));
    real["dryRun"] = json!(true);
    assert_eq!(dry, real);
    assert_eq!(dry["images"], json!(["docker.io/library/app:1"]));
    let one = &images[0].image;
    let freed = one.layers()[1].bytes.len() + one.config().bytes.len() + one.manifest().len();
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
fn prune_conditions_must_all_match() {
    let (_registry, site, images) =
        Site::with_samples(&["alpine:3", "alpine:edge", "busybox:3", "debian:12"]);
    site.fetched_ago(&images[3], 24 * 60);
    for (each, hours) in images.iter().zip([50, 40, 30, 20]) {
        site.unused_for(each, hours);
    }
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
        (&["alpine", "--unused-for", "45h"], &["alpine:3"]),
        (&["*:3", "--unused-for", "35h", "--created-before", "30d"], &[]),
        (&["quay.io/*"], &[]),
    ] {
        let message = site.run_ok(&[&["prune", "--dry-run", "--json"], words].concat());
        let message = report(&message);
        let names: Vec<String> = message["images"].as_array().unwrap().iter().map(short).collect();
        assert_eq!(names, gone, "{words:?}");
        assert_eq!(message["removed"], json!(gone.len()), "{words:?}");
    }
    site.run_ok(&["prune", "*", "--unused-for", "25h"]);
    assert_eq!(site.listed(&[]), [images[3].full()]);
}

#[test]
fn prune_without_or_with_invalid_conditions_is_a_usage_error() {
    let (_registry, site, _) = Site::with_samples(&["app:1"]);
    for (words, message) in [
        (&[][..], "select images by name"),
        (&["--dry-run"], "select images by name"),
        (&["--count", "3"], "select images by name"),
        (&["--include-pinned"], "select images by name"),
        (&["--unused-for", "30"], "--unused-for: 30 is not a duration"),
        (&["--created-before", "yesterday"], "--created-before: \"yesterday\""),
        (&["--date", "7d", "--prune-before", "7d"], "use one of them"),
        (&["a b"], "a b: "),
        (&["/(/"], "not a pattern"),
        (&["--pattern", "("], "--pattern"),
    ] {
        let (code, stdout, stderr) = site.run(&[&["prune"], words].concat());
        assert!(code == Some(2) && stderr.contains(message), "{words:?}: {stderr}");
        assert_eq!(stdout, "", "{words:?}");
    }
    assert_eq!(site.listed(&[]).len(), 1);
}

#[test]
fn content_younger_than_ten_minutes_is_removed_by_a_later_prune() {
    let (_registry, site, images) = Site::with_samples(&["app:1"]);
    let young = &images[0].image.layers()[0].digest;
    let file = site.root().join("blobs").join(young.replace(':', "/"));
    set_back(&file, Duration::ZERO);
    let first = report(&site.run_ok(&["prune", "*", "--json"]));
    assert_eq!([&first["blobsRemoved"], &first["blobsYoung"]], [&json!(3), &json!(1)]);
    assert!(site.listed(&[]).is_empty() && file.exists());
    set_back(&file, HOURS);
    let second = report(&site.run_ok(&["prune", "*", "--json"]));
    assert_eq!([&second["removed"], &second["blobsRemoved"]], [&json!(0), &json!(1)]);
    assert!(!file.exists());
}

#[test]
fn prune_does_not_interrupt_downloads_and_cached_blobs() {
    // Larger than the socket buffers between server and client.
    let cached = Image::new("cached").layer(bytes(12_000_000, 1));
    let arriving = Image::new("arriving").layer(bytes(400_000, 2));
    let (registry, site, _) = Site::filled(&[("cached:1", &cached)]);
    NamedImage::new("arriving", "1", &arriving).publish(&registry);
    let gate = Gate::new();
    let layer = &arriving.layers()[0];
    registry.fault(On::get_blob(&layer.digest), Fault::GateAfter(200_000, gate.clone()));
    let server = site.serve();
    let path = "library/arriving";
    assert_eq!(get(server.address(), &manifest(path, "1")).status, 200);
    let mut downloading = server.begin(&blob(path, &layer.digest));
    assert_eq!(downloading.read_head().status, 200);
    assert!(downloading.read_body(100_000) == layer.bytes[..100_000]);
    let slow_layer = &cached.layers()[0];
    let mut slow = server.begin(&blob("library/cached", &slow_layer.digest));
    assert_eq!(slow.read_head().status, 200);
    assert!(slow.read_body(1000) == slow_layer.bytes[..1000]);

    site.make_old();
    site.run_ok(&["prune", "*", "--include-pinned"]);
    assert!(site.listed(&[]).is_empty() && !site.has(&slow_layer.digest));
    let (rest, complete) = slow.read_to_end();
    assert!(complete && rest == slow_layer.bytes[1000..]);
    gate.open();
    let (rest, complete) = downloading.read_to_end();
    assert!(complete && rest == layer.bytes[100_000..]);
    until("the layer to be published", || site.has(&layer.digest));
}

#[test]
fn pulls_during_prunes_get_the_right_bytes() {
    let (_registry, site, images) = sharing_a_layer();
    let server = site.serve();
    for round in 0..5 {
        let (code, stdout, stderr) = thread::scope(|scope| {
            for each in &images {
                let address = server.address();
                // No more pulls than the unread pipe of its log can take.
                scope.spawn(move || (0..3).for_each(|_| each.pull(address)));
            }
            // Files come and go meanwhile; those that exist are aged.
            for path in files(&site.root().join("blobs")) {
                if let Ok(file) = File::options().append(true).open(path) {
                    let _ = file.set_modified(SystemTime::now() - HOURS);
                }
            }
            site.run(&["prune", "*"])
        });
        assert_eq!(code, Some(0), "{round}: {stdout}{stderr}");
    }
    for each in &images {
        each.pull(server.address());
    }
}

#[test]
fn scheduled_prune_removes_old_images_and_only_reports_in_a_dry_run() {
    for is_dry_run in [false, true] {
        let (_registry, site, images) = Site::with_samples(&["app:old", "app:new", "app:kept"]);
        site.unused_for(&images[0], 30);
        site.unused_for(&images[2], 40);
        site.configure(&format!(
            "pin: ['app:kept']\n\
             pruneConfig: {{enabled: true, duration: 1d, frequency: 1h, dryRun: {is_dry_run}}}"
        ));
        let mark = site.root().join("pruned");
        fs::write(&mark, "").expect("a file");
        set_back(&mark, HOURS);
        let mut server = site.serve();
        let message = server.wait_for_log("pruneConfig: pruned images=1 ");
        let rest = format!(" pinned=1 dry_run={is_dry_run}");
        assert!(message.trim_end().ends_with(&rest), "{message}");
        assert_eq!(site.listed(&[]).len(), if is_dry_run { 3 } else { 2 });
        assert_eq!(site.has_all(&images[0]), is_dry_run);
        assert!(site.has_all(&images[1]) && site.has_all(&images[2]));
        until("the mark to be renewed", || is_new(&mark));
    }
}

fn is_new(mark: &Path) -> bool {
    let modified = fs::metadata(mark).and_then(|is| is.modified()).expect("a modification time");
    modified.elapsed().is_ok_and(|age| age < HOURS / 2)
}

#[test]
fn scheduled_prune_removes_at_most_its_limit_at_a_time() {
    let (_registry, site, images) = Site::with_samples(&["app:1", "app:2", "app:3"]);
    for (each, unused) in images[..2].iter().zip([2, 3]) {
        site.fetched_ago(each, 48);
        site.unused_for(each, unused);
    }
    site.configure(
        "pruneConfig: {enabled: true, type: created, duration: 1d, frequency: 1h, count: 1}",
    );
    let mark = site.root().join("pruned");
    fs::write(&mark, "").expect("a file");
    set_back(&mark, HOURS);
    let mut server = site.serve();
    server.wait_for_log("pruneConfig: pruned images=1 ");
    assert_eq!(site.listed(&[]), ["docker.io/library/app:1", "docker.io/library/app:3"]);
    until("the mark to be renewed", || is_new(&mark));
    set_back(&mark, HOURS);
    server.process.wait_until_it_logs("pruneConfig: pruned images=1 ");
    assert_eq!(site.listed(&[]), ["docker.io/library/app:3"]);
    assert_eq!(server.metric("larder_removed_images_total{why=\"pruned\"}"), 2.0);
}

#[test]
fn just_pulled_image_is_not_unused() {
    let (_registry, site, images) = Site::with_samples(&["app:1", "app:2"]);
    let server = site.serve();
    images[0].pull(server.address());
    site.run_ok(&["prune", "--unused-for", "30m"]);
    assert_eq!(site.listed(&[]), [images[0].full()]);
    assert!(!site.has(&images[1].image.digest()));
}
