//! Two processes on one directory: one of them downloads, and the other follows its partial.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use larder::oci::ImageName;
use larder::store::Begin;

use crate::support::client::Connection;
use crate::support::larder::{Settings, blob, files, manifest, until};
use crate::support::{FakeRegistry, Fault, Gate, Image, Larder, On, bytes};

const REPOSITORY: &str = "team/app";
const MIB: usize = 1 << 20;
const SIZE: usize = 3 * MIB;

struct Site {
    registry: FakeRegistry,
    content: Vec<u8>,
    digest: String,
    path: String,
    /// The download stops after a MiB until it is opened.
    gate: Gate,
}

fn site() -> Site {
    let (registry, gate) = (FakeRegistry::start(), Gate::new());
    let content = bytes(SIZE, 3);
    let digest = registry.add_blob(REPOSITORY, &content);
    registry.fault(On::get_blob(&digest).times(1), Fault::GateAfter(MIB, gate.clone()));
    let path = blob(REPOSITORY, &digest);
    Site { registry, content, digest, path, gate }
}

impl Site {
    fn larders(&self, change: impl FnOnce(&mut Settings)) -> [Larder; 2] {
        let first = Larder::start_with(&self.registry, change);
        let second = first.second();
        [first, second]
    }

    fn downloads(&self) -> usize {
        self.registry.count("GET", &self.path)
    }
}

/// A client that has read the first MiB of a blob.
fn a_mib_of(larder: &Larder, path: &str) -> Connection {
    let mut client = larder.begin(path);
    client.read_head();
    client.read_body(MIB);
    client
}

#[test]
fn second_process_follows_the_first_one_from_the_first_byte() {
    let site = site();
    let [first, second] = site.larders(|_| {});
    let mut one = first.begin(&site.path);
    one.read_head();
    assert!(one.read_body(MIB) == site.content[..MIB]);
    let mut other = second.begin(&site.path);
    assert_eq!(other.read_head().content_length(), Some(SIZE as u64));
    assert!(other.read_body(MIB) == site.content[..MIB], "before the download ends");
    site.gate.open();
    for client in [&mut one, &mut other] {
        let (rest, is_complete) = client.read_to_end();
        assert!(is_complete && rest == site.content[MIB..]);
    }
    assert_eq!(site.downloads(), 1);
    assert!(second.get(&site.path).body == site.content);
}

#[test]
fn process_that_is_slower_by_a_moment_sends_no_second_request() {
    let (registry, content, digest) = FakeRegistry::with_blob(REPOSITORY, 100_000);
    let gate = Gate::new();
    registry.fault(On::get_blob(&digest).times(2), Fault::Gate(gate.clone()));
    let first = Larder::start(&registry);
    let second = first.second();
    let path = blob(REPOSITORY, &digest);
    let mut clients = [&first, &second].map(|larder| larder.begin(&path));
    gate.wait_until_reached(2);
    gate.open();
    for client in &mut clients {
        assert!(client.read_response().body == content);
    }
    assert_eq!((registry.count("GET", &path), registry.count("HEAD", &path)), (2, 0));
}

#[test]
fn processes_send_one_request_for_a_manifest() {
    let registry = FakeRegistry::start();
    let image = Image::sample("v1");
    registry.add(REPOSITORY, "v1", &image);
    for reference in ["v1", &image.digest()] {
        registry.clear_requests();
        let gate = Gate::new();
        registry.fault(On::get_manifest(reference).times(1), Fault::Gate(gate.clone()));
        let first = Larder::start(&registry);
        let others = [(); 3].map(|()| first.second());
        let path = manifest(REPOSITORY, reference);
        let mut clients = vec![first.begin(&path)];
        gate.wait_until_reached(1);
        clients.extend(others.iter().map(|other| other.begin(&path)));
        until("the other processes", || {
            others.iter().all(|other| other.cache().load().manifests == 1)
        });
        gate.open();
        for client in &mut clients {
            assert!(client.read_response().body == image.manifest());
        }
        assert_eq!(registry.count("*", &path), 1, "{reference}");
    }
}

#[test]
fn followed_download_needs_no_fetcher() {
    let site = site();
    let [first, second] = site.larders(|settings| settings.cache.blob_fetchers = 1);
    let mut one = first.begin(&site.path);
    one.read_head();
    let mut other = second.begin(&site.path);
    other.read_head();
    let content = bytes(5_000, 9);
    let digest = site.registry.add_blob(REPOSITORY, &content);
    assert!(second.get(&blob(REPOSITORY, &digest)).body == content);
    site.gate.open();
    assert!(other.read_to_end().1 && one.read_to_end().1);
}

