//! Hosts to which a registry redirects and that limit the rate of requests.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::Session;
use crate::upstream::error::{UpstreamError, UpstreamErrorKind};
use crate::upstream::network::Location;

/// The longest wait that `Retry-After` of a redirect's host can demand.
const HOST_LIMIT_MAX: Duration = Duration::from_secs(60);
/// The most hosts whose waits are stored.
const LIMITED_HOSTS_MAX: usize = 64;

impl Session {
    /// Refuses a request to a host that limits the rate: an object store, for example. The registry that redirects to it
    /// is not affected.
    pub(super) fn check_limit(
        &self,
        location: &Location,
        request: &Arc<str>,
        now: Instant,
    ) -> Result<(), UpstreamError> {
        let limited = self.limited.lock().unwrap_or_else(PoisonError::into_inner);
        let wait =
            limited.get(&location.origin()).and_then(|until| until.checked_duration_since(now));
        match wait.filter(|wait| !wait.is_zero()) {
            None => Ok(()),
            retry_after => {
                let kind = UpstreamErrorKind::RateLimited { retry_after };
                Err(UpstreamError::new(Arc::clone(request), kind).elsewhere())
            }
        }
    }

    pub(super) fn note_limit(&self, location: &Location, error: &UpstreamError, now: Instant) {
        let Some(wait) = error.retry_after() else { return };
        let mut limited = self.limited.lock().unwrap_or_else(PoisonError::into_inner);
        limited.retain(|_, until| *until > now);
        // Registries choose these hosts, so their number is bounded. A host that is not stored gets further requests.
        if limited.len() < LIMITED_HOSTS_MAX {
            limited.insert(location.origin(), now + wait.min(HOST_LIMIT_MAX));
        }
    }
}
