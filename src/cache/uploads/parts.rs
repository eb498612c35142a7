//! Names are uploaded when what they refer to is in the bucket, as far as this cache has it, and no sweep is about to
//! remove it: see [`crate::cache::bucket_sweep`].

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::Shared;
use crate::cache::bucket_sweep::{DONE, PLANS, is_outdated, read_plan};
use crate::cache::lock;
use crate::oci::{
    Digest, ImageName, ManifestKind, StoredPath, TagRecord, blob_path, manifest_path,
};
use crate::store::OutgoingKind;
use crate::upstream::UpstreamError;

/// How long it counts that an object was in the bucket. A sweep waits longer between its plan and the removal.
pub(super) const CONFIRMED_FOR: Duration = Duration::from_secs(4 * 60);
/// How long the plans of sweeps are not read again, and how long if something waits for their end.
const PLANS_READ_FOR: Duration = Duration::from_secs(60);
const PLANS_READ_FOR_WAITING: Duration = Duration::from_secs(5);

/// The plans of sweeps, and when they were read.
#[derive(Default)]
pub(super) struct Plans {
    read: Option<Instant>,
    /// The keys that are about to be removed.
    active: HashSet<String>,
    /// The keys that were removed not long ago.
    done: HashSet<String>,
}

/// What sweeps do with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// Nothing.
    Stays,
    /// They may remove it at any moment.
    IsCondemned,
    /// They may have removed it since it was seen.
    MayBeGone,
}

impl Shared {
    /// Whether the bucket has what a record refers to. What is missing there is queued, and comes first.
    pub(super) fn has_parts(
        &self,
        path: &StoredPath,
        tag: Option<&TagRecord>,
    ) -> Result<bool, UpstreamError> {
        match (path, tag) {
            (StoredPath::Manifest(name, digest), _) => self.has_blobs_of(name, digest),
            (StoredPath::Tag(name, _), Some(tag)) => self.has_image(name, tag.digest),
            // A tag that cannot be read any more, or no record at all.
            _ => Ok(true),
        }
    }

    /// Whether the bucket has a manifest's blob, and the blobs that it refers to.
    fn has_blobs_of(&self, name: &ImageName, digest: &Digest) -> Result<bool, UpstreamError> {
        let mut has_all = self.has(OutgoingKind::Blob, &blob_path(digest))?;
        if let Some(manifest) = self.store.stored_manifest(name, digest) {
            for each in manifest.descriptors() {
                has_all &= self.has(OutgoingKind::Blob, &blob_path(&each.digest))?;
            }
        }
        Ok(has_all)
    }

    /// Whether the bucket has a manifest, everything that it refers to, and their records.
    fn has_image(&self, name: &ImageName, root: Digest) -> Result<bool, UpstreamError> {
        let (mut next, mut seen, mut has_all) = (vec![root], HashSet::from([root]), true);
        while let Some(digest) = next.pop() {
            has_all &= self.has(OutgoingKind::Manifest, &manifest_path(name, &digest))?;
            has_all &= self.has_blobs_of(name, &digest)?;
            let Some(manifest) = self.store.stored_manifest(name, &digest) else { continue };
            if let ManifestKind::Index { manifests } = manifest.kind() {
                next.extend(
                    manifests.iter().map(|each| each.digest).filter(|each| seen.insert(*each)),
                );
            }
        }
        Ok(has_all)
    }

    /// Whether the bucket has a file, unless this cache does not have it either.
    fn has(&self, kind: OutgoingKind, path: &str) -> Result<bool, UpstreamError> {
        if !self.store.has_file(path) {
            return Ok(true);
        }
        let is_there = match self.bucket.is_wrong(path) {
            true => false,
            false => {
                self.bucket.was_present(path, CONFIRMED_FOR) && self.fate(path)? != Fate::MayBeGone
                    || self.is_there(path)?
            }
        };
        if !is_there {
            if let Err(error) = self.store.queue_again(kind, path) {
                log::warn!(file = path, error:%; "objectStore: cannot queue a file");
            }
            return Ok(false);
        }
        Ok(self.fate(path)? != Fate::IsCondemned)
    }

    fn is_there(&self, path: &str) -> Result<bool, UpstreamError> {
        match self.bucket.store.head(path) {
            Ok(_) => {
                self.bucket.note_present(path);
                Ok(true)
            }
            Err(error) if error.is_not_found() => {
                self.bucket.note_missing(path);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// What sweeps do with an object that was seen before.
    pub(super) fn fate(&self, path: &str) -> Result<Fate, UpstreamError> {
        let mut plans = lock(&self.plans);
        let is_waiting = plans.active.contains(path);
        let read_for = if is_waiting { PLANS_READ_FOR_WAITING } else { PLANS_READ_FOR };
        if plans.read.is_none_or(|read| read.elapsed() >= read_for) {
            *plans = self.read_plans()?;
        }
        Ok(match (plans.active.contains(path), plans.done.contains(path)) {
            (true, _) => Fate::IsCondemned,
            (false, true) => Fate::MayBeGone,
            (false, false) => Fate::Stays,
        })
    }

    fn read_plans(&self) -> Result<Plans, UpstreamError> {
        let store = &self.bucket.store;
        // The time before they are read, since they are at least as new as that.
        let mut plans = Plans { read: Some(Instant::now()), ..Plans::default() };
        for plan in store.list_all(PLANS)? {
            if !is_outdated(plan.modified, store.now()) {
                let keys = read_plan(store, &plan.key)?;
                match plan.key.ends_with(DONE) {
                    true => plans.done.extend(keys),
                    false => plans.active.extend(keys),
                }
            }
        }
        Ok(plans)
    }
}
