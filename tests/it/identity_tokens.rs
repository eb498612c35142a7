//! Tokens of an issuer as passwords: `serverAuthConfig.oidc`. Proves docs/configuration.md, "Tokens".

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{SystemTime, UNIX_EPOCH};

use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};

use crate::support::client::{get, request};
use crate::support::larder::{blob, manifest};
use crate::support::process::{Process, larder, run};
use crate::support::{FakeRegistry, Image, Response, base64, replace_file};

const OURS: &str = "team-a/app";
const THEIRS: &str = "team-b/app";
const NAME: &str = "registry.test";
/// Output of `htpasswd -nbB -C 4` for demo:secret.
const DEMO: &str = "demo:$2y$04$5TeKT.s9FsTxS3i9dnaT.eeZsnvHkTXDfq6YA/Pb9LXeQk3bD5R2m\n";
const DOCUMENT: &str = "/.well-known/openid-configuration";
const KEYS: &str = "/keys";

fn url_base64(bytes: &[u8]) -> String {
    base64(bytes).replace('+', "-").replace('/', "_").trim_end_matches('=').to_owned()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970").as_secs()
}

/// A key of an issuer.
struct Key {
    kid: &'static str,
    pair: Ed25519KeyPair,
}

impl Key {
    fn new(kid: &'static str) -> Key {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("a key");
        Key { kid, pair: Ed25519KeyPair::from_pkcs8(document.as_ref()).expect("a key") }
    }

    fn jwks(&self) -> Vec<u8> {
        let x = url_base64(self.pair.public_key().as_ref());
        let key = json!({"kty": "OKP", "crv": "Ed25519", "kid": self.kid, "x": x});
        json!({ "keys": [key] }).to_string().into_bytes()
    }

    fn token(&self, claims: &Value) -> String {
        let header = json!({"alg": "EdDSA", "kid": self.kid}).to_string();
        let text = [header, claims.to_string()].map(|part| url_base64(part.as_bytes())).join(".");
        format!("{text}.{}", url_base64(self.pair.sign(text.as_bytes()).as_ref()))
    }
}

/// A registry with two repositories, and an issuer.
struct Site {
    directory: tempfile::TempDir,
    registry: FakeRegistry,
    issuer: FakeRegistry,
    key: Key,
    ours: Image,
}

impl Site {
    fn new() -> Site {
        let (registry, issuer) = (FakeRegistry::start(), FakeRegistry::start_tls());
        let ours = registry.add_sample(OURS);
        registry.add_sample(THEIRS);
        let directory = tempfile::tempdir().expect("a directory");
        let site = Site { directory, registry, issuer, key: Key::new("one"), ours };
        let document =
            json!({"issuer": site.issuer.url(""), "jwks_uri": site.issuer.url(KEYS)}).to_string();
        site.issuer.add_file(DOCUMENT, "application/json", document.as_bytes());
        site.publish(&site.key);
        site.put("ca.pem", &site.issuer.ca_pem());
        site.put("htpasswd", DEMO);
        site
    }

