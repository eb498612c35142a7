//! What can go wrong between Larder and a registry.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use rustls::{CertificateError, InvalidMessage};
use time::OffsetDateTime;
use ureq::Timeout;

use super::auth::LoginError;
use super::network::{AddressRefused, ProxyFailed};
use crate::oci::quoted_up_to;

/// The most characters of a URL or a reason in a message: more than the longest repository with a digest. A
/// registry chooses what is in both.
const REASON_CHARS_MAX: usize = 600;

/// A request to a registry failed. Cheap to clone: it reaches everybody who waits for the answer.
#[derive(Debug, Clone)]
pub struct UpstreamError {
    /// Method and URL without its query, which may be signed.
    request: Arc<str>,
    kind: UpstreamErrorKind,
    /// Whether it happened behind a redirect, at somebody else's.
    is_elsewhere: bool,
}

/// How it failed.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum UpstreamErrorKind {
    /// The registry has no such thing, or says so to those without credentials.
    NotFound,
    /// The registry refuses a token that it has just issued: so some hide what does not exist, or is
    /// private (Docker Hub since 2023).
    Hidden,
    /// The registry wants credentials, or refuses those it got (`registries[].auth`).
    Denied {
        /// The HTTP status.
        status: u16,
    },
    /// The credentials do not do (`registries[].auth`): a file cannot be read, a helper is not there.
    Credentials {
        /// Which file or helper, what is wrong with it, and what to do.
        reason: Arc<str>,
    },
    /// Whoever hands out the credentials, a helper or a cloud, does not just now (`registries[].auth`).
    CredentialsUnavailable {
        /// Who, and what happened.
        reason: Arc<str>,
    },
    /// The registry has had enough of us for now.
    RateLimited {
        /// What `Retry-After` says.
        retry_after: Option<Duration>,
    },
    /// The registry says of itself that it is out of service (503).
    OutOfService,
    /// The endpoint is a Larder that asks this one for the same (508).
    Loop,
    /// The endpoint failed again and again and is left alone for a while.
    CircuitOpen {
        /// How much longer.
        wait: Duration,
        /// The failure that decided it.
        last: Option<Arc<UpstreamError>>,
    },
    /// An answer with a status that promises nothing; with 404, from something other than the registry.
    Status {
        /// The HTTP status.
        status: u16,
    },
    /// The registry does not offer this API.
    Unsupported,
    /// Nothing answered in time (`connect 5 s, headers 20 s, stall 30 s`).
    TimedOut {
        /// What was being waited for.
        phase: &'static str,
    },
    /// The name does not resolve, the connection was refused, or it broke.
    Unreachable {
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The proxy on the way to it cannot be reached or does not connect (`HTTPS_PROXY`, `NO_PROXY`).
    Proxy {
        /// Which proxy, and what it does.
        reason: Arc<str>,
    },
    /// TLS failed: an unknown authority, a wrong name, an expired certificate (`registries[].tls`).
    Tls {
        /// What was wrong.
        reason: Arc<str>,
    },
    /// The answer is not what the protocol promises: wrong bytes, no JSON, too large, encoded.
    BadAnswer {
        /// What was wrong.
        reason: Arc<str>,
    },
    /// A redirect that is not followed: too many, from https to http, or nowhere.
    Redirect {
        /// Why.
        reason: Arc<str>,
    },
    /// Larder may not dial this (`registries`, `unlistedRegistries`).
    NotAllowed {
        /// Why, and what to configure.
        reason: Arc<str>,
    },
}

impl UpstreamError {
    /// An error of a request that `request` describes (method and URL without query).
    pub fn new(request: impl Into<Arc<str>>, kind: UpstreamErrorKind) -> UpstreamError {
        UpstreamError { request: request.into(), kind, is_elsewhere: false }
    }

    /// The same error, at somebody to whom the registry sent us.
    pub(super) fn elsewhere(self) -> UpstreamError {
        UpstreamError { is_elsewhere: true, ..self }
    }

    /// Whether it happened at a host to which the registry redirects: it says nothing about the registry.
    pub fn is_elsewhere(&self) -> bool {
        self.is_elsewhere
    }

    /// Whether it happened before the registry could know what is asked for, so that every other request would
    /// fare the same. A failure after that may be about the request: clients choose which are sent.
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

    /// Whether the registry, as a whole or the account with which we ask, has had enough of us.
    pub fn is_rate_limit(&self) -> bool {
        matches!(self.kind, UpstreamErrorKind::RateLimited { .. }) && !self.is_elsewhere
    }

    /// Whether it says that the endpoint itself is in trouble.
    pub(super) fn is_endpoint_trouble(&self) -> bool {
        let is_the_helpers = matches!(self.kind, UpstreamErrorKind::CredentialsUnavailable { .. });
        self.is_trouble() && !self.is_elsewhere && !is_the_helpers
    }

