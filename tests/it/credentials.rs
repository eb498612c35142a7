//! Credentials go to their registry and to its token service only.
//!
//! Proves protocol 10.1, 10.2, 10.4, 11.2 and 11.3 (docs/protocol.md).

use std::fs;

use larder::upstream::{Credentials, Secret};

use crate::support::larder::{Settings, blob, manifest, seconds};
use crate::support::{FakeRegistry, Fault, Larder, On, TokenServer, base64};

const REPOSITORY: &str = "team/app";

fn password(user: &str, password: &str) -> Credentials {
    Credentials::Password { user: user.into(), password: Secret::new(password) }
}

fn set(credentials: Credentials) -> impl FnOnce(&mut Settings) {
    move |settings| settings.upstream.registries[0].endpoints[0].credentials = credentials
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", base64(format!("{user}:{password}").as_bytes()))
}

#[test]
fn password_is_sent_after_the_first_challenge_and_then_with_every_request() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    registry.require_basic("robot$x", "p:w ü");
    let larder = Larder::start_with(&registry, set(password("robot$x", "p:w ü")));
    assert!(larder.get(&manifest(REPOSITORY, "v1")).body == image.manifest());
    let asked = registry.requests();
    assert_eq!(asked[0].header("authorization"), None, "no challenge yet");
    registry.clear_requests();
    for layer in image.layers() {
        assert!(larder.get(&blob(REPOSITORY, &layer.digest)).body == layer.bytes);
    }
    let header = basic("robot$x", "p:w ü");
    for asked in registry.requests() {
        assert_eq!(asked.header("authorization"), Some(header.as_str()), "{asked:?}");
    }
}

#[test]
fn password_goes_to_the_token_service_and_the_token_to_the_registry() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let tokens = TokenServer::new().user("u", "pw");
    registry.require_bearer(&tokens);
    let larder = Larder::start_with(&registry, set(password("u", "pw")));
    assert!(larder.get(&manifest(REPOSITORY, "v1")).body == image.manifest());
    for asked in registry.requests() {
        let shown = asked.header("authorization").unwrap_or_default().to_owned();
        match asked.path.as_str() {
            "/token" => assert_eq!(shown, basic("u", "pw")),
            _ => assert!(!shown.starts_with("Basic"), "{asked:?}"),
        }
    }
}

#[test]
fn identity_token_is_exchanged_by_post() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let tokens = TokenServer::new().refresh_token("refresh-me");
    registry.require_bearer(&tokens);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    let config =
        format!(r#"{{"auths":{{"{}":{{"identitytoken":"refresh-me"}}}}}}"#, registry.host());
    fs::write(&path, config).unwrap();
    let larder = Larder::start_with(&registry, set(Credentials::DockerConfig { path }));
    assert!(larder.get(&manifest(REPOSITORY, "v1")).body == image.manifest());
    let asked = &registry.requests_for("*", "/token")[0];
    assert_eq!(asked.method, "POST");
    let form = String::from_utf8(asked.body.clone()).unwrap();
    assert!(form.contains("grant_type=refresh_token") && form.contains("refresh-me"), "{form}");
}

#[test]
fn wrong_credentials_fail_fast_without_a_loop() {
    let (registry, _) = FakeRegistry::with_image(REPOSITORY);
    registry.require_basic("u", "right");
    let larder = Larder::start_with(&registry, set(password("u", "wrong")));
    let got = larder.get(&manifest(REPOSITORY, "v1"));
    assert_eq!((got.status, got.error_code().as_str()), (403, "DENIED"), "{got:?}");
    assert!(!got.text().contains("wrong"));
    assert_eq!(registry.requests().len(), 2, "without, with, and no third time");
    let tokens = TokenServer::new().user("u", "right");
    registry.require_bearer(&tokens);
    registry.clear_requests();
    let got = larder.get(&manifest(REPOSITORY, "v2"));
    assert_eq!(got.status, 403, "{got:?}");
    assert_eq!(registry.requests().len(), 2, "the registry, its token service, and no more");
}

#[test]
fn changed_password_file_applies_to_the_next_request() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    registry.require_basic("u", "new");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("password");
    fs::write(&path, "old\n").unwrap();
    let credentials = Credentials::PasswordFile { user: "u".into(), path: path.clone() };
    let larder = Larder::start_with(&registry, set(credentials));
    assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 403);
    fs::write(&path, "new\n").unwrap();
    assert!(larder.get(&manifest(REPOSITORY, "v1")).body == image.manifest());
}

#[test]
fn errors_name_an_unreadable_credentials_file() {
    let (registry, _) = FakeRegistry::with_image(REPOSITORY);
    registry.require_basic("u", "pw");
    let path = "/nonexistent/password".into();
    let credentials = Credentials::PasswordFile { user: "u".into(), path };
    let larder = Larder::start_with(&registry, set(credentials));
    let got = larder.get(&manifest(REPOSITORY, "v1"));
    assert!(got.text().contains("/nonexistent/password"), "{got:?}");
}

#[test]
fn fixed_token_is_sent_unchanged() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let larder = Larder::start_with(&registry, set(Credentials::Bearer(Secret::new("abc"))));
    assert!(larder.get(&manifest(REPOSITORY, "v1")).body == image.manifest());
    assert_eq!(registry.requests()[0].header("authorization"), Some("Bearer abc"));
}

#[test]
fn credentials_do_not_follow_a_redirect() {
    let ((registry, image), other) = (FakeRegistry::with_image(REPOSITORY), FakeRegistry::start());
    registry.require_basic("u", "pw");
    let layer = &image.layers()[0];
    other.add_file("/store/layer", "application/octet-stream", &layer.bytes);
    let target = other.url("/store/layer?signature=x");
    registry.fault(On::get_blob(&layer.digest), Fault::redirect_to(&target));
    let larder = Larder::start_with(&registry, set(password("u", "pw")));
    assert!(larder.get(&blob(REPOSITORY, &layer.digest)).body == layer.bytes);
    assert!(other.requests().iter().all(|asked| asked.header("authorization").is_none()));
}

#[test]
fn password_is_not_sent_to_a_token_realm_of_another_owner() {
    let (registry, _) = FakeRegistry::with_image(REPOSITORY);
    let tokens = TokenServer::new().user("u", "pw").realm("http://tokens.elsewhere.example/token");
    registry.require_bearer(&tokens);
    let larder = Larder::start_with(&registry, set(password("u", "pw")));
    let got = larder.get(&manifest(REPOSITORY, "v1"));
    assert!(got.status >= 400 && got.text().contains("another owner"), "{got:?}");
}

#[test]
fn images_pulled_with_credentials_are_served_after_they_expire() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    registry.require_basic("u", "pw");
    let larder = Larder::start_with(&registry, set(password("u", "pw")));
    larder.get(&manifest(REPOSITORY, "v1"));
    registry.require_basic("u", "another");
    larder.advance(seconds(301));
    let got = larder.get(&manifest(REPOSITORY, "v1"));
    assert!(got.body == image.manifest(), "{got:?}");
    assert!(got.header("warning").is_some(), "a stale response has a warning");
}
