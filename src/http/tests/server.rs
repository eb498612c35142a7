//! A server for one test, and building blocks for its handlers.

use super::client::{Client, TIMEOUT};
use crate::http::{
    Available, Body, Context, Controller, DrainReport, Ending, Handler, Pending, Reply, Request,
    Server, ServerTls, Settings, Step, Tail,
};
use rustls::ClientConfig;
use std::collections::VecDeque;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A handler that calls a function, and reports how responses ended.
struct FunctionHandler<F> {
    answer: F,
    endings: Mutex<Sender<(String, Ending)>>,
}

impl<F: Fn(&Request, &Context<'_>) -> Step + Send + Sync + 'static> Handler for FunctionHandler<F> {
    fn handle(&self, request: &Request, context: &Context<'_>) -> Step {
        (self.answer)(request, context)
    }

    fn finished(&self, request: &Request, ending: &Ending) {
        // Tests that ignore endings have dropped the receiver.
        let _ = self.endings.lock().unwrap().send((request.path().to_owned(), ending.clone()));
    }
}

/// A server that runs until it is dropped.
pub(super) struct Running {
    pub(super) address: SocketAddr,
    pub(super) controller: Controller,
    /// The TLS configuration of clients, if the server uses TLS.
    pub(super) trust: Option<Arc<ClientConfig>>,
    endings: Receiver<(String, Ending)>,
    thread: Option<JoinHandle<DrainReport>>,
}

/// Starts a server on a free port of the loopback interface.
pub(super) fn serve(
    settings: Settings,
    answer: impl Fn(&Request, &Context<'_>) -> Step + Send + Sync + 'static,
) -> Running {
    let (sender, endings) = channel();
    start(
        settings,
        None,
        Arc::new(FunctionHandler { answer, endings: Mutex::new(sender) }),
        endings,
    )
}

/// Starts a server on an address at which another one listens.
pub(super) fn serve_beside(
    address: SocketAddr,
    settings: Settings,
    answer: impl Fn(&Request, &Context<'_>) -> Step + Send + Sync + 'static,
) -> Running {
    let (sender, endings) = channel();
    let handler = Arc::new(FunctionHandler { answer, endings: Mutex::new(sender) });
    start_at(address, settings, None, handler, endings)
}

/// Starts a server with TLS. Its clients are configured by `trust`.
pub(super) fn serve_tls(
    settings: Settings,
    tls: Arc<ServerTls>,
    trust: Arc<ClientConfig>,
    answer: impl Fn(&Request, &Context<'_>) -> Step + Send + Sync + 'static,
) -> Running {
    let (sender, endings) = channel();
    let handler = Arc::new(FunctionHandler { answer, endings: Mutex::new(sender) });
    let mut server = start(settings, Some(tls), handler, endings);
    server.trust = Some(trust);
    server
}

/// Starts a server with any handler.
pub(super) fn run(settings: Settings, handler: Arc<dyn Handler>) -> Running {
    start(settings, None, handler, channel().1)
}

fn start(
    settings: Settings,
    tls: Option<Arc<ServerTls>>,
    handler: Arc<dyn Handler>,
    endings: Receiver<(String, Ending)>,
) -> Running {
    start_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), settings, tls, handler, endings)
}

fn start_at(
    address: SocketAddr,
    settings: Settings,
    tls: Option<Arc<ServerTls>>,
    handler: Arc<dyn Handler>,
    endings: Receiver<(String, Ending)>,
) -> Running {
    let server = Server::bind(&[address], settings, tls, handler).unwrap();
    let (address, controller) = (server.address(), server.controller());
    let thread = Some(std::thread::spawn(move || server.run()));
    Running { address, controller, trust: None, endings, thread }
}

/// A server that answers every request with its method, path and query.
pub(super) fn echo() -> Running {
    serve(few_workers(), |request, _| text(echoed(request)))
}

pub(super) fn echoed(request: &Request) -> String {
    let query = request.query().map(|query| format!("?{query}")).unwrap_or_default();
    format!("{} {}{query}", request.method_text(), request.path())
}

/// Settings with so few workers that a blocked one is noticed.
pub(super) fn few_workers() -> Settings {
    Settings { workers: 4, max_connections: 4_000, ..Settings::default() }
}

/// A timeout that a test waits for, but none of the clients that are fast.
pub(super) const SHORT: Duration = Duration::from_millis(300);

pub(super) fn text(body: impl Into<String>) -> Step {
    Step::Reply(Reply::new(200, Body::Bytes(Arc::from(body.into().into_bytes()))))
}

impl Running {
    pub(super) fn client(&self) -> Client {
        let client = Client::connect(self.address);
        match &self.trust {
            None => client,
            Some(trust) => client.secure(Arc::clone(trust)),
        }
    }

    /// Connects a client and sends a GET.
    pub(super) fn get(&self, target: &str) -> Client {
        let mut client = self.client();
        client.get(target);
        client
    }

    /// Asserts that a small request on a new connection is answered.
    pub(super) fn assert_answers(&self) {
        assert_eq!(self.get("/ping").response().status, 200);
    }

    /// Waits for the end of the next response.
    pub(super) fn ending(&self) -> Ending {
        self.endings.recv_timeout(TIMEOUT).unwrap().1
    }

    /// Waits for the end of the next response for `path`.
    pub(super) fn ending_of(&self, path: &str) -> Ending {
        loop {
            let (of, ending) = self.endings.recv_timeout(TIMEOUT).unwrap();
            if of == path {
                return ending;
            }
        }
    }

    /// Waits until all workers are idle.
    pub(super) fn await_idle_workers(&self) {
        wait_until(|| self.controller.queue_depth() == 0 && self.controller.busy_workers() == 0);
    }

    /// Waits for `run` to return.
    pub(super) fn join(mut self) -> DrainReport {
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.controller.stop_now();
        if let Some(thread) = self.thread.take() {
            let report = thread.join();
            assert!(std::thread::panicking() || report.is_ok());
        }
    }
}

/// Waits for a condition that no channel reports.
pub(super) fn wait_until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !condition() {
        assert!(Instant::now() < deadline, "the condition did not become true");
        std::thread::yield_now();
    }
}

/// A source of bytes whose growth the test controls.
pub(super) struct Source {
    pub(super) file: File,
    state: Mutex<SourceState>,
}

#[derive(Default)]
struct SourceState {
    available: u64,
    /// Bytes that are not in the file.
    pieces: VecDeque<Arc<[u8]>>,
    failure: Option<Box<str>>,
    panics: bool,
    wakers: Vec<Waker>,
}

impl Source {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { file: tempfile::tempfile().unwrap(), state: Mutex::default() })
    }

    /// A reply with this range of the source's future content.
    pub(super) fn reply(self: &Arc<Self>, range: std::ops::Range<u64>) -> Step {
        let tail = Box::new(SourceTail { source: Arc::clone(self) });
        Step::Reply(Reply::new(200, Body::Tail { tail, range }))
    }

    pub(super) fn grow(&self, bytes: &[u8]) {
        let available = self.state.lock().unwrap().available;
        self.file.write_all_at(bytes, available).unwrap();
        self.change(|state| state.available += bytes.len() as u64);
    }

    /// Provides bytes that are not in the file.
    pub(super) fn give(&self, bytes: &[u8]) {
        self.change(|state| state.pieces.push_back(bytes.into()));
    }

    /// Reports bytes that the file does not have.
    pub(super) fn lie(&self, bytes: u64) {
        self.change(|state| state.available += bytes);
    }

    pub(super) fn fail(&self, reason: &str) {
        self.change(|state| state.failure = Some(reason.into()));
    }

    pub(super) fn panic(&self) {
        self.change(|state| state.panics = true);
    }

    /// Whether a client waits for more bytes.
    pub(super) fn is_awaited(&self) -> bool {
        !self.state.lock().unwrap().wakers.is_empty()
    }

    fn change(&self, change: impl FnOnce(&mut SourceState)) {
        let mut state = self.state.lock().unwrap();
        change(&mut state);
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }
}

