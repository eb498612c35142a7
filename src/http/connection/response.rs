//! A response that is being sent, and what follows it.

use super::body::{HeadBytes, OutgoingBody};
use crate::http::reply::{Note, Outcome};
use crate::http::request::Request;
use std::time::Instant;

/// What follows a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    /// The next request.
    NextHead,
    /// The connection closes; the client is not expected to have sent more.
    Close,
    /// The connection closes, and the client may still be sending.
    Linger,
}

/// A response that is being sent.
pub(super) struct Response {
    /// `None` if the request head could not be parsed.
    pub(super) request: Option<Box<Request>>,
    pub(super) head: HeadBytes,
    pub(super) body: OutgoingBody,
    pub(super) status: u16,
    pub(super) notes: Vec<Note>,
    pub(super) after: After,
    /// The outcome to report once every byte is sent.
    pub(super) verdict: Outcome,
    /// When the first byte was handed to the kernel. From then on, the client may have seen some of the response.
    pub(super) first_byte: Option<Instant>,
    /// When the client last took a byte.
    pub(super) progress: Instant,
}
