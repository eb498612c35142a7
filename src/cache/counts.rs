//! What happened how often since the start, where somebody should look when it is not nothing.

use super::Inner;
use crate::metrics::Removal;
use crate::upstream::{UpstreamError, UpstreamErrorKind};

/// How often, at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Blobs that were streamed to a client because the disk would not have them.
    pub blobs_not_cached: u64,
    /// Manifests that were answered and could not be written.
    pub manifests_not_cached: u64,
    /// Files of the store that were found to be damaged.
    pub damaged_files: u64,
    /// Images that went because room was needed.
    pub images_evicted: u64,
    /// The bytes that this freed.
    pub bytes_evicted: u64,
}

impl Inner {
    pub(super) fn counts(&self) -> Counts {
        let (images_evicted, bytes_evicted) = self.metrics.removed_so_far(Removal::Evicted);
        Counts {
            blobs_not_cached: self.metrics.not_cached_so_far("blob"),
            manifests_not_cached: self.metrics.not_cached_so_far("manifest"),
            damaged_files: self.store.damaged_files(),
            images_evicted,
            bytes_evicted,
        }
    }
}

/// How a request to a registry ended, as metrics call it.
pub(super) fn outcome<T>(result: &Result<T, UpstreamError>) -> &'static str {
    let Err(error) = result else { return "ok" };
    match error.kind() {
        UpstreamErrorKind::NotFound => "404",
        UpstreamErrorKind::Hidden => "hidden",
        UpstreamErrorKind::Denied { .. } => "denied",
        UpstreamErrorKind::Credentials { .. }
        | UpstreamErrorKind::CredentialsUnavailable { .. } => "credentials",
        UpstreamErrorKind::RateLimited { .. } => "429",
        UpstreamErrorKind::OutOfService => "503",
        UpstreamErrorKind::Loop => "loop",
        UpstreamErrorKind::CircuitOpen { .. } => "breaker-open",
        UpstreamErrorKind::Status { status } => match status / 100 {
            5 => "5xx",
            _ => "other-status",
        },
        UpstreamErrorKind::Unsupported => "unsupported",
        UpstreamErrorKind::TimedOut { .. } => "timed-out",
        UpstreamErrorKind::Unreachable { .. } => "unreachable",
        UpstreamErrorKind::Proxy { .. } => "proxy",
        UpstreamErrorKind::Tls { .. } => "tls",
        UpstreamErrorKind::BadAnswer { .. } => "bad-answer",
        UpstreamErrorKind::Redirect { .. } => "redirect",
        UpstreamErrorKind::NotAllowed { .. } => "not-allowed",
    }
}
