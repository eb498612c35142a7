//! Bytes on the disk: counted by a walk of the files, and followed from then on as far as this process
//! writes and removes. What other processes do shows at the next count.

use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;

use super::layout::names_in;
use super::{Inner, Store};
use crate::oci::{Algorithm, Upstream};

/// Bytes on the disk when they were counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Files under `blobs/`: manifests, configs and layers.
    pub files: u64,
    /// Their sizes together.
    pub bytes: u64,
    /// Downloads that have not ended.
    pub partials: u64,
    /// Their sizes so far, together.
    pub partial_bytes: u64,
    /// Damaged blobs that are kept aside.
    pub quarantined: u64,
    /// Their sizes together.
    pub quarantined_bytes: u64,
    /// Sizes of the stored lists, together.
    pub list_bytes: u64,
}

impl DiskUsage {
    /// All of it.
    pub fn all_bytes(&self) -> u64 {
        self.bytes + self.partial_bytes + self.quarantined_bytes + self.list_bytes
    }
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

    /// Counts what is on the disk. `go_on` is asked now and then, may take its time, and ends it by
    /// `false`.
    pub fn count_disk(&self, go_on: &mut dyn FnMut() -> bool) -> Option<DiskUsage> {
        let (layout, mut usage) = (&self.inner.layout, DiskUsage::default());
        let changed_before = self.inner.bytes_changed.load(Relaxed);
        for algorithm in Algorithm::ALL {
            let (files, bytes) = count_files(&layout.blobs(algorithm), go_on)?;
            usage.files += files;
            usage.bytes += bytes;
        }
        for upstream in names_in(&layout.all_partials()) {
            let Ok(upstream) = upstream.parse::<Upstream>() else { continue };
            let partials = layout.partials(&upstream);
            for name in names_in(&partials).filter(|name| !name.ends_with(".json")) {
                usage.partials += 1;
                usage.partial_bytes += fs::metadata(partials.join(name)).map_or(0, |is| is.len());
            }
        }
        (usage.quarantined, usage.quarantined_bytes) = count_files(&layout.quarantine(), go_on)?;
        usage.list_bytes = count_files(&layout.lists(), go_on)?.1;
        let counted = i64::try_from(usage.all_bytes()).unwrap_or(i64::MAX);
        self.inner.bytes_counted.store(counted, Relaxed);
        // What came while it was counted may count twice, until the next time.
        self.inner.bytes_changed.fetch_sub(changed_before, Relaxed);
        Some(usage)
    }
}

/// The number of files in a directory, and their sizes together.
fn count_files(directory: &Path, go_on: &mut dyn FnMut() -> bool) -> Option<(u64, u64)> {
    let (mut files, mut bytes) = (0, 0);
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if files % 1024 == 1023 && !go_on() {
            return None;
        }
        let Ok(metadata) = entry.metadata() else { continue };
        files += 1;
        bytes += metadata.len();
    }
    Some((files, bytes))
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
