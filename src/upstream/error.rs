//! Errors of requests to a registry.

mod refusals;
mod text;
mod tls_reason;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use ureq::Timeout;

use self::tls_reason::tls_reason;
use super::auth::LoginError;
use super::network::{AddressRefused, ProxyFailed};

/// A request to a registry failed. Cheap to clone, since every waiting caller gets a copy.
#[derive(Debug, Clone)]
pub struct UpstreamError {
    /// Method and URL without its query, which may be signed.
    request: Arc<str>,
    kind: UpstreamErrorKind,
    /// Whether it happened at another host, to which the registry redirected.
    is_elsewhere: bool,
}

/// The kind of failure.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum UpstreamErrorKind {
    /// The content does not exist, or the registry reports this to clients without credentials.
    NotFound,
    /// The registry refuses a token that it has just issued. Some registries answer so for content that does not exist
    /// or is private (Docker Hub since 2023).
    Hidden,
    /// The registry requires credentials, or refuses those of the configuration (`registries[].auth`).
    Denied {
        /// The HTTP status.
        status: u16,
    },
    /// The configured credentials are unusable (`registries[].auth`): a file cannot be read, a helper is missing.
    Credentials {
        /// Which file or helper, what is wrong with it, and what to do.
        reason: Arc<str>,
    },
    /// A helper or a cloud does not return credentials at the moment (`registries[].auth`).
    CredentialsUnavailable {
        /// Which one, and what happened.
        reason: Arc<str>,
    },
    /// The registry limits the rate of requests.
    RateLimited {
        /// The value of `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// The registry is out of service (503).
    OutOfService,
    /// The endpoint is a Larder that requests the same content from this one (508).
    Loop,
    /// The endpoint failed repeatedly; no requests are sent to it for a while.
    CircuitOpen {
        /// The remaining time.
        wait: Duration,
        /// The failure that opened the circuit breaker.
        last: Option<Arc<UpstreamError>>,
    },
    /// An unexpected status; 404 if the response does not come from the registry.
    Status {
        /// The HTTP status.
        status: u16,
    },
    /// The registry does not support this API.
    Unsupported,
    /// The registry sends the complete blob in place of a part.
    NoRanges,
    /// A timeout expired (`connect 5 s, headers 20 s, stall 30 s`).
    TimedOut {
        /// What Larder was waiting for.
        phase: &'static str,
    },
    /// The name does not resolve, the connection was refused, or it broke.
    Unreachable {
        /// The system's error.
        source: Arc<io::Error>,
    },
    /// The proxy cannot be reached, or does not connect to the registry (`HTTPS_PROXY`, `NO_PROXY`).
    Proxy {
        /// Which proxy, and how it failed.
        reason: Arc<str>,
    },
    /// TLS failed: unknown authority, wrong name, expired certificate (`registries[].tls`).
    Tls {
        /// What was wrong.
        reason: Arc<str>,
    },
    /// The response violates the protocol: wrong bytes, no JSON, too large, compressed.
    BadAnswer {
        /// What was wrong.
        reason: Arc<str>,
    },
    /// A redirect that is not followed: one too many, from https to http, or without a usable target.
    Redirect {
        /// Why.
        reason: Arc<str>,
    },
    /// There is no space for the response, neither in a file nor in memory, or it cannot be read back.
    NoSpace,
    /// Larder may not dial this (`registries`, `unlistedRegistries`).
    NotAllowed {
        /// Why, and what to configure.
        reason: Arc<str>,
    },
    /// The object store refuses the request or fails (`objectStore`).
    ObjectStore {
        /// The HTTP status.
        status: u16,
        /// The store's error code, for example `SlowDown`; HEAD has none.
        code: Option<Arc<str>>,
        /// What it means, and what to do.
        reason: Arc<str>,
        /// The value of `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// The content to upload cannot be read from this machine's disk.
    Unreadable {
        /// The system's error.
        source: Arc<io::Error>,
    },
    /// The caller cancelled the upload.
    Cancelled,
}

impl UpstreamError {
    /// Creates the error of a request; `request` is its method and URL without query.
    pub fn new(request: impl Into<Arc<str>>, kind: UpstreamErrorKind) -> UpstreamError {
        UpstreamError { request: request.into(), kind, is_elsewhere: false }
    }

    /// The same failure of a GET, for a client that must not learn that HEAD was enough.
    pub fn of_get(self) -> UpstreamError {
        match self.request.strip_prefix("HEAD ") {
            Some(rest) => UpstreamError { request: format!("GET {rest}").into(), ..self },
            None => self,
        }
    }

    /// The same error, at a host to which the registry redirected.
    pub(super) fn elsewhere(self) -> UpstreamError {
        UpstreamError { is_elsewhere: true, ..self }
    }

    /// Whether it happened at a host to which the registry redirected. Such an error says nothing about the registry.
    pub fn is_elsewhere(&self) -> bool {
        self.is_elsewhere
    }

    /// Whether it happened before the registry could know the request, so that every other request would fail as well.
    /// Later failures may depend on the request, which a client has chosen.
    pub fn is_about_the_registry(&self) -> bool {
        if self.is_elsewhere {
            return false;
        }
        match &self.kind {
            UpstreamErrorKind::Unreachable { source } => !is_broken_connection(source.kind()),
            UpstreamErrorKind::TimedOut { phase } => matches!(*phase, NAME | CONNECTION),
            UpstreamErrorKind::Proxy { .. }
            | UpstreamErrorKind::Tls { .. }
            | UpstreamErrorKind::CredentialsUnavailable { .. }
            | UpstreamErrorKind::CircuitOpen { .. } => true,
            _ => false,
        }
    }

    /// Whether the registry does not support ranges of blobs.
    pub fn is_without_ranges(&self) -> bool {
        matches!(self.kind, UpstreamErrorKind::NoRanges)
    }

    /// Whether an object store says that what it received does not have the hash that was announced.
    pub fn is_about_content(&self) -> bool {
        let codes = ["BadDigest", "XAmzContentSHA256Mismatch", "InvalidDigest"];
        self.store_code().is_some_and(|(_, code)| codes.contains(&code))
    }

    /// Whether the registry limits the rate of Larder's requests or of its account.
    pub fn is_rate_limit(&self) -> bool {
        matches!(self.kind, UpstreamErrorKind::RateLimited { .. }) && !self.is_elsewhere
    }

    /// Whether GET may succeed after HEAD failed with this error: many registries and proxies support HEAD badly.
    pub fn may_be_about_head(&self) -> bool {
        !(self.is_about_the_registry()
            || self.is_rate_limit()
            || self.is_timeout()
            || self.is_no_space())
    }

    /// Whether no response has arrived in time.
    pub(super) fn is_timeout(&self) -> bool {
        matches!(self.kind, UpstreamErrorKind::TimedOut { .. })
    }

    /// Whether the response did not fit on this machine, so that another endpoint cannot help.
    pub(super) fn is_no_space(&self) -> bool {
        matches!(self.kind, UpstreamErrorKind::NoSpace)
    }

    /// Whether a server has answered with an error of its own.
    pub(super) fn is_response(&self) -> bool {
        matches!(self.kind, UpstreamErrorKind::Status { .. } | UpstreamErrorKind::OutOfService)
    }

    /// Whether it shows that the endpoint itself has a problem.
    pub(super) fn is_endpoint_trouble(&self) -> bool {
        let is_the_helpers = matches!(self.kind, UpstreamErrorKind::CredentialsUnavailable { .. });
        self.is_trouble() && !self.is_elsewhere && !is_the_helpers
    }

    /// Whether the circuit breaker refused the request.
    pub(super) fn is_circuit_open(&self) -> bool {
        matches!(self.kind, UpstreamErrorKind::CircuitOpen { .. })
    }

    /// The kind of failure.
    pub fn kind(&self) -> &UpstreamErrorKind {
        &self.kind
    }

    /// Whether the same request may succeed a little later, so that it is worth resuming a download.
    pub fn is_temporary(&self) -> bool {
        match &self.kind {
            UpstreamErrorKind::Tls { .. } => false,
            UpstreamErrorKind::CircuitOpen { last: Some(last), .. } => last.is_temporary(),
            _ => self.is_trouble(),
        }
    }

    /// How long to wait before the next request, as the registry demands.
    pub fn retry_after(&self) -> Option<Duration> {
        match self.kind {
            UpstreamErrorKind::RateLimited { retry_after }
            | UpstreamErrorKind::ObjectStore { retry_after, .. } => retry_after,
            _ => None,
        }
    }

    /// Method and URL of the request, without query.
    pub(super) fn request(&self) -> &Arc<str> {
        &self.request
    }

    /// Whether the registry itself did not answer: the network failed, or a gateway could not reach it (520 and above
    /// are Cloudflare's).
    pub fn is_unreachable(&self) -> bool {
        match self.kind {
            UpstreamErrorKind::Status { status }
            | UpstreamErrorKind::ObjectStore { status, .. } => {
                matches!(status, 502..=504 | 520..=527)
            }
            _ => self.is_trouble(),
        }
    }

    /// Whether the registry does not implement this kind of request (501).
    pub(super) fn is_not_implemented(&self) -> bool {
        matches!(self.kind, UpstreamErrorKind::Status { status: 501 })
    }

    /// Whether the registry or the object store answered that the content does not exist.
    pub fn is_not_found(&self) -> bool {
        match &self.kind {
            UpstreamErrorKind::NotFound | UpstreamErrorKind::Hidden => true,
            UpstreamErrorKind::ObjectStore { status: 404, code, .. } => {
                code.as_deref() == Some(NO_SUCH_KEY)
            }
            _ => false,
        }
    }

    /// Whether an object store cannot be used, rather than lacking an object or a range: there are no keys, they do not allow
    /// the request, or the bucket does not exist or is elsewhere.
    pub(super) fn is_refusal_of_the_store(&self) -> bool {
        match &self.kind {
            UpstreamErrorKind::Credentials { .. }
            | UpstreamErrorKind::CredentialsUnavailable { .. } => true,
            UpstreamErrorKind::ObjectStore { status, .. } => *status != 416 && !self.is_not_found(),
            _ => false,
        }
    }

    /// The status and the error code of an object store.
    pub(super) fn store_code(&self) -> Option<(u16, &str)> {
        match &self.kind {
            UpstreamErrorKind::ObjectStore { status, code, .. } => {
                Some((*status, code.as_deref().unwrap_or_default()))
            }
            _ => None,
        }
    }

    /// Whether the registry answered explicitly that the content does not exist, so that a cached copy is outdated.
    pub fn is_certainly_not_found(&self) -> bool {
        matches!(self.kind, UpstreamErrorKind::NotFound) && !self.is_elsewhere
    }

    /// Whether the registry or the network has a problem, so that another request would probably fail as well.
    pub fn is_trouble(&self) -> bool {
        match self.kind {
            UpstreamErrorKind::RateLimited { .. }
            | UpstreamErrorKind::TimedOut { .. }
            | UpstreamErrorKind::Unreachable { .. }
            | UpstreamErrorKind::Proxy { .. }
            | UpstreamErrorKind::Tls { .. }
            | UpstreamErrorKind::CircuitOpen { .. }
            | UpstreamErrorKind::CredentialsUnavailable { .. }
            | UpstreamErrorKind::OutOfService => true,
            UpstreamErrorKind::Status { status } => status >= 500,
            UpstreamErrorKind::ObjectStore { status, ref code, .. } => {
                status >= 500 || is_temporary_code(status, code.as_deref())
            }
            _ => false,
        }
    }

    /// Creates the error of a response that violates the protocol.
    pub fn bad_answer(request: &str, reason: impl Into<Arc<str>>) -> UpstreamError {
        UpstreamError::new(request, UpstreamErrorKind::BadAnswer { reason: reason.into() })
    }

    /// Creates the error of a request for which there is no login.
    pub(super) fn no_login(request: &Arc<str>, error: LoginError) -> UpstreamError {
        let kind = match error {
            LoginError::Unusable(reason) => UpstreamErrorKind::Credentials { reason },
            LoginError::Unavailable(reason) => UpstreamErrorKind::CredentialsUnavailable { reason },
        };
        UpstreamError::new(Arc::clone(request), kind)
    }

    /// Converts an error of ureq, whose texts do not name the request.
    pub(super) fn from_ureq(request: &str, error: ureq::Error) -> UpstreamError {
        UpstreamError::new(request, kind_of(error))
    }

    /// Converts an error of reading a body, which may wrap an error of ureq.
    pub fn from_body(request: &str, error: io::Error) -> UpstreamError {
        let kind = match error.downcast::<ureq::Error>() {
            Ok(inner) => kind_of(inner),
            Err(plain) => kind_of_io(plain),
        };
        UpstreamError::new(request, kind)
    }
}

/// The code of an object store for a missing object.
pub(super) const NO_SUCH_KEY: &str = "NoSuchKey";

/// Whether an object store may answer otherwise a little later, although the status is below 500.
fn is_temporary_code(status: u16, code: Option<&str>) -> bool {
    let codes =
        ["SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "OperationAborted"];
    matches!(status, 408 | 429) || code.is_some_and(|code| codes.contains(&code))
}

fn kind_of(error: ureq::Error) -> UpstreamErrorKind {
    match error {
        ureq::Error::Timeout(timeout) => UpstreamErrorKind::TimedOut { phase: phase(timeout) },
        ureq::Error::Io(source) => kind_of_io(source),
        ureq::Error::HostNotFound => UpstreamErrorKind::Unreachable {
            source: Arc::new(io::Error::new(
                io::ErrorKind::NotFound,
                "the host name does not resolve",
            )),
        },
        ureq::Error::ConnectionFailed => UpstreamErrorKind::Unreachable {
            source: Arc::new(io::Error::other("the connection failed")),
        },
        ureq::Error::Rustls(error) => UpstreamErrorKind::Tls { reason: tls_reason(&error).into() },
        ureq::Error::Tls(reason) => UpstreamErrorKind::Tls { reason: reason.into() },
        ureq::Error::Other(inner) if inner.is::<AddressRefused>() => {
            UpstreamErrorKind::NotAllowed { reason: inner.to_string().into() }
        }
        ureq::Error::Other(inner) if inner.is::<ProxyFailed>() => {
            UpstreamErrorKind::Proxy { reason: inner.to_string().into() }
        }
        other => UpstreamErrorKind::BadAnswer { reason: other.to_string().into() },
    }
}

/// rustls reports its errors through `io::Error`, as `InvalidData`.
fn kind_of_io(source: io::Error) -> UpstreamErrorKind {
    match source.kind() {
        io::ErrorKind::InvalidData => {
            let inner = source.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
            let reason = inner.map_or_else(|| source.to_string(), tls_reason);
            UpstreamErrorKind::Tls { reason: reason.into() }
        }
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
            UpstreamErrorKind::TimedOut { phase: "the next bytes" }
        }
        _ => UpstreamErrorKind::Unreachable { source: Arc::new(source) },
    }
}

/// Whether an established connection broke: it was stale, or a firewall rejects the request.
pub(super) fn is_broken_connection(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(kind, BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

/// The phases before the request is sent.
const NAME: &str = "the host name";
const CONNECTION: &str = "a connection";

fn phase(timeout: Timeout) -> &'static str {
    match timeout {
        Timeout::Resolve => NAME,
        Timeout::Connect => CONNECTION,
        Timeout::RecvResponse => "the response headers",
        Timeout::PerRead | Timeout::RecvBody => "the next bytes",
        Timeout::Global => "the complete response",
        _ => "the request to be sent",
    }
}

impl std::error::Error for UpstreamError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.kind {
            UpstreamErrorKind::Unreachable { source } => Some(&**source),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::UnixTime;
    use rustls::{AlertDescription, CertificateError, InvalidMessage};

    use super::*;

    #[test]
    fn texts_of_a_registry_are_truncated_and_escaped() {
        let text = format!("{}\u{1b}[2J{}", "GET https://quay.io/x\n", "y".repeat(100_000));
        let error = UpstreamError::bad_answer(&text, text.clone()).to_string();
        assert!(
            error.contains("x\\n\\u{1b}[2Jyyy") && error.contains("unusable response"),
            "{error}"
        );
        assert!(error.len() < 2_000 && !error.contains('\u{1b}'), "{} bytes", error.len());
    }

    #[test]
    fn common_tls_errors_name_the_setting_to_change() {
        let since = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let expired = CertificateError::ExpiredContext {
            time: since(1_795_826_045),
            not_after: since(1_609_459_200),
        };
        for (error, words) in [
            (InvalidMessage::InvalidContentType.into(), "scheme: http"),
            (expired.into(), "its certificate expired on 2021-01-01"),
            (CertificateError::UnknownIssuer.into(), "tls.ca"),
            (rustls::Error::HandshakeNotComplete, "handshake not complete"),
            (rustls::Error::AlertReceived(AlertDescription::HandshakeFailure), "must not be P-521"),
        ] {
            let inside = io::Error::new(io::ErrorKind::InvalidData, error);
            let text = UpstreamError::from_body("GET x", inside).to_string();
            assert!(text.starts_with("GET x: TLS failed: ") && text.contains(words), "{text}");
        }
    }
}
