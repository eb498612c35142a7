//! Job leases: each periodic job runs in one of the processes that share a directory.

use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::FileLock;
use crate::store::Store;

/// A job that runs periodically.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeriodicJob {
    /// Hash all blobs and compare them with their digests.
    Scrub,
    /// Remove old images.
    Prune,
}

/// The right to run a job, which one process holds at a time.
#[derive(Debug)]
pub struct JobLease {
    mark: FileLock,
}

impl JobLease {
    /// Records that the job has run.
    pub fn finish(self, now: SystemTime) {
        // If that fails, the job runs again sooner.
        let _ = self.mark.set_modified(now);
    }
}

/// The right to upload what is queued, which one process holds at a time.
#[derive(Debug)]
pub struct UploadLock {
    _lock: FileLock,
}

/// The right to run entries of `sync`, which one process holds at a time.
#[derive(Debug)]
pub struct ImageSyncLock {
    _lock: FileLock,
}

impl Store {
    /// The right to run entries of `sync`; `None` if another process has it.
    pub fn lock_image_sync(&self) -> Option<ImageSyncLock> {
        let file = self.inner.layout.open_lock(&self.inner.layout.image_sync_lock()).ok()?;
        FileLock::try_exclusive(file).ok()?.map(|lock| ImageSyncLock { _lock: lock })
    }

    /// The right to upload; `None` if another process has it.
    pub fn lock_uploads(&self) -> Option<UploadLock> {
        let file = self.inner.layout.open_lock(&self.inner.layout.outgoing_lock()).ok()?;
        FileLock::try_exclusive(file).ok()?.map(|lock| UploadLock { _lock: lock })
    }

    /// Returns a lease if the job last ran at least `every` ago and no other process is running it. A new cache
    /// waits for the same time before its first run.
    pub fn acquire_lease(
        &self,
        job: PeriodicJob,
        every: Duration,
        now: SystemTime,
    ) -> Option<JobLease> {
        let path = self.mark(job);
        if !path.exists() {
            let owner = self.inner.layout.owner();
            let created = owner.open(File::options().create(true).append(true), &path);
            let created = created.and_then(|mark| mark.set_modified(now));
            return created.err().and(None);
        }
        let mark = self.inner.layout.open_lock(&path).ok()?;
        let mark = FileLock::try_exclusive(mark).ok()??;
        let last = mark.metadata().and_then(|metadata| metadata.modified()).ok()?;
        let is_due = now.duration_since(last).is_ok_and(|age| age >= every);
        is_due.then_some(JobLease { mark })
    }

    /// The job's mark file: its mtime is the time of the last run, and the process that runs the job locks it.
    fn mark(&self, job: PeriodicJob) -> PathBuf {
        self.root().join(match job {
            PeriodicJob::Scrub => "scrubbed",
            PeriodicJob::Prune => "pruned",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Settings;

    #[test]
    fn one_process_at_a_time_gets_the_lease_when_the_last_run_is_old_enough() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().to_owned();
        let store = Store::open(&Settings { root, fsync: false }).unwrap();
        let other = Store::open(&Settings { root: directory.path().to_owned(), fsync: false });
        let other = other.unwrap();
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let day = Duration::from_secs(86_400);
        assert!(
            store.acquire_lease(PeriodicJob::Scrub, day, at(1_000_000)).is_none(),
            "the cache is new"
        );
        assert!(store.acquire_lease(PeriodicJob::Scrub, day, at(1_086_399)).is_none());
        let lease = store.acquire_lease(PeriodicJob::Scrub, day, at(1_086_400)).unwrap();
        assert!(
            other.acquire_lease(PeriodicJob::Scrub, day, at(1_086_400)).is_none(),
            "another process is running it"
        );
        lease.finish(at(1_090_000));
        assert!(
            other.acquire_lease(PeriodicJob::Scrub, day, at(1_100_000)).is_none(),
            "it has just run"
        );
        // An unfinished run is started again.
        drop(other.acquire_lease(PeriodicJob::Scrub, day, at(1_200_000)).unwrap());
        assert!(store.acquire_lease(PeriodicJob::Scrub, day, at(1_200_000)).is_some());
    }
}