#[test]
fn blob_of_unknown_size_is_sent_when_it_is_complete() {
    let registry = FakeRegistry::start();
    let (gate, content) = (Gate::new(), bytes(10_000, 4));
    let digest = registry.add_blob(REPOSITORY, &content);
    registry.fault(On::get_blob(&digest), Fault::GateAfter(5_000, gate.clone()));
    let first = Larder::start(&registry);
    let second = first.second();
    let path = blob(REPOSITORY, &digest);
    let mut one = first.begin(&path);
    // Until then, a second request would be sent and end with its head.
    let partials = first.cache().store().root().join("partials");
    let is_written = |path: &PathBuf| path.metadata().is_ok_and(|metadata| metadata.len() > 0);
    until("the partial", || files(&partials).iter().any(is_written));
    let mut other = second.begin(&path);
    until("the other process", || second.cache().flights().len() == 1);
    gate.open();
    for client in [&mut one, &mut other] {
        assert!(client.read_response().body == content);
    }
    assert_eq!(registry.count("GET", &path), 1);
}

#[test]
fn download_of_a_process_that_ends_is_continued() {
    let site = site();
    let [mut first, second] = site.larders(|_| {});
    let _one = a_mib_of(&first, &site.path);
    let mut other = a_mib_of(&second, &site.path);
    first.stop();
    site.gate.open();
    let (rest, is_complete) = other.read_to_end();
    assert!(is_complete && rest == site.content[MIB..]);
    let requests = site.registry.requests_for("GET", &site.path);
    assert_eq!(requests.len(), 2);
    let range = requests[1].header("range").expect("a range");
    let from: usize = range["bytes=".len()..].trim_end_matches('-').parse().expect("a number");
    assert!(from >= MIB, "{range}");
}

#[test]
fn process_that_stalls_is_not_waited_for() {
    let site = site();
    let [first, second] = site.larders(|settings| {
        settings.cache.connections.stalled_after = Duration::from_millis(500);
    });
    let mut one = a_mib_of(&first, &site.path);
    let mut other = a_mib_of(&second, &site.path);
    // The first process is still held.
    let (rest, is_complete) = other.read_to_end();
    assert!(is_complete && rest == site.content[MIB..]);
    let requests = site.registry.requests_for("GET", &site.path);
    assert_eq!(requests.len(), 2);
    assert!(requests[1].header("range").is_some(), "only the missing bytes");
    second.wait_until_cached(&site.digest);
    site.gate.open();
    let (rest, is_complete) = one.read_to_end();
    assert!(is_complete && rest == site.content[MIB..]);
    for larder in [&first, &second] {
        assert!(larder.get(&site.path).body == site.content);
    }
    assert_eq!(site.downloads(), 2);
}

#[test]
fn wrong_content_of_the_other_process_is_never_complete() {
    let registry = FakeRegistry::start();
    let (gate, content) = (Gate::new(), bytes(SIZE, 5));
    let digest = registry.add_blob(REPOSITORY, &content);
    let wrong = Fault::All(vec![Fault::WrongBytes, Fault::GateAfter(2 * MIB, gate.clone())]);
    registry.fault(On::get_blob(&digest).times(1), wrong);
    let first = Larder::start(&registry);
    let second = first.second();
    let path = blob(REPOSITORY, &digest);
    let mut one = a_mib_of(&first, &path);
    let mut other = second.begin(&path);
    other.read_head();
    gate.open();
    for client in [&mut one, &mut other] {
        let (_, is_complete) = client.read_to_end();
        assert!(!is_complete);
    }
    second.wait_until_cached(&digest);
    assert!(second.get(&path).body == content);
}

#[test]
fn large_blob_over_several_connections_is_followed() {
    let registry = FakeRegistry::start();
    let content = bytes(33 * MIB, 6);
    let image = Image::new("large").layer(content.clone());
    registry.add(REPOSITORY, "v1", &image);
    let digest = &image.layers()[0].digest;
    let gate = Gate::new();
    registry.fault(On::get_blob(digest).times(1), Fault::GateAfter(MIB, gate.clone()));
    let first = Larder::start_with(&registry, |settings| {
        let policy = &mut settings.cache.connections;
        (policy.measured, policy.worthwhile) = (Duration::ZERO, Duration::ZERO);
        (policy.gain_min, policy.stalled_after) = (-1_000_000, Duration::from_secs(1_000));
    });
    let second = first.second();
    assert_eq!(first.get(&manifest(REPOSITORY, "v1")).status, 200);
    let path = blob(REPOSITORY, digest);
    let mut one = a_mib_of(&first, &path);
    until("other parts", || registry.count("GET", &path) > 4);
    let mut other = second.begin(&path);
    other.read_head();
    gate.open();
    let (body, is_complete) = other.read_to_end();
    assert!(is_complete && body == content);
    assert!(one.read_to_end().1);
}

