//! The middle of a connection: asking the handler, and what the edge itself answers.
//!
//! It must not know how bytes are sent.

use super::connection::{Connection, Phase, Turn};
use super::handler::{Pending, Step};
use super::limits::RETRY_AFTER_SECONDS;
use super::memory::{Exhausted, MemoryCharge};
use super::outgoing::{HeadBytes, Outgoing};
use super::parking::Interest;
use super::pool::{Worker, guard};
use super::reading::park;
use super::render::{ConnectionOption, render};
use super::reply::{Body, CLIENT_CLOSED_REQUEST, Ending, Outcome, Reply};
use super::request::{Method, Request, Version};
use super::sending::{After, Sending};
use std::ops::ControlFlow::{self, Break, Continue};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

impl Connection {
    /// Asks the handler for an answer.
    pub(super) fn ask(&mut self, request: Box<Request>, worker: &mut Worker) -> ControlFlow<Turn> {
        let handler = &worker.shared.handler;
        let step =
            self.with_context(worker.now, |context| guard(|| handler.handle(&request, context)));
        self.follow(request, step, worker)
    }

    /// Goes on with an answer that waits for something.
    pub(super) fn resume(
        &mut self,
        request: Box<Request>,
        pending: Box<dyn Pending>,
        worker: &mut Worker,
    ) -> ControlFlow<Turn> {
        if self.hung_up {
            tell_unanswered(&request, CLIENT_CLOSED_REQUEST, Outcome::ClientGone, worker);
            return Break(Turn::Close);
        }
        let step =
            self.with_context(worker.now, |context| guard(|| pending.resume(&request, context)));
        self.follow(request, step, worker)
    }

    fn follow(
        &mut self,
        request: Box<Request>,
        step: Result<Step, String>,
        worker: &mut Worker,
    ) -> ControlFlow<Turn> {
        let waiting = step.and_then(|step| match step {
            Step::Reply(reply) => Ok(Err(reply)),
            Step::Wait(pending) => guard(|| pending.deadline()).map(|at| Ok((pending, at))),
        });
        match waiting {
            Ok(Ok((pending, deadline))) => {
                self.phase = Phase::Waiting { request, pending };
                park(Interest::Departure, deadline)
            }
            Ok(Err(reply)) => self.answer(Some(request), reply, Outcome::Complete, worker),
            Err(message) => {
                log::error!(
                    "panic while answering {} {}: {message}",
                    request.method_text(),
                    request.path()
                );
                let reply = plain(500, "this server made a mistake").close();
                self.answer(Some(request), reply, Outcome::Panicked, worker)
            }
        }
    }

    /// Answers on behalf of the edge, and closes.
    pub(super) fn refuse(
        &mut self,
        request: Option<Box<Request>>,
        status: u16,
        text: &str,
        worker: &mut Worker,
    ) -> ControlFlow<Turn> {
        self.unread_body = true;
        self.answer(request, plain(status, text), Outcome::Complete, worker)
    }

    /// Tells a client for whom there is no seat to come back later.
    pub(super) fn turn_away(&mut self, worker: &mut Worker) -> ControlFlow<Turn> {
        self.unread_body = true;
        let reply = plain(503, "too many connections").header("Retry-After", RETRY_AFTER_SECONDS);
        self.answer(None, reply, Outcome::Complete, worker)
    }

