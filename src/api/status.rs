//! Maps failures to status, error code and text. This is the only place that does.

use std::sync::Arc;

use super::API_VERSION;
use super::route::{Route, RouteError};
use crate::cache::{AccessError, CacheError, ListQuestion, Reason};
use crate::http::{Body, Reply};
use crate::oci::{ErrorCode, ImageName, Upstream, quoted_up_to};
use crate::oidc::Refusal as TokenRefusal;

/// The default for `Retry-After`, in seconds.
const RETRY_AFTER_SECONDS: u64 = 5;

/// A failed request for content. The error codes depend on its kind.
#[derive(Debug, Clone)]
pub enum Failure {
    /// A manifest.
    Manifest(CacheError),
    /// A blob.
    Blob(CacheError),
    /// A tag list.
    Tags(CacheError),
    /// Referrers.
    Referrers(CacheError),
}

/// The maximum for `Retry-After`, whatever an upstream sends, because some clients really wait that long.
const RETRY_AFTER_SECONDS_MAX: u64 = 3600;

/// The maximum length of an error text, in characters: it may quote an upstream. Clients print it on terminals,
/// so control characters are escaped.
const TEXT_CHARS_MAX: usize = 1000;

/// Status, error code, and seconds for `Retry-After`.
type Verdict = (u16, ErrorCode, Option<u64>);

impl Failure {
    /// The error of the cache.
    pub(super) fn error(&self) -> &CacheError {
        let (Failure::Manifest(error)
        | Failure::Blob(error)
        | Failure::Tags(error)
        | Failure::Referrers(error)) = self;
        error
    }
}

/// The response for a failure.
pub(super) fn reply(failure: &Failure) -> Reply {
    let (status, code, retry_after) = verdict(failure, failure.error().reason());
    let text = match failure.error() {
        // Local paths are for the operator only, who finds them in the log.
        CacheError::Store(_) => {
            "the cache cannot access its disk; see the log of larder".to_owned()
        }
        error => error.to_string(),
    };
    let reply = error_reply(status, code, &text);
    match retry_after {
        Some(seconds) => reply.header("Retry-After", seconds.to_string()),
        None => reply,
    }
}

/// The response for a failure.
///
/// The rule for mirrors: missing content is 404 and failures are 5xx, sent quickly, so that the client tries its
/// next host. Clients treat 401 and 403 for a blob as final, so blobs never get them. 429 makes containerd retry
/// immediately, so blobs never get it either.
fn verdict(failure: &Failure, reason: Reason) -> Verdict {
    let unknown = unknown_code(failure);
    let is_blob = matches!(failure, Failure::Blob(_));
    match reason {
        Reason::NotFound => (404, unknown, None),
        Reason::Unsupported => (404, ErrorCode::Unsupported, None),
        Reason::NotAllowed => match failure {
            Failure::Referrers(_) => (404, unknown, None),
            _ => (404, ErrorCode::NameUnknown, None),
        },
        Reason::Denied if is_blob => (404, unknown, None),
        Reason::Denied => (403, ErrorCode::Denied, None),
        Reason::RateLimited { retry_after } => {
            let seconds = retry_after.map_or(RETRY_AFTER_SECONDS, |wait| wait.as_secs());
            let seconds = seconds.min(RETRY_AFTER_SECONDS_MAX);
            match is_blob {
                true => (503, ErrorCode::Unavailable, Some(seconds)),
                false => (429, ErrorCode::TooManyRequests, Some(seconds)),
            }
        }
        Reason::TimedOut if is_blob => (503, ErrorCode::Unavailable, None),
        Reason::TimedOut => (504, ErrorCode::Unavailable, None),
        Reason::OutOfService => (503, ErrorCode::Unavailable, None),
        Reason::Broken if is_blob => (503, ErrorCode::Unavailable, None),
        Reason::Broken => (502, ErrorCode::Unknown, None),
        Reason::Loop => (508, ErrorCode::Unavailable, None),
        Reason::Overloaded => (503, ErrorCode::Unavailable, Some(RETRY_AFTER_SECONDS)),
    }
}

