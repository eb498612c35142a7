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
use crate::via;

/// Jobs that may wait for a fetcher. Far more than clients ask for at once, and a few hundred bytes
/// each.
const QUEUE_MAX: usize = 4096;
/// Of them for one upstream, so that a hung one leaves room in the queue as well.
const QUEUE_PER_UPSTREAM_MAX: usize = 1024;

/// A pool. Dropping it closes it; its threads end when their job does, since what they wait for is
/// bounded but not ours to interrupt.
pub(super) struct FetchPool {
    shared: Arc<Shared>,
    threads: usize,
}

/// How much a pool has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolLoad {
    /// Its fetchers.
    pub fetchers: usize,
    /// Those at work.
    pub busy: usize,
    /// Jobs that somebody waits for.
    pub queued: usize,
    /// Jobs that nobody waits for.
    pub queued_behind: usize,
}

struct Shared {
    state: Mutex<State>,
    /// Fetchers wait here for a job. One is woken for one job: whether a job may run does not depend on
    /// which fetcher takes it, and a fetcher that ends a job looks for the next by itself.
    queued: Condvar,
    /// Who waits for the end of a job or of the pool waits here.
    ended: Condvar,
    /// How many fetchers an upstream may hold that has no number of its own.
    others_max: usize,
    behind_max: usize,
    closed: AtomicBool,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    /// What nobody waits for. It is begun when nothing of `queue` can be, and never takes more than half
    /// of the fetchers, nor of an upstream's share, so that who waits finds one.
    behind: VecDeque<Job>,
    running: HashMap<Upstream, usize>,
    running_behind: HashMap<Upstream, usize>,
    /// How many fetchers some upstreams may hold.
    per_upstream_max: HashMap<Upstream, usize>,
}

impl State {
    fn begin(&mut self, job: &Job) {
        *self.running.entry(job.upstream.clone()).or_default() += 1;
        if job.is_behind {
            *self.running_behind.entry(job.upstream.clone()).or_default() += 1;
        }
    }

    fn end(&mut self, upstream: &Upstream, is_behind: bool) {
        count_down(&mut self.running, upstream);
        if is_behind {
            count_down(&mut self.running_behind, upstream);
        }
    }
}

fn count_down(counts: &mut HashMap<Upstream, usize>, upstream: &Upstream) {
    if let Some(count) = counts.get_mut(upstream) {
        *count -= 1;
        if *count == 0 {
            counts.remove(upstream);
        }
    }
}

