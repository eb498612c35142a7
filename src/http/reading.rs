//! The reading half of a connection: request heads, and small bodies that are dropped.
//!
//! It must not know what is answered.

use super::chunks::{ChunkReader, Chunks};
use super::connection::{Connection, HeadScan, Phase, Turn};
use super::head::{self, Parsed};
use super::limits::{BODY_DISCARD_MAX, SURPLUS_TIMEOUT};
use super::parking::{Admission, Interest, Losable, Parking};
use super::pool::Worker;
use super::request::{Framing, Method, Request};
use super::socket::{Halt, More};
use std::ops::ControlFlow::{self, Break, Continue};
use std::time::Instant;

impl Connection {
    /// Reads until there is a whole head. What was received earlier is looked at first.
    pub(super) fn read_head(&mut self, worker: &mut Worker) -> ControlFlow<Turn> {
        loop {
            if !self.input.is_empty() {
                self.head_began.get_or_insert(worker.now);
                if !self.claim_place() {
                    return self.turn_away(worker);
                }
                if worker.requests_left == 0 {
                    return Break(Turn::Again);
                }
                if self.head_scan.is_due(self.input.bytes())
                    && let Some(flow) = self.parse_head(worker)
                {
                    return flow;
                }
            }
            match self.wire.read(self.input.room()) {
                Ok(0) | Err(Halt::Gone) => return Break(Turn::Close),
                Ok(_) => {}
                Err(Halt::Blocked) => return self.await_head(worker),
            }
        }
    }

    /// `None` if the head is not complete.
    fn parse_head(&mut self, worker: &mut Worker) -> Option<ControlFlow<Turn>> {
        let began = self.head_began.unwrap_or(worker.now);
        let mut request = worker
            .spare_request
            .take()
            .unwrap_or_else(|| Box::new(Request::vacant(self.peer, began)));
        match head::parse(self.input.bytes(), &mut request) {
            Ok(Parsed::Complete { consumed }) => {
                self.input.consume(consumed);
                self.head_scan = HeadScan::default();
                request.peer = self.peer;
                request.began = began;
                Some(self.take_up(request, worker))
            }
            Ok(Parsed::Partial) => {
                worker.spare_request = Some(request);
                None
            }
            Err(error) => {
                log::debug!("{}: {error}", self.peer);
                worker.spare_request = Some(request);
                Some(self.refuse(None, error.status(), &error.to_string(), worker))
            }
        }
    }

    /// Nothing to read: waits for the rest of the head, or for the first byte of one.
    pub(super) fn await_head(&mut self, worker: &mut Worker) -> ControlFlow<Turn> {
        let settings = &worker.shared.settings;
        if self.admission() == Admission::Surplus {
            let deadline = self.idle_since + SURPLUS_TIMEOUT;
            return match worker.now < deadline {
                true => park(Interest::Bytes, deadline),
                false => self.turn_away(worker),
            };
        }
        if let Some(began) = self.head_began {
            let deadline = began + settings.head_timeout;
            return match worker.now < deadline {
                true => park_losable(Interest::Bytes, deadline, began),
                false => self.refuse(None, 408, "the request head took too long", worker),
            };
        }
        let deadline = self.idle_since + settings.idle_timeout;
        if worker.now >= deadline || worker.shared.draining() {
            return Break(Turn::Close);
        }
        let losable = Some(Losable { since: self.idle_since, is_idle: true });
        Break(Turn::Park(Parking { interest: Interest::Bytes, deadline, losable }))
    }

    /// A response has ended and the connection goes on.
    pub(super) fn expect_next_head(
        &mut self,
        now: Instant,
        worker: &mut Worker,
    ) -> ControlFlow<Turn> {
        self.idle_since = now;
        if self.input.is_empty() && !self.wire.has_received() {
            // The next request has most likely not arrived: asking the poller is cheaper than
            // asking the socket first.
            self.await_head(worker)
        } else {
            Continue(())
        }
    }

