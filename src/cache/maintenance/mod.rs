//! Maintenance: counts disk usage, lists images, evicts and prunes, slowly and in the background.

mod background;
mod history;
mod index_writer;
mod scrub;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant, SystemTime};

use super::Cache;
use super::eviction::Evictor;
use crate::metrics::Removal;
use crate::oci::{Choice, ImageName, Reference, Upstream};
use crate::prune::{
    self, CacheLimits, Criteria, PinError, PinSettings, Pins, PruneError, PrunePolicy, Report,
    Request,
};
use crate::store::PeriodicJob;
use crate::upstream::Standing;

pub(super) use background::Background;
use history::HistoryKeeper;
pub use index_writer::IndexWriter;
pub use scrub::{Pace, ScrubPolicy, ScrubReport, Scrubber};

/// How often the thread checks for work.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// Disk usage is counted at most this often, and in at most this fraction of the time.
const COUNT_INTERVAL: Duration = Duration::from_secs(60);
const COUNT_SHARE: u32 = 50;
/// Images are listed at most this often, and in at most this fraction of the time, since each walk writes to the disk,
/// which wears it.
const WALK_INTERVAL: Duration = Duration::from_secs(15);
const WALK_SHARE: u32 = 200;
/// The shorter interval after images were removed.
const OUTDATED_INTERVAL: Duration = Duration::from_secs(2);
/// A background walk rests this many times as long as it works, so that it takes a fifth of a core.
const REST: u32 = 4;
/// How often the pins of the configuration are stored for commands that do not read it.
const NOTE_INTERVAL: Duration = Duration::from_secs(60);
/// How many partial downloads of unlisted registries are kept, and how often that is enforced.
const UNLISTED_PARTIALS_MAX: usize = 256;
const PARTIALS_INTERVAL: Duration = Duration::from_secs(60);
/// How often files that killed processes left are removed.
const LEFTOVERS_INTERVAL: Duration = Duration::from_secs(3600);

/// The limits of the cache, pins and pruning.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Maintenance {
    /// How large the cache may be.
    pub room: CacheLimits,
    /// Images that are never evicted, in addition to those pinned with `larder pin`.
    pub pins: PinSettings,
    /// What is pruned periodically.
    pub prune: Option<PrunePolicy>,
}

/// The threads for maintenance and eviction. Dropping it stops them.
pub struct MaintenanceThread {
    _thread: Background,
    _evictor: Evictor,
}

impl MaintenanceThread {
    /// Starts the threads for `cache`.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn start(cache: Cache) -> std::io::Result<MaintenanceThread> {
        let loss = "nothing is counted, listed or pruned in the background until a restart";
        let evictor = Evictor::start(Arc::clone(&cache.services.eviction))?;
        let work = move |stopped| Work::new(cache, stopped).run();
        Ok(MaintenanceThread {
            _thread: Background::start("maintenance", loss, work)?,
            _evictor: evictor,
        })
    }
}

struct Work {
    cache: Cache,
    stopped: Receiver<()>,
    next_count: Instant,
    next_walk: Instant,
    /// When the last walk ended.
    walked: Instant,
    history: HistoryKeeper,
    next_leftovers: Instant,
    next_partials: Instant,
    /// The pins of the configuration that were last stored.
    noted: Option<PinSettings>,
    next_note: Instant,
}

impl Work {
    fn new(cache: Cache, stopped: Receiver<()>) -> Work {
        let now = Instant::now();
        Work {
            history: HistoryKeeper::start(cache.clone()),
            cache,
            stopped,
            next_count: now,
            next_walk: now,
            walked: now,
            next_leftovers: now,
            next_partials: now,
            noted: None,
            next_note: now,
        }
    }

