//! Whose the files are that root makes in somebody else's cache.
//!
//! A server seldom runs as root, and an operator's `sudo larder import` does. What root makes, the server
//! could read and not renew, replace or add to: images would be evicted as if nobody pulled them. So it is
//! given to whom the directory belongs.
//!
//! He may be the server that somebody has broken into, and has put there what root is to open: a link to a
//! file of root's must not make that file his.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown, lchown};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::process::geteuid;

/// User and group of the directory, if they are somebody else's than root's, whom this process runs as.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner(Option<(u32, u32)>);

impl Owner {
    /// Whoever has that directory. One that is not there yet will be ours.
    pub(super) fn of(root: &Path) -> Owner {
        let of_root = || {
            let metadata = fs::metadata(root).ok()?;
            (metadata.uid() != 0).then_some((metadata.uid(), metadata.gid()))
        };
        Owner(geteuid().is_root().then(of_root).flatten())
    }

    /// Opens a file whose name anybody may know beforehand, and gives it. A link is an error, and so is a pipe
    /// that nobody reads, which would block otherwise.
    pub(super) fn open(self, options: &mut OpenOptions, path: &Path) -> io::Result<File> {
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        // The flags are small positive numbers on every system.
        let file = options.custom_flags(flags.bits().cast_signed()).open(path)?;
        self.give(&file);
        Ok(file)
    }

    /// Gives a file that was made. Where that is not allowed (a file system without owners), it stays as it
    /// is, and serves as well as it can. One that has another name is another's as well.
    pub(super) fn give(self, file: &File) {
        if let Owner(Some((user, group))) = self
            && file.metadata().is_ok_and(|is| is.is_file() && is.nlink() == 1)
        {
            let _ = fchown(file, Some(user), Some(group));
        }
    }

    /// Gives what was made at a path; a link, if it is one, and not where it leads.
    pub(super) fn give_path(self, path: &Path) {
        if let Owner(Some((user, group))) = self {
            let _ = lchown(path, Some(user), Some(group));
        }
    }
}
