//! Tests of the fake registry's authentication, redirects and TLS; continues `selftest.rs`.

use super::client::{get, request};
use super::selftest::{REPOSITORY, blob_path, panic_of, registry_with_blob};
use super::{Connection, FakeRegistry, Fault, On, TokenAnswer, TokenServer, base64, bytes};

#[test]
fn bearer_token_is_required_issued_and_revoked() {
    let (registry, _, digest) = registry_with_blob();
    let tokens = TokenServer::new().access_token().expires_in(300).realm_query("kept=yes");
    registry.require_bearer(&tokens);
    let path = blob_path(&digest);
    let refused = get(registry.address(), &path);
    let realm = registry.url("/token?kept=yes");
    let scope = format!("repository:{REPOSITORY}:pull");
    let challenge = format!("Bearer realm=\"{realm}\",service=\"fake-registry\",scope=\"{scope}\"");
    assert_eq!((refused.status, refused.header("www-authenticate")), (401, Some(&*challenge)));

    let lost = get(registry.address(), &format!("/token?service=fake-registry&scope={scope}"));
    assert_eq!(lost.status, 400);
    let target = format!("/token?kept=yes&service=fake-registry&scope={scope}");
    let issued = get(registry.address(), &target).json();
    assert_eq!(issued["expires_in"], 300);
    let token = format!("Bearer {}", issued["access_token"].as_str().expect("a token"));
    let shown = [("Authorization", token.as_str())];
    let ask = |path: &str| request(registry.address(), "GET", path, &shown);
    assert_eq!(ask(&path).status, 200);
    assert_eq!(ask("/v2/").status, 200);
    assert_eq!(
        ask("/v2/other/tags/list").status,
        401,
        "the token has the scope of another repository"
    );
    registry.expire_tokens();
    let refused = ask(&path);
    assert_eq!(refused.status, 401);
    assert!(refused.header("www-authenticate").is_some_and(|line| line.contains("invalid_token")));
    assert_eq!((tokens.issued(), registry.count("GET", "/token")), (1, 2));
}

#[test]
fn token_server_can_be_another_registry_and_can_misbehave() {
    let (registry, issuer) = (FakeRegistry::start(), FakeRegistry::start());
    let several = "Negotiate, Basic realm=\"a, b\", Bearer realm=\"{realm}\"\nDigest realm=\"c\"";
    let tokens = TokenServer::new().challenge(several).user("lea", "secret");
    registry.require_bearer_from(&tokens, &issuer);
    let refused = get(registry.address(), "/v2/");
    let bearer = format!("Bearer realm=\"{}\"", issuer.url("/token"));
    let lines = [format!("Negotiate, Basic realm=\"a, b\", {bearer}"), "Digest realm=\"c\"".into()];
    assert_eq!(refused.headers_named("www-authenticate"), lines);

    assert_eq!(get(issuer.address(), "/token").status, 401);
    let basic = format!("Basic {}", base64(b"lea:secret"));
    let shown = [("Authorization", basic.as_str())];
    let ask = || request(issuer.address(), "GET", "/token", &shown);
    assert!(ask().json()["token"].is_string());
    tokens.answer_with(TokenAnswer::Refuse(403));
    assert_eq!(ask().status, 403);
    tokens.answer_with(TokenAnswer::Html);
    assert_eq!((ask().status, ask().header("content-type")), (200, Some("text/html")));
    tokens.answer_with(TokenAnswer::Oversized(1 << 20));
    assert!(ask().body.len() > 1 << 20);
    issuer.fault(On::token().times(1), Fault::status(500));
    assert_eq!(ask().status, 500);
}

#[test]
fn refresh_token_is_posted_as_form_data() {
    let registry = FakeRegistry::start();
    registry.serve_tokens(&TokenServer::new().refresh_token("r+1"));
    for (form, status) in [("refresh_token=r%2B1&scope=a+b", 200), ("refresh_token=r", 401)] {
        let mut connection = Connection::open(registry.address());
        let length = form.len();
        let post = format!("POST /token HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{form}");
        connection.send_raw(post.as_bytes());
        assert_eq!(connection.read_response().status, status);
    }
    assert_eq!(registry.requests()[1].body, b"refresh_token=r");
}

#[test]
fn basic_authentication_admits_the_right_user_only() {
    let registry = FakeRegistry::start();
    registry.require_basic("lea", "secret");
    let refused = get(registry.address(), "/v2/");
    assert_eq!((refused.status, refused.error_code().as_str()), (401, "UNAUTHORIZED"));
    assert!(refused.header("www-authenticate").is_some_and(|line| line.starts_with("Basic ")));
    for (user, status) in [("lea:secret", 200), ("lea:wrong", 401)] {
        let basic = format!("Basic {}", base64(user.as_bytes()));
        let got = request(registry.address(), "GET", "/v2/", &[("Authorization", &basic)]);
        assert_eq!(got.status, status);
    }
}

#[test]
fn redirect_target_ignores_the_signature() {
    let (registry, storage) = (FakeRegistry::start(), FakeRegistry::start());
    let blob = bytes(1000, 3);
    let digest = registry.add_blob(REPOSITORY, &blob);
    storage.add_file("/bucket/layer", "binary/octet-stream", &blob);
    let location = storage.url("/bucket/layer?signature=abc");
    registry.fault(On::get_blob(&digest), Fault::redirect_to(&location));
    let answer = get(registry.address(), &blob_path(&digest));
    assert_eq!(answer.header("location"), Some(location.as_str()));
    let range = [("Range", "bytes=990-")];
    let got = request(storage.address(), "GET", "/bucket/layer?signature=abc", &range);
    assert_eq!((got.status, got.body.as_slice()), (206, &blob[990..]));
    assert_eq!(storage.requests()[0].query_value("signature").as_deref(), Some("abc"));
    assert!(registry.requests()[0].sequence < storage.requests()[0].sequence);
}

#[test]
fn tls_uses_a_private_authority() {
    let registry = FakeRegistry::start_tls();
    for name in ["127.0.0.1", "localhost"] {
        let mut connection =
            Connection::open_tls(registry.address(), name, &registry.ca_pem(), None);
        assert_eq!((connection.get("/v2/").status, connection.get("/v2/").status), (200, 200));
    }
    let stranger = FakeRegistry::start_tls();
    let ca = stranger.ca_pem();
    let text = panic_of(|| {
        Connection::open_tls(registry.address(), "localhost", &ca, None).get("/v2/");
    });
    assert!(text.contains("certificate"), "{text}");
    assert_eq!(registry.requests().len(), 4);
}

#[test]
fn client_certificate_is_required() {
    let registry = FakeRegistry::start_mtls();
    let (address, ca) = (registry.address(), registry.ca_pem());
    let identity = registry.client_identity("node-1");
    let mut known = Connection::open_tls(address, "localhost", &ca, Some(&identity));
    assert_eq!(known.get("/v2/").status, 200);
    panic_of(|| {
        Connection::open_tls(address, "localhost", &ca, None).get("/v2/");
    });
    assert_eq!(registry.requests().len(), 1);
}
