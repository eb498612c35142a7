//! Sends bodies, one step at a time.
//!
//! This module must not know connections, nor time. Bodies have no buffers: files and tails go from the page cache to the
//! socket, at offsets that only the body knows. The exception is a tail whose bytes are not in a file: one piece of it is
//! kept while it is sent.

use super::socket::{FileError, More, SocketError};
use super::wire::Wire;
use crate::http::limits::COPY_BYTES;
use crate::http::memory::MemoryCharge;
use crate::http::reply::{Body, BodyFile, Outcome};
use crate::http::tail::{Available, Tail};
use crate::http::worker::{Worker, catch_panic};
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Poll, Waker};

/// Returns the waker of the connection, and creates it on first use.
pub(super) type GetWaker<'a> = dyn Fn() -> &'a Waker + 'a;

/// The result of one step of sending.
pub(super) enum Step {
    /// This many bytes were sent; 0 if the step made progress without sending.
    Moved(usize),
    /// The response is complete.
    Done,
    /// The client must read some bytes first.
    Blocked,
    /// The tail must grow first.
    NotGrown,
    /// The response cannot be completed.
    Failed(Outcome),
}

impl From<SocketError> for Step {
    fn from(error: SocketError) -> Self {
        match error {
            SocketError::WouldBlock => Self::Blocked,
            SocketError::Closed => Self::Failed(Outcome::ClientGone),
        }
    }
}

/// The head of a response, and how much of it was sent.
pub(super) struct HeadBytes {
    bytes: Vec<u8>,
    sent: usize,
}

impl HeadBytes {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, sent: 0 }
    }

    fn rest(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    fn send(&mut self, more: More, wire: &mut Wire) -> Step {
        match wire.send(self.rest(), &[], more) {
            Ok(sent) => {
                self.sent += sent;
                Step::Moved(sent)
            }
            Err(error) => error.into(),
        }
    }

    /// Keeps only the bytes that were not sent yet, and returns the buffer.
    pub(super) fn shrink(&mut self) -> Vec<u8> {
        let rest = self.rest().to_vec();
        self.sent = 0;
        std::mem::replace(&mut self.bytes, rest)
    }

    pub(super) fn into_buffer(self) -> Vec<u8> {
        self.bytes
    }
}

/// A body that is being sent.
pub(super) enum OutgoingBody {
    Nothing,
    Bytes { bytes: Arc<[u8]>, position: usize, _charge: Option<MemoryCharge> },
    Static { bytes: &'static [u8], position: usize },
    File { file: Arc<dyn BodyFile>, span: FileSpan },
    Tail { tail: Box<dyn Tail>, growth: Growth, span: FileSpan },
}

impl OutgoingBody {
    /// `charge` counts the body against the memory for responses.
    pub(super) fn new(body: Body, charge: Option<MemoryCharge>) -> Self {
        match body {
            Body::Empty | Body::Length(_) => Self::Nothing,
            Body::Bytes(bytes) => Self::Bytes { bytes, position: 0, _charge: charge },
            Body::Static(bytes) => Self::Static { bytes, position: 0 },
            Body::File { file, range } => Self::File { file, span: FileSpan::new(range) },
            Body::Tail { tail, range } => {
                let growth = Growth { available: range.start, piece: None, shortfalls: 0 };
                Self::Tail { tail, growth, span: FileSpan::new(range) }
            }
        }
    }

    /// How many bytes of the body were sent.
    pub(super) fn sent(&self) -> u64 {
        match self {
            Self::Nothing => 0,
            Self::Bytes { position, .. } | Self::Static { position, .. } => *position as u64,
            Self::File { span, .. } | Self::Tail { span, .. } => span.position - span.start,
        }
    }

    /// Sends some bytes of `head` or, once that is sent, of the body.
    pub(super) fn advance(
        &mut self,
        head: &mut HeadBytes,
        wire: &mut Wire,
        waker: &GetWaker<'_>,
        worker: &mut Worker,
    ) -> Step {
        match self {
            Self::Nothing if head.rest().is_empty() => Step::Done,
            Self::Nothing => head.send(More::Nothing, wire),
            Self::Bytes { bytes, position, .. } => {
                send_bytes(bytes, position, head, wire, worker.bytes_left)
            }
            Self::Static { bytes, position } => {
                send_bytes(bytes, position, head, wire, worker.bytes_left)
            }
            Self::File { file, span } => match (head.rest().is_empty(), span.is_empty()) {
                (true, true) => Step::Done,
                (true, false) => match span.send(file.file(), span.end, wire, worker) {
                    Step::Moved(0) => cut("the file is shorter than expected"),
                    step => step,
                },
                (false, true) => head.send(More::Nothing, wire),
                (false, false) => head.send(More::Follows, wire),
            },
            Self::Tail { tail, growth, span } => {
                send_tail(&mut **tail, growth, span, head, wire, waker, worker)
            }
        }
    }
}

/// Sends head and body in one system call; small ones fit into one packet.
fn send_bytes(
    bytes: &[u8],
    position: &mut usize,
    head: &mut HeadBytes,
    wire: &mut Wire,
    limit: usize,
) -> Step {
    let body = &bytes[*position..];
    let body = &body[..body.len().min(limit)];
    let of_head = head.rest().len();
    if of_head == 0 && body.is_empty() {
        return Step::Done;
    }
    match wire.send(head.rest(), body, More::Nothing) {
        Ok(sent) => {
            head.sent += sent.min(of_head);
            *position += sent.saturating_sub(of_head);
            Step::Moved(sent)
        }
        Err(error) => error.into(),
    }
}

fn send_tail(
    tail: &mut dyn Tail,
    growth: &mut Growth,
    span: &mut FileSpan,
    head: &mut HeadBytes,
    wire: &mut Wire,
    waker: &GetWaker<'_>,
    worker: &mut Worker,
) -> Step {
    let headless = head.rest().is_empty();
    if span.is_empty() {
        return if headless { Step::Done } else { head.send(More::Nothing, wire) };
    }
    if growth.is_spent(span.position) {
        match growth.poll(tail, span.position, waker) {
            // Clients give up if they do not receive the head, so it is sent before the first bytes of the body are
            // available.
            Step::NotGrown if !headless => return head.send(More::Nothing, wire),
            Step::Moved(_) => {}
            step => return step,
        }
    }
    if !headless {
        return head.send(More::Follows, wire);
    }
    if let Some(piece) = &growth.piece {
        return span.send_piece(piece, wire, worker);
    }
    let available = growth.available.min(span.end);
    match span.send(tail.file(), available, wire, worker) {
        Step::Moved(0) => growth.shortfall(),
        Step::Moved(bytes) => {
            growth.shortfalls = 0;
            Step::Moved(bytes)
        }
        step => step,
    }
}

/// What is known about a growing body.
pub(super) struct Growth {
    available: u64,
    /// The bytes before `available`, if they are not in the file.
    piece: Option<Piece>,
    /// How often in a row the file was shorter than its tail reported.
    shortfalls: u8,
}

/// Bytes of a body that are not in the file, and the offset of the first.
struct Piece {
    start: u64,
    bytes: Arc<[u8]>,
}

impl Growth {
    fn is_spent(&self, position: u64) -> bool {
        self.available <= position
    }

