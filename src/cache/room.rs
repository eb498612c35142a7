//! Room: what is evicted so that a blob fits, and what is said when nothing may go.
//!
//! Room is made once at a time. A fetcher that needs it waits for whoever is at it, and looks again. What
//! could not be made is not tried for again for a while: each try looks at all images.

use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use super::blobs::BlobKey;
use super::{CacheError, Inner, lock};
use crate::metrics::Removal;
use crate::prune::{self, Disk, FreeSpace, PruneError, Report, Request, RoomPolicy};
use crate::store::StoreError;

/// After a try that was in vain the next one is made so much later: when something may have changed.
const TRIED_AGAIN_AFTER: Duration = Duration::from_secs(30);
/// What stays free of a disk without `freeSpace`: a hundredth, and at most so many bytes.
const LEFT_FREE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// The same where nobody waits for it; each one is an error in the log.
const KEPT_AGAIN_AFTER: Duration = Duration::from_secs(600);

/// When room was last tried for in vain.
#[derive(Debug, Default)]
pub(super) struct TriedInVain {
    /// For a download, and for how many bytes: less may well be had.
    for_a_download: Option<(SystemTime, u64)>,
    /// In the background.
    in_background: Option<SystemTime>,
}

impl Inner {
    /// Makes room for what is missing of a blob, beside what the other downloads under way still need. On
    /// their fetchers.
    ///
    /// # Errors
    /// [`CacheError::Store`] if it does not fit and nothing may go.
    pub(super) fn make_room_for_blob(
        &self,
        key: &BlobKey,
        missing_bytes: u64,
    ) -> Result<(), CacheError> {
        let policy = self.room_policy();
        let disk = Disk::of(&self.store);
        if self.can_never_fit(&policy, &disk, missing_bytes) {
            let why = "it is larger than the bound itself";
            return Err(self.refusal(&policy, &disk, missing_bytes, why));
        }
        self.make_room_for(missing_bytes.saturating_add(self.pending_bytes(key)))
    }

    /// As much room as there can be, in bytes.
    pub(super) fn most_room(&self) -> u64 {
        let cap = self.settings().upkeep.room.cap_bytes.unwrap_or(u64::MAX);
        self.store.disk_size().map_or(cap, |size| size.min(cap))
    }

    /// Bytes that are still to come of the downloads under way, one of them apart.
    fn pending_bytes(&self, but_for: &BlobKey) -> u64 {
        let others = self.blobs.keys().into_iter().filter(|key| key != but_for);
        let pending = others.filter_map(|key| {
            let flight = self.blobs.peek(&key)?;
            Some(flight.header()?.size?.saturating_sub(flight.available()))
        });
        pending.fold(0, u64::saturating_add)
    }

    /// Makes room for so many bytes, if it takes that. Where somebody may wait.
    ///
    /// # Errors
    /// [`CacheError::Store`] if they do not fit and nothing may go.
    pub(super) fn make_room_for(&self, more_bytes: u64) -> Result<(), CacheError> {
        let policy = self.room_policy();
        if policy.to_free(&Disk::of(&self.store), more_bytes).is_none() {
            return Ok(());
        }
        let mut tried_in_vain = lock(&self.room);
        // Somebody may have made it meanwhile.
        let disk = Disk::of(&self.store);
        let Some(bytes) = policy.to_free(&disk, more_bytes) else { return Ok(()) };
        let refuse = |why: &str| Err(self.refusal(&policy, &disk, more_bytes, why));
        let now = self.now();
        if let Some((then, bytes)) = tried_in_vain.for_a_download
            && more_bytes >= bytes
            && was_within(Some(then), TRIED_AGAIN_AFTER, now)
        {
            return refuse("there was nothing to evict a moment ago");
        }
        // What does not help a fetch is not evicted for it; where none waits, every byte is one.
        let at_least = if more_bytes == 0 { 0 } else { policy.lacking(&disk, more_bytes) };
        let why = match self.evict(Request::Room { bytes, at_least }, now) {
            Ok(report) if policy.lacking(&Disk::of(&self.store), more_bytes) > 0 => {
                format!(
                    "everything else is pinned ({} images) or was used in the last ten minutes",
                    report.kept_pinned
                )
            }
            Ok(_) => {
                *tried_in_vain = TriedInVain::default();
                return Ok(());
            }
            // Soon somebody has made room, or a bundle is done: whoever comes next tries again.
            Err(PruneError::Busy(busy)) => return refuse(busy.as_str()),
            Err(error) => error.to_string(),
        };
        match more_bytes {
            0 => tried_in_vain.in_background = Some(now),
            bytes => tried_in_vain.for_a_download = Some((now, bytes)),
        }
        let refused = self.refusal(&policy, &disk, more_bytes, &why);
        log::error!("{refused}; what does not fit is streamed to clients without being cached");
        Err(refused)
    }

