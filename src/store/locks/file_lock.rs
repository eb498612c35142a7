//! One lock: `flock` on a small file below `incoming/`, or on a partial.
//!
//! A lock belongs to the open file description. Between fork and exec, a starting child shares all of them, even
//! those that are closed on exec. A lock that ended by closing the descriptor would stay locked during that time.
//! So every lock is released by an explicit unlock, which affects all descriptors.
//!
//! A killed process cannot unlock. A child that it was starting keeps the locks until it executes its program, some
//! milliseconds later. A process that tries such a lock finds it taken and retries later, as with a live owner.

use std::fs::{self, File, TryLockError};
use std::io;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use super::flock;
use crate::store::files::read::{is_same_file, open_to_read};

/// A locked file. Dropping it unlocks.
#[derive(Debug)]
pub(in crate::store) struct FileLock {
    file: Arc<File>,
}

impl FileLock {
    /// Waits for the exclusive lock.
    pub(in crate::store) fn exclusive(file: File) -> io::Result<FileLock> {
        flock::lock(&file)?;
        Ok(FileLock { file: Arc::new(file) })
    }

    /// Waits for the shared lock.
    pub(in crate::store) fn shared(file: File) -> io::Result<FileLock> {
        flock::lock_shared(&file)?;
        Ok(FileLock { file: Arc::new(file) })
    }

    /// Takes the exclusive lock; `None` if the file is locked.
    pub(in crate::store) fn try_exclusive(file: File) -> io::Result<Option<FileLock>> {
        let tried = flock::try_lock(&file);
        FileLock::tried(file, tried)
    }

    /// Takes the shared lock; `None` if the file is locked exclusively.
    pub(in crate::store) fn try_shared(file: File) -> io::Result<Option<FileLock>> {
        let tried = flock::try_lock_shared(&file);
        FileLock::tried(file, tried)
    }

    /// The file, for a reader that needs it longer than the lock.
    pub(in crate::store) fn shared_file(&self) -> &Arc<File> {
        &self.file
    }

    fn tried(file: File, tried: Result<(), TryLockError>) -> io::Result<Option<FileLock>> {
        match tried {
            Ok(()) => Ok(Some(FileLock { file: Arc::new(file) })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

impl Deref for FileLock {
    type Target = File;

    fn deref(&self) -> &File {
        &self.file
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        let _ = flock::unlock(&self.file);
    }
}

/// Removes a file, unless a process has locked it.
pub(in crate::store) fn remove_unlocked(path: &Path) {
    let Ok(lock) = open_to_read(path).and_then(FileLock::try_exclusive) else { return };
    // Meanwhile, another process may have removed it and locked a new file of this name.
    if lock.is_some_and(|lock| is_same_file(path, &lock) && fs::remove_file(path).is_ok()) {
        log::debug!(file:% = path.display(); "removed a file that a killed process has left");
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn a_lock_ends_with_its_guard_even_while_children_start() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let open = || File::options().create(true).append(true).open(&path).unwrap();
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    Command::new("true").status().unwrap();
                }
            });
            for round in 0..3000 {
                let lock = FileLock::try_exclusive(open()).unwrap();
                assert!(lock.is_some(), "round {round}: a lock outlived its guard");
            }
            is_over.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn a_lock_is_exclusive_or_shared() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let open = || File::options().create(true).append(true).open(&path).unwrap();
        let exclusive = FileLock::exclusive(open()).unwrap();
        assert!(FileLock::try_exclusive(open()).unwrap().is_none());
        assert!(FileLock::try_shared(open()).unwrap().is_none());
        drop(exclusive);
        let shared = FileLock::shared(open()).unwrap();
        assert!(FileLock::try_shared(open()).unwrap().is_some());
        assert!(FileLock::try_exclusive(open()).unwrap().is_none());
        drop(shared);
        assert!(FileLock::try_exclusive(open()).unwrap().is_some());
    }
}
