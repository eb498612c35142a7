//! Bearer tokens: obtained from the realm of the registry, sent to that registry only, never taken from a client.
//!
//! Proves protocol 3.3, 8.4, 10.1, 10.2, 10.3, 10.4, 10.5 and 11.3 (docs/protocol.md).

use larder::upstream::{Credentials, Secret};

use crate::support::larder::{Settings, blob, manifest, seconds};
use crate::support::{
    FakeRegistry, Fault, Image, Larder, On, TokenAnswer, TokenServer, reserve_port,
};

const REPOSITORY: &str = "team/app";

fn registry_with_image(tokens: &TokenServer) -> (FakeRegistry, Image) {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    registry.require_bearer(tokens);
    (registry, image)
}

#[test]
fn every_form_of_challenge_and_token_is_understood() {
    let new = TokenServer::new;
    let full = r#"Bearer realm="{realm}",service="{service}",scope="{scope}""#;
    for (name, tokens) in [
        ("plain", new()),
        ("access_token", new().access_token()),
        ("a lifetime", new().expires_in(300)),
        ("a lifetime of nothing", new().expires_in(0)),
        ("a negative lifetime", new().expires_in(-1)),
        ("a lifetime in quotes", new().expires_in_other_words("300".into())),
        ("a fraction of a lifetime", new().expires_in_other_words(299.5.into())),
        ("a lifetime in words", new().expires_in_other_words("an hour".into())),
        ("a lifetime that is null", new().expires_in_other_words(serde_json::Value::Null)),
        ("a relative realm", new().realm("/token")),
        ("a relative realm with dots", new().realm("../../../../token")),
        ("a realm with a query", new().realm_query("kept=yes&also=this")),
        ("Basic first, in one line", new().challenge(&format!("Basic realm=\"a, b\", {full}"))),
        ("Basic first, in its own line", new().challenge(&format!("Basic realm=\"x\"\n{full}"))),
        ("Basic last", new().challenge(&format!("{full}, Basic realm=\"x\""))),
        ("Negotiate first", new().challenge(&format!("Negotiate\nNTLM\n{full}"))),
        (
            "unquoted",
            new().challenge(r#"bearer REALM="{realm}", service={service}, scope="{scope}""#),
        ),
        ("no scope", new().challenge(r#"Bearer realm="{realm}",service="{service}""#)),
        ("no service", new().challenge(r#"Bearer realm="{realm}",scope="{scope}""#)),
    ] {
        let (registry, image) = registry_with_image(&tokens);
        let larder = Larder::start(&registry);
        let got = larder.get(&manifest(REPOSITORY, "v1"));
        assert!(got.body == image.manifest(), "{name}: {got:?}");
        for layer in image.layers() {
            assert!(larder.get(&blob(REPOSITORY, &layer.digest)).body == layer.bytes, "{name}");
        }
        assert_eq!(tokens.issued(), 1, "{name}: one token per repository");
        for asked in registry.requests_for("*", "/token") {
            assert_eq!(
                asked.header("authorization"),
                None,
                "{name}: anonymous requests have no empty Basic header"
            );
            let scope = format!("repository:{REPOSITORY}:pull");
            assert_eq!(asked.query_value("scope"), Some(scope), "{name}");
        }
    }
}

#[test]
fn revoked_token_is_replaced_once() {
    let tokens = TokenServer::new().expires_in(300);
    let (registry, image) = registry_with_image(&tokens);
    let larder = Larder::start(&registry);
    assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
    registry.expire_tokens();
    let layer = &image.layers()[0];
    assert!(larder.get(&blob(REPOSITORY, &layer.digest)).body == layer.bytes);
    assert_eq!(tokens.issued(), 2);
    assert_eq!(registry.count("GET", "/v2/*/blobs/*"), 2, "refused once, answered once");
}

#[test]
fn second_401_becomes_404_without_a_loop() {
    // Docker Hub does this for repositories that do not exist.
    let tokens = TokenServer::new();
    tokens.answer_with(TokenAnswer::Json(r#"{"token":"good-for-nothing"}"#.into()));
    let (registry, image) = registry_with_image(&tokens);
    let larder = Larder::start(&registry);
    let got = larder.get(&manifest(REPOSITORY, "v1"));
    assert_eq!((got.status, got.error_code().as_str()), (404, "MANIFEST_UNKNOWN"));
    assert_eq!((registry.count("GET", "/v2/*"), registry.count("GET", "/token")), (2, 1));
    let got = larder.get(&blob(REPOSITORY, &image.layers()[0].digest));
    assert_eq!((got.status, got.error_code().as_str()), (404, "BLOB_UNKNOWN"));
}

#[test]
fn failing_token_endpoint_is_not_reported_as_401() {
    for answer in [
        TokenAnswer::Refuse(401),
        TokenAnswer::Refuse(403),
        TokenAnswer::Refuse(404),
        TokenAnswer::Refuse(429),
        TokenAnswer::Refuse(500),
        TokenAnswer::Refuse(503),
        TokenAnswer::Html,
        TokenAnswer::Oversized(1 << 20),
        TokenAnswer::Json("{}".into()),
        TokenAnswer::Json(r#"{"token":"a\r\nX-Evil: b"}"#.into()),
    ] {
        let tokens = TokenServer::new();
        tokens.answer_with(answer.clone());
        let (registry, image) = registry_with_image(&tokens);
        let larder = Larder::start(&registry);
        let got = larder.get(&manifest(REPOSITORY, "v1"));
        assert!(matches!(got.status, 403 | 404 | 429 | 502..=504), "{answer:?}: {got:?}");
        assert_eq!(got.header("www-authenticate"), None, "{answer:?}");
        let got = larder.get(&blob(REPOSITORY, &image.layers()[0].digest));
        assert!(matches!(got.status, 404 | 429 | 502..=504), "{answer:?}: {got:?}");
        tokens.answer_with(TokenAnswer::Issue);
        larder.advance(seconds(60));
        assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200, "{answer:?}");
    }
}

#[test]
fn upstream_401_is_never_passed_on() {
    let registry = FakeRegistry::start();
    let digest = registry.add(REPOSITORY, "v1", &Image::sample("v1"));
    registry.require_basic("lea", "secret");
    let larder = Larder::start(&registry);
    for path in [
        manifest(REPOSITORY, "v1"),
        manifest(REPOSITORY, &digest),
        blob(REPOSITORY, &digest),
        format!("/v2/{REPOSITORY}/tags/list"),
        format!("/v2/{REPOSITORY}/referrers/{digest}"),
    ] {
        for method in ["GET", "HEAD"] {
            let got = larder.request(method, &path, &[]);
            assert!(matches!(got.status, 403 | 404), "{method} {path}: {got:?}");
            assert_eq!(got.header("www-authenticate"), None, "{method} {path}");
        }
    }
}

#[test]
fn client_credentials_and_headers_are_not_forwarded() {
    let tokens = TokenServer::new();
    let (registry, image) = registry_with_image(&tokens);
    let larder = Larder::start(&registry);
    let headers = [
        ("Authorization", "Bearer of-the-client"),
        ("Cookie", "session=of-the-client"),
        ("Proxy-Authorization", "Basic eDp5"),
        ("X-Forwarded-For", "10.1.2.3"),
        ("User-Agent", "of-the-client"),
    ];
    for path in [manifest(REPOSITORY, "v1"), blob(REPOSITORY, &image.layers()[0].digest)] {
        assert_eq!(larder.request("GET", &path, &headers).status, 200);
    }
    let tags = format!("/v2/{REPOSITORY}/tags/list");
    assert_eq!(larder.request("GET", &tags, &headers).status, 200);
    for request in registry.requests() {
        let all = format!("{:?}", request.headers);
        assert!(!all.contains("of-the-client") && !all.contains("eDp5"), "{request:?}");
        assert!(!all.contains("10.1.2.3"), "{request:?}");
    }
}

/// A registry whose realm is on another host, `localhost`.
fn registry_with_a_realm_of_another_owner() -> (FakeRegistry, FakeRegistry) {
    let (registry, issuer) = (FakeRegistry::start(), FakeRegistry::start());
    let port = issuer.address().port();
    let realm = format!("http://localhost:{port}/token");
    let tokens = TokenServer::new().realm(&realm);
    registry.add_sample(REPOSITORY);
    issuer.serve_tokens(&tokens);
    registry.require_bearer_from(&tokens, &issuer);
    (registry, issuer)
}

fn log_in(settings: &mut Settings, user: &str, password: &str) {
    settings.upstream.registries[0].endpoints[0].credentials =
        Credentials::Password { user: user.into(), password: Secret::new(password) };
}

#[test]
fn realm_of_another_owner_is_used_for_anonymous_tokens() {
    let (registry, issuer) = registry_with_a_realm_of_another_owner();
    let larder = Larder::start(&registry);
    assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
    let [asked] = &issuer.requests()[..] else { panic!("one token") };
    assert_eq!(asked.header("authorization"), None);
}

#[test]
fn realm_redirect_within_its_origin_keeps_the_login() {
    for location in
        ["/token?moved=1&{query}", "token?moved=1&{query}", "/x/../token?moved=1&{query}"]
    {
        let tokens = TokenServer::new().user("lea", "secret").redirects_to(location);
        let (registry, image) = registry_with_image(&tokens);
        let larder = Larder::start_with(&registry, |settings| log_in(settings, "lea", "secret"));
        let got = larder.get(&manifest(REPOSITORY, "v1"));
        assert!(got.body == image.manifest(), "{location}: {got:?}");
        assert_eq!(tokens.issued(), 1, "{location}");
    }
}

#[test]
fn realm_redirect_to_another_origin_or_in_a_loop_yields_no_token() {
    let other = FakeRegistry::start();
    for location in [other.url("/token?moved=1&{query}"), "/token?{query}".to_owned()] {
        let tokens = TokenServer::new().user("lea", "secret").redirects_to(&location);
        let (registry, _) = registry_with_image(&tokens);
        let larder = Larder::start_with(&registry, |settings| log_in(settings, "lea", "secret"));
        let got = larder.get(&manifest(REPOSITORY, "v1"));
        assert!(matches!(got.status, 403 | 502), "{location}: {got:?}");
        assert!(registry.count("*", "/token") <= 5, "{location}");
    }
    assert_eq!(other.connection_count(), 0);
}

#[test]
fn basic_is_used_if_both_schemes_are_offered_and_the_token_is_refused() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let tokens = TokenServer::new();
    registry.require_basic_and_offer_bearer(&tokens, "lea", "secret");
    let larder = Larder::start_with(&registry, |settings| log_in(settings, "lea", "secret"));
    assert!(larder.get(&manifest(REPOSITORY, "v1")).body == image.manifest());
    let asked = registry.requests().len();
    for layer in image.layers() {
        assert!(larder.get(&blob(REPOSITORY, &layer.digest)).body == layer.bytes);
    }
    assert_eq!(registry.requests().len(), asked + image.layers().len(), "no further challenges");

    let registry = FakeRegistry::start();
    registry.require_basic_and_offer_bearer(&tokens, "lea", "another");
    let larder = Larder::start_with(&registry, |settings| log_in(settings, "lea", "secret"));
    let got = larder.get(&manifest(REPOSITORY, "v1"));
    assert!(matches!(got.status, 403 | 404), "{got:?}");
}

#[test]
fn basic_is_used_if_both_schemes_are_offered_and_the_token_service_is_down() {
    let (_reserved, closed) = reserve_port();
    for (what, realm, fault) in [
        ("500", None, Some(Fault::status(500))),
        ("502", None, Some(Fault::status(502))),
        ("503", None, Some(Fault::status(503))),
        ("no response", None, Some(Fault::CloseBeforeHead)),
        ("half a response", None, Some(Fault::CutAfter(3))),
        ("nobody listens", Some(format!("http://{closed}/token")), None),
    ] {
        let (registry, image) = FakeRegistry::with_image(REPOSITORY);
        let tokens = TokenServer::new();
        let tokens = realm.iter().fold(tokens, |tokens, realm| tokens.realm(realm));
        registry.require_basic_and_offer_bearer(&tokens, "lea", "secret");
        fault.into_iter().for_each(|fault| registry.fault(On::token(), fault));
        let larder = Larder::start_with(&registry, |settings| log_in(settings, "lea", "secret"));
        let got = larder.get(&manifest(REPOSITORY, "v1"));
        assert!(got.body == image.manifest(), "{what}: {got:?}");
        for layer in image.layers() {
            let got = larder.get(&blob(REPOSITORY, &layer.digest));
            assert!(got.body == layer.bytes, "{what}: {got:?}");
        }
    }
}

#[test]
fn realm_of_another_owner_gets_no_login() {
    let (registry, issuer) = registry_with_a_realm_of_another_owner();
    let larder = Larder::start_with(&registry, |settings| log_in(settings, "lea", "secret"));
    let got = larder.get(&manifest(REPOSITORY, "v1"));
    assert_eq!(got.status, 502, "{got:?}");
    assert!(got.text().contains("realm"), "says what is wrong: {got:?}");
    assert_eq!(issuer.connection_count(), 0);
}

#[test]
fn realm_of_an_https_registry_must_be_https() {
    let (registry, issuer) = (FakeRegistry::start_tls(), FakeRegistry::start());
    let tokens = TokenServer::new();
    registry.add_sample(REPOSITORY);
    registry.require_bearer_from(&tokens, &issuer);
    let larder = Larder::start_with(&registry, |settings| {
        settings.upstream.registries[0].endpoints[0].tls.insecure_skip_verify = true;
    });
    let got = larder.get(&manifest(REPOSITORY, "v1"));
    assert_eq!(got.status, 502, "{got:?}");
    assert_eq!(issuer.connection_count(), 0);
}
