//! Disk usage: counted by a walk of all files below the cache directory, then updated with the writes and removals
//! of this process. Changes by other processes show in the next count.
//!
//! A file counts with its allocated space, as `du` reports it, not its length: a record of a hundred bytes takes a
//! block. Everything counts: blobs, records, tag lists, partial downloads, running imports, quarantined blobs, and
//! the lists in `usage/`.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::PoisonError;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime};

use crate::store::Store;
use crate::store::files::write::{FUTURE_TOLERANCE, allocated, renew};

/// How long a query of the free space is used.
const SPACE_AGE_MAX: Duration = Duration::from_secs(1);
/// The maximum depth of directories: repository names have no more components.
const DEPTH_MAX: usize = 300;

/// Disk usage at the time of a count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Files under `blobs/`: manifests, configs and layers.
    pub files: u64,
    /// Their total length.
    pub bytes: u64,
    /// Allocated bytes of everything below the cache directory, including blobs.
    pub allocated_bytes: u64,
}

/// The file system of the cache, from the view of an unprivileged process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Free bytes.
    pub free_bytes: u64,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Number of files that can still be created; `None` if the file system has no limit.
    pub free_files: Option<u64>,
    /// The maximum number of files; `None` if there is no limit.
    pub files_max: Option<u64>,
}

impl Space {
    /// The space after this many bytes were added, or removed if negative.
    fn after(self, added_bytes: i64) -> Space {
        let free_bytes = self.free_bytes.saturating_add_signed(added_bytes.saturating_neg());
        Space { free_bytes: free_bytes.min(self.size_bytes), ..self }
    }
}

/// The result of a query, which is used for [`SPACE_AGE_MAX`].
#[derive(Debug, Clone, Copy)]
pub(in crate::store) struct SpaceSeen {
    space: Space,
    at: Instant,
}

impl Store {
    /// Allocated bytes: the last count plus the changes by this process. `None` before the first count.
    pub fn disk_bytes(&self) -> Option<u64> {
        let counted = self.inner.bytes_counted.load(Relaxed);
        let changed = self.inner.bytes_changed.load(Relaxed);
        // Negative before the first count.
        let counted = u64::try_from(counted).ok()?;
        Some(counted.saturating_add_signed(changed))
    }

    /// Space of the file system as of `now`; `None` if it does not report it. For callers that look at it again and
    /// again: it is queried at most once per second and follows the changes by this process in between.
    pub fn space_at(&self, now: Instant) -> Option<Space> {
        let mut seen = self.inner.space.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seen) = &*seen
            && now.saturating_duration_since(seen.at) < SPACE_AGE_MAX
        {
            return Some(seen.space.after(self.inner.bytes_since_look.load(Relaxed)));
        }
        // Before the query: a change in between counts twice, until the next query.
        self.inner.bytes_since_look.store(0, Relaxed);
        let space = self.space()?;
        *seen = Some(SpaceSeen { space, at: now });
        Some(space)
    }

    /// Space of the file system; `None` if it does not report it.
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

    /// Counts the disk usage. Calls `keep_going` regularly; it may block, and stops the count by returning
    /// `false`.
    ///
    /// A file with a time in the future gets the current time; otherwise it would count as young and just used
    /// until that time. So does a directory; otherwise its names would seem to change all the time, and its images
    /// could not be evicted.
    pub fn count_disk(&self, keep_going: &mut dyn FnMut() -> bool) -> Option<DiskUsage> {
        let _counting = self.inner.counting.lock().unwrap_or_else(PoisonError::into_inner);
        let now = if self.is_writable() { self.file_system_time().ok() } else { None };
        let changed_before = self.inner.bytes_changed.load(Relaxed);
        let mut count = Count {
            usage: DiskUsage::default(),
            files: 0,
            // Times cannot be set in a read-only directory.
            latest: now.map(|now| now + FUTURE_TOLERANCE),
            keep_going,
        };
        count.usage.allocated_bytes = fs::metadata(self.root()).map_or(0, |is| allocated(&is));
        count.directory(self.root(), false, 0)?;
        let usage = count.usage;
        let counted = i64::try_from(usage.allocated_bytes).unwrap_or(i64::MAX);
        self.inner.bytes_counted.store(counted, Relaxed);
        // Files added during the count may count twice until the next count.
        self.inner.bytes_changed.fetch_sub(changed_before, Relaxed);
        Some(usage)
    }
}

/// A running count.
struct Count<'a> {
    usage: DiskUsage,
    files: u64,
    latest: Option<SystemTime>,
    keep_going: &'a mut dyn FnMut() -> bool,
}

impl Count<'_> {
    /// Counts a directory, without following symbolic links.
    fn directory(&mut self, directory: &Path, is_blobs: bool, depth: usize) -> Option<()> {
        if depth > DEPTH_MAX {
            return Some(());
        }
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            self.files += 1;
            if self.files.is_multiple_of(1024) && !(self.keep_going)() {
                return None;
            }
            let Ok(metadata) = entry.metadata() else { continue };
            self.usage.allocated_bytes += allocated(&metadata);
            let is_blobs = is_blobs || (depth == 0 && entry.file_name() == "blobs");
            let is_file = metadata.is_file();
            if metadata.is_dir() {
                self.directory(&entry.path(), is_blobs, depth + 1)?;
            } else if is_file && is_blobs {
                self.usage.files += 1;
                self.usage.bytes += metadata.len();
            }
            let time = metadata.modified().ok();
            let is_future = time.zip(self.latest).is_some_and(|(time, latest)| time > latest);
            if is_future && (is_file || metadata.is_dir()) {
                // If that fails, the next count retries.
                let _ = renew_to_now(&entry.path());
            }
        }
        Some(())
    }
}

fn renew_to_now(path: &Path) -> io::Result<()> {
    renew(&File::options().read(true).open(path)?);
    Ok(())
}
