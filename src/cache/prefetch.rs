//! Completes images: fetches the content that a served manifest refers to before a client requests it.
//!
//! An image that was pulled once can then be pulled without the network, even if the first client already had some of
//! its layers. The work is done in the background, by fetchers that clients do not need. Each blob has one flight as
//! usual, which clients join.
//!
//! When it starts is decided elsewhere: after GET of a manifest, on request, and after HEAD by `completion`.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use super::blobs::BlobCache;
use super::bounded::BoundedCache;
use super::core::Core;
use super::lists::{ListCache, ListQuestion};
use super::manifests::ManifestCache;
use super::requested::{PullState, RequestedPulls};
use super::scheduler::Length;
use super::{CacheError, SIZES_REMEMBERED, lock};
use crate::client_address::ClientAddress;
use crate::oci::{
    Descriptor, Digest, ImageName, Manifest, ManifestKind, Platform, Platforms, Reference, Tag,
};
use crate::store::Access;

/// An image is checked at most this often, since every node of a cluster requests its manifest.
const COMPLETED_EVERY: Duration = Duration::from_secs(60);
/// How many referrers of an image are fetched; more than signers and scanners attach.
const REFERRERS_MAX: usize = 64;
/// How many manifests of one image are fetched; more than the platforms of any index. An index of indexes can refer to
/// any number.
const MANIFESTS_MAX: usize = 1024;
/// The maximum depth of nested indexes, and of referrers of referrers.
const DEPTH_MAX: usize = 4;

/// Which parts of an image are fetched before a client requests them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefetch {
    /// The config and layers of served image manifests.
    pub blobs: bool,
    /// The children of served indexes, with their configs and layers.
    pub platforms: Platforms,
    /// Signatures, attestations and SBOMs that refer to served manifests.
    pub referrers: bool,
    /// Which HEAD requests for a manifest complete its image.
    pub on_head: PrefetchOnHead,
    /// The platform that is fetched of an index that nodes have checked with HEAD, if nothing is known about them and
    /// no image of the index is cached.
    pub default_platform: Platform,
}

/// Which clients' HEAD requests complete an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrefetchOnHead {
    /// Those of container runtimes, by their `User-Agent`: they send HEAD for images that they run.
    Runtimes,
    /// Those of all clients.
    Always,
    /// None.
    Never,
}

impl Default for Prefetch {
    fn default() -> Self {
        Prefetch {
            blobs: true,
            platforms: Platforms::NONE,
            referrers: false,
            on_head: PrefetchOnHead::Runtimes,
            default_platform: Platform::of_this_machine(),
        }
    }
}

/// The content that an image lacks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Missing {
    pub(super) manifests: Vec<Digest>,
    /// The blobs of the manifests that are cached.
    pub(super) blobs: Vec<Descriptor>,
}

impl Missing {
    pub(super) fn is_nothing(&self) -> bool {
        self.manifests.is_empty() && self.blobs.is_empty()
    }
}

/// The children of an index to complete.
pub(super) struct Wanted {
    platforms: Platforms,
    /// Whether attestations belong to their images. A client that runs an image does not need them, and each counts as
    /// a pull.
    with_attestations: bool,
}

impl Wanted {
    pub(super) fn with_attestations(platforms: Platforms) -> Wanted {
        Wanted { platforms, with_attestations: true }
    }
}

