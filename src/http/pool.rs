//! The workers, and all that they share.
//!
//! It must not know HTTP: a worker lets a connection go on as far as it can, and then parks it,
//! queues it again or closes it, as the connection says.

use super::connection::{Connection, Turn};
use super::handler::Handler;
use super::limits::{HEAD_BYTES_MAX, Settings, TURN_BYTES_MAX, TURN_REQUESTS_MAX};
use super::memory::ResponseMemory;
use super::parking::{Job, Lot, Stage};
use super::poller;
use super::render::DateCache;
use super::reply::Ending;
use super::request::Request;
use super::tls::ServerTls;
use rustix::fd::OwnedFd;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

/// What all threads of one server share.
pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) handler: Arc<dyn Handler>,
    /// `None` where clients are spoken to in the clear.
    pub(super) tls: Option<Arc<ServerTls>>,
    pub(super) lot: Arc<Lot>,
    pub(super) memory: ResponseMemory,
    pub(super) busy: AtomicUsize,
    /// Connections cut by the drain timeout.
    pub(super) cut: AtomicUsize,
    /// TLS handshakes that came to nothing.
    pub(super) failed_handshakes: AtomicU64,
    pub(super) accepting: AtomicBool,
    /// Ends the listener's wait.
    pub(super) stop: OwnedFd,
    /// Ends the poller's wait.
    pub(super) kick: OwnedFd,
}

impl Shared {
    pub(super) fn accepting(&self) -> bool {
        self.accepting.load(Ordering::Acquire)
    }

    pub(super) fn draining(&self) -> bool {
        self.lot.stage() != Stage::Serving
    }

    /// Goes on to `stage` and makes all who wait look at it.
    pub(super) fn advance(&self, stage: Stage) {
        self.lot.advance(stage);
        ring(&self.stop);
        ring(&self.kick);
    }

    /// The drain timeout cut one connection.
    pub(super) fn note_cut(&self) {
        self.cut.fetch_add(1, Ordering::AcqRel);
    }

    /// A TLS handshake came to nothing.
    pub(super) fn note_failed_handshake(&self) {
        self.failed_handshakes.fetch_add(1, Ordering::Relaxed);
    }

    /// No further connection will be accepted.
    pub(super) fn end_accepting(&self) {
        self.accepting.store(false, Ordering::Release);
        ring(&self.kick);
    }
}

/// Writes to an eventfd, which fails only when it is rung already.
fn ring(bell: &OwnedFd) {
    let _ = rustix::io::write(bell, &1_u64.to_ne_bytes());
}

/// One worker's own things: what a turn may use up, and buffers that connections borrow.
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    /// The time at which this turn began.
    pub(super) now: Instant,
    pub(super) bytes_left: usize,
    pub(super) requests_left: usize,
    pub(super) dates: DateCache,
    pub(super) spare_request: Option<Box<Request>>,
    pub(super) spare_input: Vec<u8>,
    pub(super) spare_head: Vec<u8>,
    /// For bodies where `sendfile` is not possible; made when first needed.
    pub(super) copy_buffer: Vec<u8>,
}

impl Worker {
    fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            now: Instant::now(),
            bytes_left: 0,
            requests_left: 0,
            dates: DateCache::default(),
            spare_request: None,
            spare_input: Vec::with_capacity(HEAD_BYTES_MAX),
            spare_head: Vec::new(),
            copy_buffer: Vec::new(),
        }
    }

    fn run(&mut self) {
        let shared = Arc::clone(&self.shared);
        while let Ok(Job::Serve(connection)) = shared.lot.queue().recv() {
            shared.busy.fetch_add(1, Ordering::Relaxed);
            // Handlers are guarded one by one; this is for our own mistakes. The connection is
            // lost, and its seat is freed by its ticket.
            let turn = catch_unwind(AssertUnwindSafe(|| self.serve(connection)));
            if let Err(panic) = turn {
                log::error!("a connection was lost to a panic: {}", panic_text(&*panic));
            }
            shared.busy.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn serve(&mut self, mut connection: Box<Connection>) {
        loop {
            self.now = Instant::now();
            self.bytes_left = TURN_BYTES_MAX;
            self.requests_left = TURN_REQUESTS_MAX;
            let lot = &Arc::clone(&self.shared.lot);
            match connection.drive(self) {
                Turn::Close => return,
                Turn::Park(parking) => match lot.park(connection, parking) {
                    Ok(()) => return,
                    Err(woken) => connection = woken,
                },
                Turn::Again => {}
            }
            if !lot.queue().is_empty() {
                return lot.enqueue(connection);
            }
        }
    }

    /// Tells the handler how a response ended.
    pub(super) fn tell(&self, request: &Request, ending: &Ending) {
        let told = guard(|| self.shared.handler.finished(request, ending));
        if let Err(message) = told {
            log::error!("panic after the response to {}: {message}", request.path());
        }
    }
}

/// Runs code that is not ours; a panic becomes its message.
pub(super) fn guard<T>(code: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(code)).map_err(|panic| panic_text(&*panic))
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "no message".to_owned())
}

/// The threads behind the listener. Dropping the crew cuts everything and joins them.
pub(super) struct Crew {
    shared: Arc<Shared>,
    poller: Option<JoinHandle<()>>,
    workers: Vec<JoinHandle<()>>,
}

impl Crew {
    /// Starts the poller and all workers.
    pub(super) fn start(shared: &Arc<Shared>) -> std::io::Result<Self> {
        let mut crew = Self { shared: Arc::clone(shared), poller: None, workers: Vec::new() };
        let polled = Arc::clone(shared);
        let builder = Builder::new().name("http-poller".to_owned());
        crew.poller = Some(builder.spawn(move || poller::run(&polled))?);
        for number in 0..shared.settings.workers {
            let shared = Arc::clone(shared);
            let builder = Builder::new().name(format!("http-worker-{number}"));
            crew.workers.push(builder.spawn(move || Worker::new(shared).run())?);
        }
        Ok(crew)
    }

    /// Waits until all connections have ended, then ends all threads.
    pub(super) fn join(&mut self) {
        self.shared.end_accepting();
        if let Some(poller) = self.poller.take()
            && let Err(panic) = poller.join()
        {
            log::error!("the poller panicked: {}", panic_text(&*panic));
        }
        for _ in &self.workers {
            self.shared.lot.stop_one_worker();
        }
        let stuck = self.shared.lot.open();
        if stuck > 0 {
            log::warn!("{stuck} connections are left behind with handlers that do not return");
            self.workers.clear();
        }
        for worker in self.workers.drain(..) {
            // Panics in workers are caught and logged where they happen.
            let _ = worker.join();
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.shared.advance(Stage::Cutting);
        self.join();
    }
}
