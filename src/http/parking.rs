//! The parking lot: where connections are while they cannot go on, and why no wake-up is lost.
//!
//! It must not know HTTP. A connection is in exactly one place: with a worker, in the channel, or
//! in its seat. Whoever takes it out of its seat (poller, waker, drain) sends it through the
//! channel, which has room for all seats, so that sending never waits.
//!
//! A wake-up that finds the seat empty leaves a mark there: `woken` sends the connection straight
//! back when its worker wants to park it, `fired` makes the worker arm the socket again, and
//! arming reports what has happened before it. So every wake-up either finds the connection or is
//! found by it.

use super::connection::Connection;
use super::limits::SURPLUS_SEATS;
use super::shares::{Listing, Room, Shares};
use crate::client_address::ClientAddress;
use crossbeam_channel::{Receiver, Sender};
use rustix::event::epoll;
use rustix::fd::OwnedFd;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

mod ticket;

pub(super) use ticket::{Admission, Ticket};

/// How often a place is looked for when others take those that become free.
const ROUNDS_MAX: u32 = 4;

/// What a worker takes from the channel.
pub(super) enum Job {
    Serve(Box<Connection>),
    /// One worker ends.
    Stop,
}

/// What a parked connection waits for from its socket. That the connection broke is always told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interest {
    /// Bytes, or the end of them.
    Bytes,
    /// Room for bytes.
    Room,
    /// Only a waker or the deadline goes on, unless the client leaves. One that has sent all it will send counts as
    /// gone while it waits: a closed connection looks the same until something is written, and there is
    /// nothing to write yet.
    Departure,
}

/// How a connection is parked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parking {
    pub(super) interest: Interest,
    pub(super) deadline: Instant,
    /// Whether it can be closed for another connection.
    pub(super) losable: Option<Losable>,
}

/// A connection without a complete request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Losable {
    pub(super) since: Instant,
    /// It is between two requests: nothing at all is lost.
    pub(super) is_idle: bool,
}

/// How far the end of the server has come. It never goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Stage {
    Serving,
    Draining,
    Cutting,
}

/// Which parked connections a sweep takes, besides those whose deadline has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sweep {
    Expired,
    Idle,
    All,
}

/// A seat as one connection's: seats are used again, generations are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct SeatId {
    index: u32,
    generation: u32,
}

impl SeatId {
    fn token(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    fn from_token(token: u64) -> Self {
        // Both halves are meant to be cut off.
        Self { index: token as u32, generation: (token >> 32) as u32 }
    }
}

#[derive(Default)]
struct Seat {
    generation: u32,
    woken: bool,
    fired: bool,
    parked: Option<(Box<Connection>, Parking)>,
    /// As how old it is listed in the shares. It may have been used since.
    listed: Option<Instant>,
    /// It is to be closed if it has no complete request when its worker has done with it.
    doomed: bool,
}

/// What became of the attempt to close a connection for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Eviction {
    /// One was closed.
    Done,
    /// One is with a worker and is closed soon, unless it has a complete request.
    Soon,
    /// There is none.
    Nothing,
}

/// Whether a connection has a place among the `max_connections`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MadeRoom {
    Now,
    /// One is about to be closed for it.
    Soon,
    None,
}

/// The seats of all connections, and the way back to the workers.
pub(super) struct Lot {
    /// While one of these is held, that of the shares may be taken, and no other; system calls are made,
    /// but none that waits.
    seats: Box<[Mutex<Seat>]>,
    /// Taken alone. The lowest index is on top, so that sweeps stay short.
    free: Mutex<Vec<u32>>,
    /// One beyond the highest index ever used.
    used: AtomicU32,
    /// No other lock is taken while this one is held.
    shares: Mutex<Shares<SeatId>>,
    surplus: AtomicUsize,
    stage: AtomicU8,
    ended_since_drain: AtomicUsize,
    epoll: OwnedFd,
    ready: Sender<Job>,
    /// Keeps the channel open whatever happens to the workers.
    queue: Receiver<Job>,
}

