//! Docker's `config.json`, as written by `docker login`, podman and Kubernetes pull secrets.
//!
//! Finds the login for a repository or the helper to run for it. Does not run helpers.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::credentials::{Login, RepositoryPrefix, Secret};
use super::logins::read;
use crate::oci::{Repository, Upstream};

/// The parts of the file that are used here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
pub(super) struct DockerConfig {
    auths: BTreeMap<String, Auth>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Deserialize)]
struct Auth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

/// What the file contains for a repository.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing: it is pulled anonymously.
    Nothing,
    /// A login.
    Login(Login),
    /// The name of a credential helper.
    Helper(String),
}

impl DockerConfig {
    /// Reads the file.
    ///
    /// # Errors
    /// A text with the path of the file and the problem.
    pub(super) fn load(path: &Path) -> Result<DockerConfig, String> {
        // The parser's text could quote secrets of the file.
        serde_json::from_str(&read(path, "dockerConfig")?)
            .map_err(|_| format!("dockerConfig {} is not valid JSON", path.display()))
    }

    /// The registry's own helper, else an entry of `auths`, else the credential store for all registries. With a store,
    /// docker keeps entries without a login in `auths`; these are ignored.
    pub(super) fn find(&self, upstream: &Upstream, repository: &Repository) -> Found {
        let is_ours = |key: &str| {
            key.parse().is_ok_and(|key: Key| key.registry == *upstream && key.part.is_none())
        };
        let helper = self.cred_helpers.iter().find(|(key, _)| is_ours(key));
        if let Some((_, name)) = helper {
            return Found::Helper(name.clone());
        }
        if let Some(login) = self.auth(upstream, repository) {
            return Found::Login(login);
        }
        let store = self.creds_store.as_deref().filter(|store| !store.is_empty());
        store.map_or(Found::Nothing, |store| Found::Helper(store.to_owned()))
    }

    /// The login in `auths` with the longest key that covers the repository.
    fn auth(&self, upstream: &Upstream, repository: &Repository) -> Option<Login> {
        let candidates = self.auths.iter().filter_map(|(key, auth)| {
            let key: Key = key.parse().ok()?;
            let covers = match &key.part {
                Some(part) => part.covers(repository),
                None => true,
            };
            let login = (key.registry == *upstream && covers).then(|| auth.login())??;
            Some((key.part.map_or(0, |part| part.len()), login))
        });
        // Of keys with the same length, which are spellings of the same registry, the first one counts.
        let best = candidates.reduce(|one, other| if other.0 > one.0 { other } else { one });
        best.map(|(_, login)| login)
    }
}

/// A key of the file: `quay.io`, `https://index.docker.io/v1/`, `reg.local:5000/`, or a part of a registry, as podman
/// writes it: `quay.io/team-a`.
struct Key {
    registry: Upstream,
    part: Option<RepositoryPrefix>,
}

impl std::str::FromStr for Key {
    type Err = ();

    fn from_str(text: &str) -> Result<Key, ()> {
        let (is_url, rest) = match text.split_once("://") {
            Some((_, rest)) => (true, rest),
            None => (false, text),
        };
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let registry = host.parse().map_err(|_| ())?;
        let path = path.trim_end_matches('/');
        // The path of a URL is that of the API, as old versions of docker wrote it.
        let part = match path {
            "" | "v1" | "v2" => None,
            _ if is_url => None,
            path => Some(path.parse().map_err(|_| ())?),
        };
        Ok(Key { registry, part })
    }
}

