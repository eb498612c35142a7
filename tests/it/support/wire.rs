//! The fake registry's side of a socket: reading requests, and the ways to end a connection.
//!
//! Must not know what a registry is.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// The largest request head read; a client under test never gets near it.
const HEAD_LIMIT: usize = 64 * 1024;

/// The largest request body read: form posts to a token endpoint.
const BODY_LIMIT: usize = 1024 * 1024;

/// Counts the requests of *all* fake registries of the process, so that a test with two of them can
/// say which was asked first. Only ever compared, never expected to be a certain number.
static ARRIVED: AtomicU64 = AtomicU64::new(0);

/// One request as it arrived.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Grows with every request, across all fake registries of the process.
    pub sequence: u64,
    /// Which connection of its registry it came on, from 1.
    pub connection: u64,
    pub method: String,
    /// The path as sent, without the query, percent-encoding left alone.
    pub path: String,
    pub query: Option<String>,
    /// In the order and the case they were sent.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub(super) http_1_0: bool,
}

impl Recorded {
    /// The first header of that name, whatever its case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers_named(name).into_iter().next()
    }

    /// Every header line of that name.
    pub fn headers_named(&self, name: &str) -> Vec<&str> {
        let named = self.headers.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str()).collect()
    }

    /// The first query parameter of that name, decoded.
    pub fn query_value(&self, name: &str) -> Option<String> {
        self.query_values(name).into_iter().next()
    }

    /// Every query parameter of that name, decoded.
    pub fn query_values(&self, name: &str) -> Vec<String> {
        pairs(self.query.as_deref().unwrap_or(""))
            .into_iter()
            .filter(|(key, _)| key == name)
            .map(|(_, value)| value)
            .collect()
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

/// The pairs of a query or of a form, decoded (`+` is a space, as in both).
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

/// A socket that two owners may use: the thread that serves it, and the registry that cuts it.
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

/// A client's connection, in the clear or over TLS.
pub(super) enum Stream {
    Plain(Socket),
    Tls(Box<StreamOwned<ServerConnection, Socket>>),
}

impl Stream {
    /// Takes a fresh connection; with `tls` the handshake happens at the first read.
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

    /// Ends the connection in an orderly way (FIN), and reads what the client still sends, because
    /// closing over unread bytes would be a reset.
    pub fn finish(mut self) {
        if let Stream::Tls(tls) = &mut self {
            tls.conn.send_close_notify();
            // The client may be gone already; there is nobody to tell.
            let _ = tls.flush();
        }
        let _ = self.socket().shutdown(Shutdown::Write);
        let mut sink = [0; 4096];
        let mut socket = self.socket();
        while matches!(socket.read(&mut sink), Ok(n) if n > 0) {}
    }

    /// Ends the connection with a reset (RST).
    pub fn reset(self) {
        // With no time to linger, closing sends a reset instead of a FIN.
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

/// Requests from one connection, pipelined ones included.
pub(super) struct Requests {
    connection: u64,
    /// Bytes read and not yet used.
    pending: Vec<u8>,
}

impl Requests {
    pub fn new(connection: u64) -> Requests {
        Requests { connection, pending: Vec::new() }
    }

    /// The next request with its body; `None` when the client has ended the connection between two.
    ///
    /// # Errors
    /// When the socket breaks or what comes is not HTTP/1.
    pub fn next(&mut self, stream: &mut Stream) -> io::Result<Option<Recorded>> {
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
        let mut request = parse(&head, self.connection)?;
        let length = request.header("content-length").and_then(|text| text.parse().ok());
        let length = length.unwrap_or(0usize).min(BODY_LIMIT);
        while self.pending.len() < length {
            if !self.fill(stream)? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        request.body = self.pending.drain(..length).collect();
        Ok(Some(request))
    }

    fn fill(&mut self, stream: &mut Stream) -> io::Result<bool> {
        let mut chunk = [0; 4096];
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
