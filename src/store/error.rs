//! Errors of the operator's disk.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::oci::Digest;
use crate::units::size;

/// A disk operation failed. Damage and absence are not errors: they are misses.
#[derive(Debug)]
pub enum StoreError {
    /// The path of the cache directory exists and is not a directory (`imagePath`).
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// The cache directory or one of its subdirectories cannot be created (`imagePath`).
    Create {
        /// The path.
        path: PathBuf,
        /// The cause.
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
    /// The disk has too little free space for a blob of known size.
    InsufficientSpace {
        /// The cache directory.
        root: PathBuf,
        /// The size of the write, in bytes.
        missing_bytes: u64,
        /// The free space, in bytes.
        free_bytes: u64,
    },
    /// The cache has reached a configured limit, and nothing can be evicted.
    LimitReached {
        /// The size of the write, in bytes.
        missing_bytes: u64,
        /// The limit with its key, and why nothing can be evicted.
        reason: String,
    },
    /// Not all records can be read, so nothing may be removed.
    IncompleteScan {
        /// Which records, and the cause.
        source: io::Error,
    },
    /// A file or directory cannot be read for a reason unrelated to its content: no descriptors or no memory left,
    /// or a failing disk.
    Read {
        /// The path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file could not be written, synced or renamed.
    Write {
        /// The target file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl StoreError {
    /// A read below `root` failed during a scan that needs every file.
    pub(super) fn unreadable_meanwhile(root: &Path) -> StoreError {
        let why = format!("everything below {}: some files failed, see the log", root.display());
        StoreError::IncompleteScan { source: io::Error::other(why) }
    }

    /// A scan of all records failed.
    pub fn scan(source: io::Error) -> StoreError {
        StoreError::IncompleteScan { source }
    }

    /// The system has no random bytes.
    pub fn random(source: io::Error) -> StoreError {
        StoreError::read(Path::new("/dev/urandom"), source)
    }

    pub(super) fn read(path: &Path, source: io::Error) -> StoreError {
        StoreError::Read { path: path.to_owned(), source }
    }

    pub(super) fn write(path: &Path, source: io::Error) -> StoreError {
        StoreError::Write { path: path.to_owned(), source }
    }

    /// Whether the store cannot be read now, so that its content is unknown.
    pub fn is_unreadable(&self) -> bool {
        matches!(self, StoreError::Read { .. })
    }

    /// Whether the disk, or a quota on it, is full.
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
                "the cache directory {} is not a directory; set another one with --image-path or \
                 imagePath",
                path.display()
            ),
            StoreError::Create { path, source } => write!(
                f,
                "cannot create the cache directory {}: {source}; make it writable for this user or \
                 set another one with --image-path or imagePath",
                path.display()
            ),
            StoreError::ReadOnly { root } => write!(
                f,
                "the cache directory {} is read-only: cached content is served, nothing is added",
                root.display()
            ),
            StoreError::Locked { digest } => {
                write!(f, "another process on this cache directory is writing {digest}")
            }
            StoreError::InsufficientSpace { root, missing_bytes, free_bytes } => write!(
                f,
                "not enough space for {} on the disk of {}, which has {} left; free some, or move the \
                 cache with imagePath",
                size(*missing_bytes),
                root.display(),
                size(*free_bytes)
            ),
            StoreError::IncompleteScan { source } => {
                write!(f, "cannot read {source}; nothing is removed until it can be read")
            }
            StoreError::LimitReached { missing_bytes: 0, reason } => f.write_str(reason),
            StoreError::LimitReached { missing_bytes, reason } => {
                write!(f, "not enough space for {}: {reason}", size(*missing_bytes))
            }
            StoreError::Read { path, source } => write!(
                f,
                "cannot read {}: {source}; if this lasts, check the disk and the open-file limit",
                path.display()
            ),
            StoreError::Write { path, source } if self.is_full() => write!(
                f,
                "no space left on the cache's disk to write {} ({source}); free some, or move the \
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
