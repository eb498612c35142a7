//! A lenient parser for response heads, which passes them to ureq in strict form.
//!
//! Go and curl accept more than ureq does: folded or indented header lines, spaces before a colon, interim responses
//! with headers (`100 Continue` from proxies that add a header to everything). Heads are parsed leniently here and passed
//! on in strict form; interim responses are dropped. A head that this parser cannot read either is passed on unchanged,
//! and ureq refuses it.
//!
//! A request with `Expect: 100-continue` sends its body only after an interim response, or after a second without one. A
//! server that refuses it sends the final response instead, before it closes the connection: without this, that response
//! would be lost. ureq gets the interim response of such a request only.
//!
//! Only heads are changed. A body stays in the buffers of the transport below and is not copied.
//!
//! Threat: a length that two parsers read differently. `Content-Length` together with `Transfer-Encoding: chunked` is
//! dropped, as RFC 9112, section 6.3, demands, so that it is never taken for the size of a blob.

use std::io::ErrorKind;

use ureq::Error;
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

/// The longest head, in bytes; the same limit as ureq's.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// The most reads for the response to `Expect`; each may take as long as ureq waits for it.
const CONTINUE_READS_MAX: usize = 16;
/// The header that ureq sends for it.
const EXPECT: &[u8] = b"\r\nexpect: 100-continue\r\n";
/// The interim response in the form that ureq expects.
const CONTINUE: &[u8] = b"HTTP/1.1 100 \r\n\r\n";
/// The most header lines; the same limit as ureq's.
const HEADER_LINES_MAX: usize = 128;

/// Wraps connections in [`StrictHeads`].
#[derive(Debug, Default)]
pub(super) struct ResponseHeads;

impl<In: Transport> Connector<In> for ResponseHeads {
    type Out = StrictHeads<In>;

    fn connect(
        &self,
        _: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<StrictHeads<In>>, Error> {
        Ok(chained.map(StrictHeads::new))
    }
}

/// A connection that returns response heads in strict form.
///
/// Requests and responses alternate, since ureq does not pipeline.
#[derive(Debug)]
pub(super) struct StrictHeads<T> {
    inner: T,
    /// Whether anything was sent since the last head arrived.
    has_sent: bool,
    /// Whether the head of a request was sent that demands an interim response before its body.
    awaits_continue: bool,
    /// Whether the next input is a head.
    is_head_due: bool,
    /// The part of that head that has arrived.
    raw: Vec<u8>,
    /// The strict head for ureq.
    head: HeadBuffer,
}

/// A head for ureq to read. Requests are written to the buffers of the transport below.
#[derive(Debug, Default)]
struct HeadBuffer {
    /// The bytes not consumed yet.
    bytes: Vec<u8>,
    /// Whether there is more to read than at the last call; see [`Buffers::can_use_input`].
    progress: bool,
}

impl HeadBuffer {
    fn put(&mut self, head: Vec<u8>) {
        *self = HeadBuffer { bytes: head, progress: true };
    }
}

impl Buffers for HeadBuffer {
    fn output(&mut self) -> &mut [u8] {
        &mut []
    }

    fn input(&self) -> &[u8] {
        &self.bytes
    }

    fn input_append_buf(&mut self) -> &mut [u8] {
        &mut []
    }

    fn input_appended(&mut self, _: usize) {}

    fn input_consume(&mut self, amount: usize) {
        self.progress = amount > 0;
        self.bytes.drain(..amount);
    }

    fn tmp_and_output(&mut self) -> (&mut [u8], &mut [u8]) {
        (&mut [], &mut [])
    }

    fn can_use_input(&self) -> bool {
        !self.bytes.is_empty() && self.progress
    }
}

impl<T: Transport> StrictHeads<T> {
    pub(super) fn new(inner: T) -> StrictHeads<T> {
        let head = HeadBuffer::default();
        StrictHeads {
            inner,
            has_sent: false,
            awaits_continue: false,
            is_head_due: false,
            raw: Vec::new(),
            head,
        }
    }

