//! Bytes on the disk: counted by a walk of all files below the cache directory, and followed from then on as
//! far as this process writes and removes. What other processes do shows at the next count.
//!
//! What counts is the space that a file takes on the disk, as `du` reports it, not its length: a record of a
//! hundred bytes takes a block. Everything counts: blobs, records, tag lists, partial downloads, imports
//! under way, damaged blobs that are kept, and the lists in `usage/`.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::PoisonError;
use std::sync::atomic::Ordering::Relaxed;
use std::time::SystemTime;

use super::sweep::FUTURE_TOLERANCE;
use super::{Inner, Store};

/// Directories below the cache directory are nested as deep as repository names, and no deeper than this.
const DEPTH_MAX: usize = 300;

/// Bytes on the disk when they were counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Files under `blobs/`: manifests, configs and layers.
    pub files: u64,
    /// Their lengths together.
    pub bytes: u64,
    /// What everything below the cache directory takes on the disk, blobs included.
    pub allocated_bytes: u64,
}

/// The file system that the cache is on, for an unprivileged process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes that are free.
    pub free_bytes: u64,
    /// How large it is, in bytes.
    pub size_bytes: u64,
    /// Files that can still be created; `None` where the file system has no bound.
    pub free_files: Option<u64>,
    /// How many files it can have; `None` where it has no bound.
    pub files_max: Option<u64>,
}

impl Store {
    /// Bytes on the disk: as they were counted last, and what this process has added and removed since.
    /// `None` before the first count.
    pub fn disk_bytes(&self) -> Option<u64> {
        let counted = self.inner.bytes_counted.load(Relaxed);
        let changed = self.inner.bytes_changed.load(Relaxed);
        // Before the first count it is below nothing.
        let counted = u64::try_from(counted).ok()?;
        Some(counted.saturating_add_signed(changed))
    }

    /// What the file system has; `None` if it does not say.
    pub fn space(&self) -> Option<Space> {
        let is = rustix::fs::statvfs(self.root()).ok()?;
        let files_max = (is.f_files > 0).then_some(is.f_files);
        Some(Space {
            free_bytes: is.f_bavail.saturating_mul(is.f_frsize),
            size_bytes: is.f_blocks.saturating_mul(is.f_frsize),
            free_files: files_max.map(|_| is.f_favail),
            files_max,
        })
    }

    /// Counts what is on the disk. `should_continue` is called now and then, may block, and stops it by returning
    /// `false`.
    ///
    /// A file whose time is in the future gets the time of now: it would count as young, and as just used,
    /// until that time comes.
    pub fn count_disk(&self, should_continue: &mut dyn FnMut() -> bool) -> Option<DiskUsage> {
        let _counting = self.inner.counting.lock().unwrap_or_else(PoisonError::into_inner);
        let now = if self.is_writable() { self.file_system_time().ok() } else { None };
        let changed_before = self.inner.bytes_changed.load(Relaxed);
        let mut count = Count {
            usage: DiskUsage::default(),
            files: 0,
            // Of a directory that cannot be written no time can be set.
            latest: now.map(|now| now + FUTURE_TOLERANCE),
            should_continue,
        };
        count.usage.allocated_bytes = fs::metadata(self.root()).map_or(0, |is| allocated(&is));
        count.directory(self.root(), false, 0)?;
        let usage = count.usage;
        let counted = i64::try_from(usage.allocated_bytes).unwrap_or(i64::MAX);
        self.inner.bytes_counted.store(counted, Relaxed);
        // What came while it was counted may count twice, until the next time.
        self.inner.bytes_changed.fetch_sub(changed_before, Relaxed);
        Some(usage)
    }
}

/// A count under way.
struct Count<'a> {
    usage: DiskUsage,
    files: u64,
    latest: Option<SystemTime>,
    should_continue: &'a mut dyn FnMut() -> bool,
}

impl Count<'_> {
    /// Counts what is in a directory, without following symbolic links.
    fn directory(&mut self, directory: &Path, is_blobs: bool, depth: usize) -> Option<()> {
        if depth > DEPTH_MAX {
            return Some(());
        }
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            self.files += 1;
            if self.files.is_multiple_of(1024) && !(self.should_continue)() {
                return None;
            }
            let Ok(metadata) = entry.metadata() else { continue };
            self.usage.allocated_bytes += allocated(&metadata);
            let is_blobs = is_blobs || (depth == 0 && entry.file_name() == "blobs");
            if metadata.is_dir() {
                self.directory(&entry.path(), is_blobs, depth + 1)?;
            } else if metadata.is_file() {
                if is_blobs {
                    self.usage.files += 1;
                    self.usage.bytes += metadata.len();
                }
                let time = metadata.modified().ok();
                if time.zip(self.latest).is_some_and(|(time, latest)| time > latest) {
                    // Where that fails the file is tried again at the next count.
                    let _ = renew_to_now(&entry.path());
                }
            }
        }
        Some(())
    }
}

fn renew_to_now(path: &Path) -> io::Result<()> {
    super::sweep::renew(&File::options().read(true).open(path)?);
    Ok(())
}

/// What a file takes on the disk, in bytes.
pub(super) fn allocated(metadata: &Metadata) -> u64 {
    // The unit is 512 bytes, whatever the block size of the file system.
    metadata.blocks().saturating_mul(512)
}

impl Inner {
    /// Notes that this process has put bytes on the disk.
    pub(super) fn note_bytes_added(&self, bytes: u64) {
        self.bytes_changed.fetch_add(i64::try_from(bytes).unwrap_or(i64::MAX), Relaxed);
    }

    /// Notes that this process has taken bytes off the disk.
    pub(super) fn note_bytes_removed(&self, bytes: u64) {
        self.bytes_changed.fetch_sub(i64::try_from(bytes).unwrap_or(i64::MAX), Relaxed);
    }
}
