//! What can go wrong with the operator's disk.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::oci::Digest;

/// The disk refused. Damage and absence are not errors: they are misses.
#[derive(Debug)]
pub enum StoreError {
    /// The cache directory's path leads to something that is no directory (`imagePath`).
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// The cache directory, or one inside it, cannot be created (`imagePath`).
    Create {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The directory was opened read-only, so nothing can be added.
    ReadOnly {
        /// The cache directory.
        root: PathBuf,
    },
    /// Another process on the directory is writing the blob, or has just finished it.
    Locked {
        /// The blob.
        digest: Box<Digest>,
    },
    /// There is no room for a blob of known size.
    InsufficientSpace {
        /// The cache directory.
        root: PathBuf,
        /// What is to be written, in bytes.
        missing_bytes: u64,
        /// What there is room for, in bytes.
        free_bytes: u64,
    },
    /// There may not be more in the cache, and what is in it has to stay.
    LimitReached {
        /// What is to be written, in bytes.
        missing_bytes: u64,
        /// The bound and its key, and why nothing goes.
        reason: String,
    },
    /// Not all names can be read, and so nothing may be removed.
    IncompleteScan {
        /// Which, and why.
        source: io::Error,
    },
    /// A file or directory cannot be read, for a reason that says nothing about its content: there are no
    /// descriptors or no memory left, or the disk fails.
    Read {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file could not be written, synced or renamed.
    Write {
        /// The file that was to be.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl StoreError {
    /// Something below `root` could not be read while everything had to be.
    pub(super) fn unreadable_meanwhile(root: &Path) -> StoreError {
        let why = format!("everything below {}: some files failed, see the log", root.display());
        StoreError::IncompleteScan { source: io::Error::other(why) }
    }

    pub(super) fn read(path: &Path, source: io::Error) -> StoreError {
        StoreError::Read { path: path.to_owned(), source }
    }

    pub(super) fn write(path: &Path, source: io::Error) -> StoreError {
        StoreError::Write { path: path.to_owned(), source }
    }

    /// Whether the store cannot be read just now, so that it is not known what it holds.
    pub fn is_unreadable(&self) -> bool {
        matches!(self, StoreError::Read { .. })
    }

    /// Whether the disk, or a quota on it, has no room left.
    pub fn is_full(&self) -> bool {
        match self {
            StoreError::InsufficientSpace { .. } | StoreError::LimitReached { .. } => true,
            StoreError::Write { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            _ => false,
        }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreError::NotADirectory { path } => write!(
                f,
                "the cache directory {} is not a directory; give another one with --image-path or \
                 imagePath",
                path.display()
            ),
            StoreError::Create { path, source } => write!(
                f,
                "cannot create the cache directory {}: {source}; make it writable for this user or \
                 give another one with --image-path or imagePath",
                path.display()
            ),
            StoreError::ReadOnly { root } => write!(
                f,
                "the cache directory {} is read-only: what is in it is served, nothing is added",
                root.display()
            ),
            StoreError::Locked { digest } => {
                write!(f, "another process on this cache directory is writing {digest}")
            }
            StoreError::InsufficientSpace { root, missing_bytes, free_bytes } => write!(
                f,
                "no room for {missing_bytes} bytes on the disk of {}, which has {free_bytes} left; \
                 free some, or move the cache with imagePath",
                root.display()
            ),
            StoreError::IncompleteScan { source } => {
                write!(f, "cannot read {source}; nothing is removed until it can be read")
            }
            StoreError::LimitReached { missing_bytes: 0, reason } => f.write_str(reason),
            StoreError::LimitReached { missing_bytes, reason } => {
                write!(f, "no room for {missing_bytes} bytes: {reason}")
            }
            StoreError::Read { path, source } => write!(
                f,
                "cannot read {}: {source}; if this lasts, check the disk and the limit of open files",
                path.display()
            ),
            StoreError::Write { path, source } if self.is_full() => write!(
                f,
                "no room left on the cache's disk to write {} ({source}); free some, or move the \
                 cache with imagePath",
                path.display()
            ),
            StoreError::Write { path, source } => {
                write!(f, "cannot write {}: {source}", path.display())
            }
        }
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            StoreError::Create { source, .. }
            | StoreError::IncompleteScan { source }
            | StoreError::Read { source, .. }
            | StoreError::Write { source, .. } => Some(source),
            StoreError::NotADirectory { .. }
            | StoreError::ReadOnly { .. }
            | StoreError::Locked { .. }
            | StoreError::InsufficientSpace { .. }
            | StoreError::LimitReached { .. } => None,
        }
    }
}
