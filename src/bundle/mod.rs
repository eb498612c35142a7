//! Bundles: images from lists into the cache, and by hand from there to where there is no network.
//!
//! A bundle is an OCI image layout, in a directory or in a tar, or what `docker save`, `podman save` and
//! `ctr images export` write. [`load()`] pulls what a list names, through the cache; [`import()`] takes
//! content into the store under verified digests, and names images when all that they need is there;
//! [`export()`] writes chosen images, byte for byte; [`repair()`] fetches again what was damaged.
//!
//! This room must not know HTTP, upstreams, or how a terminal looks: what happens is told to a function,
//! as a value.

mod blocking;
mod closure;
mod compression;
mod docker;
mod error;
mod export;
mod import;
mod layout;
mod list;
mod load;
mod output;
mod repair;
mod select;
mod source;
mod take;
mod told;
mod unfinished;
mod volumes;

pub use compression::Compression;
pub use error::BundleError;
pub use export::{ExportSummary, Have, export};
pub use import::{ImportSettings, import};
pub use list::{ListError, Wanted};
pub use load::{LoadEvent, LoadSettings, LoadSummary, Outcome, load};
pub use output::{Destination, Form};
pub use repair::repair;
pub use select::{Chosen, Missing, Plan, Selection, select};
pub use source::{BundleSource, STANDARD_INPUT};
pub use told::{Before, Bytes, ImportSummary, Origin, Told};
pub use volumes::parse_size;
