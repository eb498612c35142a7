//! Blobs: an open file on a hit, a follower of the growing file on everything else.

use std::fs::File;
use std::sync::Arc;
use std::task::{Poll, Waker, ready};

use super::misses::Asked;
use super::{Cache, CacheError, How, Inner, JobPurpose, counts, lock};
use crate::flight::{Flights, Follower, Leader};
use crate::oci::{Digest, ImageName, Upstream};
use crate::store::{Access, Blob, IngestError};
use crate::upstream::{BlobAsk, Standing, UpstreamError};

/// How many manifests of a repository are read for the sizes in them, and how large each may be: some
/// milliseconds' worth.
const MANIFESTS_LEARNED_MAX: usize = 8;
const MANIFEST_LEARNED_BYTES_MAX: u64 = 64 * 1024;

/// By upstream as well: a registry that a client chose must have no say in what the clients of another
/// one get, not even in how long it takes.
pub(super) type BlobKey = (Upstream, Digest);
pub(super) type BlobFlights = Flights<BlobKey, Incoming, Blob, BlobFailure>;
type BlobFollower = Follower<Incoming, Blob, BlobFailure>;
pub(super) type BlobLeader = Leader<BlobKey, Incoming, Blob, BlobFailure>;
pub(super) type SizeFlights = Flights<(ImageName, Digest), (), u64, BlobFailure>;

/// A blob that is arriving: for whom it was begun, where its bytes go, and how many there will be.
#[derive(Debug, Clone)]
pub struct Incoming {
    /// The repository whose request began it.
    pub origin: ImageName,
    /// The growing file, to be read by offset up to what the flight says is available.
    pub file: Arc<File>,
    /// The size in bytes, if upstream or a manifest told.
    pub size: Option<u64>,
    /// Who told it.
    pub told_by: ToldBy,
}

/// Who told the size of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToldBy {
    /// The registry, or this process has verified it.
    Registry,
    /// A manifest of the repository for which the download began, since the registry told none: anybody can
    /// publish one, so it counts for that repository alone.
    Manifest,
}

/// A download failed, for whom it was begun. Who joined it from another repository has a registry of
/// their own to ask, and no business with what this one said.
#[derive(Debug, Clone)]
pub struct BlobFailure {
    /// The repository whose request began the download.
    pub origin: ImageName,
    /// What went wrong.
    pub error: CacheError,
}

/// What the blob is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Its bytes.
    Read,
    /// Only whether it is there and how large (HEAD): no reason to download it.
    Size,
}

/// What a lookup found.
pub enum BlobLookup {
    /// It is in the store.
    Ready(Blob),
    /// It is being fetched, or its size is.
    Wait(BlobWait),
}

/// Follows a download, or a question for a size.
pub struct BlobWait {
    waits_for: WaitsFor,
    name: ImageName,
    /// How the answer will have come about.
    pub how: How,
    /// The size that a manifest told, in bytes.
    pub size_hint: Option<u64>,
}

enum WaitsFor {
    Bytes(BlobFollower),
    Size(Follower<(), u64, BlobFailure>),
}

impl BlobWait {
    /// The size, as soon as it is known; for [`Purpose::Size`], and for the head of an answer.
    ///
    /// A download of unknown size is pending here until it has ended.
    pub fn poll_size(&self, waker: &Waker) -> Poll<Result<u64, BlobFailure>> {
        match &self.waits_for {
            WaitsFor::Size(flight) => flight.poll_outcome(waker),
            WaitsFor::Bytes(flight) => match flight.poll_header(waker) {
                Poll::Ready(Ok(incoming)) if self.believes(&incoming) => {
                    incoming.size.map_or(Poll::Pending, |size| Poll::Ready(Ok(size)))
                }
                Poll::Ready(Ok(_)) => flight.poll_outcome(waker).map_ok(|blob| blob.size),
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Pending => Poll::Pending,
            },
        }
    }

    /// The growing file, once it is there. Pending for ever if only the size was asked for.
    pub fn poll_file(&self, waker: &Waker) -> Poll<Result<Incoming, BlobFailure>> {
        match &self.waits_for {
            WaitsFor::Bytes(flight) => flight.poll_header(waker),
            WaitsFor::Size(_) => Poll::Pending,
        }
    }

    /// The size, once the blob has its name; pending for ever if only the size was asked for.
    pub fn poll_end(&self, waker: &Waker) -> Poll<Result<u64, BlobFailure>> {
        match &self.waits_for {
            WaitsFor::Bytes(flight) => flight.poll_outcome(waker).map_ok(|blob| blob.size),
            WaitsFor::Size(_) => Poll::Pending,
        }
    }

