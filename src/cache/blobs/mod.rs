//! The service for blobs: an open file on a hit, a follower of the growing file otherwise.
//!
//! [`BlobCache::find`] looks a blob up, and starts or joins its flight. The work of the flight, on a fetcher, is
//! [`BlobCache::fetch`] in `fetch.rs`: the function that downloads a blob into the store.

mod additional;
mod background;
mod download;
mod elsewhere;
mod fetch;
mod growth;
mod incoming;
mod links;
mod pass_through;
mod progress_log;
mod retry;
mod transfer;
mod wait;
mod wrong;

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::access::Link;
use super::bounded::BoundedCache;
use super::core::Core;
use super::eviction::EvictionService;
use super::manifests::ManifestCache;
use super::negative::Asked;
use super::poller::Poller;
use super::scheduler::{Length, Purpose as JobPurpose};
use super::{CacheError, FlightStatus, How, SIZES_REMEMBERED, lock};
use crate::client_address::ClientAddress;
use crate::flight::{Flights, Follower, Joined, Leader};
use crate::oci::{Digest, ImageName, Upstream};
use crate::store::{Blob, Ingest};
use crate::upstream::{BlobAsk, Source, Standing, UpstreamError};

pub use growth::ConnectionPolicy;
pub use incoming::{GrowingFile, Incoming, SizeSource};
pub use links::LinkWait;
pub use pass_through::{AlreadySent, PassThrough};
pub use retry::RetryPolicy;
pub use wait::BlobWait;

use additional::REFUSING_REMEMBERED;
use elsewhere::Followed;
use fetch::Fetched;
use wait::WaitsFor;

/// How many blobs with wrong content are remembered, with the endpoints that sent them.
const WRONG_REMEMBERED: usize = 1024;

/// The key includes the registry: a registry that a client chose must not affect what clients of another registry
/// receive, nor how long that takes.
type BlobKey = (Upstream, Digest);
pub(super) type BlobFlights = Flights<BlobKey, Incoming, Blob, BlobFailure>;
type BlobFollower = Follower<Incoming, Blob, BlobFailure>;
type BlobLeader = Leader<BlobKey, Incoming, Blob, BlobFailure>;
type BlobJoined = Joined<BlobKey, Incoming, Blob, BlobFailure>;
type SizeFlights = Flights<(ImageName, Digest), (), u64, BlobFailure>;

/// The failure of a download, with the repository for which it was started. Clients of other repositories that joined
/// it must not receive this error: they send their own request.
#[derive(Debug, Clone)]
pub struct BlobFailure {
    /// The repository whose request started the download.
    pub origin: ImageName,
    /// The error.
    pub error: CacheError,
}

/// What the blob is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Its bytes.
    Read,
    /// Only its existence and size (HEAD), which does not cause a download.
    Size,
}

/// What a lookup found.
pub enum BlobLookup {
    /// It is in the store.
    Ready(Blob),
    /// It is being fetched, or its size is.
    Wait(BlobWait),
    /// It is at hand, and it has to be found out whether the repository contains it. Then it can be looked up again.
    Unlinked(LinkWait),
}

/// Looks up and downloads blobs.
pub(super) struct BlobCache {
    core: Arc<Core>,
    manifests: Arc<ManifestCache>,
    eviction: Arc<EvictionService>,
    pub(super) flights: BlobFlights,
    size_flights: SizeFlights,
    /// The repositories for which the flights were started. Locked while a flight is joined, so that no flight is taken for
    /// one of another repository.
    starters: Mutex<BoundedCache<BlobKey, ImageName>>,
    link_flights: links::LinkFlights,
    /// Repositories that contain a blob. Locked as the tables below.
    links: Mutex<BoundedCache<(ImageName, Digest), Link>>,
    /// Sizes of blobs that this process verified. Locked for a lookup or an insertion only, as are the tables below.
    verified_sizes: Mutex<BoundedCache<Digest, u64>>,
    /// Blobs that had the wrong content, and the failures of each endpoint with them.
    wrong: Mutex<BoundedCache<BlobKey, wrong::WrongBlob>>,
    /// Registries that refuse additional connections, and until when.
    refusing: Mutex<BoundedCache<Upstream, Instant>>,
    /// Downloads that wait for a fetcher in the background, so that each is queued once.
    queued_in_background: Mutex<HashSet<BlobKey>>,
    /// Downloads of other processes on this directory that are followed.
    elsewhere: Poller<Followed>,
}

