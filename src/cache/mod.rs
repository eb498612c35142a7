//! The decision: what is served from the store, what is joined, what is fetched, what is stale.
//!
//! Every question has the same way down: memory (manifests only, for a second), store, a flight that
//! is under way, a new flight. A lookup never waits: it answers, or hands out something to wait on.
//! The work of a flight is done by a fetcher of one of two fixed pools, so blobs cannot hold up
//! manifests, and one upstream cannot hold up the others.
//!
//! This room must not know sockets to clients, routes, the command line or the configuration file.
//!
//! # Invariants
//! * **Every reader is a follower**, the one whose request began the download included; a client that
//!   leaves or reads slowly changes nothing for anybody else.
//! * **A hit asks nobody** and takes no lock for longer than a table look-up.
//! * **The last byte of a blob is shown only after its digest agreed**, so nobody gets a complete copy
//!   of wrong bytes.
//! * **Store first, flight second, store again**: a pilot looks once more before it works, since the
//!   flight before may have landed between its look and its joining (see [`crate::flight`]).

mod background;
mod blobs;
mod counts;
mod download;
mod error;
mod evictor;
mod filling;
mod freshness;
mod heads;
mod index_writer;
mod lists;
mod maintenance;
mod manifest_content;
mod manifest_wait;
mod manifests;
mod misses;
mod passage;
mod prefetch;
mod recent;
mod referrers;
mod retry;
mod scheduler;
mod scrub;
mod traffic;
mod unstored_lists;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::{Duration, SystemTime};

use crate::client_address::ClientAddress;
use crate::flight::Flights;
use crate::metrics::Metrics;
use crate::oci::{Digest, ImageName, Reference, Tag, Upstream};
use crate::store::Store;
use crate::upstream::{Source, Sources, Standing};

pub use blobs::{BlobFailure, BlobLookup, BlobWait, Incoming, Purpose, ToldBy};
pub use counts::Counts;
pub use error::{CacheError, Reason};
pub use freshness::{FreshnessPolicy, OnUpstreamDelete, TAG_TTL, TagRules, Ttl};
pub use heads::{HeadAnswer, HeadLookup, HeadWait};
pub use index_writer::IndexWriter;
pub use lists::{ListAnswer, ListLookup, ListQuestion, ListWait};
pub use manifest_content::{ManifestAnswer, Payload};
pub use manifest_wait::ManifestWait;
pub use manifests::ManifestLookup;
pub use passage::{AlreadySent, Passage};
pub use prefetch::Prefetch;

pub use maintenance::{Maintenance, MaintenanceThread};
pub use traffic::{FlightStatus, Load};

pub use crate::store::{Blob, ImageUsage, ListBody, SweepBusy, UsageSummary};
pub use crate::upstream::{BreakerState, EndpointStatus, ManifestHead, UpstreamStatus};
pub use retry::RetryPolicy;
pub use scheduler::SchedulerLoad;
pub use scrub::{Pace, ScrubPolicy, ScrubReport, Scrubber};

use blobs::{BlobKey, SizeFlights};
use filling::Blame;
use heads::{HEADS_REMEMBERED, HeadFlights, Told, ToldTags};
use lists::ListFlights;
use manifest_content::Content;
use manifests::{HotManifest, ManifestFlights};
use misses::Misses;
use recent::Recent;
use scheduler::{Class, Purpose as JobPurpose, Scheduler};

/// How long a client waits for what is not in the cache: below the 30 s after which containerd gives
/// up, so that it gets an answer that says why.
pub const PATIENCE: Duration = Duration::from_secs(25);
/// How many sizes of blobs are remembered, to notice a truncated file and to answer before a slow
/// upstream does. Two tables of about a hundred bytes an entry.
const SIZES_REMEMBERED: usize = 16_384;
/// Large manifests whose sizes need not be read again.
const LARGE_MANIFESTS_REMEMBERED: usize = 4096;
/// How many blobs that came wrong are remembered, with who sent them.
const BLAMED_REMEMBERED: usize = 1024;
/// How many manifests are kept in memory, for a second each.
const HOT_MANIFESTS: usize = 512;

/// The default of `minimumRate`, in bytes a second: slower than any link that a pull over it would finish on.
pub const MINIMUM_RATE: u64 = 16 * 1024;

