//! The work of a blob flight, on a fetcher: check the store again, ingest, verify, commit.
//!
//! This module decides which bytes readers may receive, and so keeps promise 1: [`ToStore::show`] never includes the
//! last byte of a blob, and the announced size does not change.
//!
//! Wrong content ends the flight. Its followers have already received some of it, so their connections are closed. The
//! blob is then fetched once more from its beginning, by another flight, for clients that retry. Endpoints that sent
//! wrong content are tried last from then on.

use std::sync::Arc;
use std::time::Duration;

use super::download::{CHUNK_BYTES, Download, Sink, Waits};
use super::{BlobCache, BlobKey, BlobLeader, Incoming, SizeSource};
use crate::cache::{CacheError, lock};
use crate::oci::{Digest, ImageName};
use crate::store::{Begin, Blob, Ingest, StoreError, Verified};
use crate::units::{plural, size};
use crate::upstream::{EndpointFailures, UpstreamError};

/// How often to check whether another process has finished a partial download, and the maximum number of checks: a
/// minute in total, after which the client may retry.
const OTHER_PROCESS_CHECK_EVERY: Duration = Duration::from_millis(250);
const OTHER_PROCESS_CHECKS_MAX: u32 = 240;
/// The maximum size of a blob whose size the registry does not report. Hardly any layer is larger, and registries
/// report the size of such layers.
const UNKNOWN_SIZE_MAX: u64 = 16 * 1024 * 1024 * 1024;
/// A smaller blob gets no note of its origin: after a restart it is downloaded again when a client requests it, which
/// takes less time than it takes to write a note for each blob.
const NOTED_BYTES_MIN: u64 = 512 * 1024;
/// A blob of at most this size is announced with its first bytes, or with all of them, so that a client that waits for
/// it is woken once instead of three times. Its header would arrive hardly earlier.
const ANNOUNCED_LATE_MAX: u64 = 64 * 1024;

/// What a fetch has produced.
pub(super) enum Fetched {
    /// The store has the blob.
    Stored(Blob),
    /// It is complete, and its followers may receive all of it. It has no name yet.
    Verified(Box<Verified>),
}

impl BlobCache {
    /// The work of a blob flight, on a fetcher: check the store again, ingest, verify.
    ///
    /// `suspended` is the ingest of the flight if its download was suspended before, and receives it if it is suspended
    /// now. Followers read the file of the first ingest until the flight ends, so nobody else may get its lock: another
    /// writer would discard an empty partial, or continue in another file.
    pub(super) fn fetch(
        &self,
        name: &ImageName,
        leader: &BlobLeader,
        size_hint: Option<u64>,
        suspended: &mut Option<Ingest>,
    ) -> Result<Fetched, CacheError> {
        for _ in 0..OTHER_PROCESS_CHECKS_MAX {
            self.core.stop_if_closed()?;
            if suspended.is_none() {
                let digest = &leader.key().1;
                match self.core.store.resume(&name.upstream, digest, size_hint)? {
                    Begin::Writing(ingest) => *suspended = Some(*ingest),
                    Begin::Absent => {}
                    Begin::Present(blob) => {
                        return Ok(Fetched::Stored(announce_stored(name, leader, blob)));
                    }
                    Begin::Locked => {
                        self.core.blob_fetchers.pause(OTHER_PROCESS_CHECK_EVERY);
                        continue;
                    }
                }
            }
            match self.download_blob(name, leader, size_hint, suspended) {
                // Another process has started or finished the blob since the check.
                Err(CacheError::Store(error)) if matches!(*error, StoreError::Locked { .. }) => {
                    self.core.blob_fetchers.pause(OTHER_PROCESS_CHECK_EVERY);
                }
                result => return result,
            }
        }
        Err(CacheError::GivenUp)
    }

