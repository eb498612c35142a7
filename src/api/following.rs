//! Response bodies of blobs that are being downloaded: readers of a shared download, or of a private
//! pass-through stream.

use std::fs::File;
use std::sync::Arc;
use std::task::{Poll, Waker, ready};

use crate::cache::{
    AlreadySent, BlobFailure, BlobWait, Cache, CacheError, GrowingFile, PassThrough,
};
use crate::http::{Available, Tail};
use crate::oci::{Digest, ImageName};

/// A reader of a download. If the disk fails in the middle, the body continues as a pass-through stream.
pub(super) struct BlobTail {
    wait: BlobWait,
    /// The size from which `Content-Length` was computed, in bytes.
    promised: u64,
    /// The offset of the first byte of the body.
    start: u64,
    /// The download's file, once the upstream has answered, and the one that has the available bytes.
    growing: Option<GrowingFile>,
    file: Option<Arc<File>>,
    past_the_disk: PastTheDisk,
    passage: Option<PassThroughTail>,
}

/// The parameters for streaming the blob without storing it.
pub(super) struct PastTheDisk {
    pub(super) cache: Cache,
    pub(super) name: ImageName,
    pub(super) digest: Digest,
}

/// Why reading a download ended.
enum Halt {
    /// The disk failed.
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
    /// For a body that begins at offset `start` of the blob.
    pub(super) fn new(
        wait: BlobWait,
        promised: u64,
        start: u64,
        past_the_disk: PastTheDisk,
    ) -> BlobTail {
        let (growing, file, passage) = (None, None, None);
        BlobTail { wait, promised, start, growing, file, past_the_disk, passage }
    }

    fn poll_flight(&mut self, position: u64, waker: &Waker) -> Poll<Result<Available, Halt>> {
        if self.growing.is_none() {
            // The size first: until the download knows it, it does not know the last byte, which it holds
            // back until the content is verified.
            let size = ready!(self.wait.poll_size(waker))?;
            if size != self.promised {
                return Poll::Ready(Err(Halt::Cut(SIZE_CHANGED.into())));
            }
            self.growing = Some(ready!(self.wait.poll_file(waker))?.file);
        }
        let available = ready!(self.wait.poll_available(position, waker))?;
        // After that: a file that replaces another one has these bytes, too.
        self.file = self.growing.as_ref().map(GrowingFile::now);
        Poll::Ready(Ok(Available::InFile { end: available }))
    }
}

impl Tail for BlobTail {
    fn file(&self) -> &File {
        // Called only after `poll_available` has returned a position in the file, which sets it.
        self.file.as_deref().expect("poll_available has set the file")
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
                    let range = self.start..position;
                    let already_sent = self.file.clone().map(|file| AlreadySent { file, range });
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

/// A reader of a pass-through stream.
pub(super) struct PassThroughTail {
    passage: PassThrough,
    /// The size that was sent to the client before this stream began, in bytes.
    promised: Option<u64>,
}

impl PassThroughTail {
    pub(super) fn new(passage: PassThrough) -> PassThroughTail {
        PassThroughTail { passage, promised: None }
    }
}

impl Tail for PassThroughTail {
    fn file(&self) -> &File {
        unreachable!("a pass-through stream returns bytes in memory, never a position in a file")
    }

    fn poll_available(
        &mut self,
        position: u64,
        waker: &Waker,
    ) -> Poll<Result<Available, Box<str>>> {
        let text = |error: CacheError| -> Box<str> { error.to_string().into() };
        if let Some(promised) = self.promised {
            let size = ready!(self.passage.poll_size(waker)).map_err(text)?;
            if size != promised {
                return Poll::Ready(Err(SIZE_CHANGED.into()));
            }
            self.promised = None;
        }
        self.passage.poll_bytes(position, waker).map_ok(Available::InMemory).map_err(text)
    }
}

const SIZE_CHANGED: &str = "the upstream sends a size other than the announced one";
