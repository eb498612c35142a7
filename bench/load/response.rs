//! A response that is being received, and what it must contain.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use sha2::{Digest, Sha256};

use crate::{MANIFEST_TYPE, Outcome, hex};

/// Bytes per read from a client's socket: large enough that system calls cost little compared to the
/// copy, small enough that a thousand clients all get a turn within a few hundred megabytes.
pub(crate) const READ_BYTES: usize = 256 * 1024;
/// The unit that a client compares or discards, see `--compare-every` of `fetch`.
pub(crate) const BLOCK_BYTES: usize = 1024 * 1024;
/// Longer than the response head of any server here.
const HEAD_BYTES_MAX: usize = 64 * 1024;

pub(crate) fn get(path: &str) -> Vec<u8> {
    request("GET", path)
}

pub(crate) fn request(method: &str, path: &str) -> Vec<u8> {
    format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {MANIFEST_TYPE}, */*\r\n\r\n")
        .into()
}

/// The body that a response must have, and how a client checks it.
#[derive(Clone, Copy)]
pub(crate) enum Expected<'a> {
    /// Compares.
    Bytes(&'a [u8]),
    /// Hashes, as a container client does.
    Digest { length: usize, hex: &'a str },
    /// The body that a GET would have, whose length a response to HEAD states.
    NoBody { length: usize },
}

impl Expected<'_> {
    pub(crate) fn length(self) -> usize {
        match self {
            Expected::Bytes(bytes) => bytes.len(),
            Expected::Digest { length, .. } | Expected::NoBody { length } => length,
        }
    }
}

/// A response that is being received. It must be a 200 with exactly the expected body.
#[derive(Default)]
pub(crate) struct Response {
    head: Vec<u8>,
    pub(crate) head_received: Option<Instant>,
    pub(crate) first_byte: Option<Instant>,
    pub(crate) position: usize,
    hasher: Sha256,
}

impl Response {
    /// Adds received bytes. Returns true once the response is complete.
    pub(crate) fn take(&mut self, mut bytes: &[u8], expected: Expected) -> Outcome<bool> {
        if self.head_received.is_none() {
            let before = self.head.len();
            self.head.extend_from_slice(bytes);
            let Some(end) = self.head.windows(4).position(|four| four == b"\r\n\r\n") else {
                let fits = self.head.len() < HEAD_BYTES_MAX;
                return if fits { Ok(false) } else { Err("the response head is too long".into()) };
            };
            bytes = &bytes[end + 4 - before..];
            self.head.truncate(end);
            self.check_head(expected.length())?;
            self.head_received = Some(Instant::now());
        }
        if !bytes.is_empty() {
            self.first_byte.get_or_insert_with(Instant::now);
        }
        let (start, end) = (self.position, self.position + bytes.len());
        self.position = end;
        let is_right = match expected {
            Expected::Bytes(body) => body.get(start..end) == Some(bytes),
            Expected::Digest { length, hex: digest } => {
                self.hasher.update(bytes);
                end < length || hex(&self.hasher.finalize_reset()) == digest
            }
            Expected::NoBody { .. } if bytes.is_empty() => return Ok(true),
            Expected::NoBody { .. } => return Err("a response to HEAD has a body".into()),
        };
        match is_right {
            true => Ok(end == expected.length()),
            false => Err(format!("wrong bytes between {start} and {end}").into()),
        }
    }

    /// Returns whether the client with this number compares the next bytes or lets the kernel discard
    /// them, and how many at most.
    pub(crate) fn plan(&self, client: usize, compare_every: usize, body_bytes: usize) -> Plan {
        let (block, within) = (self.position / BLOCK_BYTES, self.position % BLOCK_BYTES);
        let left = (BLOCK_BYTES - within).min(body_bytes - self.position);
        if self.head_received.is_none() || block % compare_every == client % compare_every {
            Plan::Compare(left.min(READ_BYTES))
        } else {
            Plan::Discard(left)
        }
    }

    /// Counts discarded bytes. Returns true once the body is complete.
    pub(crate) fn skip(&mut self, bytes: usize, body_bytes: usize) -> bool {
        self.first_byte.get_or_insert_with(Instant::now);
        self.position += bytes;
        self.position == body_bytes
    }

    /// Returns the value of a header field.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let head = std::str::from_utf8(&self.head).unwrap_or_default();
        head.lines().skip(1).find_map(|line| {
            let (field, value) = line.split_once(':')?;
            field.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    fn check_head(&self, expected: usize) -> Outcome {
        let head = String::from_utf8_lossy(&self.head);
        let status = head.lines().next().unwrap_or_default();
        if status.split(' ').nth(1) != Some("200") {
            return Err(format!("the response is {status}").into());
        }
        let length = self.header("content-length").and_then(|length| length.parse().ok());
        if length == Some(expected) {
            return Ok(());
        }
        Err(format!("Content-Length is {length:?}, expected {expected}").into())
    }
}

pub(crate) enum Plan {
    Compare(usize),
    Discard(usize),
}

/// Sends a GET on an open, blocking connection, and checks the response, which it returns.
pub(crate) fn exchange(
    stream: &mut TcpStream,
    path: &str,
    expected: Expected,
) -> Outcome<Response> {
    stream.write_all(&get(path))?;
    let mut response = Response::default();
    let mut buffer = vec![0; READ_BYTES.min(expected.length() + HEAD_BYTES_MAX)];
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Err("the connection was closed during a response".into());
        }
        if response.take(&buffer[..read], expected)? {
            return Ok(response);
        }
    }
}
