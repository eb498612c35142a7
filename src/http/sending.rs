//! The writing half of a connection: a response on its way.
//!
//! It must not know why the response is what it is. A response that cannot be completed is cut:
//! never padded, and the connection never used again.

use super::answering::plain;
use super::connection::{Connection, Phase, Turn};
use super::limits::TAIL_REPOLL_INTERVAL;
use super::outgoing::{HeadBytes, Outgoing, Step};
use super::parking::Interest;
use super::pool::Worker;
use super::reading::park;
use super::reply::Outcome;
use super::request::Request;
use super::socket::Halt;
use std::ops::ControlFlow::{self, Break};
use std::time::Instant;

/// What follows a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    /// The next request.
    NextHead,
    /// The end; the client is not expected to have sent more.
    Close,
    /// The end, and the client may still be sending.
    Linger,
}

/// A response on its way.
pub(super) struct Sending {
    /// `None` if there was no head that could be parsed.
    pub(super) request: Option<Box<Request>>,
    pub(super) head: HeadBytes,
    pub(super) body: Outgoing,
    pub(super) status: u16,
    pub(super) note: Option<String>,
    pub(super) after: After,
    /// The outcome if every byte is sent.
    pub(super) verdict: Outcome,
    /// The client may have seen some of it.
    pub(super) begun: bool,
    /// When the client last took a byte.
    pub(super) progress: Instant,
}

impl Connection {
    /// Sends until all is sent, something must be waited for, or the turn is over.
    pub(super) fn send(&mut self, mut sending: Sending, worker: &mut Worker) -> ControlFlow<Turn> {
        loop {
            if worker.bytes_left == 0 {
                return self.keep(sending, Turn::Again, worker);
            }
            match sending.body.advance(&mut sending.head, self, worker) {
                Step::Moved(0) => {}
                Step::Moved(bytes) => {
                    sending.begun = true;
                    sending.progress = worker.now;
                    worker.bytes_left = worker.bytes_left.saturating_sub(bytes);
                }
                Step::Done if self.wire.flush() == Err(Halt::Blocked) => {
                    return self.await_room(sending, worker);
                }
                Step::Done => {
                    let verdict = sending.verdict.clone();
                    return self.conclude(sending, verdict, worker);
                }
                Step::Blocked => return self.await_room(sending, worker),
                Step::Starved if self.hung_up => {
                    return self.conclude(sending, Outcome::ClientGone, worker);
                }
                Step::Starved => {
                    // Time without news from the source is not the client's fault.
                    sending.progress = worker.now;
                    let deadline = worker.now + TAIL_REPOLL_INTERVAL;
                    return self.keep_parked(sending, Interest::Departure, deadline, worker);
                }
                Step::Failed(outcome) => return self.fail(sending, outcome, worker),
            }
        }
    }

    /// The client must take some first.
    fn await_room(&mut self, mut sending: Sending, worker: &mut Worker) -> ControlFlow<Turn> {
        if self.wire.has_moved() {
            sending.progress = worker.now;
        }
        let deadline = sending.progress + worker.shared.settings.write_stall_timeout;
        if worker.now >= deadline {
            return self.conclude(sending, Outcome::WriteStalled, worker);
        }
        self.keep_parked(sending, Interest::Room, deadline, worker)
    }

    fn keep_parked(
        &mut self,
        sending: Sending,
        interest: Interest,
        deadline: Instant,
        worker: &mut Worker,
    ) -> ControlFlow<Turn> {
        match park(interest, deadline) {
            Break(turn) => self.keep(sending, turn, worker),
            other => other,
        }
    }

    /// Goes on later, with no more memory than it takes.
    fn keep(&mut self, mut sending: Sending, turn: Turn, worker: &mut Worker) -> ControlFlow<Turn> {
        worker.spare_head = sending.head.shrink();
        self.phase = Phase::Sending(sending);
        Break(turn)
    }

    /// The body failed: if no byte has left, the client can still be told.
    fn fail(
        &mut self,
        mut sending: Sending,
        outcome: Outcome,
        worker: &mut Worker,
    ) -> ControlFlow<Turn> {
        let (status, text) = match &outcome {
            Outcome::Cut(reason) => (502, &**reason),
            Outcome::Panicked => (500, "this server made a mistake"),
            _ => return self.conclude(sending, outcome, worker),
        };
        if sending.begun {
            return self.conclude(sending, outcome, worker);
        }
        let mut reply = plain(status, text).close();
        reply.note = sending.note.take();
        worker.spare_head = sending.head.into_buffer();
        self.answer(sending.request, reply, outcome, worker)
    }
}
