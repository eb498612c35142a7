//! Who Larder is to a registry: `registries[].auth`.
//!
//! Secrets are read when they are needed, so that a changed file counts at once, and never appear in
//! `Debug` or in a log.

use std::fmt;
use std::fs;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::oci::Upstream;

/// The largest credentials file read, in bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// A text that is shown to registries only.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Where credentials come from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Credentials {
    /// There are none.
    #[default]
    Anonymous,
    /// `user` and `password`, or `passwordFromEnv`.
    Password {
        /// The user.
        user: String,
        /// The password.
        password: Secret,
    },
    /// `user` and `passwordFile`, read each time it is needed.
    PasswordFile {
        /// The user.
        user: String,
        /// The file; a line break at its end is not part of the password.
        path: PathBuf,
    },
    /// `token.static`: a bearer token that is shown as it is.
    Bearer(Secret),
    /// `dockerConfig`: a `config.json` as `docker login` and Kubernetes pull secrets have it, read each
    /// time it is needed.
    DockerConfig {
        /// The file.
        path: PathBuf,
    },
}

/// What is shown to a registry or to its token service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Login {
    /// By `Authorization: Basic`.
    Basic { user: String, password: Secret },
    /// By `Authorization: Bearer`.
    Bearer(Secret),
    /// An identity token, which a token service takes as `refresh_token`.
    Identity(Secret),
}

impl Login {
    /// The value of an `Authorization` header; `None` for what only a token service takes.
    pub(super) fn header(&self) -> Option<String> {
        match self {
            Login::Basic { user, password } => {
                Some(format!("Basic {}", STANDARD.encode(format!("{user}:{}", password.reveal()))))
            }
            Login::Bearer(token) => Some(format!("Bearer {}", token.reveal())),
            Login::Identity(_) => None,
        }
    }
}

impl Credentials {
    /// What to show to `upstream`.
    ///
    /// # Errors
    /// A text that names the file and what is wrong with it.
    pub(super) fn login(&self, upstream: &Upstream) -> Result<Option<Login>, String> {
        Ok(match self {
            Credentials::Anonymous => None,
            Credentials::Password { user, password } => {
                Some(Login::Basic { user: user.clone(), password: password.clone() })
            }
            Credentials::PasswordFile { user, path } => {
                let password = read(path, "passwordFile")?;
                let password = Secret::new(password.trim_end_matches(['\r', '\n']));
                Some(Login::Basic { user: user.clone(), password })
            }
            Credentials::Bearer(token) => Some(Login::Bearer(token.clone())),
            Credentials::DockerConfig { path } => {
                let text = read(path, "dockerConfig")?;
                let config: DockerConfig = serde_json::from_str(&text)
                    // The parser's own text could quote the file.
                    .map_err(|_| format!("dockerConfig {} is not valid JSON", path.display()))?;
                config.login(upstream)
            }
        })
    }
}

fn read(path: &PathBuf, key: &str) -> Result<String, String> {
    let refused = |reason: String| Err(format!("cannot read {key} {}: {reason}", path.display()));
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > FILE_BYTES_MAX => refused("it is too large".into()),
        Err(error) => refused(error.to_string()),
        Ok(_) => fs::read_to_string(path).or_else(|error| refused(error.to_string())),
    }
}

/// `~/.docker/config.json`, or the content of a `kubernetes.io/dockerconfigjson` secret.
#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: std::collections::BTreeMap<String, DockerAuth>,
}

#[derive(Deserialize)]
struct DockerAuth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

impl DockerConfig {
    fn login(&self, upstream: &Upstream) -> Option<Login> {
        let is_ours = |key: &str| registry_of(key).is_some_and(|registry| registry == *upstream);
        self.auths.iter().find(|(key, _)| is_ours(key)).and_then(|(_, auth)| auth.login())
    }
}

/// The registry that a key names: `quay.io`, `https://index.docker.io/v1/`, `reg.local:5000/`.
fn registry_of(key: &str) -> Option<Upstream> {
    let host = key.split_once("://").map_or(key, |(_, rest)| rest);
    host.split('/').next()?.parse().ok()
}

impl DockerAuth {
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

    fn upstream(name: &str) -> Upstream {
        name.parse().unwrap()
    }

    fn basic(user: &str, password: &str) -> Login {
        Login::Basic { user: user.into(), password: Secret::new(password) }
    }

    #[test]
    fn a_secret_is_not_shown() {
        let credentials = Credentials::Password { user: "u".into(), password: Secret::new("pw") };
        assert!(!format!("{credentials:?}").contains("pw"));
        assert_eq!(
            basic("Aladdin", "open sesame").header().unwrap(),
            "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
        );
    }

    #[test]
    fn a_password_file_is_read_anew_each_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("password");
        let credentials = Credentials::PasswordFile { user: "u".into(), path: path.clone() };
        let login = || credentials.login(&upstream("quay.io"));
        assert!(login().unwrap_err().contains("passwordFile"));
        for (content, password) in [("one\n", "one"), (" two\r\n", " two")] {
            fs::write(&path, content).unwrap();
            assert_eq!(login(), Ok(Some(basic("u", password))));
        }
    }

    #[test]
    fn a_docker_config_is_found_by_every_spelling_of_a_registry() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        let json = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "dTpwdzp4"},
            "QUAY.IO": {"username": "q", "password": "w"},
            "reg.local:5000/": {"auth": "", "username": "r", "password": "z"},
            "azure.example": {"auth": "dTpw", "identitytoken": "refresh"},
            "broken.example": {"auth": "%%%"}
        }, "HttpHeaders": {"x": "y"}}"#;
        fs::write(&path, json).unwrap();
        let credentials = Credentials::DockerConfig { path };
        for (name, expected) in [
            ("docker.io", Some(basic("u", "pw:x"))),
            ("quay.io", Some(basic("q", "w"))),
            ("reg.local:5000", Some(basic("r", "z"))),
            ("azure.example", Some(Login::Identity(Secret::new("refresh")))),
            ("broken.example", None),
            ("gcr.io", None),
        ] {
            assert_eq!(credentials.login(&upstream(name)), Ok(expected), "{name}");
        }
    }

    #[test]
    fn a_broken_docker_config_is_named_and_not_quoted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        fs::write(&path, r#"{"auths": "hunter2"}"#).unwrap();
        let error = Credentials::DockerConfig { path }.login(&upstream("quay.io")).unwrap_err();
        assert!(error.contains("config.json") && !error.contains("hunter2"), "{error}");
    }
}
