//! Bodies that are still growing while they are sent.
//!
//! This module must not know who produces the bytes.

use std::fs::File;
use std::sync::Arc;
use std::task::{Poll, Waker};

/// A body that is still growing. Its bytes are in a file, or are passed through memory.
///
/// The server reads [`Tail::file`] at explicit offsets, so many tails may share one open file.
pub trait Tail: Send {
    /// The file to read from. Called only after [`Available::InFile`].
    fn file(&self) -> &File;

    /// What is available beyond `position`.
    ///
    /// If nothing is, the implementation registers `waker` and returns `Pending`. It must wake the waker when the answer
    /// may have changed. A wake-up between this call and the parking of the connection is not lost, and spurious wake-ups
    /// are harmless.
    ///
    /// # Errors
    /// The source has failed permanently, for this reason. The response is cut off after the bytes sent so far.
    fn poll_available(&mut self, position: u64, waker: &Waker)
    -> Poll<Result<Available, Box<str>>>;
}

/// The next bytes of a growing body.
#[derive(Debug, Clone)]
pub enum Available {
    /// The file may be read up to this offset.
    InFile {
        /// The offset of the first byte that must not be read yet.
        end: u64,
    },
    /// These bytes come next. They are not in the file.
    InMemory(Arc<[u8]>),
}
