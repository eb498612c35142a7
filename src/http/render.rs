//! Renders the head of a response.
//!
//! This module must not know bodies or sockets. Whatever a handler puts into a header, it stays on one line.

use super::reply::Reply;
use super::request_id::{self, RequestId};
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

/// The value of the `Server` header. It has no version, which would only help attackers.
pub const SERVER_NAME: &str = "larder";

/// RFC 9110, section 5.6.7.
const IMF_FIXDATE: &[BorrowedFormatItem<'_>] = format_description!(
    "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
);

/// Headers that only the server may set, because their values must be correct.
const SERVER_HEADERS: [&str; 7] = [
    "connection",
    "content-length",
    "date",
    "server",
    "transfer-encoding",
    "x-content-type-options",
    "x-request-id",
];

/// Keeps browsers from treating an answer as a page: its type is the declared one, and it cannot load, run or submit
/// anything. Every response has these headers, because every response is rendered here.
const NO_SNIFFING: (&str, &str) = ("X-Content-Type-Options", "nosniff");
/// The management page replaces this policy.
const SANDBOX: (&str, &str) = ("Content-Security-Policy", "default-src 'none'; sandbox");

/// The `Connection` header of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionOption {
    /// No header: HTTP/1.1 connections stay open by default.
    Default,
    /// `keep-alive`, for HTTP/1.0 clients that requested it.
    KeepAlive,
    /// `close`: no further request will be read.
    Close,
}

/// Appends the head of `reply` to `out`, with `length` as its Content-Length unless that is `None`.
pub(super) fn render(
    out: &mut Vec<u8>,
    reply: &Reply,
    length: Option<u64>,
    option: ConnectionOption,
    date: &str,
    id: RequestId<'_>,
) {
    out.extend_from_slice(b"HTTP/1.1 ");
    push_number(out, reply.status.into());
    out.push(b' ');
    out.extend_from_slice(reason(reply.status).as_bytes());
    push_line(out, "Server", SERVER_NAME);
    push_line(out, "Date", date);
    // Writing to a Vec cannot fail. Ids contain no control characters.
    let _ = write!(out, "\r\n{}: {id}", request_id::HEADER);
    push_line(out, NO_SNIFFING.0, NO_SNIFFING.1);
    if !reply.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(SANDBOX.0)) {
        push_line(out, SANDBOX.0, SANDBOX.1);
    }
    for (name, value) in &reply.headers {
        if !SERVER_HEADERS.iter().any(|reserved| reserved.eq_ignore_ascii_case(name)) {
            push_line(out, name, value);
        }
    }
    if let Some(length) = length {
        out.extend_from_slice(b"\r\nContent-Length: ");
        push_number(out, length);
    }
    match option {
        ConnectionOption::Default => {}
        ConnectionOption::KeepAlive => push_line(out, "Connection", "keep-alive"),
        ConnectionOption::Close => push_line(out, "Connection", "close"),
    }
    out.extend_from_slice(b"\r\n\r\n");
}

/// Ends the previous line and appends this one without its end.
fn push_line(out: &mut Vec<u8>, name: &str, value: &str) {
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    let start = out.len();
    out.extend_from_slice(value.as_bytes());
    // A value may come from upstream or from the request. With a CR or LF in it, an attacker could add headers or a
    // complete response.
    for byte in &mut out[start..] {
        // Without a branch, so that it is compiled to vector instructions.
        *byte = if byte.is_ascii_control() { b'?' } else { *byte };
    }
}

fn push_number(out: &mut Vec<u8>, number: u64) {
    // Writing to a Vec cannot fail.
    let _ = write!(out, "{number}");
}

/// The reason phrase. Clients ignore it; people who use `curl -v` read it.
fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        206 => "Partial Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        507 => "Insufficient Storage",
        _ => "Unknown",
    }
}

/// The value of the `Date` header, formatted once a second.
#[derive(Debug, Default)]
pub(super) struct DateCache {
    second: u64,
    text: String,
}

impl DateCache {
    /// `time` in the format of RFC 9110.
    pub(super) fn at(&mut self, time: SystemTime) -> &str {
        let second = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        if second != self.second || self.text.is_empty() {
            self.second = second;
            let date = i64::try_from(second).ok().and_then(|second| {
                OffsetDateTime::from_unix_timestamp(second).ok()?.format(IMF_FIXDATE).ok()
            });
            // Formatting fails only for years after 9999.
            self.text = date.unwrap_or_else(|| "Thu, 01 Jan 1970 00:00:00 GMT".to_owned());
        }
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::super::reply::Body;
    use super::super::request_id::GeneratedId;
    use super::*;
    use std::time::Duration;

    fn rendered(reply: &Reply, length: Option<u64>, option: ConnectionOption) -> String {
        let mut out = Vec::new();
        render(
            &mut out,
            reply,
            length,
            option,
            "D",
            RequestId::new(Some("i"), GeneratedId::default()),
        );
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_head_has_a_status_line_headers_and_an_empty_line() {
        let reply = Reply::new(206, Body::Empty).header("ETag", "\"x\"");
        assert_eq!(
            rendered(&reply, Some(7), ConnectionOption::Close),
            "HTTP/1.1 206 Partial Content\r\nServer: larder\r\nDate: D\r\nX-Request-Id: i\r\n\
             X-Content-Type-Options: nosniff\r\n\
             Content-Security-Policy: default-src 'none'; sandbox\r\nETag: \"x\"\r\n\
             Content-Length: 7\r\nConnection: close\r\n\r\n"
        );
    }

    #[test]
    fn control_bytes_in_values_are_never_sent() {
        let reply = Reply::new(200, Body::Empty).header("X", "a\r\nSet-Cookie: b\0c\x7f\td");
        let head = rendered(&reply, None, ConnectionOption::Default);
        assert!(head.contains("\r\nX: a??Set-Cookie: b?c??d\r\n\r\n"), "{head:?}");
    }

    #[test]
    fn handlers_cannot_set_the_headers_of_the_server() {
        let reply = Reply::new(200, Body::Empty)
            .header("content-length", "1")
            .header("Transfer-Encoding", "chunked")
            .header("X-Content-Type-Options", "none")
            .header("X-Request-Id", "j")
            .header("Content-Security-Policy", "sandbox")
            .header("Connection", "upgrade");
        let head = rendered(&reply, Some(0), ConnectionOption::Default);
        assert_eq!(
            head,
            "HTTP/1.1 200 OK\r\nServer: larder\r\nDate: D\r\nX-Request-Id: i\r\nX-Content-Type-Options: nosniff\r\n\
             Content-Security-Policy: sandbox\r\nContent-Length: 0\r\n\r\n"
        );
    }

    #[test]
    fn dates_are_imf_fixdate() {
        let mut dates = DateCache::default();
        let at = |second| UNIX_EPOCH + Duration::from_secs(second);
        assert_eq!(dates.at(at(784_111_777)), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(dates.at(at(784_111_778)), "Sun, 06 Nov 1994 08:49:38 GMT");
        assert_eq!(dates.at(at(0)), "Thu, 01 Jan 1970 00:00:00 GMT");
    }
}
