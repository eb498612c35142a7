//! Reads files and directories, and classifies what cannot be read: damage is a miss, a failing disk is an error.
//!
//! Lenient reads serve clients and lists. Strict ones are for removals, which must not miss any reference.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::observer::StoreEvent;
use crate::store::{Inner, Store, StoreError};
use crate::sync::may_switch;

/// The prefix that a network file system gives to a file that was removed while a process had it open. The file
/// vanishes with that process and refers to nothing.
const REMOVED_WHILE_OPEN: &str = ".nfs";

impl Store {
    /// Number of damaged files found since the start.
    pub fn damaged_files(&self) -> u64 {
        self.inner.damaged_files.load(Ordering::Relaxed)
    }

    /// Number of failed reads since the start. Callers that must see everything compare it before and after.
    pub fn unreadable_files(&self) -> u64 {
        self.inner.unreadable_files.load(Ordering::Relaxed)
    }

    /// Opens a regular file and returns it with its size in bytes; `None` if it does not exist. Anything else in
    /// its place (a pipe, a directory, a link) is damage. Opening a pipe does not block.
    pub(in crate::store) fn open_file(
        &self,
        path: &Path,
    ) -> Result<Option<(File, u64)>, StoreError> {
        let opened = self.inner.faults.check(path).and_then(|()| open_to_read(path));
        let found = opened.and_then(|file| {
            let metadata = file.metadata()?;
            Ok((file, metadata))
        });
        match found {
            Ok((file, metadata)) if metadata.is_file() => Ok(Some((file, metadata.len()))),
            Ok(_) => Ok(self.damaged(path, "not a regular file")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => self.failed_to_read(path, error),
        }
    }

    /// The names in a directory; empty if the directory does not exist.
    ///
    /// # Errors
    /// [`StoreError::Read`] if it cannot be read.
    pub(in crate::store) fn find_names_in(
        &self,
        directory: &Path,
    ) -> Result<Vec<String>, StoreError> {
        let listed = self.inner.list_strict(directory);
        match listed {
            Ok(names) => Ok(names),
            Err(error) => Ok(self.failed_to_read(directory, error)?.unwrap_or_default()),
        }
    }

    /// Logs and counts a damaged file. The caller then treats it as absent.
    pub(in crate::store) fn damaged<T>(&self, path: &Path, reason: &str) -> Option<T> {
        self.inner.damaged_files.fetch_add(1, Ordering::Relaxed);
        log::warn!(
            file:% = path.display(), error = reason;
            "a file of the cache is damaged; it is treated as absent"
        );
        let below = path.strip_prefix(self.root()).unwrap_or(path);
        self.observe(&StoreEvent::Damaged { what: &below.display(), reason });
        None
    }

    /// Classifies a read error. A damaged file is a miss. A store that cannot be read is an error, since the
    /// content may exist.
    pub(in crate::store) fn failed_to_read<T>(
        &self,
        path: &Path,
        error: io::Error,
    ) -> Result<Option<T>, StoreError> {
        if is_damage(&error) {
            return Ok(self.damaged(path, &error.to_string()));
        }
        let before = self.inner.unreadable_files.fetch_add(1, Ordering::Relaxed);
        let error = StoreError::read(path, error);
        // A server without descriptors fails on every request, so only powers of two are logged.
        if (before + 1).is_power_of_two() {
            log::error!(count = before + 1, error:%; "the cache cannot be read");
        }
        Err(error)
    }

    /// When a record or a directory was last changed. A failure counts as a failed read, for callers that must see
    /// everything ([`Store::unreadable_files`]).
    pub(in crate::store) fn modified(&self, path: &Path) -> Option<SystemTime> {
        let modified = self.inner.metadata(path).and_then(|metadata| metadata.modified());
        match modified {
            Ok(time) => Some(time),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => self.failed_to_read(path, error).unwrap_or_default(),
        }
    }

    /// Makes `count` reads of paths that end with `suffix` fail, after `spared` successful ones.
    #[cfg(test)]
    pub(crate) fn fail_reads(&self, suffix: &str, spared: usize, count: usize, errno: Errno) {
        self.inner.faults.fail(suffix, spared, count, errno.raw_os_error());
    }

    /// Whether all requested failures have happened.
    #[cfg(test)]
    pub(crate) fn has_failed_reads(&self) -> bool {
        self.inner.faults.are_spent()
    }
}

impl Inner {
    /// Iterates over the names in a directory; yields nothing if it does not exist.
    ///
    /// # Errors
    /// If it cannot be read, or a name is not UTF-8; the error contains the path.
    pub(in crate::store) fn names_strict(
        &self,
        directory: &Path,
    ) -> io::Result<impl Iterator<Item = io::Result<String>> + use<>> {
        may_switch();
        let read = self.faults.check(directory).and_then(|()| fs::read_dir(directory));
        let entries = match read {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            other => Some(other.map_err(|error| with_path(directory, &error))?),
        };
        let directory = directory.to_owned();
        let names = entries.into_iter().flatten().map(move |entry| {
            let entry = entry.map_err(|error| with_path(&directory, &error))?;
            entry.file_name().into_string().map_err(|_| {
                io::Error::other(format!("{}: a name in it is not UTF-8", directory.display()))
            })
        });
        let is_left_over = |name: &io::Result<String>| {
            name.as_ref().is_ok_and(|it| it.starts_with(REMOVED_WHILE_OPEN))
        };
        Ok(names.filter(move |name| !is_left_over(name)))
    }