/// The response to a request that has returned to the Larder that sent it (RFC 5842, section 7.2).
pub(super) fn loop_detected(upstream: &Upstream) -> Reply {
    let text = format!(
        "request loop: Larder servers are configured as endpoints of each other for {upstream}; see the log"
    );
    error_reply(508, ErrorCode::Unavailable, &text)
}

/// The response to a range outside of a blob of `size` bytes: RFC 9110, section 15.5.17.
pub(super) fn unsatisfiable(size: u64) -> Reply {
    Reply::new(416, Body::Empty).header("Content-Range", format!("bytes */{size}"))
}

/// The error code for missing content. Never NAME_UNKNOWN for referrers: oras would consider the repository
/// missing instead of falling back to the tag schema.
fn unknown_code(failure: &Failure) -> ErrorCode {
    match failure {
        Failure::Manifest(_) => ErrorCode::ManifestUnknown,
        Failure::Blob(_) => ErrorCode::BlobUnknown,
        Failure::Tags(_) => ErrorCode::NameUnknown,
        Failure::Referrers(_) => ErrorCode::Unsupported,
    }
}

/// The response to an invalid target.
pub(super) fn route_failure(error: &RouteError) -> Reply {
    let (status, code) = match error {
        RouteError::NotFound => (404, ErrorCode::Unsupported),
        RouteError::Method => (405, ErrorCode::Unsupported),
        RouteError::Name(_) | RouteError::Path | RouteError::Namespace(_) => {
            (400, ErrorCode::NameInvalid)
        }
        RouteError::NoUpstream => (404, ErrorCode::NameUnknown),
        // The conformance suite requires 404, not 400, for a tag that cannot exist.
        RouteError::Tag(_) => (404, ErrorCode::ManifestUnknown),
        RouteError::Digest(_) => (400, ErrorCode::DigestInvalid),
    };
    let reply = error_reply(status, code, &error.to_string());
    if status == 405 { reply.header("Allow", "GET, HEAD") } else { reply }
}

/// The response to a request for another host: RFC 9110, section 15.5.20.
pub(super) fn misdirected() -> Reply {
    let text = "this server does not accept the name in the Host header; \
                accepted names are listed in allowedHosts";
    error_reply(421, ErrorCode::Denied, text)
}

/// Requests a user and a password (RFC 7617).
pub(super) const CHALLENGE: (&str, &str) =
    ("WWW-Authenticate", "Basic realm=\"larder\", charset=\"UTF-8\"");

/// The response that requests credentials, in the form that Docker clients expect: distribution-spec, "Error
/// Codes".
pub(super) fn login(text: &str) -> Reply {
    error_reply(401, ErrorCode::Unauthorized, text).header(CHALLENGE.0, CHALLENGE.1)
}

/// The response that requests a token from `realm` (RFC 6750).
pub(super) fn token_challenge(text: &str, realm: &str) -> Reply {
    error_reply(401, ErrorCode::Unauthorized, text)
        .header("WWW-Authenticate", format!("Bearer realm=\"{realm}\",service=\"larder\""))
}

/// The response to a token that is refused, or that cannot be checked now.
pub(super) fn token_refusal(refusal: &TokenRefusal) -> Reply {
    let text = refusal.to_string();
    if refusal.denied_user().is_some() {
        error_reply(403, ErrorCode::Denied, &text)
    } else if refusal.is_temporary() {
        error_reply(503, ErrorCode::Unavailable, &text)
            .header("Retry-After", RETRY_AFTER_SECONDS.to_string())
    } else {
        login(&text)
    }
}

/// The response to a valid token that is not good for this repository.
pub(super) fn token_denial(name: &ImageName) -> Reply {
    let text = format!("this token may not pull {name} (serverAuthConfig.oidc: allow)");
    error_reply(403, ErrorCode::Denied, &text)
}

