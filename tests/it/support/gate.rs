//! A gate: holds requests until the test opens it. Replaces sleeping.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::{PATIENCE, lock};

/// Clones share the gate. An opened gate stays open.
///
/// A fake server opens all gates of its script when it is dropped, so a forgotten gate does not hang the test.
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

    /// Lets all requests through, now and later.
    pub fn open(&self) {
        lock(&self.0.state).open = true;
        self.0.changed.notify_all();
    }

    /// The number of requests that have reached the gate so far, waiting or not.
    pub fn reached(&self) -> usize {
        lock(&self.0.state).reached
    }

    /// Blocks until `n` requests have reached the gate since its creation.
    ///
    /// # Panics
    /// After [`PATIENCE`], with the number of requests that arrived.
    #[track_caller]
    pub fn wait_until_reached(&self, n: usize) {
        let state = lock(&self.0.state);
        let (state, _) = self
            .0
            .changed
            .wait_timeout_while(state, PATIENCE, |state| state.reached < n)
            .unwrap_or_else(PoisonError::into_inner);
        let reached = state.reached;
        // Release the lock before the panic, so that unwinding can open the gate.
        drop(state);
        assert!(
            reached >= n,
            "only {reached} of {n} requests reached the gate within {PATIENCE:?}"
        );
    }

    /// Waits until the gate is open, without a limit: a fake server opens its gates when it is dropped.
    pub(super) fn pass(&self) {
        let mut state = lock(&self.0.state);
        state.reached += 1;
        self.0.changed.notify_all();
        let opened = self.0.changed.wait_while(state, |state| !state.open);
        drop(opened.unwrap_or_else(PoisonError::into_inner));
    }
}
