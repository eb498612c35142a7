//! Reading a file that is still growing.
//!
//! It must not know who writes the file.

use std::fs::File;
use std::task::{Poll, Waker};

/// A file that is still growing.
///
/// The edge sends from [`Tail::file`] with explicit offsets, so that many tails may share one open
/// file.
pub trait Tail: Send {
    /// The file that is read.
    fn file(&self) -> &File;

    /// How far (exclusive end offset) the file may be read, once that is beyond `position`.
    ///
    /// `Pending` after registering `waker`, which must be woken when the answer may have changed; a
    /// wake-up between this call and the parking of the connection is not lost, and a needless one
    /// does no harm.
    ///
    /// # Errors
    /// The source failed for good with this reason: what was sent stays sent, and the response is
    /// cut.
    fn poll_available(&mut self, position: u64, waker: &Waker) -> Poll<Result<u64, Box<str>>>;
}
