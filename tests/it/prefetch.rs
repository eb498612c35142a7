//! Prefetching: a partially pulled image is completed in the background.
//!
//! Proves promise 2 (README.md) and `prefetch` (docs/configuration.md).

use larder::cache::Prefetch;
use larder::oci::Platforms;

use crate::support::larder::{blob, manifest, seconds, until};
use crate::support::{
    FakeRegistry, Fault, Gate, Image, Index, Larder, On, Publish, bytes, digest_of, media_type,
};

const REPOSITORY: &str = "team/app";

fn start(registry: &FakeRegistry, prefetch: Prefetch) -> Larder {
    Larder::start_with(registry, |settings| settings.cache.prefetch = prefetch)
}

fn platforms(texts: &[&str]) -> Prefetch {
    let platforms = Platforms::parse(texts.iter().copied()).expect("platforms");
    Prefetch { platforms, ..Prefetch::default() }
}

#[track_caller]
fn wait_until_whole(larder: &Larder, image: &Image) {
    for each in image.blobs() {
        larder.wait_until_cached(&each.digest);
    }
}

#[test]
fn pulled_manifest_prefetches_each_blob_once() {
    let registry = FakeRegistry::start();
    let image = Image::sample("v1").layer(bytes(50_000, 9));
    registry.add(REPOSITORY, "v1", &image);
    let larder = start(&registry, Prefetch::default());
    for _ in 0..3 {
        assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
    }
    // A concurrent pull by a client does not change that.
    let layer = &image.layers()[0];
    assert!(larder.get(&blob(REPOSITORY, &layer.digest)).body == layer.bytes);
    wait_until_whole(&larder, &image);
    for each in image.blobs() {
        assert_eq!(registry.count("GET", &blob(REPOSITORY, &each.digest)), 1, "{each:?}");
    }
}

#[test]
fn head_of_a_manifest_does_not_prefetch() {
    let registry = FakeRegistry::start();
    registry.add_sample(REPOSITORY);
    let larder = start(&registry, Prefetch::default());
    assert_eq!(larder.head(&manifest(REPOSITORY, "v1")).status, 200);
    // If HEAD had started a prefetch, it would run before that of the next request.
    let other = Image::sample("v2");
    registry.add(REPOSITORY, "v2", &other);
    larder.get(&manifest(REPOSITORY, "v2"));
    wait_until_whole(&larder, &other);
    for each in Image::sample("v1").blobs() {
        assert_eq!(registry.count("GET", &blob(REPOSITORY, &each.digest)), 0);
    }
}

#[test]
fn children_of_an_index_are_prefetched_for_selected_platforms() {
    let registry = FakeRegistry::start();
    let amd = Image::sample("amd").platform("linux", "amd64").layer(bytes(1000, 1));
    let arm = Image::sample("arm").platform("linux", "arm64").layer(bytes(1000, 2));
    let windows = Image::sample("windows").platform("windows", "amd64").layer(bytes(1000, 3));
    let images = [amd, arm, windows];
    let index = images.iter().fold(Index::new(), Index::image);
    for (wanted, fetched) in [
        (&[][..], [false, false, false]),
        (&["linux/arm64"], [false, true, false]),
        (&["linux/amd64", "windows/amd64"], [true, false, true]),
        (&["all"], [true, true, true]),
    ] {
        let registry_of_this = FakeRegistry::start();
        let registry_of_this = if wanted.is_empty() { &registry } else { &registry_of_this };
        images.iter().for_each(|image| {
            registry_of_this.add_untagged(REPOSITORY, image);
        });
        registry_of_this.add(REPOSITORY, "v1", &index);
        // Marks the end of the prefetch.
        let last = Image::sample("last");
        registry_of_this.add(REPOSITORY, "last", &last);
        let larder = start(registry_of_this, platforms(wanted));
        assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
        for (image, fetched) in images.iter().zip(fetched) {
            if fetched {
                wait_until_whole(&larder, image);
            }
        }
        larder.get(&manifest(REPOSITORY, "last"));
        wait_until_whole(&larder, &last);
        for (image, fetched) in images.iter().zip(fetched) {
            let layer = &image.layers().last().expect("a layer").digest.clone();
            assert_eq!(larder.has(layer), fetched, "{wanted:?} {}", image.digest());
        }
    }
}

