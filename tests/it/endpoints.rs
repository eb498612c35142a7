//! Several endpoints of one registry: tried in order, and skipped while they fail.
//!
//! Proves protocol 6.4, 14.3 and 14.4 (docs/protocol.md).

use std::time::Duration;

use larder::cache::{BreakerState, RetryPolicy};
use larder::upstream::BreakerPolicy;

use crate::support::larder::{Settings, blob, manifest, until};
use crate::support::{FakeRegistry, Fault, Image, Larder, On, bytes};

const REPOSITORY: &str = "team/app";
const NAME: &str = "registry.test";

/// A mirror and a registry, which become the endpoints of one name.
fn two() -> (FakeRegistry, FakeRegistry) {
    (FakeRegistry::start(), FakeRegistry::start())
}

fn start(
    mirror: &FakeRegistry,
    registry: &FakeRegistry,
    change: impl FnOnce(&mut Settings),
) -> Larder {
    Larder::start_alone(|settings| {
        settings.list_all(NAME, &[mirror, registry]);
        settings.naming.default_upstream = NAME.parse().ok();
        change(settings);
    })
}

/// As [`start`], with downloads that resume without a delay.
fn start_resuming(mirror: &FakeRegistry, registry: &FakeRegistry) -> Larder {
    start(mirror, registry, |settings| {
        settings.cache.retry =
            RetryPolicy { first_wait: Duration::ZERO, fruitless_max: 3, ..RetryPolicy::default() };
    })
}

#[test]
fn only_the_first_endpoint_with_the_content_is_asked() {
    let (mirror, registry) = two();
    let image = Image::sample("v1");
    for each in [&mirror, &registry] {
        each.add(REPOSITORY, "v1", &image);
    }
    let larder = start(&mirror, &registry, |_| {});
    assert!(larder.get(&manifest(REPOSITORY, "v1")).body == image.manifest());
    for layer in image.layers() {
        assert!(larder.get(&blob(REPOSITORY, &layer.digest)).body == layer.bytes);
    }
    assert_eq!(registry.requests().len(), 0);
}

#[test]
fn every_failure_of_the_mirror_falls_back_to_the_registry() {
    for (name, fault) in [
        ("not there", Fault::status(404)),
        ("credentials", Fault::status(401)),
        ("forbidden", Fault::status(403)),
        ("rate limit", Fault::rate_limited(60)),
        ("broken", Fault::status(500)),
        ("closed", Fault::CloseBeforeHead),
        ("a login page", Fault::Html200),
        ("garbage", Fault::Raw(b"garbage".to_vec())),
        ("a circle", Fault::redirect_to("/v2/")),
    ] {
        let (mirror, registry) = two();
        let image = Image::sample("v1");
        registry.add(REPOSITORY, "v1", &image);
        mirror.fault(On::anything(), fault);
        let larder = start(&mirror, &registry, |_| {});
        let got = larder.get(&manifest(REPOSITORY, "v1"));
        assert!(got.status == 200 && got.body == image.manifest(), "{name}: {got:?}");
        let layer = &image.layers()[0];
        let got = larder.get(&blob(REPOSITORY, &layer.digest));
        assert!(got.status == 200 && got.body == layer.bytes, "{name}: {got:?}");
        assert!(larder.head(&blob(REPOSITORY, &image.layers()[1].digest)).status == 200, "{name}");
    }
}

#[test]
fn failing_mirror_outweighs_a_404_from_the_registry() {
    let (mirror, registry) = two();
    for each in [&mirror, &registry] {
        each.expect_unknown(&format!("/v2/{REPOSITORY}/manifests/v1"));
    }
    mirror.fault(On::anything(), Fault::status(500));
    let larder = start(&mirror, &registry, |_| {});
    // A 404 would be cached, and would claim that there is no such tag.
    assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 502);
    mirror.clear_faults();
    assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 404);
}

#[test]
fn download_interrupted_at_the_mirror_continues_at_the_registry() {
    let (mirror, registry) = two();
    let content = bytes(300_000, 1);
    let digest = mirror.add_blob(REPOSITORY, &content);
    registry.add_blob(REPOSITORY, &content);
    mirror.fault(On::get_blob(&digest), Fault::ResetAfter(100_000));
    let larder = start_resuming(&mirror, &registry);
    let got = larder.get(&blob(REPOSITORY, &digest));
    assert!(got.complete && got.body == content, "{got:?}");
    let asked = registry.requests_for("GET", &format!("/v2/{REPOSITORY}/blobs/{digest}"));
    assert_eq!(asked.len(), 1);
    // How many bytes arrive before a reset depends on the network.
    let range = asked[0].header("range").unwrap_or_default();
    let from: u64 = range["bytes=".len()..range.len() - 1].parse().unwrap();
    assert!(from <= 100_000, "{range}");
    assert_eq!(registry.body_bytes_sent(), 300_000 - from);
    assert_eq!(mirror.count("GET", &format!("/v2/{REPOSITORY}/blobs/{digest}")), 1);
}