    /// The bounds in force. A disk that is full is one whatever the configuration says; a little of it stays
    /// for manifests, names and lists.
    fn room_policy(&self) -> RoomPolicy {
        let policy = self.settings().upkeep.room;
        let little = || {
            let of_disk = self.store.disk_size().unwrap_or_default() / 100;
            FreeSpace::Bytes(of_disk.min(LEFT_FREE_BYTES_MAX))
        };
        RoomPolicy { floor: policy.floor.or_else(|| Some(little())), ..policy }
    }

    fn can_never_fit(&self, policy: &RoomPolicy, disk: &Disk, more_bytes: u64) -> bool {
        let floor = policy.floor_bytes(disk).unwrap_or_default();
        let is_over = |bound: Option<u64>, more| bound.is_some_and(|bound| bound < more);
        is_over(policy.cap_bytes, more_bytes)
            || is_over(disk.size_bytes, more_bytes.saturating_add(floor))
    }

    fn refusal(
        &self,
        policy: &RoomPolicy,
        disk: &Disk,
        missing_bytes: u64,
        why: &str,
    ) -> CacheError {
        let configured = self.settings().upkeep.room;
        let by_cap = RoomPolicy { floor: None, ..*policy }.lacking(disk, missing_bytes) > 0;
        let bound = match (by_cap, configured.floor) {
            (true, _) => "the cache has reached cacheSize",
            (false, Some(_)) => "the disk has no more than freeSpace left",
            (false, None) => "the cache's disk is full",
        };
        let reason = format!("{bound}, and {why}; unpin or prune something, or give it more");
        StoreError::NoLeave { missing_bytes, reason }.into()
    }

    /// Evicts, and says so.
    fn evict(&self, request: Request<'_>, now: SystemTime) -> Result<Report, PruneError> {
        let pins = self.settings().upkeep.pins.clone();
        let go_on = &mut || !self.blob_pool.is_closed();
        let report = prune::prune(&self.store, &pins, request, now, go_on)?;
        self.note_removal(Removal::Evicted, &report);
        if report.freed_bytes > 0 {
            log::warn!(
                "evicted {} images and {} broken-off downloads for room, {} bytes in all",
                report.removed,
                report.partials,
                report.freed_bytes
            );
        }
        Ok(report)
    }

    /// Keeps to the bounds without anybody waiting for it.
    pub(super) fn keep_room(&self) {
        // What a full disk takes is made when somebody needs it.
        if !self.settings().upkeep.room.is_bounded()
            || was_within(lock(&self.room).in_background, KEPT_AGAIN_AFTER, self.now())
        {
            return;
        }
        // What is wrong was said.
        let _ = self.make_room_for(0);
    }

    pub(super) fn note_removal(&self, removal: Removal, report: &Report) {
        self.metrics.removed(removal, report.removed as u64, report.freed_bytes);
        if report.removed > 0 {
            self.usage_outdated.store(true, Ordering::Relaxed);
            // Memory may still have what is gone.
            lock(&self.hot).clear();
        }
    }
}

/// Whether that was so short a time ago. A clock that was set back makes it long ago.
fn was_within(then: Option<SystemTime>, span: Duration, now: SystemTime) -> bool {
    then.is_some_and(|then| now.duration_since(then).is_ok_and(|age| age < span))
}
