//! The work of a blob flight, on a fetcher: check the store again, ingest, verify, commit.
//!
//! This module decides which bytes readers may receive, and so keeps promise 1: [`ToStore::show`] never includes the
//! last byte of a blob, and the announced size does not change.
//!
//! Wrong content ends the flight. Its followers have already received some of it, so their connections are closed. The
//! blob is then fetched once more from its beginning, by another flight, for clients that retry. Endpoints that sent
//! wrong content are tried last from then on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::additional::Additional;
use super::download::{CHUNK_BYTES, Download, Sink, Waits};
use super::incoming::{announce_stored, continue_from, incoming};
use super::transfer::{Next, Part, Transfer};
use super::{BlobCache, BlobKey, BlobLeader, Incoming, SizeSource};
use crate::cache::access::Link;
use crate::cache::{CacheError, lock};
use crate::oci::{Digest, ImageName, Upstream, blob_path};
use crate::store::{Begin, Blob, Ingest, StoreError, Verified};
use crate::units::plural;
use crate::upstream::{Source, UpstreamError};

/// The maximum size of a blob whose size the registry does not report. Hardly any layer is larger, and registries
/// report the size of such layers.
const UNKNOWN_SIZE_MAX: u64 = 16 * 1024 * 1024 * 1024;
/// A smaller blob gets no note of its origin: after a restart it is downloaded again when a client requests it, which
/// takes less time than it takes to write a note for each blob.
const NOTED_BYTES_MIN: u64 = 512 * 1024;
/// A blob of at most this size is announced with its first bytes, or with all of them, so that a client that waits for
/// it is woken once instead of three times. Its header would arrive hardly earlier.
const ANNOUNCED_LATE_MAX: u64 = 64 * 1024;

/// A blob of at least this size is hashed by a thread of its own, and may use several connections. Below, a thread costs
/// more than it gains.
const LARGE_BYTES_MIN: u64 = 8 * 1024 * 1024;
/// How often a connection that waits for a part checks whether the download has become useless.
const WAIT_FOR_PART: Duration = Duration::from_millis(500);

/// What a fetch has produced.
pub(super) enum Fetched {
    /// The store has the blob.
    Stored(Blob),
    /// It is complete, and its followers may receive all of it. It has no name yet.
    Verified(Box<Verified>),
    /// Another process is writing it.
    Elsewhere,
}

impl BlobCache {
    /// The work of a blob flight, on a fetcher: check the store again, ingest, verify.
    ///
    /// `suspended` is the ingest of the flight if its download was suspended before, and receives it if it is suspended
    /// now. Followers read the file of the first ingest until the flight ends, so nobody else may get its lock: another
    /// writer would discard an empty partial, or continue in another file.
    pub(super) fn fetch(
        self: &Arc<Self>,
        name: &ImageName,
        leader: &BlobLeader,
        size_hint: Option<u64>,
        suspended: &mut Option<Ingest>,
    ) -> Result<Fetched, CacheError> {
        self.core.stop_if_closed()?;
        self.core.stop_if_backing_off(name, |bucket| {
            bucket.blob_size(&name.repository, &leader.key().1).is_ok()
        })?;
        if suspended.is_none() {
            let digest = &leader.key().1;
            let begun = self.core.store.resume(&name.upstream, digest, size_hint)?;
            // Another repository, or another process, was faster.
            if matches!(begun, Begin::Present(_) | Begin::Locked) {
                self.prove_link(name, digest, self.core.settings().access.strictest_link())?;
            }
            match begun {
                // Clients may have received bytes of another process's partial.
                Begin::Writing(ingest)
                    if continue_from(leader, ingest.file(), ingest.bytes_written(), None) =>
                {
                    *suspended = Some(*ingest);
                }
                Begin::Absent if leader.flight().header().is_none() => {}
                Begin::Writing(_) | Begin::Absent => return Err(CacheError::GivenUp),
                Begin::Present(blob)
                    if !continue_from(leader, &blob.file, blob.size, Some(blob.size)) =>
                {
                    return Err(CacheError::GivenUp);
                }
                Begin::Present(blob) => {
                    return Ok(Fetched::Stored(announce_stored(name, leader, blob)));
                }
                Begin::Locked => return Ok(Fetched::Elsewhere),
            }
        }
        // They have blobs, and do not know in which repositories these are.
        if self.core.sources.asks_others(&name.upstream) {
            self.prove_link(name, &leader.key().1, Link::Assumed)?;
        }
        match self.download_blob(name, leader, size_hint, suspended) {
            // Another process has started or finished the blob since the check.
            Err(CacheError::Store(error)) if matches!(*error, StoreError::Locked { .. }) => {
                let needed = self.core.settings().access.strictest_link();
                self.prove_link(name, &leader.key().1, needed)?;
                Ok(Fetched::Elsewhere)
            }
            result => result,
        }
    }

