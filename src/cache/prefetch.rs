//! Completeness: what hangs below a manifest that was answered is fetched before somebody asks for it.
//!
//! So that an image that was pulled once is whole on the day the network is gone, whichever of its layers
//! the client had already. It is done behind clients' requests: by fetchers that they do not need, and
//! one flight a blob as ever, which clients join.
//!
//! Who asks for a manifest by HEAD does not pull, and nothing is fetched for it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use super::blobs::BlobCache;
use super::bounded::BoundedCache;
use super::core::Core;
use super::lists::{ListCache, ListQuestion};
use super::manifests::ManifestCache;
use super::{CacheError, SIZES_REMEMBERED, lock};
use crate::client_address::ClientAddress;
use crate::oci::{
    Descriptor, Digest, ImageName, Manifest, ManifestKind, Platforms, Reference, Tag,
};

/// An image is not looked at again for so long: its manifest is asked for by every node of a cluster.
const COMPLETED_EVERY: Duration = Duration::from_secs(60);
/// Referrers of an image that are fetched; more than signers and scanners attach.
const REFERRERS_MAX: usize = 64;
/// Manifests of one image that are fetched; more than the platforms of any index. An index of indexes can
/// name as many as its author likes.
const MANIFESTS_MAX: usize = 1024;
/// How deep manifests are followed: an index of indexes, and what refers to what refers to an image.
const DEPTH_MAX: usize = 4;

/// What is fetched of an image beyond what is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefetch {
    /// Config and layers of image manifests that were answered.
    pub blobs: bool,
    /// Children of indexes that were answered, with their configs and layers.
    pub platforms: Platforms,
    /// Signatures, attestations and SBOMs that refer to what was answered.
    pub referrers: bool,
}

impl Default for Prefetch {
    fn default() -> Self {
        Prefetch { blobs: true, platforms: Platforms::NONE, referrers: false }
    }
}

/// The service.
pub(super) struct Prefetcher {
    core: Arc<Core>,
    manifests: Arc<ManifestCache>,
    blobs: Arc<BlobCache>,
    lists: Arc<ListCache>,
    /// When images were last completed. Locked for a look-up or an insertion only, as is the next one.
    completed: Mutex<BoundedCache<(ImageName, Digest), SystemTime>>,
    /// When the referrers of images were fetched.
    referrers_fetched: Mutex<BoundedCache<(ImageName, Digest), SystemTime>>,
}

impl Prefetcher {
    pub(super) fn new(
        core: Arc<Core>,
        manifests: Arc<ManifestCache>,
        blobs: Arc<BlobCache>,
        lists: Arc<ListCache>,
    ) -> Prefetcher {
        Prefetcher {
            core,
            manifests,
            blobs,
            lists,
            completed: Mutex::new(BoundedCache::new(SIZES_REMEMBERED)),
            referrers_fetched: Mutex::new(BoundedCache::new(SIZES_REMEMBERED)),
        }
    }

    /// Forgets what was completed: the settings have changed.
    pub(super) fn restart(&self) {
        lock(&self.completed).clear();
        lock(&self.referrers_fetched).clear();
    }

    /// Pulls an image into the cache in the background, and of an index the children that `platforms` covers.
    ///
    /// # Errors
    /// [`CacheError::NotCached`] if the server is offline, [`CacheError::GivenUp`] if the queue is full.
    pub(super) fn pull(
        self: &Arc<Self>,
        name: &ImageName,
        reference: &Reference,
        platforms: Platforms,
        client: Option<ClientAddress>,
    ) -> Result<(), CacheError> {
        let purpose = self.core.purpose(name, client)?;
        let (service, name, reference) = (Arc::clone(self), name.clone(), reference.clone());
        let is_queued = self.core.metadata_fetchers.submit_in_background(purpose, move || {
            let fetched = match &reference {
                Reference::Tag(tag) => service.manifests.fetch_by_tag(&name, tag),
                Reference::Digest(digest) => service.manifests.fetch_by_digest(&name, digest),
            };
            match fetched {
                Ok(content) => service.complete(&name, content.digest(), &platforms),
                // An operator has requested it and gets no other report.
                Err(error) => log::warn!("prefetch of {}: {error}", name.with(&reference)),
            }
        });
        if is_queued { Ok(()) } else { Err(CacheError::GivenUp) }
    }

    /// Sees to it, behind clients' requests, that an image whose manifest was answered becomes whole.
    pub(super) fn complete_later(
        self: &Arc<Self>,
        name: &ImageName,
        digest: &Digest,
        client: Option<ClientAddress>,
    ) {
        if !self.core.settings().prefetch.blobs
            || self.core.is_offline()
            || !self.core.store.is_writable()
        {
            return;
        }
        let (key, now) = ((name.clone(), *digest), self.core.now());
        {
            let mut checked = lock(&self.completed);
            let last = checked.get(&key).copied();
            let is_young = |last| now.duration_since(last).is_ok_and(|age| age < COMPLETED_EVERY);
            if last.is_some_and(is_young) {
                return;
            }
            checked.insert(key, now);
        }
        let Ok(purpose) = self.core.purpose(name, client) else { return };
        let (service, name, digest) = (Arc::clone(self), name.clone(), *digest);
        self.core.metadata_fetchers.submit_in_background(purpose, move || {
            let wanted = service.core.settings().prefetch.platforms.clone();
            service.complete(&name, &digest, &wanted);
            if service.core.settings().prefetch.referrers
                && !service.knows_referrers(&name, &digest)
            {
                for referrer in service.fetch_referrers(&name, &digest) {
                    service.complete(&name, &referrer, &wanted);
                }
                service.note_referrers(&name, &digest);
            }
        });
    }

