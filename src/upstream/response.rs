//! Reading answers: headers that matter, small bodies, and what a status means.

use std::io::{Read, copy, sink};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde::de::IgnoredAny;
use ureq::Body;
use ureq::http::{HeaderMap, Response, header};

use super::error::{UpstreamError, UpstreamErrorKind};
use super::large_bodies::SMALL_BODY_BYTES;
use crate::oci::{Digest, MediaType};

/// The most that is read of the body of an error.
pub(super) const ERROR_BODY_BYTES_MAX: u64 = 64 * 1024;
/// How much of an answer that is of no use is read, to keep its connection.
const DISCARDED_BODY_BYTES_MAX: u64 = 64 * 1024;

/// A header's first value, if it is text.
pub(super) fn text(headers: &HeaderMap, name: impl header::AsHeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// What `Location` says. Some servers send a name in UTF-8, or in whatever encoding a file system has, which
/// belongs into a URL percent-encoded.
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

/// What a 206 contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ContentRange {
    /// The offset of its first byte.
    pub(super) start: u64,
    /// The size of the complete content, where the answer states it.
    pub(super) size: Option<u64>,
}

/// What `Content-Range: bytes 5-9/10` says of a range that reaches the end. `bytes 5-9/*` leaves open
/// whether it does: then the size that a manifest states, or the digest, tells.
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
        unit.eq_ignore_ascii_case("bytes") && start <= last && size.is_none_or(|size| size == end);
    is_usable.then_some(ContentRange { start, size })
}

/// Codings that change the bytes (IANA's registry of content codings). Other words that servers put into
/// `Content-Encoding` say nothing about the bytes: `aws-chunked` is what an upload was framed with,
/// and `utf-8` or `binary` belong into other headers.
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

/// Content that is compressed for the transfer would be hashed compressed.
pub(super) fn check_encoding(headers: &HeaderMap, request: &Arc<str>) -> Result<(), UpstreamError> {
    let words = texts(headers, header::CONTENT_ENCODING).flat_map(|line| line.split(','));
    let mut words = words.map(|word| word.trim().to_ascii_lowercase());
    match words.find(|word| CONTENT_CODINGS.contains(&word.as_str())) {
        None => Ok(()),
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

/// As [`read_body`], and passes the bytes to `parse`. A body that turns out to be large is read on once `may_continue`
/// returns `true`; it may block.
///
/// A large body is read and parsed on a thread of its own: allocators keep memory per thread, so if each fetcher read
/// large bodies, all of them together would keep as much as that many bodies take.
pub(super) fn read_large_body<T: Send>(
    response: Response<Body>,
    limit_bytes: u64,
    request: &Arc<str>,
    may_continue: impl FnOnce() -> bool,
    parse: impl FnOnce(Vec<u8>) -> Result<T, UpstreamError> + Send,
) -> Result<T, UpstreamError> {
    let failed = |error| UpstreamError::from_body(request, error);
    let size = content_length(response.headers()).unwrap_or_default().min(limit_bytes);
    let mut reader = response.into_body().into_reader().take(limit_bytes + 1);
    let mut beginning = Vec::new();
    let small = SMALL_BODY_BYTES as u64;
    reader.by_ref().take(small).read_to_end(&mut beginning).map_err(failed)?;
    if (beginning.len() as u64) < small {
        return parse(beginning);
    }
    if !may_continue() {
        let kind = UpstreamErrorKind::TimedOut { phase: "its turn among large manifests" };
        return Err(UpstreamError::new(Arc::clone(request), kind));
    }
    let work = move || {
        // Once, where the registry states the size: growing step by step takes up to twice the memory.
        let capacity = usize::try_from(size).unwrap_or_default().max(beginning.len()) + 1;
        let mut bytes = Vec::with_capacity(capacity);
        bytes.append(&mut beginning);
        reader.read_to_end(&mut bytes).map_err(failed)?;
        match bytes.len() as u64 > limit_bytes {
            true => {
                let reason = format!("it is larger than {limit_bytes} bytes");
                Err(UpstreamError::bad_answer(request, reason))
            }
            false => parse(bytes),
        }
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("large-body".into()).spawn_scoped(scope, work);
        let thread = thread.map_err(failed)?;
        // A panic of the parser is one of this request, as it would be on this thread.
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
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
pub(super) fn is_registry_error(headers: &HeaderMap, body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Errors {
        #[serde(rename = "errors")]
        _errors: Vec<IgnoredAny>,
    }
    headers.contains_key("docker-distribution-api-version")
        || serde_json::from_slice::<Errors>(body).is_ok()
}

/// An answer that something does not exist, from something that cannot know.
pub(super) fn foreign_status(status: u16, request: &Arc<str>) -> UpstreamError {
    UpstreamError::new(Arc::clone(request), UpstreamErrorKind::Status { status })
}

/// Whether the answer contains the complete content. 203 is what a proxy that has changed a header says
/// instead of 200 (RFC 9110, section 15.3.4).
pub(super) fn is_complete(status: u16) -> bool {
    matches!(status, 200 | 203)
}

/// What a status other than 200 means.
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
fn http_date(text: &str) -> Option<SystemTime> {
    httpdate::parse_http_date(text.trim()).ok()
}

/// How long `Retry-After` asks us to wait: seconds, or a date (RFC 9110, section 10.2.3). A date is compared
/// with the answer's own `Date`, so that the clocks need not agree.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
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
    fn encodings_that_change_the_bytes_are_refused_and_other_words_are_ignored() {
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
    fn ranges_that_reach_the_end_or_may() {
        let range = |start, size| Some(ContentRange { start, size });
        for (value, expected) in [
            ("bytes 5-9/10", range(5, Some(10))),
            ("Bytes 5-9/10", range(5, Some(10))),
            ("bytes=5-9/10", range(5, Some(10))),
            ("bytes 5-9/*", range(5, None)),
            (" bytes 5-9 / * ", range(5, None)),
            ("bytes 5-8/10", None),
            ("bytes 9-5/10", None),
            ("bytes */10", None),
            ("items 5-9/10", None),
            ("bytes 5-18446744073709551615/*", None),
            ("5-9/10", None),
            ("", None),
        ] {
            assert_eq!(content_range(&headers(&[("content-range", value)])), expected, "{value}");
        }
    }

    #[test]
    fn a_date_says_how_long_to_wait() {
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