    fn take_up(&mut self, request: Box<Request>, worker: &mut Worker) -> ControlFlow<Turn> {
        worker.requests_left = worker.requests_left.saturating_sub(1);
        self.head_began = None;
        match request.framing {
            Framing::Length(0) => self.ask(request, worker),
            Framing::Length(bytes) if bytes <= BODY_DISCARD_MAX => {
                if request.expects_continue && self.input.is_empty() && !self.invite_body() {
                    return Break(Turn::Close);
                }
                let deadline = worker.now + worker.shared.settings.head_timeout;
                self.phase = Phase::Dropping { request, bytes_left: bytes, deadline };
                Continue(())
            }
            // Proxies and service meshes frame a GET without a body as an empty chunked one.
            Framing::Chunked if matches!(request.method, Method::Get | Method::Head) => {
                if request.expects_continue && self.input.is_empty() && !self.invite_body() {
                    return Break(Turn::Close);
                }
                let deadline = worker.now + worker.shared.settings.head_timeout;
                let (reader, bytes_left) = (ChunkReader::new(), BODY_DISCARD_MAX);
                self.phase = Phase::DroppingChunks { request, reader, bytes_left, deadline };
                Continue(())
            }
            Framing::Length(_) | Framing::Chunked => {
                self.unread_body = true;
                if matches!(request.method, Method::Get | Method::Head) {
                    return self.refuse(Some(request), 413, "no request body is wanted", worker);
                }
                self.ask(request, worker)
            }
        }
    }

    /// Sends `100 Continue`; false if the connection is of no use any more.
    fn invite_body(&mut self) -> bool {
        const INVITATION: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
        match self.wire.send(INVITATION, &[], More::Nothing) {
            // Without an invitation the client sends its body a little later.
            Err(Halt::Blocked) => true,
            Err(Halt::Gone) => false,
            Ok(sent) => sent == INVITATION.len(),
        }
    }

    /// Reads the rest of a small body, then asks the handler.
    pub(super) fn drop_body(
        &mut self,
        request: Box<Request>,
        mut bytes_left: u64,
        deadline: Instant,
        worker: &mut Worker,
    ) -> ControlFlow<Turn> {
        loop {
            let count = self.input.bytes().len().min(usize::try_from(bytes_left).unwrap_or(0));
            self.input.consume(count);
            bytes_left -= count as u64;
            if bytes_left == 0 {
                return self.ask(request, worker);
            }
            match self.wire.read(self.input.room()) {
                Ok(0) | Err(Halt::Gone) => return Break(Turn::Close),
                Ok(_) => {}
                Err(Halt::Blocked) if worker.now < deadline => {
                    let began = request.began;
                    self.phase = Phase::Dropping { request, bytes_left, deadline };
                    return park_losable(Interest::Bytes, deadline, began);
                }
                Err(Halt::Blocked) => {
                    let text = "the request body took too long";
                    return self.refuse(Some(request), 408, text, worker);
                }
            }
        }
    }
}

impl Connection {
    /// Reads a small chunked body to its end, then asks the handler.
    pub(super) fn drop_chunks(
        &mut self,
        request: Box<Request>,
        mut reader: ChunkReader,
        mut bytes_left: u64,
        deadline: Instant,
        worker: &mut Worker,
    ) -> ControlFlow<Turn> {
        loop {
            let received = self.input.bytes().len();
            match reader.take(self.input.bytes()) {
                Chunks::Ended { consumed } if consumed as u64 <= bytes_left => {
                    self.input.consume(consumed);
                    return self.ask(request, worker);
                }
                Chunks::Partial if received as u64 <= bytes_left => {
                    self.input.consume(received);
                    bytes_left -= received as u64;
                }
                Chunks::Malformed => {
                    let text = "malformed chunked request body";
                    return self.refuse(Some(request), 400, text, worker);
                }
                Chunks::Ended { .. } | Chunks::Partial => {
                    return self.refuse(Some(request), 413, "no request body is wanted", worker);
                }
            }
            match self.wire.read(self.input.room()) {
                Ok(0) | Err(Halt::Gone) => return Break(Turn::Close),
                Ok(_) => {}
                Err(Halt::Blocked) if worker.now < deadline => {
                    self.phase = Phase::DroppingChunks { request, reader, bytes_left, deadline };
                    return park(Interest::Bytes, deadline);
                }
                Err(Halt::Blocked) => {
                    let text = "the request body took too long";
                    return self.refuse(Some(request), 408, text, worker);
                }
            }
        }
    }
}

/// Waits, and something would be lost if the connection were closed meanwhile.
pub(super) fn park(interest: Interest, deadline: Instant) -> ControlFlow<Turn> {
    Break(Turn::Park(Parking { interest, deadline, losable: None }))
}

/// Waits for a client that has sent no complete request, or has had its answer: its connection can be
/// closed for another one.
pub(super) fn park_losable(
    interest: Interest,
    deadline: Instant,
    since: Instant,
) -> ControlFlow<Turn> {
    let losable = Some(Losable { since, is_idle: false });
    Break(Turn::Park(Parking { interest, deadline, losable }))
}
