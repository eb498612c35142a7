//! A partial that another process writes: what it has written, and whether it still writes.
//!
//! Processes share the page cache, so bytes may be read as soon as the other process has written them. They are not
//! verified. The partial becomes the blob, or is removed, when its writer ends.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;

use super::ingest::Ingest;
use super::partials::PartialNote;
use super::progress;
use crate::oci::{Digest, Upstream};
use crate::store::files::read::{is_same_file, open_to_read};
use crate::store::files::record::Access;
use crate::store::locks::FileLock;
use crate::store::{Store, StoreError};

/// How many bytes are copied at a time.
const COPIED_BYTES: u64 = 1024 * 1024;

/// See the description of the module.
#[derive(Debug)]
pub struct WatchedPartial {
    store: Store,
    digest: Digest,
    path: PathBuf,
    note: PathBuf,
    file: Arc<File>,
}

impl Store {
    /// Opens the partial of a digest to follow its writer; `None` if there is none.
    pub fn watch_partial(&self, upstream: &Upstream, digest: &Digest) -> Option<WatchedPartial> {
        let path = self.inner.layout.partial(upstream, digest);
        let file = open_to_read(&path)
            .ok()
            .filter(|file| file.metadata().is_ok_and(|metadata| metadata.is_file()))?;
        let note = self.inner.layout.partial_note(upstream, digest);
        let (store, digest, file) = (self.clone(), *digest, Arc::new(file));
        Some(WatchedPartial { store, digest, path, note, file })
    }
}

/// Whether two files begin with the same `length` bytes.
///
/// # Errors
/// One of them cannot be read.
pub fn have_same_bytes(one: &File, other: &File, length: u64) -> io::Result<bool> {
    let (first, second) = (one.metadata()?, other.metadata()?);
    if (first.dev(), first.ino()) == (second.dev(), second.ino()) {
        return Ok(true);
    }
    let size = usize::try_from(length.min(COPIED_BYTES)).unwrap_or_default();
    let (mut bytes, mut others) = (vec![0; size], vec![0; size]);
    let mut at = 0;
    while at < length {
        let part = usize::try_from(length - at).map_or(size, |left| left.min(size));
        one.read_exact_at(&mut bytes[..part], at)?;
        other.read_exact_at(&mut others[..part], at)?;
        if bytes[..part] != others[..part] {
            return Ok(false);
        }
        at += part as u64;
    }
    Ok(true)
}

impl WatchedPartial {
    /// The file, which becomes that of the blob.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// The size of the blob, once its writer has noted it.
    pub fn size(&self) -> Option<u64> {
        self.store.record::<PartialNote>(&self.note, Access::Look)?.size
    }

    /// How many bytes from the beginning are written, and a number that changes when others are.
    ///
    /// # Errors
    /// The file cannot be queried.
    pub fn bytes(&self) -> io::Result<(u64, u64)> {
        // In this order: if there is no number afterwards, the file had no holes when it had this length.
        let metadata = self.file.metadata()?;
        let prefix = match progress::find(&self.path) {
            Ok(Some(bytes)) => bytes.min(metadata.len()),
            Ok(None) => return Err(io::ErrorKind::Interrupted.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => metadata.len(),
            Err(error) => return Err(error),
        };
        Ok((prefix, metadata.blocks()))
    }

    /// Whether it still has its name: it is neither finished nor removed.
    pub fn is_partial(&self) -> bool {
        is_same_file(&self.path, &self.file)
    }

    /// Whether a process is writing it.
    pub fn has_writer(&self) -> bool {
        let Ok(file) = open_to_read(&self.path) else { return false };
        !matches!(FileLock::try_shared(file), Ok(Some(_)))
    }

    /// Begins to write the blob apart from the other process, with a copy of what that has written from the beginning.
    ///
    /// # Errors
    /// [`StoreError`] if the bytes cannot be copied.
    pub fn copy(&self) -> Result<Ingest, StoreError> {
        let ingest = self.store.ingest_apart(&self.digest)?;
        let (mut left, _) = self.bytes().map_err(|error| StoreError::write(&self.path, error))?;
        let mut at = 0;
        let mut buffer = vec![0; usize::try_from(left.min(COPIED_BYTES)).unwrap_or_default()];
        while left > 0 {
            let length = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = self.file.read_at(&mut buffer[..length], at);
            let read = read.map_err(|error| StoreError::write(&self.path, error))?;
            if read == 0 {
                break;
            }
            ingest.partial().write_at(at, &buffer[..read])?;
            at += read as u64;
            left -= read as u64;
        }
        Ok(ingest)
    }
}
