//! Which upstream a request addresses, and which upstreams may be contacted.
//!
//! Proves protocol 1.1, 1.2, 1.3, 1.4, 1.5, 1.6 and 2.4 (docs/protocol.md).

use larder::upstream::{ApiPath, UnlistedRegistries};

use crate::support::larder::manifest;
use crate::support::{FakeRegistry, Fault, Image, Larder, On, TokenServer, media_type};

const REPOSITORY: &str = "team/app";

#[test]
fn namespace_path_or_header_selects_the_upstream() {
    let names = ["reg.example.com", "reg:5000", "[::1]:5000", "localhost:5000", "127.0.0.1:5001"];
    let registries = names.map(|name| {
        let registry = FakeRegistry::start();
        registry.add(REPOSITORY, "v1", &Image::sample(name));
        registry
    });
    let larder = Larder::start_alone(|settings| {
        for (name, registry) in names.iter().zip(&registries) {
            settings.list(name, registry);
        }
        settings.alias("mirror", "reg:5000");
    });
    let path = manifest(REPOSITORY, "v1");
    // Target, header, the expected upstream, and whether the response names it.
    let table = [
        (format!("{path}?ns=reg.example.com"), None, names[0], true),
        (format!("{path}?ns=REG.Example.COM"), None, names[0], true),
        (format!("{path}?ns=reg.example.com:443"), None, names[0], true),
        (format!("{path}?ns=reg.example.com%3A443"), None, names[0], true),
        (format!("{path}?a=b&ns=reg.example.com"), None, names[0], true),
        (format!("{path}?ns=reg.example.com&ns=reg.example.com"), None, names[0], true),
        (format!("{path}?ns=reg:5000"), None, names[1], true),
        (format!("{path}?ns=reg%3A5000"), None, names[1], true),
        (format!("{path}?ns=mirror"), None, names[1], true),
        (format!("{path}?ns=%5B%3A%3A1%5D%3A5000"), None, names[2], true),
        (format!("{path}?ns=[::1]:5000"), None, names[2], true),
        (format!("{path}?ns=localhost:5000"), None, names[3], true),
        (format!("{path}?ns=127.0.0.1:5001"), None, names[4], true),
        (path.clone(), Some(("OCI-Namespace", "reg.example.com")), names[0], true),
        (path.clone(), Some(("X-Registry", "reg:5000")), names[1], true),
        (format!("{path}?ns=reg.example.com"), Some(("OCI-Namespace", "reg:5000")), names[0], true),
        (manifest(&format!("reg.example.com/{REPOSITORY}"), "v1"), None, names[0], false),
        (manifest(&format!("reg:5000/{REPOSITORY}"), "v1"), None, names[1], false),
        (manifest(&format!("reg%3A5000/{REPOSITORY}"), "v1"), None, names[1], false),
        (manifest(&format!("mirror/{REPOSITORY}"), "v1"), None, names[1], false),
        (manifest(&format!("localhost:5000/{REPOSITORY}"), "v1"), None, names[3], false),
        (manifest(&format!("127.0.0.1:5001/{REPOSITORY}"), "v1"), None, names[4], false),
        (
            format!("{}?ns=reg:5000", manifest(&format!("reg:5000/{REPOSITORY}"), "v1")),
            None,
            names[1],
            true,
        ),
    ];
    for (target, header, name, is_told) in table {
        let headers: Vec<(&str, &str)> = header.into_iter().collect();
        let got = larder.request("GET", &target, &headers);
        assert_eq!(got.digest(), Image::sample(name).digest(), "{target} {header:?}: {got:?}");
        assert_eq!(got.header("oci-namespace"), is_told.then_some(name), "{target} {header:?}");
    }
    for registry in &registries {
        assert_eq!(registry.requests().len(), 1, "all spellings share one cache entry");
    }
}

