//! Warns that a registry refuses its credentials, at most once a minute instead of for every request.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::oci::Repository;

/// The shortest time between two warnings.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The latest warning about one registry.
#[derive(Default)]
pub(in crate::upstream) struct Refusals {
    /// When, and for which repository. One entry is enough, since the warning is about the registry.
    logged: Mutex<Option<(Instant, Repository)>>,
    is_silent: bool,
}

impl Refusals {
    /// For credentials that are not those of the configuration: there is nothing to warn of.
    pub(in crate::upstream) fn silent() -> Refusals {
        Refusals { is_silent: true, ..Refusals::default() }
    }

    /// Whether to log a warning about this repository now: none was logged within the last minute. The caller logs it.
    pub(in crate::upstream) fn is_warning_due(&self, repository: &Repository) -> bool {
        !self.is_silent && self.is_due(repository, Instant::now())
    }

    /// Records that the registry accepted the credentials for a repository: the next refusal is logged again. A success
    /// with another repository changes nothing, since two repositories in turn would fill the log.
    pub(in crate::upstream) fn accepted(&self, repository: &Repository) {
        self.lock().take_if(|(_, refused)| refused == repository);
    }

    fn is_due(&self, repository: &Repository, now: Instant) -> bool {
        let mut logged = self.lock();
        let is_due = logged
            .as_ref()
            .is_none_or(|(at, _)| now.saturating_duration_since(*at) >= LOG_INTERVAL);
        if is_due {
            *logged = Some((now, repository.clone()));
        }
        is_due
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(Instant, Repository)>> {
        // A panic leaves a time or none; both are valid.
        self.logged.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_logged_once_a_minute_and_again_after_a_success() {
        let refusals = Refusals::default();
        let [ours, other]: [Repository; 2] = ["a/b", "c"].map(|name| name.parse().unwrap());
        let (start, minute) = (Instant::now(), Duration::from_secs(60));
        assert!(refusals.is_due(&ours, start));
        assert!(!refusals.is_due(&ours, start) && !refusals.is_due(&other, start));
        assert!(refusals.is_due(&ours, start + minute));
        refusals.accepted(&other);
        assert!(!refusals.is_due(&ours, start + minute), "another repository was accepted");
        refusals.accepted(&ours);
        assert!(refusals.is_due(&ours, start + minute));
    }
}
