//! Clients that get large cached blobs from the bucket.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::larder::{Larder, Settings, blob, until};
use crate::support::{
    FakeBucket, FakeRegistry, Fault, Image, On, Operation, Response, bytes, client,
};

const REPOSITORY: &str = "team/app";
const MIB: usize = 1 << 20;

/// A bucket, and a new process on the cache that has filled it and redirects from 1 MiB on.
struct Site {
    bucket: FakeBucket,
    registry: FakeRegistry,
    larder: Larder,
    large: Blob,
    small: Blob,
    asked: AtomicUsize,
}

struct Blob {
    path: String,
    key: String,
    bytes: Vec<u8>,
}

impl Site {
    fn start() -> Site {
        let (bucket, registry) = (FakeBucket::start(), FakeRegistry::start());
        let (large, small) = (bytes(3 * MIB, 1), bytes(9_000, 3));
        let image = Image::sample("v1").layer(large.clone()).layer(small.clone());
        registry.add(REPOSITORY, "v1", &image);
        let mut larder = Larder::filling(&bucket, &registry, REPOSITORY, &image);
        larder.restart_with(|settings| redirecting(settings, &bucket));
        let of = |bytes: Vec<u8>| {
            let layers = image.layers();
            let digest = &layers.iter().find(|layer| layer.bytes == bytes).expect("a layer").digest;
            let key = format!("blobs/sha256/{}", digest.trim_start_matches("sha256:"));
            Blob { path: blob(REPOSITORY, digest), key, bytes }
        };
        bucket.clear_requests();
        registry.clear_requests();
        let (large, small) = (of(large), of(small));
        Site { bucket, registry, larder, large, small, asked: AtomicUsize::new(0) }
    }

    fn get(&self, headers: &[(&str, &str)]) -> Response {
        self.larder.request("GET", &self.large.path, headers)
    }

    /// Asks for most of the large blob, each time from another offset, so that the client does not count as one that returns.
    fn ask(&self) -> Response {
        let from = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        self.get(&[("Range", &format!("bytes={from}-"))])
    }

    /// Until the cache knows that the bucket has the large blob.
    #[track_caller]
    fn wait_until_known(&self) {
        until("a redirect", || self.ask().status == 307);
    }

    fn heads(&self) -> usize {
        self.bucket.count_of(Operation::HeadObject, &self.large.key)
    }
}

/// As a new process, which knows nothing about the bucket.
fn redirecting(settings: &mut Settings, bucket: &FakeBucket) {
    settings.use_bucket(bucket);
    settings.redirects = Some(MIB as u64);
}

/// Follows a redirect as clients do: with the same headers.
#[track_caller]
fn follow(redirect: &Response, headers: &[(&str, &str)]) -> Response {
    let location = redirect.header("location").expect("a redirect");
    let rest = location.strip_prefix("http://").expect("an absolute URL");
    let (authority, path) = rest.split_once('/').expect("a path");
    let address: SocketAddr = authority.parse().expect("an address");
    client::request(address, "GET", &format!("/{path}"), headers)
}

#[test]
fn client_gets_a_large_cached_blob_from_the_bucket() {
    let site = Site::start();
    let got = site.get(&[]);
    assert!(got.status == 200 && got.body == site.large.bytes, "nothing is known after a start");
    site.wait_until_known();
    let cache = site.larder.cache();
    let metrics = cache.metrics();
    let before = (metrics.redirected.get(), metrics.redirected_bytes.get());

    let redirect = site.get(&[]);
    assert!(redirect.status == 307 && redirect.body.is_empty(), "{redirect:?}");
    assert_eq!(redirect.header("cache-control"), Some("no-store"));
    assert_eq!(redirect.header("docker-content-digest"), site.large.path.rsplit('/').next());
    assert!(follow(&redirect, &[]).body == site.large.bytes);
    let part = [("Range", "bytes=1000000-2999999")];
    let redirect = site.get(&part);
    let got = follow(&redirect, &part);
    assert!(
        got.status == 206 && got.body == site.large.bytes[1_000_000..3_000_000],
        "{redirect:?}"
    );

    let size = site.large.bytes.len() as u64;
    assert_eq!(metrics.redirected.get(), before.0 + 2);
    assert_eq!(metrics.redirected_bytes.get(), before.1 + size + 2_000_000);
    assert_eq!(site.heads(), 1, "one check for all of them");
    assert!(site.registry.requests().is_empty(), "{:?}", site.registry.requests());
}

#[test]
fn requests_that_are_answered_here() {
    let site = Site::start();
    site.wait_until_known();
    let digest = site.large.path.rsplit('/').next().expect("a digest").to_owned();
    let other = format!("\"{digest}\"");
    for (headers, status) in [
        (vec![("Range", "bytes=0-1048574")], 206),
        (vec![("Range", "bytes=9999999-")], 416),
        (vec![("If-None-Match", &*other)], 304),
        (vec![("If-Range", &*other), ("Range", "bytes=5-")], 206),
        (vec![("Via", "1.1 larder-00000000000000aa")], 200),
        (vec![("Via", "1.1 larder-00000000000000aa (peer)")], 200),
    ] {
        assert_eq!(site.get(&headers).status, status, "{headers:?}");
    }
    assert_eq!(site.larder.head(&site.large.path).status, 200);
    let small = site.larder.get(&site.small.path);
    assert!(small.status == 200 && small.body == site.small.bytes, "{small:?}");
    assert_eq!(site.bucket.count_of(Operation::HeadObject, &site.small.key), 0);
    let through_others = [("Via", "1.1 proxy.example.com (squid)")];
    assert_eq!(site.get(&through_others).status, 307);
}

#[test]
fn client_that_returns_without_the_blob_gets_it_here() {
    let site = Site::start();
    site.wait_until_known();
    assert_eq!(site.get(&[]).status, 307);
    site.bucket.down();
    let got = site.get(&[]);
    assert!(got.status == 200 && got.body == site.large.bytes, "{got:?}");
    // And everything else, at the first attempt.
    let got = site.ask();
    assert!(got.status == 206, "{got:?}");
    site.bucket.up();
}

#[test]
fn object_that_is_missing_or_has_another_size_is_uploaded_again() {
    for is_wrong in [false, true] {
        let site = Site::start();
        match is_wrong {
            true => site.bucket.put(&site.large.key, b"wrong"),
            false => assert!(site.bucket.remove(&site.large.key)),
        }
        let got = site.get(&[]);
        assert!(got.status == 200 && got.body == site.large.bytes, "{got:?}");
        until("the upload", || {
            site.bucket.object(&site.large.key).is_some_and(|object| object == site.large.bytes)
        });
        site.wait_until_known();
    }
}

#[test]
fn nobody_is_redirected_to_a_bucket_that_fails() {
    let site = Site::start();
    site.bucket.fault(On::path("HEAD", "*"), Fault::status(503));
    until("some checks", || {
        assert_eq!(site.ask().status, 206);
        site.heads() >= 5
    });
    site.bucket.clear_faults();
    site.wait_until_known();
}
