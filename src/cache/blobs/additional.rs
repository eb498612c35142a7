//! Additional connections of a large download, each with a thread of its own and a reserved fetcher.
//!
//! They receive parts ahead of the first connection (`transfer.rs`). A failure ends one of them and returns the rest of its
//! part; only the first connection tries again. A registry that refuses them gets one connection per blob for some time.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::BlobCache;
use super::download::CHUNK_BYTES;
use super::growth::ConnectionPolicy;
use super::transfer::{Next, Part, Transfer};
use crate::cache::job_context::JobContext;
use crate::cache::scheduler::{Class, Reserved};
use crate::cache::{CacheError, lock};
use crate::oci::{Digest, ImageName, Upstream};
use crate::upstream::{BlobAsk, EndpointFailures, Source, UpstreamError};

/// How many registries are remembered that refuse additional connections.
pub(super) const REFUSING_REMEMBERED: usize = 1024;
/// For how long they get one connection per blob: longer if they do not support ranges, which hardly changes.
const WITHOUT_RANGES_FOR: Duration = Duration::from_secs(60 * 60);
const REFUSING_FOR: Duration = Duration::from_secs(10 * 60);
/// How often a connection that waits for a part checks whether its fetcher is needed.
const CHECK_EVERY: Duration = Duration::from_millis(500);

/// What the additional connections of one download need.
#[derive(Clone)]
pub(super) struct Additional {
    pub(super) cache: Arc<BlobCache>,
    pub(super) name: ImageName,
    pub(super) digest: Digest,
    pub(super) class: Class,
    pub(super) transfer: Arc<Transfer>,
}

/// Why a connection ended before its part was complete.
enum Ended {
    /// The part belongs to another connection, or the download has ended.
    Useless,
    /// A job needs the fetcher.
    Needed,
    Failed(CacheError),
}

impl From<CacheError> for Ended {
    fn from(error: CacheError) -> Ended {
        Ended::Failed(error)
    }
}

impl Additional {
    /// Opens the connections that the transfer wants, to the endpoint that sends the blob on the first one, as far as
    /// fetchers are free.
    pub(super) fn open(
        transfer: &Transfer,
        source: &Arc<dyn Source>,
        endpoint: usize,
        of: impl FnOnce() -> Additional,
    ) {
        let now = Instant::now();
        let wanted = transfer.wanted(now);
        if wanted == 0 {
            return;
        }
        let additional = of();
        let mut reserved = Vec::new();
        if !source.is_low_on_pulls() {
            let fetchers = &additional.cache.core.blob_fetchers;
            reserved.extend((0..wanted).map_while(|_| fetchers.reserve(&additional.class)));
        }
        transfer.opened(reserved.len(), now);
        for fetcher in reserved {
            let connection = Connection {
                to: additional.clone(),
                source: Arc::clone(source),
                endpoint,
                is_connected: false,
                is_failed: false,
                _fetcher: fetcher,
            };
            let context = JobContext::current();
            let run = move || context.enter(|| connection.run());
            if let Err(error) = thread::Builder::new().name("blob part".into()).spawn(run) {
                // The connection was dropped, so it counts as failed.
                log::debug!(error:%; "cannot start a thread for a connection");
            }
        }
    }
}

/// One additional connection. Dropping it closes it.
struct Connection {
    to: Additional,
    source: Arc<dyn Source>,
    endpoint: usize,
    /// Whether it has received anything.
    is_connected: bool,
    is_failed: bool,
    _fetcher: Reserved,
}

impl Connection {
    fn run(mut self) {
        loop {
            let part = match self.to.transfer.next_for_additional(Instant::now()) {
                Next::Receive(part) => part,
                Next::Wait if self.is_needed_elsewhere() => return,
                Next::Wait => {
                    self.to.transfer.wait(CHECK_EVERY);
                    continue;
                }
                Next::Nothing => return,
            };
            let ended = self.receive(part);
            self.to.transfer.give_back(part);
            match ended {
                Ok(()) if self.is_needed_elsewhere() => return,
                Ok(()) => {}
                Err(Ended::Useless | Ended::Needed) => return,
                Err(Ended::Failed(error)) => return self.fail(&error),
            }
        }
    }

