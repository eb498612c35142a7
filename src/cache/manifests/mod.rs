//! The service for manifests. Manifests by digest are always fresh, those by tag according to the freshness policy.
//!
//! This module must not know blob downloads, lists or prefetching, which are built on it.

mod content;
mod elsewhere;
mod fetch;
mod heads;
mod hold;
mod pending;
mod sizes;
mod wait;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, SystemTime};

use super::bounded::BoundedCache;
use super::core::Core;
use super::freshness::Belief;
use super::negative::Asked;
use super::poller::Poller;
use super::scheduler::Length;
use super::{CacheError, How, SIZES_REMEMBERED, Why, lock};
use crate::client_address::ClientAddress;
use crate::flight::{Flights, Leader};
use crate::oci::{Digest, ImageName, Manifest, Reference, Tag};
use crate::store::Access;

use content::{Checked, Content, Found, MEMORY_BYTES_MAX};
use elsewhere::Awaited;
use pending::PendingTable;

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
type ManifestFlights = Flights<Key, (), Found, CacheError>;
type ManifestLeader = Leader<Key, (), Found, CacheError>;

/// A manifest in memory: the bytes of the store, for a second.
struct HotManifest {
    found: Found,
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
    /// Manifests and tags that are being stored.
    pending: PendingTable,
    /// Manifests that other processes on this directory request.
    elsewhere: Poller<Awaited>,
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
            pending: PendingTable::default(),
            elsewhere: Poller::default(),
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

