//! A raw HTTP/1.1 client that observes how responses end: completely or cut off, by FIN or by RST.
//!
//! One-line requests: [`get`], [`head`], [`request`]. Step by step: a [`Connection`] reads the head and parts of the
//! body while the server is still sending.
//!
//! Every read is limited by [`PATIENCE`]. If a server stays silent for longer, the test panics with the bytes received
//! so far instead of hanging.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use rustls::{ClientConnection, StreamOwned};

use super::PATIENCE;
use super::response::{End, Head, Response, parse};
use super::tls::{self, Identity};
use super::wire::find;

/// GET over a new connection.
#[track_caller]
pub fn get(address: SocketAddr, target: &str) -> Response {
    request(address, "GET", target, &[])
}

/// HEAD over a new connection.
#[track_caller]
pub fn head(address: SocketAddr, target: &str) -> Response {
    request(address, "HEAD", target, &[])
}

/// One request over a new connection.
#[track_caller]
pub fn request(
    address: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
) -> Response {
    Connection::open(address).request(method, target, headers)
}

/// A keep-alive connection.
pub struct Connection {
    wire: Wire,
    address: SocketAddr,
    /// Received bytes that have not been returned yet.
    pending: Vec<u8>,
    /// The rest of the body of the last head.
    left: Left,
    /// The method of the last request, which determines whether a body follows.
    method: String,
    end: End,
}

/// The rest of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Bytes(u64),
    /// Chunked, with this number of bytes left in the current chunk.
    Chunks(u64),
    /// Until the connection ends.
    UntilClose,
    Nothing,
}

enum Wire {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// Opening, sending, ending.
impl Connection {
    /// # Panics
    /// If the connection is refused.
    #[track_caller]
    pub fn open(address: SocketAddr) -> Connection {
        match Connection::try_open(address) {
            Ok(connection) => connection,
            Err(error) => panic!("cannot connect to {address}: {error}"),
        }
    }

    /// # Errors
    /// If the connection is refused.
    pub fn try_open(address: SocketAddr) -> io::Result<Connection> {
        Ok(Connection::over(Wire::Plain(connect(address)?), address))
    }

    /// Over TLS, trusting `ca_pem`, with `server_name`, which may be an IP address. The handshake takes place when the first
    /// bytes are sent.
    #[track_caller]
    pub fn open_tls(
        address: SocketAddr,
        server_name: &str,
        ca_pem: &str,
        identity: Option<&Identity>,
    ) -> Connection {
        let name = server_name.to_owned().try_into().expect("a DNS name or an IP address");
        let config = tls::client_config(ca_pem, identity);
        let session = ClientConnection::new(config, name).expect("the configuration is valid");
        let socket = connect(address).expect("an open port");
        Connection::over(Wire::Tls(Box::new(StreamOwned::new(session, socket))), address)
    }

    fn over(wire: Wire, address: SocketAddr) -> Connection {
        let method = String::new();
        let (pending, left, end) = (Vec::new(), Left::Nothing, End::Open);
        Connection { wire, address, pending, left, method, end }
    }

    /// Sends raw bytes.
    #[track_caller]
    pub fn send_raw(&mut self, bytes: &[u8]) {
        if let Err(error) = self.try_send_raw(bytes) {
            panic!("cannot send {} bytes to {}: {error}", bytes.len(), self.address);
        }
    }

    /// Sends raw bytes.
    ///
    /// # Errors
    /// If the server has closed the connection or does not read for [`PATIENCE`].
    pub fn try_send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.wire.write_all(bytes)?;
        self.wire.flush()
    }

    /// Sends a request without a body. Adds `Host` unless the headers include it.
    #[track_caller]
    pub fn send(&mut self, method: &str, target: &str, headers: &[(&str, &str)]) {
        let mut head = format!("{method} {target} HTTP/1.1\r\n");
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            head.push_str(&format!("Host: {}\r\n", self.address));
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        self.method = method.to_owned();
        self.send_raw(format!("{head}\r\n").as_bytes());
    }

