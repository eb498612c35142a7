//! What the log and clients get to read of a failure.

use std::fmt;

use super::{UpstreamError, UpstreamErrorKind};
use crate::oci::quoted_up_to;
use crate::units::duration;

/// The longest URL or reason in a message, in characters: longer than the longest repository with a digest. A
/// registry controls the contents of both.
const REASON_CHARS_MAX: usize = 600;

impl fmt::Display for UpstreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", quoted_up_to(REASON_CHARS_MAX, &self.request), self.kind)
    }
}

/// What went wrong, without the request.
impl fmt::Display for UpstreamErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = |text: &dyn fmt::Display| quoted_up_to(REASON_CHARS_MAX, text);
        match self {
            UpstreamErrorKind::NotFound => write!(f, "the registry has no such content"),
            UpstreamErrorKind::Hidden => {
                write!(
                    f,
                    "the registry has no such content, or hides it (401 despite a fresh token)"
                )
            }
            UpstreamErrorKind::Denied { status } => {
                write!(
                    f,
                    "the registry requires other credentials (registries[].auth; status {status})"
                )
            }
            UpstreamErrorKind::Credentials { reason: text }
            | UpstreamErrorKind::CredentialsUnavailable { reason: text } => {
                write!(f, "no credentials: {}", reason(text))
            }
            UpstreamErrorKind::RateLimited { retry_after: Some(wait) } => {
                write!(f, "the registry's rate limit is reached, retry after {}", duration(*wait))
            }
            UpstreamErrorKind::RateLimited { retry_after: None } => {
                write!(f, "the registry's rate limit is reached")
            }
            UpstreamErrorKind::OutOfService => write!(f, "the registry is out of service (503)"),
            UpstreamErrorKind::NoSpace => {
                write!(f, "the space for large documents is used up, or the disk has failed")
            }
            UpstreamErrorKind::Loop => write!(
                f,
                "the endpoint is a Larder that requests the same content from this one (508): remove one \
                 of the two from the other's configuration (registries[].endpoints)"
            ),
            UpstreamErrorKind::CircuitOpen { wait, last } => {
                let wait = duration(*wait);
                write!(f, "circuit breaker open for {wait} more after repeated failures")?;
                // Without its request, which was that of another client.
                last.iter().try_for_each(|last| write!(f, "; last failure: {}", last.kind))
            }
            UpstreamErrorKind::Status { status: status @ (404 | 410) } => write!(
                f,
                "{status} from another server than the registry: a token service, an ingress, a proxy"
            ),
            UpstreamErrorKind::Status { status } => write!(f, "the server answered {status}"),
            UpstreamErrorKind::Unsupported => write!(f, "the registry does not support this API"),
            UpstreamErrorKind::NoRanges => write!(f, "the registry does not support ranges"),
            UpstreamErrorKind::TimedOut { phase } => write!(f, "timed out waiting for {phase}"),
            UpstreamErrorKind::Unreachable { source } => {
                write!(f, "cannot be reached: {}", reason(source))
            }
            UpstreamErrorKind::Proxy { reason: text } => {
                write!(f, "proxy failed: {}", reason(text))
            }
            UpstreamErrorKind::Tls { reason: text } => write!(f, "TLS failed: {}", reason(text)),
            UpstreamErrorKind::BadAnswer { reason: text } => {
                write!(f, "unusable response: {}", reason(text))
            }
            UpstreamErrorKind::Redirect { reason: text } => {
                write!(f, "redirect refused: {}", reason(text))
            }
            UpstreamErrorKind::NotAllowed { reason: text } => {
                write!(f, "not allowed: {}", reason(text))
            }
            UpstreamErrorKind::ObjectStore { reason: text, .. } => {
                write!(f, "{}", reason(text))
            }
            UpstreamErrorKind::Unreadable { source } => {
                write!(f, "the content to upload cannot be read: {}", reason(source))
            }
            UpstreamErrorKind::Cancelled => write!(f, "the upload was cancelled"),
        }
    }
}