impl Auth {
    fn login(&self) -> Option<Login> {
        if let Some(token) = self.identitytoken.as_deref().filter(|token| !token.is_empty()) {
            return Some(Login::Identity(Secret::new(token)));
        }
        let encoded = self.auth.as_deref().filter(|auth| !auth.is_empty());
        let decoded = encoded.and_then(|auth| String::from_utf8(STANDARD.decode(auth).ok()?).ok());
        let (user, password) = match decoded.as_deref().and_then(|pair| pair.split_once(':')) {
            Some((user, password)) => (user.to_owned(), password.to_owned()),
            None => (self.username.clone()?, self.password.clone()?),
        };
        Some(Login::Basic { user, password: Secret::new(password.trim_end_matches('\0')) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(json: &str, registry: &str, repository: &str) -> Found {
        let config: DockerConfig = serde_json::from_str(json).unwrap();
        config.find(&registry.parse().unwrap(), &repository.parse().unwrap())
    }

    fn basic(user: &str, password: &str) -> Found {
        Found::Login(Login::Basic { user: user.into(), password: Secret::new(password) })
    }

    #[test]
    fn every_spelling_of_a_registry_is_found() {
        let json = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "dTpwdzp4"},
            "QUAY.IO": {"username": "q", "password": "w"},
            "reg.local:5000/": {"auth": "", "username": "r", "password": "z"},
            "https://old.example/v2/": {"username": "o", "password": "p"},
            "azure.example": {"auth": "dTpw", "identitytoken": "refresh"},
            "broken.example": {"auth": "%%%"}
        }, "HttpHeaders": {"x": "y"}}"#;
        for (registry, expected) in [
            ("docker.io", basic("u", "pw:x")),
            ("quay.io", basic("q", "w")),
            ("reg.local:5000", basic("r", "z")),
            ("old.example", basic("o", "p")),
            ("azure.example", Found::Login(Login::Identity(Secret::new("refresh")))),
            ("broken.example", Found::Nothing),
            ("gcr.io", Found::Nothing),
        ] {
            assert_eq!(find(json, registry, "a/b"), expected, "{registry}");
        }
    }

    #[test]
    fn the_longest_matching_key_wins() {
        let json = r#"{"auths": {
            "quay.io": {"username": "all", "password": "p"},
            "quay.io/team-a": {"username": "a", "password": "p"},
            "quay.io/team-a/base": {"username": "base", "password": "p"},
            "quay.io/team-a/empty": {},
            "other.io/team-b": {"username": "b", "password": "p"}
        }}"#;
        for (registry, repository, user) in [
            ("quay.io", "team-a/base/x", "base"),
            ("quay.io", "team-a/basement", "a"),
            ("quay.io", "team-a/empty", "a"),
            ("quay.io", "team-ab", "all"),
            ("quay.io", "team-b", "all"),
        ] {
            assert_eq!(find(json, registry, repository), basic(user, "p"), "{repository}");
        }
        assert_eq!(find(json, "other.io", "team-a"), Found::Nothing);
    }

    #[test]
    fn helpers_have_precedence_over_auths_and_auths_over_the_store() {
        let json = r#"{
            "auths": {
                "helped.io": {"username": "u", "password": "p"},
                "kept.io": {"username": "u", "password": "p"},
                "stored.io": {}
            },
            "credHelpers": {"helped.io": "one", "https://index.docker.io/v1/": "hub"},
            "credsStore": "all"
        }"#;
        for (registry, expected) in [
            ("helped.io", Found::Helper("one".into())),
            ("docker.io", Found::Helper("hub".into())),
            ("kept.io", basic("u", "p")),
            ("stored.io", Found::Helper("all".into())),
            ("unheard.io", Found::Helper("all".into())),
        ] {
            assert_eq!(find(json, registry, "a"), expected, "{registry}");
        }
        assert_eq!(find(r#"{"credsStore": ""}"#, "quay.io", "a"), Found::Nothing);
    }

    #[test]
    fn errors_name_the_file_and_do_not_quote_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        std::fs::write(&path, r#"{"auths": "hunter2"}"#).unwrap();
        let error = DockerConfig::load(&path).err().unwrap();
        assert!(error.contains("config.json") && !error.contains("hunter2"), "{error}");
    }
}
