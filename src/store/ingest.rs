//! Ingest: the one way for bytes to become a blob.
//!
//! A transaction: [`Store::resume`] takes up what is left of an earlier one without creating anything,
//! [`Store::ingest`] begins it once the content was found to exist, [`Ingest::write`] adds bytes, [`Ingest::verify`] checks
//! size and digest, [`Verified::commit`] publishes. Dropping it at any point before leaves no name,
//! but the bytes: a partial survives a failure, a kill and a restart, and the next ingest goes on
//! behind it. Its bytes count for nothing until they were hashed again and the whole agreed.
//!
//! A partial has one writer, who holds `flock` on the file itself. The lock is on the inode, and a
//! commit renames that inode; so whoever gets the lock checks that the path still leads to it, else it
//! would write into a finished blob.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::StoreError;
use super::lock::FileLock;
use super::partials::{PartialNote, remove_empty_parent};
use super::sweep::renew;
use super::{Blob, Inner, Store};
use crate::oci::{Digest, ImageName, Upstream, Verifier};

/// How often a partial may turn out to have been committed by another process between opening and
/// locking it. Each round means that somebody finished the blob, so one is the ordinary case.
const LOCK_ROUNDS_MAX: u32 = 8;

/// What [`Store::resume`] found.
#[derive(Debug)]
pub enum Begin {
    /// This caller is the writer.
    Writing(Box<Ingest>),
    /// The blob is in the store.
    Present(Blob),
    /// Another process is writing the partial.
    Locked,
    /// There is neither: [`Store::ingest`] begins one.
    Absent,
}

/// Whether a partial that does not exist is created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IfMissing {
    Create,
    Leave,
}

/// A blob that is being written. Dropping it keeps the partial, for the next ingest to go on with.
#[derive(Debug)]
pub struct Ingest {
    store: Store,
    digest: Digest,
    path: PathBuf,
    note: PathBuf,
    /// Locked until the ingest ends, however long readers keep it open.
    file: FileLock,
    verifier: Verifier,
    bytes_written: u64,
    /// Whether the partial is of no use any more: wrong, or empty, or not ours.
    discard: bool,
}

impl Store {
    /// Takes up the partial of `digest` where an earlier download left it, and creates nothing: a client can
    /// name anything, and what it names may not exist.
    ///
    /// # Errors
    /// [`StoreError`] if the directory is read-only or the partial cannot be opened.
    pub fn resume(
        &self,
        upstream: &Upstream,
        digest: &Digest,
        expected_bytes: Option<u64>,
    ) -> Result<Begin, StoreError> {
        self.open_partial(upstream, digest, expected_bytes, IfMissing::Leave)
    }

    /// Begins to write the blob of `digest`, which its upstream was found to have, unless it is in the store
    /// (with `expected_bytes`, where known) or another process is writing it.
    ///
    /// # Errors
    /// [`StoreError`] if the directory is read-only or the partial cannot be created.
    pub fn ingest(
        &self,
        upstream: &Upstream,
        digest: &Digest,
        expected_bytes: Option<u64>,
    ) -> Result<Begin, StoreError> {
        self.open_partial(upstream, digest, expected_bytes, IfMissing::Create)
    }

    fn open_partial(
        &self,
        upstream: &Upstream,
        digest: &Digest,
        expected_bytes: Option<u64>,
        if_missing: IfMissing,
    ) -> Result<Begin, StoreError> {
        if !self.is_writable() {
            return Err(StoreError::ReadOnly { root: self.root().to_owned() });
        }
        let path = self.inner.layout.partial(upstream, digest);
        for _ in 0..LOCK_ROUNDS_MAX {
            let Some(file) = self.open_partial_file(&path, if_missing)? else {
                match (self.find_blob(digest, expected_bytes)?, if_missing) {
                    (Some(blob), _) => return Ok(Begin::Present(blob)),
                    (None, IfMissing::Leave) => return Ok(Begin::Absent),
                    // The directory was removed with its last partial between creation and opening.
                    (None, IfMissing::Create) => continue,
                }
            };
            let lock = FileLock::try_exclusive(file);
            let Some(lock) = lock.map_err(|error| StoreError::write(&path, error))? else {
                return Ok(Begin::Locked);
            };
            if !is_same_file(&path, &lock) {
                continue;
            }
            let note = self.inner.layout.partial_note(upstream, digest);
            if let Some(blob) = self.find_blob(digest, expected_bytes)? {
                // Ours by the lock, and of no use: its blob was finished before we got here.
                self.inner.note_bytes_removed(lock.metadata().map_or(0, |is| is.len()));
                let _ = fs::remove_file(&note);
                let _ = fs::remove_file(&path);
                remove_empty_parent(&path);
                return Ok(Begin::Present(blob));
            }
            return Ok(Begin::Writing(Box::new(Ingest {
                store: self.clone(),
                digest: *digest,
                note,
                path,
                file: lock,
                verifier: Verifier::new(digest.algorithm()),
                bytes_written: 0,
                discard: false,
            })));
        }
        Ok(Begin::Locked)
    }

