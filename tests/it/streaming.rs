//! One download with many readers. Readers that are early, late or slow, or that leave, do not affect the others, and
//! downloads do not wait for each other.
//!
//! Proves protocol 3.1, 5.4, 6.1, 6.2, 6.3, 6.4, 6.5 and 14.4 (docs/protocol.md).

use larder::http::Outcome;

use crate::support::larder::{Settings, blob, manifest, until};
use crate::support::{
    Connection, End, FakeRegistry, Fault, Gate, Image, Larder, On, Response, bytes, digest_of,
};

const REPOSITORY: &str = "team/app";

/// A registry with one blob, its content and its path.
fn registry_with_blob(length: usize) -> (FakeRegistry, Vec<u8>, String, String) {
    let (registry, content, digest) = FakeRegistry::with_blob(REPOSITORY, length);
    let path = blob(REPOSITORY, &digest);
    (registry, content, digest, path)
}

#[test]
fn head_is_sent_as_soon_as_the_upstream_head_arrives() {
    let (registry, content, digest, path) = registry_with_blob(100_000);
    let gate = Gate::new();
    registry.fault(On::get_blob(&digest), Fault::GateAfter(0, gate.clone()));
    let larder = Larder::start(&registry);
    let mut client = larder.begin(&path);
    let head = client.read_head();
    assert_eq!((head.status, head.content_length()), (200, Some(100_000)));
    assert_eq!(registry.body_bytes_sent(), 0);
    gate.open();
    let (body, complete) = client.read_to_end();
    assert!(complete && body == content);
}

#[test]
fn bytes_are_streamed_while_upstream_still_sends() {
    let (registry, content, digest, path) = registry_with_blob(100_000);
    let gate = Gate::new();
    registry.fault(On::get_blob(&digest), Fault::GateAfter(60_000, gate.clone()));
    let larder = Larder::start(&registry);
    let mut client = larder.begin(&path);
    client.read_head();
    assert!(client.read_body(60_000) == content[..60_000]);
    gate.open();
    let (rest, complete) = client.read_to_end();
    assert!(complete && rest == content[60_000..]);
}

#[test]
fn hundred_clients_of_a_cold_blob_cost_one_upstream_get() {
    let (registry, content, digest, path) = registry_with_blob(200_000);
    let (before, within) = (Gate::new(), Gate::new());
    let gates = vec![Fault::Gate(before.clone()), Fault::GateAfter(100_000, within.clone())];
    registry.fault(On::get_blob(&digest), Fault::All(gates));
    let larder = Larder::start(&registry);
    let mut clients: Vec<Connection> = (0..100).map(|_| larder.begin(&path)).collect();
    before.wait_until_reached(1);
    before.open();
    for client in &mut clients {
        assert_eq!(client.read_head().content_length(), Some(200_000));
        assert!(client.read_body(100_000) == content[..100_000], "everybody follows");
    }
    let mut late = larder.begin(&path);
    late.read_head();
    assert!(late.read_body(100_000) == content[..100_000], "a late client starts at once");
    within.open();
    for client in clients.iter_mut().chain([&mut late]) {
        let (rest, complete) = client.read_to_end();
        assert!(complete && rest == content[100_000..]);
    }
    assert_eq!(registry.count("*", "*"), 1);
}

#[test]
fn hundred_clients_of_a_cold_manifest_cost_one_upstream_get() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let gate = Gate::new();
    registry.fault(On::any_manifest(), Fault::Gate(gate.clone()));
    let larder = Larder::start(&registry);
    let path = manifest(REPOSITORY, "v1");
    let mut clients: Vec<Connection> = (0..100).map(|_| larder.begin(&path)).collect();
    until("all clients connected", || larder.connections() == 100);
    gate.wait_until_reached(1);
    gate.open();
    for client in &mut clients {
        assert!(client.read_response().body == image.manifest());
    }
    assert_eq!(registry.count("*", "*"), 1);
}

