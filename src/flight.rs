//! Single flight: at most one piece of work per key at a time, however many clients wait for it.
//!
//! The first caller to [`Flights::join`] a key gets a [`Leader`], which does the work and reports its progress. All
//! callers get the same [`Flight`] to watch. A flight has an early header, a count of bytes that may be read, and an
//! outcome, all as values. No call blocks: callers that cannot proceed register a [`Waker`], which is woken once, by the
//! change they wait for.
//!
//! This module must not know what a key, a header or a byte means, nor that disks or networks exist.
//!
//! # Interleavings
//! * *Join against finish.* The leader first makes its result visible elsewhere, then finishes the flight. Finishing sets
//!   the outcome and then removes the key. A flight with an outcome cannot be joined: a caller that arrives between the
//!   two steps becomes the next leader, and the removal leaves the new entry alone. A new leader must check for the
//!   result again before it works, because it may have checked before the previous flight finished and joined after it.
//! * *Waiting against progress.* The state and the list of wakers are under one lock. So a change is either seen by the
//!   poll, or wakes the waker that the poll registered.
//! * *The last follower against the end of the work.* Followers are added under the table's lock, and
//!   [`Leader::abandon`] checks their number under that lock, so a flight that has a follower is never abandoned.
//! * *A leader that panics or never finishes* fails the flight when it is dropped. An end without an outcome would look
//!   like success to a reader that counts bytes.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::Hash;
use std::ops::Deref;
use std::task::{Poll, Waker};

use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The running flights by key. Cloning shares the table.
pub struct Flights<K, H, T, E> {
    table: Arc<Table<K, H, T, E>>,
}

type Table<K, H, T, E> = Mutex<HashMap<K, Arc<Flight<H, T, E>>>>;

/// The result of [`Flights::join`].
pub struct Joined<K: Eq + Hash, H, T, E: Clone> {
    /// The flight of the key.
    pub flight: Follower<H, T, E>,
    /// Present if and only if this call started the flight. The caller must then do the work.
    pub leader: Option<Leader<K, H, T, E>>,
}

impl<K: Eq + Hash + Clone, H, T, E: Clone> Flights<K, H, T, E> {
    /// An empty table.
    pub fn new() -> Self {
        Flights { table: Arc::new(Mutex::new(HashMap::new())) }
    }

    /// Joins the flight of `key`, or starts it. If the leader is dropped before it finishes, the flight fails with
    /// `abandoned`.
    pub fn join(&self, key: &K, abandoned: impl FnOnce() -> E) -> Joined<K, H, T, E> {
        let mut table = lock(&self.table);
        if let Some(flight) = table.get(key).filter(|flight| !flight.has_ended()) {
            return Joined { flight: Follower::of(flight), leader: None };
        }
        let flight = Arc::new(Flight::new());
        table.insert(key.clone(), Arc::clone(&flight));
        let leader = Leader {
            flight: Arc::clone(&flight),
            key: key.clone(),
            table: Arc::clone(&self.table),
            abandoned: Some(abandoned()),
        };
        Joined { flight: Follower::of(&flight), leader: Some(leader) }
    }

    /// Joins the flight of `key` if one is running.
    pub fn find(&self, key: &K) -> Option<Follower<H, T, E>> {
        lock(&self.table).get(key).filter(|flight| !flight.has_ended()).map(Follower::of)
    }

    /// The running flight of `key`, without joining it.
    pub fn peek(&self, key: &K) -> Option<Arc<Flight<H, T, E>>> {
        lock(&self.table).get(key).filter(|flight| !flight.has_ended()).map(Arc::clone)
    }

    /// Asks the flight of `key` to end. Returns `false` if none is running. The request ends with the flight, however it
    /// ends, so it cannot affect a later flight.
    pub fn cancel(&self, key: &K) -> bool {
        let table = lock(&self.table);
        let running = table.get(key).filter(|flight| !flight.has_ended());
        // Under the table's lock, like `Leader::abandon`: a leader that has abandoned its flight sees the request.
        running.inspect(|flight| flight.is_cancelled.store(true, Ordering::Relaxed)).is_some()
    }