    /// Fetches what is missing below a manifest that is in the store, as far as it is wanted.
    pub(super) fn complete(&self, name: &ImageName, digest: &Digest, wanted: &Platforms) {
        self.complete_below(name, digest, wanted, 0, &mut HashSet::new());
    }

    /// `seen` are the manifests that were visited: an index may name the same one any number of times.
    fn complete_below(
        &self,
        name: &ImageName,
        digest: &Digest,
        wanted: &Platforms,
        depth: usize,
        seen: &mut HashSet<Digest>,
    ) {
        if !seen.insert(*digest) {
            return;
        }
        let Some(manifest) = self.core.store.stored_manifest(name, digest) else { return };
        match manifest.kind() {
            ManifestKind::Image { .. } => {
                // Foreign layers are somebody else's to distribute; a client that wants one asks.
                for blob in manifest.descriptors().filter(|blob| !blob.is_foreign) {
                    self.fetch_if_missing(name, blob);
                }
            }
            ManifestKind::Index { manifests } if depth < DEPTH_MAX => {
                for child in wanted.select(manifests) {
                    let is_over = self.core.is_offline() || self.core.metadata_fetchers.is_closed();
                    if is_over || seen.len() >= MANIFESTS_MAX {
                        return;
                    }
                    if !child.may_be_manifest {
                        self.fetch_if_missing(name, child);
                        continue;
                    }
                    match self.manifests.fetch_by_digest(name, &child.digest) {
                        Ok(_) => self.complete_below(name, &child.digest, wanted, depth + 1, seen),
                        Err(error) => error.log(&format!("{name}@{}", child.digest)),
                    }
                }
            }
            ManifestKind::Index { .. } => {}
        }
    }

    /// Fetches a blob in the background unless it is in the store.
    pub(super) fn fetch_if_missing(&self, name: &ImageName, blob: &Descriptor) {
        if self.core.store.blob(&blob.digest, blob.known_size()).is_none() {
            self.blobs.fetch_in_background(name, &blob.digest, blob.known_size(), None);
        }
    }

    /// Fetches the manifests that refer to a manifest, directly or by way of others: by the referrers API,
    /// and by the tags that tools use where there is none. Blocks; what cannot be had is passed over.
    pub(super) fn fetch_referrers(&self, name: &ImageName, digest: &Digest) -> Vec<Digest> {
        let mut found = Vec::new();
        self.collect_referrers(name, digest, 0, &mut found);
        found
    }

    fn collect_referrers(
        &self,
        name: &ImageName,
        digest: &Digest,
        depth: usize,
        found: &mut Vec<Digest>,
    ) {
        if depth >= DEPTH_MAX || self.core.is_offline() || self.core.metadata_fetchers.is_closed() {
            return;
        }
        let listed = self.listed_referrers(name, digest);
        let by_digest = listed
            .iter()
            .take(REFERRERS_MAX)
            .map(|referrer| self.manifests.fetch_by_digest(name, referrer));
        let companions = Tag::COSIGN_SUFFIXES.into_iter().filter_map(|suffix| {
            let tag = Tag::of_digest(digest, suffix)?;
            Some(self.manifests.fetch_by_tag(name, &tag))
        });
        // Both are lazy: what is beyond the bound is not fetched.
        for fetched in by_digest.chain(companions) {
            match fetched {
                Ok(content) if !found.contains(content.digest()) => {
                    found.push(*content.digest());
                    self.collect_referrers(name, content.digest(), depth + 1, found);
                }
                Ok(_) => {}
                Err(error) => log::debug!("{name}@{digest}: a referrer: {error}"),
            }
            if found.len() >= REFERRERS_MAX || self.core.metadata_fetchers.is_closed() {
                return;
            }
        }
    }
}

impl Prefetcher {
    /// The referrers that the registry lists, page by page, as far as they are fetched.
    fn listed_referrers(&self, name: &ImageName, digest: &Digest) -> Vec<Digest> {
        let (mut listed, mut query) = (Vec::new(), String::new());
        // Each page lists something, or there would be no end.
        for _ in 0..REFERRERS_MAX {
            let question = ListQuestion::Referrers { digest: *digest, query };
            let page = match self.lists.fetch_list(name, &question) {
                Ok(page) => page,
                Err(error) => {
                    log::debug!("{name}@{digest}: referrers: {error}");
                    break;
                }
            };
            listed.extend(referrers_in(&page.body.read().unwrap_or_default()));
            match page.next {
                Some(next) if listed.len() < REFERRERS_MAX => query = next,
                _ => break,
            }
        }
        listed
    }

    /// Whether the referrers of a manifest were fetched as lately as a tag is believed: they change as tags do.
    fn knows_referrers(&self, name: &ImageName, digest: &Digest) -> bool {
        let fetched = lock(&self.referrers_fetched).get(&(name.clone(), *digest)).copied();
        // Where there is no referrers API, they are listed under this very tag.
        let tag = Tag::of_digest(digest, "");
        fetched.zip(tag).is_some_and(|(fetched, tag)| {
            self.core.settings().freshness.is_fresh(name, &tag, fetched, self.core.now())
        })
    }

    /// Notes that they were fetched, unless the registry could not be asked for all of them.
    fn note_referrers(&self, name: &ImageName, digest: &Digest) {
        let now = self.core.now();
        if !self.core.is_offline() && !self.core.negative.is_troubled(&name.upstream, now) {
            lock(&self.referrers_fetched).insert((name.clone(), *digest), now);
        }
    }
}

/// The manifests in an answer of the referrers API, which is an index.
fn referrers_in(body: &[u8]) -> Vec<Digest> {
    let parsed = Manifest::parse(body, None);
    parsed.iter().flat_map(Manifest::descriptors).map(|each| each.digest).collect()
}