/// A part of an image.
enum Part<'a> {
    Blob(&'a Descriptor),
    Manifest(&'a Digest),
}

/// Whether a visit continues.
enum Visit {
    Continue,
    Stop,
}

/// Completes images in the background.
pub(super) struct Prefetcher {
    core: Arc<Core>,
    manifests: Arc<ManifestCache>,
    blobs: Arc<BlobCache>,
    lists: Arc<ListCache>,
    /// When images were last completed. Locked for a lookup or an insertion only, as is the next table.
    completed: Mutex<BoundedCache<(ImageName, Digest), SystemTime>>,
    /// When clients last requested manifests with GET.
    pulled: Mutex<BoundedCache<(ImageName, Digest), SystemTime>>,
    /// When the referrers of images were fetched.
    referrers_fetched: Mutex<BoundedCache<(ImageName, Digest), SystemTime>>,
    pub(super) requested: RequestedPulls,
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
            pulled: Mutex::new(BoundedCache::new(SIZES_REMEMBERED)),
            referrers_fetched: Mutex::new(BoundedCache::new(SIZES_REMEMBERED)),
            requested: RequestedPulls::default(),
        }
    }

    /// Forgets which images were completed, because the settings have changed.
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
        let image = name.with(reference);
        let (service, name, reference) = (Arc::clone(self), name.clone(), reference.clone());
        self.requested.note(&image, PullState::Queued, self.core.now(), None);
        let queued_image = image.clone();
        let is_queued =
            self.core.metadata_fetchers.submit_in_background(purpose, Length::Short, move || {
                let (requested, core) = (&service.requested, &service.core);
                requested.note(&image, PullState::Fetching, core.now(), None);
                let fetched = match &reference {
                    Reference::Tag(tag) => service.manifests.fetch_by_tag(&name, tag),
                    Reference::Digest(digest) => service.manifests.fetch_by_digest(&name, digest),
                };
                match fetched {
                    Ok(content) => {
                        let wanted = Wanted::with_attestations(platforms);
                        service.complete(&name, content.digest(), &wanted);
                        requested.note(&image, PullState::Found, core.now(), None);
                    }
                    Err(error) => {
                        log::warn!(image = image.as_str(), error:%; "prefetch failed");
                        let reason = Some(error.to_string());
                        requested.note(&image, PullState::Failed, core.now(), reason);
                    }
                }
            });
        if !is_queued {
            let reason = Some(CacheError::GivenUp.to_string());
            self.requested.note(&queued_image, PullState::Failed, self.core.now(), reason);
            return Err(CacheError::GivenUp);
        }
        Ok(())
    }

    /// Completes an image whose manifest was served, in the background. Returns whether it begins now.
    pub(super) fn complete_later(
        self: &Arc<Self>,
        name: &ImageName,
        digest: &Digest,
        client: Option<ClientAddress>,
    ) -> bool {
        if !self.core.settings().prefetch.blobs
            || self.core.is_offline()
            || !self.core.store.is_writable()
        {
            return false;
        }
        let (key, now) = ((name.clone(), *digest), self.core.now());
        lock(&self.pulled).insert(key.clone(), now);
        {
            let mut checked = lock(&self.completed);
            let last = checked.get(&key).copied();
            let is_young = |last| now.duration_since(last).is_ok_and(|age| age < COMPLETED_EVERY);
            if last.is_some_and(is_young) {
                return false;
            }
            checked.insert(key, now);
        }
        let Ok(purpose) = self.core.purpose(name, client) else { return false };
        let (service, name, digest) = (Arc::clone(self), name.clone(), *digest);
        self.core.metadata_fetchers.submit_in_background(purpose, Length::Short, move || {
            let wanted = service.core.settings().prefetch.platforms.clone();
            let wanted = Wanted::with_attestations(wanted);
            service.complete(&name, &digest, &wanted);
            if service.core.settings().prefetch.referrers
                && !service.knows_referrers(&name, &digest)
            {
                for referrer in service.fetch_referrers(&name, &digest) {
                    service.complete(&name, &referrer, &wanted);
                }
                service.note_referrers(&name, &digest);
            }
        })
    }

    /// Whether a client has requested this manifest with GET since then.
    pub(super) fn was_pulled_since(
        &self,
        name: &ImageName,
        digest: &Digest,
        since: SystemTime,
    ) -> bool {
        let pulled = lock(&self.pulled).get(&(name.clone(), *digest)).copied();
        pulled.is_some_and(|pulled| pulled >= since)
    }

    /// Fetches the missing content of a stored manifest; of an index, for the wanted platforms.
    pub(super) fn complete(&self, name: &ImageName, digest: &Digest, wanted: &Wanted) {
        self.complete_below(name, digest, wanted, 0, &mut HashSet::new());
    }

    /// `seen` contains the visited manifests: an index may refer to the same one any number of times.
    fn complete_below(
        &self,
        name: &ImageName,
        digest: &Digest,
        wanted: &Wanted,
        depth: usize,
        seen: &mut HashSet<Digest>,
    ) {
        self.visit(name, digest, wanted, depth, seen, &mut |part| match part {
            Part::Blob(blob) => {
                self.fetch_if_missing(name, blob);
                Visit::Continue
            }
            Part::Manifest(digest) => {
                if self.core.is_offline() || self.core.metadata_fetchers.is_closed() {
                    return Visit::Stop;
                }
                if let Err(error) = self.manifests.fetch_by_digest(name, digest) {
                    error.log_manifest(&format!("{name}@{digest}"), false);
                }
                Visit::Continue
            }
        });
    }

    /// The missing content of a manifest; of an index, for the wanted platforms. Makes no requests.
    pub(super) fn missing(&self, name: &ImageName, digest: &Digest, wanted: &Wanted) -> Missing {
        let mut missing = Missing::default();
        let store = &self.core.store;
        if store.manifest(name, digest, Access::Look).is_none() {
            missing.manifests.push(*digest);
        }
        self.visit(name, digest, wanted, 0, &mut HashSet::new(), &mut |part| {
            match part {
                Part::Blob(blob) if store.blob(&blob.digest, blob.known_size()).is_none() => {
                    missing.blobs.push(blob.clone());
                }
                Part::Manifest(digest) if store.manifest(name, digest, Access::Look).is_none() => {
                    missing.manifests.push(*digest);
                }
                _ => {}
            }
            Visit::Continue
        });
        missing
    }

    /// The platforms of an image that nodes have checked with HEAD: those in the configuration and those that the nodes
    /// report. If there are none, the cached ones of the index; if none is cached, the default platform.
    pub(super) fn wanted(&self, name: &ImageName, digest: &Digest, nodes: &[Platform]) -> Wanted {
        let settings = self.core.settings();
        let Platforms::Only(configured) = &settings.prefetch.platforms else {
            return Wanted::with_attestations(Platforms::All);
        };
        if !configured.is_empty() {
            let known = configured.iter().chain(nodes).cloned().collect();
            return Wanted::with_attestations(Platforms::Only(known));
        }
        let platforms = self.platforms_of_nodes(name, digest, nodes);
        Wanted { platforms: Platforms::Only(platforms), with_attestations: false }
    }

    fn platforms_of_nodes(
        &self,
        name: &ImageName,
        digest: &Digest,
        nodes: &[Platform],
    ) -> Vec<Platform> {
        let manifest = self.manifests.parsed(name, digest);
        let Some(ManifestKind::Index { manifests }) = manifest.as_ref().map(Manifest::kind) else {
            return nodes.to_vec();
        };
        let is_cached = |child: &&Descriptor| {
            self.core.store.manifest(name, &child.digest, Access::Look).is_some()
        };
        let images = manifests.iter().filter(|child| child.attests.is_none());
        let platform = |child: &Descriptor| child.platform.as_ref()?.parse::<Platform>().ok();
        let cached = images.clone().filter(is_cached).filter_map(platform);
        let is_listed = |node: &Platform| {
            images.clone().any(|child| child.platform.as_ref().is_some_and(|it| node.runs(it)))
        };
        let known: Vec<Platform> =
            nodes.iter().filter(|node| is_listed(node)).cloned().chain(cached).collect();
        if !known.is_empty() {
            return known;
        }
        let default = self.core.settings().prefetch.default_platform.clone();
        // If the index does not list it, the nodes have another platform, most likely the first. If the index lists
        // none, all of its children match any platform.
        let first = images.clone().find_map(platform).filter(|_| !is_listed(&default));
        vec![first.unwrap_or(default)]
    }

    /// Visits the content of a stored manifest: its blobs, or the selected children of an index and what they refer
    /// to. A child is read after its own visit, which may have fetched it.
    fn visit(
        &self,
        name: &ImageName,
        digest: &Digest,
        wanted: &Wanted,
        depth: usize,
        seen: &mut HashSet<Digest>,
        each: &mut dyn FnMut(Part<'_>) -> Visit,
    ) {
        if !seen.insert(*digest) {
            return;
        }
        let Some(manifest) = self.manifests.parsed(name, digest) else { return };
        let children = match manifest.kind() {
            ManifestKind::Image { .. } => {
                // Foreign layers come from other servers. They are fetched only if a client requests them.
                for blob in manifest.descriptors().filter(|blob| !blob.is_foreign) {
                    each(Part::Blob(blob));
                }
                return;
            }
            ManifestKind::Index { manifests } if depth < DEPTH_MAX => {
                let mut listed = HashSet::new();
                let mut children = wanted.platforms.select(manifests);
                children.retain(|child| wanted.with_attestations || child.attests.is_none());
                children.retain(|child| listed.insert(child.digest));
                children.into_iter().take(MANIFESTS_MAX).cloned().collect::<Vec<_>>()
            }
            ManifestKind::Index { .. } => return,
        };
        // The rest of a large index is not needed while the registry responds.
        drop(manifest);
        for child in children {
            if seen.len() >= MANIFESTS_MAX {
                return;
            }
            if !child.may_be_manifest {
                each(Part::Blob(&child));
                continue;
            }
            if matches!(each(Part::Manifest(&child.digest)), Visit::Stop) {
                return;
            }
            self.visit(name, &child.digest, wanted, depth + 1, seen, each);
        }
    }

    /// Fetches a blob in the background unless it is in the store.
    pub(super) fn fetch_if_missing(&self, name: &ImageName, blob: &Descriptor) {
        if self.core.store.blob(&blob.digest, blob.known_size()).is_some() {
            return self.blobs.prove_link_later(name, &blob.digest);
        }
        self.blobs.fetch_in_background(name, &blob.digest, blob.known_size(), None);
    }

    /// As [`Cache::fetch_referrers`](super::Cache::fetch_referrers).
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
        // Both iterators are lazy: nothing is fetched beyond the limit.
        for fetched in by_digest.chain(companions) {
            match fetched {
                Ok(content) if !found.contains(content.digest()) => {
                    found.push(*content.digest());
                    self.collect_referrers(name, content.digest(), depth + 1, found);
                }
                Ok(_) => {}
                Err(error) => {
                    log::debug!(digest:%, repository:% = name, error:%; "a referrer failed")
                }
            }
            if found.len() >= REFERRERS_MAX || self.core.metadata_fetchers.is_closed() {
                return;
            }
        }
    }
}

