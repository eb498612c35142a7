//! What is going on: downloads under way, queues, and what somebody wants of them.

use super::blobs::BlobKey;
use super::scheduler::SchedulerLoad;
use super::{Cache, CacheError, Inner, lock};
use crate::oci::{Digest, ImageName, Platforms, Reference, Upstream};

/// A download under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlightStatus {
    /// The registry.
    pub upstream: Upstream,
    /// The blob.
    pub digest: Digest,
    /// The repository whose request began it; nothing while it is queued.
    pub origin: Option<ImageName>,
    /// Bytes that have come.
    pub bytes: u64,
    /// Bytes that will have, once that is known.
    pub size: Option<u64>,
}

/// How much there is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Downloads of blobs.
    pub blobs: usize,
    /// Questions for manifests.
    pub manifests: usize,
    /// Questions for lists and sizes.
    pub others: usize,
    /// Those who download blobs.
    pub blob_pool: SchedulerLoad,
    /// Those who ask for everything else.
    pub manifest_pool: SchedulerLoad,
}

impl Cache {
    /// The downloads under way, in the order of their names.
    pub fn flights(&self) -> Vec<FlightStatus> {
        let status = |key: BlobKey| {
            let flight = self.inner.blobs.peek(&key)?;
            let header = flight.header();
            Some(FlightStatus {
                upstream: key.0,
                digest: key.1,
                bytes: flight.available(),
                size: header.as_ref().and_then(|header| header.size),
                origin: header.map(|header| header.origin),
            })
        };
        let keys = self.inner.blobs.keys().into_iter();
        let mut all: Vec<FlightStatus> = keys.filter_map(status).collect();
        all.sort_by_key(|flight| (flight.upstream.clone(), flight.digest.to_string()));
        all
    }

    /// How much there is to do.
    pub fn load(&self) -> Load {
        let inner = &self.inner;
        Load {
            blobs: inner.blobs.len(),
            manifests: inner.manifests.len(),
            others: inner.lists.len() + inner.cached_lists.len() + inner.blob_sizes.len(),
            blob_pool: inner.blob_pool.load(),
            manifest_pool: inner.metadata_pool.load(),
        }
    }

    /// Whether no upstream may be asked, for whatever reason.
    pub fn is_offline(&self) -> bool {
        self.inner.is_offline()
    }

    /// Whether the configuration says so.
    pub fn is_air_gapped(&self) -> bool {
        self.inner.settings().air_gapped
    }

    /// Ends a download at its next bytes; what came stays for the next one. `false` if there is none.
    pub fn cancel(&self, upstream: &Upstream, digest: &Digest) -> bool {
        let key = (upstream.clone(), *digest);
        // Noted first, so that a landing in between takes the note away again.
        lock(&self.inner.cancelled).insert(key.clone());
        if self.inner.blobs.peek(&key).is_some() {
            return true;
        }
        self.inner.uncancel(&key);
        false
    }

    /// Pulls an image into the cache, behind what clients ask for. Of an index those children that `platforms`
    /// covers.
    ///
    /// # Errors
    /// [`CacheError::NotCached`] if nobody may be asked, [`CacheError::GivenUp`] if too much waits already.
    pub fn prefetch(
        &self,
        name: &ImageName,
        reference: &Reference,
        platforms: Platforms,
    ) -> Result<(), CacheError> {
        let purpose = self.purpose(name)?;
        let (cache, name, reference) = (self.clone(), name.clone(), reference.clone());
        let is_queued = self.inner.metadata_pool.submit_in_background(purpose, move || {
            let fetched = match &reference {
                Reference::Tag(tag) => cache.inner.fetch_by_tag(&name, tag),
                Reference::Digest(digest) => cache.inner.fetch_by_digest(&name, digest),
            };
            match fetched {
                Ok(content) => cache.complete(&name, content.digest(), &platforms),
                // Somebody has asked for it by hand, and has no other answer: whatever it is, it is said.
                Err(error) => log::warn!("prefetch of {}: {error}", name.with(&reference)),
            }
        });
        if is_queued { Ok(()) } else { Err(CacheError::GivenUp) }
    }
}

impl Inner {
    pub(super) fn is_cancelled(&self, upstream: &Upstream, digest: &Digest) -> bool {
        let cancelled = lock(&self.cancelled);
        !cancelled.is_empty() && cancelled.contains(&(upstream.clone(), *digest))
    }

    pub(super) fn uncancel(&self, key: &BlobKey) {
        lock(&self.cancelled).remove(key);
    }
}
