//! `larder load`: image lists are pulled through the cache, with retries and resumption.
//!
//! Proves the exit codes in docs/air-gap.md, "Filling the connected side", and that a list completes over a bad link.

use std::fs;
use std::sync::Mutex;
use std::time::Duration;

use larder::bundle::{LoadEvent, LoadSettings, LoadSummary, Manner, Outcome, Wanted, load};
use larder::oci::Platforms;

use crate::support::larder::{blob, manifest};
use crate::support::{FakeRegistry, Fault, Image, Index, Larder, On, Publish, bytes};

const REPOSITORY: &str = "team/app";

fn settings(platforms: &[&str]) -> LoadSettings {
    LoadSettings {
        platforms: Platforms::parse(platforms.iter().copied()).expect("platforms"),
        parallel: 4,
        attempts: 5,
        first_wait: Duration::ZERO,
        referrers: false,
        newest: None,
        manner: Manner::Command,
    }
}

/// Loads a list in which `$` is replaced by the registry.
fn run(
    larder: &Larder,
    registry: &FakeRegistry,
    list: &str,
    settings: &LoadSettings,
) -> LoadSummary {
    let list = list.replace('$', &registry.host());
    let wanted = Wanted::parse_list(&list, str::to_owned).expect("a list");
    load(&larder.cache(), &wanted, settings, &|_| {})
}

fn loaded(bytes: usize) -> Outcome {
    Outcome::Loaded { fetched_bytes: bytes as u64 }
}

/// The size of the blobs. The manifest is not included.
fn blobs_size(image: &Image) -> usize {
    image.blobs().iter().map(|blob| blob.bytes.len()).sum()
}

#[test]
fn list_is_loaded_completely_and_the_second_run_fetches_nothing() {
    let registry = FakeRegistry::start();
    let (one, two) = (Image::sample("one"), Image::sample("two").layer(bytes(100_000, 2)));
    registry.add(REPOSITORY, "v1", &one);
    registry.add(REPOSITORY, "v2", &two);
    let larder = Larder::start(&registry);
    let list = format!(
        "# ours\n\n$/team/app:v1, $/team/app@{} # by digest\n$/team/app:v1\n",
        two.digest()
    );
    let host = registry.host();
    let names = [format!("{host}/team/app:v1"), format!("{host}/team/app@{}", two.digest())];
    let size = |image: &Image| image.manifest().len() + blobs_size(image);
    for sizes in [[size(&one), size(&two)], [0, 0]] {
        let summary = run(&larder, &registry, &list, &settings(&["all"]));
        let expected: Vec<_> = names.iter().cloned().zip(sizes.map(loaded)).collect();
        assert_eq!(summary.images, expected);
    }
    for image in [&one, &two] {
        for each in image.blobs() {
            // The image must be tagged when the command exits, not a moment later.
            assert!(larder.has(&each.digest));
            assert_eq!(registry.count("GET", &blob(REPOSITORY, &each.digest)), 1);
        }
    }
}

#[test]
fn pattern_matches_tags_on_all_pages() {
    let registry = FakeRegistry::start();
    registry.tags_page(2);
    for tag in ["v1.0", "v1.1", "v2.0", "nightly", "v1.2"] {
        registry.add(REPOSITORY, tag, &Image::sample(tag));
    }
    let larder = Larder::start(&registry);
    for (list, tags) in [
        ("$/team/app:v1.*", &["v1.0", "v1.1", "v1.2"][..]),
        ("$/team/app:/^v[0-9]+[.]0/", &["v1.0", "v2.0"]),
    ] {
        let summary = run(&larder, &registry, list, &settings(&["all"]));
        let names: Vec<&str> =
            summary.images.iter().filter_map(|(name, _)| name.rsplit(':').next()).collect();
        assert_eq!(names, tags);
    }
    let none = run(&larder, &registry, "$/team/app:x*", &settings(&["all"]));
    assert_eq!(none.failed().map(|(_, reason)| reason).collect::<Vec<_>>(), ["no tag matches"]);
}

#[test]
fn pattern_fails_if_a_page_of_tags_is_unavailable() {
    for fault in [
        Fault::status(403),
        Fault::status(500),
        Fault::Html200,
        Fault::extra_header("Link", "</page/3>; rel=\"next\""),
        Fault::CutAfter(10),
    ] {
        let registry = FakeRegistry::start();
        registry.tags_page(2);
        for tag in ["v1", "v2", "v3"] {
            registry.add(REPOSITORY, tag, &Image::sample(tag));
        }
        let larder = Larder::start(&registry);
        // The cached tags must not pass for the complete list either.
        assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
        registry.fault(On::tags(REPOSITORY).after(1), fault);
        let summary = run(&larder, &registry, "$/team/app:v*", &settings(&["all"]));
        assert_eq!((summary.images.len(), summary.failed().count()), (1, 1), "{summary:?}");
    }
}

