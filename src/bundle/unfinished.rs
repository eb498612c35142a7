//! Files under their unfinished names, `b.tar.part`, until they are complete.
//!
//! The directory of an export may be one that others can write, such as `/tmp`. So the unfinished file is
//! always a new one: `O_EXCL` follows no symbolic link that somebody has put in its place, and opens no
//! file that somebody else holds open. What a killed export has left under that name is removed first.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::volumes::with_suffix;

/// What a file is called while it is written.
const SUFFIX: &str = ".part";
/// How often the name may be taken again between its removal and the creation. Each round needs somebody
/// who creates it just then.
const ROUNDS_MAX: u32 = 8;

/// A file that gets its name when it is complete, and is removed if that never comes.
pub(super) struct Unfinished {
    pub(super) file: File,
    finished: PathBuf,
    is_finished: bool,
}

impl Unfinished {
    /// Creates the file that is to be called `finished`.
    ///
    /// # Errors
    /// Those of the disk, and if another process keeps creating it.
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
                    // A link is removed itself, and not what it leads to.
                    fs::remove_file(&path)?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Forces the content to the disk and gives the file its name.
    ///
    /// # Errors
    /// Those of the disk, and if the unfinished name leads to another file by now: another export writes
    /// to the same place.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.file.sync_data()?;
        if !self.is_ours()? {
            return Err(io::Error::other("another process writes the same file"));
        }
        fs::rename(self.path(), &self.finished)?;
        self.is_finished = true;
        Ok(())
    }

    fn path(&self) -> PathBuf {
        with_suffix(&self.finished, SUFFIX)
    }

    fn is_ours(&self) -> io::Result<bool> {
        let (ours, there) = (self.file.metadata()?, fs::symlink_metadata(self.path())?);
        Ok((ours.dev(), ours.ino()) == (there.dev(), there.ino()))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.is_finished && self.is_ours().unwrap_or(false) {
            // The error that led here was reported already, and an unfinished file is of no use.
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
        // The finished name is replaced, and not what it leads to.
        fs::remove_file(path("b.tar")).unwrap();
        symlink(path("victim"), path("b.tar")).unwrap();
        Unfinished::create(&path("b.tar")).unwrap().finish().unwrap();
        assert_eq!(fs::read(path("victim")).unwrap(), b"untouched");
    }

    #[test]
    fn two_writers_of_one_file_do_not_take_each_others_content() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("b.tar");
        let first = Unfinished::create(&path).unwrap();
        let second = Unfinished::create(&path).unwrap();
        assert!(first.finish().is_err());
        second.finish().unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_is_not_finished_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        drop(Unfinished::create(&directory.path().join("b.tar")).unwrap());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
