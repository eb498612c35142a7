//! Fetchers: a fixed number of threads that wait on upstreams, so that workers need not; and the order in
//! which jobs get one.
//!
//! # Sharing
//! * **A class** is a listed registry, all unlisted registries together, or work on the local disk. A class may begin a job as long as
//!   it holds fewer fetchers than are free (Choudhury and Hahne, "Dynamic queue length thresholds", 1998): one
//!   class that hangs gets a half, two get a third each, and some fetchers are always left for the others.
//!   `maxDownloads` of a registry replaces this share.
//! * **Unlisted registries** get at most half of the fetchers together, and those of them that have never
//!   answered a quarter: a client can invent any number of names that lead to hosts which drop packets.
//! * **Within a class** clients take turns, and for each client its repositories: a client that queues a
//!   thousand jobs waits for them by itself.
//! * **Background jobs** begin when no job that somebody waits for can, and hold at most half of the fetchers
//!   and a quarter for each class.
//! * **A job has a waiter.** One whose last waiter has left, or that is older than clients wait, is dropped
//!   when its turn comes, and before anything is refused for want of room in the queue.
//!
//! # Interleavings
//! * *Submit against pick.* Both are under one lock, and a submit wakes one fetcher. A fetcher that takes a job
//!   wakes the next as long as jobs are queued, since the job that it left may be eligible by then.
//! * *The last waiter leaves while its job is picked.* The job runs, unneeded: its downloads look again
//!   whether they have followers.
//! * *Close against everything.* The flag is set before the queues are emptied under the lock; a submit after
//!   that is refused, a pick finds nothing. Jobs are dropped outside of the lock, since a job's leader wakes
//!   those that wait.

mod queue;

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::oci::Upstream;
use crate::via;

use queue::{ClassQueue, IsEmpty, Job, Run, Turns};

pub(super) use queue::{Class, Purpose};

/// Jobs that may wait for a fetcher: far more than clients ask for at once, and some hundred bytes each.
const QUEUE_MAX: usize = 4096;
/// Of them in one class, so that one registry that hangs leaves room for the others.
const QUEUE_PER_CLASS_MAX: usize = 1024;
/// The stack of a fetcher. Unoptimised builds need several times what a release needs.
const STACK_BYTES: usize = if cfg!(debug_assertions) { 2 * 1024 * 1024 } else { 512 * 1024 };

/// A job that nobody waits for.
struct BackgroundJob {
    purpose: Purpose,
    run: Run,
}

/// A pool of fetchers and its queue. Dropping it closes it; its threads end when their job does, since what
/// they wait for is bounded but not ours to interrupt.
pub(super) struct Scheduler {
    shared: Arc<Shared>,
    threads: usize,
}

/// How much a scheduler has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerLoad {
    /// Its fetchers.
    pub fetchers: usize,
    /// Those at work.
    pub busy: usize,
    /// Jobs that somebody waits for.
    pub queued: usize,
    /// Jobs that nobody waits for.
    pub queued_in_background: usize,
}

struct Shared {
    state: Mutex<State>,
    /// Fetchers wait here for a job.
    queued: Condvar,
    /// Whoever waits for the end of a job or of the scheduler waits here.
    ended: Condvar,
    threads: usize,
    /// A job that is older has no waiter any more.
    patience: Duration,
    closed: AtomicBool,
}

#[derive(Default)]
struct State {
    classes: Turns<Class, ClassQueue>,
    /// Jobs in all classes.
    jobs: usize,
    background: VecDeque<BackgroundJob>,
    running: HashMap<Class, usize>,
    running_in_background: HashMap<Class, usize>,
    /// How many fetchers some registries may hold.
    per_upstream_max: HashMap<Upstream, usize>,
}

impl State {
    fn running_in_all(&self) -> usize {
        self.running.values().sum()
    }

    fn begin(&mut self, class: &Class, is_background: bool) {
        *self.running.entry(class.clone()).or_default() += 1;
        if is_background {
            *self.running_in_background.entry(class.clone()).or_default() += 1;
        }
    }

    fn end(&mut self, class: &Class, is_background: bool) {
        count_down(&mut self.running, class);
        if is_background {
            count_down(&mut self.running_in_background, class);
        }
    }

    /// Jobs queued in a class. The two of unlisted registries share one bound.
    fn queued(&self, class: &Class) -> usize {
        let jobs = |class: &Class| self.classes.queues.get(class).map_or(0, |queue| queue.jobs);
        match class {
            Class::Listed(_) | Class::Local => jobs(class),
            Class::Unlisted | Class::Unproven => jobs(&Class::Unlisted) + jobs(&Class::Unproven),
        }
    }
}

fn count_down(counts: &mut HashMap<Class, usize>, class: &Class) {
    if let Some(count) = counts.get_mut(class) {
        *count -= 1;
        if *count == 0 {
            counts.remove(class);
        }
    }
}

