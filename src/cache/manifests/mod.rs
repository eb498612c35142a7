//! The service for manifests. Manifests by digest are always fresh, those by tag according to the freshness policy.
//!
//! This module must not know blob downloads, lists or prefetching, which are built on it.

mod content;
mod heads;
mod sizes;
mod wait;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, SystemTime};

use super::bounded::BoundedCache;
use super::core::Core;
use super::freshness::{Belief, OnUpstreamDelete};
use super::negative::Asked;
use super::{CacheError, How, SIZES_REMEMBERED, lock};
use crate::client_address::ClientAddress;
use crate::flight::{Flights, Leader};
use crate::oci::{Digest, ImageName, MediaType, Reference, Tag};
use crate::store::{Access, Document, ManifestRecord, StoreError, TagRecord};
use crate::upstream::{Source, UpstreamError};

use content::{Content, MEMORY_BYTES_MAX};

pub use content::ManifestAnswer;
pub use heads::{HeadAnswer, HeadLookup, HeadWait};
pub use wait::ManifestWait;

/// How long a manifest in memory is served without a check of the store, where another process may have changed the tag
/// or removed the image.
const HOT_AGE_MAX: Duration = Duration::from_secs(1);

/// How many manifests are kept in memory, for a second each.
const HOT_MANIFESTS: usize = 512;
/// How many large manifests are remembered whose sizes need not be read again.
const LARGE_MANIFESTS_REMEMBERED: usize = 4096;
type Key = (ImageName, Reference);
type Outcome = Arc<Content>;
type ManifestFlights = Flights<Key, (), Outcome, CacheError>;
type ManifestLeader = Leader<Key, (), Outcome, CacheError>;

/// A manifest in memory: the bytes of the store, for a second.
struct HotManifest {
    content: Arc<Content>,
    believed_until: SystemTime,
}

/// What a lookup found.
pub enum ManifestLookup {
    /// The manifest.
    Ready(ManifestAnswer),
    /// A flight is under way.
    Wait(ManifestWait),
}

/// Looks up and fetches manifests.
pub(super) struct ManifestCache {
    core: Arc<Core>,
    pub(super) flights: ManifestFlights,
    head_flights: heads::HeadFlights,
    /// Manifests in memory. Locked for a lookup or an insertion only, as are the tables below.
    hot: Mutex<BoundedCache<Key, HotManifest>>,
    /// Large manifests that are being sent: clients that request one meanwhile share its file, so that slow readers
    /// do not hold a copy each.
    in_use: Mutex<HashMap<Digest, Weak<Content>>>,
    /// HEAD responses for tags that are not cached.
    heads_by_tag: Mutex<BoundedCache<(ImageName, Tag), heads::KnownHead>>,
    /// The same by digest, until a manifest with that digest is cached.
    tags_by_digest: Mutex<BoundedCache<(ImageName, Digest), heads::TagsOfDigest>>,
    /// The blob sizes that manifests state, for the repository of each manifest.
    sizes_from_manifests: Arc<sizes::Sizes>,
    /// Large manifests whose sizes are in that table, as far as it is remembered.
    sizes_read: Mutex<BoundedCache<(ImageName, Digest), ()>>,
    /// Repositories whose cached manifests were read for the sizes of their blobs.
    learned: Mutex<BoundedCache<ImageName, ()>>,
}

impl ManifestCache {
    pub(super) fn new(core: Arc<Core>) -> ManifestCache {
        ManifestCache {
            core,
            flights: Flights::new(),
            head_flights: Flights::new(),
            hot: Mutex::new(BoundedCache::new(HOT_MANIFESTS)),
            in_use: Mutex::default(),
            heads_by_tag: Mutex::new(BoundedCache::new(heads::HEADS_REMEMBERED)),
            tags_by_digest: Mutex::new(BoundedCache::new(heads::HEADS_REMEMBERED)),
            sizes_from_manifests: Arc::new(Mutex::new(BoundedCache::new(SIZES_REMEMBERED))),
            sizes_read: Mutex::new(BoundedCache::new(LARGE_MANIFESTS_REMEMBERED)),
            learned: Mutex::new(BoundedCache::new(SIZES_REMEMBERED)),
        }
    }

