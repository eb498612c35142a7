//! What all services of the cache share: the store, the registries, the current settings, the fetchers and the negative
//! cache.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak};
use std::time::SystemTime;

use super::access::PrivateDigests;
use super::committers::Committers;
use super::counted::CountedSource;
use super::event_sources::{RegistryWatch, record_events_of};
use super::negative::{Asked, NegativeCache};
use super::redirects::Redirects;
use super::scheduler::{Class, Purpose, Scheduler};
use super::uploads::BucketStatus;
use super::{CacheError, Clock, How, PATIENCE, Settings, access, lock, uploads};
use crate::client_address::ClientAddress;
use crate::events::Events;
use crate::flight::{Follower, Joined, Leader};
use crate::metrics::Metrics;
use crate::oci::{Algorithm, Digest, ImageName, Manifest, ManifestError, Upstream};
use crate::store::{DocumentWriter, Store};
use crate::upstream::{DocumentSink, Source, Sources, Standing, UpstreamError};

pub(super) struct Core {
    pub(super) store: Store,
    pub(super) sources: Arc<dyn Sources>,
    pub(super) blob_fetchers: Scheduler,
    /// Fetchers for manifests, lists and sizes, so that blobs cannot delay them.
    pub(super) metadata_fetchers: Scheduler,
    /// Make blobs durable after their download.
    pub(super) committers: Committers,
    pub(super) negative: NegativeCache,
    /// Counters of this process.
    pub(super) metrics: Arc<Metrics>,
    /// What operators should hear about.
    pub(super) events: Arc<Events>,
    pub(super) registry_watch: RegistryWatch,
    /// The content of repositories whose registry decides who may pull.
    pub(super) private: PrivateDigests,
    /// Replaced as one, and locked only to replace or to copy the pointer. Code that makes several decisions uses one
    /// copy for all of them.
    settings: RwLock<Arc<Settings>>,
    clock: Clock,
    /// The state of `larder offline` when it was last checked.
    is_switched_off: AtomicBool,
    /// Held while the switch is checked, which looks up a file.
    checking_switch: Mutex<()>,
    /// The uploads to the bucket, while they run.
    uploads: Mutex<Weak<uploads::Shared>>,
    /// Set at the start, with `objectStore.redirect`.
    pub(super) redirects: OnceLock<Arc<Redirects>>,
}

impl Core {
    /// Starts the fetchers. Makes no request.
    pub(super) fn new(
        store: Store,
        sources: Arc<dyn Sources>,
        settings: Settings,
        clock: Clock,
    ) -> Core {
        let events = Arc::default();
        record_events_of(&store, &events, &clock);
        let start = |name, fetchers, limits| Scheduler::start(name, fetchers, limits, PATIENCE);
        Core {
            blob_fetchers: start(
                "blob-fetcher",
                settings.blob_fetchers,
                settings.downloads_per_upstream.clone(),
            ),
            metadata_fetchers: start(
                "manifest-fetcher",
                settings.manifest_fetchers,
                HashMap::new(),
            ),
            committers: Committers::start(),
            negative: NegativeCache::new(settings.negative_ttl, Arc::clone(&sources)),
            metrics: Arc::default(),
            events,
            registry_watch: RegistryWatch::default(),
            private: PrivateDigests::default(),
            settings: RwLock::new(Arc::new(settings)),
            clock,
            is_switched_off: AtomicBool::new(store.is_offline()),
            checking_switch: Mutex::default(),
            uploads: Mutex::default(),
            redirects: OnceLock::new(),
            store,
            sources,
        }
    }

