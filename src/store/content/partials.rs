//! Partial downloads: listing and removing them.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::progress;
use crate::oci::{Digest, ImageName, Upstream};
use crate::store::files::read::{is_same_file, names_in, open_to_read};
use crate::store::files::record::Access;
use crate::store::files::write::allocated;
use crate::store::locks::FileLock;
use crate::store::{Store, StoreError};

/// The content of a partial's note.
#[derive(Serialize, Deserialize)]
pub(super) struct PartialNote {
    pub(super) repository: String,
    /// The size of the blob, according to the registry; absent in notes of version 0.1.
    #[serde(default)]
    pub(super) size: Option<u64>,
}

impl Store {
    /// The partials with their repositories.
    pub fn partials(&self) -> Vec<(ImageName, Digest)> {
        let upstreams = names_in(&self.inner.layout.all_partials());
        let upstreams = upstreams.filter_map(|name| name.parse::<Upstream>().ok());
        upstreams.flat_map(|upstream| self.partials_of(upstream)).collect()
    }

    fn partials_of(&self, upstream: Upstream) -> Vec<(ImageName, Digest)> {
        let partials = names_in(&self.inner.layout.partials(&upstream)).filter_map(|name| {
            let digest = Digest::from_dashed(name.strip_suffix(".json")?)?;
            let has_bytes = self.inner.layout.partial(&upstream, &digest).exists();
            let note = self.inner.layout.partial_note(&upstream, &digest);
            let note: PartialNote = self.record(&note, Access::Look)?;
            let repository = note.repository.parse().ok().filter(|_| has_bytes)?;
            Some((ImageName { upstream: upstream.clone(), repository }, digest))
        });
        partials.collect()
    }
}

impl Store {
    /// Removes the directory of an upstream's partials if it is empty. Called after the clients of a finished
    /// download were answered, so that they do not wait for it.
    pub fn remove_empty_partials(&self, upstream: &Upstream) {
        let _ = fs::remove_dir(self.inner.layout.partials(upstream));
    }
}

/// Removes the directory of an upstream after its last partial. If it is not empty, the removal fails; a writer
/// that finds it missing creates it again.
pub(super) fn remove_empty_parent(partial: &Path) {
    if let Some(parent) = partial.parent() {
        let _ = fs::remove_dir(parent);
    }
}

/// A partial download on the disk.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PartialFile {
    upstream: Upstream,
    digest: Digest,
    /// Its size.
    pub bytes: u64,
    /// When it last grew.
    pub written: Option<SystemTime>,
}

impl PartialFile {
    /// The upstream that it comes from.
    pub fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// The digest of the complete blob.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }
}

impl Store {
    /// All partial downloads, including active ones.
    pub fn partial_files(&self) -> Vec<PartialFile> {
        let layout = &self.inner.layout;
        let upstreams = names_in(&layout.all_partials());
        let upstreams = upstreams.filter_map(|name| name.parse::<Upstream>().ok());
        let files = upstreams.flat_map(|upstream| {
            names_in(&layout.partials(&upstream)).filter_map(move |name| {
                let digest = Digest::from_dashed(&name)?;
                let metadata = fs::metadata(layout.partial(&upstream, &digest)).ok()?;
                // Several connections leave holes.
                let bytes = metadata.len().min(allocated(&metadata));
                let written = metadata.modified().ok();
                Some(PartialFile { upstream: upstream.clone(), digest, bytes, written })
            })
        });
        files.collect()
    }

    /// Partial downloads that no process is writing.
    pub fn idle_partials(&self) -> Vec<PartialFile> {
        let is_idle = |partial: &PartialFile| {
            let path = self.inner.layout.partial(&partial.upstream, &partial.digest);
            let lock = open_to_read(&path).and_then(FileLock::try_shared);
            lock.is_ok_and(|lock| lock.is_some())
        };
        self.partial_files().into_iter().filter(is_idle).collect()
    }

    /// Removes a partial download and returns the freed bytes; `None` if it is being written or has changed since
    /// it was listed.
    ///
    /// # Errors
    /// [`StoreError`] if a write fails.
    pub fn remove_partial(&self, partial: &PartialFile) -> Result<Option<u64>, StoreError> {
        let path = self.inner.layout.partial(&partial.upstream, &partial.digest);
        // Opened for writing: network file systems require that for an exclusive lock.
        let opened = self.inner.layout.owner().open(File::options().read(true).write(true), &path);
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::read(&path, error)),
        };
        let lock = FileLock::try_exclusive(file);
        let Some(file) = lock.map_err(|error| StoreError::write(&path, error))? else {
            return Ok(None);
        };
        let is_ours = is_same_file(&path, &file);
        let written = file.metadata().and_then(|metadata| metadata.modified()).ok();
        if !is_ours || written != partial.written {
            return Ok(None);
        }
        let note = self.inner.layout.partial_note(&partial.upstream, &partial.digest);
        // A note without its partial is ignored. The partial last, which ends the lock's protection.
        let _ = fs::remove_file(note);
        progress::remove_beside(&path);
        fs::remove_file(&path).map_err(|error| StoreError::write(&path, error))?;
        remove_empty_parent(&path);
        self.inner.note_bytes_removed(partial.bytes);
        Ok(Some(partial.bytes))
    }

    /// Keeps `keep` partial downloads of the registries that are `bounded` and removes the oldest others: clients
    /// choose the names of these registries. Returns the freed bytes.
    ///
    /// # Errors
    /// [`StoreError`] if a write fails.
    pub fn bound_partials(
        &self,
        keep: usize,
        bounded: &dyn Fn(&Upstream) -> bool,
    ) -> Result<u64, StoreError> {
        let mut files = self.partial_files();
        files.retain(|file| bounded(&file.upstream));
        files.sort_by_key(|file| file.written);
        let (mut excess, mut freed) = (files.len().saturating_sub(keep), 0);
        for file in &files {
            if excess == 0 {
                break;
            }
            // A partial that is being written stays, and the next one is removed instead.
            if let Some(bytes) = self.remove_partial(file)? {
                freed += bytes;
                excess -= 1;
            }
        }
        Ok(freed)
    }

    /// Removes downloads that have not grown for `age`. Returns the freed bytes.
    ///
    /// # Errors
    /// [`StoreError`] if a write fails.
    pub fn remove_old_partials(&self, now: SystemTime, age: Duration) -> Result<u64, StoreError> {
        let mut freed = 0;
        for partial in self.partial_files() {
            let is_old = |written| now.duration_since(written).is_ok_and(|is| is >= age);
            if partial.written.is_some_and(is_old) {
                freed += self.remove_partial(&partial)?.unwrap_or_default();
            }
        }
        Ok(freed)
    }
}