    /// Like [`Inner::names_strict`], as a list.
    ///
    /// # Errors
    /// As [`Inner::names_strict`].
    pub(in crate::store) fn list_strict(&self, directory: &Path) -> io::Result<Vec<String>> {
        self.names_strict(directory)?.collect()
    }

    /// Whether a file exists. Reads it completely to be sure that it is readable.
    ///
    /// # Errors
    /// If it cannot be read, or its existence is unknown; the error contains the path.
    pub(in crate::store) fn is_readable(&self, path: &Path) -> io::Result<bool> {
        let read = self.faults.check(path).and_then(|()| {
            let file = open_to_read(path)?;
            // A pipe or a directory contains no references that could be read.
            let is_file = file.metadata()?.is_file();
            if is_file { io::copy(&mut &file, &mut io::sink()) } else { Ok(0) }
        });
        match read {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(with_path(path, &error)),
        }
    }

    /// A file's metadata, without following a link.
    pub(in crate::store) fn metadata(&self, path: &Path) -> io::Result<fs::Metadata> {
        may_switch();
        self.faults.check(path).and_then(|()| fs::symlink_metadata(path))
    }
}

/// Opens a file below the cache directory for reading. A link is an error, since it may point anywhere. Opening a
/// pipe does not block.
pub(in crate::store) fn open_to_read(path: &Path) -> io::Result<File> {
    may_switch();
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path)
}

/// Reads a small file below the cache directory.
pub(in crate::store) fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let file = open_to_read(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file"));
    }
    let mut content = Vec::new();
    (&file).read_to_end(&mut content)?;
    Ok(content)
}

/// The names in a directory; empty if the directory does not exist.
pub(in crate::store) fn names_in(directory: &Path) -> impl Iterator<Item = String> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok())
}

/// Whether `path` still refers to the open file.
pub(in crate::store) fn is_same_file(path: &Path, file: &File) -> bool {
    may_switch();
    match (fs::metadata(path), file.metadata()) {
        (Ok(named), Ok(open)) => (named.dev(), named.ino()) == (open.dev(), open.ino()),
        _ => false,
    }
}

/// Whether an error concerns the file itself and not the machine: the file cannot be read by anyone, or not by this
/// process.
fn is_damage(error: &io::Error) -> bool {
    let is_odd = [Errno::LOOP, Errno::NXIO].map(Errno::raw_os_error).map(Some);
    is_odd.contains(&error.raw_os_error())
        || matches!(
            error.kind(),
            io::ErrorKind::NotFound
                | io::ErrorKind::PermissionDenied
                | io::ErrorKind::IsADirectory
                | io::ErrorKind::NotADirectory
                | io::ErrorKind::InvalidData
                | io::ErrorKind::UnexpectedEof
        )
}

/// Adds the path to an error.
fn with_path(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