    /// Moves the head out of the buffer of the transport below. The bytes after it stay there.
    fn take_head(&mut self) {
        while self.is_head_due && !self.inner.buffers().input().is_empty() {
            let before = self.raw.len();
            self.raw.extend_from_slice(self.inner.buffers().input());
            let (end, head) = match parse(&self.raw) {
                Parsed::Partial if self.raw.len() <= HEAD_BYTES_MAX => (self.raw.len(), None),
                Parsed::Partial | Parsed::Unreadable => (self.raw.len(), Some(self.raw.clone())),
                Parsed::Interim { length } if self.awaits_continue => {
                    self.inner.buffers().input_consume(length - before);
                    self.raw.clear();
                    self.send_body();
                    self.head.put(CONTINUE.to_vec());
                    return;
                }
                Parsed::Interim { length } => (length, Some(Vec::new())),
                Parsed::Final { length, head } => (length, Some(head)),
            };
            self.inner.buffers().input_consume(end - before);
            if let Some(head) = head {
                self.raw.clear();
                self.is_head_due = head.is_empty();
                self.head.put(head);
            }
        }
    }

    /// Lets ureq send the body of a request whose head was sent.
    fn send_body(&mut self) {
        (self.awaits_continue, self.is_head_due, self.has_sent) = (false, false, true);
    }

    /// Waits for the complete response to `Expect`: ureq takes an incomplete one for the end of the connection.
    fn await_continue(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        for _ in 0..CONTINUE_READS_MAX {
            match self.inner.maybe_await_input(timeout) {
                Ok(true) => self.take_head(),
                Ok(false) => return Ok(false),
                Err(error) if self.raw.is_empty() => {
                    self.send_body();
                    return Err(error);
                }
                Err(_) => break,
            }
            if !self.head.bytes.is_empty() {
                self.awaits_continue = false;
                return Ok(true);
            }
        }
        Err(Error::Io(ErrorKind::UnexpectedEof.into()))
    }
}

impl<T: Transport> Transport for StrictHeads<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        match self.is_head_due || !self.head.bytes.is_empty() {
            true => &mut self.head,
            false => self.inner.buffers(),
        }
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        if !self.has_sent {
            let head = self.inner.buffers().output().get(..amount).unwrap_or_default();
            self.awaits_continue = head.windows(EXPECT.len()).any(|window| window == EXPECT);
        }
        self.has_sent = true;
        self.inner.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        // Only now is the request complete: its parts are written to the transport below.
        self.is_head_due |= std::mem::take(&mut self.has_sent);
        if !self.is_head_due {
            return self.inner.await_input(timeout);
        }
        let has_input = match self.awaits_continue {
            true => self.await_continue(timeout)?,
            // Waits once per call: the caller reduces the timeout between calls.
            false => self.inner.maybe_await_input(timeout)?,
        };
        if has_input {
            self.take_head();
            return Ok(true);
        }
        // The connection ended within a head. ureq reports it.
        self.is_head_due = false;
        self.head.put(std::mem::take(&mut self.raw));
        Ok(false)
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
    }

    fn is_tls(&self) -> bool {
        self.inner.is_tls()
    }
}

pub(super) enum Parsed {
    /// The head is incomplete.
    Partial,
    /// The parser cannot read the head.
    Unreadable,
    /// An interim response of `length` bytes (RFC 9110, section 15.2).
    Interim { length: usize },
    /// A head of `length` bytes, and its strict form.
    Final { length: usize, head: Vec<u8> },
}

