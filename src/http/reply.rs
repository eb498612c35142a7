//! An answer as a value: status, headers, body, and how it ended.
//!
//! This module must not know how a reply is sent (`render`, `connection`).

use super::tail::Tail;
use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// The status that [`Ending`] reports if the client left before its answer was ready. It is never sent. nginx uses the
/// same number.
pub const CLIENT_CLOSED_REQUEST: u16 = 499;

/// An answer to one request.
#[derive(Debug)]
pub struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, Cow<'static, str>)>,
    pub(super) body: Body,
    pub(super) notes: Vec<Note>,
    pub(super) close: bool,
}

/// A key and a value for the access log.
pub type Note = (&'static str, Cow<'static, str>);

/// How many headers and notes a reply has usually: allocated at once.
const HEADERS_USUAL: usize = 10;
const NOTES_USUAL: usize = 4;

/// The longest plain-text answer: it may quote the error of a body's source.
const PLAIN_CHARS_MAX: usize = 1024;

impl Reply {
    /// A reply without headers.
    ///
    /// The server adds `Content-Length`, `Date`, `Server` and, where needed, `Connection`. If the handler sets one of
    /// these headers or `Transfer-Encoding`, it is dropped.
    pub fn new(status: u16, body: Body) -> Self {
        Self { status, headers: Vec::new(), body, notes: Vec::new(), close: false }
    }

    /// A short plain-text answer for people. Control characters become `?`.
    pub(super) fn plain(status: u16, text: &str) -> Self {
        let text: String = text
            .chars()
            .take(PLAIN_CHARS_MAX)
            .map(|char| if char.is_control() { '?' } else { char })
            .collect();
        let body = Body::Bytes(Arc::from(format!("{text}\n").into_bytes()));
        Self::new(status, body).header("Content-Type", "text/plain; charset=utf-8")
    }

    /// Adds a header line. Control bytes in `value` are sent as `?`.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Self {
        if self.headers.capacity() == 0 {
            self.headers.reserve_exact(HEADERS_USUAL);
        }
        self.headers.push((name, value.into()));
        self
    }

    /// Adds a note that [`Ending::notes`] has, for the access log.
    #[must_use]
    pub fn note(mut self, key: &'static str, value: impl Into<Cow<'static, str>>) -> Self {
        if self.notes.capacity() == 0 {
            self.notes.reserve_exact(NOTES_USUAL);
        }
        self.notes.push((key, value.into()));
        self
    }

    /// Replaces the body.
    #[must_use]
    pub fn with_body(mut self, change: impl FnOnce(Body) -> Body) -> Self {
        self.body = change(self.body);
        self
    }

    /// Closes the connection after this reply.
    #[must_use]
    pub fn close(mut self) -> Self {
        self.close = true;
        self
    }

    /// The status code.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The body.
    pub fn body(&self) -> &Body {
        &self.body
    }

    /// The header lines set so far, in order.
    pub fn headers(&self) -> &[(&'static str, Cow<'static, str>)] {
        &self.headers
    }
}

/// Where the bytes of an answer come from. The length is always known, so responses are never chunked.
///
/// An answer to HEAD may have the body that GET would get: its length is sent, but none of its bytes.
pub enum Body {
    /// No bytes; `Content-Length: 0` except for 204 and 304.
    Empty,
    /// Bytes in memory. Large bodies count against a budget that clients share. If the budget is exhausted, the client gets
    /// a 503, so use a file where possible.
    Bytes(Arc<[u8]>),
    /// Bytes that are part of the program.
    Static(&'static [u8]),
    /// Only a length, for answers to HEAD. Ignored for 204 and 304.
    Length(u64),
    /// A range of a complete file.
    File {
        /// The file. It can be shared, because it is read at explicit offsets.
        file: Arc<dyn BodyFile>,
        /// Offsets in bytes. The file must not end before the range.
        range: Range<u64>,
    },
    /// A range of a file that is still growing.
    Tail {
        /// Reports which bytes are available.
        tail: Box<dyn Tail>,
        /// Offsets in bytes. The file grows to the end of the range, or the tail fails.
        range: Range<u64>,
    },
}

/// The file of a body, and whatever must stay alive while the body is being sent.
pub trait BodyFile: Send + Sync {
    /// The file.
    fn file(&self) -> &File;
}

impl BodyFile for File {
    fn file(&self) -> &File {
        self
    }
}

impl Body {
    /// The length in bytes of the answer to GET.
    pub fn length(&self) -> u64 {
        match self {
            Self::Empty => 0,
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Static(bytes) => bytes.len() as u64,
            Self::Length(length) => *length,
            Self::File { range, .. } | Self::Tail { range, .. } => {
                range.end.saturating_sub(range.start)
            }
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("Empty"),
            Self::Bytes(bytes) => write!(f, "Bytes({})", bytes.len()),
            Self::Static(bytes) => write!(f, "Static({})", bytes.len()),
            Self::Length(length) => write!(f, "Length({length})"),
            Self::File { range, .. } => write!(f, "File({range:?})"),
            Self::Tail { range, .. } => write!(f, "Tail({range:?})"),
        }
    }
}

/// How a response ended.
#[derive(Clone, Debug)]
pub struct Ending {
    /// The status that was sent, or [`CLIENT_CLOSED_REQUEST`] if none was.
    pub status: u16,
    /// How many bytes of the body were handed to the kernel.
    pub bytes_sent: u64,
    /// The time from the first byte of the request to the first byte of the response, which the kernel has accepted.
    /// `None` if no byte was sent.
    pub first_byte: Option<Duration>,
    /// The time since the first byte of the request.
    pub latency: Duration,
    /// What the handler passed to [`Reply::note`].
    pub notes: Vec<Note>,
    /// Whether the client got the complete response, and if not, why.
    pub outcome: Outcome,
}

/// Whether the client got the complete response, and if not, why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every byte was handed to the kernel.
    Complete,
    /// The client closed or reset the connection.
    ClientGone,
    /// The client read no bytes for `write_stall_timeout`.
    WriteStalled,
    /// The source of the body failed for this reason.
    Cut(Box<str>),
    /// The handler, or the source of the body, panicked.
    Panicked,
    /// The drain timeout of the server passed.
    Drained,
}
