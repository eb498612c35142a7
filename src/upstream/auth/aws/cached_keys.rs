//! The keys of an object store: fixed ones, or those of the process, cached and renewed.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::environment::sts_in;
use super::sigv4::Keys;
use super::sources::{FoundKeys, KeySource, keys};
use super::{Agents, AwsEnvironment, unavailable, unusable};
use crate::upstream::auth::cached_login::{CachedLogin, Fetched};
use crate::upstream::auth::credentials::{LoginError, Secret};
use crate::upstream::auth::logins::read;
use crate::upstream::network::Reach;

/// How long keys are cached whose source does not report when they expire: files and variables can change.
const EXPIRY: Duration = Duration::from_secs(5 * 60);

/// `objectStore.accessKeyId` and the like: where the keys for an object store come from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeySettings {
    /// These keys, in place of those of the process.
    pub fixed: Option<FixedKeys>,
    /// Only the keys of this profile in the shared credentials file.
    pub profile: Option<String>,
    /// Where the keys of the process are.
    pub environment: AwsEnvironment,
}

impl KeySettings {
    /// The files that are read for keys, with their configuration keys.
    pub fn files(&self) -> Vec<(&'static str, &Path)> {
        match &self.fixed {
            Some(FixedKeys { secret: SecretSource::File(path), .. }) => {
                vec![("secretAccessKeyFile", path)]
            }
            _ => Vec::new(),
        }
    }
}

/// Keys in the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FixedKeys {
    /// The access key id, which is not a secret.
    pub id: String,
    /// The secret access key.
    pub secret: SecretSource,
    /// The session token of temporary keys.
    pub session_token: Option<Secret>,
}

/// Where a secret is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// In the configuration or the environment.
    Literal(Secret),
    /// In a file, which is read again when the keys are renewed; a line break at its end is ignored.
    File(PathBuf),
}

/// The keys of one object store.
pub(in crate::upstream) struct CachedKeys {
    settings: KeySettings,
    region: String,
    agents: Agents,
    cached: CachedLogin<Keys>,
}

impl fmt::Debug for CachedKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachedKeys").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl CachedKeys {
    /// Reads no files and makes no requests.
    pub(in crate::upstream) fn new(
        settings: KeySettings,
        region: &str,
        reach: &Reach,
    ) -> CachedKeys {
        let agents = Agents::new(reach, &settings.environment);
        let cached = CachedLogin::default();
        CachedKeys { settings, region: region.to_owned(), agents, cached }
    }

    /// The keys. May read a file or make a request to a cloud.
    ///
    /// # Errors
    /// Which source fails, how, and what to do.
    pub(in crate::upstream) fn get(&self) -> Result<Arc<Keys>, LoginError> {
        let keys = self.cached.login(Instant::now(), || self.fetch())?;
        keys.ok_or_else(|| unavailable("there are no keys".into()))
    }

    /// The keys that are cached, if they have not expired. Never waits.
    pub(in crate::upstream) fn current(&self) -> Option<Arc<Keys>> {
        self.cached.current(Instant::now())
    }

    /// Other keys than `rejected`, which the store refuses; `None` if there are none, or if some were fetched for this
    /// reason within the last minute.
    ///
    /// # Errors
    /// As [`CachedKeys::get`].
    pub(in crate::upstream) fn renew(
        &self,
        rejected: &Keys,
    ) -> Result<Option<Arc<Keys>>, LoginError> {
        self.cached.renew(rejected, Instant::now(), || self.fetch())
    }

    /// Makes the next use fetch the keys again.
    pub(in crate::upstream) fn refresh(&self) {
        self.cached.refresh(Instant::now());
    }

    fn fetch(&self) -> Result<Fetched<Keys>, LoginError> {
        let found = self.find()?;
        let left = found.expires_at.map(|at| at.duration_since(SystemTime::now()));
        let lifetime = left.map_or(EXPIRY, Result::unwrap_or_default);
        Ok(Fetched { login: Some(found.keys), lifetime })
    }

    fn find(&self) -> Result<FoundKeys, LoginError> {
        let Some(fixed) = &self.settings.fixed else {
            let source = KeySource {
                profile: self.settings.profile.as_deref(),
                environment: &self.settings.environment,
                sts: sts_in(&self.region),
            };
            return keys(&source, &self.agents);
        };
        let secret = match &fixed.secret {
            SecretSource::Literal(secret) => secret.clone(),
            SecretSource::File(path) => {
                let text = read(path, "the secret access key").map_err(unusable)?;
                Secret::new(text.trim_end_matches(['\r', '\n']))
            }
        };
        let session_token = fixed.session_token.clone();
        Ok(Keys { id: fixed.id.clone(), secret, session_token }.into())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn keys_of(settings: KeySettings) -> CachedKeys {
        CachedKeys::new(settings, "eu-central-1", &Reach::default())
    }

    #[test]
    fn a_changed_secret_file_is_read_after_a_refusal() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        fs::write(&path, "first\n").unwrap();
        let secret = SecretSource::File(path.clone());
        let fixed = FixedKeys { id: "A".into(), secret, session_token: None };
        let keys = keys_of(KeySettings { fixed: Some(fixed), ..KeySettings::default() });
        let first = keys.get().unwrap();
        assert_eq!(first.secret, Secret::new("first"));
        fs::write(&path, "second").unwrap();
        assert_eq!(keys.get().unwrap(), first, "cached");
        let second = keys.renew(&first).unwrap().unwrap();
        assert_eq!(second.secret, Secret::new("second"));
        assert_eq!(keys.get().unwrap(), second);
        assert_eq!(keys.renew(&second).unwrap(), None, "not twice in a minute");
    }

    #[test]
    fn keys_of_the_process_need_no_registry() {
        let environment = AwsEnvironment {
            keys: Some(("A".into(), Secret::new("s"))),
            session_token: Some(Secret::new("t")),
            ..AwsEnvironment::default()
        };
        let keys = keys_of(KeySettings { environment, ..KeySettings::default() });
        let session_token = Some(Secret::new("t"));
        let expected = Keys { id: "A".into(), secret: Secret::new("s"), session_token };
        assert_eq!(*keys.get().unwrap(), expected);
        let none = keys_of(KeySettings::default()).get().unwrap_err();
        assert!(none.reason().contains("AWS_ACCESS_KEY_ID"), "{none:?}");
    }

    #[test]
    fn settings_do_not_print_secrets() {
        let secret = SecretSource::Literal(Secret::new("hunter2"));
        let session_token = Some(Secret::new("hunter3"));
        let fixed = Some(FixedKeys { id: "A".into(), secret, session_token });
        let text = format!("{:?}", KeySettings { fixed, ..KeySettings::default() });
        assert!(text.contains("\"A\"") && !text.contains("hunter"), "{text}");
    }
}