    /// Downloads a blob from where an earlier download ended, or from its beginning. No file is created before the
    /// registry has confirmed that it has the blob.
    fn download_blob(
        &self,
        name: &ImageName,
        leader: &BlobLeader,
        size_hint: Option<u64>,
        suspended: &mut Option<Ingest>,
    ) -> Result<Fetched, CacheError> {
        let digest = leader.key().1;
        let known = lock(&self.verified_sizes).get(&digest).copied();
        if let Some(size) = known.or(size_hint) {
            // Without a request, whose response would be discarded: the blob is requested again to be passed through.
            self.eviction.check_size(size)?;
        }
        let sink = ToStore {
            cache: self,
            name,
            leader,
            ingest: suspended.take(),
            claim: size_hint.filter(|_| known.is_none()),
            promised: None,
            unannounced: None,
            is_noted: false,
            has_written: false,
        };
        let mut download = Download::new(self, name, digest, known, sink);
        self.recover(&mut download)?;
        let is_complete = download.sink.ingest.as_ref().is_some_and(Ingest::is_complete);
        if !is_complete && let Err(error) = download.run() {
            if matches!(error, CacheError::Suspended) {
                *suspended = download.sink.ingest;
                return Err(error);
            }
            // A partial that does not match the registry's bytes, or that fills the disk, is discarded. One to which
            // nothing was written before the refusal is kept.
            let has_written = download.sink.has_written;
            let is_full = matches!(&error, CacheError::Store(store) if store.is_full()
                && (has_written || matches!(**store, StoreError::Write { .. })));
            let is_wrong = matches!(error, CacheError::WrongContent(_));
            if is_wrong {
                self.note_wrong(leader.key(), download.failures_of_senders());
            }
            if let Some(ingest) = download.sink.ingest
                && (is_full || is_wrong)
            {
                ingest.discard();
            }
            return Err(error);
        }
        let failures = download.failures_of_senders();
        // Created at the latest with the first response of the registry.
        let Some(ingest) = download.sink.ingest else { return Err(CacheError::GivenUp) };
        let size = ingest.bytes_written();
        let incoming = incoming(name, &ingest, Some(size), SizeSource::Registry);
        let verified = ingest.verify(Some(size)).inspect_err(|_| {
            self.note_wrong(leader.key(), failures);
        })?;
        lock(&self.wrong).remove(leader.key());
        lock(&self.verified_sizes).insert(digest, size);
        // Verified bytes may be sent before they are on the disk: they are correct in any case. Clients that received
        // another size get no more bytes, since their last byte would be in the middle of the blob. Clients without a
        // size learn it from the end of the flight.
        let promised = leader.flight().header().and_then(|incoming| incoming.size);
        if promised.is_none_or(|promised| promised == size) {
            leader.announce_all(incoming, size);
        }
        Ok(Fetched::Verified(Box::new(verified)))
    }

    /// Creates the partial of a blob that the registry has.
    ///
    /// # Errors
    /// [`StoreError::Locked`] if another process has started or finished it meanwhile.
    fn begin_ingest(&self, key: &BlobKey, size: Option<u64>) -> Result<Ingest, CacheError> {
        match self.core.store.ingest(&key.0, &key.1, size)? {
            Begin::Writing(ingest) => Ok(*ingest),
            Begin::Present(_) | Begin::Locked | Begin::Absent => {
                Err(StoreError::Locked { digest: Box::new(key.1) }.into())
            }
        }
    }

    /// Recovers the partial of an earlier download. Readers receive none of it before the registry has reported the
    /// size: only then is it known which byte is the last.
    fn recover(&self, download: &mut Download<'_, ToStore<'_>>) -> Result<(), CacheError> {
        let Some(ingest) = &mut download.sink.ingest else { return Ok(()) };
        let mut chunk = vec![0; CHUNK_BYTES];
        while ingest.recover(&mut chunk)? {
            self.core.stop_if_closed()?;
        }
        match ingest.bytes_written() {
            0 => {}
            bytes => {
                self.core.metrics.resumed.inc();
                log::info!("{}: resuming after {}", download.what(), size(bytes));
            }
        }
        Ok(())
    }

    /// The failures of each endpoint in earlier downloads of this blob.
    pub(super) fn endpoint_failures(&self, name: &ImageName, digest: &Digest) -> EndpointFailures {
        let key = (name.upstream.clone(), *digest);
        lock(&self.wrong).get(&key).map(|blob| blob.endpoint_failures.clone()).unwrap_or_default()
    }

    /// Records which endpoints sent wrong content, so that they are tried last the next time.
    pub(super) fn note_wrong(&self, key: &BlobKey, endpoint_failures: EndpointFailures) {
        let mut wrong = lock(&self.wrong);
        // If there is an entry, this was the second attempt, whether a client or the cache started it.
        let is_tried_again = wrong.get(key).is_some();
        wrong.insert(key.clone(), WrongBlob { endpoint_failures, is_tried_again });
    }

    /// Whether a blob with wrong content should be fetched once more without a client. Returns `true` once.
    pub(super) fn should_try_again(&self, key: &BlobKey) -> bool {
        let mut wrong = lock(&self.wrong);
        match wrong.get(key) {
            Some(blob) if !blob.is_tried_again => {
                let blob = WrongBlob {
                    endpoint_failures: blob.endpoint_failures.clone(),
                    is_tried_again: true,
                };
                wrong.insert(key.clone(), blob);
                true
            }
            _ => false,
        }
    }
}

/// What is remembered of a blob with wrong content.
pub(super) struct WrongBlob {
    endpoint_failures: EndpointFailures,
    /// Whether it was fetched again since then.
    is_tried_again: bool,
}

/// Writes to the store and makes the bytes available to the followers of the flight.
struct ToStore<'a> {
    cache: &'a BlobCache,
    name: &'a ImageName,
    leader: &'a BlobLeader,
    /// `None` until the registry has confirmed that it has the blob.
    ingest: Option<Ingest>,
    /// The size that a manifest of this repository states.
    claim: Option<u64>,
    /// The size announced to clients, by this download or by an earlier one of the flight.
    promised: Option<u64>,
    /// What is to be announced with the first bytes.
    unannounced: Option<Incoming>,
    /// Whether the origin was recorded beside the partial.
    is_noted: bool,
    /// Whether this download has written something.
    has_written: bool,
}

