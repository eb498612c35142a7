//! Upstreams with harmless oddities, and client oddities that must not reach the cache.
//!
//! Proves protocol 4.5, 12.1, 12.3 and 12.5 (docs/protocol.md), and media types as registries send them.

use crate::support::larder::{blob, manifest, seconds};
use crate::support::{FakeRegistry, Fault, Image, Index, Larder, On, Publish, bytes, media_type};

const REPOSITORY: &str = "team/app";

#[test]
fn accept_header_of_a_client_has_no_effect() {
    let image = Image::sample("v1");
    let index = Index::new().image(&image);
    let mut asked = Vec::new();
    for accept in [
        &[][..],
        &["*/*"],
        &["text/html"],
        &["application/vnd.docker.distribution.manifest.v1+prettyjws"],
        &[media_type::OCI_MANIFEST],
        &[media_type::DOCKER_LIST, media_type::OCI_INDEX],
    ] {
        let registry = FakeRegistry::start();
        registry.add(REPOSITORY, "v1", &index);
        let larder = Larder::start(&registry);
        let headers: Vec<_> = accept.iter().map(|value| ("Accept", *value)).collect();
        for _ in ["cold", "warm", "confirmed"] {
            let got = larder.request("GET", &manifest(REPOSITORY, "v1"), &headers);
            assert!(got.body == index.manifest(), "{accept:?}: {got:?}");
            assert_eq!(got.header("content-type"), Some(media_type::OCI_INDEX));
            larder.advance(seconds(3600));
        }
        asked.extend(registry.requests().iter().map(|request| {
            request.headers_named("accept").iter().map(|&s| s.to_owned()).collect::<Vec<_>>()
        }));
    }
    let [line] = &asked[0][..] else { panic!("one line: {asked:?}") };
    assert!(asked.iter().all(|each| *each == asked[0]), "{asked:#?}");
    assert!(!line.contains("*/*") && !line.contains("distribution.manifest.v1"), "{line}");
    for wanted in [
        media_type::OCI_INDEX,
        media_type::OCI_MANIFEST,
        media_type::DOCKER_LIST,
        media_type::DOCKER_MANIFEST,
    ] {
        assert!(line.contains(wanted), "{line}");
    }
}

#[test]
fn schema_1_is_refused() {
    let registry = FakeRegistry::start();
    let body = br#"{"schemaVersion":1,"name":"team/app","tag":"v1","fsLayers":[]}"#;
    registry.add_manifest(REPOSITORY, "v1", media_type::SCHEMA1, body);
    let larder = Larder::start(&registry);
    let got = larder.get(&manifest(REPOSITORY, "v1"));
    assert!(matches!(got.status, 404 | 502), "{got:?}");
    assert!(larder.names().is_empty());
}

#[test]
fn tag_is_confirmed_although_head_is_broken() {
    for (name, fault) in [
        ("no digest", Fault::NoDigestHeader),
        ("405", Fault::HeadNotAllowed),
        ("400", Fault::status(400)),
        ("a wrong length", Fault::ContentLength(7)),
        ("no length", Fault::NoContentLength),
        ("another type", Fault::content_type("text/plain")),
    ] {
        let registry = FakeRegistry::start();
        let old = Image::sample("old");
        registry.add(REPOSITORY, "v1", &old);
        registry.fault(On::head_manifest("v1"), fault);
        let larder = Larder::start(&registry);
        let pull = || {
            larder.advance(seconds(3600));
            larder.get(&manifest(REPOSITORY, "v1"))
        };
        assert!(pull().body == old.manifest(), "{name}");
        let confirmed = pull();
        assert!(confirmed.body == old.manifest(), "{name}");
        assert_eq!(confirmed.header("warning"), None, "{name}");
        let new = Image::sample("new");
        registry.add(REPOSITORY, "v1", &new);
        let moved = pull();
        assert!(moved.body == new.manifest(), "{name}: {moved:?}");
        assert_eq!(moved.header("content-type"), Some(media_type::OCI_MANIFEST), "{name}");
    }
}

