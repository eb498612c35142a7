//! Records: small JSON files that are replaced atomically. A record that cannot be read is a miss.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::store::{Store, StoreError};

pub(in crate::store) use crate::oci::{from_seconds, to_seconds};

/// Resolution of access times: a name that is pulled all the time costs one `utimensat` per minute. Eviction and
/// pruning, which use these times, work in hours.
const ACCESS_RESOLUTION: Duration = Duration::from_secs(60);
/// The largest record that is read.
pub(in crate::store) const RECORD_BYTES_MAX: u64 = 1024 * 1024;

/// Whether reading a record counts as use of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// A client pulls it at this time.
    Pull(SystemTime),
    /// Revalidation, listing or pruning, which do not count as use.
    Look,
}

impl Store {
    pub(in crate::store) fn record<T: DeserializeOwned>(
        &self,
        path: &Path,
        access: Access,
    ) -> Option<T> {
        self.find_record(path, access).unwrap_or_default()
    }

    pub(in crate::store) fn find_record<T: DeserializeOwned>(
        &self,
        path: &Path,
        access: Access,
    ) -> Result<Option<T>, StoreError> {
        let Some((file, _)) = self.open_file(path)? else { return Ok(None) };
        let mut bytes = Vec::new();
        if let Err(error) = (&file).take(RECORD_BYTES_MAX).read_to_end(&mut bytes) {
            return self.failed_to_read(path, error);
        }
        Ok(match serde_json::from_slice(&bytes) {
            Ok(record) => {
                if let Access::Pull(now) = access {
                    touch(&file, now);
                }
                Some(record)
            }
            Err(error) => self.damaged(path, &error.to_string()),
        })
    }

    pub(in crate::store) fn put_record(
        &self,
        path: &Path,
        record: &impl Serialize,
    ) -> Result<(), StoreError> {
        self.require_writable()?;
        let json = serde_json::to_vec(record)
            .map_err(|error| StoreError::write(path, io::Error::other(error)))?;
        self.inner.replace(path, &json)
    }
}

/// Records a use, at most once per [`ACCESS_RESOLUTION`]. A read-only directory keeps no access times, which has no
/// other effect.
fn touch(file: &File, now: SystemTime) {
    let last = file.metadata().and_then(|metadata| metadata.modified()).unwrap_or(now);
    if now.duration_since(last).is_ok_and(|age| age >= ACCESS_RESOLUTION) {
        let _ = file.set_modified(now);
    }
}
