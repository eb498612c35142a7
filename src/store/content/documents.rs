//! Documents: the bodies of manifests and lists on their way between registries, the disk and clients.
//!
//! A document has a few bytes or several megabytes, and many clients may request many documents and read them slowly. So
//! only small documents stay in memory. A larger one is a file that all its readers share: a stored one, or an unlinked
//! file that vanishes with its last reader. If the disk accepts no file, the document stays in memory. Both uses are
//! bounded. Large files are parsed one at a time (`large_documents.rs`).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::ingest::IngestError;
use crate::oci::{Digest, MANIFEST_BYTES_MAX};
use crate::store::{Store, StoreError};

/// Lists up to this size stay in memory: two thousand slow readers of different lists use 16 MiB.
pub(in crate::store) const SMALL_LIST_BYTES_MAX: usize = 8 * 1024;
/// Manifests up to this size stay in memory while they are fetched. Few are larger, and 64 fetchers use 8 to 16 MiB.
const SMALL_MANIFEST_BYTES_MAX: usize = 128 * 1024;
/// The buffer size for writes to a file, and the step in which space is reserved.
const CHUNK_BYTES: usize = 64 * 1024;
/// Bytes of unlinked files, of lists and of manifests each: enough for dozens of large documents at a time.
const UNLINKED_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Bytes of large documents in memory when the disk accepts no file, of lists and of manifests each.
const LARGE_IN_MEMORY_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The bytes of a document, shared by all its readers.
#[derive(Debug, Clone)]
pub enum Document {
    /// In memory.
    Memory(Arc<[u8]>),
    /// A range of a file that never changes.
    File {
        /// Read it by explicit offset.
        file: Arc<File>,
        /// Offsets in bytes.
        range: Range<u64>,
    },
}

impl Document {
    /// Its size in bytes.
    pub fn length(&self) -> u64 {
        match self {
            Document::Memory(bytes) => bytes.len() as u64,
            Document::File { range, .. } => range.end.saturating_sub(range.start),
        }
    }

    /// Reads the complete document, for parsing.
    ///
    /// # Errors
    /// Read errors of the disk.
    pub fn read(&self) -> io::Result<Vec<u8>> {
        match self {
            Document::Memory(bytes) => Ok(bytes.to_vec()),
            Document::File { file, range } => {
                let mut bytes = vec![0; usize::try_from(self.length()).unwrap_or(usize::MAX)];
                file.read_exact_at(&mut bytes, range.start)?;
                Ok(bytes)
            }
        }
    }

    /// Calls `use_chunk` with consecutive parts of the document until it fails.
    pub(in crate::store) fn chunks<E>(
        &self,
        read_failed: impl Fn(io::Error) -> E,
        mut use_chunk: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        match self {
            Document::Memory(bytes) => use_chunk(bytes),
            Document::File { file, range } => {
                let mut buffer = vec![0; CHUNK_BYTES];
                let mut at = range.start;
                while at < range.end {
                    let left = usize::try_from(range.end - at).unwrap_or(CHUNK_BYTES);
                    let chunk = &mut buffer[..left.min(CHUNK_BYTES)];
                    file.read_exact_at(chunk, at).map_err(&read_failed)?;
                    use_chunk(chunk)?;
                    at += chunk.len() as u64;
                }
                Ok(())
            }
        }
    }
}

/// A limit in bytes. Counts documents that are being written and documents that still have readers.
#[derive(Debug)]
struct Budget<T: ?Sized> {
    max: u64,
    writing: u64,
    shared: Vec<(Weak<T>, u64)>,
    shared_bytes: u64,
}

impl<T: ?Sized> Budget<T> {
    fn new(max: u64) -> Budget<T> {
        Budget { max, writing: 0, shared: Vec::new(), shared_bytes: 0 }
    }

    fn reserve(&mut self, bytes: u64) -> bool {
        let fits = |budget: &Self| budget.writing + budget.shared_bytes + bytes <= budget.max;
        if !fits(self) {
            // Also frees the memory of documents without readers.
            self.shared.retain(|(shared, _)| shared.strong_count() > 0);
            self.shared_bytes = self.shared.iter().map(|(_, bytes)| bytes).sum();
        }
        let is_granted = fits(self);
        self.writing += if is_granted { bytes } else { 0 };
        is_granted
    }

