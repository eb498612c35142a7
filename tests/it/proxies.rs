//! Proxies between Larder and registries: what is sent through them, what they can see, and that they do not bypass the
//! address guard.
//!
//! Only the proxy knows the names of these registries, because Larder never uses a proxy for the local machine. Names in
//! `.test` do not resolve.

use std::fs;

use larder::certificates::IdentityFiles;
use larder::upstream::{
    Credentials, ProxySettings, Secret, TlsSettings, UnlistedPorts, UnlistedRegistries,
};

use crate::support::larder::{Settings, blob, manifest, seconds};
use crate::support::{FakeProxy, FakeRegistry, Fault, Image, Larder, On, Publish, base64, bytes};

const REPOSITORY: &str = "team/app";

/// Settings that send everything through this proxy.
fn by_way_of(url: &str) -> ProxySettings {
    let proxy = url.parse().ok();
    assert!(proxy.is_some(), "{url} is not the URL of a proxy");
    ProxySettings { http: proxy.clone(), https: proxy, ..ProxySettings::default() }
}

/// Lists the registry under `name` and makes it the default. Only the proxy can resolve the name.
fn list(settings: &mut Settings, name: &str, registry: &FakeRegistry) {
    settings.list(name, registry).endpoint.authority = name.to_owned();
    settings.naming.default_upstream = name.parse().ok();
}

/// A server that reaches `registry` as `registry.test` through the proxy.
fn larder_behind(
    proxy: &FakeProxy,
    registry: &FakeRegistry,
    change: impl FnOnce(&mut Settings),
) -> Larder {
    let port = if registry.url("").starts_with("https") { 443 } else { 80 };
    proxy.route(&format!("registry.test:{port}"), registry.address());
    Larder::start_alone(|settings| {
        list(settings, "registry.test", registry);
        settings.upstream.proxies = by_way_of(&proxy.url());
        change(settings);
    })
}

#[track_caller]
fn assert_pulls(larder: &Larder, image: &Image) {
    let got = larder.get(&manifest(REPOSITORY, "v1"));
    assert!(got.body == image.manifest(), "{got:?}");
    for each in image.blobs() {
        let got = larder.get(&blob(REPOSITORY, &each.digest));
        assert!(got.complete && got.body == each.bytes, "{got:?}");
    }
}

#[test]
fn https_registry_is_reached_through_a_tunnel_with_verified_tls() {
    let (registry, other) = (FakeRegistry::start_mtls(), FakeRegistry::start_tls());
    let image = registry.add_sample(REPOSITORY);
    let files = tempfile::tempdir().expect("a directory");
    let put = |name: &str, content: String| {
        let path = files.path().join(name);
        fs::write(&path, content).expect("a file");
        path
    };
    let identity = registry.client_identity("larder");
    let identity = IdentityFiles {
        cert: put("cert.pem", identity.certificate_pem),
        key: put("key.pem", identity.key_pem),
    };
    let (ca, wrong_ca) = (put("ca.pem", registry.ca_pem()), put("wrong.pem", other.ca_pem()));
    let proxy = FakeProxy::start();
    let start = |ca, identity| {
        larder_behind(&proxy, &registry, |settings| {
            settings.upstream.registries[0].endpoints[0].tls =
                TlsSettings { ca: Some(ca), identity, ..TlsSettings::default() };
        })
    };
    assert_pulls(&start(ca.clone(), Some(identity.clone())), &image);
    assert!(!proxy.targets().is_empty());
    assert!(proxy.targets().iter().all(|target| target == "registry.test:443"));
    registry.clear_requests();
    for (ca, identity) in [(wrong_ca, Some(identity)), (ca, None)] {
        let got = start(ca, identity).get(&manifest(REPOSITORY, "v1"));
        assert!(matches!(got.status, 502 | 503), "{got:?}");
    }
    assert!(registry.requests().is_empty());
}

#[test]
fn http_registry_is_reached_through_a_tunnel() {
    let registry = FakeRegistry::start();
    let image = registry.add_sample(REPOSITORY);
    let proxy = FakeProxy::start();
    let larder = larder_behind(&proxy, &registry, |_| {});
    assert_pulls(&larder, &image);
    assert!(proxy.requests().iter().all(|request| request.method == "CONNECT"));
    assert!(proxy.targets().iter().all(|target| target == "registry.test:80"));
    let [asked, ..] = &registry.requests()[..] else { panic!("requests") };
    assert_eq!(asked.header("host"), Some("registry.test"));
}

#[test]
fn layers_share_tunnels() {
    let registry = FakeRegistry::start();
    let image = registry.add_sample(REPOSITORY);
    let proxy = FakeProxy::start();
    let larder = larder_behind(&proxy, &registry, |_| {});
    assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
    assert_eq!(larder.get(&manifest(REPOSITORY, &image.digest())).status, 200);
    assert_eq!(larder.head(&blob(REPOSITORY, &image.layers()[0].digest)).status, 200);
    assert_eq!(proxy.targets().len(), 1);
}

