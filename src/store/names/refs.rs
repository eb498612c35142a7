//! Records: the manifest of each tag, and the manifests of each repository.
//!
//! Each record is a small JSON file that is replaced atomically. A record that cannot be read is a miss.

use std::fs;
use std::io;
use std::time::SystemTime;

use crate::oci::{
    Algorithm, Decision, Digest, HeldManifest, ImageName, ManifestRecord, Record, Tag, TagRecord,
};
use crate::store::files::layout::digest_of;
use crate::store::files::observer::StoreEvent;
use crate::store::files::outgoing::OutgoingKind;
use crate::store::files::record::Access;
use crate::store::files::write::renew_path;
use crate::store::locks::FileLock;
use crate::store::{CommitLock, Store, StoreError};

impl Store {
    /// Reads a tag; `None` if it was never pulled or its record is damaged. Use this if a miss costs nothing.
    pub fn tag(&self, name: &ImageName, tag: &Tag, access: Access) -> Option<TagRecord> {
        self.find_tag(name, tag, access).unwrap_or_default()
    }

    /// Like [`Store::tag`], but reports read errors.
    ///
    /// # Errors
    /// [`StoreError::Read`] if the record cannot be read.
    pub fn find_tag(
        &self,
        name: &ImageName,
        tag: &Tag,
        access: Access,
    ) -> Result<Option<TagRecord>, StoreError> {
        let path = self.inner.layout.tag(name, tag);
        let Some(wire) = self.find_record(&path, access)? else { return Ok(None) };
        Ok(TagRecord::accept(wire).or_else(|| self.damaged(&path, "a field has an invalid value")))
    }

    /// Writes a tag. Its manifest must be in the store, and is recorded for the repository if it is not yet.
    /// `index.json` becomes outdated only if the tag now refers to another manifest.
    ///
    /// # Errors
    /// [`StoreError`] if a write fails.
    pub fn put_tag(&self, name: &ImageName, tag: &Tag, is: &TagRecord) -> Result<(), StoreError> {
        self.require_writable()?;
        let lock = self.commit_lock()?;
        let is_recorded = self.manifest(name, &is.digest, Access::Look).is_some();
        if !is_recorded && self.blob(&is.digest, Some(is.size)).is_some() {
            let TagRecord { media_type, size, fetched, .. } = is.clone();
            let record = ManifestRecord { media_type, size, fetched };
            self.put_manifest_under(&lock, name, &is.digest, &record)?;
        }
        let before = self.tag(name, tag, Access::Look);
        let has_decisions =
            |record: &TagRecord| record.held.is_some() || !record.rejected.is_empty();
        if !has_decisions(is) && !before.as_ref().is_some_and(has_decisions) {
            return self.replace_tag(name, tag, before.as_ref(), is);
        }
        let _decisions = self.lock_decisions()?;
        let before = self.tag(name, tag, Access::Look);
        self.replace_tag(name, tag, before.as_ref(), is)
    }

    /// Excludes other writers of tags about which an operator may decide, in this and other processes, so that no decision
    /// is lost. Taken after the commit lock.
    fn lock_decisions(&self) -> Result<FileLock, StoreError> {
        let path = self.inner.layout.tags_lock();
        let lock = self.inner.layout.open_lock(&path).and_then(FileLock::exclusive);
        lock.map_err(|error| StoreError::write(&path, error))
    }

    fn replace_tag(
        &self,
        name: &ImageName,
        tag: &Tag,
        before: Option<&TagRecord>,
        is: &TagRecord,
    ) -> Result<(), StoreError> {
        let is_other = before.is_none_or(|was| was.digest != is.digest);
        let is = &before.map_or_else(|| is.clone(), |was| is.after(was));
        let path = self.inner.layout.tag(name, tag);
        match before.is_some_and(|was| is.is_hardly_newer(was)) {
            true => self.put_record(&path, &is.wire())?,
            false => {
                let write = || self.put_record(&path, &is.wire());
                self.inner.queued(OutgoingKind::Tag, &path, write)?;
            }
        }
        if is_other {
            self.note_changed_tag(name, tag);
        }
        if let Some(before) = before {
            self.observe_move(name, tag, before, is);
        }
        Ok(())
    }

    fn observe_move(&self, name: &ImageName, tag: &Tag, before: &TagRecord, is: &TagRecord) {
        if before.digest != is.digest {
            self.observe(&StoreEvent::TagMoved { name, tag, from: before.digest, to: is.digest });
        }
        let was_held = before.held.as_ref().map(|held| held.digest);
        if let Some(held) = &is.held
            && was_held != Some(held.digest)
        {
            self.observe(&StoreEvent::TagHeld { name, tag, serves: is.digest, held: held.digest });
        }
    }

    /// Records what an operator has decided about a tag that has moved. After an acceptance, the next pull checks the tag
    /// with the registry. `None` if nothing is held for the tag, or another manifest than `digest`.
    ///
    /// # Errors
    /// [`StoreError`] if the record cannot be read or written.
    pub fn decide_tag(
        &self,
        name: &ImageName,
        tag: &Tag,
        digest: Option<&Digest>,
        decision: Decision,
    ) -> Result<Option<HeldManifest>, StoreError> {
        self.require_writable()?;
        let _lock = self.commit_lock()?;
        let _decisions = self.lock_decisions()?;
        let Some(record) = self.find_tag(name, tag, Access::Look)? else { return Ok(None) };
        let is_meant = |held: &HeldManifest| digest.is_none_or(|digest| *digest == held.digest);
        let Some(held) = record.held.clone().filter(is_meant) else { return Ok(None) };
        let held = HeldManifest { decision, ..held };
        let checked = match decision {
            Decision::Accepted => SystemTime::UNIX_EPOCH,
            Decision::Waiting | Decision::Rejected => record.checked,
        };
        let decided = TagRecord { checked, held: Some(held.clone()), ..record.clone() };
        self.replace_tag(name, tag, Some(&record), &decided)?;
        Ok(Some(held))
    }