#[test]
fn selected_platforms_of_an_index_are_loaded() {
    let registry = FakeRegistry::start();
    let amd = Image::new("amd").platform("linux", "amd64").layer(bytes(1000, 1));
    let arm = Image::new("arm").platform("linux", "arm64").layer(bytes(1000, 2));
    let index = Index::new().image(&amd).image(&arm);
    for image in [&amd, &arm] {
        registry.add_untagged(REPOSITORY, image);
    }
    registry.add(REPOSITORY, "v1", &index);
    let larder = Larder::start(&registry);
    let list = "$/team/app:v1";
    let mars = run(&larder, &registry, list, &settings(&["linux/mars"]));
    let (_, reason) = mars.failed().next().expect("it has none of the requested platforms");
    assert!(reason.contains("it has linux/amd64, linux/arm64"), "{reason}");
    run(&larder, &registry, list, &settings(&["linux/arm64"]));
    let has = |image: &Image| image.blobs().iter().all(|each| larder.has(&each.digest));
    assert!(has(&arm) && !has(&amd));
    run(&larder, &registry, list, &settings(&["all"]));
    assert!(has(&amd));
}

#[test]
fn platforms_are_compared_as_containerd_normalizes_them() {
    for (os, architecture, wanted) in [
        ("Linux", "AMD64", "linux/amd64"),
        ("linux", "x86_64", "linux/amd64"),
        ("linux", "i386", "linux/386"),
        ("linux", "arm64", "Linux/ARM64/v8"),
    ] {
        let registry = FakeRegistry::start();
        let image = Image::sample("one").platform(os, architecture);
        let other = Image::sample("other").platform("linux", "s390x");
        registry.add(REPOSITORY, "v1", &Index::new().image(&image).image(&other));
        let larder = Larder::start(&registry);
        let summary = run(&larder, &registry, "$/team/app:v1", &settings(&[wanted]));
        assert_eq!(summary.failed().collect::<Vec<_>>(), [], "{os}/{architecture}");
        assert!(image.blobs().iter().all(|each| larder.has(&each.digest)), "{wanted}");
        assert!(!other.blobs().iter().any(|each| larder.has(&each.digest)), "{wanted}");
    }
}

#[test]
fn referrers_of_the_manifests_of_platforms_are_loaded_too() {
    let registry = FakeRegistry::start();
    registry.enable_referrers();
    let (one, two) = (Image::sample("one"), Image::sample("two").platform("linux", "arm64"));
    let index = Index::new().image(&one).image(&two);
    registry.add(REPOSITORY, "v1", &index);
    let subjects = [index.descriptor(), one.descriptor(), two.descriptor()];
    let signatures = subjects.map(|subject| {
        let name = format!("signature of {}", subject.digest);
        let signature = Image::sample(&name).artifact_type("a/signature").subject(subject);
        registry.add_untagged(REPOSITORY, &signature);
        signature
    });
    registry.expect_unknown("*/manifests/sha256-*");
    for referrers in [false, true] {
        let larder = Larder::start(&registry);
        let chosen = LoadSettings { referrers, ..settings(&["all"]) };
        let summary = run(&larder, &registry, "$/team/app:v1", &chosen);
        assert_eq!(summary.failed().collect::<Vec<_>>(), []);
        for signature in &signatures {
            assert_eq!(larder.has(&signature.digest()), referrers);
            assert!(signature.layers().iter().all(|each| larder.has(&each.digest) == referrers));
        }
    }
}

#[test]
fn failures_are_retried_missing_images_are_not_and_both_are_reported() {
    let registry = FakeRegistry::start();
    let image = Image::sample("v1").layer(bytes(300_000, 1));
    registry.add(REPOSITORY, "v1", &image);
    let layer = image.layers().last().expect("a layer").digest.clone();
    registry.fault(On::get_manifest("v1").times(2), Fault::status(503));
    registry.fault(On::get_blob(&layer).times(2), Fault::CutAfter(100_000));
    registry.expect_unknown(&manifest(REPOSITORY, "v9"));
    let larder = Larder::start(&registry);
    let retries = Mutex::new(Vec::new());
    let wanted = Wanted::parse_list(
        &"$/team/app:v1,$/team/app:v9".replace('$', &registry.host()),
        str::to_owned,
    );
    let summary = load(&larder.cache(), &wanted.expect("a list"), &settings(&["all"]), &|event| {
        if let LoadEvent::Retry { image, .. } = event {
            retries.lock().expect("no panic").push(image.to_owned());
        }
    });
    let failed: Vec<_> = summary.failed().collect();
    let missing = format!("{}/team/app:v9", registry.host());
    assert_eq!(failed.len(), 1);
    assert!(failed[0].0 == missing && failed[0].1.contains("no such content"), "{failed:?}");
    assert_eq!(registry.count("GET", &manifest(REPOSITORY, "v9")), 1);
    assert_eq!(retries.into_inner().expect("no panic").len(), 4);
    // Each attempt resumes where the previous one stopped.
    assert_eq!(registry.count("GET", &blob(REPOSITORY, &layer)), 3);
    assert!(larder.has(&layer));
}

