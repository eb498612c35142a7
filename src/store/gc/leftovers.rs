//! Removes what killed processes and version 0.1 left in `incoming/` and `partials/`.

use std::fs::{self, Metadata};
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::oci::{Digest, Upstream};
use crate::store::Store;
use crate::store::files::layout::{FETCH_LOCK, TEMPORARY};
use crate::store::files::read::{names_in, open_to_read};
use crate::store::locks::{FileLock, remove_unlocked};

/// Files named `tmp-…` in `incoming/` live for milliseconds. Older ones were left by a killed process.
const TEMPORARY_AGE: Duration = Duration::from_secs(3600);
/// Directories of version 0.1 removed per pass: clients could create any number of them.
const OLD_DIRECTORIES_MAX: usize = 10_000;

impl Store {
    /// Removes what killed processes and version 0.1 left in `incoming/` and `partials/`. Returns whether there may
    /// be more, since a pass is bounded.
    pub fn remove_leftovers(&self, now: SystemTime) -> bool {
        self.remove_abandoned_imports();
        let incoming = self.inner.layout.incoming();
        let mut directories = 0;
        for name in names_in(&incoming) {
            let path = incoming.join(&name);
            // Do not follow links: only here are files removed that this process did not just create.
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            if metadata.is_dir() {
                if directories == OLD_DIRECTORIES_MAX {
                    return true;
                }
                directories += usize::from(self.remove_old_directory(&path, &name));
            } else if name.starts_with(FETCH_LOCK) {
                remove_unlocked(&path);
            } else if name.starts_with(TEMPORARY) && is_older(&metadata, TEMPORARY_AGE, now) {
                // If it is already gone, fine. Any other failure costs space, and the next pass retries.
                let _ = fs::remove_file(&path);
            }
        }
        // A writer that was killed before its first byte leaves an empty directory.
        let partials = self.inner.layout.all_partials();
        for upstream in names_in(&partials).filter_map(|name| name.parse().ok()) {
            self.remove_empty_partials(&upstream);
        }
        false
    }

    /// Empties and removes a directory below `incoming/`, where version 0.1 kept the partials of each upstream.
    /// Returns whether the directory is gone. A partial that another process is writing stays, and so do its
    /// directory and everything that Larder did not create.
    fn remove_old_directory(&self, directory: &Path, name: &str) -> bool {
        let upstream: Option<Upstream> = name.parse().ok();
        // The other directories were in the place of a lock and have been moved away from it.
        if upstream.is_some() || name.starts_with(TEMPORARY) {
            for file in names_in(directory) {
                let digest = Digest::from_dashed(file.strip_suffix(".json").unwrap_or(&file));
                if digest.is_some() {
                    self.move_old_partial(&directory.join(&file), upstream.as_ref(), &file);
                }
            }
        }
        // Fails unless it is empty.
        fs::remove_dir(directory).is_ok()
    }

    /// Moves a partial, or the note beside it, to its current place, or removes it if that place is taken.
    ///
    /// The partial stays locked during the move. The new name must not replace a file: it may be the partial of a
    /// writer, whose commit would then give a blob's name to this file. A link fails if the name is taken; a rename
    /// does not.
    fn move_old_partial(&self, old: &Path, upstream: Option<&Upstream>, file: &str) {
        let is_file = fs::symlink_metadata(old).is_ok_and(|is| is.is_file());
        let lock = || open_to_read(old).and_then(FileLock::try_exclusive).ok().flatten();
        let Some(_lock) = is_file.then(lock).flatten() else { return };
        if let Some(upstream) = upstream {
            let directory = self.inner.layout.partials(upstream);
            let created = self.inner.create_directories(&directory);
            // On a file system without links it is lost and downloaded again from the beginning.
            let _ = created.and_then(|()| fs::hard_link(old, directory.join(file)));
        }
        let _ = fs::remove_file(old);
    }
}

/// Whether a file was last changed at least `age` ago. A time in the future counts as now.
fn is_older(metadata: &Metadata, age: Duration, now: SystemTime) -> bool {
    let modified = metadata.modified().ok();
    modified.and_then(|modified| now.duration_since(modified).ok()).is_some_and(|is| is >= age)
}