struct Job {
    upstream: Upstream,
    is_behind: bool,
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
            state: Mutex::new(State { per_upstream_max, ..State::default() }),
            queued: Condvar::new(),
            ended: Condvar::new(),
            others_max: threads.div_ceil(2),
            behind_max: threads.div_ceil(2),
            closed: AtomicBool::new(false),
        });
        for _ in 0..threads {
            let shared = Arc::clone(&shared);
            let started = thread::Builder::new().name(name.to_owned()).spawn(move || shared.work());
            if let Err(error) = started {
                log::error!("cannot start a thread of {name}: {error}; fewer downloads at once");
            }
        }
        FetchPool { shared, threads }
    }

    /// Queues a job. If there is no room, or the pool is closed, the job is dropped unrun.
    pub(super) fn submit(&self, upstream: &Upstream, run: impl FnOnce() + Send + 'static) {
        self.queue(Job { upstream: upstream.clone(), is_behind: false, run: Box::new(run) });
    }

    /// Queues a job that nobody waits for, behind those that somebody does. Says whether there was room.
    pub(super) fn submit_behind(
        &self,
        upstream: &Upstream,
        run: impl FnOnce() + Send + 'static,
    ) -> bool {
        self.queue(Job { upstream: upstream.clone(), is_behind: true, run: Box::new(run) })
    }

    fn queue(&self, job: Job) -> bool {
        // The job is part of the same chain as the request that needs it.
        let (chain, run) = (via::current(), job.run);
        let job = Job { run: Box::new(move || chain.enter(run)), ..job };
        let refused = {
            let mut state = self.shared.lock();
            let queue = if job.is_behind { &mut state.behind } else { &mut state.queue };
            let of_upstream = queue.iter().filter(|other| other.upstream == job.upstream).count();
            let is_full = queue.len() >= QUEUE_MAX || of_upstream >= QUEUE_PER_UPSTREAM_MAX;
            if is_full || self.is_closed() {
                Some(job)
            } else {
                queue.push_back(job);
                None
            }
        };
        let is_queued = refused.is_none();
        if is_queued {
            self.shared.queued.notify_one();
        }
        // Dropped here, outside of the lock: a job's pilot wakes those who wait.
        drop(refused);
        is_queued
    }

    /// How many fetchers some upstreams may hold from now on. A job that runs goes on, though its upstream
    /// may now hold fewer.
    pub(super) fn set_limits(&self, per_upstream_max: HashMap<Upstream, usize>) {
        self.shared.lock().per_upstream_max = per_upstream_max;
        // Any number of jobs may now be begun.
        self.shared.queued.notify_all();
    }

    /// Takes no more jobs and drops those that wait.
    pub(super) fn close(&self) {
        self.shared.closed.store(true, Ordering::Release);
        let waiting = {
            let mut state = self.shared.lock();
            (std::mem::take(&mut state.queue), std::mem::take(&mut state.behind))
        };
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

    /// How many fetchers there are, how many are at work, and how many jobs wait: those that somebody waits
    /// for, and the others.
    pub(super) fn load(&self) -> PoolLoad {
        let state = self.shared.lock();
        PoolLoad {
            fetchers: self.threads,
            busy: state.running.values().sum(),
            queued: state.queue.len(),
            queued_behind: state.behind.len(),
        }
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
            let Job { upstream, is_behind, run } = job;
            if catch_unwind(AssertUnwindSafe(run)).is_err() {
                log::error!("a fetch from {upstream} panicked; those who waited for it were told");
            }
            self.lock().end(&upstream, is_behind);
            self.ended.notify_all();
            // Its end may let two begin: one of its upstream, and one behind of another's. This fetcher takes
            // one of them.
            self.queued.notify_one();
        }
    }

    fn share_of(&self, state: &State, upstream: &Upstream) -> usize {
        *state.per_upstream_max.get(upstream).unwrap_or(&self.others_max)
    }

    /// The first job that may be begun: of those that somebody waits for, if there is one.
    fn pick(&self, state: &mut State) -> Option<Job> {
        let count = |counts: &HashMap<Upstream, usize>, job: &Job| {
            counts.get(&job.upstream).copied().unwrap_or_default()
        };
        let has_share =
            |job: &Job| count(&state.running, job) < self.share_of(state, &job.upstream);
        if let Some(at) = state.queue.iter().position(has_share) {
            return state.queue.remove(at);
        }
        if state.running_behind.values().sum::<usize>() >= self.behind_max {
            return None;
        }
        let may_begin = |job: &Job| {
            let half = self.share_of(state, &job.upstream).div_ceil(2);
            has_share(job) && count(&state.running_behind, job) < half
        };
        let at = state.behind.iter().position(may_begin)?;
        state.behind.remove(at)
    }

    /// Waits for a job that may be begun; `None` once the pool is closed.
    fn next(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if self.closed.load(Ordering::Acquire) {
                return None;
            }
            if let Some(job) = self.pick(&mut state) {
                state.begin(&job);
                return Some(job);
            }
            state = self.queued.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
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
    fn changed_limit_lets_waiting_jobs_begin_and_stops_none_that_runs() {
        let limit = |threads| HashMap::from([(upstream("one.io"), threads)]);
        let pool = FetchPool::start("test", 4, limit(1));
        let (started, starts) = mpsc::channel();
        let (release, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        for number in 0..5 {
            let (started, gate) = (started.clone(), Arc::clone(&gate));
            pool.submit(&upstream("one.io"), move || {
                started.send(number).unwrap();
                let _ = gate.lock().unwrap().recv();
            });
        }
        assert_eq!(starts.recv().unwrap(), 0);
        pool.set_limits(limit(3));
        let mut begun = [starts.recv().unwrap(), starts.recv().unwrap()];
        begun.sort_unstable();
        assert_eq!(begun, [1, 2]);
        pool.set_limits(limit(1));
        let other = started.clone();
        pool.submit(&upstream("other.io"), move || other.send(5).unwrap());
        assert_eq!(starts.recv().unwrap(), 5, "what may begin, begins");
        drop(release);
        assert_eq!([starts.recv().unwrap(), starts.recv().unwrap()], [3, 4]);
    }

    #[test]
    fn who_waits_goes_before_what_nobody_waits_for_and_finds_a_fetcher() {
        let pool = FetchPool::start("test", 4, HashMap::new());
        let (started, starts) = mpsc::channel();
        let (release, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        for name in ["a.io", "a.io", "b.io", "b.io", "c.io"] {
            let (started, gate) = (started.clone(), Arc::clone(&gate));
            pool.submit_behind(&upstream(name), move || {
                started.send(name).unwrap();
                let _ = gate.lock().unwrap().recv();
            });
        }
        // Half of four fetchers, and half of the two that one upstream may hold.
        let begun = [starts.recv().unwrap(), starts.recv().unwrap()];
        assert_eq!(begun, ["a.io", "b.io"]);
        let client = started.clone();
        pool.submit(&upstream("a.io"), move || client.send("a client").unwrap());
        assert_eq!(starts.recv().unwrap(), "a client");
        drop(release);
        let rest: Vec<_> = (0..3).map(|_| starts.recv().unwrap()).collect();
        assert!(rest.contains(&"c.io"), "{rest:?}");
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
