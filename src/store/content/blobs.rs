//! Reads blobs. A blob was verified when it was ingested; a read checks its size, or its digest if it is small.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::oci::{Algorithm, Digest, Verifier};
use crate::store::files::layout::digest_of;
use crate::store::{Store, StoreError};
use crate::units::plural;

/// How many bytes of a file are hashed at a time.
pub(super) const CHUNK_BYTES: usize = 64 * 1024;

/// A stored blob: verified when it was ingested, and open, so that it cannot vanish.
#[derive(Debug, Clone)]
pub struct Blob {
    /// The open file. It is shared, so read it by offset only.
    pub file: Arc<File>,
    /// Its size in bytes when it was opened.
    pub size: u64,
}

impl Store {
    /// Opens the blob of `digest`. `None` is a miss: the blob is absent, damaged, or not `expected_bytes` long. Use
    /// this if a miss costs nothing; [`Store::find_blob`] distinguishes a store that cannot be read from one that
    /// does not have the blob.
    pub fn blob(&self, digest: &Digest, expected_bytes: Option<u64>) -> Option<Blob> {
        self.find_blob(digest, expected_bytes).unwrap_or_default()
    }

    /// Like [`Store::blob`], but reports read errors.
    ///
    /// # Errors
    /// [`StoreError::Read`] if a read error leaves it unknown whether the blob exists.
    pub fn find_blob(
        &self,
        digest: &Digest,
        expected_bytes: Option<u64>,
    ) -> Result<Option<Blob>, StoreError> {
        let path = self.inner.layout.blob(digest);
        let Some((file, size)) = self.open_file(&path)? else { return Ok(None) };
        Ok(match expected_bytes {
            Some(expected) if expected != size => {
                let size = plural(size, "byte");
                self.damaged(&path, &format!("it has {size} instead of {expected}"))
            }
            // Each algorithm has one digest of empty content; any other empty file was truncated.
            None if size == 0 && !digest.is_of_nothing() => self.damaged(&path, "it is empty"),
            _ => Some(Blob { file: Arc::new(file), size }),
        })
    }

    /// Reads a small blob (a manifest) and checks its digest.
    pub fn read(&self, digest: &Digest, expected_bytes: u64) -> Option<Vec<u8>> {
        self.find_bytes(digest, expected_bytes).unwrap_or_default()
    }

    /// Like [`Store::read`], but reports read errors.
    ///
    /// # Errors
    /// [`StoreError::Read`] if the blob exists but cannot be read, or if its existence is unknown.
    pub fn find_bytes(
        &self,
        digest: &Digest,
        expected_bytes: u64,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(blob) = self.find_blob(digest, Some(expected_bytes))? else { return Ok(None) };
        let path = self.inner.layout.blob(digest);
        let Ok(length) = usize::try_from(blob.size) else { return Ok(None) };
        let mut bytes = vec![0; length];
        if let Err(error) = blob.file.read_exact_at(&mut bytes, 0) {
            return self.failed_to_read(&path, error);
        }
        Ok(match Digest::of(digest.algorithm(), &bytes) == *digest {
            true => Some(bytes),
            false => self.damaged(&path, "its content does not match its digest"),
        })
    }

    /// Like [`Store::find_bytes`], but returns the blob instead of its bytes. A large manifest is hashed in chunks
    /// and needs no memory.
    ///
    /// # Errors
    /// As [`Store::find_bytes`].
    pub fn find_verified(
        &self,
        digest: &Digest,
        expected_bytes: u64,
    ) -> Result<Option<Blob>, StoreError> {
        let Some(blob) = self.find_blob(digest, Some(expected_bytes))? else { return Ok(None) };
        let path = self.inner.layout.blob(digest);
        let mut verifier = Verifier::new(digest.algorithm());
        let (mut chunk, mut position) = (vec![0; CHUNK_BYTES], 0);
        loop {
            match blob.file.read_at(&mut chunk, position) {
                Ok(0) => break,
                Ok(count) => {
                    verifier.update(&chunk[..count]);
                    position += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.failed_to_read(&path, error),
            }
        }
        Ok(match verifier.finish() == *digest {
            true => Some(blob),
            false => self.damaged(&path, "its content does not match its digest"),
        })
    }

    /// The age of a blob, as exact as the clocks of this machine and of the file system agree; `None` if it is
    /// absent.
    pub fn blob_age(&self, digest: &Digest, now: SystemTime) -> Option<Duration> {
        let metadata = fs::metadata(self.inner.layout.blob(digest)).ok()?;
        let age = metadata.modified().ok().and_then(|time| now.duration_since(time).ok());
        Some(age.unwrap_or_default())
    }

    /// Iterates over the digests of the stored blobs.
    ///
    /// # Errors
    /// If the blobs cannot be listed completely.
    pub(in crate::store) fn digests_strict(
        &self,
        algorithm: Algorithm,
    ) -> io::Result<impl Iterator<Item = io::Result<Digest>> + use<>> {
        let names = self.inner.names_strict(&self.inner.layout.blobs(algorithm))?;
        // A file whose name is not a digest is not a blob and is never removed.
        Ok(names.filter_map(move |name| name.map(|hex| digest_of(algorithm, &hex)).transpose()))
    }
}
