//! Waiting for a manifest, with the cached one as the fallback.

use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use super::content::{Found, ManifestAnswer};
use crate::cache::core::Core;
use crate::cache::negative::Asked;
use crate::cache::{CacheError, How, PATIENCE};
use crate::flight::Follower;
use crate::oci::{ImageName, Reference};

/// Waits for the registry, with the cached manifest as the fallback.
pub struct ManifestWait {
    pub(super) core: Arc<Core>,
    pub(super) name: ImageName,
    pub(super) reference: Reference,
    pub(super) flight: Follower<(), Found, CacheError>,
    pub(super) how: How,
    pub(super) cached: Option<Found>,
}

impl ManifestWait {
    /// The manifest or the failure, once the flight has ended. The manifest may not be stored yet: see
    /// [`Cache::wait_until_stored`](crate::cache::Cache::wait_until_stored).
    pub fn poll(&self, waker: &Waker) -> Poll<Result<ManifestAnswer, CacheError>> {
        self.flight.poll_outcome(waker).map(|outcome| match (outcome, &self.cached) {
            (Ok(found), Some(cached)) if found.content.digest() == cached.content.digest() => {
                Ok(ManifestAnswer::new(found, How::Hit))
            }
            (Ok(found), _) => Ok(ManifestAnswer::new(found, self.how)),
            (Err(error @ CacheError::DeletedUpstream), _) => Err(error),
            (Err(error), Some(cached)) => Ok(self.stale(cached, &error.to_string())),
            (Err(error), None) => Err(error),
        })
    }

    /// How long to wait before [`ManifestWait::give_up`].
    pub fn patience(&self) -> Duration {
        match self.cached {
            Some(_) => self.core.settings().revalidate_timeout,
            None => PATIENCE,
        }
    }

    /// The fallback when the time is over: the cached manifest. The flight continues and counts as slow, so that the
    /// next client does not wait as long. `waker` is the one that was polled with; it is no longer woken.
    ///
    /// # Errors
    /// [`CacheError::TimedOut`] if the manifest is not cached; [`CacheError::GivenUp`] if no request was sent either.
    pub fn give_up(self, waker: &Waker) -> Result<ManifestAnswer, CacheError> {
        self.flight.forget(waker);
        // Without a free fetcher, no request was sent. That does not count against the registry.
        let was_sent = self.flight.has_begun();
        if was_sent {
            let asked = Asked::Manifest(self.name.clone(), self.reference.clone());
            self.core.negative.note_slow(asked, self.core.now());
        }
        match &self.cached {
            Some(cached) => {
                Ok(self.stale(cached, "the registry did not respond within revalidateTimeout"))
            }
            None if was_sent => Err(CacheError::TimedOut),
            None => Err(CacheError::GivenUp),
        }
    }

    fn stale(&self, cached: &Found, reason: &str) -> ManifestAnswer {
        // Not a warning: the fetch logs one, and this is logged for each client.
        log::info!("{}: serving {} unconfirmed: {reason}", self.name, cached.content.digest());
        ManifestAnswer::new(cached.clone(), How::Stale)
    }
}
