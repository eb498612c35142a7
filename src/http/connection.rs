//! One client's connection: a state machine that goes on until it would have to wait.
//!
//! It must not know threads, epoll or channels: it says how it wants to be parked. The phases have
//! files of their own: `handshake` (TLS), `reading` (heads, small bodies), `answering` (the handler), `sending`
//! (responses) and `closing`.

use super::chunks::ChunkReader;
use super::handler::{Context, Pending};
use super::limits::{HEAD_BYTES_MAX, SURPLUS_TIMEOUT, Settings};
use super::parking::{Admission, Interest, Losable, Parking, Stage, Ticket};
use super::pool::Worker;
use super::request::Request;
use super::sending::Sending;
use super::socket::Socket;
use super::wire::Wire;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use std::cell::OnceCell;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::task::Waker;
use std::time::Instant;

/// What is to be done with a connection that went as far as it could.
#[derive(Debug)]
pub(super) enum Turn {
    /// It waits for this.
    Park(Parking),
    /// It could go on, but others want their turn too.
    Again,
    /// It has ended.
    Close,
}

/// What a connection is doing.
#[derive(Default)]
pub(super) enum Phase {
    /// Waiting for the first byte of a client that should speak TLS.
    Greeting,
    /// In the middle of a TLS handshake.
    Handshake,
    /// Waiting for a request head, or in the middle of one.
    #[default]
    Head,
    /// Reading the small body of a request that nobody wants.
    Dropping { request: Box<Request>, bytes_left: u64, deadline: Instant },
    /// As `Dropping`, for a body in chunks.
    DroppingChunks {
        request: Box<Request>,
        reader: ChunkReader,
        bytes_left: u64,
        deadline: Instant,
    },
    /// The handler waits for something.
    Waiting { request: Box<Request>, pending: Box<dyn Pending> },
    /// A response is on its way.
    Sending(Sending),
    /// FIN was sent; what the client still sends is read and dropped.
    Lingering { bytes_left: usize, deadline: Instant },
}

/// One client's connection.
pub(super) struct Connection {
    // Declared, and so dropped, before the ticket: a seat is free only once its socket is closed.
    pub(super) wire: Wire,
    pub(super) phase: Phase,
    pub(super) input: Input,
    pub(super) peer: SocketAddr,
    /// When the client connected, or got its latest response.
    pub(super) idle_since: Instant,
    /// When the first byte of the unfinished head was seen.
    pub(super) head_began: Option<Instant>,
    /// How much of the unfinished head was looked at.
    pub(super) head_scan: HeadScan,
    /// Some of what the client sent will never be read, so no further request can be found.
    pub(super) unread_body: bool,
    pub(super) hung_up: bool,
    armed: Option<Interest>,
    waker: OnceCell<Waker>,
    ticket: Ticket,
}

impl Connection {
    pub(super) fn new(
        fd: OwnedFd,
        beginning: Phase,
        peer: SocketAddr,
        ticket: Ticket,
        now: Instant,
    ) -> Self {
        Self {
            wire: Wire::new(Socket::new(fd)),
            phase: beginning,
            input: Input::default(),
            peer,
            idle_since: now,
            head_began: None,
            head_scan: HeadScan::default(),
            unread_body: false,
            hung_up: false,
            armed: None,
            waker: OnceCell::new(),
            ticket,
        }
    }

    /// How a new connection waits.
    pub(super) fn parking_for_first_head(&self, settings: &Settings) -> Parking {
        let idle = Losable { since: self.idle_since, is_idle: true };
        let (timeout, losable) = match self.ticket.admission() {
            Admission::Served => (settings.idle_timeout, Some(idle)),
            Admission::Surplus => (SURPLUS_TIMEOUT, None),
        };
        Parking { interest: Interest::Bytes, deadline: self.idle_since + timeout, losable }
    }

    pub(super) fn admission(&self) -> Admission {
        self.ticket.admission()
    }

    /// See [`Ticket::claim_place`].
    pub(super) fn claim_place(&mut self) -> bool {
        self.ticket.claim_place()
    }

    pub(super) fn ticket(&self) -> &Ticket {
        &self.ticket
    }

    /// What the poller was last asked to watch for, unless it has happened since.
    pub(super) fn armed(&self) -> Option<Interest> {
        self.armed
    }

    pub(super) fn set_armed(&mut self, armed: Option<Interest>) {
        self.armed = armed;
    }

    /// The poller saw that the connection broke.
    pub(super) fn set_hung_up(&mut self) {
        self.hung_up = true;
    }

