//! Lists: the last good answers to queries whose answers change (tag lists, referrers).
//!
//! A list has a few bytes or several megabytes, and many clients may read many lists slowly. So only small lists
//! stay in memory. A larger one is a file that all its readers share: a stored list, or an unlinked file that
//! vanishes with its last reader. If the disk accepts no file, the list stays in memory. Both uses are bounded.
//!
//! Stored lists share the directory `lists/`, so one directory listing is enough to enforce the bounds. Their names
//! are `<hash of the repository>-<hash of the query>`. A file is one line of JSON followed by the document. It is
//! replaced atomically, so a crash leaves the old list or the new one; a damaged file is a miss.

use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::oci::ImageName;
use crate::store::files::read::open_to_read;
use crate::store::{Inner, Store, StoreError};

/// Lists up to this size stay in memory: two thousand slow readers of different lists use 16 MiB.
const SMALL_BYTES_MAX: usize = 8 * 1024;
/// The buffer size for writes to a file, and the step in which space is reserved.
const CHUNK_BYTES: usize = 64 * 1024;
/// Bytes of unlinked files: enough for dozens of large lists at a time.
const UNLINKED_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Bytes of large lists in memory when the disk accepts no file.
const LARGE_IN_MEMORY_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Size of the first line of a stored list. The query of the next page is the longest part.
const HEADER_BYTES_MAX: usize = 32 * 1024;
/// Stored lists per repository: clients choose the query.
const LISTS_PER_REPOSITORY_MAX: usize = 16;
/// Bytes of all stored lists of a repository.
const BYTES_PER_REPOSITORY_MAX: u64 = 32 * 1024 * 1024;
/// Number of stored lists: each write lists the directory.
const LISTS_MAX: usize = 2048;

/// The last good answer to a query whose answer changes.
#[derive(Debug, Clone)]
pub struct ListRecord {
    /// When upstream sent it, in seconds since 1970.
    pub checked: u64,
    /// The JSON document.
    pub body: ListBody,
    /// The query of the next page, from upstream's `Link` header.
    pub next: Option<String>,
    /// `OCI-Filters-Applied`, if upstream filtered.
    pub filters_applied: Option<String>,
}

/// The document of a list, shared by all its readers.
#[derive(Debug, Clone)]
pub enum ListBody {
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

impl ListBody {
    /// Its size in bytes.
    pub fn length(&self) -> u64 {
        match self {
            ListBody::Memory(bytes) => bytes.len() as u64,
            ListBody::File { range, .. } => range.end.saturating_sub(range.start),
        }
    }

    /// Reads the complete document, for parsing.
    ///
    /// # Errors
    /// Read errors of the disk.
    pub fn read(&self) -> io::Result<Vec<u8>> {
        match self {
            ListBody::Memory(bytes) => Ok(bytes.to_vec()),
            ListBody::File { file, range } => {
                let mut bytes = vec![0; usize::try_from(self.length()).unwrap_or(usize::MAX)];
                file.read_exact_at(&mut bytes, range.start)?;
                Ok(bytes)
            }
        }
    }