impl BlobCache {
    pub(super) fn new(
        core: Arc<Core>,
        manifests: Arc<ManifestCache>,
        eviction: Arc<EvictionService>,
    ) -> BlobCache {
        BlobCache {
            core,
            manifests,
            eviction,
            flights: Flights::new(),
            size_flights: Flights::new(),
            starters: Mutex::new(BoundedCache::new(SIZES_REMEMBERED)),
            link_flights: Flights::new(),
            links: Mutex::new(BoundedCache::new(SIZES_REMEMBERED)),
            verified_sizes: Mutex::new(BoundedCache::new(SIZES_REMEMBERED)),
            wrong: Mutex::new(BoundedCache::new(WRONG_REMEMBERED)),
            refusing: Mutex::new(BoundedCache::new(REFUSING_REMEMBERED)),
            queued_in_background: Mutex::default(),
            elsewhere: Poller::default(),
        }
    }

    /// The downloads under way, in the order of their names.
    pub(super) fn statuses(&self) -> Vec<FlightStatus> {
        let status = |key: BlobKey| {
            let flight = self.flights.peek(&key)?;
            let header = flight.header();
            Some(FlightStatus {
                upstream: key.0,
                digest: key.1,
                bytes: flight.available(),
                size: header.as_ref().and_then(|header| header.size),
                connections: header
                    .as_ref()
                    .map_or(0, |header| header.connections.load(Ordering::Relaxed)),
                origin: header.map(|header| header.origin),
            })
        };
        let keys = self.flights.keys().into_iter();
        let mut all: Vec<FlightStatus> = keys.filter_map(status).collect();
        all.sort_by_key(|flight| (flight.upstream.clone(), flight.digest.to_string()));
        all
    }

    /// How many downloads are under way.
    pub(super) fn flights(&self) -> usize {
        self.flights.len()
    }

    /// How many requests for the size of a blob are under way.
    pub(super) fn size_flights(&self) -> usize {
        self.size_flights.len()
    }

    /// Ends a download at its next bytes; what was received is kept. `false` if there is no such download.
    pub(super) fn cancel(&self, upstream: &Upstream, digest: &Digest) -> bool {
        self.flights.cancel(&(upstream.clone(), *digest))
    }

    /// Forgets a blob's verified size: its file was damaged.
    pub(super) fn forget_size(&self, digest: &Digest) {
        lock(&self.verified_sizes).remove(digest);
    }

    /// Forgets which endpoints of these registries sent wrong content.
    pub(super) fn forget_wrong(&self, upstreams: &[Upstream]) {
        lock(&self.wrong).retain(|(upstream, _)| !upstreams.contains(upstream));
    }

    /// The blob of a digest. Does not wait for anything but the local disk.
    ///
    /// # Errors
    /// [`CacheError`] if it is known that the blob is not available.
    pub(super) fn find(
        self: &Arc<Self>,
        name: &ImageName,
        digest: &Digest,
        purpose: Purpose,
        client: Option<ClientAddress>,
        needed: Link,
    ) -> Result<BlobLookup, CacheError> {
        if let Some(found) = self.find_at_hand(name, digest)? {
            return self.at_hand_for(name, digest, found, client, needed);
        }
        if self.needs_link_first(name, digest, needed) {
            return self.wait_for_link(name, digest, client, needed);
        }
        let size_hint = self.size_hint(name, digest);
        let wait = match purpose {
            Purpose::Read => self.ask_for_blob(name, digest, size_hint, client)?,
            Purpose::Size => self.ask_for_size(name, digest, size_hint, client)?,
        };
        match (purpose, wait.how) {
            // Another request was faster, since the look.
            (Purpose::Read, How::Join) => {
                self.at_hand_for(name, digest, BlobLookup::Wait(wait), client, needed)
            }
            _ => Ok(BlobLookup::Wait(wait)),
        }
    }

    /// A blob that is in the store or being downloaded.
    ///
    /// # Errors
    /// [`CacheError`] if it is known that the blob is not available.
    pub(super) fn find_at_hand(
        &self,
        name: &ImageName,
        digest: &Digest,
    ) -> Result<Option<BlobLookup>, CacheError> {
        let size_hint = self.size_hint(name, digest);
        if let Some(blob) = self.core.store.find_blob(digest, size_hint)? {
            return Ok(Some(BlobLookup::Ready(blob)));
        }
        if self.core.is_alone() {
            return Err(CacheError::NotCached);
        }
        // Before the negative cache: another repository's download serves this one as well.
        if let Some(flight) = self.flights.find(&(name.upstream.clone(), *digest)) {
            let waits_for = WaitsFor::Bytes(flight);
            let (name, how) = (name.clone(), How::Join);
            return Ok(Some(BlobLookup::Wait(BlobWait { waits_for, name, how, size_hint })));
        }
        if self.core.negative.is_missing(&Asked::Blob(name.clone(), *digest), self.core.now()) {
            return Err(CacheError::KnownMissing);
        }
        if let Some(wait) = self.core.negative.backoff(name, self.core.now())
            && self.core.sources.shared_bucket().is_none()
        {
            return Err(CacheError::BackingOff { wait });
        }
        Ok(None)
    }

