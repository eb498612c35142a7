//! `index.json`: every tag as an entry of an OCI image layout, which makes the cache directory a valid one.
//!
//! It is a view for other programs, written from the records and never read back. It is streamed, so the memory
//! that this needs does not grow with the cache.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::atomic::Ordering;

use serde_json::json;

use super::refs::TagRecord;
use crate::oci::{ImageName, MediaType, Reference, Tag};
use crate::store::files::record::Access;
use crate::store::locks::FileLock;
use crate::store::{Store, StoreError};

/// The annotation for the name of an image layout's entry (image-spec, annotations.md).
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// How often another process may be writing `index.json` while this one waits to include its tag.
const INDEX_ROUNDS_MAX: u32 = 8;

impl Store {
    /// Whether a tag changed since `index.json` was last written by this process.
    pub fn is_index_outdated(&self) -> bool {
        self.inner.index_outdated.load(Ordering::Acquire)
    }

    pub(in crate::store) fn mark_index_outdated(&self) {
        self.inner.index_outdated.store(true, Ordering::Release);
    }

    /// Rewrites `index.json` from the records, atomically. Does nothing while another process is writing it.
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
        // Before the walk: a tag that changes during it marks the index as outdated again.
        self.inner.index_outdated.store(false, Ordering::Release);
        let temporary = self.inner.layout.temporary();
        let unreadable = self.unreadable_files();
        let written =
            self.stream_index(&temporary).map_err(|error| StoreError::write(&path, error));
        let written = written.and_then(|()| match self.unreadable_files() == unreadable {
            true => Ok(()),
            // Other programs would trust an index that lacks images.
            false => Err(StoreError::unreadable_meanwhile(self.root())),
        });
        let published = written.and_then(|()| self.inner.publish(&temporary, &path));
        if published.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        if published.is_err() {
            self.mark_index_outdated();
        }
        published
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

    fn stream_index(&self, temporary: &Path) -> io::Result<()> {
        let mut out = BufWriter::new(File::create_new(temporary)?);
        write!(out, r#"{{"schemaVersion":2,"mediaType":"{}","manifests":["#, MediaType::OCI_INDEX)?;
        let mut separator = "";
        self.each_tag(&mut |name, tag, record| {
            let reference = Reference::Tag(tag.clone());
            let entry = json!({
                "mediaType": record.media_type.as_str(),
                "digest": record.digest.to_string(),
                "size": record.size,
                "annotations": { REF_NAME: name.with(&reference) },
            });
            write!(out, "{separator}\n{entry}")?;
            separator = ",";
            Ok(())
        })?;
        out.write_all(b"\n]}\n")?;
        let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        if self.inner.fsync { file.sync_data() } else { Ok(()) }
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
