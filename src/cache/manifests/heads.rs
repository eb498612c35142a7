//! HEAD requests for tags that are neither cached nor in the bucket: answered with a HEAD request to the registry, which does not count
//! towards rate limits.
//!
//! Otherwise each check by `crane digest` or an update checker would cost a pull. If the registry's response lacks a
//! digest, media type or length, or if it is 404, the manifest is fetched.
//!
//! # A pull that starts with HEAD is cached under its tag
//!
//! containerd sends HEAD for the tag and then fetches the digest of the response. Therefore that digest is remembered.
//! When a manifest with it enters the store of the same repository within [`PULL_FOLLOWS_MAX`], the tag is written as
//! if the manifest had been fetched by tag. Either order works: a HEAD response is remembered before the store is
//! checked, and a manifest is stored before the remembered responses are checked, so the second of the two finds the
//! first. A crash in between leaves the manifest without the tag; the next HEAD finds the manifest in the store and
//! writes the tag.

use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, SystemTime};

use super::content::{Checked, Content, Found};
use super::{ManifestCache, ManifestLookup};
use crate::cache::core::Core;
use crate::cache::freshness::Belief;
use crate::cache::negative::Asked;
use crate::cache::{CacheError, How, PATIENCE, Why, lock};
use crate::client_address::ClientAddress;
use crate::flight::{Flights, Follower};
use crate::oci::{Digest, ImageName, Reference, Tag};
use crate::store::Access;
use crate::upstream::{ManifestHead, UpstreamError};

/// How long after HEAD a pull of the digest counts as a pull of the tag.
const PULL_FOLLOWS_MAX: Duration = Duration::from_secs(120);
/// How many HEAD responses are remembered. Clients choose the tags, so the number is bounded.
pub(super) const HEADS_REMEMBERED: usize = 4096;
/// How many tags of one digest are remembered: `3`, `3.20`, `3.20.1`, `latest` and some more.
const TAGS_OF_A_DIGEST_MAX: usize = 16;

pub(super) type HeadFlights = Flights<(ImageName, Tag), (), KnownHead, CacheError>;

/// A HEAD response for a tag, and when it was confirmed.
#[derive(Debug, Clone)]
pub(super) struct KnownHead {
    head: ManifestHead,
    checked: Checked,
}

impl KnownHead {
    fn of(found: &Found) -> KnownHead {
        KnownHead { head: found.content.head(), checked: found.checked }
    }
}

/// The tags whose HEAD responses contained a digest, when they were received, and when the tags were confirmed.
pub(super) type TagsOfDigest = Vec<(Tag, SystemTime, Checked)>;

/// The response to a HEAD request, without the manifest.
#[derive(Debug, Clone)]
pub struct HeadAnswer {
    head: ManifestHead,
    /// Where it comes from.
    pub how: How,
    /// Why it is not a plain hit.
    pub why: Option<Why>,
    /// When the registry confirmed the tag.
    pub checked: SystemTime,
}

impl HeadAnswer {
    fn new(known: KnownHead, how: How, why: Option<Why>) -> HeadAnswer {
        let (how, why) = known.checked.restrict(how, why);
        HeadAnswer { head: known.head, how, why, checked: known.checked.at }
    }

    /// Digest, media type and size.
    pub fn head(&self) -> &ManifestHead {
        &self.head
    }
}

/// What a lookup found.
pub enum HeadLookup {
    /// The manifest, cached or being fetched.
    Manifest(ManifestLookup),
    /// The response.
    Ready(HeadAnswer),
    /// A flight is under way.
    Wait(HeadWait),
}

/// Waits for the registry.
pub struct HeadWait {
    core: Arc<Core>,
    name: ImageName,
    tag: Tag,
    flight: Follower<(), KnownHead, CacheError>,
    how: How,
}

impl HeadWait {
    /// The response or the failure, once the flight has ended.
    pub fn poll(&self, waker: &Waker) -> Poll<Result<HeadAnswer, CacheError>> {
        let outcome = self.flight.poll_outcome(waker);
        outcome.map_ok(|known| HeadAnswer::new(known, self.how, Some(Why::NotCached)))
    }

    /// How long to wait before [`HeadWait::give_up`].
    pub fn patience(&self) -> Duration {
        PATIENCE
    }

    /// Stops waiting. `waker` is the one that was polled with.
    ///
    /// # Errors
    /// Always: [`CacheError::TimedOut`], or [`CacheError::GivenUp`] if no request was sent.
    pub fn give_up(self, waker: &Waker) -> Result<HeadAnswer, CacheError> {
        self.flight.forget(waker);
        // Without a free fetcher, no request was sent. That does not count against the registry.
        if !self.flight.has_begun() {
            return Err(CacheError::GivenUp);
        }
        let asked = Asked::Manifest(self.name.clone(), Reference::Tag(self.tag.clone()));
        self.core.negative.note_slow(asked, self.core.now());
        Err(CacheError::TimedOut)
    }
}