    /// How many requests for manifests are under way.
    pub(super) fn flights(&self) -> usize {
        self.flights.len()
    }

    /// Whether a client waits for a manifest, or for that of a tag.
    pub(super) fn is_being_fetched(
        &self,
        name: &ImageName,
        reference: &Reference,
        digest: &Digest,
    ) -> bool {
        let is_flying =
            |reference: Reference| self.flights.peek(&(name.clone(), reference)).is_some();
        is_flying(reference.clone()) || is_flying(Reference::Digest(*digest))
    }

    /// Removes the manifests from memory, because the store or the freshness policy has changed.
    pub(super) fn forget_hot(&self) {
        lock(&self.hot).clear();
    }
}

impl ManifestCache {
    /// The manifest of a tag or a digest. Does not wait for anything but the local disk.
    ///
    /// # Errors
    /// [`CacheError`] if it is known that the manifest is not available.
    pub(super) fn find(
        self: &Arc<Self>,
        name: &ImageName,
        reference: &Reference,
        client: Option<ClientAddress>,
    ) -> Result<ManifestLookup, CacheError> {
        let now = self.core.now();
        let key = (name.clone(), reference.clone());
        if let Some(content) = self.hot(&key, now) {
            return Ok(ready(content, How::Hit));
        }
        let stored = match reference {
            Reference::Digest(digest) => self.stored_manifest(name, digest, Access::Pull(now))?,
            Reference::Tag(tag) => self.stored_tag(name, tag, Access::Pull(now))?,
        };
        let cached = match stored {
            Some(stored) => match stored.belief {
                Belief::Fresh(until) => {
                    self.keep_hot(key, &stored.content, until, now);
                    return Ok(ready(stored.content, How::Hit));
                }
                _ if self.core.is_offline() => return Ok(ready(stored.content, How::Hit)),
                Belief::Revalidate => {
                    self.revalidate(key, client, now);
                    return Ok(ready(stored.content, How::Stale));
                }
                Belief::Stale => Some(stored.content),
            },
            None => None,
        };
        if self.core.is_offline() {
            return Err(CacheError::NotCached);
        }
        let asked = Asked::Manifest(name.clone(), reference.clone());
        let is_missing = self.core.negative.is_missing(&asked, now);
        let backoff = self.core.negative.backoff(name, now);
        match (cached, backoff) {
            (Some(content), Some(_)) => Ok(ready(content, How::Stale)),
            (Some(content), None) if is_missing || self.core.negative.has_failed(&asked, now) => {
                Ok(ready(content, How::Stale))
            }
            (None, _) if is_missing => Err(CacheError::KnownMissing),
            (None, Some(wait)) => Err(CacheError::BackingOff { wait }),
            (cached, _) => match (self.ask_for_manifest(key, client, cached.clone()), cached) {
                (Err(_), Some(content)) => Ok(ready(content, How::Stale)),
                (asked, _) => Ok(ManifestLookup::Wait(asked?)),
            },
        }
    }

    /// Revalidates a tag in the background, for the next client.
    fn revalidate(self: &Arc<Self>, key: Key, client: Option<ClientAddress>, now: SystemTime) {
        let asked = Asked::Manifest(key.0.clone(), key.1.clone());
        let negative = &self.core.negative;
        if !negative.has_failed(&asked, now) && negative.backoff(&key.0, now).is_none() {
            self.fetch_in_background(key, client);
        }
    }

