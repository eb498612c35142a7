//! Fetchers: a fixed number of threads that wait on upstreams, so that workers need not.
//!
//! An upstream may hold at most half of them, or as many as the operator gives it, so that a hung one
//! leaves room for the others. The queue is bounded; what does not fit is dropped, which tells those who
//! wait for it.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::oci::Upstream;

/// Jobs that may wait for a fetcher. Far more than clients ask for at once, and a few hundred bytes
/// each.
const QUEUE_MAX: usize = 4096;
/// Of them for one upstream, so that a hung one leaves room in the queue as well.
const QUEUE_PER_UPSTREAM_MAX: usize = 1024;

/// A pool. Dropping it closes it; its threads end when their job does, since what they wait for is
/// bounded but not ours to interrupt.
pub(super) struct FetchPool {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Fetchers wait here for a job. One is woken for one job: whether a job may run does not depend on
    /// which fetcher takes it, and a fetcher that ends a job looks for the next by itself.
    queued: Condvar,
    /// Who waits for the end of a job or of the pool waits here.
    ended: Condvar,
    /// How many fetchers an upstream may hold, and how many those that are not in the table.
    per_upstream_max: HashMap<Upstream, usize>,
    others_max: usize,
    closed: AtomicBool,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    running: HashMap<Upstream, usize>,
}

struct Job {
    upstream: Upstream,
    run: Box<dyn FnOnce() + Send>,
}

impl FetchPool {
    /// Starts `threads` fetchers named `name`; `per_upstream_max` is how many of them some upstreams may
    /// hold, which for the others is half.
    pub(super) fn start(
        name: &str,
        threads: usize,
        per_upstream_max: HashMap<Upstream, usize>,
    ) -> FetchPool {
        let threads = threads.max(1);
        let shared = Arc::new(Shared {
            state: Mutex::new(State::default()),
            queued: Condvar::new(),
            ended: Condvar::new(),
            per_upstream_max,
            others_max: threads.div_ceil(2),
            closed: AtomicBool::new(false),
        });
        for _ in 0..threads {
            let shared = Arc::clone(&shared);
            let started = thread::Builder::new().name(name.to_owned()).spawn(move || shared.work());
            if let Err(error) = started {
                log::error!("cannot start a thread of {name}: {error}; fewer downloads at once");
            }
        }
        FetchPool { shared }
    }

    /// Queues a job. If there is no room, or the pool is closed, the job is dropped unrun.
    pub(super) fn submit(&self, upstream: &Upstream, run: impl FnOnce() + Send + 'static) {
        let job = Job { upstream: upstream.clone(), run: Box::new(run) };
        let refused = {
            let mut state = self.shared.lock();
            let of_upstream = state.queue.iter().filter(|job| job.upstream == *upstream).count();
            let is_full = state.queue.len() >= QUEUE_MAX || of_upstream >= QUEUE_PER_UPSTREAM_MAX;
            if is_full || self.is_closed() {
                Some(job)
            } else {
                state.queue.push_back(job);
                None
            }
        };
        if refused.is_none() {
            self.shared.queued.notify_one();
        }
        // Dropped here, outside of the lock: a job's pilot wakes those who wait.
        drop(refused);
    }

    /// Takes no more jobs and drops those that wait.
    pub(super) fn close(&self) {
        self.shared.closed.store(true, Ordering::Release);
        let waiting = std::mem::take(&mut self.shared.lock().queue);
        self.shared.queued.notify_all();
        self.shared.ended.notify_all();
        drop(waiting);
    }

    /// Waits, or less long if the pool is closed. For jobs, which have a thread to wait on.
    pub(super) fn pause(&self, wait: Duration) {
        let state = self.shared.lock();
        let open = |_: &mut State| !self.is_closed();
        drop(self.shared.ended.wait_timeout_while(state, wait, open));
    }

    /// Waits until no job runs, or the time is over.
    pub(super) fn wait_until_idle(&self, at_most: Duration) {
        let state = self.shared.lock();
        let busy = |state: &mut State| !state.running.is_empty();
        drop(self.shared.ended.wait_timeout_while(state, at_most, busy));
    }

    /// Whether a long job should stop at the next opportunity.
    pub(super) fn is_closed(&self) -> bool {
        self.shared.closed.load(Ordering::Acquire)
    }
}