    /// The keys of the running flights, in no particular order.
    pub fn keys(&self) -> Vec<K> {
        lock(&self.table).keys().cloned().collect()
    }

    /// How many flights are running.
    pub fn len(&self) -> usize {
        lock(&self.table).len()
    }

    /// Whether no flight is running.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<K: Eq + Hash + Clone, H, T, E: Clone> Default for Flights<K, H, T, E> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K, H, T, E> Clone for Flights<K, H, T, E> {
    fn clone(&self) -> Self {
        Flights { table: Arc::clone(&self.table) }
    }
}

/// One piece of work, as seen by the callers that wait for it.
pub struct Flight<H, T, E> {
    state: Mutex<State<H, T, E>>,
    /// Incremented under the table's lock, so that no follower joins a flight while it is abandoned.
    followers: AtomicUsize,
    has_begun: AtomicBool,
    is_cancelled: AtomicBool,
}

/// A caller that waits for a flight. Dropping it leaves the flight.
pub struct Follower<H, T, E> {
    flight: Arc<Flight<H, T, E>>,
}

impl<H, T, E> Follower<H, T, E> {
    fn of(flight: &Arc<Flight<H, T, E>>) -> Follower<H, T, E> {
        flight.followers.fetch_add(1, Ordering::Relaxed);
        Follower { flight: Arc::clone(flight) }
    }

    /// The flight itself, which can be kept after the follower has left.
    pub fn flight(&self) -> &Arc<Flight<H, T, E>> {
        &self.flight
    }
}

impl<H, T, E> Deref for Follower<H, T, E> {
    type Target = Flight<H, T, E>;

    fn deref(&self) -> &Flight<H, T, E> {
        &self.flight
    }
}

impl<H, T, E> Drop for Follower<H, T, E> {
    fn drop(&mut self) {
        self.flight.followers.fetch_sub(1, Ordering::Release);
    }
}

struct State<H, T, E> {
    header: Option<H>,
    /// How many bytes may be read. Never decreases.
    available: u64,
    outcome: Option<Result<T, E>>,
    waiting: Waiters,
}

/// The change that a waker waits for. The end of a flight wakes all wakers.
#[derive(Clone, Copy)]
enum Until {
    Header,
    Beyond(u64),
    End,
}

/// The wakers of a flight. A popular blob has thousands of them, so only the end of the flight visits them all.
#[derive(Default)]
struct Waiters {
    /// By the address of a waker's data, which is unique while the waker is kept here.
    by_waker: HashMap<usize, (Until, Waker)>,
    for_header: HashSet<usize>,
    /// Wakers that wait for bytes beyond a position, ordered by position.
    for_bytes: BTreeSet<(u64, usize)>,
}

impl Waiters {
    /// Adds a waker, or replaces what it waits for: a connection that was resumed for another reason polls again.
    fn insert(&mut self, until: Until, waker: &Waker) {
        self.remove(waker);
        let key = waker.data().addr();
        match until {
            Until::Header => drop(self.for_header.insert(key)),
            Until::Beyond(position) => drop(self.for_bytes.insert((position, key))),
            Until::End => {}
        }
        self.by_waker.insert(key, (until, waker.clone()));
    }

    fn remove(&mut self, waker: &Waker) {
        let key = waker.data().addr();
        match self.by_waker.remove(&key) {
            Some((Until::Header, _)) => drop(self.for_header.remove(&key)),
            Some((Until::Beyond(position), _)) => drop(self.for_bytes.remove(&(position, key))),
            Some((Until::End, _)) | None => {}
        }
    }

    fn take_all(&mut self) -> Vec<Waker> {
        let all = std::mem::take(self).by_waker;
        all.into_values().map(|(_, waker)| waker).collect()
    }

