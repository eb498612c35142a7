//! In which repositories a cached blob is served: in those that contain it (`blobs: linked`).
//!
//! Blobs are stored once, whichever repositories contain them. Without this check, whoever knows a digest gets the blob in any
//! repository, also if it is from one that is not theirs. A repository contains a blob if a cached manifest of it says so, if
//! the blob was downloaded from it, or if its registry says so. What must be downloaded from the registry anyway needs no check.
//!
//! # Interleavings
//! * *The manifest is cached between the lookup and the search.* The search reads the disk after it was queued, so it finds it.
//! * *The download ends between the lookup of the blob and that of its flight.* Then there is neither, and the request finds the
//!   blob, without a check. The window is that of two lookups in a row, and the download was for the same registry.
//! * *Another repository starts a download while this one is looked up.* Flights are joined, and compared with the repository that
//!   started them, under one lock.

use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use super::BlobCache;
use crate::cache::access::BlobAccess;
use crate::cache::negative::Asked;
use crate::cache::{CacheError, PATIENCE, lock};
use crate::client_address::ClientAddress;
use crate::flight::{Flights, Follower};
use crate::oci::{Digest, ImageName};
use crate::upstream::Wanted;

/// How many manifests of a repository are searched for a blob. The registry is asked about the rest.
const MANIFESTS_SEARCHED_MAX: usize = 1024;

pub(super) type LinkFlights = Flights<(ImageName, Digest), (), (), CacheError>;

/// Whether a repository contains a blob.
pub enum LinkLookup {
    /// It does, or it does not matter.
    Known,
    /// That is being found out.
    Wait(LinkWait),
}

/// Waits for the search and for the registry.
pub struct LinkWait {
    flight: Follower<(), (), CacheError>,
}

impl LinkWait {
    /// Nothing, or why the blob is not served, once that is known.
    pub fn poll(&self, waker: &Waker) -> Poll<Result<(), CacheError>> {
        self.flight.poll_outcome(waker)
    }

    /// How long a client waits.
    pub fn patience(&self) -> Duration {
        PATIENCE
    }

    /// Stops waiting. `waker` is the one that was polled with.
    pub fn give_up(self, waker: &Waker) -> CacheError {
        self.flight.forget(waker);
        CacheError::TimedOut
    }
}

impl BlobCache {
    /// Whether a repository contains a blob. Does not wait for anything but the local disk.
    ///
    /// # Errors
    /// [`CacheError`] if it is known that it does not, or if that cannot be found out.
    pub(in crate::cache) fn link(
        self: &Arc<Self>,
        name: &ImageName,
        digest: &Digest,
        client: Option<ClientAddress>,
    ) -> Result<LinkLookup, CacheError> {
        let is_any = self.core.settings().access.blobs_of(name) == BlobAccess::Any;
        if is_any || self.is_linked(name, digest) || self.is_for_registry(name, digest)? {
            return Ok(LinkLookup::Known);
        }
        let asked = Asked::Blob(name.clone(), *digest);
        if self.core.negative.is_missing(&asked, self.core.now()) {
            return Err(CacheError::KnownMissing);
        }
        let purpose = self.core.purpose_of_search(name, client)?;
        let joined = self.link_flights.join(&(name.clone(), *digest), || CacheError::GivenUp);
        let service = Arc::clone(self);
        let (flight, _) = self.core.run_metadata_flight(joined, purpose, move |leader| {
            let (name, digest) = leader.key().clone();
            leader.finish(service.find_link(&name, &digest));
        });
        Ok(LinkLookup::Wait(LinkWait { flight }))
    }

    /// Whether it is known that a repository contains a blob.
    pub(in crate::cache) fn is_linked(&self, name: &ImageName, digest: &Digest) -> bool {
        self.manifests.stated_size(name, digest).is_some()
            || lock(&self.links).get(&(name.clone(), *digest)).is_some()
    }

    /// Whether the registry itself decides, because the blob is not at hand, or is being downloaded from this repository.
    fn is_for_registry(&self, name: &ImageName, digest: &Digest) -> Result<bool, CacheError> {
        let sources = &self.core.sources;
        if sources.shared_bucket().is_some() || !sources.peers(None).is_empty() {
            return Ok(false);
        }
        if self.core.store.find_blob(digest, None)?.is_some() {
            return Ok(false);
        }
        let key = (name.upstream.clone(), *digest);
        let starters = lock(&self.starters);
        Ok(self.flights.peek(&key).is_none() || starters.get(&key) == Some(name))
    }

    /// Remembers that a repository contains a blob.
    pub(super) fn remember_link(&self, name: &ImageName, digest: &Digest) {
        lock(&self.links).insert((name.clone(), *digest), ());
    }

    /// Searches the cached manifests, and then asks the registry; on a fetcher.
    fn find_link(&self, name: &ImageName, digest: &Digest) -> Result<(), CacheError> {
        let manifests = self.core.store.find_manifests(name)?;
        let is_in = |manifest: &Digest| {
            let parsed = self.manifests.parsed(name, manifest);
            parsed.is_some_and(|parsed| parsed.descriptors().any(|each| each.digest == *digest))
        };
        if !manifests.iter().take(MANIFESTS_SEARCHED_MAX).any(is_in) {
            let source = self.core.source(&name.upstream)?;
            self.core.stop_if_offline(&*source)?;
            let asked = source.ask_to_pull(&name.repository, &Wanted::Blob(*digest));
            self.core.note_outcome(&*source, name, Asked::Blob(name.clone(), *digest), &asked);
            asked?;
        }
        self.remember_link(name, digest);
        Ok(())
    }
}
