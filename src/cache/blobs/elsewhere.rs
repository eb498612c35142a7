//! Downloads of other processes on the same directory: their partials are followed, and no fetcher waits for them.
//!
//! One thread checks all of them ([`Poller`]). Their clients receive the bytes that the other process has
//! written, except the last one, which waits until the blob has its name: then the other process has verified it.
//!
//! # Interleavings
//! * *The other process finishes* between two checks. The partial has lost its name, and the blob is in the store. It is the
//!   same file, so clients go on reading it.
//! * *It is killed.* The partial has no writer. The flight gets a fetcher, which resumes the same file.
//! * *Its bytes are wrong.* The partial is gone. Clients that have received some of it are disconnected.
//! * *It stalls* ([`ConnectionPolicy::stalled_after`](super::ConnectionPolicy::stalled_after)). Its bytes are copied, and
//!   this process downloads the rest into the copy, which replaces the file for clients that follow. If the other process
//!   continues, both write their own file, and the last one that is verified becomes the blob, with the same bytes.
//! * *A partial has holes.* Its writer says how far it is from the beginning (`store/content/progress.rs`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::incoming::{announce_stored, continue_from};
use super::{BlobCache, BlobLeader, GrowingFile, Incoming, SizeSource, given_up};
use crate::cache::CacheError;
use crate::cache::job_context::JobContext;
use crate::cache::poller::Poller;
use crate::client_address::ClientAddress;
use crate::oci::ImageName;
use crate::store::{Blob, WatchedPartial};

/// Without progress for this long, it is checked whether the partial still has a writer.
const IDLE_AFTER: Duration = Duration::from_millis(200);

/// How many times longer than usual a complete partial may be without progress.
const COMPLETE_FACTOR: u32 = 12;

/// A flight whose blob another process downloads.
pub(super) struct Followed {
    name: ImageName,
    leader: BlobLeader,
    size_hint: Option<u64>,
    client: Option<ClientAddress>,
    /// `None` until it is found.
    partial: Option<WatchedPartial>,
    /// What was written at the last check: from the beginning, and in all.
    written: (u64, u64),
    progressed: Instant,
    /// The Larders that the request has passed.
    context: JobContext,
}

impl BlobCache {
    /// Follows the download of another process.
    pub(super) fn follow(
        self: &Arc<Self>,
        name: ImageName,
        leader: BlobLeader,
        size_hint: Option<u64>,
        client: Option<ClientAddress>,
    ) {
        // Without followers, the other process does all that is needed.
        let Some(leader) = leader.abandon(given_up(&name)) else { return };
        log::debug!(
            digest:% = leader.key().1, repository:% = name; "another process downloads the blob"
        );
        let followed = Followed {
            name,
            leader,
            size_hint,
            client,
            partial: None,
            written: (0, 0),
            progressed: Instant::now(),
            context: JobContext::current(),
        };
        let check = |cache: &Arc<BlobCache>, followed: Followed| {
            followed.context.clone().enter(|| cache.check(followed))
        };
        Poller::add(self, |cache| &cache.elsewhere, check, followed);
    }

    /// Checks a followed download, and returns it unless it has ended.
    fn check(self: &Arc<Self>, mut followed: Followed) -> Option<Followed> {
        let digest = followed.leader.key().1;
        let is_cancelled = followed.leader.flight().is_cancelled();
        if is_cancelled || self.core.stop_if_closed().is_err() {
            return self.end(followed, Err(CacheError::GivenUp));
        }
        match followed.leader.abandon(given_up(&followed.name)) {
            Some(leader) => followed.leader = leader,
            None => return None,
        }
        let partial = followed.partial.take().filter(WatchedPartial::is_partial);
        let partial = match partial {
            Some(partial) => partial,
            None => match self.core.store.find_blob(&digest, followed.size_hint) {
                Ok(Some(blob))
                    if !continue_from(&followed.leader, &blob.file, blob.size, Some(blob.size)) =>
                {
                    return self.end(followed, Err(CacheError::GivenUp));
                }
                Ok(Some(blob)) => {
                    let stored = announce_stored(&followed.name, &followed.leader, blob);
                    return self.end(followed, Ok(stored));
                }
                Err(error) => return self.end(followed, Err(error.into())),
                // Its bytes were wrong, and clients have some of them.
                Ok(None) if followed.leader.flight().header().is_some() => {
                    return self.end(followed, Err(CacheError::GivenUp));
                }
                Ok(None) => {
                    let watched = self.core.store.watch_partial(&followed.name.upstream, &digest);
                    match watched {
                        Some(partial) => partial,
                        // It may be about to be created.
                        None if followed.progressed.elapsed() < IDLE_AFTER => {
                            return Some(followed);
                        }
                        None => return self.fetch_again(followed),
                    }
                }
            },
        };
        let now = Instant::now();
        let written = match partial.bytes() {
            Ok(written) => written,
            // The next check may find more; a partial that cannot be read makes no progress.
            Err(error) => {
                log::debug!(
                    digest:%, repository:% = followed.name, error:%;
                    "cannot read the download of another process"
                );
                followed.written
            }
        };
        if written != followed.written {
            (followed.written, followed.progressed) = (written, now);
        }
        let readable = written.0;
        followed.show(&partial, readable);
        let idle = now.saturating_duration_since(followed.progressed);
        let patience = self.core.settings().connections.stalled_after;
        // A complete one is being verified or synced, which takes longer than a read.
        let is_complete = || partial.size().is_some_and(|size| written.0 >= size);
        if idle >= patience && (idle >= patience * COMPLETE_FACTOR || !is_complete()) {
            return self.take_over(followed, partial);
        }
        if idle >= IDLE_AFTER && !partial.has_writer() {
            return self.fetch_again(followed);
        }
        followed.partial = Some(partial);
        Some(followed)
    }

