//! Downloads one blob into a [`Sink`], over as many connections as necessary.
//!
//! A download requests the missing bytes. If the connection breaks off, it waits and resumes, at another endpoint if
//! there is one. The sink writes to the store (`fetch.rs`) or to one client (`pass_through.rs`).

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::BlobCache;
use super::progress_log::ProgressLog;
use super::retry::Retries;
use super::transfer::{Next, Part};
use crate::cache::CacheError;
use crate::cache::scheduler::Class;
use crate::oci::{Digest, ImageName};
use crate::store::IngestError;
use crate::units::plural;
use crate::upstream::{BlobAsk, BlobBody, EndpointFailures, EndpointKind, Source, UpstreamError};

/// How much is read from the registry at a time: large enough that system calls are cheap compared with hashing, small
/// enough that the first bytes are forwarded at once.
pub(super) const CHUNK_BYTES: usize = 128 * 1024;

/// How often a waiting download checks whether another job needs its fetcher.
const CONTENTION_CHECK_EVERY: Duration = Duration::from_millis(500);

/// A download that has received a response is not suspended for a client if so little is left: it ends sooner than
/// another one could begin in its place, and its request would have to be sent again.
const FINISHED_BYTES_MAX: u64 = 256 * 1024;

/// Receives the bytes of a download.
pub(super) trait Sink {
    /// How many bytes of the blob, from its beginning, were written so far.
    fn bytes_written(&self) -> u64;

    /// How many bytes of the blob were received so far, wherever they are.
    fn bytes_received(&self) -> u64 {
        self.bytes_written()
    }

    /// The part to request next. The former part ends, complete or not.
    fn next_part(&mut self) -> Next {
        Next::Receive(Part::all_from(self.bytes_written()))
    }

    /// Waits because of [`Next::Wait`].
    fn wait(&self) {}

    /// Whether bytes of the blob may be missing after the end of a part.
    fn has_parts(&self) -> bool {
        false
    }

    /// Called when a connection has failed, before another attempt.
    fn failed(&mut self, _error: &UpstreamError) {}

    /// Called when the registry has responded, for each connection. `size` is the size of the blob, if it is known;
    /// once reported, it does not change.
    fn begin(&mut self, size: Option<u64>) -> Result<(), CacheError>;

    /// Called if the registry sends the complete blob in place of the part: all that is missing is received now.
    fn receive_all(&mut self) {}

    /// Writes bytes at an offset, which is the end of the written bytes of the part.
    fn write(&mut self, at: u64, bytes: &[u8], size: Option<u64>) -> Result<(), CacheError>;

    /// Called after each write, with the endpoint that sends the blob: may open more connections to it.
    fn open_connections(&mut self, _source: &Arc<dyn Source>, _endpoint: usize) {}

    /// Whether a body that ended here is probably incomplete. For blobs whose size the registry does not report.
    fn is_short(&self) -> Result<bool, CacheError>;

    /// Whether the download can give up its fetcher and continue later.
    fn waits_for(&self) -> Waits;

    /// Whether an operator has cancelled the download.
    fn is_cancelled(&self) -> bool;
}

/// The clients of a download.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waits {
    /// One or more clients follow it. It can be suspended.
    Followers,
    /// None: it is finished for later requests. It can be suspended.
    NoClient,
    /// One client receives it as it arrives, and it is not stored. It cannot be suspended.
    OneClient,
}

/// A download that is slower than the minimum rate over this time gives up its fetcher if another job needs it.
const PROGRESS_WINDOW: Duration = Duration::from_secs(60);

/// The bytes received in the current [`PROGRESS_WINDOW`].
struct Progress {
    since: Instant,
    bytes: u64,
    is_slow: bool,
}

impl Progress {
    fn new(now: Instant) -> Progress {
        Progress { since: now, bytes: 0, is_slow: false }
    }

    fn add(&mut self, bytes: u64, now: Instant, minimum_rate: u64) {
        self.bytes += bytes;
        let elapsed = now.duration_since(self.since);
        if elapsed >= PROGRESS_WINDOW {
            self.is_slow = self.bytes < minimum_rate.saturating_mul(elapsed.as_secs());
            self.since = now;
            self.bytes = 0;
        }
    }
}

