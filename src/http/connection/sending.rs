//! Sending a response.
//!
//! This module must not know what the response is about. A response that cannot be completed is cut off. It is never
//! padded, and its connection is never reused.

use super::body::Step;
use super::response::Response;
use super::socket::SocketError;
use super::{Connection, Flow, Phase, SliceEnd, park};
use crate::http::limits::TAIL_REPOLL_INTERVAL;
use crate::http::reply::{Outcome, Reply};
use crate::http::table::Interest;
use crate::http::worker::Worker;
use std::ops::ControlFlow::Break;
use std::time::Instant;

impl Connection {
    /// Sends until the response is complete, sending would block, or the time slice is over.
    pub(super) fn send(&mut self, mut response: Response, worker: &mut Worker) -> Flow {
        loop {
            if worker.bytes_left == 0 {
                return self.keep(response, SliceEnd::Yield, worker);
            }
            let Self { wire, waker, guard, .. } = &mut *self;
            let waker = || waker.get_or_init(|| guard.waker());
            match response.body.advance(&mut response.head, wire, &waker, worker) {
                Step::Moved(0) => {}
                Step::Moved(bytes) => {
                    response.first_byte.get_or_insert_with(Instant::now);
                    response.progress = worker.now;
                    worker.bytes_left = worker.bytes_left.saturating_sub(bytes);
                }
                Step::Done if self.wire.flush() == Err(SocketError::WouldBlock) => {
                    return self.await_writable(response, worker);
                }
                Step::Done => {
                    let verdict = response.verdict.clone();
                    return self.finish_response(response, verdict, worker);
                }
                Step::Blocked => return self.await_writable(response, worker),
                Step::NotGrown if self.guard.has_hung_up() => {
                    return self.finish_response(response, Outcome::ClientGone, worker);
                }
                Step::NotGrown => {
                    // While the source makes no progress, the client is not stalled.
                    response.progress = worker.now;
                    let deadline = worker.now + TAIL_REPOLL_INTERVAL;
                    return self.keep_parked(response, Interest::Hangup, deadline, worker);
                }
                Step::Failed(outcome) => return self.fail(response, outcome, worker),
            }
        }
    }

    /// Waits until the client has read some bytes.
    fn await_writable(&mut self, mut response: Response, worker: &mut Worker) -> Flow {
        if self.wire.has_moved() {
            response.progress = worker.now;
        }
        let deadline = response.progress + worker.service.settings.write_stall_timeout;
        if worker.now >= deadline {
            return self.finish_response(response, Outcome::WriteStalled, worker);
        }
        self.keep_parked(response, Interest::Writable, deadline, worker)
    }

    fn keep_parked(
        &mut self,
        response: Response,
        interest: Interest,
        deadline: Instant,
        worker: &mut Worker,
    ) -> Flow {
        match park(interest, deadline) {
            Break(end) => self.keep(response, end, worker),
            other => other,
        }
    }

    /// Keeps the response for the next time slice, with as little memory as possible.
    fn keep(&mut self, mut response: Response, end: SliceEnd, worker: &mut Worker) -> Flow {
        worker.spare_head = response.head.shrink();
        self.phase = Phase::Sending(response);
        Break(end)
    }

    /// The source of the body failed. If no byte was sent, the client gets an error response instead.
    fn fail(&mut self, mut response: Response, outcome: Outcome, worker: &mut Worker) -> Flow {
        let (status, text) = match &outcome {
            Outcome::Cut(reason) => (502, &**reason),
            Outcome::Panicked => (500, "internal server error"),
            _ => return self.finish_response(response, outcome, worker),
        };
        if response.first_byte.is_some() {
            return self.finish_response(response, outcome, worker);
        }
        let mut reply = Reply::plain(status, text).close();
        reply.notes = std::mem::take(&mut response.notes);
        worker.spare_head = response.head.into_buffer();
        self.answer(response.request, reply, outcome, worker)
    }
}
