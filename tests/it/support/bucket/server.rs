//! The threads of the fake bucket, and the state that they share with the test.
//!
//! Must not know how a bucket is started, filled or queried: `mod.rs` does that.

use std::io::{self, Write};
use std::net::TcpStream;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, SystemTime};

use super::super::answer::{Answer, Close, Next};
use super::super::fault::{Fault, Script, glob, matches_path};
use super::super::server::line;
use super::super::wire::{Recorded, Requests, Stream};
use super::super::{Gate, lock};
use super::ACCESS_KEY;
use super::access::Required;
use super::contents::{Call, Contents};
use super::operation::{Operation, target};
use super::refusal::{Cause, Refusal};

/// The largest request body. Objects of tests stay far below it.
const BODY_LIMIT: usize = 1024 * 1024 * 1024;

/// The state shared between the connection threads and the test.
#[derive(Default)]
pub struct Shared {
    pub state: Mutex<State>,
    /// Signalled when a request is recorded or handled, and when the test changes something.
    pub changed: Condvar,
    /// Opens when the bucket is dropped.
    pub until_drop: Gate,
    pub body_bytes_sent: AtomicU64,
}

pub struct State {
    pub clock: Clock,
    pub contents: Contents,
    pub access_key: String,
    /// The required session token.
    pub session_token: Option<String>,
    pub script: Script,
    pub requests: Vec<Recorded>,
    /// Requests that a correct client never sends, with the codes of their errors.
    pub refused: Vec<String>,
    pub refusals_expected: bool,
    pub gates: Vec<Gate>,
}

impl Default for State {
    fn default() -> State {
        State {
            clock: Clock::Running(Duration::ZERO),
            contents: Contents::default(),
            access_key: ACCESS_KEY.to_owned(),
            session_token: None,
            script: Script::default(),
            requests: Vec::new(),
            refused: Vec::new(),
            refusals_expected: false,
            gates: Vec::new(),
        }
    }
}

pub enum Clock {
    /// This much ahead of the machine's.
    Running(Duration),
    Stopped(SystemTime),
}

impl Clock {
    pub fn now(&self) -> SystemTime {
        match self {
            Clock::Running(ahead) => SystemTime::now() + *ahead,
            Clock::Stopped(time) => *time,
        }
    }

    pub fn advance(&mut self, by: Duration) {
        match self {
            Clock::Running(ahead) => *ahead += by,
            Clock::Stopped(time) => *time += by,
        }
    }
}

/// What was decided about a request before its body is read.
struct Plan {
    operation: Operation,
    key: String,
    /// The request lacks the required credentials.
    denied: Option<Refusal>,
    fault: Option<Fault>,
}

impl Plan {
    fn replaced(&self) -> bool {
        self.fault.as_ref().is_some_and(Fault::replaces)
    }
}

impl Shared {
    pub fn serve(&self, socket: Arc<TcpStream>, connection: u64) {
        let mut stream = Stream::new(socket, None);
        let mut requests = Requests::new(connection);
        // An error is a disconnect: it ends the connection, not the test.
        while let Ok(Some(request)) = requests.head(&mut stream) {
            match self.exchange(&mut stream, &mut requests, request) {
                Ok(Next::KeepAlive) => {}
                Ok(Next::Close(Close::Fin)) => return stream.finish(),
                Ok(Next::Close(Close::Reset)) => return stream.reset(),
                Err(_) => return,
            }
        }
        stream.finish();
    }

    fn exchange(
        &self,
        stream: &mut Stream,
        requests: &mut Requests,
        mut request: Recorded,
    ) -> io::Result<Next> {
        let to_head = request.method == "HEAD";
        let plan = self.with_state(|state| state.plan(&request));
        let unread =
            self.with_state(|state| state.answer_unread(&plan, &request, &self.until_drop));
        let wants_close = unread.is_some() || request.wants_close();
        let answer = match unread {
            Some(answer) => answer,
            None => match self.receive(stream, requests, &plan, &request)? {
                Some(body) => {
                    request.body = body;
                    self.with_state(|state| state.answer(&plan, request, &self.until_drop))
                }
                None => return Ok(Next::Close(Close::Reset)),
            },
        };
        let next = answer.deliver(stream, to_head, &self.body_bytes_sent)?;
        Ok(match next {
            Next::KeepAlive if wants_close => Next::Close(Close::Fin),
            next => next,
        })
    }

