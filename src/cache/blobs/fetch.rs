//! The work of a blob flight, on a fetcher: look once more, ingest, verify, commit.
//!
//! What readers are shown is decided here, and with it promise 1: [`ToStore::show`] never reaches the
//! last byte, and what "last" means does not change once it was told.
//!
//! Wrong content ends the flight: those who follow it have had some of it, and must be cut. The blob is
//! fetched once more from its beginning all the same, by a flight of its own, so that a client that
//! comes back finds it; endpoints that sent something wrong are asked last from then on.

use std::sync::Arc;
use std::time::Duration;

use super::download::{Download, Sink, Waits};
use super::{BlobCache, BlobKey, BlobLeader, Incoming, SizeSource};
use crate::cache::{CacheError, lock};
use crate::oci::{Digest, ImageName};
use crate::store::{Begin, Blob, Ingest, StoreError};
use crate::units::{plural, size};
use crate::upstream::{EndpointFailures, UpstreamError};

/// How often it is looked whether another process has finished a partial, and how often in all: a
/// minute, after which the client may ask again.
const OTHER_PROCESS_LOOK_EVERY: Duration = Duration::from_millis(250);
const OTHER_PROCESS_LOOKS_MAX: u32 = 240;
/// A blob of unknown size may have at most so many bytes: hardly a layer is as large, and such a layer has a
/// size.
const UNKNOWN_SIZE_MAX: u64 = 16 * 1024 * 1024 * 1024;

impl BlobCache {
    /// The work of a blob flight, on a fetcher: store again, ingest, verify, commit.
    pub(super) fn fetch(
        &self,
        name: &ImageName,
        leader: &BlobLeader,
        size_hint: Option<u64>,
    ) -> Result<Blob, CacheError> {
        for _ in 0..OTHER_PROCESS_LOOKS_MAX {
            self.core.stop_if_closed()?;
            let ingest = match self.core.store.resume(&name.upstream, &leader.key().1, size_hint)? {
                Begin::Writing(ingest) => Some(*ingest),
                Begin::Absent => None,
                Begin::Present(blob) => return Ok(arrived(name, leader, blob)),
                Begin::Locked => {
                    self.core.blob_fetchers.pause(OTHER_PROCESS_LOOK_EVERY);
                    continue;
                }
            };
            match self.download_blob(name, leader, size_hint, ingest) {
                // Another process has begun, or finished, the blob since we looked.
                Err(CacheError::Store(error)) if matches!(*error, StoreError::Locked { .. }) => {
                    self.core.blob_fetchers.pause(OTHER_PROCESS_LOOK_EVERY);
                }
                result => return result,
            }
        }
        Err(CacheError::GivenUp)
    }

    /// Downloads a blob from where an earlier download left it, or from its beginning. Nothing is created
    /// before its upstream has answered that it has the blob.
    fn download_blob(
        &self,
        name: &ImageName,
        leader: &BlobLeader,
        size_hint: Option<u64>,
        ingest: Option<Ingest>,
    ) -> Result<Blob, CacheError> {
        let digest = leader.key().1;
        let known = lock(&self.verified_sizes).get(&digest).copied();
        let sink = ToStore {
            cache: self,
            name,
            leader,
            ingest,
            claim: size_hint.filter(|_| known.is_none()),
            promised: None,
            is_noted: false,
            has_written: false,
        };
        let mut download = Download::new(self, name, digest, known, sink);
        self.recover(&mut download)?;
        let is_complete = download.sink.ingest.as_ref().is_some_and(Ingest::is_complete);
        if !is_complete && let Err(error) = download.run() {
            // What was kept does not fit what upstream sends, or fills the disk: it is given up.
            // Refused before anything was written: what was kept is as good as it was.
            let has_written = download.sink.has_written;
            let is_full = matches!(&error, CacheError::Store(store) if store.is_full()
                && (has_written || matches!(**store, StoreError::Write { .. })));
            let is_wrong = matches!(error, CacheError::WrongContent(_));
            if is_wrong {
                self.note_wrong(leader.key(), download.blame());
            }
            if let Some(ingest) = download.sink.ingest
                && (is_full || is_wrong)
            {
                ingest.discard();
            }
            return Err(error);
        }
        let blame = download.blame();
        // Begun at the latest with the first answer of the upstream.
        let Some(ingest) = download.sink.ingest else { return Err(CacheError::GivenUp) };
        let size = ingest.bytes_written();
        announce(name, leader, &ingest, Some(size), SizeSource::Registry);
        let verified = ingest.verify(Some(size)).inspect_err(|_| {
            self.note_wrong(leader.key(), blame);
        })?;
        lock(&self.wrong).remove(leader.key());
        lock(&self.verified_sizes).insert(digest, size);
        // Verified bytes may be shown before the disk has them: they are right whatever it does. Clients that were
        // told another size are shown no more, since their last byte would be in the middle of the blob; the
        // others learn of it from the end of the flight.
        let promised = leader.flight().header().and_then(|incoming| incoming.size);
        if promised.is_none_or(|promised| promised == size) {
            leader.advance(size);
        }
        Ok(verified.commit()?)
    }

