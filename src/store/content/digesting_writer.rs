//! Writing content that arrives completely before it is named: from bundles, where its digest is not known in advance, and
//! large manifests.
//!
//! The content goes to a file under `incoming/` that belongs to one writer and is hashed as it is written.
//! [`DigestingWriter::commit`] renames it to its digest; dropping the writer removes it. The writer holds `flock`
//! on the file, so that leftovers of a killed process can be distinguished from active files and removed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

use super::ingest::IngestError;
use crate::oci::{Algorithm, Digest, Verifier};
use crate::store::files::outgoing::OutgoingKind;
use crate::store::files::read::names_in;
use crate::store::locks::{FileLock, remove_unlocked};
use crate::store::{Inner, Store, StoreError};

/// The prefix of these files.
const PREFIX: &str = "spool-";
/// How often another process may remove a new file as abandoned between its creation and its lock. Each round needs
/// another process that is cleaning up at that moment.
const ROUNDS_MAX: u32 = 8;

/// A file that is being written and hashed. No other code knows its name.
#[derive(Debug)]
pub struct DigestingWriter {
    store: Store,
    path: PathBuf,
    file: FileLock,
    verifier: Verifier,
    bytes_written: u64,
}

impl Store {
    /// Starts to write content that is named by its `algorithm` digest.
    ///
    /// # Errors
    /// [`StoreError`] if the directory is read-only or a write fails.
    pub fn digesting_writer(&self, algorithm: Algorithm) -> Result<DigestingWriter, StoreError> {
        self.require_writable()?;
        let mut round = 0;
        loop {
            round += 1;
            let (path, file) = self.inner.create_import_file()?;
            let lock = FileLock::try_exclusive(file);
            let lock = lock.map_err(|error| StoreError::write(&path, error))?;
            match lock.filter(|_| path.exists()) {
                Some(file) => {
                    let (store, verifier) = (self.clone(), Verifier::new(algorithm));
                    return Ok(DigestingWriter { store, path, file, verifier, bytes_written: 0 });
                }
                None if round < ROUNDS_MAX => {}
                None => {
                    let taken = io::Error::other("other processes keep removing it");
                    return Err(StoreError::write(&path, taken));
                }
            }
        }
    }

    /// Removes the files of killed processes. Files of running processes are locked and stay.
    pub fn remove_abandoned_imports(&self) {
        let incoming = self.inner.layout.incoming();
        for name in names_in(&incoming).filter(|name| name.starts_with(PREFIX)) {
            remove_unlocked(&incoming.join(name));
        }
    }
}

impl Inner {
    fn create_import_file(&self) -> Result<(PathBuf, File), StoreError> {
        let temporary = self.layout.temporary();
        let name = temporary.file_name().unwrap_or_default().to_string_lossy();
        let path = temporary.with_file_name(format!("{PREFIX}{name}"));
        let file = File::create_new(&path).map_err(|error| StoreError::write(&path, error))?;
        // Set the owner at once: after a kill, the process that cleans up must be able to open the file.
        self.layout.owner().give(&file);
        Ok((path, file))
    }
}

impl DigestingWriter {
    /// Checks that the disk has `size_bytes` of free space, if the system reports it.
    ///
    /// # Errors
    /// [`StoreError::InsufficientSpace`].
    pub fn check_free_space(&self, size_bytes: u64) -> Result<(), StoreError> {
        match self.store.free_bytes() {
            Some(free_bytes) if free_bytes < size_bytes => {
                let root = self.store.root().to_owned();
                Err(StoreError::InsufficientSpace { root, missing_bytes: size_bytes, free_bytes })
            }
            _ => Ok(()),
        }
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// [`StoreError`] if a write fails; [`StoreError::is_full`] covers the common case.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        (&*self.file).write_all(bytes).map_err(|error| StoreError::write(&self.path, error))?;
        self.verifier.update(bytes);
        self.bytes_written += bytes.len() as u64;
        self.store.inner.note_bytes_added(bytes.len() as u64);
        Ok(())
    }

    /// Syncs the bytes to the disk and renames the file to its digest. Returns the digest and the size.
    ///
    /// # Errors
    /// [`IngestError::WrongDigest`] if the digest is not `expected`, or [`IngestError::Store`] if a write fails.
    pub fn commit(self, expected: Option<&Digest>) -> Result<(Digest, u64), IngestError> {
        let digest = self.verifier.clone().finish();
        if let Some(expected) = expected.filter(|it| **it != digest) {
            return Err(IngestError::WrongDigest { expected: *expected, actual: digest.into() });
        }
        self.publish(&digest).map_err(IngestError::Store)?;
        Ok((digest, self.bytes_written))
    }

    fn publish(&self, digest: &Digest) -> Result<(), StoreError> {
        let inner: &Inner = &self.store.inner;
        if inner.fsync {
            self.file.sync_data().map_err(|error| StoreError::write(&self.path, error))?;
        }
        let path = inner.layout.blob(digest);
        let publish = || inner.publish_counted(&self.path, &path);
        inner.queued(OutgoingKind::Blob, &path, publish)
    }
}

impl Drop for DigestingWriter {
    fn drop(&mut self) {
        // After a commit the path no longer exists and nothing is removed.
        if fs::remove_file(&self.path).is_ok() {
            self.store.inner.note_bytes_removed(self.bytes_written);
        }
    }
}
