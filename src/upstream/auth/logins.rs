//! The logins of one registry: from settings to what is shown, now.
//!
//! Files are read each time, so that a changed one counts at once. What a helper or a cloud hands out
//! is kept in a [`CachedLogin`], one for each entry of the configuration, until it expires or is refused.
//! Whose origin a login may be shown to is the session's to decide.

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

/// A point in time by both clocks: one that never jumps, for waiting, and one that others share, for
/// signatures.
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

/// See the file's own doc.
pub(in crate::upstream) struct Logins {
    upstream: Upstream,
    /// Parts of the registry, longest prefix first.
    parts: Vec<(RepositoryPrefix, Source)>,
    otherwise: Source,
}

/// One entry of the configuration, and what was got for it.
enum Source {
    /// Nothing, or something that does not change.
    Fixed(SharedLogin),
    PasswordFile {
        user: String,
        path: PathBuf,
    },
    DockerConfig {
        path: PathBuf,
        asked: NamedHelper,
    },
    Helper {
        settings: HelperSettings,
        cached: CachedLogin,
    },
    Ecr(Box<Ecr>, CachedLogin),
}

/// The helper that a file names, which may be another one tomorrow.
#[derive(Default)]
struct NamedHelper(Mutex<Option<(String, Arc<CachedLogin>)>>);

impl Logins {
    /// The logins that these credentials give. Nothing is read or asked yet.
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

    /// None at all, for registries that nobody has listed.
    pub(in crate::upstream) fn none(upstream: &Upstream) -> Logins {
        Logins::new(&Credentials::Anonymous, upstream, &Reach::default())
    }

    /// A token that is shown without being asked for; a token service would not want it.
    pub(in crate::upstream) fn preemptive(&self, repository: &Repository) -> SharedLogin {
        match self.source(repository) {
            Source::Fixed(Some(login)) if matches!(**login, Login::Bearer(_)) => {
                Some(Arc::clone(login))
            }
            _ => None,
        }
    }

    /// What to show for a repository. May read a file, start a program, or ask a service.
    ///
    /// # Errors
    /// What could not be had, why, and what to do.
    pub(in crate::upstream) fn login(
        &self,
        repository: &Repository,
        now: Moment,
    ) -> Result<SharedLogin, LoginError> {
        self.get(repository, Wanted::Any, now)
    }

    /// Another login, after the registry has refused `rejected`; `None` if there is no other.
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

    /// Lets what helpers and clouds have handed out be got anew. Files are read each time in any case.
    pub(in crate::upstream) fn refresh(&self, now: Instant) {
        let parts = self.parts.iter().map(|(_, source)| source);
        for source in parts.chain([&self.otherwise]) {
            match source {
                Source::Helper { cached, .. } | Source::Ecr(_, cached) => cached.refresh(now),
                Source::DockerConfig { asked, .. } => asked.refresh(now),
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
        let ask = |settings: &HelperSettings| helper::ask(settings, &self.upstream);
        match self.source(repository) {
            Source::Fixed(login) => Ok(wanted.among(login.clone())),
            Source::PasswordFile { user, path } => Ok(wanted.among(Some(password(user, path)?))),
            Source::Helper { settings, cached } => wanted.out_of(cached, now, || ask(settings)),
            Source::Ecr(ecr, cached) => wanted.out_of(cached, now, || ecr.login(now.wall)),
            Source::DockerConfig { path, asked } => {
                let config = DockerConfig::load(path).map_err(unusable)?;
                match config.find(&self.upstream, repository) {
                    Found::Nothing => Ok(None),
                    Found::Login(login) => Ok(wanted.among(Some(Arc::new(login)))),
                    Found::Helper(name) => {
                        let settings = named(&name, path)?;
                        wanted.out_of(&asked.cached(&name), now, || ask(&settings))
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

/// Which login will do.
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
            // Parts within parts cannot be configured.
            Credentials::Anonymous | Credentials::ByRepository { .. } => Source::Fixed(None),
            Credentials::Password { user, password } => fixed(Login::Basic { user, password }),
            Credentials::Bearer(token) => fixed(Login::Bearer(token)),
            Credentials::PasswordFile { user, path } => Source::PasswordFile { user, path },
            Credentials::DockerConfig { path } => {
                Source::DockerConfig { path, asked: NamedHelper::default() }
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
        let asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        asked.iter().for_each(|(_, cached)| cached.refresh(now));
    }

    /// The cached of that helper. What another one has said counts no more.
    fn cached(&self, name: &str) -> Arc<CachedLogin> {
        // A panic cannot leave the pair half changed.
        let mut asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*asked {
            Some((before, cached)) if before == name => Arc::clone(cached),
            _ => Arc::clone(&asked.insert((name.to_owned(), Arc::default())).1),
        }
    }
}

fn named(name: &str, path: &Path) -> Result<HelperSettings, LoginError> {
    let program = HelperProgram::named(name)
        .map_err(|reason| unusable(format!("dockerConfig {}: {reason}", path.display())))?;
    Ok(HelperSettings::of(program))
}

fn password(user: &str, path: &Path) -> Result<Arc<Login>, LoginError> {
    let password = read(path, "passwordFile").map_err(unusable)?;
    let password = Secret::new(password.trim_end_matches(['\r', '\n']));
    Ok(Arc::new(Login::Basic { user: user.to_owned(), password }))
}

fn unusable(reason: String) -> LoginError {
    LoginError::Unusable(reason.into())
}

/// Reads a small file; `what` names it for the operator.
pub(in crate::upstream) fn read(path: &Path, what: &str) -> Result<String, String> {
    let refused = |reason: String| format!("cannot read {what} {}: {reason}", path.display());
    let failed = |error: io::Error| refused(error.to_string());
    // A pipe without a writer would block the fetcher that opens it.
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
    fn the_longest_prefix_wins_wherever_it_stands() {
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
    fn a_password_file_is_read_anew_each_time() {
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
    fn what_is_fixed_cannot_be_renewed() {
        let repository = "a".parse().unwrap();
        for credentials in [Credentials::Anonymous, password_of("u")] {
            let renewed = logins(credentials).renew(&repository, &basic("u", "p"), Moment::now());
            assert_eq!(renewed, Ok(None));
        }
        let bearer = logins(Credentials::Bearer(Secret::new("t")));
        assert_eq!(bearer.preemptive(&repository), Some(Arc::new(Login::Bearer(Secret::new("t")))));
    }

    #[test]
    fn a_helper_in_a_docker_config_must_have_a_helpers_name() {
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
    fn a_credentials_file_that_is_a_pipe_blocks_nobody() {
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
