//! Ingest: the only way for downloaded bytes to become a blob.
//!
//! An ingest is a transaction. [`Store::resume`] continues an earlier one without creating anything.
//! [`Store::ingest`] begins one after upstream was found to have the content. [`Ingest::write`] appends bytes,
//! [`Ingest::verify`] checks size and digest, and [`Verified::commit`] publishes the blob. Dropping an ingest
//! earlier leaves no name but keeps the bytes: a partial survives a failure, a kill and a restart, and the next
//! ingest appends to it. Its bytes do not count until they are hashed again and the complete content matches.
//!
//! A partial has one writer, which holds `flock` on the file itself. The lock belongs to the inode, and a commit
//! renames that inode. So a process that gets the lock checks that the path still refers to this inode; otherwise
//! it could write into a finished blob.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::blobs::Blob;
use super::partial::Partial;
use super::partials::{PartialNote, remove_empty_parent};
use super::progress;
use crate::oci::{Digest, ImageName, Upstream};
use crate::store::files::outgoing::OutgoingKind;
use crate::store::files::read::is_same_file;
use crate::store::files::record::Access;
use crate::store::files::write::renew;
use crate::store::locks::FileLock;
use crate::store::{Inner, Store, StoreError};
use crate::units::plural;

/// How often another process may have committed a partial between opening and locking it. In each round another
/// process finishes the blob, so one round is the normal case.
const LOCK_ROUNDS_MAX: u32 = 8;

/// The result of [`Store::resume`] or [`Store::ingest`].
#[derive(Debug)]
pub enum Begin {
    /// This caller is the writer.
    Writing(Box<Ingest>),
    /// The blob is in the store.
    Present(Blob),
    /// Another process is writing the partial.
    Locked,
    /// Neither the blob nor a partial exists: [`Store::ingest`] begins one.
    Absent,
}

/// Whether to create a missing partial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IfMissing {
    Create,
    Leave,
}

/// A blob that is being written. Dropping it keeps the partial, so that the next ingest can continue it.
#[derive(Debug)]
pub struct Ingest {
    store: Store,
    digest: Digest,
    path: PathBuf,
    note: PathBuf,
    /// Locked until the ingest ends, even if readers keep the file open longer.
    file: FileLock,
    partial: Arc<Partial>,
    /// Whether an earlier download has left bytes, and perhaps a note.
    is_resumed: bool,
    /// Whether this process has written a note.
    is_noted: bool,
    /// Whether dropping removes the partial, because its bytes are wrong.
    discard: bool,
}

impl Store {
    /// Resumes the partial of `digest` where an earlier download stopped. Creates nothing, since a client can
    /// request a digest that does not exist.
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

    /// Begins to write the blob of `digest`, which upstream was found to have, unless the store has it (with
    /// `expected_bytes`, if known) or another process is writing it.
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

    /// Begins to write a blob that another process is writing as well. The partial has a temporary name, and is removed
    /// unless it becomes the blob.
    pub(super) fn ingest_apart(&self, digest: &Digest) -> Result<Ingest, StoreError> {
        let path = self.inner.layout.temporary();
        let mut options = File::options();
        let opened =
            self.inner.layout.owner().open(options.read(true).write(true).create_new(true), &path);
        let locked = opened.and_then(FileLock::try_exclusive);
        let lock = locked
            .map_err(|error| StoreError::write(&path, error))?
            .ok_or_else(|| StoreError::Locked { digest: Box::new(*digest) })?;
        Ok(Ingest {
            store: self.clone(),
            digest: *digest,
            note: path.with_extension("json"),
            partial: Arc::new(Partial::open(self, digest, &path, &lock, false)),
            path,
            file: lock,
            is_resumed: false,
            is_noted: false,
            discard: true,
        })
    }

