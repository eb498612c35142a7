//! Locks, atomics and threads of the code whose interleavings are tested: those of the standard library.
//!
//! In the tests of `make interleavings` (`--features interleavings`) they are those of shuttle, which runs one thread at a
//! time and decides at each of these operations which one continues. So the tested code is the code that runs in
//! production.

#[cfg(not(all(test, feature = "interleavings")))]
pub(crate) use std::{
    sync::{Condvar, Mutex, MutexGuard, atomic},
    thread,
};

#[cfg(all(test, feature = "interleavings"))]
pub(crate) use shuttle::{
    sync::{Condvar, Mutex, MutexGuard, atomic},
    thread,
};

// Shuttle's are those of the standard library.
pub(crate) use std::sync::{Arc, PoisonError};

/// A point at which another thread may continue, for operations on files. Does nothing outside the tests of
/// interleavings.
#[inline]
pub(crate) fn may_switch() {
    #[cfg(all(test, feature = "interleavings"))]
    interleavings::switch();
}

#[cfg(test)]
#[cfg(feature = "interleavings")]
pub(crate) mod interleavings;