    /// Fetches a manifest in the background.
    pub(super) fn fetch_in_background(self: &Arc<Self>, key: Key, client: Option<ClientAddress>) {
        let service = Arc::clone(self);
        let Ok(purpose) = self.core.purpose(&key.0, client) else { return };
        self.core.metadata_fetchers.submit_in_background(purpose, move || {
            let joined = service.flights.join(&key, || CacheError::GivenUp);
            if let Some(leader) = joined.leader {
                leader.begin();
                service.fetch_manifest(leader);
            }
        });
    }

    fn ask_for_manifest(
        self: &Arc<Self>,
        key: Key,
        client: Option<ClientAddress>,
        cached: Option<Arc<Content>>,
    ) -> Result<ManifestWait, CacheError> {
        let purpose = self.core.purpose(&key.0, client)?;
        let joined = self.flights.join(&key, || CacheError::GivenUp);
        let service = Arc::clone(self);
        let work = move |leader| service.fetch_manifest(leader);
        let (flight, how) = self.core.run_metadata_flight(joined, purpose, work);
        let (name, reference) = key;
        let core = Arc::clone(&self.core);
        Ok(ManifestWait { core, name, reference, flight, how, cached })
    }
}

fn ready(content: Arc<Content>, how: How) -> ManifestLookup {
    ManifestLookup::Ready(ManifestAnswer { content, how })
}

/// A manifest from the store, and whether it is fresh.
struct Stored {
    content: Arc<Content>,
    belief: Belief,
}

impl ManifestCache {
    fn hot(&self, key: &Key, now: SystemTime) -> Option<Arc<Content>> {
        let hot = lock(&self.hot);
        let entry = hot.get(key)?;
        // The second condition applies if the clock was set back, so that the entry does not last forever.
        let is_believed = now < entry.believed_until
            && entry.believed_until.duration_since(now).is_ok_and(|left| left <= HOT_AGE_MAX);
        is_believed.then(|| Arc::clone(&entry.content))
    }

    fn keep_hot(
        &self,
        key: Key,
        content: &Arc<Content>,
        fresh_until: Option<SystemTime>,
        now: SystemTime,
    ) {
        if content.size() > MEMORY_BYTES_MAX as u64 {
            return;
        }
        let soon = now + HOT_AGE_MAX;
        let believed_until = fresh_until.map_or(soon, |until| until.min(soon));
        let entry = HotManifest { content: Arc::clone(content), believed_until };
        lock(&self.hot).insert(key, entry);
    }

    fn stored_manifest(
        &self,
        name: &ImageName,
        digest: &Digest,
        access: Access,
    ) -> Result<Option<Stored>, CacheError> {
        let Some(record) = self.core.store.find_manifest(name, digest, access)? else {
            return Ok(None);
        };
        let content = self.read_content(name, *digest, record.media_type, record.size)?;
        Ok(content.map(|content| Stored { content, belief: Belief::Fresh(None) }))
    }

    fn stored_tag(
        &self,
        name: &ImageName,
        tag: &Tag,
        access: Access,
    ) -> Result<Option<Stored>, CacheError> {
        let Some(record) = self.core.store.find_tag(name, tag, access)? else { return Ok(None) };
        let content = self.read_content(name, record.digest, record.media_type, record.size)?;
        let settings = self.core.settings();
        let policy = &settings.freshness;
        let belief = policy.belief(name, tag, record.checked, self.core.now());
        Ok(content.map(|content| Stored { content, belief }))
    }

    /// The work of a manifest flight, on a fetcher.
    pub(super) fn fetch_manifest(&self, leader: ManifestLeader) {
        let (name, reference) = leader.key().clone();
        let result = match &reference {
            Reference::Digest(digest) => self.fetch_by_digest(&name, digest),
            // A request that looked up the tag before a flight ended, and joined after it, leads the next flight. Then
            // the store has the manifest already.
            Reference::Tag(tag) => match self.stored_tag(&name, tag, Access::Look) {
                Ok(Some(stored)) if matches!(stored.belief, Belief::Fresh(_)) => Ok(stored.content),
                Ok(_) => self.fetch_by_tag(&name, tag),
                Err(error) => Err(error),
            },
        };
        match &result {
            Ok(content) => {
                lock(&self.hot).remove(leader.key());
                log::debug!("{}: {}", name.with(&reference), content.digest);
            }
            Err(error) => error.log(&name.with(&reference)),
        }
        leader.finish(result);
    }

