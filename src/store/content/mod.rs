//! Blobs, regardless of what refers to them: reading them, ingesting them from upstreams and bundles, partial downloads, and
//! the check and quarantine of damaged ones. Also documents: the bodies of manifests and lists in transit.

mod blobs;
mod digesting_writer;
pub(super) mod documents;
mod extents;
mod ingest;
pub(super) mod large_documents;
mod partial;
mod partials;
mod progress;
mod verify;
mod watch;

pub use blobs::Blob;
pub use digesting_writer::DigestingWriter;
pub use documents::{Document, DocumentWriter};
pub use extents::ALIGNMENT_BYTES;
pub use ingest::{Begin, Ingest, IngestError, Verified};
pub use partial::Partial;
pub use partials::PartialFile;
pub use verify::{Checked, Damage};
pub use watch::{WatchedPartial, have_same_bytes};
