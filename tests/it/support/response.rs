//! A response as the raw client received it, and how it ended.

use std::fmt;

use super::digest_of;

/// The head of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// `HTTP/1.1` or `HTTP/1.0`.
    pub version: String,
    pub status: u16,
    /// In their order and case on the wire.
    pub headers: Vec<(String, String)>,
}

/// The state of the connection after a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Open for the next request.
    Open,
    /// Closed by FIN.
    Closed,
    /// Reset (RST).
    Reset,
}

/// A response, as far as it arrived.
#[derive(Clone)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Whether a client would consider it complete: Content-Length reached, last chunk seen, or, without either, a close by
    /// FIN.
    pub complete: bool,
    pub end: End,
}

impl Head {
    /// The first header of that name, whatever its case.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    pub fn content_length(&self) -> Option<u64> {
        self.header("content-length").and_then(|text| text.parse().ok())
    }
}

impl Response {
    /// The first header of that name, whatever its case.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    /// All header lines of that name.
    pub fn headers_named(&self, name: &str) -> Vec<&str> {
        let named = self.headers.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str()).collect()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// # Panics
    /// If the body is not JSON, with the body.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        match serde_json::from_slice(&self.body) {
            Ok(value) => value,
            Err(error) => panic!("not JSON ({error}): {self:?}"),
        }
    }

    /// The `code` of the first error in an OCI error body; empty if there is none.
    pub fn error_code(&self) -> String {
        let body: Result<serde_json::Value, _> = serde_json::from_slice(&self.body);
        let code = body.ok().and_then(|body| body["errors"][0]["code"].as_str().map(str::to_owned));
        code.unwrap_or_default()
    }

    /// The sha256 digest of the body.
    pub fn digest(&self) -> String {
        digest_of(&self.body)
    }
}

impl fmt::Debug for Response {
    /// Short enough for an assertion message, whatever the body.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start: String = self.text().chars().take(300).collect();
        f.debug_struct("Response")
            .field("status", &self.status)
            .field("headers", &self.headers)
            .field("body_length", &self.body.len())
            .field("body", &start)
            .field("complete", &self.complete)
            .field("end", &self.end)
            .finish()
    }
}

/// # Panics
/// If it is not HTTP/1.
#[track_caller]
pub(super) fn parse(bytes: &[u8]) -> Head {
    let mut lines = [httparse::EMPTY_HEADER; 128];
    let mut response = httparse::Response::new(&mut lines);
    if let Err(error) = response.parse(bytes) {
        panic!("not an HTTP/1 answer ({error}): {:?}", String::from_utf8_lossy(bytes));
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Head {
        version: format!("HTTP/1.{}", response.version.unwrap_or(0)),
        status: response.code.unwrap_or(0),
        headers: response.headers.iter().map(|h| (h.name.to_owned(), text(h.value))).collect(),
    }
}

fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let found = headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
    found.map(|(_, value)| value.as_str())
}
