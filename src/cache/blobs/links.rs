//! In which repositories a cached blob is served: in those that contain it (`blobs: linked`).
//!
//! Blobs are stored once, whichever repositories contain them. Without this check, whoever knows a digest gets the blob in any
//! repository. It applies wherever bytes come from elsewhere than the repository itself: from the disk, from another
//! process, from a download for another repository, and from peers, parents and the bucket, which do not know about
//! repositories. The proof is
//! * that the blob was downloaded from the repository before, or
//! * that its registry says so, or
//! * that a cached manifest of the repository names the blob, unless the blob is private (`cache/access/private.rs`).
//!
//! Without any of them, blobs that are not private are also served in a repository of which no manifest is cached, while its
//! registry cannot be asked.
//!
//! For a client that may pull some repositories only (`serverAuthConfig.oidc[].allow[].repositories`), every blob is private.
//!
//! The first two are kept on the disk if there are private repositories or such clients, so that they count while the registry
//! is down. So is what an operator imports.
//!
//! # Interleavings
//! * *The blob is cached, or is being downloaded for another repository, between the lookup and the join.* The flight of this
//!   repository finds that when it begins, and looks for a proof first ([`BlobCache::prove_link`]).
//! * *A request finds a flight.* It joins without a proof only if the flight was started for its own repository; flights are
//!   joined, and compared with the repository that started them, under one lock.
//! * *The manifest is cached between the lookup and the search.* The search reads the disk after it was queued, so it finds it.
//! * *A private manifest is cached after another repository was found to contain one of its blobs by a manifest.* That proof is
//!   not kept: the next request needs a better one.

use std::io;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use super::{BlobCache, BlobLookup};
use crate::cache::access::{BlobAccess, Link};
use crate::cache::negative::Asked;
use crate::cache::scheduler::Length;
use crate::cache::{CacheError, PATIENCE, lock};
use crate::client_address::ClientAddress;
use crate::flight::{Flights, Follower};
use crate::oci::{Digest, ImageName, Upstream};
use crate::store::StoreError;
use crate::upstream::{Standing, Wanted};

/// How many manifests of a repository are searched for a blob. The registry is asked about the rest.
const MANIFESTS_SEARCHED_MAX: usize = 1024;

pub(super) type LinkFlights = Flights<(ImageName, Digest, Link), (), (), CacheError>;

