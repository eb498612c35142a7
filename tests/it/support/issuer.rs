//! An issuer of tokens, and a registry whose content is served for them (`serverAuthConfig.oidc`).

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};

use super::client::request;
use super::process::Process;
use super::{FakeRegistry, Image, Response, base64, replace_file};

pub const OURS: &str = "team-a/app";
pub const THEIRS: &str = "team-b/app";
pub const NAME: &str = "registry.test";
/// Output of `htpasswd -nbB -C 4` for demo:secret.
const DEMO: &str = "demo:$2y$04$5TeKT.s9FsTxS3i9dnaT.eeZsnvHkTXDfq6YA/Pb9LXeQk3bD5R2m\n";
pub const DOCUMENT: &str = "/.well-known/openid-configuration";
pub const KEYS: &str = "/keys";

fn url_base64(bytes: &[u8]) -> String {
    base64(bytes).replace('+', "-").replace('/', "_").trim_end_matches('=').to_owned()
}

pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970").as_secs()
}

/// A key of an issuer.
pub struct Key {
    pub kid: &'static str,
    pub pair: Ed25519KeyPair,
}

impl Key {
    pub fn new(kid: &'static str) -> Key {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("a key");
        Key { kid, pair: Ed25519KeyPair::from_pkcs8(document.as_ref()).expect("a key") }
    }

    pub fn jwks(&self) -> Vec<u8> {
        let x = url_base64(self.pair.public_key().as_ref());
        let key = json!({"kty": "OKP", "crv": "Ed25519", "kid": self.kid, "x": x});
        json!({ "keys": [key] }).to_string().into_bytes()
    }

    pub fn token(&self, claims: &Value) -> String {
        let header = json!({"alg": "EdDSA", "kid": self.kid}).to_string();
        let text = [header, claims.to_string()].map(|part| url_base64(part.as_bytes())).join(".");
        format!("{text}.{}", url_base64(self.pair.sign(text.as_bytes()).as_ref()))
    }
}

/// A registry with two repositories, and an issuer.
pub struct Site {
    pub directory: tempfile::TempDir,
    pub registry: FakeRegistry,
    pub issuer: FakeRegistry,
    pub key: Key,
    pub ours: Image,
}

impl Site {
    pub fn new() -> Site {
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

    pub fn publish(&self, key: &Key) {
        self.issuer.add_file(KEYS, "application/jwk-set+json", &key.jwks());
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn put(&self, name: &str, text: &str) {
        replace_file(&self.path(name), text);
    }

    /// The configuration, with these keys of the issuer and these of the server.
    pub fn config(&self, of_issuer: &str, of_server: &str) -> String {
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

    /// The key `ca` of the issuer.
    pub fn ca(&self) -> String {
        format!("ca: {}", self.path("ca.pem").display())
    }

    pub fn discovered(&self) -> String {
        self.config(&self.ca(), "")
    }

    pub fn claims(&self, changes: Value) -> Value {
        let mut claims = json!({
            "iss": self.issuer.url(""), "aud": ["larder"], "exp": now() + 600,
            "sub": "system:serviceaccount:team-a:default", "kubernetes.io": {"namespace": "team-a"},
        });
        let all = claims.as_object_mut().expect("a map");
        all.extend(changes.as_object().expect("a map").clone());
        claims
    }

    pub fn token(&self, changes: Value) -> String {
        self.key.token(&self.claims(changes))
    }
}

pub fn by(process: &Process, user: &str, password: &str, target: &str) -> Response {
    let credentials = base64(format!("{user}:{password}").as_bytes());
    request(process.address, "GET", target, &[("Authorization", &format!("Basic {credentials}"))])
}

pub fn message(response: &Response) -> String {
    response.json()["errors"][0]["message"].as_str().expect("a message").to_owned()
}

/// A server that has fetched the keys: the first request with a token waits for that.
pub fn started(site: &Site, config: &str) -> Process {
    started_in(site.directory.path(), site, config)
}

/// The same in another directory.
pub fn started_in(directory: &Path, site: &Site, config: &str) -> Process {
    let process = Process::serve_file(directory, config);
    assert_eq!(by(&process, "token", &site.token(json!({})), "/v2/").status, 200);
    process
}
