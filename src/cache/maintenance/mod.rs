//! Maintenance: the disk is counted, images are listed, room is kept, and what is old is pruned, in the
//! background and slowly.

mod background;
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
use crate::units::{plural, size};
use crate::upstream::Standing;

pub(super) use background::Background;
pub use index_writer::IndexWriter;
pub use scrub::{Pace, ScrubPolicy, ScrubReport, Scrubber};

/// How often it is looked for something to do.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// The disk is counted at most this often, and at most this share of the time is spent on it.
const COUNT_INTERVAL: Duration = Duration::from_secs(60);
const COUNT_SHARE: u32 = 50;
/// Images are listed at most this often, and at most this share of the time is spent on it: what is written
/// wears a disk.
const WALK_INTERVAL: Duration = Duration::from_secs(15);
const WALK_SHARE: u32 = 200;
/// After images were removed they are listed again this soon.
const OUTDATED_INTERVAL: Duration = Duration::from_secs(2);
/// A walk in the background rests this many times as long as it works, so that it takes a fifth of a core.
const REST: u32 = 4;
/// How often traffic is noted for the history.
const STEP_INTERVAL: Duration = Duration::from_secs(60);
/// How often `pinLists` are read for who does not read the configuration.
const NOTE_INTERVAL: Duration = Duration::from_secs(60);
/// Partial downloads of registries that are not listed: at most so many are kept, and they are counted this often.
const UNLISTED_PARTIALS_MAX: usize = 256;
const PARTIALS_INTERVAL: Duration = Duration::from_secs(60);
/// How often what killed processes have left is looked for.
const LEFTOVERS_INTERVAL: Duration = Duration::from_secs(3600);

/// How the cache is kept within bounds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Maintenance {
    /// How large it may be.
    pub room: CacheLimits,
    /// What is never evicted, beside what `larder pin` was told.
    pub pins: PinSettings,
    /// What is pruned by the clock.
    pub prune: Option<PrunePolicy>,
}

/// The thread that sees to it. Dropping it ends what it is at.
pub struct MaintenanceThread {
    _thread: Background,
    _evictor: Evictor,
}

impl MaintenanceThread {
    /// Starts to keep up `cache`.
    ///
    /// # Errors
    /// If no thread can be started.
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
    /// When the last one ended.
    walked: Instant,
    next_step: Instant,
    next_leftovers: Instant,
    next_partials: Instant,
    /// What the configuration pinned when that was noted.
    noted: Option<PinSettings>,
    next_note: Instant,
}

impl Work {
    fn new(cache: Cache, stopped: Receiver<()>) -> Work {
        let now = Instant::now();
        Work {
            cache,
            stopped,
            next_count: now,
            next_walk: now,
            walked: now,
            next_step: now + STEP_INTERVAL,
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
                self.prune_by_the_clock();
                self.leftovers();
                self.bound_partials();
            }
            if Instant::now() >= self.next_step {
                self.cache.core().metrics.step(self.cache.now());
                self.next_step += STEP_INTERVAL;
            }
            match self.stopped.recv_timeout(LOOK_INTERVAL) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Notes what the configuration pins: a command that does not read it must not remove that. Lists that
    /// cannot be read just now leave the former note.
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
            log::debug!("what is pinned is not noted for commands: {error}");
        }
        self.noted = Some(pins.clone());
        self.next_note = Instant::now() + NOTE_INTERVAL;
    }

    /// Counts the disk, and lists the images.
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
            log::warn!("what is in the cache cannot be listed for the management port: {error}");
        }
        self.walked = Instant::now();
        self.next_walk = self.walked + WALK_INTERVAL.max(pace.worked() * WALK_SHARE);
    }

    fn prune_by_the_clock(&mut self) {
        let cache = &self.cache;
        let Some(policy) = cache.core().settings().maintenance.prune else { return };
        let now = cache.now();
        let Some(lease) = cache.store().acquire_lease(PeriodicJob::Prune, policy.every, now) else {
            return;
        };
        // Without rests: meanwhile nobody else can make room.
        let mut go_on = || matches!(self.stopped.try_recv(), Err(TryRecvError::Empty));
        let criteria = policy.criteria(now);
        match cache.prune(&criteria, &[], policy.is_dry_run, &mut go_on) {
            Ok(report) => {
                log::info!(
                    "pruneConfig{}: {}, {} freed, {} pinned",
                    if policy.is_dry_run { " (dryRun)" } else { "" },
                    plural(report.removed, "image"),
                    size(report.freed_bytes),
                    plural(report.kept_pinned, "image")
                );
                lease.finish(cache.now());
            }
            Err(PruneError::Stopped) => {}
            // Somebody is at it: it is tried again at the next look.
            Err(PruneError::Locked(busy)) => log::debug!("pruneConfig: {}", busy.as_str()),
            Err(error) => {
                log::error!("pruneConfig: {error}");
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
                log::info!("removed partial downloads of unlisted registries: {}", size(bytes))
            }
            Err(error) => log::warn!("partial downloads of unlisted registries stay: {error}"),
        }
    }

    fn leftovers(&mut self) {
        if Instant::now() < self.next_leftovers {
            return;
        }
        let (store, now) = (self.cache.store(), self.cache.now());
        let has_more = store.remove_leftovers(now);
        let mut go_on = || matches!(self.stopped.try_recv(), Err(TryRecvError::Empty));
        match store.trim_quarantine(now, &mut go_on) {
            Ok(0) => {}
            Ok(bytes) => {
                log::info!("removed old damaged blobs from quarantine/: {}", size(bytes))
            }
            Err(error) => log::warn!("damaged blobs stay in quarantine/: {error}"),
        }
        // A pass is bounded, and what is left waits for no more than the next look.
        let interval = if has_more { LOOK_INTERVAL } else { LEFTOVERS_INTERVAL };
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

    pub(super) fn go_on(&mut self) -> bool {
        let worked = self.since.elapsed();
        self.worked += worked;
        let told = self.stopped.recv_timeout(worked * REST);
        self.since = Instant::now();
        matches!(told, Err(RecvTimeoutError::Timeout))
    }

    /// The same without a rest, for work that somebody waits for.
    pub(super) fn go_on_at_once(&mut self) -> bool {
        self.worked += self.since.elapsed();
        self.since = Instant::now();
        matches!(self.stopped.try_recv(), Err(TryRecvError::Empty))
    }

    /// For how long it has worked, rests apart.
    fn worked(&self) -> Duration {
        self.worked + self.since.elapsed()
    }
}

impl Cache {
    /// Removes the images of which all holds that is said, or says what would go. Blocks for as long as
    /// that takes; `go_on` ends it by `false`.
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

    /// The pins that are in force.
    ///
    /// # Errors
    /// [`PinError`] if they cannot be known.
    pub fn pins(&self) -> Result<Pins, PinError> {
        Pins::load(&self.core().store, &self.core().settings().maintenance.pins)
    }

    /// Whether upstream would be asked before an image is served whose tag was confirmed at that time, in
    /// seconds since 1970.
    pub fn is_stale(&self, name: &ImageName, reference: &Reference, checked: u64) -> bool {
        let Reference::Tag(tag) = reference else { return false };
        let checked = SystemTime::UNIX_EPOCH + Duration::from_secs(checked);
        let policy = &self.core().settings().freshness;
        !policy.is_fresh(name, tag, checked, self.core().now())
    }

    /// The bounds and pins of the configuration.
    pub fn maintenance(&self) -> Maintenance {
        self.core().settings().maintenance.clone()
    }
}