/// How the cache decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How long a tag is believed.
    pub freshness: FreshnessPolicy,
    /// How long a client waits for the confirmation of a tag that is in the cache.
    pub revalidate_timeout: Duration,
    /// How long "there is no such thing" and "this upstream is in trouble" are remembered.
    pub negative_ttl: Duration,
    /// How downloads that break off are resumed.
    pub retry: RetryPolicy,
    /// A download that brings fewer bytes a second than this gives up its fetcher to jobs that wait.
    pub minimum_rate: u64,
    /// What is fetched of an image beyond what is asked for.
    pub prefetch: Prefetch,
    /// How the cache is kept within bounds.
    pub maintenance: Maintenance,
    /// Never ask any upstream.
    pub air_gapped: bool,
    /// Fetchers for blobs.
    pub blob_fetchers: usize,
    /// How many of them one upstream may hold at a time; half of them for those that are not in here.
    pub downloads_per_upstream: HashMap<Upstream, usize>,
    /// Fetchers for manifests, tag lists and sizes.
    pub manifest_fetchers: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            freshness: FreshnessPolicy::default(),
            revalidate_timeout: Duration::from_secs(2),
            negative_ttl: Duration::from_secs(10),
            retry: RetryPolicy::default(),
            minimum_rate: MINIMUM_RATE,
            prefetch: Prefetch::default(),
            maintenance: Maintenance::default(),
            air_gapped: false,
            blob_fetchers: 32,
            downloads_per_upstream: HashMap::new(),
            manifest_fetchers: 64,
        }
    }
}

/// Tells the time: an argument, so that tests own it.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// How an answer came about; what `cache=` says in the access log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// From the store, confirmed with upstream or not.
    Hit,
    /// From a download that somebody else's request began.
    Join,
    /// From a download that this request began.
    Miss,
    /// From the store although upstream should have been asked, and could not be, or denied it.
    Stale,
    /// From upstream past the store, which could not take it.
    Bypass,
}

impl How {
    /// The word in the access log.
    pub fn as_str(self) -> &'static str {
        match self {
            How::Hit => "hit",
            How::Join => "join",
            How::Miss => "miss",
            How::Stale => "stale",
            How::Bypass => "bypass",
        }
    }
}

/// The cache. Cloning shares it.
#[derive(Clone)]
pub struct Cache {
    inner: Arc<Inner>,
    /// Whose share of the fetchers its requests count against; none for what Larder does by itself.
    client: Option<ClientAddress>,
}

struct Inner {
    store: Store,
    sources: Arc<dyn Sources>,
    /// What is in force: replaced as a whole, and locked for no longer than that takes or a copy of the
    /// pointer. Who decides several things by it takes one copy for all of them.
    settings: RwLock<Arc<Settings>>,
    clock: Clock,
    blobs: blobs::BlobFlights,
    manifests: ManifestFlights,
    heads: HeadFlights,
    blob_sizes: SizeFlights,
    lists: ListFlights,
    /// Lists of what is cached, for which nobody is asked.
    cached_lists: ListFlights,
    /// Locked for a look-up or an insertion.
    unstored_lists: Mutex<unstored_lists::UnstoredLists>,
    blob_pool: Scheduler,
    metadata_pool: Scheduler,
    misses: Misses,
    /// Locked for a table look-up or an insertion only, as are the next two.
    hot: Mutex<Recent<(ImageName, Reference), HotManifest>>,
    /// Large manifests that are being answered: who asks for one meanwhile shares its bytes, so that
    /// slow readers do not hold a copy each.
    in_use: Mutex<HashMap<Digest, Weak<Content>>>,
    /// What HEAD said of tags that are not cached.
    told_heads: Mutex<Recent<(ImageName, Tag), Told>>,
    /// The same by digest, until a manifest with that digest is cached.
    told_tags: Mutex<Recent<(ImageName, Digest), ToldTags>>,
    /// Sizes of blobs as manifests tell them, each for the repository of the manifest.
    told_sizes: Mutex<Recent<(ImageName, Digest), u64>>,
    /// Large manifests whose sizes are among them, as far as it is remembered.
    sizes_read: Mutex<Recent<(ImageName, Digest), ()>>,
    /// Sizes of blobs that this process verified.
    verified_sizes: Mutex<Recent<Digest, u64>>,
    /// Blobs that came wrong, and how each endpoint has fared with them.
    blamed: Mutex<Recent<BlobKey, Blame>>,
    /// Repositories whose cached manifests were read for their sizes.
    learned: Mutex<Recent<ImageName, ()>>,
    /// When images were looked at for what they lack.
    looked_at: Mutex<Recent<(ImageName, Digest), SystemTime>>,
    /// When the referrers of images were fetched.
    referrers_fetched: Mutex<Recent<(ImageName, Digest), SystemTime>>,
    /// To what each cached manifest refers, if to anything. Content does not change, so nor does this.
    subjects: Mutex<Recent<Digest, Option<Digest>>>,
    /// Counters of this process.
    metrics: Arc<Metrics>,
    /// Evictions, one at a time.
    evictions: evictor::Evictions,
    /// Downloads that wait for a fetcher in the background, so that each is queued once.
    queued_in_background: Mutex<HashSet<BlobKey>>,
    /// Downloads that somebody wants to end.
    cancelled: Mutex<HashSet<BlobKey>>,
    /// Whether the images are to be counted anew without waiting for the next time.
    usage_outdated: AtomicBool,
    /// `larder offline on`, as it was last seen.
    is_switched_off: AtomicBool,
    /// Held from a look at the switch until it counts; for as long as a file's name is looked up.
    looking_at_switch: Mutex<()>,
}

