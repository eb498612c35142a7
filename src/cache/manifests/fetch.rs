//! The work of a manifest flight: requests to the registry, verification, storage.

use std::cell::Cell;
use std::sync::Arc;

use super::content::{Checked, Content, Found, MEMORY_BYTES_MAX};
use super::hold::Hold;
use super::{ManifestCache, ManifestLeader};
use crate::cache::freshness::Belief;
use crate::cache::negative::Asked;
use crate::cache::{CacheError, lock};
use crate::oci::{Digest, HeldManifest, ImageName, MediaType, Reference, Tag};
use crate::store::{Access, Document, FetchLock, ManifestRecord, StoreError, TagRecord};
use crate::upstream::{Source, UpstreamError};

/// Receives a manifest that is verified and not stored yet.
type Early<'a> = &'a dyn Fn(&Found);

impl ManifestCache {
    /// The work of a manifest flight, on a fetcher. The flight ends when the manifest is verified; the work ends when it
    /// is stored, and with it the lock of the request.
    pub(super) fn fetch_manifest_under(&self, leader: ManifestLeader, request: Option<FetchLock>) {
        let (name, reference) = leader.key().clone();
        let (leader, pending_tag) = (Cell::new(Some(leader)), Cell::new(None));
        // Requests that wait get what is cached.
        let is_cached = Cell::new(false);
        let end = |result: Result<Found, CacheError>| {
            let Some(leader) = leader.take() else { return };
            match &result {
                Ok(found) => self.note_fetched(leader.key(), &found.content.digest),
                Err(error) => {
                    let is_answer = leader.flight().has_followers() && !is_cached.get();
                    error.log_manifest(&name.with(&reference), is_answer);
                }
            }
            leader.finish(result);
        };
        let early: Early<'_> = &|found| {
            if let Reference::Tag(tag) = &reference {
                let key = (name.clone(), tag.clone());
                pending_tag.set(Some(self.pending.add_tag(key, &found.content, found.checked)));
            }
            end(Ok(found.clone()));
        };
        let result = match &reference {
            Reference::Digest(digest) => self.fetch_by_digest_for(&name, digest, early),
            // A request that looked up the tag before a flight ended, and joined after it, leads the next flight. Then
            // the manifest is at hand.
            Reference::Tag(tag) => match self.tag_at_hand(&name, tag, Access::Look) {
                Ok(Some(at_hand)) if matches!(at_hand.belief, Belief::Fresh(_)) => {
                    Ok(at_hand.found)
                }
                Ok(at_hand) => {
                    is_cached.set(at_hand.is_some());
                    self.fetch_by_tag_for(&name, tag, early)
                }
                Err(error) => Err(error),
            },
        };
        end(result);
        drop(pending_tag);
        drop(request);
    }

    /// Fetches a manifest unless it is at hand.
    pub(in crate::cache) fn fetch_by_digest(
        &self,
        name: &ImageName,
        digest: &Digest,
    ) -> Result<Arc<Content>, CacheError> {
        self.fetch_by_digest_for(name, digest, &|_| {}).map(|found| found.content)
    }

    fn fetch_by_digest_for(
        &self,
        name: &ImageName,
        digest: &Digest,
        early: Early<'_>,
    ) -> Result<Found, CacheError> {
        if let Some(at_hand) = self.manifest_at_hand(name, digest, Access::Look)? {
            return Ok(at_hand.found);
        }
        self.core.stop_if_backing_off(name, |bucket| {
            bucket.blob_size(&name.repository, digest).is_ok()
        })?;
        let source = self.core.source(&name.upstream)?;
        let checked = Some(Checked::at(self.core.now()));
        let reference = Reference::Digest(*digest);
        let found = self.get_manifest(name, &*source, &reference, checked, early)?;
        self.write_tags_known_from_head(name, &found.content);
        Ok(found)
    }

    /// Resolves the tag with HEAD if it is cached, or else fetches the manifest with GET.
    pub(in crate::cache) fn fetch_by_tag(
        &self,
        name: &ImageName,
        tag: &Tag,
    ) -> Result<Arc<Content>, CacheError> {
        self.fetch_by_tag_for(name, tag, &|_| {}).map(|found| found.content)
    }

    /// Confirms a tag with its registry even if it is fresh, or fetches it.
    pub(in crate::cache) fn confirm(&self, name: &ImageName, tag: &Tag) -> Result<(), CacheError> {
        let confirmed = self.fetch_by_tag(name, tag);
        lock(&self.hot).remove(&(name.clone(), Reference::Tag(tag.clone())));
        confirmed.map(drop)
    }

    fn fetch_by_tag_for(
        &self,
        name: &ImageName,
        tag: &Tag,
        early: Early<'_>,
    ) -> Result<Found, CacheError> {
        let source = self.core.source(&name.upstream)?;
        let reference = Reference::Tag(tag.clone());
        let Some(record) = self.core.store.find_tag(name, tag, Access::Look)? else {
            if let Some(found) = self.fetch_tag_of_bucket(name, tag, &*source, early)? {
                return Ok(found);
            }
            return self.fetch_tag_of_registry(name, tag, None, &*source, early);
        };
        let hold = self.hold(name, tag, &record);
        let may_hold = hold.may_hold();
        let early = if may_hold { &|_: &Found| {} } else { early };
        let found = match source.resolve(&name.repository, tag) {
            Ok(Some((digest, confirmation))) => {
                let checked = Checked::of(confirmation, self.core.now());
                // Otherwise the manifest is fetched first: some registries report another digest than they send.
                if hold.knows(&digest)
                    && let Some(held) = hold.decide(&digest, checked.is_vetted)
                {
                    self.note::<()>(&*source, name, &reference, &Ok(()));
                    return self.keep_previous(name, tag, &record, held, checked, &*source);
                }
                self.get_resolved(name, &*source, &reference, &digest, checked, early)?
            }
            Ok(None) => self.get_manifest(name, &*source, &reference, None, early)?,
            // Many registries and proxies do not support HEAD well, so only the response to GET counts.
            Err(error) if error.may_be_about_head() => {
                match self.get_manifest(name, &*source, &reference, None, early) {
                    Err(CacheError::Upstream(error)) if error.is_certainly_not_found() => {
                        return Err(self.deleted_upstream(name, tag, &record));
                    }
                    other => other?,
                }
            }
            Err(error) => {
                self.note(&*source, name, &reference, &Err::<(), _>(error.clone()));
                return Err(error.into());
            }
        };
        let record = match may_hold {
            // An operator may have decided during the requests.
            true => self.core.store.find_tag(name, tag, Access::Look)?.unwrap_or(record),
            false => record,
        };
        let is_vetted = found.checked.is_vetted;
        match self.hold(name, tag, &record).decide(found.content.digest(), is_vetted) {
            Some(held) => self.keep_previous(name, tag, &record, held, found.checked, &*source),
            None => {
                self.point_tag(name, tag, &found, Some(&record), None);
                Ok(found)
            }
        }
    }

    fn hold<'a>(&self, name: &ImageName, tag: &Tag, record: &'a TagRecord) -> Hold<'a> {
        let span = self.core.settings().freshness.hold(name, tag);
        Hold::new(record, span, self.core.now())
    }

    /// Fetches a tag that is neither cached here nor taken over from the bucket. `in_bucket` is the bucket's record of it.
    pub(super) fn fetch_tag_of_registry(
        &self,
        name: &ImageName,
        tag: &Tag,
        in_bucket: Option<&TagRecord>,
        source: &dyn Source,
        early: Early<'_>,
    ) -> Result<Found, CacheError> {
        self.core.stop_if_backing_off(name, |_| false)?;
        let reference = Reference::Tag(tag.clone());
        let hold = in_bucket.map(|record| self.hold(name, tag, record));
        let may_hold = hold.as_ref().is_some_and(Hold::may_hold);
        let early = if may_hold { &|_: &Found| {} } else { early };
        let found = self.get_manifest(name, source, &reference, None, early)?;
        if let Some(hold) = &hold
            && let Some(held) = hold.decide(found.content.digest(), found.checked.is_vetted)
        {
            return self.keep_previous(name, tag, hold.record, held, found.checked, source);
        }
        self.point_tag(name, tag, &found, in_bucket, None);
        Ok(found)
    }

    /// Takes over a tag from the bucket that is not cached here. If it should be confirmed by now, the registry is asked; if
    /// that fails, the tag is stale, as one that was cached here would be. `None` if the bucket does not have it, or if the
    /// registry has another one, which is to be fetched.
    ///
    /// # Errors
    /// [`CacheError::DeletedUpstream`].
    pub(super) fn fetch_tag_of_bucket(
        &self,
        name: &ImageName,
        tag: &Tag,
        source: &dyn Source,
        early: Early<'_>,
    ) -> Result<Option<Found>, CacheError> {
        let Ok(record) = self.core.sources.tag_in_bucket(name, tag) else { return Ok(None) };
        match self.fetch_recorded_in_bucket(name, tag, record.clone(), source, early)? {
            // What the bucket has cannot be fetched, but it says from where the tag has moved.
            None if source.is_authoritative() && self.hold(name, tag, &record).may_hold() => {
                let found = self.fetch_tag_of_registry(name, tag, Some(&record), source, early);
                found.map(Some)
            }
            found => Ok(found),
        }
    }

    fn fetch_recorded_in_bucket(
        &self,
        name: &ImageName,
        tag: &Tag,
        record: TagRecord,
        source: &dyn Source,
        early: Early<'_>,
    ) -> Result<Option<Found>, CacheError> {
        let (digest, checked) = (record.digest, Checked::at(record.checked));
        let now = self.core.now();
        let belief = self.core.settings().freshness.belief(name, tag, checked.at, now);
        let is_fresh = matches!(belief, Belief::Fresh(_));
        if !source.is_authoritative() || is_fresh && record.gone.is_none() {
            return Ok(self.take_over(name, tag, source, &record, checked, early));
        }
        let stale = Checked { is_stale: !is_fresh, ..checked };
        if self.core.negative.backoff(name, now).is_some() {
            let bucket = self.core.sources.bucket(&name.upstream);
            let take_over =
                |bucket: Arc<_>| self.take_over(name, tag, &*bucket, &record, stale, early);
            return Ok(bucket.and_then(take_over));
        }
        let error = match source.resolve(&name.repository, tag) {
            Ok(Some((current, confirmation))) if current == digest => {
                let checked = Checked::of(confirmation, self.core.now());
                let record = TagRecord { held: None, ..record };
                return Ok(self.take_over(name, tag, source, &record, checked, early));
            }
            Ok(Some((current, confirmation))) => {
                let checked = Checked::of(confirmation, self.core.now());
                let decided = self.hold(name, tag, &record).decide(&current, checked.is_vetted);
                let kept = match decided {
                    Some(held) => self.keep_previous(name, tag, &record, held, checked, source),
                    // The registry knows better.
                    None => self.fetch_tag_of_registry(name, tag, Some(&record), source, early),
                };
                return kept.map(Some);
            }
            // GET shows what it has.
            Ok(None) => {
                let found = self.fetch_tag_of_registry(name, tag, Some(&record), source, early);
                return found.map(Some);
            }
            Err(error) if error.may_be_about_head() => {
                match self.fetch_tag_of_registry(name, tag, Some(&record), source, early) {
                    Ok(found) => return Ok(Some(found)),
                    Err(error) => error,
                }
            }
            Err(error) => {
                let reference = Reference::Tag(tag.clone());
                self.note(source, name, &reference, &Err::<(), _>(error.clone()));
                error.into()
            }
        };
        let is_deleted =
            matches!(&error, CacheError::Upstream(error) if error.is_certainly_not_found());
        if is_deleted && self.core.settings().freshness.drops_deleted(name, tag) {
            return Err(CacheError::DeletedUpstream);
        }
        // Requests that wait get what is cached.
        error.log_manifest(&name.with(&Reference::Tag(tag.clone())), false);
        Ok(self.take_over(name, tag, source, &record, stale, early))
    }

    /// Fetches the manifest of a tag that the bucket has, and writes the tag.
    fn take_over(
        &self,
        name: &ImageName,
        tag: &Tag,
        source: &dyn Source,
        record: &TagRecord,
        checked: Checked,
        early: Early<'_>,
    ) -> Option<Found> {
        let checked = Checked { is_held: record.held.is_some(), ..checked };
        // By its digest only: what the registry has under the tag may have to be held.
        let found = match self.stored_manifest(name, &record.digest, Access::Look) {
            Ok(Some(stored)) => Found { checked, ..stored.found },
            _ => {
                let reference = Reference::Digest(record.digest);
                self.get_manifest(name, source, &reference, Some(checked), early).ok()?
            }
        };
        self.point_tag(name, tag, &found, Some(record), record.held.clone());
        Some(found)
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
        checked: Checked,
        early: Early<'_>,
    ) -> Result<Found, CacheError> {
        if let Some(stored) = self.stored_manifest(name, digest, Access::Look)? {
            self.note::<()>(source, name, tag, &Ok(()));
            return Ok(Found { checked, ..stored.found });
        }
        let reference = Reference::Digest(*digest);
        match self.get_manifest(name, source, &reference, Some(checked), early) {
            Err(CacheError::Upstream(error)) if error.may_be_about_head() => {
                log::debug!(
                    image = name.with(tag).as_str(), digest:%, error:%;
                    "cannot fetch the manifest that HEAD reports"
                );
                self.get_manifest(name, source, tag, None, early)
            }
            other => other,
        }
    }

    /// Handles a cached tag that the registry has deleted.
    fn deleted_upstream(&self, name: &ImageName, tag: &Tag, record: &TagRecord) -> CacheError {
        // The registry may hide the repository from this client, or from Larder, which must not decide for the others.
        if self.core.is_for_clients(name) {
            return CacheError::KnownMissing;
        }
        // An import, or another process, may have written the tag during the request.
        if self.core.store.tag(name, tag, Access::Look).as_ref() != Some(record) {
            return CacheError::KnownMissing;
        }
        let (noted, error) = match self.core.settings().freshness.drops_deleted(name, tag) {
            true => {
                log::info!(
                    image:% = format_args!("{name}:{tag}");
                    "upstream has deleted the tag; it is removed (onUpstreamDelete)"
                );
                (self.core.store.remove_tag(name, tag), CacheError::DeletedUpstream)
            }
            false if record.gone.is_some() => (Ok(()), CacheError::KnownMissing),
            false => {
                log::warn!(
                    image:% = format_args!("{name}:{tag}");
                    "upstream has deleted the tag; it is kept (onUpstreamDelete)"
                );
                let gone = TagRecord { gone: Some(self.core.now()), ..record.clone() };
                (self.core.store.put_tag(name, tag, &gone), CacheError::KnownMissing)
            }
        };
        if let Err(error) = noted {
            log::warn!(
                image:% = format_args!("{name}:{tag}"), error:%;
                "cannot record that upstream has deleted the tag"
            );
        }
        error
    }

    /// Fetches and stores a manifest. `checked` is when its tag was confirmed, unless this request confirms it.
    pub(super) fn get_manifest(
        &self,
        name: &ImageName,
        source: &dyn Source,
        reference: &Reference,
        checked: Option<Checked>,
        early: Early<'_>,
    ) -> Result<Found, CacheError> {
        let mut writer = self.core.store.manifest_writer();
        let fetched = source.manifest(&name.repository, reference, &mut writer);
        self.note(source, name, reference, &fetched);
        let (digest, manifest, confirmation) = fetched?;
        let checked = checked.unwrap_or_else(|| Checked::of(confirmation, self.core.now()));
        let body = writer.finish().ok_or(CacheError::NoRoomForDocument)?;
        self.core.metrics.fetched_bytes.inc_by(body.length());
        self.remember_sizes(name, &manifest);
        self.core.note_private(name, digest, &manifest);
        let media_type = manifest.media_type().clone();
        // Thousands of descriptors are not needed while the disk works.
        drop(manifest);
        let pending = match &body {
            // One that is served from a file is served when it is stored.
            Document::Memory(bytes) if bytes.len() <= MEMORY_BYTES_MAX => {
                let (media_type, body) = (media_type.clone(), body.clone());
                let content = Arc::new(Content { digest, media_type, body });
                let pending = self.pending.add_manifest((name.clone(), digest), &content);
                early(&Found { content, checked });
                Some(pending)
            }
            _ => None,
        };
        let kept = self.keep_manifest(name, &digest, &media_type, &body);
        drop(pending);
        if let Err(error) = &kept {
            // The client still receives it: it is verified.
            self.core.metrics.not_cached("manifest");
            log::error!(
                image = name.with(reference).as_str(), error:%;
                "the manifest is served but not cached"
            );
        }
        let size = body.length();
        if size > MEMORY_BYTES_MAX as u64 && kept.is_ok() {
            // It was verified when it was stored.
            if let Some(blob) = self.core.store.blob(&digest, Some(size)) {
                lock(&self.sizes_read).insert((name.clone(), digest), ());
                let body = Document::File { file: blob.file, range: 0..size };
                let content = self.share(Content { digest, media_type, body });
                return Ok(Found { content, checked });
            }
        }
        Ok(Found { content: Arc::new(Content { digest, media_type, body }), checked })
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

    /// Writes the tag. `held` is what the registry has instead, if that is not accepted yet.
    pub(super) fn point_tag(
        &self,
        name: &ImageName,
        tag: &Tag,
        found: &Found,
        before: Option<&TagRecord>,
        held: Option<HeldManifest>,
    ) {
        let Found { content, checked } = found;
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
        let media_type = content.media_type.clone();
        let record = TagRecord::new(content.digest, media_type, size, fetched, checked.at);
        let record = TagRecord { held, ..record };
        let record = before.map_or_else(|| record.clone(), |before| record.after(before));
        if let Err(error) = self.core.store.put_tag(name, tag, &record) {
            log::error!(
                image:% = format_args!("{name}:{tag}"), error:%;
                "the manifest is served but its tag is not cached"
            );
        }
    }

    fn note<T>(
        &self,
        source: &dyn Source,
        name: &ImageName,
        reference: &Reference,
        result: &Result<T, UpstreamError>,
    ) {
        self.core.note_outcome(
            source,
            name,
            Asked::Manifest(name.clone(), reference.clone()),
            result,
        );
    }
}
