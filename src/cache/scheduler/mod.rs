//! Fetchers: a fixed number of threads that wait for registries, so that HTTP workers need not, and the order in which
//! jobs get one.
//!
//! # Sharing
//! * **A class** is a listed registry, all unlisted registries together, or work on the local disk. A class may start a
//!   job as long as it uses fewer fetchers than are free (Choudhury and Hahne, "Dynamic queue length thresholds",
//!   1998): one class that hangs gets half of them, two get a third each, and some fetchers always remain for the
//!   others. `maxDownloads` of a registry replaces this share.
//! * **Unlisted registries** together get at most half of the fetchers, and those of them that have never responded
//!   a quarter: a client can invent any number of names that lead to hosts which drop packets.
//! * **Within a class**, clients take turns, and so do the repositories of each client: a client that queues a thousand
//!   jobs delays only itself. One client uses at most three quarters of the share of its class, so that the next one
//!   gets a fetcher before the first one's downloads have ended.
//! * **Background jobs** start when no client's job can, and downloads among them give up their fetcher when a client's
//!   job needs it. They use at most three quarters of the fetchers, and of the share of each class. Short ones precede
//!   long ones, and an eighth of that is reserved for them: a small layer never waits for large ones.
//! * **A client's job** whose last follower has left, or that is older than clients wait, is dropped when its turn
//!   comes, or earlier if the queue is full.
//!
//! # Interleavings
//! * *Submit against pick.* Both hold the same lock. A submit wakes one fetcher if a job may start, and so does a
//!   fetcher that takes a job. Otherwise only the end of a job lets another one start, and its fetcher looks for it.
//! * *The last follower leaves while its job is picked.* The job runs although it is not needed. Its downloads check
//!   again whether they have followers.
//! * *Close against everything.* The flag is set before the queues are emptied under the lock. A later submit is
//!   refused, and a later pick finds nothing. Jobs are dropped outside of the lock, since a job's leader wakes its
//!   followers.

mod queue;
mod shares;

use std::collections::HashMap;
use std::hash::Hash;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::job_context::JobContext;
use crate::client_address::ClientAddress;
use crate::oci::Upstream;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, thread};

use queue::{Job, Queue, Run};

pub(super) use queue::{Class, Purpose};

/// How long a background job is likely to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Length {
    Short,
    Long,
}

/// The stack size of a fetcher. Unoptimised builds need several times as much as release builds.
const STACK_BYTES: usize = if cfg!(debug_assertions) { 2 * 1024 * 1024 } else { 512 * 1024 };

/// A pool of fetchers and its queue. Dropping it closes it. Its threads end with their current job, whose waits are
/// bounded but cannot be interrupted.
pub(super) struct Scheduler {
    shared: Arc<Shared>,
    threads: usize,
}

/// The load of a scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerLoad {
    /// The number of fetchers.
    pub fetchers: usize,
    /// The fetchers that run a job.
    pub busy: usize,
    /// Queued jobs of clients.
    pub queued: usize,
    /// Queued background jobs.
    pub queued_in_background: usize,
}

struct Shared {
    state: Mutex<State>,
    /// Fetchers wait here for a job.
    queued: Condvar,
    /// Signalled when a job ends, and when the scheduler closes.
    ended: Condvar,
    threads: usize,
    /// The maximum age of a client's job: clients of older jobs have timed out.
    patience: Duration,
    closed: AtomicBool,
}

#[derive(Default)]
struct State {
    /// The fetchers that wait for a job, and the threads that wait for an end. A signal is a system call, so none is sent
    /// if no thread waits.
    idle: usize,
    pausing: usize,
    /// Jobs of clients.
    foreground: Queue,
    /// Jobs without a waiting client, short and long ones.
    short: Queue,
    long: Queue,
    running: HashMap<Class, usize>,
    running_in_background: HashMap<Class, usize>,
    /// The long ones among them.
    running_long: HashMap<Class, usize>,
    /// The running jobs of each client.
    running_of_clients: HashMap<(Class, ClientAddress), usize>,
    /// The maximum number of fetchers for registries with `maxDownloads`.
    per_upstream_max: HashMap<Upstream, usize>,
}

impl State {
    fn running_in_all(&self) -> usize {
        self.running.values().sum()
    }

    /// The running jobs of a class, if one of the class `released` ended.
    fn running_without(&self, class: &Class, released: Option<&Class>) -> usize {
        let running = self.running.get(class).copied().unwrap_or_default();
        running.saturating_sub(usize::from(released == Some(class)))
    }

    fn background(&mut self, length: Length) -> &mut Queue {
        match length {
            Length::Short => &mut self.short,
            Length::Long => &mut self.long,
        }
    }

    fn queued_in_background(&self) -> usize {
        self.short.jobs + self.long.jobs
    }