    fn is_needed_elsewhere(&self) -> bool {
        let core = &self.to.cache.core;
        core.blob_fetchers.is_closed() || core.is_offline() || core.blob_fetchers.has_queued()
    }

    /// Receives a part.
    fn receive(&mut self, part: Part) -> Result<(), Ended> {
        let Additional { cache, name, digest, class, transfer } = &self.to;
        let core = &cache.core;
        let mut body = self
            .source
            .blob(&BlobAsk {
                repository: &name.repository,
                digest,
                from: part.from,
                to: part.to,
                additional_to: Some(self.endpoint),
                endpoint_failures: &EndpointFailures::default(),
            })
            .map_err(|error| Ended::Failed(error.into()))?;
        let end = body.end.filter(|_| body.start == part.from).ok_or(Ended::Useless)?;
        if !transfer.has_size(body.size) {
            return Err(Ended::Useless);
        }
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut at = part.from;
        loop {
            if core.blob_fetchers.is_closed() || core.blob_fetchers.is_contended(class) {
                return Err(Ended::Needed);
            }
            let read = match body.reader.read(&mut chunk) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.broke_off(error).into()),
                Ok(0) if at == end => return Ok(()),
                Ok(0) => return Err(self.broke_off(io::ErrorKind::UnexpectedEof.into()).into()),
                Ok(read) => read,
            };
            let now = Instant::now();
            if !std::mem::replace(&mut self.is_connected, true) {
                transfer.connected(now);
            }
            if at + read as u64 > end {
                return Err(Ended::Useless);
            }
            cache.eviction.admit(read as u64)?;
            core.metrics.fetched_bytes.inc_by(read as u64);
            if !transfer.write(part, at, &chunk[..read], now)? {
                return Err(Ended::Useless);
            }
            at += read as u64;
        }
    }

    fn broke_off(&self, error: io::Error) -> CacheError {
        let request = format!("GET blob {}@{}", self.to.name, self.to.digest);
        UpstreamError::from_body(&request, error).into()
    }

    fn fail(&mut self, error: &CacheError) {
        self.is_failed = true;
        let (name, digest) = (&self.to.name, &self.to.digest);
        log::debug!(digest:%, repository:% = name, error:%; "an additional connection has ended");
        let CacheError::Upstream(error) = error else { return };
        let wait = match error.is_without_ranges() {
            true => WITHOUT_RANGES_FOR,
            false if error.is_refusal() => {
                error.retry_after().unwrap_or_default().max(REFUSING_FOR)
            }
            false => return,
        };
        self.to.cache.note_refusal(&name.upstream, error, wait);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.to.transfer.closed(self.is_failed, self.is_connected, Instant::now());
    }
}

impl BlobCache {
    /// How many connections a large blob of this registry may use.
    pub(super) fn connection_policy(&self, upstream: &Upstream) -> ConnectionPolicy {
        let policy = self.core.settings().connections.clone();
        let refuses_until = lock(&self.refusing).get(upstream).copied();
        match refuses_until.is_some_and(|until| Instant::now() < until) {
            true => ConnectionPolicy { max: 1, ..policy },
            false => policy,
        }
    }

    fn note_refusal(&self, upstream: &Upstream, error: &UpstreamError, wait: Duration) {
        let now = Instant::now();
        let mut refusing = lock(&self.refusing);
        if refusing.get(upstream).is_none_or(|until| *until <= now) {
            log::info!(
                upstream:%, wait_ms = wait.as_secs_f64() * 1e3, error:%;
                "a blob uses one connection for a while"
            );
        }
        refusing.insert(upstream.clone(), now + wait);
    }
}
