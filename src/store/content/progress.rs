//! How far a partial is written from its beginning, for processes that follow it.
//!
//! As long as it is written in order, that is the length of the file. From the first hole on, it is a number in a file of
//! its own: not every file system tells holes from data, and none says when data was copied into one.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::store::files::read::read_file;

/// The number, twice: a reader that finds two different ones has read during a write.
const BYTES: usize = 16;

#[derive(Debug)]
pub(super) struct Progress {
    path: PathBuf,
    /// Created before the first hole.
    file: OnceLock<File>,
}

impl Progress {
    pub(super) fn beside(partial: &Path) -> Progress {
        Progress { path: path_of(partial), file: OnceLock::new() }
    }

    /// Writes the number, into a new file if there is none.
    pub(super) fn write(&self, bytes: u64) -> io::Result<()> {
        if self.file.get().is_none() {
            let mut options = File::options();
            let file = options.write(true).create(true).truncate(false).open(&self.path)?;
            // One thread writes at a time.
            let _ = self.file.set(file);
        }
        self.update(bytes)
    }

    /// Writes the number if there has been a hole.
    pub(super) fn update(&self, bytes: u64) -> io::Result<()> {
        let Some(file) = self.file.get() else { return Ok(()) };
        let mut twice = [0; BYTES];
        twice[..8].copy_from_slice(&bytes.to_le_bytes());
        twice[8..].copy_from_slice(&bytes.to_le_bytes());
        file.write_all_at(&twice, 0)
    }

    pub(super) fn remove(&self) {
        remove(&self.path);
    }
}

fn path_of(partial: &Path) -> PathBuf {
    partial.with_extension("progress")
}

/// Removes what was noted of a partial.
pub(super) fn remove_beside(partial: &Path) {
    remove(&path_of(partial));
}

fn remove(path: &Path) {
    // Most partials have none. One that stays is overwritten or removed with the next partial of this digest.
    let _ = fs::remove_file(path);
}

/// Whether there is a number; `None` if it is not readable, as during a write.
pub(super) fn find(partial: &Path) -> io::Result<Option<u64>> {
    let bytes = read_file(&path_of(partial))?;
    let (one, other) = bytes.split_at_checked(8).unwrap_or_default();
    let number = |bytes: &[u8]| bytes.try_into().ok().map(u64::from_le_bytes);
    Ok(number(one).filter(|one| number(other) == Some(*one)))
}

/// The number of a partial that nobody writes.
pub(super) fn read(partial: &Path) -> Option<u64> {
    find(partial).ok().flatten()
}
