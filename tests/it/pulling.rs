//! Manifests and blobs with the headers that clients need, cold and warm, by GET and HEAD.
//!
//! Proves protocol 3.2, 4.1, 4.2, 4.3, 4.4 and 5.1 (docs/protocol.md), and promise 2 (README.md): content that was
//! pulled once needs no upstream.

use crate::support::larder::{blob, manifest};
use crate::support::{
    End, FakeRegistry, Image, Index, Larder, Publish, Response, absent_digest, digest_of,
    media_type, sha512_of,
};

const REPOSITORY: &str = "team/app";

/// Headers that must not depend on the method.
fn headers_of(response: &Response) -> [Option<String>; 5] {
    ["content-type", "content-length", "docker-content-digest", "etag", "accept-ranges"]
        .map(|name| response.header(name).map(str::to_owned))
}

#[test]
fn head_and_get_agree_by_tag_and_by_digest() {
    fn check(content: &impl Publish, media_type: &str) {
        let registry = FakeRegistry::start();
        let digest = registry.add(REPOSITORY, "v1", content);
        let bytes = content.top().bytes;
        for reference in ["v1", &digest] {
            let larder = Larder::start(&registry);
            let path = manifest(REPOSITORY, reference);
            for temperature in ["cold", "warm"] {
                let (head, got) = (larder.head(&path), larder.get(&path));
                assert_eq!((head.status, got.status), (200, 200), "{temperature} {path}");
                assert_eq!(headers_of(&head), headers_of(&got), "{temperature} {path}");
                assert_eq!((head.body.len(), got.body == bytes), (0, true), "{temperature} {path}");
                let [kind, length, named, etag, _] = headers_of(&got);
                assert_eq!(kind.as_deref(), Some(media_type));
                assert_eq!(length, Some(bytes.len().to_string()));
                assert_eq!((named, etag), (Some(digest.clone()), Some(format!("\"{digest}\""))));
            }
        }
    }
    let (amd64, arm64) = (Image::sample("a"), Image::sample("b").platform("linux", "arm64"));
    check(&amd64, media_type::OCI_MANIFEST);
    check(&amd64.clone().docker(), media_type::DOCKER_MANIFEST);
    check(&amd64.clone().sha512(), media_type::OCI_MANIFEST);
    let index = Index::new().image(&amd64).image(&arm64);
    check(&index, media_type::OCI_INDEX);
    check(&index.docker(), media_type::DOCKER_LIST);
}

#[test]
fn manifest_by_digest_is_fetched_once() {
    let registry = FakeRegistry::start();
    let digest = registry.add_untagged(REPOSITORY, &Image::sample("v1"));
    let mut larder = Larder::start(&registry);
    let path = manifest(REPOSITORY, &digest);
    for _ in 0..3 {
        assert_eq!(larder.get(&path).digest(), digest);
        larder.advance(std::time::Duration::from_secs(1_000_000));
    }
    larder.restart();
    assert_eq!(larder.get(&path).digest(), digest);
    assert_eq!(registry.requests().len(), 1);
}

#[test]
fn large_manifests_and_blobs_have_a_length_and_no_transfer_encoding() {
    let registry = FakeRegistry::start();
    let image = Image::sample("v1").annotation("padding", &"x".repeat(40 * 1024));
    registry.add(REPOSITORY, "v1", &image);
    let larder = Larder::start(&registry);
    let mut expected = vec![(manifest(REPOSITORY, "v1"), image.manifest().len())];
    let blobs = image.blobs().into_iter();
    expected.extend(blobs.map(|each| (blob(REPOSITORY, &each.digest), each.bytes.len())));
    for (path, length) in expected {
        for method in ["GET", "HEAD", "GET"] {
            let got = larder.request(method, &path, &[]);
            let headers = (got.header("content-length"), got.header("transfer-encoding"));
            assert_eq!(headers, (Some(length.to_string().as_str()), None), "{method} {path}");
        }
    }
}

#[test]
fn pulled_image_is_byte_exact_and_needs_no_upstream_afterwards() {
    for image in [Image::sample("v1"), Image::sample("v1").sha512(), Image::sample("v1").docker()] {
        let registry = FakeRegistry::start();
        let digest = registry.add(REPOSITORY, "v1", &image);
        let mut larder = Larder::start(&registry);
        let pull = |larder: &Larder| {
            assert!(larder.get(&manifest(REPOSITORY, "v1")).body == image.manifest());
            assert!(larder.get(&manifest(REPOSITORY, &digest)).body == image.manifest());
            for each in image.blobs() {
                let got = larder.get(&blob(REPOSITORY, &each.digest));
                assert!(got.complete && got.body == each.bytes, "{got:?}");
                assert_eq!(got.header("docker-content-digest"), Some(each.digest.as_str()));
                larder.wait_until_cached(&each.digest);
            }
        };
        pull(&larder);
        let asked = registry.requests().len();
        pull(&larder);
        larder.restart();
        registry.stop();
        pull(&larder);
        assert_eq!(registry.requests().len(), asked);
    }
}