#[test]
fn localhost_and_no_proxy_hosts_bypass_the_proxy() {
    let registry = FakeRegistry::start();
    let image = registry.add_sample(REPOSITORY);
    let proxy = FakeProxy::start();
    let larder = Larder::start_with(&registry, |settings| {
        settings.upstream.proxies = by_way_of(&proxy.url());
    });
    assert_pulls(&larder, &image);
    drop(larder);
    // Without the proxy the name does not resolve.
    let larder = larder_behind(&proxy, &registry, |settings| {
        settings.upstream.proxies.no_proxy = "other.io, .test".parse().unwrap();
    });
    let got = larder.get(&manifest(REPOSITORY, "v1"));
    assert!(matches!(got.status, 502..=504), "{got:?}");
    assert!(!got.text().contains("the proxy"), "{got:?}");
    assert_eq!(proxy.targets(), [""; 0]);
}

#[test]
fn proxy_credentials_go_to_the_proxy_only() {
    let registry = FakeRegistry::start();
    let image = registry.add_sample(REPOSITORY);
    registry.require_basic("robot", "letmein");
    let proxy = FakeProxy::start();
    proxy.demand("user", "p@ss");
    let larder = larder_behind(&proxy, &registry, |settings| {
        settings.upstream.proxies = by_way_of(&proxy.url_with("user", "p%40ss"));
        settings.upstream.registries[0].endpoints[0].credentials =
            Credentials::Password { user: "robot".into(), password: Secret::new("letmein") };
    });
    assert_pulls(&larder, &image);
    let expected = format!("Basic {}", base64(b"user:p@ss"));
    for request in proxy.requests() {
        assert_eq!(request.header("proxy-authorization"), Some(expected.as_str()));
        assert_eq!(request.header("authorization"), None);
    }
    let asked = registry.requests();
    assert!(asked.iter().any(|request| request.header("authorization").is_some()));
    assert!(asked.iter().all(|request| request.header("proxy-authorization").is_none()));
}

#[test]
fn refused_proxy_credentials_name_the_proxy_and_not_the_credentials() {
    let registry = FakeRegistry::start();
    registry.add_sample(REPOSITORY);
    let proxy = FakeProxy::start();
    proxy.demand("user", "right");
    for url in [proxy.url(), proxy.url_with("user", "hunter2")] {
        let larder = larder_behind(&proxy, &registry, |settings| {
            settings.upstream.proxies = by_way_of(&url);
        });
        let got = larder.get(&manifest(REPOSITORY, "v1"));
        assert_eq!(got.status, 502, "{got:?}");
        let words = format!("the proxy {} requires other credentials", proxy.url());
        assert!(got.text().contains(&words) && !got.text().contains("hunter2"), "{got:?}");
    }
    assert!(registry.requests().is_empty());
}

#[test]
fn errors_name_a_proxy_that_cannot_connect() {
    let registry = FakeRegistry::start();
    registry.add_sample(REPOSITORY);
    let proxy = FakeProxy::start();
    for status in [403, 502, 503, 504] {
        proxy.refuse(status);
        let larder = larder_behind(&proxy, &registry, |_| {});
        let got = larder.get(&manifest(REPOSITORY, "v1"));
        let words = format!("the proxy {} refuses to connect to it (status {status})", proxy.url());
        assert!(got.status == 502 && got.text().contains(&words), "{got:?}");
    }
}

#[test]
fn registry_settings_do_not_apply_to_an_https_proxy() {
    let registry = FakeRegistry::start_tls();
    registry.add_sample(REPOSITORY);
    // No trusted authority has signed its certificate.
    let proxy = FakeProxy::start_tls();
    let larder = larder_behind(&proxy, &registry, |settings| {
        settings.upstream.registries[0].endpoints[0].tls.insecure_skip_verify = true;
    });
    let got = larder.get(&manifest(REPOSITORY, "v1"));
    let words = format!("the proxy {} cannot be reached", proxy.url());
    assert!(got.status == 502 && got.text().contains(&words), "{got:?}");
    assert!(got.text().contains("certificate"), "says why: {got:?}");
    assert_eq!(proxy.targets(), [""; 0]);
}

#[test]
fn cached_images_do_not_need_the_proxy() {
    let registry = FakeRegistry::start();
    let image = registry.add_sample(REPOSITORY);
    let mut proxy = FakeProxy::start();
    let larder = larder_behind(&proxy, &registry, |_| {});
    assert_pulls(&larder, &image);
    image.blobs().iter().for_each(|each| larder.wait_until_cached(&each.digest));
    proxy.stop();
    larder.advance(seconds(3600));
    let got = larder.get(&manifest(REPOSITORY, "v1"));
    assert!(got.body == image.manifest() && got.header("warning").is_some(), "{got:?}");
    assert_pulls(&larder, &image);
    larder.advance(seconds(3600));
    let got = larder.get(&manifest(REPOSITORY, "v2"));
    let words = format!("the proxy {} cannot be reached", proxy.url());
    assert!(got.status == 502 && got.text().contains(&words), "{got:?}");
}

