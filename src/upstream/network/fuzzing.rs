//! Fuzz targets: response heads as they arrive on a connection, URLs and proxies.

use std::sync::Arc;

use ureq::Error;
use ureq::unversioned::transport::{Buffers, LazyBuffers, NextTimeout, Transport};

use super::location::Location;
use super::no_proxy::NoProxy;
use super::proxy::{Proxy, ProxySettings};
use super::response_head::{Parsed, StrictHeads, parse};
use crate::fuzzing::{line, splits};

/// Status and header lines.
pub(in crate::upstream) type Head = (u16, Vec<(String, Vec<u8>)>);

/// Parses the head of a response, and checks that it is the same however it arrives.
pub(in crate::upstream) fn response_head(data: &[u8]) -> Option<Head> {
    let whole = received(data, data.len());
    for at in splits(data).step_by(4).filter(|at| *at > 0) {
        let split = received(data, at);
        assert_eq!(
            String::from_utf8_lossy(&split),
            String::from_utf8_lossy(&whole),
            "in pieces of {at} bytes"
        );
    }
    let (length, strict) = strict_form(data)?;
    assert_eq!(whole, [&strict, &data[length..]].concat(), "bytes of the body are lost");
    let again = strict_form(&strict).expect("a strict head can be read");
    assert_eq!(again, (strict.len(), strict.clone()), "a strict head is changed");
    // ureq's parser is this one, without any lenience.
    let mut lines = [httparse::EMPTY_HEADER; 128];
    let mut response = httparse::Response::new(&mut lines);
    let parsed = response.parse(&strict);
    assert_eq!(parsed, Ok(httparse::Status::Complete(strict.len())), "{strict:?}");
    let lines: Vec<(String, Vec<u8>)> = response
        .headers
        .iter()
        .map(|line| (line.name.to_ascii_lowercase(), line.value.to_vec()))
        .collect();
    let has = |name: &str| lines.iter().any(|line| line.0 == name);
    let is_chunked = lines
        .iter()
        .any(|(name, value)| name == "transfer-encoding" && value.eq_ignore_ascii_case(b"chunked"));
    let has_two_lengths = response.version == Some(1) && is_chunked && has("content-length");
    assert!(!has_two_lengths, "two lengths that parsers read differently");
    Some((response.code?, lines))
}

/// The length of a response's head, with those of interim responses before it, and its strict form.
fn strict_form(data: &[u8]) -> Option<(usize, Vec<u8>)> {
    let mut start = 0;
    loop {
        match parse(&data[start..]) {
            Parsed::Interim { length } => start += length,
            Parsed::Final { length, head } => return Some((start + length, head)),
            Parsed::Partial | Parsed::Unreadable => return None,
        }
    }
}

/// Everything that a client reads from a connection on which `data` arrives in pieces.
fn received(data: &[u8], piece_bytes: usize) -> Vec<u8> {
    let pieces =
        Pieces { left: data.to_vec(), piece_bytes, buffers: LazyBuffers::new(128 * 1024, 1024) };
    let timeout = NextTimeout::default;
    let mut connection = StrictHeads::new(pieces);
    connection.transmit_output(0, timeout()).expect("never fails");
    let mut all = Vec::new();
    loop {
        let progress = connection.maybe_await_input(timeout()).expect("never fails");
        let input = connection.buffers().input().to_vec();
        connection.buffers().input_consume(input.len());
        all.extend_from_slice(&input);
        if !progress && input.is_empty() {
            return all;
        }
    }
}

/// A connection on which bytes arrive in pieces.
struct Pieces {
    left: Vec<u8>,
    piece_bytes: usize,
    buffers: LazyBuffers,
}

impl std::fmt::Debug for Pieces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pieces")
    }
}

impl Transport for Pieces {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, _: usize, _: NextTimeout) -> Result<(), Error> {
        Ok(())
    }

    fn await_input(&mut self, _: NextTimeout) -> Result<bool, Error> {
        let buffer = self.buffers.input_append_buf();
        let count = self.piece_bytes.min(self.left.len()).min(buffer.len());
        buffer[..count].copy_from_slice(&self.left[..count]);
        self.left.drain(..count);
        self.buffers.input_appended(count);
        Ok(count > 0)
    }

    fn is_open(&mut self) -> bool {
        true
    }
}

/// Input: a line with an absolute URL, and a line with a reference to join to it.
pub(crate) fn location(data: &[u8]) {
    let (base, rest) = line(data);
    let (reference, _) = line(rest);
    let fallback = || Location::parse("https://registry.example/v2/a/").expect("valid");
    let base = Location::parse(&base).unwrap_or_else(fallback);
    assert_is_stable(&base);
    assert_joined(&base, &reference);
    let with_query = base.with_query(&[("scope", &reference), ("service", "a b&c=d")]);
    assert!(with_query.is_same_origin(&base));
    assert_is_stable(&with_query);
}

/// Joins a reference from a response to a URL.
pub(in crate::upstream) fn assert_joined(base: &Location, reference: &str) {
    let Some(joined) = base.join(reference) else { return };
    assert_is_stable(&joined);
    assert_eq!(joined.join(&joined.url()).as_ref(), Some(&joined));
    if !reference.contains("//") {
        assert!(joined.is_same_origin(base), "{reference:?} leaves the origin");
    }
}

/// A URL is parsed again by ureq, and by Larder for the next redirect. All must find the same host.
fn assert_is_stable(location: &Location) {
    let url = location.url();
    assert_eq!(Location::parse(&url).as_ref(), Some(location), "{url:?}");
    let uri: ureq::http::Uri = url.parse().unwrap_or_else(|error| panic!("{url:?}: {error}"));
    let (host, port) = (uri.host().unwrap_or_default(), uri.port_u16());
    assert_eq!(host.to_ascii_lowercase(), location.host(), "{url:?}");
    let scheme_port = if location.is_https() { 443 } else { 80 };
    assert_eq!(port.unwrap_or(scheme_port), location.port(), "{url:?}");
    assert!(url.bytes().all(|byte| byte.is_ascii_graphic()), "{url:?}");
    assert!(!location.origin().contains('@') && !location.for_log().contains('?'), "{url:?}");
}

/// Input: a line with the URL of a proxy, a line for `NO_PROXY`, and a line with a URL.
pub(crate) fn proxy(data: &[u8]) {
    let (url, rest) = line(data);
    let (list, rest) = line(rest);
    let (target, _) = line(rest);
    let Ok(no_proxy) = list.parse::<NoProxy>();
    let proxy: Option<Proxy> = url.parse().ok();
    if let Some(proxy) = &proxy {
        let shown = proxy.to_string();
        assert!(!shown.contains('@'), "{shown} reveals the login");
        let again: Proxy = shown.parse().expect("what is shown is the URL of a proxy");
        assert_eq!(again.to_string(), shown);
    }
    let Some(target) = Location::parse(&target) else { return };
    let settings = Arc::new(ProxySettings { http: proxy.clone(), https: proxy, no_proxy });
    let host = target.host();
    let is_local = ["localhost", "127.0.0.1", "[::1]"].contains(&host);
    assert!(!is_local || settings.towards(&target).is_none(), "{host} is this machine");
}
