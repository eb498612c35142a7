//! Ownership of files that root creates in another user's cache directory.
//!
//! A server seldom runs as root, but `sudo larder import` does. The server could read files owned by root, but not
//! update, replace or add to them, and images would be evicted as if they were never pulled. So files created by
//! root get the owner of the directory.
//!
//! That owner may be a compromised server, which could plant a link where root opens a file. Such a link must not
//! give it ownership of a file of root's.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown, lchown};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::process::geteuid;

use crate::sync::may_switch;

/// User and group of the directory, if this process runs as root and the directory belongs to another user.
#[derive(Debug, Clone, Copy)]
pub(in crate::store) struct Owner(Option<(u32, u32)>);

impl Owner {
    /// The owner of the directory. A missing one will belong to this process.
    pub(in crate::store) fn of(root: &Path) -> Owner {
        let of_root = || {
            let metadata = fs::metadata(root).ok()?;
            (metadata.uid() != 0).then_some((metadata.uid(), metadata.gid()))
        };
        Owner(geteuid().is_root().then(of_root).flatten())
    }

    /// Opens a file with a predictable name and sets its owner. A link is an error, and so is a pipe without a
    /// reader, which would otherwise block.
    pub(in crate::store) fn open(self, options: &mut OpenOptions, path: &Path) -> io::Result<File> {
        may_switch();
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        // The flags are small positive numbers on every system.
        let file = options.custom_flags(flags.bits().cast_signed()).open(path)?;
        self.give(&file);
        Ok(file)
    }

    /// Sets the owner of a created file. If that fails (a file system without owners), the file stays as it is. A
    /// file with a second hard link is skipped, since that link may belong to another user.
    pub(in crate::store) fn give(self, file: &File) {
        if let Owner(Some((user, group))) = self
            && file.metadata().is_ok_and(|is| is.is_file() && is.nlink() == 1)
        {
            let _ = fchown(file, Some(user), Some(group));
        }
    }

    /// Sets the owner of the file at a path. A link itself changes, not its target.
    pub(in crate::store) fn give_path(self, path: &Path) {
        if let Owner(Some((user, group))) = self {
            let _ = lchown(path, Some(user), Some(group));
        }
    }
}
