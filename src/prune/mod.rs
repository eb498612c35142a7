//! Removing images: those that nobody wants any more, and the least wanted when room is needed.
//!
//! Every removal goes the same way: a [`crate::store::Catalogue`] of all images, a plan (`plan.rs`,
//! pure), then names, then the blobs that no name leads to any more. Nothing waits for it: clients are
//! served meanwhile, manifests are committed, and what is used or changes between the look and the
//! removal stays.
//!
//! This room must not know HTTP to clients, nor upstreams.
//!
//! # Invariants
//! * **Pinned images are never evicted**, and pruned only by who says so. Pins that cannot be read stop
//!   everything.
//! * **Names before content**: see [`crate::store`] for how no blob is lost meanwhile.
//! * **What was used in the last ten minutes is not evicted**: its blobs could not go anyway.

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
