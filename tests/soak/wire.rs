//! A raw HTTP/1.1 client: it reports what arrived and how the response ended, and judges nothing.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread;
use std::time::Duration;

/// Longer than the longest wait of Larder (25 s for a registry).
const TIMEOUT: Duration = Duration::from_secs(40);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const READ_BYTES: usize = 64 * 1024;

/// How a client reads a body.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// Completely.
    Complete,
    /// This many bytes; then it closes the connection.
    Part(usize),
    /// In pieces of this many bytes, with a pause after each.
    Slowly(usize, Duration),
}

/// A response, as far as it arrived.
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// `Content-Length`.
    pub length: Option<usize>,
    /// Whether a client considers it complete.
    pub is_complete: bool,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        found.next().map(|(_, value)| value.as_str())
    }
}

/// Changes responses between the server and the checks, to prove that the checks notice: a proxy could do the same.
#[derive(Default)]
pub struct Tampering {
    /// After this many more bodies, one byte of a body is changed. Negative: never.
    pub flip_after: AtomicI64,
    /// After this many more bodies, one is cut and its `Content-Length` adapted.
    pub truncate_after: AtomicI64,
}

impl Tampering {
    pub fn none() -> Tampering {
        Tampering { flip_after: AtomicI64::new(-1), truncate_after: AtomicI64::new(-1) }
    }

    fn is_due(counter: &AtomicI64) -> bool {
        counter.load(Ordering::Relaxed) >= 0 && counter.fetch_sub(1, Ordering::Relaxed) == 0
    }

    fn apply(&self, reply: &mut Reply) {
        if reply.body.is_empty() || reply.status >= 300 || !reply.is_complete {
            return;
        }
        if Tampering::is_due(&self.flip_after) {
            let middle = reply.body.len() / 2;
            reply.body[middle] ^= 1;
        }
        if Tampering::is_due(&self.truncate_after) {
            reply.body.pop();
            reply.length = Some(reply.body.len());
        }
    }
}

/// A connection to a server.
pub struct Connection {
    stream: TcpStream,
    host: String,
}

impl Connection {
    pub fn open(address: SocketAddr) -> io::Result<Connection> {
        let stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        Ok(Connection { stream, host: address.to_string() })
    }

    /// Sends a request and reads the response.
    ///
    /// # Errors
    /// If the connection ends before a response head.
    pub fn ask(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, String)],
        reading: Reading,
        tampering: &Tampering,
    ) -> io::Result<Reply> {
        let mut request = format!("{method} {target} HTTP/1.1\r\nHost: {}\r\n", self.host);
        for (name, value) in headers {
            request += &format!("{name}: {value}\r\n");
        }
        self.stream.write_all(format!("{request}\r\n").as_bytes())?;
        let (mut reply, rest) = self.head()?;
        let has_body = method != "HEAD" && reply.status != 304 && reply.status != 204;
        let expected = match has_body {
            true => reply.length,
            false => Some(0),
        };
        reply.body = rest;
        reply.is_complete = self.body(&mut reply.body, expected, reading);
        tampering.apply(&mut reply);
        Ok(reply)
    }

    fn head(&mut self) -> io::Result<(Reply, Vec<u8>)> {
        let (mut received, mut chunk) = (Vec::new(), [0; 16 * 1024]);
        let end = loop {
            let read = self.stream.read(&mut chunk)?;
            if read == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            received.extend_from_slice(&chunk[..read]);
            if let Some(at) = received.windows(4).position(|four| four == b"\r\n\r\n") {
                break at;
            }
        };
        let head = String::from_utf8_lossy(&received[..end]).into_owned();
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect();
        let mut reply = Reply {
            status: status.ok_or(ErrorKind::InvalidData)?,
            headers,
            body: Vec::new(),
            length: None,
            is_complete: false,
        };
        reply.length = reply.header("content-length").and_then(|text| text.parse().ok());
        Ok((reply, received.split_off(end + 4)))
    }

    /// Reads a body. Returns whether it is complete.
    fn body(&mut self, body: &mut Vec<u8>, expected: Option<usize>, reading: Reading) -> bool {
        let piece = match reading {
            Reading::Slowly(piece, _) => piece,
            Reading::Complete | Reading::Part(_) => READ_BYTES,
        };
        let mut chunk = vec![0; piece];
        while expected.is_none_or(|expected| body.len() < expected) {
            if matches!(reading, Reading::Part(part) if body.len() >= part) {
                return false;
            }
            // Not more than the body: what follows would belong to no response.
            let left = expected.map_or(piece, |expected| (expected - body.len()).min(piece));
            match self.stream.read(&mut chunk[..left]) {
                Ok(0) => return expected.is_none(),
                Ok(read) => body.extend_from_slice(&chunk[..read]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
            if let Reading::Slowly(_, pause) = reading {
                thread::sleep(pause);
            }
        }
        true
    }
}
