//! Pass-through: streams a blob that cannot be stored from the registry to one client, with little memory.
//!
//! When the disk is full or read-only, pulls still succeed, but nothing is shared or stored. The blob is hashed from its
//! first byte, whatever range the client requests, and its last byte is held back until the digest is verified, as in a
//! flight. The fetcher waits as long as the client reads from time to time; the HTTP server closes clients that do not.

use std::collections::VecDeque;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::task::{Poll, Waker};
use std::time::Duration;

use super::BlobCache;
use super::download::{Download, Sink, Waits};
use crate::cache::{CacheError, lock};
use crate::client_address::ClientAddress;
use crate::oci::{Digest, ImageName, Verifier};
use crate::store::IngestError;
use crate::upstream::UpstreamError;

/// How many bytes may be queued between a fetcher and a client.
const WINDOW_BYTES: usize = 1024 * 1024;
/// How often a fetcher that waits for its client checks whether the server is stopping.
const STOP_CHECK_EVERY: Duration = Duration::from_secs(1);

/// The client's end of a pass-through. Dropping it ends the download.
pub struct PassThrough {
    pipe: Arc<Pipe>,
}

#[derive(Default)]
struct Pipe {
    state: Mutex<State>,
    /// Signalled when the client has taken bytes or has left.
    taken: Condvar,
}

#[derive(Default)]
struct State {
    /// The size of the blob in bytes, once the registry has reported it.
    size: Option<u64>,
    /// The offset of the first queued byte.
    position: u64,
    queue: VecDeque<Arc<[u8]>>,
    queued_bytes: usize,
    /// The offset from which the client wants bytes. Earlier bytes are not queued.
    wanted_from: u64,
    failure: Option<CacheError>,
    waker: Option<Waker>,
    is_abandoned: bool,
}

impl State {
    fn queued_end(&self) -> u64 {
        self.position + self.queued_bytes as u64
    }

    /// Drops the queued bytes before `wanted_from`.
    fn trim(&mut self) {
        while let Some(first) = self.queue.front() {
            let end = self.position + first.len() as u64;
            if end > self.wanted_from {
                return;
            }
            self.position = end;
            self.queued_bytes -= first.len();
            self.queue.pop_front();
        }
    }
}