    /// The settings in force.
    pub(super) fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the settings in force. Returns the former ones.
    pub(super) fn reconfigure(&self, settings: &Arc<Settings>) -> Arc<Settings> {
        self.blob_fetchers.set_limits(settings.downloads_per_upstream.clone());
        self.negative.set_ttl(settings.negative_ttl);
        let mut current = self.settings.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *current, Arc::clone(settings))
    }

    pub(super) fn now(&self) -> SystemTime {
        (self.clock)()
    }

    /// Whether requests to registries are forbidden, by the configuration or by `larder offline on`.
    pub(super) fn is_offline(&self) -> bool {
        self.settings().air_gapped || self.is_switched_off.load(Ordering::Relaxed)
    }

    /// Checks whether `larder offline` was used since the last check.
    pub(super) fn check_offline_switch(&self) {
        // One at a time: the result of an earlier check must not replace that of a later one.
        let _checking = lock(&self.checking_switch);
        let is_off = self.store.is_offline();
        if self.is_switched_off.swap(is_off, Ordering::Relaxed) != is_off {
            match is_off {
                true => log::warn!("offline: no registry is contacted until `larder offline off`"),
                false => log::warn!("online: registries are contacted again"),
            }
        }
    }

    /// Whether there is nothing to ask for what is not cached: the server is offline, and has no bucket.
    pub(super) fn is_alone(&self) -> bool {
        self.is_offline() && self.sources.shared_bucket().is_none()
    }

    /// # Errors
    /// [`CacheError::NotCached`] if the server is offline, and this source is the registry's.
    pub(super) fn stop_if_offline(&self, source: &dyn Source) -> Result<(), CacheError> {
        match self.is_offline() && source.is_authoritative() {
            true => Err(CacheError::NotCached),
            false => Ok(()),
        }
    }

    /// Remembers the uploads, for their status.
    pub(super) fn set_uploads(&self, uploads: &Arc<uploads::Shared>) {
        *lock(&self.uploads) = Arc::downgrade(uploads);
    }

    /// The state of the bucket and of the uploads.
    pub(super) fn bucket_status(&self) -> Option<BucketStatus> {
        let uploads = lock(&self.uploads).upgrade()?;
        Some(uploads.status(self.sources.bucket_status()))
    }

    /// Refuses a request to a registry that fails or limits the rate, unless the bucket has the content.
    ///
    /// # Errors
    /// [`CacheError::BackingOff`].
    pub(super) fn stop_if_backing_off(
        &self,
        name: &ImageName,
        is_in_bucket: impl FnOnce(&dyn Source) -> bool,
    ) -> Result<(), CacheError> {
        let Some(wait) = self.negative.backoff(name, self.now()) else { return Ok(()) };
        match self.sources.bucket(&name.upstream) {
            Some(bucket) if !is_in_bucket(&*bucket) => Err(CacheError::BackingOff { wait }),
            // Without a bucket, this was checked when the request arrived.
            _ => Ok(()),
        }
    }

    /// # Errors
    /// [`CacheError::GivenUp`] if the server is stopping.
    pub(super) fn stop_if_closed(&self) -> Result<(), CacheError> {
        if self.blob_fetchers.is_closed() { Err(CacheError::GivenUp) } else { Ok(()) }
    }

    /// Notes what a manifest refers to, if its registry decides who may pull it.
    pub(super) fn note_private(&self, name: &ImageName, digest: Digest, manifest: &Manifest) {
        if self.settings().access.is_private(name) {
            self.private.add_manifest(&self.store, digest, manifest);
        }
    }

    /// Notes that a blob comes from a repository, if its registry decides who may pull it. Called before it gets its name.
    pub(super) fn note_private_blob(&self, name: &ImageName, digest: Digest) {
        if self.settings().access.is_private(name) {
            self.private.add(&self.store, &[digest]);
        }
    }

    /// Whether a repository is fetched with the logins of clients, so that Larder itself cannot know what is in it.
    pub(super) fn is_for_clients(&self, name: &ImageName) -> bool {
        self.settings().access.is_private(name) && !self.sources.has_credentials(name)
    }

    /// # Errors
    /// [`CacheError::Refused`] if the rules exclude this repository.
    pub(super) fn stop_if_refused(&self, name: &ImageName) -> Result<(), CacheError> {
        self.settings().rules.check(name)
    }

    /// The source of a registry's content; offline, only what the bucket has of it. Its requests are counted.
    ///
    /// # Errors
    /// [`CacheError`] if the server is offline and has no bucket, or the registry is not allowed.
    pub(super) fn source(&self, upstream: &Upstream) -> Result<Arc<dyn Source>, CacheError> {
        let source = match self.is_offline() {
            true => self.sources.bucket(upstream).ok_or(CacheError::NotCached)?,
            false => match access::source(upstream) {
                Some(of_client) => of_client?,
                None => self.sources.source(upstream)?,
            },
        };
        Ok(Arc::new(CountedSource::new(source, upstream.clone(), Arc::clone(&self.metrics))))
    }

    /// The share of the fetchers that a fetch for this repository counts against.
    ///
    /// # Errors
    /// [`CacheError`] if the registry must not be contacted: then there is no fetch.
    pub(super) fn purpose(
        &self,
        name: &ImageName,
        client: Option<ClientAddress>,
    ) -> Result<Purpose, CacheError> {
        // For background jobs, too: an image may have been requested before the rules were changed.
        self.stop_if_refused(name)?;
        if self.is_alone() {
            return Err(CacheError::NotCached);
        }
        let class = Class::of(&name.upstream, self.sources.standing(&name.upstream)?);
        Ok(Purpose { class, name: name.clone(), client })
    }

    /// As [`Core::purpose`], for work that begins with a search of the disk and need not contact the registry.
    ///
    /// # Errors
    /// [`CacheError`] if the rules exclude the repository.
    pub(super) fn purpose_of_search(
        &self,
        name: &ImageName,
        client: Option<ClientAddress>,
    ) -> Result<Purpose, CacheError> {
        self.stop_if_refused(name)?;
        Ok(Purpose { class: self.class_of(&name.upstream), name: name.clone(), client })
    }

    /// Queues a flight that this request started for a metadata fetcher. It is dropped if all of its followers leave
    /// before it starts. `work` must finish the flight.
    pub(super) fn run_metadata_flight<K, H, T, E>(
        &self,
        joined: Joined<K, H, T, E>,
        purpose: Purpose,
        work: impl FnOnce(Leader<K, H, T, E>) + Send + 'static,
    ) -> (Follower<H, T, E>, How)
    where
        K: Eq + Hash + Clone + Send + Sync + 'static,
        H: Clone + Send + Sync + 'static,
        T: Clone + Send + Sync + 'static,
        E: Clone + Send + Sync + 'static,
    {
        let Some(leader) = joined.leader else { return (joined.flight, How::Join) };
        let flight = Arc::clone(joined.flight.flight());
        let is_wanted = move || flight.has_followers();
        let run = move || {
            leader.begin();
            work(leader);
        };
        self.metadata_fetchers.submit(purpose, is_wanted, run);
        (joined.flight, How::Miss)
    }

    /// The class of a registry in the scheduler.
    pub(super) fn class_of(&self, upstream: &Upstream) -> Class {
        let standing = self.sources.standing(upstream);
        Class::of(upstream, standing.unwrap_or(Standing::Unproven))
    }

    /// Remembers the outcome of a request for later ones. With mirrors, a rate limit applies to one endpoint, whose circuit breaker
    /// handles it.
    pub(super) fn note_outcome<T>(
        &self,
        source: &dyn Source,
        name: &ImageName,
        asked: Asked,
        result: &Result<T, UpstreamError>,
    ) {
        // What the registry answers to the login of a client is about that client: others must not be limited by it, nor be
        // told that something is missing.
        if !source.is_authoritative() || self.is_for_clients(name) {
            return;
        }
        if !source.has_mirrors() {
            self.negative.note_limit(name, result, self.now());
        }
        self.negative.note(&name.upstream, asked, result, self.now());
    }
}

impl DocumentSink for DocumentWriter {
    fn restart(&mut self) {
        DocumentWriter::restart(self);
    }

    fn write(&mut self, bytes: &[u8]) {
        DocumentWriter::write(self, bytes);
    }

    fn parse(
        &mut self,
        algorithm: Algorithm,
        content_type: Option<&str>,
    ) -> Option<(Digest, Result<Manifest, ManifestError>)> {
        let content_type = content_type.map(str::to_owned);
        self.with_bytes(move |bytes| {
            (Digest::of(algorithm, bytes), Manifest::parse(bytes, content_type.as_deref()))
        })
    }
}
