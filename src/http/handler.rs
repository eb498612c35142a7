//! What the rest of the program implements: a function from a request to a reply that never blocks on other work.
//!
//! This module must not know how requests are received or replies are sent.

use super::reply::{Ending, Reply};
use super::request::Request;
use std::cell::OnceCell;
use std::task::Waker;
use std::time::Instant;

/// Answers requests. All workers use one value at the same time.
pub trait Handler: Send + Sync + 'static {
    /// Answers `request`, or returns what the answer depends on. Must not block, except on the local disk.
    fn handle(&self, request: &Request, context: &Context<'_>) -> Step;

    /// Called after the last byte of every response, after a response was cut off, and when a client leaves before its
    /// answer is ready.
    ///
    /// This is the place for the access log. It is not called for heads that cannot be parsed.
    fn finished(&self, request: &Request, ending: &Ending) {
        let _ = (request, ending);
    }

    /// Whether work continues for which the process waits before it ends. A drain that serves keeps serving meanwhile.
    fn is_busy(&self) -> bool {
        false
    }
}

/// What a handler returns.
pub enum Step {
    /// The answer.
    Reply(Reply),
    /// The answer depends on something that has not happened yet.
    Wait(Box<dyn Pending>),
}

/// An answer that is not ready yet.
///
/// The implementation must register [`Context::waker`] *before* it returns this value. A wake-up between that and the
/// parking of the connection is not lost.
pub trait Pending: Send {
    /// Tries again: after a wake-up, after the deadline, or spuriously.
    fn resume(self: Box<Self>, request: &Request, context: &Context<'_>) -> Step;

    /// When to resume without a wake-up. Deadlines are checked a few times a second.
    fn deadline(&self) -> Instant;
}

/// What a handler may use of the server.
pub struct Context<'a> {
    now: Instant,
    waker: &'a OnceCell<Waker>,
    create: &'a dyn Fn() -> Waker,
}

impl<'a> Context<'a> {
    /// A context whose waker is `create()`, which is called at most once for each `waker` cell.
    ///
    /// Public so that handlers can be tested without sockets.
    pub fn new(now: Instant, waker: &'a OnceCell<Waker>, create: &'a dyn Fn() -> Waker) -> Self {
        Self { now, waker, create }
    }

    /// When the current time slice of this connection began.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Resumes this connection. The waker belongs to the connection and may outlive it. It may be woken from any thread,
    /// even while locks are held, as long as no handler takes them.
    pub fn waker(&self) -> &Waker {
        self.waker.get_or_init(self.create)
    }
}
