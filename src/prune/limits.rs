//! The configured limits of the cache, and scheduled pruning.

use std::time::{Duration, Instant, SystemTime};

use super::plan::Criteria;
use crate::store::{Space, Store};

/// The watermarks as fractions of the limits. Eviction begins at the high watermark and ends at the low one. This
/// fraction of the cap stays unused, or is free in addition to the floor.
const HIGH_WATER_DIVISOR: u64 = 20;
const LOW_WATER_DIVISOR: u64 = 10;
/// Inodes that stay free: one hundredth of the file system's, and at most this many.
const FREE_FILES_MAX: u64 = 1000;

/// Space that stays free on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FreeSpace {
    /// In bytes.
    Bytes(u64),
    /// As a percentage of the disk.
    Percent(u8),
}

/// Limits on the size of the cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheLimits {
    /// `cacheSize`: the maximum size of the cache in bytes.
    pub cap_bytes: Option<u64>,
    /// `freeSpace`: the space that stays free on the disk, whatever uses the rest.
    pub floor: Option<FreeSpace>,
}

/// The state of the disk, as far as it is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Disk {
    /// Size of the cache in bytes; `None` before the first count.
    pub used_bytes: Option<u64>,
    /// Free bytes.
    pub free_bytes: Option<u64>,
    /// Size of the disk in bytes.
    pub size_bytes: Option<u64>,
    /// Number of files that can still be created; `None` if the file system has no limit.
    pub free_files: Option<u64>,
    /// The maximum number of files.
    pub files_max: Option<u64>,
}

impl Disk {
    /// The current state of a cache's disk.
    pub fn of(store: &Store) -> Disk {
        Disk::with(store, store.space())
    }

    /// As [`Disk::of`], for callers that look at it again and again: see [`Store::space_at`].
    pub fn at(store: &Store, now: Instant) -> Disk {
        Disk::with(store, store.space_at(now))
    }

    fn with(store: &Store, space: Option<Space>) -> Disk {
        Disk {
            used_bytes: store.disk_bytes(),
            free_bytes: space.map(|space| space.free_bytes),
            size_bytes: space.map(|space| space.size_bytes),
            free_files: space.and_then(|space| space.free_files),
            files_max: space.and_then(|space| space.files_max),
        }
    }

    /// Whether the file system has too few free inodes.
    pub fn lacks_files(&self) -> bool {
        self.has_fewer_files_than(1)
    }

    /// Whether fewer inodes are free than `times` the number to keep free.
    fn has_fewer_files_than(&self, times: u64) -> bool {
        let spare = |max: u64| (max / 100).min(FREE_FILES_MAX).saturating_mul(times);
        self.free_files.zip(self.files_max).is_some_and(|(free, max)| free < spare(max))
    }
}

impl CacheLimits {
    /// Whether any limit is set.
    pub fn is_bounded(&self) -> bool {
        self.cap_bytes.is_some() || self.floor.is_some()
    }

    /// The floor in bytes.
    pub fn floor_bytes(&self, disk: &Disk) -> Option<u64> {
        match self.floor? {
            FreeSpace::Bytes(bytes) => Some(bytes),
            FreeSpace::Percent(percent) => Some(disk.size_bytes? / 100 * u64::from(percent)),
        }
    }

    /// How many bytes must be freed for `more_bytes` to fit.
    pub fn shortfall(&self, disk: &Disk, more_bytes: u64) -> u64 {
        let over_cap = match (self.cap_bytes, disk.used_bytes) {
            (Some(cap), Some(used)) => used.saturating_add(more_bytes).saturating_sub(cap),
            _ => 0,
        };
        let below_floor = match (self.floor_bytes(disk), disk.free_bytes) {
            (Some(floor), Some(free)) => floor.saturating_add(more_bytes).saturating_sub(free),
            _ => 0,
        };
        over_cap.max(below_floor)
    }

    /// Whether `more_bytes` fit and enough inodes are free.
    pub fn fits(&self, disk: &Disk, more_bytes: u64) -> bool {
        self.shortfall(disk, more_bytes) == 0 && !disk.lacks_files()
    }

    /// Whether no eviction in advance is needed.
    pub fn below_high_watermark(&self, disk: &Disk) -> bool {
        self.watermark(disk, HIGH_WATER_DIVISOR).shortfall(disk, 0) == 0
            && !disk.has_fewer_files_than(2)
    }

    /// Whether an eviction in advance can end.
    pub fn below_low_watermark(&self, disk: &Disk) -> bool {
        self.watermark(disk, LOW_WATER_DIVISOR).shortfall(disk, 0) == 0
            && !disk.has_fewer_files_than(3)
    }

    fn watermark(&self, disk: &Disk, divisor: u64) -> CacheLimits {
        let floor = self.floor_bytes(disk);
        CacheLimits {
            cap_bytes: self.cap_bytes.map(|cap| cap - cap / divisor),
            floor: floor.map(|floor| FreeSpace::Bytes(floor.saturating_add(floor / divisor))),
        }
    }
}

