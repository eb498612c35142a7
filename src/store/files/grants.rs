//! Which clients have been allowed to pull which repositories, so that they still are while the registry is down, and after
//! a restart: one small file for each login and repository, and the secret that hides the logins in their names.
//!
//! The directory is readable for its owner only. A record contains no password, and its name is a keyed hash.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::oci::ImageName;
use crate::store::files::layout::ISSUER_KEYS;
use crate::store::files::read::read_file;
use crate::store::files::record::{Access, from_seconds, to_seconds};
use crate::store::{Store, StoreError};

/// The length of the secret, in bytes: that of the hash that it is for (RFC 2104, section 3).
const ACCESS_SECRET_BYTES: usize = 32;
/// How many records are kept. Each needs a block of the file system.
const GRANTS_MAX: usize = 65_536;
/// The extension of a record.
const RECORD: &str = "json";

/// The secret of a cache directory.
pub type AccessSecret = [u8; ACCESS_SECRET_BYTES];

/// That a registry has let a login pull a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantRecord {
    /// Registry and repository.
    pub repository: String,
    /// The user of the login.
    pub user: String,
    /// When the registry last confirmed it, in seconds since 1970.
    confirmed: u64,
}

impl GrantRecord {
    /// A record of a confirmation.
    pub fn new(name: &ImageName, user: &str, confirmed: SystemTime) -> GrantRecord {
        let (repository, user) = (name.to_string(), user.to_owned());
        GrantRecord { repository, user, confirmed: to_seconds(confirmed) }
    }

    /// When the registry last confirmed it.
    pub fn confirmed(&self) -> SystemTime {
        // A time that cannot be represented is that of a damaged record.
        from_seconds(self.confirmed).unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

impl Store {
    /// The secret of this directory, which all processes on it share. Created if there is none.
    ///
    /// # Errors
    /// [`StoreError`] if it cannot be read or created.
    pub fn access_secret(&self) -> Result<AccessSecret, StoreError> {
        let path = self.inner.layout.access_secret();
        if let Some(secret) = read_secret(&path)? {
            return Ok(secret);
        }
        self.prepare_grants()?;
        let random = random_secret().map_err(|error| StoreError::write(&path, error))?;
        let temporary = self.inner.layout.temporary();
        let mut options = fs::OpenOptions::new();
        let written = options.write(true).create_new(true).mode(0o600).open(&temporary).and_then(
            |mut file| {
                file.write_all(&random)?;
                self.inner.layout.owner().give_path(&temporary);
                file.sync_all()
            },
        );
        // Unlike a rename, this does not replace the secret that another process has just created.
        let linked = written.and_then(|()| fs::hard_link(&temporary, &path));
        let _ = fs::remove_file(&temporary);
        match linked {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(StoreError::write(&path, error))
            }
            _ => read_secret(&path)?.ok_or_else(|| {
                let why = "it is damaged; remove it, so that all clients are checked again";
                StoreError::read(&path, io::Error::other(why))
            }),
        }
    }

    /// The record with this key.
    ///
    /// # Errors
    /// [`StoreError`] if it cannot be read.
    pub fn grant(&self, key: &str) -> Result<Option<GrantRecord>, StoreError> {
        self.find_record(&self.inner.layout.grant(key), Access::Look)
    }

    /// Writes a record, unless there are too many.
    ///
    /// # Errors
    /// [`StoreError`] if it cannot be written.
    pub fn put_grant(&self, key: &str, record: &GrantRecord) -> Result<(), StoreError> {
        let path = self.inner.layout.grant(key);
        if !path.exists() && self.grant_files()?.len() >= GRANTS_MAX {
            let why = format!("there are {GRANTS_MAX} of them; larder access forget removes some");
            return Err(StoreError::write(&path, io::Error::other(why)));
        }
        self.prepare_grants()?;
        self.put_record(&path, record)
    }

    /// Removes a record. That there is none is not an error.
    ///
    /// # Errors
    /// [`StoreError`] if it cannot be removed.
    pub fn remove_grant(&self, key: &str) -> Result<(), StoreError> {
        let path = self.inner.layout.grant(key);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::write(&path, error))
            }
            _ => Ok(()),
        }
    }

    /// All records with their keys, in no order. Those that are damaged are left out.
    ///
    /// # Errors
    /// [`StoreError`] if the directory cannot be read.
    pub fn grants(&self) -> Result<Vec<(String, GrantRecord)>, StoreError> {
        let keys = self.grant_files()?.into_iter().filter_map(|path| {
            let stem = path.file_stem()?.to_str()?;
            Some(stem.to_owned())
        });
        keys.filter_map(|key| match self.grant(&key) {
            Ok(record) => record.map(|record| Ok((key, record))),
            Err(error) => Some(Err(error)),
        })
        .collect()
    }

    /// Makes the processes on this directory forget what they know of logins, so that removals of records take effect.
    ///
    /// # Errors
    /// [`StoreError`] if a write fails.
    pub fn forget_grants_in_memory(&self) -> Result<(), StoreError> {
        self.prepare_grants()?;
        self.inner.replace(&self.inner.layout.grants_forgotten(), b"")
    }

    /// When that was last demanded.
    pub fn grants_forgotten(&self) -> Option<SystemTime> {
        let metadata = fs::metadata(self.inner.layout.grants_forgotten());
        metadata.and_then(|metadata| metadata.modified()).ok()
    }

    fn grant_files(&self) -> Result<Vec<PathBuf>, StoreError> {
        let directory = self.inner.layout.grants();
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|error| StoreError::read(&directory, error))?,
        };
        let paths = entries.map(|entry| entry.map(|entry| entry.path()));
        let paths: io::Result<Vec<PathBuf>> = paths.collect();
        let mut paths = paths.map_err(|error| StoreError::read(&directory, error))?;
        let is_of_issuer = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.as_bytes().starts_with(ISSUER_KEYS.as_bytes()))
        };
        paths.retain(|path| {
            path.extension().is_some_and(|extension| extension == RECORD) && !is_of_issuer(path)
        });
        Ok(paths)
    }

    pub(super) fn prepare_grants(&self) -> Result<(), StoreError> {
        self.require_writable()?;
        let directory = self.inner.layout.grants();
        let is_closed = |metadata: fs::Metadata| metadata.permissions().mode() & 0o077 == 0;
        if fs::metadata(&directory).is_ok_and(is_closed) {
            return Ok(());
        }
        let created = self.inner.layout.create_directories(&directory);
        let closed =
            created.and_then(|_| fs::set_permissions(&directory, Permissions::from_mode(0o700)));
        closed.map_err(|error| StoreError::write(&directory, error))
    }
}

