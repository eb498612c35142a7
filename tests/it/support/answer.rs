//! One response of a fake server: its content, its framing, and how its delivery fails.
//!
//! Must not know content, requests or scripts: a fault edits an [`Answer`], this file only sends it.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::json;

use super::Gate;
use super::wire::Stream;

/// Bodies are written in pieces of this size, which is also the size of chunks.
const PIECE: usize = 16 * 1024;

/// How the end of the body is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Length,
    Chunked,
    CloseDelimited,
}

/// Where the delivery breaks off, in body bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    BeforeHead(Close),
    After(usize, Close),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Close {
    Fin,
    Reset,
}

/// What happens to the connection after a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    KeepAlive,
    Close(Close),
}

pub(super) struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub framing: Framing,
    /// A Content-Length that differs from the length of the body.
    pub announced_length: Option<u64>,
    /// Waits here before the first byte.
    pub before_head: Vec<Gate>,
    /// Waits here after this number of body bytes.
    pub pauses: Vec<(usize, Gate)>,
    pub cut: Option<Cut>,
    /// Raw bytes to send instead of everything above, before the connection ends.
    pub raw: Option<Vec<u8>>,
}

impl Answer {
    pub fn new(status: u16, content_type: &str, body: Vec<u8>) -> Answer {
        let mut answer = Answer {
            status,
            headers: Vec::new(),
            body,
            framing: Framing::Length,
            announced_length: None,
            before_head: Vec::new(),
            pauses: Vec::new(),
            cut: None,
            raw: None,
        };
        answer.set("Docker-Distribution-API-Version", "registry/2.0");
        if !content_type.is_empty() {
            answer.set("Content-Type", content_type);
        }
        answer
    }

    /// An error in the JSON form of the specification.
    pub fn error(status: u16, code: &str, message: &str) -> Answer {
        let body = json!({"errors": [{"code": code, "message": message, "detail": null}]});
        Answer::new(status, "application/json", body.to_string().into_bytes())
    }

    /// Adds a header, or replaces the header of that name.
    pub fn with(mut self, name: &str, value: &str) -> Answer {
        self.set(name, value);
        self
    }

    pub fn set(&mut self, name: &str, value: &str) {
        self.remove(name);
        self.headers.push((name.to_owned(), value.to_owned()));
    }

    pub fn remove(&mut self, name: &str) {
        self.headers.retain(|(key, _)| !key.eq_ignore_ascii_case(name));
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// Sends the response; `to_head` omits the body. Adds the body bytes to `sent`.
    ///
    /// # Errors
    /// If the client has disconnected, which only ends this connection.
    pub fn deliver(
        &self,
        stream: &mut Stream,
        to_head: bool,
        sent: &AtomicU64,
    ) -> io::Result<Next> {
        for gate in &self.before_head {
            gate.pass();
        }
        if let Some(Cut::BeforeHead(close)) = self.cut {
            return Ok(Next::Close(close));
        }
        if let Some(raw) = &self.raw {
            stream.write_all(raw)?;
            stream.flush()?;
            return Ok(Next::Close(Close::Fin));
        }
        stream.write_all(self.head().as_bytes())?;
        stream.flush()?;
        if !to_head
            && !matches!(self.status, 204 | 304)
            && let Some(close) = self.deliver_body(stream, sent)?
        {
            return Ok(Next::Close(close));
        }
        Ok(match self.framing {
            Framing::CloseDelimited => Next::Close(Close::Fin),
            Framing::Length | Framing::Chunked => Next::KeepAlive,
        })
    }

    fn head(&self) -> String {
        let version = if self.framing == Framing::CloseDelimited { "1.0" } else { "1.1" };
        let mut head = format!("HTTP/{version} {} {}\r\n", self.status, reason(self.status));
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        match self.framing {
            Framing::Length if matches!(self.status, 204 | 304) => {}
            Framing::Length => {
                let length = self.announced_length.unwrap_or(self.body.len() as u64);
                head.push_str(&format!("Content-Length: {length}\r\n"));
            }
            Framing::Chunked => head.push_str("Transfer-Encoding: chunked\r\n"),
            Framing::CloseDelimited => head.push_str("Connection: close\r\n"),
        }
        head + "\r\n"
    }

    /// Sends the body up to the cut, if any, and returns how to close the connection.
    fn deliver_body(&self, stream: &mut Stream, sent: &AtomicU64) -> io::Result<Option<Close>> {
        let (end, close) = match self.cut {
            Some(Cut::After(n, close)) => (n.min(self.body.len()), Some(close)),
            _ => (self.body.len(), None),
        };
        let mut pauses: Vec<&(usize, Gate)> = self.pauses.iter().collect();
        pauses.sort_by_key(|(at, _)| *at);
        let mut position = 0;
        for (at, gate) in pauses {
            let stop = (*at).min(end);
            self.deliver_part(stream, &self.body[position..stop], sent)?;
            position = stop;
            gate.pass();
        }
        self.deliver_part(stream, &self.body[position..end], sent)?;
        if self.framing == Framing::Chunked && close.is_none() {
            stream.write_all(b"0\r\n\r\n")?;
            stream.flush()?;
        }
        Ok(close)
    }

    fn deliver_part(&self, stream: &mut Stream, part: &[u8], sent: &AtomicU64) -> io::Result<()> {
        for piece in part.chunks(PIECE) {
            if self.framing == Framing::Chunked {
                stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes())?;
            }
            stream.write_all(piece)?;
            if self.framing == Framing::Chunked {
                stream.write_all(b"\r\n")?;
            }
            sent.fetch_add(piece.len() as u64, Ordering::SeqCst);
        }
        stream.flush()
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        206 => "Partial Content",
        300..=399 => "Elsewhere",
        401 => "Unauthorized",
        404 => "Not Found",
        405 => "Method Not Allowed",
        416 => "Range Not Satisfiable",
        429 => "Too Many Requests",
        500..=599 => "Trouble",
        _ => "Scripted",
    }
}
