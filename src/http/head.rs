//! Parses request heads into [`Request`]s. The parser is strict: it refuses whatever is ambiguous, because a proxy in front
//! of the server may have read it differently (RFC 9112, sections 3, 5, 6 and 11).
//!
//! This module must not know sockets or time.

use super::limits::{HEAD_BYTES_MAX, HEADERS_MAX, TARGET_BYTES_MAX};
use super::request::{Framing, Method, Request, Span, Version};
use std::fmt;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::time::Instant;

/// The result of parsing some bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// The head is complete and has this many bytes.
    Complete { consumed: usize },
    /// The head is valid so far, but not complete.
    Partial,
}

/// Why a head was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeadError {
    Malformed(&'static str),
    TargetTooLong,
    TooLong,
    TooManyHeaders,
    Version,
    Expectation,
}

impl HeadError {
    /// The status to answer with.
    pub(super) fn status(self) -> u16 {
        match self {
            Self::Malformed(_) => 400,
            Self::TargetTooLong => 414,
            Self::TooLong | Self::TooManyHeaders => 431,
            Self::Version => 505,
            Self::Expectation => 417,
        }
    }
}

impl fmt::Display for HeadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(what) => write!(f, "malformed request head: {what}"),
            Self::TargetTooLong => {
                write!(f, "the request target is longer than {TARGET_BYTES_MAX} bytes")
            }
            Self::TooLong => write!(f, "the request head is longer than {HEAD_BYTES_MAX} bytes"),
            Self::TooManyHeaders => {
                write!(f, "the request head has more than {HEADERS_MAX} header lines")
            }
            Self::Version => f.write_str("only HTTP/1.1 and HTTP/1.0 are supported"),
            Self::Expectation => f.write_str("only the expectation 100-continue is supported"),
        }
    }
}