impl Cache {
    /// A cache over a store and the registries behind it. Starts the fetchers; asks nobody.
    pub fn new(store: Store, sources: Arc<dyn Sources>, settings: Settings, clock: Clock) -> Cache {
        let is_switched_off = store.is_offline();
        let inner = Inner {
            store,
            clock,
            blobs: Flights::new(),
            manifests: Flights::new(),
            heads: Flights::new(),
            blob_sizes: Flights::new(),
            lists: Flights::new(),
            cached_lists: Flights::new(),
            subjects: Mutex::new(Recent::new(SIZES_REMEMBERED)),
            unstored_lists: Mutex::default(),
            blob_pool: Scheduler::start(
                "blob-fetcher",
                settings.blob_fetchers,
                settings.downloads_per_upstream.clone(),
                PATIENCE,
            ),
            metadata_pool: Scheduler::start(
                "manifest-fetcher",
                settings.manifest_fetchers,
                HashMap::new(),
                PATIENCE,
            ),
            misses: Misses::new(settings.negative_ttl, Arc::clone(&sources)),
            hot: Mutex::new(Recent::new(HOT_MANIFESTS)),
            in_use: Mutex::new(HashMap::new()),
            told_heads: Mutex::new(Recent::new(HEADS_REMEMBERED)),
            told_tags: Mutex::new(Recent::new(HEADS_REMEMBERED)),
            told_sizes: Mutex::new(Recent::new(SIZES_REMEMBERED)),
            sizes_read: Mutex::new(Recent::new(LARGE_MANIFESTS_REMEMBERED)),
            verified_sizes: Mutex::new(Recent::new(SIZES_REMEMBERED)),
            blamed: Mutex::new(Recent::new(BLAMED_REMEMBERED)),
            learned: Mutex::new(Recent::new(SIZES_REMEMBERED)),
            looked_at: Mutex::new(Recent::new(SIZES_REMEMBERED)),
            referrers_fetched: Mutex::new(Recent::new(SIZES_REMEMBERED)),
            metrics: Arc::default(),
            evictions: evictor::Evictions::default(),
            queued_in_background: Mutex::new(HashSet::new()),
            cancelled: Mutex::new(HashSet::new()),
            usage_outdated: AtomicBool::new(false),
            is_switched_off: AtomicBool::new(is_switched_off),
            looking_at_switch: Mutex::default(),
            settings: RwLock::new(Arc::new(settings)),
            sources,
        };
        Cache { inner: Arc::new(inner), client: None }
    }

    /// The same cache, whose fetches count against this client from now on.
    pub fn for_client(&self, client: ClientAddress) -> Cache {
        Cache { inner: Arc::clone(&self.inner), client: Some(client) }
    }

