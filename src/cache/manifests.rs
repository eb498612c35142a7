//! Manifests: by digest for ever, by tag as long as the freshness policy says.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::freshness::{Belief, OnUpstreamDelete};
use super::manifest_content::{Content, MEMORY_BYTES_MAX, ManifestAnswer, Payload};
use super::manifest_wait::ManifestWait;
use super::misses::Asked;
use super::{Cache, CacheError, How, Inner, lock};
use crate::flight::{Flights, Leader};
use crate::oci::{Digest, ImageName, Manifest, Reference, Tag};
use crate::store::{Access, ManifestRecord, StoreError, TagRecord};
use crate::upstream::{Source, UpstreamError};

/// How long a manifest in memory is believed without a look at the store, where another process may
/// have changed the tag or removed the image.
const HOT_AGE_MAX: Duration = Duration::from_secs(1);

type Key = (ImageName, Reference);
pub(super) type Outcome = Arc<Content>;
pub(super) type ManifestFlights = Flights<Key, (), Outcome, CacheError>;
type ManifestLeader = Leader<Key, (), Outcome, CacheError>;

/// A manifest in memory: the bytes of the store, for a second.
pub(super) struct HotManifest {
    content: Arc<Content>,
    believed_until: SystemTime,
}

/// What a lookup found.
pub enum ManifestLookup {
    /// The answer.
    Ready(ManifestAnswer),
    /// Upstream is being asked.
    Wait(ManifestWait),
}

impl Cache {
    /// The manifest of a tag or a digest. Does not wait for anything but the local disk.
    ///
    /// # Errors
    /// [`CacheError`] if it is known that there is none to be had.
    pub fn manifest(
        &self,
        name: &ImageName,
        reference: &Reference,
    ) -> Result<ManifestLookup, CacheError> {
        let inner = &self.inner;
        let now = inner.now();
        let key = (name.clone(), reference.clone());
        if let Some(content) = inner.hot(&key, now) {
            return Ok(ready(content, How::Hit));
        }
        let stored = match reference {
            Reference::Digest(digest) => inner.stored_manifest(name, digest, Access::Pull(now))?,
            Reference::Tag(tag) => inner.stored_tag(name, tag, Access::Pull(now))?,
        };
        let cached = match stored {
            Some(stored) => match stored.belief {
                Belief::Fresh(until) => {
                    inner.keep_hot(key, &stored.content, until, now);
                    return Ok(ready(stored.content, How::Hit));
                }
                _ if inner.is_offline() => return Ok(ready(stored.content, How::Hit)),
                Belief::Revalidate => {
                    self.revalidate(key, now);
                    return Ok(ready(stored.content, How::Stale));
                }
                Belief::Stale => Some(stored.content),
            },
            None => None,
        };
        if inner.is_offline() {
            return Err(CacheError::NotCached);
        }
        let asked = Asked::Manifest(name.clone(), reference.clone());
        let is_missing = inner.misses.is_missing(&asked, now);
        let held_back = inner.misses.held_back(&name.upstream, now);
        match (cached, held_back) {
            (Some(content), _) if is_missing || inner.misses.has_failed(&asked, now) => {
                Ok(ready(content, How::Stale))
            }
            (None, _) if is_missing => Err(CacheError::KnownMissing),
            (None, Some(wait)) => Err(CacheError::HeldBack { wait }),
            (cached, _) => match (self.ask_for_manifest(key, cached.clone()), cached) {
                (Err(_), Some(content)) => Ok(ready(content, How::Stale)),
                (asked, _) => Ok(ManifestLookup::Wait(asked?)),
            },
        }
    }

    /// Asks what a tag is, for the next client rather than for this one.
    fn revalidate(&self, key: Key, now: SystemTime) {
        if !self.inner.misses.has_failed(&Asked::Manifest(key.0.clone(), key.1.clone()), now) {
            self.fetch_manifest_in_background(key);
        }
    }

    /// Fetches a manifest that nobody waits for.
    pub(super) fn fetch_manifest_in_background(&self, key: Key) {
        let inner = Arc::clone(&self.inner);
        let Ok(purpose) = self.purpose(&key.0) else { return };
        self.inner.metadata_pool.submit_in_background(purpose, move || {
            let joined = inner.manifests.join(&key, || CacheError::GivenUp);
            if let Some(leader) = joined.leader {
                inner.fetch_manifest(leader);
            }
        });
    }

