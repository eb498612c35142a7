//! Reading answers: headers that matter, small bodies, and what a status means.

use std::io::{Read, copy, sink};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde::de::IgnoredAny;
use ureq::Body;
use ureq::http::{HeaderMap, Response, header};

use super::error::{UpstreamError, UpstreamErrorKind};
use crate::oci::{Digest, MediaType};

/// The most that is read of the body of an error.
pub(super) const ERROR_BODY_BYTES_MAX: u64 = 64 * 1024;
/// How much of an answer that is of no use is read, to keep its connection.
const DISCARDED_BODY_BYTES_MAX: u64 = 64 * 1024;

/// A header's first value, if it is text.
pub(super) fn text(headers: &HeaderMap, name: impl header::AsHeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

pub(super) fn texts(
    headers: &HeaderMap,
    name: impl header::AsHeaderName,
) -> impl Iterator<Item = &str> {
    headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok())
}

/// What `Docker-Content-Digest` says. A malformed one says nothing: the bytes decide.
pub(super) fn content_digest(headers: &HeaderMap) -> Option<Digest> {
    text(headers, "docker-content-digest").and_then(|text| text.parse().ok())
}

pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    text(headers, header::CONTENT_LENGTH).and_then(|text| text.parse().ok())
}

/// Whether a captive portal or a login form answered.
pub(super) fn is_web_page(headers: &HeaderMap) -> bool {
    let said = text(headers, header::CONTENT_TYPE).and_then(MediaType::parse);
    said.is_some_and(|said| said.as_str() == "text/html")
}

/// First offset and whole size out of `Content-Range: bytes 5-9/10`, for a range that reaches the end.
pub(super) fn content_range(headers: &HeaderMap) -> Option<(u64, u64)> {
    let (range, size) =
        text(headers, header::CONTENT_RANGE)?.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, size): (u64, u64, u64) =
        (first.parse().ok()?, last.parse().ok()?, size.parse().ok()?);
    (first <= last && last.checked_add(1)? == size).then_some((first, size))
}

/// Content that is compressed for the way would be hashed compressed.
pub(super) fn check_encoding(headers: &HeaderMap, request: &Arc<str>) -> Result<(), UpstreamError> {
    match text(headers, header::CONTENT_ENCODING) {
        None | Some("identity" | "") => Ok(()),
        Some(encoding) => {
            let reason = format!("it is encoded as {encoding} although identity was asked for");
            Err(UpstreamError::bad_answer(request, reason))
        }
    }
}

/// Reads a small body; one byte more than `limit_bytes` is an error.
pub(super) fn read_body(
    response: Response<Body>,
    limit_bytes: u64,
    request: &Arc<str>,
) -> Result<Vec<u8>, UpstreamError> {
    let mut bytes = Vec::new();
    let mut reader = response.into_body().into_reader().take(limit_bytes + 1);
    reader.read_to_end(&mut bytes).map_err(|error| UpstreamError::from_body(request, error))?;
    match bytes.len() as u64 > limit_bytes {
        true => {
            let reason = format!("it is larger than {limit_bytes} bytes");
            Err(UpstreamError::bad_answer(request, reason))
        }
        false => Ok(bytes),
    }
}

/// Reads what is left of a small answer, so that its connection can be used again.
pub(super) fn discard(response: Response<Body>) {
    let mut rest = response.into_body().into_reader().take(DISCARDED_BODY_BYTES_MAX);
    // An error here only means that the connection is not used again.
    let _ = copy(&mut rest, &mut sink());
}

/// Whether an answer that something does not exist comes from a registry, which sends a list of errors
/// (distribution-spec, "Error Codes") or says that it is one, and not from an ingress without a backend, a
/// proxy or a captive portal.
pub(super) fn is_a_registrys(headers: &HeaderMap, body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Errors {
        #[serde(rename = "errors")]
        _errors: Vec<IgnoredAny>,
    }
    headers.contains_key("docker-distribution-api-version")
        || serde_json::from_slice::<Errors>(body).is_ok()
}

/// As [`is_a_registrys`], where the body is not read: registries send their errors as JSON.
pub(super) fn looks_like_a_registrys(headers: &HeaderMap) -> bool {
    let said = text(headers, header::CONTENT_TYPE).and_then(MediaType::parse);
    headers.contains_key("docker-distribution-api-version")
        || said.is_some_and(|said| said.as_str().ends_with("json"))
}

/// An answer that something does not exist, from something that cannot know.
pub(super) fn no_verdict(status: u16, request: &Arc<str>) -> UpstreamError {
    UpstreamError::new(Arc::clone(request), UpstreamErrorKind::Status { status })
}

/// What a status other than 200 means.
pub(super) fn status_error(status: u16, headers: &HeaderMap, request: &Arc<str>) -> UpstreamError {
    let kind = match status {
        404 | 410 => UpstreamErrorKind::NotFound,
        401 | 403 => UpstreamErrorKind::Denied { status },
        429 => {
            let seconds = text(headers, header::RETRY_AFTER).and_then(|text| text.parse().ok());
            UpstreamErrorKind::RateLimited { retry_after: seconds.map(Duration::from_secs) }
        }
        503 => UpstreamErrorKind::OutOfService,
        status => UpstreamErrorKind::Status { status },
    };
    UpstreamError::new(Arc::clone(request), kind)
}