#[test]
fn docker_hub_shares_one_entry_across_its_names_and_adds_library() {
    let (hub, quay) = (FakeRegistry::start(), FakeRegistry::start());
    let (alpine, other) = (Image::sample("alpine"), Image::sample("other"));
    hub.add("library/alpine", "3", &alpine);
    quay.add("alpine", "3", &other);
    let larder = Larder::start_alone(|settings| {
        settings.list("docker.io", &hub);
        settings.list("quay.io", &quay);
        settings.naming.default_upstream = "docker.io".parse().ok();
    });
    for target in [
        "/v2/library/alpine/manifests/3",
        "/v2/alpine/manifests/3",
        "/v2/library/alpine/manifests/3?ns=docker.io",
        "/v2/alpine/manifests/3?ns=docker.io",
        "/v2/library/alpine/manifests/3?ns=index.docker.io",
        "/v2/alpine/manifests/3?ns=registry-1.docker.io",
        "/v2/docker.io/library/alpine/manifests/3",
        "/v2/docker.io/alpine/manifests/3",
        "/v2/index.docker.io/alpine/manifests/3",
        "/v2/registry-1.docker.io/alpine/manifests/3?ns=docker.io",
    ] {
        let got = larder.get(target);
        assert_eq!((got.status, got.digest()), (200, alpine.digest()), "{target}");
    }
    for target in ["/v2/alpine/manifests/3?ns=quay.io", "/v2/quay.io/alpine/manifests/3"] {
        assert_eq!(larder.get(target).digest(), other.digest(), "{target}");
    }
    assert_eq!((hub.requests().len(), quay.requests().len()), (1, 1));
}

#[test]
fn repositories_may_have_any_depth_and_contain_reserved_words() {
    let registry = FakeRegistry::start();
    let larder = Larder::start(&registry);
    let long = "a".repeat(200);
    for repository in [
        "app",
        "a/b/c/d",
        "a/b/c/d/e/f/g/h/i/j",
        "blobs",
        "manifests/manifests",
        "blobs/uploads/manifests/x",
        "tags/list",
        "referrers",
        "a__b/c---d/e.f_g",
        &long,
    ] {
        let digest = registry.add(repository, "v1", &Image::sample(repository));
        assert_eq!(larder.get(&manifest(repository, "v1")).digest(), digest, "{repository}");
        let encoded = digest.replace(':', "%3A");
        assert_eq!(larder.get(&manifest(repository, &encoded)).digest(), digest, "{repository}");
    }
}

#[test]
fn unlisted_registry_is_not_contacted_when_unlisted_registries_are_denied() {
    let (listed, unlisted) = (FakeRegistry::start(), FakeRegistry::start());
    let larder = Larder::start(&listed);
    let host = unlisted.host();
    for target in [
        format!("{}?ns={host}", manifest(REPOSITORY, "v1")),
        format!("{}?ns=quay.io", manifest(REPOSITORY, "v1")),
        manifest(&format!("{host}/{REPOSITORY}"), "v1"),
        manifest(&format!("quay.io/{REPOSITORY}"), "v1"),
    ] {
        let got = larder.get(&target);
        assert_eq!((got.status, got.error_code().as_str()), (404, "NAME_UNKNOWN"), "{target}");
        assert!(got.text().contains("unlistedRegistries"), "{got:?}");
    }
    assert_eq!((listed.connection_count(), unlisted.connection_count()), (0, 0));
}

#[test]
fn unlisted_registries_at_private_addresses_are_refused() {
    let inside = FakeRegistry::start();
    let larder = Larder::start_alone(|settings| {
        settings.upstream.unlisted = UnlistedRegistries::Allow;
    });
    let port = inside.address().port();
    for name in [
        inside.host(),
        format!("localhost:{port}"),
        format!("[::1]:{port}"),
        format!("[::ffff:127.0.0.1]:{port}"),
        "169.254.169.254".to_owned(),
        "10.0.0.1".to_owned(),
        "metadata".to_owned(),
        "localhost".to_owned(),
    ] {
        let encoded = name.replace(':', "%3A").replace('[', "%5B").replace(']', "%5D");
        let got = larder.get(&format!("{}?ns={encoded}", manifest(REPOSITORY, "v1")));
        assert_eq!((got.status, got.error_code().as_str()), (404, "NAME_UNKNOWN"), "{name}");
        assert!(got.text().contains("registries"), "says what to configure: {got:?}");
    }
    assert_eq!(inside.connection_count(), 0);
}

#[test]
fn request_without_a_registry_is_answered_with_instructions() {
    let larder = Larder::start_alone(|_| {});
    let got = larder.get(&manifest(REPOSITORY, "v1"));
    assert_eq!((got.status, got.error_code().as_str()), (404, "NAME_UNKNOWN"));
    assert!(got.text().contains("ns=") && got.text().contains("defaultNs"), "{got:?}");
}

