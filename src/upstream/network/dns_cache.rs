//! A cache of DNS lookups, which are kept for some seconds.
//!
//! The system's resolver blocks (for half a minute without a network) and cannot be interrupted. Therefore each lookup
//! has its own thread. Threat: clients and redirects choose host names. Therefore all callers share one lookup per name,
//! failures are cached as well as addresses, and the number of threads is bounded.
//!
//! # Interleavings
//! * *Two callers resolve the same name at once.* The first one inserts a pending entry, under the lock, and starts the
//!   thread; the other waits for that entry.
//! * *The caller that started the lookup times out.* The thread continues, and its result is cached for the next caller.
//! * *A thread cannot be started, or there are too many.* The entry becomes a failure at once, and its waiters are woken.
//! * *The table is full of pending lookups.* This cannot happen: pending entries are bounded by the number of threads,
//!   which is lower than the capacity of the table.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long addresses are cached: long enough for the requests of one pull, and no longer than the usual time-to-live
/// of records that steer traffic.
const FOUND_TTL: Duration = Duration::from_secs(5);
/// How long failures are cached: short, for a network that has just come up.
const FAILURE_TTL: Duration = Duration::from_secs(3);
/// The most names in the cache. Beyond that, expired entries are evicted, then the oldest.
const NAMES_MAX: usize = 1024;
/// The most lookups at a time: more than there are fetchers, since a lookup may outlive its fetcher.
const LOOKUPS_MAX: usize = 256;
/// The stack of a lookup's thread: the C library's resolver needs some tens of kibibytes.
const STACK_BYTES: usize = 256 * 1024;

type LookUp = dyn Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync;

/// Why a name has no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ResolveError {
    /// The name does not resolve, or cannot be looked up at the moment.
    Failed,
    /// The resolver did not answer in time.
    TimedOut,
}

/// A resolver with a cache. Clones share it.
#[derive(Clone)]
pub(super) struct DnsCache {
    shared: Arc<Shared>,
}

struct Shared {
    look_up: Box<LookUp>,
    state: Mutex<State>,
    /// Signalled whenever a lookup ends.
    ended: Condvar,
}

#[derive(Default)]
struct State {
    known: HashMap<String, Entry>,
    lookups: usize,
}

enum Entry {
    Pending,
    Known { found: Option<Arc<[SocketAddr]>>, since: Instant },
}

impl Entry {
    fn is_expired(&self, now: Instant) -> bool {
        match self {
            Entry::Pending => false,
            Entry::Known { found, since } => {
                let ttl = if found.is_some() { FOUND_TTL } else { FAILURE_TTL };
                now.saturating_duration_since(*since) >= ttl
            }
        }
    }
}

impl Default for DnsCache {
    /// Uses the system's resolver.
    fn default() -> DnsCache {
        DnsCache::over(Box::new(|name| Ok(name.to_socket_addrs()?.collect())))
    }
}

impl DnsCache {
    fn over(look_up: Box<LookUp>) -> DnsCache {
        let (state, ended) = (Mutex::default(), Condvar::new());
        DnsCache { shared: Arc::new(Shared { look_up, state, ended }) }
    }

    /// The addresses of `host:port`.
    ///
    /// # Errors
    /// [`ResolveError`].
    pub(super) fn resolve(
        &self,
        host_and_port: &str,
        at_most: Duration,
    ) -> Result<Arc<[SocketAddr]>, ResolveError> {
        if let Ok(address) = host_and_port.parse::<SocketAddr>() {
            return Ok(Arc::from([address]));
        }
        let start = Instant::now();
        let mut state = self.shared.lock();
        if state.known.get(host_and_port).is_none_or(|entry| entry.is_expired(start)) {
            state = self.start(state, host_and_port, start);
        }
        let left = at_most.saturating_sub(start.elapsed());
        let is_pending =
            |state: &mut State| matches!(state.known.get(host_and_port), Some(Entry::Pending));
        let waited = self.shared.ended.wait_timeout_while(state, left, is_pending);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        match state.known.get(host_and_port) {
            Some(Entry::Known { found: Some(found), .. }) => Ok(Arc::clone(found)),
            // Already evicted, among very many names: the caller may try again.
            Some(Entry::Known { found: None, .. }) | None => Err(ResolveError::Failed),
            Some(Entry::Pending) => Err(ResolveError::TimedOut),
        }
    }

    /// Starts a lookup.
    fn start<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        host_and_port: &str,
        now: Instant,
    ) -> MutexGuard<'a, State> {
        state.evict(now);
        if state.lookups >= LOOKUPS_MAX {
            let failure = Entry::Known { found: None, since: now };
            state.known.insert(host_and_port.to_owned(), failure);
            return state;
        }
        state.lookups += 1;
        state.known.insert(host_and_port.to_owned(), Entry::Pending);
        let (shared, name) = (Arc::clone(&self.shared), host_and_port.to_owned());
        let pending = PendingLookUp { shared, name, found: None };
        drop(state);
        let builder = thread::Builder::new().name("resolver".into()).stack_size(STACK_BYTES);
        // If the thread cannot be started, its closure is dropped, which ends the lookup as failed.
        if let Err(error) = builder.spawn(move || pending.run()) {
            log::warn!(error:%; "cannot start a thread to look up a host name");
        }
        self.shared.lock()
    }
}