impl Prefetcher {
    /// The referrers that the registry lists, page by page, up to the limit.
    fn listed_referrers(&self, name: &ImageName, digest: &Digest) -> Vec<Digest> {
        let (mut listed, mut query) = (Vec::new(), String::new());
        // The number of pages is limited: a registry could return empty pages forever.
        for _ in 0..REFERRERS_MAX {
            let question = ListQuestion::Referrers { digest: *digest, query };
            let page = match self.lists.fetch_list(name, &question) {
                Ok(page) => page,
                Err(error) => {
                    log::debug!(digest:%, repository:% = name, error:%; "cannot list referrers");
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

    /// Whether the referrers of a manifest were fetched recently. They change as tags do, so the TTL of tags applies.
    fn knows_referrers(&self, name: &ImageName, digest: &Digest) -> bool {
        let fetched = lock(&self.referrers_fetched).get(&(name.clone(), *digest)).copied();
        // Without the referrers API, this tag lists them.
        let tag = Tag::of_digest(digest, "");
        fetched.zip(tag).is_some_and(|(fetched, tag)| {
            self.core.settings().freshness.is_fresh(name, &tag, fetched, self.core.now())
        })
    }

    /// Records that the referrers were fetched, unless the registry may not have been reachable for all of them.
    fn note_referrers(&self, name: &ImageName, digest: &Digest) {
        let now = self.core.now();
        if !self.core.is_offline() && !self.core.negative.is_troubled(&name.upstream, now) {
            lock(&self.referrers_fetched).insert((name.clone(), *digest), now);
        }
    }
}

/// The manifests in a response of the referrers API, which is an index.
fn referrers_in(body: &[u8]) -> Vec<Digest> {
    let parsed = Manifest::parse(body, None);
    parsed.iter().flat_map(Manifest::descriptors).map(|each| each.digest).collect()
}
