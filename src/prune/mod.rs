//! Decides what is removed: which images a prune removes, by age or on request, and how much space must stay free.
//! The store removes it (`store/gc/`): names, blobs, and the least recently used images when space is needed.
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
//! * **Names before content**: `store/gc/sweep.rs` explains why no blob is lost.

mod apply;
mod limits;
mod plan;
mod when;

#[cfg(test)]
mod tests;

pub use apply::{Report, Request, prune};
pub use limits::{CacheLimits, Disk, FreeSpace, PruneBy, PrunePolicy};
pub use plan::{Candidate, Criteria, Plan, plan_matching};
pub use when::{parse_duration, parse_since, timestamp};

// For callers that remove images but must not know the rest of the store.
pub use crate::store::{Eviction, Evictor, PinError, PinSettings, Pins, PruneError, read_pins};
