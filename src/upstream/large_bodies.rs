//! How many large bodies are in memory at a time.
//!
//! Clients choose which manifests are fetched, and a manifest has to be complete in memory to be checked. A request
//! whose body turns out to be large waits for its turn and keeps it until the caller has stored the manifest. Threat:
//! a registry that sends large bodies slowly keeps others waiting; so unlisted registries have turns of their own,
//! and each request has a deadline.

use std::cell::Cell;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Smaller bodies need no turn, in bytes: those of all fetchers together take few MiB.
pub(super) const SMALL_BODY_BYTES: usize = 128 * 1024;

/// The turns.
#[derive(Debug)]
pub struct LargeBodies {
    free: Mutex<usize>,
    freed: Condvar,
}

impl LargeBodies {
    /// So many at a time.
    pub fn new(at_a_time: usize) -> LargeBodies {
        LargeBodies { free: Mutex::new(at_a_time), freed: Condvar::new() }
    }

    /// For one request, which may need a turn.
    pub fn request(&self) -> LargeBody<'_> {
        LargeBody { bodies: self, has_turn: Cell::new(false) }
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        // A number is valid whatever panicked elsewhere.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request. Dropping it ends its turn.
#[derive(Debug)]
pub struct LargeBody<'a> {
    bodies: &'a LargeBodies,
    has_turn: Cell<bool>,
}

impl LargeBody<'_> {
    /// Waits for a turn, unless the request has it already. `false` if the deadline passes first.
    pub(super) fn wait_for_turn(&self, deadline: Instant) -> bool {
        if self.has_turn.get() {
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
        self.has_turn.set(true);
        true
    }
}

impl Drop for LargeBody<'_> {
    fn drop(&mut self) {
        if self.has_turn.get() {
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
        assert!(first.wait_for_turn(soon()) && first.wait_for_turn(soon()), "one turn is enough");
        let second = bodies.request();
        assert!(!second.wait_for_turn(Instant::now()));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let third = bodies.request();
                assert!(third.wait_for_turn(soon()));
            });
            drop(first);
        });
        assert!(second.wait_for_turn(Instant::now()));
    }
}