    /// What a fetch for this repository shares its fetchers with.
    ///
    /// # Errors
    /// [`CacheError`] if the registry may not be asked: then there is no fetch.
    fn purpose(&self, name: &ImageName) -> Result<JobPurpose, CacheError> {
        self.inner.stop_if_offline()?;
        let class = Class::of(&name.upstream, self.inner.sources.standing(&name.upstream)?);
        Ok(JobPurpose { class, name: name.clone(), client: self.client })
    }

    /// Puts other settings into force, for what is asked from now on. What is under way goes on; offline,
    /// that is to say until it breaks off. The numbers of fetchers stay what they were at the start.
    pub fn reconfigure(&self, settings: Settings) {
        let inner = &self.inner;
        inner.blob_pool.set_limits(settings.downloads_per_upstream.clone());
        inner.misses.set_ttl(settings.negative_ttl);
        let settings = Arc::new(settings);
        let before = {
            let mut current = inner.settings.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *current, Arc::clone(&settings))
        };
        if before.freshness != settings.freshness {
            lock(&inner.hot).clear();
        }
        if before.prefetch != settings.prefetch {
            lock(&inner.looked_at).clear();
            lock(&inner.referrers_fetched).clear();
        }
    }

    /// Forgets what went wrong with these upstreams: they are other ones now, at other places or with other
    /// credentials.
    pub fn forget_troubles(&self, upstreams: &[Upstream]) {
        self.inner.misses.forget(upstreams);
        self.inner.forget_heads(|name| !upstreams.contains(&name.upstream));
        lock(&self.inner.blamed).retain(|(upstream, _)| !upstreams.contains(upstream));
    }

    /// The store below.
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// Looks whether `larder offline` was switched since the last look.
    pub fn look_at_offline_switch(&self) {
        // One at a time: what an earlier look found must not come after what a later one did.
        let _looking = lock(&self.inner.looking_at_switch);
        let is_off = self.inner.store.is_offline();
        if self.inner.is_switched_off.swap(is_off, Ordering::Relaxed) != is_off {
            match is_off {
                true => log::warn!("offline: no upstream is asked until `larder offline off`"),
                false => log::warn!("online again: upstreams are asked"),
            }
        }
    }

    /// What is known of the registries' health.
    pub fn upstreams(&self) -> Vec<UpstreamStatus> {
        self.inner.sources.statuses()
    }

    /// The counters of this process.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.inner.metrics
    }

    /// What happened how often since the start.
    pub fn counts(&self) -> Counts {
        self.inner.counts()
    }

    /// Takes no new fetches and lets blob downloads stop at their next bytes. What waits is told that
    /// its fetch was given up.
    pub fn close(&self) {
        self.inner.blob_pool.close();
        self.inner.metadata_pool.close();
    }

    /// Waits for the fetches that are still at work, so that a blob that is being committed gets its
    /// name. Bounded, since a fetch may be waiting for its upstream.
    pub fn wait_for_fetches(&self, at_most: Duration) {
        self.inner.blob_pool.wait_until_idle(at_most);
        self.inner.metadata_pool.wait_until_idle(at_most);
    }
}

impl Inner {
    /// The settings in force.
    fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether no upstream may be asked: by configuration, or by `larder offline on`.
    fn is_offline(&self) -> bool {
        self.settings().air_gapped || self.is_switched_off.load(Ordering::Relaxed)
    }

    /// A request is a beginning, and offline nothing is begun.
    fn stop_if_offline(&self) -> Result<(), CacheError> {
        if self.is_offline() { Err(CacheError::NotCached) } else { Ok(()) }
    }

    /// The source of a registry's content, if anybody may be asked.
    fn source(&self, upstream: &Upstream) -> Result<Arc<dyn Source>, CacheError> {
        self.stop_if_offline()?;
        Ok(self.sources.source(upstream)?)
    }

    /// With whom a registry shares its fetchers.
    fn class_of(&self, upstream: &Upstream) -> Class {
        let standing = self.sources.standing(upstream);
        Class::of(upstream, standing.unwrap_or(Standing::Unproven))
    }

    /// Whether an upstream has other endpoints than the one that a failure is about.
    fn has_mirrors(&self, upstream: &Upstream) -> bool {
        self.sources.source(upstream).is_ok_and(|source| source.endpoints() > 1)
    }

    fn now(&self) -> SystemTime {
        (self.clock)()
    }
}

/// Locks one of the small tables of this room. Each change to them is one insertion or removal, so a
/// panic elsewhere leaves them valid.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
