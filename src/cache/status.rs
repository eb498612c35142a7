//! The state of the cache as the management API and the metrics report it.

use super::requested::RequestedPull;
use super::scheduler::SchedulerLoad;
use super::{Cache, CacheError, RepositoryRules, Services};
use crate::metrics::Removal;
use crate::oci::{Digest, ImageName, Reference, Repository, Upstream};
use crate::upstream::{CheckStep, EndpointCheck, EndpointKind, UpstreamError};

/// A download under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlightStatus {
    /// The registry.
    pub upstream: Upstream,
    /// The blob.
    pub digest: Digest,
    /// The repository whose request started it; `None` while it is queued.
    pub origin: Option<ImageName>,
    /// The bytes received so far.
    pub bytes: u64,
    /// The size of the blob in bytes, once it is known.
    pub size: Option<u64>,
    /// How many connections receive it; 0 until the registry has responded.
    pub connections: usize,
}

/// The fetches under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Downloads of blobs.
    pub blobs: usize,
    /// Requests for manifests.
    pub manifests: usize,
    /// Requests for lists and blob sizes.
    pub others: usize,
    /// The fetchers for blobs.
    pub blob_pool: SchedulerLoad,
    /// The fetchers for everything else.
    pub manifest_pool: SchedulerLoad,
}

/// The events since the start that need an operator's attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Blobs that were streamed to a client because they could not be stored.
    pub blobs_not_cached: u64,
    /// Manifests that were served but could not be stored.
    pub manifests_not_cached: u64,
    /// Damaged files found in the store.
    pub damaged_files: u64,
    /// Images that were evicted.
    pub images_evicted: u64,
    /// The bytes freed by eviction.
    pub bytes_evicted: u64,
}

impl Cache {
    /// What became of the latest pulls that were requested with [`Cache::prefetch`], newest first.
    pub fn requested_pulls(&self) -> Vec<RequestedPull> {
        self.services.prefetcher.requested.newest_first()
    }

    /// Tries everything that a pull needs from a registry, with an image if one is given: first the rules of this server.
    /// Blocks, for a minute at most if nothing responds. Does not use what is cached.
    ///
    /// # Errors
    /// [`CacheError::NotCached`] if the server is offline; others if the registry may not be contacted.
    pub fn check(
        &self,
        upstream: &Upstream,
        image: Option<(&Repository, &Reference)>,
    ) -> Result<Vec<EndpointCheck>, CacheError> {
        if self.is_offline() {
            return Err(CacheError::NotCached);
        }
        let check = || self.core().sources.check(upstream, image);
        Ok(check_with_rules(&self.core().settings().rules, upstream, image, check)?)
    }
}

/// The check of a registry, with a step for the rules of this server if there are any. An image that they exclude is not
/// requested.
///
/// # Errors
/// Those of `check`.
pub fn check_with_rules(
    rules: &RepositoryRules,
    upstream: &Upstream,
    image: Option<(&Repository, &Reference)>,
    check: impl FnOnce() -> Result<Vec<EndpointCheck>, UpstreamError>,
) -> Result<Vec<EndpointCheck>, UpstreamError> {
    let Some((repository, _)) = image.filter(|_| !rules.is_empty()) else { return check() };
    match rules.check(&ImageName::new(upstream.clone(), repository.clone())) {
        Ok(()) => {
            let mut checks = check()?;
            for each in &mut checks {
                each.steps.insert(0, CheckStep::passed("rules", "allowed by allow and deny"));
            }
            Ok(checks)
        }
        Err(error) => {
            let remedy =
                "correct allow or deny in the configuration, if clients may have this image";
            let (kind, url) = (EndpointKind::Registry.as_str(), upstream.to_string());
            let steps = vec![CheckStep::failed("rules", error.to_string(), remedy)];
            Ok(vec![EndpointCheck { url, kind, steps }])
        }
    }
}

impl Cache {
    /// How often something happened since the start that needs an operator's attention.
    pub fn counts(&self) -> Counts {
        let metrics = self.metrics();
        let (images_evicted, bytes_evicted) = metrics.removed_so_far(Removal::Evicted);
        Counts {
            blobs_not_cached: metrics.not_cached_so_far("blob"),
            manifests_not_cached: metrics.not_cached_so_far("manifest"),
            damaged_files: self.store().damaged_files(),
            images_evicted,
            bytes_evicted,
        }
    }

    /// The downloads under way, in the order of their names.
    pub fn flights(&self) -> Vec<FlightStatus> {
        self.services.blobs.statuses()
    }

    /// The flights under way, and the load of the fetchers.
    pub fn load(&self) -> Load {
        let Services { core, manifests, blobs, lists, .. } = &*self.services;
        // Read before the blob pool: its jobs start downloads, and this order never misses one.
        let manifest_pool = core.metadata_fetchers.load();
        Load {
            blobs: blobs.flights(),
            manifests: manifests.flights(),
            others: lists.flights() + blobs.size_flights(),
            blob_pool: core.blob_fetchers.load(),
            manifest_pool,
        }
    }
}
