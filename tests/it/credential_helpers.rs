//! Credential helpers: run once for many requests, run again after a refusal, and never trusted to work.
//!
//! Proves protocol 10.6 (docs/protocol.md).

use std::fs;
use std::path::PathBuf;

use larder::upstream::{Credentials, HelperSettings};

use crate::support::client::get;
use crate::support::larder::{Settings, blob, manifest, seconds};
use crate::support::process::Process;
use crate::support::{FakeRegistry, Image, Larder, Response, TokenServer, base64, script};

const REPOSITORY: &str = "team/app";

/// A helper that records each start and prints the content of a file.
struct Helper {
    directory: tempfile::TempDir,
}

impl Helper {
    fn saying(json: &str) -> Helper {
        let helper = Helper::doing(r#"cat > "$0.server"; echo . >> "$0.starts"; cat "$0.says""#);
        helper.say(json);
        helper
    }

    fn doing(text: &str) -> Helper {
        let helper = Helper { directory: tempfile::tempdir().expect("a directory") };
        script(&helper.path(), text);
        helper
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("docker-credential-test")
    }

    fn say(&self, json: &str) {
        fs::write(self.path().with_extension("says"), json).expect("a file can be written");
    }

    fn starts(&self) -> usize {
        fs::read_to_string(self.path().with_extension("starts")).unwrap_or_default().lines().count()
    }

    fn settings(&self) -> HelperSettings {
        let path = self.path();
        HelperSettings::of(path.to_str().expect("a plain path").parse().expect("an absolute path"))
    }

    fn set(&self) -> impl FnOnce(&mut Settings) + use<> {
        set(Credentials::Helper(self.settings()))
    }
}

fn set(credentials: Credentials) -> impl FnOnce(&mut Settings) {
    move |settings| settings.upstream.registries[0].endpoints[0].credentials = credentials
}

fn login(user: &str, secret: &str) -> String {
    format!(r#"{{"ServerURL":"x","Username":"{user}","Secret":"{secret}"}}"#)
}

#[test]
fn credential_helper_runs_once_per_image() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    registry.require_basic("u", "pw");
    let helper = Helper::saying(&login("u", "pw"));
    let larder = Larder::start_with(&registry, helper.set());
    assert!(larder.get(&manifest(REPOSITORY, "v1")).body == image.manifest());
    for layer in image.layers() {
        assert!(larder.get(&blob(REPOSITORY, &layer.digest)).body == layer.bytes);
    }
    assert_eq!(helper.starts(), 1);
    let asked = fs::read_to_string(helper.path().with_extension("server")).unwrap();
    assert_eq!(asked, registry.host(), "the helper reads the registry from standard input");
}

#[test]
fn credential_helper_does_not_run_for_a_registry_without_authentication() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let helper = Helper::saying("");
    let larder = Larder::start_with(&registry, helper.set());
    assert!(larder.get(&manifest(REPOSITORY, "v1")).body == image.manifest());
    assert_eq!(helper.starts(), 0);
}

#[test]
fn refused_login_is_requested_from_the_helper_once_more() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    registry.require_basic("u", "old");
    let helper = Helper::saying(&login("u", "old"));
    let larder = Larder::start_with(&registry, helper.set());
    assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
    registry.require_basic("u", "new");
    helper.say(&login("u", "new"));
    registry.clear_requests();
    let layer = &image.layers()[0];
    assert!(larder.get(&blob(REPOSITORY, &layer.digest)).body == layer.bytes);
    assert_eq!((helper.starts(), registry.requests().len()), (2, 2));
}

#[test]
fn login_that_stays_refused_fails_fast_without_a_loop() {
    let (registry, _) = FakeRegistry::with_image(REPOSITORY);
    registry.require_basic("u", "right");
    let helper = Helper::saying(&login("u", "wrong"));
    let larder = Larder::start_with(&registry, helper.set());
    for tag in ["v1", "v2", "v3"] {
        let got = larder.get(&manifest(REPOSITORY, tag));
        assert_eq!((got.status, got.error_code().as_str()), (403, "DENIED"), "{got:?}");
    }
    assert_eq!(helper.starts(), 2, "once, once more, and then not again for a while");
    assert_eq!(registry.requests().len(), 6, "without and with, and no third time");
}

