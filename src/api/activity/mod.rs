//! What has happened recently, for people: the latest requests, the latest warnings, and which images are pulled how often.
//!
//! In memory and bounded. Everything here is shown to operators only; queries of requests are left out, because they may
//! contain credentials.

mod lines;
mod pulls;
mod requests;

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub(super) use lines::RecentLine;
pub use lines::RecentLines;
pub(super) use pulls::PullCounts;
pub(super) use requests::{RecentRequest, RecentRequests};

/// What the serving port notes for the management port.
#[derive(Default)]
pub struct Activity {
    pub(super) requests: RecentRequests,
    pub(super) pulls: PullCounts,
}

/// The latest entries, oldest first. Locked for an insertion or a copy.
struct Ring<T> {
    entries: Mutex<VecDeque<T>>,
    max: usize,
}

impl<T: Clone> Ring<T> {
    fn new(max: usize) -> Ring<T> {
        Ring { entries: Mutex::default(), max }
    }

    fn push(&self, entry: T) {
        let dropped = {
            let mut entries = self.lock();
            let dropped = if entries.len() == self.max { entries.pop_front() } else { None };
            entries.push_back(entry);
            dropped
        };
        // Freed without the lock.
        drop(dropped);
    }

    /// Adds an entry by changing the oldest one, whose memory it uses again, or an empty one.
    fn replace_oldest(&self, empty: impl FnOnce() -> T, fill: impl FnOnce(&mut T)) {
        let mut entries = self.lock();
        let oldest = if entries.len() == self.max { entries.pop_front() } else { None };
        let mut entry = oldest.unwrap_or_else(empty);
        fill(&mut entry);
        entries.push_back(entry);
    }

    /// A copy, newest first.
    fn newest_first(&self) -> Vec<T> {
        self.lock().iter().rev().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<T>> {
        // An entry that a panic lost is the worst that can have happened.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first characters of a text.
fn up_to(chars_max: usize, text: &str) -> &str {
    text.char_indices().nth(chars_max).map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_keeps_the_latest_entries() {
        let ring = Ring::new(3);
        (0..5).for_each(|number| ring.push(number));
        assert_eq!(ring.newest_first(), [4, 3, 2]);
    }

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!((up_to(2, "äöü"), up_to(9, "äöü")), ("äö", "äöü"));
    }
}
