//! What a worker gives the connection it serves: the server's settings and handler, the budget of one time slice, and
//! buffers to borrow.
//!
//! This module must not know connections, threads or the connection table.

use super::handler::Handler;
use super::limits::{HEAD_BYTES_MAX, SLICE_BYTES_MAX, SLICE_REQUESTS_MAX, Settings};
use super::memory::ResponseMemory;
use super::render::DateCache;
use super::reply::Ending;
use super::request::Request;
use super::request_id::RequestIds;
use super::tls::ServerTls;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

/// What all connections of one server share.
pub(super) struct Service {
    pub(super) settings: Settings,
    pub(super) handler: Arc<dyn Handler>,
    /// `None` if clients connect without TLS.
    pub(super) tls: Option<Arc<ServerTls>>,
    pub(super) memory: ResponseMemory,
    pub(super) request_ids: RequestIds,
    cut: AtomicUsize,
    failed_handshakes: AtomicU64,
}

impl Service {
    pub(super) fn new(
        settings: Settings,
        tls: Option<Arc<ServerTls>>,
        handler: Arc<dyn Handler>,
    ) -> Self {
        let memory = ResponseMemory::new(settings.response_memory);
        let (cut, failed_handshakes) = (AtomicUsize::new(0), AtomicU64::new(0));
        let request_ids = RequestIds::new();
        Self { settings, handler, tls, memory, request_ids, cut, failed_handshakes }
    }

    /// Counts a request or response that the drain timeout cut off.
    pub(super) fn count_cut(&self) {
        self.cut.fetch_add(1, Ordering::AcqRel);
    }

    /// How many connections the drain timeout cut off.
    pub(super) fn cut(&self) -> usize {
        self.cut.load(Ordering::Acquire)
    }

    pub(super) fn count_failed_handshake(&self) {
        self.failed_handshakes.fetch_add(1, Ordering::Relaxed);
    }

    /// How many TLS handshakes have failed since the start.
    pub(super) fn failed_handshakes(&self) -> u64 {
        self.failed_handshakes.load(Ordering::Relaxed)
    }
}

/// One worker's state: what is left of the current time slice, and the buffers that connections borrow.
pub(super) struct Worker {
    pub(super) service: Arc<Service>,
    /// When the current time slice began.
    pub(super) now: Instant,
    pub(super) bytes_left: usize,
    pub(super) requests_left: usize,
    pub(super) dates: DateCache,
    pub(super) spare_request: Option<Box<Request>>,
    pub(super) spare_input: Vec<u8>,
    pub(super) spare_head: Vec<u8>,
    /// For files that do not support `sendfile`; allocated on first use.
    pub(super) copy_buffer: Vec<u8>,
}

impl Worker {
    pub(super) fn new(service: Arc<Service>) -> Self {
        Self {
            service,
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

    /// Starts a new time slice with a full budget.
    pub(super) fn begin_slice(&mut self) {
        self.now = Instant::now();
        self.bytes_left = SLICE_BYTES_MAX;
        self.requests_left = SLICE_REQUESTS_MAX;
    }

    /// Reports to the handler how a response ended.
    pub(super) fn report_ending(&self, request: &Request, ending: &Ending) {
        let reported = catch_panic(|| self.service.handler.finished(request, ending));
        if let Err(message) = reported {
            log::error!(path = request.path(), error = message.as_str(); "panic after a response");
        }
    }
}

/// Runs code from outside this module and turns a panic into its message.
pub(super) fn catch_panic<T>(code: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(code)).map_err(|panic| panic_text(&*panic))
}

/// The message of a panic.
pub(super) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "no message".to_owned())
}
