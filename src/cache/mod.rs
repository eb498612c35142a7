//! Decides whether content is served from the store, from a download under way or from the registry, and when it is stale.
//!
//! Every lookup tries, in this order: memory (manifests only, for one second), the store, a flight under way, a new
//! flight. A lookup never blocks: it returns the content, or a handle to wait on. Fetchers from one of two fixed pools do
//! the work of flights, so that blobs do not delay manifests, and one registry does not delay the others.
//!
//! This module must not know client sockets, routes, the command line or the configuration file.
//!
//! # Invariants
//! * **Every reader is a follower**, including the client that caused the download. A client that leaves or reads slowly
//!   does not affect others.
//! * **A hit sends no request** and holds locks for table lookups only.
//! * **The last byte of a blob is published only after its digest was verified**, so no client receives a complete copy
//!   of wrong bytes.
//! * **Store, flight, store again**: a leader checks the store again before it works, since the previous flight may have
//!   finished between the lookup and the join (see [`crate::flight`]).

mod access;
mod blobs;
mod bounded;
mod bucket_copy;
mod bucket_sweep;
mod committers;
mod completion;
mod core;
mod counted;
mod error;
mod event_sources;
mod eviction;
mod freshness;
mod how;
mod job_context;
mod lists;
mod maintenance;
mod manifests;
mod negative;
mod poller;
mod prefetch;
mod redirects;
mod requested;
mod rules;
mod scheduler;
mod status;
mod unattended;
mod uploads;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use crate::client_address::ClientAddress;
use crate::metrics::Metrics;
use crate::oci::{Digest, ImageName, Platform, Platforms, Reference, Tag, TagRecord, Upstream};
use crate::store::{Access, Store};
use crate::upstream::Sources;

pub use access::{
    AccessError, AccessLookup, AccessPolicy, AccessWait, BlobAccess, Login, Pass, PullAccess,
    RegistryAccess,
};
pub use blobs::{
    AlreadySent, BlobFailure, BlobLookup, BlobWait, ConnectionPolicy, GrowingFile, Incoming,
    LinkWait, PassThrough, Purpose, RetryPolicy, SizeSource,
};
pub use bucket_copy::{
    CopyError, CopyEvent, CopySummary, ImageFailure, copy_from_bucket, copy_to_bucket,
};
pub use bucket_sweep::{
    BucketImage, BucketLimits, BucketSweepThread, SweepError, SweepReport, SweepTimes, Sweeper,
};
pub use completion::CompletionThread;
pub use error::{CacheError, Reason};
pub use freshness::{FreshnessPolicy, OnUpstreamDelete, TAG_TTL, TagRule, TagRules, Ttl};
pub use how::{How, Why};
pub use lists::{ListAnswer, ListLookup, ListQuestion, ListWait};
pub use maintenance::{
    IndexWriter, Maintenance, MaintenanceThread, Pace, ScrubPolicy, ScrubReport, Scrubber,
};
pub use manifests::{
    HeadAnswer, HeadLookup, HeadWait, ManifestAnswer, ManifestLookup, ManifestWait,
};
pub use prefetch::{Prefetch, PrefetchOnHead};
pub use redirects::REDIRECTED_BYTES_MIN;
pub use requested::{PullState, RequestedPull};
pub use rules::RepositoryRules;
pub use scheduler::SchedulerLoad;
pub use status::{Counts, FlightStatus, Load, check_with_rules};
pub use unattended::{BackgroundLookup, QueuedBlob};
pub use uploads::{BucketStatus, UploadSettings, UploadThread, examine_bucket};

pub use crate::store::{
    Blob, Document, GraphManifest, ImageUsage, IncompleteImage, SweepLocked, UsageSummary,
};
pub use crate::upstream::{
    BreakerState, DECIDED, EndpointCheck, EndpointKind, EndpointStatus, ManifestHead, PeerProof,
    PeerStatus, UpstreamStatus, Wanted,
};

use access::{AccessService, Link};
use blobs::BlobCache;
use completion::Completions;
use core::Core;
use eviction::EvictionService;
use lists::ListCache;
use manifests::ManifestCache;
use prefetch::Prefetcher;
use unattended::CreationTimes;