impl Pipe {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Changes the state and wakes the client.
    fn change(&self, change: impl FnOnce(&mut State)) {
        let waker = {
            let mut state = self.state();
            change(&mut state);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl PassThrough {
    /// The size of the blob (not of the range) in bytes, once the registry has reported it.
    pub fn poll_size(&self, waker: &Waker) -> Poll<Result<u64, CacheError>> {
        let mut state = self.pipe.state();
        match (state.size, &state.failure) {
            (Some(size), _) => Poll::Ready(Ok(size)),
            (None, Some(failure)) => Poll::Ready(Err(failure.clone())),
            (None, None) => {
                state.waker = Some(waker.clone());
                Poll::Pending
            }
        }
    }

    /// The next bytes, from `position` on. `position` must not decrease.
    pub fn poll_bytes(&self, position: u64, waker: &Waker) -> Poll<Result<Arc<[u8]>, CacheError>> {
        let mut state = self.pipe.state();
        state.wanted_from = position;
        state.trim();
        self.pipe.taken.notify_one();
        if let Some(first) = state.queue.front() {
            let offset = position.checked_sub(state.position).map(usize::try_from);
            return Poll::Ready(match offset {
                Some(Ok(0)) => Ok(Arc::clone(first)),
                // Less than the length of the first piece: earlier pieces were trimmed.
                Some(Ok(offset)) => Ok(Arc::from(&first[offset..])),
                // These bytes were dropped already.
                Some(Err(_)) | None => Err(CacheError::GivenUp),
            });
        }
        match &state.failure {
            Some(failure) => Poll::Ready(Err(failure.clone())),
            None => {
                state.waker = Some(waker.clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for PassThrough {
    fn drop(&mut self) {
        let mut state = self.pipe.state();
        state.is_abandoned = true;
        state.queue.clear();
        state.waker = None;
        drop(state);
        self.pipe.taken.notify_one();
    }
}

/// The part of a blob that a client has already received from the file of an interrupted flight. It is not verified, so
/// the pass-through must deliver the same bytes.
pub struct AlreadySent {
    /// The flight's file.
    pub file: Arc<File>,
    /// The offsets of the bytes that the client has received. The client of a range has received none before its
    /// beginning, and the file may not even have them.
    pub range: Range<u64>,
}

/// The fetcher's end. Dropping it before the end of the blob reports a failure to the client.
struct PassThroughWriter {
    pipe: Arc<Pipe>,
}

impl PassThroughWriter {
    fn fail(&self, error: CacheError) {
        self.pipe.change(|state| {
            state.failure.get_or_insert(error);
        });
    }

    /// Appends bytes to the queue, once it has space for them.
    fn push(&self, cache: &BlobCache, bytes: &[u8]) -> Result<(), CacheError> {
        let mut state = self.pipe.state();
        loop {
            cache.core.stop_if_closed()?;
            if state.is_abandoned {
                return Err(CacheError::GivenUp);
            }
            let end = state.queued_end() + bytes.len() as u64;
            if state.queue.is_empty() && end <= state.wanted_from {
                state.position = end;
                return Ok(());
            }
            if state.queued_bytes < WINDOW_BYTES {
                break;
            }
            let waited = self.pipe.taken.wait_timeout(state, STOP_CHECK_EVERY);
            // The state remains valid after a panic elsewhere, as the tables do (see `lock`).
            state = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
        drop(state);
        self.pipe.change(|state| {
            state.queued_bytes += bytes.len();
            state.queue.push_back(bytes.into());
        });
        Ok(())
    }
}

impl Drop for PassThroughWriter {
    fn drop(&mut self) {
        // Has no effect after a complete transfer.
        self.fail(CacheError::GivenUp);
    }
}

/// Sends a blob to one client, except the last byte.
struct ToClient<'a> {
    cache: &'a BlobCache,
    what: String,
    writer: &'a PassThroughWriter,
    verifier: Verifier,
    bytes_written: u64,
    /// The blob's last byte, held back until the digest is verified.
    last: Option<u8>,
    already_sent: Option<AlreadySent>,
}

impl ToClient<'_> {
    /// Compares received bytes with those that were already sent to the client.
    fn compare(&self, bytes: &[u8]) -> Result<(), CacheError> {
        let Some(AlreadySent { file, range }) = &self.already_sent else { return Ok(()) };
        let within = |offset: u64| {
            let offset = usize::try_from(offset.saturating_sub(self.bytes_written));
            offset.map_or(bytes.len(), |offset| offset.min(bytes.len()))
        };
        let (first, end) = (within(range.start), within(range.end));
        let received = &bytes[first.min(end)..end];
        let mut sent = vec![0; received.len()];
        match file.read_exact_at(&mut sent, self.bytes_written + first as u64) {
            Ok(()) if sent == received => Ok(()),
            _ => {
                let reason = "it differs from the bytes that were sent before the disk failed";
                Err(UpstreamError::bad_answer(&self.what, reason).into())
            }
        }
    }
}

impl Sink for ToClient<'_> {
    fn bytes_written(&self) -> u64 {
        self.bytes_written
    }

    fn begin(&mut self, size: Option<u64>) -> Result<(), CacheError> {
        let Some(size) = size else {
            // Clients need a length, and the bytes cannot be stored until it is known.
            let reason =
                "the registry does not report the size of this blob, which cannot be cached";
            return Err(UpstreamError::bad_answer(&self.what, reason).into());
        };
        self.writer.pipe.change(|state| state.size = Some(size));
        Ok(())
    }

    fn write(&mut self, _at: u64, bytes: &[u8], size: Option<u64>) -> Result<(), CacheError> {
        self.compare(bytes)?;
        self.cache.core.metrics.fetched_bytes.inc_by(bytes.len() as u64);
        self.verifier.update(bytes);
        self.bytes_written += bytes.len() as u64;
        let shown = match bytes.split_last() {
            Some((last, shown)) if Some(self.bytes_written) == size => {
                self.last = Some(*last);
                shown
            }
            _ => bytes,
        };
        if shown.is_empty() { Ok(()) } else { self.writer.push(self.cache, shown) }
    }

    fn is_short(&self) -> Result<bool, CacheError> {
        // A pass-through always has a size.
        Ok(false)
    }

    fn waits_for(&self) -> Waits {
        Waits::OneClient
    }

    /// Operators cancel downloads into the cache; this one ends with its client.
    fn is_cancelled(&self) -> bool {
        false
    }
}

impl BlobCache {
    /// Passes a blob through to one client without storing it, after a flight that failed because of the disk, and
    /// from which the client may have received something.
    pub(in crate::cache) fn pass_through(
        self: &Arc<Self>,
        name: &ImageName,
        digest: &Digest,
        size_hint: Option<u64>,
        already_sent: Option<AlreadySent>,
        client: Option<ClientAddress>,
    ) -> PassThrough {
        let pipe = Arc::new(Pipe::default());
        let writer = PassThroughWriter { pipe: Arc::clone(&pipe) };
        let purpose = match self.core.purpose(name, client) {
            Ok(purpose) => purpose,
            Err(error) => {
                writer.fail(error);
                return PassThrough { pipe };
            }
        };
        let (cache, name, digest) = (Arc::clone(self), name.clone(), *digest);
        let client = Arc::clone(&pipe);
        let is_wanted = move || !client.state().is_abandoned;
        self.core.blob_fetchers.submit(purpose, is_wanted, move || {
            log::warn!(
                digest:%, repository:% = name; "streaming the blob to a client without caching it"
            );
            cache.core.metrics.not_cached("blob");
            if let Err(error) = cache.pass_blob(&name, &digest, size_hint, already_sent, &writer) {
                // A client that has left is no failure.
                if !writer.pipe.state().is_abandoned {
                    error.log_blob(&name, &digest, true);
                }
                writer.fail(error);
            }
        });
        PassThrough { pipe }
    }
}

impl BlobCache {
    fn pass_blob(
        &self,
        name: &ImageName,
        digest: &Digest,
        size_hint: Option<u64>,
        already_sent: Option<AlreadySent>,
        writer: &PassThroughWriter,
    ) -> Result<(), CacheError> {
        let sink = ToClient {
            cache: self,
            what: format!("{name}@{digest}"),
            writer,
            verifier: Verifier::new(digest.algorithm()),
            bytes_written: 0,
            last: None,
            already_sent,
        };
        let mut download = Download::new(self, name, *digest, size_hint, sink);
        download.run()?;
        let actual = download.sink.verifier.clone().finish();
        if actual != *digest {
            self.note_wrong(&(name.upstream.clone(), *digest), download.failures_of_senders());
            let wrong = IngestError::WrongDigest { expected: *digest, actual: actual.into() };
            return Err(CacheError::from(wrong).sent_by(download.urls_of_senders()));
        }
        download.log_finished(download.sink.bytes_written);
        download.sink.last.map_or(Ok(()), |last| writer.push(self, &[last]))
    }
}
