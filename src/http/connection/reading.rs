//! Reading: request heads, and small request bodies, which are discarded.
//!
//! This module must not know the answers.

use super::chunks::{ChunkReader, Chunks};
use super::input::HeadScan;
use super::socket::{More, SocketError};
use super::{Connection, Flow, Phase, SliceEnd, park, park_evictable, report_hangup};
use crate::http::head::{self, Parsed};
use crate::http::limits::{BODY_DISCARD_MAX, DRAIN_GRACE, Drain, SURPLUS_TIMEOUT};
use crate::http::request::{Framing, Method, Request};
use crate::http::table::{Evictable, Interest, Parking, Stage};
use crate::http::worker::Worker;
use std::ops::ControlFlow::{Break, Continue};
use std::time::Instant;

impl Connection {
    /// Reads until the head is complete, starting with bytes that were received earlier.
    pub(super) fn read_head(&mut self, worker: &mut Worker) -> Flow {
        loop {
            if !self.input.is_empty() {
                self.head_began.get_or_insert(worker.now);
                if !self.guard.claim_place() {
                    return self.refuse_surplus(worker);
                }
                if worker.requests_left == 0 {
                    return Break(SliceEnd::Yield);
                }
                if self.head_scan.is_due(self.input.bytes())
                    && let Some(flow) = self.parse_head(worker)
                {
                    return flow;
                }
            }
            match self.wire.read(self.input.buffer()) {
                Ok(0) | Err(SocketError::Closed) => return Break(SliceEnd::Close),
                Ok(_) => {}
                Err(SocketError::WouldBlock) => return self.await_head(worker),
            }
        }
    }

