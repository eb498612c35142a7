//! A gate: requests hang in it until the test opens it. The replacement for every sleep.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::{PATIENCE, lock};

/// Clones are handles of the same gate. It stays open once it was opened.
///
/// A [`FakeRegistry`](super::FakeRegistry) opens every gate of its script when it is dropped, so a
/// forgotten gate ends with the test instead of hanging it.
#[derive(Clone, Default)]
pub struct Gate(Arc<Inside>);

#[derive(Default)]
struct Inside {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    open: bool,
    reached: usize,
}

impl Gate {
    /// A closed gate.
    pub fn new() -> Gate {
        Gate::default()
    }

    /// Lets everyone through, now and later.
    pub fn open(&self) {
        lock(&self.0.state).open = true;
        self.0.changed.notify_all();
    }

    /// How many have reached the gate since it was made, whether they still wait or not.
    pub fn reached(&self) -> usize {
        lock(&self.0.state).reached
    }

    /// Blocks until `n` have reached the gate (counted since it was made).
    ///
    /// # Panics
    /// After [`PATIENCE`], saying how many came.
    #[track_caller]
    pub fn wait_until_reached(&self, n: usize) {
        let state = lock(&self.0.state);
        let (state, _) = self
            .0
            .changed
            .wait_timeout_while(state, PATIENCE, |state| state.reached < n)
            .unwrap_or_else(PoisonError::into_inner);
        let reached = state.reached;
        // Released before the panic, so that the unwinding drop can still open the gate.
        drop(state);
        assert!(reached >= n, "{reached} of {n} reached the gate within {PATIENCE:?}");
    }

    /// Waits until the gate is open. Not bounded: the registry opens its gates when it is dropped.
    pub(super) fn pass(&self) {
        let mut state = lock(&self.0.state);
        state.reached += 1;
        self.0.changed.notify_all();
        let opened = self.0.changed.wait_while(state, |state| !state.open);
        drop(opened.unwrap_or_else(PoisonError::into_inner));
    }
}
