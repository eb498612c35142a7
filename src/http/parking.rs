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
use super::limits::{EVICTION_SAMPLE, SURPLUS_SEATS};
use crossbeam_channel::{Receiver, Sender};
use rustix::event::epoll;
use rustix::fd::OwnedFd;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};
use std::time::Instant;

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
    /// Only a waker or the deadline goes on.
    Nothing,
}

/// How a connection is parked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parking {
    pub(super) interest: Interest,
    pub(super) deadline: Instant,
    /// Nothing is lost when it is closed after this time.
    pub(super) idle: Option<Instant>,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
}

/// The seats of all connections, and the way back to the workers.
pub(super) struct Lot {
    /// No other lock is taken while one of these is held; system calls are, but none that waits.
    seats: Box<[Mutex<Seat>]>,
    /// Taken alone. The lowest index is on top, so that sweeps stay short.
    free: Mutex<Vec<u32>>,
    /// One beyond the highest index ever used.
    used: AtomicU32,
    /// Where the next search for an idle connection begins.
    hand: AtomicUsize,
    stage: AtomicU8,
    ended_since_drain: AtomicUsize,
    epoll: OwnedFd,
    ready: Sender<Job>,
    /// Keeps the channel open whatever happens to the workers.
    queue: Receiver<Job>,
}

/// The right to a seat. Dropping it frees the seat, so that nothing that goes wrong can leak one.
pub(super) struct Ticket {
    lot: Arc<Lot>,
    id: SeatId,
}

/// Whether a client is served or only told that it is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Served,
    Surplus,
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
            hand: AtomicUsize::new(0),
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

    /// A seat for a new client. If none is left, the connection that was idle for longest is
    /// closed; if none is idle, the client is surplus; if even surplus seats are taken, `None`.
    pub(super) fn admit(self: &Arc<Self>) -> Option<(Ticket, Admission)> {
        let full = lock(&self.free).len() <= SURPLUS_SEATS;
        let admission = match full && !self.evict_idle() {
            false => Admission::Served,
            true => Admission::Surplus,
        };
        let index = lock(&self.free).pop()?;
        self.used.fetch_max(index + 1, Ordering::AcqRel);
        let generation = self.seat(index).generation;
        Some((Ticket { lot: Arc::clone(self), id: SeatId { index, generation } }, admission))
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
        connection.set_armed(None);
        if flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR) {
            connection.set_hung_up();
        }
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
                Sweep::Idle => parking.deadline <= now || parking.idle.is_some(),
                Sweep::All => true,
            });
            let parked = if due { seat.parked.take() } else { None };
            drop(seat);
            if let Some((connection, _)) = parked {
                self.enqueue(connection);
            }
        }
    }

    /// Closes the longest idle of some idle connections.
    pub(super) fn evict_idle(&self) -> bool {
        let used = self.used.load(Ordering::Acquire) as usize;
        let hand = self.hand.load(Ordering::Relaxed);
        let now = Instant::now();
        let closable = |parking: &Parking| parking.idle.filter(|idle| *idle <= now);
        let mut oldest: Option<(Instant, u32)> = None;
        let mut seen = 0;
        for step in 0..used {
            let index = ((hand + step) % used) as u32;
            let parked =
                self.seat(index).parked.as_ref().and_then(|(_, parking)| closable(parking));
            let Some(idle) = parked else { continue };
            if oldest.is_none_or(|(older, _)| idle < older) {
                oldest = Some((idle, index));
            }
            seen += 1;
            if seen == EVICTION_SAMPLE {
                self.hand.store(index as usize + 1, Ordering::Relaxed);
                break;
            }
        }
        let Some((_, index)) = oldest else { return false };
        let mut seat = self.seat(index);
        let evicted = seat.parked.take_if(|(_, parking)| closable(parking).is_some());
        drop(seat);
        evicted.is_some()
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

impl Ticket {
    /// A waker for the connection in this seat. It outlives the connection without harm.
    pub(super) fn waker(&self) -> Waker {
        Waker::from(Arc::new(SeatWaker { lot: Arc::clone(&self.lot), id: self.id }))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut seat = self.lot.seat(self.id.index);
        seat.generation = seat.generation.wrapping_add(1);
        seat.woken = false;
        seat.fired = false;
        drop(seat);
        if self.lot.stage() != Stage::Serving {
            self.lot.ended_since_drain.fetch_add(1, Ordering::Relaxed);
        }
        lock(&self.lot.free).push(self.id.index);
    }
}

struct SeatWaker {
    lot: Arc<Lot>,
    id: SeatId,
}

impl Wake for SeatWaker {
    fn wake(self: Arc<Self>) {
        self.lot.wake(self.id);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.lot.wake(self.id);
    }
}

fn flags(interest: Interest) -> epoll::EventFlags {
    let wanted = match interest {
        Interest::Bytes => epoll::EventFlags::IN | epoll::EventFlags::RDHUP,
        Interest::Room => epoll::EventFlags::OUT,
        Interest::Nothing => epoll::EventFlags::empty(),
    };
    wanted | epoll::EventFlags::ONESHOT
}

/// Nothing that can panic runs under these locks, so a poisoned one is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
