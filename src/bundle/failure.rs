//! Why an attempt to load an image failed, and when another one makes sense.

use std::fmt;
use std::time::Duration;

use crate::cache::{CacheError, Reason};

/// Why an attempt failed.
pub(super) struct Failure {
    pub(super) reason: String,
    /// The minimum wait before another attempt; `None` if another attempt cannot help.
    pub(super) retry: Option<Duration>,
    /// Whether the disk is the cause, or the limits of the cache.
    pub(super) is_of_disk: bool,
}

impl From<CacheError> for Failure {
    fn from(error: CacheError) -> Failure {
        let retry = match (error.reason(), &error) {
            (_, CacheError::BackingOff { wait }) => Some(*wait),
            (Reason::RateLimited { retry_after }, _) => Some(retry_after.unwrap_or_default()),
            (Reason::NotFound | Reason::Unsupported | Reason::NotAllowed | Reason::Denied, _) => {
                None
            }
            _ => Some(Duration::ZERO),
        };
        Failure { reason: error.to_string(), retry, is_of_disk: error.is_the_disks() }
    }
}

impl From<String> for Failure {
    fn from(reason: String) -> Failure {
        Failure { reason, retry: None, is_of_disk: false }
    }
}

impl Failure {
    /// Content was fetched but not stored, for a reason that is in the log. Another attempt may store it.
    pub(super) fn not_stored(reason: impl fmt::Display) -> Failure {
        let reason = format!("it was fetched but not stored: {reason}");
        Failure { reason, retry: Some(Duration::ZERO), is_of_disk: true }
    }
}
