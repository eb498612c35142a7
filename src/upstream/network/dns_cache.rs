//! Host names and what they resolve to, remembered for some seconds.
//!
//! The system's resolver blocks, for half a minute where there is no network, and cannot be interrupted. So each
//! look-up has a thread of its own. Threat: clients name hosts, and redirects do. So there is one look-up for a
//! name at a time, which all that ask for it share, failures are remembered as well as addresses, and the
//! number of threads is bounded.
//!
//! # Interleavings
//! * *Two ask for the same name at once.* The first to find no entry inserts one that is pending, under the
//!   lock, and starts the thread; the other waits for that entry.
//! * *Whoever started the look-up gives up.* The thread belongs to nobody: its answer is kept for the next.
//! * *A thread cannot be started, or there are too many.* The entry becomes a failure at once, and those that
//!   wait for it are woken.
//! * *The table is full of pending look-ups.* A newcomer is refused: pending entries are bounded by the threads,
//!   which are fewer than the table holds, so this cannot happen before the bound on threads.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long addresses are remembered: for the requests of one pull, and not beyond what the time-to-live of
/// a record that steers traffic usually is.
const FOUND_TTL: Duration = Duration::from_secs(5);
/// How long it is remembered that a name does not resolve: short, for a network that has just come up.
const FAILURE_TTL: Duration = Duration::from_secs(3);
/// DnsCache remembered. Beyond it, those that are over make room, and then the oldest.
const NAMES_MAX: usize = 1024;
/// Look-ups at a time: more than there are fetchers, so that those that hang on after their fetcher has given
/// up leave room for others.
const LOOKUPS_MAX: usize = 256;
/// The stack of a look-up: the C library's resolver needs some tens of kibibytes.
const STACK_BYTES: usize = 256 * 1024;

type LookUp = dyn Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync;

/// Why there is no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ResolveError {
    /// The name does not resolve, or cannot be looked up just now.
    Failed,
    /// The resolver has not answered in time.
    TimedOut,
}

/// A resolver with a memory. Cloning shares it.
#[derive(Clone)]
pub(super) struct DnsCache {
    shared: Arc<Shared>,
}

struct Shared {
    look_up: Box<LookUp>,
    state: Mutex<State>,
    /// Signalled whenever a look-up ends.
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
    /// Over the system's resolver.
    fn default() -> DnsCache {
        DnsCache::over(Box::new(|name| Ok(name.to_socket_addrs()?.collect())))
    }
}

impl DnsCache {
    fn over(look_up: Box<LookUp>) -> DnsCache {
        let (state, ended) = (Mutex::default(), Condvar::new());
        DnsCache { shared: Arc::new(Shared { look_up, state, ended }) }
    }

    /// What `host:port` leads to.
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
            // Forgotten already where there are very many names: the caller may ask again.
            Some(Entry::Known { found: None, .. }) | None => Err(ResolveError::Failed),
            Some(Entry::Pending) => Err(ResolveError::TimedOut),
        }
    }

    /// Starts a look-up.
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
        // If it cannot be started, dropping what it was to run ends the look-up as failed.
        if let Err(error) = builder.spawn(move || pending.run()) {
            log::warn!("a host name cannot be looked up: {error}");
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
        // Many at a time, so that the table is searched once for many newcomers.
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

/// A look-up under way. Its end, by an answer, a panic or no thread to run it, lets those that wait continue.
struct PendingLookUp {
    shared: Arc<Shared>,
    name: String,
    found: Option<Arc<[SocketAddr]>>,
}

impl PendingLookUp {
    fn run(mut self) {
        let found = (self.shared.look_up)(&self.name);
        if let Err(error) = &found {
            log::debug!("{}: {error}", self.name);
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

    /// A resolver that knows names without a dash, and counts look-ups. One of `slow.test` waits for the test.
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
    fn addresses_and_failures_are_remembered_for_a_while() {
        let (names, asked, _open) = names();
        for _ in 0..3 {
            assert_eq!(names.resolve("a.test:443", LONG).unwrap()[..], [address()]);
            assert_eq!(names.resolve("no-a.test:443", LONG), Err(ResolveError::Failed));
        }
        assert_eq!(asked.load(Ordering::SeqCst), 2);
        age(&names, FAILURE_TTL);
        assert!(names.resolve("a.test:443", LONG).is_ok());
        assert!(names.resolve("no-a.test:443", LONG).is_err());
        assert_eq!(asked.load(Ordering::SeqCst), 3, "the failure is over, the address is not");
        age(&names, FOUND_TTL);
        assert!(names.resolve("a.test:443", LONG).is_ok());
        assert_eq!(asked.load(Ordering::SeqCst), 4);
    }

    #[test]
    fn all_that_ask_for_a_name_share_one_look_up_which_nobody_has_to_wait_for() {
        let (names, asked, open) = names();
        for _ in 0..5 {
            let waited = names.resolve("slow.test:443", Duration::ZERO);
            assert_eq!(waited, Err(ResolveError::TimedOut));
        }
        open.send(()).unwrap();
        assert!(names.resolve("slow.test:443", LONG).is_ok(), "the answer of the first look-up");
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
    fn a_look_up_that_panics_has_failed() {
        let names = DnsCache::over(Box::new(|_| panic!("a resolver that panics")));
        assert_eq!(names.resolve("a.test:443", LONG), Err(ResolveError::Failed));
        assert_eq!(names.shared.lock().lookups, 0);
    }
}
