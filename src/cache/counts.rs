//! What happened how often since the start, where somebody should look when it is not nothing.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of this process.
#[derive(Debug, Default)]
pub(super) struct Counters {
    blobs_not_cached: AtomicU64,
    manifests_not_cached: AtomicU64,
}

/// Their values at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Blobs that were streamed to a client because the disk would not have them.
    pub blobs_not_cached: u64,
    /// Manifests that were answered and could not be written.
    pub manifests_not_cached: u64,
    /// Files of the store that were found to be damaged.
    pub damaged_files: u64,
}

impl Counters {
    pub(super) fn blobs_not_cached(&self) {
        self.blobs_not_cached.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn manifests_not_cached(&self) {
        self.manifests_not_cached.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn now(&self, damaged_files: u64) -> Counts {
        Counts {
            blobs_not_cached: self.blobs_not_cached.load(Ordering::Relaxed),
            manifests_not_cached: self.manifests_not_cached.load(Ordering::Relaxed),
            damaged_files,
        }
    }
}
