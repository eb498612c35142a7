//! Redirect targets, and the headers that follow.
//!
//! Proves protocol 10.4, 11.1, 11.2 and 11.3 (docs/protocol.md), and that content is found through redirects.

use crate::support::larder::{blob, manifest};
use crate::support::{
    FakeRegistry, Fault, Image, Larder, On, Publish, TokenServer, bytes, media_type,
};

const REPOSITORY: &str = "team/app";

#[test]
fn authorization_does_not_follow_a_redirect_to_another_port() {
    let (registry, storage) = (FakeRegistry::start(), FakeRegistry::start());
    let content = bytes(5000, 1);
    let digest = registry.add_blob(REPOSITORY, &content);
    storage.add_file("/bucket/layer", "binary/octet-stream", &content);
    registry.require_bearer(&TokenServer::new());
    let location = storage.url("/bucket/layer?signature=abc");
    registry.fault(On::get_blob(&digest), Fault::redirect_to(&location));
    let larder = Larder::start(&registry);
    let got = larder.get(&blob(REPOSITORY, &digest));
    assert!(got.complete && got.body == content, "{got:?}");
    let [asked] = &storage.requests()[..] else { panic!("one request to the storage") };
    assert_eq!(asked.header("authorization"), None);
    assert_eq!(asked.query_value("signature").as_deref(), Some("abc"));
    assert_eq!(asked.header("accept-encoding"), Some("identity"));
}

#[test]
fn authorization_is_sent_to_its_host_only() {
    let (registry, content, digest) = FakeRegistry::with_blob(REPOSITORY, 5000);
    registry.add_blob("storage/app", &content);
    // Tokens apply to one repository, so the second hop must carry the first one's.
    registry.require_bearer(&TokenServer::new());
    let location = format!("/files/{digest}");
    registry.add_file(&location, "application/octet-stream", &content);
    registry.fault(On::get_blob(&digest), Fault::redirect_to(&location));
    let larder = Larder::start(&registry);
    assert!(larder.get(&blob(REPOSITORY, &digest)).body == content);
    let [asked] = &registry.requests_for("GET", &location)[..] else { panic!("one request") };
    assert!(asked.header("authorization").is_some_and(|value| value.starts_with("Bearer ")));
}

#[test]
fn blobs_and_manifests_are_fetched_through_every_kind_of_redirect() {
    for status in [301, 302, 303, 307, 308] {
        let (registry, other) = (FakeRegistry::start(), FakeRegistry::start());
        let image = Image::sample("v1");
        let digest = other.add("moved/app", "v1", &image);
        for reference in ["v1", &digest] {
            let location = other.url(&manifest("moved/app", reference));
            registry.fault(On::manifest(reference), Fault::Redirect(status, location));
        }
        for each in image.blobs() {
            let location = other.url(&blob("moved/app", &each.digest));
            registry
                .fault(On::path("*", &blob("*", &each.digest)), Fault::Redirect(status, location));
        }
        let larder = Larder::start(&registry);
        for each in image.blobs() {
            let path = blob(REPOSITORY, &each.digest);
            let head = larder.head(&path);
            let length = each.bytes.len().to_string();
            assert_eq!(head.header("content-length"), Some(length.as_str()), "{status}: {head:?}");
            assert!(larder.get(&path).body == each.bytes, "{status}");
        }
        for _ in 0..2 {
            let got = larder.get(&manifest(REPOSITORY, "v1"));
            assert!(got.body == image.manifest(), "{status}: {got:?}");
            // The second time the tag is revalidated by HEAD, and a redirected HEAD must stay HEAD.
            larder.advance(crate::support::larder::seconds(3600));
        }
        assert_eq!(other.count("HEAD", "/v2/*/manifests/*"), 1, "{status}");
        assert!(larder.get(&manifest(REPOSITORY, &digest)).body == image.manifest(), "{status}");
    }
}

#[test]
fn ten_redirects_are_followed_and_an_eleventh_is_not() {
    for (hops, works) in [(10, true), (11, false)] {
        let registry = FakeRegistry::start();
        let image = Image::sample("v1");
        registry.add_file("/hop/0", media_type::OCI_MANIFEST, &image.manifest());
        for hop in 1..hops {
            let location = format!("/hop/{}", hop - 1);
            registry.fault(On::path("*", &format!("/hop/{hop}")), Fault::redirect_to(&location));
        }
        let first = Fault::redirect_to(&format!("/hop/{}", hops - 1));
        registry.fault(On::manifest("v1"), first);
        let larder = Larder::start(&registry);
        let got = larder.get(&manifest(REPOSITORY, "v1"));
        assert_eq!(got.status, if works { 200 } else { 502 }, "{hops}: {got:?}");
        assert_eq!(registry.requests().len(), 11);
    }
}

