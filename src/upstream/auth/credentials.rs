//! Credentials for registries: `registries[].auth` as settings, and the logins that are presented.
//!
//! Secrets never appear in `Debug` or in a log. [`logins`](super::logins) fetches, caches and renews logins.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use subtle::ConstantTimeEq;

use super::aws::EcrSettings;
use crate::oci::Repository;

/// The default time for which a helper's answer is cached. Helpers do not report when their answers expire; those for
/// clouds renew theirs well before this.
const HELPER_EXPIRY: Duration = Duration::from_secs(10 * 60);
/// The user name that marks a password as an identity token.
pub(in crate::upstream) const IDENTITY_TOKEN_USER: &str = "<token>";
/// The prefix of helper programs.
const HELPER_PREFIX: &str = "docker-credential-";
/// The default timeout of a helper. Some contact a cloud or a password store over the network.
const HELPER_TIMEOUT: Duration = Duration::from_secs(10);

/// A text that is sent to registries and never displayed.
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
    /// Anonymous access.
    #[default]
    Anonymous,
    /// `user` and `password`, or `passwordFromEnv`.
    Password {
        /// The user.
        user: String,
        /// The password.
        password: Secret,
    },
    /// `user` and `passwordFile`, which is read for each login.
    PasswordFile {
        /// The user.
        user: String,
        /// The file; a line break at its end is ignored.
        path: PathBuf,
    },
    /// `token.static`: a bearer token that is sent unchanged.
    Bearer(Secret),
    /// An identity token of a client, which only a token service accepts.
    IdentityToken(Secret),
    /// `dockerConfig`: a `config.json` of `docker login` or a Kubernetes pull secret, which is read for each login.
    DockerConfig {
        /// The file.
        path: PathBuf,
    },
    /// `credentialHelper`: a program that returns the login.
    Helper(HelperSettings),
    /// `token.provider: ecr`: a login issued by Amazon ECR.
    Ecr(Box<EcrSettings>),
    /// The credentials depend on the repository (`registries[].repositories`).
    ByRepository {
        /// Credentials of parts of the registry. The longest prefix that covers a repository counts.
        parts: Vec<(RepositoryPrefix, Credentials)>,
        /// For all other repositories.
        otherwise: Box<Credentials>,
    },
}

impl Credentials {
    /// The credentials that a client presents. With the user `<token>`, or none, the password is an identity token, as in
    /// the credentials of Docker and of containerd.
    pub fn of_client(user: &str, password: &str) -> Credentials {
        let password = Secret::new(password);
        match user {
            "" | IDENTITY_TOKEN_USER => Credentials::IdentityToken(password),
            user => Credentials::Password { user: user.to_owned(), password },
        }
    }

    /// Whether a login is the one that these credentials present; `None` if they present none. Those that are not a user and a
    /// password accept nothing.
    pub(in crate::upstream) fn accept(&self, login: Option<(&str, &str)>) -> Option<bool> {
        let is_same = |expected: &str, expected_password: &str| {
            let Some((user, password)) = login else { return false };
            let is_user = user.as_bytes().ct_eq(expected.as_bytes());
            (is_user & password.as_bytes().ct_eq(expected_password.as_bytes())).into()
        };
        match self {
            Credentials::Anonymous => None,
            Credentials::Password { user, password } => Some(is_same(user, password.reveal())),
            Credentials::PasswordFile { user, path } => {
                let login = super::logins::password(user, path);
                Some(login.is_ok_and(|login| match &*login {
                    Login::Basic { user, password } => is_same(user, password.reveal()),
                    _ => false,
                }))
            }
            _ => Some(false),
        }
    }

    /// Whether they are for this repository, too; without, access is anonymous.
    pub(in crate::upstream) fn cover(&self, repository: &Repository) -> bool {
        match self {
            Credentials::Anonymous => false,
            Credentials::ByRepository { parts, otherwise } => {
                RepositoryPrefix::longest(parts, repository).unwrap_or(otherwise).cover(repository)
            }
            _ => true,
        }
    }

