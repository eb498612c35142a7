//! The logins of one registry, by repository.
//!
//! Files are read for each login, so that changes apply at once. Logins of helpers and clouds are cached in a
//! [`CachedLogin`], one for each entry of the configuration, until they expire or are refused. The session decides to
//! which hosts a login may be sent.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use super::aws::Ecr;
use super::cached_login::{CachedLogin, Fetched, SharedLogin};
use super::credentials::{
    Credentials, HelperProgram, HelperSettings, Login, LoginError, RepositoryPrefix, Secret,
};
use super::docker_config::{DockerConfig, Found};
use super::helper;
use crate::oci::{Repository, Upstream};
use crate::upstream::network::Reach;

/// The largest credentials file read, in bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// A point in time by two clocks: the monotonic one for waiting, and the wall clock for signatures.
#[derive(Clone, Copy)]
pub(in crate::upstream) struct Moment {
    pub(in crate::upstream) instant: Instant,
    pub(in crate::upstream) wall: SystemTime,
}

impl Moment {
    pub(in crate::upstream) fn now() -> Moment {
        Moment { instant: Instant::now(), wall: SystemTime::now() }
    }
}

/// See the module documentation.
pub(in crate::upstream) struct Logins {
    upstream: Upstream,
    /// Parts of the registry, longest prefix first.
    parts: Vec<(RepositoryPrefix, Source)>,
    otherwise: Source,
}

/// One entry of the configuration, with its cached login.
enum Source {
    /// Anonymous access, or a login that does not change.
    Fixed(SharedLogin),
    PasswordFile {
        user: String,
        path: PathBuf,
    },
    DockerConfig {
        path: PathBuf,
        helper: NamedHelper,
    },
    Helper {
        settings: HelperSettings,
        cached: CachedLogin,
    },
    Ecr(Box<Ecr>, CachedLogin),
}

/// The helper that the file names. The file may change and name another one.
#[derive(Default)]
struct NamedHelper(Mutex<Option<(String, Arc<CachedLogin>)>>);

impl Logins {
    /// Creates the logins of these credentials. Reads no files and makes no requests.
    pub(in crate::upstream) fn new(
        credentials: &Credentials,
        upstream: &Upstream,
        reach: &Reach,
    ) -> Logins {
        let (parts, otherwise) = match credentials {
            Credentials::ByRepository { parts, otherwise } => (parts.as_slice(), &**otherwise),
            other => (&[][..], other),
        };
        let source = |credentials| Source::new(credentials, reach);
        let mut parts: Vec<(RepositoryPrefix, Source)> =
            parts.iter().map(|(prefix, each)| (prefix.clone(), source(each))).collect();
        parts.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        Logins { upstream: upstream.clone(), parts, otherwise: source(otherwise) }
    }

    /// Anonymous access, for unlisted registries.
    pub(in crate::upstream) fn none(upstream: &Upstream) -> Logins {
        Logins::new(&Credentials::Anonymous, upstream, &Reach::default())
    }

    /// A bearer token that is presented before a challenge. A token service would not accept it.
    pub(in crate::upstream) fn preemptive(&self, repository: &Repository) -> SharedLogin {
        match self.source(repository) {
            Source::Fixed(Some(login)) if matches!(**login, Login::Bearer(_)) => {
                Some(Arc::clone(login))
            }
            _ => None,
        }
    }

    /// The login for a repository. May read a file, run a program, or make a request to a cloud.
    ///
    /// # Errors
    /// Which login is unavailable, why, and what to do.
    pub(in crate::upstream) fn login(
        &self,
        repository: &Repository,
        now: Moment,
    ) -> Result<SharedLogin, LoginError> {
        self.get(repository, Wanted::Any, now)
    }

    /// Another login, after the registry has refused `rejected`; `None` if there is none.
    ///
    /// # Errors
    /// As [`Logins::login`].
    pub(in crate::upstream) fn renew(
        &self,
        repository: &Repository,
        rejected: &Login,
        now: Moment,
    ) -> Result<SharedLogin, LoginError> {
        self.get(repository, Wanted::OtherThan(rejected), now)
    }

    /// Makes the next use fetch the logins of helpers and clouds again. Files are read for each login anyway.
    pub(in crate::upstream) fn refresh(&self, now: Instant) {
        let parts = self.parts.iter().map(|(_, source)| source);
        for source in parts.chain([&self.otherwise]) {
            match source {
                Source::Helper { cached, .. } | Source::Ecr(_, cached) => cached.refresh(now),
                Source::DockerConfig { helper, .. } => helper.refresh(now),
                Source::Fixed(_) | Source::PasswordFile { .. } => {}
            }
        }
    }