    /// Resumes the downloads of listed registries that were interrupted, in this process or an earlier one, in the
    /// background. Does not wait. Returns how many there are.
    ///
    /// Those of unlisted registries wait for a client: anyone can start any number of them.
    pub(super) fn resume_downloads(self: &Arc<Self>) -> usize {
        if self.core.is_offline() {
            return 0;
        }
        let partials = self.core.store.partials();
        let idle = partials.iter().filter(|(name, digest)| {
            self.flights.peek(&(name.upstream.clone(), *digest)).is_none()
                && matches!(self.core.sources.standing(&name.upstream), Ok(Standing::Listed))
        });
        let mut resumed = 0;
        for (name, digest) in idle {
            resumed += usize::from(self.fetch_in_background(name, digest, None, None));
        }
        resumed
    }

    pub(super) fn ask_for_blob(
        self: &Arc<Self>,
        name: &ImageName,
        digest: &Digest,
        size_hint: Option<u64>,
        client: Option<ClientAddress>,
    ) -> Result<BlobWait, CacheError> {
        let purpose = self.core.purpose(name, client)?;
        let key = (name.upstream.clone(), *digest);
        let joined = self.join(name, &key);
        let how = if joined.leader.is_some() { How::Miss } else { How::Join };
        if let Some(leader) = joined.leader {
            self.submit_flight(purpose, name.clone(), leader, size_hint, None);
        }
        let waits_for = WaitsFor::Bytes(joined.flight);
        Ok(BlobWait { waits_for, name: name.clone(), how, size_hint })
    }

    /// Joins the flight of a blob, or starts one for this repository.
    fn join(&self, name: &ImageName, key: &BlobKey) -> BlobJoined {
        let mut starters = lock(&self.starters);
        let joined = self.flights.join(key, || given_up(name));
        if joined.leader.is_some() {
            starters.insert(key.clone(), name.clone());
        }
        joined
    }

    /// Queues the work of a flight that has followers.
    fn submit_flight(
        self: &Arc<Self>,
        purpose: JobPurpose,
        name: ImageName,
        leader: BlobLeader,
        size_hint: Option<u64>,
        suspended: Option<Ingest>,
    ) {
        let (cache, client) = (Arc::clone(self), purpose.client);
        let flight = Arc::clone(leader.flight());
        self.core.blob_fetchers.submit(
            purpose,
            move || flight.has_followers(),
            move || {
                cache.run_flight(name, leader, size_hint, client, suspended);
            },
        );
    }

    /// Does the work of a flight, on a fetcher; a verified blob is committed by another thread. A blob with wrong content is fetched once more, for clients that retry:
    /// the network may have corrupted it, or there is another endpoint.
    ///
    /// A suspended download continues later: after the jobs that wait now if it has followers, in the background
    /// otherwise.
    fn run_flight(
        self: &Arc<Self>,
        name: ImageName,
        leader: BlobLeader,
        size_hint: Option<u64>,
        client: Option<ClientAddress>,
        mut suspended: Option<Ingest>,
    ) {
        leader.begin();
        let key = leader.key().clone();
        let result = self.fetch(&name, &leader, size_hint, &mut suspended);
        if matches!(&result, Err(CacheError::Suspended)) {
            let flight = Arc::clone(leader.flight());
            match leader.abandon(given_up(&name)) {
                Some(leader) => {
                    if let Ok(purpose) = self.core.purpose(&name, client) {
                        self.submit_flight(purpose, name, leader, size_hint, suspended);
                    }
                }
                // Cancelled since it was suspended.
                None if flight.is_cancelled() => {}
                None => {
                    // The next flight opens the partial again.
                    drop(suspended);
                    self.fetch_in_background(&name, &key.1, size_hint, client);
                }
            }
            return;
        }
        match result {
            Ok(Fetched::Verified(verified)) => {
                let cache = Arc::clone(self);
                self.core.committers.submit(move || {
                    let stored = verified.commit().map_err(CacheError::from);
                    cache.end_flight(name, leader, size_hint, client, stored);
                });
            }
            Ok(Fetched::Stored(blob)) => {
                self.end_flight(name, leader, size_hint, client, Ok(blob));
            }
            Ok(Fetched::Elsewhere) => self.follow(name, leader, size_hint, client),
            Err(error) => self.end_flight(name, leader, size_hint, client, Err(error)),
        }
    }