    /// The files that are read for logins, with their configuration keys.
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
            | Credentials::IdentityToken(_)
            | Credentials::Helper(_)
            | Credentials::Ecr(_) => Vec::new(),
        }
    }
}

impl Credentials {
    /// The programs that are run for logins.
    pub fn helpers(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        match self {
            Credentials::Helper(helper) => Box::new(std::iter::once(helper.program.command())),
            Credentials::ByRepository { parts, otherwise } => {
                let all = parts.iter().map(|(_, credentials)| credentials);
                Box::new(all.chain([&**otherwise]).flat_map(Credentials::helpers))
            }
            _ => Box::new(std::iter::empty()),
        }
    }
}

/// The settings of a `docker-credential-*` program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HelperSettings {
    /// The program.
    pub program: HelperProgram,
    /// How long its answer is cached.
    pub expiry: Duration,
    /// How long it may run.
    pub timeout: Duration,
}

impl HelperSettings {
    /// The program with the default times.
    pub fn of(program: HelperProgram) -> HelperSettings {
        HelperSettings { program, expiry: HELPER_EXPIRY, timeout: HELPER_TIMEOUT }
    }
}

/// A credential helper: the `x` of `docker-credential-x`, which is searched in `PATH`, or an absolute path. A relative
/// path is not allowed, since it would depend on the working directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HelperProgram(String);

impl HelperProgram {
    /// Parses the name of a helper in a Docker `config.json`. Paths are refused: the author of the file may choose
    /// credentials, but not which program is run on this machine.
    ///
    /// # Errors
    /// A description of valid names.
    pub(in crate::upstream) fn named(text: &str) -> Result<HelperProgram, &'static str> {
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        match text.bytes().all(is_name) && !text.is_empty() && !text.starts_with('-') {
            true => Ok(HelperProgram(format!("{HELPER_PREFIX}{text}"))),
            false => Err("a credential helper is a name of letters, digits, '-', '_' and '.' \
                          (ecr-login for docker-credential-ecr-login)"),
        }
    }

    /// The program to run.
    pub(in crate::upstream) fn command(&self) -> &str {
        &self.0
    }
}

/// The helper as it is written in the configuration.
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

/// A part of a registry: the repository with this name and all repositories below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryPrefix(Repository);

impl RepositoryPrefix {
    /// The value of the longest prefix that covers a repository.
    pub fn longest<'a, T>(
        parts: &'a [(RepositoryPrefix, T)],
        repository: &Repository,
    ) -> Option<&'a T> {
        let covering = parts.iter().filter(|(prefix, _)| prefix.covers(repository));
        covering.max_by_key(|(prefix, _)| prefix.len()).map(|(_, value)| value)
    }

    /// Whether a repository is in this part. Only complete path components match: `team-a` covers `team-a/x` but not
    /// `team-ab`.
    pub(in crate::upstream) fn covers(&self, repository: &Repository) -> bool {
        let rest = repository.as_str().strip_prefix(self.0.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// The length in bytes, for finding the longest match.
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

/// A login that is presented to a registry or to its token service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::upstream) enum Login {
    /// `Authorization: Basic`.
    Basic { user: String, password: Secret },
    /// `Authorization: Bearer`.
    Bearer(Secret),
    /// An identity token, which a token service accepts as `refresh_token`.
    Identity(Secret),
}

impl Login {
    /// The value of an `Authorization` header; `None` for an identity token, which only a token service accepts.
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

/// Why there is no login. Cheap to clone, since every waiting caller gets a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::upstream) enum LoginError {
    /// The configuration is unusable: a file that cannot be read, a missing helper, refused keys. The operator must
    /// change something.
    Unusable(Arc<str>),
    /// The helper or the service does not answer at the moment.
    Unavailable(Arc<str>),
}

impl LoginError {
    /// The file, helper or service, the problem, and what to do. Contains no secrets.
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
    fn secrets_are_not_displayed() {
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
            "only the operator may choose a path"
        );
        assert_eq!(HelperProgram::named("a.b_c").unwrap().command(), "docker-credential-a.b_c");
    }

    #[test]
    fn a_prefix_covers_complete_components() {
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
