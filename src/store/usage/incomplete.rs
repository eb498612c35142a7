//! The images that the server has not completed, and why: written by the server, read by `larder list`.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::oci::{Digest, ImageName, Reference};
use crate::store::files::record::{Access, RECORD_BYTES_MAX, from_seconds, to_seconds};
use crate::store::{Store, StoreError};

/// An image that is not complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IncompleteImage {
    /// The full reference.
    pub image: String,
    registry: String,
    repository: String,
    reference: String,
    /// Its manifest or index.
    pub digest: String,
    /// `queued`, `fetching`, `retrying` or `failed`.
    pub state: String,
    /// Why it is not complete.
    pub reason: String,
    /// The platforms of the nodes that have checked it, as far as they report them.
    pub platforms: Vec<String>,
    /// When a client first checked or pulled it, in seconds since 1970.
    pub since: u64,
    /// How often it was fetched in vain.
    pub attempts: u32,
}

impl IncompleteImage {
    /// An image that no attempt was made to fetch.
    pub fn new(
        name: &ImageName,
        reference: &Reference,
        digest: &Digest,
        state: &str,
        reason: &str,
        platforms: Vec<String>,
    ) -> IncompleteImage {
        IncompleteImage {
            image: name.with(reference),
            registry: name.upstream.to_string(),
            repository: name.repository.to_string(),
            reference: reference.to_string(),
            digest: digest.to_string(),
            state: state.to_owned(),
            reason: reason.to_owned(),
            platforms,
            since: 0,
            attempts: 0,
        }
    }

    /// The same with a time and a number of attempts.
    #[must_use]
    pub fn at(self, since: SystemTime, attempts: u32) -> IncompleteImage {
        IncompleteImage { since: to_seconds(since), attempts, ..self }
    }

    /// Its repository, with its registry.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// Its repository, reference and digest; `None` if one of them is not valid.
    pub fn parse(&self) -> Option<(ImageName, Reference, Digest)> {
        let (upstream, repository) = (self.registry.parse().ok()?, self.repository.parse().ok()?);
        let name = ImageName { upstream, repository };
        Some((name, self.reference.parse().ok()?, self.digest.parse().ok()?))
    }

    /// When a client first checked or pulled it, but not in the future.
    pub fn since(&self, now: SystemTime) -> SystemTime {
        from_seconds(self.since).map_or(now, |since| since.min(now))
    }
}

impl Store {
    /// The images that the server of this directory has not completed, as of its last report.
    pub fn incomplete(&self) -> Vec<IncompleteImage> {
        self.record(&self.inner.layout.incomplete(), Access::Look).unwrap_or_default()
    }

    /// Writes the report.
    ///
    /// # Errors
    /// [`StoreError`] if a write fails.
    pub fn put_incomplete(&self, images: &[IncompleteImage]) -> Result<(), StoreError> {
        // The names alone may be larger than a record may be.
        let mut bytes = 0;
        let fits = |image: &&IncompleteImage| {
            bytes += serde_json::to_vec(image).map_or(0, |json| json.len() as u64 + 1);
            bytes < RECORD_BYTES_MAX
        };
        let images: Vec<&IncompleteImage> = images.iter().take_while(fits).collect();
        self.put_record(&self.inner.layout.incomplete(), &images)
    }
}
