//! What the rest of the program implements: from a request to a reply, without ever blocking on
//! anybody.
//!
//! It must not know how requests arrive or replies leave.

use super::reply::{Ending, Reply};
use super::request::Request;
use std::cell::OnceCell;
use std::task::Waker;
use std::time::Instant;

/// Answers requests. One value serves all workers at once.
pub trait Handler: Send + Sync + 'static {
    /// Answers `request` now, or says what it waits for. Must not block on anything but the local
    /// disk.
    fn handle(&self, request: &Request, context: &Context<'_>) -> Step;

    /// After the last byte (or the cut) of every response, and when a client leaves while its
    /// answer is waited for.
    ///
    /// The place for the access log. Heads that could not be parsed never become a request and are
    /// not told here.
    fn finished(&self, request: &Request, ending: &Ending) {
        let _ = (request, ending);
    }
}

/// What a handler says.
pub enum Step {
    /// The answer.
    Reply(Reply),
    /// The answer depends on something that has not happened yet.
    Wait(Box<dyn Pending>),
}

/// Something an answer depends on.
///
/// The implementor has registered [`Context::waker`] with it *before* returning it; a wake-up
/// between that and the parking of the connection is not lost.
pub trait Pending: Send {
    /// Goes on: after a wake-up, after the deadline, or for no reason at all.
    fn resume(self: Box<Self>, request: &Request, context: &Context<'_>) -> Step;

    /// When to go on without a wake-up. It is looked at a few times a second.
    fn deadline(&self) -> Instant;
}

/// What a handler may use of the edge.
pub struct Context<'a> {
    now: Instant,
    waker: &'a OnceCell<Waker>,
    make: &'a dyn Fn() -> Waker,
}

impl<'a> Context<'a> {
    /// A context whose waker is `make()`, called at most once for each `waker` cell.
    ///
    /// Public so that handlers can be tested without sockets.
    pub fn new(now: Instant, waker: &'a OnceCell<Waker>, make: &'a dyn Fn() -> Waker) -> Self {
        Self { now, waker, make }
    }

    /// The time at which the worker took up this connection.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Puts this connection back to work. It belongs to the connection, may outlive it, and may be
    /// woken from any thread and while locks are held that no handler takes.
    pub fn waker(&self) -> &Waker {
        self.waker.get_or_init(self.make)
    }
}
