//! Caches that cannot be written: pulls pass through, and the log reports it.
//!
//! Proves protocol 13.2 and 14.5 (docs/protocol.md).

use std::fs;

use larder::cache::RetryPolicy;

use crate::support::larder::{blob, manifest, until};
use crate::support::{FakeRegistry, Fault, Gate, Larder, On, bytes};

const REPOSITORY: &str = "team/app";
const NOT_CACHED: Option<&str> = Some("larder; fwd=miss; detail=not-cached");

/// A server whose cache directory is not writable, even for root.
fn read_only(registry: &FakeRegistry) -> Larder {
    read_only_with(registry, RetryPolicy { fruitless_max: 0, ..RetryPolicy::default() })
}

fn read_only_with(registry: &FakeRegistry, retry: RetryPolicy) -> Larder {
    let mut larder = Larder::start_with(registry, |settings| settings.cache.retry = retry);
    larder.stop();
    // Root ignores permissions, so a file in place of the directory blocks writing.
    let incoming = larder.root().join("incoming");
    fs::remove_dir_all(&incoming).expect("an existing directory");
    fs::write(&incoming, b"in the way").expect("a file can be written");
    larder.run();
    larder
}

#[test]
fn image_is_pulled_without_being_stored() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let larder = read_only(&registry);
    let before = larder.names();
    for round in 1..=2 {
        assert!(larder.get(&manifest(REPOSITORY, "v1")).body == image.manifest());
        for layer in image.layers() {
            let path = blob(REPOSITORY, &layer.digest);
            let head = larder.head(&path);
            assert_eq!(head.header("content-length"), Some(&*layer.bytes.len().to_string()));
            let got = larder.get(&path);
            assert_eq!((got.status, got.complete), (200, true), "{got:?}");
            assert_eq!(got.header("cache-status"), NOT_CACHED);
            assert!(got.body == layer.bytes);
        }
        let counts = larder.counts();
        assert_eq!(counts.blobs_not_cached, round * image.layers().len() as u64);
        assert_eq!(counts.manifests_not_cached, round);
    }
    assert_eq!(larder.names(), before);
}

#[test]
fn directory_that_becomes_writable_is_written_again() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let larder = read_only(&registry);
    let pull = || assert!(larder.get(&manifest(REPOSITORY, "v1")).body == image.manifest());
    pull();
    assert!(!larder.has(&image.digest()));
    let incoming = larder.root().join("incoming");
    fs::remove_file(&incoming).expect("it is in the way");
    until("the next check of the directory", || larder.store().is_writable());
    pull();
    larder.wait_until_cached(&image.digest());
}

#[test]
fn ranges_are_served_from_a_pass_through_stream() {
    let (registry, content, digest) = FakeRegistry::with_blob(REPOSITORY, 3_000_000);
    let larder = read_only(&registry);
    for (range, from, to) in [
        ("bytes=0-", 0, 3_000_000),
        ("bytes=0-0", 0, 1),
        ("bytes=2999999-", 2_999_999, 3_000_000),
        ("bytes=-1", 2_999_999, 3_000_000),
        ("bytes=1500001-1700002", 1_500_001, 1_700_003),
        ("bytes=131072-", 131_072, 3_000_000),
    ] {
        let got = larder.request("GET", &blob(REPOSITORY, &digest), &[("Range", range)]);
        assert_eq!((got.status, got.complete), (206, true), "{range}: {got:?}");
        assert!(got.body == content[from..to], "{range}");
    }
    let beyond = larder.request("GET", &blob(REPOSITORY, &digest), &[("Range", "bytes=9999999-")]);
    assert_eq!(beyond.status, 416);
}

#[test]
fn wrong_bytes_never_look_complete_without_the_cache() {
    for fault in [Fault::WrongBytes, Fault::TooLong(10), Fault::CutAfter(50_000)] {
        let registry = FakeRegistry::start();
        let digest = registry.add_blob(REPOSITORY, &bytes(100_000, 1));
        registry.fault(On::get_blob(&digest), fault);
        let larder = read_only(&registry);
        let got = larder.get(&blob(REPOSITORY, &digest));
        assert!(!got.complete, "{got:?}");
    }
}

#[test]
fn interrupted_pass_through_resumes_without_repeating_bytes() {
    let (registry, content, digest) = FakeRegistry::with_blob(REPOSITORY, 400_000);
    registry.fault(On::get_blob(&digest).times(3), Fault::CutAfter(100_000));
    let retry = RetryPolicy { first_wait: std::time::Duration::ZERO, ..RetryPolicy::default() };
    let larder = read_only_with(&registry, retry);
    let got = larder.get(&blob(REPOSITORY, &digest));
    assert!(got.complete && got.body == content);
    assert_eq!(registry.body_bytes_sent(), 400_000);
}

#[test]
fn disconnecting_client_ends_its_pass_through_download() {
    let registry = FakeRegistry::start();
    let digest = registry.add_blob(REPOSITORY, &bytes(64_000_000, 1));
    let larder = read_only(&registry);
    let path = blob(REPOSITORY, &digest);
    for _ in 0..20 {
        let mut client = larder.begin(&path);
        client.read_head();
        client.read_body(1000);
    }
    // Twenty clients that leave must release their fetchers: there are only sixteen.
    let got = larder.request("GET", &path, &[("Range", "bytes=0-9")]);
    assert_eq!((got.status, got.body.len()), (206, 10));
}

#[test]
fn blob_of_unknown_size_is_refused_with_a_reason() {
    let registry = FakeRegistry::start();
    let digest = registry.add_blob(REPOSITORY, &bytes(1000, 1));
    registry.fault(On::get_blob(&digest), Fault::NoContentLength);
    let larder = read_only(&registry);
    let got = larder.get(&blob(REPOSITORY, &digest));
    assert_eq!(got.status, 503);
    assert!(got.text().contains("does not report the size"), "{got:?}");
}

#[test]
fn pass_through_streams_before_the_blob_is_complete() {
    let (registry, content, digest) = FakeRegistry::with_blob(REPOSITORY, 500_000);
    let gate = Gate::new();
    registry.fault(On::get_blob(&digest), Fault::GateAfter(400_000, gate.clone()));
    let larder = read_only(&registry);
    let mut client = larder.begin(&blob(REPOSITORY, &digest));
    client.read_head();
    assert!(client.read_body(400_000) == content[..400_000]);
    gate.open();
    let (rest, complete) = client.read_to_end();
    assert!(complete && rest == content[400_000..]);
}
