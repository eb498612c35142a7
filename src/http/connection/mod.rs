//! One client's connection: a state machine that runs until it would block.
//!
//! This module must not know threads or channels: it returns how it wants to be parked. Each submodule handles some of
//! the [`Phase`]s: `handshake` (TLS), `reading` (request heads and small bodies), `answering` (the handler), `sending`
//! (responses) and `closing`. They import from this module and from the leaf modules (`response`, `body`, `input`,
//! `chunks`, `wire`, `socket`), never from each other.
//!
//! The rest of the server uses [`Connection::new`], [`Connection::initial_parking`] and [`Connection::drive`].

mod answering;
mod closing;
mod handshake;
mod reading;
mod sending;

mod body;
mod chunks;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod input;
mod response;
mod socket;
mod wire;

use super::handler::{Context, Pending};
use super::limits::{SURPLUS_TIMEOUT, Settings};
use super::reply::{CLIENT_CLOSED_REQUEST, Ending, Outcome};
use super::request::Request;
use super::table::{Admission, Evictable, Interest, Occupant, Parking, SlotGuard, Stage};
use super::worker::Worker;
use chunks::ChunkReader;
use input::{HeadScan, Input};
use response::Response;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use socket::Socket;
use std::cell::OnceCell;
use std::net::SocketAddr;
use std::ops::ControlFlow::{self, Break};
use std::task::Waker;
use std::time::Instant;
use wire::Wire;

/// How a time slice of a connection ended.
#[derive(Debug)]
pub(super) enum SliceEnd {
    /// The connection would block, and parks.
    Park(Parking),
    /// The connection could continue, but has used up its time slice.
    Yield,
    /// The connection has ended.
    Close,
}

/// What a phase returns: continue with the next phase, or end the time slice.
type Flow = ControlFlow<SliceEnd>;

/// What a connection is doing.
#[derive(Default)]
enum Phase {
    /// Waiting for the first byte of a client that should use TLS.
    FirstByte,
    /// In a TLS handshake.
    Handshake,
    /// Waiting for a request head, or reading one.
    #[default]
    Head,
    /// Discarding a small request body.
    Body { request: Box<Request>, bytes_left: u64, deadline: Instant },
    /// Discarding a small chunked request body.
    ChunkedBody { request: Box<Request>, reader: ChunkReader, bytes_left: u64, deadline: Instant },
    /// The handler waits for something.
    Waiting { request: Box<Request>, pending: Box<dyn Pending> },
    /// Sending a response.
    Sending(Response),
    /// FIN was sent; what the client still sends is discarded.
    Lingering { bytes_left: usize, deadline: Instant },
}

/// One client's connection.
pub(super) struct Connection {
    // Declared before the guard, and so dropped first: a slot is free only once its socket is closed.
    wire: Wire,
    phase: Phase,
    input: Input,
    peer: SocketAddr,
    /// When the client connected, or received its latest response.
    idle_since: Instant,
    /// When the first byte of the unfinished head was received.
    head_began: Option<Instant>,
    head_scan: HeadScan,
    /// Some of the client's bytes will never be read, so the start of another request cannot be found.
    unread_body: bool,
    waker: OnceCell<Waker>,
    guard: SlotGuard<Connection>,
}

impl Connection {
    /// A connection over the socket `fd`. With `by_tls` the client has to begin with a TLS handshake.
    pub(super) fn new(
        fd: OwnedFd,
        by_tls: bool,
        peer: SocketAddr,
        guard: SlotGuard<Connection>,
        now: Instant,
    ) -> Self {
        Self {
            wire: Wire::new(Socket::new(fd)),
            phase: if by_tls { Phase::FirstByte } else { Phase::Head },
            input: Input::default(),
            peer,
            idle_since: now,
            head_began: None,
            head_scan: HeadScan::default(),
            unread_body: false,
            waker: OnceCell::new(),
            guard,
        }
    }

