//! Garbage collection: removes names and the blobs that none of the remaining names needs, evicts the least recently
//! used images, and cleans up after killed processes. Pins are here because every removal checks them. Callers
//! select the images to prune and decide when an eviction has freed enough.
//!
//! # Invariants
//! * **Pinned images are never evicted.** Pins that cannot be read stop every removal.
//! * **Images used in the last ten minutes are not evicted**: their blobs could not be removed anyway.

mod error;
pub(super) mod eviction;
mod leftovers;
mod pins;
mod sweep;

pub use error::PruneError;
pub use eviction::{Eviction, Evictor};
pub use pins::{PinError, PinSettings, Pins, read_pins};
pub use sweep::{GRACE, Removal, Sweep, Swept};