/// A new secret, from the operating system.
///
/// # Errors
/// The system's.
pub fn random_secret() -> io::Result<AccessSecret> {
    let mut secret = [0; ACCESS_SECRET_BYTES];
    let mut rest = &mut secret[..];
    while !rest.is_empty() {
        let filled = rustix::rand::getrandom(&mut *rest, rustix::rand::GetRandomFlags::empty())?;
        rest = &mut rest[filled..];
    }
    Ok(secret)
}

fn read_secret(path: &Path) -> Result<Option<AccessSecret>, StoreError> {
    match read_file(path) {
        Ok(bytes) => Ok(bytes.try_into().ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::read(path, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Settings;

    fn store(root: &Path) -> Store {
        Store::open(&Settings { root: root.to_owned(), fsync: false }).unwrap()
    }

    fn name() -> ImageName {
        ImageName::new("quay.io".parse().unwrap(), "org/app".parse().unwrap())
    }

    #[test]
    fn the_first_secret_counts_and_only_its_owner_can_read_it() {
        let directory = tempfile::tempdir().unwrap();
        let one = store(directory.path());
        let secret = one.access_secret().unwrap();
        assert_eq!(store(directory.path()).access_secret().unwrap(), secret);
        assert_ne!(secret, [0; ACCESS_SECRET_BYTES]);
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(one.inner.layout.access_secret()), 0o600);
        assert_eq!(mode(one.inner.layout.grants()), 0o700);
    }

    #[test]
    fn a_damaged_secret_is_an_error_with_a_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path());
        store.access_secret().unwrap();
        fs::write(store.inner.layout.access_secret(), b"short").unwrap();
        let error = store.access_secret().unwrap_err().to_string();
        assert!(error.contains("remove it"), "{error}");
    }

    #[test]
    fn grants_survive_and_can_be_removed() {
        let directory = tempfile::tempdir().unwrap();
        let confirmed = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000);
        let record = GrantRecord::new(&name(), "ann", confirmed);
        store(directory.path()).put_grant("aa", &record).unwrap();
        let again = store(directory.path());
        assert_eq!(again.grant("aa").unwrap(), Some(record.clone()));
        assert_eq!(record.confirmed(), confirmed);
        assert_eq!(again.grants().unwrap(), [("aa".to_owned(), record)]);
        assert_eq!(again.grants_forgotten(), None);
        again.remove_grant("aa").unwrap();
        again.remove_grant("aa").unwrap();
        again.forget_grants_in_memory().unwrap();
        assert!(again.grants().unwrap().is_empty() && again.grants_forgotten().is_some());
    }
}