#[test]
fn hundred_clients_leaving_do_not_stop_the_fetch() {
    let (registry, content, digest, path) = registry_with_blob(200_000);
    let gate = Gate::new();
    registry.fault(On::get_blob(&digest), Fault::GateAfter(100_000, gate.clone()));
    let larder = Larder::start(&registry);
    let mut clients: Vec<Connection> = (0..100).map(|_| larder.begin(&path)).collect();
    for client in &mut clients {
        assert_eq!(client.read_head().status, 200);
        assert!(client.read_body(10_000) == content[..10_000]);
    }
    for (number, client) in clients.into_iter().enumerate() {
        match number % 2 {
            0 => client.reset(),
            _ => drop(client),
        }
    }
    let ended = larder.wait_for_ended(&path, 100);
    assert!(ended.iter().all(|ended| ended.outcome == Outcome::ClientGone), "{ended:#?}");
    assert!(!larder.has(&digest));
    gate.open();
    larder.wait_until_cached(&digest);
    assert!(larder.get(&path).body == content);
    assert_eq!(registry.count("*", "*"), 1);
}

#[test]
fn client_leaving_before_the_head_does_not_stop_the_fetch() {
    let (registry, content, digest, path) = registry_with_blob(10_000);
    let gate = Gate::new();
    registry.fault(On::get_blob(&digest), Fault::Gate(gate.clone()));
    let larder = Larder::start(&registry);
    let client = larder.begin(&path);
    gate.wait_until_reached(1);
    client.reset();
    larder.wait_for_ended(&path, 1);
    gate.open();
    larder.wait_until_cached(&digest);
    assert!(larder.get(&path).body == content);
    assert_eq!(registry.count("*", "*"), 1);
}

#[test]
fn slow_client_delays_neither_the_fetch_nor_fast_clients() {
    // More than the socket buffers of both sides, so that a client that does not read blocks the server.
    let (registry, content, digest, path) = registry_with_blob(12 << 20);
    let larder = Larder::start(&registry);
    let mut slow = larder.begin(&path);
    assert_eq!(slow.read_head().status, 200);
    for _ in 0..3 {
        let fast = larder.get(&path);
        assert!(fast.complete && fast.body == content);
    }
    larder.wait_until_cached(&digest);
    let (body, complete) = slow.read_to_end();
    assert!(complete && body == content);
    assert_eq!(registry.count("*", "*"), 1);
}

#[test]
fn ping_and_hits_are_answered_while_every_fetcher_hangs() {
    let (registry, content, digest, path) = registry_with_blob(10_000);
    let image = Image::sample("v1");
    registry.add(REPOSITORY, "v1", &image);
    let larder = Larder::start_with(&registry, |settings| {
        settings.http.workers = 2;
        settings.cache.blob_fetchers = 2;
        settings.cache.manifest_fetchers = 2;
    });
    assert!(larder.get(&path).body == content);
    assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
    larder.wait_until_cached(&digest);
    let gate = Gate::new();
    registry.fault(On::anything(), Fault::Gate(gate.clone()));
    let hung = |number: u64| {
        let absent = crate::support::absent_digest(number);
        [larder.begin(&blob(REPOSITORY, &absent)), larder.begin(&manifest(REPOSITORY, &absent))]
    };
    let waiting: Vec<Connection> = (0..20).flat_map(hung).collect();
    gate.wait_until_reached(2);
    for target in ["/v2/", "/v2", path.as_str(), manifest(REPOSITORY, "v1").as_str()] {
        assert_eq!(larder.get(target).status, 200, "{target}");
    }
    drop(waiting);
}

#[test]
fn hung_upstream_leaves_fetchers_for_the_others() {
    let (hung, good) = (FakeRegistry::start(), FakeRegistry::start());
    let gate = Gate::new();
    hung.fault(On::anything(), Fault::Gate(gate.clone()));
    let image = Image::sample("v1");
    good.add(REPOSITORY, "v1", &image);
    let larder = Larder::start_with(&good, |settings| {
        settings.list(&hung.host(), &hung);
        settings.alias("hung", &hung.host());
        settings.cache.blob_fetchers = 2;
        settings.cache.manifest_fetchers = 2;
    });
    let hang = |number: u64| {
        let absent = crate::support::absent_digest(number);
        let repository = format!("hung/{REPOSITORY}");
        [larder.begin(&blob(&repository, &absent)), larder.begin(&manifest(&repository, &absent))]
    };
    let waiting: Vec<Connection> = (0..20).flat_map(hang).collect();
    gate.wait_until_reached(2);
    assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
    for layer in image.layers() {
        assert!(larder.get(&blob(REPOSITORY, &layer.digest)).body == layer.bytes);
    }
    drop(waiting);
}

