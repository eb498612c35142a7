//! Manifests and tags that are verified and not stored yet: clients do not wait for the disk.
//!
//! # Interleavings
//! * *Lookup against the end.* A manifest becomes pending before its flight ends, and is stored before it ceases to be
//!   pending. Who looks in the store first and here next misses it only if it was pending in between; then it leads a
//!   flight, which finds it in the store.
//! * *Two results for one tag.* The second one becomes pending when the first one is stored, so that the newer record is
//!   written last.
//! * *A crash* leaves nothing, or a manifest without its tag. The next request fetches it again.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::SystemTime;

use super::Outcome;
use crate::cache::lock;
use crate::oci::{Digest, ImageName, Tag};

type ManifestKey = (ImageName, Digest);
type TagKey = (ImageName, Tag);

/// Bounded by the number of fetchers, each of which stores one manifest at a time.
#[derive(Default)]
pub(super) struct PendingTable {
    /// A manifest may be pending several times, for a tag and for its digest.
    manifests: Entries<ManifestKey, (Outcome, usize)>,
    /// With the time when the registry confirmed it.
    tags: Entries<TagKey, (Outcome, SystemTime)>,
}

struct Entries<K, V> {
    table: Mutex<HashMap<K, V>>,
    /// Signalled when an entry is removed.
    removed: Condvar,
}

impl<K, V> Default for Entries<K, V> {
    fn default() -> Self {
        Entries { table: Mutex::default(), removed: Condvar::new() }
    }
}

impl<K: Hash + Eq, V> Entries<K, V> {
    /// Waits until there is no such entry.
    fn wait_while_any(&self, is_meant: impl Fn(&K) -> bool) {
        let is_there = |table: &mut HashMap<K, V>| table.keys().any(&is_meant);
        let waited = self.removed.wait_while(lock(&self.table), is_there);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

impl PendingTable {
    pub(super) fn manifest(&self, name: &ImageName, digest: &Digest) -> Option<Outcome> {
        let table = lock(&self.manifests.table);
        table.get(&(name.clone(), *digest)).map(|(content, _)| Arc::clone(content))
    }

    pub(super) fn tag(&self, name: &ImageName, tag: &Tag) -> Option<(Outcome, SystemTime)> {
        lock(&self.tags.table).get(&(name.clone(), tag.clone())).cloned()
    }

    /// Makes a manifest pending until the guard is dropped.
    pub(super) fn add_manifest(&self, key: ManifestKey, content: &Outcome) -> PendingManifest<'_> {
        let mut table = lock(&self.manifests.table);
        table.entry(key.clone()).or_insert_with(|| (Arc::clone(content), 0)).1 += 1;
        PendingManifest { entries: &self.manifests, key }
    }

    /// Makes the manifest of a tag pending until the guard is dropped. Waits while an earlier one is.
    pub(super) fn add_tag(
        &self,
        key: TagKey,
        content: &Outcome,
        checked: SystemTime,
    ) -> PendingTag<'_> {
        let is_there = |table: &mut HashMap<TagKey, _>| table.contains_key(&key);
        let waited = self.tags.removed.wait_while(lock(&self.tags.table), is_there);
        let mut table = waited.unwrap_or_else(PoisonError::into_inner);
        table.insert(key.clone(), (Arc::clone(content), checked));
        PendingTag { entries: &self.tags, key }
    }

    /// Waits until nothing is pending of a repository, or of any.
    pub(super) fn wait_until_stored(&self, name: Option<&ImageName>) {
        let is_meant = |of: &ImageName| name.is_none_or(|name| name == of);
        self.manifests.wait_while_any(|(of, _)| is_meant(of));
        self.tags.wait_while_any(|(of, _)| is_meant(of));
    }
}

/// See [`PendingTable::add_manifest`].
pub(super) struct PendingManifest<'a> {
    entries: &'a Entries<ManifestKey, (Outcome, usize)>,
    key: ManifestKey,
}

impl Drop for PendingManifest<'_> {
    fn drop(&mut self) {
        let mut table = lock(&self.entries.table);
        if let Some((_, times)) = table.get_mut(&self.key) {
            *times -= 1;
            if *times == 0 {
                table.remove(&self.key);
            }
        }
        self.entries.removed.notify_all();
    }
}

/// See [`PendingTable::add_tag`].
pub(super) struct PendingTag<'a> {
    entries: &'a Entries<TagKey, (Outcome, SystemTime)>,
    key: TagKey,
}

impl Drop for PendingTag<'_> {
    fn drop(&mut self) {
        lock(&self.entries.table).remove(&self.key);
        self.entries.removed.notify_all();
    }
}
