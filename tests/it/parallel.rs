//! Large blobs over several connections.
//!
//! Proves that every byte is requested once and verified, whatever the connections do, and that a registry that does not
//! want them gets one. See "Large blobs" in docs/operations.md.

use std::ops::Range;
use std::time::Duration;

use larder::cache::ConnectionPolicy;

use crate::support::larder::{Settings, blob, manifest, until};
use crate::support::{FakeRegistry, Fault, Gate, Image, Larder, On, bytes};

const REPOSITORY: &str = "team/app";
const MIB: usize = 1 << 20;
const SIZE: usize = 33 * MIB + 12_345;

/// Opens all connections with the first bytes, and never waits for one that stalls.
fn eager(settings: &mut Settings) {
    settings.cache.connections = ConnectionPolicy {
        measured: Duration::ZERO,
        worthwhile: Duration::ZERO,
        gain_min: -1_000_000,
        stalled_after: Duration::ZERO,
        ..ConnectionPolicy::default()
    };
}

/// Waits for a stalled connection.
fn patient(settings: &mut Settings) {
    eager(settings);
    settings.cache.connections.stalled_after = Duration::from_secs(1_000);
}

struct Site {
    registry: FakeRegistry,
    content: Vec<u8>,
    digest: String,
    path: String,
}

/// A registry with an image that has one large layer.
fn site() -> Site {
    let registry = FakeRegistry::start();
    let content = bytes(SIZE, 7);
    let image = Image::new("large").layer(content.clone());
    registry.add(REPOSITORY, "v1", &image);
    let digest = image.layers()[0].digest.clone();
    let path = blob(REPOSITORY, &digest);
    Site { registry, content, digest, path }
}

impl Site {
    /// Larder, which knows the size of the layer from the manifest.
    fn larder(&self, change: impl FnOnce(&mut Settings)) -> Larder {
        let larder = Larder::start_with(&self.registry, change);
        assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
        self.registry.clear_requests();
        larder
    }

    /// The requested ranges, in ascending order; an open one ends with the blob.
    fn ranges(&self) -> Vec<Range<usize>> {
        let requests = self.registry.requests_for("GET", &self.path);
        let mut ranges: Vec<Range<usize>> = requests
            .iter()
            .map(|request| {
                let Some(range) = request.header("range") else { return 0..SIZE };
                let range = range.strip_prefix("bytes=").and_then(|range| range.split_once('-'));
                let (from, last) = range.expect("one range");
                let end = last.parse().map_or(SIZE, |last: usize| last + 1);
                from.parse().expect("a number")..end
            })
            .collect();
        ranges.sort_by_key(|range| range.start);
        ranges
    }

    /// Every byte was requested once.
    fn assert_once(&self) {
        let mut end = 0;
        for range in self.ranges() {
            assert_eq!(range.start, end, "{:?}", self.ranges());
            end = range.end;
        }
        assert_eq!(end, SIZE);
    }

    fn connections(&self, larder: &Larder) -> usize {
        larder.cache().flights().first().map_or(0, |flight| flight.connections)
    }
}

#[test]
fn large_blob_is_received_over_several_connections_and_every_byte_once() {
    let site = site();
    let first = Gate::new();
    site.registry.fault(On::get_blob(&site.digest).times(1), Fault::GateAfter(MIB, first.clone()));
    let larder = site.larder(patient);
    let mut client = larder.begin(&site.path);
    assert_eq!(client.read_head().content_length(), Some(SIZE as u64));
    assert!(client.read_body(MIB) == site.content[..MIB]);
    // The first connection has stopped; the others receive all that is behind its part.
    until("the other parts", || {
        let received: usize = site.ranges().iter().skip(1).map(Range::len).sum();
        received == SIZE - site.ranges()[0].end
    });
    first.open();
    let (rest, is_complete) = client.read_to_end();
    assert!(is_complete && rest == site.content[MIB..]);
    site.assert_once();
    assert!(site.ranges().len() > 4, "{:?}", site.ranges());
    assert!(site.registry.connection_count() >= 4);
    larder.wait_until_cached(&site.digest);
    assert!(larder.get(&site.path).body == site.content);
    site.assert_once();
}