    /// The running background jobs of at least this length, by class.
    fn running_in_background(&self, length: Length) -> &HashMap<Class, usize> {
        match length {
            Length::Short => &self.running_in_background,
            Length::Long => &self.running_long,
        }
    }

    /// Counts a job that begins. `background` is the length of a background job.
    fn begin(&mut self, class: &Class, client: Option<ClientAddress>, background: Option<Length>) {
        *self.running.entry(class.clone()).or_default() += 1;
        if background.is_some() {
            *self.running_in_background.entry(class.clone()).or_default() += 1;
        }
        if background == Some(Length::Long) {
            *self.running_long.entry(class.clone()).or_default() += 1;
        }
        if let Some(client) = client {
            *self.running_of_clients.entry((class.clone(), client)).or_default() += 1;
        }
    }

    fn end(&mut self, class: &Class, client: Option<ClientAddress>, background: Option<Length>) {
        count_down(&mut self.running, class);
        if background.is_some() {
            count_down(&mut self.running_in_background, class);
        }
        if background == Some(Length::Long) {
            count_down(&mut self.running_long, class);
        }
        if let Some(client) = client {
            count_down(&mut self.running_of_clients, &(class.clone(), client));
        }
    }
}

fn count_down<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

impl Scheduler {
    /// Starts `threads` fetchers named `name`. `per_upstream_max` limits how many of them a registry may use; the
    /// others share them as described above. Clients' jobs older than `patience` are dropped.
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
                log::error!(
                    thread = name, error:%; "cannot start a thread; fewer fetches run at a time"
                );
            }
        }
        Scheduler { shared, threads }
    }

    /// Queues a client's job, which is needed as long as `is_wanted` returns `true`. If the queue is full or the
    /// scheduler is closed, the job is dropped.
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
            run: in_this_context(run),
        };
        let dropped = self.queue(job);
        // Dropped outside of the lock: a job's leader wakes its followers.
        drop(dropped);
    }

    /// Queues the job and returns the jobs to drop: others that make space for it, or the job itself.
    fn queue(&self, job: Job) -> Vec<Job> {
        let mut state = self.shared.lock();
        if self.is_closed() {
            return vec![job];
        }
        let class = job.purpose.class.clone();
        let queue = &mut state.foreground;
        let mut dropped = Vec::new();
        if queue.is_full(&class) {
            let is_unwanted = |job: &Job| self.shared.is_unwanted(job);
            dropped = queue.classes.queue(&class).take_unwanted(&is_unwanted, Instant::now());
            queue.jobs -= dropped.len();
        }
        if queue.is_full(&class) {
            match queue.classes.queue(&class).take_of_the_busiest(job.purpose.client) {
                Some(other) => {
                    dropped.push(other);
                    queue.jobs -= 1;
                }
                None => {
                    dropped.push(job);
                    return dropped;
                }
            }
        }
        queue.push(job);
        self.shared.wake_one(&state);
        dropped
    }

    /// Queues a background job. Returns `false` if the queue is full.
    pub(super) fn submit_in_background(
        &self,
        purpose: Purpose,
        length: Length,
        run: impl FnOnce() + Send + 'static,
    ) -> bool {
        let is_wanted = Box::new(|| true);
        let job = Job { purpose, queued: Instant::now(), is_wanted, run: in_this_context(run) };
        let refused = {
            let mut state = self.shared.lock();
            let queue = state.background(length);
            if queue.is_full(&job.purpose.class) || self.is_closed() {
                Some(job)
            } else {
                queue.push(job);
                self.shared.wake_one(&state);
                None
            }
        };
        let is_queued = refused.is_none();
        drop(refused);
        is_queued
    }

    /// Whether a client's job could start if a job of `class` ended. A job without a waiting client should then give up
    /// its fetcher.
    pub(super) fn is_contended(&self, class: &Class) -> bool {
        let state = self.shared.lock();
        let released = Some(class);
        state.foreground.may_pick(
            |waiting| {
                !self.shared.has_share(&state, waiting, None)
                    && self.shared.has_share(&state, waiting, released)
            },
            |waiting, client| self.shared.client_has_share(&state, waiting, client, released),
        )
    }

    /// Reserves a fetcher for a background job of `class` that runs on another thread, if one is free and no queued job
    /// could use it.
    pub(super) fn reserve(&self, class: &Class) -> Option<Reserved> {
        let mut state = self.shared.lock();
        let may_run = !self.is_closed()
            && self.shared.has_background_fetchers(&state, Length::Long)
            && self.shared.has_background_share(&state, class, Length::Long)
            && !self.shared.may_pick(&state);
        may_run.then(|| {
            state.begin(class, None, Some(Length::Long));
            Reserved { shared: Arc::clone(&self.shared), class: class.clone() }
        })
    }

    /// Whether a job is queued. A reserved fetcher should then be released at the next opportunity.
    pub(super) fn has_queued(&self) -> bool {
        let state = self.shared.lock();
        state.foreground.jobs + state.queued_in_background() > 0
    }

    /// Changes how many fetchers some registries may use. Running jobs continue, even if their registry may now use
    /// fewer.
    pub(super) fn set_limits(&self, per_upstream_max: HashMap<Upstream, usize>) {
        self.shared.lock().per_upstream_max = per_upstream_max;
        // Any number of jobs may start now.
        self.shared.queued.notify_all();
    }

    /// Accepts no more jobs and drops the queued ones.
    pub(super) fn close(&self) {
        self.shared.closed.store(true, Ordering::Release);
        let waiting = {
            let mut state = self.shared.lock();
            let State { foreground, short, long, .. } = &mut *state;
            [foreground, short, long].map(std::mem::take)
        };
        self.shared.queued.notify_all();
        self.shared.ended.notify_all();
        drop(waiting);
    }

    /// Waits for `wait`, or until the scheduler is closed. For jobs, which may block their thread.
    pub(super) fn pause(&self, wait: Duration) {
        self.shared.wait_for_end(wait, |_| !self.is_closed());
    }

    /// Waits until no job runs, at most for `at_most`.
    pub(super) fn wait_until_idle(&self, at_most: Duration) {
        self.shared.wait_for_end(at_most, |state| !state.running.is_empty());
    }

    /// The numbers of fetchers and jobs.
    pub(super) fn load(&self) -> SchedulerLoad {
        let state = self.shared.lock();
        SchedulerLoad {
            fetchers: self.threads,
            busy: state.running_in_all(),
            queued: state.foreground.jobs,
            queued_in_background: state.queued_in_background(),
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

/// A fetcher that is reserved for another thread. Dropping it releases it.
pub(super) struct Reserved {
    shared: Arc<Shared>,
    class: Class,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.end(&self.class, None, Some(Length::Long));
        if state.pausing > 0 {
            self.shared.ended.notify_all();
        }
        self.shared.wake_one(&state);
    }
}

/// Runs a job in the context of the request that needs it.
fn in_this_context(run: impl FnOnce() + Send + 'static) -> Run {
    let context = JobContext::current();
    Box::new(move || context.enter(run))
}

/// What a fetcher does next.
#[derive(Default)]
struct Next {
    /// Jobs whose followers have left. They are dropped first, outside of the lock.
    unwanted: Vec<Job>,
    job: Option<Begun>,
}

/// A job that a fetcher runs.
struct Begun {
    class: Class,
    client: Option<ClientAddress>,
    /// The length of a background job.
    background: Option<Length>,
    run: Run,
}

impl Begun {
    fn of(job: Job, background: Option<Length>) -> Begun {
        let Purpose { class, client, .. } = job.purpose;
        Begun { class, client, background, run: job.run }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No job runs under this lock, so a panic cannot leave the state inconsistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        while let Some(Next { unwanted, job }) = self.next() {
            drop(unwanted);
            let Some(Begun { class, client, background, run }) = job else { continue };
            if catch_unwind(AssertUnwindSafe(run)).is_err() {
                log::error!("a fetch panicked; its clients received an error");
            }
            let mut state = self.lock();
            state.end(&class, client, background);
            if state.pausing > 0 {
                self.ended.notify_all();
            }
            // Its end may allow two jobs to start: one of its class and one of another. This fetcher takes one of
            // them, and wakes another fetcher if jobs are left.
        }
    }

    /// Wakes a fetcher if one is idle and a job may start.
    fn wake_one(&self, state: &State) {
        if state.idle > 0 && self.may_pick(state) {
            self.queued.notify_one();
        }
    }

    /// Waits while `goes_on`, at most for `at_most`. The end of a job, and that of the scheduler, are noticed at once.
    fn wait_for_end(&self, at_most: Duration, goes_on: impl Fn(&State) -> bool) {
        let mut state = self.lock();
        state.pausing += 1;
        let waited = self.ended.wait_timeout_while(state, at_most, |state| goes_on(state));
        waited.unwrap_or_else(PoisonError::into_inner).0.pausing -= 1;
    }

    fn is_unwanted(&self, job: &Job) -> bool {
        job.queued.elapsed() >= self.patience || !(job.is_wanted)()
    }

    /// Waits for a job; `None` once the scheduler is closed.
    fn next(&self) -> Option<Next> {
        let mut state = self.lock();
        loop {
            if self.closed.load(Ordering::Acquire) {
                return None;
            }
            if let Some(next) = self.pick(&mut state) {
                self.wake_one(&state);
                return Some(next);
            }
            state.idle += 1;
            state = self.queued.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }
}

#[cfg(test)]
#[cfg(feature = "interleavings")]
mod interleavings;

#[cfg(test)]
mod tests;