#[test]
fn manifest_is_accepted_in_every_framing_and_under_every_content_type() {
    for (name, fault) in [
        ("no digest", Fault::NoDigestHeader),
        ("chunked", Fault::NoContentLength),
        ("until the end of the connection", Fault::CloseDelimited),
        ("a digest that is none", Fault::extra_header("Docker-Content-Digest", "sha256:xyz")),
        ("text/plain", Fault::content_type("text/plain")),
        ("application/json", Fault::content_type("application/json")),
        ("application/octet-stream", Fault::content_type("application/octet-stream")),
        ("text/html", Fault::content_type("text/html; charset=utf-8")),
        (
            "a parameter",
            Fault::content_type("application/vnd.oci.image.manifest.v1+json; charset=utf-8"),
        ),
        ("identity", Fault::ContentEncoding("identity".into())),
    ] {
        for by_digest in [false, true] {
            let (registry, image) = FakeRegistry::with_image(REPOSITORY);
            let digest = image.digest();
            registry.fault(On::any_manifest(), fault.clone());
            let larder = Larder::start(&registry);
            let got = larder.get(&manifest(REPOSITORY, if by_digest { &digest } else { "v1" }));
            assert!(got.status == 200 && got.body == image.manifest(), "{name}: {got:?}");
            assert_eq!(got.header("content-type"), Some(media_type::OCI_MANIFEST), "{name}");
            assert_eq!(got.header("docker-content-digest"), Some(digest.as_str()), "{name}");
        }
    }
}

#[test]
fn missing_media_type_is_derived_from_the_manifest() {
    let registry = FakeRegistry::start();
    let without = |bytes: Vec<u8>| {
        let mut document: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        document.as_object_mut().unwrap().remove("mediaType");
        serde_json::to_vec(&document).unwrap()
    };
    let image = Image::sample("v1");
    let index = Index::new().image(&image);
    let larder = Larder::start(&registry);
    for (tag, bytes, expected) in [
        ("image", without(image.top().bytes), media_type::OCI_MANIFEST),
        ("index", without(index.top().bytes), media_type::OCI_INDEX),
    ] {
        registry.add_manifest(REPOSITORY, tag, "application/json", &bytes);
        let got = larder.get(&manifest(REPOSITORY, tag));
        assert_eq!(got.header("content-type"), Some(expected), "{got:?}");
        assert!(got.body == bytes);
    }
}

