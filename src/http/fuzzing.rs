//! Fuzz targets: request heads, and the chunked bodies of requests.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

pub(crate) use super::connection::fuzzing::request_body;
use super::head::{HeadError, Parsed, parse};
use super::limits::HEAD_BYTES_MAX;
use super::request::{Request, Version};
use crate::fuzzing::splits;

/// Parses a request head, and checks that it is parsed in the same way however it arrives.
pub(crate) fn request_head(data: &[u8]) -> Option<Request> {
    let (result, request) = parsed(data);
    for at in splits(data) {
        let (prefix, _) = parsed(&data[..at]);
        match (&result, &prefix) {
            (Ok(Parsed::Complete { consumed }), _) if at < *consumed => {
                assert_eq!(prefix, Ok(Parsed::Partial), "{at} bytes of a valid head");
            }
            (Ok(Parsed::Complete { .. } | Parsed::Partial), _) => assert_eq!(prefix, result),
            (Err(_), Ok(Parsed::Complete { .. })) => panic!("{at} bytes of an invalid head"),
            (Err(error), _) => {
                assert!(matches!(error.status(), 400 | 414 | 417 | 431 | 505), "{error}");
            }
        }
    }
    let Ok(Parsed::Complete { consumed }) = result else { return None };
    assert!(consumed <= data.len().min(HEAD_BYTES_MAX));
    // Bytes after the head belong to the next request.
    let (alone, again) = parsed(&data[..consumed]);
    assert_eq!(alone, result);
    assert_same(&again, &request);
    if let Some(head) = rendered(&request) {
        let (result, again) = parsed(&head);
        assert_eq!(result, Ok(Parsed::Complete { consumed: head.len() }), "{request:?}");
        assert_same(&again, &request);
    }
    Some(request)
}

fn parsed(data: &[u8]) -> (Result<Parsed, HeadError>, Request) {
    let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    let mut request = Request::vacant(peer, Instant::now());
    (parse(data, &mut request), request)
}

/// A head with the same meaning, as this server's parts see it.
fn rendered(request: &Request) -> Option<Vec<u8>> {
    let version = match request.version() {
        Version::Http10 => "1.0",
        Version::Http11 => "1.1",
    };
    let query = request.query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut head =
        format!("{} {}{query} HTTP/{version}\r\n", request.method_text(), request.path());
    for (name, value) in headers(request) {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    (head.len() <= HEAD_BYTES_MAX).then(|| head.into_bytes())
}

fn headers(request: &Request) -> Vec<(&str, &str)> {
    let spans = request.header_spans.iter();
    spans.map(|(name, value)| (request.text(*name), request.text(*value))).collect()
}

fn assert_same(one: &Request, other: &Request) {
    assert_eq!(one.method(), other.method());
    assert_eq!(one.method_text(), other.method_text());
    assert_eq!((one.path(), one.query()), (other.path(), other.query()));
    assert_eq!(one.version(), other.version());
    assert_eq!(one.framing, other.framing);
    assert_eq!(one.keep_alive, other.keep_alive);
    assert_eq!(one.expects_continue, other.expects_continue);
    assert_eq!(headers(one), headers(other));
}
