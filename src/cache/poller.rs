//! Checks things that other processes change, on one thread, as long as there are any.
//!
//! Files have no wakers, and a fetcher that waited for another process would not be free for downloads.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::lock;

/// How often each thing is checked.
const CHECK_EVERY: Duration = Duration::from_millis(20);

/// The things to check. Locked for a few instructions.
pub(super) struct Poller<T> {
    state: Mutex<State<T>>,
}

struct State<T> {
    new: Vec<T>,
    is_running: bool,
}

impl<T> Default for Poller<T> {
    fn default() -> Poller<T> {
        Poller { state: Mutex::new(State { new: Vec::new(), is_running: false }) }
    }
}

impl<T: Send + 'static> Poller<T> {
    /// Adds a thing. It is checked until `check` returns `None`; without a thread it is dropped.
    pub(super) fn add<S: Send + Sync + 'static>(
        service: &Arc<S>,
        poller: fn(&S) -> &Poller<T>,
        check: fn(&Arc<S>, T) -> Option<T>,
        thing: T,
    ) {
        let mut state = lock(&poller(service).state);
        state.new.push(thing);
        if std::mem::replace(&mut state.is_running, true) {
            return;
        }
        drop(state);
        let shared = Arc::clone(service);
        let run = move || run(&shared, poller, check);
        if let Err(error) = thread::Builder::new().name("poller".into()).spawn(run) {
            log::error!(error:%; "cannot start a thread to wait for another process");
            let mut state = lock(&poller(service).state);
            state.is_running = false;
            let dropped = std::mem::take(&mut state.new);
            drop(state);
            // Outside of the lock: their flights fail, and wake their followers.
            drop(dropped);
        }
    }
}

/// Checks the things until there are none.
fn run<S, T>(service: &Arc<S>, poller: fn(&S) -> &Poller<T>, check: fn(&Arc<S>, T) -> Option<T>) {
    let mut all: Vec<T> = Vec::new();
    loop {
        {
            let mut state = lock(&poller(service).state);
            all.append(&mut state.new);
            state.is_running = !all.is_empty();
            if !state.is_running {
                return;
            }
        }
        // After a panic the thing is dropped, and the others are checked further.
        let checked = |thing| catch_unwind(AssertUnwindSafe(|| check(service, thing)));
        all = all.into_iter().filter_map(|thing| checked(thing).ok().flatten()).collect();
        if !all.is_empty() {
            thread::sleep(CHECK_EVERY);
        }
    }
}
