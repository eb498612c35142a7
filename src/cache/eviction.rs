//! Eviction: a thread keeps the cache below its limits, ahead of demand. A download waits only at the limit itself.
//!
//! No space is reserved for the size that a registry reports; only received bytes count. Each write of a download is
//! admitted by [`EvictionService::admit`], which compares a few numbers. Between the high watermark and the limit, the
//! thread has time to remove the least recently used images. A download that reaches the limit anyway evicts on its
//! fetcher. One thread evicts at a time; the others find free space afterwards. HTTP workers never evict.
//!
//! If nothing may be removed, the download fails, and blobs that do not fit are passed through to clients. The next
//! attempt to evict is delayed.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use super::core::Core;
use super::maintenance::{Background, Rests};
use super::manifests::ManifestCache;
use super::{CacheError, lock};
use crate::metrics::Removal;
use crate::prune::{self, CacheLimits, Disk, Eviction, FreeSpace, PruneError, Report};
use crate::store::StoreError;
use crate::units::plural;

/// How often the thread compares the disk with the watermarks.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);
/// The delay before the next attempt after nothing could be evicted.
const TRIED_AGAIN_AFTER: Duration = Duration::from_secs(30);
/// The thread logs the same error again after this time.
const LOGGED_AGAIN_AFTER: Duration = Duration::from_secs(600);
/// Once this many bytes fit, the thread lets waiting downloads continue before it evicts more.
const HANDED_OVER_BYTES: u64 = 64 * 1024 * 1024;
/// Without `freeSpace`, 1 % of the disk stays free, and at most this many bytes.
const LEFT_FREE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Disk usage is counted again before the thread evicts, since other processes may have removed files. At most this
/// often, and in at most this fraction of the time.
const RECOUNT_INTERVAL: Duration = Duration::from_secs(5);
const RECOUNT_SHARE: u32 = 20;

/// Evicts images, for one thread at a time.
pub(super) struct EvictionService {
    core: Arc<Core>,
    manifests: Arc<ManifestCache>,
    /// Locked during an eviction.
    work: Mutex<Work>,
    /// Downloads that wait for an eviction. The thread does not rest while there are any.
    waiting: AtomicUsize,
    /// Whether images were removed since they were last listed.
    is_usage_outdated: AtomicBool,
}

#[derive(Default)]
struct Work {
    evictor: prune::Evictor,
    /// When a download last found nothing to evict.
    failed: Option<SystemTime>,
    /// When the thread last found nothing to evict.
    failed_ahead: Option<SystemTime>,
    /// When the thread last logged it.
    logged: Option<SystemTime>,
}

/// The thread that evicts ahead of demand. Dropping it ends the thread.
pub(super) struct Evictor {
    _thread: Background,
}

impl Evictor {
    pub(super) fn start(service: Arc<EvictionService>) -> std::io::Result<Evictor> {
        let loss = "nothing is evicted ahead of demand until a restart";
        let work = move |stopped: Receiver<()>| run(&service, &stopped);
        Ok(Evictor { _thread: Background::start("evictor", loss, work)? })
    }
}

fn run(service: &EvictionService, stopped: &Receiver<()>) {
    let mut next_count = Instant::now() + RECOUNT_INTERVAL;
    while matches!(stopped.recv_timeout(CHECK_INTERVAL), Err(RecvTimeoutError::Timeout)) {
        if !service.is_eviction_due() {
            continue;
        }
        let mut rests = Rests::new(stopped);
        let mut go_on = || match service.waiting.load(Ordering::Relaxed) {
            0 => rests.go_on(),
            _ => rests.go_on_at_once(),
        };
        let began = Instant::now();
        if began >= next_count {
            if service.core.store.count_disk(&mut go_on).is_none() {
                return;
            }
            let pause = RECOUNT_INTERVAL.max(began.elapsed() * RECOUNT_SHARE);
            next_count = Instant::now() + pause;
        }
        service.evict_ahead(&mut go_on);
    }
}

impl EvictionService {
    pub(super) fn new(core: Arc<Core>, manifests: Arc<ManifestCache>) -> EvictionService {
        EvictionService {
            core,
            manifests,
            work: Mutex::default(),
            waiting: AtomicUsize::new(0),
            is_usage_outdated: AtomicBool::new(false),
        }
    }

    /// Whether images were removed since the last call.
    pub(super) fn take_usage_outdated(&self) -> bool {
        self.is_usage_outdated.swap(false, Ordering::Relaxed)
    }