#[test]
fn download_alternates_between_failing_endpoints_until_it_is_complete() {
    let (mirror, registry) = two();
    let content = bytes(500_000, 1);
    let digest = mirror.add_blob(REPOSITORY, &content);
    registry.add_blob(REPOSITORY, &content);
    for each in [&mirror, &registry] {
        each.fault(On::get_blob(&digest).times(2), Fault::CutAfter(100_000));
    }
    let larder = start_resuming(&mirror, &registry);
    let got = larder.get(&blob(REPOSITORY, &digest));
    assert!(got.complete && got.body == content, "{got:?}");
    assert_eq!(mirror.body_bytes_sent() + registry.body_bytes_sent(), 500_000);
}

#[test]
fn wrong_bytes_from_the_mirror_are_replaced_from_the_registry() {
    let (mirror, registry) = two();
    let content = bytes(100_000, 1);
    let digest = mirror.add_blob(REPOSITORY, &content);
    registry.add_blob(REPOSITORY, &content);
    mirror.fault(On::get_blob(&digest), Fault::WrongBytes);
    let larder = start(&mirror, &registry, |_| {});
    // The response is cut, unless the digest was checked before its head was sent. In that case the client waits for the
    // second attempt.
    let first = larder.get(&blob(REPOSITORY, &digest));
    assert!(!(first.complete && first.status == 200) || first.body == content, "{first:?}");
    // The second attempt needs no further request.
    larder.wait_until_cached(&digest);
    assert!(larder.get(&blob(REPOSITORY, &digest)).body == content);
    let path = format!("/v2/{REPOSITORY}/blobs/{digest}");
    assert_eq!((mirror.count("GET", &path), registry.count("GET", &path)), (1, 1));
}

#[test]
fn client_that_received_no_wrong_byte_gets_the_right_content() {
    let (mirror, registry) = two();
    let content = bytes(100_000, 1);
    let digest = mirror.add_blob(REPOSITORY, &content);
    registry.add_blob(REPOSITORY, &content);
    // Without a Content-Length, the head waits for the digest.
    let fault = Fault::All(vec![Fault::WrongBytes, Fault::NoContentLength]);
    mirror.fault(On::get_blob(&digest), fault);
    let larder = start(&mirror, &registry, |_| {});
    let got = larder.get(&blob(REPOSITORY, &digest));
    assert!(got.status == 200 && got.complete && got.body == content, "{got:?}");
}

fn breaker(first_wait: Duration) -> BreakerPolicy {
    BreakerPolicy { failures: 3, first_wait, longest_wait: first_wait }
}

#[test]
fn endpoint_with_consecutive_failures_is_skipped() {
    let (mirror, registry) = two();
    let images: Vec<Image> = (0..10).map(|n| Image::sample(&n.to_string())).collect();
    for (n, image) in images.iter().enumerate() {
        registry.add(REPOSITORY, &n.to_string(), image);
    }
    mirror.fault(On::anything(), Fault::status(500));
    let larder = start(&mirror, &registry, |settings| {
        settings.upstream.breaker = breaker(Duration::from_secs(3600));
    });
    for (n, image) in images.iter().enumerate() {
        assert!(larder.get(&manifest(REPOSITORY, &n.to_string())).body == image.manifest());
    }
    // Three requests for clients, and the probe.
    assert_eq!((mirror.requests().len(), mirror.count("GET", "/v2/")), (4, 1));
    let statuses = larder.upstreams();
    let [first, second] = &statuses[0].endpoints[..] else { panic!("two endpoints") };
    assert!(matches!(first.breaker, BreakerState::Open(_)) && first.failures == 3, "{first:?}");
    let last = first.last_failure.as_deref().unwrap_or_default();
    assert!(first.url == mirror.url("") && last.contains("answered 500"), "{first:?}");
    assert_eq!((second.breaker, second.failures), (BreakerState::Closed, 0));
}

#[test]
fn open_breaker_of_the_only_endpoint_answers_at_once_with_the_same_status() {
    let registry = FakeRegistry::start();
    registry.fault(On::anything(), Fault::status(503));
    let larder = Larder::start_with(&registry, |settings| {
        settings.upstream.breaker = breaker(Duration::from_secs(3600));
    });
    for tag in ["a", "b", "c", "d", "e"] {
        let got = larder.get(&manifest(REPOSITORY, tag));
        assert!(got.status == 503 && got.text().contains("out of service"), "{got:?}");
    }
    assert_eq!((registry.requests().len(), registry.count("GET", "/v2/")), (4, 1));
}

