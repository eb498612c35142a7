//! `index.json`: every tag as an entry of an OCI image layout, which makes the cache directory a valid one.
//!
//! It is a view for other programs. It is streamed, so the memory that this needs does not grow with the cache.
//!
//! # Updates
//! A process knows which tags it has changed, and copies the other entries from the present file, one per line. Reading
//! all records instead would take seconds of a core in a large cache. It does that for its first write, for more changes
//! than it remembers, for a file that it does not understand, and after [`UPDATES_MAX`] updates.
//!
//! # Interleavings
//! Each write happens under a lock that all processes share.
//! * *A tag changes during a write.* It is noted after its record was written, so it is read now or by the next write.
//! * *Two processes change a tag.* Each reads its record after its own change. The one that writes the index last finds
//!   the last record.
//! * *A process is killed before its write.* The next start reads all records, and so does a running process after some
//!   time.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, ErrorKind, Read, Write};
use std::mem;
use std::path::Path;
use std::sync::{MutexGuard, PoisonError};

use serde_json::json;

use crate::oci::{ImageName, MediaType, Reference, Tag, TagRecord};
use crate::store::files::read::open_to_read;
use crate::store::files::record::Access;
use crate::store::locks::FileLock;
use crate::store::{Store, StoreError};

/// The annotation for the name of an image layout's entry (image-spec, annotations.md).
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// How often another process may be writing `index.json` while this one waits to include its tag.
const INDEX_ROUNDS_MAX: u32 = 8;
/// How many changed tags are remembered, at some hundred bytes each.
const CHANGES_MAX: usize = 10_000;
/// After so many updates, all records are read again: another process may have been killed before it wrote its changes.
const UPDATES_MAX: u32 = 1_000;
/// The longest line of the file: a name of 512 bytes, and what else an entry has.
const LINE_BYTES_MAX: u64 = 4_096;

/// What this process has changed since it last wrote `index.json`.
#[derive(Debug, Default)]
pub(in crate::store) struct IndexChanges {
    /// The tags, by the names of their entries.
    tags: BTreeMap<String, (ImageName, Tag)>,
    /// Whether others may have changed as well.
    is_unknown: bool,
    /// How often the file was updated since all records were read.
    updates: u32,
}

impl IndexChanges {
    /// At the start: a process that changed a tag may have been killed before it updated the index.
    pub(in crate::store) fn at_start(is_writable: bool) -> IndexChanges {
        IndexChanges { is_unknown: is_writable, ..IndexChanges::default() }
    }

    fn is_nothing(&self) -> bool {
        self.tags.is_empty() && !self.is_unknown
    }

    fn insert(&mut self, entry: String, tag: (ImageName, Tag)) {
        if self.tags.len() < CHANGES_MAX {
            self.tags.insert(entry, tag);
        } else {
            self.forget();
        }
    }

    /// Remembers only that there are changes.
    fn forget(&mut self) {
        self.tags.clear();
        self.is_unknown = true;
    }
}

impl Store {
    /// Whether this process changed a tag since it last wrote `index.json`, or does not know that.
    pub fn is_index_outdated(&self) -> bool {
        !self.index_changes().is_nothing()
    }

    fn index_changes(&self) -> MutexGuard<'_, IndexChanges> {
        self.inner.index_changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a tag was written or removed, after that has happened.
    pub(in crate::store) fn note_changed_tag(&self, name: &ImageName, tag: &Tag) {
        let mut changes = self.index_changes();
        if !changes.is_unknown {
            changes.insert(entry_name(name, tag), (name.clone(), tag.clone()));
        }
    }

    /// Notes that any tags may have changed.
    pub(in crate::store) fn note_unknown_changes(&self) {
        self.index_changes().forget();
    }

    /// Writes the changed tags to `index.json`, atomically. Does nothing while another process is writing it.
    ///
    /// # Errors
    /// [`StoreError`] if a read or write fails; the index stays outdated.
    pub fn write_index(&self) -> Result<(), StoreError> {
        let path = self.inner.layout.index();
        let lock = self.inner.layout.open_lock(&self.inner.layout.index_lock());
        let lock = lock.and_then(FileLock::try_exclusive);
        let Some(_lock) = lock.map_err(|error| StoreError::write(&path, error))? else {
            // The other process may have passed this process's tag, so the index stays outdated.
            return Ok(());
        };
        // Before the records are read: a tag that changes meanwhile is noted again.
        let changes = mem::take(&mut *self.index_changes());
        let temporary = self.inner.layout.temporary();
        let unreadable = self.unreadable_files();
        let written = self.write_changes(&changes, &path, &temporary);
        let written = written.map_err(|error| StoreError::write(&path, error));
        let written = written.and_then(|updates| match self.unreadable_files() == unreadable {
            true => Ok(updates),
            // Other programs would trust an index that lacks images.
            false => Err(StoreError::unreadable_meanwhile(self.root())),
        });
        let published = written.and_then(|updates| {
            self.inner.publish(&temporary, &path)?;
            Ok(updates)
        });
        match published {
            Ok(updates) => {
                self.index_changes().updates = updates;
                Ok(())
            }
            Err(error) => {
                let _ = fs::remove_file(&temporary);
                self.note_unknown_changes();
                Err(error)
            }
        }
    }

