//! The connection table: where connections are while they cannot proceed, and why no wake-up is lost.
//!
//! This module must not know HTTP. A connection is in exactly one place: with a worker, in the channel, or parked in
//! its slot. Whatever takes it out of its slot (the poller, a waker, a drain) sends it through the channel. The channel
//! has capacity for all slots, so sending never blocks.
//!
//! A wake-up that finds the slot empty leaves a mark there. If `woken` is set, the connection goes straight back to its
//! worker instead of being parked. If `socket_fired` is set, the worker arms the socket again, and arming reports
//! events that happened before it. So every wake-up either finds the connection or is found by it.

mod guard;
mod parking;
mod shares;

pub(super) use guard::{Admission, SlotGuard};
pub(super) use parking::{Evictable, Interest, Parking};

use super::limits::SURPLUS_SLOTS;
use crate::client_address::ClientAddress;
use crate::sync::atomic::{AtomicU8, AtomicU32, AtomicUsize, Ordering};
use crate::sync::{Arc, Mutex, MutexGuard, PoisonError};
use crossbeam_channel::{Receiver, Sender};
use rustix::event::epoll;
use rustix::fd::{AsFd, OwnedFd};
use shares::{Entry, Opened, Shares};
use std::time::Instant;

/// How often a client's claim on a place is tried when other clients take the places that become free.
const CLAIM_ATTEMPTS_MAX: u32 = 4;

/// What the table keeps: a connection, as far as the table needs to know it.
pub(super) trait Occupant: AsFd + Send + Sized + 'static {
    /// The guard of the slot that this connection owns.
    fn guard(&self) -> &SlotGuard<Self>;

    fn guard_mut(&mut self) -> &mut SlotGuard<Self>;
}

/// What a worker takes from the channel.
pub(super) enum Job<C> {
    Serve(Box<C>),
    /// Stops one worker.
    Stop,
}

/// The life of the server, from serving to shut down. It never goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Stage {
    Serving,
    /// Clients are still served, each with one response, until none of them is waiting for one.
    Leaving,
    /// No more clients are accepted.
    Draining,
    Cutting,
}

/// Which parked connections a sweep resumes, besides those whose deadline has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sweep {
    Expired,
    Idle,
    All,
}

/// Identifies one use of a slot. Slots are reused, generations are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct SlotId {
    index: u32,
    generation: u32,
}

impl SlotId {
    fn token(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    fn from_token(token: u64) -> Self {
        // Both casts truncate on purpose.
        Self { index: token as u32, generation: (token >> 32) as u32 }
    }
}

struct Slot<C> {
    generation: u32,
    woken: bool,
    socket_fired: bool,
    parked: Option<(Box<C>, Parking)>,
    /// The time under which the shares list this connection. The connection may have been used since.
    listed: Option<Instant>,
    /// Close the connection when its worker parks it, unless it has a complete request by then.
    close_when_parked: bool,
}

impl<C> Default for Slot<C> {
    fn default() -> Self {
        Slot {
            generation: 0,
            woken: false,
            socket_fired: false,
            parked: None,
            listed: None,
            close_when_parked: false,
        }
    }
}

/// The result of an attempt to close a connection to make room for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Eviction {
    /// One connection was closed.
    Done,
    /// One connection is with a worker and closes soon, unless it has a complete request.
    Soon,
    /// No connection can be closed.
    Nothing,
}

/// Whether a client has a place among the `max_connections`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Now,
    /// A connection is about to be closed for it.
    Soon,
    None,
}

/// The slots of all connections, and the channel to the workers.
pub(super) struct ConnectionTable<C> {
    /// While one of these locks is held, only the lock of `shares` may be taken. System calls are allowed if they do
    /// not block.
    slots: Box<[Mutex<Slot<C>>]>,
    /// Never taken together with another lock. The lowest index is on top, which keeps sweeps short.
    free: Mutex<Vec<u32>>,
    /// One more than the highest index ever used.
    used: AtomicU32,
    /// No other lock is taken while this one is held.
    shares: Mutex<Shares<SlotId>>,
    surplus: AtomicUsize,
    stage: AtomicU8,
    ended_since_drain: AtomicUsize,
    epoll: OwnedFd,
    ready: Sender<Job<C>>,
    /// Keeps the channel open even if all workers are gone.
    queue: Receiver<Job<C>>,
}

impl<C> ConnectionTable<C> {
    /// Creates a table for `max_connections` connections, whose channel also has capacity to stop all `workers`.
    pub(super) fn new(max_connections: usize, workers: usize, epoll: OwnedFd) -> Arc<Self> {
        let count = max_connections + SURPLUS_SLOTS;
        let (ready, queue) = crossbeam_channel::bounded(count + workers);
        Arc::new(Self {
            slots: (0..count).map(|_| Mutex::default()).collect(),
            // `Settings::bounded` keeps the count far below `u32::MAX`.
            free: Mutex::new((0..count as u32).rev().collect()),
            used: AtomicU32::new(0),
            shares: Mutex::new(Shares::new(max_connections)),
            surplus: AtomicUsize::new(0),
            stage: AtomicU8::new(Stage::Serving as u8),
            ended_since_drain: AtomicUsize::new(0),
            epoll,
            ready,
            queue,
        })
    }