#[test]
fn size_of_the_other_process_that_was_wrong_is_not_the_end_of_a_body() {
    let registry = FakeRegistry::start();
    let content = bytes(3 * MIB, 5);
    let digest = registry.add_blob(REPOSITORY, &content);
    let gate = Gate::new();
    let short = Fault::All(vec![Fault::Truncate(2 * MIB), Fault::GateAfter(MIB, gate.clone())]);
    registry.fault(On::get_blob(&digest).times(1), short);
    let first = Larder::start(&registry);
    let second = first.second();
    let path = blob(REPOSITORY, &digest);
    let mut one = a_mib_of(&first, &path);
    let mut other = second.begin(&path);
    assert_eq!(other.read_head().content_length(), Some(2 * MIB as u64));
    // The blob arrives by another way, such as an import, before the first process finds that its bytes are wrong.
    let parsed = digest.parse().expect("a digest");
    first.cache().store().ingest_bytes(&parsed, &content).expect("it is stored");
    gate.open();
    for client in [&mut one, &mut other] {
        let (_, is_complete) = client.read_to_end();
        assert!(!is_complete, "a part of the blob is not the blob");
    }
}

#[test]
fn holes_are_not_sent_even_if_the_file_system_reports_them_as_data() {
    let registry = FakeRegistry::start();
    let content = bytes(3 * MIB, 5);
    let digest = registry.add_blob(REPOSITORY, &content);
    let larder = Larder::start(&registry);
    // The test is the other process.
    let store = larder.cache().store().clone();
    let (upstream, parsed) =
        (registry.host().parse().expect("a name"), digest.parse().expect("a digest"));
    let Ok(Begin::Writing(mut ingest)) = store.ingest(&upstream, &parsed, None) else {
        panic!("nobody else is writing")
    };
    let name = ImageName::new(upstream, REPOSITORY.parse().expect("a repository"));
    ingest.note(&name, Some(content.len() as u64)).expect("it is written");
    ingest.write(&content[..MIB]).expect("it is written");
    ingest.partial().write_at(2 * MIB as u64, &content[2 * MIB..]).expect("it is written");
    ingest.file().write_all_at(&vec![0; MIB], MIB as u64).expect("it is written");
    let mut client = larder.begin(&blob(REPOSITORY, &digest));
    assert_eq!(client.read_head().content_length(), Some(3 * MIB as u64));
    let first = client.read_body(MIB);
    ingest.partial().write_at(MIB as u64, &content[MIB..2 * MIB]).expect("it is written");
    ingest.verify(None).expect("it is right").commit().expect("it is stored");
    let (rest, is_complete) = client.read_to_end();
    assert!(is_complete && [first, rest].concat() == content);
}

#[test]
fn request_that_waited_for_a_process_that_fails_is_sent_with_its_own_chain() {
    let registry = FakeRegistry::start();
    let image = Image::sample("v1");
    registry.add(REPOSITORY, "v1", &image);
    let gate = Gate::new();
    let fails = Fault::All(vec![Fault::status(500), Fault::Gate(gate.clone())]);
    registry.fault(On::get_manifest("v1").times(1), fails);
    let first = Larder::start(&registry);
    let second = first.second();
    let path = manifest(REPOSITORY, "v1");
    let mut one = first.begin(&path);
    gate.wait_until_reached(1);
    let via = [("Via", "1.1 larder-00000000000000bb")];
    std::thread::scope(|scope| {
        let other = scope.spawn(|| second.request("GET", &path, &via));
        until("the other process", || second.cache().load().manifests == 1);
        gate.open();
        assert_ne!(one.read_response().status, 200);
        assert!(other.join().expect("no panic").body == image.manifest());
    });
    let requests = registry.requests_for("GET", &path);
    let via = requests.last().and_then(|last| last.header("via")).unwrap_or_default();
    assert!(via.starts_with("1.1 larder-00000000000000bb, "), "{via}");
}
