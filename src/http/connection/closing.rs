//! The end of a response, and of a connection.
//!
//! This module must not know what the response was. If a socket with unread bytes is closed, the kernel sends a RST, and a
//! client that receives a RST may lose the response that it has not read yet. So the server sends a FIN first, and reads
//! what the client still sends for a while.

use super::response::{After, Response};
use super::socket::SocketError;
use super::{Connection, Flow, Phase, SliceEnd, park_evictable};
use crate::http::limits::{LINGER_BYTES_MAX, LINGER_TIMEOUT};
use crate::http::reply::{Ending, Outcome};
use crate::http::table::Interest;
use crate::http::worker::Worker;
use std::ops::ControlFlow::{Break, Continue};
use std::time::Instant;

impl Connection {
    /// A response has ended: reports that to the handler, then continues or closes.
    pub(super) fn finish_response(
        &mut self,
        response: Response,
        outcome: Outcome,
        worker: &mut Worker,
    ) -> Flow {
        let Response { request, head, body, status, notes, first_byte, after, .. } = response;
        let bytes_sent = body.sent();
        // Release the file or tail before the end of the response is reported.
        drop(body);
        worker.spare_head = head.into_buffer();
        let next = self.what_follows(&outcome, after);
        let now = Instant::now();
        if let Some(request) = request {
            let since = |at: Instant| at.saturating_duration_since(request.began);
            let (first_byte, latency) = (first_byte.map(since), since(now));
            let ending = Ending { status, bytes_sent, first_byte, latency, notes, outcome };
            worker.report_ending(&request, &ending);
            worker.spare_request = Some(request);
        }
        match next {
            Some(After::NextHead) => self.await_next_head(now, worker),
            Some(After::Close) => self.close_or_linger(worker),
            Some(After::Linger) => {
                self.begin_lingering(worker);
                Continue(())
            }
            None => Break(SliceEnd::Close),
        }
    }

    /// Returns `None` if the client cannot be reached any more.
    fn what_follows(&mut self, outcome: &Outcome, after: After) -> Option<After> {
        match outcome {
            Outcome::Complete => Some(after),
            Outcome::Cut(_) | Outcome::Panicked => Some(After::Linger),
            Outcome::WriteStalled => {
                self.wire.discard_unsent();
                None
            }
            Outcome::ClientGone | Outcome::Drained => None,
        }
    }

    /// The response had `Connection: close`. Lingers only if the client has sent more bytes in spite of that.
    fn close_or_linger(&mut self, worker: &mut Worker) -> Flow {
        if self.input.is_empty()
            && self.wire.read(self.input.buffer()) == Err(SocketError::WouldBlock)
        {
            return Break(SliceEnd::Close);
        }
        self.begin_lingering(worker);
        Continue(())
    }

    pub(super) fn begin_lingering(&mut self, worker: &Worker) {
        self.wire.finish_sending();
        let deadline = worker.now + LINGER_TIMEOUT;
        self.phase = Phase::Lingering { bytes_left: LINGER_BYTES_MAX, deadline };
    }

    /// Reads and discards what the client still sends.
    pub(super) fn linger(
        &mut self,
        mut bytes_left: usize,
        deadline: Instant,
        worker: &mut Worker,
    ) -> Flow {
        loop {
            self.input.clear();
            match self.wire.read(self.input.buffer()) {
                Ok(0) | Err(SocketError::Closed) => return Break(SliceEnd::Close),
                Ok(bytes) => {
                    bytes_left = bytes_left.saturating_sub(bytes);
                    if bytes_left == 0 {
                        return Break(SliceEnd::Close);
                    }
                }
                Err(SocketError::WouldBlock) => {
                    self.phase = Phase::Lingering { bytes_left, deadline };
                    return match worker.now < deadline {
                        true => {
                            let since = deadline.checked_sub(LINGER_TIMEOUT).unwrap_or(deadline);
                            park_evictable(Interest::Readable, deadline, since)
                        }
                        false => Break(SliceEnd::Close),
                    };
                }
            }
        }
    }
}