    /// Downloads a blob from where an earlier download ended, or from its beginning. No file is created before the
    /// registry has confirmed that it has the blob.
    fn download_blob(
        self: &Arc<Self>,
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
        let ingest = suspended.take();
        let is_new = ingest.as_ref().is_none_or(|ingest| ingest.partial().total_bytes() == 0);
        let noted = || ingest.as_ref().and_then(Ingest::noted_size);
        let expected = known.or_else(noted).or(size_hint);
        let is_complete = self.resumes(expected, ingest.as_ref())?;
        if is_complete && self.is_restricted(&digest) {
            // The registry is not asked, and the partial may be of another repository.
            self.prove_link(name, &digest, self.core.settings().access.strictest_link())?;
        }
        let transfer = self.transfer(&name.upstream, leader, expected, ingest.as_ref());
        let sink = ToStore {
            cache: self,
            name,
            leader,
            ingest,
            transfer,
            part: None,
            claim: size_hint.filter(|_| known.is_none()),
            promised: None,
            unannounced: None,
            is_noted: false,
            has_written: false,
        };
        let mut download = Download::new(self, name, digest, known, sink);
        if !is_complete && let Err(error) = run(&mut download) {
            if matches!(error, CacheError::Suspended) {
                download.log_suspended();
                *suspended = download.sink.ingest;
                return Err(error);
            }
            // Another process was faster. The response proves as much as one to HEAD.
            if matches!(&error, CacheError::Store(store) if matches!(**store, StoreError::Locked { .. }))
                && download.is_from_registry()
                && self.may_confirm(&name.upstream, &digest)?
            {
                self.keep_link(name, &digest);
            }
            // A partial that does not match the registry's bytes, or that fills the disk, is discarded. One to which
            // nothing was written before the refusal is kept.
            let has_written = download.sink.has_written;
            let is_full = matches!(&error, CacheError::Store(store) if store.is_full()
                && (has_written || matches!(**store, StoreError::Write { .. })));
            let is_wrong = error.is_wrong_content();
            if is_wrong {
                self.note_wrong(leader.key(), download.failures_of_senders());
                self.note_sent_by_bucket(&digest, false, download.bucket_has_sent(is_new));
            }
            if let Some(ingest) = download.sink.ingest.take()
                && (is_full || is_wrong)
            {
                ingest.discard();
            }
            return Err(error.sent_by(download.urls_of_senders()));
        }
        let failures = download.failures_of_senders();
        let is_from_registry = download.is_from_registry();
        let by_bucket = download.bucket_has_sent(is_new);
        // Created at the latest with the first response of the registry.
        let Some(ingest) = download.sink.ingest.take() else { return Err(CacheError::GivenUp) };
        let size = ingest.bytes_written();
        let transfer = download.sink.transfer.as_deref();
        let incoming = incoming(name, &ingest, Some(size), SizeSource::Registry, transfer);
        let verified = ingest.verify(Some(size)).map_err(|error| {
            self.note_wrong(leader.key(), failures);
            self.note_sent_by_bucket(&digest, false, by_bucket);
            CacheError::from(error).sent_by(download.urls_of_senders())
        })?;
        // Again, in case the partial was older than a mark is kept.
        self.core.note_private_blob(name, digest);
        download.log_finished(size);
        self.note_sent_by_bucket(&digest, true, by_bucket);
        lock(&self.wrong).remove(leader.key());
        lock(&self.verified_sizes).insert(digest, size);
        if is_from_registry && is_new {
            self.keep_link(name, &digest);
        }
        // Verified bytes may be sent before they are on the disk: they are correct in any case. Clients that received
        // another size get no more bytes, since their last byte would be in the middle of the blob. Clients without a
        // size learn it from the end of the flight.
        let promised = leader.flight().header().and_then(|incoming| incoming.size);
        if promised.is_none_or(|promised| promised == size) {
            leader.announce_all(incoming, size);
        }
        Ok(Fetched::Verified(Box::new(verified)))
    }

