//! Threads that make verified blobs durable, so that fetchers go on to the next download while the disk syncs.
//!
//! Clients do not wait for it: they have received the verified bytes, and new clients join the flight, which ends when the
//! blob has its name. Several threads wait for the disk at the same time, because file systems and disks complete syncs
//! in groups. When more blobs wait than [`QUEUE_MAX`], fetchers commit themselves: then the disk is the bottleneck, and
//! downloads must not run ahead of it.
//!
//! # Interleavings
//! * *Submit against wait.* Each commit is counted, under one lock, from its submission to its end. A wait that begins
//!   after the last submission therefore covers all commits.
//! * *Drop against work.* The threads commit what is queued, and end then. A kill leaves partials, as during a download.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, thread};

/// How many syncs wait for the disk at the same time.
const THREADS: usize = 16;
/// Each waiting commit holds a file open.
const QUEUE_MAX: usize = 256;
/// As for fetchers, which run the same code.
const STACK_BYTES: usize = if cfg!(debug_assertions) { 2 * 1024 * 1024 } else { 256 * 1024 };

type Commit = Box<dyn FnOnce() + Send>;

/// The threads and their queue. Dropping it ends the threads when the queue is empty.
pub(super) struct Committers {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Signalled when a commit is queued, and when no more will be.
    queued: Condvar,
    /// Signalled when the last commit has ended.
    ended: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Commit>,
    idle: usize,
    /// The queued commits and the running ones.
    unfinished: usize,
    is_closed: bool,
}

impl Committers {
    /// Starts the threads.
    pub(super) fn start() -> Committers {
        Committers::with_threads(THREADS)
    }

    fn with_threads(threads: usize) -> Committers {
        let shared = Arc::new(Shared::default());
        for _ in 0..threads {
            let shared = Arc::clone(&shared);
            let builder = thread::Builder::new().name("committer".into()).stack_size(STACK_BYTES);
            if let Err(error) = builder.spawn(move || shared.work()) {
                log::error!(
                    error:%; "cannot start a committer thread; blobs are stored more slowly"
                );
            }
        }
        Committers { shared }
    }

    /// Runs a commit on one of the threads, or here if too many wait.
    pub(super) fn submit(&self, commit: impl FnOnce() + Send + 'static) {
        let mut state = self.shared.lock();
        state.unfinished += 1;
        // Without threads nothing would take it.
        if state.queue.len() >= QUEUE_MAX || Arc::strong_count(&self.shared) == 1 {
            drop(state);
            self.shared.run(Box::new(commit));
            return;
        }
        state.queue.push_back(Box::new(commit));
        if state.idle > 0 {
            self.shared.queued.notify_one();
        }
    }

    /// How many commits wait or run.
    pub(super) fn unfinished(&self) -> usize {
        self.shared.lock().unfinished
    }

    /// Waits until there are none, at most for `at_most`.
    pub(super) fn wait_until_idle(&self, at_most: Duration) {
        let state = self.shared.lock();
        let busy = |state: &mut State| state.unfinished > 0;
        drop(self.shared.ended.wait_timeout_while(state, at_most, busy));
    }
}

impl Drop for Committers {
    fn drop(&mut self) {
        self.shared.lock().is_closed = true;
        self.shared.queued.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No commit runs under this lock, so a panic cannot leave the state inconsistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            if let Some(commit) = state.queue.pop_front() {
                drop(state);
                self.run(commit);
                state = self.lock();
            } else if state.is_closed {
                return;
            } else {
                state.idle += 1;
                state = self.queued.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }

    fn run(&self, commit: Commit) {
        if catch_unwind(AssertUnwindSafe(commit)).is_err() {
            log::error!("the commit of a blob panicked; it is fetched again");
        }
        let mut state = self.lock();
        state.unfinished -= 1;
        if state.unfinished == 0 {
            self.ended.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn commits_run_beside_the_submitter_and_are_waited_for() {
        let committers = Committers::start();
        let (open, opened) = mpsc::channel::<()>();
        committers.submit(move || {
            let _ = opened.recv();
        });
        assert_eq!(committers.unfinished(), 1);
        drop(open);
        committers.wait_until_idle(LONG);
        assert_eq!(committers.unfinished(), 0);
    }

    #[test]
    fn a_full_queue_makes_the_submitter_commit() {
        let committers = Committers::with_threads(1);
        let (open, opened) = mpsc::channel::<()>();
        let (entered, has_entered) = mpsc::channel();
        committers.submit(move || {
            entered.send(()).unwrap();
            let _ = opened.recv();
        });
        has_entered.recv().unwrap();
        let done = Arc::new(AtomicUsize::new(0));
        for _ in 0..QUEUE_MAX + 1 {
            let done = Arc::clone(&done);
            committers.submit(move || {
                done.fetch_add(1, Ordering::SeqCst);
            });
        }
        assert_eq!(done.load(Ordering::SeqCst), 1, "one more than fit");
        drop(open);
        committers.wait_until_idle(LONG);
        assert_eq!(done.load(Ordering::SeqCst), QUEUE_MAX + 1);
    }

    #[test]
    fn a_panic_affects_only_its_own_commit() {
        let committers = Committers::with_threads(1);
        let (done, is_done) = mpsc::channel();
        committers.submit(|| panic!("a commit that panics"));
        committers.submit(move || done.send(()).unwrap());
        is_done.recv_timeout(LONG).unwrap();
        committers.wait_until_idle(LONG);
        assert_eq!(committers.unfinished(), 0);
    }

    #[test]
    fn queued_commits_run_after_the_drop() {
        let committers = Committers::with_threads(1);
        let (open, opened) = mpsc::channel::<()>();
        let (done, is_done) = mpsc::channel();
        committers.submit(move || {
            let _ = opened.recv();
        });
        committers.submit(move || done.send(()).unwrap());
        drop(committers);
        drop(open);
        is_done.recv_timeout(LONG).unwrap();
    }
}