/// A download under way.
pub(super) struct Download<'a, S> {
    cache: &'a BlobCache,
    name: &'a ImageName,
    digest: Digest,
    /// The size of the blob, once it is known.
    size: Option<u64>,
    /// Whether that size was reported to the sink.
    is_begun: bool,
    endpoint_failures: EndpointFailures,
    /// What sent bytes.
    senders: Vec<Sender>,
    /// The class whose share of fetchers it uses.
    class: Class,
    progress: Progress,
    /// `None` until a response was received.
    log: Option<ProgressLog>,
    pub(super) sink: S,
}

/// An endpoint that sent bytes of a blob.
#[derive(PartialEq, Eq)]
struct Sender {
    /// Its position, for [`EndpointFailures`].
    endpoint: usize,
    kind: EndpointKind,
    url: String,
}

impl<'a, S: Sink> Download<'a, S> {
    pub(super) fn new(
        cache: &'a BlobCache,
        name: &'a ImageName,
        digest: Digest,
        size: Option<u64>,
        sink: S,
    ) -> Download<'a, S> {
        Download {
            cache,
            name,
            digest,
            size,
            is_begun: false,
            endpoint_failures: cache.endpoint_failures(name, &digest),
            senders: Vec::new(),
            class: cache.core.class_of(&name.upstream),
            progress: Progress::new(Instant::now()),
            log: None,
            sink,
        }
    }

    /// Names the blob for messages.
    pub(super) fn what(&self) -> String {
        format!("{}@{}", self.name, self.digest)
    }

    /// Downloads the missing bytes, over as many connections as necessary.
    pub(super) fn run(&mut self) -> Result<(), CacheError> {
        let mut retries = Retries::new(self.cache.core.settings().retry.clone());
        loop {
            let Err(error) = self.receive() else { return Ok(()) };
            let CacheError::Upstream(upstream) = &error else { return Err(error) };
            if !upstream.is_temporary() {
                return Err(error);
            }
            self.sink.failed(upstream);
            let (reached, asked) = (self.sink.bytes_received(), upstream.retry_after());
            let Some(wait) = retries.next_wait(reached, asked, self.spread()) else {
                return Err(error);
            };
            self.cache.core.metrics.retries.inc();
            log::warn!(
                digest:% = self.digest, received_bytes = reached,
                wait_ms = wait.as_secs_f64() * 1e3, repository:% = self.name, error:%;
                "download interrupted; it is resumed"
            );
            self.pause(wait)?;
        }
    }

    /// Waits before the next attempt, unless another job needs the fetcher.
    fn pause(&self, wait: Duration) -> Result<(), CacheError> {
        let end = Instant::now() + wait;
        loop {
            self.stop_if_unwanted()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.cache.core.blob_fetchers.pause(left.min(CONTENTION_CHECK_EVERY));
        }
    }

    /// The endpoint failures, with one more for each endpoint that sent bytes: together they sent wrong content.
    pub(super) fn failures_of_senders(&self) -> EndpointFailures {
        let mut endpoint_failures = self.endpoint_failures.clone();
        self.senders.iter().for_each(|sender| endpoint_failures.add(sender.endpoint));
        endpoint_failures
    }

    /// The URLs of the endpoints that sent bytes, for the log.
    pub(super) fn urls_of_senders(&self) -> String {
        let urls: Vec<&str> = self.senders.iter().map(|sender| sender.url.as_str()).collect();
        urls.join(",")
    }

    /// Logs the end, with the size of the verified blob in bytes. A complete partial needs no download.
    pub(super) fn log_finished(&self, size: u64) {
        if let Some(log) = &self.log {
            log.finish(
                self.name,
                &self.digest,
                size,
                self.senders.iter().map(|sender| sender.kind),
            );
        }
    }

    /// Logs that the download was suspended.
    pub(super) fn log_suspended(&self) {
        if let Some(log) = &self.log {
            log.suspend(self.name, &self.digest, self.sink.bytes_received());
        }
    }

    /// Whether the bucket sent bytes, and whether nobody else did. An earlier download (not `is_new`) may have got bytes
    /// from elsewhere.
    pub(super) fn bucket_has_sent(&self, is_new: bool) -> (bool, bool) {
        let is_bucket = |sender: &Sender| sender.kind == EndpointKind::Bucket;
        (self.senders.iter().any(is_bucket), is_new && self.senders.iter().all(is_bucket))
    }

    /// Whether all bytes of this download came from the registry itself.
    pub(super) fn is_from_registry(&self) -> bool {
        !self.senders.is_empty()
            && self.senders.iter().all(|sender| sender.kind == EndpointKind::Registry)
    }

    /// Requests the missing bytes and writes them, over one connection to each endpoint it tries.
    fn receive(&mut self) -> Result<(), CacheError> {
        let source = self.cache.core.source(&self.name.upstream)?;
        loop {
            self.cache.core.stop_if_offline(&*source)?;
            self.stop_if_unwanted()?;
            let part = match self.sink.next_part() {
                Next::Receive(part) => part,
                Next::Wait => {
                    self.sink.wait();
                    continue;
                }
                Next::Nothing => return Ok(()),
            };
            let begun = source.blob(&BlobAsk {
                repository: &self.name.repository,
                digest: &self.digest,
                from: part.from,
                to: part.to,
                additional_to: None,
                endpoint_failures: &self.endpoint_failures,
            });
            // What others have says nothing about the registry.
            if begun.as_ref().map_or(true, |body| body.sender == EndpointKind::Registry) {
                self.cache.note_outcome(&*source, self.name, &self.digest, &begun);
            }
            let mut body = begun?;
            let sender =
                Sender { endpoint: body.endpoint, kind: body.sender, url: body.url.clone() };
            if !self.senders.contains(&sender) {
                self.senders.push(sender);
            }
            if self.log.is_none() {
                let (size, received) = (body.size.or(self.size), self.sink.bytes_received());
                let log = ProgressLog::start(self.name, &self.digest, size, received, &body);
                self.log = Some(log);
            }
            let Err(error) = self.receive_body(part, &mut body, &source) else {
                match self.sink.has_parts() && self.size.is_some() {
                    true => continue,
                    false => return Ok(()),
                }
            };
            if !matches!(&error, CacheError::Upstream(error) if error.is_temporary()) {
                return Err(error);
            }
            // Tries another endpoint without a backoff, but only once: an endpoint that never sends anything has no
            // failures, and must not cause endless requests to one that breaks off again and again.
            let broke_off_before = self.endpoint_failures.of(body.endpoint) > 0;
            self.endpoint_failures.add(body.endpoint);
            if broke_off_before || !self.endpoint_failures.has_clean_endpoint(source.endpoints()) {
                return Err(error);
            }
            log::warn!(
                digest:% = self.digest, repository:% = self.name, error:%;
                "download interrupted; trying another endpoint"
            );
        }
    }

    fn receive_body(
        &mut self,
        part: Part,
        body: &mut BlobBody,
        source: &Arc<dyn Source>,
    ) -> Result<(), CacheError> {
        self.settle_size(body.size, part.from)?;
        self.is_begun = true;
        self.sink.begin(self.size)?;
        // A registry without support for ranges starts from the beginning; bytes that were received before are skipped.
        let mut surplus = part.from - body.start.min(part.from);
        if surplus > 0 || (part.to.is_some() && body.end.is_none()) {
            self.sink.receive_all();
        }
        let end = body.end.or(self.size);
        // Most layers of some images are smaller than a chunk, and one byte more shows that a body is too long.
        let left = end.map_or(u64::MAX, |end| end.saturating_sub(body.start).saturating_add(1));
        let mut chunk = vec![0; usize::try_from(left).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES)];
        let mut at = part.from;
        loop {
            self.stop_if_unwanted()?;
            let read = match body.reader.read(&mut chunk) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result.map_err(|error| self.broke_off(error))?,
            };
            if read == 0 {
                return self.check_end(at, end, surplus);
            }
            let skipped = surplus.min(read as u64);
            surplus -= skipped;
            self.progress.add(read as u64, Instant::now(), self.cache.core.settings().minimum_rate);
            // Both are at most `read`, which is a `usize`.
            let fresh = &chunk[skipped as usize..read];
            let written = at + fresh.len() as u64;
            if let Some(expected) = end.filter(|end| written > *end) {
                return Err(IngestError::WrongSize { expected, actual: written }.into());
            }
            self.sink.write(at, fresh, self.size)?;
            at = written;
            self.sink.open_connections(source, body.endpoint);
        }
    }

    /// Ends the download if the server is stopping, an operator has cancelled it, or another job needs the fetcher.
    fn stop_if_unwanted(&self) -> Result<(), CacheError> {
        self.cache.core.stop_if_closed()?;
        match self.sink.is_cancelled() {
            true => Err(CacheError::GivenUp),
            false if self.should_be_suspended() => Err(CacheError::Suspended),
            false => Ok(()),
        }
    }

    /// Whether a client's job needs the fetcher more: this download has no followers, or makes too little progress.
    fn should_be_suspended(&self) -> bool {
        let left = self.size.map(|size| size.saturating_sub(self.sink.bytes_received()));
        let is_dispensable = match self.sink.waits_for() {
            Waits::NoClient if self.is_begun => left.is_none_or(|left| left > FINISHED_BYTES_MAX),
            Waits::NoClient => true,
            Waits::Followers => self.progress.is_slow,
            Waits::OneClient => false,
        };
        is_dispensable && self.cache.core.blob_fetchers.is_contended(&self.class)
    }

    fn broke_off(&self, error: io::Error) -> CacheError {
        let request = format!("GET blob {}", self.what());
        CacheError::Upstream(UpstreamError::from_body(&request, error))
    }

    /// Decides the size of the blob, and with it which byte is the last, which is held back.
    ///
    /// Clients receive it as `Content-Length`, so it cannot change after that. Otherwise a byte that is not the last
    /// here could be the last for them.
    fn settle_size(&mut self, reported: Option<u64>, have: u64) -> Result<(), CacheError> {
        let bad = |reason: String| {
            let request = format!("GET blob {}", self.what());
            CacheError::from(UpstreamError::bad_answer(&request, reason))
        };
        match (reported, self.size) {
            (Some(now), Some(before)) if self.is_begun && now != before => {
                return Err(bad(format!(
                    "its size changed from {before} to {}",
                    plural(now, "byte")
                )));
            }
            (Some(0), _) if !self.digest.is_of_nothing() => {
                // Wrong content, so that another endpoint is asked.
                let actual = Box::new(Digest::of(self.digest.algorithm(), b""));
                return Err(IngestError::WrongDigest { expected: self.digest, actual }.into());
            }
            _ => self.size = reported.or(self.size),
        }
        match self.size {
            Some(expected) if expected < have => {
                Err(IngestError::WrongSize { expected, actual: have }.into())
            }
            _ => Ok(()),
        }
    }

    /// Checks that the end of a body, after `at` bytes of the blob, is the end of its part or of the blob. If that is known,
    /// an early end counts as a broken connection. If it is not, only the digest shows whether the blob is complete.
    fn check_end(&self, at: u64, end: Option<u64>, surplus: u64) -> Result<(), CacheError> {
        match end {
            Some(end) if at < end || surplus > 0 => {
                Err(self.broke_off(io::ErrorKind::UnexpectedEof.into()))
            }
            None if self.sink.is_short()? => {
                Err(self.broke_off(io::ErrorKind::UnexpectedEof.into()))
            }
            _ => Ok(()),
        }
    }

    /// A number from 0 to 1 that differs between downloads. It need not be random.
    fn spread(&self) -> f64 {
        let since_epoch = self.cache.core.now().duration_since(SystemTime::UNIX_EPOCH);
        f64::from(since_epoch.map_or(0, |since| since.subsec_nanos()) % 1000) / 1000.0
    }
}