struct SourceTail {
    source: Arc<Source>,
}

impl Tail for SourceTail {
    fn file(&self) -> &File {
        &self.source.file
    }

    fn poll_available(
        &mut self,
        position: u64,
        waker: &Waker,
    ) -> Poll<Result<Available, Box<str>>> {
        let mut state = self.source.state.lock().unwrap();
        if state.available > position {
            return Poll::Ready(Ok(Available::InFile { end: state.available }));
        }
        if let Some(piece) = state.pieces.pop_front() {
            return Poll::Ready(Ok(Available::InMemory(piece)));
        }
        if let Some(failure) = &state.failure {
            return Poll::Ready(Err(failure.clone()));
        }
        if state.panics {
            drop(state);
            panic!("intended panic of the source");
        }
        state.wakers.push(waker.clone());
        Poll::Pending
    }
}

/// Something that many requests wait for until the test opens it.
#[derive(Default)]
pub(super) struct Gate {
    state: Mutex<GateState>,
}

#[derive(Default)]
struct GateState {
    open: bool,
    wakers: Vec<Waker>,
}

impl Gate {
    pub(super) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Answers with the path once the gate is open or `patience` has passed.
    pub(super) fn wait(self: &Arc<Self>, context: &Context<'_>, patience: Duration) -> Step {
        self.state.lock().unwrap().wakers.push(context.waker().clone());
        let deadline = context.now() + patience;
        Step::Wait(Box::new(AtGate { gate: Arc::clone(self), deadline }))
    }

    pub(super) fn open(&self) {
        let mut state = self.state.lock().unwrap();
        state.open = true;
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Wakes all waiting requests spuriously.
    pub(super) fn wake_all(&self) {
        let wakers = self.state.lock().unwrap().wakers.clone();
        wakers.into_iter().for_each(Waker::wake);
    }

    pub(super) fn waiting(&self) -> usize {
        self.state.lock().unwrap().wakers.len()
    }
}

struct AtGate {
    gate: Arc<Gate>,
    deadline: Instant,
}

impl Pending for AtGate {
    fn resume(self: Box<Self>, request: &Request, context: &Context<'_>) -> Step {
        if self.gate.state.lock().unwrap().open {
            return text(echoed(request));
        }
        if context.now() >= self.deadline {
            return Step::Reply(Reply::new(504, Body::Empty));
        }
        Step::Wait(self)
    }

    fn deadline(&self) -> Instant {
        self.deadline
    }
}