    fn take_for_header(&mut self) -> Vec<Waker> {
        let due = std::mem::take(&mut self.for_header);
        due.iter().filter_map(|key| self.by_waker.remove(key)).map(|(_, waker)| waker).collect()
    }

    /// Removes and returns the wakers whose position is before `available`.
    fn take_for_bytes(&mut self, available: u64) -> Vec<Waker> {
        let later = self.for_bytes.split_off(&(available, 0));
        let due = std::mem::replace(&mut self.for_bytes, later);
        let due = due.iter().filter_map(|(_, key)| self.by_waker.remove(key));
        due.map(|(_, waker)| waker).collect()
    }
}

impl<H, T, E> State<H, T, E> {
    fn new() -> Self {
        State { header: None, available: 0, outcome: None, waiting: Waiters::default() }
    }

    fn wait(&mut self, until: Until, waker: &Waker) {
        self.waiting.insert(until, waker);
    }

    /// Removes and returns the wakers whose change has happened.
    fn due(&mut self) -> Vec<Waker> {
        if self.outcome.is_some() {
            return self.waiting.take_all();
        }
        let mut due = self.waiting.take_for_bytes(self.available);
        if self.header.is_some() {
            due.extend(self.waiting.take_for_header());
        }
        due
    }
}

impl<H, T, E> Flight<H, T, E> {
    fn new() -> Self {
        Flight {
            state: Mutex::new(State::new()),
            followers: AtomicUsize::new(0),
            has_begun: AtomicBool::new(false),
            is_cancelled: AtomicBool::new(false),
        }
    }

    fn change(&self, apply: impl FnOnce(&mut State<H, T, E>)) {
        let due = {
            let mut state = lock(&self.state);
            apply(&mut state);
            state.due()
        };
        due.into_iter().for_each(Waker::wake);
    }

    /// Called under the table's lock, which is always taken before the lock of a flight.
    fn has_ended(&self) -> bool {
        lock(&self.state).outcome.is_some()
    }

    /// Whether any caller follows this flight.
    pub fn has_followers(&self) -> bool {
        self.followers.load(Ordering::Acquire) > 0
    }

    /// Whether the work has begun. A flight may be queued for longer than its followers wait.
    pub fn has_begun(&self) -> bool {
        self.has_begun.load(Ordering::Relaxed)
    }

    /// Whether [`Flights::cancel`] was called. The leader decides when to end the work.
    pub fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::Relaxed)
    }
}

impl<H: Clone, T: Clone, E: Clone> Flight<H, T, E> {
    /// The header once it is known, or the error. If a flight succeeds without a header, this stays pending; poll
    /// [`Flight::poll_outcome`] where that can happen.
    pub fn poll_header(&self, waker: &Waker) -> Poll<Result<H, E>> {
        let mut state = lock(&self.state);
        match (&state.header, &state.outcome) {
            (_, Some(Err(error))) => Poll::Ready(Err(error.clone())),
            (Some(header), _) => Poll::Ready(Ok(header.clone())),
            (None, _) => {
                state.wait(Until::Header, waker);
                Poll::Pending
            }
        }
    }

    /// How many bytes may be read, once that is more than `position` or the flight has succeeded.
    pub fn poll_available(&self, position: u64, waker: &Waker) -> Poll<Result<u64, E>> {
        let mut state = lock(&self.state);
        match &state.outcome {
            Some(Err(error)) => Poll::Ready(Err(error.clone())),
            Some(Ok(_)) => Poll::Ready(Ok(state.available)),
            None if state.available > position => Poll::Ready(Ok(state.available)),
            None => {
                state.wait(Until::Beyond(position), waker);
                Poll::Pending
            }
        }
    }

