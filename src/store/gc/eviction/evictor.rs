//! Eviction: removes the least recently used items, one at a time, until enough space is free.
//!
//! It uses an [`EvictionIndex`], which is built on first use and kept until it has no more candidates, the pins
//! change, or it is too old.

use std::time::{Duration, SystemTime};

use super::{Evictable, Evicted, EvictionIndex};
use crate::store::Store;
use crate::store::files::observer::StoreEvent;
use crate::store::gc::{GRACE, PinSettings, Pins, PruneError, Sweep};

/// An index is rebuilt after this long: other processes have removed images, and blobs have become old enough.
const INDEX_AGE_MAX: Duration = Duration::from_secs(6 * 3600);
/// An exhausted index is rebuilt after this many times its build time, but no sooner than `REBUILD_AFTER`. Until
/// then there is nothing to evict.
const REBUILD_FACTOR: u32 = 20;
const REBUILD_AFTER: Duration = Duration::from_secs(30);
/// The minimum for an index from which something was evicted.
const REBUILD_SOON: Duration = Duration::from_secs(1);

/// The result of an eviction run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Eviction {
    /// Number of removed images.
    pub images: usize,
    /// Number of removed partial downloads, lists and damaged blobs.
    pub leftovers: usize,
    /// Freed bytes.
    pub freed_bytes: u64,
    /// Number of pinned images.
    pub pinned: usize,
    /// Number of images that stay because the bucket does not have all of them yet.
    pub not_uploaded: usize,
}

/// State kept between evictions.
#[derive(Debug, Default)]
pub struct Evictor {
    cached: Option<CachedIndex>,
}

#[derive(Debug)]
struct CachedIndex {
    index: EvictionIndex,
    pins: Pins,
    built: SystemTime,
    took: Duration,
    /// Number of items evicted with it.
    evicted: usize,
    /// Number of images that were not evicted because the bucket did not have all of them.
    not_uploaded: usize,
    /// Whether it has no more candidates.
    is_exhausted: bool,
}

impl CachedIndex {
    /// Whether it can still be used. An index from the future was built before the clock was set back.
    fn is_usable(&self, pins: &Pins, now: SystemTime) -> bool {
        let Ok(age) = now.duration_since(self.built) else { return false };
        // After an eviction there may be new candidates.
        let least = if self.evicted > 0 { REBUILD_SOON } else { REBUILD_AFTER };
        let pause = least.max(self.took.saturating_mul(REBUILD_FACTOR));
        let age_max = match self.is_exhausted {
            // It could not hold all candidates, and those that it held have been evicted.
            true if self.index.has_more() && self.evicted > 0 => Duration::ZERO,
            true => pause,
            false => INDEX_AGE_MAX,
        };
        self.pins == *pins && age < age_max
    }
}

impl Evictor {
    /// Removes the least recently used items until `is_enough` returns `true` or no more may be removed. Items used
    /// in the last ten minutes and pinned images stay. Calls `keep_going` regularly; it may block, and stops
    /// the eviction by returning `false`.
    ///
    /// # Errors
    /// [`PruneError`]. `eviction` still contains what was removed before.
    pub fn evict(
        &mut self,
        store: &Store,
        pins: &PinSettings,
        clock: &dyn Fn() -> SystemTime,
        is_enough: &dyn Fn() -> bool,
        keep_going: &mut dyn FnMut() -> bool,
        eviction: &mut Eviction,
    ) -> Result<(), PruneError> {
        let sweep = store.begin_sweep()?.map_err(PruneError::Locked)?;
        // Two rounds: an exhausted index may be old enough to be rebuilt.
        for _ in 0..2 {
            let pins = Pins::load(store, pins).map_err(PruneError::Pins)?;
            if !self.cached.as_ref().is_some_and(|cached| cached.is_usable(&pins, clock())) {
                self.build(&sweep, pins, clock, keep_going)?;
                if let Some(cached) = &self.cached
                    && !is_enough()
                {
                    eviction.freed_bytes += sweep.evict_unnamed(&cached.index, keep_going)?;
                }
            }
            let Some(cached) = &mut self.cached else { break };
            let is_done = cached.evict(&sweep, clock(), is_enough, keep_going, eviction)?;
            eviction.pinned = cached.index.pinned();
            eviction.not_uploaded = cached.not_uploaded;
            cached.is_exhausted = !is_done;
            if is_done || cached.is_usable(&cached.pins, clock()) {
                break;
            }
        }
        Ok(())
    }

    /// Changes every time that is kept, as if the clock had jumped.
    #[cfg(test)]
    pub(in crate::store) fn shift_times(&mut self, shift: impl Fn(SystemTime) -> SystemTime) {
        if let Some(cached) = &mut self.cached {
            cached.built = shift(cached.built);
            cached.index.shift_times(shift);
        }
    }

    fn build(
        &mut self,
        sweep: &Sweep,
        pins: Pins,
        clock: &dyn Fn() -> SystemTime,
        keep_going: &mut dyn FnMut() -> bool,
    ) -> Result<(), PruneError> {
        // Dropped first, so that memory never holds two.
        self.cached = None;
        let began = clock();
        let index = sweep.eviction_index(began, &pins, keep_going)?;
        let index = index.ok_or(PruneError::Stopped)?;
        let built = clock();
        let took = built.duration_since(began).unwrap_or_default();
        self.cached = Some(CachedIndex {
            index,
            pins,
            built,
            took,
            evicted: 0,
            not_uploaded: 0,
            is_exhausted: false,
        });
        Ok(())
    }
}

impl CachedIndex {
    /// Returns whether enough space is free.
    fn evict(
        &mut self,
        sweep: &Sweep,
        now: SystemTime,
        is_enough: &dyn Fn() -> bool,
        keep_going: &mut dyn FnMut() -> bool,
        eviction: &mut Eviction,
    ) -> Result<bool, PruneError> {
        // Blobs younger than the grace period would stay even without names.
        let in_use_since = now.checked_sub(GRACE).unwrap_or(SystemTime::UNIX_EPOCH);
        loop {
            if is_enough() {
                return Ok(true);
            }
            if !keep_going() {
                return Err(PruneError::Stopped);
            }
            let Some(candidate) = self.index.next(in_use_since) else { return Ok(false) };
            let item = candidate.item().clone();
            match sweep.evict(&mut self.index, candidate, &self.pins)? {
                Evicted::Removed { bytes, is_image } => {
                    eviction.freed_bytes += bytes;
                    self.evicted += 1;
                    eviction.images += usize::from(is_image);
                    eviction.leftovers += usize::from(!is_image);
                    log_removal(&item);
                    if let Evictable::Image(name, reference) = &item {
                        sweep.store.observe(&StoreEvent::Evicted { name, reference });
                    }
                }
                Evicted::Locked(locked) => return Err(PruneError::Locked(locked)),
                Evicted::NotUploaded => self.not_uploaded += 1,
                Evicted::Absent | Evicted::InUse | Evicted::Pinned => {}
            }
        }
    }
}

fn log_removal(item: &Evictable) {
    match item {
        Evictable::Image(name, reference) => log::info!(
            image = name.with(reference).as_str(); "evicted an image"
        ),
        Evictable::Partial(partial) => {
            log::info!(
                digest:% = partial.digest(), upstream:% = partial.upstream();
                "evicted a partial download"
            );
        }
        Evictable::Quarantined(path) => log::info!(
            file:% = path.display(); "evicted a damaged blob"
        ),
        Evictable::List(path) => log::debug!(file:% = path.display(); "evicted a list"),
    }
}