    /// Removes a tag. Its manifest stays available by digest.
    ///
    /// # Errors
    /// [`StoreError`] if a write fails.
    pub fn remove_tag(&self, name: &ImageName, tag: &Tag) -> Result<(), StoreError> {
        let path = self.inner.layout.tag(name, tag);
        match fs::remove_file(&path) {
            Ok(()) => self.note_changed_tag(name, tag),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(StoreError::write(&path, error)),
        }
        Ok(())
    }

    /// Reads the repository's record of a manifest. Use this if a miss costs nothing.
    pub fn manifest(
        &self,
        name: &ImageName,
        digest: &Digest,
        access: Access,
    ) -> Option<ManifestRecord> {
        self.find_manifest(name, digest, access).unwrap_or_default()
    }

    /// Like [`Store::manifest`], but reports read errors.
    ///
    /// # Errors
    /// [`StoreError::Read`] if the record cannot be read.
    pub fn find_manifest(
        &self,
        name: &ImageName,
        digest: &Digest,
        access: Access,
    ) -> Result<Option<ManifestRecord>, StoreError> {
        let path = self.inner.layout.manifest(name, digest);
        let Some(wire) = self.find_record(&path, access)? else { return Ok(None) };
        let record = ManifestRecord::accept(wire);
        Ok(record.or_else(|| self.damaged(&path, "a field has an invalid value")))
    }

    /// Records that this repository has the manifest, which must be in the store. The manifest and the blobs that
    /// it refers to get the current time, so that a sweep which scanned the names earlier keeps them.
    ///
    /// # Errors
    /// [`StoreError`] if a write fails.
    pub fn put_manifest(
        &self,
        name: &ImageName,
        digest: &Digest,
        is: &ManifestRecord,
    ) -> Result<(), StoreError> {
        self.require_writable()?;
        self.put_manifest_under(&self.commit_lock()?, name, digest, is)
    }

    /// Like [`Store::put_manifest`], for a caller that already holds the lock: taking it again would deadlock with
    /// a removal that waits for the first lock and holds the gate.
    ///
    /// # Errors
    /// [`StoreError`] if a write fails.
    pub fn put_manifest_under(
        &self,
        _lock: &CommitLock,
        name: &ImageName,
        digest: &Digest,
        is: &ManifestRecord,
    ) -> Result<(), StoreError> {
        self.renew_content(digest, is);
        let path = self.inner.layout.manifest(name, digest);
        self.inner.queued(OutgoingKind::Manifest, &path, || self.put_record(&path, &is.wire()))
    }

    /// Sets the mtime of a manifest's blob, and of the blobs that it refers to, to now.
    fn renew_content(&self, digest: &Digest, is: &ManifestRecord) {
        let layout = &self.inner.layout;
        renew_path(&layout.blob(digest));
        let media_type = Some(is.media_type.as_str());
        if let Some(manifest) = self.parse_manifest(digest, is.size, media_type) {
            manifest.descriptors().for_each(|each| renew_path(&layout.blob(&each.digest)));
        }
    }

    /// Whether the repository has a tag or a manifest.
    ///
    /// # Errors
    /// [`StoreError::Read`] if a directory cannot be read.
    pub fn has_images(&self, name: &ImageName) -> Result<bool, StoreError> {
        let layout = &self.inner.layout;
        let of_algorithms = Algorithm::ALL.map(|algorithm| layout.manifests(name, algorithm));
        for directory in of_algorithms.into_iter().chain([layout.tags(name)]) {
            let listed =
                self.inner.faults.check(&directory).and_then(|()| fs::read_dir(&directory));
            // One entry is enough.
            match listed.and_then(|mut entries| entries.next().transpose()) {
                Ok(Some(_)) => return Ok(true),
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    self.failed_to_read::<()>(&directory, error)?;
                }
            }
        }
        Ok(false)
    }

    /// The manifests of this repository, as far as they can be read.
    pub fn manifests(&self, name: &ImageName) -> Vec<Digest> {
        self.find_manifests(name).unwrap_or_default()
    }

    /// Like [`Store::manifests`], but reports read errors.
    ///
    /// # Errors
    /// [`StoreError::Read`] if a directory cannot be read.
    pub fn find_manifests(&self, name: &ImageName) -> Result<Vec<Digest>, StoreError> {
        let mut found = Vec::new();
        for algorithm in Algorithm::ALL {
            let names = self.find_names_in(&self.inner.layout.manifests(name, algorithm))?;
            found.extend(names.iter().filter_map(|hex| digest_of(algorithm, hex)));
        }
        Ok(found)
    }

    /// Like [`Store::tags`], but reports read errors.
    ///
    /// # Errors
    /// [`StoreError::Read`] if a directory cannot be read.
    pub fn find_tags(&self, name: &ImageName) -> Result<Vec<Tag>, StoreError> {
        let names = self.find_names_in(&self.inner.layout.tags(name))?.into_iter();
        let mut tags: Vec<Tag> = names.filter_map(|name| name.parse().ok()).collect();
        tags.sort();
        Ok(tags)
    }

    /// The cached tags of a repository, sorted, as far as they can be read.
    pub fn tags(&self, name: &ImageName) -> Vec<Tag> {
        self.find_tags(name).unwrap_or_default()
    }
}
