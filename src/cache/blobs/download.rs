//! A download of one blob: over as many connections as it takes, into whatever takes its bytes.
//!
//! Asks for what is missing, takes what comes, and when that breaks off waits and goes on behind it,
//! at another endpoint if there is one. What becomes of the bytes is its [`Sink`]'s business: the store
//! (`fetch.rs`) or one client (`pass_through.rs`).

use std::io;
use std::time::{Duration, Instant, SystemTime};

use super::BlobCache;
use super::retry::Retries;
use crate::cache::CacheError;
use crate::cache::scheduler::Class;
use crate::oci::{Digest, ImageName};
use crate::store::IngestError;
use crate::units::{duration, plural, size};
use crate::upstream::{BlobAsk, EndpointFailures, UpstreamError};

/// How much is read from upstream at a time: large enough that system calls cost nothing beside the
/// hash, small enough that the first bytes leave at once.
const CHUNK_BYTES: usize = 128 * 1024;

/// How often a download that waits looks whether its fetcher is of more use elsewhere.
const USE_LOOK_EVERY: Duration = Duration::from_millis(500);

/// Takes the bytes of a download.
pub(super) trait Sink {
    /// How many of the blob's bytes it has.
    fn bytes_written(&self) -> u64;

    /// Upstream has answered, and `size` is what the blob will have, where that is known. Called for
    /// each connection; a size that was told once does not change.
    fn begin(&mut self, size: Option<u64>) -> Result<(), CacheError>;

    /// Appends bytes.
    fn write(&mut self, bytes: &[u8], size: Option<u64>) -> Result<(), CacheError>;

    /// Whether a body that ended here, of a blob whose size the registry does not tell, is probably not complete.
    fn is_short(&self) -> bool;

    /// Whether the download can give up its fetcher and continue later.
    fn waits_for(&self) -> Waits;
}

/// The clients of a download.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waits {
    /// One or more clients follow it. It can be suspended.
    Followers,
    /// None: it is finished for later requests. It can be suspended.
    Nobody,
    /// One client receives it as it arrives, and it is not stored. It cannot be suspended.
    OneClient,
}

/// A download that is slower than the minimum rate over this time gives up its fetcher if another job needs it.
const PROGRESS_WINDOW: Duration = Duration::from_secs(60);

