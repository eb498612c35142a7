//! Air-gapped mode and read-only caches: cached content is served, and no upstream is contacted.
//!
//! Proves protocol 14.1 and 14.5 (docs/protocol.md), and `airGapped` (docs/configuration.md).

use std::fs;

use crate::support::larder::{blob, manifest, seconds};
use crate::support::{FakeRegistry, Image, Index, Larder, absent_digest};

const REPOSITORY: &str = "team/app";

/// A pulled image (tag, config and layers) and a stopped server.
fn pulled() -> (FakeRegistry, Larder, Image) {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let mut larder = Larder::start(&registry);
    assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
    for each in [image.layers(), vec![image.config()]].concat() {
        assert_eq!(larder.get(&blob(REPOSITORY, &each.digest)).status, 200);
        larder.wait_until_cached(&each.digest);
    }
    larder.stop();
    (registry, larder, image)
}

#[test]
fn air_gapped_server_serves_cached_content_and_makes_no_requests() {
    let (registry, mut larder, image) = pulled();
    let connections = registry.connection_count();
    larder.restart_with(|settings| settings.cache.air_gapped = true);
    larder.advance(seconds(100 * 365 * 24 * 3600));
    for reference in ["v1", &image.digest()] {
        let got = larder.get(&manifest(REPOSITORY, reference));
        assert!(got.status == 200 && got.body == image.manifest(), "{got:?}");
    }
    for each in [image.layers(), vec![image.config()]].concat() {
        let path = blob(REPOSITORY, &each.digest);
        assert!(larder.get(&path).body == each.bytes);
        assert_eq!(larder.head(&path).status, 200);
        let part = larder.request("GET", &path, &[("Range", "bytes=1-2")]);
        assert_eq!(part.status, 206);
    }
    let tags = larder.get(&format!("/v2/{REPOSITORY}/tags/list"));
    assert_eq!(tags.json()["tags"], serde_json::json!(["v1"]));
    let referrers = larder.get(&format!("/v2/{REPOSITORY}/referrers/{}", image.digest()));
    assert_eq!(referrers.json()["manifests"], serde_json::json!([]));
    for path in [
        manifest(REPOSITORY, "v2"),
        manifest("team/other", "v1"),
        manifest(REPOSITORY, &absent_digest(1)),
        blob(REPOSITORY, &absent_digest(2)),
        "/v2/team/other/tags/list".to_owned(),
        format!("/v2/{REPOSITORY}/referrers/{}", absent_digest(3)),
        format!("{}?ns=quay.io", manifest(REPOSITORY, "v1")),
    ] {
        for method in ["GET", "HEAD"] {
            let got = larder.request(method, &path, &[]);
            assert_eq!(got.status, 404, "{method} {path}: {got:?}");
        }
    }
    assert_eq!(registry.connection_count(), connections);
}

#[test]
fn air_gapped_index_serves_the_children_that_were_pulled() {
    let registry = FakeRegistry::start();
    let (amd64, arm64) = (Image::sample("a"), Image::sample("b").platform("linux", "arm64"));
    let index = Index::new().image(&amd64).image(&arm64);
    registry.add(REPOSITORY, "v1", &index);
    let mut larder = Larder::start(&registry);
    assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
    assert_eq!(larder.get(&manifest(REPOSITORY, &amd64.digest())).status, 200);
    larder.restart_with(|settings| settings.cache.air_gapped = true);
    assert!(larder.get(&manifest(REPOSITORY, "v1")).body == index.manifest());
    assert!(larder.get(&manifest(REPOSITORY, &amd64.digest())).body == amd64.manifest());
    assert_eq!(larder.get(&manifest(REPOSITORY, &arm64.digest())).status, 404);
}

#[test]
fn manifest_is_served_only_in_the_repository_it_was_pulled_from() {
    // A client that may pull `team/app` upstream may lack access to `team/secret`.
    let (_registry, mut larder, image) = pulled();
    larder.restart_with(|settings| settings.cache.air_gapped = true);
    assert_eq!(larder.get(&manifest("team/other", &image.digest())).status, 404);
}

#[test]
fn read_only_cache_serves_hits_and_passes_manifests_through() {
    let (registry, mut larder, image) = pulled();
    let new = Image::sample("new");
    registry.add(REPOSITORY, "v2", &new);
    // Root ignores permissions, so a file in place of the directory blocks writing.
    let incoming = larder.root().join("incoming");
    fs::remove_dir_all(&incoming).unwrap();
    fs::write(&incoming, b"in the way").unwrap();
    larder.run();
    let before = larder.names();
    assert!(larder.get(&manifest(REPOSITORY, "v1")).body == image.manifest());
    for each in image.layers() {
        assert!(larder.get(&blob(REPOSITORY, &each.digest)).body == each.bytes);
    }
    for reference in ["v2", &new.digest()] {
        for _ in 0..2 {
            let got = larder.get(&manifest(REPOSITORY, reference));
            assert!(got.status == 200 && got.body == new.manifest(), "{got:?}");
        }
    }
    assert_eq!(larder.names(), before);
    larder.advance(seconds(3600));
    let confirmed = larder.get(&manifest(REPOSITORY, "v1"));
    assert_eq!((confirmed.status, confirmed.header("warning")), (200, None));
}