    /// Reads the body; `None` if a fault ends the connection.
    fn receive(
        &self,
        stream: &mut Stream,
        requests: &mut Requests,
        plan: &Plan,
        request: &Recorded,
    ) -> io::Result<Option<Vec<u8>>> {
        if expects_continue(request) {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            stream.flush()?;
        }
        let length = request.content_length().unwrap_or(0);
        let cut = plan.fault.as_ref().and_then(Fault::request_cut).map(|n| n.min(length));
        let end = cut.unwrap_or(length);
        let mut gates = plan.fault.as_ref().map(Fault::request_gates).unwrap_or_default();
        gates.sort_by_key(|(at, _)| *at);
        let mut body = Vec::new();
        for (at, gate) in gates {
            let missing = at.min(end) - body.len();
            body.extend(requests.body(stream, missing)?);
            gate.pass();
        }
        body.extend(requests.body(stream, end - body.len())?);
        Ok(cut.is_none().then_some(body))
    }

    fn with_state<T>(&self, action: impl FnOnce(&mut State) -> T) -> T {
        let result = action(&mut lock(&self.state));
        self.changed.notify_all();
        result
    }
}

impl State {
    pub fn requests_for(&self, method: &str, path: &str) -> impl Iterator<Item = &Recorded> {
        self.requests.iter().filter(move |request| {
            (method == "*" || method == request.method) && matches_path(path, request)
        })
    }

    pub fn requests_of(&self, operation: Operation, key: &str) -> impl Iterator<Item = &Recorded> {
        self.requests.iter().filter(move |request| {
            let (asked, asked_key) = target(request);
            asked == operation && glob(key, &asked_key)
        })
    }

    /// Records the request, and decides what does not depend on its body.
    fn plan(&mut self, request: &Recorded) -> Plan {
        self.requests.push(request.clone());
        let (operation, key) = target(request);
        let (access_key, session_token) = (&*self.access_key, self.session_token.as_deref());
        let required = Required { now: self.clock.now(), access_key, session_token };
        let denied = required.check(request).err();
        let fault = if denied.is_none() { self.script.take(request) } else { None };
        Plan { operation, key, denied, fault }
    }

    /// The response to a request whose body is not read, because it has no usable length, or because the client waits for
    /// a permission that it does not get.
    fn answer_unread(
        &mut self,
        plan: &Plan,
        request: &Recorded,
        until_drop: &Gate,
    ) -> Option<Answer> {
        let call = self.call(plan, request);
        let refused = length_error(request).is_some()
            || expects_continue(request)
                && (plan.denied.is_some()
                    || plan.replaced()
                    || self.contents.admit(&call).is_err());
        refused.then(|| self.answer(plan, request.clone(), until_drop))
    }

    fn call<'a>(&self, plan: &'a Plan, request: &'a Recorded) -> Call<'a> {
        Call { operation: plan.operation, key: &plan.key, request, now: self.clock.now() }
    }

    fn answer(&mut self, plan: &Plan, mut request: Recorded, until_drop: &Gate) -> Answer {
        let recorded = self.requests.iter_mut().rev().find(|r| r.sequence == request.sequence);
        // The test may have cleared the records meanwhile.
        if let Some(recorded) = recorded {
            recorded.body = request.body.clone();
        }
        if let Some(fault) = &plan.fault {
            fault.misread(&mut request);
        }
        let result = match plan.denied.clone().or_else(|| length_error(&request)) {
            Some(refusal) => Err(refusal),
            None if plan.replaced() => Ok(Answer::new(200, "", Vec::new())),
            None => {
                let call = self.call(plan, &request);
                self.contents.perform(&call)
            }
        };
        let id = format!("{:016X}", request.sequence);
        let mut answer = result.unwrap_or_else(|refusal| {
            // A probe tries what the server refuses.
            let is_probe = request.path.contains("/probe/");
            if refusal.cause == Cause::Client && plan.fault.is_none() && !is_probe {
                self.refused.push(format!("{}: {}", refusal.code, line(&request)));
            }
            refusal.answer(&request.path, &id)
        });
        if let Some(fault) = &plan.fault {
            fault.spoil(&mut answer, until_drop);
        }
        // Only responses of this server have the header of a registry; a fault may pretend another server.
        if answer.header("Docker-Distribution-API-Version").is_some() {
            answer.remove("Docker-Distribution-API-Version");
            answer.set("x-amz-request-id", &id);
            answer.set("Server", "FakeBucket");
        }
        answer.set("Date", &httpdate::fmt_http_date(self.clock.now()));
        answer
    }
}

fn expects_continue(request: &Recorded) -> bool {
    request.header("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue"))
}

/// S3 requires the length of a body, and has no use for chunked encoding.
fn length_error(request: &Recorded) -> Option<Refusal> {
    if request.header("transfer-encoding").is_some() {
        let message = "A header you provided implies functionality that is not implemented";
        return Some(Refusal::client(501, "NotImplemented", message));
    }
    let too_large = request.content_length().is_some_and(|length| length > BODY_LIMIT);
    let message = "Your proposed upload exceeds the maximum allowed size";
    too_large.then(|| Refusal::client(400, "EntityTooLarge", message))
}