    fn open_partial(
        &self,
        upstream: &Upstream,
        digest: &Digest,
        expected_bytes: Option<u64>,
        if_missing: IfMissing,
    ) -> Result<Begin, StoreError> {
        self.require_writable()?;
        let path = self.inner.layout.partial(upstream, digest);
        for _ in 0..LOCK_ROUNDS_MAX {
            let Some(file) = self.open_partial_file(&path, if_missing)? else {
                match (self.find_blob(digest, expected_bytes)?, if_missing) {
                    (Some(blob), _) => return Ok(Begin::Present(blob)),
                    (None, IfMissing::Leave) => return Ok(Begin::Absent),
                    // Another process removed the directory, with its last partial, after this one created it.
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
            let is_resumed =
                if_missing == IfMissing::Leave || !lock.metadata().is_ok_and(|is| is.len() == 0);
            if let Some(blob) = self.find_blob(digest, expected_bytes)? {
                // The blob was finished before this process got the lock, so the partial is useless.
                self.inner.note_bytes_removed(lock.metadata().map_or(0, |is| is.len()));
                let _ = fs::remove_file(&note);
                progress::remove_beside(&path);
                let _ = fs::remove_file(&path);
                remove_empty_parent(&path);
                return Ok(Begin::Present(blob));
            }
            return Ok(Begin::Writing(Box::new(Ingest {
                store: self.clone(),
                digest: *digest,
                note,
                partial: Arc::new(Partial::open(self, digest, &path, &lock, is_resumed)),
                path,
                file: lock,
                is_resumed,
                is_noted: false,
                discard: false,
            })));
        }
        Ok(Begin::Locked)
    }

    /// Opens the partial; `None` if it or its directory does not exist.
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
                    Err(error) if was_removed_meanwhile(&error, parent) => return Ok(None),
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

    /// Ingests bytes that are in memory (a manifest). Replaces a blob with wrong content.
    ///
    /// Needs no partial and no lock: two writers have the same content, and a rename is atomic.
    ///
    /// # Errors
    /// [`IngestError`] if the bytes do not match the digest, or a write fails.
    pub fn ingest_bytes(&self, digest: &Digest, bytes: &[u8]) -> Result<(), IngestError> {
        let actual = Digest::of(digest.algorithm(), bytes);
        if actual != *digest {
            return Err(IngestError::WrongDigest { expected: *digest, actual: actual.into() });
        }
        if self.read(digest, bytes.len() as u64).is_some() {
            return Ok(());
        }
        let path = self.inner.layout.blob(digest);
        let write = || self.inner.replace(&path, bytes);
        self.inner.queued(OutgoingKind::Blob, &path, write).map_err(IngestError::Store)
    }
}

/// Whether the creation of a directory failed because another writer removed it with its last partial. A third one may
/// have created it again since. Any other error, such as a full disk, would happen again.
fn was_removed_meanwhile(error: &io::Error, directory: &Path) -> bool {
    matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound)
        && (directory.is_dir() || !directory.exists())
}

impl Ingest {
    /// The growing file, for readers that follow it by offset.
    pub fn file(&self) -> &Arc<File> {
        self.file.shared_file()
    }

    /// Number of bytes written, without those after the first missing byte.
    pub fn bytes_written(&self) -> u64 {
        self.partial.bytes_written()
    }

    /// The bytes, for other threads that write or hash some of them. Nobody may write after the ingest has ended.
    pub fn partial(&self) -> &Arc<Partial> {
        &self.partial
    }

    /// Notes the repository and the size of the blob beside the partial, so that a restarted server can resume the download
    /// without a request of a client, and before its bytes are hashed.
    ///
    /// # Errors
    /// [`StoreError`] if a write fails.
    pub fn note(&mut self, origin: &ImageName, size: Option<u64>) -> Result<(), StoreError> {
        let note = PartialNote { repository: origin.repository.to_string(), size };
        let json = serde_json::to_vec(&note)
            .map_err(|error| StoreError::write(&self.note, io::Error::other(error)))?;
        self.is_noted = true;
        self.store.inner.replace(&self.note, &json)
    }

    /// The size of the blob that an earlier download has noted.
    pub fn noted_size(&self) -> Option<u64> {
        let note = self.store.record::<PartialNote>(&self.note, Access::Look);
        note.filter(|_| self.is_resumed)?.size
    }

    /// Whether the written bytes match the digest: a process died between the last byte and the rename. Hashes those
    /// that are not hashed yet.
    ///
    /// # Errors
    /// [`StoreError`] if the partial cannot be read.
    pub fn is_complete(&self) -> Result<bool, StoreError> {
        Ok(self.bytes_written() > 0 && self.partial.digest()? == self.digest)
    }

    fn may_have_note(&self) -> bool {
        self.is_noted || self.is_resumed
    }

    /// Removes the partial, because its bytes are wrong.
    pub fn discard(mut self) {
        self.discard = true;
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// [`StoreError`] if a write fails; [`StoreError::is_full`] covers the common case.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.write_at(self.bytes_written(), bytes)
    }

