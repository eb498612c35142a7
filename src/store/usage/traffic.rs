//! The traffic of the last week, so that the history of the management page survives a restart.

use serde::{Deserialize, Serialize};

use crate::store::files::record::Access;
use crate::store::{Store, StoreError};

/// The end of a step in seconds since 1970, answers without and with a download, bytes served, bytes fetched.
pub type TrafficRow = [u64; 5];

/// What a server records.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficRecord {
    /// Minutes with traffic, oldest first.
    pub minutes: Vec<TrafficRow>,
    /// Hours with traffic, oldest first.
    pub hours: Vec<TrafficRow>,
}

impl Store {
    /// What was recorded last; empty if it is absent or damaged.
    pub fn traffic(&self) -> TrafficRecord {
        self.record(&self.inner.layout.traffic(), Access::Look).unwrap_or_default()
    }

    /// Replaces the record.
    ///
    /// # Errors
    /// [`StoreError`] if a write fails, or if the store is read-only.
    pub fn put_traffic(&self, record: &TrafficRecord) -> Result<(), StoreError> {
        self.put_record(&self.inner.layout.traffic(), record)
    }
}
