//! Whether the configuration file has changed, found by looking at it again and again.
//!
//! By looking, since that sees alike what an editor writes, what replaces the file, and what moves a link
//! above it, as Kubernetes does with a ConfigMap. A file counts once it was the same twice, so that none is
//! read that is half written. Must not know what is in it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::oci::{Algorithm, Digest};

/// A file, and how it was when it was read.
pub(super) struct ConfigFile {
    path: PathBuf,
    watch: Watch,
    /// Of what was read; `None` if it could not be.
    content: Option<Digest>,
}

/// What a look found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// It is as it was when it was read.
    Same,
    /// It is another one than a look ago, and may be being written.
    Changing,
    /// It has changed since it was read, and is so since a look ago.
    Changed,
}

impl ConfigFile {
    /// The file as it is now, which is about to be read. `None` if it is no file but a pipe, say, which gives
    /// its content once, and that is not for here.
    pub(super) fn about_to_be_read(path: PathBuf) -> Option<ConfigFile> {
        let is_read_once = fs::metadata(&path).is_ok_and(|metadata| !metadata.is_file());
        let (watch, content) = (Watch::new(stamp(&path)), None);
        let mut file = (!is_read_once).then_some(ConfigFile { path, watch, content })?;
        file.is_about_to_be_read();
        Some(file)
    }

    /// Looks at the file. It counts as read after [`Look::Changed`].
    pub(super) fn look(&mut self) -> Look {
        self.watch.look(stamp(&self.path))
    }

    /// Whether there is something else in it than when this was asked last.
    pub(super) fn has_other_content(&mut self) -> bool {
        let content = digest(&self.path);
        std::mem::replace(&mut self.content, content) != content
    }

    /// Whether it is no longer as it was when it was about to be read.
    pub(super) fn has_changed_since(&self) -> bool {
        stamp(&self.path) != self.watch.read
    }

    /// Whether there is nothing in it at all.
    pub(super) fn is_blank(&self) -> bool {
        fs::read(&self.path).is_ok_and(|content| content.trim_ascii().is_empty())
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Notes how it is now, since it is about to be read. In this order: what changes in between is found
    /// by the next looks.
    pub(super) fn is_about_to_be_read(&mut self) {
        self.watch = Watch::new(stamp(&self.path));
        self.content = digest(&self.path);
    }
}

/// What tells a file from what it was before, as far as that is seen from outside. Links are followed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    changed: (i64, i64),
}

/// `None` if there is no file, or none that may be looked at.
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

/// Pure: stamps, one a look, and what they say.
struct Watch {
    read: Option<Stamp>,
    /// A look ago.
    seen: Option<Stamp>,
}

impl Watch {
    fn new(read: Option<Stamp>) -> Watch {
        Watch { seen: read.clone(), read }
    }

    fn look(&mut self, now: Option<Stamp>) -> Look {
        let is_settled = now == self.seen;
        self.seen.clone_from(&now);
        if !is_settled {
            Look::Changing
        } else if now == self.read {
            Look::Same
        } else {
            self.read = now;
            Look::Changed
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
    fn changed_file_counts_once_it_was_the_same_twice() {
        let mut watch = Watch::new(stamp_of(1));
        for (now, look) in [
            (stamp_of(1), Look::Same),
            (stamp_of(2), Look::Changing),
            (stamp_of(3), Look::Changing),
            (stamp_of(3), Look::Changed),
            (stamp_of(3), Look::Same),
            (None, Look::Changing),
            (stamp_of(4), Look::Changing),
            (stamp_of(3), Look::Changing),
            (stamp_of(3), Look::Same),
            (None, Look::Changing),
            (None, Look::Changed),
            (None, Look::Same),
        ] {
            assert_eq!(watch.look(now.clone()), look, "{now:?}");
        }
    }

    #[test]
    fn what_is_behind_a_link_that_is_moved_is_another_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for (version, text) in [("v1", "port: 1"), ("v2", "port: 2")] {
            fs::create_dir(path(version)).unwrap();
            fs::write(path(version).join("larder.yaml"), text).unwrap();
        }
        symlink("v1", path("data")).unwrap();
        symlink("data/larder.yaml", path("larder.yaml")).unwrap();
        let mut file = ConfigFile::about_to_be_read(path("larder.yaml")).unwrap();
        assert_eq!(file.look(), Look::Same);
        symlink("v2", path("new")).unwrap();
        fs::rename(path("new"), path("data")).unwrap();
        assert_eq!([file.look(), file.look()], [Look::Changing, Look::Changed]);
        assert!(file.has_other_content());
        assert!(!file.has_other_content());
    }

    #[test]
    fn what_gives_its_content_once_is_not_looked_at() {
        assert!(ConfigFile::about_to_be_read("/dev/null".into()).is_none());
        // That it is not there is for whoever reads it to say.
        assert!(ConfigFile::about_to_be_read("/nonexistent/larder.yaml".into()).is_some());
    }

    #[test]
    fn file_that_was_only_touched_has_no_other_content() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("larder.yaml");
        fs::write(&path, "port: 1").unwrap();
        let mut file = ConfigFile::about_to_be_read(path.clone()).unwrap();
        // Another file of the same name, so that it differs whatever the clock of the file system.
        let other = directory.path().join("other");
        fs::write(&other, "port: 1").unwrap();
        fs::rename(&other, &path).unwrap();
        assert_eq!([file.look(), file.look()], [Look::Changing, Look::Changed]);
        assert!(!file.has_other_content());
        fs::remove_file(&path).unwrap();
        assert_eq!([file.look(), file.look()], [Look::Changing, Look::Changed]);
        assert!(file.has_other_content());
    }
}