    fn publish(&self, key: &Key) {
        self.issuer.add_file(KEYS, "application/jwk-set+json", &key.jwks());
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn put(&self, name: &str, text: &str) {
        replace_file(&self.path(name), text);
    }

    /// The configuration, with these keys of the issuer and these of the server.
    fn config(&self, of_issuer: &str, of_server: &str) -> String {
        format!(
            "fsync: false\nprefetch: false\ndefaultNs: {NAME}\n{of_server}\n\
             registries: [{{name: {NAME}, endpoints: ['{}']}}]\n\
             serverAuthConfig:\n  htpasswd: {}\n  oidc:\n    - issuer: {}\n      audience: larder\n      \
             {of_issuer}\n      allow:\n      \
             - {{claims: {{kubernetes.io.namespace: team-a}}, repositories: ['{NAME}/team-a/*']}}\n      \
             - {{claims: {{groups: ops}}}}\n",
            self.registry.url(""),
            self.path("htpasswd").display(),
            self.issuer.url(""),
        )
    }

    fn discovered(&self) -> String {
        self.config(&format!("ca: {}", self.path("ca.pem").display()), "")
    }

    fn claims(&self, changes: Value) -> Value {
        let mut claims = json!({
            "iss": self.issuer.url(""), "aud": ["larder"], "exp": now() + 600,
            "sub": "system:serviceaccount:team-a:default", "kubernetes.io": {"namespace": "team-a"},
        });
        let all = claims.as_object_mut().expect("a map");
        all.extend(changes.as_object().expect("a map").clone());
        claims
    }

    fn token(&self, changes: Value) -> String {
        self.key.token(&self.claims(changes))
    }
}

fn by(process: &Process, user: &str, password: &str, target: &str) -> Response {
    let credentials = base64(format!("{user}:{password}").as_bytes());
    request(process.address, "GET", target, &[("Authorization", &format!("Basic {credentials}"))])
}

fn message(response: &Response) -> String {
    response.json()["errors"][0]["message"].as_str().expect("a message").to_owned()
}

/// A server that has fetched the keys: the first request with a token waits for that.
fn started(site: &Site, config: &str) -> Process {
    let process = Process::serve_file(site.directory.path(), config);
    assert_eq!(by(&process, "token", &site.token(json!({})), "/v2/").status, 200);
    process
}

#[test]
fn a_token_pulls_what_its_claims_allow_and_is_not_forwarded() {
    let site = Site::new();
    let process = started(&site, &site.discovered());
    let token = site.token(json!({}));
    for user in ["token", "", "demo"] {
        assert_eq!(by(&process, user, &token, "/v2/").status, 200, "{user}");
    }
    let got = by(&process, "token", &token, &manifest(OURS, "v1"));
    assert!(got.status == 200 && got.body == site.ours.manifest(), "{got:?}");
    for layer in site.ours.layers() {
        assert!(by(&process, "token", &token, &blob(OURS, &layer.digest)).body == layer.bytes);
    }
    let tags = format!("/v2/{THEIRS}/tags/list");
    for target in [manifest(THEIRS, "v1"), blob(THEIRS, &site.ours.layers()[0].digest), tags] {
        let refused = by(&process, "token", &token, &target);
        assert_eq!((refused.status, refused.error_code().as_str()), (403, "DENIED"), "{target}");
        assert!(message(&refused).contains(&format!("{NAME}/{THEIRS}")), "{refused:?}");
    }
    let of_ops = site.token(json!({"groups": ["dev", "ops"], "kubernetes.io": {}}));
    assert_eq!(by(&process, "token", &of_ops, &manifest(THEIRS, "v1")).status, 200);
    let other = site.token(json!({"kubernetes.io": {"namespace": "team-c"}}));
    for target in ["/v2/", &manifest(OURS, "v1")] {
        let refused = by(&process, "token", &other, target);
        assert_eq!((refused.status, refused.error_code().as_str()), (403, "DENIED"), "{target}");
    }
    for recorded in site.registry.requests() {
        assert_eq!(recorded.header("authorization"), None, "{recorded:?}");
    }
    process.signal("TERM");
    let (_, log) = process.wait();
    assert!(log.contains(" user=system:serviceaccount:team-a:default "), "{log}");
    assert!(log.contains(" status=403 ") && log.contains(" reason=token-denied "), "{log}");
    assert!(!log.contains(&token), "tokens are not logged: {log}");
}

#[test]
fn a_wrong_token_gets_a_challenge_with_the_reason() {
    let site = Site::new();
    let process = started(&site, &site.discovered());
    let (foreign, unknown) = (Key::new("one"), Key::new("two"));
    for (token, words) in [
        (site.token(json!({"exp": now() - 61})), "expired"),
        (site.token(json!({"nbf": now() + 600})), "not valid yet"),
        (site.token(json!({"aud": "other"})), "another audience"),
        (foreign.token(&site.claims(json!({}))), "wrong signature"),
        (unknown.token(&site.claims(json!({}))), "unknown key"),
        (site.token(json!({"iss": "https://issuer.example"})), "the user or the password is wrong"),
    ] {
        for target in ["/v2/", &manifest(OURS, "v1")] {
            let refused = by(&process, "token", &token, target);
            assert_eq!((refused.status, refused.error_code().as_str()), (401, "UNAUTHORIZED"));
            assert!(message(&refused).contains(words), "{words}: {refused:?}");
            let challenge = refused.header("www-authenticate").expect("a challenge");
            assert!(challenge.starts_with("Basic "), "{challenge}");
        }
    }
    let refused = get(process.address, "/v2/");
    assert_eq!(refused.status, 401, "without credentials");
    assert!(site.registry.requests().is_empty(), "no registry is asked");
}

#[test]
fn users_and_tokens_work_side_by_side_and_follow_the_configuration() {
    let site = Site::new();
    let mut process = started(&site, &site.discovered());
    let token = site.token(json!({}));
    let status = |process: &Process| {
        let of = |password: &str| by(process, "demo", password, "/v2/").status;
        (of("secret"), of(&token), get(process.address, "/v2/").status)
    };
    assert_eq!(status(&process), (200, 200, 401));
    let mut reload = |text: &str| {
        Process::put_config(site.directory.path(), text);
        process.signal("HUP");
        process.wait_until_it_logs("configuration reloaded after SIGHUP");
        status(&process)
    };
    let with_tokens = site.discovered();
    let open = with_tokens.split("serverAuthConfig").next().expect("a text").to_owned();
    let with_users = with_tokens.split("  oidc:").next().expect("a text").to_owned();
    assert_eq!(reload(&with_users), (200, 401, 401));
    assert_eq!(reload(&open), (200, 200, 200));
    let htpasswd = format!("  htpasswd: {}\n", site.path("htpasswd").display());
    // The keys are those that were stored, so no fetch has to be awaited.
    assert_eq!(reload(&with_tokens.replace(&htpasswd, "")), (401, 200, 401));
    assert_eq!(reload(&with_tokens.replace("audience: larder", "audience: x")), (200, 401, 401));
}

#[test]
fn a_token_is_never_sent_to_a_registry_that_decides_who_may_pull() {
    let site = Site::new();
    let config = site.discovered().replace("endpoints:", "access: client, endpoints:");
    let process = started(&site, &config);
    let expired = site.token(json!({"exp": 1}));
    for token in [site.token(json!({})), expired] {
        let refused = by(&process, "ann", &token, &manifest(OURS, "v1"));
        assert_eq!(refused.status, 401, "{refused:?}");
    }
    assert!(site.registry.requests().is_empty());
}

#[test]
fn tokens_are_verified_after_a_restart_while_the_issuer_is_down() {
    let site = Site::new();
    drop(started(&site, &site.discovered()));
    site.issuer.stop();
    let process = Process::serve_file(site.directory.path(), &site.discovered());
    assert_eq!(by(&process, "token", &site.token(json!({})), "/v2/").status, 200);
    let other = Key::new("two").token(&site.claims(json!({})));
    assert_eq!(by(&process, "token", &other, "/v2/").status, 401);
    process.signal("TERM");
    let (_, log) = process.wait();
    let failed =
        "cannot fetch the keys of an issuer; the last ones stay valid issuer=https://127.0.0.1:";
    assert!(log.contains(failed), "{log}");
    // Without the stored keys, nothing is known of the token.
    let stored = fs::read_dir(site.path("cache/access")).expect("a directory");
    let stored: Vec<PathBuf> = stored.map(|entry| entry.expect("an entry").path()).collect();
    assert_eq!(stored.len(), 1, "{stored:?}");
    fs::remove_file(&stored[0]).expect("a file");
    let process = Process::serve_file(site.directory.path(), &site.discovered());
    let refused = by(&process, "token", &site.token(json!({})), "/v2/");
    assert!(refused.status == 503 && refused.header("retry-after").is_some(), "{refused:?}");
}

#[test]
fn keys_are_fetched_with_the_token_of_a_file_that_no_registry_gets() {
    let site = Site::new();
    site.put("bearer", "own-token\n");
    let (ca, bearer) = (site.path("ca.pem"), site.path("bearer"));
    let keys = format!("ca: {}\n      tokenFile: {}", ca.display(), bearer.display());
    let process = started(&site, &site.config(&keys, ""));
    let requests = site.issuer.requests();
    let paths: Vec<&str> = requests.iter().map(|request| request.path.as_str()).collect();
    assert_eq!(paths, [DOCUMENT, KEYS]);
    for recorded in &requests {
        assert_eq!(recorded.header("authorization"), Some("Bearer own-token"));
    }
    assert_eq!(by(&process, "token", &site.token(json!({})), &manifest(OURS, "v1")).status, 200);
    for recorded in site.registry.requests() {
        assert_eq!(recorded.header("authorization"), None, "{recorded:?}");
    }
}

#[test]
fn an_unusable_answer_of_the_issuer_is_logged_and_its_tokens_get_503() {
    let large = format!("{{\"keys\": [], \"more\": \"{}\"}}", "x".repeat(300 * 1024));
    let other = json!({"issuer": "https://other.example", "jwks_uri": "https://other.example"});
    let plain = |site: &Site| {
        json!({"issuer": site.issuer.url(""), "jwks_uri": "http://127.0.0.1/keys"}).to_string()
    };
    for (path, answer, words) in [
        (KEYS, large.as_str(), "it is larger than 262144 bytes"),
        (KEYS, "<html>", "not a JSON Web Key Set"),
        (KEYS, "{\"keys\": []}", "the set has no key for signatures"),
        (DOCUMENT, &other.to_string(), "it describes another issuer: https://other.example"),
        (DOCUMENT, "", "jwks_uri is not an https URL"),
        (DOCUMENT, "{}", "missing field"),
    ] {
        let site = Site::new();
        let plain = plain(&site);
        let answer = if answer.is_empty() { plain.as_str() } else { answer };
        site.issuer.add_file(path, "application/json", answer.as_bytes());
        let process = Process::serve_file(site.directory.path(), &site.discovered());
        assert_eq!(by(&process, "token", &site.token(json!({})), "/v2/").status, 503, "{words}");
        process.signal("TERM");
        let (_, log) = process.wait();
        let line = log.lines().find(|line| line.contains("cannot fetch the keys of an issuer"));
        assert!(line.is_some_and(|line| line.contains(words)), "{words}: {log}");
    }
}

#[test]
fn keys_of_a_file_are_read_again_when_it_changes() {
    let site = Site::new();
    let put = |key: &Key| site.put("jwks.json", &String::from_utf8_lossy(&key.jwks()));
    let config = site.config(&format!("keys: {}", site.path("jwks.json").display()), "");
    put(&site.key);
    let mut process = Process::serve_file(site.directory.path(), &config);
    let (old, new) = (site.token(json!({})), Key::new("two"));
    let (new, new_key) = (new.token(&site.claims(json!({}))), new);
    let status = |process: &Process, token: &str| by(process, "token", token, "/v2/").status;
    assert_eq!((status(&process, &old), status(&process, &new)), (200, 401));
    put(&new_key);
    process.wait_until_it_logs("serverAuthConfig.oidc: keys reloaded");
    assert_eq!((status(&process, &old), status(&process, &new)), (401, 200));
    assert!(site.issuer.requests().is_empty(), "the issuer is not asked");
}

/// Runs `larder credential-provider` as the kubelet does.
fn provide(flags: &[&str], request: &Value) -> (Option<i32>, String, String) {
    let mut command = larder(&[&["credential-provider"], flags].concat());
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    let mut stdin = child.stdin.take().expect("it was piped");
    stdin.write_all(request.to_string().as_bytes()).expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn image_request(token: Option<&str>) -> Value {
    json!({
        "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "kind": "CredentialProviderRequest",
        "image": format!("{NAME}/{OURS}"), "serviceAccountToken": token,
    })
}

#[test]
fn the_response_of_the_credential_provider_is_a_login_that_pulls() {
    let site = Site::new();
    let process = started(&site, &site.discovered());
    let token = site.token(json!({}));
    let (code, stdout, stderr) = provide(&[], &image_request(Some(&token)));
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    let response: Value = serde_json::from_str(&stdout).expect("JSON");
    let login = &response["auth"][NAME];
    let text = |name: &str| login[name].as_str().expect("a text").to_owned();
    let got = by(&process, &text("username"), &text("password"), &manifest(OURS, "v1"));
    assert!(got.status == 200 && got.body == site.ours.manifest(), "{got:?}");

    let (code, stdout, stderr) = provide(&[], &image_request(None));
    let response: Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!((code, &response["auth"]), (Some(0), &json!({})));
    assert!(stderr.contains("tokenAttributes"), "{stderr}");

    site.put("token", "of-the-node\n");
    let file = site.path("token").display().to_string();
    let (_, stdout, stderr) = provide(&["--token-file", &file], &image_request(None));
    let response: Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!(response["auth"][NAME]["password"], "of-the-node", "{stderr}");
    let (code, _, stderr) = provide(&["--token-file", "/nowhere"], &image_request(None));
    assert!(code == Some(1) && stderr.contains("/nowhere"), "{code:?} {stderr}");
    site.put("token", "\n");
    let (code, _, stderr) = provide(&["--token-file", &file], &image_request(None));
    assert!(code == Some(2) && stderr.contains("it is empty"), "{code:?} {stderr}");
    let (code, stdout, stderr) = provide(&[], &json!({}));
    assert!(code == Some(2) && stdout.is_empty() && stderr.contains("invalid"), "{stderr}");
}

#[test]
fn another_larder_logs_in_with_a_token_in_a_file() {
    let site = Site::new();
    let parent = started(&site, &site.discovered());
    site.put("token", &site.token(json!({"sub": "child"})));
    let auth = format!("{{user: token, passwordFile: {}}}", site.path("token").display());
    let child = tempfile::tempdir().expect("a directory");
    let config = format!(
        "fsync: false\nprefetch: false\ndefaultNs: {NAME}\nparents: [{{url: 'http://{}', auth: {auth}}}]\n\
         registries: [{{name: {NAME}, endpoints: ['http://127.0.0.1:9']}}]\n",
        parent.address
    );
    let process = Process::serve_file(child.path(), &config);
    let got = get(process.address, &manifest(OURS, "v1"));
    assert!(got.status == 200 && got.body == site.ours.manifest(), "{got:?}");
    parent.signal("TERM");
    let (_, log) = parent.wait();
    assert!(log.contains(" user=child "), "{log}");
}

#[test]
fn files_that_cannot_be_used_prevent_the_start() {
    let site = Site::new();
    site.put("jwks.json", "{}");
    for (keys, words) in [
        (format!("keys: {}", site.path("nowhere").display()), "oidc: keys: cannot read"),
        (format!("keys: {}", site.path("jwks.json").display()), "not a JSON Web Key Set"),
        (format!("ca: {}", site.path("nowhere").display()), "serverAuthConfig.oidc: https://"),
    ] {
        site.put("larder.yaml", &site.config(&keys, ""));
        let (file, cache) = (site.path("larder.yaml"), site.path("cache"));
        let (file, cache) = (file.display().to_string(), cache.display().to_string());
        let (code, _, stderr) =
            run(&["--config-file", &file, "--image-path", &cache, "serve", "--port", "0"]);
        assert!(code == Some(2) && stderr.contains(words), "{words}: {code:?} {stderr}");
    }
}
