//! `flock` as system calls. Tests of interleavings simulate it, since a call that blocks would stop all their threads.

#[cfg(all(test, feature = "interleavings"))]
pub(super) use super::interleavings::{lock, lock_shared, try_lock, try_lock_shared, unlock};

#[cfg(not(all(test, feature = "interleavings")))]
pub(super) use calls::{lock, lock_shared, try_lock, try_lock_shared, unlock};

#[cfg(not(all(test, feature = "interleavings")))]
mod calls {
    use std::fs::{File, TryLockError};
    use std::io;

    pub(in crate::store::locks) fn lock(file: &File) -> io::Result<()> {
        file.lock()
    }

    pub(in crate::store::locks) fn lock_shared(file: &File) -> io::Result<()> {
        file.lock_shared()
    }

    pub(in crate::store::locks) fn try_lock(file: &File) -> Result<(), TryLockError> {
        file.try_lock()
    }

    pub(in crate::store::locks) fn try_lock_shared(file: &File) -> Result<(), TryLockError> {
        file.try_lock_shared()
    }

    pub(in crate::store::locks) fn unlock(file: &File) -> io::Result<()> {
        file.unlock()
    }
}
