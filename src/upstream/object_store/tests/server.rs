//! A server on loopback that gives scripted responses in their order, and records the requests.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// What the server does with a request.
pub(super) enum Reply {
    /// Status, header lines, body.
    Http(u16, String, Vec<u8>),
    /// Closes the connection.
    Close,
    /// Responds to the head of a request, and closes the connection without reading its body.
    Early(Box<Reply>),
}

pub(super) fn ok(body: &str) -> Reply {
    with(200, "", body)
}

pub(super) fn early(reply: Reply) -> Reply {
    Reply::Early(Box::new(reply))
}

pub(super) fn with(status: u16, headers: &str, body: &str) -> Reply {
    let headers = if headers.is_empty() { String::new() } else { format!("{headers}\r\n") };
    Reply::Http(status, headers, body.as_bytes().to_vec())
}

/// An error of a store.
pub(super) fn error(status: u16, code: &str) -> Reply {
    let body = format!("<Error><Code>{code}</Code><Message>the message</Message></Error>");
    with(status, "", &body)
}

/// A request that arrived.
#[derive(Debug, Clone)]
pub(super) struct Got {
    pub(super) method: String,
    /// Path and query.
    pub(super) target: String,
    headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Got {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let header = self.headers.iter().find(|header| header.0 == name);
        header.map(|header| &*header.1)
    }

    /// `METHOD /path?query`.
    pub(super) fn line(&self) -> String {
        format!("{} {}", self.method, self.target)
    }
}

pub(super) struct Server {
    pub(super) url: String,
    got: Arc<Mutex<Vec<Got>>>,
    script: Arc<Mutex<VecDeque<Reply>>>,
}

impl Server {
    pub(super) fn start(script: impl IntoIterator<Item = Reply>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let got = Arc::<Mutex<Vec<Got>>>::default();
        let script = Arc::new(Mutex::new(script.into_iter().collect::<VecDeque<_>>()));
        let (all, replies) = (Arc::clone(&got), Arc::clone(&script));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (all, replies) = (Arc::clone(&all), Arc::clone(&replies));
                thread::spawn(move || serve(stream.unwrap(), &all, &replies));
            }
        });
        Server { url, got, script }
    }

    /// The requests so far. All scripted responses must have been sent.
    #[track_caller]
    pub(super) fn got(&self) -> Vec<Got> {
        assert_eq!(self.script.lock().unwrap().len(), 0, "responses that nobody requested");
        self.got.lock().unwrap().clone()
    }

    /// The requests so far as `METHOD /path?query`.
    #[track_caller]
    pub(super) fn lines(&self) -> Vec<String> {
        self.got().iter().map(Got::line).collect()
    }
}

fn serve(stream: TcpStream, all: &Mutex<Vec<Got>>, replies: &Mutex<VecDeque<Reply>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    while let Some(mut got) = head(&mut reader) {
        let is_head = got.method == "HEAD";
        let reply = replies.lock().unwrap().pop_front();
        let mut reply = reply.unwrap_or_else(|| error(400, "NotScripted"));
        let is_early = matches!(reply, Reply::Early(_));
        if let Reply::Early(inner) = reply {
            reply = *inner;
        } else {
            if got.header("expect").is_some() {
                // In pieces, and with a header that a proxy might add.
                stream.write_all(b"HTTP/1.1 100 Cont").unwrap();
                thread::yield_now();
                stream.write_all(b"inue\r\nx-proxy: 1\r\n\r\n").unwrap();
            }
            if reader.read_exact(&mut got.body).is_err() {
                return;
            }
        }
        all.lock().unwrap().push(got);
        match reply {
            Reply::Close | Reply::Early(_) => return,
            Reply::Http(status, headers, body) => {
                let length = match headers.to_ascii_lowercase().contains("content-length:") {
                    true => String::new(),
                    false => format!("content-length: {}\r\n", body.len()),
                };
                write!(stream, "HTTP/1.1 {status} x\r\n{headers}{length}\r\n").unwrap();
                if !is_head {
                    stream.write_all(&body).unwrap();
                }
                if is_early {
                    return;
                }
            }
        }
    }
}

/// The head of a request, and an empty body of the right length.
fn head(reader: &mut impl BufRead) -> Option<Got> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|count| *count > 0)?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, target) = (words.next()?, words.next()?);
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut got = Got { method, target, headers, body: Vec::new() };
    let length = got.header("content-length").map_or(0, |length| length.parse().unwrap());
    got.body.resize(length, 0);
    Some(got)
}