/// The response to a client that may not pull, or of which that is not known.
pub(super) fn access_refusal(error: &AccessError, route: &Route) -> Reply {
    let name = route.name();
    let registry = &name.upstream;
    match error {
        AccessError::Refused { status: 403 } => {
            let text = format!("{registry} does not let this user pull {}", name.repository);
            error_reply(403, ErrorCode::Denied, &text)
        }
        AccessError::Refused { .. } => {
            login(&format!("{registry} refuses the user or the password for {}", name.repository))
        }
        AccessError::NotFound => {
            let text = format!("{registry} has no such content, or hides it from this user");
            error_reply(404, unknown_code(&failure_of(route, CacheError::KnownMissing)), &text)
        }
        AccessError::TooManyGuesses { wait } => {
            let text = "too many logins from this address were refused; wait a minute";
            let (status, code) = match route {
                Route::Blob { .. } => (503, ErrorCode::Unavailable),
                _ => (429, ErrorCode::TooManyRequests),
            };
            let seconds = wait.as_secs().max(1).to_string();
            error_reply(status, code, text).header("Retry-After", seconds)
        }
        AccessError::Unconfirmed(error @ CacheError::Refused { .. }) => {
            reply(&failure_of(route, error.clone()))
        }
        AccessError::Unconfirmed(CacheError::Store(_)) => {
            let text = "the cache cannot access its disk; see the log of larder";
            error_reply(503, ErrorCode::Unavailable, text)
        }
        AccessError::Unconfirmed(error) => {
            let cause = match error {
                // Without the request, which may name cached content of the repository.
                CacheError::Upstream(error) => error.kind().to_string(),
                other => other.to_string(),
            };
            let text = format!(
                "{registry} cannot be asked whether this user may pull {}, and has not allowed it recently \
                 (accessOffline): {cause}",
                name.repository
            );
            error_reply(503, ErrorCode::Unavailable, &text)
                .header("Retry-After", RETRY_AFTER_SECONDS.to_string())
        }
    }
}

fn failure_of(route: &Route, error: CacheError) -> Failure {
    match route {
        Route::Manifest { .. } => Failure::Manifest(error),
        Route::Blob { .. } => Failure::Blob(error),
        Route::List { question: ListQuestion::Tags { .. }, .. } => Failure::Tags(error),
        Route::List { .. } => Failure::Referrers(error),
    }
}

/// The response if too many passwords are being checked.
pub(super) fn login_busy() -> Reply {
    error_reply(503, ErrorCode::Unavailable, "too many passwords are being checked; try again")
        .header("Retry-After", RETRY_AFTER_SECONDS.to_string())
}

/// Why the management API refuses a request, with a text for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// An invalid parameter.
    Parameter(String),
    /// The request needs the token.
    Unauthorized(String),
    /// The request is refused with any token.
    Forbidden(String),
    /// Not found.
    NotFound(String),
    /// The method is not allowed; contains the allowed methods.
    Method(&'static str),
    /// The request conflicts with the current state.
    Conflict(String),
    /// The request failed because of the disk, or of something that has to be repaired.
    Broken(String),
    /// The server is busy; a retry may succeed.
    Busy(String),
}

/// The response of the management API for a refusal.
pub(super) fn refusal(refusal: &Refusal) -> Reply {
    let (status, text) = match refusal {
        Refusal::Parameter(text) => (400, text.as_str()),
        Refusal::Unauthorized(text) => (401, text.as_str()),
        Refusal::Forbidden(text) => (403, text.as_str()),
        Refusal::NotFound(text) => (404, text.as_str()),
        Refusal::Method(allowed) => (405, &*format!("method not allowed; use {allowed}")),
        Refusal::Conflict(text) => (409, text.as_str()),
        Refusal::Broken(text) => (500, text.as_str()),
        Refusal::Busy(text) => (503, text.as_str()),
    };
    let body = serde_json::json!({ "error": quoted_up_to(TEXT_CHARS_MAX, text) });
    let reply = Reply::new(status, Body::Bytes(Arc::from(body.to_string().into_bytes())))
        .header("Content-Type", "application/json");
    match refusal {
        Refusal::Unauthorized(_) => reply.header("WWW-Authenticate", "Bearer realm=\"larder\""),
        Refusal::Method(allowed) => reply.header("Allow", *allowed),
        Refusal::Busy(_) => reply.header("Retry-After", RETRY_AFTER_SECONDS.to_string()),
        _ => reply,
    }
}