    /// Stops waiting with this waker.
    pub fn forget(&self, waker: &Waker) {
        match &self.waits_for {
            WaitsFor::Bytes(flight) => flight.forget(waker),
            WaitsFor::Size(flight) => flight.forget(waker),
        }
    }

    /// How many bytes may be read, once more than `position`.
    pub fn poll_available(&self, position: u64, waker: &Waker) -> Poll<Result<u64, BlobFailure>> {
        let WaitsFor::Bytes(flight) = &self.waits_for else { return Poll::Pending };
        let available = ready!(flight.poll_available(position, waker))?;
        if available > position {
            return Poll::Ready(Ok(available));
        }
        // It has ended well and shows no more: the size that was told was wrong.
        let blob = ready!(flight.poll_outcome(waker))?;
        let believed = flight.header().filter(|incoming| self.believes(incoming));
        Poll::Ready(match believed.map(|incoming| (incoming.size, incoming.origin)) {
            Some((Some(expected), origin)) if expected != blob.size => {
                let error = IngestError::WrongSize { expected, actual: blob.size }.into();
                Err(BlobFailure { origin, error })
            }
            _ => Ok(blob.size),
        })
    }

    /// Whether the size of a download is one for this client.
    fn believes(&self, incoming: &Incoming) -> bool {
        incoming.size.is_some_and(|size| match incoming.told_by {
            ToldBy::Registry => true,
            ToldBy::Manifest => incoming.origin == self.name || self.size_hint == Some(size),
        })
    }
}

impl Cache {
    /// The blob of a digest. Does not wait for anything but the local disk.
    ///
    /// # Errors
    /// [`CacheError`] if it is known that there is none to be had.
    pub fn blob(
        &self,
        name: &ImageName,
        digest: &Digest,
        purpose: Purpose,
    ) -> Result<BlobLookup, CacheError> {
        let inner = &self.inner;
        let size_hint = inner.size_hint(name, digest);
        if let Some(blob) = inner.store.find_blob(digest, size_hint)? {
            return Ok(BlobLookup::Ready(blob));
        }
        if inner.is_offline() {
            return Err(CacheError::NotCached);
        }
        // Before the negative cache: another repository's download serves this one as well.
        if let Some(flight) = inner.blobs.find(&(name.upstream.clone(), *digest)) {
            let waits_for = WaitsFor::Bytes(flight);
            let (name, how) = (name.clone(), How::Join);
            return Ok(BlobLookup::Wait(BlobWait { waits_for, name, how, size_hint }));
        }
        if inner.misses.is_missing(&Asked::Blob(name.clone(), *digest), inner.now()) {
            return Err(CacheError::KnownMissing);
        }
        if let Some(wait) = inner.misses.held_back(&name.upstream, inner.now()) {
            return Err(CacheError::HeldBack { wait });
        }
        Ok(BlobLookup::Wait(match purpose {
            Purpose::Read => self.ask_for_blob(name, digest, size_hint)?,
            Purpose::Size => self.ask_for_size(name, digest, size_hint)?,
        }))
    }

    /// Resumes the downloads of listed registries that have broken off, or that an earlier process has left, in
    /// the background. Waits for nothing. Returns how many there are.
    ///
    /// Those of unlisted registries wait for a client: anybody can begin any number of them.
    pub fn resume_downloads(&self) -> usize {
        if self.inner.is_offline() {
            return 0;
        }
        let partials = self.inner.store.partials();
        let idle = partials.iter().filter(|(name, digest)| {
            self.inner.blobs.peek(&(name.upstream.clone(), *digest)).is_none()
                && matches!(self.inner.sources.standing(&name.upstream), Ok(Standing::Listed))
        });
        let mut resumed = 0;
        for (name, digest) in idle {
            log::info!("{name}@{digest}: an earlier download was not finished");
            resumed += usize::from(self.fetch_in_background(name, digest, None));
        }
        resumed
    }

