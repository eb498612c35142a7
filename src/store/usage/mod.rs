//! What takes up the space: disk usage as a count of bytes, and per image and registry in the lists in `usage/`.
//! The record of past traffic is there too.

mod configs;
mod disk;
mod incomplete;
mod sync_record;
mod traffic;
mod walk;

pub(super) use disk::SpaceSeen;
pub use disk::{DiskUsage, Space};
pub use incomplete::IncompleteImage;
pub use sync_record::SyncRecord;
pub use traffic::{TrafficRecord, TrafficRow};
pub use walk::{ImageUsage, RegistryUsage, RepositoryUsage, UsageSummary};