impl Drop for FetchPool {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No job runs under this lock, so a panic cannot leave it half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        while let Some(job) = self.next() {
            let upstream = job.upstream;
            if catch_unwind(AssertUnwindSafe(job.run)).is_err() {
                log::error!("a fetch from {upstream} panicked; those who waited for it were told");
            }
            self.finished(&upstream);
        }
    }

    /// The first job whose upstream is below its share. Waits for one; `None` once the pool is closed.
    fn next(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if self.closed.load(Ordering::Acquire) {
                return None;
            }
            let runnable = |job: &Job| {
                let max = *self.per_upstream_max.get(&job.upstream).unwrap_or(&self.others_max);
                state.running.get(&job.upstream).is_none_or(|count| *count < max)
            };
            let position = state.queue.iter().position(runnable);
            if let Some(job) = position.and_then(|at| state.queue.remove(at)) {
                *state.running.entry(job.upstream.clone()).or_default() += 1;
                return Some(job);
            }
            state = self.queued.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn finished(&self, upstream: &Upstream) {
        let mut state = self.lock();
        if let Some(count) = state.running.get_mut(upstream) {
            *count -= 1;
            if *count == 0 {
                state.running.remove(upstream);
            }
        }
        drop(state);
        self.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn upstream(name: &str) -> Upstream {
        name.parse().unwrap()
    }

    #[test]
    fn a_hung_upstream_leaves_half_of_the_fetchers_to_the_others() {
        let pool = FetchPool::start("test", 4, HashMap::new());
        let (started, starts) = mpsc::channel();
        let (release, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        for _ in 0..10 {
            let (started, gate) = (started.clone(), Arc::clone(&gate));
            pool.submit(&upstream("hung.io"), move || {
                started.send("hung").unwrap();
                let _ = gate.lock().unwrap().recv();
            });
        }
        for _ in 0..2 {
            assert_eq!(starts.recv().unwrap(), "hung");
        }
        pool.submit(&upstream("good.io"), move || started.send("good").unwrap());
        assert_eq!(starts.recv().unwrap(), "good");
        drop(release);
    }

    #[test]
    fn an_upstream_holds_as_many_fetchers_as_it_is_given() {
        let limits = HashMap::from([(upstream("one.io"), 1), (upstream("all.io"), 4)]);
        let pool = FetchPool::start("test", 4, limits);
        let (started, starts) = mpsc::channel();
        let (release, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        for name in ["one.io", "one.io", "all.io", "all.io", "all.io"] {
            let (started, gate) = (started.clone(), Arc::clone(&gate));
            pool.submit(&upstream(name), move || {
                started.send(name).unwrap();
                let _ = gate.lock().unwrap().recv();
            });
        }
        let mut names: Vec<&str> = starts.iter().take(4).collect();
        names.sort_unstable();
        assert_eq!(names, ["all.io", "all.io", "all.io", "one.io"]);
        drop(release);
        assert_eq!(starts.recv().unwrap(), "one.io", "the second one, after the first");
    }

    #[test]
    fn a_panic_costs_its_own_job_only() {
        let pool = FetchPool::start("test", 1, HashMap::new());
        let (done, dones) = mpsc::channel();
        pool.submit(&upstream("a.io"), || panic!("a fetch that panics"));
        pool.submit(&upstream("a.io"), move || done.send(()).unwrap());
        dones.recv().unwrap();
    }

    #[test]
    fn a_closed_pool_drops_what_waits_and_what_comes() {
        let pool = FetchPool::start("test", 1, HashMap::new());
        let (started, starts) = mpsc::channel();
        let (release, gate) = mpsc::channel::<()>();
        pool.submit(&upstream("a.io"), move || {
            started.send(()).unwrap();
            let _ = gate.recv();
        });
        starts.recv().unwrap();
        let dropped = Arc::new(());
        for _ in 0..3 {
            let held = Arc::clone(&dropped);
            pool.submit(&upstream("a.io"), move || drop(held));
        }
        pool.close();
        pool.submit(&upstream("a.io"), {
            let held = Arc::clone(&dropped);
            move || drop(held)
        });
        assert_eq!(Arc::strong_count(&dropped), 1);
        drop(release);
    }
}