#[test]
fn half_open_breaker_sends_one_probe() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    registry.fault(On::anything().times(3), Fault::CloseBeforeHead);
    let larder = Larder::start_with(&registry, |settings| {
        settings.upstream.breaker = breaker(Duration::ZERO);
    });
    // Each request whose connection is closed is retried once, as if the connection had been stale.
    for _ in 0..2 {
        larder.get(&manifest(REPOSITORY, "v1"));
    }
    assert!(larder.get(&manifest(REPOSITORY, "v1")).body == image.manifest());
    assert_eq!(larder.upstreams()[0].endpoints[0].breaker, BreakerState::Closed);
}

#[test]
fn failure_of_a_redirect_target_does_not_count_against_the_endpoint() {
    let (registry, store) = two();
    let content = bytes(1000, 1);
    let digest = registry.add_blob(REPOSITORY, &content);
    registry.fault(On::get_blob(&digest), Fault::redirect_to(&store.url("/blob")));
    store.fault(On::anything(), Fault::status(500));
    let larder = Larder::start_with(&registry, |settings| {
        settings.upstream.breaker = breaker(Duration::from_secs(3600));
    });
    for _ in 0..5 {
        assert_eq!(larder.get(&blob(REPOSITORY, &digest)).status, 503);
    }
    assert_eq!(store.requests().len(), 5);
    assert_eq!(larder.upstreams()[0].endpoints[0].breaker, BreakerState::Closed);
}

#[test]
fn download_in_progress_ignores_the_breaker() {
    let (registry, content, digest) = FakeRegistry::with_blob(REPOSITORY, 300_000);
    registry.fault(On::get_blob(&digest).times(1), Fault::CutAfter(100_000));
    registry.fault(On::get_blob(&digest).times(3), Fault::status(500));
    let larder = Larder::start_with(&registry, |settings| {
        settings.upstream.breaker = breaker(Duration::from_secs(3600));
        settings.cache.retry =
            RetryPolicy { first_wait: Duration::ZERO, fruitless_max: 5, ..RetryPolicy::default() };
    });
    let got = larder.get(&blob(REPOSITORY, &digest));
    assert!(got.complete && got.body == content, "{got:?}");
    assert_eq!(larder.upstreams()[0].endpoints[0].breaker, BreakerState::Closed);
}

#[test]
fn endpoint_that_never_responds_counts_as_down() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let larder = Larder::start_with(&registry, |settings| {
        settings.upstream.breaker =
            BreakerPolicy { failures: 1, ..breaker(Duration::from_secs(3600)) };
        settings.cache.revalidate_timeout = Duration::from_millis(50);
        settings.be_impatient();
    });
    larder.get(&manifest(REPOSITORY, "v1"));
    registry.fault(On::anything(), Fault::StallForever);
    let stale = |larder: &Larder| {
        larder.advance(Duration::from_secs(3600));
        let got = larder.get(&manifest(REPOSITORY, "v1"));
        got.header("warning").is_some() && got.body == image.manifest()
    };
    assert!(stale(&larder), "served stale after revalidateTimeout");
    let is_open = || matches!(larder.upstreams()[0].endpoints[0].breaker, BreakerState::Open(_));
    until("the breaker to open", is_open);
    let asked = registry.requests().len();
    for _ in 0..5 {
        assert!(stale(&larder), "served stale at once");
    }
    assert_eq!(registry.requests().len(), asked);
}

#[test]
fn endpoint_that_always_breaks_off_is_given_up_although_another_sent_nothing() {
    let (mirror, registry) = two();
    let digest = registry.add_blob(REPOSITORY, &bytes(300_000, 1));
    mirror.expect_unknown(&blob(REPOSITORY, &digest));
    registry.fault(On::get_blob(&digest).times(1), Fault::CutAfter(100_000));
    registry.fault(On::get_blob(&digest), Fault::CutAfter(0));
    let larder = start_resuming(&mirror, &registry);
    assert!(!larder.get(&blob(REPOSITORY, &digest)).complete);
    let path = blob(REPOSITORY, &digest);
    let asked = registry.count("GET", &path);
    assert!((2..=6).contains(&asked), "{asked}");
}

#[test]
fn rate_limit_applies_to_its_endpoint_only() {
    let (hub, mirror) = two();
    let image = Image::sample("v1");
    mirror.add(REPOSITORY, "v1", &image);
    mirror.expect_unknown(&manifest(REPOSITORY, "rare"));
    hub.fault(On::anything(), Fault::rate_limited(60));
    let larder = start(&hub, &mirror, |_| {});
    assert_eq!(larder.get(&manifest(REPOSITORY, "rare")).status, 429);
    assert!(larder.get(&manifest(REPOSITORY, "v1")).body == image.manifest());
}
