//! The bodies of requests: their hashes, and readers that stop when an upload is cancelled.

use std::cell::RefCell;
use std::io::{self, ErrorKind, Read};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::UploadSource;
use crate::oci::{Algorithm, Digest, Verifier};
use crate::upstream::auth::hex;
use crate::upstream::error::UpstreamErrorKind;

/// The size of the buffer for hashing, in bytes.
const CHUNK_BYTES: usize = 64 * 1024;

/// The SHA-256 of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hash([u8; 32]);

impl Hash {
    pub(super) fn of(bytes: &[u8]) -> Hash {
        Hash::from_digest(&Digest::of(Algorithm::Sha256, bytes))
    }

    fn from_digest(digest: &Digest) -> Hash {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest.as_bytes());
        Hash(hash)
    }

    /// For `x-amz-content-sha256`.
    pub(super) fn hex(&self) -> String {
        hex(&self.0)
    }

    /// For `x-amz-checksum-sha256`.
    pub(super) fn base64(&self) -> String {
        STANDARD.encode(self.0)
    }
}

/// The body of a request.
#[derive(Clone, Copy)]
pub(super) enum Content<'a> {
    None,
    Bytes(&'a [u8]),
    Part(Part<'a>),
}

/// A part of what is uploaded, or all of it.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) source: &'a dyn UploadSource,
    pub(super) from: u64,
    pub(super) length: u64,
    pub(super) hash: Hash,
}

impl<'a> Part<'a> {
    /// The complete content, which is read here if its hash is unknown.
    pub(super) fn all(source: &'a dyn UploadSource) -> Result<Part<'a>, UpstreamErrorKind> {
        match source.sha256() {
            Some(hash) => Ok(Part { source, from: 0, length: source.size(), hash: Hash(hash) }),
            None => Part::of(source, 0, source.size()),
        }
    }

    /// A part of the content. Reads it for its hash: it may not fit into memory until it is sent.
    pub(super) fn of(
        source: &'a dyn UploadSource,
        from: u64,
        length: u64,
    ) -> Result<Part<'a>, UpstreamErrorKind> {
        let trouble = RefCell::new(None);
        let opened = source.open_for_hash(from, length);
        let hash = Outgoing::of(opened, source, length, &trouble).and_then(|mut reader| {
            let (mut verifier, mut chunk) =
                (Verifier::new(Algorithm::Sha256), vec![0; CHUNK_BYTES]);
            loop {
                match reader.read(&mut chunk)? {
                    0 => return Ok(Hash::from_digest(&verifier.finish())),
                    count => verifier.update(&chunk[..count]),
                }
            }
        });
        match hash {
            Ok(hash) => Ok(Part { source, from, length, hash }),
            Err(error) => Err(trouble.take().unwrap_or_else(|| unreadable(error))),
        }
    }
}

impl<'a> Content<'a> {
    pub(super) fn length(&self) -> Option<u64> {
        match self {
            Content::None => None,
            Content::Bytes(bytes) => Some(bytes.len() as u64),
            Content::Part(part) => Some(part.length),
        }
    }

    pub(super) fn hash(&self) -> Hash {
        match self {
            Content::None => Hash::of(b""),
            Content::Bytes(bytes) => Hash::of(bytes),
            Content::Part(part) => part.hash,
        }
    }

    pub(super) fn is_cancelled(&self) -> bool {
        matches!(self, Content::Part(part) if part.source.is_cancelled())
    }

    /// A reader of exactly [`Content::length`] bytes. A failure of this machine is put into `trouble`, since the caller
    /// of the reader could not tell it from a failure of the connection.
    pub(super) fn open<'b>(
        &self,
        trouble: &'b RefCell<Option<UpstreamErrorKind>>,
    ) -> io::Result<Box<dyn Read + 'b>>
    where
        'a: 'b,
    {
        match *self {
            Content::None => Ok(Box::new(io::empty())),
            Content::Bytes(bytes) => Ok(Box::new(bytes)),
            Content::Part(Part { source, from, length, .. }) => {
                Ok(Box::new(Outgoing::of(source.open(from, length), source, length, trouble)?))
            }
        }
    }
}

fn unreadable(error: io::Error) -> UpstreamErrorKind {
    UpstreamErrorKind::Unreadable { source: Arc::new(error) }
}

/// A reader that fails when the upload is cancelled, or if the content is shorter than expected.
struct Outgoing<'a> {
    inner: Box<dyn Read + Send + 'a>,
    source: &'a dyn UploadSource,
    bytes_left: u64,
    trouble: &'a RefCell<Option<UpstreamErrorKind>>,
}

impl<'a> Outgoing<'a> {
    fn of(
        opened: io::Result<Box<dyn Read + Send + 'a>>,
        source: &'a dyn UploadSource,
        length: u64,
        trouble: &'a RefCell<Option<UpstreamErrorKind>>,
    ) -> io::Result<Outgoing<'a>> {
        let inner = opened.inspect_err(|error| note(trouble, error))?;
        Ok(Outgoing { inner, source, bytes_left: length, trouble })
    }
}

/// Stores a copy of an error, which the caller of the reader gets as well.
fn note(trouble: &RefCell<Option<UpstreamErrorKind>>, error: &io::Error) {
    let copy = io::Error::new(error.kind(), error.to_string());
    *trouble.borrow_mut() = Some(unreadable(copy));
}

impl Read for Outgoing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.bytes_left == 0 || buffer.is_empty() {
            return Ok(0);
        }
        if self.source.is_cancelled() {
            *self.trouble.borrow_mut() = Some(UpstreamErrorKind::Cancelled);
            return Err(io::Error::other("the upload was cancelled"));
        }
        let length = usize::try_from(self.bytes_left).unwrap_or(usize::MAX).min(buffer.len());
        let read = loop {
            match self.inner.read(&mut buffer[..length]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The HTTP library would wait for the rest forever.
                Ok(0) => break Err(io::Error::new(ErrorKind::UnexpectedEof, "it is too short")),
                other => break other,
            }
        };
        let count = read.inspect_err(|error| note(self.trouble, error))?;
        self.bytes_left -= count as u64;
        Ok(count)
    }
}