impl ToStore<'_> {
    /// Announces the blob, unless that was done.
    fn announce(&mut self) {
        if let Some(incoming) = self.unannounced.take() {
            self.leader.announce(incoming);
        }
    }

    /// Makes the written bytes available to readers, except the last byte of the blob. Readers that do not know the
    /// blob yet learn of all bytes at once.
    fn show(&self, size: Option<u64>) {
        if self.unannounced.is_some() {
            return;
        }
        let written = self.bytes_written();
        let end = self.promised.or(size).unwrap_or(written);
        self.leader.advance(written.min(end.saturating_sub(1)));
    }
}

impl ToStore<'_> {
    /// Limits a blob of unknown size, which may be endless.
    fn check_unknown_size(&self, more_bytes: u64) -> Result<(), CacheError> {
        if self.bytes_written() + more_bytes > UNKNOWN_SIZE_MAX {
            let reason = format!(
                "the registry does not report the size of this blob, and it is larger than \
                 {UNKNOWN_SIZE_MAX} bytes"
            );
            let what = format!("{}@{}", self.name, self.leader.key().1);
            return Err(UpstreamError::bad_answer(&what, reason).into());
        }
        Ok(())
    }
}

impl Sink for ToStore<'_> {
    fn bytes_written(&self) -> u64 {
        self.ingest.as_ref().map_or(0, Ingest::bytes_written)
    }

    fn begin(&mut self, size: Option<u64>) -> Result<(), CacheError> {
        if let Some(size) = size {
            // Refusing now is better than after the last byte that fits. Nothing is evicted yet: the size is only a
            // claim of the registry.
            self.cache.eviction.check_size(size)?;
        }
        let ingest = match &mut self.ingest {
            Some(ingest) => ingest,
            None => self.ingest.insert(self.cache.begin_ingest(self.leader.key(), size)?),
        };
        if size.is_none_or(|size| size >= NOTED_BYTES_MIN)
            && !std::mem::replace(&mut self.is_noted, true)
            && let Err(error) = ingest.note_origin(self.name)
        {
            // If the disk has failed, the download itself reports it.
            log::debug!("{}: {error}", self.name);
        }
        let incoming = match size {
            Some(_) => incoming(self.name, ingest, size, SizeSource::Registry),
            None => incoming(self.name, ingest, self.claim, SizeSource::Manifest),
        };
        // The first announcement counts. A flight that was suspended has made one before.
        let mut announced = self.leader.flight().header();
        if announced.is_none() {
            announced = Some(incoming.clone());
            self.unannounced = Some(incoming);
            if size.is_none_or(|size| size > ANNOUNCED_LATE_MAX) {
                self.announce();
            }
        }
        self.promised = announced.as_ref().and_then(|incoming| incoming.size);
        if let (Some(incoming), Some(now)) = (announced, size)
            && incoming.size_source == SizeSource::Registry
            && let Some(before) = incoming.size.filter(|before| *before != now)
        {
            let what = format!("GET blob {}@{}", self.name, self.leader.key().1);
            let reason = format!("its size changed from {before} to {}", plural(now, "byte"));
            return Err(UpstreamError::bad_answer(&what, reason).into());
        }
        self.show(size);
        Ok(())
    }

    fn write(&mut self, bytes: &[u8], size: Option<u64>) -> Result<(), CacheError> {
        if size.is_none() {
            self.check_unknown_size(bytes.len() as u64)?;
        }
        self.cache.eviction.admit(bytes.len() as u64)?;
        self.cache.core.metrics.fetched_bytes.inc_by(bytes.len() as u64);
        // `begin` is called before the first byte.
        let Some(ingest) = &mut self.ingest else { return Err(CacheError::GivenUp) };
        ingest.write(bytes)?;
        let is_all = size == Some(ingest.bytes_written());
        self.has_written = true;
        if !is_all {
            self.announce();
        }
        self.show(size);
        Ok(())
    }

    fn is_short(&self) -> bool {
        let is_below = |claim| self.bytes_written() < claim;
        self.claim.is_some_and(is_below) && !self.ingest.as_ref().is_some_and(Ingest::is_complete)
    }

    fn waits_for(&self) -> Waits {
        if self.leader.has_followers() { Waits::Followers } else { Waits::NoClient }
    }

    fn is_cancelled(&self) -> bool {
        self.leader.flight().is_cancelled()
    }
}

fn incoming(
    name: &ImageName,
    ingest: &Ingest,
    size: Option<u64>,
    size_source: SizeSource,
) -> Incoming {
    Incoming { origin: name.clone(), file: Arc::clone(ingest.file()), size, size_source }
}

/// Announces a blob that is in the store already: all of it is available at once.
fn announce_stored(name: &ImageName, leader: &BlobLeader, blob: Blob) -> Blob {
    let (origin, file, size) = (name.clone(), Arc::clone(&blob.file), Some(blob.size));
    let incoming = Incoming { origin, file, size, size_source: SizeSource::Registry };
    leader.announce_all(incoming, blob.size);
    blob
}