    /// Writes the file of [`Store::write_index`]. Returns how many updates there were since all records were read.
    fn write_changes(
        &self,
        changes: &IndexChanges,
        present: &Path,
        temporary: &Path,
    ) -> io::Result<u32> {
        if !changes.is_unknown && changes.updates < UPDATES_MAX {
            match self.update_index(changes, present, temporary) {
                Ok(()) => return Ok(changes.updates + 1),
                // Another program has replaced or removed it.
                Err(error)
                    if matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::NotFound) =>
                {
                    let _ = fs::remove_file(temporary);
                }
                Err(error) => return Err(error),
            }
        }
        let mut index = IndexFile::create(temporary)?;
        self.each_tag(&mut |name, tag, record| index.add(name, tag, record))?;
        index.finish(self.inner.fsync)?;
        Ok(0)
    }

    /// Copies the entries of the present file, except those of changed tags, which are read.
    fn update_index(
        &self,
        changes: &IndexChanges,
        present: &Path,
        temporary: &Path,
    ) -> io::Result<()> {
        let mut lines = BufReader::new(open_to_read(present)?);
        let mut index = IndexFile::create(temporary)?;
        let (mut line, header) = (Vec::new(), header());
        let not_ours = || io::Error::from(ErrorKind::InvalidData);
        let mut next = |line: &mut Vec<u8>| {
            line.clear();
            lines.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', line)?;
            line.pop_if(|last| *last == b'\n').map(drop).ok_or_else(not_ours)
        };
        next(&mut line)?;
        if line != header.as_bytes() {
            return Err(not_ours());
        }
        loop {
            next(&mut line)?;
            if line == FOOTER.as_bytes() {
                break;
            }
            line.pop_if(|last| *last == b',');
            let name = name_in(&line).ok_or_else(not_ours)?;
            if !changes.tags.contains_key(name) {
                index.add_line(&line)?;
            }
        }
        for (name, tag) in changes.tags.values() {
            if let Some(record) = self.tag(name, tag, Access::Look) {
                index.add(name, tag, &record)?;
            }
        }
        index.finish(self.inner.fsync)
    }

    /// Writes `index.json` if a tag changed. Waits for another process that is writing it and may have passed the
    /// tag. For commands that exit afterwards; a server retries later.
    ///
    /// # Errors
    /// [`StoreError`] if a write fails.
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

    /// Calls `visit` with every cached tag, in the order of the directories.
    ///
    /// # Errors
    /// The first error of `visit`; directories that vanish during the walk are ignored.
    pub fn each_tag(
        &self,
        visit: &mut dyn FnMut(&ImageName, &Tag, &TagRecord) -> io::Result<()>,
    ) -> io::Result<()> {
        self.each_repository(&mut |name| self.each_tag_of(name, visit))
    }

    fn each_tag_of(
        &self,
        name: &ImageName,
        visit: &mut dyn FnMut(&ImageName, &Tag, &TagRecord) -> io::Result<()>,
    ) -> io::Result<()> {
        for tag in self.tags(name) {
            if let Some(record) = self.tag(name, &tag, Access::Look) {
                visit(name, &tag, &record)?;
            }
        }
        Ok(())
    }
}

/// The first line of the file, up to the first entry.
fn header() -> String {
    format!(r#"{{"schemaVersion":2,"mediaType":"{}","manifests":["#, MediaType::OCI_INDEX)
}

/// The last line.
const FOOTER: &str = "]}";

/// A new `index.json`.
struct IndexFile {
    out: BufWriter<File>,
    separator: &'static str,
}

impl IndexFile {
    fn create(path: &Path) -> io::Result<IndexFile> {
        let mut out = BufWriter::new(File::create_new(path)?);
        write!(out, "{}", header())?;
        Ok(IndexFile { out, separator: "" })
    }

    fn add(&mut self, name: &ImageName, tag: &Tag, record: &TagRecord) -> io::Result<()> {
        let entry = json!({
            "mediaType": record.media_type.as_str(),
            "digest": record.digest.to_string(),
            "size": record.size,
            "annotations": { REF_NAME: entry_name(name, tag) },
        });
        self.add_line(entry.to_string().as_bytes())
    }

    fn add_line(&mut self, entry: &[u8]) -> io::Result<()> {
        writeln!(self.out, "{}", self.separator)?;
        self.separator = ",";
        self.out.write_all(entry)
    }

    fn finish(mut self, fsync: bool) -> io::Result<()> {
        write!(self.out, "\n{FOOTER}\n")?;
        let file = self.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        if fsync { file.sync_data() } else { Ok(()) }
    }
}

/// The name of a tag's entry.
fn entry_name(name: &ImageName, tag: &Tag) -> String {
    name.with(&Reference::Tag(tag.clone()))
}

/// The name of the entry on a line. Names contain no characters that JSON escapes.
fn name_in(line: &[u8]) -> Option<&str> {
    let line = str::from_utf8(line).ok()?;
    let (_, name) = line.split_once(REF_NAME)?;
    Some(name.strip_prefix("\":\"")?.split_once('"')?.0)
}
