//! Spools: content that comes from no registry, whose digest is often told only by its last byte.
//!
//! A spool is a file under `incoming/` that belongs to one writer and is hashed while it is written.
//! [`DigestingWriter::commit`] gives it the name of its digest; dropping it removes it. Its owner holds `flock`
//! on it, so that what a killed process has left can be told from what is being written, and removed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

use super::error::StoreError;
use super::ingest::IngestError;
use super::layout::{names_in, open_to_read};
use super::lock::FileLock;
use super::{Inner, Store};
use crate::oci::{Algorithm, Digest, Verifier};

/// What the name of a spool begins with.
const PREFIX: &str = "spool-";
/// How often a new spool may be taken for an abandoned one between its creation and its lock. Each round
/// needs another process that looks for abandoned ones just then.
const ROUNDS_MAX: u32 = 8;
/// How often another process may be writing `index.json` when ours is to be in it.
const INDEX_ROUNDS_MAX: u32 = 8;

/// Content that is being written, of which nobody else knows.
#[derive(Debug)]
pub struct DigestingWriter {
    store: Store,
    path: PathBuf,
    file: FileLock,
    verifier: Verifier,
    bytes_written: u64,
}

impl Store {
    /// Begins to write content that is named by `algorithm`.
    ///
    /// # Errors
    /// [`StoreError`] if the directory is read-only or the disk refuses.
    pub fn digesting_writer(&self, algorithm: Algorithm) -> Result<DigestingWriter, StoreError> {
        if !self.is_writable() {
            return Err(StoreError::ReadOnly { root: self.root().to_owned() });
        }
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
                    let taken = io::Error::other("it is removed again and again");
                    return Err(StoreError::write(&path, taken));
                }
            }
        }
    }

    /// Removes the spools of processes that were killed. Those of living ones are locked and stay.
    pub fn remove_abandoned_imports(&self) {
        let incoming = self.inner.layout.incoming();
        for name in names_in(&incoming).filter(|name| name.starts_with(PREFIX)) {
            let path = incoming.join(name);
            let Ok(lock) = open_to_read(&path).and_then(FileLock::try_exclusive) else { continue };
            if lock.is_some() {
                // Gone already is as good; anything else costs room, and the next one tries again.
                let _ = fs::remove_file(&path);
            }
        }
    }

    /// Writes `index.json` if a tag changed, and waits for another process that is writing it and may
    /// have passed our tag. For those who end afterwards; a server comes back to it.
    ///
    /// # Errors
    /// [`StoreError`] if the disk refuses.
    pub fn settle_index(&self) -> Result<(), StoreError> {
        for _ in 0..INDEX_ROUNDS_MAX {
            if !self.is_index_outdated() {
                break;
            }
            self.write_index()?;
            if self.is_index_outdated() {
                let path = self.inner.layout.index_lock();
                let waited = self.inner.layout.open_lock(&path).and_then(FileLock::exclusive);
                waited.map_err(|error| StoreError::write(&path, error))?;
            }
        }
        Ok(())
    }
}

impl Store {
    /// A file of these bytes that has no name: it disappears with its last descriptor, whatever happens
    /// to the process.
    ///
    /// # Errors
    /// [`StoreError`] if the directory is read-only or the disk refuses.
    pub fn unlinked_file(&self, bytes: &[u8]) -> Result<File, StoreError> {
        if !self.is_writable() {
            return Err(StoreError::ReadOnly { root: self.root().to_owned() });
        }
        let path = self.inner.layout.temporary();
        let failed = |error| StoreError::write(&path, error);
        let mut options = File::options();
        let created = options.read(true).write(true).create_new(true).open(&path);
        let mut file = created.map_err(failed)?;
        // At once: a process that is killed here leaves an empty temporary file, which the next start
        // removes.
        fs::remove_file(&path).map_err(failed)?;
        file.write_all(bytes).map_err(failed)?;
        Ok(file)
    }
}

impl Inner {
    fn create_import_file(&self) -> Result<(PathBuf, File), StoreError> {
        let temporary = self.layout.temporary();
        let name = temporary.file_name().unwrap_or_default().to_string_lossy();
        let path = temporary.with_file_name(format!("{PREFIX}{name}"));
        let file = File::create_new(&path).map_err(|error| StoreError::write(&path, error))?;
        // At once: what a kill leaves has to be opened by whoever is to remove it.
        self.layout.owner().give(&file);
        Ok((path, file))
    }
}

impl DigestingWriter {
    /// Checks that the disk has room for `size_bytes` more, as far as can be known.
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
    /// [`StoreError`] if the disk refuses; [`StoreError::is_full`] tells the common case.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        (&*self.file).write_all(bytes).map_err(|error| StoreError::write(&self.path, error))?;
        self.verifier.update(bytes);
        self.bytes_written += bytes.len() as u64;
        self.store.inner.note_bytes_added(bytes.len() as u64);
        Ok(())
    }

    /// Forces the bytes to the disk and gives them the name of their digest, which is returned with
    /// their number.
    ///
    /// # Errors
    /// [`IngestError::WrongDigest`] if it is not the digest that was `told`, or the disk refuses.
    pub fn commit(self, told: Option<&Digest>) -> Result<(Digest, u64), IngestError> {
        let digest = self.verifier.clone().finish();
        if let Some(expected) = told.filter(|told| **told != digest) {
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
        inner.publish(&self.path, &inner.layout.blob(digest))
    }
}

impl Drop for DigestingWriter {
    fn drop(&mut self) {
        // After a commit the name leads nowhere any more, which is as it should be.
        if fs::remove_file(&self.path).is_ok() {
            self.store.inner.note_bytes_removed(self.bytes_written);
        }
    }
}
