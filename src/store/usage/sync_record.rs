//! When each entry of `sync` last ran, and with what result: written by the server, so that a restart does not repeat
//! runs that are not due.

use serde::{Deserialize, Serialize};

use crate::store::files::record::Access;
use crate::store::{Store, StoreError};

/// The last run of an entry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SyncRecord {
    /// The name of the entry.
    pub name: String,
    /// Identifies the settings of the entry. With others, the record does not apply.
    pub settings: String,
    /// When the last run that has ended was started, in seconds since 1970.
    pub started: u64,
    /// How long it took, in seconds.
    pub seconds: u64,
    /// When a run with which all images were present and confirmed ended, in seconds since 1970.
    pub succeeded: Option<u64>,
    /// How many images were present at the end of the last run.
    pub present: u64,
    /// How many of these the registry did not confirm.
    pub unconfirmed: u64,
    /// How many images were missing.
    pub missing: u64,
    /// Some of them, with the reasons.
    pub reasons: Vec<(String, String)>,
    /// Some of the images that were not confirmed, with the reasons.
    pub unconfirmed_reasons: Vec<(String, String)>,
}

impl Store {
    /// The last runs. A damaged file counts as empty.
    pub fn sync_records(&self) -> Vec<SyncRecord> {
        self.record(&self.inner.layout.sync_records(), Access::Look).unwrap_or_default()
    }

    /// Writes the last runs.
    ///
    /// # Errors
    /// [`StoreError`] if a write fails.
    pub fn put_sync_records(&self, records: &[SyncRecord]) -> Result<(), StoreError> {
        self.put_record(&self.inner.layout.sync_records(), &records)
    }
}
