//! A request head as a value.
//!
//! This module must not know sockets, nor what the path means. `head` fills a request.

use super::request_id::{self, GeneratedId, RequestId};
use crate::client_address::ClientAddress;
use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

/// The request methods that handlers distinguish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// `GET`
    Get,
    /// `HEAD`
    Head,
    /// `POST`
    Post,
    /// `PUT`
    Put,
    /// `PATCH`
    Patch,
    /// `DELETE`
    Delete,
    /// `OPTIONS`
    Options,
    /// Anything else, as [`Request::method_text`] spells it.
    Other,
}

/// The supported protocol versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    Http11,
}

/// How the body of a request is delimited (RFC 9112, section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// This many bytes follow; usually none.
    Length(u64),
    /// Chunks follow.
    Chunked,
}

/// Offsets into the head.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Span {
    pub(super) start: u16,
    pub(super) end: u16,
}

/// A request head, stored as one string and offsets into it.
///
/// In header values that are not valid UTF-8, every non-ASCII byte becomes `?`. The request line is always ASCII.
#[derive(Debug)]
pub struct Request {
    pub(super) head: String,
    pub(super) header_spans: Vec<(Span, Span)>,
    pub(super) method: Method,
    pub(super) method_span: Span,
    pub(super) path: Span,
    pub(super) query: Option<Span>,
    pub(super) version: Version,
    pub(super) framing: Framing,
    pub(super) keep_alive: bool,
    pub(super) expects_continue: bool,
    pub(super) peer: SocketAddr,
    pub(super) began: Instant,
    /// The id of the request, unless its client has chosen one.
    pub(super) generated_id: GeneratedId,
    /// Who sent it, as far as that was verified.
    pub(super) user: RefCell<Option<Arc<str>>>,
}

impl Request {
    /// An empty request for `head::parse` to fill. It can be reused.
    pub(super) fn vacant(peer: SocketAddr, began: Instant) -> Self {
        Self {
            head: String::new(),
            header_spans: Vec::new(),
            method: Method::Other,
            method_span: Span::default(),
            path: Span::default(),
            query: None,
            version: Version::Http11,
            framing: Framing::Length(0),
            keep_alive: false,
            expects_continue: false,
            peer,
            began,
            generated_id: GeneratedId::default(),
            user: RefCell::default(),
        }
    }

    /// The method.
    pub fn method(&self) -> Method {
        self.method
    }

    /// The method as sent by the client.
    pub fn method_text(&self) -> &str {
        self.text(self.method_span)
    }

    /// The path as sent by the client, not decoded. The scheme and authority of an absolute target are removed. `*` and
    /// the authority of CONNECT are unchanged.
    pub fn path(&self) -> &str {
        let path = self.text(self.path);
        if path.is_empty() { "/" } else { path }
    }

    /// The part after the first `?` of the target, not decoded.
    pub fn query(&self) -> Option<&str> {
        self.query.map(|span| self.text(span))
    }

    /// The first value of this header. Names are case-insensitive.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers(name).next()
    }

    /// All values of this header, in order. Names are case-insensitive.
    pub fn headers<'a, 'n>(&'a self, name: &'n str) -> impl Iterator<Item = &'a str> + use<'a, 'n> {
        self.header_spans
            .iter()
            .filter(move |(key, _)| self.text(*key).eq_ignore_ascii_case(name))
            .map(|(_, value)| self.text(*value))
    }

    /// The protocol version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The client's address. IPv4 clients of a dual-stack listener have an IPv4 address.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// The client that this request counts against where clients share limited resources.
    pub fn client_address(&self) -> ClientAddress {
        self.peer.ip().into()
    }

    /// When the first byte of this request was received.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// The id of this request, which its response has as `X-Request-Id`.
    pub fn id(&self) -> RequestId<'_> {
        RequestId::new(self.header(request_id::HEADER), self.generated_id)
    }

    /// Who sent this request: the user that the handler has verified, or else the subject of the client's certificate.
    pub fn user(&self) -> Option<Arc<str>> {
        self.user.borrow().clone()
    }

    /// Notes the user, whom the handler has verified.
    pub fn set_user(&self, user: &str) {
        self.user.replace(Some(user.into()));
    }

    pub(super) fn text(&self, span: Span) -> &str {
        // The spans were computed from this text. If one were ever out of bounds, an empty string would be safe.
        self.head.get(usize::from(span.start)..usize::from(span.end)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn request(head: &str) -> Request {
        let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        Request::parse(head, peer, Instant::now()).unwrap()
    }

    #[test]
    fn path_and_query_are_split_at_the_first_question_mark_and_not_decoded() {
        let request = request("GET /v2/a%2Fb//c?ns=x%3A5&q=a?b HTTP/1.1\r\nHost: h\r\n\r\n");
        assert_eq!(request.path(), "/v2/a%2Fb//c");
        assert_eq!(request.query(), Some("ns=x%3A5&q=a?b"));
    }

    #[test]
    fn an_empty_query_differs_from_a_missing_one() {
        assert_eq!(request("GET /v2/? HTTP/1.1\r\nHost: h\r\n\r\n").query(), Some(""));
        assert_eq!(request("GET /v2/ HTTP/1.1\r\nHost: h\r\n\r\n").query(), None);
    }

    #[test]
    fn header_names_are_case_insensitive_and_values_keep_their_order() {
        let request =
            request("GET / HTTP/1.1\r\nhOST: h\r\nAccept: a\r\naccept: b, c\r\nX:\r\n\r\n");
        assert_eq!(request.header("ACCEPT"), Some("a"));
        assert_eq!(request.headers("Accept").collect::<Vec<_>>(), ["a", "b, c"]);
        assert_eq!(request.header("x"), Some(""));
        assert_eq!(request.header("y"), None);
    }
}