    fn get(
        &self,
        repository: &Repository,
        wanted: Wanted<'_>,
        now: Moment,
    ) -> Result<SharedLogin, LoginError> {
        let run = |settings: &HelperSettings| helper::login(settings, &self.upstream);
        match self.source(repository) {
            Source::Fixed(login) => Ok(wanted.among(login.clone())),
            Source::PasswordFile { user, path } => Ok(wanted.among(Some(password(user, path)?))),
            Source::Helper { settings, cached } => wanted.out_of(cached, now, || run(settings)),
            Source::Ecr(ecr, cached) => wanted.out_of(cached, now, || ecr.login(now.wall)),
            Source::DockerConfig { path, helper } => {
                let config = DockerConfig::load(path).map_err(unusable)?;
                match config.find(&self.upstream, repository) {
                    Found::Nothing => Ok(None),
                    Found::Login(login) => Ok(wanted.among(Some(Arc::new(login)))),
                    Found::Helper(name) => {
                        let settings = named(&name, path)?;
                        wanted.out_of(&helper.cached(&name), now, || run(&settings))
                    }
                }
            }
        }
    }

    /// The longest prefix that covers the repository wins.
    fn source(&self, repository: &Repository) -> &Source {
        let part = self.parts.iter().find(|(prefix, _)| prefix.covers(repository));
        part.map_or(&self.otherwise, |(_, source)| source)
    }
}

/// Which login a caller accepts.
#[derive(Clone, Copy)]
enum Wanted<'a> {
    Any,
    OtherThan(&'a Login),
}

impl Wanted<'_> {
    fn among(self, login: SharedLogin) -> SharedLogin {
        login.filter(|login| match self {
            Wanted::Any => true,
            Wanted::OtherThan(rejected) => **login != *rejected,
        })
    }

    fn out_of(
        self,
        cached: &CachedLogin,
        now: Moment,
        get: impl FnOnce() -> Result<Fetched, LoginError>,
    ) -> Result<SharedLogin, LoginError> {
        match self {
            Wanted::Any => cached.login(now.instant, get),
            Wanted::OtherThan(rejected) => cached.renew(rejected, now.instant, get),
        }
    }
}

impl Source {
    fn new(credentials: &Credentials, reach: &Reach) -> Source {
        let fixed = |login| Source::Fixed(Some(Arc::new(login)));
        match credentials.clone() {
            // Nested parts cannot be configured.
            Credentials::Anonymous | Credentials::ByRepository { .. } => Source::Fixed(None),
            Credentials::Password { user, password } => fixed(Login::Basic { user, password }),
            Credentials::Bearer(token) => fixed(Login::Bearer(token)),
            Credentials::IdentityToken(token) => fixed(Login::Identity(token)),
            Credentials::PasswordFile { user, path } => Source::PasswordFile { user, path },
            Credentials::DockerConfig { path } => {
                Source::DockerConfig { path, helper: NamedHelper::default() }
            }
            Credentials::Helper(settings) => {
                Source::Helper { settings, cached: CachedLogin::default() }
            }
            Credentials::Ecr(settings) => {
                Source::Ecr(Box::new(Ecr::new(*settings, reach)), CachedLogin::default())
            }
        }
    }
}

impl NamedHelper {
    fn refresh(&self, now: Instant) {
        // A panic cannot leave the pair half changed.
        let helper = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        helper.iter().for_each(|(_, cached)| cached.refresh(now));
    }

    /// The cached login of this helper. That of another helper is dropped.
    fn cached(&self, name: &str) -> Arc<CachedLogin> {
        // A panic cannot leave the pair half changed.
        let mut helper = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*helper {
            Some((before, cached)) if before == name => Arc::clone(cached),
            _ => Arc::clone(&helper.insert((name.to_owned(), Arc::default())).1),
        }
    }
}

fn named(name: &str, path: &Path) -> Result<HelperSettings, LoginError> {
    let program = HelperProgram::named(name)
        .map_err(|reason| unusable(format!("dockerConfig {}: {reason}", path.display())))?;
    Ok(HelperSettings::of(program))
}

pub(super) fn password(user: &str, path: &Path) -> Result<Arc<Login>, LoginError> {
    let password = read(path, "passwordFile").map_err(unusable)?;
    let password = Secret::new(password.trim_end_matches(['\r', '\n']));
    Ok(Arc::new(Login::Basic { user: user.to_owned(), password }))
}

fn unusable(reason: String) -> LoginError {
    LoginError::Unusable(reason.into())
}

