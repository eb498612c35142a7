//! Evicts an image: first its names, then the blobs that only it refers to. [`super`] explains why nothing else is
//! lost.

use std::collections::{HashMap, HashSet};
use std::fs;

use super::read::Names;
use super::references::Scope;
use super::{Evicted, EvictionCandidate, EvictionIndex};
use crate::oci::{Digest, ImageName, Reference};
use crate::store::gc::Pins;
use crate::store::gc::sweep::{BATCH, Sweep};
use crate::store::{Store, StoreError};

/// An image that is being evicted.
pub(super) struct ImageEviction<'a> {
    sweep: &'a Sweep,
    index: &'a mut EvictionIndex,
    name: ImageName,
    reference: Reference,
    freed: u64,
}

impl<'a> ImageEviction<'a> {
    pub(super) fn new(
        sweep: &'a Sweep,
        index: &'a mut EvictionIndex,
        name: ImageName,
        reference: Reference,
    ) -> ImageEviction<'a> {
        ImageEviction { sweep, index, name, reference, freed: 0 }
    }

    /// Leaves the image to a later index.
    pub(super) fn give_up(&mut self) {
        self.index.has_more = true;
    }

    /// One attempt. `None` if names of the repository changed during it.
    pub(super) fn run(
        &mut self,
        candidate: &EvictionCandidate,
        pins: &Pins,
    ) -> Result<Option<Evicted>, StoreError> {
        let (store, name) = (self.sweep.store.clone(), &self.name.clone());
        let unreadable = store.unreadable_files();
        // Manifests never change, so they are read before the lock is taken.
        let Some(root) = store.root_of(name, &self.reference) else {
            return Ok(Some(Evicted::Absent));
        };
        let parts = store.parts(name, &root);
        if pins.cover_any(name, &self.reference, parts.manifests.iter().copied()) {
            return Ok(Some(Evicted::Pinned));
        }
        if store.waits_for_upload(name, &self.reference, &parts.manifests) {
            return Ok(Some(Evicted::NotUploaded));
        }
        self.sweep.reread(self.index, name)?;
        let lock = match store.exclusive_lock()? {
            Ok(lock) => lock,
            Err(reason) => return Ok(Some(Evicted::Locked(reason))),
        };
        if !self.is_unchanged() || store.root_of(name, &self.reference) != Some(root) {
            return Ok(None);
        }
        if matches!(self.reference, Reference::Digest(_)) && self.is_referred_to(&root) {
            // It has become a part of another image.
            return Ok(Some(Evicted::Absent));
        }
        let counting: Vec<Digest> =
            parts.manifests.iter().chain(&candidate.subject).copied().collect();
        let used = store.last_use(name, &self.reference, &counting);
        if let Some(used) = used.filter(|used| *used > candidate.used) {
            self.index.put_back(candidate.clone(), used);
            return Ok(Some(Evicted::InUse));
        }
        // After a temporary read error, a pinned child or the last use may have been missed.
        if store.unreadable_files() != unreadable {
            return Err(StoreError::unreadable_meanwhile(store.root()));
        }
        let times = store.repository_times(name);
        let is_going = match &self.reference {
            Reference::Tag(tag) => {
                self.freed += store.inner.remove_counted(&store.inner.layout.tag(name, tag))?;
                store.note_changed_tag(name, tag);
                self.release(&root)
            }
            Reference::Digest(_) => true,
        };
        store.keep_times(name, &times);
        drop(lock);
        if is_going {
            self.remove_records(root, &parts.manifests)?;
        }
        Ok(Some(Evicted::Removed { bytes: self.freed, is_image: true }))
    }

    /// Whether no name of the repository was added or replaced since its references were read.
    fn is_unchanged(&self) -> bool {
        let known_since = match &self.index.reread {
            Some(reread) if reread.name == self.name => reread.began,
            _ => self.index.began,
        };
        self.sweep.store.repository_times(&self.name).are_before(known_since)
    }

    /// The references of the repository, if they were read again.
    fn reread(&mut self) -> Option<&mut HashMap<Digest, u32>> {
        let reread = self.index.reread.as_mut().filter(|reread| reread.name == self.name)?;
        Some(&mut reread.references)
    }

    /// Whether a tag or an index of the repository refers to a manifest.
    fn is_referred_to(&mut self, digest: &Digest) -> bool {
        let scope = self.index.references.scope_of(&self.name.to_string());
        match self.reread() {
            Some(references) => references.get(digest).is_some_and(|count| *count > 0),
            None => self.index.references.is_named(scope, digest),
        }
    }

    /// Releases a reference of a tag or an index of the repository. Returns whether it was the last.
    fn release(&mut self, digest: &Digest) -> bool {
        let scope = self.index.references.scope_of(&self.name.to_string());
        match self.reread().map(|references| references.get_mut(digest)) {
            Some(Some(count)) => {
                *count = count.saturating_sub(1);
                *count == 0
            }
            Some(None) => true,
            None => self.index.references.release(scope, digest),
        }
    }

    /// Removes the records that have no references left, and the blobs that only they refer to, in batches, each
    /// under the exclusive lock. If the repository changes in between, the remaining records are images themselves,
    /// which the next index finds.
    fn remove_records(&mut self, root: Digest, manifests: &[Digest]) -> Result<(), StoreError> {
        let store = self.sweep.store.clone();
        let mut going = HashSet::from([root]);
        for batch in manifests.chunks(BATCH) {
            let lock = store.exclusive_lock()?.ok();
            let unreadable = store.unreadable_files();
            let is_unchanged = self.is_unchanged() && store.unreadable_files() == unreadable;
            if lock.is_none() || !is_unchanged {
                self.index.has_more = true;
                return Ok(());
            }
            let (times, mut unnamed) = (store.repository_times(&self.name), Vec::new());
            for digest in batch {
                if going.contains(digest) {
                    self.remove_record(&store, *digest, &mut going, &mut unnamed)?;
                }
            }
            store.inner.remove_empty_repository(&self.name);
            store.keep_times(&self.name, &times);
            drop(lock);
            let freed = self.sweep.remove_settled(self.index, &unnamed, &mut || true)?;
            self.freed += freed.unwrap_or_default();
        }
        Ok(())
    }

    fn remove_record(
        &mut self,
        store: &Store,
        digest: Digest,
        going: &mut HashSet<Digest>,
        unnamed: &mut Vec<Digest>,
    ) -> Result<(), StoreError> {
        let path = store.inner.layout.manifest(&self.name, &digest);
        if !path.exists() {
            return Ok(());
        }
        // For a manifest that could not be read, only its own digest was counted. If it has been repaired since, it
        // is not settled.
        let metadata = fs::metadata(store.inner.layout.blob(&digest));
        let is_known = metadata.is_ok_and(|metadata| self.index.is_settled(&metadata));
        let manifest = store.stored_manifest(&self.name, &digest).filter(|_| is_known);
        let names = manifest.as_ref().map(Names::of);
        self.freed += store.inner.remove_counted(&path)?;
        if let Some(index) = names.as_ref().filter(|names| names.is_index) {
            for child in &index.digests {
                if self.release(child) {
                    going.insert(*child);
                }
            }
        }
        let names = names.into_iter().flat_map(|names| names.digests);
        for each in names.chain([digest]) {
            let metadata = fs::metadata(store.inner.layout.blob(&each));
            if metadata.is_ok_and(|metadata| self.index.is_settled(&metadata))
                && self.index.references.release(Scope::Everywhere, &each)
            {
                unnamed.push(each);
            }
        }
        Ok(())
    }
}