    /// Makes a response of `reply` and begins to send it.
    pub(super) fn answer(
        &mut self,
        request: Option<Box<Request>>,
        reply: Reply,
        verdict: Outcome,
        worker: &mut Worker,
    ) -> ControlFlow<Turn> {
        let method = request.as_deref().map(Request::method);
        let bodiless = matches!(reply.status, 100..=199 | 204 | 304);
        let reply = match reply.body {
            Body::Length(1..) if method != Some(Method::Head) && !bodiless => {
                log::error!("an answer of which only the length is known is for HEAD alone");
                plain(500, "this server made a mistake").close()
            }
            _ => reply,
        };
        let silent = bodiless || method == Some(Method::Head);
        let (reply, charge) = match self.charge(&reply, silent, worker) {
            Ok(charge) => (reply, charge),
            Err(Exhausted) => (too_much_memory(reply), None),
        };
        let length = (!bodiless).then(|| reply.body.length());
        let after = self.after(request.as_deref(), &reply, worker);
        let mut head = std::mem::take(&mut worker.spare_head);
        head.clear();
        let date = worker.dates.at(SystemTime::now());
        render(&mut head, &reply, length, option(after, request.as_deref()), date);
        self.phase = Phase::Sending(Sending {
            request,
            head: HeadBytes::new(head),
            body: if silent { Outgoing::Nothing } else { Outgoing::new(reply.body, charge) },
            status: reply.status,
            note: reply.note,
            after,
            verdict,
            begun: false,
            progress: worker.now,
        });
        Continue(())
    }

    /// Counts what the body of `reply` takes of the memory for responses.
    fn charge(
        &self,
        reply: &Reply,
        is_silent: bool,
        worker: &Worker,
    ) -> Result<Option<MemoryCharge>, Exhausted> {
        match is_silent {
            true => Ok(None),
            false => worker.shared.memory.charge(&reply.body, self.peer.ip().into()),
        }
    }

    fn after(&self, request: Option<&Request>, reply: &Reply, worker: &Worker) -> After {
        let kept = request.is_some_and(|request| request.keep_alive);
        if self.unread_body {
            After::Linger
        } else if !kept || reply.close || worker.shared.draining() {
            After::Close
        } else {
            After::NextHead
        }
    }

    /// The drain timeout has passed.
    pub(super) fn cut_short(&mut self, worker: &mut Worker) {
        let cut = match std::mem::take(&mut self.phase) {
            Phase::Head => self.head_began.is_some(),
            Phase::Greeting | Phase::Handshake | Phase::Lingering { .. } => false,
            // The handler has not heard of this request yet.
            Phase::Dropping { .. } | Phase::DroppingChunks { .. } => true,
            Phase::Waiting { request, .. } => {
                tell_unanswered(&request, CLIENT_CLOSED_REQUEST, Outcome::Drained, worker);
                true
            }
            Phase::Sending(sending) => {
                // What would follow is of no interest: the connection is closed.
                let _ = self.conclude(sending, Outcome::Drained, worker);
                true
            }
        };
        self.wire.finish_sending();
        if cut {
            worker.shared.note_cut();
        }
    }
}

/// Replaces an answer for which there is no memory. Its note stays, for the access log.
fn too_much_memory(reply: Reply) -> Reply {
    let text = "too many large responses are waiting for their clients to read them";
    let refusal = plain(503, text).header("Retry-After", RETRY_AFTER_SECONDS);
    Reply { note: reply.note, close: reply.close, ..refusal }
}

/// The longest answer for people: it may quote the source of a body.
const PLAIN_CHARS_MAX: usize = 1024;

/// A short answer for people.
pub(super) fn plain(status: u16, text: &str) -> Reply {
    let text: String = text
        .chars()
        .take(PLAIN_CHARS_MAX)
        .map(|char| if char.is_control() { '?' } else { char })
        .collect();
    let body = Body::Bytes(Arc::from(format!("{text}\n").into_bytes()));
    Reply::new(status, body).header("Content-Type", "text/plain; charset=utf-8")
}

fn option(after: After, request: Option<&Request>) -> ConnectionOption {
    match (after, request.map(Request::version)) {
        (After::Close | After::Linger, _) => ConnectionOption::Close,
        (After::NextHead, Some(Version::Http10)) => ConnectionOption::KeepAlive,
        (After::NextHead, _) => ConnectionOption::Unsaid,
    }
}

fn tell_unanswered(request: &Request, status: u16, outcome: Outcome, worker: &Worker) {
    let latency = Instant::now().saturating_duration_since(request.began);
    worker.tell(request, &Ending { status, bytes_sent: 0, latency, note: None, outcome });
}