impl Scheduler {
    /// Starts `threads` fetchers named `name`. `per_upstream_max` is how many of them some registries may hold;
    /// the others share them as the module says. Jobs older than `patience` are dropped.
    pub(super) fn start(
        name: &str,
        threads: usize,
        per_upstream_max: HashMap<Upstream, usize>,
        patience: Duration,
    ) -> Scheduler {
        let threads = threads.max(1);
        let shared = Arc::new(Shared {
            state: Mutex::new(State { per_upstream_max, ..State::default() }),
            queued: Condvar::new(),
            ended: Condvar::new(),
            threads,
            patience,
            closed: AtomicBool::new(false),
        });
        for _ in 0..threads {
            let shared = Arc::clone(&shared);
            let builder = thread::Builder::new().name(name.to_owned()).stack_size(STACK_BYTES);
            if let Err(error) = builder.spawn(move || shared.work()) {
                log::error!("cannot start a thread of {name}: {error}; fewer downloads at once");
            }
        }
        Scheduler { shared, threads }
    }

    /// Queues a job that somebody waits for, as long as `is_wanted` says so. If there is no room, or the
    /// scheduler is closed, the job is dropped unrun.
    pub(super) fn submit(
        &self,
        purpose: Purpose,
        is_wanted: impl Fn() -> bool + Send + 'static,
        run: impl FnOnce() + Send + 'static,
    ) {
        let job = Job {
            purpose,
            queued: Instant::now(),
            is_wanted: Box::new(is_wanted),
            run: in_this_chain(run),
        };
        let dropped = self.queue(job);
        self.shared.queued.notify_one();
        // Here, outside of the lock: a job's leader wakes those that wait.
        drop(dropped);
    }

    /// Queues the job and returns those that are dropped for it, or it itself.
    fn queue(&self, job: Job) -> Vec<Job> {
        let mut state = self.shared.lock();
        if self.is_closed() {
            return vec![job];
        }
        let class = job.purpose.class.clone();
        let is_full =
            |state: &State| state.queued(&class) >= QUEUE_PER_CLASS_MAX || state.jobs >= QUEUE_MAX;
        let mut dropped = Vec::new();
        if is_full(&state) {
            let is_unwanted = |job: &Job| self.shared.is_unwanted(job);
            let queue = state.classes.queue(&class);
            dropped = queue.take_unwanted(&is_unwanted);
            state.jobs -= dropped.len();
        }
        if is_full(&state) {
            match state.classes.queue(&class).take_of_the_busiest(job.purpose.client) {
                Some(other) => {
                    dropped.push(other);
                    state.jobs -= 1;
                }
                None => {
                    dropped.push(job);
                    return dropped;
                }
            }
        }
        state.classes.queue(&class).push(job);
        state.jobs += 1;
        dropped
    }

    /// Queues a job that nobody waits for. Returns whether there was room.
    pub(super) fn submit_in_background(
        &self,
        purpose: Purpose,
        run: impl FnOnce() + Send + 'static,
    ) -> bool {
        let job = BackgroundJob { purpose, run: in_this_chain(run) };
        let refused = {
            let mut state = self.shared.lock();
            let is_of_class = |other: &&BackgroundJob| other.purpose.class == job.purpose.class;
            let is_full = state.background.len() >= QUEUE_MAX
                || state.background.iter().filter(is_of_class).count() >= QUEUE_PER_CLASS_MAX;
            if is_full || self.is_closed() {
                Some(job)
            } else {
                state.background.push_back(job);
                None
            }
        };
        let is_queued = refused.is_none();
        if is_queued {
            self.shared.queued.notify_one();
        }
        drop(refused);
        is_queued
    }

    /// Whether a job that somebody waits for could begin if a job of `class` ended: one that works for nobody
    /// should be given up for it.
    pub(super) fn is_contended(&self, class: &Class) -> bool {
        let state = self.shared.lock();
        let mut waiting = state.classes.order.iter();
        waiting.any(|waiting| {
            !self.shared.has_share(&state, waiting, None)
                && self.shared.has_share(&state, waiting, Some(class))
        })
    }

    /// How many fetchers some registries may hold from now on. A job that runs continues, even if its registry
    /// may hold fewer by now.
    pub(super) fn set_limits(&self, per_upstream_max: HashMap<Upstream, usize>) {
        self.shared.lock().per_upstream_max = per_upstream_max;
        // Any number of jobs may begin now.
        self.shared.queued.notify_all();
    }

    /// Takes no more jobs and drops those that wait.
    pub(super) fn close(&self) {
        self.shared.closed.store(true, Ordering::Release);
        let waiting = {
            let mut state = self.shared.lock();
            state.jobs = 0;
            (std::mem::take(&mut state.classes), std::mem::take(&mut state.background))
        };
        self.shared.queued.notify_all();
        self.shared.ended.notify_all();
        drop(waiting);
    }

    /// Waits, or less long if the scheduler is closed. For jobs, which have a thread to wait on.
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

    /// How many fetchers there are, how many are at work, and how many jobs wait.
    pub(super) fn load(&self) -> SchedulerLoad {
        let state = self.shared.lock();
        SchedulerLoad {
            fetchers: self.threads,
            busy: state.running_in_all(),
            queued: state.jobs,
            queued_in_background: state.background.len(),
        }
    }