/// How long a client waits for content that is not in the cache. Below the 30 s after which containerd gives up, so
/// that it receives an error with the reason.
pub const PATIENCE: Duration = Duration::from_secs(25);
/// How many blob sizes are remembered, to detect truncated files and to answer before a slow registry does. Two
/// tables of about a hundred bytes per entry.
const SIZES_REMEMBERED: usize = 16_384;

/// The default of `minimumRate`, in bytes per second: below the rate of any link over which a pull could finish.
pub const MINIMUM_RATE: u64 = 16 * 1024;

/// The settings of the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How long a tag is fresh.
    pub freshness: FreshnessPolicy,
    /// How long a client waits for the confirmation of a tag that is in the cache.
    pub revalidate_timeout: Duration,
    /// How long missing content and failing registries are remembered.
    pub negative_ttl: Duration,
    /// How interrupted downloads are resumed.
    pub retry: RetryPolicy,
    /// A download that receives fewer bytes per second than this gives up its fetcher to waiting jobs.
    pub minimum_rate: u64,
    /// Which parts of an image are fetched before a client requests them.
    pub prefetch: Prefetch,
    /// The limits of the cache, pins and pruning.
    pub maintenance: Maintenance,
    /// Which repositories are served.
    pub rules: RepositoryRules,
    /// Who may pull what.
    pub access: AccessPolicy,
    /// Forbids requests to registries.
    pub air_gapped: bool,
    /// The number of fetchers for blobs.
    pub blob_fetchers: usize,
    /// How many of them one registry may use at a time. The others share half of them.
    pub downloads_per_upstream: HashMap<Upstream, usize>,
    /// How many connections the download of one large blob may use.
    pub connections: ConnectionPolicy,
    /// The number of fetchers for manifests, lists and blob sizes.
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
            rules: RepositoryRules::default(),
            access: AccessPolicy::default(),
            air_gapped: false,
            blob_fetchers: 32,
            connections: ConnectionPolicy::default(),
            downloads_per_upstream: HashMap::new(),
            manifest_fetchers: 64,
        }
    }
}

/// The source of the current time. An argument, so that tests control it.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// The cache. Cloning shares it.
#[derive(Clone)]
pub struct Cache {
    services: Arc<Services>,
    /// The client whose share of the fetchers its requests count against; `None` for Larder's own requests.
    client: Option<ClientAddress>,
    /// The login with which content is fetched for it.
    pass: Option<Pass>,
    /// What has to be known of a cached blob and a repository.
    needed_link: Link,
}

/// One service for each kind of content, and the services for all kinds. Each uses only those above it.
struct Services {
    core: Arc<Core>,
    access: Arc<AccessService>,
    manifests: Arc<ManifestCache>,
    eviction: Arc<EvictionService>,
    blobs: Arc<BlobCache>,
    lists: Arc<ListCache>,
    prefetcher: Arc<Prefetcher>,
    completions: Arc<Completions>,
    creation_times: CreationTimes,
}

/// Requests for content.
impl Cache {
    /// A cache over a store and registries. Starts the fetchers; makes no request.
    pub fn new(store: Store, sources: Arc<dyn Sources>, settings: Settings, clock: Clock) -> Cache {
        let core = Arc::new(Core::new(store, sources, settings, clock));
        let access = Arc::new(AccessService::new(Arc::clone(&core)));
        let manifests = Arc::new(ManifestCache::new(Arc::clone(&core)));
        let eviction = Arc::new(EvictionService::new(Arc::clone(&core), Arc::clone(&manifests)));
        let blobs = Arc::new(BlobCache::new(
            Arc::clone(&core),
            Arc::clone(&manifests),
            Arc::clone(&eviction),
        ));
        let lists = Arc::new(ListCache::new(Arc::clone(&core), Arc::clone(&manifests)));
        let prefetcher = Arc::new(Prefetcher::new(
            Arc::clone(&core),
            Arc::clone(&manifests),
            Arc::clone(&blobs),
            Arc::clone(&lists),
        ));
        let completions = Arc::new(Completions::new(
            Arc::clone(&core),
            Arc::clone(&manifests),
            Arc::clone(&blobs),
            Arc::clone(&prefetcher),
        ));
        let services = Services {
            core,
            access,
            manifests,
            eviction,
            blobs,
            lists,
            prefetcher,
            completions,
            creation_times: CreationTimes::default(),
        };
        Cache { services: Arc::new(services), client: None, pass: None, needed_link: Link::Assumed }
    }

