//! Turns: chores that are done now and then, by one process of all those on a directory.

use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::Store;
use super::lock::FileLock;

/// What is done now and then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeriodicJob {
    /// All blobs are hashed.
    Scrub,
    /// What is old is pruned.
    Prune,
}

/// The right to a job, which one process has at a time.
#[derive(Debug)]
pub struct JobLease {
    mark: FileLock,
}

impl JobLease {
    /// Notes that it was done.
    pub fn finish(self, now: SystemTime) {
        // A mark that cannot be set means that it is done again sooner.
        let _ = self.mark.set_modified(now);
    }
}

impl Store {
    /// A turn, if the last one was so long ago and nobody else is at it. A cache that has never had one
    /// has just begun, and waits as long.
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

    /// Its time says when the job was last done; who holds its lock is at it.
    fn mark(&self, job: PeriodicJob) -> PathBuf {
        self.root().join(match job {
            PeriodicJob::Scrub => "scrubbed",
            PeriodicJob::Prune => "pruned",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Settings;
    use super::*;

    #[test]
    fn one_process_at_a_time_has_its_turn_when_the_last_pass_is_old_enough() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().to_owned();
        let store = Store::open(&Settings { root, fsync: false }).unwrap();
        let other = Store::open(&Settings { root: directory.path().to_owned(), fsync: false });
        let other = other.unwrap();
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let day = Duration::from_secs(86_400);
        assert!(
            store.acquire_lease(PeriodicJob::Scrub, day, at(1_000_000)).is_none(),
            "it has just begun"
        );
        assert!(store.acquire_lease(PeriodicJob::Scrub, day, at(1_086_399)).is_none());
        let lease = store.acquire_lease(PeriodicJob::Scrub, day, at(1_086_400)).unwrap();
        assert!(
            other.acquire_lease(PeriodicJob::Scrub, day, at(1_086_400)).is_none(),
            "somebody is at it"
        );
        lease.finish(at(1_090_000));
        assert!(
            other.acquire_lease(PeriodicJob::Scrub, day, at(1_100_000)).is_none(),
            "it was just done"
        );
        // A pass that did not end is begun again.
        drop(other.acquire_lease(PeriodicJob::Scrub, day, at(1_200_000)).unwrap());
        assert!(store.acquire_lease(PeriodicJob::Scrub, day, at(1_200_000)).is_some());
    }
}
