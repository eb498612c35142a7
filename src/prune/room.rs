//! How much room there is to be, and what is pruned by the clock.

use std::time::{Duration, SystemTime};

use super::plan::Criteria;
use crate::store::Store;

/// When room is made, it is made down to this share of the cap, and up to as much more than the floor: so
/// that it need not be made again for the next blob.
const LOW_WATER_PERCENT: u64 = 90;

/// Room that is kept free on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FreeSpace {
    /// So many bytes.
    Bytes(u64),
    /// A share of the disk.
    Percent(u8),
}

/// How large the cache may be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RoomPolicy {
    /// `cacheSize`: all that the cache holds, in bytes.
    pub cap_bytes: Option<u64>,
    /// `freeSpace`: what stays free on its disk, whoever uses the rest.
    pub floor: Option<FreeSpace>,
}

/// What is known of the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Disk {
    /// What the cache holds; nothing before it was counted.
    pub used_bytes: Option<u64>,
    /// What is free.
    pub free_bytes: Option<u64>,
    /// How large it is.
    pub size_bytes: Option<u64>,
}

impl Disk {
    /// The disk of a cache, now.
    pub fn of(store: &Store) -> Disk {
        Disk {
            used_bytes: store.disk_bytes(),
            free_bytes: store.free_bytes(),
            size_bytes: store.disk_size(),
        }
    }
}

impl RoomPolicy {
    /// Whether there is a bound at all.
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

    /// How many bytes are lacking for `more_bytes` to fit.
    pub fn lacking(&self, disk: &Disk, more_bytes: u64) -> u64 {
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

    /// How many bytes to free for `more_bytes`, if any are lacking: so many more that it lasts.
    pub fn to_free(&self, disk: &Disk, more_bytes: u64) -> Option<u64> {
        if self.lacking(disk, more_bytes) == 0 {
            return None;
        }
        let margin = 100 - LOW_WATER_PERCENT;
        let low_water = RoomPolicy {
            cap_bytes: self.cap_bytes.map(|cap| cap / 100 * LOW_WATER_PERCENT),
            floor: self
                .floor_bytes(disk)
                .map(|floor| FreeSpace::Bytes(floor.saturating_add(floor / 100 * margin))),
        };
        Some(low_water.lacking(disk, more_bytes))
    }
}

/// `pruneConfig`: what is pruned in the background.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrunePolicy {
    /// By what.
    pub by: PruneBy,
    /// How long ago that must be.
    pub duration: Duration,
    /// How often.
    pub every: Duration,
    /// How many images at a time.
    pub count: Option<usize>,
    /// Whether only to say what would go.
    pub is_dry_run: bool,
}

/// By which time images are pruned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PruneBy {
    /// When they were last pulled.
    Accessed,
    /// When the cache got them.
    Created,
}

impl PrunePolicy {
    /// The criteria, now.
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
    fn room_lacks_over_the_cap_and_below_the_floor() {
        let disk = Disk { used_bytes: Some(800), free_bytes: Some(300), size_bytes: Some(2000) };
        let (cap, bytes, percent) =
            (Some(1000), Some(FreeSpace::Bytes(100)), Some(FreeSpace::Percent(10)));
        for (cap_bytes, floor, more, lacking, to_free) in [
            (None, None, 9999, 0, None),
            (cap, None, 0, 0, None),
            (cap, None, 200, 0, None),
            (cap, None, 201, 1, Some(101)),
            (cap, None, 500, 300, Some(400)),
            (None, bytes, 200, 0, None),
            (None, bytes, 250, 50, Some(60)),
            (None, percent, 100, 0, None),
            (None, percent, 101, 1, Some(21)),
            (cap, bytes, 400, 200, Some(300)),
            (cap, percent, 190, 90, Some(110)),
        ] {
            let policy = RoomPolicy { cap_bytes, floor };
            assert_eq!(policy.lacking(&disk, more), lacking, "{policy:?} {more}");
            assert_eq!(policy.to_free(&disk, more), to_free, "{policy:?} {more}");
        }
    }

    #[test]
    fn what_is_not_known_bounds_nothing() {
        let policy = RoomPolicy { cap_bytes: Some(1), floor: Some(FreeSpace::Percent(50)) };
        assert_eq!(policy.lacking(&Disk::default(), 1000), 0);
        assert!(policy.is_bounded() && !RoomPolicy::default().is_bounded());
    }

    #[test]
    fn a_policy_of_the_clock_becomes_criteria() {
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