impl ManifestCache {
    /// The response to HEAD for a manifest. Does not wait for anything but the local disk.
    ///
    /// # Errors
    /// [`CacheError`] if it is known that the manifest is not available.
    pub(in crate::cache) fn head(
        self: &Arc<Self>,
        name: &ImageName,
        reference: &Reference,
        client: Option<ClientAddress>,
    ) -> Result<HeadLookup, CacheError> {
        let now = self.core.now();
        let tag = match reference {
            Reference::Tag(tag) if self.is_unknown(name, tag) => tag,
            _ => return self.find(name, reference, client).map(HeadLookup::Manifest),
        };
        if self.core.negative.is_missing(&Asked::Manifest(name.clone(), reference.clone()), now) {
            return Err(CacheError::KnownMissing);
        }
        if let Some(wait) = self.core.negative.backoff(name, now) {
            return match self.core.sources.shared_bucket() {
                Some(_) => self.find(name, reference, client).map(HeadLookup::Manifest),
                None => Err(CacheError::BackingOff { wait }),
            };
        }
        if let Some(known) = self.known_head(name, tag, now) {
            return Ok(HeadLookup::Ready(HeadAnswer::new(known, How::Hit, None)));
        }
        let purpose = self.core.purpose(name, client)?;
        let joined = self.head_flights.join(&(name.clone(), tag.clone()), || CacheError::GivenUp);
        let service = Arc::clone(self);
        let (flight, how) = self.core.run_metadata_flight(joined, purpose, move |leader| {
            let (name, tag) = leader.key().clone();
            let result = service.fetch_head(&name, &tag);
            if let Err(error) = &result {
                let is_answer = leader.flight().has_followers();
                error.log_manifest(&name.with(&Reference::Tag(tag)), is_answer);
            }
            leader.finish(result);
        });
        let (core, name, tag) = (Arc::clone(&self.core), name.clone(), tag.clone());
        Ok(HeadLookup::Wait(HeadWait { core, name, tag, flight, how }))
    }
}

impl ManifestCache {
    /// Whether a tag is neither cached nor being fetched, and the server is online.
    fn is_unknown(&self, name: &ImageName, tag: &Tag) -> bool {
        let key = (name.clone(), Reference::Tag(tag.clone()));
        !self.core.is_offline()
            && self.flights.peek(&key).is_none()
            && self.pending.tag(name, tag).is_none()
            // If the record cannot be read, the lookup of the manifest reports the error.
            && matches!(self.core.store.find_tag(name, tag, Access::Look), Ok(None))
    }

    fn known_head(&self, name: &ImageName, tag: &Tag, now: SystemTime) -> Option<KnownHead> {
        let known = lock(&self.heads_by_tag).get(&(name.clone(), tag.clone())).cloned()?;
        let belief = self.core.settings().freshness.belief(name, tag, known.checked.at, now);
        matches!(belief, Belief::Fresh(_)).then_some(known)
    }

    /// The work of a flight, on a fetcher.
    fn fetch_head(&self, name: &ImageName, tag: &Tag) -> Result<KnownHead, CacheError> {
        let source = self.core.source(&name.upstream)?;
        if let Some(found) = self.fetch_tag_of_bucket(name, tag, &*source, &|_| {})? {
            return Ok(KnownHead::of(&found));
        }
        let result = source.head(&name.repository, tag);
        // A 404 for HEAD is not recorded, since it would apply to GET: some registries do not support HEAD well.
        if !result.as_ref().is_err_and(UpstreamError::is_not_found) {
            self.core.note_outcome(
                &*source,
                name,
                Asked::Manifest(name.clone(), Reference::Tag(tag.clone())),
                &result,
            );
        }
        match result {
            Ok(Some((head, confirmation))) => {
                let checked = Checked::of(confirmation, self.core.now());
                let known = KnownHead { head, checked };
                self.remember_head(name, tag, known.clone());
                Ok(known)
            }
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => {
                let found = self.fetch_tag_of_registry(name, tag, None, &*source, &|_| {})?;
                Ok(KnownHead::of(&found))
            }
        }
    }

    fn remember_head(&self, name: &ImageName, tag: &Tag, known: KnownHead) {
        let digest = known.head.digest;
        {
            let mut tags = lock(&self.tags_by_digest);
            let key = (name.clone(), digest);
            let mut of_digest = tags.get(&key).cloned().unwrap_or_default();
            of_digest.retain(|(other, ..)| other != tag);
            of_digest.truncate(TAGS_OF_A_DIGEST_MAX - 1);
            of_digest.insert(0, (tag.clone(), self.core.now(), known.checked));
            tags.insert(key, of_digest);
        }
        lock(&self.heads_by_tag).insert((name.clone(), tag.clone()), known);
        self.write_tags_of_stored(name, &digest);
    }

    /// Writes the tags that recent HEAD responses contained, if their manifest is in the store. Another process that
    /// uses the directory may have stored it: it does not know the responses.
    pub(in crate::cache) fn write_tags_of_stored(&self, name: &ImageName, digest: &Digest) {
        // Most images have none, and the manifest need not be read.
        if lock(&self.tags_by_digest).get(&(name.clone(), *digest)).is_none() {
            return;
        }
        if let Ok(Some(stored)) = self.stored_manifest(name, digest, Access::Look) {
            self.write_tags_known_from_head(name, &stored.found.content);
        }
    }

    /// Writes the tags of a stored manifest that recent HEAD responses contained.
    pub(super) fn write_tags_known_from_head(&self, name: &ImageName, content: &Arc<Content>) {
        let key = (name.clone(), *content.digest());
        let tags = {
            let mut tags = lock(&self.tags_by_digest);
            let found = tags.get(&key).cloned().unwrap_or_default();
            tags.remove(&key);
            found
        };
        let now = self.core.now();
        for (tag, received, checked) in tags {
            let is_recent = now.duration_since(received).is_ok_and(|age| age <= PULL_FOLLOWS_MAX);
            if is_recent && self.core.store.tag(name, &tag, Access::Look).is_none() {
                let found = Found { content: Arc::clone(content), checked };
                self.point_tag(name, &tag, &found, None, None);
            }
        }
    }

    /// Forgets the HEAD responses for all names for which `is_other` is false.
    pub(in crate::cache) fn forget_heads(&self, is_other: impl Fn(&ImageName) -> bool) {
        lock(&self.heads_by_tag).retain(|(name, _)| is_other(name));
        lock(&self.tags_by_digest).retain(|(name, _): &(ImageName, Digest)| is_other(name));
    }
}