impl Lot {
    /// A lot for so many connections, whose channel also has room to stop so many workers.
    pub(super) fn new(max_connections: usize, workers: usize, epoll: OwnedFd) -> Arc<Self> {
        let count = max_connections + SURPLUS_SEATS;
        let (ready, queue) = crossbeam_channel::bounded(count + workers);
        Arc::new(Self {
            seats: (0..count).map(|_| Mutex::default()).collect(),
            // `Settings::bounded` keeps the count far below what fits.
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
    pub(super) fn queue(&self) -> &Receiver<Job> {
        &self.queue
    }

    pub(super) fn stage(&self) -> Stage {
        match self.stage.load(Ordering::Acquire) {
            0 => Stage::Serving,
            1 => Stage::Draining,
            _ => Stage::Cutting,
        }
    }

    /// Goes on to `stage`, unless it is there or further already.
    pub(super) fn advance(&self, stage: Stage) {
        self.stage.fetch_max(stage as u8, Ordering::AcqRel);
    }

    /// How many connections are open.
    pub(super) fn open(&self) -> usize {
        self.seats.len() - lock(&self.free).len()
    }

    /// How many connections have ended since the drain began.
    pub(super) fn ended_since_drain(&self) -> usize {
        self.ended_since_drain.load(Ordering::Relaxed)
    }

    /// A seat for a new connection. If none is left for this client, a connection without a complete
    /// request is closed for it; if there is none, the newcomer is surplus; if even surplus seats are
    /// taken, `None`.
    pub(super) fn admit(self: &Arc<Self>, client: ClientAddress) -> Option<Ticket> {
        let admission = match self.make_room(client) {
            MadeRoom::Now => Admission::Served,
            _ if self.surplus.fetch_add(1, Ordering::AcqRel) < SURPLUS_SEATS => Admission::Surplus,
            _ => {
                self.surplus.fetch_sub(1, Ordering::AcqRel);
                return None;
            }
        };
        // Served and surplus connections together are never more than there are seats.
        let index = lock(&self.free).pop()?;
        self.used.fetch_max(index + 1, Ordering::AcqRel);
        let id = SeatId { index, generation: self.seat(index).generation };
        Some(Ticket::new(self, id, client, admission))
    }

    /// Counts one more connection of `client`, for which another one is closed if it must be. Others may
    /// take the place that became free, so it is tried a few times.
    fn make_room(&self, client: ClientAddress) -> MadeRoom {
        for _ in 0..ROUNDS_MAX {
            let room = lock(&self.shares).open(client);
            let eviction = match room {
                Room::Free => return MadeRoom::Now,
                Room::Full => self.evict(None),
                Room::ShareExceeded => self.evict(Some(client)),
            };
            match eviction {
                Eviction::Done => {}
                Eviction::Soon => return MadeRoom::Soon,
                Eviction::Nothing => return MadeRoom::None,
            }
        }
        MadeRoom::None
    }

    /// Parks a new connection, whose socket the poller does not know yet.
    pub(super) fn settle(&self, connection: Box<Connection>, parking: Parking) {
        let id = connection.ticket().id;
        let seat = self.seat(id.index);
        let data = epoll::EventData::new_u64(id.token());
        match epoll::add(&self.epoll, &*connection, data, flags(parking.interest)) {
            Ok(()) => self.occupy(seat, connection, parking),
            Err(errno) => {
                drop(seat);
                log::warn!("cannot watch the socket of a new client: {errno}");
            }
        }
    }

    /// Parks a connection, or gives it back because it was woken meanwhile.
    pub(super) fn park(
        &self,
        connection: Box<Connection>,
        parking: Parking,
    ) -> Result<(), Box<Connection>> {
        let id = connection.ticket().id;
        let mut seat = self.seat(id.index);
        if std::mem::take(&mut seat.woken) {
            return Err(connection);
        }
        if std::mem::take(&mut seat.doomed) && parking.losable.is_some() {
            drop(seat);
            drop(connection);
            return Ok(());
        }
        // Arming under the lock: once parked, the connection may be closed by another thread and
        // its file descriptor be somebody else's.
        if std::mem::take(&mut seat.fired) || connection.armed() != Some(parking.interest) {
            let data = epoll::EventData::new_u64(id.token());
            if let Err(errno) =
                epoll::modify(&self.epoll, &*connection, data, flags(parking.interest))
            {
                drop(seat);
                log::warn!("cannot watch the socket of a client: {errno}");
                return Ok(());
            }
        }
        self.occupy(seat, connection, parking);
        Ok(())
    }

    fn occupy(
        &self,
        mut seat: MutexGuard<'_, Seat>,
        mut connection: Box<Connection>,
        parking: Parking,
    ) {
        connection.set_armed(Some(parking.interest));
        if let Some(Losable { since, .. }) = parking.losable
            && seat.listed.is_none()
            && connection.ticket().admission() == Admission::Served
        {
            seat.listed = Some(since);
            let ticket = connection.ticket();
            lock(&self.shares).list(ticket.client, Listing { since, place: ticket.id });
        }
        seat.parked = Some((connection, parking));
    }

    /// The socket of this seat is ready, or broke.
    pub(super) fn fire(&self, token: u64, flags: epoll::EventFlags) {
        let id = SeatId::from_token(token);
        let Some(seat) = self.seats.get(id.index as usize) else { return };
        let mut seat = lock(seat);
        if seat.generation != id.generation {
            return;
        }
        let Some((mut connection, _)) = seat.parked.take() else {
            seat.fired = true;
            return;
        };
        drop(seat);
        let awaited_departure = connection.armed() == Some(Interest::Departure);
        let has_left = awaited_departure && flags.contains(epoll::EventFlags::RDHUP);
        if has_left || flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR) {
            connection.set_hung_up();
        }
        connection.set_armed(None);
        self.enqueue(connection);
    }

    fn wake(&self, id: SeatId) {
        let mut seat = self.seat(id.index);
        if seat.generation != id.generation {
            return;
        }
        let Some((connection, _)) = seat.parked.take() else {
            seat.woken = true;
            return;
        };
        drop(seat);
        self.enqueue(connection);
    }

    /// Puts all connections back to work whose deadline has passed, and those that `sweep` names.
    pub(super) fn sweep(&self, now: Instant, sweep: Sweep) {
        for index in 0..self.used.load(Ordering::Acquire) {
            let mut seat = self.seat(index);
            let due = seat.parked.as_ref().is_some_and(|(_, parking)| match sweep {
                Sweep::Expired => parking.deadline <= now,
                Sweep::Idle => {
                    parking.deadline <= now
                        || parking.losable.is_some_and(|losable| losable.is_idle)
                }
                Sweep::All => true,
            });
            let parked = if due { seat.parked.take() } else { None };
            drop(seat);
            if let Some((connection, _)) = parked {
                self.enqueue(connection);
            }
        }
    }

    /// Closes the oldest connection without a complete request: of this client, or of the one that has
    /// most of them.
    ///
    /// An entry that was taken from the shares is this thread's alone. If its connection ended meanwhile,
    /// the generation of the seat or its `listed` differs, and the end of the connection found nothing to
    /// remove. If it is with a worker, or on its way to one, it may have a complete request; it is closed when
    /// it is parked without one, and no younger one in its place: in a flood most connections are on their
    /// way, and those that are parked are those of clients that have only just connected.
    pub(super) fn evict(&self, of: Option<ClientAddress>) -> Eviction {
        loop {
            let Some(Listing { since, place }) = lock(&self.shares).take_oldest(of) else {
                return Eviction::Nothing;
            };
            let mut seat = self.seat(place.index);
            if seat.generation != place.generation || seat.listed != Some(since) {
                continue;
            }
            seat.listed = None;
            let Some((connection, parking)) = &seat.parked else {
                seat.doomed = true;
                return Eviction::Soon;
            };
            let Some(losable) = parking.losable else { continue };
            if losable.since > since {
                // It was used since it was listed.
                let client = connection.ticket().client;
                seat.listed = Some(losable.since);
                lock(&self.shares).list(client, Listing { since: losable.since, place });
                continue;
            }
            let evicted = seat.parked.take();
            drop(seat);
            drop(evicted);
            return Eviction::Done;
        }
    }

    /// Sends a connection to the workers, behind all others.
    pub(super) fn enqueue(&self, connection: Box<Connection>) {
        self.send(Job::Serve(connection));
    }

    /// Makes one worker end after all that is queued.
    pub(super) fn stop_one_worker(&self) {
        self.send(Job::Stop);
    }

    fn send(&self, job: Job) {
        if self.ready.try_send(job).is_err() {
            log::error!("the queue of ready connections is full, which cannot be");
        }
    }

    fn seat(&self, index: u32) -> MutexGuard<'_, Seat> {
        lock(&self.seats[index as usize])
    }
}

fn flags(interest: Interest) -> epoll::EventFlags {
    let wanted = match interest {
        Interest::Bytes => epoll::EventFlags::IN | epoll::EventFlags::RDHUP,
        Interest::Room => epoll::EventFlags::OUT,
        Interest::Departure => epoll::EventFlags::RDHUP,
    };
    wanted | epoll::EventFlags::ONESHOT
}

/// Nothing that can panic runs under these locks, so a poisoned one is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