    fn copy_to(&self, target: &mut File) -> io::Result<()> {
        use std::io::Write;
        match self {
            ListBody::Memory(bytes) => target.write_all(bytes),
            ListBody::File { file, range } => {
                let mut buffer = vec![0; CHUNK_BYTES];
                let mut at = range.start;
                while at < range.end {
                    let left = usize::try_from(range.end - at).unwrap_or(CHUNK_BYTES);
                    let chunk = &mut buffer[..left.min(CHUNK_BYTES)];
                    file.read_exact_at(chunk, at)?;
                    target.write_all(chunk)?;
                    at += chunk.len() as u64;
                }
                Ok(())
            }
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    checked: u64,
    next: Option<String>,
    filters_applied: Option<String>,
    /// The size of the document, in bytes.
    size: u64,
}

/// A limit in bytes for lists. Counts lists that are being written and lists that still have readers.
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
            // Also frees the memory of lists without readers.
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

/// Limits for lists that are not stored.
#[derive(Debug)]
pub(in crate::store) struct ListBudgets {
    files: Mutex<Budget<File>>,
    memory: Mutex<Budget<[u8]>>,
}

impl Default for ListBudgets {
    fn default() -> ListBudgets {
        ListBudgets {
            files: Mutex::new(Budget::new(UNLINKED_BYTES_MAX)),
            memory: Mutex::new(Budget::new(LARGE_IN_MEMORY_BYTES_MAX)),
        }
    }
}

/// Locks a budget. A panic cannot leave it inconsistent, so poisoning is ignored.
fn lock<T: ?Sized>(budget: &Mutex<Budget<T>>) -> MutexGuard<'_, Budget<T>> {
    budget.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A list that is being written. No reader sees it yet.
#[derive(Debug)]
pub struct ListWriter {
    store: Store,
    /// The file and the number of bytes written to it.
    file: Option<(File, u64)>,
    /// The complete list, or the part that is not in the file yet.
    buffer: Vec<u8>,
    reserved_of_files: u64,
    reserved_of_memory: u64,
    /// The disk accepts no more bytes.
    is_in_memory: bool,
    is_refused: bool,
}

impl ListWriter {
    /// Discards everything written so far.
    pub fn restart(&mut self) {
        *self = self.store.list_writer();
    }

    /// Appends bytes. If they do not fit, [`ListWriter::finish`] returns `None`.
    pub fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(CHUNK_BYTES) {
            if self.is_refused {
                return;
            }
            self.buffer.extend_from_slice(chunk);
            let limit = if self.file.is_some() { CHUNK_BYTES } else { SMALL_BYTES_MAX };
            if self.is_in_memory {
                self.reserve_memory(self.buffer.len() as u64);
            } else if self.buffer.len() > limit && !self.write_out() {
                self.keep_in_memory();
            }
        }
    }

    /// Writes the buffer to the file; returns false if that fails.
    fn write_out(&mut self) -> bool {
        let budget = &self.store.inner.list_budgets.files;
        let (needed, written) =
            (self.buffer.len() as u64, self.file.as_ref().map_or(0, |(_, written)| *written));
        while written + needed > self.reserved_of_files {
            if !lock(budget).reserve(CHUNK_BYTES as u64) {
                return false;
            }
            self.reserved_of_files += CHUNK_BYTES as u64;
        }
        if self.file.is_none() {
            match self.store.create_unlinked_file() {
                Ok(file) => self.file = Some((file, 0)),
                Err(_) => return false,
            }
        }
        let Some((file, written)) = &mut self.file else { return false };
        if file.write_all_at(&self.buffer, *written).is_err() {
            return false;
        }
        *written += needed;
        self.buffer.clear();
        true
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
        lock(&self.store.inner.list_budgets.files).release(self.reserved_of_files);
        self.reserved_of_files = 0;
    }

    /// Reserves memory for `bytes` bytes, doubled because a vector grows by doubling.
    fn reserve_memory(&mut self, bytes: u64) -> bool {
        if 2 * bytes <= self.reserved_of_memory {
            return true;
        }
        let step = (2 * bytes - self.reserved_of_memory).max(CHUNK_BYTES as u64);
        let is_granted = lock(&self.store.inner.list_budgets.memory).reserve(step);
        match is_granted {
            true => self.reserved_of_memory += step,
            false => self.refuse(),
        }
        is_granted
    }

    fn refuse(&mut self) {
        self.is_refused = true;
        (self.buffer, self.file) = (Vec::new(), None);
    }

    /// Returns the document; `None` if it did not fit.
    pub fn finish(mut self) -> Option<ListBody> {
        if self.file.is_some() && !self.buffer.is_empty() && !self.write_out() {
            self.keep_in_memory();
        }
        if self.is_refused {
            return None;
        }
        let budgets = &self.store.inner.list_budgets;
        Some(match self.file.take() {
            Some((file, written)) => {
                let file = Arc::new(file);
                lock(&budgets.files).share(std::mem::take(&mut self.reserved_of_files), &file);
                ListBody::File { file, range: 0..written }
            }
            None => {
                let bytes: Arc<[u8]> = std::mem::take(&mut self.buffer).into();
                if self.reserved_of_memory > 0 {
                    lock(&budgets.memory).release(self.reserved_of_memory);
                    self.reserved_of_memory = 0;
                    if lock(&budgets.memory).reserve(bytes.len() as u64) {
                        lock(&budgets.memory).share(bytes.len() as u64, &bytes);
                    }
                }
                ListBody::Memory(bytes)
            }
        })
    }
}

impl Drop for ListWriter {
    fn drop(&mut self) {
        let budgets = &self.store.inner.list_budgets;
        lock(&budgets.files).release(self.reserved_of_files);
        lock(&budgets.memory).release(self.reserved_of_memory);
    }
}

impl Store {
    /// Starts a list.
    pub fn list_writer(&self) -> ListWriter {
        ListWriter {
            store: self.clone(),
            file: None,
            buffer: Vec::new(),
            reserved_of_files: 0,
            reserved_of_memory: 0,
            is_in_memory: false,
            is_refused: false,
        }
    }

    /// The last good answer to the query `key` about a repository.
    pub fn list(&self, name: &ImageName, key: &str) -> Option<ListRecord> {
        let path = self.inner.layout.list(name, key);
        match read_list(&path) {
            Ok(record) => Some(record),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => self.damaged(&path, &error.to_string()),
        }
    }