    /// Polls the tail. Returns `Moved` if more bytes are available.
    fn poll(&mut self, tail: &mut dyn Tail, position: u64, waker: &GetWaker<'_>) -> Step {
        match catch_panic(|| tail.poll_available(position, waker())) {
            Ok(Poll::Ready(Ok(Available::InFile { end }))) if end > position => {
                (self.available, self.piece) = (end, None);
                Step::Moved(0)
            }
            Ok(Poll::Ready(Ok(Available::InMemory(bytes)))) if !bytes.is_empty() => {
                self.available = position + bytes.len() as u64;
                self.piece = Some(Piece { start: position, bytes });
                Step::Moved(0)
            }
            Ok(Poll::Ready(Ok(_))) => cut("the tail ended before its file"),
            Ok(Poll::Ready(Err(reason))) => Step::Failed(Outcome::Cut(reason)),
            Ok(Poll::Pending) => Step::NotGrown,
            Err(message) => {
                log::error!(error = message.as_str(); "panic in the source of a response");
                Step::Failed(Outcome::Panicked)
            }
        }
    }

    /// The file was shorter than the tail reported. This is tolerated once.
    fn shortfall(&mut self) -> Step {
        self.available = 0;
        self.shortfalls += 1;
        if self.shortfalls < 2 {
            Step::Moved(0)
        } else {
            cut("the file is shorter than its tail reported")
        }
    }
}

/// The part of a file that is still to be sent.
pub(super) struct FileSpan {
    start: u64,
    position: u64,
    end: u64,
    /// The file does not support `sendfile`.
    copied: bool,
}

impl FileSpan {
    fn new(range: Range<u64>) -> Self {
        Self { start: range.start, position: range.start, end: range.end, copied: false }
    }

    /// Sends some bytes of `piece`, which contains the current position.
    fn send_piece(&mut self, piece: &Piece, wire: &mut Wire, worker: &Worker) -> Step {
        let left = usize::try_from(self.end - self.position).unwrap_or(usize::MAX);
        let offset = usize::try_from(self.position - piece.start).unwrap_or(usize::MAX);
        let rest = &piece.bytes[offset.min(piece.bytes.len())..];
        let rest = &rest[..rest.len().min(left).min(worker.bytes_left)];
        match wire.send(rest, &[], More::Nothing) {
            Ok(sent) => {
                self.position += sent as u64;
                Step::Moved(sent)
            }
            Err(error) => error.into(),
        }
    }

    fn is_empty(&self) -> bool {
        self.position >= self.end
    }

    /// Sends some bytes before `end`, or none if the file ends before that.
    fn send(&mut self, file: &File, end: u64, wire: &mut Wire, worker: &mut Worker) -> Step {
        let left = end.saturating_sub(self.position);
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(worker.bytes_left);
        let sent = if self.copied {
            worker.copy_buffer.resize(COPY_BYTES, 0);
            wire.copy_file(file, self.position, count, &mut worker.copy_buffer)
        } else {
            wire.send_file(file, self.position, count)
        };
        match sent {
            Ok(bytes) => {
                self.position += bytes as u64;
                Step::Moved(bytes)
            }
            Err(FileError::WouldBlock) => Step::Blocked,
            Err(FileError::Closed) => Step::Failed(Outcome::ClientGone),
            Err(FileError::Unsupported) if !self.copied => {
                self.copied = true;
                self.send(file, end, wire, worker)
            }
            Err(FileError::Unsupported) => cut("the file cannot be read"),
            Err(FileError::Unreadable(errno)) => cut(&format!("the file cannot be read: {errno}")),
        }
    }
}

fn cut(reason: &str) -> Step {
    Step::Failed(Outcome::Cut(reason.into()))
}