#[test]
fn head_of_a_blob_returns_its_length_and_keeps_the_connection_usable() {
    let (registry, content, digest) = FakeRegistry::with_blob(REPOSITORY, 5000);
    let larder = Larder::start(&registry);
    let path = blob(REPOSITORY, &digest);
    let mut connection = larder.connect();
    let cold = connection.request("HEAD", &path, &[]);
    let got = connection.get(&path);
    let warm = connection.request("HEAD", &path, &[]);
    assert!(got.body == content && got.end == End::Open);
    for head in [cold, warm] {
        assert_eq!((head.status, head.body.len(), head.end), (200, 0, End::Open));
        assert_eq!(headers_of(&head), headers_of(&got));
    }
    assert_eq!(registry.count("GET", "*"), 1, "HEAD downloads nothing");
}

#[test]
fn zero_byte_blob_is_served_cold_and_warm() {
    let registry = FakeRegistry::start();
    let mut larder = Larder::start(&registry);
    let digests = [digest_of(b""), sha512_of(b"")];
    for digest in &digests {
        registry.add_blob_as(REPOSITORY, digest, b"");
        let path = blob(REPOSITORY, digest);
        for round in ["cold", "warm"] {
            let got = larder.get(&path);
            assert_eq!((got.status, got.header("content-length")), (200, Some("0")), "{round}");
            assert!(got.complete && got.end == End::Open, "{round}: {got:?}");
            larder.wait_until_cached(digest);
            let ranged = larder.request("GET", &path, &[("Range", "bytes=0-")]);
            assert_eq!((ranged.status, ranged.header("content-length")), (200, Some("0")));
        }
    }
    larder.restart();
    for digest in &digests {
        assert_eq!(larder.head(&blob(REPOSITORY, digest)).status, 200);
        assert_eq!(registry.count("GET", &blob("*", digest)), 1);
    }
}

#[test]
fn zero_byte_body_under_any_other_digest_is_not_served() {
    let registry = FakeRegistry::start();
    let larder = Larder::start(&registry);
    // Repeated, because a failure shows only if the client is faster than the digest check.
    for seed in 0..50 {
        let digest = absent_digest(seed);
        registry.add_blob_as(REPOSITORY, &digest, b"");
        let got = larder.get(&blob(REPOSITORY, &digest));
        assert!(!(got.status == 200 && got.complete), "{seed}: {got:?}");
        assert!(!larder.has(&digest));
    }
}

#[test]
fn only_a_matching_if_none_match_gets_304() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let digest = image.digest();
    let layer = &image.layers()[0].digest;
    let larder = Larder::start(&registry);
    let targets = [
        (manifest(REPOSITORY, "v1"), &digest),
        (manifest(REPOSITORY, &digest), &digest),
        (blob(REPOSITORY, layer), layer),
    ];
    for (path, digest) in targets {
        let status = |condition: &str| {
            let got = larder.request("GET", &path, &[("If-None-Match", condition)]);
            let etag = got.header("etag").map(str::to_owned);
            assert_eq!(etag, Some(format!("\"{digest}\"")), "{condition}");
            assert_eq!(got.end, End::Open, "{condition}");
            (got.status, got.body.is_empty())
        };
        assert_eq!(larder.get(&path).status, 200, "no condition, no 304");
        for condition in [
            format!("\"{digest}\""),
            digest.clone(),
            format!("W/\"{digest}\""),
            format!("\"a\", \"{digest}\""),
            "*".to_owned(),
        ] {
            assert_eq!(status(&condition), (304, true), "{condition}");
        }
        for condition in ["\"a\"", "", &format!("\"{digest}0\""), &digest_of(b"another")] {
            assert_eq!(status(condition), (200, false), "{condition}");
        }
    }
}

#[test]
fn every_response_states_the_api_version() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    registry.expect_unknown("/v2/*/absent");
    let larder = Larder::start(&registry);
    for path in [
        "/v2/".to_owned(),
        manifest(REPOSITORY, "v1"),
        manifest(REPOSITORY, "absent"),
        blob(REPOSITORY, &image.config().digest),
        format!("/v2/{REPOSITORY}/tags/list"),
        "/v2/_catalog".to_owned(),
        manifest(REPOSITORY, "sha256:bad"),
    ] {
        let got = larder.get(&path);
        let version = got.header("docker-distribution-api-version");
        assert_eq!(version, Some("registry/2.0"), "{path}: {got:?}");
    }
}