/// Waits for a proof.
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
    /// What a client gets that has found a blob at hand: the blob if the repository is known to contain it, or else something
    /// to wait for.
    ///
    /// # Errors
    /// [`CacheError`] if it is known that the repository does not contain it.
    pub(super) fn at_hand_for(
        self: &Arc<Self>,
        name: &ImageName,
        digest: &Digest,
        found: BlobLookup,
        client: Option<ClientAddress>,
        needed: Link,
    ) -> Result<BlobLookup, CacheError> {
        let needed = match found {
            BlobLookup::Wait(_) => self.needed_to_follow(name, digest, needed),
            _ => needed,
        };
        // Larder itself asks for what it needs.
        let is_internal = client.is_none();
        if is_internal
            || self.is_linked(name, digest, needed)
            || self.is_own_download(name, digest, &found, needed)
        {
            return Ok(found);
        }
        self.wait_for_link(name, digest, client, needed)
    }

    /// What is needed to follow a running download. One for a private repository marks the blob only once the registry has
    /// responded, so until then nothing else tells that it is private.
    fn needed_to_follow(&self, name: &ImageName, digest: &Digest, needed: Link) -> Link {
        let access = &self.core.settings().access;
        let key = (name.upstream.clone(), *digest);
        match lock(&self.starters).get(&key) {
            Some(starter) if starter != name && access.is_private(starter) => Link::Proven,
            _ => needed,
        }
    }

    /// Whether a client has to wait for a proof before the blob is asked for: others send what they have in any repository.
    pub(super) fn needs_link_first(&self, name: &ImageName, digest: &Digest, needed: Link) -> bool {
        needed == Link::Proven
            && self.core.sources.asks_others(&name.upstream)
            && !self.is_linked(name, digest, needed)
    }

    /// # Errors
    /// [`CacheError`] if it is known that the repository does not contain the blob.
    pub(super) fn wait_for_link(
        self: &Arc<Self>,
        name: &ImageName,
        digest: &Digest,
        client: Option<ClientAddress>,
        needed: Link,
    ) -> Result<BlobLookup, CacheError> {
        let asked = Asked::Blob(name.clone(), *digest);
        if self.core.negative.is_missing(&asked, self.core.now()) {
            return Err(CacheError::KnownMissing);
        }
        let purpose = self.core.purpose_of_search(name, client)?;
        let key = (name.clone(), *digest, needed);
        let joined = self.link_flights.join(&key, || CacheError::GivenUp);
        let service = Arc::clone(self);
        let (flight, _) = self.core.run_metadata_flight(joined, purpose, move |leader| {
            let (name, digest, needed) = leader.key().clone();
            leader.finish(service.prove_link(&name, &digest, needed));
        });
        Ok(BlobLookup::Unlinked(LinkWait { flight }))
    }

    /// Whether enough is known of a blob and a repository, or does not matter.
    pub(in crate::cache) fn is_linked(
        &self,
        name: &ImageName,
        digest: &Digest,
        needed: Link,
    ) -> bool {
        let access = &self.core.settings().access;
        let may_assume = needed == Link::Assumed;
        let is_open = || may_assume && !self.may_be_private(digest);
        if access.blobs_of(name) == BlobAccess::Any && is_open() {
            return true;
        }
        // The usual case first: a pull of an image whose manifest this process knows.
        if is_open() && self.manifests.stated_size(name, digest).is_some() {
            return true;
        }
        let link = lock(&self.links).get(&(name.clone(), *digest)).copied();
        link.is_some_and(|link| link == Link::Proven || is_open())
    }

    /// Whether a blob is not for everyone whose manifest names it.
    pub(super) fn is_restricted(&self, digest: &Digest) -> bool {
        self.core.settings().access.strictest_link() == Link::Proven || self.may_be_private(digest)
    }

    /// Whether a download was started for this repository. Not sufficient as a proof if others are asked for it as well.
    fn is_own_download(
        &self,
        name: &ImageName,
        digest: &Digest,
        found: &BlobLookup,
        needed: Link,
    ) -> bool {
        if needed == Link::Proven && self.core.sources.asks_others(&name.upstream) {
            return false;
        }
        let key = (name.upstream.clone(), *digest);
        let starters = lock(&self.starters);
        matches!(found, BlobLookup::Wait(_))
            && self.flights.peek(&key).is_some()
            && starters.get(&key) == Some(name)
    }

    /// Remembers that a repository contains a blob: a peer says so, which has asked for its client.
    pub(in crate::cache) fn remember_link(&self, name: &ImageName, digest: &Digest) {
        lock(&self.links).insert((name.clone(), *digest), Link::Proven);
    }

    /// Remembers what is good enough for blobs that are not private.
    fn assume_link(&self, name: &ImageName, digest: &Digest) {
        lock(&self.links).insert((name.clone(), *digest), Link::Assumed);
    }

    /// Remembers a proof that a repository contains a blob, also for other processes and after a restart.
    pub(super) fn keep_link(&self, name: &ImageName, digest: &Digest) {
        let known = lock(&self.links).get(&(name.clone(), *digest)).copied();
        let is_new = known != Some(Link::Proven);
        self.remember_link(name, digest);
        if is_new
            && self.core.settings().access.keeps_links()
            && let Err(error) = self.core.store.put_links(name, [digest])
        {
            log::debug!(repository:% = name, error:% = error; "cannot record that a repository contains a blob");
        }
    }

    /// Finds a proof, on a fetcher: on the disk, in the cached manifests, or at the registry.
    ///
    /// # Errors
    /// [`CacheError`] if there is none.
    pub(super) fn prove_link(
        &self,
        name: &ImageName,
        digest: &Digest,
        needed: Link,
    ) -> Result<(), CacheError> {
        if self.is_linked(name, digest, needed) {
            return Ok(());
        }
        let settings = self.core.settings();
        if settings.access.keeps_links() && self.core.store.links(name)?.contains(digest) {
            self.remember_link(name, digest);
            return Ok(());
        }
        if settings.access.has_clients() {
            self.read_private_manifests()?;
        }
        let is_private = needed == Link::Proven || self.may_be_private(digest);
        let manifests = match is_private {
            true => Vec::new(),
            false => self.core.store.find_manifests(name)?,
        };
        if self.is_in_one_of(&manifests, name, digest) {
            self.assume_link(name, digest);
            return Ok(());
        }
        let may_confirm = !is_private || self.may_confirm(&name.upstream, digest)?;
        // Asked in any case: the response must not depend on what is cached.
        match self.ask_for_link(name, digest) {
            Ok(()) if !may_confirm => Err(CacheError::KnownMissing),
            Ok(()) => {
                self.keep_link(name, digest);
                Ok(())
            }
            // The same words as without the blob: whether it is cached is not the client's business.
            Err(CacheError::Upstream(error)) if error.is_not_found() || error.is_denied() => {
                Err(CacheError::KnownMissing)
            }
            // Nothing is known of the repository, and what is cached should be served while the registry is down.
            Err(_) if !is_private && manifests.is_empty() => {
                self.assume_link(name, digest);
                Ok(())
            }
            Err(CacheError::Upstream(error)) => Err(CacheError::Upstream(error.of_get())),
            Err(error) => Err(error),
        }
    }

    fn may_be_private(&self, digest: &Digest) -> bool {
        self.core.settings().access.has_clients()
            && self.core.private.may_have(&self.core.store, digest)
    }

    /// Whether a download for a repository may use the bucket, which has the blobs of private repositories as well and does not
    /// know which ones these are. It may if the repository is proven to contain the blob.
    pub(super) fn may_use_bucket(&self, name: &ImageName, digest: &Digest) -> bool {
        if !self.core.settings().access.has_clients()
            || self.core.sources.shared_bucket().is_none()
            || self.is_linked(name, digest, Link::Proven)
        {
            return true;
        }
        match self.prove_link(name, digest, Link::Proven) {
            Ok(()) => true,
            Err(error) => {
                log::debug!(repository:% = name, digest:% = digest, error:% = error; "the bucket is not asked for a blob");
                false
            }
        }
    }

    /// Whether a registry's word is good for a private blob. One that anyone may run would say so of everything, unless it
    /// has sent the blob itself.
    pub(super) fn may_confirm(
        &self,
        upstream: &Upstream,
        digest: &Digest,
    ) -> Result<bool, CacheError> {
        if upstream.is_well_known()
            || self.core.settings().access.is_named(upstream)
            || matches!(self.core.sources.standing(upstream), Ok(Standing::Listed))
        {
            return Ok(true);
        }
        let mut has_sent = false;
        let walked = self.core.store.each_repository_of(upstream, &mut |name| {
            let links = self.core.store.links(name).map_err(io::Error::other)?;
            has_sent = has_sent || links.contains(digest);
            Ok(())
        });
        walked.map_err(|error| CacheError::from(StoreError::scan(error)))?;
        Ok(has_sent)
    }

    fn ask_for_link(&self, name: &ImageName, digest: &Digest) -> Result<(), CacheError> {
        let source = self.core.source(&name.upstream)?;
        self.core.stop_if_offline(&*source)?;
        let asked = source.ask_to_pull(&name.repository, &Wanted::Blob(*digest));
        self.core.note_outcome(&*source, name, Asked::Blob(name.clone(), *digest), &asked);
        asked?;
        Ok(())
    }

    fn is_in_one_of(&self, manifests: &[Digest], name: &ImageName, digest: &Digest) -> bool {
        manifests.iter().take(MANIFESTS_SEARCHED_MAX).any(|manifest| {
            let parsed = self.manifests.parsed(name, manifest);
            parsed.is_some_and(|parsed| parsed.descriptors().any(|each| each.digest == *digest))
        })
    }

    /// Learns which blobs are private, once per process and policy.
    fn read_private_manifests(&self) -> Result<(), CacheError> {
        let private = &self.core.private;
        private.complete(|| {
            let settings = self.core.settings();
            let policy = &settings.access;
            let mut add = |name: &ImageName| {
                if policy.is_private(name) {
                    let found = self.core.store.find_manifests(name);
                    for digest in found.map_err(io::Error::other)? {
                        // One that cannot be read is not served either.
                        if let Some(manifest) = self.manifests.parsed(name, &digest) {
                            private.add_manifest(&self.core.store, digest, &manifest);
                        }
                    }
                }
                Ok(())
            };
            let mut registries = policy.by_upstream.keys();
            let walked = registries
                .try_for_each(|upstream| self.core.store.each_repository_of(upstream, &mut add));
            walked.map_err(|error| CacheError::from(StoreError::scan(error)))
        })
    }

    /// Looks for a proof in the background, while the registry can be asked.
    pub(in crate::cache) fn prove_link_later(self: &Arc<Self>, name: &ImageName, digest: &Digest) {
        let access = &self.core.settings().access;
        let needed = access.strictest_link();
        if !access.keeps_links() || self.is_linked(name, digest, needed) {
            return;
        }
        let Ok(purpose) = self.core.purpose(name, None) else { return };
        let (service, name, digest) = (Arc::clone(self), name.clone(), *digest);
        self.core.metadata_fetchers.submit_in_background(purpose, Length::Short, move || {
            if let Err(error) = service.prove_link(&name, &digest, needed) {
                log::debug!(repository:% = name, digest:% = digest, error:% = error; "no proof that the repository contains the blob");
            }
        });
    }
}
