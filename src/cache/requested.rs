//! What became of the pulls that operators have requested: bounded, since the start.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// The number of pulls that are remembered: more than somebody looks at.
const PULLS_MAX: usize = 50;

/// How far a requested pull has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullState {
    /// It waits for a fetcher.
    Queued,
    /// Its manifests are being fetched.
    Fetching,
    /// Its manifests are cached. The downloads of its other content are running, or have ended.
    Found,
    /// Its manifest cannot be fetched.
    Failed,
}

impl PullState {
    /// As a word.
    pub fn as_str(self) -> &'static str {
        match self {
            PullState::Queued => "queued",
            PullState::Fetching => "fetching",
            PullState::Found => "found",
            PullState::Failed => "failed",
        }
    }
}

/// A requested pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestedPull {
    /// The full reference.
    pub image: String,
    /// How far it has got.
    pub state: PullState,
    /// Since when it is in this state.
    pub since: SystemTime,
    /// Why it has failed.
    pub reason: Option<String>,
}

/// See the description of the module. Locked for a lookup or a change.
#[derive(Default)]
pub(super) struct RequestedPulls(Mutex<VecDeque<RequestedPull>>);

impl RequestedPulls {
    /// Notes the state of a pull, in place of an earlier one of the same image.
    pub(super) fn note(
        &self,
        image: &str,
        state: PullState,
        since: SystemTime,
        reason: Option<String>,
    ) {
        // Every state of the list is valid.
        let mut pulls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pull) = pulls.iter_mut().find(|pull| pull.image == image) {
            (pull.state, pull.since, pull.reason) = (state, since, reason);
            return;
        }
        if pulls.len() == PULLS_MAX {
            pulls.pop_front();
        }
        pulls.push_back(RequestedPull { image: image.to_owned(), state, since, reason });
    }

    /// The pulls, newest first.
    pub(super) fn newest_first(&self) -> Vec<RequestedPull> {
        let pulls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pulls.iter().rev().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pull_is_listed_once_with_its_latest_state_and_old_pulls_are_forgotten() {
        let pulls = RequestedPulls::default();
        let at = SystemTime::UNIX_EPOCH;
        pulls.note("a", PullState::Queued, at, None);
        pulls.note("b", PullState::Queued, at, None);
        pulls.note("a", PullState::Failed, at, Some("404".into()));
        let all = pulls.newest_first();
        let images: Vec<&str> = all.iter().map(|pull| pull.image.as_str()).collect();
        assert_eq!((images, all[1].state), (vec!["b", "a"], PullState::Failed));
        for number in 0..2 * PULLS_MAX {
            pulls.note(&number.to_string(), PullState::Queued, at, None);
        }
        assert_eq!(pulls.newest_first().len(), PULLS_MAX);
    }
}