    /// Whether nobody was asked.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self.kind, UpstreamErrorKind::CircuitOpen { .. })
    }

    /// How it failed.
    pub fn kind(&self) -> &UpstreamErrorKind {
        &self.kind
    }

    /// Whether the same request may well succeed a little later, so that a download that was under way
    /// is worth going on with.
    pub fn is_temporary(&self) -> bool {
        match &self.kind {
            UpstreamErrorKind::Tls { .. } => false,
            UpstreamErrorKind::CircuitOpen { last: Some(last), .. } => last.is_temporary(),
            _ => self.is_trouble(),
        }
    }

    /// How long the registry says to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        match self.kind {
            UpstreamErrorKind::RateLimited { retry_after } => retry_after,
            _ => None,
        }
    }

    /// Method and URL of the request, without query.
    pub(super) fn request(&self) -> &Arc<str> {
        &self.request
    }

    /// Whether the registry has met an error of its own (500), which may concern one request only.
    pub fn is_server_error(&self) -> bool {
        matches!(self.kind, UpstreamErrorKind::Status { status: 500 })
    }

    /// Whether nothing of the registry itself has answered: the way to it is in trouble, or a gateway before it
    /// does not reach it (520 and above are Cloudflare's).
    pub fn is_unreachable(&self) -> bool {
        match self.kind {
            UpstreamErrorKind::Status { status } => matches!(status, 502..=504 | 520..=527),
            _ => self.is_trouble(),
        }
    }

    /// Whether the registry does not know this kind of request (501).
    pub(super) fn is_not_implemented(&self) -> bool {
        matches!(self.kind, UpstreamErrorKind::Status { status: 501 })
    }

    /// Whether the registry answered that there is no such thing.
    pub fn is_not_found(&self) -> bool {
        matches!(self.kind, UpstreamErrorKind::NotFound | UpstreamErrorKind::Hidden)
    }

    /// Whether it said so in as many words, so that what was there is gone.
    pub fn is_certainly_not_found(&self) -> bool {
        matches!(self.kind, UpstreamErrorKind::NotFound) && !self.is_elsewhere
    }

    /// Whether the registry, or the way to it, is in trouble, so that another request would probably
    /// fare no better right now.
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
            _ => false,
        }
    }

    /// An answer that is not what the protocol promises.
    pub fn bad_answer(request: &str, reason: impl Into<Arc<str>>) -> UpstreamError {
        UpstreamError::new(request, UpstreamErrorKind::BadAnswer { reason: reason.into() })
    }

    /// There is no login to ask with.
    pub(super) fn no_login(request: &Arc<str>, error: LoginError) -> UpstreamError {
        let kind = match error {
            LoginError::Unusable(reason) => UpstreamErrorKind::Credentials { reason },
            LoginError::Unavailable(reason) => UpstreamErrorKind::CredentialsUnavailable { reason },
        };
        UpstreamError::new(Arc::clone(request), kind)
    }

    /// Translates what ureq says, whose own texts do not name the request.
    pub(super) fn from_ureq(request: &str, error: ureq::Error) -> UpstreamError {
        UpstreamError::new(request, kind_of(error))
    }

    /// Translates an error of reading a body, inside which ureq hides its own.
    pub fn from_body(request: &str, error: io::Error) -> UpstreamError {
        let kind = match error.downcast::<ureq::Error>() {
            Ok(inner) => kind_of(inner),
            Err(plain) => kind_of_io(plain),
        };
        UpstreamError::new(request, kind)
    }
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
            source: Arc::new(io::Error::other("no connection could be made")),
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

/// What rustls says, and for what is often the matter, which setting governs it.
fn tls_reason(error: &rustls::Error) -> String {
    let (what, hint) = match error {
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => (
            "what came is no TLS".to_owned(),
            "a registry in the clear needs scheme: http in its entry",
        ),
        rustls::Error::InvalidCertificate(CertificateError::ExpiredContext {
            not_after, ..
        }) => {
            let date = OffsetDateTime::from(UNIX_EPOCH + Duration::from_secs(not_after.as_secs()));
            (format!("its certificate has expired on {}", date.date()), "or is the clock wrong?")
        }
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            (error.to_string(), "tls.ca in its entry names an authority of its own")
        }
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => (error.to_string(), "its subjectAltName must contain the host of the endpoint"),
        rustls::Error::InvalidCertificate(
            CertificateError::UnsupportedSignatureAlgorithmContext { .. }
            | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. },
        ) => (
            error.to_string(),
            "certificates need ECDSA with P-256, P-384 or P-521, Ed25519, or RSA with 2048 bits or \
             more, and SHA-256, SHA-384 or SHA-512",
        ),
        other => return other.to_string(),
    };
    format!("{what}; {hint}")
}