pub(super) fn parse(raw: &[u8]) -> Parsed {
    let mut lines = [httparse::EMPTY_HEADER; HEADER_LINES_MAX];
    let mut response = httparse::Response::new(&mut lines);
    let mut parser = httparse::ParserConfig::default();
    parser
        .allow_spaces_after_header_name_in_responses(true)
        .allow_obsolete_multiline_headers_in_responses(true)
        .allow_multiple_spaces_in_response_status_delimiters(true)
        .allow_space_before_first_header_name(true)
        .ignore_invalid_headers_in_responses(true);
    let length = match parser.parse_response(&mut response, raw) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Parsed::Partial,
        Err(_) => return Parsed::Unreadable,
    };
    let (Some(version), Some(status)) = (response.version, response.code) else {
        return Parsed::Unreadable;
    };
    // 101 is not an interim response: no HTTP response follows it.
    if (100..200).contains(&status) && status != 101 {
        return Parsed::Interim { length };
    }
    Parsed::Final { length, head: strict(version, status, response.headers) }
}

fn strict(version: u8, status: u16, lines: &[httparse::Header<'_>]) -> Vec<u8> {
    // The reason phrase is left out, since nothing reads it.
    let mut head = format!("HTTP/1.{version} {status:03} \r\n").into_bytes();
    let is_chunked = version == 1
        && lines.iter().any(|line| {
            line.name.eq_ignore_ascii_case("transfer-encoding")
                && line.value.to_ascii_lowercase().windows(7).any(|word| word == b"chunked")
        });
    for line in lines {
        if is_chunked && line.name.eq_ignore_ascii_case("content-length") {
            continue;
        }
        head.extend_from_slice(line.name.as_bytes());
        head.extend_from_slice(b": ");
        // A folded line break is replaced by spaces (RFC 9112, section 5.2).
        let unfolded = line.value.iter().map(|byte| match byte {
            b'\r' | b'\n' | b'\t' => b' ',
            other => *other,
        });
        head.extend(unfolded);
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    head
}

#[cfg(test)]
mod tests {
    use ureq::unversioned::transport::LazyBuffers;

    use super::*;

    fn strict_form(raw: &str) -> String {
        match parse(raw.as_bytes()) {
            Parsed::Final { length, head } => {
                assert_eq!(length, raw.len(), "{raw:?}");
                String::from_utf8(head).unwrap()
            }
            _ => panic!("{raw:?}"),
        }
    }

    #[test]
    fn lenient_heads_become_strict_ones() {
        for (lines, expected) in [
            ("A: b", "A: b"),
            ("A: b\r\n  c\r\n\td", "A: b    c   d"),
            ("A : b", "A: b"),
            ("no colon\r\nA: b", "A: b"),
            ("  A: b", "A: b"),
            ("A:\r\nB: c", "A: \r\nB: c"),
            ("Content-Length: 7\r\nTransfer-Encoding: Chunked", "Transfer-Encoding: Chunked"),
            ("Content-Length: 7\r\nX: chunked", "Content-Length: 7\r\nX: chunked"),
        ] {
            let raw = format!("HTTP/1.1 200 OK\r\n{lines}\r\n\r\n");
            let strict = strict_form(&raw);
            assert_eq!(strict, format!("HTTP/1.1 200 \r\n{expected}\r\n\r\n"), "{lines:?}");
        }
        assert_eq!(strict_form("HTTP/1.0  404\nA: b\n\n"), "HTTP/1.0 404 \r\nA: b\r\n\r\n");
    }

    #[test]
    fn interim_responses_are_recognized_and_101_is_not_one() {
        for (status, is_interim) in [(100, true), (103, true), (101, false), (200, false)] {
            let raw = format!("HTTP/1.1 {status} X\r\nLink: <x>\r\n\r\nHTTP/1.1 200 OK\r\n");
            let parsed = parse(raw.as_bytes());
            assert_eq!(matches!(parsed, Parsed::Interim { .. }), is_interim, "{status}");
        }
        assert!(matches!(parse(b"HTTP/1.1 200 OK\r\nA: "), Parsed::Partial));
        assert!(matches!(parse(b"SSH-2.0-x\r\n"), Parsed::Unreadable));
    }

    /// A connection on which one thing happens after another: bytes arrive, or a timeout expires.
    #[derive(Debug)]
    struct Events {
        events: Vec<Option<&'static str>>,
        buffers: LazyBuffers,
        sent: Vec<u8>,
    }

    impl Transport for Events {
        fn buffers(&mut self) -> &mut dyn Buffers {
            &mut self.buffers
        }

        fn transmit_output(&mut self, amount: usize, _: NextTimeout) -> Result<(), Error> {
            self.sent.extend_from_slice(&self.buffers.output()[..amount]);
            Ok(())
        }

        fn await_input(&mut self, _: NextTimeout) -> Result<bool, Error> {
            if self.events.is_empty() {
                return Ok(false);
            }
            let Some(text) = self.events.remove(0) else {
                return Err(Error::Timeout(ureq::Timeout::Await100));
            };
            self.buffers.input_append_buf()[..text.len()].copy_from_slice(text.as_bytes());
            self.buffers.input_appended(text.len());
            Ok(true)
        }

        fn is_open(&mut self) -> bool {
            true
        }
    }

    fn send(connection: &mut StrictHeads<Events>, text: &str) {
        connection.buffers().output()[..text.len()].copy_from_slice(text.as_bytes());
        connection.transmit_output(text.len(), NextTimeout::default()).unwrap();
    }

    /// Sends a head that demands an interim response. Returns what ureq sees of it.
    fn expect(events: &[Option<&'static str>]) -> (StrictHeads<Events>, Result<String, Error>) {
        let buffers = LazyBuffers::new(1024, 1024);
        let mut connection =
            StrictHeads::new(Events { events: events.to_vec(), buffers, sent: Vec::new() });
        send(&mut connection, "PUT / HTTP/1.1\r\nexpect: 100-continue\r\n\r\n");
        let seen = read(&mut connection);
        (connection, seen)
    }

    fn read(connection: &mut StrictHeads<Events>) -> Result<String, Error> {
        connection.maybe_await_input(NextTimeout::default())?;
        let input = connection.buffers().input().to_vec();
        connection.buffers().input_consume(input.len());
        Ok(String::from_utf8(input).unwrap())
    }

    #[test]
    fn a_body_follows_an_interim_response_or_a_timeout() {
        let done = "HTTP/1.1 200 OK\r\n a: b\r\n\r\n";
        let go_on = "HTTP/1.1 100 Continue\r\nx: 1\r\n\r\n";
        for (events, seen) in [
            (vec![Some(go_on), Some(done)], Some("HTTP/1.1 100 \r\n\r\n")),
            (
                vec![Some("HTTP/1.1 1"), Some("00 x\r\n\r\n"), Some(done)],
                Some("HTTP/1.1 100 \r\n\r\n"),
            ),
            (vec![None, Some(done)], None),
            // It may arrive later.
            (vec![None, Some(go_on), Some(done)], None),
        ] {
            let (mut connection, first) = expect(&events);
            assert_eq!(first.ok().as_deref(), seen, "{events:?}");
            // The text of the body is not a head.
            send(&mut connection, "x\r\nexpect: 100-continue\r\n");
            send(&mut connection, "y");
            assert!(connection.inner.sent.ends_with(b"100-continue\r\ny"));
            let mut answer = read(&mut connection).unwrap();
            if answer.is_empty() {
                answer = read(&mut connection).unwrap();
            }
            assert_eq!(answer, "HTTP/1.1 200 \r\na: b\r\n\r\n", "{events:?}");
        }
    }

    #[test]
    fn a_refusal_takes_the_place_of_the_interim_response() {
        let (_, seen) = expect(&[Some("HTTP/1.1 403 No\r\nA : b\r\n\r\n")]);
        assert_eq!(seen.unwrap(), "HTTP/1.1 403 \r\nA: b\r\n\r\n");
        let (_, seen) = expect(&[Some("HTTP/1.1 4"), None]);
        assert!(matches!(seen, Err(Error::Io(_))), "a part of a response is not a timeout");
        let (_, seen) = expect(&[]);
        assert_eq!(seen.unwrap(), "", "the connection has ended");
    }
}
