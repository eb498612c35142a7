//! HEAD of a tag that is not cached: answered by a HEAD upstream, which rate limits do not count.
//!
//! Tools that only look (`crane digest`, update checkers) would otherwise cost a pull each. Where the registry's answer
//! lacks a digest, a type or a length, and where it has no such tag for HEAD, the manifest is fetched.
//!
//! # A pull that begins with HEAD is cached under its tag
//!
//! containerd asks for the tag by HEAD and fetches the digest that it got. What HEAD said is therefore remembered, and
//! when a manifest with that digest enters the store of the same repository within [`PULL_FOLLOWS_MAX`], the tag
//! is written as if it had been fetched by its name. The two may meet in either order: what HEAD said is noted
//! before the store is looked at, and a manifest is stored before the notes are looked at, so whichever comes
//! second sees the other. A crash between the two leaves the manifest without the tag; the next HEAD finds the
//! manifest in the store and writes the tag.

use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, SystemTime};

use super::freshness::Belief;
use super::manifest_content::Content;
use super::misses::Asked;
use super::{Cache, CacheError, How, Inner, ManifestLookup, PATIENCE, lock};
use crate::flight::{Flights, Follower};
use crate::oci::{Digest, ImageName, Reference, Tag};
use crate::store::Access;
use crate::upstream::{ManifestHead, UpstreamError};

/// How long after HEAD a pull of the digest counts as a pull of the tag.
const PULL_FOLLOWS_MAX: Duration = Duration::from_secs(120);
/// What HEAD said of so many tags is remembered. Clients choose them, so there is a bound.
pub(super) const HEADS_REMEMBERED: usize = 4096;
/// So many tags of one digest are remembered: `3`, `3.20`, `3.20.1`, `latest` and some more.
const TAGS_OF_A_DIGEST_MAX: usize = 16;

pub(super) type HeadFlights = Flights<(ImageName, Tag), (), ManifestHead, CacheError>;

/// What HEAD said of a tag, and when.
#[derive(Debug, Clone)]
pub(super) struct Told {
    head: ManifestHead,
    checked: SystemTime,
}

/// The tags that HEAD said of a digest, and when.
pub(super) type ToldTags = Vec<(Tag, SystemTime)>;

/// A HEAD that can be answered without the manifest.
#[derive(Debug, Clone)]
pub struct HeadAnswer {
    head: ManifestHead,
    /// How it came about.
    pub how: How,
}

impl HeadAnswer {
    /// Digest, media type and size.
    pub fn head(&self) -> &ManifestHead {
        &self.head
    }
}

/// What a lookup found.
pub enum HeadLookup {
    /// The manifest, cached or being fetched.
    Manifest(ManifestLookup),
    /// The answer.
    Ready(HeadAnswer),
    /// Upstream is being asked.
    Wait(HeadWait),
}

/// Waits for upstream.
pub struct HeadWait {
    cache: Cache,
    name: ImageName,
    tag: Tag,
    flight: Follower<(), ManifestHead, CacheError>,
    how: How,
}

impl HeadWait {
    /// The answer, or the failure, once the flight has ended.
    pub fn poll(&self, waker: &Waker) -> Poll<Result<HeadAnswer, CacheError>> {
        let outcome = self.flight.poll_outcome(waker);
        outcome.map_ok(|head| HeadAnswer { head, how: self.how })
    }

    /// How long to wait before [`HeadWait::give_up`].
    pub fn patience(&self) -> Duration {
        PATIENCE
    }

    /// Stops waiting. `waker` is the one that was polled with.
    ///
    /// # Errors
    /// [`CacheError::TimedOut`], always.
    pub fn give_up(self, waker: &Waker) -> Result<HeadAnswer, CacheError> {
        self.flight.forget(waker);
        let inner = &self.cache.inner;
        // A request that was never sent for want of a fetcher says nothing about the registry.
        if !self.flight.has_begun() {
            return Err(CacheError::GivenUp);
        }
        let asked = Asked::Manifest(self.name.clone(), Reference::Tag(self.tag.clone()));
        inner.misses.note_slow(asked, inner.now());
        Err(CacheError::TimedOut)
    }
}

