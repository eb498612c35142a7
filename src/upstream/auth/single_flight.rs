//! Single flight: one caller at a time fetches what belongs to a key, the others wait for it to finish.
//!
//! Holds no lock while a caller fetches. Does not know what is fetched.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The keys that are being fetched.
pub(super) struct SingleFlight<K> {
    /// Locked for a lookup, an insertion or a removal.
    busy: Mutex<HashSet<K>>,
    /// Signalled whenever a caller finishes.
    finished: Condvar,
}

impl<K> Default for SingleFlight<K> {
    fn default() -> SingleFlight<K> {
        SingleFlight { busy: Mutex::default(), finished: Condvar::new() }
    }
}

impl<K: Clone + Eq + Hash> SingleFlight<K> {
    /// Waits until no other caller is inside for this key. Each fetch is bounded by its own timeouts. The caller
    /// must then check whether another one has fetched what it needs. Dropping the guard, also by a panic, admits
    /// the next caller.
    pub(super) fn enter(&self, key: &K) -> Inside<'_, K> {
        let waited = self.finished.wait_while(self.lock(), |busy| busy.contains(key));
        waited.unwrap_or_else(PoisonError::into_inner).insert(key.clone());
        Inside { flights: self, key: key.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<K>> {
        // A panic leaves the set valid: each change is one insertion or removal.
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to fetch for a key.
pub(super) struct Inside<'a, K: Clone + Eq + Hash> {
    flights: &'a SingleFlight<K>,
    key: K,
}

impl<K: Clone + Eq + Hash> Drop for Inside<'_, K> {
    fn drop(&mut self) {
        self.flights.lock().remove(&self.key);
        self.flights.finished.notify_all();
    }
}