    /// Stores an answer and returns true, unless the repository has neither a tag nor a manifest: clients can
    /// request lists of any repository and must not fill the disk with names. `total_bytes_max` bounds all stored
    /// lists together; the oldest are removed.
    ///
    /// # Errors
    /// [`StoreError`] if a write fails.
    pub fn put_list(
        &self,
        name: &ImageName,
        key: &str,
        is: &ListRecord,
        total_bytes_max: u64,
    ) -> Result<bool, StoreError> {
        let path = self.inner.layout.list(name, key);
        let header = Header {
            checked: is.checked,
            next: is.next.clone(),
            filters_applied: is.filters_applied.clone(),
            size: is.body.length(),
        };
        let mut line = serde_json::to_vec(&header)
            .map_err(|error| StoreError::write(&path, io::Error::other(error)))?;
        line.push(b'\n');
        let bytes = line.len() as u64 + is.body.length();
        let may_be = bytes <= total_bytes_max.min(BYTES_PER_REPOSITORY_MAX)
            && line.len() <= HEADER_BYTES_MAX;
        if !self.is_writable() || !may_be || !self.has_images(name)? {
            return Ok(false);
        }
        self.inner.evict_lists_for(&path, name, bytes, total_bytes_max);
        self.inner.replace_with(&path, |file| {
            io::Write::write_all(file, &line)?;
            is.body.copy_to(file)
        })?;
        self.inner.note_bytes_added(bytes);
        Ok(true)
    }
}

/// A stored list on the disk.
struct Stored {
    modified: SystemTime,
    bytes: u64,
    is_of_repository: bool,
    path: PathBuf,
}

impl Inner {
    /// Removes the lists of a repository.
    pub(in crate::store) fn remove_lists(&self, name: &ImageName) {
        self.stored_lists(name)
            .iter()
            .filter(|list| list.is_of_repository)
            .for_each(|list| self.remove_list(list));
    }

    fn remove_list(&self, list: &Stored) {
        // If the removal fails, the next eviction retries.
        if fs::remove_file(&list.path).is_ok() {
            self.note_bytes_removed(list.bytes);
        }
    }

    fn stored_lists(&self, name: &ImageName) -> Vec<Stored> {
        let prefix = self.layout.list_prefix(name);
        let entries = fs::read_dir(self.layout.lists()).into_iter().flatten().flatten();
        let stored = entries.filter_map(|entry| {
            let is = entry.metadata().ok()?;
            let is_of_repository = entry.file_name().to_str()?.starts_with(&prefix);
            let (modified, bytes) = (is.modified().ok()?, is.len());
            Some(Stored { modified, bytes, is_of_repository, path: entry.path() })
        });
        stored.collect()
    }

    /// Removes the oldest lists until a list of `bytes` bytes fits at `path`. The list at `path`, if any, does not
    /// count, since it is replaced.
    fn evict_lists_for(&self, path: &Path, name: &ImageName, bytes: u64, total_max: u64) {
        let mut stored = self.stored_lists(name);
        if let Some(position) = stored.iter().position(|list| list.path == path) {
            // Not removed here: it stays until it is replaced.
            self.note_bytes_removed(stored.swap_remove(position).bytes);
        }
        stored.sort_by_key(|list| list.modified);
        let (mut count, mut total) =
            (stored.len(), stored.iter().map(|list| list.bytes).sum::<u64>());
        let own = || stored.iter().filter(|list| list.is_of_repository);
        let (mut own_count, mut own_total) =
            (own().count(), own().map(|list| list.bytes).sum::<u64>());
        for list in &stored {
            let is_over_own = own_count >= LISTS_PER_REPOSITORY_MAX
                || own_total + bytes > BYTES_PER_REPOSITORY_MAX;
            let is_over = count >= LISTS_MAX || total + bytes > total_max;
            if is_over || (is_over_own && list.is_of_repository) {
                self.remove_list(list);
                count -= 1;
                total -= list.bytes;
                if list.is_of_repository {
                    own_count -= 1;
                    own_total -= list.bytes;
                }
            }
        }
    }
}

fn read_list(path: &Path) -> io::Result<ListRecord> {
    let invalid = |reason| io::Error::new(io::ErrorKind::InvalidData, reason);
    let file = open_to_read(path)?;
    let mut head = Vec::new();
    (&file).take((HEADER_BYTES_MAX + SMALL_BYTES_MAX) as u64).read_to_end(&mut head)?;
    let end = head.iter().position(|byte| *byte == b'\n').ok_or_else(|| invalid("no header"))?;
    let header: Header = serde_json::from_slice(&head[..end])?;
    let start = end as u64 + 1;
    if file.metadata()?.len() != start + header.size {
        return Err(invalid("its length differs from its header"));
    }
    let body = match head.get(end + 1..) {
        Some(body) if body.len() as u64 == header.size && body.len() <= SMALL_BYTES_MAX => {
            ListBody::Memory(body.into())
        }
        _ => ListBody::File { file: Arc::new(file), range: start..start + header.size },
    };
    let Header { checked, next, filters_applied, .. } = header;
    Ok(ListRecord { checked, body, next, filters_applied })
}