    /// The outcome of the flight.
    pub fn poll_outcome(&self, waker: &Waker) -> Poll<Result<T, E>> {
        let mut state = lock(&self.state);
        match &state.outcome {
            Some(outcome) => Poll::Ready(outcome.clone()),
            None => {
                state.wait(Until::End, waker);
                Poll::Pending
            }
        }
    }

    /// Removes a waker whose owner has stopped waiting. A flight may run for hours.
    pub fn forget(&self, waker: &Waker) {
        lock(&self.state).waiting.remove(waker);
    }

    /// The header, if it is known.
    pub fn header(&self) -> Option<H> {
        lock(&self.state).header.clone()
    }

    /// How many bytes may be read now.
    pub fn available(&self) -> u64 {
        lock(&self.state).available
    }
}

/// Does the work of a flight. Dropping it without [`Leader::finish`] fails the flight.
pub struct Leader<K: Eq + Hash, H, T, E: Clone> {
    flight: Arc<Flight<H, T, E>>,
    key: K,
    table: Arc<Table<K, H, T, E>>,
    /// The error to fail with if dropped. `None` once the flight has ended.
    abandoned: Option<E>,
}

impl<K: Eq + Hash, H, T, E: Clone> Leader<K, H, T, E> {
    /// The key of this flight.
    pub fn key(&self) -> &K {
        &self.key
    }

    /// The flight, without joining it.
    pub fn flight(&self) -> &Arc<Flight<H, T, E>> {
        &self.flight
    }

    /// Records that the work has begun.
    pub fn begin(&self) {
        self.flight.has_begun.store(true, Ordering::Relaxed);
    }

    /// Whether any caller follows this flight.
    pub fn has_followers(&self) -> bool {
        self.flight.has_followers()
    }

    /// Ends the flight with an error if it has no followers. If it has one, the work must continue, and the leader is
    /// returned.
    pub fn abandon(mut self, outcome: E) -> Option<Self> {
        let table = Arc::clone(&self.table);
        let mut table = lock(&table);
        // Joining takes the table's lock, so no follower is added in the meantime.
        if self.flight.has_followers() {
            return Some(self);
        }
        self.abandoned = None;
        lock(&self.flight.state).outcome = Some(Err(outcome));
        if table.get(&self.key).is_some_and(|flight| Arc::ptr_eq(flight, &self.flight)) {
            table.remove(&self.key);
        }
        None
    }

    /// Publishes the header. Later calls have no effect.
    pub fn announce(&self, header: H) {
        self.change(|state| {
            state.header.get_or_insert(header);
        });
    }

    /// [`Leader::announce`] and [`Leader::advance`] as one change, which wakes each waker once.
    pub fn announce_all(&self, header: H, available: u64) {
        self.change(|state| {
            state.header.get_or_insert(header);
            state.available = state.available.max(available);
        });
    }

    /// Publishes that `available` bytes may be read. A lower number than before is ignored.
    pub fn advance(&self, available: u64) {
        self.change(|state| state.available = state.available.max(available));
    }

    /// For another thread that publishes available bytes. After the end of the flight, it has no effect on callers.
    pub fn advancer(&self) -> Advancer<H, T, E> {
        Advancer { flight: Arc::clone(&self.flight) }
    }

    /// Ends the flight. The result must already be visible in the place that new callers check before they join.
    pub fn finish(mut self, outcome: Result<T, E>) {
        self.abandoned = None;
        self.end(outcome);
    }

    fn end(&self, outcome: Result<T, E>) {
        self.change(|state| state.outcome = Some(outcome));
        let mut table = lock(&self.table);
        if table.get(&self.key).is_some_and(|flight| Arc::ptr_eq(flight, &self.flight)) {
            table.remove(&self.key);
        }
    }

    /// Applies a change and wakes the wakers that waited for it. They are woken outside the lock, because they take other
    /// locks.
    fn change(&self, apply: impl FnOnce(&mut State<H, T, E>)) {
        self.flight.change(apply);
    }
}

/// Publishes available bytes of a flight; see [`Leader::advancer`].
pub struct Advancer<H, T, E> {
    flight: Arc<Flight<H, T, E>>,
}

