//! Blobs on their way as bodies: followers of a download, and of a passage that is nobody else's.

use std::fs::File;
use std::sync::Arc;
use std::task::{Poll, Waker, ready};

use crate::cache::{AlreadySent, BlobFailure, BlobWait, Cache, CacheError, PassThrough};
use crate::http::{Available, Tail};
use crate::oci::{Digest, ImageName};

/// A follower of a download. If the disk refuses that in the middle, it goes on past the disk.
pub(super) struct BlobTail {
    wait: BlobWait,
    /// What `Content-Length` was computed from, in bytes.
    promised: u64,
    /// The growing file, once upstream has answered.
    file: Option<Arc<File>>,
    past_the_disk: PastTheDisk,
    passage: Option<PassThroughTail>,
}

/// What it takes to get the blob past the disk.
pub(super) struct PastTheDisk {
    pub(super) cache: Cache,
    pub(super) name: ImageName,
    pub(super) digest: Digest,
}

/// Why a download is not followed any further.
enum Halt {
    /// The disk refused it.
    Disk,
    /// Anything else.
    Cut(Box<str>),
}

impl From<BlobFailure> for Halt {
    fn from(failure: BlobFailure) -> Halt {
        match failure.error.is_the_disks() {
            true => Halt::Disk,
            false => Halt::Cut(failure.error.to_string().into()),
        }
    }
}

impl BlobTail {
    pub(super) fn new(wait: BlobWait, promised: u64, past_the_disk: PastTheDisk) -> BlobTail {
        BlobTail { wait, promised, file: None, past_the_disk, passage: None }
    }

    fn poll_flight(&mut self, position: u64, waker: &Waker) -> Poll<Result<Available, Halt>> {
        if self.file.is_none() {
            // The size first: as long as the download does not know it, it does not know which byte is
            // the last for this client, and so which to hold back.
            let size = ready!(self.wait.poll_size(waker))?;
            if size != self.promised {
                return Poll::Ready(Err(Halt::Cut(SIZE_CHANGED.into())));
            }
            self.file = Some(ready!(self.wait.poll_file(waker))?.file);
        }
        let available = ready!(self.wait.poll_available(position, waker))?;
        Poll::Ready(Ok(Available::InFile { end: available }))
    }
}

impl Tail for BlobTail {
    fn file(&self) -> &File {
        // The edge asks only after it was told how far the file may be read, and that fills this in.
        self.file.as_deref().expect("a file that may be read is known")
    }

    fn poll_available(
        &mut self,
        position: u64,
        waker: &Waker,
    ) -> Poll<Result<Available, Box<str>>> {
        if self.passage.is_none() {
            match ready!(self.poll_flight(position, waker)) {
                Ok(available) => return Poll::Ready(Ok(available)),
                Err(Halt::Cut(reason)) => return Poll::Ready(Err(reason)),
                Err(Halt::Disk) => {
                    let PastTheDisk { cache, name, digest } = &self.past_the_disk;
                    let already_sent =
                        self.file.clone().map(|file| AlreadySent { file, end: position });
                    let passage =
                        cache.pass_through(name, digest, Some(self.promised), already_sent);
                    self.passage = Some(PassThroughTail { passage, promised: Some(self.promised) });
                }
            }
        }
        match &mut self.passage {
            Some(passage) => passage.poll_available(position, waker),
            None => Poll::Pending,
        }
    }
}

/// A follower of a passage.
pub(super) struct PassThroughTail {
    passage: PassThrough,
    /// What the client was told before the passage began, in bytes.
    promised: Option<u64>,
}

impl PassThroughTail {
    pub(super) fn new(passage: PassThrough) -> PassThroughTail {
        PassThroughTail { passage, promised: None }
    }
}

impl Tail for PassThroughTail {
    fn file(&self) -> &File {
        unreachable!("a passage has no file, and never says that one may be read")
    }

    fn poll_available(
        &mut self,
        position: u64,
        waker: &Waker,
    ) -> Poll<Result<Available, Box<str>>> {
        let told = |error: CacheError| -> Box<str> { error.to_string().into() };
        if let Some(promised) = self.promised {
            let size = ready!(self.passage.poll_size(waker)).map_err(told)?;
            if size != promised {
                return Poll::Ready(Err(SIZE_CHANGED.into()));
            }
            self.promised = None;
        }
        self.passage.poll_bytes(position, waker).map_ok(Available::InMemory).map_err(told)
    }
}

const SIZE_CHANGED: &str = "upstream's size is not the one that was promised";