/// Reads a small file; `what` is its configuration key, for error messages.
pub(in crate::upstream) fn read(path: &Path, what: &str) -> Result<String, String> {
    let refused = |reason: String| format!("cannot read {what} {}: {reason}", path.display());
    let failed = |error: io::Error| refused(error.to_string());
    // Opening a pipe without a writer would block the fetcher.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(refused("it is not a regular file".into()));
    }
    let (file, mut text) = (File::open(path).map_err(failed)?, String::new());
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    match text.len() as u64 > FILE_BYTES_MAX {
        true => Err(refused("it is too large".into())),
        false => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logins(credentials: Credentials) -> Logins {
        Logins::new(&credentials, &"quay.io".parse().unwrap(), &Reach::default())
    }

    fn basic(user: &str, password: &str) -> Login {
        Login::Basic { user: user.into(), password: Secret::new(password) }
    }

    fn user_of(logins: &Logins, repository: &str) -> Option<String> {
        match &*logins.login(&repository.parse().unwrap(), Moment::now()).unwrap()? {
            Login::Basic { user, .. } => Some(user.clone()),
            other => panic!("{other:?}"),
        }
    }

    fn password_of(user: &str) -> Credentials {
        Credentials::Password { user: user.into(), password: Secret::new("p") }
    }

    #[test]
    fn the_longest_prefix_wins_in_any_order() {
        let parts = [("a", "short"), ("a/b/c", "long"), ("a/b", "middle")];
        let parts = parts.map(|(prefix, user)| (prefix.parse().unwrap(), password_of(user)));
        let otherwise = Box::new(password_of("other"));
        let logins = logins(Credentials::ByRepository { parts: parts.into(), otherwise });
        for (repository, user) in [
            ("a", "short"),
            ("a/x", "short"),
            ("a/b", "middle"),
            ("a/bc", "short"),
            ("a/b/c", "long"),
            ("a/b/c/d", "long"),
            ("ab", "other"),
            ("x/a", "other"),
        ] {
            assert_eq!(user_of(&logins, repository).as_deref(), Some(user), "{repository}");
        }
    }

    #[test]
    fn a_password_file_is_read_for_each_login() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("password");
        let logins = logins(Credentials::PasswordFile { user: "u".into(), path: path.clone() });
        let repository = "a".parse().unwrap();
        let login = || logins.login(&repository, Moment::now());
        assert!(login().unwrap_err().reason().contains("passwordFile"));
        for (content, password) in [("one\n", "one"), (" two\r\n", " two")] {
            fs::write(&path, content).unwrap();
            assert_eq!(login(), Ok(Some(Arc::new(basic("u", password)))));
        }
        let renew = |rejected| logins.renew(&repository, &rejected, Moment::now());
        assert_eq!(renew(basic("u", " two")), Ok(None));
        assert_eq!(renew(basic("u", "one")), Ok(Some(Arc::new(basic("u", " two")))));
    }

    #[test]
    fn fixed_logins_cannot_be_renewed() {
        let repository = "a".parse().unwrap();
        for credentials in [Credentials::Anonymous, password_of("u")] {
            let renewed = logins(credentials).renew(&repository, &basic("u", "p"), Moment::now());
            assert_eq!(renewed, Ok(None));
        }
        let bearer = logins(Credentials::Bearer(Secret::new("t")));
        assert_eq!(bearer.preemptive(&repository), Some(Arc::new(Login::Bearer(Secret::new("t")))));
    }

    #[test]
    fn a_docker_config_cannot_run_a_helper_by_path() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        for json in [
            r#"{"credsStore": "../x"}"#,
            r#"{"credsStore": "/bin/true"}"#,
            r#"{"credsStore": "-x"}"#,
            r#"{"credsStore": "x\u0000"}"#,
            r#"{"credHelpers": {"quay.io": "/bin/true"}}"#,
            r#"{"credHelpers": {"quay.io": "x/../../bin/true"}}"#,
            r#"{"credHelpers": {"quay.io": ""}}"#,
        ] {
            fs::write(&path, json).unwrap();
            let logins = logins(Credentials::DockerConfig { path: path.clone() });
            let error = logins.login(&"a".parse().unwrap(), Moment::now()).unwrap_err();
            let reason = error.reason();
            assert!(reason.contains("config.json: a credential helper is a name"), "{error:?}");
        }
    }

    #[test]
    fn pipes_and_large_credentials_files_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        for (credentials, name) in [
            (Credentials::DockerConfig { path: path.clone() }, "dockerConfig"),
            (Credentials::PasswordFile { user: "u".into(), path: path.clone() }, "passwordFile"),
        ] {
            let login = logins(credentials).login(&"a".parse().unwrap(), Moment::now());
            let reason = login.unwrap_err().reason().to_owned();
            assert!(reason.contains(name) && reason.contains("not a regular file"), "{reason}");
        }
        fs::remove_file(&path).unwrap();
        fs::write(&path, "x".repeat(FILE_BYTES_MAX as usize + 1)).unwrap();
        let password = Credentials::PasswordFile { user: "u".into(), path };
        let login = logins(password).login(&"a".parse().unwrap(), Moment::now());
        assert!(login.unwrap_err().reason().contains("too large"));
    }
}
