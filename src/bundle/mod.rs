//! Bundles: images from lists and tars into the cache, and out of it again, for places without a network.

mod blocking;
mod list;
mod load;
mod reference;
mod repair;

pub use list::{ListError, Wanted};
pub use load::{LoadEvent, LoadSettings, LoadSummary, Outcome, load};
pub use reference::PartReference;
pub use repair::repair;
