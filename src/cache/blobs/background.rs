//! Downloads in the background: when no client needs a fetcher.

use std::sync::{Arc, mpsc};

use super::wait::{BlobWait, WaitsFor};
use super::{BlobCache, BlobKey, BlobLookup, Length};
use crate::cache::{CacheError, How, lock};
use crate::client_address::ClientAddress;
use crate::oci::{Digest, ImageName, Upstream};

/// In the background, blobs of at most this size do not wait for larger ones.
const SHORT_BYTES_MAX: u64 = 1024 * 1024;

impl BlobCache {
    /// Queues a download for when no client needs a fetcher. The receiver gets its flight when it starts, or nothing if
    /// the blob is in the store by then; it is disconnected if the download is dropped from the queue.
    ///
    /// The flight exists only from then on, so that a client that requests the blob in the meantime does not wait for
    /// the queue: it starts the flight, and the job joins it.
    ///
    /// # Errors
    /// [`CacheError::GivenUp`] if the queue is full, and others if the registry must not be contacted.
    pub(in crate::cache) fn queue_in_background(
        self: &Arc<Self>,
        name: &ImageName,
        digest: &Digest,
        size_hint: Option<u64>,
    ) -> Result<mpsc::Receiver<Option<BlobWait>>, CacheError> {
        let purpose = self.core.purpose(name, None)?;
        let (starts, started) = mpsc::channel();
        let (cache, name, digest) = (Arc::clone(self), name.clone(), *digest);
        let is_short = size_hint.is_some_and(|size| size <= SHORT_BYTES_MAX);
        let length = if is_short { Length::Short } else { Length::Long };
        let is_queued = self.core.blob_fetchers.submit_in_background(purpose, length, move || {
            if matches!(cache.core.store.find_blob(&digest, size_hint), Ok(Some(_))) {
                // Nobody may be waiting any more.
                let _ = starts.send(None);
                return;
            }
            let joined = cache.join(&name, &(name.upstream.clone(), digest));
            let waits_for = WaitsFor::Bytes(joined.flight);
            let how = if joined.leader.is_some() { How::Miss } else { How::Join };
            let waiting = BlobWait { waits_for, name: name.clone(), how, size_hint };
            let _ = starts.send(Some(waiting));
            if let Some(leader) = joined.leader {
                cache.run_flight(name, leader, size_hint, None, None);
            }
        });
        if is_queued { Ok(started) } else { Err(CacheError::GivenUp) }
    }

    /// Whether a blob is being fetched, or will be in the background.
    pub(in crate::cache) fn is_pending(&self, upstream: &Upstream, digest: &Digest) -> bool {
        let key = (upstream.clone(), *digest);
        // In this order: a job that has started leaves the queue only once its flight is visible.
        lock(&self.queued_in_background).contains(&key) || self.flights.peek(&key).is_some()
    }

    /// Fetches a blob when no client needs a fetcher. Returns whether it is queued now and was not before.
    pub(in crate::cache) fn fetch_in_background(
        self: &Arc<Self>,
        name: &ImageName,
        digest: &Digest,
        size_hint: Option<u64>,
        client: Option<ClientAddress>,
    ) -> bool {
        let Ok(purpose) = self.core.purpose(name, client) else { return false };
        let (cache, name, digest) = (Arc::clone(self), name.clone(), *digest);
        let key = (name.upstream.clone(), digest);
        if !lock(&self.queued_in_background).insert(key.clone()) {
            return false;
        }
        let forget = |cache: &BlobCache, key: &BlobKey| {
            lock(&cache.queued_in_background).remove(key);
        };
        // Checked after the insertion: a job that has started removes its entry only once its flight is visible.
        if self.flights.peek(&key).is_some() {
            forget(self, &key);
            return false;
        }
        let is_short = size_hint.is_some_and(|size| size <= SHORT_BYTES_MAX);
        let length = if is_short { Length::Short } else { Length::Long };
        let queued = key.clone();
        let is_queued = self.core.blob_fetchers.submit_in_background(purpose, length, move || {
            if cache.core.is_alone()
                || !matches!(cache.core.store.find_blob(&digest, size_hint), Ok(None))
            {
                forget(&cache, &queued);
                return;
            }
            // A client may have started it meanwhile. The job does not follow the flight, since no client waits for it.
            let joined = cache.join(&name, &queued);
            forget(&cache, &queued);
            drop(joined.flight);
            if let Some(leader) = joined.leader {
                cache.run_flight(name, leader, size_hint, client, None);
            }
        });
        if !is_queued {
            forget(self, &key);
        }
        is_queued
    }

    /// A blob that should be in the store.
    ///
    /// # Errors
    /// [`CacheError::GivenUp`] if it is not there, or not any more.
    pub(in crate::cache) fn find_stored(
        &self,
        name: &ImageName,
        digest: &Digest,
    ) -> Result<BlobLookup, CacheError> {
        let blob = self.core.store.find_blob(digest, self.size_hint(name, digest))?;
        blob.map(BlobLookup::Ready).ok_or(CacheError::GivenUp)
    }
}
