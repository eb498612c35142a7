//! Files with a temporary name, such as `b.tar.part`, until they are complete.
//!
//! Other users may be able to write to the directory of an export, as in `/tmp`. So the unfinished file is always
//! newly created: `O_EXCL` does not follow a symbolic link that another user has put in its place, and does not
//! open a file that another process holds open. A file that a killed export left under that name is removed first.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::volumes::with_suffix;

/// The suffix of an unfinished file.
const SUFFIX: &str = ".part";
/// How often creation is retried when the name is taken again after its removal. Each round needs another process
/// that creates the file at that moment.
const ROUNDS_MAX: u32 = 8;

/// A file that gets its final name when it is complete. It is removed if it is never completed.
pub(super) struct Unfinished {
    pub(super) file: File,
    finished: PathBuf,
    is_finished: bool,
}

impl Unfinished {
    /// Creates the unfinished file for `finished`.
    ///
    /// # Errors
    /// I/O errors, also if another process keeps creating the file.
    pub(super) fn create(finished: &Path) -> io::Result<Unfinished> {
        let path = with_suffix(finished, SUFFIX);
        let mut round = 0;
        loop {
            round += 1;
            match File::create_new(&path) {
                Ok(file) => {
                    let finished = finished.to_owned();
                    return Ok(Unfinished { file, finished, is_finished: false });
                }
                Err(error)
                    if error.kind() == io::ErrorKind::AlreadyExists && round < ROUNDS_MAX =>
                {
                    // Removes a link itself, not its target.
                    fs::remove_file(&path)?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Syncs the content to disk and gives the file its final name.
    ///
    /// # Errors
    /// I/O errors, also if the unfinished name now refers to another file: another export is writing to the same
    /// place.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.file.sync_data()?;
        if !self.is_unchanged()? {
            return Err(io::Error::other("another process is writing to the same file"));
        }
        fs::rename(self.path(), &self.finished)?;
        self.is_finished = true;
        Ok(())
    }

    fn path(&self) -> PathBuf {
        with_suffix(&self.finished, SUFFIX)
    }

    fn is_unchanged(&self) -> io::Result<bool> {
        let (opened, named) = (self.file.metadata()?, fs::symlink_metadata(self.path())?);
        Ok((opened.dev(), opened.ino()) == (named.dev(), named.ino()))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.is_finished && self.is_unchanged().unwrap_or(false) {
            // The error that led here was reported already, and an unfinished file is useless.
            let _ = fs::remove_file(self.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_symbolic_link_in_place_of_the_unfinished_file_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::write(path("victim"), "untouched").unwrap();
        for (target, exists) in [("victim", true), ("absent", false)] {
            symlink(path(target), path("b.tar.part")).unwrap();
            let mut unfinished = Unfinished::create(&path("b.tar")).unwrap();
            unfinished.file.write_all(b"content").unwrap();
            unfinished.finish().unwrap();
            assert_eq!(fs::read(path("b.tar")).unwrap(), b"content");
            assert_eq!(path(target).exists(), exists, "{target}");
        }
        assert_eq!(fs::read(path("victim")).unwrap(), b"untouched");
        // The final name is replaced, not the target of the link.
        fs::remove_file(path("b.tar")).unwrap();
        symlink(path("victim"), path("b.tar")).unwrap();
        Unfinished::create(&path("b.tar")).unwrap().finish().unwrap();
        assert_eq!(fs::read(path("victim")).unwrap(), b"untouched");
    }

    #[test]
    fn two_writers_of_one_file_do_not_mix_their_content() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("b.tar");
        let first = Unfinished::create(&path).unwrap();
        let second = Unfinished::create(&path).unwrap();
        assert!(first.finish().is_err());
        second.finish().unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_unfinished_file_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        drop(Unfinished::create(&directory.path().join("b.tar")).unwrap());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