    /// Writes bytes, and hashes them if they continue what is hashed. See [`Partial::write_at`].
    ///
    /// # Errors
    /// As [`Ingest::write`].
    pub fn write_at(&mut self, at: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let was = self.partial.total_bytes();
        self.partial.write_at(at, bytes)?;
        self.partial.hash_written(at, bytes, was);
        Ok(())
    }

    /// Checks that the content is complete and matches the digest. From here on it may be served, even if the
    /// commit fails.
    ///
    /// # Errors
    /// [`IngestError::WrongSize`] or [`IngestError::WrongDigest`]; the partial is removed.
    pub fn verify(self, expected_bytes: Option<u64>) -> Result<Verified, IngestError> {
        let wrong = self.wrongness(expected_bytes).map_err(IngestError::Store)?;
        match wrong {
            None => Ok(Verified(self)),
            Some(wrong) => {
                self.discard();
                Err(wrong)
            }
        }
    }

    fn wrongness(&self, expected_bytes: Option<u64>) -> Result<Option<IngestError>, StoreError> {
        // The length on the disk counts as well: the hash covers only bytes that were written or recovered.
        let on_disk = self.file.metadata().map_or(0, |metadata| metadata.len());
        let written = self.bytes_written();
        let expected = expected_bytes.unwrap_or(written);
        if let Some(actual) = [written, on_disk].into_iter().find(|is| *is != expected) {
            return Ok(Some(IngestError::WrongSize { expected, actual }));
        }
        let actual = self.partial.digest()?;
        Ok((actual != self.digest)
            .then(|| IngestError::WrongDigest { expected: self.digest, actual: actual.into() }))
    }
}

/// A complete and verified blob that has no name yet.
#[derive(Debug)]
pub struct Verified(Ingest);

impl Verified {
    /// Syncs the bytes to the disk and gives the blob its name.
    ///
    /// # Errors
    /// [`StoreError`] if a write fails; the partial stays.
    pub fn commit(mut self) -> Result<Blob, StoreError> {
        let ingest = &mut self.0;
        let inner: &Inner = &ingest.store.inner;
        if ingest.is_resumed {
            // A process may have written it days ago and been killed before the rename. From now on it counts as new.
            renew(&ingest.file);
        }
        if inner.fsync {
            ingest.file.sync_data().map_err(|error| StoreError::write(&ingest.path, error))?;
        }
        // Any other file at the partial's path is not verified.
        if !is_same_file(&ingest.path, &ingest.file) {
            let other = io::Error::other("the partial was moved or replaced");
            return Err(StoreError::write(&ingest.path, other));
        }
        // The note first: after the rename, this could remove the note of the next partial. A note without its
        // partial is ignored, so this may fail.
        if ingest.may_have_note() {
            let _ = fs::remove_file(&ingest.note);
        }
        ingest.partial.forget_progress();
        let path = inner.layout.blob(&ingest.digest);
        let publish = || inner.publish_counted(&ingest.path, &path);
        inner.queued(OutgoingKind::Blob, &path, publish)?;
        Ok(Blob { file: Arc::clone(ingest.file()), size: ingest.bytes_written() })
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        let length = self.file.metadata().ok().map(|metadata| metadata.len());
        if (self.discard || length == Some(0)) && is_same_file(&self.path, &self.file) {
            self.store.inner.note_bytes_removed(self.partial.total_bytes());
            // Still locked, so no other writer uses these names. The partial last, which ends the lock's
            // protection.
            if self.may_have_note() {
                let _ = fs::remove_file(&self.note);
            }
            self.partial.forget_progress();
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Why an ingest failed.
#[derive(Debug)]
pub enum IngestError {
    /// The source ended early or sent too much.
    WrongSize {
        /// The announced size.
        expected: u64,
        /// The received size.
        actual: u64,
    },
    /// The bytes do not match the digest.
    WrongDigest {
        /// The requested digest.
        expected: Digest,
        /// The digest of the received bytes; boxed, since many results carry this error.
        actual: Box<Digest>,
    },
    /// A disk operation failed.
    Store(StoreError),
}

impl fmt::Display for IngestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IngestError::WrongSize { expected, actual } => {
                write!(f, "received {} instead of {expected}", plural(*actual, "byte"))
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
