//! Requests for a manifest that another process on the same directory sends: its result is awaited, and no fetcher waits.
//!
//! The process that holds the lock of a manifest requests and stores it. Others look into the store once the lock is free.
//!
//! # Interleavings
//! * *The other process stores the manifest.* It unlocks afterwards, so the next holder finds it.
//! * *Its request fails, or it is killed.* The next holder sends its own.
//! * *It hangs* ([`PATIENCE`]). Both send a request, and store the same, or the newer one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{ManifestCache, ManifestLeader};
use crate::cache::CacheError;
use crate::cache::job_context::JobContext;
use crate::cache::poller::Poller;
use crate::store::FetchLock;

/// How long another process is awaited.
const PATIENCE: Duration = Duration::from_secs(5);

/// A flight whose manifest another process requests.
pub(super) struct Awaited {
    leader: ManifestLeader,
    since: Instant,
    /// The Larders that the request has passed.
    context: JobContext,
}

impl Awaited {
    fn lock(&self, cache: &ManifestCache) -> Result<Option<FetchLock>, std::io::Error> {
        let (name, reference) = self.leader.key();
        cache.core.store.fetch_lock(&name.with(reference))
    }
}

impl ManifestCache {
    /// The work of a manifest flight, on a fetcher: leads or awaits the request of all processes.
    pub(in crate::cache) fn fetch_manifest(self: &Arc<Self>, leader: ManifestLeader) {
        let awaited = Awaited { leader, since: Instant::now(), context: JobContext::current() };
        match awaited.lock(self) {
            Ok(None) => {
                let check = |cache: &Arc<ManifestCache>, awaited: Awaited| {
                    awaited.context.clone().enter(|| cache.check(awaited))
                };
                Poller::add(self, |cache| &cache.elsewhere, check, awaited);
            }
            Ok(Some(lock)) => self.fetch_manifest_under(awaited.leader, Some(lock)),
            Err(error) => {
                log::debug!(error:%; "cannot lock the request for a manifest");
                self.fetch_manifest_under(awaited.leader, None);
            }
        }
    }

    /// Checks whether the other process has finished, and returns the flight if it has not.
    fn check(self: &Arc<Self>, awaited: Awaited) -> Option<Awaited> {
        if self.core.stop_if_closed().is_err() {
            return None;
        }
        let lock = awaited.lock(self).unwrap_or_default();
        let Awaited { leader, since, context } = awaited;
        let leader = leader.abandon(CacheError::GivenUp)?;
        if lock.is_none() && since.elapsed() < PATIENCE {
            return Some(Awaited { leader, since, context });
        }
        let flight = Arc::clone(leader.flight());
        // Without a client: it counts as one of Larder's own jobs, which come next.
        if let Ok(purpose) = self.core.purpose(&leader.key().0, None) {
            let cache = Arc::clone(self);
            let run = move || cache.fetch_manifest_under(leader, lock);
            self.core.metadata_fetchers.submit(purpose, move || flight.has_followers(), run);
        }
        None
    }
}
