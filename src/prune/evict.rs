//! Eviction: the least recently used goes, one at a time, until enough is free.
//!
//! What is cached for that, a [`EvictionIndex`], is built when it is first needed, and used until it has nothing
//! more to offer, other pins are in force, or it is too old.

use std::time::{Duration, SystemTime};

use super::apply::PruneError;
use super::pins::{PinSettings, Pins};
use crate::oci::{Digest, ImageName, Reference};
use crate::store::{Evictable, Evicted, EvictionIndex, GRACE, Store, Sweep};

/// An index is built anew after this long: what others have removed shows, and blobs have become old enough.
const INDEX_AGE_MAX: Duration = Duration::from_secs(6 * 3600);
/// One that has nothing more to offer is built anew after this many times as long as building took, and at
/// least so long: in between there is nothing to evict.
const REBUILD_FACTOR: u32 = 20;
const REBUILD_AFTER: Duration = Duration::from_secs(30);
/// The same for one that had something to offer.
const REBUILD_SOON: Duration = Duration::from_secs(1);

/// What one eviction did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Eviction {
    /// Images that were removed.
    pub images: usize,
    /// Partial downloads, lists and damaged blobs that were removed.
    pub leftovers: usize,
    /// Bytes that are free now.
    pub freed_bytes: u64,
    /// Images that are pinned.
    pub pinned: usize,
}

/// What evictions need to know from one to the next.
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
    /// What was evicted by it.
    evicted: usize,
    /// Whether it has nothing more to offer.
    is_exhausted: bool,
}

impl CachedIndex {
    /// Whether it is used on. One from the future was built before the clock was set.
    fn is_usable(&self, pins: &Pins, now: SystemTime) -> bool {
        let Ok(age) = now.duration_since(self.built) else { return false };
        // Where something was evicted, more may have come since.
        let least = if self.evicted > 0 { REBUILD_SOON } else { REBUILD_AFTER };
        let pause = least.max(self.took.saturating_mul(REBUILD_FACTOR));
        let age_max = match self.is_exhausted {
            // It had no room for all, and those it had are gone.
            true if self.index.has_more() && self.evicted > 0 => Duration::ZERO,
            true => pause,
            false => INDEX_AGE_MAX,
        };
        self.pins == *pins && age < age_max
    }
}

impl Evictor {
    /// Removes the least recently used until `is_enough` returns `true`, or nothing more may go. What was used
    /// in the last ten minutes stays, and so do pinned images. `should_continue` is called all the time, may block, and
    /// stops it by returning `false`.
    ///
    /// # Errors
    /// [`PruneError`]. What was removed before is in `eviction` all the same.
    pub fn evict(
        &mut self,
        store: &Store,
        pins: &PinSettings,
        clock: &dyn Fn() -> SystemTime,
        is_enough: &dyn Fn() -> bool,
        should_continue: &mut dyn FnMut() -> bool,
        eviction: &mut Eviction,
    ) -> Result<(), PruneError> {
        let sweep = store.begin_sweep()?.map_err(PruneError::Locked)?;
        // Twice: an index that has nothing more to offer may have been built long ago.
        for _ in 0..2 {
            let pins = Pins::load(store, pins).map_err(PruneError::Pins)?;
            if !self.cached.as_ref().is_some_and(|cached| cached.is_usable(&pins, clock())) {
                self.build(&sweep, pins, clock, should_continue)?;
                if let Some(cached) = &self.cached
                    && !is_enough()
                {
                    eviction.freed_bytes += sweep.evict_unnamed(&cached.index, should_continue)?;
                }
            }
            let Some(cached) = &mut self.cached else { break };
            let is_done = cached.evict(&sweep, clock(), is_enough, should_continue, eviction)?;
            eviction.pinned = cached.index.pinned();
            cached.is_exhausted = !is_done;
            if is_done || cached.is_usable(&cached.pins, clock()) {
                break;
            }
        }
        Ok(())
    }

    fn build(
        &mut self,
        sweep: &Sweep,
        pins: Pins,
        clock: &dyn Fn() -> SystemTime,
        should_continue: &mut dyn FnMut() -> bool,
    ) -> Result<(), PruneError> {
        // First, so that memory never has two.
        self.cached = None;
        let began = clock();
        let index = sweep.eviction_index(began, &is_pinned(&pins), should_continue)?;
        let index = index.ok_or(PruneError::Stopped)?;
        let built = clock();
        let took = built.duration_since(began).unwrap_or_default();
        self.cached =
            Some(CachedIndex { index, pins, built, took, evicted: 0, is_exhausted: false });
        Ok(())
    }
}

impl CachedIndex {
    /// Returns whether enough is free.
    fn evict(
        &mut self,
        sweep: &Sweep,
        now: SystemTime,
        is_enough: &dyn Fn() -> bool,
        should_continue: &mut dyn FnMut() -> bool,
        eviction: &mut Eviction,
    ) -> Result<bool, PruneError> {
        // Blobs younger than the grace period would stay whatever became of their names.
        let in_use_since = now.checked_sub(GRACE).unwrap_or(SystemTime::UNIX_EPOCH);
        loop {
            if is_enough() {
                return Ok(true);
            }
            if !should_continue() {
                return Err(PruneError::Stopped);
            }
            let Some(candidate) = self.index.next(in_use_since) else { return Ok(false) };
            let item = candidate.item().clone();
            match sweep.evict(&mut self.index, candidate, &is_pinned(&self.pins))? {
                Evicted::Removed { bytes, is_image } => {
                    eviction.freed_bytes += bytes;
                    self.evicted += 1;
                    eviction.images += usize::from(is_image);
                    eviction.leftovers += usize::from(!is_image);
                    log_removal(&item);
                }
                Evicted::Locked(locked) => return Err(PruneError::Locked(locked)),
                Evicted::Absent | Evicted::InUse | Evicted::Pinned => {}
            }
        }
    }
}

fn is_pinned(pins: &Pins) -> impl Fn(&ImageName, &Reference, &[Digest]) -> bool {
    |name, reference, manifests| pins.cover_any(name, reference, manifests.iter().copied())
}

fn log_removal(item: &Evictable) {
    match item {
        Evictable::Image(name, reference) => log::info!("evicted {}", name.with(reference)),
        Evictable::Partial(partial) => {
            log::info!("evicted the partial download {}@{}", partial.upstream(), partial.digest());
        }
        Evictable::Quarantined(path) => log::info!("evicted the damaged blob {}", path.display()),
        Evictable::List(path) => log::debug!("evicted the list {}", path.display()),
    }
}