    /// Fetches a blob when no client needs a fetcher. Returns whether it is queued now and was not before.
    pub(super) fn fetch_in_background(
        &self,
        name: &ImageName,
        digest: &Digest,
        size_hint: Option<u64>,
    ) -> bool {
        let Ok(purpose) = self.purpose(name) else { return false };
        let (cache, name, digest) = (self.clone(), name.clone(), *digest);
        let key = (name.upstream.clone(), digest);
        if !lock(&self.inner.queued_in_background).insert(key.clone()) {
            return false;
        }
        let forget = |inner: &Inner, key: &BlobKey| lock(&inner.queued_in_background).remove(key);
        // After the note: a job that has begun takes its note away only when its flight can be seen.
        if self.inner.blobs.peek(&key).is_some() {
            forget(&self.inner, &key);
            return false;
        }
        let queued = key.clone();
        let is_queued = self.inner.blob_pool.submit_in_background(purpose, move || {
            let inner = &cache.inner;
            if inner.is_offline() || !matches!(inner.store.find_blob(&digest, size_hint), Ok(None))
            {
                forget(inner, &queued);
                return;
            }
            // A client may have begun it meanwhile. We do not follow: nobody waits for it.
            let joined = inner.blobs.join(&queued, || given_up(&name));
            forget(inner, &queued);
            drop(joined.flight);
            if let Some(leader) = joined.leader {
                cache.run_flight(name, leader, size_hint);
            }
        });
        if !is_queued {
            forget(&self.inner, &key);
        }
        is_queued
    }

    pub(super) fn ask_for_blob(
        &self,
        name: &ImageName,
        digest: &Digest,
        size_hint: Option<u64>,
    ) -> Result<BlobWait, CacheError> {
        let purpose = self.purpose(name)?;
        let key = (name.upstream.clone(), *digest);
        let joined = self.inner.blobs.join(&key, || given_up(name));
        let how = if joined.leader.is_some() { How::Miss } else { How::Join };
        if let Some(leader) = joined.leader {
            self.submit_flight(purpose, name.clone(), leader, size_hint);
        }
        let waits_for = WaitsFor::Bytes(joined.flight);
        Ok(BlobWait { waits_for, name: name.clone(), how, size_hint })
    }

    /// Queues the work of a flight that somebody follows.
    fn submit_flight(
        &self,
        purpose: JobPurpose,
        name: ImageName,
        leader: BlobLeader,
        size_hint: Option<u64>,
    ) {
        let cache = self.clone();
        let flight = Arc::clone(leader.flight());
        self.inner.blob_pool.submit(
            purpose,
            move || flight.has_followers(),
            move || {
                cache.run_flight(name, leader, size_hint);
            },
        );
    }

    /// Does the work of a flight, on a fetcher. A blob that comes wrong is fetched once more, for clients that
    /// come back: its way here may have corrupted it, or there is another endpoint.
    ///
    /// A download that gave its fetcher up for another job continues later: behind the jobs that wait now if
    /// somebody follows it, in the background if not.
    fn run_flight(&self, name: ImageName, leader: BlobLeader, size_hint: Option<u64>) {
        leader.begin();
        let key = leader.key().clone();
        let result = self.inner.fetch_blob(&name, &leader, size_hint);
        if matches!(&result, Err(CacheError::Suspended)) {
            match leader.abandon(given_up(&name)) {
                Some(leader) => {
                    if let Ok(purpose) = self.purpose(&name) {
                        self.submit_flight(purpose, name, leader, size_hint);
                    }
                }
                None => drop(self.fetch_in_background(&name, &key.1, size_hint)),
            }
            return;
        }
        if let Err(error) = &result {
            error.log(&format!("{name}@{}", key.1));
        }
        let is_wrong = matches!(&result, Err(CacheError::WrongContent(_)));
        self.inner.metrics.downloaded(if result.is_ok() { "done" } else { "failed" });
        leader.finish(result.map_err(|error| BlobFailure { origin: name.clone(), error }));
        self.inner.store.remove_empty_partials(&name.upstream);
        // After the end: nobody finds this flight any more to leave a note that would end the next.
        self.inner.uncancel(&key);
        if is_wrong && self.inner.should_try_again(&key) {
            self.try_again(name, &key, size_hint);
        }
    }

    /// Begins another flight at once, so that clients that come back join it.
    fn try_again(&self, name: ImageName, key: &BlobKey, size_hint: Option<u64>) {
        let Ok(purpose) = self.purpose(&name) else { return };
        let joined = self.inner.blobs.join(key, || given_up(&name));
        drop(joined.flight);
        if let Some(leader) = joined.leader {
            let cache = self.clone();
            let run = move || cache.run_flight(name, leader, size_hint);
            self.inner.blob_pool.submit(purpose, || true, run);
        }
    }

