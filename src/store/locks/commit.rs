//! The lock between commits of manifests, which share it, and removals, which exclude them.
//!
//! # Fairness
//! Commits take the sweep lock shared, a removal takes it exclusively. Overlapping commits could keep a removal
//! waiting forever, so both pass a gate first: a removal holds the gate while it waits, and new commits queue at
//! the gate. A removal waits for a bounded time, since an import or an export holds the shared lock for its whole
//! run; that case is detected with a separate lock.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::FileLock;
use crate::store::{Store, StoreError};
use crate::sync::thread;

/// Attempts to get the exclusive lock, and the wait between them: one second in total. Commits hold the shared lock
/// for milliseconds, imports and exports for their whole run.
const LOCK_TRIES: u32 = 100;
const LOCK_WAIT: Duration = Duration::from_millis(10);

/// See [`Store::commit_lock`].
#[derive(Debug)]
pub struct CommitLock {
    _lock: FileLock,
}

/// See [`Store::bundle_lock`].
#[derive(Debug)]
pub struct BundleLock {
    _commit: CommitLock,
    _bundle: FileLock,
}

/// Why a sweep cannot start now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SweepLocked {
    /// Another process, or another thread of this one, is removing images.
    AnotherSweep,
    /// An import or an export is running, and its blobs must stay.
    Bundle,
    /// A commit of a manifest takes unusually long: the disk is slow, or a process was stopped during it.
    Commit,
}

impl SweepLocked {
    /// The reason, for log lines and errors.
    pub fn as_str(self) -> &'static str {
        match self {
            SweepLocked::AnotherSweep => "images are already being removed",
            SweepLocked::Bundle => "an import or export is running and needs the cached content",
            SweepLocked::Commit => "an image is being added, which takes unusually long",
        }
    }
}

impl Store {
    /// Takes the lock under which a manifest and its names are written, so that a sweep of unreferenced blobs sees
    /// all of them or none. Dropping it unlocks. Hold it for disk work only, and never twice in one thread, except
    /// below a [`Store::bundle_lock`].
    ///
    /// # Errors
    /// [`StoreError`] if the lock file cannot be opened.
    pub fn commit_lock(&self) -> Result<CommitLock, StoreError> {
        let (path, gate) = (self.inner.layout.sweep_lock(), self.inner.layout.sweep_gate());
        // A waiting removal holds the gate and goes first.
        let passed = self.inner.layout.open_lock(&gate).and_then(FileLock::shared);
        drop(passed.map_err(|error| StoreError::write(&gate, error))?);
        let lock = self.inner.layout.open_lock(&path).and_then(FileLock::shared);
        let lock = lock.map_err(|error| StoreError::write(&path, error))?;
        Ok(CommitLock { _lock: lock })
    }

    /// Like [`Store::commit_lock`], for the duration of an import or an export: nothing is removed in that time,
    /// and a removal reports the reason.
    ///
    /// # Errors
    /// As [`Store::commit_lock`].
    pub fn bundle_lock(&self) -> Result<BundleLock, StoreError> {
        let path = self.inner.layout.bundle_lock();
        let bundle = self.inner.layout.open_lock(&path).and_then(FileLock::shared);
        let bundle = bundle.map_err(|error| StoreError::write(&path, error))?;
        Ok(BundleLock { _commit: self.commit_lock()?, _bundle: bundle })
    }

    /// Takes the lock that excludes commits of manifests. Commits that begin during the wait queue after it.
    pub(in crate::store) fn exclusive_lock(
        &self,
    ) -> Result<Result<FileLock, SweepLocked>, StoreError> {
        let layout = &self.inner.layout;
        let locked = |path: PathBuf, lock: fn(File) -> io::Result<Option<FileLock>>| {
            layout.open_lock(&path).and_then(lock).map_err(|error| StoreError::write(&path, error))
        };
        let wait = |file| FileLock::exclusive(file).map(Some);
        let _gate = locked(layout.sweep_gate(), wait)?;
        // After the gate: no other removal tries this lock at the same time and is mistaken for a bundle.
        if locked(layout.bundle_lock(), FileLock::try_exclusive)?.is_none() {
            return Ok(Err(SweepLocked::Bundle));
        }
        for _ in 0..LOCK_TRIES {
            if let Some(lock) = locked(layout.sweep_lock(), FileLock::try_exclusive)? {
                return Ok(Ok(lock));
            }
            thread::sleep(LOCK_WAIT);
        }
        Ok(Err(SweepLocked::Commit))
    }
}