    /// Notes that the bucket has a blob, or other bytes in its place. `by_bucket`: whether it sent bytes, and all of them.
    fn note_sent_by_bucket(&self, digest: &Digest, is_right: bool, by_bucket: (bool, bool)) {
        let Some(bucket) = self.core.sources.shared_bucket() else { return };
        match (is_right, by_bucket) {
            (true, (true, true)) => bucket.note_present(&blob_path(digest)),
            (false, (true, _)) => bucket.note_wrong(&blob_path(digest)),
            _ => {}
        }
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

    /// Looks at the partial of an earlier download. Returns whether it is complete: then no request is needed.
    ///
    /// Its bytes are hashed while the missing ones are received. Only if the size is not known, or nothing is missing,
    /// they are hashed first. Readers receive none of them before the registry has reported the size: only then is it
    /// known which byte is the last.
    fn resumes(&self, expected: Option<u64>, ingest: Option<&Ingest>) -> Result<bool, CacheError> {
        let Some(ingest) = ingest.filter(|ingest| ingest.bytes_written() > 0) else {
            return Ok(false);
        };
        self.core.metrics.resumed.inc();
        if expected.is_some_and(|expected| ingest.bytes_written() < expected) {
            return Ok(false);
        }
        let mut chunk = vec![0; CHUNK_BYTES];
        while ingest.partial().hash_next(&mut chunk)? {
            self.core.stop_if_closed()?;
        }
        Ok(ingest.is_complete()?)
    }

    /// The shared state of a large download; `None` for others, which one thread receives and hashes.
    fn transfer(
        &self,
        upstream: &Upstream,
        leader: &BlobLeader,
        expected: Option<u64>,
        ingest: Option<&Ingest>,
    ) -> Option<Arc<Transfer>> {
        let partial = ingest.map(Ingest::partial);
        let bytes = expected.max(partial.map(|partial| partial.total_bytes()));
        if bytes.is_none_or(|bytes| bytes < LARGE_BYTES_MIN) {
            return None;
        }
        // A flight that was suspended has published its number of connections before.
        let published = leader.flight().header().map(|incoming| incoming.connections);
        let policy = self.connection_policy(upstream);
        Some(Arc::new(Transfer::new(partial, expected, policy, published.unwrap_or_default())))
    }
}

/// Receives the missing bytes. Those of a large blob are hashed meanwhile.
fn run(download: &mut Download<'_, ToStore<'_>>) -> Result<(), CacheError> {
    match download.sink.transfer.clone() {
        Some(transfer) => transfer.hash_during(|| download.run()),
        None => download.run(),
    }
}

/// Writes to the store and makes the bytes available to the followers of the flight.
struct ToStore<'a> {
    cache: &'a Arc<BlobCache>,
    name: &'a ImageName,
    leader: &'a BlobLeader,
    /// `None` until the registry has confirmed that it has the blob.
    ingest: Option<Ingest>,
    /// For a large blob, and the part of it that is being received on this connection.
    transfer: Option<Arc<Transfer>>,
    part: Option<Part>,
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
        // Those of a large blob are shown when they are written, by whichever connection.
        if self.unannounced.is_some() || self.transfer.is_some() {
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

    fn bytes_received(&self) -> u64 {
        self.ingest.as_ref().map_or(0, |ingest| ingest.partial().total_bytes())
    }

    fn next_part(&mut self) -> Next {
        let Some(transfer) = &self.transfer else {
            return Next::Receive(Part::all_from(self.bytes_written()));
        };
        let next = transfer.next_for_first(self.part.take(), Instant::now());
        if let Next::Receive(part) = &next {
            self.part = Some(*part);
        }
        next
    }

    fn wait(&self) {
        if let Some(transfer) = &self.transfer {
            transfer.wait(WAIT_FOR_PART);
        }
    }

    fn has_parts(&self) -> bool {
        self.transfer.is_some()
    }

    fn failed(&mut self, error: &UpstreamError) {
        if let Some(transfer) = self.transfer.as_ref().filter(|_| error.is_refusal()) {
            transfer.refused();
        }
    }

    fn receive_all(&mut self) {
        if let (Some(transfer), Some(part)) = (&self.transfer, self.part) {
            transfer.take_all(part);
        }
    }

    fn begin(&mut self, size: Option<u64>) -> Result<(), CacheError> {
        if let Some(size) = size {
            // Refusing now is better than after the last byte that fits. Nothing is evicted yet: the size is only a
            // claim of the registry.
            self.cache.eviction.check_size(size)?;
        }
        let ingest = match &mut self.ingest {
            Some(ingest) => ingest,
            None => {
                // Other processes follow the partial.
                self.cache.core.note_private_blob(self.name, self.leader.key().1);
                self.ingest.insert(self.cache.begin_ingest(self.leader.key(), size)?)
            }
        };
        if size.is_none_or(|size| size >= NOTED_BYTES_MIN)
            && !std::mem::replace(&mut self.is_noted, true)
            && let Err(error) = ingest.note(self.name, size)
        {
            // If the disk has failed, the download itself reports it.
            log::debug!(
                repository:% = self.name, error:%;
                "cannot record which repository a download is for"
            );
        }
        let transfer = self.transfer.as_deref();
        let incoming = match size {
            Some(_) => incoming(self.name, ingest, size, SizeSource::Registry, transfer),
            None => incoming(self.name, ingest, self.claim, SizeSource::Manifest, transfer),
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
        match (&self.transfer, &self.ingest) {
            (Some(transfer), Some(ingest)) => {
                let (advancer, end) = (self.leader.advancer(), self.promised.or(size));
                let show = move |written: u64| {
                    advancer.advance(written.min(end.unwrap_or(written).saturating_sub(1)));
                };
                transfer.begin(ingest.partial(), size, Arc::new(show));
            }
            _ => self.show(size),
        }
        Ok(())
    }

    fn write(&mut self, at: u64, bytes: &[u8], size: Option<u64>) -> Result<(), CacheError> {
        if size.is_none() {
            self.check_unknown_size(bytes.len() as u64)?;
        }
        self.cache.eviction.admit(bytes.len() as u64)?;
        self.cache.core.metrics.fetched_bytes.inc_by(bytes.len() as u64);
        // `begin` is called before the first byte.
        let Some(ingest) = &mut self.ingest else { return Err(CacheError::GivenUp) };
        match (&self.transfer, self.part) {
            (Some(transfer), Some(part)) => {
                // Only parts of additional connections are taken over.
                if !transfer.write(part, at, bytes, Instant::now())? {
                    return Err(CacheError::GivenUp);
                }
            }
            _ => ingest.write_at(at, bytes)?,
        }
        let is_all = size == Some(ingest.bytes_written());
        self.has_written = true;
        if !is_all {
            self.announce();
        }
        self.show(size);
        Ok(())
    }

    fn open_connections(&mut self, source: &Arc<dyn Source>, endpoint: usize) {
        let Some(transfer) = &self.transfer else { return };
        Additional::open(transfer, source, endpoint, || Additional {
            cache: Arc::clone(self.cache),
            name: self.name.clone(),
            digest: self.leader.key().1,
            class: self.cache.core.class_of(&self.name.upstream),
            transfer: Arc::clone(transfer),
        });
    }

    fn is_short(&self) -> Result<bool, CacheError> {
        let is_below = |claim| self.bytes_written() < claim;
        match &self.ingest {
            Some(ingest) if self.claim.is_some_and(is_below) => Ok(!ingest.is_complete()?),
            _ => Ok(false),
        }
    }

    fn waits_for(&self) -> Waits {
        if self.leader.has_followers() { Waits::Followers } else { Waits::NoClient }
    }

    fn is_cancelled(&self) -> bool {
        self.leader.flight().is_cancelled()
    }
}
