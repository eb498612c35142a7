//! What became of the images of a load.

use super::failure::Failure;

/// The result of loading an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The cache has the complete image, and the registry confirmed the digest.
    Loaded {
        /// Bytes of manifests and blobs of the image that were not cached before. Content that images share counts for each
        /// image that waited for it, and a resumed blob counts completely.
        fetched_bytes: u64,
    },
    /// The cache has the complete image, but the registry could not confirm that the digest is current.
    Unconfirmed {
        /// As for [`Outcome::Loaded`].
        fetched_bytes: u64,
        /// Why not.
        reason: String,
        /// Whether another load cannot confirm it unless something is changed: the registry has deleted it, or it is
        /// denied.
        is_permanent: bool,
    },
    /// The image could not be loaded.
    Failed {
        /// The reason.
        reason: String,
        /// Whether another load cannot succeed unless something is changed: there is no such image, or it is denied.
        is_permanent: bool,
    },
}

/// The result of loading a list.
#[derive(Debug, Clone, Default)]
pub struct LoadSummary {
    /// Each image with its result, in the order of the list.
    pub images: Vec<(String, Outcome)>,
}

impl From<Failure> for Outcome {
    fn from(failure: Failure) -> Outcome {
        Outcome::Failed { reason: failure.reason, is_permanent: failure.retry.is_none() }
    }
}

impl LoadSummary {
    /// The images that could not be loaded, with the reasons.
    pub fn failed(&self) -> impl Iterator<Item = (&str, &str)> {
        self.images.iter().filter_map(|(image, outcome)| match outcome {
            Outcome::Failed { reason, .. } => Some((image.as_str(), reason.as_str())),
            _ => None,
        })
    }

    /// How many of the failures are permanent.
    pub fn failed_permanently(&self) -> usize {
        let is_permanent =
            |outcome: &Outcome| matches!(outcome, Outcome::Failed { is_permanent: true, .. });
        self.images.iter().filter(|(_, outcome)| is_permanent(outcome)).count()
    }
}
