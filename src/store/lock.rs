//! Locks between threads and processes: `flock` on small files below `incoming/`, and on partials.
//!
//! A lock belongs to the open file description, which a child that is being started shares with us between
//! fork and exec, whatever descriptors are closed on exec. A lock that ended by closing our descriptor would
//! outlive it for that time, and the next one to try it would find it taken. So every lock ends by unlocking,
//! which counts for all descriptors.
//!
//! A process that is killed cannot unlock. A child that it was starting at that moment keeps its locks until it
//! executes its program, some milliseconds later: whoever tries one of them meanwhile finds it taken, and tries
//! again later as it does for a living owner.
//!
//! # Fairness
//! Commits take the sweep lock shared, and a removal takes it exclusively. Commits that overlap could keep a
//! removal out for ever, so both pass a gate first: a removal holds it while it waits, and commits that come
//! meanwhile wait behind it. A removal waits a bounded time, since an import or an export holds its share
//! throughout; that one is known by a lock of its own.

use std::fs::{File, TryLockError};
use std::io;
use std::ops::Deref;
use std::sync::Arc;

/// A locked file. Dropping it unlocks.
#[derive(Debug)]
pub(super) struct FileLock {
    file: Arc<File>,
}

impl FileLock {
    /// Waits until nobody else has the lock.
    pub(super) fn exclusive(file: File) -> io::Result<FileLock> {
        file.lock()?;
        Ok(FileLock { file: Arc::new(file) })
    }

    /// Waits until nobody has the lock exclusively.
    pub(super) fn shared(file: File) -> io::Result<FileLock> {
        file.lock_shared()?;
        Ok(FileLock { file: Arc::new(file) })
    }

    /// The lock, unless somebody else has it.
    pub(super) fn try_exclusive(file: File) -> io::Result<Option<FileLock>> {
        let tried = file.try_lock();
        FileLock::tried(file, tried)
    }

    /// A share of the lock, unless somebody has it exclusively.
    pub(super) fn try_shared(file: File) -> io::Result<Option<FileLock>> {
        let tried = file.try_lock_shared();
        FileLock::tried(file, tried)
    }

    /// The file, to be kept open for longer than it is locked.
    pub(super) fn shared_file(&self) -> &Arc<File> {
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
        let _ = self.file.unlock();
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn a_lock_ends_with_its_guard_although_children_are_being_started() {
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
    fn a_lock_is_had_once_or_shared() {
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