#[test]
fn refused_token_request_is_repeated_with_a_new_login() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let tokens = TokenServer::new().user("u", "new");
    registry.require_bearer(&tokens);
    let text = r#"echo . >> "$0.starts"; s=old; [ -e "$0.asked" ] && s=new; : > "$0.asked"
                  echo "{\"Username\":\"u\",\"Secret\":\"$s\"}""#;
    let helper = Helper::doing(text);
    let larder = Larder::start_with(&registry, helper.set());
    assert!(larder.get(&manifest(REPOSITORY, "v1")).body == image.manifest());
    assert_eq!((helper.starts(), registry.count("GET", "/token")), (2, 2));
}

#[test]
fn identity_token_of_a_helper_is_exchanged_by_post() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let tokens = TokenServer::new().refresh_token("refresh-me");
    registry.require_bearer(&tokens);
    let helper = Helper::saying(&login("<token>", "refresh-me"));
    let larder = Larder::start_with(&registry, helper.set());
    assert!(larder.get(&manifest(REPOSITORY, "v1")).body == image.manifest());
    assert_eq!(registry.requests_for("*", "/token")[0].method, "POST");
}

#[test]
fn helper_without_a_login_means_anonymous_access() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    registry.require_bearer(&TokenServer::new());
    let helper = Helper::doing("echo credentials not found in native keychain; exit 1");
    let larder = Larder::start_with(&registry, helper.set());
    assert!(larder.get(&manifest(REPOSITORY, "v1")).body == image.manifest());
    for asked in registry.requests_for("*", "/token") {
        assert_eq!(asked.header("authorization"), None);
    }
}

#[test]
fn errors_name_the_failing_helper_and_omit_its_output() {
    let hang = r#"mkfifo "$0.gate"; cat "$0.gate""#;
    for (text, words) in [
        (r#"echo '{"Username":"u","Secret":"hunter2"}'; exit 1"#, "failed"),
        ("echo hunter2", "did not print JSON"),
        ("yes hunter2", "more than"),
        (hang, "was killed"),
    ] {
        let (registry, _) = FakeRegistry::with_image(REPOSITORY);
        registry.require_basic("u", "pw");
        let helper = Helper::doing(text);
        // Only the hanging helper needs time to pass.
        let timeout = if text == hang { seconds(1) / 5 } else { seconds(10) };
        let settings = HelperSettings { timeout, ..helper.settings() };
        let larder = Larder::start_with(&registry, set(Credentials::Helper(settings)));
        let got = larder.get(&manifest(REPOSITORY, "v1"));
        assert_names(&got, words);
        assert!(got.text().contains("docker-credential-test"), "{got:?}");
        assert!(matches!(got.status, 502..=504), "a temporary failure: {got:?}");
    }
}

#[test]
fn errors_name_a_missing_helper() {
    let (registry, _) = FakeRegistry::with_image(REPOSITORY);
    registry.require_basic("u", "pw");
    let program = "/nonexistent/docker-credential-x".parse().unwrap();
    let credentials = Credentials::Helper(HelperSettings::of(program));
    let larder = Larder::start_with(&registry, set(credentials));
    let got = larder.get(&manifest(REPOSITORY, "v1"));
    assert_names(&got, "/nonexistent/docker-credential-x");
    assert_eq!(got.status, 403, "a permanent failure: {got:?}");
}

#[test]
fn cached_images_are_served_while_the_helper_fails() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    registry.require_basic("u", "old");
    let helper = Helper::saying(&login("u", "old"));
    let larder = Larder::start_with(&registry, helper.set());
    larder.get(&manifest(REPOSITORY, "v1"));
    registry.require_basic("u", "new");
    helper.say("no JSON");
    larder.advance(seconds(301));
    let got = larder.get(&manifest(REPOSITORY, "v1"));
    assert!(got.body == image.manifest() && got.header("warning").is_some(), "{got:?}");
}