#[test]
fn redirect_loop_ends() {
    let (registry, other) = (FakeRegistry::start(), FakeRegistry::start());
    let (there, back) = (other.url("/v2/x/manifests/v1"), registry.url("/v2/x/manifests/v1"));
    registry.fault(On::anything(), Fault::redirect_to(&there));
    other.fault(On::anything(), Fault::redirect_to(&back));
    let larder = Larder::start(&registry);
    let got = larder.get(&manifest(REPOSITORY, "v1"));
    assert_eq!(got.status, 502, "{got:?}");
    assert_eq!(registry.requests().len() + other.requests().len(), 11);
}

#[test]
fn relative_redirects_are_resolved() {
    let registry = FakeRegistry::start();
    let image = Image::sample("v1");
    let digest = registry.add("moved/app", "v1", &image);
    registry.add_untagged(REPOSITORY, &image);
    let larder = Larder::start(&registry);
    let absolute_path = manifest("moved/app", &digest);
    let no_scheme = format!("//{}{absolute_path}", registry.host());
    for (tag, location) in [("a", &absolute_path), ("b", &no_scheme), ("c", &digest)] {
        registry.fault(On::manifest(tag), Fault::redirect_to(location));
        let got = larder.get(&manifest(REPOSITORY, tag));
        assert!(got.body == image.manifest(), "{location}: {got:?}");
    }
}

#[test]
fn redirects_to_forbidden_targets_are_refused() {
    for location in [
        "",
        "ftp://127.0.0.1/x",
        "file:///etc/passwd",
        "gopher://x",
        "http://",
        "http://user:password@127.0.0.1/x",
        "http://169.254.169.254/latest/meta-data",
        "http://[fe80::1]/x",
        "http://0.0.0.0/x",
    ] {
        let registry = FakeRegistry::start();
        let digest = registry.add_blob(REPOSITORY, &bytes(100, 1));
        registry.fault(On::anything(), Fault::redirect_to(location));
        let larder = Larder::start(&registry);
        for path in [manifest(REPOSITORY, "v1"), blob(REPOSITORY, &digest)] {
            let got = larder.get(&path);
            assert!(matches!(got.status, 404 | 502 | 503), "{location}: {got:?}");
            assert!(!got.text().contains("password"), "{location}: {got:?}");
        }
        assert_eq!(registry.requests().len(), 2, "{location}");
    }
}

#[test]
fn redirects_from_https_to_http_are_refused() {
    let (registry, storage) = (FakeRegistry::start_tls(), FakeRegistry::start());
    let image = Image::sample("v1");
    registry.add(REPOSITORY, "v1", &image);
    let layer = &image.layers()[0];
    storage.add_file("/layer", "binary/octet-stream", &layer.bytes);
    storage.add_file("/manifest", media_type::OCI_MANIFEST, &image.top().bytes);
    let larder = Larder::start_with(&registry, |settings| {
        settings.upstream.registries[0].endpoints[0].tls.insecure_skip_verify = true;
    });
    registry.fault(On::any_blob(), Fault::redirect_to(&storage.url("/layer")));
    registry.fault(On::any_manifest(), Fault::redirect_to(&storage.url("/manifest")));
    let got = larder.get(&manifest(REPOSITORY, "v1"));
    assert_eq!(got.status, 502, "{got:?}");
    assert!(got.text().contains("https"), "says why: {got:?}");
    let got = larder.get(&blob(REPOSITORY, &layer.digest));
    assert!(matches!(got.status, 502 | 503), "{got:?}");
    assert_eq!(storage.connection_count(), 0);
}

#[test]
fn skipped_verification_does_not_apply_to_redirect_targets() {
    let (registry, storage) = (FakeRegistry::start_tls(), FakeRegistry::start_tls());
    let content = bytes(5000, 1);
    let digest = registry.add_blob(REPOSITORY, &content);
    storage.add_file("/layer", "binary/octet-stream", &content);
    registry.fault(On::any_blob(), Fault::redirect_to(&storage.url("/layer")));
    let larder = Larder::start_with(&registry, |settings| {
        settings.upstream.registries[0].endpoints[0].tls.insecure_skip_verify = true;
    });
    let got = larder.get(&blob(REPOSITORY, &digest));
    assert!(matches!(got.status, 502 | 503), "{got:?}");
    assert!(storage.requests().is_empty());
}
