//! How a connection parks: what it waits for, until when, and whether it may be evicted meanwhile.

use rustix::event::epoll;
use std::time::Instant;

/// The socket event that a parked connection waits for. Errors and hang-ups are always reported as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Interest {
    /// The socket has bytes to read, or reached the end of the stream.
    Readable,
    /// The socket accepts bytes.
    Writable,
    /// The client hangs up. Otherwise only a waker or the deadline resumes the connection.
    ///
    /// A client that has shut down its sending side counts as gone: a closed connection looks the same until the
    /// server writes something, and there is nothing to write yet.
    Hangup,
}

impl Interest {
    pub(super) fn events(self) -> epoll::EventFlags {
        let wanted = match self {
            Interest::Readable => epoll::EventFlags::IN | epoll::EventFlags::RDHUP,
            Interest::Writable => epoll::EventFlags::OUT,
            Interest::Hangup => epoll::EventFlags::RDHUP,
        };
        wanted | epoll::EventFlags::ONESHOT
    }
}

/// How a connection is parked.
#[derive(Clone, Copy, Debug)]
pub(in crate::http) struct Parking {
    pub(in crate::http) interest: Interest,
    pub(in crate::http) deadline: Instant,
    /// `None` if the connection must not be closed to make room for another one.
    pub(in crate::http) evictable: Option<Evictable>,
}

/// A connection without a complete request, which may be closed to make room for another one.
#[derive(Clone, Copy, Debug)]
pub(in crate::http) struct Evictable {
    pub(in crate::http) since: Instant,
    /// The connection is between two requests, so closing it loses nothing.
    pub(in crate::http) is_idle: bool,
}
