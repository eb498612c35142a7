//! The end of a response, and of a connection.
//!
//! It must not know what the response was. Closing a socket with unread bytes makes the kernel
//! send RST, and a client that gets RST may lose the response it has not read yet; so FIN is sent
//! first, and what the client still sends is read for a while.

use super::connection::{Connection, Phase, Turn};
use super::limits::{LINGER_BYTES_MAX, LINGER_TIMEOUT};
use super::parking::Interest;
use super::pool::Worker;
use super::reading::park_losable;
use super::reply::{Ending, Outcome};
use super::sending::{After, Sending};
use super::socket::Halt;
use std::ops::ControlFlow::{self, Break, Continue};
use std::time::Instant;

impl Connection {
    /// A response has ended: tells the handler, then goes on or closes.
    pub(super) fn conclude(
        &mut self,
        sending: Sending,
        outcome: Outcome,
        worker: &mut Worker,
    ) -> ControlFlow<Turn> {
        let Sending { request, head, body, status, note, after, .. } = sending;
        let bytes_sent = body.sent();
        // The file or tail is let go of before anybody is told that it is.
        drop(body);
        worker.spare_head = head.into_buffer();
        if outcome != Outcome::Complete {
            log::debug!("{}: response {status} after {bytes_sent} bytes: {outcome:?}", self.peer);
        }
        let next = self.what_follows(&outcome, after);
        let now = Instant::now();
        if let Some(request) = request {
            let latency = now.saturating_duration_since(request.began);
            worker.tell(&request, &Ending { status, bytes_sent, latency, note, outcome });
            worker.spare_request = Some(request);
        }
        match next {
            Some(After::NextHead) => self.expect_next_head(now, worker),
            Some(After::Close) => self.close_or_linger(worker),
            Some(After::Linger) => {
                self.begin_lingering(worker);
                Continue(())
            }
            None => Break(Turn::Close),
        }
    }

    /// `None` if there is nobody left to talk to.
    fn what_follows(&mut self, outcome: &Outcome, after: After) -> Option<After> {
        match outcome {
            Outcome::Complete => Some(after),
            Outcome::Cut(_) | Outcome::Panicked => Some(After::Linger),
            Outcome::WriteStalled => {
                self.wire.forget_unsent();
                None
            }
            Outcome::ClientGone | Outcome::Drained => None,
        }
    }

    /// The client was told that this is the end; only if it sent more all the same is it waited
    /// for.
    fn close_or_linger(&mut self, worker: &mut Worker) -> ControlFlow<Turn> {
        if self.input.is_empty() && self.wire.read(self.input.room()) == Err(Halt::Blocked) {
            return Break(Turn::Close);
        }
        self.begin_lingering(worker);
        Continue(())
    }

    pub(super) fn begin_lingering(&mut self, worker: &Worker) {
        self.wire.finish_sending();
        let deadline = worker.now + LINGER_TIMEOUT;
        self.phase = Phase::Lingering { bytes_left: LINGER_BYTES_MAX, deadline };
    }

    /// Reads and drops what the client still sends.
    pub(super) fn linger(
        &mut self,
        mut bytes_left: usize,
        deadline: Instant,
        worker: &mut Worker,
    ) -> ControlFlow<Turn> {
        loop {
            self.input.clear();
            match self.wire.read(self.input.room()) {
                Ok(0) | Err(Halt::Gone) => return Break(Turn::Close),
                Ok(bytes) => {
                    bytes_left = bytes_left.saturating_sub(bytes);
                    if bytes_left == 0 {
                        return Break(Turn::Close);
                    }
                }
                Err(Halt::Blocked) => {
                    self.phase = Phase::Lingering { bytes_left, deadline };
                    return match worker.now < deadline {
                        true => {
                            let since = deadline.checked_sub(LINGER_TIMEOUT).unwrap_or(deadline);
                            park_losable(Interest::Bytes, deadline, since)
                        }
                        false => Break(Turn::Close),
                    };
                }
            }
        }
    }
}