    pub(super) fn fetch_by_digest(
        &self,
        name: &ImageName,
        digest: &Digest,
    ) -> Result<Arc<Content>, CacheError> {
        if let Some(stored) = self.stored_manifest(name, digest, Access::Look)? {
            return Ok(stored.content);
        }
        let source = self.core.source(&name.upstream)?;
        let content = self.get_manifest(name, &*source, &Reference::Digest(*digest))?;
        self.write_tags_known_from_head(name, &content);
        Ok(content)
    }

    /// Resolves the tag with HEAD if it is cached, or else fetches the manifest with GET.
    pub(super) fn fetch_by_tag(
        &self,
        name: &ImageName,
        tag: &Tag,
    ) -> Result<Arc<Content>, CacheError> {
        let source = self.core.source(&name.upstream)?;
        let reference = Reference::Tag(tag.clone());
        let Some(record) = self.core.store.find_tag(name, tag, Access::Look)? else {
            let content = self.get_manifest(name, &*source, &reference)?;
            self.point_tag(name, tag, &content, None);
            return Ok(content);
        };
        let content = match source.resolve(&name.repository, tag) {
            Ok(Some(digest)) => self.get_resolved(name, &*source, &reference, &digest)?,
            Ok(None) => self.get_manifest(name, &*source, &reference)?,
            // Many registries and proxies do not support HEAD well, so only the response to GET counts.
            Err(error) if error.may_be_about_head() => {
                match self.get_manifest(name, &*source, &reference) {
                    Err(CacheError::Upstream(error)) if error.is_certainly_not_found() => {
                        return Err(self.deleted_upstream(name, tag, &record));
                    }
                    other => other?,
                }
            }
            Err(error) => {
                self.note(name, &reference, &Err::<(), _>(error.clone()));
                return Err(error.into());
            }
        };
        self.point_tag(name, tag, &content, Some(&record));
        Ok(content)
    }

    /// Fetches the manifest that HEAD reported for a tag. By digest, so that the stored manifest is the reported one,
    /// even if the tag moves meanwhile. Some proxies report a digest under which they have nothing or other content;
    /// then the manifest is fetched by tag, as their clients do.
    fn get_resolved(
        &self,
        name: &ImageName,
        source: &dyn Source,
        tag: &Reference,
        digest: &Digest,
    ) -> Result<Arc<Content>, CacheError> {
        if let Some(stored) = self.stored_manifest(name, digest, Access::Look)? {
            self.note::<()>(name, tag, &Ok(()));
            return Ok(stored.content);
        }
        match self.get_manifest(name, source, &Reference::Digest(*digest)) {
            Err(CacheError::Upstream(error)) if error.may_be_about_head() => {
                log::debug!("{}: HEAD says {digest}: {error}", name.with(tag));
                self.get_manifest(name, source, tag)
            }
            other => other,
        }
    }

    /// Handles a cached tag that the registry has deleted.
    fn deleted_upstream(&self, name: &ImageName, tag: &Tag, record: &TagRecord) -> CacheError {
        // An import, or another process, may have written the tag during the request.
        if self.core.store.tag(name, tag, Access::Look).as_ref() != Some(record) {
            return CacheError::KnownMissing;
        }
        let (noted, error) = match self.core.settings().freshness.on_upstream_delete {
            OnUpstreamDelete::Drop => {
                log::info!(
                    "{name}:{tag}: upstream has deleted it; it is removed (onUpstreamDelete)"
                );
                (self.core.store.remove_tag(name, tag), CacheError::DeletedUpstream)
            }
            OnUpstreamDelete::Keep if record.gone.is_some() => (Ok(()), CacheError::KnownMissing),
            OnUpstreamDelete::Keep => {
                log::warn!("{name}:{tag}: upstream has deleted it; it is kept (onUpstreamDelete)");
                let gone = TagRecord { gone: Some(self.core.now()), ..record.clone() };
                (self.core.store.put_tag(name, tag, &gone), CacheError::KnownMissing)
            }
        };
        if let Err(error) = noted {
            log::warn!("{name}:{tag}: cannot record that upstream has deleted it: {error}");
        }
        error
    }

