//! Reading responses: headers, small bodies, and the meaning of a status.

use std::io::{ErrorKind, Read, copy, sink};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde::de::IgnoredAny;
use ureq::Body;
use ureq::http::{HeaderMap, HeaderName, Response, header};

use super::error::{UpstreamError, UpstreamErrorKind};
use super::{Confirmation, DocumentSink};
use crate::oci::{Digest, MediaType};

/// The size of the buffer for a body, in bytes.
const CHUNK_BYTES: usize = 16 * 1024;
/// The largest `Age` that is believed: ten years.
const AGE_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// The most that is read of the body of an error response, in bytes.
pub(super) const ERROR_BODY_BYTES_MAX: u64 = 64 * 1024;
/// The most that is read of an unused body to reuse its connection, in bytes.
const DISCARDED_BODY_BYTES_MAX: u64 = 64 * 1024;

/// A header's first value, if it is text.
pub(super) fn text(headers: &HeaderMap, name: impl header::AsHeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// The value of `Location`. Some servers send names in UTF-8 or in the encoding of a file system; these bytes are
/// percent-encoded.
pub(super) fn redirect_target(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::LOCATION)?.as_bytes();
    let mut target = String::with_capacity(value.len());
    for &byte in value {
        match byte.is_ascii() {
            true => target.push(char::from(byte)),
            false => target.push_str(&format!("%{byte:02X}")),
        }
    }
    Some(target)
}

pub(super) fn texts(
    headers: &HeaderMap,
    name: impl header::AsHeaderName,
) -> impl Iterator<Item = &str> {
    headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok())
}

/// The value of `Docker-Content-Digest`. A malformed one is ignored, since the bytes are hashed anyway.
pub(super) fn content_digest(headers: &HeaderMap) -> Option<Digest> {
    text(headers, "docker-content-digest").and_then(|text| text.parse().ok())
}

pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    text(headers, header::CONTENT_LENGTH).and_then(|text| text.parse().ok())
}

/// Whether the response is a web page: that of a captive portal or a login form.
pub(super) fn is_web_page(headers: &HeaderMap) -> bool {
    let media_type = text(headers, header::CONTENT_TYPE).and_then(MediaType::parse);
    media_type.is_some_and(|media_type| media_type.as_str() == "text/html")
}

/// The header by which a Larder states that it has held the move of a tag.
const HOLD: HeaderName = HeaderName::from_static("larder-hold");
const HOLD_PASSED: &str = "passed";

/// The age of a response of a Larder, and whether it is stale (RFC 9111, sections 5.1 and 5.5).
pub(super) fn confirmation(headers: &HeaderMap) -> Confirmation {
    let age = text(headers, header::AGE).and_then(|age| age.trim().parse().ok());
    let age = Duration::from_secs(age.unwrap_or_default()).min(AGE_MAX);
    let is_stale = texts(headers, header::WARNING).any(|line| line.trim().starts_with("110 "));
    let is_vetted = text(headers, HOLD).is_some_and(|value| value.trim() == HOLD_PASSED);
    Confirmation { age, is_stale, is_vetted }
}

/// The value of `Range` that requests the bytes from `from` to before `to`, or to the end; `None` if that is everything.
pub(super) fn range_of(from: u64, to: Option<u64>) -> Option<String> {
    match to {
        Some(to) => Some(format!("bytes={from}-{}", to.saturating_sub(1))),
        None => (from > 0).then(|| format!("bytes={from}-")),
    }
}

/// The range of a 206 response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ContentRange {
    /// The offset of its first byte.
    pub(super) start: u64,
    /// The offset after its last byte.
    pub(super) end: u64,
    /// The size of the complete content, if the response contains it.
    pub(super) size: Option<u64>,
}

impl ContentRange {
    /// Whether it reaches the end of the content. For `bytes 5-9/*` this is unknown; the size in a manifest or the digest
    /// then decides.
    pub(super) fn may_be_last(&self) -> bool {
        self.size.is_none_or(|size| size == self.end)
    }
}