#[test]
fn connections_of_a_download_are_reported_and_bounded() {
    let site = site();
    let gate = Gate::new();
    site.registry.fault(On::get_blob(&site.digest), Fault::GateAfter(MIB, gate.clone()));
    let larder = site.larder(|settings| {
        patient(settings);
        settings.cache.connections.max = 3;
    });
    let mut client = larder.begin(&site.path);
    until("all connections", || site.connections(&larder) == 3);
    gate.wait_until_reached(3);
    assert_eq!(site.ranges().len(), 3);
    gate.open();
    let response = client.read_response();
    assert!(response.body == site.content);
    site.assert_once();
}

#[test]
fn one_connection_requests_the_blob_once() {
    let site = site();
    let larder = site.larder(|settings| {
        eager(settings);
        settings.cache.connections.max = 1;
    });
    assert!(larder.get(&site.path).body == site.content);
    let requests = site.registry.requests_for("GET", &site.path);
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].header("range"), None);
}

#[test]
fn registry_without_ranges_sends_the_blob_once() {
    let site = site();
    site.registry.fault(On::get_blob(&site.digest), Fault::IgnoreRange);
    let larder = site.larder(eager);
    assert!(larder.get(&site.path).body == site.content);
    assert_eq!(site.ranges().len(), 1);
}

#[test]
fn registry_that_limits_connections_gets_one() {
    for status in [403, 429, 500, 503] {
        let site = site();
        let first = Gate::new();
        let blobs = || On::get_blob(&site.digest);
        site.registry.fault(blobs().times(1), Fault::GateAfter(MIB, first.clone()));
        site.registry.fault(blobs().times(7), Fault::Status(status, vec![], vec![]));
        let larder = site.larder(patient);
        let mut client = larder.begin(&site.path);
        client.read_head();
        until("the refusals", || site.registry.count("GET", &site.path) == 8);
        until("the end of the others", || site.connections(&larder) == 1);
        first.open();
        let (body, is_complete) = client.read_to_end();
        assert!(is_complete && body == site.content, "{status}");
        // The rest at once, on the first connection.
        assert_eq!(site.registry.count("GET", &site.path), 9, "{status}");
        // The next blob of this registry is requested over one connection from its beginning.
        let other = Image::new("other").layer(bytes(SIZE + 1, 8));
        site.registry.add(REPOSITORY, "v2", &other);
        assert_eq!(larder.get(&manifest(REPOSITORY, "v2")).status, 200);
        let path = blob(REPOSITORY, &other.layers()[0].digest);
        assert!(larder.get(&path).body == other.layers()[0].bytes);
        assert_eq!(site.registry.count("GET", &path), 1, "{status}");
    }
}

#[test]
fn broken_connection_costs_only_its_missing_bytes() {
    let site = site();
    let first = Gate::new();
    let blobs = || On::get_blob(&site.digest);
    site.registry.fault(blobs().times(1), Fault::GateAfter(MIB, first.clone()));
    site.registry.fault(blobs().times(1), Fault::ResetAfter(MIB + 1));
    site.registry.fault(blobs().times(1), Fault::CutAfter(10));
    site.registry.fault(blobs().times(1), Fault::CloseBeforeHead);
    let larder = site.larder(patient);
    let mut client = larder.begin(&site.path);
    client.read_head();
    until("the broken connections", || site.registry.count("GET", &site.path) >= 4);
    first.open();
    let (body, is_complete) = client.read_to_end();
    assert!(is_complete && body == site.content);
    let before = site.registry.count("*", "*");
    larder.wait_until_cached(&site.digest);
    assert!(larder.get(&site.path).body == site.content);
    assert_eq!(site.registry.count("*", "*"), before);
}