/// A server with a `config.json` that names the helper for its registry. The directory of the helper is in `PATH`.
fn serve_by_docker_config(
    registry: &FakeRegistry,
    helper: &Helper,
    key: &str,
    name: &str,
) -> Process {
    let value = match key {
        "credHelpers" => serde_json::json!({ registry.host(): name }),
        _ => serde_json::json!(name),
    };
    let (directory, path) = (helper.directory.path(), helper.directory.path().join("config.json"));
    let auths = serde_json::json!({ registry.host(): {} });
    fs::write(&path, serde_json::json!({ "auths": auths, key: value }).to_string())
        .expect("a file can be written");
    let host = registry.host();
    let entry =
        format!("{{name: \"{host}\", scheme: http, auth: {{dockerConfig: {}}}}}", path.display());
    let search = std::env::var("PATH").unwrap_or_default();
    let search = format!("{}:{search}", directory.display());
    Process::serve_with(directory, &host, &entry, &[("PATH", &search)])
}

#[test]
fn docker_config_helpers_apply_to_one_registry_or_to_all() {
    for key in ["credHelpers", "credsStore"] {
        let (registry, image) = FakeRegistry::with_image(REPOSITORY);
        registry.require_basic("u", "pw");
        let helper = Helper::saying(&login("u", "pw"));
        let larder = serve_by_docker_config(&registry, &helper, key, "test");
        let got = get(larder.address, &manifest(REPOSITORY, "v1"));
        assert!(got.body == image.manifest(), "{key}: {got:?}");
        let layer = &image.layers()[0];
        assert!(get(larder.address, &blob(REPOSITORY, &layer.digest)).body == layer.bytes, "{key}");
        assert_eq!(helper.starts(), 1, "{key}");
    }
}

#[test]
fn docker_config_cannot_start_a_program_by_path() {
    for key in ["credHelpers", "credsStore"] {
        let (registry, _) = FakeRegistry::with_image(REPOSITORY);
        registry.require_basic("u", "pw");
        let helper = Helper::saying(&login("u", "pw"));
        let path = helper.path().display().to_string();
        let elsewhere = format!("x/../../../../../../../..{path}");
        for name in [&path, &elsewhere, "./docker-credential-test", "-test", "test\0", "te st"] {
            let larder = serve_by_docker_config(&registry, &helper, key, name);
            let got = get(larder.address, &manifest(REPOSITORY, "v1"));
            assert_eq!((got.status, got.error_code().as_str()), (403, "DENIED"), "{name}: {got:?}");
            assert!(got.text().contains("config.json: a credential helper is a name"), "{got:?}");
        }
        assert_eq!(helper.starts(), 0, "{key}");
    }
}

#[test]
fn logins_may_differ_by_repository_path() {
    let registry = FakeRegistry::start();
    let repositories = ["team-a", "team-a/base/x", "team-ab", "team-b/x"];
    for repository in repositories {
        registry.add(repository, "v1", &Image::sample("v1"));
    }
    let helper = Helper::saying(&login("helped", "pw"));
    let password = |user: &str| Credentials::Password {
        user: user.into(),
        password: larder::upstream::Secret::new("pw"),
    };
    let parts = vec![
        ("team-a".parse().unwrap(), password("a")),
        ("team-a/base".parse().unwrap(), Credentials::Helper(helper.settings())),
    ];
    let otherwise = Box::new(password("other"));
    let credentials = Credentials::ByRepository { parts, otherwise };
    let larder = Larder::start_with(&registry, set(credentials));
    for (repository, user) in repositories.iter().zip(["a", "helped", "other", "other"]) {
        registry.require_basic(user, "pw");
        registry.clear_requests();
        assert_eq!(larder.get(&manifest(repository, "v1")).status, 200, "{repository}");
        let shown = format!("Basic {}", base64(format!("{user}:pw").as_bytes()));
        let asked = registry.requests();
        let last = asked.last().and_then(|asked| asked.header("authorization"));
        assert_eq!(last, Some(shown.as_str()), "{repository}");
    }
}

/// Asserts that the response is an error with these words and without a secret.
#[track_caller]
fn assert_names(got: &Response, words: &str) {
    assert!(got.status >= 400 && got.text().contains(words), "{got:?}");
    assert!(!got.text().contains("hunter2"), "{got:?}");
}