    pub(super) fn epoll(&self) -> &OwnedFd {
        &self.epoll
    }

    /// The workers' end of the channel.
    pub(super) fn queue(&self) -> &Receiver<Job<C>> {
        &self.queue
    }

    pub(super) fn stage(&self) -> Stage {
        match self.stage.load(Ordering::Acquire) {
            0 => Stage::Serving,
            1 => Stage::Leaving,
            2 => Stage::Draining,
            _ => Stage::Cutting,
        }
    }

    /// Advances to `stage`, unless the server is at that stage or a later one.
    pub(super) fn advance(&self, stage: Stage) {
        self.stage.fetch_max(stage as u8, Ordering::AcqRel);
    }

    /// How many connections are open.
    pub(super) fn open(&self) -> usize {
        self.slots.len() - lock(&self.free).len()
    }

    /// Whether no response is running: every connection is parked without a complete request.
    pub(super) fn is_quiet(&self) -> bool {
        let is_without_request = |index: u32| {
            let slot = self.slot(index);
            slot.parked.as_ref().is_some_and(|(_, parking)| parking.evictable.is_some())
        };
        let used = 0..self.used.load(Ordering::Acquire);
        used.filter(|index| is_without_request(*index)).count() == self.open()
    }

    /// How many connections have ended since the drain began.
    pub(super) fn ended_since_drain(&self) -> usize {
        self.ended_since_drain.load(Ordering::Relaxed)
    }

    /// Sends a connection to the workers, after all queued ones.
    pub(super) fn enqueue(&self, connection: Box<C>) {
        self.send(Job::Serve(connection));
    }

    /// Makes one worker stop after all queued jobs.
    pub(super) fn stop_one_worker(&self) {
        self.send(Job::Stop);
    }

    fn send(&self, job: Job<C>) {
        if self.ready.try_send(job).is_err() {
            log::error!("bug: the queue of ready connections is full");
        }
    }

    fn slot(&self, index: u32) -> MutexGuard<'_, Slot<C>> {
        lock(&self.slots[index as usize])
    }

    /// Resumes the connection of this slot, or marks the slot so that the connection is resumed when it parks.
    fn wake(&self, id: SlotId) {
        let mut slot = self.slot(id.index);
        if slot.generation != id.generation {
            return;
        }
        let Some((connection, _)) = slot.parked.take() else {
            slot.woken = true;
            return;
        };
        drop(slot);
        self.enqueue(connection);
    }

    /// Resumes all connections whose deadline has passed, and those that `sweep` names.
    pub(super) fn sweep(&self, now: Instant, sweep: Sweep) {
        for index in 0..self.used.load(Ordering::Acquire) {
            let mut slot = self.slot(index);
            let due = slot.parked.as_ref().is_some_and(|(_, parking)| match sweep {
                Sweep::Expired => parking.deadline <= now,
                Sweep::Idle => {
                    parking.deadline <= now
                        || parking.evictable.is_some_and(|evictable| evictable.is_idle)
                }
                Sweep::All => true,
            });
            let parked = if due { slot.parked.take() } else { None };
            drop(slot);
            if let Some((connection, _)) = parked {
                self.enqueue(connection);
            }
        }
    }
}

impl<C: Occupant> ConnectionTable<C> {
    /// Reserves a slot for a new connection.
    ///
    /// If this client has no place left, a connection without a complete request is closed for it. If there is none,
    /// the connection gets a surplus slot. Returns `None` if all surplus slots are taken as well.
    pub(super) fn admit(self: &Arc<Self>, client: ClientAddress) -> Option<SlotGuard<C>> {
        let admission = match self.claim_place(client) {
            Place::Now => Admission::Served,
            _ if self.surplus.fetch_add(1, Ordering::AcqRel) < SURPLUS_SLOTS => Admission::Surplus,
            _ => {
                self.surplus.fetch_sub(1, Ordering::AcqRel);
                return None;
            }
        };
        // Served and surplus connections together never exceed the number of slots.
        let index = lock(&self.free).pop()?;
        self.used.fetch_max(index + 1, Ordering::AcqRel);
        let id = SlotId { index, generation: self.slot(index).generation };
        Some(SlotGuard::new(self, id, client, admission))
    }

    /// Counts one more connection of `client`, and closes another one for it if necessary. Other clients may take the
    /// place that became free, so this tries a few times.
    fn claim_place(&self, client: ClientAddress) -> Place {
        for _ in 0..CLAIM_ATTEMPTS_MAX {
            let opened = lock(&self.shares).open(client);
            let eviction = match opened {
                Opened::Yes => return Place::Now,
                Opened::TableFull => self.evict(None),
                Opened::ShareExceeded => self.evict(Some(client)),
            };
            match eviction {
                Eviction::Done => {}
                Eviction::Soon => return Place::Soon,
                Eviction::Nothing => return Place::None,
            }
        }
        Place::None
    }

