//! The threads of the fake registry, and the state that they share with the test.
//!
//! Must not know how a registry is started, filled or queried: `registry.rs` does that.

use std::net::TcpStream;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex};

use rustls::ServerConfig;

use super::answer::{Answer, Close, Next};
use super::content::{Content, Found, Route};
use super::fault::{Script, glob};
use super::token::{Auth, TokenServer};
use super::wire::{Recorded, Requests, Stream};
use super::{Gate, lock};

/// The state shared between the connection threads and the test.
pub(super) struct Shared {
    pub tls: Option<Arc<ServerConfig>>,
    pub state: Mutex<State>,
    /// Signalled when a request is recorded.
    pub recorded: Condvar,
    /// Opens when the registry is dropped.
    pub until_drop: Gate,
    pub body_bytes_sent: AtomicU64,
}

#[derive(Default)]
pub(super) struct State {
    pub content: Content,
    pub script: Script,
    pub auth: Auth,
    /// The token endpoint at `/token` of this registry.
    pub tokens: Option<TokenServer>,
    pub requests: Vec<Recorded>,
    pub expected_unknown: Vec<String>,
    pub unscripted: Vec<String>,
    pub gates: Vec<Gate>,
}

impl Shared {
    pub fn new(tls: Option<Arc<ServerConfig>>) -> Shared {
        Shared {
            tls,
            state: Mutex::default(),
            recorded: Condvar::new(),
            until_drop: Gate::new(),
            body_bytes_sent: AtomicU64::new(0),
        }
    }

    pub fn serve(&self, socket: Arc<TcpStream>, connection: u64) {
        let mut stream = Stream::new(socket, self.tls.as_ref());
        let mut requests = Requests::new(connection);
        // An error is a disconnect: it ends the connection, not the test.
        while let Ok(Some(request)) = requests.next(&mut stream) {
            let wants_close = request.wants_close();
            let to_head = request.method == "HEAD";
            let answer = self.answer(request);
            match answer.deliver(&mut stream, to_head, &self.body_bytes_sent) {
                Ok(Next::KeepAlive) if !wants_close => {}
                Ok(Next::KeepAlive | Next::Close(Close::Fin)) => return stream.finish(),
                Ok(Next::Close(Close::Reset)) => return stream.reset(),
                Err(_) => return,
            }
        }
        stream.finish();
    }

    fn answer(&self, request: Recorded) -> Answer {
        let mut state = lock(&self.state);
        state.requests.push(request.clone());
        self.recorded.notify_all();
        state.answer(request, &self.until_drop)
    }
}

impl State {
    pub fn requests_for(&self, method: &str, path: &str) -> impl Iterator<Item = &Recorded> {
        self.requests.iter().filter(move |request| {
            (method == "*" || method == request.method) && glob(path, &request.path)
        })
    }

    fn answer(&mut self, mut request: Recorded, until_drop: &Gate) -> Answer {
        let route = Route::of(&request.path);
        let endpoint = self.tokens.clone().filter(|_| request.path == "/token");
        if request.path.starts_with("/v2/")
            && let Some(refusal) = self.auth.refusal(&request, route.repository())
        {
            return refusal;
        }
        let fault = self.script.take(&request);
        if let Some(fault) = &fault {
            fault.misread(&mut request);
        }
        let found = match endpoint {
            Some(tokens) => Found::Known(tokens.answer(&request)),
            None => self.content.answer(&route, &request),
        };
        let mut answer = match found {
            Found::Known(answer) => answer,
            Found::Unknown(answer) => {
                let expected = self.expected_unknown.iter().any(|path| glob(path, &request.path));
                if fault.is_none() && !expected {
                    self.unscripted.push(line(&request));
                }
                answer
            }
        };
        if let Some(fault) = fault {
            fault.spoil(&mut answer, until_drop);
        }
        answer
    }
}

/// A request in one line, for messages.
pub(super) fn line(request: &Recorded) -> String {
    format!("{} {}", request.method, request.target())
}