impl Request {
    /// Parses the text of a head, as a client would send it. For tests of handlers.
    ///
    /// # Errors
    /// The text that the client would get.
    pub fn parse(head: &str, peer: SocketAddr, began: Instant) -> Result<Self, String> {
        let mut request = Self::vacant(peer, began);
        match parse(head.as_bytes(), &mut request) {
            Ok(Parsed::Complete { .. }) => Ok(request),
            Ok(Parsed::Partial) => Err("the request head has no end".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Parses the head at the start of `bytes` into `request`, and replaces what was in there.
///
/// # Errors
/// The head is invalid, whatever bytes follow.
pub(super) fn parse(bytes: &[u8], request: &mut Request) -> Result<Parsed, HeadError> {
    let bytes = &bytes[..bytes.len().min(HEAD_BYTES_MAX)];
    let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut raw = httparse::Request::new(&mut []);
    let consumed = match raw.parse_with_uninit_headers(bytes, &mut headers) {
        Ok(httparse::Status::Complete(consumed)) => consumed,
        Ok(httparse::Status::Partial) => return partial(bytes),
        Err(error) => return Err(refusal(error, bytes)),
    };
    let (Some(method), Some(target), Some(version)) = (raw.method, raw.path, raw.version) else {
        return Err(HeadError::Malformed("request line"));
    };
    if target.len() > TARGET_BYTES_MAX {
        return Err(HeadError::TargetTooLong);
    }
    keep_text(request, &bytes[..consumed]);
    request.method = method_of(method);
    request.method_span = span_of(bytes, method.as_bytes());
    request.version = if version == 0 { Version::Http10 } else { Version::Http11 };
    request.header_spans.clear();
    for header in raw.headers.iter() {
        let name = span_of(bytes, header.name.as_bytes());
        request.header_spans.push((name, span_of(bytes, header.value)));
    }
    split_target(request, target, span_of(bytes, target.as_bytes()))?;
    check_host(request)?;
    request.framing = framing(request)?;
    request.keep_alive = keep_alive(request);
    request.expects_continue = expects_continue(request)?;
    Ok(Parsed::Complete { consumed })
}

/// Checks whether an unfinished head is already too long.
fn partial(bytes: &[u8]) -> Result<Parsed, HeadError> {
    /// How long the method and its space may be before an unfinished line counts as a target that is too long.
    const METHOD_BYTES: usize = 32;
    let line = bytes.trim_ascii_start();
    if line.len() > TARGET_BYTES_MAX + METHOD_BYTES && !line.contains(&b'\n') {
        return Err(HeadError::TargetTooLong);
    }
    if bytes.len() >= HEAD_BYTES_MAX {
        return Err(HeadError::TooLong);
    }
    Ok(Parsed::Partial)
}

fn refusal(error: httparse::Error, bytes: &[u8]) -> HeadError {
    match error {
        httparse::Error::TooManyHeaders => HeadError::TooManyHeaders,
        httparse::Error::Version if names_other_version(bytes) => HeadError::Version,
        httparse::Error::Version => HeadError::Malformed("protocol version"),
        httparse::Error::HeaderName => HeadError::Malformed("header name"),
        httparse::Error::HeaderValue => HeadError::Malformed("header value"),
        httparse::Error::NewLine => HeadError::Malformed("line end"),
        httparse::Error::Token | httparse::Error::Status => HeadError::Malformed("request line"),
    }
}

/// Whether the request line ends with an unsupported HTTP version, such as `PRI * HTTP/2.0`.
fn names_other_version(bytes: &[u8]) -> bool {
    let line = bytes.trim_ascii_start().split(|&byte| byte == b'\n').next().unwrap_or_default();
    let word = line.splitn(3, |&byte| byte == b' ').nth(2).unwrap_or_default();
    word.strip_prefix(b"HTTP/").and_then(<[u8]>::first).is_some_and(u8::is_ascii_digit)
}

fn keep_text(request: &mut Request, head: &[u8]) {
    request.head.clear();
    match std::str::from_utf8(head) {
        Ok(text) => request.head.push_str(text),
        // One character per byte keeps the offsets valid.
        Err(_) => request
            .head
            .extend(head.iter().map(|&byte| if byte.is_ascii() { char::from(byte) } else { '?' })),
    }
}

/// The position of `part`, a slice of `bytes`, in `bytes`.
fn span_of(bytes: &[u8], part: &[u8]) -> Span {
    let start = (part.as_ptr() as usize).saturating_sub(bytes.as_ptr() as usize);
    // `HEAD_BYTES_MAX` fits into u16 (checked in `limits`), and so do all offsets into a head.
    Span { start: start as u16, end: (start + part.len()) as u16 }
}

fn method_of(method: &str) -> Method {
    match method {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "POST" => Method::Post,
        "PUT" => Method::Put,
        "PATCH" => Method::Patch,
        "DELETE" => Method::Delete,
        "OPTIONS" => Method::Options,
        _ => Method::Other,
    }
}

/// Finds path and query in the target (RFC 9112, section 3.2).
fn split_target(request: &mut Request, target: &str, span: Span) -> Result<(), HeadError> {
    if !target.is_ascii() {
        return Err(HeadError::Malformed("request target"));
    }
    let start = match target.as_bytes()[0] {
        b'/' => 0,
        b'*' if target.len() == 1 => 0,
        _ if request.text(request.method_span) == "CONNECT" => 0,
        _ => origin_start(target).ok_or(HeadError::Malformed("request target"))?,
    };
    let question = target[start..].find('?').map(|at| start + at);
    let at = |offset: usize| span.start + offset as u16;
    request.path = Span { start: at(start), end: at(question.unwrap_or(target.len())) };
    request.query = question.map(|question| Span { start: at(question + 1), end: span.end });
    Ok(())
}

/// Where path and query begin in `http://authority/path?query`. The path, or both, may be missing.
fn origin_start(target: &str) -> Option<usize> {
    let scheme = target.find("://")?;
    let known = matches!(&target[..scheme].to_ascii_lowercase()[..], "http" | "https");
    let authority = scheme + "://".len();
    let end = target[authority..].find(['/', '?']).map_or(target.len(), |at| authority + at);
    (known && end > authority).then_some(end)
}

/// Requires one Host header, as RFC 9112 (section 3.2) does for HTTP/1.1. Repeating the same value is harmless.
fn check_host(request: &Request) -> Result<(), HeadError> {
    let mut hosts = request.headers("host");
    match hosts.next() {
        None if request.version == Version::Http11 => Err(HeadError::Malformed("Host is missing")),
        None => Ok(()),
        Some(first) if hosts.all(|other| other == first) => Ok(()),
        Some(_) => Err(HeadError::Malformed("several different Host headers")),
    }
}

/// The framing of the body (RFC 9112, section 6.3). Anything ambiguous may be request smuggling and is refused.
fn framing(request: &Request) -> Result<Framing, HeadError> {
    let mut length = None;
    for value in request.headers("content-length") {
        let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
        let bytes = value.parse::<u64>().ok().filter(|_| digits);
        let bytes = bytes.ok_or(HeadError::Malformed("Content-Length is not a number"))?;
        if length.is_some_and(|other| other != bytes) {
            return Err(HeadError::Malformed("several different Content-Length headers"));
        }
        length = Some(bytes);
    }
    let mut codings = request.headers("transfer-encoding");
    let Some(coding) = codings.next() else { return Ok(Framing::Length(length.unwrap_or(0))) };
    if length.is_some() {
        return Err(HeadError::Malformed("both Content-Length and Transfer-Encoding"));
    }
    let chunked = coding.eq_ignore_ascii_case("chunked") && codings.next().is_none();
    if !chunked || request.version == Version::Http10 {
        return Err(HeadError::Malformed("Transfer-Encoding is not chunked"));
    }
    Ok(Framing::Chunked)
}

fn keep_alive(request: &Request) -> bool {
    let has_option = |name: &str| {
        request
            .headers("connection")
            .flat_map(|value| value.split(','))
            .any(|option| option.trim().eq_ignore_ascii_case(name))
    };
    match request.version {
        Version::Http11 => !has_option("close"),
        Version::Http10 => has_option("keep-alive") && !has_option("close"),
    }
}

fn expects_continue(request: &Request) -> Result<bool, HeadError> {
    match request.header("expect") {
        // HTTP/1.0 has no interim responses (RFC 9110, section 10.1.1).
        _ if request.version == Version::Http10 => Ok(false),
        None => Ok(false),
        Some(value) if value.eq_ignore_ascii_case("100-continue") => Ok(true),
        Some(_) => Err(HeadError::Expectation),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn parsed(head: &[u8]) -> (Result<Parsed, HeadError>, Request) {
        let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let mut request = Request::vacant(peer, Instant::now());
        (parse(head, &mut request), request)
    }

    fn status(head: &[u8]) -> u16 {
        match parsed(head).0 {
            Ok(Parsed::Complete { .. }) => 200,
            Ok(Parsed::Partial) => 0,
            Err(error) => error.status(),
        }
    }

    #[test]
    fn accepted_heads() {
        for head in [
            "GET / HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET / HTTP/1.1\nHost: h\n\n",
            "\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET / HTTP/1.0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost:\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n",
            "GET http://h/v2/ HTTP/1.1\r\nHost: h\r\n\r\n",
            "CONNECT h:443 HTTP/1.1\r\nHost: h\r\n\r\n",
            "OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n",
            "BREW /pot HTTP/1.1\r\nHost: h\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\nExpect: 100-Continue\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\nX: a\tb\r\n\r\n",
        ] {
            assert_eq!(status(head.as_bytes()), 200, "{head:?}");
        }
    }

    #[test]
    fn refused_heads() {
        for (expected, head) in [
            (400, "GET / HTTP/1.1\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
            (400, "GET /\r\n\r\n"),
            (400, "GET  / HTTP/1.1\r\nHost: h\r\n\r\n"),
            (400, "GET / HTTQ/1.1\r\nHost: h\r\n\r\n"),
            (400, "G\0T / HTTP/1.1\r\nHost: h\r\n\r\n"),
            (400, "GET v2 HTTP/1.1\r\nHost: h\r\n\r\n"),
            (400, "GET ftp://h/ HTTP/1.1\r\nHost: h\r\n\r\n"),
            (400, "GET http:///v2/ HTTP/1.1\r\nHost: h\r\n\r\n"),
            (400, "GET /\u{e9} HTTP/1.1\r\nHost: h\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\nHost : h\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\nHost: h\r\nA: b\r\n c\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\nHost: h\r\nA: b\rc\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\nHost: h\r\nA: b\0c\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\n Host: h\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\nHost: h\r\n: v\r\n\r\n"),
            (400, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"),
            (400, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5, 5\r\n\r\n"),
            (400, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: +5\r\n\r\n"),
            (400, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n"),
            (400, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length:\r\n\r\n"),
            (400, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999999999999\r\n\r\n"),
            (400, "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"),
            (400, "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"),
            (
                400,
                "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
            ),
            (417, "GET / HTTP/1.1\r\nHost: h\r\nExpect: tea\r\n\r\n"),
            (505, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
            (505, "GET / HTTP/1.2\r\nHost: h\r\n\r\n"),
            (505, "GET / HTTP/2"),
        ] {
            assert_eq!(status(head.as_bytes()), expected, "{head:?}");
        }
    }

    #[test]
    fn every_prefix_of_a_valid_head_is_unfinished() {
        let head = b"\r\nGET /v2/?a=b HTTP/1.1\r\nHost: h\r\nAccept: x\r\n\r\n";
        for length in 0..head.len() {
            assert_eq!(parsed(&head[..length]).0, Ok(Parsed::Partial), "{length} bytes");
        }
        let complete = Parsed::Complete { consumed: head.len() };
        assert_eq!(parsed(&[head, &b"GET"[..]].concat()).0, Ok(complete));
    }

    #[test]
    fn limits_are_exact() {
        let target = |length: usize| {
            format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "a".repeat(length - 1)).into_bytes()
        };
        assert_eq!(status(&target(TARGET_BYTES_MAX)), 200);
        assert_eq!(status(&target(TARGET_BYTES_MAX + 1)), 414);
        let lines = |count: usize| {
            format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "A: b\r\n".repeat(count - 1))
        };
        assert_eq!(status(lines(HEADERS_MAX).as_bytes()), 200);
        assert_eq!(status(lines(HEADERS_MAX + 1).as_bytes()), 431);
        let frame = "GET / HTTP/1.1\r\nHost: h\r\nA: \r\n\r\n".len();
        let long = |length: usize| {
            let value = "b".repeat(length - frame);
            format!("GET / HTTP/1.1\r\nHost: h\r\nA: {value}\r\n\r\n").into_bytes()
        };
        assert_eq!(status(&long(HEAD_BYTES_MAX)), 200);
        assert_eq!(status(&long(HEAD_BYTES_MAX + 1)), 431);
        assert_eq!(status(&vec![b'A'; HEAD_BYTES_MAX]), 414);
    }

    #[test]
    fn scheme_and_authority_of_absolute_targets_are_removed() {
        for (target, path, query) in [
            ("http://h:80/v2/x?n=1", "/v2/x", Some("n=1")),
            ("HTTPS://h/", "/", None),
            ("http://h", "/", None),
            ("http://h?q", "/", Some("q")),
        ] {
            let (_, request) =
                parsed(format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes());
            assert_eq!((request.path(), request.query()), (path, query), "{target}");
        }
    }

    #[test]
    fn keep_alive_follows_version_and_connection_options() {
        for (kept, head) in [
            (true, "GET / HTTP/1.1\r\nHost: h\r\n\r\n"),
            (false, "GET / HTTP/1.1\r\nHost: h\r\nConnection: foo, Close\r\n\r\n"),
            (false, "GET / HTTP/1.0\r\n\r\n"),
            (true, "GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"),
            (false, "GET / HTTP/1.0\r\nConnection: keep-alive\r\nConnection: close\r\n\r\n"),
        ] {
            assert_eq!(parsed(head.as_bytes()).1.keep_alive, kept, "{head:?}");
        }
    }

    #[test]
    fn bytes_that_are_not_utf8_become_question_marks() {
        let (_, request) = parsed(b"GET / HTTP/1.1\r\nUser-Agent: caf\xe9!\r\nHost: h\r\n\r\n");
        assert_eq!(request.header("user-agent"), Some("caf?!"));
        assert_eq!(request.header("host"), Some("h"));
    }
}