    /// Begins to write a blob that its upstream was found to have.
    ///
    /// # Errors
    /// [`StoreError::Locked`] if another process has begun or finished it meanwhile.
    fn begin_ingest(&self, key: &BlobKey, size: Option<u64>) -> Result<Ingest, CacheError> {
        match self.core.store.ingest(&key.0, &key.1, size)? {
            Begin::Writing(ingest) => Ok(*ingest),
            Begin::Present(_) | Begin::Locked | Begin::Absent => {
                Err(StoreError::Locked { digest: Box::new(key.1) }.into())
            }
        }
    }

    /// Takes up what an earlier download has left. It is not shown before upstream has told the size:
    /// only then is it known which byte is the last.
    fn recover(&self, download: &mut Download<'_, ToStore<'_>>) -> Result<(), CacheError> {
        let Some(ingest) = &mut download.sink.ingest else { return Ok(()) };
        while ingest.recover(&mut download.chunk)? {
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

    /// How the endpoints have fared with this blob in earlier downloads.
    pub(super) fn endpoint_failures(&self, name: &ImageName, digest: &Digest) -> EndpointFailures {
        let key = (name.upstream.clone(), *digest);
        lock(&self.wrong).get(&key).map(|blob| blob.endpoint_failures.clone()).unwrap_or_default()
    }

    /// Notes who sent something wrong, to be asked last the next time.
    pub(super) fn note_wrong(&self, key: &BlobKey, endpoint_failures: EndpointFailures) {
        let mut wrong = lock(&self.wrong);
        // This was another try already, whoever began it.
        let is_tried_again = wrong.get(key).is_some();
        wrong.insert(key.clone(), WrongBlob { endpoint_failures, is_tried_again });
    }

    /// Whether a blob that came wrong should be fetched once more unasked: says so once.
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

/// What is remembered of a blob that came wrong.
pub(super) struct WrongBlob {
    endpoint_failures: EndpointFailures,
    /// Whether it was fetched again since it first did.
    is_tried_again: bool,
}

/// Into the store, in sight of those who follow the flight.
struct ToStore<'a> {
    cache: &'a BlobCache,
    name: &'a ImageName,
    leader: &'a BlobLeader,
    /// Nothing until the upstream has answered that it has the blob.
    ingest: Option<Ingest>,
    /// The size that a manifest of this repository told.
    claim: Option<u64>,
    /// The size that clients were told, by this download or by one that the flight had before.
    promised: Option<u64>,
    /// Whether it was noted beside the partial whose it is.
    is_noted: bool,
    /// Whether this download has written something.
    has_written: bool,
}

impl ToStore<'_> {
    /// Tells the readers how far they may go: never to the last byte.
    fn show(&self, size: Option<u64>) {
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
                "the registry does not tell the size of this blob, and {UNKNOWN_SIZE_MAX} bytes are \
                 not all of it"
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
            // Better before the first byte than after the last that fits. Nothing is evicted for it yet: a size
            // is only a promise.
            self.cache.eviction.check_size(size)?;
        }
        let ingest = match &mut self.ingest {
            Some(ingest) => ingest,
            None => self.ingest.insert(self.cache.begin_ingest(self.leader.key(), size)?),
        };
        if !std::mem::replace(&mut self.is_noted, true)
            && let Err(error) = ingest.note_origin(self.name)
        {
            // The download itself will say what is wrong with the disk, if it matters.
            log::debug!("{}: {error}", self.name);
        }
        match size {
            Some(_) => announce(self.name, self.leader, ingest, size, SizeSource::Registry),
            None => announce(self.name, self.leader, ingest, self.claim, SizeSource::Manifest),
        }
        // The first announcement counts: a flight that gave up its fetcher has made one before.
        let announced = self.leader.flight().header();
        self.promised = announced.as_ref().and_then(|incoming| incoming.size);
        if let (Some(incoming), Some(now)) = (announced, size)
            && incoming.size_source == SizeSource::Registry
            && let Some(before) = incoming.size.filter(|before| *before != now)
        {
            let what = format!("GET blob {}@{}", self.name, self.leader.key().1);
            let reason = format!("it has {} now and had {before} before", plural(now, "byte"));
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
        // `begin` comes before the first byte.
        let Some(ingest) = &mut self.ingest else { return Err(CacheError::GivenUp) };
        ingest.write(bytes)?;
        self.has_written = true;
        self.show(size);
        Ok(())
    }

    fn is_short(&self) -> bool {
        let is_below = |claim| self.bytes_written() < claim;
        self.claim.is_some_and(is_below) && !self.ingest.as_ref().is_some_and(Ingest::is_complete)
    }

    fn waits_for(&self) -> Waits {
        if self.leader.has_followers() { Waits::Followers } else { Waits::Nobody }
    }
}

fn announce(
    name: &ImageName,
    leader: &BlobLeader,
    ingest: &Ingest,
    size: Option<u64>,
    size_source: SizeSource,
) {
    let (origin, file) = (name.clone(), Arc::clone(ingest.file()));
    leader.announce(Incoming { origin, file, size, size_source });
}

/// A blob that somebody else has finished: all of it is available at once.
fn arrived(name: &ImageName, leader: &BlobLeader, blob: Blob) -> Blob {
    let (origin, file, size) = (name.clone(), Arc::clone(&blob.file), Some(blob.size));
    leader.announce(Incoming { origin, file, size, size_source: SizeSource::Registry });
    leader.advance(blob.size);
    blob
}