    /// The same cache, whose fetches count against the share of this client.
    pub fn for_client(&self, client: ClientAddress) -> Cache {
        Cache { client: Some(client), ..self.clone() }
    }

    /// The blob of a digest. Does not wait for anything but the local disk.
    ///
    /// # Errors
    /// [`CacheError`] if it is known that the blob is not available.
    pub fn blob(
        &self,
        name: &ImageName,
        digest: &Digest,
        purpose: Purpose,
    ) -> Result<BlobLookup, CacheError> {
        self.core().stop_if_refused(name)?;
        let (client, needed) = (self.client, self.needed_link);
        self.as_client(|| self.services.blobs.find(name, digest, purpose, client, needed))
    }

    /// Passes a blob through to one client without storing it, after a flight that failed because of the disk, and
    /// from which the client may have received something.
    pub fn pass_through(
        &self,
        name: &ImageName,
        digest: &Digest,
        size_hint: Option<u64>,
        already_sent: Option<AlreadySent>,
    ) -> PassThrough {
        let blobs = &self.services.blobs;
        self.as_client(|| blobs.pass_through(name, digest, size_hint, already_sent, self.client))
    }

    /// The manifest of a tag or a digest. Does not wait for anything but the local disk.
    ///
    /// # Errors
    /// [`CacheError`] if it is known that the manifest is not available.
    pub fn manifest(
        &self,
        name: &ImageName,
        reference: &Reference,
    ) -> Result<ManifestLookup, CacheError> {
        self.core().stop_if_refused(name)?;
        self.as_client(|| self.services.manifests.find(name, reference, self.client))
    }

    /// The answer to HEAD of a manifest. Does not wait for anything but the local disk.
    ///
    /// # Errors
    /// [`CacheError`] if it is known that the manifest is not available.
    pub fn manifest_head(
        &self,
        name: &ImageName,
        reference: &Reference,
    ) -> Result<HeadLookup, CacheError> {
        self.core().stop_if_refused(name)?;
        self.as_client(|| self.services.manifests.head(name, reference, self.client))
    }

    /// A list. Does not wait for anything but the local disk, of which it reads one small file.
    ///
    /// # Errors
    /// [`CacheError`] if it is known that the list is not available.
    pub fn list(&self, name: &ImageName, question: ListQuestion) -> Result<ListLookup, CacheError> {
        self.core().stop_if_refused(name)?;
        self.as_client(|| self.services.lists.find(name, question, self.client))
    }

    /// Waits until the manifests and tags are on the disk that were fetched of a repository, or of any: clients receive
    /// them earlier. Blocks. One that cannot be stored, which is logged, ends the wait as well.
    pub fn wait_until_stored(&self, name: Option<&ImageName>) {
        self.services.manifests.wait_until_stored(name);
    }

    /// Completes an image whose manifest was served, in the background.
    pub fn complete_later(&self, name: &ImageName, digest: &Digest) {
        self.as_client(|| self.services.completions.pulled(name, digest, self.client));
    }

    /// A client has checked an image with HEAD and received this digest: see [`PrefetchOnHead`]. `is_node` states
    /// whether the client is a container runtime, `platform` is the one that it reports.
    pub fn checked_by_head(
        &self,
        name: &ImageName,
        reference: &Reference,
        digest: &Digest,
        is_node: bool,
        platform: Option<Platform>,
    ) {
        let completions = &self.services.completions;
        self.as_client(|| {
            completions.checked(name, reference, digest, is_node, platform, self.client);
        });
    }

    /// Fetches the images that are due to be completed, in the background, as the [`CompletionThread`] does.
    pub fn complete_due_images(&self) {
        self.services.completions.tick();
    }

    /// The images that are not complete, and why.
    pub fn incomplete_images(&self) -> Vec<IncompleteImage> {
        self.services.completions.report()
    }

    /// How many images are being completed, by state.
    pub fn completion_states(&self) -> Vec<(&'static str, usize)> {
        self.services.completions.stages()
    }

    /// Fetches the manifests that refer to a manifest, directly or through others: with the referrers API, and by
    /// the tags that tools use without it. Blocks. Referrers that cannot be fetched are skipped.
    pub fn fetch_referrers(&self, name: &ImageName, digest: &Digest) -> Vec<Digest> {
        self.services.prefetcher.fetch_referrers(name, digest)
    }