    /// Sends a request and reads the complete response.
    #[track_caller]
    pub fn request(&mut self, method: &str, target: &str, headers: &[(&str, &str)]) -> Response {
        self.send(method, target, headers);
        self.read_response()
    }

    #[track_caller]
    pub fn get(&mut self, target: &str) -> Response {
        self.request("GET", target, &[])
    }

    /// Closes the sending side (FIN). Responses can still be read.
    pub fn finish_sending(&mut self) {
        // The server may have closed the connection already.
        let _ = self.wire.socket().shutdown(Shutdown::Write);
    }

    /// Disconnects like a crashed client (RST).
    pub fn reset(self) {
        rustix::net::sockopt::set_socket_linger(self.wire.socket(), Some(Duration::ZERO))
            .expect("an open socket takes the linger option");
    }
}

/// Reading.
impl Connection {
    /// The response to the last request, as far as it arrives.
    #[track_caller]
    pub fn read_response(&mut self) -> Response {
        let head = self.read_head();
        let (body, complete) = self.read_to_end();
        Response { status: head.status, headers: head.headers, body, complete, end: self.end }
    }

    /// The head of the next response.
    ///
    /// # Panics
    /// If the connection ends first.
    #[track_caller]
    pub fn read_head(&mut self) -> Head {
        match self.try_read_head() {
            Some(head) => head,
            None => {
                panic!("{} ended the connection ({:?}) before a response", self.address, self.end)
            }
        }
    }

    /// The head of the next response; `None` if the connection ends instead.
    ///
    /// # Panics
    /// If the connection ends within the head, or if the bytes are not HTTP/1.
    #[track_caller]
    pub fn try_read_head(&mut self) -> Option<Head> {
        let length = loop {
            if let Some(at) = find(&self.pending, b"\r\n\r\n") {
                break at + 4;
            }
            if !self.fill("the head of an answer") {
                let rest = String::from_utf8_lossy(&self.pending);
                assert!(rest.is_empty(), "the connection ended within a head: {rest:?}");
                return None;
            }
        };
        let bytes: Vec<u8> = self.pending.drain(..length).collect();
        let head = parse(&bytes);
        self.left = body_of(&self.method, &head);
        Some(head)
    }

    /// Exactly `n` body bytes, as soon as they have arrived.
    ///
    /// # Panics
    /// If the body or the connection ends first.
    #[track_caller]
    pub fn read_body(&mut self, n: usize) -> Vec<u8> {
        let mut body = Vec::with_capacity(n);
        while body.len() < n {
            let part = self.next_part(n - body.len());
            let (came, end) = (body.len(), self.end);
            assert!(!part.is_empty(), "the body ended ({end:?}) after {came} of {n} bytes");
            body.extend_from_slice(&part);
        }
        body
    }

    /// The rest of the body, and whether it is complete (see [`Response::complete`]).
    #[track_caller]
    pub fn read_to_end(&mut self) -> (Vec<u8>, bool) {
        let mut body = Vec::new();
        loop {
            let part = self.next_part(usize::MAX);
            if part.is_empty() {
                break;
            }
            body.extend_from_slice(&part);
        }
        let complete = match self.left {
            Left::Nothing => true,
            Left::UntilClose => self.end == End::Closed,
            Left::Bytes(_) | Left::Chunks(_) => false,
        };
        (body, complete)
    }

    /// How the connection ends. It must end now, without another byte.
    ///
    /// # Panics
    /// If more bytes arrive, or nothing happens for [`PATIENCE`].
    #[track_caller]
    pub fn eof(&mut self) -> End {
        let more = !self.pending.is_empty() || self.fill("the end of the connection");
        let text = String::from_utf8_lossy(&self.pending);
        assert!(!more, "{} bytes instead of the end: {text:?}", self.pending.len());
        self.end
    }