    fn ask_for_size(
        &self,
        name: &ImageName,
        digest: &Digest,
        size_hint: Option<u64>,
    ) -> Result<BlobWait, CacheError> {
        let purpose = self.purpose(name)?;
        let key = (name.clone(), *digest);
        let joined = self.inner.blob_sizes.join(&key, || given_up(name));
        let how = if joined.leader.is_some() { How::Miss } else { How::Join };
        if let Some(leader) = joined.leader {
            let inner = Arc::clone(&self.inner);
            let flight = Arc::clone(joined.flight.flight());
            self.inner.metadata_pool.submit(
                purpose,
                move || flight.has_followers(),
                move || {
                    leader.begin();
                    let (name, digest) = leader.key().clone();
                    let size = inner.fetch_size(&name, &digest);
                    leader.finish(size.map_err(|error| BlobFailure { origin: name, error }));
                },
            );
        }
        let waits_for = WaitsFor::Size(joined.flight);
        Ok(BlobWait { waits_for, name: name.clone(), how, size_hint })
    }
}

impl Inner {
    /// The size that a blob must have: as it was verified, or else as this repository's manifests tell.
    ///
    /// Anybody can publish a manifest that lies about the size of somebody else's blob, so what a
    /// manifest tells counts for its own repository only, and less than what was seen.
    fn size_hint(&self, name: &ImageName, digest: &Digest) -> Option<u64> {
        let verified = lock(&self.verified_sizes).get(digest).copied();
        let told = || lock(&self.told_sizes).get(&(name.clone(), *digest)).copied();
        verified.or_else(told).or_else(|| {
            self.learn_sizes(name);
            told()
        })
    }

    /// Reads what the cached manifests of a repository tell, once in the life of a process: after a
    /// restart clients may ask for blobs of manifests that they have, and a file that was truncated
    /// meanwhile must be noticed all the same.
    fn learn_sizes(&self, name: &ImageName) {
        if lock(&self.learned).get(name).is_some() {
            return;
        }
        lock(&self.learned).insert(name.clone(), ());
        for digest in self.store.manifests(name).into_iter().take(MANIFESTS_LEARNED_MAX) {
            let record = self.store.manifest(name, &digest, Access::Look);
            if record.is_some_and(|record| record.size <= MANIFEST_LEARNED_BYTES_MAX) {
                // Reading a manifest remembers the sizes in it.
                let _ = self.stored_manifest(name, &digest, Access::Look);
            }
        }
    }

    /// Asks upstream for a blob's size, by HEAD, or by beginning a GET where HEAD does not tell.
    fn fetch_size(&self, name: &ImageName, digest: &Digest) -> Result<u64, CacheError> {
        let source = self.source(&name.upstream)?;
        let told = source.blob_size(&name.repository, digest);
        // A HEAD that says 404 is not believed for GET: some registries do not do HEAD well.
        if !told.as_ref().is_err_and(UpstreamError::is_not_found) {
            self.note_blob(name, digest, &told);
        }
        // A length of nothing is what some registries say when they do not want to tell.
        if let Some(size) = told?.filter(|size| *size > 0 || digest.is_of_nothing()) {
            return Ok(size);
        }
        let begun = source.blob(&BlobAsk {
            repository: &name.repository,
            digest,
            from: 0,
            demerits: &self.demerits(name, digest),
        });
        self.note_blob(name, digest, &begun);
        begun?.size.or_else(|| self.size_hint(name, digest)).ok_or_else(|| {
            let reason = "the registry does not tell the size of this blob";
            UpstreamError::bad_answer(&format!("{name}@{digest}"), reason).into()
        })
    }

    pub(super) fn note_blob<T>(
        &self,
        name: &ImageName,
        digest: &Digest,
        result: &Result<T, UpstreamError>,
    ) {
        self.note_asked(name, Asked::Blob(name.clone(), *digest), result);
    }

    /// Notes how a request went. With mirrors, what one endpoint asks for holds back that one, which its
    /// breaker sees to.
    pub(super) fn note_asked<T>(
        &self,
        name: &ImageName,
        asked: Asked,
        result: &Result<T, UpstreamError>,
    ) {
        self.metrics.asked_upstream(name.upstream.as_str(), counts::outcome(result));
        if !self.has_mirrors(&name.upstream) {
            self.misses.note_limit(&name.upstream, result, self.now());
        }
        self.misses.note(&name.upstream, asked, result, self.now());
    }
}

/// How a flight fails that nobody flies any more.
pub(super) fn given_up(name: &ImageName) -> BlobFailure {
    BlobFailure { origin: name.clone(), error: CacheError::GivenUp }
}
