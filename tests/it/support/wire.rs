//! A fake server's side of a socket: reading requests, and ways to end a connection.
//!
//! Must not know what a registry or a bucket is.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// The maximum size of a request head. Clients under test stay far below it.
const HEAD_LIMIT: usize = 64 * 1024;

/// The maximum size of a request body: form posts to a token endpoint.
const BODY_LIMIT: usize = 1024 * 1024;

/// Numbers the requests of *all* fake servers of the process, so that a test with two of them can compare the order.
/// The absolute numbers have no meaning.
static ARRIVED: AtomicU64 = AtomicU64::new(0);

/// A received request.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Increases with every request, across all fake servers of the process.
    pub sequence: u64,
    /// The number of its connection at this server, starting at 1.
    pub connection: u64,
    pub method: String,
    /// The path as sent, without the query and without percent-decoding.
    pub path: String,
    pub query: Option<String>,
    /// In their order and case on the wire.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub(super) http_1_0: bool,
}

impl Recorded {
    /// The first header of that name, whatever its case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers_named(name).into_iter().next()
    }

    /// All header lines of that name.
    pub fn headers_named(&self, name: &str) -> Vec<&str> {
        let named = self.headers.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str()).collect()
    }

    /// The first query parameter of that name, decoded.
    pub fn query_value(&self, name: &str) -> Option<String> {
        self.query_values(name).into_iter().next()
    }

    /// All query parameters of that name, decoded.
    pub fn query_values(&self, name: &str) -> Vec<String> {
        pairs(self.query.as_deref().unwrap_or(""))
            .into_iter()
            .filter(|(key, _)| key == name)
            .map(|(_, value)| value)
            .collect()
    }

    /// `None` without a Content-Length that is a number.
    pub(super) fn content_length(&self) -> Option<usize> {
        self.header("content-length").and_then(|text| text.parse().ok())
    }

    /// Path and query as sent.
    pub fn target(&self) -> String {
        match &self.query {
            Some(query) => format!("{}?{query}", self.path),
            None => self.path.clone(),
        }
    }

    pub(super) fn wants_close(&self) -> bool {
        let close = |value: &str| value.to_ascii_lowercase().contains("close");
        self.http_1_0 || self.header("connection").is_some_and(close)
    }
}

/// The pairs of a query or a form, decoded (`+` is a space in both).
pub(super) fn pairs(text: &str) -> Vec<(String, String)> {
    text.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (percent_decode(&key.replace('+', " ")), percent_decode(&value.replace('+', " ")))
        })
        .collect()
}

pub(super) fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let coded = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        match coded.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A socket with two owners: the thread that serves it, and the port that may close it.
pub(super) struct Socket(Arc<TcpStream>);

impl Read for Socket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        (&*self.0).read(into)
    }
}

impl Write for Socket {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        (&*self.0).write(from)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A client connection, with or without TLS.
pub(super) enum Stream {
    Plain(Socket),
    Tls(Box<StreamOwned<ServerConnection, Socket>>),
}

impl Stream {
    /// Wraps a new connection. With `tls`, the handshake takes place at the first read.
    pub fn new(socket: Arc<TcpStream>, tls: Option<&Arc<ServerConfig>>) -> Stream {
        match tls {
            None => Stream::Plain(Socket(socket)),
            Some(config) => {
                let session = ServerConnection::new(Arc::clone(config))
                    .expect("a server session can be made of a valid configuration");
                Stream::Tls(Box::new(StreamOwned::new(session, Socket(socket))))
            }
        }
    }

    /// Closes the connection by FIN, and reads what the client still sends, because closing with unread bytes would be a
    /// reset.
    pub fn finish(mut self) {
        if let Stream::Tls(tls) = &mut self {
            tls.conn.send_close_notify();
            // The client may have disconnected.
            let _ = tls.flush();
        }
        let _ = self.socket().shutdown(Shutdown::Write);
        let mut sink = [0; 4096];
        let mut socket = self.socket();
        while matches!(socket.read(&mut sink), Ok(n) if n > 0) {}
    }

