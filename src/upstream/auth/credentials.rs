//! Who Larder is to a registry: `registries[].auth` as settings, and what is shown.
//!
//! Secrets never appear in `Debug` or in a log. How a login is had, kept and renewed is
//! [`logins`](super::logins)'.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::aws::EcrSettings;
use crate::oci::Repository;

/// How long what a helper says is kept if nobody says otherwise. Helpers do not tell when their
/// answers expire; those for clouds renew theirs well before this.
const HELPER_EXPIRY: Duration = Duration::from_secs(10 * 60);
/// What the names of helpers' programs begin with.
const HELPER_PREFIX: &str = "docker-credential-";
/// How long a helper may take: some ask a cloud or a password store over the network.
const HELPER_TIMEOUT: Duration = Duration::from_secs(10);

/// A text that is shown to registries only.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    pub(in crate::upstream) fn reveal(&self) -> &str {
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
    /// `credentialHelper`: a program that is asked.
    Helper(HelperSettings),
    /// `token.provider: ecr`: a login that Amazon's registry service hands out.
    Ecr(Box<EcrSettings>),
    /// Who we are depends on the repository (`registries[].repositories`).
    ByRepository {
        /// Credentials of parts of the registry; the longest prefix that covers a repository counts.
        parts: Vec<(RepositoryPrefix, Credentials)>,
        /// For all other repositories.
        otherwise: Box<Credentials>,
    },
}

impl Credentials {
    /// The files that are read when a login is needed, with the keys that name them.
    pub fn files(&self) -> Vec<(&'static str, &Path)> {
        match self {
            Credentials::PasswordFile { path, .. } => vec![("passwordFile", path)],
            Credentials::DockerConfig { path } => vec![("dockerConfig", path)],
            Credentials::ByRepository { parts, otherwise } => {
                let all = parts.iter().map(|(_, credentials)| credentials);
                all.chain([&**otherwise]).flat_map(Credentials::files).collect()
            }
            Credentials::Anonymous
            | Credentials::Password { .. }
            | Credentials::Bearer(_)
            | Credentials::Helper(_)
            | Credentials::Ecr(_) => Vec::new(),
        }
    }
}

/// How a `docker-credential-*` program is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HelperSettings {
    /// Which program.
    pub program: HelperProgram,
    /// How long its answer is kept.
    pub expiry: Duration,
    /// How long it may take to answer.
    pub timeout: Duration,
}

impl HelperSettings {
    /// That program with the usual times.
    pub fn of(program: HelperProgram) -> HelperSettings {
        HelperSettings { program, expiry: HELPER_EXPIRY, timeout: HELPER_TIMEOUT }
    }
}

/// A credential helper: the `x` of `docker-credential-x`, which is looked for in `PATH`, or an absolute
/// path. Nothing else, since it is run: a relative path would depend on where Larder was started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HelperProgram(String);

impl HelperProgram {
    /// The helper that a Docker `config.json` names: a name, and nothing else. The file may come from
    /// somebody who may choose credentials, and not which program of this machine is run.
    ///
    /// # Errors
    /// What a helper's name is.
    pub(in crate::upstream) fn named(text: &str) -> Result<HelperProgram, &'static str> {
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        match text.bytes().all(is_name) && !text.is_empty() && !text.starts_with('-') {
            true => Ok(HelperProgram(format!("{HELPER_PREFIX}{text}"))),
            false => Err("a credential helper is a name of letters, digits, '-', '_' and '.' \
                          (ecr-login for docker-credential-ecr-login)"),
        }
    }

    /// What is run.
    pub(in crate::upstream) fn command(&self) -> &str {
        &self.0
    }
}

/// As it is written.
impl fmt::Display for HelperProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.strip_prefix(HELPER_PREFIX).unwrap_or(&self.0))
    }
}

impl FromStr for HelperProgram {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<HelperProgram, &'static str> {
        if text.starts_with('/') && !text.contains('\0') {
            return Ok(HelperProgram(text.to_owned()));
        }
        HelperProgram::named(text).map_err(|_| {
            "a credential helper is a name of letters, digits, '-', '_' and '.' \
             (ecr-login for docker-credential-ecr-login), or an absolute path"
        })
    }
}

