//! Locks between processes that would request the same document from a registry.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use super::FileLock;
use crate::oci::{Algorithm, Digest};
use crate::store::Store;
use crate::store::files::read::is_same_file;

/// How often another process may have removed the lock's file between opening and locking it.
const ROUNDS_MAX: u32 = 8;

/// Held while a document is requested and stored. Dropping it removes its file.
#[derive(Debug)]
pub struct FetchLock {
    /// `None` if the directory cannot be written: then nothing is stored for other processes.
    locked: Option<(PathBuf, FileLock)>,
}

impl Store {
    /// Locks the request for a document; `None` if another process sends it. A file that a killed process has left is
    /// removed with the leftovers.
    ///
    /// # Errors
    /// The lock's file cannot be created.
    pub fn fetch_lock(&self, document: &str) -> io::Result<Option<FetchLock>> {
        if !self.is_writable() {
            return Ok(Some(FetchLock { locked: None }));
        }
        let name = Digest::of(Algorithm::Sha256, document.as_bytes());
        let path = self.inner.layout.fetch_lock(&name);
        for _ in 0..ROUNDS_MAX {
            let mut options = File::options();
            let file = self.inner.layout.owner().open(options.create(true).append(true), &path)?;
            let Some(lock) = FileLock::try_exclusive(file)? else { return Ok(None) };
            if is_same_file(&path, &lock) {
                return Ok(Some(FetchLock { locked: Some((path, lock)) }));
            }
        }
        Ok(None)
    }
}

impl Drop for FetchLock {
    fn drop(&mut self) {
        if let Some((path, _lock)) = &self.locked {
            // While it is locked, so that no other process has locked a new file of this name.
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use crate::oci::{Algorithm, Digest};
    use crate::store::{Settings, Store};

    #[test]
    fn one_process_requests_a_document_and_leaves_no_file() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("cache");
        let open = || Store::open(&Settings { root: root.clone(), fsync: false }).unwrap();
        let (one, other) = (open(), open());
        let files = || std::fs::read_dir(root.join("incoming")).unwrap().count();
        let before = files();
        let held = one.fetch_lock("quay.io/a:v1").unwrap().unwrap();
        assert!(other.fetch_lock("quay.io/a:v1").unwrap().is_none());
        assert!(other.fetch_lock("quay.io/a:v2").unwrap().is_some());
        drop(held);
        assert!(other.fetch_lock("quay.io/a:v1").unwrap().is_some());
        assert_eq!(files(), before);
    }

    #[test]
    fn a_lock_that_a_killed_process_has_left_is_removed_and_a_held_one_stays() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("cache");
        let store = Store::open(&Settings { root: root.clone(), fsync: false }).unwrap();
        let held = store.fetch_lock("quay.io/a:v1").unwrap().unwrap();
        let (path, _) = held.locked.as_ref().unwrap();
        let left = store.inner.layout.fetch_lock(&Digest::of(Algorithm::Sha256, b"quay.io/a:v2"));
        std::fs::write(&left, "").unwrap();
        store.remove_leftovers(SystemTime::now());
        assert!(path.exists() && !left.exists());
        // Long requests are not leftovers either.
        store.remove_leftovers(SystemTime::now() + Duration::from_secs(7200));
        assert!(path.exists());
        drop(held);
    }
}
