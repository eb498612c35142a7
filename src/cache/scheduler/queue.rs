//! A fair queue: classes take turns, within a class its clients, and within a client its repositories.
//!
//! A plain data structure without threads and locks.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::{Duration, Instant};

use crate::client_address::ClientAddress;
use crate::oci::{ImageName, Upstream};
use crate::upstream::Standing;

/// The maximum number of queued jobs: far more than clients request at once, at a few hundred bytes each.
const QUEUE_MAX: usize = 4096;
/// The maximum number of queued jobs in one class, so that a registry that hangs leaves space for the others. Small in
/// tests of interleavings, which fill it.
pub(super) const QUEUE_PER_CLASS_MAX: usize =
    if cfg!(all(test, feature = "interleavings")) { 2 } else { 1024 };

/// Jobs that share fetchers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::cache) enum Class {
    /// A listed registry, which has its own share.
    Listed(Upstream),
    /// Unlisted registries that have responded before.
    Unlisted,
    /// Unlisted registries that have never responded.
    Unproven,
    /// Work on the local disk, without a registry.
    Local,
}

impl Class {
    /// The class of a registry.
    pub(in crate::cache) fn of(upstream: &Upstream, standing: Standing) -> Class {
        match standing {
            Standing::Listed => Class::Listed(upstream.clone()),
            Standing::Unlisted => Class::Unlisted,
            Standing::Unproven => Class::Unproven,
        }
    }

    pub(super) fn is_unlisted(&self) -> bool {
        matches!(self, Class::Unlisted | Class::Unproven)
    }
}

/// The purpose of a job, which decides when it gets a fetcher.
#[derive(Debug, Clone)]
pub(in crate::cache) struct Purpose {
    /// The class whose share of fetchers it uses.
    pub(in crate::cache) class: Class,
    /// The repository.
    pub(in crate::cache) name: ImageName,
    /// The client that caused it; `None` for Larder's own jobs.
    pub(in crate::cache) client: Option<ClientAddress>,
}

pub(super) type Run = Box<dyn FnOnce() + Send>;
pub(super) type IsWanted = Box<dyn Fn() -> bool + Send>;

/// A queued job.
pub(super) struct Job {
    pub(super) purpose: Purpose,
    pub(super) queued: Instant,
    pub(super) is_wanted: IsWanted,
    pub(super) run: Run,
}

/// Keys that take turns, each with its own queue.
pub(super) struct Turns<K, Q> {
    pub(super) order: VecDeque<K>,
    pub(super) queues: HashMap<K, Q>,
}

impl<K, Q> Default for Turns<K, Q> {
    fn default() -> Self {
        Turns { order: VecDeque::new(), queues: HashMap::new() }
    }
}

impl<K: Clone + Eq + Hash, Q: Default> Turns<K, Q> {
    /// The queue of a key. A new key has the last turn.
    pub(super) fn queue(&mut self, key: &K) -> &mut Q {
        if !self.queues.contains_key(key) {
            self.order.push_back(key.clone());
        }
        self.queues.entry(key.clone()).or_default()
    }

    /// Takes an element from the queue whose turn it is. `pop` also returns whether that queue is empty afterwards.
    pub(super) fn pop<T>(&mut self, pop: impl FnOnce(&mut Q) -> (Option<T>, IsEmpty)) -> Option<T> {
        let key = self.order.pop_front()?;
        let (taken, is_empty) = pop(self.queues.get_mut(&key)?);
        match is_empty {
            IsEmpty::Yes => drop(self.queues.remove(&key)),
            IsEmpty::No => self.order.push_back(key),
        }
        taken
    }