    fn release(&mut self, bytes: u64) {
        self.writing = self.writing.saturating_sub(bytes);
    }

    fn share(&mut self, reserved: u64, what: &Arc<T>) {
        self.release(reserved);
        self.shared_bytes += reserved;
        self.shared.push((Arc::downgrade(what), reserved));
    }
}

/// Limits for documents of one kind that are not stored.
#[derive(Debug)]
pub(in crate::store) struct DocumentBudgets {
    files: Mutex<Budget<File>>,
    memory: Mutex<Budget<[u8]>>,
}

impl Default for DocumentBudgets {
    fn default() -> DocumentBudgets {
        DocumentBudgets {
            files: Mutex::new(Budget::new(UNLINKED_BYTES_MAX)),
            memory: Mutex::new(Budget::new(LARGE_IN_MEMORY_BYTES_MAX)),
        }
    }
}

/// Locks a budget. A panic cannot leave it inconsistent, so poisoning is ignored.
fn lock<T: ?Sized>(budget: &Mutex<Budget<T>>) -> MutexGuard<'_, Budget<T>> {
    budget.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The kinds of documents. They have separate budgets, so that clients that do not read lists take no space of manifests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Manifest,
    List,
}

/// The number of kinds.
pub(in crate::store) const KINDS: usize = 2;

impl Kind {
    fn small_bytes_max(self) -> usize {
        match self {
            Kind::Manifest => SMALL_MANIFEST_BYTES_MAX,
            Kind::List => SMALL_LIST_BYTES_MAX,
        }
    }

    fn budgets(self, store: &Store) -> &DocumentBudgets {
        &store.inner.budgets[self as usize]
    }
}

/// A document that is being written. No reader sees it yet.
#[derive(Debug)]
pub struct DocumentWriter {
    store: Store,
    kind: Kind,
    /// The file and the number of bytes written to it.
    file: Option<(Arc<File>, u64)>,
    /// The complete document, or the part that is not in the file yet.
    buffer: Vec<u8>,
    reserved_of_files: u64,
    reserved_of_memory: u64,
    /// The disk accepts no more bytes.
    is_in_memory: bool,
    is_refused: bool,
}

impl DocumentWriter {
    /// Discards everything written so far.
    pub fn restart(&mut self) {
        *self = self.store.document_writer(self.kind);
    }