    /// At most `n` more bytes of the body; empty at the end of the body or of the connection.
    #[track_caller]
    fn next_part(&mut self, n: usize) -> Vec<u8> {
        if let Left::Chunks(0) = self.left {
            self.next_chunk();
        }
        let limit = match self.left {
            Left::Nothing => return Vec::new(),
            Left::Bytes(left) | Left::Chunks(left) => usize::try_from(left).unwrap_or(n).min(n),
            Left::UntilClose => n,
        };
        if limit == 0 || (self.pending.is_empty() && !self.fill("a body")) {
            return Vec::new();
        }
        let part: Vec<u8> = self.pending.drain(..limit.min(self.pending.len())).collect();
        let taken = part.len() as u64;
        match &mut self.left {
            Left::Bytes(left) if *left == taken => self.left = Left::Nothing,
            Left::Bytes(left) => *left -= taken,
            Left::Chunks(left) if *left == taken => {
                *left = 0;
                self.line();
            }
            Left::Chunks(left) => *left -= taken,
            Left::UntilClose | Left::Nothing => {}
        }
        part
    }

    /// Reads the size line of a chunk. A size of zero is the end of the body.
    #[track_caller]
    fn next_chunk(&mut self) {
        let Some(line) = self.line() else { return };
        let digits = line.split(';').next().unwrap_or("").trim();
        let length = u64::from_str_radix(digits, 16);
        let length = length.unwrap_or_else(|_| panic!("not the size of a chunk: {line:?}"));
        if length > 0 {
            self.left = Left::Chunks(length);
        } else if self.line().is_some() {
            self.left = Left::Nothing;
        }
    }

    /// The next line without its line break; `None` if the connection ends first.
    #[track_caller]
    fn line(&mut self) -> Option<String> {
        let length = loop {
            if let Some(at) = find(&self.pending, b"\r\n") {
                break at;
            }
            if !self.fill("a chunk") {
                return None;
            }
        };
        let line: Vec<u8> = self.pending.drain(..length + 2).take(length).collect();
        Some(String::from_utf8_lossy(&line).into_owned())
    }

    /// Reads once. Returns false at the end of the connection.
    #[track_caller]
    fn fill(&mut self, awaited: &str) -> bool {
        let mut chunk = [0; 16 * 1024];
        let result = loop {
            match self.wire.read(&mut chunk) {
                // The machine was suspended meanwhile.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        match result {
            Ok(0) => self.end = End::Closed,
            Ok(n) => {
                self.pending.extend_from_slice(&chunk[..n]);
                return true;
            }
            Err(error) => match error.kind() {
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => self.end = End::Reset,
                // rustls reports a FIN without close_notify like this.
                io::ErrorKind::UnexpectedEof => self.end = End::Closed,
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => self.lose_patience(awaited),
                _ => panic!("reading {awaited} from {}: {error}", self.address),
            },
        }
        false
    }

    #[track_caller]
    fn lose_patience(&self, awaited: &str) -> ! {
        let text = String::from_utf8_lossy(&self.pending);
        panic!(
            "{} sent nothing for {PATIENCE:?} while {awaited} was awaited (left of the body: {:?}; \
             read and unused: {text:?})",
            self.address, self.left
        );
    }
}

impl Wire {
    fn socket(&self) -> &TcpStream {
        match self {
            Wire::Plain(socket) => socket,
            Wire::Tls(tls) => &tls.sock,
        }
    }
}

impl Read for Wire {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Wire::Plain(socket) => socket.read(into),
            Wire::Tls(tls) => tls.read(into),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        match self {
            Wire::Plain(socket) => socket.write(from),
            Wire::Tls(tls) => tls.write(from),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Wire::Plain(socket) => socket.flush(),
            Wire::Tls(tls) => tls.flush(),
        }
    }
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpStream::connect_timeout(&address, PATIENCE)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.set_nodelay(true)?;
    Ok(socket)
}

/// RFC 9112, section 6.3.
fn body_of(method: &str, head: &Head) -> Left {
    let chunked = |text: &str| text.to_ascii_lowercase().contains("chunked");
    if method == "HEAD" || matches!(head.status, 100..=199 | 204 | 304) {
        return Left::Nothing;
    }
    if head.header("transfer-encoding").is_some_and(chunked) {
        return Left::Chunks(0);
    }
    match head.content_length() {
        Some(0) => Left::Nothing,
        Some(length) => Left::Bytes(length),
        None => Left::UntilClose,
    }
}