    /// Pulls an image into the cache in the background, and of an index the children that `platforms` covers.
    ///
    /// # Errors
    /// [`CacheError::NotCached`] if the server is offline, [`CacheError::GivenUp`] if the queue is full.
    pub fn prefetch(
        &self,
        name: &ImageName,
        reference: &Reference,
        platforms: Platforms,
    ) -> Result<(), CacheError> {
        self.services.prefetcher.pull(name, reference, platforms, self.client)
    }

    /// Resumes the downloads of listed registries that were interrupted, in this process or an earlier one, in the
    /// background. Does not wait. Returns how many there are.
    ///
    /// Those of unlisted registries wait for a client: anybody can start any number of them.
    pub fn resume_downloads(&self) -> usize {
        self.services.blobs.resume_downloads()
    }

    /// Ends a download at its next bytes; what was received is kept. `false` if there is no such download.
    pub fn cancel(&self, upstream: &Upstream, digest: &Digest) -> bool {
        self.services.blobs.cancel(upstream, digest)
    }
}

/// State and settings.
impl Cache {
    /// Replaces the settings for new requests. Downloads under way continue; offline, until they are interrupted.
    /// The numbers of fetchers stay as they were at the start.
    pub fn reconfigure(&self, settings: Settings) {
        let settings = Arc::new(settings);
        let before = self.core().reconfigure(&settings);
        if before.freshness != settings.freshness {
            self.services.manifests.forget_hot();
        }
        if before.access != settings.access {
            self.services.access.forget();
            self.core().private.reset();
        }
        if before.prefetch != settings.prefetch {
            self.services.prefetcher.restart();
        }
    }

    /// Forgets the failures of these registries: they have other addresses or credentials now.
    pub fn forget_troubles(&self, upstreams: &[Upstream]) {
        self.core().negative.forget(upstreams);
        self.services.manifests.forget_heads(|name| !upstreams.contains(&name.upstream));
        self.services.blobs.forget_wrong(upstreams);
        self.services.access.forget();
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.core().store
    }

    /// The time of the cache's clock.
    pub fn now(&self) -> SystemTime {
        self.core().now()
    }

    /// Checks whether `larder offline` and `larder access forget` were used since the last check.
    pub fn check_switches(&self) {
        self.core().check_offline_switch();
        self.services.access.tick();
    }

    /// Whether requests to registries are forbidden, for whatever reason.
    pub fn is_offline(&self) -> bool {
        self.core().is_offline()
    }

    /// Whether the configuration forbids requests to registries.
    pub fn is_air_gapped(&self) -> bool {
        self.core().settings().air_gapped
    }

    /// The health of the registries.
    pub fn upstreams(&self) -> Vec<UpstreamStatus> {
        self.core().sources.statuses()
    }

    /// The bucket and the uploads to it, if there is one.
    pub fn bucket_status(&self) -> Option<BucketStatus> {
        self.core().bucket_status()
    }

    /// The members of the group of this process.
    pub fn peers(&self, content: Option<&str>) -> Vec<PeerStatus> {
        self.core().sources.peers(content)
    }

    /// The counters of this process.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.core().metrics
    }

    /// What is recorded of a cached tag.
    pub fn tag_record(&self, name: &ImageName, tag: &Tag) -> Option<TagRecord> {
        self.store().tag(name, tag, Access::Look)
    }

    /// Accepts no more fetches and lets blob downloads end at their next bytes. Fetches in the queue fail.
    pub fn close(&self) {
        self.core().blob_fetchers.close();
        self.core().metadata_fetchers.close();
    }

    /// Whether fetches are under way.
    pub fn is_fetching(&self) -> bool {
        let core = self.core();
        let fetching = core.blob_fetchers.load().busy + core.metadata_fetchers.load().busy;
        fetching + core.committers.unfinished() > 0
    }

    /// Waits for the fetches under way, so that a blob that is being committed gets its name. Bounded, since a fetch
    /// may be waiting for its registry.
    pub fn wait_for_fetches(&self, at_most: Duration) {
        self.core().blob_fetchers.wait_until_idle(at_most);
        self.core().metadata_fetchers.wait_until_idle(at_most);
        // Last: fetchers submit commits.
        self.core().committers.wait_until_idle(at_most);
    }

    fn core(&self) -> &Core {
        &self.services.core
    }
}

/// Locks one of the small tables of this module. Each change to them is one insertion or removal, so they remain valid
/// after a panic elsewhere.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
