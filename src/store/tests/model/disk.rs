//! What lies on the disk, seen without the store.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// A file or a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) modified: SystemTime,
    pub(super) length: u64,
    pub(super) inode: u64,
    /// The ctime: it changes with every write, and nothing can set it.
    pub(super) changed: (i64, i64),
    pub(super) allocated_bytes: u64,
    pub(super) is_directory: bool,
}

/// The directory with everything below it.
#[derive(Debug, Clone, Default)]
pub(super) struct Snapshot(pub(super) BTreeMap<PathBuf, Entry>);

impl Snapshot {
    pub(super) fn of(root: &Path) -> Snapshot {
        let mut snapshot = Snapshot::default();
        snapshot.add(root);
        snapshot
    }

    fn add(&mut self, path: &Path) {
        let metadata = fs::symlink_metadata(path).expect("nothing else changes the directory");
        let entry = Entry {
            modified: metadata.modified().expect("Linux has an mtime"),
            length: metadata.len(),
            inode: metadata.ino(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            allocated_bytes: metadata.blocks() * 512,
            is_directory: metadata.is_dir(),
        };
        self.0.insert(path.to_owned(), entry);
        if metadata.is_dir() {
            for entry in fs::read_dir(path).expect("it is readable") {
                self.add(&entry.expect("it is readable").path());
            }
        }
    }

    /// What `du` reports: there are no hard links.
    pub(super) fn allocated_bytes(&self) -> u64 {
        self.0.values().map(|entry| entry.allocated_bytes).sum()
    }

    pub(super) fn modified(&self, path: &Path) -> Option<SystemTime> {
        self.0.get(path).map(|entry| entry.modified)
    }

    /// Files and directories that were added, removed, or changed in size.
    pub(super) fn changes(&self, later: &Snapshot) -> u64 {
        let size = |of: &Snapshot, path: &Path| of.0.get(path).map(|entry| entry.allocated_bytes);
        let paths = self.0.keys().chain(later.0.keys().filter(|path| !self.0.contains_key(*path)));
        paths.filter(|path| size(self, path) != size(later, path)).count() as u64
    }

    /// Everything but directories, without what reading changes.
    pub(super) fn files(&self) -> BTreeMap<&Path, (SystemTime, u64, u64)> {
        let files = self.0.iter().filter(|(_, entry)| !entry.is_directory);
        files
            .map(|(path, entry)| (path.as_path(), (entry.modified, entry.length, entry.inode)))
            .collect()
    }
}

/// Makes everything older by this many seconds, as if the clock had jumped forward.
pub(super) fn shift(root: &Path, seconds: i64) {
    let snapshot = Snapshot::of(root);
    for (path, entry) in &snapshot.0 {
        let file = File::open(path).expect("it is readable");
        file.set_modified(back(entry.modified, seconds)).expect("it belongs to this user");
    }
}

/// A time that many seconds earlier.
pub(super) fn back(time: SystemTime, seconds: i64) -> SystemTime {
    let span = Duration::from_secs(seconds.unsigned_abs());
    if seconds > 0 { time - span } else { time + span }
}