/// Parses `Content-Range: bytes 5-9/10`.
pub(super) fn content_range(headers: &HeaderMap) -> Option<ContentRange> {
    let value = text(headers, header::CONTENT_RANGE)?.trim();
    let (unit, value) = value.split_at_checked("bytes".len())?;
    let (range, size) = value.strip_prefix([' ', '='])?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (start, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let end = last.checked_add(1)?;
    let size = match size.trim() {
        "*" => None,
        size => Some(size.parse::<u64>().ok()?),
    };
    let is_usable =
        unit.eq_ignore_ascii_case("bytes") && start <= last && size.is_none_or(|size| size >= end);
    is_usable.then_some(ContentRange { start, end, size })
}

/// Codings that change the bytes (IANA's registry of content codings). Other values of `Content-Encoding` do not affect
/// the bytes: `aws-chunked` is the framing of an upload, and `utf-8` and `binary` belong in other headers.
const CONTENT_CODINGS: [&str; 12] = [
    "aes128gcm",
    "br",
    "compress",
    "dcb",
    "dcz",
    "deflate",
    "exi",
    "gzip",
    "pack200-gzip",
    "x-compress",
    "x-gzip",
    "zstd",
];

/// Refuses content that is compressed for the transfer, since its hash would be wrong.
pub(super) fn check_encoding(headers: &HeaderMap, request: &Arc<str>) -> Result<(), UpstreamError> {
    let words = texts(headers, header::CONTENT_ENCODING).flat_map(|line| line.split(','));
    let mut words = words.map(|word| word.trim().to_ascii_lowercase());
    match words.find(|word| CONTENT_CODINGS.contains(&word.as_str())) {
        None => Ok(()),
        Some(encoding) => {
            let reason = format!("it is encoded as {encoding} although identity was requested");
            Err(UpstreamError::bad_answer(request, reason))
        }
    }
}

/// Reads a small body of at most `limit_bytes`.
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

/// Copies a body of at most `limit_bytes` to `sink`.
pub(super) fn copy_body(
    body: impl Read,
    limit_bytes: u64,
    request: &str,
    sink: &mut dyn DocumentSink,
) -> Result<(), UpstreamError> {
    let mut reader = body.take(limit_bytes + 1);
    let (mut chunk, mut length) = (vec![0; CHUNK_BYTES], 0);
    loop {
        match reader.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                length += count as u64;
                if length > limit_bytes {
                    let reason = format!("it is larger than {limit_bytes} bytes");
                    return Err(UpstreamError::bad_answer(request, reason));
                }
                sink.write(&chunk[..count]);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(UpstreamError::from_body(request, error)),
        }
    }
}

/// Reads the rest of a small body, so that its connection can be reused.
pub(super) fn discard(response: Response<Body>) {
    let mut rest = response.into_body().into_reader().take(DISCARDED_BODY_BYTES_MAX);
    // An error only means that the connection is not reused.
    let _ = copy(&mut rest, &mut sink());
}

/// Whether a 404 comes from a registry, and not from an ingress without a backend, a proxy or a captive portal. A
/// registry sends a list of errors (distribution-spec, "Error Codes") or its version header.
pub(super) fn is_registry_error(headers: &HeaderMap, body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Errors {
        #[serde(rename = "errors")]
        _errors: Vec<IgnoredAny>,
    }
    headers.contains_key("docker-distribution-api-version")
        || serde_json::from_slice::<Errors>(body).is_ok()
}

/// The error for a 404 from another server than the registry, which does not prove that the content is missing.
pub(super) fn foreign_status(status: u16, request: &Arc<str>) -> UpstreamError {
    UpstreamError::new(Arc::clone(request), UpstreamErrorKind::Status { status })
}

/// Whether the response contains the complete content. A proxy that has changed a header sends 203 instead of 200 (RFC
/// 9110, section 15.3.4).
pub(super) fn is_complete(status: u16) -> bool {
    matches!(status, 200 | 203)
}

