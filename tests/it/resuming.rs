//! Interrupted downloads, which resume after the last byte regardless of the cause.
//!
//! Proves protocol 6.4, 11.4 and 14.4 (docs/protocol.md), and that upstream sends each byte once.

use std::time::Duration;

use larder::cache::RetryPolicy;

use crate::support::larder::{Settings, blob};
use crate::support::{FakeRegistry, Fault, Gate, Larder, On, TokenServer};

const REPOSITORY: &str = "team/app";

/// Resumes without a delay, as often as a test interrupts the download.
fn resuming(settings: &mut Settings) {
    settings.cache.retry =
        RetryPolicy { first_wait: Duration::ZERO, fruitless_max: 4, ..RetryPolicy::default() };
    settings.be_impatient();
}

/// A registry with one blob, its content, its digest and its path.
fn registry_with_blob(length: usize) -> (FakeRegistry, Vec<u8>, String, String) {
    let (registry, content, digest) = FakeRegistry::with_blob(REPOSITORY, length);
    let path = blob(REPOSITORY, &digest);
    (registry, content, digest, path)
}

#[test]
fn pull_interrupted_five_times_fetches_each_byte_once() {
    let (registry, content, digest, path) = registry_with_blob(600_000);
    let gate = Gate::new();
    let held = Fault::All(vec![Fault::GateAfter(50_000, gate.clone()), Fault::CutAfter(100_000)]);
    registry.fault(On::get_blob(&digest).times(1), held);
    registry.fault(On::get_blob(&digest).times(4), Fault::CutAfter(100_000));
    let larder = Larder::start_with(&registry, resuming);
    let mut clients: Vec<_> = (0..10).map(|_| larder.begin(&path)).collect();
    gate.wait_until_reached(1);
    gate.open();
    for client in &mut clients {
        client.read_head();
        let (body, complete) = client.read_to_end();
        assert!(complete && body == content, "{} bytes", body.len());
    }
    let ranges: Vec<_> = registry
        .requests_for("GET", &path)
        .iter()
        .map(|request| request.header("range").map(str::to_owned))
        .collect();
    let expected: Vec<_> =
        (0..6).map(|n| (n > 0).then(|| format!("bytes={}-", n * 100_000))).collect();
    assert_eq!(ranges, expected);
    assert_eq!(registry.body_bytes_sent(), 600_000);
}

#[test]
fn every_kind_of_interruption_is_resumed() {
    for (name, fault) in [
        ("a reset before the head", Fault::ResetBeforeHead),
        ("closed before the head", Fault::CloseBeforeHead),
        ("500", Fault::status(500)),
        ("503", Fault::status(503)),
        ("429", Fault::rate_limited(0)),
        ("a registry without ranges", Fault::IgnoreRange),
        ("a part from elsewhere", Fault::RangeFrom(7)),
        ("silence before the head", Fault::StallForever),
        ("silence", Fault::StallAfter(100)),
    ] {
        let (registry, content, digest, path) = registry_with_blob(300_000);
        registry.fault(On::get_blob(&digest).times(1), Fault::CutAfter(100_000));
        registry.fault(On::get_blob(&digest).times(1), fault);
        let larder = Larder::start_with(&registry, resuming);
        let got = larder.get(&path);
        assert!(got.complete && got.body == content, "{name}: {} bytes", got.body.len());
    }
}

#[test]
fn token_that_expires_during_a_blob_is_renewed() {
    let (registry, content, digest, path) = registry_with_blob(300_000);
    let tokens = TokenServer::new();
    registry.require_bearer(&tokens);
    let gate = Gate::new();
    registry.fault(On::get_blob(&digest).times(1), Fault::GateAfter(100_000, gate.clone()));
    let larder = Larder::start_with(&registry, resuming);
    let mut client = larder.begin(&path);
    client.read_head();
    client.read_body(90_000);
    gate.wait_until_reached(1);
    registry.expire_tokens();
    registry.cut_connections();
    let (rest, complete) = client.read_to_end();
    assert!(complete && rest == content[90_000..], "{} bytes", rest.len());
    gate.open();
}

#[test]
fn signed_url_that_expires_during_a_blob_is_requested_again() {
    let (registry, content, digest, path) = registry_with_blob(300_000);
    let store = FakeRegistry::start();
    for signature in ["/old", "/new"] {
        store.add_file(signature, "application/octet-stream", &content);
    }
    registry
        .fault(On::get_blob(&digest).times(1), Fault::redirect_to(&store.url("/old?sig=secret")));
    registry.fault(On::get_blob(&digest), Fault::redirect_to(&store.url("/new?sig=secret")));
    store.fault(On::path("GET", "/old").times(1), Fault::CutAfter(100_000));
    store.fault(On::path("GET", "/old"), Fault::status(403));
    let larder = Larder::start_with(&registry, resuming);
    let got = larder.get(&path);
    assert!(got.complete && got.body == content, "{} bytes", got.body.len());
    assert_eq!((store.count("GET", "/old"), store.count("GET", "/new")), (1, 1));
    assert_eq!(store.body_bytes_sent(), 300_000);
}
