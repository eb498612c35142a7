//! Requests to one endpoint of a registry: its session, and its responses with manifests, blobs and lists.

mod check;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod larder;
mod list;
mod permission;
mod quota;
mod registry;
mod session;

pub(in crate::upstream) use check::Extent;
pub use list::TagListWriter;
pub use quota::RateLimit;
pub use registry::{EndpointKind, EndpointSettings};

pub(super) use larder::Acquaintance;
pub(super) use registry::Registry;