/// How much came in the current [`PROGRESS_WINDOW`].
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
    /// Whether the sink was told that size.
    is_begun: bool,
    endpoint_failures: EndpointFailures,
    /// The endpoints that sent bytes.
    senders: Vec<usize>,
    /// With whom it shares fetchers.
    class: Class,
    progress: Progress,
    pub(super) chunk: Vec<u8>,
    pub(super) sink: S,
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
            chunk: vec![0; CHUNK_BYTES],
            sink,
        }
    }

    /// Names the blob for messages.
    pub(super) fn what(&self) -> String {
        format!("{}@{}", self.name, self.digest)
    }

    /// Downloads what is missing, over as many connections as it takes.
    pub(super) fn run(&mut self) -> Result<(), CacheError> {
        let mut retries = Retries::new(self.cache.core.settings().retry.clone());
        loop {
            let Err(error) = self.receive() else { return Ok(()) };
            let CacheError::Upstream(upstream) = &error else { return Err(error) };
            if !upstream.is_temporary() {
                return Err(error);
            }
            let (reached, asked) = (self.sink.bytes_written(), upstream.retry_after());
            let Some(wait) = retries.next_wait(reached, asked, self.spread()) else {
                return Err(error);
            };
            self.cache.core.metrics.retries.inc();
            log::warn!(
                "{}: {error}; {} received, resuming in {}",
                self.what(),
                size(reached),
                duration(wait)
            );
            self.pause(wait)?;
        }
    }

    /// Waits before another try, unless the fetcher is of more use elsewhere.
    fn pause(&self, wait: Duration) -> Result<(), CacheError> {
        let end = Instant::now() + wait;
        loop {
            self.stop_if_unwanted()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.cache.core.blob_fetchers.pause(left.min(USE_LOOK_EVERY));
        }
    }

    /// The endpoints that sent something, each a demerit more: together they sent something wrong.
    pub(super) fn blame(&self) -> EndpointFailures {
        let mut endpoint_failures = self.endpoint_failures.clone();
        self.senders.iter().for_each(|endpoint| endpoint_failures.add(*endpoint));
        endpoint_failures
    }

    /// One connection: asks for what is missing and takes what comes.
    fn receive(&mut self) -> Result<(), CacheError> {
        let source = self.cache.core.source(&self.name.upstream)?;
        loop {
            self.cache.core.stop_if_offline()?;
            self.stop_if_unwanted()?;
            let begun = source.blob(&BlobAsk {
                repository: &self.name.repository,
                digest: &self.digest,
                from: self.sink.bytes_written(),
                endpoint_failures: &self.endpoint_failures,
            });
            self.cache.note_outcome(self.name, &self.digest, &begun);
            let mut body = begun?;
            if !self.senders.contains(&body.endpoint) {
                self.senders.push(body.endpoint);
            }
            let received = self.receive_body(body.start, body.size, &mut *body.reader);
            let Err(error) = received else { return Ok(()) };
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
            log::warn!("{}: {error}; asking another endpoint", self.what());
        }
    }

    fn receive_body(
        &mut self,
        start: u64,
        size: Option<u64>,
        reader: &mut dyn io::Read,
    ) -> Result<(), CacheError> {
        let have = self.sink.bytes_written();
        self.settle_size(size, have)?;
        self.is_begun = true;
        self.sink.begin(self.size)?;
        // A registry that does not do ranges begins anew; what was had before is passed over.
        let mut surplus = have - start.min(have);
        loop {
            self.stop_if_unwanted()?;
            let read = match reader.read(&mut self.chunk) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result.map_err(|error| self.broke_off(error))?,
            };
            if read == 0 {
                return self.check_end(surplus);
            }
            let passed_over = surplus.min(read as u64);
            surplus -= passed_over;
            self.progress.add(read as u64, Instant::now(), self.cache.core.settings().minimum_rate);
            // Both are at most `read`, which is a `usize`.
            let fresh = &self.chunk[passed_over as usize..read];
            let written = self.sink.bytes_written() + fresh.len() as u64;
            if let Some(expected) = self.size.filter(|size| written > *size) {
                return Err(IngestError::WrongSize { expected, actual: written }.into());
            }
            self.sink.write(fresh, self.size)?;
        }
    }

    /// The server stops, or somebody has cancelled it.
    fn stop_if_unwanted(&self) -> Result<(), CacheError> {
        self.cache.core.stop_if_closed()?;
        match self.cache.is_cancelled(&self.name.upstream, &self.digest) {
            true => Err(CacheError::GivenUp),
            false if self.should_be_suspended() => Err(CacheError::Suspended),
            false => Ok(()),
        }
    }

    /// Whether a client's job needs the fetcher more: this download has no followers, or makes too little progress.
    fn should_be_suspended(&self) -> bool {
        let is_dispensable = match self.sink.waits_for() {
            Waits::Nobody => true,
            Waits::Followers => self.progress.is_slow,
            Waits::OneClient => false,
        };
        is_dispensable && self.cache.core.blob_fetchers.is_contended(&self.class)
    }

    fn broke_off(&self, error: io::Error) -> CacheError {
        let request = format!("GET blob {}", self.what());
        CacheError::Upstream(UpstreamError::from_body(&request, error))
    }

    /// Decides which size this download has, of which the last byte will be held back.
    ///
    /// Clients compute their `Content-Length` from it, so it cannot change once they were told: with
    /// another one, a byte that is not the last for us would be the last for them.
    fn settle_size(&mut self, told: Option<u64>, have: u64) -> Result<(), CacheError> {
        let bad = |reason: String| {
            let request = format!("GET blob {}", self.what());
            CacheError::from(UpstreamError::bad_answer(&request, reason))
        };
        match (told, self.size) {
            (Some(told), Some(before)) if self.is_begun && told != before => {
                return Err(bad(format!(
                    "it has {} now and had {before} before",
                    plural(told, "byte")
                )));
            }
            (Some(0), _) if !self.digest.is_of_nothing() => {
                return Err(bad("an empty body for content that is not empty".into()));
            }
            _ => self.size = told.or(self.size),
        }
        match self.size {
            Some(expected) if expected < have => {
                Err(IngestError::WrongSize { expected, actual: have }.into())
            }
            _ => Ok(()),
        }
    }

    /// Whether the end of a body is the end of the blob. Where the size is known, an early end is a
    /// broken connection that was closed politely; where it is not, only the digest can tell.
    fn check_end(&self, surplus: u64) -> Result<(), CacheError> {
        match self.size {
            Some(size) if self.sink.bytes_written() < size || surplus > 0 => {
                Err(self.broke_off(io::ErrorKind::UnexpectedEof.into()))
            }
            None if self.sink.is_short() => {
                Err(self.broke_off(io::ErrorKind::UnexpectedEof.into()))
            }
            _ => Ok(()),
        }
    }

    /// A number from 0 to 1 that differs from download to download; it need not be more random.
    fn spread(&self) -> f64 {
        let since_epoch = self.cache.core.now().duration_since(SystemTime::UNIX_EPOCH);
        f64::from(since_epoch.map_or(0, |since| since.subsec_nanos()) % 1000) / 1000.0
    }
}