#[test]
fn redirects_are_followed_through_the_proxy() {
    let (registry, storage) = (FakeRegistry::start(), FakeRegistry::start());
    let content = bytes(5000, 1);
    let digest = registry.add_blob(REPOSITORY, &content);
    storage.add_file("/layer", "binary/octet-stream", &content);
    registry.fault(On::any_blob(), Fault::redirect_to("http://storage.test:9000/layer?sign=x"));
    let proxy = FakeProxy::start();
    proxy.route("storage.test:9000", storage.address());
    let larder = larder_behind(&proxy, &registry, |_| {});
    let got = larder.get(&blob(REPOSITORY, &digest));
    assert!(got.complete && got.body == content, "{got:?}");
    assert_eq!(proxy.targets(), ["registry.test:80", "storage.test:9000"]);
}

#[test]
fn proxy_does_not_bypass_the_address_guard() {
    let storage = FakeRegistry::start();
    storage.add_file("/x", "binary/octet-stream", b"a secret of the network's");
    for target in [
        "169.254.169.254",
        "127.0.0.1",
        "localhost",
        "10.0.0.1",
        "[fe80::1]",
        "[::ffff:169.254.169.254]",
        "0x7f.1",
        "2130706433",
        "intranet",
        "metadata.google.internal",
        "printer.local",
    ] {
        let registry = FakeRegistry::start();
        let digest = registry.add_blob(REPOSITORY, &bytes(100, 1));
        registry.fault(On::anything(), Fault::redirect_to(&format!("http://{target}/x")));
        let proxy = FakeProxy::start();
        proxy.route(&format!("{target}:80"), storage.address());
        let larder = larder_behind(&proxy, &registry, |_| {});
        for path in [manifest(REPOSITORY, "v1"), blob(REPOSITORY, &digest)] {
            let got = larder.get(&path);
            assert!(matches!(got.status, 404 | 502..=504), "{target}: {got:?}");
        }
        assert!(proxy.targets().iter().all(|asked| asked == "registry.test:80"), "{target}");
        assert_eq!(registry.requests().len(), 2, "{target}");
    }
    assert!(storage.requests().is_empty());
}

#[test]
fn unlisted_registries_with_public_names_are_reached_through_the_proxy() {
    let registry = FakeRegistry::start_tls();
    let proxy = FakeProxy::start();
    proxy.route("unlisted.test:443", registry.address());
    let larder = Larder::start_alone(|settings| {
        settings.upstream.unlisted = UnlistedRegistries::Allow;
        settings.upstream.proxies = by_way_of(&proxy.url());
    });
    let ask = |name: &str| larder.get(&format!("/v2/team/app/manifests/v1?ns={name}"));
    for name in ["intranet", "registry.internal", "10.0.0.1", "169.254.169.254", "127.0.0.1:5000"] {
        let got = ask(name);
        assert!(matches!(got.status, 404 | 502..=504), "{name}: {got:?}");
    }
    assert_eq!(proxy.targets(), [""; 0]);
    // No trusted authority has signed this certificate, and the tunnel does not change that.
    let got = ask("unlisted.test");
    assert!(got.status == 502 && got.text().contains("TLS"), "{got:?}");
    assert_eq!(proxy.targets(), ["unlisted.test:443"]);
    assert!(registry.requests().is_empty());
}

#[test]
fn unlisted_registries_and_their_redirects_are_limited_to_allowed_ports() {
    let proxy = FakeProxy::start();
    let mut larder = Larder::start_alone(|settings| {
        settings.upstream.unlisted = UnlistedRegistries::Allow;
        settings.upstream.proxies = by_way_of(&proxy.url());
    });
    let target = "/v2/team/app/manifests/v1?ns=unlisted.test%3A";
    for port in [22, 80, 5000, 8443] {
        let got = larder.get(&format!("{target}{port}"));
        assert_eq!((got.status, got.error_code().as_str()), (404, "NAME_UNKNOWN"), "{port}");
        assert!(got.text().contains("unlistedPorts"), "{got:?}");
    }
    assert_eq!(proxy.targets(), [""; 0]);
    larder.get(&format!("{target}443"));
    larder.restart_with(|settings| {
        settings.upstream.unlisted_ports = UnlistedPorts::new([5000]);
    });
    larder.get(&format!("{target}5000"));
    assert_eq!(larder.get(&format!("{target}443")).status, 404);
    assert_eq!(proxy.targets(), ["unlisted.test:443", "unlisted.test:5000"]);
}
