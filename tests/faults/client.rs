//! A client that survives whatever the server does, and reports it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// What a client receives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// A response that a client takes for complete.
    Complete { status: u16, body: Vec<u8> },
    /// No response, or one that ended before its end.
    Nothing,
    /// The server stopped sending.
    Hangs,
}

/// GET over a new connection. `patience` is how long the server may send nothing.
pub fn get(address: SocketAddr, target: &str, patience: Duration) -> Received {
    match exchange(address, target, patience) {
        Ok(bytes) => parse(&bytes).unwrap_or(Received::Nothing),
        Err(error)
            if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) =>
        {
            Received::Hangs
        }
        Err(_) => Received::Nothing,
    }
}

/// Everything until the end of the connection.
fn exchange(address: SocketAddr, target: &str, patience: Duration) -> io::Result<Vec<u8>> {
    let mut socket = TcpStream::connect_timeout(&address, patience)?;
    socket.set_read_timeout(Some(patience))?;
    socket.set_write_timeout(Some(patience))?;
    let head = format!("GET {target} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    socket.write_all(head.as_bytes())?;
    let mut bytes = Vec::new();
    match socket.read_to_end(&mut bytes) {
        // What arrived before a reset counts.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(bytes),
        other => other.map(|_| bytes),
    }
}

/// The response, if it is complete.
fn parse(bytes: &[u8]) -> Option<Received> {
    let mut lines = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Response::new(&mut lines);
    let httparse::Status::Complete(length) = head.parse(bytes).ok()? else { return None };
    let header = |name: &str| {
        let found = head.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(found.value).ok()
    };
    let (status, body) = (head.code?, &bytes[length..]);
    let body = match header("content-length") {
        Some(length) if length.parse() == Ok(body.len()) => body.to_vec(),
        Some(_) => return None,
        None => unchunked(body)?,
    };
    Some(Received::Complete { status, body })
}

/// The content of a chunked body, if it is complete.
fn unchunked(mut body: &[u8]) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    loop {
        let httparse::Status::Complete((start, length)) = httparse::parse_chunk_size(body).ok()?
        else {
            return None;
        };
        let end = start + usize::try_from(length).ok()?;
        content.extend_from_slice(body.get(start..end)?);
        body = body.get(end..)?.strip_prefix(b"\r\n")?;
        if length == 0 {
            return body.is_empty().then_some(content);
        }
    }
}
