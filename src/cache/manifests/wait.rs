//! Waiting for a manifest, with the cached one as the fallback.

use std::fmt;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use super::content::{Found, ManifestAnswer};
use crate::cache::core::Core;
use crate::cache::negative::Asked;
use crate::cache::{CacheError, How, PATIENCE, Reason, Why};
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
                Ok(ManifestAnswer::new(found, How::Hit, Some(Why::Confirmed)))
            }
            (Ok(found), cached) => {
                let why = if cached.is_some() { Why::Expired } else { Why::NotCached };
                Ok(ManifestAnswer::new(found, self.how, Some(why)))
            }
            (Err(error @ CacheError::DeletedUpstream), _) => Err(error),
            (Err(error), Some(cached)) => Ok(self.stale(cached, (&error).into(), &error)),
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
                let why = Why::Failed(Reason::TimedOut);
                Ok(self.stale(
                    cached,
                    why,
                    &"the registry did not respond within revalidateTimeout",
                ))
            }
            None if was_sent => Err(CacheError::TimedOut),
            None => Err(CacheError::GivenUp),
        }
    }

    fn stale(&self, cached: &Found, why: Why, reason: &dyn fmt::Display) -> ManifestAnswer {
        // The fetch logs a warning, and the access log has a line for each client.
        log::debug!(
            repository:% = self.name, digest:% = cached.content.digest(), error:% = reason;
            "serving an unconfirmed manifest"
        );
        ManifestAnswer::new(cached.clone(), How::Stale, Some(why))
    }
}