    fn run(mut self) {
        loop {
            if self.cache.store().is_writable() {
                self.note_pins();
                self.count();
                self.prune_if_due();
                self.remove_leftovers();
                self.bound_partials();
            }
            self.history.work();
            match self.stopped.recv_timeout(CHECK_INTERVAL) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return self.history.finish(),
            }
        }
    }

    /// Stores the pins of the configuration, so that a command that does not read it does not remove these images. If
    /// a list cannot be read, the former pins stay.
    fn note_pins(&mut self) {
        let settings = self.cache.core().settings();
        let pins = &settings.maintenance.pins;
        if self.noted.as_ref() == Some(pins) && Instant::now() < self.next_note {
            return;
        }
        let noted = pins.all().map_err(|error| error.to_string()).and_then(|all| {
            let texts: Vec<String> = all.iter().map(Choice::to_string).collect();
            self.cache.store().note_configured_pins(&texts).map_err(|error| error.to_string())
        });
        if let Err(error) = noted {
            log::debug!(error:%; "cannot store the configured pins for commands");
        }
        self.noted = Some(pins.clone());
        self.next_note = Instant::now() + NOTE_INTERVAL;
    }

    /// Counts disk usage and lists the images.
    fn count(&mut self) {
        let eviction = &self.cache.services.eviction;
        let is_soon = Instant::now() >= self.walked + OUTDATED_INTERVAL;
        let is_walk_due =
            Instant::now() >= self.next_walk || (is_soon && eviction.take_usage_outdated());
        if Instant::now() < self.next_count && !is_walk_due {
            return;
        }
        let store = self.cache.store();
        let mut pace = Rests::new(&self.stopped);
        let Some(disk) = store.count_disk(&mut || pace.go_on()) else { return };
        self.next_count = Instant::now() + COUNT_INTERVAL.max(pace.worked() * COUNT_SHARE);
        if !is_walk_due {
            return;
        }
        let (core, mut pace) = (self.cache.core(), Rests::new(&self.stopped));
        let walked = store.walk_usage(&disk, &|| core.now(), &mut || pace.go_on());
        if let Err(error) = walked {
            log::warn!(error:%; "cannot list the images for the management API");
        }
        self.walked = Instant::now();
        self.next_walk = self.walked + WALK_INTERVAL.max(pace.worked() * WALK_SHARE);
    }

    fn prune_if_due(&mut self) {
        let cache = &self.cache;
        let Some(policy) = cache.core().settings().maintenance.prune else { return };
        let now = cache.now();
        let Some(lease) = cache.store().acquire_lease(PeriodicJob::Prune, policy.every, now) else {
            return;
        };
        // Without rests: no other thread can evict meanwhile.
        let mut go_on = || matches!(self.stopped.try_recv(), Err(TryRecvError::Empty));
        let criteria = policy.criteria(now);
        match cache.prune(&criteria, &[], policy.is_dry_run, &mut go_on) {
            Ok(report) => {
                log::info!(
                    images = report.removed, freed_bytes = report.freed_bytes,
                    pinned = report.kept_pinned, dry_run = policy.is_dry_run;
                    "pruneConfig: pruned"
                );
                lease.finish(cache.now());
            }
            Err(PruneError::Stopped) => {}
            // Another process is pruning or evicting: the next check tries again.
            Err(PruneError::Locked(busy)) => log::debug!(
                error = busy.as_str(); "pruneConfig: not pruned"
            ),
            Err(error) => {
                log::error!(error:%; "pruneConfig: not pruned");
                lease.finish(cache.now());
            }
        }
    }

    fn bound_partials(&mut self) {
        if Instant::now() < self.next_partials {
            return;
        }
        self.next_partials = Instant::now() + PARTIALS_INTERVAL;
        let sources = &self.cache.core().sources;
        let is_bounded =
            |upstream: &Upstream| !matches!(sources.standing(upstream), Ok(Standing::Listed));
        match self.cache.store().bound_partials(UNLISTED_PARTIALS_MAX, &is_bounded) {
            Ok(0) => {}
            Ok(bytes) => {
                log::info!(freed_bytes = bytes; "removed partial downloads of unlisted registries")
            }
            Err(error) => {
                log::warn!(error:%; "cannot remove partial downloads of unlisted registries")
            }
        }
    }

    fn remove_leftovers(&mut self) {
        if Instant::now() < self.next_leftovers {
            return;
        }
        let (store, now) = (self.cache.store(), self.cache.now());
        let has_more = store.remove_leftovers(now);
        let mut go_on = || matches!(self.stopped.try_recv(), Err(TryRecvError::Empty));
        match store.trim_quarantine(now, &mut go_on) {
            Ok(0) => {}
            Ok(bytes) => {
                log::info!(freed_bytes = bytes; "removed old damaged blobs from quarantine/")
            }
            Err(error) => log::warn!(error:%; "cannot remove old damaged blobs from quarantine/"),
        }
        // A pass is bounded. The rest is removed at the next check.
        let interval = if has_more { CHECK_INTERVAL } else { LEFTOVERS_INTERVAL };
        self.next_leftovers = Instant::now() + interval;
    }
}