    pub(super) fn is_empty(&self) -> IsEmpty {
        if self.order.is_empty() { IsEmpty::Yes } else { IsEmpty::No }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum IsEmpty {
    Yes,
    No,
}

/// The jobs of one client, whose repositories take turns.
#[derive(Default)]
pub(super) struct ClientQueue {
    pub(super) repositories: Turns<ImageName, VecDeque<Job>>,
    pub(super) jobs: usize,
}

/// The jobs of one class, whose clients take turns.
#[derive(Default)]
pub(super) struct ClassQueue {
    pub(super) clients: Turns<Option<ClientAddress>, ClientQueue>,
    pub(super) jobs: usize,
    /// When unwanted jobs were last searched for.
    searched: Option<Instant>,
}

/// A full queue is searched for unwanted jobs at most this often: the search is linear, and a client may fill the
/// queue as fast as it can send.
const SEARCHED_EVERY: Duration = Duration::from_millis(50);

impl ClassQueue {
    pub(super) fn push(&mut self, job: Job) {
        let client = self.clients.queue(&job.purpose.client);
        client.jobs += 1;
        let name = job.purpose.name.clone();
        client.repositories.queue(&name).push_back(job);
        self.jobs += 1;
    }

    /// The next job of the first client in turn that may start one. Larder's own jobs always may. Clients that may not
    /// start one use a fetcher already, so only a few are skipped.
    pub(super) fn pop(&mut self, may_begin: impl Fn(ClientAddress) -> bool) -> Option<Job> {
        for _ in 0..self.clients.order.len() {
            if let Some(Some(client)) = self.clients.order.front()
                && !may_begin(*client)
            {
                self.clients.order.rotate_left(1);
                continue;
            }
            let job = self.clients.pop(|client| {
                let job = client.repositories.pop(|jobs| {
                    let job = jobs.pop_front();
                    (job, if jobs.is_empty() { IsEmpty::Yes } else { IsEmpty::No })
                });
                client.jobs -= usize::from(job.is_some());
                (job, client.repositories.is_empty())
            });
            self.jobs -= usize::from(job.is_some());
            return job;
        }
        None
    }

    /// Removes the jobs whose clients have left, unless that was done recently.
    pub(super) fn take_unwanted(
        &mut self,
        is_unwanted: &dyn Fn(&Job) -> bool,
        now: Instant,
    ) -> Vec<Job> {
        let is_recent = |searched| now.saturating_duration_since(searched) < SEARCHED_EVERY;
        if self.searched.is_some_and(is_recent) {
            return Vec::new();
        }
        self.searched = Some(now);
        let mut all = Vec::with_capacity(self.jobs);
        while let Some(job) = self.pop(|_| true) {
            all.push(job);
        }
        let (unwanted, wanted): (Vec<Job>, Vec<Job>) = all.into_iter().partition(is_unwanted);
        wanted.into_iter().for_each(|job| self.push(job));
        unwanted
    }

    /// Removes the newest job of the client with the most jobs, if it has at least two more than `client`.
    pub(super) fn take_of_the_busiest(&mut self, client: Option<ClientAddress>) -> Option<Job> {
        let own = self.clients.queues.get(&client).map_or(0, |queue| queue.jobs);
        let (busiest, queue) =
            self.clients.queues.iter_mut().max_by_key(|(_, queue)| queue.jobs)?;
        if queue.jobs <= own + 1 {
            return None;
        }
        let busiest = *busiest;
        let newest = queue
            .repositories
            .queues
            .iter()
            .filter_map(|(name, jobs)| Some((name, jobs.back()?.queued)))
            .max_by_key(|(_, queued)| *queued)?;
        let name = newest.0.clone();
        let jobs = queue.repositories.queues.get_mut(&name)?;
        let job = jobs.pop_back();
        if jobs.is_empty() {
            queue.repositories.queues.remove(&name);
            queue.repositories.order.retain(|each| *each != name);
        }
        queue.jobs -= 1;
        self.jobs -= 1;
        if queue.jobs == 0 {
            self.clients.queues.remove(&busiest);
            self.clients.order.retain(|each| *each != busiest);
        }
        job
    }
}

/// Jobs of all classes.
#[derive(Default)]
pub(super) struct Queue {
    pub(super) classes: Turns<Class, ClassQueue>,
    pub(super) jobs: usize,
}

impl Queue {
    pub(super) fn is_full(&self, class: &Class) -> bool {
        let queued = self.classes.queues.get(class).map_or(0, |queue| queue.jobs);
        // The two classes of unlisted registries get half of the limit each, so that jobs for registries that never
        // respond, which wait long, leave space for the others.
        let max = if class.is_unlisted() { QUEUE_PER_CLASS_MAX / 2 } else { QUEUE_PER_CLASS_MAX };
        queued >= max || self.jobs >= QUEUE_MAX
    }

    pub(super) fn push(&mut self, job: Job) {
        self.classes.queue(&job.purpose.class.clone()).push(job);
        self.jobs += 1;
    }

    /// Whether there is a job that may start.
    pub(super) fn may_pick(
        &self,
        may_begin: impl Fn(&Class) -> bool,
        client_may_begin: impl Fn(&Class, ClientAddress) -> bool,
    ) -> bool {
        let mut eligible = self.classes.queues.iter().filter(|(class, _)| may_begin(class));
        eligible.any(|(class, queue)| {
            let mut clients = queue.clients.queues.keys();
            clients.any(|client| client.is_none_or(|client| client_may_begin(class, client)))
        })
    }

    /// The next job of the next class that may start one. Jobs whose clients have left are moved to `unwanted`.
    pub(super) fn pick(
        &mut self,
        may_begin: impl Fn(&Class) -> bool,
        client_may_begin: impl Fn(&Class, ClientAddress) -> bool,
        is_unwanted: impl Fn(&Job) -> bool,
        unwanted: &mut Vec<Job>,
    ) -> Option<Job> {
        for _ in 0..self.classes.order.len() {
            let class = self.classes.order.front()?.clone();
            if !may_begin(&class) {
                self.classes.order.rotate_left(1);
                continue;
            }
            let before = unwanted.len();
            let job = self.classes.pop(|queue| {
                let job = loop {
                    match queue.pop(|client| client_may_begin(&class, client)) {
                        Some(job) if is_unwanted(&job) => unwanted.push(job),
                        other => break other,
                    }
                };
                (job, if queue.jobs == 0 { IsEmpty::Yes } else { IsEmpty::No })
            });
            self.jobs -= unwanted.len() - before + usize::from(job.is_some());
            if job.is_some() {
                return job;
            }
        }
        None
    }
}