    /// Appends bytes. If they do not fit, [`DocumentWriter::finish`] and [`DocumentWriter::with_bytes`] return `None`.
    pub fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(CHUNK_BYTES) {
            if self.is_refused {
                return;
            }
            self.buffer.extend_from_slice(chunk);
            let limit = if self.file.is_some() { CHUNK_BYTES } else { self.kind.small_bytes_max() };
            if self.is_in_memory {
                self.reserve_memory(self.buffer.len() as u64);
            } else if self.buffer.len() > limit {
                self.write_out();
            }
        }
    }

    /// Writes the buffer to the file. If the disk accepts no file, the document stays in memory. If other documents use all
    /// space for files, it is refused: they would soon use all memory as well.
    fn write_out(&mut self) {
        let budget = &self.kind.budgets(&self.store).files;
        let (needed, written) =
            (self.buffer.len() as u64, self.file.as_ref().map_or(0, |(_, written)| *written));
        while written + needed > self.reserved_of_files {
            if !lock(budget).reserve(CHUNK_BYTES as u64) {
                return self.refuse();
            }
            self.reserved_of_files += CHUNK_BYTES as u64;
        }
        if self.file.is_none() {
            let created = self.store.create_unlinked_file().ok();
            self.file = created.map(|file| (Arc::new(file), 0));
        }
        match &mut self.file {
            Some((file, written)) if file.write_all_at(&self.buffer, *written).is_ok() => {
                *written += needed;
                // The beginning was larger than the following parts.
                self.buffer.clear();
                self.buffer.shrink_to(2 * CHUNK_BYTES);
            }
            _ => self.keep_in_memory(),
        }
    }

    /// Moves the content of the file back to memory, since the file cannot grow.
    fn keep_in_memory(&mut self) {
        self.is_in_memory = true;
        let (file, written) = self.file.take().unzip();
        let written = written.unwrap_or(0);
        if !self.reserve_memory(written + self.buffer.len() as u64) {
            return;
        }
        if let Some(file) = file {
            let mut all = vec![0; usize::try_from(written).unwrap_or(usize::MAX)];
            if file.read_exact_at(&mut all, 0).is_err() {
                return self.refuse();
            }
            all.append(&mut self.buffer);
            self.buffer = all;
        }
        lock(&self.kind.budgets(&self.store).files).release(self.reserved_of_files);
        self.reserved_of_files = 0;
    }

    /// Reserves memory for `bytes` bytes, doubled because a vector grows by doubling.
    fn reserve_memory(&mut self, bytes: u64) -> bool {
        if 2 * bytes <= self.reserved_of_memory {
            return true;
        }
        let step = (2 * bytes - self.reserved_of_memory).max(CHUNK_BYTES as u64);
        let is_granted = lock(&self.kind.budgets(&self.store).memory).reserve(step);
        match is_granted {
            true => self.reserved_of_memory += step,
            false => self.refuse(),
        }
        is_granted
    }

    /// Gives up, and gives the space to other documents: the rest of this one may arrive slowly.
    fn refuse(&mut self) {
        self.is_refused = true;
        (self.buffer, self.file) = (Vec::new(), None);
        self.release();
    }

    /// Releases everything that was reserved.
    fn release(&mut self) {
        let budgets = self.kind.budgets(&self.store);
        lock(&budgets.files).release(std::mem::take(&mut self.reserved_of_files));
        lock(&budgets.memory).release(std::mem::take(&mut self.reserved_of_memory));
    }

    /// Writes the rest of the buffer to the file, if there is one. Returns `false` if the document did not fit.
    fn complete(&mut self) -> bool {
        if self.file.is_some() && !self.buffer.is_empty() {
            self.write_out();
        }
        !self.is_refused
    }

    /// Calls `use_bytes` with all bytes written so far, as [`Store::with_document`] does. Returns `None` if they did not fit
    /// or cannot be read.
    pub fn with_bytes<T: Send + 'static>(
        &mut self,
        use_bytes: impl FnOnce(&[u8]) -> T + Send + 'static,
    ) -> Option<T> {
        if !self.complete() {
            return None;
        }
        match &self.file {
            Some((file, written)) => self.store.with_range(file, 0..*written, use_bytes).ok(),
            None => Some(use_bytes(&self.buffer)),
        }
    }

    /// Returns the document; `None` if it did not fit.
    pub fn finish(mut self) -> Option<Document> {
        if !self.complete() {
            return None;
        }
        let budgets = self.kind.budgets(&self.store);
        Some(match self.file.take() {
            Some((file, written)) => {
                lock(&budgets.files).share(std::mem::take(&mut self.reserved_of_files), &file);
                Document::File { file, range: 0..written }
            }
            None => {
                let bytes: Arc<[u8]> = std::mem::take(&mut self.buffer).into();
                if self.reserved_of_memory > 0 {
                    // Twice the size was reserved while it grew. In one step, so that nothing else takes the rest meanwhile.
                    let mut budget = lock(&budgets.memory);
                    let length = bytes.len() as u64;
                    budget.release(self.reserved_of_memory.saturating_sub(length));
                    budget.share(length, &bytes);
                    self.reserved_of_memory = 0;
                }
                Document::Memory(bytes)
            }
        })
    }
}

impl Drop for DocumentWriter {
    fn drop(&mut self) {
        self.release();
    }
}

impl Store {
    /// Starts a manifest.
    pub fn manifest_writer(&self) -> DocumentWriter {
        self.document_writer(Kind::Manifest)
    }

    /// Starts a list.
    pub fn list_writer(&self) -> DocumentWriter {
        self.document_writer(Kind::List)
    }

    fn document_writer(&self, kind: Kind) -> DocumentWriter {
        DocumentWriter {
            store: self.clone(),
            kind,
            file: None,
            buffer: Vec::new(),
            reserved_of_files: 0,
            reserved_of_memory: 0,
            is_in_memory: false,
            is_refused: false,
        }
    }