    /// Calls `code` with what a handler may use of this connection.
    pub(super) fn with_context<T>(&self, now: Instant, code: impl FnOnce(&Context<'_>) -> T) -> T {
        let make = || self.ticket.waker();
        code(&Context::new(now, &self.waker, &make))
    }

    /// The waker of this connection.
    pub(super) fn waker(&self) -> &Waker {
        self.waker.get_or_init(|| self.ticket.waker())
    }

    /// Goes on as far as possible without waiting.
    pub(super) fn drive(&mut self, worker: &mut Worker) -> Turn {
        if worker.shared.lot.stage() == Stage::Cutting {
            self.cut_short(worker);
            return Turn::Close;
        }
        self.input.borrow_room(&mut worker.spare_input);
        let turn = loop {
            let flow = match std::mem::take(&mut self.phase) {
                Phase::Greeting => self.greet(worker),
                Phase::Handshake => self.shake_hands(worker),
                Phase::Head => self.read_head(worker),
                Phase::Dropping { request, bytes_left, deadline } => {
                    self.drop_body(request, bytes_left, deadline, worker)
                }
                Phase::DroppingChunks { request, reader, bytes_left, deadline } => {
                    self.drop_chunks(request, reader, bytes_left, deadline, worker)
                }
                Phase::Waiting { request, pending } => self.resume(request, pending, worker),
                Phase::Sending(sending) => self.send(sending, worker),
                Phase::Lingering { bytes_left, deadline } => {
                    self.linger(bytes_left, deadline, worker)
                }
            };
            if let ControlFlow::Break(turn) = flow {
                break turn;
            }
        };
        self.input.return_room(&mut worker.spare_input);
        turn
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wire.as_fd()
    }
}

/// How far an unfinished head was searched for its end, and how long it was when it was last parsed.
///
/// A head that comes byte by byte must not be parsed for each of them: it is parsed when it may be
/// complete, and otherwise when it is twice as long as last time, since what is wrong with it should be
/// found early.
#[derive(Debug, Default)]
pub(super) struct HeadScan {
    searched: usize,
    parsed: usize,
}

impl HeadScan {
    /// Whether `head`, all that was received of it, is worth parsing now.
    pub(super) fn is_due(&mut self, head: &[u8]) -> bool {
        // The end may have begun before: it has four bytes at most.
        let new = &head[self.searched.saturating_sub(3).min(head.len())..];
        let ends = new.windows(2).any(|two| two == b"\n\n")
            || new.windows(3).any(|three| three == b"\n\r\n");
        let is_due = ends || head.len() >= 2 * self.parsed || head.len() >= HEAD_BYTES_MAX;
        self.searched = head.len();
        if is_due {
            self.parsed = head.len();
        }
        is_due
    }
}

/// Bytes that were received and not yet understood. Its room is the worker's, so that a connection
/// that waits keeps only what it must.
#[derive(Debug, Default)]
pub(super) struct Input {
    bytes: Vec<u8>,
    start: usize,
}

impl Input {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.start == self.bytes.len()
    }

    /// The first `count` bytes were understood.
    pub(super) fn consume(&mut self, count: usize) {
        self.start = (self.start + count).min(self.bytes.len());
        if self.is_empty() {
            self.clear();
        }
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.start = 0;
    }

    /// A buffer whose spare capacity takes what is received next.
    pub(super) fn room(&mut self) -> &mut Vec<u8> {
        self.bytes.drain(..self.start);
        self.start = 0;
        let missing = HEAD_BYTES_MAX.saturating_sub(self.bytes.len());
        self.bytes.reserve_exact(missing);
        &mut self.bytes
    }

    fn borrow_room(&mut self, spare: &mut Vec<u8>) {
        spare.clear();
        spare.extend_from_slice(self.bytes());
        self.start = 0;
        std::mem::swap(&mut self.bytes, spare);
    }

    fn return_room(&mut self, spare: &mut Vec<u8>) {
        let rest = self.bytes().to_vec();
        *spare = std::mem::replace(&mut self.bytes, rest);
        self.start = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_connection_costs_a_few_hundred_bytes() {
        assert!(size_of::<Connection>() <= 512, "{} bytes", size_of::<Connection>());
    }

    #[test]
    fn a_head_that_comes_byte_by_byte_is_parsed_a_few_times() {
        let mut head = b"GET / HTTP/1.1\r\nHost: h\r\nX: ".to_vec();
        head.resize(HEAD_BYTES_MAX - 5, b'x');
        head.extend(b"\r\n\r\n");
        let mut scan = HeadScan::default();
        let due: Vec<usize> =
            (1..=head.len()).filter(|length| scan.is_due(&head[..*length])).collect();
        assert!(due.len() <= 16, "{due:?}");
        assert_eq!(due.last(), Some(&head.len()), "the end is found when it comes");
        for end in ["\r\n\r\n", "\n\n", "\n\r\n"] {
            let head = [b"GET / HTTP/1.1\r\nHost: h", end.as_bytes()].concat();
            let mut scan = HeadScan::default();
            scan.is_due(&head[..20]);
            assert!((21..head.len()).all(|length| !scan.is_due(&head[..length])), "{end:?}");
            assert!(scan.is_due(&head), "{end:?}");
        }
    }

    #[test]
    fn an_input_that_was_understood_keeps_no_room() {
        let mut spare = Vec::with_capacity(HEAD_BYTES_MAX);
        let mut input = Input::default();
        input.borrow_room(&mut spare);
        input.room().extend_from_slice(b"onetwo");
        input.consume(3);
        assert_eq!(input.bytes(), b"two");
        input.return_room(&mut spare);
        assert_eq!((input.bytes(), input.bytes.capacity()), (&b"two"[..], 3));
        input.borrow_room(&mut spare);
        input.room().extend_from_slice(b"x");
        assert_eq!(input.bytes(), b"twox");
        input.consume(4);
        input.return_room(&mut spare);
        assert_eq!((input.is_empty(), input.bytes.capacity()), (true, 0));
        assert!(spare.capacity() >= HEAD_BYTES_MAX);
    }
}