    /// Closes the connection by RST.
    pub fn reset(self) {
        // With a linger time of zero, closing sends a reset instead of a FIN.
        rustix::net::sockopt::set_socket_linger(self.socket(), Some(Duration::ZERO))
            .expect("an open socket takes the linger option");
    }

    fn socket(&self) -> &TcpStream {
        match self {
            Stream::Plain(socket) => &socket.0,
            Stream::Tls(tls) => &tls.sock.0,
        }
    }
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => socket.read(into),
            Stream::Tls(tls) => tls.read(into),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => socket.write(from),
            Stream::Tls(tls) => tls.write(from),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Stream::Plain(socket) => socket.flush(),
            Stream::Tls(tls) => tls.flush(),
        }
    }
}

/// The requests of one connection, including pipelined ones.
pub(super) struct Requests {
    connection: u64,
    /// Received bytes that have not been used yet.
    pending: Vec<u8>,
}

impl Requests {
    pub fn new(connection: u64) -> Requests {
        Requests { connection, pending: Vec::new() }
    }

    /// The next request with its body; `None` if the client closes the connection between requests.
    ///
    /// # Errors
    /// If the socket fails or the bytes are not HTTP/1.
    pub fn next(&mut self, stream: &mut Stream) -> io::Result<Option<Recorded>> {
        let Some(mut request) = self.head(stream)? else { return Ok(None) };
        let length = request.content_length().unwrap_or(0).min(BODY_LIMIT);
        request.body = self.body(stream, length)?;
        Ok(Some(request))
    }

    /// The next request without its body; `None` if the client closes the connection between requests.
    ///
    /// # Errors
    /// As [`Requests::next`].
    pub fn head(&mut self, stream: &mut Stream) -> io::Result<Option<Recorded>> {
        let head_length = loop {
            if let Some(at) = find(&self.pending, b"\r\n\r\n") {
                break at + 4;
            }
            if self.pending.len() > HEAD_LIMIT {
                return Err(io::Error::other("the request's head is too long"));
            }
            if !self.fill(stream)? {
                return match self.pending.is_empty() {
                    true => Ok(None),
                    false => Err(io::ErrorKind::UnexpectedEof.into()),
                };
            }
        };
        let head: Vec<u8> = self.pending.drain(..head_length).collect();
        parse(&head, self.connection).map(Some)
    }

    /// The next `length` bytes of a body.
    ///
    /// # Errors
    /// If the client disconnects before.
    pub fn body(&mut self, stream: &mut Stream, length: usize) -> io::Result<Vec<u8>> {
        while self.pending.len() < length {
            if !self.fill(stream)? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.pending.drain(..length).collect())
    }

    fn fill(&mut self, stream: &mut Stream) -> io::Result<bool> {
        let mut chunk = [0; 16 * 1024];
        let n = stream.read(&mut chunk)?;
        self.pending.extend_from_slice(&chunk[..n]);
        Ok(n > 0)
    }
}

pub(super) fn parse(head: &[u8], connection: u64) -> io::Result<Recorded> {
    let mut lines = [httparse::EMPTY_HEADER; 128];
    let mut request = httparse::Request::new(&mut lines);
    request.parse(head).map_err(io::Error::other)?;
    let target = request.path.unwrap_or("").to_owned();
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path.to_owned(), Some(query.to_owned())),
        None => (target, None),
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Recorded {
        sequence: ARRIVED.fetch_add(1, Ordering::SeqCst),
        connection,
        method: request.method.unwrap_or("").to_owned(),
        path,
        query,
        headers: request.headers.iter().map(|h| (h.name.to_owned(), text(h.value))).collect(),
        body: Vec::new(),
        http_1_0: request.version == Some(0),
    })
}

pub(super) fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