#[test]
fn stalled_connection_does_not_stall_clients() {
    let site = site();
    let (first, stalled) = (Gate::new(), Gate::new());
    let blobs = || On::get_blob(&site.digest);
    site.registry.fault(blobs().times(1), Fault::GateAfter(MIB, first.clone()));
    site.registry.fault(blobs().times(1), Fault::GateAfter(0, stalled.clone()));
    let larder = site.larder(eager);
    let mut client = larder.begin(&site.path);
    client.read_head();
    stalled.wait_until_reached(1);
    first.open();
    // The first connection takes the part over.
    let (body, is_complete) = client.read_to_end();
    assert!(is_complete && body == site.content);
    stalled.open();
    larder.wait_until_cached(&site.digest);
    assert!(larder.get(&site.path).body == site.content);
}

#[test]
fn wrong_part_never_becomes_a_blob() {
    let site = site();
    let blobs = || On::get_blob(&site.digest);
    site.registry.fault(blobs().after(2).times(1), Fault::WrongBytes);
    let larder = site.larder(patient);
    let response = larder.request("GET", &site.path, &[]);
    assert!(!response.complete, "the last byte is held back");
    // The cache tries once more by itself.
    larder.wait_until_cached(&site.digest);
    assert!(larder.get(&site.path).body == site.content);
}

#[test]
fn interrupted_download_resumes_with_its_holes() {
    let site = site();
    let gates: Vec<Gate> = (0..2).map(|_| Gate::new()).collect();
    let blobs = || On::get_blob(&site.digest);
    for gate in &gates {
        site.registry.fault(blobs().times(1), Fault::GateAfter(MIB, gate.clone()));
    }
    let mut larder = site.larder(patient);
    let mut client = larder.begin(&site.path);
    client.read_head();
    // Two parts are incomplete, and the others are complete.
    until("the other parts", || {
        let ranges = site.ranges();
        ranges.iter().map(Range::len).sum::<usize>() == SIZE && site.connections(&larder) <= 2
    });
    let incomplete: usize = site.ranges().iter().map(Range::len).take(2).sum::<usize>() - 2 * MIB;
    larder.stop();
    gates.iter().for_each(Gate::open);
    drop(client);
    site.registry.clear_requests();
    larder.run();
    assert!(larder.get(&site.path).body == site.content);
    let requested: usize = site.ranges().iter().map(Range::len).sum();
    // Both connections may have written one more chunk before they found that the server stops. Holes are known in
    // blocks, so the last block of each extent is requested again.
    let chunks = 2 * 128 * 1024;
    assert!(
        (incomplete - chunks..incomplete + 10 * 8192).contains(&requested),
        "{requested} for {incomplete}: {:?}",
        site.ranges()
    );
}

#[test]
fn size_of_a_manifest_that_is_too_small_does_not_stop_a_download() {
    let registry = FakeRegistry::start();
    let content = bytes(12 * MIB, 7);
    let digest = registry.add_blob(REPOSITORY, &content);
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let described =
        format!(r#"{{"mediaType":"application/x","digest":"{digest}","size":{}}}"#, 9 * MIB);
    let text = format!(
        r#"{{"schemaVersion":2,"mediaType":"{media_type}","config":{described},"layers":[{described}]}}"#
    );
    let headers = vec![("Content-Type".to_owned(), media_type.to_owned())];
    registry.fault(On::get_manifest("v1"), Fault::Status(200, headers, text.into_bytes()));
    for max in [8, 1] {
        let larder = Larder::start_with(&registry, |settings| {
            eager(settings);
            settings.cache.connections.max = max;
        });
        assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
        let path = blob(REPOSITORY, &digest);
        // A client that was told the size of the manifest is disconnected.
        let got = larder.request("GET", &path, &[]);
        assert!(!got.complete || got.body == content, "{max}");
        larder.wait_until_cached(&digest);
        assert!(larder.get(&path).body == content, "{max}");
    }
}