/// A part of a registry: the repository of that name and all below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryPrefix(Repository);

impl RepositoryPrefix {
    /// Whether a repository is in this part. Components count whole: `team-a` covers `team-a/x` and not
    /// `team-ab`.
    pub(in crate::upstream) fn covers(&self, repository: &Repository) -> bool {
        let rest = repository.as_str().strip_prefix(self.0.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// How many bytes it is long: the longest counts.
    pub(in crate::upstream) fn len(&self) -> usize {
        self.0.as_str().len()
    }
}

impl fmt::Display for RepositoryPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for RepositoryPrefix {
    type Err = <Repository as FromStr>::Err;

    fn from_str(text: &str) -> Result<RepositoryPrefix, Self::Err> {
        text.parse().map(RepositoryPrefix)
    }
}

/// What is shown to a registry or to its token service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::upstream) enum Login {
    /// By `Authorization: Basic`.
    Basic { user: String, password: Secret },
    /// By `Authorization: Bearer`.
    Bearer(Secret),
    /// An identity token, which a token service takes as `refresh_token`.
    Identity(Secret),
}

impl Login {
    /// The value of an `Authorization` header; `None` for what only a token service takes.
    pub(in crate::upstream) fn header(&self) -> Option<String> {
        match self {
            Login::Basic { user, password } => {
                Some(format!("Basic {}", STANDARD.encode(format!("{user}:{}", password.reveal()))))
            }
            Login::Bearer(token) => Some(format!("Bearer {}", token.reveal())),
            Login::Identity(_) => None,
        }
    }
}

/// Why there is no login. Cheap to clone: everybody who waits for it gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::upstream) enum LoginError {
    /// What is configured does not do: a file that cannot be read, a helper that is not there, keys that
    /// are refused. Somebody has to change something.
    Unusable(Arc<str>),
    /// Whoever hands out the login does not answer just now.
    Unavailable(Arc<str>),
}

impl LoginError {
    /// Which file, helper or service, what is wrong with it, and what to do; no secrets.
    pub(in crate::upstream) fn reason(&self) -> &Arc<str> {
        match self {
            LoginError::Unusable(reason) | LoginError::Unavailable(reason) => reason,
        }
    }
}
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_shown() {
        let credentials = Credentials::Password { user: "u".into(), password: Secret::new("pw") };
        assert!(!format!("{credentials:?}").contains("pw"));
        let login = Login::Basic { user: "Aladdin".into(), password: Secret::new("open sesame") };
        assert_eq!(login.header().unwrap(), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
    }

    #[test]
    fn a_helper_is_a_name_or_an_absolute_path() {
        for (text, command) in [
            ("ecr-login", "docker-credential-ecr-login"),
            ("acr_env.2", "docker-credential-acr_env.2"),
            ("/opt/bin/my-helper", "/opt/bin/my-helper"),
        ] {
            assert_eq!(text.parse::<HelperProgram>().unwrap().command(), command);
        }
        for text in ["", "a b", "../x", "a/b", "./x", "x;rm", "$(x)", "/x\0y", "x\0y", "-x", "x\n"]
        {
            assert!(text.parse::<HelperProgram>().is_err(), "{text}");
            assert!(HelperProgram::named(text).is_err(), "{text}");
        }
        assert!(
            HelperProgram::named("/opt/bin/my-helper").is_err(),
            "a path is the operator's to give"
        );
        assert_eq!(HelperProgram::named("a.b_c").unwrap().command(), "docker-credential-a.b_c");
    }

    #[test]
    fn a_prefix_covers_whole_components() {
        let covers = |prefix: &str, repository: &str| {
            prefix.parse::<RepositoryPrefix>().unwrap().covers(&repository.parse().unwrap())
        };
        assert!(covers("team-a", "team-a") && covers("team-a", "team-a/x/y"));
        assert!(covers("team-a/x", "team-a/x"));
        assert!(!covers("team-a", "team-ab") && !covers("team-a/x", "team-a"));
        for text in ["", "/", "team-a/", "/team-a", "Team"] {
            assert!(text.parse::<RepositoryPrefix>().is_err(), "{text}");
        }
    }
}