impl Cache {
    /// What HEAD of a manifest is answered with. Does not wait for anything but the local disk.
    ///
    /// # Errors
    /// [`CacheError`] if it is known that there is none to be had.
    pub fn manifest_head(
        &self,
        name: &ImageName,
        reference: &Reference,
    ) -> Result<HeadLookup, CacheError> {
        let (inner, now) = (&self.inner, self.inner.now());
        let tag = match reference {
            Reference::Tag(tag) if inner.is_unknown(name, tag) => tag,
            _ => return self.manifest(name, reference).map(HeadLookup::Manifest),
        };
        if inner.misses.is_missing(&Asked::Manifest(name.clone(), reference.clone()), now) {
            return Err(CacheError::KnownMissing);
        }
        if let Some(wait) = inner.misses.held_back(&name.upstream, now) {
            return Err(CacheError::HeldBack { wait });
        }
        if let Some(head) = inner.told_head(name, tag, now) {
            return Ok(HeadLookup::Ready(HeadAnswer { head, how: How::Hit }));
        }
        let purpose = self.purpose(name)?;
        let joined = inner.heads.join(&(name.clone(), tag.clone()), || CacheError::GivenUp);
        let how = if joined.leader.is_some() { How::Miss } else { How::Join };
        if let Some(leader) = joined.leader {
            let inner = Arc::clone(inner);
            let flight = Arc::clone(joined.flight.flight());
            self.inner.metadata_pool.submit(
                purpose,
                move || flight.has_followers(),
                move || {
                    leader.begin();
                    let (name, tag) = leader.key().clone();
                    let result = inner.fetch_head(&name, &tag);
                    if let Err(error) = &result {
                        error.log(&name.with(&Reference::Tag(tag)));
                    }
                    leader.finish(result);
                },
            );
        }
        let flight = joined.flight;
        let (cache, name, tag) = (self.clone(), name.clone(), tag.clone());
        Ok(HeadLookup::Wait(HeadWait { cache, name, tag, flight, how }))
    }
}

impl Inner {
    /// Whether a tag is neither cached nor being fetched, and may be asked for.
    fn is_unknown(&self, name: &ImageName, tag: &Tag) -> bool {
        let key = (name.clone(), Reference::Tag(tag.clone()));
        !self.is_offline()
            && self.manifests.peek(&key).is_none()
            // A record that cannot be read is for the look-up of the manifest to report.
            && matches!(self.store.find_tag(name, tag, Access::Look), Ok(None))
    }

    fn told_head(&self, name: &ImageName, tag: &Tag, now: SystemTime) -> Option<ManifestHead> {
        let told = lock(&self.told_heads).get(&(name.clone(), tag.clone())).cloned()?;
        let belief = self.settings().freshness.belief(name, tag, told.checked, now);
        matches!(belief, Belief::Fresh(_)).then_some(told.head)
    }

    /// The work of a flight, on a fetcher.
    fn fetch_head(&self, name: &ImageName, tag: &Tag) -> Result<ManifestHead, CacheError> {
        let source = self.source(&name.upstream)?;
        let told = source.head(&name.repository, tag);
        // A HEAD that says 404 is not believed for GET: some registries do not do HEAD well.
        if !told.as_ref().is_err_and(UpstreamError::is_not_found) {
            self.note_asked(
                name,
                Asked::Manifest(name.clone(), Reference::Tag(tag.clone())),
                &told,
            );
        }
        match told {
            Ok(Some(head)) => {
                self.remember_head(name, tag, &head);
                Ok(head)
            }
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => self.fetch_by_tag(name, tag).map(|content| content.head()),
        }
    }

    fn remember_head(&self, name: &ImageName, tag: &Tag, head: &ManifestHead) {
        let told = Told { head: head.clone(), checked: self.now() };
        {
            let mut tags = lock(&self.told_tags);
            let key = (name.clone(), head.digest);
            let mut of_digest = tags.get(&key).cloned().unwrap_or_default();
            of_digest.retain(|(other, _)| other != tag);
            of_digest.truncate(TAGS_OF_A_DIGEST_MAX - 1);
            of_digest.insert(0, (tag.clone(), told.checked));
            tags.insert(key, of_digest);
        }
        lock(&self.told_heads).insert((name.clone(), tag.clone()), told);
        if let Ok(Some(stored)) = self.stored_manifest(name, &head.digest, Access::Look) {
            self.point_told_tags(name, &stored.content);
        }
    }

    /// A manifest is in the store: writes the tags that HEAD said of it a moment ago.
    pub(super) fn point_told_tags(&self, name: &ImageName, content: &Content) {
        let key = (name.clone(), *content.digest());
        let tags = {
            let mut tags = lock(&self.told_tags);
            let found = tags.get(&key).cloned().unwrap_or_default();
            tags.remove(&key);
            found
        };
        let now = self.now();
        for (tag, checked) in tags {
            let is_recent = now.duration_since(checked).is_ok_and(|age| age <= PULL_FOLLOWS_MAX);
            if is_recent && self.store.tag(name, &tag, Access::Look).is_none() {
                self.point_tag(name, &tag, content, None);
            }
        }
    }

    /// Forgets what these upstreams said.
    pub(super) fn forget_heads(&self, is_other: impl Fn(&ImageName) -> bool) {
        lock(&self.told_heads).retain(|(name, _)| is_other(name));
        lock(&self.told_tags).retain(|(name, _): &(ImageName, Digest)| is_other(name));
    }
}