    /// Waits until the manifests and tags are stored that were fetched of a repository, or of any. One that cannot be
    /// stored ends the wait as well.
    pub(super) fn wait_until_stored(&self, name: Option<&ImageName>) {
        self.pending.wait_until_stored(name);
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
        if let Some(found) = self.hot(&key, now) {
            return Ok(ready(found, How::Hit, None));
        }
        let stored = match reference {
            Reference::Digest(digest) => self.manifest_at_hand(name, digest, Access::Pull(now))?,
            Reference::Tag(tag) => self.tag_at_hand(name, tag, Access::Pull(now))?,
        };
        let cached = match stored {
            Some(stored) => match stored.belief {
                Belief::Fresh(until) => {
                    self.keep_hot(key, &stored.found, until, now);
                    return Ok(ready(stored.found, How::Hit, None));
                }
                _ if self.core.is_offline() => {
                    return Ok(ready(stored.found, How::Hit, Some(Why::Offline)));
                }
                Belief::Revalidate => {
                    self.revalidate(key, client, now);
                    return Ok(ready(stored.found, How::Stale, Some(Why::Revalidating)));
                }
                Belief::Stale => Some(stored.found),
            },
            None => None,
        };
        if self.core.is_alone() {
            return Err(CacheError::NotCached);
        }
        let has_bucket = self.core.sources.shared_bucket().is_some();
        let asked = Asked::Manifest(name.clone(), reference.clone());
        let is_missing = self.core.negative.is_missing(&asked, now);
        let backoff = self.core.negative.backoff(name, now);
        match (cached, backoff) {
            (Some(found), Some(_)) => {
                let why = Why::from(&CacheError::BackingOff { wait: Duration::ZERO });
                Ok(ready(found, How::Stale, Some(why)))
            }
            (Some(found), None) if is_missing => {
                Ok(ready(found, How::Stale, Some(Why::from(&CacheError::KnownMissing))))
            }
            (Some(found), None) if self.core.negative.has_failed(&asked, now) => {
                Ok(ready(found, How::Stale, Some(Why::RecentFailure)))
            }
            (None, _) if is_missing => Err(CacheError::KnownMissing),
            (None, Some(wait)) if !has_bucket => Err(CacheError::BackingOff { wait }),
            (cached, _) => match (self.ask_for_manifest(key, client, cached.clone()), cached) {
                (Err(error), Some(found)) => Ok(ready(found, How::Stale, Some((&error).into()))),
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
        self.core.metadata_fetchers.submit_in_background(purpose, Length::Short, move || {
            // The job does not follow the flight, since no client waits for it.
            let joined = service.flights.join(&key, || CacheError::GivenUp);
            drop(joined.flight);
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
        cached: Option<Found>,
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

fn ready(found: Found, how: How, why: Option<Why>) -> ManifestLookup {
    ManifestLookup::Ready(ManifestAnswer::new(found, how, why))
}

/// A manifest from the store, and whether it is fresh.
struct Stored {
    found: Found,
    belief: Belief,
}

impl Stored {
    /// A manifest by its digest.
    fn by_digest(content: Arc<Content>, now: SystemTime) -> Stored {
        let found = Found { content, checked: Checked::at(now) };
        Stored { found, belief: Belief::Fresh(None) }
    }
}

impl ManifestCache {
    fn hot(&self, key: &Key, now: SystemTime) -> Option<Found> {
        let hot = lock(&self.hot);
        let entry = hot.get(key)?;
        // The second condition applies if the clock was set back, so that the entry does not last forever.
        let is_believed = now < entry.believed_until
            && entry.believed_until.duration_since(now).is_ok_and(|left| left <= HOT_AGE_MAX);
        is_believed.then(|| entry.found.clone())
    }

    fn keep_hot(&self, key: Key, found: &Found, fresh_until: Option<SystemTime>, now: SystemTime) {
        if found.content.size() > MEMORY_BYTES_MAX as u64 {
            return;
        }
        let soon = now + HOT_AGE_MAX;
        let believed_until = fresh_until.map_or(soon, |until| until.min(soon));
        let entry = HotManifest { found: found.clone(), believed_until };
        lock(&self.hot).insert(key, entry);
    }

    /// A manifest has been fetched: what was known before is replaced.
    fn note_fetched(&self, key: &Key, digest: &Digest) {
        lock(&self.hot).remove(key);
        log::debug!(image = key.0.with(&key.1).as_str(), digest:%; "manifest fetched");
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
        Ok(content.map(|content| Stored::by_digest(content, self.core.now())))
    }

    /// A manifest that is stored or being stored.
    fn manifest_at_hand(
        &self,
        name: &ImageName,
        digest: &Digest,
        access: Access,
    ) -> Result<Option<Stored>, CacheError> {
        let stored = self.stored_manifest(name, digest, access)?;
        let pending = || {
            let content = self.pending.manifest(name, digest)?;
            Some(Stored::by_digest(content, self.core.now()))
        };
        Ok(stored.or_else(pending))
    }

    /// The parsed manifest, stored or being stored.
    pub(super) fn parsed(&self, name: &ImageName, digest: &Digest) -> Option<Manifest> {
        self.core.store.stored_manifest(name, digest).or_else(|| {
            let content = self.pending.manifest(name, digest)?;
            let bytes = content.body.read().ok()?;
            Manifest::parse(&bytes, Some(content.media_type.as_str())).ok()
        })
    }

    /// The manifest of a tag that is being stored, or else of a stored one.
    fn tag_at_hand(
        &self,
        name: &ImageName,
        tag: &Tag,
        access: Access,
    ) -> Result<Option<Stored>, CacheError> {
        let Some(found) = self.pending.tag(name, tag) else {
            return self.stored_tag(name, tag, access);
        };
        let (checked, now) = (found.checked.at, self.core.now());
        let belief = self.core.settings().freshness.belief(name, tag, checked, now);
        Ok(Some(Stored { found, belief }))
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
        let is_vetted = !record.previous.is_empty() && policy.hold(name, tag).is_some();
        let is_held = record.held.is_some();
        let checked = Checked { is_held, is_vetted, ..Checked::at(record.checked) };
        Ok(content.map(|content| Stored { found: Found { content, checked }, belief }))
    }
}
