//! Ranges of blobs (RFC 9110, section 14), during the download and afterwards.
//!
//! Proves protocol 5.1, 5.2, 5.3 and 5.5 (docs/protocol.md).

use crate::support::larder::blob;
use crate::support::{End, FakeRegistry, Fault, Gate, Larder, On, Response, bytes};

const REPOSITORY: &str = "team/app";

fn ranged(larder: &Larder, path: &str, range: &str) -> Response {
    larder.request("GET", path, &[("Range", range)])
}

/// Range, status, and the first and last byte of the response.
const TABLE: &[(&str, u16, usize, usize)] = &[
    // The six ranges of the conformance suite.
    ("bytes=500-1499", 206, 500, 1500),
    ("bytes=500-", 206, 500, 2048),
    ("bytes=-500", 206, 1548, 2048),
    ("bytes=2000-5000", 206, 2000, 2048),
    ("bytes=500-0", 416, 0, 0),
    ("bytes=5000-10000", 416, 0, 0),
    // Boundaries.
    ("bytes=0-0", 206, 0, 1),
    ("bytes=0-", 206, 0, 2048),
    ("bytes=2047-", 206, 2047, 2048),
    ("bytes=2048-", 416, 0, 0),
    ("bytes=-5000", 206, 0, 2048),
    // Ignored ranges: several parts, other units and invalid values get the complete content.
    ("bytes=0-1,4-5", 200, 0, 2048),
    ("bytes=0-1, -5", 200, 0, 2048),
    ("lines=0-1", 200, 0, 2048),
    ("bytes=a-b", 200, 0, 2048),
];

fn check(got: &Response, content: &[u8], range: &str, status: u16, start: usize, end: usize) {
    assert_eq!((got.status, got.complete), (status, true), "{range}: {got:?}");
    let total = content.len();
    let expected = match status {
        206 => Some(format!("bytes {start}-{}/{total}", end - 1)),
        416 => Some(format!("bytes */{total}")),
        _ => None,
    };
    assert_eq!(got.header("content-range").map(str::to_owned), expected, "{range}");
    if status != 416 {
        assert!(got.body == content[start..end], "{range}: other bytes");
        assert_eq!(got.header("content-length"), Some((end - start).to_string().as_str()));
        assert_eq!(got.header("accept-ranges"), Some("bytes"), "{range}");
    }
}

#[test]
fn ranges_of_a_cold_blob() {
    let registry = FakeRegistry::start();
    let larder = Larder::start(&registry);
    for (seed, (range, status, start, end)) in TABLE.iter().enumerate() {
        let content = bytes(2048, seed as u64);
        let digest = registry.add_blob(REPOSITORY, &content);
        let got = ranged(&larder, &blob(REPOSITORY, &digest), range);
        check(&got, &content, range, *status, *start, *end);
        larder.wait_until_cached(&digest);
        let fetched = registry.requests_for("GET", &blob("*", &digest));
        assert_eq!(fetched.len(), 1, "{range}");
        assert_eq!(fetched[0].header("range"), None, "the complete blob is fetched once");
    }
}

#[test]
fn ranges_of_a_warm_blob() {
    let (registry, content, digest) = FakeRegistry::with_blob(REPOSITORY, 2048);
    let larder = Larder::start(&registry);
    let path = blob(REPOSITORY, &digest);
    assert_eq!(larder.get(&path).status, 200);
    larder.wait_until_cached(&digest);
    let mut connection = larder.connect();
    for (range, status, start, end) in TABLE {
        let got = connection.request("GET", &path, &[("Range", range)]);
        check(&got, &content, range, *status, *start, *end);
        assert_eq!(got.end, End::Open, "{range}");
    }
}

#[test]
fn parallel_ranges_get_206_and_right_bytes_during_the_download() {
    let (registry, content, digest) = FakeRegistry::with_blob(REPOSITORY, 300_000);
    let (middle, end) = (Gate::new(), Gate::new());
    let pauses =
        vec![Fault::GateAfter(150_000, middle.clone()), Fault::GateAfter(299_000, end.clone())];
    registry.fault(On::get_blob(&digest), Fault::All(pauses));
    let larder = Larder::start(&registry);
    let path = blob(REPOSITORY, &digest);
    // Like containerd: open-ended ranges, each abandoned when its chunk is complete.
    let chunks = [0, 100_000, 200_000];
    let mut connections = chunks.map(|start| {
        let mut connection = larder.connect();
        connection.send("GET", &path, &[("Range", &format!("bytes={start}-"))]);
        connection
    });
    for (connection, start) in connections.iter_mut().zip(chunks) {
        let head = connection.read_head();
        assert_eq!(head.status, 206);
        let range = format!("bytes {start}-299999/300000");
        assert_eq!(head.header("content-range"), Some(range.as_str()));
    }
    assert!(connections[0].read_body(100_000) == content[..100_000]);
    assert!(connections[1].read_body(40_000) == content[100_000..140_000]);
    middle.wait_until_reached(1);
    middle.open();
    assert!(connections[1].read_body(60_000) == content[140_000..200_000]);
    assert!(connections[2].read_body(90_000) == content[200_000..290_000]);
    let late = larder.request("GET", &path, &[("Range", "bytes=1000-1999")]);
    assert!(late.status == 206 && late.body == content[1000..2000]);
    drop(connections);
    end.wait_until_reached(1);
    end.open();
    larder.wait_until_cached(&digest);
    assert_eq!(registry.count("GET", "*"), 1);
}

#[test]
fn range_is_honoured_only_if_if_range_matches() {
    let (registry, content, digest) = FakeRegistry::with_blob(REPOSITORY, 2048);
    let larder = Larder::start(&registry);
    let path = blob(REPOSITORY, &digest);
    let quoted = format!("\"{digest}\"");
    for (condition, status) in
        [(quoted.as_str(), 206), ("\"another\"", 200), ("Wed, 21 Oct 2015 07:28:00 GMT", 200)]
    {
        let headers = [("Range", "bytes=48-"), ("If-Range", condition)];
        let got = larder.request("GET", &path, &headers);
        assert_eq!(got.status, status, "{condition}");
        assert!(got.body == content[if status == 206 { 48 } else { 0 }..]);
    }
}

#[test]
fn range_on_head_and_on_manifests_is_ignored() {
    let registry = FakeRegistry::start();
    let image = crate::support::Image::sample("v1");
    registry.add(REPOSITORY, "v1", &image);
    let larder = Larder::start(&registry);
    let layer = &image.layers()[0];
    let range = [("Range", "bytes=0-9")];
    let head = larder.request("HEAD", &blob(REPOSITORY, &layer.digest), &range);
    assert_eq!((head.status, head.header("content-length")), (200, Some("2048")));
    let path = crate::support::larder::manifest(REPOSITORY, "v1");
    for range in ["bytes=0-", "bytes=0-9"] {
        let got = larder.request("GET", &path, &[("Range", range)]);
        assert!(got.status == 200 && got.body == image.manifest(), "{range}: {got:?}");
    }
}