    /// How a new connection parks.
    pub(super) fn initial_parking(&self, settings: &Settings) -> Parking {
        let idle = Evictable { since: self.idle_since, is_idle: true };
        let (timeout, evictable) = match self.guard.admission() {
            Admission::Served => (settings.idle_timeout, Some(idle)),
            Admission::Surplus => (SURPLUS_TIMEOUT, None),
        };
        Parking { interest: Interest::Readable, deadline: self.idle_since + timeout, evictable }
    }

    /// Runs until the connection would block, its time slice is over, or it ends.
    pub(super) fn drive(&mut self, worker: &mut Worker) -> SliceEnd {
        if self.guard.stage() == Stage::Cutting {
            self.cut_off(worker);
            return SliceEnd::Close;
        }
        self.input.borrow_buffer(&mut worker.spare_input);
        let end = loop {
            let flow = match std::mem::take(&mut self.phase) {
                Phase::FirstByte => self.await_first_byte(worker),
                Phase::Handshake => self.continue_handshake(worker),
                Phase::Head => self.read_head(worker),
                Phase::Body { request, bytes_left, deadline } => {
                    self.discard_body(request, bytes_left, deadline, worker)
                }
                Phase::ChunkedBody { request, reader, bytes_left, deadline } => {
                    self.discard_chunks(request, reader, bytes_left, deadline, worker)
                }
                Phase::Waiting { request, pending } => self.resume(request, pending, worker),
                Phase::Sending(response) => self.send(response, worker),
                Phase::Lingering { bytes_left, deadline } => {
                    self.linger(bytes_left, deadline, worker)
                }
            };
            if let Break(end) = flow {
                break end;
            }
        };
        self.input.return_buffer(&mut worker.spare_input);
        end
    }

    /// Calls `code` with what a handler may use of this connection.
    fn with_context<T>(&self, now: Instant, code: impl FnOnce(&Context<'_>) -> T) -> T {
        let create = || self.guard.waker();
        code(&Context::new(now, &self.waker, &create))
    }

    fn is_surplus(&self) -> bool {
        self.guard.admission() == Admission::Surplus
    }

    /// Whether this connection gets no further response after the current one.
    fn is_draining(&self) -> bool {
        self.guard.stage() != Stage::Serving
    }
}

impl Occupant for Connection {
    fn guard(&self) -> &SlotGuard<Self> {
        &self.guard
    }

    fn guard_mut(&mut self) -> &mut SlotGuard<Self> {
        &mut self.guard
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wire.as_fd()
    }
}

/// The client has closed the connection before its request was answered.
fn report_hangup(request: &Request, worker: &Worker) -> Flow {
    report_unanswered(request, Outcome::ClientGone, worker);
    Break(SliceEnd::Close)
}

/// Reports a request that gets no response.
fn report_unanswered(request: &Request, outcome: Outcome, worker: &Worker) {
    let latency = Instant::now().saturating_duration_since(request.began);
    let ending = Ending {
        status: CLIENT_CLOSED_REQUEST,
        bytes_sent: 0,
        first_byte: None,
        latency,
        notes: Vec::new(),
        outcome,
    };
    worker.report_ending(request, &ending);
}

/// Parks a connection that must not be evicted meanwhile.
fn park(interest: Interest, deadline: Instant) -> Flow {
    Break(SliceEnd::Park(Parking { interest, deadline, evictable: None }))
}

/// Parks a connection that may be closed for another one: its client has not sent a complete request, or has received
/// its response.
fn park_evictable(interest: Interest, deadline: Instant, since: Instant) -> Flow {
    let evictable = Some(Evictable { since, is_idle: false });
    Break(SliceEnd::Park(Parking { interest, deadline, evictable }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_connection_takes_a_few_hundred_bytes() {
        assert!(size_of::<Connection>() <= 512, "{} bytes", size_of::<Connection>());
    }
}