/// Whether a connection that was made broke: it may have gone stale, or a firewall does not like the request.
pub(super) fn is_broken_connection(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(kind, BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

/// Phases in which nothing has been asked yet.
const NAME: &str = "the host name";
const CONNECTION: &str = "a connection";

fn phase(timeout: Timeout) -> &'static str {
    match timeout {
        Timeout::Resolve => NAME,
        Timeout::Connect => CONNECTION,
        Timeout::RecvResponse => "the answer's head",
        Timeout::PerRead | Timeout::RecvBody => "the next bytes",
        _ => "the request to be taken",
    }
}

impl fmt::Display for UpstreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = |text: &dyn fmt::Display| quoted_up_to(REASON_CHARS_MAX, text);
        write!(f, "{}: ", reason(&self.request))?;
        match &self.kind {
            UpstreamErrorKind::NotFound => write!(f, "the registry has no such content"),
            UpstreamErrorKind::Hidden => {
                write!(f, "the registry has no such content, or none for us (401 to a fresh token)")
            }
            UpstreamErrorKind::Denied { status } => {
                write!(
                    f,
                    "the registry demands other credentials (registries[].auth; status {status})"
                )
            }
            UpstreamErrorKind::Credentials { reason: text }
            | UpstreamErrorKind::CredentialsUnavailable { reason: text } => {
                write!(f, "no credentials: {}", reason(text))
            }
            UpstreamErrorKind::RateLimited { retry_after: Some(wait) } => {
                write!(f, "the registry's rate limit is reached, retry after {} s", wait.as_secs())
            }
            UpstreamErrorKind::RateLimited { retry_after: None } => {
                write!(f, "the registry's rate limit is reached")
            }
            UpstreamErrorKind::OutOfService => write!(f, "the registry is out of service (503)"),
            UpstreamErrorKind::Loop => write!(
                f,
                "the endpoint is a Larder that asks this one for the same (508): remove one of the two \
                 from the other's configuration (registries[].endpoints)"
            ),
            UpstreamErrorKind::CircuitOpen { wait, last } => {
                write!(
                    f,
                    "not asked for {:.1} s more after repeated failures",
                    wait.as_secs_f64()
                )?;
                last.iter().try_for_each(|last| write!(f, "; the last: {last}"))
            }
            UpstreamErrorKind::Status { status: status @ (404 | 410) } => write!(
                f,
                "{status} from something other than the registry: a token service, an ingress, a proxy"
            ),
            UpstreamErrorKind::Status { status } => write!(f, "the registry answered {status}"),
            UpstreamErrorKind::Unsupported => write!(f, "the registry does not offer this"),
            UpstreamErrorKind::TimedOut { phase } => write!(f, "timed out waiting for {phase}"),
            UpstreamErrorKind::Unreachable { source } => {
                write!(f, "cannot be reached: {}", reason(source))
            }
            UpstreamErrorKind::Proxy { reason: text } => {
                write!(f, "no way to it: {}", reason(text))
            }
            UpstreamErrorKind::Tls { reason: text } => write!(f, "TLS failed: {}", reason(text)),
            UpstreamErrorKind::BadAnswer { reason: text } => {
                write!(f, "unusable answer: {}", reason(text))
            }
            UpstreamErrorKind::Redirect { reason: text } => {
                write!(f, "redirect refused: {}", reason(text))
            }
            UpstreamErrorKind::NotAllowed { reason: text } => {
                write!(f, "not allowed: {}", reason(text))
            }
        }
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

    use super::*;

    #[test]
    fn what_a_registry_says_is_bounded_and_escaped() {
        let text = format!("{}\u{1b}[2J{}", "GET https://quay.io/x\n", "y".repeat(100_000));
        let error = UpstreamError::bad_answer(&text, text.clone()).to_string();
        assert!(
            error.contains("x\\n\\u{1b}[2Jyyy") && error.contains("unusable answer"),
            "{error}"
        );
        assert!(error.len() < 2_000 && !error.contains('\u{1b}'), "{} bytes", error.len());
    }

    #[test]
    fn what_is_often_the_matter_with_tls_names_what_mends_it() {
        let since = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let expired = CertificateError::ExpiredContext {
            time: since(1_795_826_045),
            not_after: since(1_609_459_200),
        };
        for (error, said) in [
            (InvalidMessage::InvalidContentType.into(), "scheme: http"),
            (expired.into(), "its certificate has expired on 2021-01-01"),
            (CertificateError::UnknownIssuer.into(), "tls.ca"),
            (rustls::Error::HandshakeNotComplete, "handshake not complete"),
        ] {
            let inside = io::Error::new(io::ErrorKind::InvalidData, error);
            let text = UpstreamError::from_body("GET x", inside).to_string();
            assert!(text.starts_with("GET x: TLS failed: ") && text.contains(said), "{text}");
        }
    }
}