    /// Stores a document as the blob `digest`.
    ///
    /// # Errors
    /// [`IngestError::WrongDigest`] if it has another digest, or [`IngestError::Store`] if a write fails.
    pub fn ingest_document(&self, digest: &Digest, document: &Document) -> Result<(), IngestError> {
        match document {
            Document::Memory(bytes) => self.ingest_bytes(digest, bytes),
            Document::File { .. } => {
                if self.find_verified(digest, document.length()).is_ok_and(|found| found.is_some())
                {
                    return Ok(());
                }
                let mut writer =
                    self.digesting_writer(digest.algorithm()).map_err(IngestError::Store)?;
                let path = self.inner.layout.incoming();
                document.chunks(
                    |error| IngestError::Store(StoreError::write(&path, error)),
                    |chunk| writer.write(chunk).map_err(IngestError::Store),
                )?;
                writer.commit(Some(digest)).map(|_| ())
            }
        }
    }

    /// Calls `use_bytes` with the content of the blob `digest` of `size_bytes` bytes, after it was verified. Returns
    /// `None` if it is absent or damaged.
    ///
    /// Large documents are used one at a time, on the thread for documents. So `use_bytes` must not read another document
    /// from the store (deadlock) or do slow work.
    ///
    /// # Errors
    /// [`StoreError::Read`] if the blob exists but cannot be read, or if its existence is unknown.
    pub fn with_document<T: Send + 'static>(
        &self,
        digest: &Digest,
        size_bytes: u64,
        use_bytes: impl FnOnce(&[u8]) -> T + Send + 'static,
    ) -> Result<Option<T>, StoreError> {
        let path = self.inner.layout.blob(digest);
        if size_bytes > MANIFEST_BYTES_MAX as u64 {
            return Ok(
                self.damaged(&path, "a record says that it is a document, and it is too large")
            );
        }
        let Some(blob) = self.find_blob(digest, Some(size_bytes))? else { return Ok(None) };
        let expected = *digest;
        let used = self.with_range(&blob.file, 0..blob.size, move |bytes| {
            (Digest::of(expected.algorithm(), bytes) == expected).then(|| use_bytes(bytes))
        });
        match used {
            Ok(None) => Ok(self.damaged(&path, "its content does not match its digest")),
            Ok(used) => Ok(used),
            Err(error) => self.failed_to_read(&path, error),
        }
    }

    /// Calls `use_bytes` with a range of a file, as [`Store::with_document`] does.
    fn with_range<T: Send + 'static>(
        &self,
        file: &Arc<File>,
        range: Range<u64>,
        use_bytes: impl FnOnce(&[u8]) -> T + Send + 'static,
    ) -> io::Result<T> {
        let (reply, result) = mpsc::sync_channel(1);
        self.read_range(file, range, move |read| {
            let _ = reply.send(read.map(use_bytes));
        });
        // A panic of `use_bytes` is in the log.
        result.recv().unwrap_or_else(|_| Err(io::Error::other("a document cannot be parsed")))
    }

    /// Calls `use_bytes` with a range of a file, unless it cannot be read: for hints. Does not wait if the range is large.
    pub fn with_range_later(
        &self,
        file: &Arc<File>,
        range: Range<u64>,
        use_bytes: impl FnOnce(&[u8]) + Send + 'static,
    ) {
        self.read_range(file, range, move |read| read.map(use_bytes).unwrap_or_default());
    }

    /// Reads a range of a file and calls `done`: here if the range is small, otherwise on the thread for documents.
    fn read_range(
        &self,
        file: &Arc<File>,
        range: Range<u64>,
        done: impl FnOnce(io::Result<&[u8]>) + Send + 'static,
    ) {
        match usize::try_from(range.end.saturating_sub(range.start)) {
            Ok(length) if length <= SMALL_MANIFEST_BYTES_MAX => {
                let mut bytes = vec![0; length];
                done(file.read_exact_at(&mut bytes, range.start).map(|()| &*bytes));
            }
            Ok(length) => self.inner.large_documents.read(file, range.start, length, done),
            Err(error) => done(Err(io::Error::other(error))),
        }
    }
}