#[test]
fn namespaces_that_are_not_registry_names_are_refused() {
    let registry = FakeRegistry::start();
    let larder = Larder::start(&registry);
    for namespace in [
        "a%20b",
        "a+b",
        "http://x",
        "http%3A%2F%2Fx",
        "..",
        "%2e%2e",
        "a%2Fb",
        "a.io&ns=b.io",
        "%00",
        "%zz",
        "user@host",
        "host:99999",
        "host:",
        "[::1",
    ] {
        let got = larder.get(&format!("{}?ns={namespace}", manifest(REPOSITORY, "v1")));
        assert!(matches!(got.status, 400 | 404), "{namespace}: {got:?}");
        assert!(["NAME_INVALID", "NAME_UNKNOWN"].contains(&got.error_code().as_str()));
    }
    assert_eq!(registry.connection_count(), 0);
}

#[test]
fn empty_namespace_counts_as_absent() {
    let registry = FakeRegistry::start();
    let digest = registry.add(REPOSITORY, "v1", &Image::sample("v1"));
    let larder = Larder::start(&registry);
    let got = larder.get(&format!("{}?ns=", manifest(REPOSITORY, "v1")));
    assert_eq!((got.digest(), got.header("oci-namespace")), (digest, None));
}

#[test]
fn path_traversal_is_refused() {
    let registry = FakeRegistry::start();
    let larder = Larder::start(&registry);
    let before = larder.names();
    let (long_name, long_tag) = ("a".repeat(256), "t".repeat(129));
    for target in [
        "/v2/../../etc/passwd/manifests/v1".to_owned(),
        "/v2/team/../app/manifests/v1".to_owned(),
        "/v2/team/%2e%2e/app/manifests/v1".to_owned(),
        "/v2/team%2Fapp/manifests/v1".to_owned(),
        "/v2/team/app/manifests/..%2F..%2Fetc".to_owned(),
        "/v2/team/app/manifests/%2e%2e".to_owned(),
        "/v2/team//app/manifests/v1".to_owned(),
        "/v2//team/app/manifests/v1".to_owned(),
        "/v2/team/app%00/manifests/v1".to_owned(),
        "/v2/team/_tags/manifests/v1".to_owned(),
        "/v2/team/app/blobs/sha256:../../../etc/passwd".to_owned(),
        format!("/v2/{long_name}/manifests/v1"),
        format!("/v2/team/app/manifests/{long_tag}"),
    ] {
        let got = larder.get(&target);
        assert!(matches!(got.status, 400 | 404), "{target}: {got:?}");
        assert_eq!(got.header("content-type"), Some("application/json"), "{target}");
    }
    assert_eq!((registry.connection_count(), larder.names()), (0, before));
}

#[test]
fn endpoint_path_is_prefixed_to_repositories() {
    for (path, below) in [
        ("/v2/hub-cache", "/v2/hub-cache"),
        ("/artifactory/api/docker/x", "/artifactory/api/docker/x/v2"),
        ("/artifactory/api/docker/x/v2/", "/artifactory/api/docker/x/v2"),
    ] {
        let registry = FakeRegistry::start();
        let image = Image::sample("v1");
        let target = format!("{below}/{REPOSITORY}/manifests/v1");
        registry.fault(
            On::path("*", &target),
            Fault::Status(
                200,
                vec![("Content-Type".into(), media_type::OCI_MANIFEST.into())],
                image.manifest(),
            ),
        );
        let larder = Larder::start_with(&registry, |settings| {
            let endpoint = &mut settings.upstream.registries[0].endpoints[0].endpoint;
            endpoint.api = ApiPath::parse(path).expect("a path");
        });
        let got = larder.get(&manifest(REPOSITORY, "v1"));
        assert!(got.status == 200 && got.body == image.manifest(), "{path}: {got:?}");
        assert_eq!(registry.count("GET", &target), 1, "{path}");
    }
}

#[test]
fn endpoint_with_a_path_uses_the_scope_of_the_challenge() {
    let registry = FakeRegistry::start();
    let tokens = TokenServer::new();
    registry.add("hub-cache/team/app", "v1", &Image::sample("v1"));
    registry.require_bearer(&tokens);
    let larder = Larder::start_with(&registry, |settings| {
        let endpoint = &mut settings.upstream.registries[0].endpoints[0].endpoint;
        endpoint.api = ApiPath::parse("/v2/hub-cache").expect("a path");
    });
    assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
    let [asked] = &registry.requests_for("*", "/token")[..] else { panic!("one token") };
    let scope = Some("repository:hub-cache/team/app:pull".to_owned());
    assert_eq!(asked.query_value("scope"), scope);
}
