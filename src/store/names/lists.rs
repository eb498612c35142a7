//! Lists: the last good answers to queries whose answers change (tag lists, referrers).
//!
//! Their bodies are documents (`documents.rs`): a large list is a file that all its readers share.
//!
//! Stored lists share the directory `lists/`, so one directory listing is enough to enforce the bounds. Their names
//! are `<hash of the repository>-<hash of the query>`. A file is one line of JSON followed by the document. It is
//! replaced atomically, so a crash leaves the old list or the new one; a damaged file is a miss.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::oci::ImageName;
use crate::store::content::documents::{Document, SMALL_LIST_BYTES_MAX};
use crate::store::files::read::open_to_read;
use crate::store::{Inner, Store, StoreError};

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
    pub body: Document,
    /// The query of the next page, from upstream's `Link` header.
    pub next: Option<String>,
    /// `OCI-Filters-Applied`, if upstream filtered.
    pub filters_applied: Option<String>,
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

impl Store {
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
            file.write_all(&line)?;
            is.body.chunks(|error| error, |chunk| file.write_all(chunk))
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
    (&file).take((HEADER_BYTES_MAX + SMALL_LIST_BYTES_MAX) as u64).read_to_end(&mut head)?;
    let end = head.iter().position(|byte| *byte == b'\n').ok_or_else(|| invalid("no header"))?;
    let header: Header = serde_json::from_slice(&head[..end])?;
    let start = end as u64 + 1;
    if file.metadata()?.len() != start + header.size {
        return Err(invalid("its length differs from its header"));
    }
    let body = match head.get(end + 1..) {
        Some(body) if body.len() as u64 == header.size && body.len() <= SMALL_LIST_BYTES_MAX => {
            Document::Memory(body.into())
        }
        _ => Document::File { file: Arc::new(file), range: start..start + header.size },
    };
    let Header { checked, next, filters_applied, .. } = header;
    Ok(ListRecord { checked, body, next, filters_applied })
}