/// The response of `/readyz` if clients should use another server.
pub(super) fn unready(text: &'static str) -> Reply {
    Reply::new(503, Body::Static(text.as_bytes())).header("Content-Type", "text/plain")
}

/// A response with an error body: distribution-spec, "Error Codes".
fn error_reply(status: u16, code: ErrorCode, message: &str) -> Reply {
    let body = serde_json::json!({ "errors": [{ "code": code.as_str(), "message": quoted_up_to(TEXT_CHARS_MAX, message) }] });
    Reply::new(status, Body::Bytes(Arc::from(body.to_string().into_bytes())))
        .header("Content-Type", "application/json")
        .header(API_VERSION.0, API_VERSION.1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const REASONS: [Reason; 9] = [
        Reason::NotFound,
        Reason::Unsupported,
        Reason::NotAllowed,
        Reason::Denied,
        Reason::RateLimited { retry_after: Some(Duration::from_secs(77)) },
        Reason::TimedOut,
        Reason::OutOfService,
        Reason::Broken,
        Reason::Overloaded,
    ];

    #[test]
    fn a_failed_blob_is_404_or_503() {
        for reason in REASONS {
            let (status, ..) = verdict(&Failure::Blob(CacheError::TimedOut), reason);
            assert!(matches!(status, 404 | 503), "{reason:?}: {status}");
        }
    }

    #[test]
    fn a_rate_limit_is_forwarded_with_retry_after() {
        let manifest = Failure::Manifest(CacheError::TimedOut);
        assert_eq!(verdict(&manifest, REASONS[4]), (429, ErrorCode::TooManyRequests, Some(77)));
    }

    #[test]
    fn retry_after_is_limited() {
        let retry_after = Some(Duration::from_secs(1_000_000_000));
        for failure in [
            Failure::Manifest(CacheError::TimedOut),
            Failure::Blob(CacheError::TimedOut),
            Failure::Tags(CacheError::TimedOut),
        ] {
            let (.., seconds) = verdict(&failure, Reason::RateLimited { retry_after });
            assert_eq!(seconds, Some(RETRY_AFTER_SECONDS_MAX));
        }
    }

    #[test]
    fn texts_for_clients_are_short_and_have_no_control_characters() {
        let body = |reply: Reply| match reply.body() {
            Body::Bytes(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
            other => panic!("{other:?}"),
        };
        for long in ["y".repeat(1_000_000), "\u{1b}\r\n\u{202e}".repeat(100_000)] {
            for reply in [
                error_reply(500, ErrorCode::Unknown, &long),
                refusal(&Refusal::NotFound(long.clone())),
            ] {
                let text = body(reply);
                assert!(text.len() < 20 * TEXT_CHARS_MAX, "{}", text.len());
                assert!(!text.contains(['\u{1b}', '\r', '\n', '\u{202e}']), "{text}");
            }
        }
    }

    #[test]
    fn referrers_never_get_name_unknown() {
        for reason in REASONS {
            let (_, code, _) = verdict(&Failure::Referrers(CacheError::TimedOut), reason);
            assert_ne!(code, ErrorCode::NameUnknown, "{reason:?}");
        }
        let missing = verdict(&Failure::Referrers(CacheError::NotCached), Reason::NotFound);
        assert_eq!(missing, (404, ErrorCode::Unsupported, None));
    }

    #[test]
    fn error_bodies_follow_the_specification() {
        let reply = reply(&Failure::Manifest(CacheError::NotCached));
        let Body::Bytes(body) = reply.body() else { panic!("a body") };
        let body: serde_json::Value = serde_json::from_slice(body).unwrap();
        assert_eq!(body["errors"][0]["code"], "MANIFEST_UNKNOWN");
        assert!(body["errors"][0]["message"].as_str().unwrap().contains("airGapped"));
    }
}
