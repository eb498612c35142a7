//! Removing images: pruning by age or on request, and eviction of the least recently used when space is needed.
//!
//! Every prune has the same steps: a [`crate::store::Catalogue`] of all images, a plan (`plan.rs`, pure), then the
//! removal of names, then that of the blobs without references. It blocks nothing: clients are served and manifests
//! are committed in the meantime, and an image that is used or changed between the scan and the removal stays.
//!
//! This module must not know upstreams, nor HTTP to clients.
//!
//! # Invariants
//! * **Pinned images are never evicted**, and pruned only on explicit request. Pins that cannot be read stop every
//!   removal.
//! * **Names before content**: see [`crate::store`] for why no blob is lost.
//! * **Images used in the last ten minutes are not evicted**: their blobs could not be removed anyway.

mod apply;
mod evict;
mod limits;
mod pins;
mod plan;
mod when;

#[cfg(test)]
mod tests;

pub use apply::{PruneError, Report, Request, prune};
pub use evict::{Eviction, Evictor};
pub use limits::{CacheLimits, Disk, FreeSpace, PruneBy, PrunePolicy};
pub use pins::{PinError, PinSettings, Pins, read_pins};
pub use plan::{Candidate, Criteria, Plan, plan_matching};
pub use when::{parse_duration, parse_since, timestamp};