#[test]
fn upstream_that_fails_for_good_during_a_blob_ends_the_client_connection_cleanly() {
    for death in [Fault::CutAfter(50_000), Fault::ResetAfter(50_000)] {
        let (registry, content, digest, path) = registry_with_blob(100_000);
        let gate = Gate::new();
        let dying = vec![death, Fault::GateAfter(40_000, gate.clone())];
        registry.fault(On::get_blob(&digest).times(1), Fault::All(dying));
        registry.fault(On::anything(), Fault::status(500));
        let mut larder = Larder::start(&registry);
        let mut client = larder.begin(&path);
        assert_eq!(client.read_head().status, 200);
        gate.open();
        let (body, complete) = client.read_to_end();
        assert!(!complete && content.starts_with(&body), "{} bytes", body.len());
        assert_eq!(client.eof(), End::Closed);
        assert!(!larder.has(&digest));
        registry.clear_faults();
        larder.restart();
        assert!(larder.get(&path).body == content, "the next request gets the complete blob");
    }
}

#[test]
fn silent_upstream_is_cut_by_the_stall_timeout() {
    let (registry, content, digest, path) = registry_with_blob(100_000);
    registry.fault(On::get_blob(&digest), Fault::StallAfter(50_000));
    let larder = Larder::start_with(&registry, Settings::be_impatient);
    let mut client = larder.begin(&path);
    assert_eq!(client.read_head().status, 200);
    let (body, complete) = client.read_to_end();
    assert!(!complete && content.starts_with(&body), "{} bytes", body.len());
    assert_eq!(client.eof(), End::Closed);
}

/// A client starts a download from one registry, which fails as given. Clients of another registry join, wanting the
/// same blob. Returns the first response and theirs.
fn joined_another_registrys_failure(failure: Fault) -> (Response, Vec<Response>) {
    let registries = [FakeRegistry::start(), FakeRegistry::start()];
    let content = bytes(10_000, 7);
    let digest = digest_of(&content);
    registries[1].add_blob("team/b", &content);
    let gate = Gate::new();
    let failing = vec![failure, Fault::Gate(gate.clone())];
    registries[0].fault(On::get_blob(&digest), Fault::All(failing));
    let larder = Larder::start_with(&registries[0], |settings| {
        settings.list(&registries[1].host(), &registries[1]);
        settings.alias("second", &registries[1].host());
    });
    let mut early = larder.begin(&blob("team/a", &digest));
    gate.wait_until_reached(1);
    let second = blob("second/team/b", &digest);
    let mut joined: Vec<Connection> = (0..5).map(|_| larder.begin(&second)).collect();
    until("all clients connected", || larder.connections() == 6);
    gate.open();
    let first = early.read_response();
    (first, joined.iter_mut().map(Connection::read_response).collect())
}

#[test]
fn blob_that_the_first_repository_lacks_is_fetched_for_the_second() {
    let (first, joined) = joined_another_registrys_failure(Fault::status(404));
    assert_eq!(first.status, 404);
    for got in joined {
        assert!(got.status == 200 && got.complete && got.digest() == digest_of(&bytes(10_000, 7)));
    }
}

#[test]
fn failure_of_one_registry_does_not_affect_another_with_the_same_blob() {
    for (name, failure) in [
        ("403", Fault::status(403)),
        ("429", Fault::rate_limited(30)),
        ("500", Fault::status(500)),
        ("closed", Fault::CloseBeforeHead),
    ] {
        let (first, joined) = joined_another_registrys_failure(failure);
        assert!(first.status >= 400, "{name}: {first:?}");
        for got in joined {
            assert!(got.status == 200 && got.complete, "{name}: {got:?}");
        }
    }
}