    /// The open partial; `None` if it, or its directory, does not exist.
    fn open_partial_file(
        &self,
        path: &Path,
        if_missing: IfMissing,
    ) -> Result<Option<File>, StoreError> {
        let mut options = File::options();
        options.read(true).write(true).truncate(false);
        if if_missing == IfMissing::Create {
            if let Some(parent) = path.parent() {
                match self.inner.create_directories(parent) {
                    // Another writer has removed it meanwhile, with the last partial in it.
                    Err(_) if !parent.exists() => return Ok(None),
                    created => created.map_err(|error| StoreError::write(parent, error))?,
                }
            }
            options.create(true);
        }
        match self.inner.layout.owner().open(&mut options, path) {
            Ok(file) if file.metadata().is_ok_and(|is| is.is_file()) => Ok(Some(file)),
            Ok(_) => Err(StoreError::write(path, io::Error::other("it is not a regular file"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::write(path, error)),
        }
    }

    /// Ingests bytes that are at hand (a manifest). Replaces a file of that name whose bytes are wrong.
    ///
    /// Needs no partial and no lock: of two writers both have the same content, and a rename is atomic.
    ///
    /// # Errors
    /// [`IngestError`] if they do not have the digest, or the disk refuses.
    pub fn ingest_bytes(&self, digest: &Digest, bytes: &[u8]) -> Result<(), IngestError> {
        let actual = Digest::of(digest.algorithm(), bytes);
        if actual != *digest {
            return Err(IngestError::WrongDigest { expected: *digest, actual: actual.into() });
        }
        if self.read(digest, bytes.len() as u64).is_some() {
            return Ok(());
        }
        let path = self.inner.layout.blob(digest);
        self.inner.replace(&path, bytes).map_err(IngestError::Store)
    }
}

/// Whether `path` still names the file that is open.
pub(super) fn is_same_file(path: &Path, file: &File) -> bool {
    match (fs::metadata(path), file.metadata()) {
        (Ok(named), Ok(open)) => (named.dev(), named.ino()) == (open.dev(), open.ino()),
        _ => false,
    }
}

impl Ingest {
    /// The growing file, for readers that follow it by offset.
    pub fn file(&self) -> &Arc<File> {
        self.file.shared_file()
    }

    /// How many bytes were written.
    pub fn bytes_written(&self) -> u64 {
        self.bytes_written
    }

    /// Notes beside the partial for which repository it is, so that a later start can go on with it
    /// unasked.
    ///
    /// # Errors
    /// [`StoreError`] if the disk refuses.
    pub fn note_origin(&self, origin: &ImageName) -> Result<(), StoreError> {
        let note = PartialNote { repository: origin.repository.to_string() };
        let json = serde_json::to_vec(&note)
            .map_err(|error| StoreError::write(&self.note, io::Error::other(error)))?;
        self.store.inner.replace(&self.note, &json)
    }

    /// Reads the next chunk of what an earlier ingest has left, as if it had been written now. `false`
    /// once there is no more: then the download goes on from [`Ingest::bytes_written`].
    ///
    /// A chunk at a time, so that readers can follow: hashing the whole of a large partial takes longer
    /// than a client waits.
    ///
    /// # Errors
    /// [`StoreError`] if the partial cannot be read.
    pub fn recover(&mut self, buffer: &mut [u8]) -> Result<bool, StoreError> {
        let read = self
            .file
            .read_at(buffer, self.bytes_written)
            .map_err(|error| StoreError::write(&self.path, error))?;
        self.verifier.update(&buffer[..read]);
        self.bytes_written += read as u64;
        Ok(read > 0)
    }

    /// Whether what is there has the digest already: a process died between the last byte and the name.
    pub fn is_complete(&self) -> bool {
        self.bytes_written > 0 && self.verifier.clone().finish() == self.digest
    }

    /// Throws the partial away: its bytes are wrong.
    pub fn discard(mut self) {
        self.discard = true;
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// [`StoreError`] if the disk refuses; [`StoreError::is_full`] tells the common case.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.file
            .write_all_at(bytes, self.bytes_written)
            .map_err(|error| StoreError::write(&self.path, error))?;
        self.verifier.update(bytes);
        self.bytes_written += bytes.len() as u64;
        self.store.inner.note_bytes_added(bytes.len() as u64);
        Ok(())
    }

    /// Checks that all bytes are there and that they have the digest. From here on they may be shown
    /// to anybody, whatever becomes of the commit.
    ///
    /// # Errors
    /// [`IngestError::WrongSize`] or [`IngestError::WrongDigest`]; the partial is removed.
    pub fn verify(self, expected_bytes: Option<u64>) -> Result<Verified, IngestError> {
        let wrong = self.wrongness(expected_bytes);
        match wrong {
            None => Ok(Verified(self)),
            Some(wrong) => {
                self.discard();
                Err(wrong)
            }
        }
    }

    fn wrongness(&self, expected_bytes: Option<u64>) -> Option<IngestError> {
        // What is on the disk counts as well: the hash has seen only what was written or recovered.
        let on_disk = self.file.metadata().map_or(0, |metadata| metadata.len());
        let expected = expected_bytes.unwrap_or(self.bytes_written);
        if let Some(actual) = [self.bytes_written, on_disk].into_iter().find(|is| *is != expected) {
            return Some(IngestError::WrongSize { expected, actual });
        }
        let actual = self.verifier.clone().finish();
        (actual != self.digest)
            .then(|| IngestError::WrongDigest { expected: self.digest, actual: actual.into() })
    }
}

/// A complete, verified blob that has no name yet.
#[derive(Debug)]
pub struct Verified(Ingest);

impl Verified {
    /// Forces the bytes to the disk and gives them their name.
    ///
    /// # Errors
    /// [`StoreError`] if the disk refuses; the partial stays.
    pub fn commit(mut self) -> Result<Blob, StoreError> {
        let ingest = &mut self.0;
        let inner: &Inner = &ingest.store.inner;
        // It may have been written days ago, by a process that was killed before the name; it is new now.
        renew(&ingest.file);
        if inner.fsync {
            ingest.file.sync_data().map_err(|error| StoreError::write(&ingest.path, error))?;
        }
        // Whatever else has got the name of our partial was not verified.
        if !is_same_file(&ingest.path, &ingest.file) {
            let other = io::Error::other("another file has its name, or none has");
            return Err(StoreError::write(&ingest.path, other));
        }
        // The note first: once the partial has its other name, the next one's note could be removed.
        // A note without its partial is passed over, so this may fail.
        let _ = fs::remove_file(&ingest.note);
        inner.publish(&ingest.path, &inner.layout.blob(&ingest.digest))?;
        Ok(Blob { file: Arc::clone(ingest.file()), size: ingest.bytes_written })
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        let length = self.file.metadata().ok().map(|metadata| metadata.len());
        if (self.discard || length == Some(0)) && is_same_file(&self.path, &self.file) {
            self.store.inner.note_bytes_removed(length.unwrap_or_default());
            // Under the lock, so the names are ours to remove; the partial last, which ends that.
            let _ = fs::remove_file(&self.note);
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Why an ingest was refused.
#[derive(Debug)]
pub enum IngestError {
    /// The source ended early or went on too long.
    WrongSize {
        /// What was announced.
        expected: u64,
        /// What came.
        actual: u64,
    },
    /// The bytes are not those of the digest.
    WrongDigest {
        /// The digest asked for.
        expected: Digest,
        /// The digest of what came; boxed, since results carry this error everywhere.
        actual: Box<Digest>,
    },
    /// The disk refused.
    Store(StoreError),
}

impl fmt::Display for IngestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IngestError::WrongSize { expected, actual } => {
                write!(f, "{actual} bytes came instead of {expected}")
            }
            IngestError::WrongDigest { expected, actual } => {
                write!(f, "the bytes have the digest {actual}, not {expected}")
            }
            IngestError::Store(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for IngestError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            IngestError::Store(error) => Some(error),
            _ => None,
        }
    }
}
