//! What the edge allows: every bound on bytes, counts and time, with its reason.
//!
//! It must not know where settings come from; the configuration room fills [`Settings`].

use std::thread::available_parallelism;
use std::time::Duration;

/// Workers only ever wait for the disk; a few per core keep the cores busy while some of them do.
const WORKERS_PER_CORE: usize = 4;

/// A slow disk must not stop a small machine from answering what is in memory.
const WORKERS_MIN: usize = 16;

/// Enough for a big cluster's nodes with several connections each; a slot and an idle connection
/// cost well under 1 KiB.
const MAX_CONNECTIONS: usize = 16_384;

/// An honest client sends its head in one packet; this bounds what a slow-loris may hold.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Longer than the idle time of the common clients (30 s to 90 s), so that they close first and no
/// request meets a FIN.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);

/// A reader that takes nothing for this long is gone, or is an attack.
const WRITE_STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Orchestrators kill after their own grace period; a minute lets most layers finish.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);

/// Memory for the bodies of responses that clients take their time to read. One client address gets half
/// of it at most; with their connections, 2,000 of them stay below 64 MiB.
const RESPONSE_MEMORY: u64 = 32 * 1024 * 1024;

/// The longest head. Go's default is 1 MiB, nginx's 32 KiB; registry clients stay under 4 KiB,
/// tokens included. Offsets into a head are kept as `u16`, so this must stay below 64 KiB.
pub(super) const HEAD_BYTES_MAX: usize = 16 * 1024;

/// The most header lines of one head; they are parsed on the worker's stack.
pub(super) const HEADERS_MAX: usize = 100;

/// The longest request target; the longest honest one is a 255-byte repository plus a 128-byte tag,
/// percent-encoded.
pub(super) const TARGET_BYTES_MAX: usize = 8 * 1024;

/// Request bodies up to here are read and dropped, which keeps the connection; no request of ours
/// needs a body at all.
pub(super) const BODY_DISCARD_MAX: u64 = 64 * 1024;

/// How much of an unwanted request is read after the final response, so that the client sees FIN
/// and not RST.
pub(super) const LINGER_BYTES_MAX: usize = 256 * 1024;

/// How long a closing connection waits for the client to close too.
pub(super) const LINGER_TIMEOUT: Duration = Duration::from_secs(2);

/// How much a worker sends for one connection before others get their turn.
pub(super) const SLICE_BYTES_MAX: usize = 1024 * 1024;

/// How many pipelined requests are answered in one turn.
pub(super) const SLICE_REQUESTS_MAX: usize = 32;

/// Seats beyond `max_connections`, only for telling surplus clients 503 in good order.
pub(super) const SURPLUS_SLOTS: usize = 64;

/// A refused client that sends no request is told 503 all the same after this.
pub(super) const SURPLUS_TIMEOUT: Duration = Duration::from_secs(2);

/// What a client that met a full server is asked to wait, in seconds.
pub(super) const RETRY_AFTER_SECONDS: &str = "5";

/// A tail is asked again after this even if nobody woke us: a lost wake-up must not become a stuck
/// download.
pub(super) const TAIL_REPOLL_INTERVAL: Duration = Duration::from_secs(15);

/// How often deadlines are looked at; all of them are seconds, so coarse is cheap and good enough.
pub(super) const SCAN_INTERVAL: Duration = Duration::from_millis(250);

/// The same while draining, when somebody waits for the end.
pub(super) const DRAIN_SCAN_INTERVAL: Duration = Duration::from_millis(20);

/// How long a drain that cut everything waits for workers stuck in the disk before it leaves them
/// behind.
pub(super) const CUT_GRACE: Duration = Duration::from_secs(5);

/// Socket events taken per system call.
pub(super) const EVENTS_PER_WAIT: usize = 512;

/// The kernel's queue of connections not yet accepted; it clamps this to `net.core.somaxconn`.
pub(super) const BACKLOG: i32 = 4096;

/// Connections accepted before the stop signal is looked at again.
pub(super) const ACCEPTS_PER_WAIT: usize = 64;

/// How long the listener rests when the system is out of file descriptors or memory.
pub(super) const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// The worker's buffer for bodies where `sendfile` is not possible.
pub(super) const COPY_BYTES: usize = 64 * 1024;

/// How much is encrypted at a time, and so what a slow reader by TLS costs beside its session. One
/// record's worth (RFC 8446, section 5.1).
pub(super) const SEALED_MAX: usize = 16 * 1024;

/// More workers than this are a mistake: they only ever wait for the disk.
const THREADS_LIMIT: usize = 4_096;

/// More connections than one address has ports for; slots are allocated at start.
const CONNECTIONS_LIMIT: usize = 1 << 20;

/// Longer than any process runs; "for ever" as a `Duration` would overflow the clock.
const TIMEOUT_LIMIT: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// The operator's part of the limits.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How many threads run handlers and copy to sockets.
    pub workers: usize,
    /// How many clients may be connected; more are told 503 unless a connection without a complete
    /// request can be closed for them.
    pub max_connections: usize,
    /// How long a request head may take, from its first byte; the same again for a small request
    /// body.
    pub head_timeout: Duration,
    /// How long a connection may stay open without a request.
    pub idle_timeout: Duration,
    /// How long a client may take no bytes of its response.
    pub write_stall_timeout: Duration,
    /// Bytes of responses that are held in memory for their clients; files do not count.
    pub response_memory: u64,
    /// How long running responses may take to finish after [`super::Controller::drain`].
    pub drain_timeout: Duration,
}

impl Settings {
    /// Bounded so that there is room for all that is counted, and no deadline overflows.
    pub(super) fn bounded(mut self) -> Self {
        self.workers = self.workers.clamp(1, THREADS_LIMIT);
        self.max_connections = self.max_connections.clamp(1, CONNECTIONS_LIMIT);
        for timeout in [
            &mut self.head_timeout,
            &mut self.idle_timeout,
            &mut self.write_stall_timeout,
            &mut self.drain_timeout,
        ] {
            *timeout = (*timeout).min(TIMEOUT_LIMIT);
        }
        self
    }
}

impl Default for Settings {
    fn default() -> Self {
        let cores = available_parallelism().map_or(1, usize::from);
        Self {
            workers: (cores * WORKERS_PER_CORE).max(WORKERS_MIN),
            max_connections: MAX_CONNECTIONS,
            head_timeout: HEAD_TIMEOUT,
            idle_timeout: IDLE_TIMEOUT,
            write_stall_timeout: WRITE_STALL_TIMEOUT,
            response_memory: RESPONSE_MEMORY,
            drain_timeout: DRAIN_TIMEOUT,
        }
    }
}

const _: () = assert!(HEAD_BYTES_MAX <= u16::MAX as usize);
