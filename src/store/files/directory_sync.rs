//! Syncs of directories, shared by the threads that wait for one.
//!
//! A file gets its name by a rename, which is durable once its directory is synced. Many downloads end at the same time,
//! and all blobs are in one directory: while one thread syncs it, the others rename their files, and the next sync covers
//! all of them.
//!
//! # Interleavings
//! * *A rename during a sync.* The running sync may have missed it. So a thread waits for a sync that began after it
//!   asked, which is the one after the running one.
//! * *A rename into a directory that another thread or process has created.* The path to it may not be synced yet, and a
//!   process that was killed never syncs it. So each process syncs the path to a directory before it relies on it for the
//!   first time ([`DirectorySyncs::durable`]); threads that create directories do so one after another.
//! * *A directory is removed and created again.* The thread that creates it forgets that it was durable, and syncs the path
//!   before others continue. A thread that has just synced the path of the old one notes it as durable before or after
//!   that, never in between. Not covered: another process creates it again, and the power is cut before it has synced the
//!   path.
//! * *A failed sync* is an error for every thread that waited for it, even if a later sync has succeeded before the thread
//!   continues: the kernel reports a lost write only once.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};

use super::layout::sync_directory;
use crate::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// The number of directories that are known to be durable. After that many, all of them are synced again.
const DURABLE_MAX: usize = 20_000;

/// The directories whose paths this process has made durable. With a directory, those above it are durable.
#[derive(Debug, Default)]
pub(in crate::store) struct DurablePaths(HashSet<PathBuf>);

impl DurablePaths {
    /// The directories on the path from below `root` to `path` that may not be durable, the uppermost first. Each is durable
    /// once its parent is synced.
    pub(in crate::store) fn unknown(&self, path: &Path, root: &Path) -> Vec<PathBuf> {
        let is_unknown =
            |path: &&Path| *path != root && path.starts_with(root) && !self.0.contains(*path);
        let mut unknown: Vec<PathBuf> =
            path.ancestors().take_while(is_unknown).map(Path::to_owned).collect();
        unknown.reverse();
        unknown
    }

    /// Notes directories that are durable.
    pub(in crate::store) fn add(&mut self, paths: Vec<PathBuf>) {
        if self.0.len() + paths.len() > DURABLE_MAX {
            self.0.clear();
        }
        self.0.extend(paths);
    }

    /// Forgets a directory that has been created again.
    pub(in crate::store) fn remove(&mut self, path: &Path) {
        self.0.remove(path);
    }
}

/// The directories that are being synced.
#[derive(Debug, Default)]
pub(in crate::store) struct DirectorySyncs {
    /// Locked for a lookup, an insertion or a removal only.
    running: Mutex<HashMap<PathBuf, Arc<Directory>>>,
    /// Held while directories are created and synced into their parents.
    durable: Mutex<DurablePaths>,
}

#[derive(Debug, Default)]
struct Directory {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    is_running: bool,
    waiting: usize,
    /// The number of syncs that have begun.
    begun: u64,
    /// The number of the last sync that has ended.
    ended: u64,
    /// The number of the last sync that failed, with its error.
    failed: Option<(u64, Failure)>,
}

/// An error for several threads.
#[derive(Debug, Clone, Copy)]
struct Failure {
    kind: io::ErrorKind,
    code: Option<i32>,
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> io::Error {
        failure.code.map_or_else(|| failure.kind.into(), io::Error::from_raw_os_error)
    }
}

impl DirectorySyncs {
    /// Waits until no other thread creates directories, and keeps others from it.
    pub(in crate::store) fn durable(&self) -> MutexGuard<'_, DurablePaths> {
        lock(&self.durable)
    }

    /// Makes the names durable that this thread has changed in a directory.
    ///
    /// # Errors
    /// If the directory cannot be opened or synced.
    pub(in crate::store) fn sync(&self, path: &Path) -> io::Result<()> {
        self.sync_with(path, sync_directory)
    }

    fn sync_with(&self, path: &Path, sync: impl Fn(&Path) -> io::Result<()>) -> io::Result<()> {
        let directory = Arc::clone(lock(&self.running).entry(path.to_owned()).or_default());
        let synced = directory.sync(|| sync(path));
        let mut running = lock(&self.running);
        // The table and this thread: nobody else uses the entry, and nobody gets it without the table's lock.
        if Arc::strong_count(&directory) == 2 {
            running.remove(path);
        }
        synced
    }
}

impl Directory {
    fn sync(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut state = lock(&self.state);
        let wanted = state.begun + 1;
        while state.is_running && state.ended < wanted {
            state.waiting += 1;
            state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
        if state.ended >= wanted {
            let failed = state.failed.filter(|(number, _)| *number >= wanted);
            return failed.map_or(Ok(()), |(_, failure)| Err(failure.into()));
        }
        state.is_running = true;
        state.begun += 1;
        drop(state);
        let result = sync();
        let mut state = lock(&self.state);
        state.is_running = false;
        state.ended = state.begun;
        if let Err(error) = &result {
            let failure = Failure { kind: error.kind(), code: error.raw_os_error() };
            state.failed = Some((state.ended, failure));
        }
        if state.waiting > 0 {
            self.ended.notify_all();
        }
        result
    }
}

/// No panic can happen under these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn threads_that_wait_share_the_sync_that_begins_after_they_asked() {
        let syncs = DirectorySyncs::default();
        let calls = AtomicUsize::new(0);
        let (entered, opened) = (Barrier::new(2), Barrier::new(2));
        let path = Path::new("directory");
        let again = |_: &Path| {
            calls.fetch_add(1, Ordering::SeqCst);
            Err(io::Error::from_raw_os_error(5))
        };
        thread::scope(|scope| {
            let first = scope.spawn(|| {
                syncs.sync_with(path, |_| {
                    calls.fetch_add(1, Ordering::SeqCst);
                    entered.wait();
                    opened.wait();
                    Ok(())
                })
            });
            entered.wait();
            let others: Vec<_> =
                (0..8).map(|_| scope.spawn(|| syncs.sync_with(path, again))).collect();
            let directory = Arc::clone(&lock(&syncs.running)[path]);
            while lock(&directory.state).waiting < 8 {
                thread::yield_now();
            }
            opened.wait();
            assert!(first.join().is_ok_and(|synced| synced.is_ok()));
            for other in others {
                let failed = other
                    .join()
                    .is_ok_and(|synced| synced.is_err_and(|error| error.raw_os_error() == Some(5)));
                assert!(failed, "the second sync fails for all who wait for it");
            }
        });
        assert_eq!(calls.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn a_failed_sync_does_not_affect_the_next_one() {
        let syncs = DirectorySyncs::default();
        let path = Path::new("directory");
        let failing = |_: &Path| Err(io::Error::from_raw_os_error(5));
        assert!(syncs.sync_with(path, failing).is_err());
        assert!(syncs.sync_with(path, |_| Ok(())).is_ok());
    }

    #[test]
    fn directories_are_synced_at_the_same_time() {
        let syncs = DirectorySyncs::default();
        let both = Barrier::new(2);
        thread::scope(|scope| {
            for name in ["one", "other"] {
                scope.spawn(|| {
                    syncs.sync_with(Path::new(name), |_| {
                        both.wait();
                        Ok(())
                    })
                });
            }
        });
    }
}