/// Rests between pieces of work, in proportion to them.
pub(super) struct Rests<'a> {
    stopped: &'a Receiver<()>,
    since: Instant,
    worked: Duration,
}

impl Rests<'_> {
    pub(super) fn new(stopped: &Receiver<()>) -> Rests<'_> {
        Rests { stopped, since: Instant::now(), worked: Duration::ZERO }
    }

    /// Rests. Returns `false` if the thread should stop.
    pub(super) fn go_on(&mut self) -> bool {
        let worked = self.since.elapsed();
        self.worked += worked;
        let signal = self.stopped.recv_timeout(worked * REST);
        self.since = Instant::now();
        matches!(signal, Err(RecvTimeoutError::Timeout))
    }

    /// As [`Rests::go_on`] without a rest, for work that a download waits for.
    pub(super) fn go_on_at_once(&mut self) -> bool {
        self.worked += self.since.elapsed();
        self.since = Instant::now();
        matches!(self.stopped.try_recv(), Err(TryRecvError::Empty))
    }

    /// The time spent working, without the rests.
    fn worked(&self) -> Duration {
        self.worked + self.since.elapsed()
    }
}

impl Cache {
    /// Removes images that match all of the given conditions, or reports which ones it would remove. Blocks until it is
    /// done, or until `go_on` returns `false`.
    ///
    /// # Errors
    /// [`PruneError`].
    pub fn prune(
        &self,
        criteria: &Criteria,
        choices: &[Choice],
        is_dry_run: bool,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Report, PruneError> {
        let core = self.core();
        let request = Request::Matching { criteria, choices, is_dry_run };
        let pins = core.settings().maintenance.pins.clone();
        let report = prune::prune(&core.store, &pins, request, core.now(), go_on)?;
        if !is_dry_run {
            self.services.eviction.note_removal(Removal::Pruned, &report);
        }
        Ok(report)
    }

    /// The pins of the configuration and of `larder pin`.
    ///
    /// # Errors
    /// [`PinError`] if they cannot be read.
    pub fn pins(&self) -> Result<Pins, PinError> {
        Pins::load(&self.core().store, &self.core().settings().maintenance.pins)
    }

    /// Whether a request for an image would be revalidated. `checked` is when its tag was last confirmed, in seconds
    /// since 1970.
    pub fn is_stale(&self, name: &ImageName, reference: &Reference, checked: u64) -> bool {
        let Reference::Tag(tag) = reference else { return false };
        let checked = SystemTime::UNIX_EPOCH + Duration::from_secs(checked);
        let policy = &self.core().settings().freshness;
        !policy.is_fresh(name, tag, checked, self.core().now())
    }

    /// The limits and pins of the configuration.
    pub fn maintenance(&self) -> Maintenance {
        self.core().settings().maintenance.clone()
    }
}
