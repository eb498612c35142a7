//! Detects changes of the configuration file by polling.
//!
//! Polling detects every kind of change in the same way: an editor that writes in place, a file that is
//! replaced, and a symbolic link above it that is moved, as Kubernetes does with a ConfigMap. A change counts
//! when two successive checks find the same file, so that no partially written file is read. This module must
//! not interpret the content.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::oci::{Algorithm, Digest};

/// A file and its state when it was read.
pub(super) struct ConfigFile {
    path: PathBuf,
    watch: Watch,
    /// The digest of the content that was read; `None` if it could not be read.
    content: Option<Digest>,
}

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Check {
    /// The file is the same as when it was read.
    Same,
    /// The file differs from the last check; it may be being written.
    Changing,
    /// The file has changed since it was read, and is the same as at the last check.
    Changed,
}

impl ConfigFile {
    /// Records the current state of a file that is about to be read. `None` if it is not a regular file: the
    /// content of a pipe, for example, can be read only once.
    pub(super) fn about_to_be_read(path: PathBuf) -> Option<ConfigFile> {
        let is_read_once = fs::metadata(&path).is_ok_and(|metadata| !metadata.is_file());
        let (watch, content) = (Watch::new(stamp(&path)), None);
        let mut file = (!is_read_once).then_some(ConfigFile { path, watch, content })?;
        file.is_about_to_be_read();
        Some(file)
    }

    /// Checks the file. After [`Check::Changed`], the new state counts as read.
    pub(super) fn check(&mut self) -> Check {
        self.watch.check(stamp(&self.path))
    }

    /// Whether the content differs from that at the last call.
    pub(super) fn has_other_content(&mut self) -> bool {
        let content = digest(&self.path);
        std::mem::replace(&mut self.content, content) != content
    }

    /// Whether the file has changed since [`ConfigFile::is_about_to_be_read`].
    pub(super) fn has_changed_since(&self) -> bool {
        stamp(&self.path) != self.watch.read
    }

    /// Whether the file is empty, apart from white space.
    pub(super) fn is_blank(&self) -> bool {
        fs::read(&self.path).is_ok_and(|content| content.trim_ascii().is_empty())
    }

    /// The path of the file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Records the current state, because the file is about to be read. A change between the two steps is found
    /// by the next checks.
    pub(super) fn is_about_to_be_read(&mut self) {
        self.watch = Watch::new(stamp(&self.path));
        self.content = digest(&self.path);
    }
}

/// The metadata by which a change of a file is detected. Links are followed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    changed: (i64, i64),
}

/// `None` if the file does not exist or is not accessible.
fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    Some(Stamp {
        device: metadata.dev(),
        inode: metadata.ino(),
        size: metadata.size(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    })
}

fn digest(path: &Path) -> Option<Digest> {
    Some(Digest::of(Algorithm::Sha256, &fs::read(path).ok()?))
}

/// Decides, from one stamp for each check, whether the file has changed.
struct Watch {
    read: Option<Stamp>,
    /// The stamp of the last check.
    seen: Option<Stamp>,
}

impl Watch {
    fn new(read: Option<Stamp>) -> Watch {
        Watch { seen: read.clone(), read }
    }

    fn check(&mut self, now: Option<Stamp>) -> Check {
        let is_settled = now == self.seen;
        self.seen.clone_from(&now);
        if !is_settled {
            Check::Changing
        } else if now == self.read {
            Check::Same
        } else {
            self.read = now;
            Check::Changed
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn stamp_of(size: u64) -> Option<Stamp> {
        Some(Stamp { device: 0, inode: 0, size, modified: (0, 0), changed: (0, 0) })
    }

    #[test]
    fn a_change_counts_when_two_checks_find_the_same_file() {
        let mut watch = Watch::new(stamp_of(1));
        for (now, expected) in [
            (stamp_of(1), Check::Same),
            (stamp_of(2), Check::Changing),
            (stamp_of(3), Check::Changing),
            (stamp_of(3), Check::Changed),
            (stamp_of(3), Check::Same),
            (None, Check::Changing),
            (stamp_of(4), Check::Changing),
            (stamp_of(3), Check::Changing),
            (stamp_of(3), Check::Same),
            (None, Check::Changing),
            (None, Check::Changed),
            (None, Check::Same),
        ] {
            assert_eq!(watch.check(now.clone()), expected, "{now:?}");
        }
    }

    #[test]
    fn a_moved_symbolic_link_is_a_change() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for (version, text) in [("v1", "port: 1"), ("v2", "port: 2")] {
            fs::create_dir(path(version)).unwrap();
            fs::write(path(version).join("larder.yaml"), text).unwrap();
        }
        symlink("v1", path("data")).unwrap();
        symlink("data/larder.yaml", path("larder.yaml")).unwrap();
        let mut file = ConfigFile::about_to_be_read(path("larder.yaml")).unwrap();
        assert_eq!(file.check(), Check::Same);
        symlink("v2", path("new")).unwrap();
        fs::rename(path("new"), path("data")).unwrap();
        assert_eq!([file.check(), file.check()], [Check::Changing, Check::Changed]);
        assert!(file.has_other_content());
        assert!(!file.has_other_content());
    }

    #[test]
    fn a_file_that_can_be_read_only_once_is_not_watched() {
        assert!(ConfigFile::about_to_be_read("/dev/null".into()).is_none());
        // A missing file is reported when it is read.
        assert!(ConfigFile::about_to_be_read("/nonexistent/larder.yaml".into()).is_some());
    }

    #[test]
    fn a_file_that_was_only_touched_has_the_same_content() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("larder.yaml");
        fs::write(&path, "port: 1").unwrap();
        let mut file = ConfigFile::about_to_be_read(path.clone()).unwrap();
        // A new file with the same name has another inode, whatever the resolution of time stamps.
        let other = directory.path().join("other");
        fs::write(&other, "port: 1").unwrap();
        fs::rename(&other, &path).unwrap();
        assert_eq!([file.check(), file.check()], [Check::Changing, Check::Changed]);
        assert!(!file.has_other_content());
        fs::remove_file(&path).unwrap();
        assert_eq!([file.check(), file.check()], [Check::Changing, Check::Changed]);
        assert!(file.has_other_content());
    }
}
