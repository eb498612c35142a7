//! Reading what is still growing.
//!
//! It must not know who writes it.

use std::fs::File;
use std::sync::Arc;
use std::task::{Poll, Waker};

/// A body that is still growing, in a file or past one.
///
/// The edge sends from [`Tail::file`] with explicit offsets, so that many tails may share one open
/// file.
pub trait Tail: Send {
    /// The file that is read; asked for only after [`Available::InFile`].
    fn file(&self) -> &File;

    /// What there is beyond `position`, once there is something.
    ///
    /// `Pending` after registering `waker`, which must be woken when the answer may have changed; a
    /// wake-up between this call and the parking of the connection is not lost, and a needless one
    /// does no harm.
    ///
    /// # Errors
    /// The source failed for good with this reason: what was sent stays sent, and the response is
    /// cut.
    fn poll_available(&mut self, position: u64, waker: &Waker)
    -> Poll<Result<Available, Box<str>>>;
}

/// What there is to send of a growing body.
#[derive(Debug, Clone)]
pub enum Available {
    /// The file may be read up to this offset.
    InFile {
        /// The offset of the first byte that may not be read yet.
        end: u64,
    },
    /// These bytes, which are in no file, come next.
    InMemory(Arc<[u8]>),
}
