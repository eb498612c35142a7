//! Locks between threads and processes: `flock` on files, the lock between commits and removals, and the leases of
//! periodic jobs.

mod commit;
mod file_lock;
mod lease;

pub use commit::{BundleLock, CommitLock, SweepLocked};
pub(super) use file_lock::FileLock;
pub use lease::{JobLease, PeriodicJob};