/// The error for a status other than 200.
pub(super) fn status_error(status: u16, headers: &HeaderMap, request: &Arc<str>) -> UpstreamError {
    let kind = match status {
        404 | 410 => UpstreamErrorKind::NotFound,
        401 | 403 => UpstreamErrorKind::Denied { status },
        429 => UpstreamErrorKind::RateLimited { retry_after: retry_after(headers) },
        503 => UpstreamErrorKind::OutOfService,
        508 => UpstreamErrorKind::Loop,
        status => UpstreamErrorKind::Status { status },
    };
    UpstreamError::new(Arc::clone(request), kind)
}

/// Any of the three formats of a date in HTTP (RFC 9110, section 5.6.7).
pub(super) fn http_date(text: &str) -> Option<SystemTime> {
    httpdate::parse_http_date(text.trim()).ok()
}

/// The wait that `Retry-After` demands, in seconds or as a date (RFC 9110, section 10.2.3). A date is compared with the
/// response's own `Date`, so that the clocks need not agree.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = text(headers, header::RETRY_AFTER)?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = http_date(value)?;
    let sent = text(headers, header::DATE).and_then(http_date).unwrap_or_else(SystemTime::now);
    Some(until.duration_since(sent).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use ureq::http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let parsed = |value: &str| HeaderValue::from_bytes(value.as_bytes()).unwrap();
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, parsed(value));
        }
        headers
    }

    #[test]
    fn content_codings_are_refused_and_other_values_are_ignored() {
        for (value, accepted) in [
            ("identity", true),
            ("Identity", true),
            ("aws-chunked", true),
            ("identity, aws-chunked,", true),
            ("", true),
            ("utf-8", true),
            ("gzip", false),
            ("aws-chunked, gzip", false),
            ("GZIP", false),
            ("x-gzip", false),
            ("br", false),
            ("zstd", false),
        ] {
            let checked = check_encoding(&headers(&[("content-encoding", value)]), &"GET x".into());
            assert_eq!(checked.is_ok(), accepted, "{value}");
        }
        let two_lines = headers(&[("content-encoding", "identity"), ("content-encoding", "gzip")]);
        assert!(check_encoding(&two_lines, &"GET x".into()).is_err());
    }

    #[test]
    fn ranges_are_within_the_content() {
        let range = |start, size| Some(ContentRange { start, end: 10, size });
        for (value, expected) in [
            ("bytes 5-9/10", range(5, Some(10))),
            ("Bytes 5-9/10", range(5, Some(10))),
            ("bytes=5-9/10", range(5, Some(10))),
            ("bytes 5-9/*", range(5, None)),
            (" bytes 5-9 / * ", range(5, None)),
            ("bytes 5-9/20", range(5, Some(20))),
            ("bytes 5-9/9", None),
            ("bytes 9-5/10", None),
            ("bytes */10", None),
            ("items 5-9/10", None),
            ("bytes 5-18446744073709551615/*", None),
            ("5-9/10", None),
            ("", None),
        ] {
            let found = content_range(&headers(&[("content-range", value)]));
            assert_eq!(found, expected, "{value}");
            let may_be_last = found.is_some_and(|range| range.may_be_last());
            assert_eq!(may_be_last, found.is_some() && !value.ends_with("/20"), "{value}");
        }
    }

    #[test]
    fn retry_after_accepts_seconds_and_dates() {
        let date = ("date", "Sun, 06 Nov 1994 08:49:37 GMT");
        for (value, seconds) in [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sun Nov  6 08:50:37 1994", Some(60)),
            ("Sunday, 06-Nov-94 08:50:37 GMT", Some(60)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
        ] {
            let wait = retry_after(&headers(&[("retry-after", value), date]));
            assert_eq!(wait, seconds.map(Duration::from_secs), "{value}");
        }
        let long_ago = headers(&[("retry-after", "Sun, 06 Nov 1994 08:50:37 GMT")]);
        assert_eq!(retry_after(&long_ago), Some(Duration::ZERO), "by this machine's clock");
    }

    #[test]
    fn a_redirect_in_utf_8_is_percent_encoded() {
        let target = redirect_target(&headers(&[("location", "/blobs/ü")]));
        assert_eq!(target.as_deref(), Some("/blobs/%C3%BC"));
    }
}