#[test]
fn index_whose_list_is_null_or_absent_is_served() {
    for members in [r#","manifests":null"#, r#","manifests":[]"#, ""] {
        let registry = FakeRegistry::start();
        let body =
            format!(r#"{{"schemaVersion":2,"mediaType":"{}"{members}}}"#, media_type::OCI_INDEX);
        registry.add_manifest(REPOSITORY, "v1", media_type::OCI_INDEX, body.as_bytes());
        let larder = Larder::start(&registry);
        for _ in ["fetched", "cached"] {
            let got = larder.get(&manifest(REPOSITORY, "v1"));
            assert!(got.status == 200 && got.body == body.as_bytes(), "{body}: {got:?}");
            assert_eq!(got.header("content-type"), Some(media_type::OCI_INDEX));
        }
    }
}

#[test]
fn blob_without_a_length_upstream_is_served_with_one() {
    for (name, fault) in [
        ("chunked", Fault::NoContentLength),
        ("until the end of the connection", Fault::CloseDelimited),
    ] {
        for with_manifest in [false, true] {
            let registry = FakeRegistry::start();
            let image = Image::sample("v1").layer(bytes(100_000, 9));
            registry.add(REPOSITORY, "v1", &image);
            registry.fault(On::any_blob(), fault.clone());
            let larder = Larder::start(&registry);
            if with_manifest {
                assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
            }
            for layer in image.layers() {
                let got = larder.get(&blob(REPOSITORY, &layer.digest));
                assert!(got.complete && got.body == layer.bytes, "{name}: {got:?}");
                let length = layer.bytes.len().to_string();
                assert_eq!(got.header("content-length"), Some(length.as_str()), "{name}");
            }
        }
    }
}

#[test]
fn head_of_a_blob_works_if_upstream_head_fails() {
    for (name, fault) in [
        ("405", Fault::HeadNotAllowed),
        ("no length", Fault::NoContentLength),
        ("no digest", Fault::NoDigestHeader),
        ("the page of a captive portal", Fault::Html200),
        ("401", Fault::status(401)),
        ("403", Fault::status(403)),
        ("404", Fault::status(404)),
        ("410", Fault::status(410)),
    ] {
        let registry = FakeRegistry::start();
        let digest = registry.add_blob(REPOSITORY, &bytes(5000, 1));
        registry.fault(On::head_blob(&digest), fault);
        let larder = Larder::start(&registry);
        let head = larder.head(&blob(REPOSITORY, &digest));
        assert_eq!((head.status, head.header("content-length")), (200, Some("5000")), "{name}");
    }
}

#[test]
fn head_of_a_blob_works_if_storage_behind_a_redirect_refuses_head() {
    for status in [400, 401, 403, 404, 405, 409] {
        for is_another_host in [false, true] {
            let (registry, other) = (FakeRegistry::start(), FakeRegistry::start());
            let storage = if is_another_host { &other } else { &registry };
            let content = bytes(5000, 1);
            let digest = registry.add_blob(REPOSITORY, &content);
            storage.add_file("/store/layer", "application/octet-stream", &content);
            // A URL that is signed for GET.
            let location = storage.url("/store/layer?signature=abc");
            registry.fault(On::any_blob(), Fault::redirect_to(&location));
            storage.fault(On::path("HEAD", "/store/layer"), Fault::status(status));
            let larder = Larder::start(&registry);
            let head = larder.head(&blob(REPOSITORY, &digest));
            assert_eq!(
                (head.status, head.header("content-length")),
                (200, Some("5000")),
                "{status}, another host: {is_another_host}"
            );
        }
    }
}

#[test]
fn head_of_a_blob_ignores_an_upstream_length_of_zero() {
    // Docker 29 fails with "Target.Size must be greater than zero"; ggcr and oras compare sizes.
    let registry = FakeRegistry::start();
    let digest = registry.add_blob(REPOSITORY, &bytes(5000, 1));
    registry.fault(On::head_blob(&digest), Fault::ContentLength(0));
    let larder = Larder::start(&registry);
    let head = larder.head(&blob(REPOSITORY, &digest));
    assert_ne!((head.status, head.header("content-length")), (200, Some("0")), "{head:?}");
}

#[test]
fn request_on_a_dead_pooled_connection_is_retried_once() {
    for death in [Fault::CloseBeforeHead, Fault::ResetBeforeHead] {
        let (registry, image) = FakeRegistry::with_image(REPOSITORY);
        let larder = Larder::start(&registry);
        assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
        let layer = &image.layers()[0];
        registry.fault(On::get_blob(&layer.digest).times(1), death.clone());
        assert!(larder.get(&blob(REPOSITORY, &layer.digest)).body == layer.bytes);
        assert_eq!(registry.count("GET", "/v2/*/blobs/*"), 2);
        let layer = &image.layers()[1];
        registry.fault(On::get_manifest("v2"), death);
        assert_eq!(larder.get(&manifest(REPOSITORY, "v2")).status, 502);
        assert_eq!(registry.count("GET", "/v2/*/manifests/v2"), 2, "and no third time");
        registry.cut_connections();
        assert!(larder.get(&blob(REPOSITORY, &layer.digest)).body == layer.bytes);
    }
}

#[test]
fn retry_uses_a_new_connection_since_all_idle_ones_may_be_dead() {
    let registry = FakeRegistry::start();
    let images: Vec<Image> = (0..4).map(|n| Image::sample(&n.to_string())).collect();
    let gate = crate::support::Gate::new();
    for (n, image) in images.iter().enumerate() {
        registry.add(REPOSITORY, &n.to_string(), image);
        registry.fault(On::get_manifest(&n.to_string()), Fault::Gate(gate.clone()));
    }
    let late = Image::sample("late");
    registry.add(REPOSITORY, "late", &late);
    let larder = Larder::start(&registry);
    let path = |n: usize| manifest(REPOSITORY, &n.to_string());
    let mut clients: Vec<_> = (0..images.len()).map(|n| larder.begin(&path(n))).collect();
    gate.wait_until_reached(images.len());
    gate.open();
    for client in &mut clients {
        assert_eq!(client.read_head().status, 200);
    }
    let idle = registry.connection_count();
    assert_eq!(idle, images.len() as u64);
    registry.fault(On::get_manifest("late").times(1), Fault::ResetBeforeHead);
    assert!(larder.get(&manifest(REPOSITORY, "late")).body == late.manifest());
    assert_eq!(registry.connection_count(), idle + 1);
}

#[test]
fn urls_of_foreign_layers_are_never_requested() {
    let (registry, foreign) = (FakeRegistry::start(), FakeRegistry::start());
    let content = bytes(5000, 1);
    let digest = crate::support::digest_of(&content);
    foreign.add_file("/layer", "application/octet-stream", &content);
    let body = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","config":{{"digest":"{digest}","size":5000}},"layers":[{{"mediaType":"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip","digest":"{digest}","size":5000,"urls":["{}"]}}]}}"#,
        media_type::DOCKER_MANIFEST,
        foreign.url("/layer")
    );
    registry.add_manifest(REPOSITORY, "v1", media_type::DOCKER_MANIFEST, body.as_bytes());
    registry.expect_unknown("/v2/*/blobs/*");
    let larder = Larder::start(&registry);
    assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
    assert_eq!(larder.get(&blob(REPOSITORY, &digest)).status, 404);
    assert_eq!(foreign.connection_count(), 0);
}