    /// Ends a flight: its blob is in the store, or cannot be.
    fn end_flight(
        self: &Arc<Self>,
        name: ImageName,
        leader: BlobLeader,
        size_hint: Option<u64>,
        client: Option<ClientAddress>,
        result: Result<Blob, CacheError>,
    ) {
        let key = leader.key().clone();
        if let Err(error) = &result {
            error.log_blob(&name, &key.1, leader.flight().has_followers());
        }
        let is_wrong = matches!(&result, Err(CacheError::WrongContent { .. }));
        self.core.metrics.downloaded(if result.is_ok() { "done" } else { "failed" });
        leader.finish(result.map_err(|error| BlobFailure { origin: name.clone(), error }));
        if !matches!(self.core.sources.standing(&name.upstream), Ok(Standing::Listed)) {
            // Clients choose the names of unlisted registries, so the directories of these do not stay.
            self.core.store.remove_empty_partials(&name.upstream);
        }
        if is_wrong && self.should_try_again(&key) {
            self.try_again(name, &key, size_hint, client);
        }
    }

    /// Starts another flight at once, so that clients that retry join it.
    fn try_again(
        self: &Arc<Self>,
        name: ImageName,
        key: &BlobKey,
        size_hint: Option<u64>,
        client: Option<ClientAddress>,
    ) {
        let Ok(purpose) = self.core.purpose(&name, client) else { return };
        let joined = self.join(&name, key);
        drop(joined.flight);
        if let Some(leader) = joined.leader {
            let cache = Arc::clone(self);
            let run = move || cache.run_flight(name, leader, size_hint, client, None);
            self.core.blob_fetchers.submit(purpose, || true, run);
        }
    }

    fn ask_for_size(
        self: &Arc<Self>,
        name: &ImageName,
        digest: &Digest,
        size_hint: Option<u64>,
        client: Option<ClientAddress>,
    ) -> Result<BlobWait, CacheError> {
        let purpose = self.core.purpose(name, client)?;
        let key = (name.clone(), *digest);
        let joined = self.size_flights.join(&key, || given_up(name));
        let cache = Arc::clone(self);
        let (flight, how) = self.core.run_metadata_flight(joined, purpose, move |leader| {
            let (name, digest) = leader.key().clone();
            let size = cache.fetch_size(&name, &digest);
            leader.finish(size.map_err(|error| BlobFailure { origin: name, error }));
        });
        let waits_for = WaitsFor::Size(flight);
        Ok(BlobWait { waits_for, name: name.clone(), how, size_hint })
    }
}

impl BlobCache {
    /// The expected size of a blob in bytes: the verified size, or the one that manifests of this repository state.
    fn size_hint(&self, name: &ImageName, digest: &Digest) -> Option<u64> {
        let verified = lock(&self.verified_sizes).get(digest).copied();
        verified.or_else(|| self.manifests.stated_size(name, digest))
    }

    /// Requests a blob's size with HEAD, or with the head of a GET response if HEAD does not report it.
    fn fetch_size(&self, name: &ImageName, digest: &Digest) -> Result<u64, CacheError> {
        if self.core.sources.asks_others(&name.upstream) {
            self.prove_link(name, digest, Link::Assumed)?;
        }
        let source = self.core.source(&name.upstream)?;
        let endpoint_failures = self.endpoint_failures(name, digest);
        let reported = match endpoint_failures.is_without_bucket() {
            false => source.blob_size(&name.repository, digest),
            true => Ok(None),
        };
        // A 404 for HEAD is not recorded, since it would apply to GET: some registries do not support HEAD well.
        if !reported.as_ref().is_err_and(UpstreamError::is_not_found) {
            self.note_outcome(&*source, name, digest, &reported);
        }
        // Some registries report a length of 0 if they do not know the size.
        if let Some(size) = reported?.filter(|size| *size > 0 || digest.is_of_nothing()) {
            return Ok(size);
        }
        let begun = source.blob(&BlobAsk {
            repository: &name.repository,
            digest,
            from: 0,
            to: None,
            additional_to: None,
            endpoint_failures: &endpoint_failures,
        });
        self.note_outcome(&*source, name, digest, &begun);
        begun?.size.or_else(|| self.size_hint(name, digest)).ok_or_else(|| {
            let reason = "the registry does not report the size of this blob";
            UpstreamError::bad_answer(&format!("{name}@{digest}"), reason).into()
        })
    }

    fn note_outcome<T>(
        &self,
        source: &dyn Source,
        name: &ImageName,
        digest: &Digest,
        result: &Result<T, UpstreamError>,
    ) {
        self.core.note_outcome(source, name, Asked::Blob(name.clone(), *digest), result);
    }
}

/// The failure of a flight whose leader was dropped.
fn given_up(name: &ImageName) -> BlobFailure {
    BlobFailure { origin: name.clone(), error: CacheError::GivenUp }
}