    /// Returns `None` if the head is not complete.
    fn parse_head(&mut self, worker: &mut Worker) -> Option<Flow> {
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
                request.generated_id = worker.service.request_ids.next();
                request.user.replace(self.wire.client_name());
                Some(self.accept_request(request, worker))
            }
            Ok(Parsed::Partial) => {
                worker.spare_request = Some(request);
                None
            }
            Err(error) => {
                log::debug!(
                    ip:% = self.peer.ip(), port = self.peer.port(), error:%;
                    "a request is not valid HTTP"
                );
                worker.spare_request = Some(request);
                Some(self.refuse(None, error.status(), &error.to_string(), worker))
            }
        }
    }

    /// Waits for the rest of the head, or for its first byte.
    pub(super) fn await_head(&mut self, worker: &mut Worker) -> Flow {
        let settings = &worker.service.settings;
        if self.is_surplus() {
            let deadline = self.idle_since + SURPLUS_TIMEOUT;
            return match worker.now < deadline {
                true => park(Interest::Readable, deadline),
                false => self.refuse_surplus(worker),
            };
        }
        if let Some(began) = self.head_began {
            // The port is closed, and the process waits for this connection only.
            let is_last = self.guard.stage() >= Stage::Draining && settings.drain != Drain::Refuse;
            let timeout = settings.head_timeout;
            let deadline = began + if is_last { timeout.min(DRAIN_GRACE) } else { timeout };
            return match worker.now < deadline {
                true => park_evictable(Interest::Readable, deadline, began),
                false => self.refuse(None, 408, "the request head took too long", worker),
            };
        }
        let timeout = match (self.is_draining(), settings.drain) {
            (false, _) => settings.idle_timeout,
            (true, Drain::Refuse) => return Break(SliceEnd::Close),
            (true, Drain::Serve | Drain::Handover) => settings.idle_timeout.min(DRAIN_GRACE),
        };
        let deadline = self.idle_since + timeout;
        if worker.now >= deadline {
            return Break(SliceEnd::Close);
        }
        let evictable = Some(Evictable { since: self.idle_since, is_idle: true });
        Break(SliceEnd::Park(Parking { interest: Interest::Readable, deadline, evictable }))
    }

    /// A response has ended, and the connection stays open.
    pub(super) fn await_next_head(&mut self, now: Instant, worker: &mut Worker) -> Flow {
        self.idle_since = now;
        if self.input.is_empty() && !self.wire.has_received() {
            // The next request has most likely not arrived yet. Parking right away is cheaper than trying to read first.
            self.await_head(worker)
        } else {
            Continue(())
        }
    }

    fn accept_request(&mut self, request: Box<Request>, worker: &mut Worker) -> Flow {
        worker.requests_left = worker.requests_left.saturating_sub(1);
        self.head_began = None;
        match request.framing {
            Framing::Length(0) => self.call_handler(request, worker),
            Framing::Length(bytes) if bytes <= BODY_DISCARD_MAX => {
                if request.expects_continue && self.input.is_empty() && !self.send_continue() {
                    return Break(SliceEnd::Close);
                }
                let deadline = worker.now + worker.service.settings.head_timeout;
                self.phase = Phase::Body { request, bytes_left: bytes, deadline };
                Continue(())
            }
            // Proxies and service meshes may send a GET without a body as an empty chunked one.
            Framing::Chunked if matches!(request.method, Method::Get | Method::Head) => {
                if request.expects_continue && self.input.is_empty() && !self.send_continue() {
                    return Break(SliceEnd::Close);
                }
                let deadline = worker.now + worker.service.settings.head_timeout;
                let (reader, bytes_left) = (ChunkReader::new(), BODY_DISCARD_MAX);
                self.phase = Phase::ChunkedBody { request, reader, bytes_left, deadline };
                Continue(())
            }
            Framing::Length(_) | Framing::Chunked => {
                self.unread_body = true;
                if matches!(request.method, Method::Get | Method::Head) {
                    return self.refuse(
                        Some(request),
                        413,
                        "a request body is not allowed",
                        worker,
                    );
                }
                self.call_handler(request, worker)
            }
        }
    }

    /// Sends `100 Continue`. Returns false if the connection cannot be used any more.
    fn send_continue(&mut self) -> bool {
        const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
        match self.wire.send(CONTINUE, &[], More::Nothing) {
            // Without the interim response, the client sends its body a little later.
            Err(SocketError::WouldBlock) => true,
            Err(SocketError::Closed) => false,
            Ok(sent) => sent == CONTINUE.len(),
        }
    }

    /// Discards the rest of a small body, then calls the handler.
    pub(super) fn discard_body(
        &mut self,
        request: Box<Request>,
        mut bytes_left: u64,
        deadline: Instant,
        worker: &mut Worker,
    ) -> Flow {
        loop {
            let count = self.input.bytes().len().min(usize::try_from(bytes_left).unwrap_or(0));
            self.input.consume(count);
            bytes_left -= count as u64;
            if bytes_left == 0 {
                return self.call_handler(request, worker);
            }
            match self.wire.read(self.input.buffer()) {
                Ok(0) | Err(SocketError::Closed) => {
                    return report_hangup(&request, worker);
                }
                Ok(_) => {}
                Err(SocketError::WouldBlock) if worker.now < deadline => {
                    let began = request.began;
                    self.phase = Phase::Body { request, bytes_left, deadline };
                    return park_evictable(Interest::Readable, deadline, began);
                }
                Err(SocketError::WouldBlock) => {
                    let text = "the request body took too long";
                    return self.refuse(Some(request), 408, text, worker);
                }
            }
        }
    }

    /// Discards the rest of a small chunked body, then calls the handler.
    pub(super) fn discard_chunks(
        &mut self,
        request: Box<Request>,
        mut reader: ChunkReader,
        mut bytes_left: u64,
        deadline: Instant,
        worker: &mut Worker,
    ) -> Flow {
        loop {
            let received = self.input.bytes().len();
            match reader.take(self.input.bytes()) {
                Chunks::Ended { consumed } if consumed as u64 <= bytes_left => {
                    self.input.consume(consumed);
                    return self.call_handler(request, worker);
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
                    return self.refuse(
                        Some(request),
                        413,
                        "a request body is not allowed",
                        worker,
                    );
                }
            }
            match self.wire.read(self.input.buffer()) {
                Ok(0) | Err(SocketError::Closed) => {
                    return report_hangup(&request, worker);
                }
                Ok(_) => {}
                Err(SocketError::WouldBlock) if worker.now < deadline => {
                    self.phase = Phase::ChunkedBody { request, reader, bytes_left, deadline };
                    return park(Interest::Readable, deadline);
                }
                Err(SocketError::WouldBlock) => {
                    let text = "the request body took too long";
                    return self.refuse(Some(request), 408, text, worker);
                }
            }
        }
    }
}
