//! The state of the cache as the management API and the metrics report it.

use super::scheduler::SchedulerLoad;
use crate::oci::{Digest, ImageName, Upstream};

/// A download under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlightStatus {
    /// The registry.
    pub upstream: Upstream,
    /// The blob.
    pub digest: Digest,
    /// The repository whose request began it; nothing while it is queued.
    pub origin: Option<ImageName>,
    /// Bytes that have come.
    pub bytes: u64,
    /// Bytes that will have, once that is known.
    pub size: Option<u64>,
}

/// How much there is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Downloads of blobs.
    pub blobs: usize,
    /// Questions for manifests.
    pub manifests: usize,
    /// Questions for lists and sizes.
    pub others: usize,
    /// Those who download blobs.
    pub blob_pool: SchedulerLoad,
    /// Those who ask for everything else.
    pub manifest_pool: SchedulerLoad,
}

/// How often what needs attention has happened since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Blobs that were streamed to a client because the disk would not have them.
    pub blobs_not_cached: u64,
    /// Manifests that were answered and could not be written.
    pub manifests_not_cached: u64,
    /// Files of the store that were found to be damaged.
    pub damaged_files: u64,
    /// Images that went because room was needed.
    pub images_evicted: u64,
    /// The bytes that this freed.
    pub bytes_evicted: u64,
}
