//! Which digests are in repositories whose registry decides who may pull: an empty file for each, so that all processes on the
//! directory know it at once.
//!
//! A mark is older than the name of its blob: it is written before a download for a private repository gets its name. It may
//! outlive the blob, which then is asked for with more care than necessary.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::oci::{Algorithm, Digest};
use crate::store::files::write::renew;
use crate::store::{Store, StoreError};

/// How long a mark without a blob is kept: longer than a download takes that has renewed it.
const KEPT_FOR: Duration = Duration::from_secs(7 * 24 * 3600);

impl Store {
    /// Whether a digest is marked. What cannot be looked up counts as marked.
    pub fn is_private(&self, digest: &Digest) -> bool {
        match fs::symlink_metadata(self.inner.layout.private(digest)) {
            Ok(_) => true,
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }

    /// Marks digests.
    ///
    /// # Errors
    /// [`StoreError`] if a file cannot be written.
    pub fn mark_private<'a>(
        &self,
        digests: impl IntoIterator<Item = &'a Digest>,
    ) -> Result<(), StoreError> {
        let layout = &self.inner.layout;
        let mut written = Vec::new();
        for digest in digests {
            let path = layout.private(digest);
            let mut options = OpenOptions::new();
            // Marks are older than `KEPT_FOR` only if nobody needs them.
            if let Ok(file) = layout.owner().open(options.append(true), &path) {
                renew(&file);
                continue;
            }
            self.require_writable()?;
            let parent = path.parent().unwrap_or(layout.root());
            let mut create = || {
                self.inner.create_directories(parent)?;
                layout.owner().open(options.create(true), &path)
            };
            create().map_err(|error| StoreError::write(&path, error))?;
            written.push(path);
        }
        let mut parents: Vec<&Path> = written.iter().filter_map(|path| path.parent()).collect();
        parents.dedup();
        parents.into_iter().try_for_each(|parent| {
            self.inner.sync_directory(parent).map_err(|error| StoreError::write(parent, error))
        })
    }

    /// Removes marks of blobs that have been gone for a while.
    ///
    /// # Errors
    /// [`StoreError`] if the directory cannot be read, or a file cannot be removed.
    pub fn remove_old_private_marks(&self, now: SystemTime) -> Result<(), StoreError> {
        let directory = self.inner.layout.private_marks();
        let remove_all = || {
            for algorithm in Algorithm::ALL {
                for mark in read_directory(&directory.join(algorithm.as_str()))? {
                    let modified = fs::symlink_metadata(&mark)?.modified()?;
                    let is_old = now.duration_since(modified).is_ok_and(|age| age > KEPT_FOR);
                    let Some(hex) = mark.file_name().filter(|_| is_old) else { continue };
                    if !self.inner.layout.blobs(algorithm).join(hex).exists() {
                        fs::remove_file(&mark)?;
                    }
                }
            }
            Ok(())
        };
        remove_all().map_err(|error| StoreError::write(&directory, error))
    }
}

fn read_directory(path: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries?.map(|entry| Ok(entry?.path())).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Document, Settings};

    #[test]
    fn marks_are_seen_by_all_processes_and_outlive_their_blobs_for_a_while() {
        let directory = tempfile::tempdir().unwrap();
        let open =
            || Store::open(&Settings { root: directory.path().to_owned(), fsync: true }).unwrap();
        let (one, other) = (open(), open());
        let digests = [Algorithm::Sha256, Algorithm::Sha512].map(|it| Digest::of(it, b"secret"));
        assert!(!digests.iter().any(|digest| other.is_private(digest)));
        one.mark_private(&digests).unwrap();
        one.mark_private(&digests).unwrap();
        assert!(digests.iter().all(|digest| other.is_private(digest)));
        let now = SystemTime::now();
        one.ingest_document(&digests[0], &Document::Memory(b"secret"[..].into())).unwrap();
        one.remove_old_private_marks(now + KEPT_FOR / 2).unwrap();
        assert!(digests.iter().all(|digest| other.is_private(digest)));
        one.remove_old_private_marks(now + KEPT_FOR * 2).unwrap();
        assert_eq!(digests.map(|digest| other.is_private(&digest)), [true, false]);
    }
}