/// `pruneConfig`: scheduled pruning in the background.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrunePolicy {
    /// The time that counts.
    pub by: PruneBy,
    /// The minimum age by that time.
    pub duration: Duration,
    /// The interval between runs.
    pub every: Duration,
    /// The maximum number of images per run.
    pub count: Option<usize>,
    /// Whether to only report what would be removed.
    pub is_dry_run: bool,
}

/// The time by which images are pruned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PruneBy {
    /// The last pull.
    Accessed,
    /// The time when the image was fetched.
    Created,
}

impl PrunePolicy {
    /// The criteria at the time `now`.
    pub fn criteria(&self, now: SystemTime) -> Criteria {
        let count = self.count;
        match self.by {
            PruneBy::Accessed => {
                Criteria { unused_for: Some(self.duration), count, ..Criteria::default() }
            }
            PruneBy::Created => {
                let before = now.checked_sub(self.duration).unwrap_or(SystemTime::UNIX_EPOCH);
                Criteria { fetched_before: Some(before), count, ..Criteria::default() }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortfall_is_the_excess_over_the_cap_or_below_the_floor() {
        let disk = Disk {
            used_bytes: Some(800),
            free_bytes: Some(300),
            size_bytes: Some(2000),
            ..Disk::default()
        };
        let (cap, bytes, percent) =
            (Some(1000), Some(FreeSpace::Bytes(100)), Some(FreeSpace::Percent(10)));
        for (cap_bytes, floor, more, shortfall) in [
            (None, None, 9999, 0),
            (cap, None, 0, 0),
            (cap, None, 200, 0),
            (cap, None, 201, 1),
            (cap, None, 500, 300),
            (None, bytes, 200, 0),
            (None, bytes, 250, 50),
            (None, percent, 100, 0),
            (None, percent, 101, 1),
            (cap, bytes, 400, 200),
            (cap, percent, 190, 90),
        ] {
            let policy = CacheLimits { cap_bytes, floor };
            assert_eq!(policy.shortfall(&disk, more), shortfall, "{policy:?} {more}");
            assert_eq!(policy.fits(&disk, more), shortfall == 0, "{policy:?} {more}");
        }
    }

    #[test]
    fn watermarks_are_below_the_cap_and_above_the_floor() {
        let disk = |used, free| Disk {
            used_bytes: Some(used),
            free_bytes: Some(free),
            size_bytes: Some(9999),
            ..Disk::default()
        };
        let cap = CacheLimits { cap_bytes: Some(1000), floor: None };
        let floor = CacheLimits { cap_bytes: None, floor: Some(FreeSpace::Bytes(1000)) };
        for (policy, disk, below_high, below_low) in [
            (cap, disk(900, 0), true, true),
            (cap, disk(901, 0), true, false),
            (cap, disk(950, 0), true, false),
            (cap, disk(951, 0), false, false),
            (floor, disk(0, 1100), true, true),
            (floor, disk(0, 1099), true, false),
            (floor, disk(0, 1050), true, false),
            (floor, disk(0, 1049), false, false),
        ] {
            assert_eq!(policy.below_high_watermark(&disk), below_high, "{policy:?} {disk:?}");
            assert_eq!(policy.below_low_watermark(&disk), below_low, "{policy:?} {disk:?}");
        }
    }

    #[test]
    fn inodes_are_watched_like_bytes() {
        let disk =
            |free, max| Disk { free_files: Some(free), files_max: Some(max), ..Disk::default() };
        let policy = CacheLimits { cap_bytes: Some(1), floor: None };
        for (free, max, fits, below_high, below_low) in [
            (0, 1000, false, false, false),
            (9, 1000, false, false, false),
            (10, 1000, true, false, false),
            (20, 1000, true, true, false),
            (30, 1000, true, true, true),
            (999, 10_000_000, false, false, false),
            (3000, 10_000_000, true, true, true),
        ] {
            let disk = disk(free, max);
            assert_eq!(policy.fits(&disk, 0), fits, "{disk:?}");
            assert_eq!(policy.below_high_watermark(&disk), below_high, "{disk:?}");
            assert_eq!(policy.below_low_watermark(&disk), below_low, "{disk:?}");
        }
    }

    #[test]
    fn unknown_sizes_impose_no_limit() {
        let policy = CacheLimits { cap_bytes: Some(1), floor: Some(FreeSpace::Percent(50)) };
        assert_eq!(policy.shortfall(&Disk::default(), 1000), 0);
        assert!(policy.is_bounded() && !CacheLimits::default().is_bounded());
    }

    #[test]
    fn a_prune_policy_becomes_criteria() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let duration = Duration::from_secs(400);
        let policy = PrunePolicy {
            by: PruneBy::Accessed,
            duration,
            every: duration,
            count: Some(3),
            is_dry_run: false,
        };
        let criteria = policy.criteria(now);
        assert_eq!((criteria.unused_for, criteria.count), (Some(duration), Some(3)));
        let policy = PrunePolicy { by: PruneBy::Created, ..policy };
        let before = SystemTime::UNIX_EPOCH + Duration::from_secs(600);
        assert_eq!(policy.criteria(now).fetched_before, Some(before));
    }
}
