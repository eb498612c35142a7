//! The bytes of one partial download: written at any position, by several threads, and hashed in order.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::extents::Extents;
use crate::oci::{Digest, Verifier};
use crate::store::locks::FileLock;
use crate::store::{Store, StoreError};

/// How many bytes are read at a time to hash them.
const CHUNK_BYTES: usize = 256 * 1024;

/// A partial that this process writes; see [`Ingest`](super::Ingest), which owns it.
#[derive(Debug)]
pub struct Partial {
    store: Store,
    path: PathBuf,
    file: Arc<File>,
    /// What is written. Locked for a lookup or an insertion only.
    extents: Mutex<Extents>,
    /// Locked while bytes are hashed.
    hashing: Mutex<Hashing>,
}

/// How far the bytes are hashed.
#[derive(Debug)]
struct Hashing {
    verifier: Verifier,
    position: u64,
}

impl Partial {
    pub(super) fn open(
        store: &Store,
        digest: &Digest,
        path: &Path,
        file: &FileLock,
        is_resumed: bool,
    ) -> Partial {
        let mut extents = Extents::default();
        if is_resumed {
            // Without an answer, as on a file system without holes: the digest decides in any case.
            extents = Extents::of_file(file).unwrap_or_else(|_| {
                extents.insert(0..file.metadata().map_or(0, |metadata| metadata.len()));
                extents
            });
        }
        let verifier = Verifier::new(digest.algorithm());
        Partial {
            store: store.clone(),
            path: path.to_owned(),
            file: Arc::clone(file.shared_file()),
            extents: Mutex::new(extents),
            hashing: Mutex::new(Hashing { verifier, position: 0 }),
        }
    }

    /// How many bytes from the beginning are written.
    pub fn bytes_written(&self) -> u64 {
        lock(&self.extents).prefix()
    }

    /// How many bytes are written, wherever they are.
    pub fn total_bytes(&self) -> u64 {
        lock(&self.extents).total()
    }

    /// The first range of missing bytes at or after `from`; without an end if nothing is written behind it.
    pub fn missing_from(&self, from: u64) -> (u64, Option<u64>) {
        lock(&self.extents).missing_from(from)
    }

    /// Writes bytes at any position that is a multiple of [`ALIGNMENT_BYTES`](super::ALIGNMENT_BYTES) or the end of
    /// written bytes. Returns [`Partial::bytes_written`].
    ///
    /// # Errors
    /// [`StoreError`] if a write fails.
    pub fn write_at(&self, at: u64, bytes: &[u8]) -> Result<u64, StoreError> {
        let written = self.file.write_all_at(bytes, at);
        written.map_err(|error| StoreError::write(&self.path, error))?;
        self.store.inner.note_bytes_added(bytes.len() as u64);
        let mut extents = lock(&self.extents);
        extents.insert(at..at + bytes.len() as u64);
        Ok(extents.prefix())
    }

    /// Hashes bytes that were just written at `at`, if all bytes before them are hashed.
    pub(super) fn hash_written(&self, at: u64, bytes: &[u8]) {
        let mut hashing = lock(&self.hashing);
        if hashing.position == at {
            hashing.verifier.update(bytes);
            hashing.position += bytes.len() as u64;
        }
    }

    /// Reads and hashes the next written bytes. Returns `false` if all are hashed.
    ///
    /// # Errors
    /// [`StoreError`] if the partial cannot be read.
    pub fn hash_next(&self, buffer: &mut [u8]) -> Result<bool, StoreError> {
        let mut hashing = lock(&self.hashing);
        let left = self.bytes_written().saturating_sub(hashing.position);
        if left == 0 {
            return Ok(false);
        }
        let length = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let read = self.file.read_at(&mut buffer[..length], hashing.position);
        let read = read.and_then(|read| match read {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => Ok(read),
        });
        let read = read.map_err(|error| StoreError::write(&self.path, error))?;
        hashing.verifier.update(&buffer[..read]);
        hashing.position += read as u64;
        Ok(true)
    }

    /// The digest of the bytes from the beginning.
    pub(super) fn digest(&self) -> Result<Digest, StoreError> {
        let mut buffer = Vec::new();
        loop {
            {
                let hashing = lock(&self.hashing);
                if hashing.position == self.bytes_written() {
                    return Ok(hashing.verifier.clone().finish());
                }
            }
            buffer.resize(CHUNK_BYTES, 0);
            self.hash_next(&mut buffer)?;
        }
    }
}

/// The extents change by one insertion, and bytes are counted as hashed after they were hashed: a panic in between would
/// be one of the hash function.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