#[test]
fn referrers_are_prefetched_with_their_image() {
    let registry = FakeRegistry::start();
    registry.enable_referrers();
    let image = Image::sample("v1");
    let digest = registry.add(REPOSITORY, "v1", &image);
    let sbom = Image::new("sbom").artifact_type("a/sbom").subject(image.descriptor());
    let sbom = sbom.layer(bytes(5000, 5));
    registry.add_untagged(REPOSITORY, &sbom);
    let signed = Image::new("signature").artifact_type("a/sig").subject(sbom.descriptor());
    let signed = signed.layer(bytes(500, 6));
    registry.add_untagged(REPOSITORY, &signed);
    let companion = Image::new("cosign").layer(bytes(700, 7));
    registry.add(REPOSITORY, &format!("{}.sig", digest.replace(':', "-")), &companion);
    registry.expect_unknown("*.sig");
    registry.expect_unknown("*.att");
    registry.expect_unknown("*.sbom");
    let larder = start(&registry, Prefetch { referrers: true, ..Prefetch::default() });
    larder.get(&manifest(REPOSITORY, "v1"));
    for each in [&image, &sbom, &signed, &companion] {
        wait_until_whole(&larder, each);
        larder.wait_until_cached(&each.digest());
    }
    registry.stop();
    larder.advance(seconds(3600));
    // During an outage, a verifier finds what it needs.
    let referrers = larder.get(&format!("/v2/{REPOSITORY}/referrers/{digest}"));
    assert!(referrers.status == 200 && referrers.text().contains(&sbom.digest()), "{referrers:?}");
    let tag = format!("{}.sig", digest.replace(':', "-"));
    assert!(larder.get(&manifest(REPOSITORY, &tag)).body == companion.manifest());
}

#[test]
fn referrers_are_refreshed_as_often_as_tags() {
    let registry = FakeRegistry::start();
    registry.enable_referrers();
    registry.expect_unknown("/v2/*/manifests/sha256-*");
    let image = Image::sample("v1");
    let digest = registry.add(REPOSITORY, "v1", &image);
    let signed = Image::new("signature").artifact_type("a/sig").subject(image.descriptor());
    registry.add_untagged(REPOSITORY, &signed);
    let larder = start(&registry, Prefetch { referrers: true, ..Prefetch::default() });
    let referrers = format!("/v2/{REPOSITORY}/referrers/{digest}");
    larder.get(&manifest(REPOSITORY, "v1"));
    larder.wait_until_cached(&signed.digest());
    let is_idle = || {
        let pool = larder.cache().load().manifest_pool;
        pool.busy + pool.queued + pool.queued_in_background == 0
    };
    until("the end of the prefetch", is_idle);
    for number in 0..4 {
        larder.advance(seconds(61));
        larder.get(&manifest(REPOSITORY, "v1"));
        let other = registry.add(REPOSITORY, "other", &Image::sample(&number.to_string()));
        larder.get(&manifest(REPOSITORY, &other));
        larder.wait_until_cached(&other);
        until("the end of the prefetch", is_idle);
    }
    assert_eq!(registry.count("GET", &referrers), 1);

    let late = Image::new("late").artifact_type("a/sig").subject(image.descriptor());
    registry.add_untagged(REPOSITORY, &late);
    larder.advance(seconds(301));
    larder.get(&manifest(REPOSITORY, "v1"));
    larder.wait_until_cached(&late.digest());
    assert_eq!(registry.count("GET", &referrers), 2);
}