    /// Downloads the blob in place of a writer that stalls.
    fn take_over(
        self: &Arc<Self>,
        followed: Followed,
        partial: WatchedPartial,
    ) -> Option<Followed> {
        let Followed { name, leader, size_hint, client, .. } = followed;
        log::warn!(
            digest:% = leader.key().1, repository:% = name;
            "another process on this directory downloads the blob and makes no progress; it is not waited for"
        );
        let size_hint = partial.size().or(size_hint);
        let purpose = match self.core.purpose(&name, client) {
            Ok(purpose) => purpose,
            Err(error) => {
                self.end_flight(name, leader, size_hint, client, Err(error));
                return None;
            }
        };
        let (cache, flight) = (Arc::clone(self), Arc::clone(leader.flight()));
        let run = move || {
            let (bytes, _) = partial.bytes().unwrap_or_default();
            let begun = cache.eviction.admit(bytes).and_then(|()| Ok(partial.copy()?));
            match begun {
                Ok(ingest)
                    if continue_from(&leader, ingest.file(), ingest.bytes_written(), None) =>
                {
                    cache.run_flight(name, leader, size_hint, client, Some(ingest));
                }
                Ok(_) => {
                    cache.end_flight(name, leader, size_hint, client, Err(CacheError::GivenUp))
                }
                Err(error) => cache.end_flight(name, leader, size_hint, client, Err(error)),
            }
        };
        // A copy may take seconds, during which other partials are checked.
        self.core.blob_fetchers.submit(purpose, move || flight.has_followers(), run);
        None
    }

    /// Gives the flight to a fetcher: the other process has given up.
    fn fetch_again(self: &Arc<Self>, followed: Followed) -> Option<Followed> {
        let Followed { name, leader, size_hint, client, .. } = followed;
        match self.core.purpose(&name, client) {
            Ok(purpose) => self.submit_flight(purpose, name, leader, size_hint, None),
            Err(error) => self.end_flight(name, leader, size_hint, client, Err(error)),
        }
        None
    }

    fn end(
        self: &Arc<Self>,
        followed: Followed,
        result: Result<Blob, CacheError>,
    ) -> Option<Followed> {
        let Followed { name, leader, size_hint, client, .. } = followed;
        self.end_flight(name, leader, size_hint, client, result);
        None
    }
}

impl Followed {
    /// Makes the readable bytes available to clients, except the last one of the blob.
    fn show(&self, partial: &WatchedPartial, readable: u64) {
        let announced = self.leader.flight().header().map(|incoming| incoming.size);
        let size = match announced {
            Some(size) => size,
            None if readable == 0 => return,
            None => {
                // The note is written before the first byte; small blobs have none, and end soon.
                let Some(size) = partial.size() else { return };
                self.leader.announce(Incoming {
                    origin: self.name.clone(),
                    file: GrowingFile::new(partial.file()),
                    size: Some(size),
                    size_source: SizeSource::Registry,
                    connections: Arc::default(),
                });
                Some(size)
            }
        };
        if let Some(size) = size {
            self.leader.advance(readable.min(size.saturating_sub(1)));
        }
    }
}
