//! Writes and removes files: replacement by rename, publication, times, and the count of bytes that this changes.

use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};

use super::layout::move_directory;
use crate::store::{Inner, Store, StoreError};
use crate::sync::may_switch;

/// A file with a time further in the future got it from a wrong clock. The clocks of machines that share a volume
/// differ by less.
pub const FUTURE_TOLERANCE: Duration = Duration::from_secs(60);

impl Inner {
    /// Replaces a small file atomically: readers see the complete old or the complete new content.
    pub(in crate::store) fn replace(&self, path: &Path, content: &[u8]) -> Result<(), StoreError> {
        self.replace_with(path, |file| file.write_all(content))
    }

    /// Like [`Inner::replace`], with content from `write`.
    pub(in crate::store) fn replace_with(
        &self,
        path: &Path,
        write: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> Result<(), StoreError> {
        let temporary = self.layout.temporary();
        let written = File::create_new(&temporary).and_then(|mut file| {
            write(&mut file)?;
            if self.fsync { file.sync_data() } else { Ok(()) }
        });
        if let Err(error) = written {
            // The temporary name is unique to this process; a leftover only costs space.
            let _ = fs::remove_file(&temporary);
            return Err(StoreError::write(path, error));
        }
        let after = allocated_at(&temporary);
        self.publish_counted(&temporary, path).inspect_err(|_| {
            let _ = fs::remove_file(&temporary);
        })?;
        self.note_bytes_added(after);
        Ok(())
    }

    /// Like [`Inner::publish`]; a file that is replaced no longer uses space.
    pub(in crate::store) fn publish_counted(
        &self,
        temporary: &Path,
        path: &Path,
    ) -> Result<(), StoreError> {
        let replaced = allocated_at(path);
        self.publish(temporary, path)?;
        self.note_bytes_removed(replaced);
        Ok(())
    }

    /// Renames a finished file to its final name and creates the missing directories.
    pub(in crate::store) fn publish(
        &self,
        temporary: &Path,
        path: &Path,
    ) -> Result<(), StoreError> {
        let Some(parent) = path.parent() else {
            return Err(StoreError::write(path, io::ErrorKind::InvalidInput.into()));
        };
        self.layout.owner().give_path(temporary);
        may_switch();
        let renamed = match fs::rename(temporary, path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.create_directories(parent).and_then(|()| fs::rename(temporary, path))
            }
            // Larder creates no directory with this name. It may contain something, so it is not deleted here.
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
                log::warn!(
                    file:% = path.display();
                    "a directory in place of a file; moving it to incoming/"
                );
                move_directory(path, &self.layout.temporary())
                    .and_then(|()| fs::rename(temporary, path))
            }
            other => other,
        };
        let synced = renamed.and_then(|()| {
            // Another thread or process may have created the directory and not synced the path to it.
            self.make_durable(parent)?;
            self.sync_directory(parent)
        });
        synced.map_err(|error| StoreError::write(path, error))
    }

    /// Creates a directory and its missing parents and makes the path to it durable: a record is only as durable as
    /// the path to it.
    pub(in crate::store) fn create_directories(&self, path: &Path) -> io::Result<()> {
        let mut durable = self.directory_syncs.durable();
        for made in self.layout.create_directories(path)? {
            durable.remove(&made);
        }
        let unknown = durable.unknown(path, self.layout.root());
        self.sync_parents(&unknown)?;
        durable.add(unknown);
        Ok(())
    }

    /// Makes the path to a directory durable, once. Several threads may do it at the same time: they share the syncs.
    fn make_durable(&self, path: &Path) -> io::Result<()> {
        let unknown = self.directory_syncs.durable().unknown(path, self.layout.root());
        if !unknown.is_empty() {
            self.sync_parents(&unknown)?;
            self.directory_syncs.durable().add(unknown);
        }
        Ok(())
    }

    fn sync_parents(&self, directories: &[PathBuf]) -> io::Result<()> {
        directories
            .iter()
            .filter_map(|path| path.parent())
            .try_for_each(|parent| self.sync_directory(parent))
    }

    pub(in crate::store) fn sync_directory(&self, path: &Path) -> io::Result<()> {
        if self.fsync { self.directory_syncs.sync(path) } else { Ok(()) }
    }

    /// Removes a file if it exists and returns its allocated bytes.
    pub(in crate::store) fn remove_counted(&self, path: &Path) -> Result<u64, StoreError> {
        let bytes = allocated_at(path);
        may_switch();
        match fs::remove_file(path) {
            Ok(()) => self.note_bytes_removed(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(StoreError::write(path, error)),
        }
        Ok(bytes)
    }

    /// Records bytes that this process has added.
    pub(in crate::store) fn note_bytes_added(&self, bytes: u64) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.bytes_changed.fetch_add(bytes, Relaxed);
        self.bytes_since_look.fetch_add(bytes, Relaxed);
    }

    /// Records bytes that this process has removed.
    pub(in crate::store) fn note_bytes_removed(&self, bytes: u64) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.bytes_changed.fetch_sub(bytes, Relaxed);
        self.bytes_since_look.fetch_sub(bytes, Relaxed);
    }
}

impl Store {
    /// Creates a file of these bytes and unlinks it: it disappears with its last descriptor, even if the process is
    /// killed.
    ///
    /// # Errors
    /// [`StoreError`] if the directory is read-only or a write fails.
    pub fn unlinked_file(&self, bytes: &[u8]) -> Result<File, StoreError> {
        let mut file = self.create_unlinked_file()?;
        // The file has no path any more.
        let failed = |error| StoreError::write(&self.inner.layout.incoming(), error);
        file.write_all(bytes).map_err(failed)?;
        Ok(file)
    }

    /// As [`Store::unlinked_file`], without content.
    pub(in crate::store) fn create_unlinked_file(&self) -> Result<File, StoreError> {
        self.require_writable()?;
        let path = self.inner.layout.temporary();
        let failed = |error| StoreError::write(&path, error);
        let created = File::options().read(true).write(true).create_new(true).open(&path);
        let file = created.map_err(failed)?;
        // A kill before this leaves an empty temporary file, which cleanup removes.
        fs::remove_file(&path).map_err(failed)?;
        Ok(file)
    }

    /// The current time by the clock that sets file times.
    pub(in crate::store) fn file_system_time(&self) -> Result<SystemTime, StoreError> {
        let clock = self.inner.layout.temporary();
        let now = File::create_new(&clock).and_then(|file| file.metadata()?.modified());
        let _ = fs::remove_file(&clock);
        now.map_err(|error| StoreError::write(&clock, error))
    }
}

/// The allocated bytes of a file.
pub(in crate::store) fn allocated(metadata: &Metadata) -> u64 {
    // The unit is 512 bytes regardless of the file system's block size.
    metadata.blocks().saturating_mul(512)
}

/// The allocated bytes of the file at a path; 0 if there is none.
fn allocated_at(path: &Path) -> u64 {
    fs::symlink_metadata(path).map_or(0, |is| allocated(&is))
}

/// The current time, set by the file system.
const NOW: Timestamps = Timestamps {
    last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
    last_modification: Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
};

/// Sets a file's mtime to now. If that fails, the file may be swept too early and is fetched again.
pub(in crate::store) fn renew(file: &File) {
    may_switch();
    let _ = rustix::fs::futimens(file, &NOW);
}

pub(in crate::store) fn renew_path(path: &Path) {
    may_switch();
    let _ = rustix::fs::utimensat(CWD, path, &NOW, AtFlags::empty());
}
