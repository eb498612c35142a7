//! The limits of the server: every bound on bytes, counts and time, with its reason.
//!
//! This module must not know where settings come from; `config` fills [`Settings`].

use std::thread::available_parallelism;
use std::time::Duration;

/// Workers wait only for the disk. A few per core keep the cores busy while some of them do.
const WORKERS_PER_CORE: usize = 4;

/// On a small machine with a slow disk, enough workers must be left to answer from memory.
const WORKERS_MIN: usize = 16;

/// Enough for the nodes of a large cluster with several connections each. A slot with an idle connection takes much less
/// than 1 KiB.
const MAX_CONNECTIONS: usize = 16_384;

/// A well-behaved client sends its head in one packet. This bounds what a slowloris attack can hold.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Not shorter than the idle timeout of common clients (30 s to 90 s), so that they close first and do not send a request
/// on a connection that the server is closing.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);

/// A client that reads nothing for this long is gone, or is an attacker.
const WRITE_STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Orchestrators kill the process after their own grace period. A minute lets most layers finish.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);

/// Memory for the bodies of responses that clients read slowly. One client address gets at most half of it. Together
/// with their connections, 2,000 clients take less than 64 MiB.
const RESPONSE_MEMORY: u64 = 32 * 1024 * 1024;

/// The longest request head. Go's default is 1 MiB, nginx's is 32 KiB; registry clients stay below 4 KiB, including
/// tokens. Offsets into a head are stored as `u16`, so this must stay below 64 KiB.
pub(super) const HEAD_BYTES_MAX: usize = 16 * 1024;

/// The most header lines of one head. They are parsed on the worker's stack.
pub(super) const HEADERS_MAX: usize = 100;

/// The longest request target. The longest legitimate one has a repository of 255 bytes and a tag of 128 bytes, both
/// percent-encoded.
pub(super) const TARGET_BYTES_MAX: usize = 8 * 1024;

/// Request bodies up to this size are read and discarded, which keeps the connection usable. No supported request needs
/// a body.
pub(super) const BODY_DISCARD_MAX: u64 = 64 * 1024;

/// How much of a refused request is still read after the response, so that the client receives a FIN instead of a RST.
pub(super) const LINGER_BYTES_MAX: usize = 256 * 1024;

/// How long a closing connection waits for the client to close too.
pub(super) const LINGER_TIMEOUT: Duration = Duration::from_secs(2);

/// How much a worker sends for one connection in one time slice.
pub(super) const SLICE_BYTES_MAX: usize = 1024 * 1024;

/// How many pipelined requests are answered in one time slice.
pub(super) const SLICE_REQUESTS_MAX: usize = 32;

/// Slots beyond `max_connections`. Clients in them only get a 503. Few in tests of interleavings, for speed.
pub(super) const SURPLUS_SLOTS: usize =
    if cfg!(all(test, feature = "interleavings")) { 4 } else { 64 };

/// After this time, a surplus client gets the 503 even if it has sent no request.
pub(super) const SURPLUS_TIMEOUT: Duration = Duration::from_secs(2);

/// How many seconds a client should wait before it retries, if the server was full.
pub(super) const RETRY_AFTER_SECONDS: &str = "5";

/// A tail is polled again after this time even without a wake-up, so that a lost wake-up does not block a download
/// forever.
pub(super) const TAIL_REPOLL_INTERVAL: Duration = Duration::from_secs(15);

/// How often deadlines are checked. All of them are at least seconds, so coarse checks are good enough.
pub(super) const SCAN_INTERVAL: Duration = Duration::from_millis(250);

/// How often deadlines are checked during a drain, when the shutdown waits for the last connection.
pub(super) const DRAIN_SCAN_INTERVAL: Duration = Duration::from_millis(20);

/// How long a connection without a request stays open during a drain that still serves: its client has just connected,
/// or has just received a response, and may send a request at this moment.
pub(super) const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// How long a drain that still serves continues to do so because the handler is busy, counted from the first moment
/// without a running response.
pub(super) const BUSY_MAX: Duration = Duration::from_secs(5);

/// How long a drain waits for workers that are blocked on the disk, after it has cut off all connections.
pub(super) const CUT_GRACE: Duration = Duration::from_secs(5);

/// How many socket events one system call returns.
pub(super) const EVENTS_PER_WAIT: usize = 512;

/// The length of the kernel's queue of connections that are not accepted yet. The kernel limits it to
/// `net.core.somaxconn`.
pub(super) const BACKLOG: i32 = 4096;

/// How many connections are accepted before the stop signal is checked again.
pub(super) const ACCEPTS_PER_WAIT: usize = 64;

/// How many rounds of accepting follow before the port is closed: more than the queue holds.
pub(super) const LAST_ROUNDS_MAX: usize = 2 * BACKLOG as usize / ACCEPTS_PER_WAIT;

/// How long the listener pauses when the system is out of file descriptors or memory.
pub(super) const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// The size of a worker's buffer for files that do not support `sendfile`.
pub(super) const COPY_BYTES: usize = 64 * 1024;

/// How much is encrypted at a time: one TLS record (RFC 8446, section 5.1). A slow reader takes this much memory in
/// addition to its session.
pub(super) const SEALED_MAX: usize = 16 * 1024;

/// More workers than this are a configuration error, because workers wait only for the disk.
const THREADS_LIMIT: usize = 4_096;

/// More than the number of ports of one address. Slots are allocated at start.
const CONNECTIONS_LIMIT: usize = 1 << 20;

/// Longer than any process runs. `Duration::MAX` would overflow the clock.
const TIMEOUT_LIMIT: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// The limits that the operator can set.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How many threads run handlers and send responses.
    pub workers: usize,
    /// How many connections may be open. Further clients get a 503, unless a connection without a complete request can be
    /// closed for them.
    pub max_connections: usize,
    /// How long a request head may take, counted from its first byte. A small request body may take as long again.
    pub head_timeout: Duration,
    /// How long a connection may stay open without a request.
    pub idle_timeout: Duration,
    /// How long a client may go without reading any bytes of its response.
    pub write_stall_timeout: Duration,
    /// How many bytes of responses may be held in memory for slow clients. Files do not count.
    pub response_memory: u64,
    /// How long running responses may take to finish after [`super::Controller::drain`].
    pub drain_timeout: Duration,
    /// Whether clients are still served meanwhile.
    pub drain: Drain,
}

/// What happens to clients that connect during a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drain {
    /// They are refused, and another server may listen on the port.
    Refuse,
    /// They are served until no response is running, with `Connection: close`. For a port that no other server can take
    /// over before this one has ended.
    Serve,
    /// The same, or until another server listens on the port: both listen with `SO_REUSEPORT`.
    Handover,
}

impl Settings {
    /// Clamps the settings, so that allocations stay reasonable and deadlines do not overflow.
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
            drain: Drain::Refuse,
        }
    }
}

const _: () = assert!(HEAD_BYTES_MAX <= u16::MAX as usize);