#[test]
fn prefetch_does_not_delay_clients() {
    let registry = FakeRegistry::start();
    let layers = (0..20).map(|seed| bytes(10_000, seed));
    let image = layers.fold(Image::new("large"), Image::layer);
    registry.add(REPOSITORY, "v1", &image);
    let gate = Gate::new();
    for layer in image.layers() {
        registry.fault(On::get_blob(&layer.digest), Fault::Gate(gate.clone()));
    }
    let content = bytes(1000, 99);
    let wanted = registry.add_blob(REPOSITORY, &content);
    let larder = start(&registry, Prefetch::default());
    larder.get(&manifest(REPOSITORY, "v1"));
    gate.wait_until_reached(12);
    assert!(larder.get(&blob(REPOSITORY, &wanted)).body == content);
    assert_eq!(gate.reached(), 12, "three quarters of the registry's half of the fetchers");
    gate.open();
    wait_until_whole(&larder, &image);
}

#[test]
fn image_left_partial_by_an_outage_is_completed_later() {
    let registry = FakeRegistry::start();
    let image = Image::sample("v1").layer(bytes(100_000, 4));
    registry.add(REPOSITORY, "v1", &image);
    let broken = image.layers().last().expect("a layer").digest.clone();
    registry.fault(On::get_blob(&broken), Fault::CutAfter(10));
    let larder = start(&registry, Prefetch::default());
    larder.get(&manifest(REPOSITORY, "v1"));
    registry.wait_for("GET", &blob(REPOSITORY, &broken), 1);
    registry.clear_faults();
    // The interrupted download may not have ended yet, so pull again a minute later.
    until("a complete image", || {
        larder.advance(seconds(61));
        larder.get(&manifest(REPOSITORY, &image.digest()));
        image.blobs().iter().all(|each| larder.has(&each.digest))
    });
}

#[test]
fn artifact_without_a_config_is_completed() {
    let registry = FakeRegistry::start();
    let content = bytes(1000, 8);
    let digest = registry.add_blob(REPOSITORY, &content);
    let document = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "layers": [{ "mediaType": "a/b", "digest": digest, "size": 1000 }],
    });
    let bytes = document.to_string().into_bytes();
    registry.add_manifest(REPOSITORY, "v1", media_type::OCI_MANIFEST, &bytes);
    let larder = start(&registry, Prefetch::default());
    assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).digest(), digest_of(&bytes));
    larder.wait_until_cached(&digest);
}

#[test]
fn cached_referrers_are_listed_when_air_gapped() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let digest = image.digest();
    let signature = Image::new("signature").artifact_type("a/sig").subject(image.descriptor());
    let sbom = Image::new("sbom").artifact_type("a/sbom+json").subject(image.descriptor());
    for each in [&signature, &sbom] {
        registry.add_untagged(REPOSITORY, each);
    }
    let mut larder = Larder::start(&registry);
    for wanted in ["v1", &signature.digest(), &sbom.digest()] {
        assert_eq!(larder.get(&manifest(REPOSITORY, wanted)).status, 200);
    }
    larder.restart_with(|settings| settings.cache.air_gapped = true);
    let ask = |query: &str| larder.get(&format!("/v2/{REPOSITORY}/referrers/{digest}{query}"));
    let all = ask("");
    assert_eq!((all.status, all.header("content-type")), (200, Some(media_type::OCI_INDEX)));
    assert_eq!(all.json()["manifests"].as_array().map(Vec::len), Some(2));
    let one = ask("?artifactType=a%2Fsbom%2Bjson");
    assert_eq!(one.header("oci-filters-applied"), Some("artifactType"));
    let listed = &one.json()["manifests"];
    assert_eq!(
        (&listed[0]["digest"], listed.as_array().map(Vec::len)),
        (&sbom.digest().into(), Some(1))
    );
    let none = ask("?artifactType=other");
    assert_eq!((none.status, &none.json()["manifests"]), (200, &serde_json::json!([])));
}
