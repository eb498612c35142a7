//! Why a removal of images fails.

use std::fmt;

use super::PinError;
use crate::store::{StoreError, SweepLocked};

/// Why a prune failed or stopped early.
#[derive(Debug)]
pub enum PruneError {
    /// The pins cannot be read.
    Pins(PinError),
    /// Another removal, an import or an export is running, or a commit takes too long.
    Locked(SweepLocked),
    /// The caller stopped it.
    Stopped,
    /// A disk operation failed.
    Store(StoreError),
}

impl fmt::Display for PruneError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PruneError::Pins(error) => error.fmt(f),
            PruneError::Locked(locked) => write!(f, "{}; try again later", locked.as_str()),
            PruneError::Stopped => f.write_str("stopped before it was finished"),
            PruneError::Store(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for PruneError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            PruneError::Pins(error) => Some(error),
            PruneError::Store(error) => Some(error),
            PruneError::Locked(_) | PruneError::Stopped => None,
        }
    }
}

impl From<StoreError> for PruneError {
    fn from(error: StoreError) -> PruneError {
        PruneError::Store(error)
    }
}
