//! Blobs, regardless of what refers to them: reading them, ingesting them from upstreams and bundles, partial downloads, and
//! the check and quarantine of damaged ones.

mod blobs;
mod digesting_writer;
mod ingest;
mod partials;
mod verify;

pub use blobs::Blob;
pub use digesting_writer::DigestingWriter;
pub use ingest::{Begin, Ingest, IngestError};
pub use partials::PartialFile;
pub use verify::{Checked, Damage};
