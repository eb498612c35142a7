//! Waiting for a manifest, with what the cache has as the fallback.

use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use super::Outcome;
use super::content::{Content, ManifestAnswer};
use crate::cache::core::Core;
use crate::cache::negative::Asked;
use crate::cache::{CacheError, How, PATIENCE};
use crate::flight::Follower;
use crate::oci::{ImageName, Reference};

/// Waits for upstream, with what the cache has as the fallback.
pub struct ManifestWait {
    pub(super) core: Arc<Core>,
    pub(super) name: ImageName,
    pub(super) reference: Reference,
    pub(super) flight: Follower<(), Outcome, CacheError>,
    pub(super) how: How,
    pub(super) cached: Option<Arc<Content>>,
}

impl ManifestWait {
    /// The answer, or the failure, once the flight has ended.
    pub fn poll(&self, waker: &Waker) -> Poll<Result<ManifestAnswer, CacheError>> {
        self.flight.poll_outcome(waker).map(|outcome| match (outcome, &self.cached) {
            (Ok(content), Some(cached)) if content.digest() == cached.digest() => {
                Ok(ManifestAnswer { content, how: How::Hit })
            }
            (Ok(content), _) => Ok(ManifestAnswer { content, how: self.how }),
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

    /// The answer when patience is over: what the cache has, or a time-out. The flight goes on, and
    /// counts as slow, so that the next client need not wait as long. `waker` is the one
    /// that was polled with, and is no longer woken.
    ///
    /// # Errors
    /// [`CacheError::TimedOut`] if the cache has nothing.
    pub fn give_up(self, waker: &Waker) -> Result<ManifestAnswer, CacheError> {
        self.flight.forget(waker);
        // A request that was never sent for want of a fetcher says nothing about the registry.
        let was_sent = self.flight.has_begun();
        if was_sent {
            let asked = Asked::Manifest(self.name.clone(), self.reference.clone());
            self.core.negative.note_slow(asked, self.core.now());
        }
        match &self.cached {
            Some(cached) => Ok(self.stale(cached, "upstream did not answer in revalidateTimeout")),
            None if was_sent => Err(CacheError::TimedOut),
            None => Err(CacheError::GivenUp),
        }
    }

    fn stale(&self, cached: &Arc<Content>, reason: &str) -> ManifestAnswer {
        // What went wrong is warned of once a fetch; this is once a client.
        log::info!("{}: serving {} unconfirmed: {reason}", self.name, cached.digest());
        ManifestAnswer { content: Arc::clone(cached), how: How::Stale }
    }
}
