//! Whether an error is a refusal: the server has understood the request, and does not serve it.

use super::{UpstreamError, UpstreamErrorKind};

impl UpstreamError {
    /// Whether the server refused the request with a status: perhaps it limits the number of connections.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self.kind,
            UpstreamErrorKind::RateLimited { .. }
                | UpstreamErrorKind::Denied { .. }
                | UpstreamErrorKind::OutOfService
                | UpstreamErrorKind::Status { .. }
                | UpstreamErrorKind::ObjectStore { .. }
        )
    }

    /// Whether the registry, or its token service, refuses the credentials or the access.
    pub fn is_denied(&self) -> bool {
        matches!(self.kind, UpstreamErrorKind::Denied { .. } | UpstreamErrorKind::Hidden)
            && !self.is_elsewhere
    }
}