impl<H, T, E> Advancer<H, T, E> {
    /// Like [`Leader::advance`].
    pub fn advance(&self, available: u64) {
        self.flight.change(|state| state.available = state.available.max(available));
    }
}

impl<K: Eq + Hash, H, T, E: Clone> Drop for Leader<K, H, T, E> {
    fn drop(&mut self) {
        if let Some(abandoned) = self.abandoned.take() {
            self.end(Err(abandoned));
        }
    }
}

/// Every change to these tables is a single assignment, so the data of a poisoned lock is consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[cfg(feature = "interleavings")]
mod interleavings;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    type Numbers = Flights<u8, &'static str, u32, &'static str>;

    /// Counts how often it was woken.
    #[derive(Default)]
    struct Bell(AtomicUsize);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn bell() -> (Arc<Bell>, Waker) {
        let bell = Arc::new(Bell::default());
        (Arc::clone(&bell), Waker::from(bell))
    }

    impl Bell {
        fn rings(&self) -> usize {
            self.0.load(Ordering::SeqCst)
        }
    }

    fn start(flights: &Numbers) -> Leader<u8, &'static str, u32, &'static str> {
        flights.join(&1, || "abandoned").leader.unwrap()
    }

    #[test]
    fn a_cancellation_ends_with_its_flight() {
        let flights = Numbers::new();
        assert!(!flights.cancel(&1), "nothing is running");
        for end in [|leader: Leader<_, _, _, _>| leader.finish(Ok(7)), drop] {
            let joined = flights.join(&1, || "abandoned");
            assert!(!joined.flight.is_cancelled());
            assert!(flights.cancel(&1) && joined.flight.is_cancelled());
            end(joined.leader.unwrap());
            assert!(!flights.cancel(&1), "it has ended");
        }
    }

    #[test]
    fn the_first_to_join_becomes_the_leader() {
        let flights = Numbers::new();
        let leader = start(&flights);
        assert!(flights.join(&1, || "abandoned").leader.is_none());
        assert!(flights.join(&2, || "abandoned").leader.is_some(), "another key is another flight");
        leader.finish(Ok(7));
        assert!(flights.join(&1, || "abandoned").leader.is_some(), "a finished flight is gone");
    }

    /// A waker that joins the flight it waits for, between its outcome and its removal.
    struct Rejoin {
        flights: Numbers,
        became_leader: AtomicUsize,
    }

    impl Wake for Rejoin {
        fn wake(self: Arc<Self>) {
            let joined = self.flights.join(&1, || "abandoned");
            self.became_leader.fetch_add(usize::from(joined.leader.is_some()), Ordering::SeqCst);
            // Keeps the flight running, so that a removal by the previous flight would be visible.
            std::mem::forget(joined.leader);
        }
    }

    #[test]
    fn a_flight_that_has_ended_cannot_be_joined() {
        let flights = Numbers::new();
        let leader = start(&flights);
        let flight = flights.find(&1).unwrap();
        let rejoin =
            Arc::new(Rejoin { flights: flights.clone(), became_leader: AtomicUsize::new(0) });
        assert!(flight.poll_outcome(&Waker::from(Arc::clone(&rejoin))).is_pending());
        leader.finish(Ok(1));
        assert_eq!(rejoin.became_leader.load(Ordering::SeqCst), 1);
        assert_eq!(flights.len(), 1, "the previous flight did not remove the next one");
    }

    #[test]
    fn a_hundred_threads_joining_at_once_get_one_leader() {
        let flights = Numbers::new();
        let barrier = std::sync::Barrier::new(100);
        let leaders: Vec<_> = std::thread::scope(|scope| {
            let join = || {
                barrier.wait();
                flights.join(&1, || "abandoned").leader
            };
            let threads: Vec<_> = (0..100).map(|_| scope.spawn(join)).collect();
            threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(leaders.len(), 1);
    }

    #[test]
    fn a_waker_is_woken_once_by_the_change_it_waits_for() {
        let flights = Numbers::new();
        let leader = start(&flights);
        let flight = flights.find(&1).unwrap();
        let (header_bell, header) = bell();
        let (byte_bell, bytes) = bell();
        assert!(flight.poll_header(&header).is_pending());
        assert!(flight.poll_available(10, &bytes).is_pending());
        leader.advance(10);
        assert_eq!((header_bell.rings(), byte_bell.rings()), (0, 0), "10 is not beyond 10");
        leader.announce("200");
        assert_eq!(flight.poll_header(&header), Poll::Ready(Ok("200")));
        leader.advance(11);
        leader.advance(12);
        assert_eq!((header_bell.rings(), byte_bell.rings()), (1, 1));
        assert_eq!(flight.poll_available(10, &bytes), Poll::Ready(Ok(12)));
    }

    #[test]
    fn polling_twice_registers_one_waker() {
        let flights = Numbers::new();
        let leader = start(&flights);
        let flight = flights.find(&1).unwrap();
        let (bell, waker) = bell();
        assert!(flight.poll_outcome(&waker).is_pending());
        assert!(flight.poll_outcome(&waker).is_pending());
        leader.finish(Ok(3));
        assert_eq!(bell.rings(), 1);
        assert_eq!(flight.poll_outcome(&waker), Poll::Ready(Ok(3)));
    }

    #[test]
    fn a_forgotten_waker_is_not_woken() {
        let flights = Numbers::new();
        let leader = start(&flights);
        let flight = flights.find(&1).unwrap();
        let [(gone, gone_waker), (stays, stays_waker)] = [bell(), bell()];
        assert!(flight.poll_outcome(&gone_waker).is_pending());
        assert!(flight.poll_outcome(&stays_waker).is_pending());
        flight.forget(&gone_waker);
        leader.finish(Ok(1));
        assert_eq!((gone.rings(), stays.rings()), (0, 1));
    }

    #[test]
    fn failure_reaches_every_waiter_as_a_value() {
        let flights = Numbers::new();
        let leader = start(&flights);
        let flight = flights.find(&1).unwrap();
        let bells: Vec<_> = (0..3).map(|_| bell()).collect();
        assert!(flight.poll_header(&bells[0].1).is_pending());
        assert!(flight.poll_available(0, &bells[1].1).is_pending());
        assert!(flight.poll_outcome(&bells[2].1).is_pending());
        leader.advance(5);
        leader.finish(Err("upstream fell over"));
        assert!(bells.iter().all(|(bell, _)| bell.rings() == 1));
        let (_, waker) = bell();
        assert_eq!(flight.poll_header(&waker), Poll::Ready(Err("upstream fell over")));
        assert_eq!(flight.poll_available(0, &waker), Poll::Ready(Err("upstream fell over")));
        assert_eq!(flight.poll_outcome(&waker), Poll::Ready(Err("upstream fell over")));
    }

    #[test]
    fn dropping_the_leader_fails_the_flight() {
        let flights = Numbers::new();
        let leader = start(&flights);
        let flight = flights.find(&1).unwrap();
        let (bell, waker) = bell();
        assert!(flight.poll_available(0, &waker).is_pending());
        let panicking = std::thread::spawn(move || {
            let _leader = leader;
            panic!("a fetch that panics");
        });
        assert!(panicking.join().is_err());
        assert_eq!(bell.rings(), 1);
        assert_eq!(flight.poll_available(0, &waker), Poll::Ready(Err("abandoned")));
        assert!(flights.is_empty());
    }

    #[test]
    fn available_bytes_never_decrease() {
        let flights = Numbers::new();
        let leader = start(&flights);
        leader.advance(9);
        leader.advance(4);
        assert_eq!(flights.find(&1).unwrap().available(), 9);
    }
}