    fn get_manifest(
        &self,
        name: &ImageName,
        source: &dyn Source,
        reference: &Reference,
    ) -> Result<Arc<Content>, CacheError> {
        let mut writer = self.core.store.manifest_writer();
        let fetched = source.manifest(&name.repository, reference, &mut writer);
        self.note(name, reference, &fetched);
        let (digest, manifest) = fetched?;
        let body = writer.finish().ok_or(CacheError::NoRoomForDocument)?;
        self.core.metrics.fetched_bytes.inc_by(body.length());
        self.remember_sizes(name, &manifest);
        let media_type = manifest.media_type().clone();
        // Thousands of descriptors are not needed while the disk works.
        drop(manifest);
        let kept = self.keep_manifest(name, &digest, &media_type, &body);
        if let Err(error) = &kept {
            // The client still receives it: it is verified.
            self.core.metrics.not_cached("manifest");
            log::error!("{}: the manifest is served but not cached: {error}", name.with(reference));
        }
        let size = body.length();
        if size > MEMORY_BYTES_MAX as u64 && kept.is_ok() {
            // It was verified when it was stored.
            if let Some(blob) = self.core.store.blob(&digest, Some(size)) {
                lock(&self.sizes_read).insert((name.clone(), digest), ());
                let body = Document::File { file: blob.file, range: 0..size };
                return Ok(self.share(Content { digest, media_type, body }));
            }
        }
        Ok(Arc::new(Content { digest, media_type, body }))
    }

    /// Stores content before names: first the blob, then the repository's record of it.
    fn keep_manifest(
        &self,
        name: &ImageName,
        digest: &Digest,
        media_type: &MediaType,
        body: &Document,
    ) -> Result<(), CacheError> {
        if !self.core.store.is_writable() {
            return Err(StoreError::ReadOnly { root: self.core.store.root().to_owned() }.into());
        }
        let lock = self.core.store.commit_lock()?;
        self.core.store.ingest_document(digest, body)?;
        let record = ManifestRecord {
            media_type: media_type.clone(),
            size: body.length(),
            fetched: self.core.now(),
        };
        Ok(self.core.store.put_manifest_under(&lock, name, digest, &record)?)
    }

    /// Writes the tag, with the current time as the time of its confirmation.
    fn point_tag(
        &self,
        name: &ImageName,
        tag: &Tag,
        content: &Content,
        before: Option<&TagRecord>,
    ) {
        let size = content.size();
        if self.core.store.blob(&content.digest, Some(size)).is_none() {
            // The manifest could not be stored, which was logged. A tag without its content is useless.
            return;
        }
        let now = self.core.now();
        let fetched = match before {
            Some(before) if before.digest == content.digest => before.fetched,
            _ => now,
        };
        let record = TagRecord {
            digest: content.digest,
            media_type: content.media_type.clone(),
            size,
            fetched,
            checked: now,
            gone: None,
        };
        if let Err(error) = self.core.store.put_tag(name, tag, &record) {
            log::error!("{name}:{tag} is served but its tag is not cached: {error}");
        }
    }

    fn note<T>(&self, name: &ImageName, reference: &Reference, result: &Result<T, UpstreamError>) {
        self.core.note_outcome(name, Asked::Manifest(name.clone(), reference.clone()), result);
    }
}
