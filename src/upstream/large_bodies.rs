//! Limits the number of large bodies in memory.
//!
//! Clients choose which manifests are fetched, and a manifest must be completely in memory to be checked. A request with
//! a large body waits for a slot and holds it until the caller has stored the manifest. Threat: a registry that sends
//! large bodies slowly blocks others. Therefore unlisted registries have separate slots, and each request has a deadline.

use std::cell::Cell;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Smaller bodies, in bytes, need no slot: those of all fetchers together need few MiB.
pub(super) const SMALL_BODY_BYTES: usize = 128 * 1024;

/// The slots.
#[derive(Debug)]
pub struct LargeBodies {
    free: Mutex<usize>,
    freed: Condvar,
}

impl LargeBodies {
    /// Creates `slots` slots.
    pub fn new(slots: usize) -> LargeBodies {
        LargeBodies { free: Mutex::new(slots), freed: Condvar::new() }
    }

    /// Registers a request, which may need a slot later.
    pub fn request(&self) -> LargeBody<'_> {
        LargeBody { bodies: self, has_slot: Cell::new(false) }
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        // A panic leaves a number, and any number is valid.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request. Dropping it frees its slot.
#[derive(Debug)]
pub struct LargeBody<'a> {
    bodies: &'a LargeBodies,
    has_slot: Cell<bool>,
}

impl LargeBody<'_> {
    /// Waits for a slot, unless the request has one. Returns `false` if the deadline passes first.
    pub(super) fn wait_for_slot(&self, deadline: Instant) -> bool {
        if self.has_slot.get() {
            return true;
        }
        let mut free = self.bodies.lock();
        while *free == 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.bodies.freed.wait_timeout(free, left);
            free = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        *free -= 1;
        self.has_slot.set(true);
        true
    }
}

impl Drop for LargeBody<'_> {
    fn drop(&mut self) {
        if self.has_slot.get() {
            *self.bodies.lock() += 1;
            self.bodies.freed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_request_waits_until_another_one_has_ended() {
        let bodies = LargeBodies::new(1);
        let soon = || Instant::now() + Duration::from_secs(60);
        let first = bodies.request();
        assert!(
            first.wait_for_slot(soon()) && first.wait_for_slot(soon()),
            "a request needs one slot"
        );
        let second = bodies.request();
        assert!(!second.wait_for_slot(Instant::now()));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let third = bodies.request();
                assert!(third.wait_for_slot(soon()));
            });
            drop(first);
        });
        assert!(second.wait_for_slot(Instant::now()));
    }
}