    /// Whether a long job should stop at the next opportunity.
    pub(super) fn is_closed(&self) -> bool {
        self.shared.closed.load(Ordering::Acquire)
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.close();
    }
}

/// A job is part of the same chain of Larders as the request that needs it.
fn in_this_chain(run: impl FnOnce() + Send + 'static) -> Run {
    let chain = via::current();
    Box::new(move || chain.enter(run))
}

/// What a fetcher does next.
#[derive(Default)]
struct Next {
    /// Jobs whose waiters have left: dropped first, outside of the lock.
    unwanted: Vec<Job>,
    job: Option<Begun>,
}

/// A job that has a fetcher.
struct Begun {
    class: Class,
    is_background: bool,
    run: Run,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No job runs under this lock, so a panic cannot leave it half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        while let Some(Next { unwanted, job }) = self.next() {
            drop(unwanted);
            let Some(Begun { class, is_background, run }) = job else { continue };
            if catch_unwind(AssertUnwindSafe(run)).is_err() {
                log::error!("a fetch panicked; everyone that waited for it was answered");
            }
            self.lock().end(&class, is_background);
            self.ended.notify_all();
            // Its end may let two begin: one of its class and one of another. This fetcher takes one of them.
            self.queued.notify_one();
        }
    }

    fn is_unwanted(&self, job: &Job) -> bool {
        job.queued.elapsed() >= self.patience || !(job.is_wanted)()
    }

    /// Whether a class may begin a job, or could if a job of the class `released` ended.
    fn has_share(&self, state: &State, class: &Class, released: Option<&Class>) -> bool {
        let running = |class: &Class| {
            let count = state.running.get(class).copied().unwrap_or_default();
            count.saturating_sub(usize::from(released == Some(class)))
        };
        let own = running(class);
        let busy = state.running_in_all().saturating_sub(usize::from(released.is_some()));
        let free = self.threads.saturating_sub(busy);
        if let Class::Listed(upstream) = class
            && let Some(max) = state.per_upstream_max.get(upstream)
        {
            return own < *max && free > 0;
        }
        let is_below = |count: usize, parts: usize| count < (self.threads / parts).max(1);
        let unlisted = running(&Class::Unlisted) + running(&Class::Unproven);
        own < free
            && (!class.is_unlisted() || is_below(unlisted, 2))
            && (*class != Class::Unproven || is_below(own, 4))
    }

    /// The next job that may begin, of the class whose turn it is.
    fn pick(&self, state: &mut State) -> Option<Next> {
        let mut unwanted = Vec::new();
        for _ in 0..state.classes.order.len() {
            let Some(class) = state.classes.order.front().cloned() else { break };
            if !self.has_share(state, &class, None) {
                state.classes.order.rotate_left(1);
                continue;
            }
            let before = unwanted.len();
            let job = state.classes.pop(|queue| {
                let job = loop {
                    match queue.pop() {
                        Some(job) if self.is_unwanted(&job) => unwanted.push(job),
                        other => break other,
                    }
                };
                (job, if queue.jobs == 0 { IsEmpty::Yes } else { IsEmpty::No })
            });
            state.jobs -= unwanted.len() - before;
            let Some(job) = job else { continue };
            state.jobs -= 1;
            state.begin(&class, false);
            let job = Some(Begun { class, is_background: false, run: job.run });
            return Some(Next { unwanted, job });
        }
        let job = self.pick_in_background(state);
        (job.is_some() || !unwanted.is_empty()).then_some(Next { unwanted, job })
    }

    fn pick_in_background(&self, state: &mut State) -> Option<Begun> {
        if state.running_in_background.values().sum::<usize>() >= self.threads.div_ceil(2) {
            return None;
        }
        let may_begin = |job: &BackgroundJob| {
            let class = &job.purpose.class;
            let running = state.running_in_background.get(class).copied().unwrap_or_default();
            let own_max = match class {
                Class::Listed(upstream) => state.per_upstream_max.get(upstream).copied(),
                Class::Unlisted | Class::Unproven | Class::Local => None,
            };
            let max = own_max.unwrap_or(self.threads.div_ceil(2)).div_ceil(2);
            running < max && self.has_share(state, class, None)
        };
        let at = state.background.iter().position(may_begin)?;
        let BackgroundJob { purpose, run } = state.background.remove(at)?;
        state.begin(&purpose.class, true);
        Some(Begun { class: purpose.class, is_background: true, run })
    }

    /// Waits for something to do; `None` once the scheduler is closed.
    fn next(&self) -> Option<Next> {
        let mut state = self.lock();
        loop {
            if self.closed.load(Ordering::Acquire) {
                return None;
            }
            if let Some(next) = self.pick(&mut state) {
                if state.jobs > 0 || !state.background.is_empty() {
                    self.queued.notify_one();
                }
                return Some(next);
            }
            state = self.queued.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests;
