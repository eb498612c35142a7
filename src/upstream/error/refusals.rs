//! Whether an error is a refusal: the registry has understood the request, and does not serve it.

use super::{UpstreamError, UpstreamErrorKind};

impl UpstreamError {
    /// Whether the registry does not support the request.
    pub(in crate::upstream) fn is_unsupported(&self) -> bool {
        matches!(self.kind, UpstreamErrorKind::Unsupported)
    }

    /// Whether the registry, or its token service, refuses the credentials or the access.
    pub fn is_denied(&self) -> bool {
        let is_final =
            matches!(self.kind, UpstreamErrorKind::Denied { .. } | UpstreamErrorKind::Hidden);
        is_final && !self.is_elsewhere
    }
}
