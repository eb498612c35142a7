//! Answering: calls the handler, and creates the answers of the server itself.
//!
//! This module must not know how bytes are sent.

use super::body::{HeadBytes, OutgoingBody};
use super::response::{After, Response};
use super::{Connection, Flow, Phase, park, report_hangup, report_unanswered};
use crate::http::handler::{Pending, Step};
use crate::http::limits::RETRY_AFTER_SECONDS;
use crate::http::memory::{Exhausted, MemoryCharge};
use crate::http::render::{ConnectionOption, render};
use crate::http::reply::{Body, Outcome, Reply};
use crate::http::request::{Method, Request, Version};
use crate::http::request_id::RequestId;
use crate::http::table::Interest;
use crate::http::worker::{Worker, catch_panic};
use std::ops::ControlFlow::Continue;
use std::time::SystemTime;

impl Connection {
    /// Calls the handler.
    pub(super) fn call_handler(&mut self, request: Box<Request>, worker: &mut Worker) -> Flow {
        let handler = &worker.service.handler;
        let step = self
            .with_context(worker.now, |context| catch_panic(|| handler.handle(&request, context)));
        self.apply_step(request, step, worker)
    }

    /// Resumes an answer that was not ready before.
    pub(super) fn resume(
        &mut self,
        request: Box<Request>,
        pending: Box<dyn Pending>,
        worker: &mut Worker,
    ) -> Flow {
        if self.guard.has_hung_up() {
            return report_hangup(&request, worker);
        }
        let step = self
            .with_context(worker.now, |context| catch_panic(|| pending.resume(&request, context)));
        self.apply_step(request, step, worker)
    }

    fn apply_step(
        &mut self,
        request: Box<Request>,
        step: Result<Step, String>,
        worker: &mut Worker,
    ) -> Flow {
        let waiting = step.and_then(|step| match step {
            Step::Reply(reply) => Ok(Err(reply)),
            Step::Wait(pending) => catch_panic(|| pending.deadline()).map(|at| Ok((pending, at))),
        });
        match waiting {
            Ok(Ok((pending, deadline))) => {
                self.phase = Phase::Waiting { request, pending };
                park(Interest::Hangup, deadline)
            }
            Ok(Err(reply)) => self.answer(Some(request), reply, Outcome::Complete, worker),
            Err(message) => {
                log::error!(
                    method = request.method_text(), path = request.path(), error = message.as_str();
                    "panic while answering a request"
                );
                let reply = Reply::plain(500, "internal server error").close();
                self.answer(Some(request), reply, Outcome::Panicked, worker)
            }
        }
    }

    /// Answers with an error of the server itself, and closes the connection.
    pub(super) fn refuse(
        &mut self,
        request: Option<Box<Request>>,
        status: u16,
        text: &str,
        worker: &mut Worker,
    ) -> Flow {
        self.unread_body = true;
        self.answer(request, Reply::plain(status, text), Outcome::Complete, worker)
    }

    /// Answers a client for which there is no slot, and asks it to retry later.
    pub(super) fn refuse_surplus(&mut self, worker: &mut Worker) -> Flow {
        self.unread_body = true;
        let reply =
            Reply::plain(503, "too many connections").header("Retry-After", RETRY_AFTER_SECONDS);
        self.answer(None, reply, Outcome::Complete, worker)
    }

    /// Turns `reply` into a response and starts to send it.
    pub(super) fn answer(
        &mut self,
        request: Option<Box<Request>>,
        reply: Reply,
        verdict: Outcome,
        worker: &mut Worker,
    ) -> Flow {
        let method = request.as_deref().map(Request::method);
        let bodiless = matches!(reply.status, 100..=199 | 204 | 304);
        let reply = match reply.body {
            Body::Length(1..) if method != Some(Method::Head) && !bodiless => {
                log::error!(
                    "bug: an answer without a body, of which only the length is known, is only valid for HEAD"
                );
                Reply::plain(500, "internal server error").close()
            }
            _ => reply,
        };
        let silent = bodiless || method == Some(Method::Head);
        let (reply, charge) = match self.charge(&reply, silent, worker) {
            Ok(charge) => (reply, charge),
            Err(Exhausted) => (too_much_memory(reply), None),
        };
        let length = (!bodiless).then(|| reply.body.length());
        let after = self.after(request.as_deref(), &reply);
        let mut head = std::mem::take(&mut worker.spare_head);
        head.clear();
        let date = worker.dates.at(SystemTime::now());
        let id = match &request {
            Some(request) => request.id(),
            None => RequestId::new(None, worker.service.request_ids.next()),
        };
        render(&mut head, &reply, length, option(after, request.as_deref()), date, id);
        self.phase = Phase::Sending(Response {
            request,
            head: HeadBytes::new(head),
            body: if silent {
                OutgoingBody::Nothing
            } else {
                OutgoingBody::new(reply.body, charge)
            },
            status: reply.status,
            notes: reply.notes,
            after,
            verdict,
            first_byte: None,
            progress: worker.now,
        });
        Continue(())
    }

    /// Counts the body of `reply` against the memory for responses.
    fn charge(
        &self,
        reply: &Reply,
        is_silent: bool,
        worker: &Worker,
    ) -> Result<Option<MemoryCharge>, Exhausted> {
        match is_silent {
            true => Ok(None),
            false => worker.service.memory.charge(&reply.body, self.peer.ip().into()),
        }
    }

    fn after(&self, request: Option<&Request>, reply: &Reply) -> After {
        let kept = request.is_some_and(|request| request.keep_alive);
        if self.unread_body {
            After::Linger
        } else if !kept || reply.close || self.is_draining() {
            After::Close
        } else {
            After::NextHead
        }
    }

    /// Cuts off the connection, because the drain timeout has passed.
    pub(super) fn cut_off(&mut self, worker: &mut Worker) {
        let cut = match std::mem::take(&mut self.phase) {
            Phase::Head => self.head_began.is_some(),
            Phase::FirstByte | Phase::Handshake | Phase::Lingering { .. } => false,
            // The handler has not been called for this request yet.
            Phase::Body { .. } | Phase::ChunkedBody { .. } => true,
            Phase::Waiting { request, .. } => {
                report_unanswered(&request, Outcome::Drained, worker);
                true
            }
            Phase::Sending(response) => {
                // The returned flow does not matter, because the connection is closed.
                let _ = self.finish_response(response, Outcome::Drained, worker);
                true
            }
        };
        self.wire.finish_sending();
        if cut {
            worker.service.count_cut();
        }
    }
}

/// Replaces an answer for which no memory is left. Keeps its notes, for the access log.
fn too_much_memory(reply: Reply) -> Reply {
    let text = "too many large responses are waiting to be read by their clients";
    let refusal = Reply::plain(503, text).header("Retry-After", RETRY_AFTER_SECONDS);
    Reply { notes: reply.notes, close: reply.close, ..refusal }
}

fn option(after: After, request: Option<&Request>) -> ConnectionOption {
    match (after, request.map(Request::version)) {
        (After::Close | After::Linger, _) => ConnectionOption::Close,
        (After::NextHead, Some(Version::Http10)) => ConnectionOption::KeepAlive,
        (After::NextHead, _) => ConnectionOption::Default,
    }
}
