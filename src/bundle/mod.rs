//! Bundles: loads images from lists into the cache, and moves images between caches without a network.
//!
//! A bundle is an OCI image layout, in a directory or a tar archive, or the output of `docker save`,
//! `podman save` or `ctr images export`. [`load()`] pulls the images of a list through the cache.
//! [`import()`] stores the content of a bundle under verified digests, and names each image whose content
//! is complete. [`export()`] writes the selected images byte for byte. [`repair()`] fetches damaged content
//! again.
//!
//! This module must not know HTTP, upstreams or terminals. It reports events to a callback, as values.

mod blocking;
mod completeness;
mod compression;
mod docker;
mod error;
mod event;
mod expand;
mod export;
mod failure;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod import;
mod layout;
mod list;
mod load;
mod newest;
mod outcome;
mod output;
mod reader;
mod repair;
mod select;
mod source;
mod unfinished;
mod volumes;

pub use compression::Compression;
pub use error::BundleError;
pub use event::{Before, ImportEvent, ImportSummary, Origin};
pub use expand::{Image, expand};
pub use export::{ExportEvent, ExportSummary, Have, OpenOutput, export};
pub use import::{ImportSettings, import};
pub use list::{ListError, Wanted};
pub use load::{LoadEvent, LoadSettings, Manner, load, load_images};
pub use newest::{DATED_TAGS_MAX, Newest, NewestBy};
pub use outcome::{LoadSummary, Outcome};
pub use output::{Destination, Form};
pub use repair::repair;
pub use select::{Chosen, Missing, Plan, Selection, select};
pub use source::{BundleSource, STANDARD_INPUT};
pub use volumes::parse_size;