#[test]
fn cached_image_loads_successfully_during_an_outage() {
    let registry = FakeRegistry::start();
    registry.add_sample(REPOSITORY);
    let larder = Larder::start(&registry);
    run(&larder, &registry, "$/team/app:v1", &settings(&["all"]));
    registry.stop();
    larder.advance(Duration::from_secs(3600));
    let summary = run(&larder, &registry, "$/team/app:v1", &settings(&["all"]));
    let outcome = &summary.images[0].1;
    assert!(matches!(outcome, Outcome::Unconfirmed { fetched_bytes: 0, .. }), "{outcome:?}");
}

#[test]
fn image_whose_manifest_or_tag_cannot_be_stored_is_not_loaded() {
    for in_the_way in ["", "_tags"] {
        let (registry, _) = FakeRegistry::with_image(REPOSITORY);
        let larder = Larder::start(&registry);
        let records = larder.root().join("refs").join(registry.host()).join(REPOSITORY);
        let path = records.join(in_the_way);
        let above = path.parent().expect("a directory");
        fs::create_dir_all(above).expect("a directory can be created");
        // Fails for root as well, as on a full disk.
        fs::write(path.components().as_path(), b"in the way").expect("a file can be written");
        let summary = run(&larder, &registry, "$/team/app:v1", &settings(&["all"]));
        let [(_, Outcome::Failed { reason, .. })] = &summary.images[..] else {
            panic!("{in_the_way:?}: {summary:?}");
        };
        assert!(reason.contains("not stored"), "{in_the_way:?}: {reason}");
    }
}

#[test]
fn layers_below_an_unconfirmed_manifest_are_counted_in_all_attempts() {
    let registry = FakeRegistry::start();
    let image = Image::sample("v1");
    registry.add(REPOSITORY, "v1", &image);
    let larder = Larder::start(&registry);
    assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
    larder.advance(Duration::from_secs(3600));
    registry.fault(On::manifest("v1"), Fault::status(503));
    let layer = image.layers().last().expect("a layer").digest.clone();
    registry.fault(On::get_blob(&layer).times(1), Fault::status(500));
    let summary = run(&larder, &registry, "$/team/app:v1", &settings(&["all"]));
    let fetched_bytes = blobs_size(&image) as u64;
    let outcome = &summary.images[0].1;
    let is_it =
        matches!(outcome, Outcome::Unconfirmed { fetched_bytes: it, .. } if *it == fetched_bytes);
    assert!(is_it, "{outcome:?}");
}

#[test]
fn new_manifest_with_cached_layers_is_counted() {
    let registry = FakeRegistry::start();
    let image = Image::sample("v1");
    registry.add(REPOSITORY, "v1", &image);
    registry.add(REPOSITORY, "v2", &image.clone().annotation("a", "b"));
    let larder = Larder::start(&registry);
    run(&larder, &registry, "$/team/app:v1", &settings(&["all"]));
    let summary = run(&larder, &registry, "$/team/app:v2", &settings(&["all"]));
    let manifest = image.annotation("a", "b").manifest();
    assert_eq!(summary.images[0].1, loaded(manifest.len()));
}

#[test]
fn thousand_images_load_completely_over_a_link_that_fails_one_response_in_twenty() {
    let registry = FakeRegistry::start();
    let images: Vec<Image> = (0..1000)
        .map(|n| {
            let image = Image::new(&format!("image {n}")).layer(bytes(600, n % 7));
            image.layer(format!("layer {n}").into_bytes())
        })
        .collect();
    let mut list = String::new();
    for (n, image) in images.iter().enumerate() {
        registry.add(REPOSITORY, &format!("v{n}"), image);
        list.push_str(&format!("$/team/app:v{n}\n"));
    }
    let faults = [
        Fault::status(500),
        Fault::CloseBeforeHead,
        Fault::CutAfter(3),
        Fault::WrongBytes,
        Fault::status(503),
        Fault::ResetAfter(5),
        Fault::Html200,
    ];
    for (n, fault) in faults.iter().cycle().take(180).enumerate() {
        registry.fault(On::anything().after(20 * n).times(1), fault.clone());
    }
    let larder = Larder::start(&registry);
    let summary = run(&larder, &registry, &list, &settings(&["all"]));
    assert_eq!(summary.failed().collect::<Vec<_>>(), []);
    for image in &images {
        assert!(image.blobs().iter().all(|each| larder.has(&each.digest)));
    }
}
