//! Waiting for a blob: its size, its growing file, and its end.

use std::task::{Poll, Waker, ready};

use super::{BlobFailure, BlobFollower, Incoming, SizeSource};
use crate::cache::How;
use crate::flight::Follower;
use crate::oci::ImageName;
use crate::store::IngestError;

/// Follows a download, or a request for a size.
pub struct BlobWait {
    pub(super) waits_for: WaitsFor,
    pub(super) name: ImageName,
    /// Where the response comes from.
    pub how: How,
    /// The size that a manifest states, in bytes.
    pub size_hint: Option<u64>,
}

pub(super) enum WaitsFor {
    Bytes(BlobFollower),
    Size(Follower<(), u64, BlobFailure>),
}

impl BlobWait {
    /// The size, as soon as it is known; for [`Purpose::Size`](super::Purpose::Size), and for the head of a response.
    ///
    /// For a download of unknown size, this is pending until it ends.
    pub fn poll_size(&self, waker: &Waker) -> Poll<Result<u64, BlobFailure>> {
        match &self.waits_for {
            WaitsFor::Size(flight) => flight.poll_outcome(waker),
            WaitsFor::Bytes(flight) => match flight.poll_header(waker) {
                Poll::Ready(Ok(incoming)) if self.believes(&incoming) => {
                    incoming.size.map_or(Poll::Pending, |size| Poll::Ready(Ok(size)))
                }
                Poll::Ready(Ok(_)) => flight.poll_outcome(waker).map_ok(|blob| blob.size),
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Pending => Poll::Pending,
            },
        }
    }

    /// The growing file, once it exists. Always pending if only the size was requested.
    pub fn poll_file(&self, waker: &Waker) -> Poll<Result<Incoming, BlobFailure>> {
        match &self.waits_for {
            WaitsFor::Bytes(flight) => flight.poll_header(waker),
            WaitsFor::Size(_) => Poll::Pending,
        }
    }

    /// The size, once the blob is committed. Always pending if only the size was requested.
    pub fn poll_end(&self, waker: &Waker) -> Poll<Result<u64, BlobFailure>> {
        match &self.waits_for {
            WaitsFor::Bytes(flight) => flight.poll_outcome(waker).map_ok(|blob| blob.size),
            WaitsFor::Size(_) => Poll::Pending,
        }
    }

    /// Removes this waker.
    pub fn forget(&self, waker: &Waker) {
        match &self.waits_for {
            WaitsFor::Bytes(flight) => flight.forget(waker),
            WaitsFor::Size(flight) => flight.forget(waker),
        }
    }

    /// How many bytes may be read. Ready once there are more than `position`.
    pub fn poll_available(&self, position: u64, waker: &Waker) -> Poll<Result<u64, BlobFailure>> {
        let WaitsFor::Bytes(flight) = &self.waits_for else { return Poll::Pending };
        let available = ready!(flight.poll_available(position, waker))?;
        if available > position {
            return Poll::Ready(Ok(available));
        }
        // It has succeeded without more bytes: the announced size was wrong.
        let blob = ready!(flight.poll_outcome(waker))?;
        let believed = flight.header().filter(|incoming| self.believes(incoming));
        Poll::Ready(match believed.map(|incoming| (incoming.size, incoming.origin)) {
            Some((Some(expected), origin)) if expected != blob.size => {
                let error = IngestError::WrongSize { expected, actual: blob.size }.into();
                Err(BlobFailure { origin, error })
            }
            _ => Ok(blob.size),
        })
    }

    /// Whether the announced size of a download applies to this client.
    fn believes(&self, incoming: &Incoming) -> bool {
        incoming.size.is_some_and(|size| match incoming.size_source {
            SizeSource::Registry => true,
            SizeSource::Manifest => incoming.origin == self.name || self.size_hint == Some(size),
        })
    }
}