impl State {
    fn evict(&mut self, now: Instant) {
        if self.known.len() < NAMES_MAX {
            return;
        }
        self.known.retain(|_, entry| !entry.is_expired(now));
        if self.known.len() < NAMES_MAX {
            return;
        }
        let known = self.known.iter().filter_map(|(name, entry)| match entry {
            Entry::Known { since, .. } => Some((*since, name.clone())),
            Entry::Pending => None,
        });
        let mut known: Vec<(Instant, String)> = known.collect();
        // Many at a time, so that the table is searched once for many new names.
        known.sort_unstable();
        for (_, name) in known.into_iter().take(NAMES_MAX / 16) {
            self.known.remove(&name);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic leaves the table valid: each change is one insertion or removal.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running lookup. Dropping it wakes the waiters, whether it succeeded, panicked or could not be started.
struct PendingLookUp {
    shared: Arc<Shared>,
    name: String,
    found: Option<Arc<[SocketAddr]>>,
}

impl PendingLookUp {
    fn run(mut self) {
        let found = (self.shared.look_up)(&self.name);
        if let Err(error) = &found {
            log::debug!(host = self.name.as_str(), error:%; "cannot look up a host");
        }
        self.found = found.ok().filter(|found| !found.is_empty()).map(Arc::from);
    }
}

impl Drop for PendingLookUp {
    fn drop(&mut self) {
        let entry = Entry::Known { found: self.found.take(), since: Instant::now() };
        let mut state = self.shared.lock();
        state.lookups -= 1;
        state.known.insert(std::mem::take(&mut self.name), entry);
        drop(state);
        self.shared.ended.notify_all();
    }
}

impl fmt::Debug for DnsCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DnsCache").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    fn address() -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], 443))
    }

    /// A resolver that resolves names without a dash and counts lookups. Names that begin with `slow` block until the
    /// test sends a message.
    fn names() -> (DnsCache, Arc<AtomicUsize>, Sender<()>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let (open, gate): (Sender<()>, Receiver<()>) = channel();
        let (counted, gate) = (Arc::clone(&asked), Mutex::new(gate));
        let names = DnsCache::over(Box::new(move |name| {
            counted.fetch_add(1, Ordering::SeqCst);
            if name.starts_with("slow") {
                let _ = gate.lock().unwrap().recv();
            }
            match name.contains('-') {
                true => Err(io::ErrorKind::NotFound.into()),
                false => Ok(vec![address()]),
            }
        }));
        (names, asked, open)
    }

    fn age(names: &DnsCache, by: Duration) {
        for entry in names.shared.lock().known.values_mut() {
            if let Entry::Known { since, .. } = entry {
                *since = since.checked_sub(by).unwrap();
            }
        }
    }

    #[test]
    fn addresses_and_failures_are_cached_for_a_while() {
        let (names, asked, _open) = names();
        for _ in 0..3 {
            assert_eq!(names.resolve("a.test:443", LONG).unwrap()[..], [address()]);
            assert_eq!(names.resolve("no-a.test:443", LONG), Err(ResolveError::Failed));
        }
        assert_eq!(asked.load(Ordering::SeqCst), 2);
        age(&names, FAILURE_TTL);
        assert!(names.resolve("a.test:443", LONG).is_ok());
        assert!(names.resolve("no-a.test:443", LONG).is_err());
        assert_eq!(asked.load(Ordering::SeqCst), 3, "the failure has expired, the address has not");
        age(&names, FOUND_TTL);
        assert!(names.resolve("a.test:443", LONG).is_ok());
        assert_eq!(asked.load(Ordering::SeqCst), 4);
    }

    #[test]
    fn callers_share_one_lookup_and_may_time_out() {
        let (names, asked, open) = names();
        for _ in 0..5 {
            let waited = names.resolve("slow.test:443", Duration::ZERO);
            assert_eq!(waited, Err(ResolveError::TimedOut));
        }
        open.send(()).unwrap();
        assert!(names.resolve("slow.test:443", LONG).is_ok(), "the result of the first lookup");
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn neither_threads_nor_the_table_grow_without_bound() {
        let (names, asked, open) = names();
        for number in 0..LOOKUPS_MAX + 10 {
            let waited = names.resolve(&format!("slow{number}.test:443"), Duration::ZERO);
            let expected =
                if number < LOOKUPS_MAX { ResolveError::TimedOut } else { ResolveError::Failed };
            assert_eq!(waited, Err(expected), "{number}");
        }
        drop(open);
        let last = format!("slow{}.test:443", LOOKUPS_MAX - 1);
        assert!(names.resolve(&last, LONG).is_ok());
        for number in 0..2 * NAMES_MAX {
            assert!(names.resolve(&format!("a{number}.test:443"), LONG).is_ok());
            assert!(names.shared.lock().known.len() <= NAMES_MAX);
        }
        assert!(asked.load(Ordering::SeqCst) >= LOOKUPS_MAX);
    }

    #[test]
    fn a_lookup_that_panics_has_failed() {
        let names = DnsCache::over(Box::new(|_| panic!("a resolver that panics")));
        assert_eq!(names.resolve("a.test:443", LONG), Err(ResolveError::Failed));
        assert_eq!(names.shared.lock().lookups, 0);
    }
}
