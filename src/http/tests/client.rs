//! A raw HTTP client: it sends exactly the given bytes, and reads exactly what the server sends.

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

/// How long a test waits before it fails.
pub(super) const TIMEOUT: Duration = Duration::from_secs(20);

pub(super) struct Client {
    stream: Stream,
    unread: Vec<u8>,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Stream {
    fn tcp(&self) -> &TcpStream {
        match self {
            Stream::Plain(tcp) => tcp,
            Stream::Tls(tls) => &tls.sock,
        }
    }

    fn either(&mut self) -> &mut dyn ReadWrite {
        match self {
            Stream::Plain(tcp) => tcp,
            Stream::Tls(tls) => &mut **tls,
        }
    }
}

trait ReadWrite: Read + Write {}

impl<T: Read + Write> ReadWrite for T {}

#[derive(Debug)]
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) head: String,
    pub(super) body: Vec<u8>,
}

impl Response {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    pub(super) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

impl Client {
    pub(super) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(TIMEOUT)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream: Stream::Plain(stream), unread: Vec::new() }
    }

    /// A client over a connected socket.
    pub(super) fn over(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(TIMEOUT)).unwrap();
        Self { stream: Stream::Plain(stream), unread: Vec::new() }
    }

    /// Sends to a server that may have closed the connection already.
    pub(super) fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.either().write_all(bytes.as_ref())
    }

    /// Asserts that the server has closed or reset the connection, without sending more.
    pub(super) fn assert_lost(&mut self) {
        let read = self.stream.either().read(&mut [0; 1]);
        let is_lost = match &read {
            Ok(count) => *count == 0,
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        };
        assert!(is_lost, "{read:?}");
    }

    /// Switches to TLS. The first read or write does the handshake.
    pub(super) fn secure(self, config: Arc<ClientConfig>) -> Self {
        let Stream::Plain(tcp) = self.stream else { panic!("this client uses TLS already") };
        let name = ServerName::try_from("localhost").unwrap();
        let tls = StreamOwned::new(ClientConnection::new(config, name).unwrap(), tcp);
        Self { stream: Stream::Tls(Box::new(tls)), unread: Vec::new() }
    }

    /// The TLS session.
    pub(super) fn session(&self) -> &ClientConnection {
        match &self.stream {
            Stream::Plain(_) => panic!("this client does not use TLS"),
            Stream::Tls(tls) => &tls.conn,
        }
    }

    /// Sends a request and reads an answer, both of which may fail.
    pub(super) fn try_get(&mut self) -> io::Result<usize> {
        let stream = self.stream.either();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")?;
        stream.read(&mut [0; 1024])
    }

    pub(super) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.either().write_all(bytes.as_ref()).unwrap();
    }

    /// Sends a GET that keeps the connection open.
    pub(super) fn get(&mut self, target: &str) {
        self.send(format!("GET {target} HTTP/1.1\r\nHost: test\r\n\r\n"));
    }

    pub(super) fn head(&mut self) -> Response {
        let end = loop {
            if let Some(at) = self.unread.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            assert!(self.receive() > 0, "no head, only {:?}", self.unread);
        };
        let head: Vec<u8> = self.unread.drain(..end).collect();
        let head = String::from_utf8(head).unwrap();
        let status = head["HTTP/1.1 ".len()..][..3].parse().unwrap();
        Response { status, head, body: Vec::new() }
    }

    /// Reads a response, except to HEAD. Its body is delimited by Content-Length.
    pub(super) fn response(&mut self) -> Response {
        let mut response = self.head();
        assert_eq!(response.header("transfer-encoding"), None);
        let length = response.header("content-length").map_or(0, |text| text.parse().unwrap());
        response.body = self.bytes(length);
        response
    }

    pub(super) fn bytes(&mut self, count: usize) -> Vec<u8> {
        while self.unread.len() < count {
            assert!(self.receive() > 0, "only {} of {count} bytes", self.unread.len());
        }
        self.unread.drain(..count).collect()
    }

    /// Reads all bytes up to the server's FIN. A reset is a failure.
    pub(super) fn rest(&mut self) -> Vec<u8> {
        while self.receive() > 0 {}
        std::mem::take(&mut self.unread)
    }

    /// Asserts that the server has closed the connection normally, without sending more.
    pub(super) fn assert_closed(&mut self) {
        assert_eq!(String::from_utf8_lossy(&self.rest()), "");
    }

    /// Reads until the server has closed or reset the connection.
    pub(super) fn assert_gone(&mut self) {
        let mut buffer = vec![0; 1 << 20];
        loop {
            match self.stream.either().read(&mut buffer) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Whether bytes can be read without blocking.
    pub(super) fn has_bytes(&self) -> bool {
        let tcp = self.stream.tcp();
        tcp.set_nonblocking(true).unwrap();
        let peeked = tcp.peek(&mut [0]);
        tcp.set_nonblocking(false).unwrap();
        peeked.is_ok()
    }

    /// Shuts down the sending side.
    pub(super) fn finish(&self) {
        self.stream.tcp().shutdown(Shutdown::Write).unwrap();
    }

    /// Closes the connection with a RST.
    pub(super) fn reset(self) {
        rustix::net::sockopt::set_socket_linger(self.stream.tcp(), Some(Duration::ZERO)).unwrap();
    }

    fn receive(&mut self) -> usize {
        let mut buffer = [0; 64 * 1024];
        let count = self.stream.either().read(&mut buffer).unwrap();
        self.unread.extend_from_slice(&buffer[..count]);
        count
    }
}