    fn ask_for_manifest(
        &self,
        key: Key,
        cached: Option<Arc<Content>>,
    ) -> Result<ManifestWait, CacheError> {
        let purpose = self.purpose(&key.0)?;
        let joined = self.inner.manifests.join(&key, || CacheError::GivenUp);
        let how = if joined.leader.is_some() { How::Miss } else { How::Join };
        if let Some(leader) = joined.leader {
            let inner = Arc::clone(&self.inner);
            let flight = Arc::clone(joined.flight.flight());
            let is_wanted = move || flight.has_followers();
            self.inner
                .metadata_pool
                .submit(purpose, is_wanted, move || inner.fetch_manifest(leader));
        }
        let (name, reference) = key;
        let (cache, flight) = (self.clone(), joined.flight);
        Ok(ManifestWait { cache, name, reference, flight, how, cached })
    }
}

fn ready(content: Arc<Content>, how: How) -> ManifestLookup {
    ManifestLookup::Ready(ManifestAnswer { content, how })
}

/// A manifest from the store, and whether it is believed.
pub(super) struct Stored {
    pub(super) content: Arc<Content>,
    belief: Belief,
}

impl Inner {
    fn hot(&self, key: &Key, now: SystemTime) -> Option<Arc<Content>> {
        let hot = lock(&self.hot);
        let entry = hot.get(key)?;
        // Both bounds: a clock that was set back must not keep it for ever.
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

    pub(super) fn stored_manifest(
        &self,
        name: &ImageName,
        digest: &Digest,
        access: Access,
    ) -> Result<Option<Stored>, CacheError> {
        let Some(record) = self.store.find_manifest(name, digest, access)? else { return Ok(None) };
        let content = self.read_content(name, *digest, record.media_type, record.size)?;
        Ok(content.map(|content| Stored { content, belief: Belief::Fresh(None) }))
    }

    fn stored_tag(
        &self,
        name: &ImageName,
        tag: &Tag,
        access: Access,
    ) -> Result<Option<Stored>, CacheError> {
        let Some(record) = self.store.find_tag(name, tag, access)? else { return Ok(None) };
        let content = self.read_content(name, record.digest, record.media_type, record.size)?;
        let settings = self.settings();
        let policy = &settings.freshness;
        let belief = policy.belief(name, tag, record.checked, self.now());
        Ok(content.map(|content| Stored { content, belief }))
    }

    /// The work of a manifest flight, on a fetcher.
    pub(super) fn fetch_manifest(&self, leader: ManifestLeader) {
        leader.begin();
        let (name, reference) = leader.key().clone();
        let result = match &reference {
            Reference::Digest(digest) => self.fetch_by_digest(&name, digest),
            // Who looked before a flight landed and joined after it is the next leader: that landing is its answer.
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
        let source = self.source(&name.upstream)?;
        let content = self.get_manifest(name, &*source, &Reference::Digest(*digest))?;
        self.point_told_tags(name, &content);
        Ok(content)
    }

    /// Asks what the tag is: by HEAD if the cache has something to compare, else by GET.
    pub(super) fn fetch_by_tag(
        &self,
        name: &ImageName,
        tag: &Tag,
    ) -> Result<Arc<Content>, CacheError> {
        let source = self.source(&name.upstream)?;
        let reference = Reference::Tag(tag.clone());
        let Some(record) = self.store.find_tag(name, tag, Access::Look)? else {
            let content = self.get_manifest(name, &*source, &reference)?;
            self.point_tag(name, tag, &content, None);
            return Ok(content);
        };
        let content = match source.resolve(&name.repository, tag) {
            Ok(Some(digest)) => self.get_resolved(name, &*source, &reference, &digest)?,
            Ok(None) => self.get_manifest(name, &*source, &reference)?,
            // Many registries and proxies do HEAD badly, so that only GET is a verdict.
            Err(error) if !error.is_trouble() || error.is_server_error() => {
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

    /// The manifest that HEAD has named for a tag. By its digest, so that what is stored is what HEAD named,
    /// even if the tag moves now. Some proxies name a digest under which they have nothing, or something
    /// else; what clients of theirs get is what GET of the tag says.
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
            Err(CacheError::Upstream(error)) if !error.is_trouble() => {
                log::debug!("{}: HEAD says {digest}: {error}", name.with(tag));
                self.get_manifest(name, source, tag)
            }
            other => other,
        }
    }

    /// Upstream has a tag no more that is here.
    fn deleted_upstream(&self, name: &ImageName, tag: &Tag, record: &TagRecord) -> CacheError {
        // An import, or another process, may have set it anew while upstream was asked.
        if self.store.tag(name, tag, Access::Look).as_ref() != Some(record) {
            return CacheError::KnownMissing;
        }
        let (noted, error) = match self.settings().freshness.on_upstream_delete {
            OnUpstreamDelete::Drop => {
                log::info!("{name}:{tag}: upstream has deleted it, and so it is forgotten here");
                (self.store.remove_tag(name, tag), CacheError::DeletedUpstream)
            }
            OnUpstreamDelete::Keep if record.gone.is_some() => (Ok(()), CacheError::KnownMissing),
            OnUpstreamDelete::Keep => {
                log::warn!("{name}:{tag}: upstream has deleted it; it is kept (onUpstreamDelete)");
                let gone = TagRecord { gone: Some(self.now()), ..record.clone() };
                (self.store.put_tag(name, tag, &gone), CacheError::KnownMissing)
            }
        };
        if let Err(error) = noted {
            log::warn!("{name}:{tag}: that upstream has deleted it cannot be noted: {error}");
        }
        error
    }

    fn get_manifest(
        &self,
        name: &ImageName,
        source: &dyn Source,
        reference: &Reference,
    ) -> Result<Arc<Content>, CacheError> {
        let fetched = source.manifest(&name.repository, reference);
        self.note(name, reference, &fetched);
        let (digest, manifest) = fetched?;
        self.metrics.fetched_bytes.inc_by(manifest.bytes().len() as u64);
        self.remember_sizes(name, &manifest);
        let kept = self.keep_manifest(name, &digest, &manifest);
        if let Err(error) = &kept {
            // The client can have it all the same: it is verified and in memory.
            self.metrics.not_cached("manifest");
            log::error!("{}: the manifest is served but not cached: {error}", name.with(reference));
        }
        let (media_type, size) = (manifest.media_type().clone(), manifest.bytes().len());
        if size > MEMORY_BYTES_MAX && kept.is_ok() {
            let size = size as u64;
            // It was verified as it was kept.
            if let Some(blob) = self.store.blob(&digest, Some(size)) {
                lock(&self.sizes_read).insert((name.clone(), digest), ());
                let payload = Payload::File { file: blob.file, size };
                return Ok(self.share(Content { digest, media_type, payload }));
            }
        }
        let payload = Payload::Memory(Arc::clone(manifest.bytes()));
        Ok(Arc::new(Content { digest, media_type, payload }))
    }

    /// Content before names: blob, then the repository's record of it.
    fn keep_manifest(
        &self,
        name: &ImageName,
        digest: &Digest,
        manifest: &Manifest,
    ) -> Result<(), CacheError> {
        if !self.store.is_writable() {
            return Err(StoreError::ReadOnly { root: self.store.root().to_owned() }.into());
        }
        let lock = self.store.commit_lock()?;
        self.store.ingest_bytes(digest, manifest.bytes())?;
        let record = ManifestRecord {
            media_type: manifest.media_type().clone(),
            size: manifest.bytes().len() as u64,
            fetched: self.now(),
        };
        Ok(self.store.put_manifest_under(&lock, name, digest, &record)?)
    }

    /// Writes what the tag is now, and that upstream has just confirmed it.
    pub(super) fn point_tag(
        &self,
        name: &ImageName,
        tag: &Tag,
        content: &Content,
        before: Option<&TagRecord>,
    ) {
        let size = content.size();
        if self.store.blob(&content.digest, Some(size)).is_none() {
            // The disk refused the manifest, which was said: a name without content helps nobody.
            return;
        }
        let now = self.now();
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
        if let Err(error) = self.store.put_tag(name, tag, &record) {
            log::error!("{name}:{tag} is served but its tag is not cached: {error}");
        }
    }

    fn note<T>(&self, name: &ImageName, reference: &Reference, result: &Result<T, UpstreamError>) {
        self.note_asked(name, Asked::Manifest(name.clone(), reference.clone()), result);
    }
}
