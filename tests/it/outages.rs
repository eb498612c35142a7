//! Upstreams that are down, slow, broken or rate limited. Cached content is served at once, with a warning; other
//! requests fail fast; and a failing upstream is skipped for a while.
//!
//! Proves protocol 8.2, 14.1, 14.2 and 14.3 (docs/protocol.md).

use crate::support::larder::{blob, manifest, seconds, until};
use crate::support::{FakeRegistry, Fault, Gate, Image, Larder, On, Response};

const REPOSITORY: &str = "team/app";
const STALE: &str = "110 - \"Response is Stale\"";

/// A registry whose tag `v1` was pulled with all blobs, and is due for revalidation.
fn pulled() -> (FakeRegistry, Larder, Image) {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let larder = Larder::start(&registry);
    assert_eq!(pull(&larder).status, 200);
    for layer in image.layers() {
        assert_eq!(larder.get(&blob(REPOSITORY, &layer.digest)).status, 200);
        larder.wait_until_cached(&layer.digest);
    }
    larder.advance(seconds(3600));
    registry.clear_requests();
    (registry, larder, image)
}

fn pull(larder: &Larder) -> Response {
    larder.get(&manifest(REPOSITORY, "v1"))
}

#[track_caller]
fn assert_stale(got: &Response, image: &Image) {
    assert_eq!((got.status, got.header("warning")), (200, Some(STALE)), "{got:?}");
    assert!(got.body == image.manifest());
}

#[test]
fn tags_but_not_digests_carry_a_warning_during_an_outage() {
    let (registry, larder, image) = pulled();
    registry.stop();
    assert_stale(&pull(&larder), &image);
    let by_digest = larder.get(&manifest(REPOSITORY, &image.digest()));
    assert_eq!((by_digest.status, by_digest.header("warning")), (200, None));
    for layer in image.layers() {
        let got = larder.get(&blob(REPOSITORY, &layer.digest));
        assert!(got.body == layer.bytes && got.header("warning").is_none(), "{got:?}");
    }
}

#[test]
fn cached_tag_is_served_after_every_kind_of_failure() {
    for (name, fault) in [
        ("401", Fault::status(401)),
        ("403", Fault::status(403)),
        ("404", Fault::status(404)),
        ("429", Fault::rate_limited(30)),
        ("500", Fault::status(500)),
        ("502", Fault::status(502)),
        ("503", Fault::status(503)),
        ("closed", Fault::CloseBeforeHead),
        ("reset", Fault::ResetBeforeHead),
        ("a login page", Fault::Html200),
        ("garbage", Fault::Raw(b"garbage".to_vec())),
        ("a circle", Fault::redirect_to("/v2/")),
    ] {
        let (registry, larder, image) = pulled();
        registry.fault(On::anything(), fault);
        let got = pull(&larder);
        assert_eq!((got.status, got.header("warning")), (200, Some(STALE)), "{name}: {got:?}");
        assert!(got.body == image.manifest(), "{name}");
    }
}

#[test]
fn old_manifest_is_served_if_the_new_one_cannot_be_fetched() {
    let (registry, larder, image) = pulled();
    let new = Image::sample("new");
    let digest = registry.add(REPOSITORY, "v1", &new);
    registry.fault(On::get_manifest("*"), Fault::WrongBytes);
    assert_stale(&pull(&larder), &image);
    registry.clear_faults();
    larder.advance(seconds(60));
    assert_eq!(pull(&larder).digest(), digest);
}

#[test]
fn failing_upstream_is_skipped_for_a_while_and_then_used_again() {
    let (registry, larder, image) = pulled();
    registry.fault(On::anything(), Fault::status(503));
    for _ in 0..10 {
        assert_stale(&pull(&larder), &image);
    }
    assert_eq!(registry.requests().len(), 2, "one HEAD and one GET are enough for all clients");
    registry.clear_faults();
    larder.advance(seconds(10));
    let got = pull(&larder);
    assert_eq!((got.status, got.header("warning")), (200, None));
    assert_eq!(registry.requests().len(), 3);
}

#[test]
fn rate_limit_causes_no_request_storm() {
    let (registry, larder, image) = pulled();
    registry.fault(On::anything(), Fault::rate_limited(60));
    for _ in 0..10 {
        assert_stale(&pull(&larder), &image);
    }
    assert_eq!(registry.requests().len(), 1);
}

#[test]
fn slow_upstream_does_not_slow_down_a_cached_tag() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let larder = Larder::start_with(&registry, |settings| {
        settings.cache.revalidate_timeout = std::time::Duration::from_millis(100);
    });
    assert_eq!(pull(&larder).status, 200);
    larder.advance(seconds(3600));
    registry.clear_requests();
    let gate = Gate::new();
    registry.fault(On::anything(), Fault::Gate(gate.clone()));
    // The gate stays closed, so a client that waited for upstream would never be answered.
    for _ in 0..5 {
        assert_stale(&pull(&larder), &image);
    }
    assert_eq!(registry.requests().len(), 1);
    gate.open();
    // The late confirmation still counts.
    until("the late confirmation", || pull(&larder).header("warning").is_none());
    assert_eq!(registry.requests().len(), 1);
}

#[test]
fn dead_upstream_does_not_affect_the_others() {
    let (dead, alive) = (FakeRegistry::start(), FakeRegistry::start());
    let image = Image::sample("v1");
    alive.add(REPOSITORY, "v1", &image);
    dead.stop();
    let larder = Larder::start_with(&alive, |settings| {
        settings.list(&dead.host(), &dead);
        settings.alias("dead", &dead.host());
    });
    assert_eq!(larder.get(&manifest("dead/team/app", "v1")).status, 502);
    assert!(pull(&larder).body == image.manifest());
}

#[test]
fn certificate_of_an_unknown_authority_is_refused_with_a_reason() {
    let registry = FakeRegistry::start_tls();
    let image = Image::sample("v1");
    registry.add(REPOSITORY, "v1", &image);
    let larder = Larder::start(&registry);
    let got = pull(&larder);
    assert_eq!(got.status, 502, "{got:?}");
    let text = got.text();
    assert!(text.contains("TLS") && text.contains("certificate"), "{text}");
    assert!(text.contains(&registry.host()), "{text}");
    assert!(registry.requests().is_empty());
    let got = larder.get(&blob(REPOSITORY, &image.layers()[0].digest));
    assert!(matches!(got.status, 502 | 503), "{got:?}");
}

#[test]
fn certificate_of_an_unknown_authority_is_accepted_if_verification_is_skipped() {
    let registry = FakeRegistry::start_tls();
    let image = Image::sample("v1");
    registry.add(REPOSITORY, "v1", &image);
    let larder = Larder::start_with(&registry, |settings| {
        settings.upstream.registries[0].endpoints[0].tls.insecure_skip_verify = true;
    });
    assert!(pull(&larder).body == image.manifest());
    for layer in image.layers() {
        assert!(larder.get(&blob(REPOSITORY, &layer.digest)).body == layer.bytes);
    }
}
