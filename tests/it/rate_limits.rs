//! Consideration for registries: bandwidth limits, concurrent downloads, and remaining pulls.

use std::num::NonZeroU64;
use std::time::Duration;

use larder::upstream::RateLimit;

use crate::support::larder::{blob, manifest};
use crate::support::{FakeRegistry, Fault, Gate, Image, Larder, On, bytes};

const REPOSITORY: &str = "team/app";

#[test]
fn rate_limited_registry_still_delivers_complete_blobs() {
    let (registry, _) = FakeRegistry::with_image(REPOSITORY);
    let content = bytes(500_000, 1);
    let digest = registry.add_blob(REPOSITORY, &content);
    // The second connection continues where the first one broke off.
    registry.fault(On::get_blob(&digest).times(1), Fault::CutAfter(100_000));
    let larder = Larder::start_with(&registry, |settings| {
        settings.upstream.registries[0].rate_limit = NonZeroU64::new(50_000_000);
        settings.cache.retry.fruitless_max = 2;
        settings.cache.retry.first_wait = Duration::ZERO;
    });
    let got = larder.get(&blob(REPOSITORY, &digest));
    assert!(got.complete && got.body == content, "{got:?}");
    assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
}

#[test]
fn registry_gets_at_most_its_configured_concurrent_downloads() {
    let (registry, _) = FakeRegistry::with_image(REPOSITORY);
    let blobs: Vec<(String, Vec<u8>)> = (0..4)
        .map(|seed| bytes(1000, seed))
        .map(|content| (registry.add_blob(REPOSITORY, &content), content))
        .collect();
    let gate = Gate::new();
    registry.fault(On::any_blob(), Fault::Gate(gate.clone()));
    let larder = Larder::start_with(&registry, |settings| {
        let upstream = registry.host().parse().unwrap();
        settings.cache.downloads_per_upstream.insert(upstream, 2);
    });
    let clients: Vec<_> =
        blobs.iter().map(|(digest, _)| larder.begin(&blob(REPOSITORY, digest))).collect();
    gate.wait_until_reached(2);
    // Manifests have their own fetchers, so this request does not queue after the two waiting ones.
    assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
    assert_eq!(gate.reached(), 2);
    gate.open();
    for (mut client, (_, content)) in clients.into_iter().zip(&blobs) {
        let got = client.read_response();
        assert!(got.complete && got.body == *content, "{got:?}");
    }
}

#[test]
fn manifests_do_not_wait_for_blobs() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let digests: Vec<String> =
        (0..3).map(|seed| registry.add_blob(REPOSITORY, &bytes(1000, seed))).collect();
    registry.fault(On::any_blob(), Fault::StallForever);
    let larder = Larder::start_with(&registry, |settings| {
        settings.cache.blob_fetchers = 1;
        settings.be_impatient();
    });
    let _clients: Vec<_> =
        digests.iter().map(|digest| larder.begin(&blob(REPOSITORY, digest))).collect();
    registry.wait_for("GET", &blob(REPOSITORY, "*"), 1);
    assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
    assert_eq!(larder.get(&manifest(REPOSITORY, &image.digest())).status, 200);
}

#[test]
fn remaining_rate_limit_is_reported() {
    let (registry, storage) = (FakeRegistry::start(), FakeRegistry::start());
    let image = Image::sample("v1");
    registry.add(REPOSITORY, "v1", &image);
    let layer = &image.layers()[0];
    storage.add_file("/layer", "binary/octet-stream", &layer.bytes);
    storage.fault(On::anything(), Fault::extra_header("ratelimit-remaining", "1;w=1"));
    let larder = Larder::start(&registry);
    assert_eq!(larder.quotas(), []);
    let limits = Fault::All(vec![
        Fault::extra_header("ratelimit-limit", "100;w=21600"),
        Fault::extra_header("ratelimit-remaining", "76;w=21600"),
        Fault::extra_header("docker-ratelimit-source", "192.0.2.1"),
    ]);
    registry.fault(On::any_manifest(), limits);
    registry.fault(On::any_blob(), Fault::redirect_to(&storage.url("/layer")));
    assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
    // A redirect target is not the registry, so its headers do not count.
    assert_eq!(larder.get(&blob(REPOSITORY, &layer.digest)).status, 200);
    let expected = RateLimit {
        limit: Some(100),
        remaining: Some(76),
        window: Some(Duration::from_secs(21600)),
        source: Some("192.0.2.1".into()),
    };
    assert_eq!(larder.quotas(), [(registry.host(), expected)]);
    registry.clear_faults();
    registry.fault(On::any_manifest(), Fault::rate_limited(60));
    assert_eq!(larder.get(&manifest(REPOSITORY, "v2")).status, 429);
    assert_eq!(larder.quotas().len(), 1, "a response without the headers changes nothing");
}