    /// Parks a new connection and registers its socket with the poller.
    pub(super) fn insert(&self, connection: Box<C>, parking: Parking) {
        let id = connection.guard().id;
        let slot = self.slot(id.index);
        let data = epoll::EventData::new_u64(id.token());
        match epoll::add(&self.epoll, &*connection, data, parking.interest.events()) {
            Ok(()) => self.occupy(slot, connection, parking),
            Err(errno) => {
                drop(slot);
                log::warn!(error:% = errno; "cannot watch the socket of a new client");
            }
        }
    }

    /// Parks a connection, or returns it if it was woken in the meantime.
    pub(super) fn park(&self, connection: Box<C>, parking: Parking) -> Result<(), Box<C>> {
        let id = connection.guard().id;
        let mut slot = self.slot(id.index);
        if std::mem::take(&mut slot.woken) {
            return Err(connection);
        }
        if std::mem::take(&mut slot.close_when_parked) && parking.evictable.is_some() {
            drop(slot);
            drop(connection);
            return Ok(());
        }
        // Arm the socket under the lock: once the connection is parked, another thread may close it, and its file
        // descriptor may belong to another connection.
        let armed = connection.guard().armed;
        if std::mem::take(&mut slot.socket_fired) || armed != Some(parking.interest) {
            let data = epoll::EventData::new_u64(id.token());
            let events = parking.interest.events();
            if let Err(errno) = epoll::modify(&self.epoll, &*connection, data, events) {
                drop(slot);
                log::warn!(error:% = errno; "cannot watch the socket of a client");
                return Ok(());
            }
        }
        self.occupy(slot, connection, parking);
        Ok(())
    }

    fn occupy(&self, mut slot: MutexGuard<'_, Slot<C>>, mut connection: Box<C>, parking: Parking) {
        let guard = connection.guard_mut();
        guard.armed = Some(parking.interest);
        if let Some(Evictable { since, .. }) = parking.evictable
            && slot.listed.is_none()
            && guard.admission() == Admission::Served
        {
            slot.listed = Some(since);
            lock(&self.shares).list(guard.client, Entry { since, place: guard.id });
        }
        slot.parked = Some((connection, parking));
    }

    /// The poller reports an event on the socket of this slot.
    pub(super) fn socket_ready(&self, token: u64, events: epoll::EventFlags) {
        let id = SlotId::from_token(token);
        let Some(slot) = self.slots.get(id.index as usize) else { return };
        let mut slot = lock(slot);
        if slot.generation != id.generation {
            return;
        }
        let Some((mut connection, _)) = slot.parked.take() else {
            slot.socket_fired = true;
            return;
        };
        drop(slot);
        let guard = connection.guard_mut();
        let waited_for_hangup = guard.armed == Some(Interest::Hangup);
        let has_left = waited_for_hangup && events.contains(epoll::EventFlags::RDHUP);
        if has_left || events.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR) {
            guard.has_hung_up = true;
        }
        guard.armed = None;
        self.enqueue(connection);
    }

    /// Closes the oldest connection without a complete request: one of the client `of`, or else of the client with the
    /// most of them.
    ///
    /// An entry that was taken from the shares belongs to this thread alone. If its connection has ended since, the
    /// generation of the slot or its `listed` differs, and the end of the connection found no entry to remove. If the
    /// connection is with a worker, or on its way to one, it may have a complete request: it is closed when it parks
    /// without one. No younger connection is closed in its place: in a flood most connections are on their way to a
    /// worker, and the parked ones belong to clients that have only just connected.
    pub(super) fn evict(&self, of: Option<ClientAddress>) -> Eviction {
        loop {
            let Some(Entry { since, place }) = lock(&self.shares).take_oldest(of) else {
                return Eviction::Nothing;
            };
            let mut slot = self.slot(place.index);
            if slot.generation != place.generation || slot.listed != Some(since) {
                continue;
            }
            slot.listed = None;
            let Some((connection, parking)) = &slot.parked else {
                slot.close_when_parked = true;
                return Eviction::Soon;
            };
            let Some(evictable) = parking.evictable else { continue };
            if evictable.since > since {
                // The connection was used after it was listed.
                let client = connection.guard().client;
                slot.listed = Some(evictable.since);
                lock(&self.shares).list(client, Entry { since: evictable.since, place });
                continue;
            }
            let evicted = slot.parked.take();
            drop(slot);
            drop(evicted);
            return Eviction::Done;
        }
    }
}

/// Nothing that can panic runs under these locks, so the data of a poisoned lock is consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[cfg(feature = "interleavings")]
mod interleavings;
