//! The bytes of one partial download: written at any position, by several threads, and hashed in order.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::extents::Extents;
use super::progress::{self, Progress};
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
    progress: Progress,
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
        let progress = Progress::beside(path);
        if is_resumed {
            let length = file.metadata().map_or(0, |metadata| metadata.len());
            extents = Extents::of_file(file).unwrap_or_default();
            if extents.prefix() == length || extents.total() == 0 {
                // Perhaps the file system reports holes as data. What was written in order is known.
                extents = Extents::default();
                extents.insert(0..progress::read(path).unwrap_or(length).min(length));
            }
        }
        let verifier = Verifier::new(digest.algorithm());
        Partial {
            store: store.clone(),
            path: path.to_owned(),
            file: Arc::clone(file.shared_file()),
            extents: Mutex::new(extents),
            progress,
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

    /// The first range of missing bytes at or after `from`; without an end if nothing is written after it.
    pub fn missing_from(&self, from: u64) -> (u64, Option<u64>) {
        lock(&self.extents).missing_from(from)
    }

    /// Writes bytes at any position that is a multiple of [`ALIGNMENT_BYTES`](super::ALIGNMENT_BYTES) or the end of
    /// written bytes. Those that are written already stay as they are: they may have been hashed, or sent to clients.
    /// Returns [`Partial::bytes_written`]. One thread writes at a time.
    ///
    /// # Errors
    /// [`StoreError`] if a write fails.
    pub fn write_at(&self, at: u64, bytes: &[u8]) -> Result<u64, StoreError> {
        let failed = |error| StoreError::write(&self.path, error);
        let end = at + bytes.len() as u64;
        let mut from = at;
        while from < end {
            let (start, next) = self.missing_from(from);
            let stop = next.unwrap_or(end).min(end);
            if start >= stop {
                break;
            }
            if start > self.bytes_written() {
                // Before the first hole: until then, the length of the file is its progress.
                self.progress.write(self.bytes_written()).map_err(failed)?;
            }
            // Both are at most `bytes.len()`.
            let missing = &bytes[(start - at) as usize..(stop - at) as usize];
            self.file.write_all_at(missing, start).map_err(failed)?;
            self.store.inner.note_bytes_added(stop - start);
            lock(&self.extents).insert(start..stop);
            from = stop;
        }
        let prefix = self.bytes_written();
        self.progress.update(prefix).map_err(failed)?;
        Ok(prefix)
    }

    /// Removes what was noted beside the file.
    pub(super) fn forget_progress(&self) {
        self.progress.remove();
    }

    /// Hashes bytes that were just written at `at`, if all bytes before them are hashed, and if they end what is written:
    /// others may have been written before.
    pub(super) fn hash_written(&self, at: u64, bytes: &[u8], was: u64) {
        let mut hashing = lock(&self.hashing);
        let is_new = was == at && self.total_bytes() == at + bytes.len() as u64;
        if hashing.position == at && is_new {
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
