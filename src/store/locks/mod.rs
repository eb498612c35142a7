//! Locks between threads and processes: `flock` on files, the lock between commits and removals, and the leases of
//! periodic jobs.

mod commit;
mod fetch;
mod file_lock;
mod flock;
mod lease;

#[cfg(test)]
#[cfg(feature = "interleavings")]
mod interleavings;

pub use commit::{BundleLock, CommitLock, SweepLocked};
pub use fetch::FetchLock;
pub(super) use file_lock::{FileLock, remove_unlocked};
pub use lease::{ImageSyncLock, JobLease, PeriodicJob, UploadLock};