    /// Refuses a blob that can never fit, or that does not fit while nothing can be evicted. Does not evict.
    ///
    /// # Errors
    /// [`CacheError::Store`].
    pub(super) fn check_size(&self, size: u64) -> Result<(), CacheError> {
        let disk = Disk::at(&self.core.store, Instant::now());
        let policy = self.limits(&disk);
        if policy.fits(&disk, size) && !self.can_never_fit(&policy, &disk, size) {
            return Ok(());
        }
        // Only what is true now is a reason to refuse: the disk may have been enlarged, or another program has freed space.
        let disk = Disk::of(&self.core.store);
        let policy = self.limits(&disk);
        if self.can_never_fit(&policy, &disk, size) {
            return Err(self.refusal(&policy, &disk, size, "it is larger than the limit itself"));
        }
        // If another thread is evicting now, it may succeed.
        let failed = self.work.try_lock().ok().and_then(|work| work.failed.max(work.failed_ahead));
        if was_within(failed, TRIED_AGAIN_AFTER, self.core.now()) && !policy.fits(&disk, size) {
            let why = "there was nothing to evict a moment ago";
            return Err(self.refusal(&policy, &disk, size, why));
        }
        Ok(())
    }

    /// Admits received bytes. At the limit it evicts, on the download's fetcher.
    ///
    /// # Errors
    /// [`CacheError::Store`] if they do not fit and nothing may be evicted.
    pub(super) fn admit(&self, more_bytes: u64) -> Result<(), CacheError> {
        let disk = Disk::at(&self.core.store, Instant::now());
        let policy = self.limits(&disk);
        if policy.fits(&disk, more_bytes) {
            return Ok(());
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let admitted = self.evict_for(&policy, more_bytes);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        admitted
    }

    fn evict_for(&self, policy: &CacheLimits, more_bytes: u64) -> Result<(), CacheError> {
        let mut work = lock(&self.work);
        // Another download, or the thread, may have freed space meanwhile.
        let disk = Disk::of(&self.core.store);
        if policy.fits(&disk, more_bytes) {
            return Ok(());
        }
        let refuse = |why: &str| Err(self.refusal(policy, &disk, more_bytes, why));
        if was_within(work.failed, TRIED_AGAIN_AFTER, self.core.now()) {
            return refuse("there was nothing to evict a moment ago");
        }
        let is_enough = || policy.fits(&Disk::of(&self.core.store), more_bytes);
        let go_on = &mut || !self.core.blob_fetchers.is_closed();
        let why = match self.evict(&mut work.evictor, &is_enough, go_on) {
            _ if is_enough() => {
                work.failed = None;
                return Ok(());
            }
            Ok(eviction) => nothing_left(&eviction),
            // Another process is evicting, or a bundle is in use: the next write tries again.
            Err(PruneError::Locked(busy)) => return refuse(busy.as_str()),
            Err(PruneError::Stopped) => return Err(CacheError::GivenUp),
            Err(error) => error.to_string(),
        };
        work.failed = Some(self.core.now());
        let refused = self.refusal(policy, &disk, more_bytes, &why);
        log::error!(
            error:% = refused;
            "no space for downloads; what does not fit is streamed to clients without being cached"
        );
        Err(refused)
    }

    /// Whether the thread should evict. Without configured limits it never should: other programs may be filling the
    /// disk, so only a download that needs space evicts.
    fn is_eviction_due(&self) -> bool {
        let policy = self.core.settings().maintenance.room;
        policy.is_bounded()
            && self.core.store.is_writable()
            && !policy.below_high_watermark(&Disk::of(&self.core.store))
    }

    /// Evicts down to the low watermark, if the high one was reached.
    pub(super) fn evict_ahead(&self, go_on: &mut dyn FnMut() -> bool) {
        let mut work = lock(&self.work);
        if !self.is_eviction_due()
            || was_within(work.failed_ahead, TRIED_AGAIN_AFTER, self.core.now())
        {
            return;
        }
        let policy = self.core.settings().maintenance.room;
        let is_enough = || {
            let disk = Disk::of(&self.core.store);
            let has_waiters = self.waiting.load(Ordering::Relaxed) > 0;
            policy.below_low_watermark(&disk)
                || (has_waiters && policy.fits(&disk, HANDED_OVER_BYTES))
        };
        let why = match self.evict(&mut work.evictor, &is_enough, go_on) {
            _ if is_enough() => {
                work.failed_ahead = None;
                return;
            }
            // Downloads may have added more meanwhile.
            Ok(eviction)
                if eviction.freed_bytes > 0 && policy.fits(&Disk::of(&self.core.store), 0) =>
            {
                return;
            }
            Ok(eviction) if eviction.leftovers > 0 => return,
            Ok(eviction) => nothing_left(&eviction),
            // Temporary: the next check tries again.
            Err(PruneError::Locked(_) | PruneError::Stopped) => return,
            Err(error) => error.to_string(),
        };
        work.failed_ahead = Some(self.core.now());
        let disk = Disk::of(&self.core.store);
        if !policy.fits(&disk, 0) && !was_within(work.logged, LOGGED_AGAIN_AFTER, self.core.now()) {
            work.logged = Some(self.core.now());
            let refused = self.refusal(&policy, &disk, 0, &why);
            log::error!(
                error:% = refused;
                "no space for downloads; what does not fit is streamed to clients without being cached"
            );
        }
    }

    /// The configured limits, and the end of the disk in any case. A little space always stays free for manifests,
    /// names and lists.
    fn limits(&self, disk: &Disk) -> CacheLimits {
        let policy = self.core.settings().maintenance.room;
        let little = || {
            let of_disk = disk.size_bytes.unwrap_or_default() / 100;
            FreeSpace::Bytes(of_disk.min(LEFT_FREE_BYTES_MAX))
        };
        CacheLimits { floor: policy.floor.or_else(|| Some(little())), ..policy }
    }

    fn can_never_fit(&self, policy: &CacheLimits, disk: &Disk, more_bytes: u64) -> bool {
        let floor = policy.floor_bytes(disk).unwrap_or_default();
        let is_over = |bound: Option<u64>, more| bound.is_some_and(|bound| bound < more);
        is_over(policy.cap_bytes, more_bytes)
            || is_over(disk.size_bytes, more_bytes.saturating_add(floor))
    }

    fn refusal(
        &self,
        policy: &CacheLimits,
        disk: &Disk,
        missing_bytes: u64,
        why: &str,
    ) -> CacheError {
        let configured = self.core.settings().maintenance.room;
        let by_cap = CacheLimits { floor: None, ..*policy }.shortfall(disk, missing_bytes) > 0;
        let limit = match (by_cap, configured.floor) {
            (true, _) => "the cache has reached cacheSize",
            (false, _) if disk.lacks_files() => "the cache's file system has no free inodes left",
            (false, Some(_)) => "the disk has no more than freeSpace left",
            (false, None) => "the cache's disk is full",
        };
        let reason = format!("{limit}, and {why}; unpin or prune something, or give it more");
        StoreError::LimitReached { missing_bytes, reason }.into()
    }

    /// Evicts images and logs the result.
    fn evict(
        &self,
        evictor: &mut prune::Evictor,
        is_enough: &dyn Fn() -> bool,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Eviction, PruneError> {
        let pins = self.core.settings().maintenance.pins.clone();
        let mut eviction = Eviction::default();
        let clock = || self.core.now();
        let ended = evictor.evict(&self.core.store, &pins, &clock, is_enough, go_on, &mut eviction);
        self.note_removed(Removal::Evicted, eviction.images, eviction.freed_bytes);
        if eviction.images > 0 || eviction.freed_bytes > 0 {
            log::warn!(
                images = eviction.images, files = eviction.leftovers,
                freed_bytes = eviction.freed_bytes;
                "evicted images and other files"
            );
        }
        ended.map(|()| eviction)
    }

    pub(super) fn note_removal(&self, removal: Removal, report: &Report) {
        self.note_removed(removal, report.removed, report.freed_bytes);
    }

    fn note_removed(&self, removal: Removal, images: usize, freed_bytes: u64) {
        self.core.metrics.removed(removal, images as u64, freed_bytes);
        if images > 0 {
            self.is_usage_outdated.store(true, Ordering::Relaxed);
            // The removed manifests may still be in memory.
            self.manifests.forget_hot();
        }
    }
}

fn nothing_left(eviction: &Eviction) -> String {
    let waiting = match eviction.not_uploaded {
        0 => String::new(),
        images => format!(", or waits for its upload to the bucket ({})", plural(images, "image")),
    };
    format!(
        "everything else is pinned ({}) or was used in the last ten minutes{waiting}",
        plural(eviction.pinned, "image")
    )
}

/// Whether `then` is less than `span` ago. If the clock was set back, it is not.
fn was_within(then: Option<SystemTime>, span: Duration, now: SystemTime) -> bool {
    then.is_some_and(|then| now.duration_since(then).is_ok_and(|age| age < span))
}
