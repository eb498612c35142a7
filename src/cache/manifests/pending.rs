//! Manifests and tags that are verified and not stored yet: clients do not wait for the disk.
//!
//! # Interleavings
//! * *Lookup against the end.* A manifest becomes pending before its flight ends, and is stored before it ceases to be
//!   pending. A lookup of a tag checks this table and then the store, so it finds one of them. A lookup of a digest checks
//!   the store first, which has most manifests. It misses one that is stored between the two checks; its request then
//!   leads a new flight, which finds the manifest in the store.
//! * *Two results for one tag.* The second one becomes pending when the first one is stored, so that the newer record is
//!   written last.
//! * *A crash* leaves nothing, or a manifest without its tag. The next request fetches it again.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::content::{Checked, Content, Found};
use crate::cache::lock;
use crate::oci::{Digest, ImageName, Tag};

type ManifestKey = (ImageName, Digest);
type TagKey = (ImageName, Tag);

/// Bounded by the number of fetchers, each of which stores one manifest at a time.
#[derive(Default)]
pub(super) struct PendingTable {
    /// A manifest may be pending several times, for a tag and for its digest.
    manifests: Entries<ManifestKey, Arc<Content>>,
    tags: Entries<TagKey, Found>,
}

struct Entries<K, V> {
    /// Each value with the number of its guards.
    table: Mutex<Table<K, V>>,
    /// Signalled when an entry is removed.
    removed: Condvar,
}

impl<K, V> Default for Entries<K, V> {
    fn default() -> Self {
        Entries { table: Mutex::default(), removed: Condvar::new() }
    }
}

type Table<K, V> = HashMap<K, (V, usize)>;

impl<K: Hash + Eq + Clone, V: Clone> Entries<K, V> {
    fn get(&self, key: &K) -> Option<V> {
        lock(&self.table).get(key).map(|(value, _)| value.clone())
    }

    /// Waits until there is no such entry.
    fn wait_while_any(&self, is_meant: impl Fn(&K) -> bool) -> MutexGuard<'_, Table<K, V>> {
        let is_there = |table: &mut Table<K, V>| table.keys().any(&is_meant);
        let waited = self.removed.wait_while(lock(&self.table), is_there);
        waited.unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an entry, or another guard of the entry that exists.
    fn add(&self, mut table: MutexGuard<'_, Table<K, V>>, key: K, value: V) -> Pending<'_, K, V> {
        table.entry(key.clone()).or_insert((value, 0)).1 += 1;
        Pending { entries: self, key }
    }
}

impl PendingTable {
    pub(super) fn manifest(&self, name: &ImageName, digest: &Digest) -> Option<Arc<Content>> {
        self.manifests.get(&(name.clone(), *digest))
    }

    pub(super) fn tag(&self, name: &ImageName, tag: &Tag) -> Option<Found> {
        self.tags.get(&(name.clone(), tag.clone()))
    }

    /// Makes a manifest pending until the guard is dropped.
    pub(super) fn add_manifest(
        &self,
        key: ManifestKey,
        content: &Arc<Content>,
    ) -> Pending<'_, ManifestKey, Arc<Content>> {
        self.manifests.add(lock(&self.manifests.table), key, Arc::clone(content))
    }

    /// Makes the manifest of a tag pending until the guard is dropped. Waits while an earlier one is.
    pub(super) fn add_tag(
        &self,
        key: TagKey,
        content: &Arc<Content>,
        checked: Checked,
    ) -> Pending<'_, TagKey, Found> {
        let table = self.tags.wait_while_any(|pending| *pending == key);
        self.tags.add(table, key, Found { content: Arc::clone(content), checked })
    }

    /// Waits until nothing is pending of a repository, or of any.
    pub(super) fn wait_until_stored(&self, name: Option<&ImageName>) {
        let is_meant = |of: &ImageName| name.is_none_or(|name| name == of);
        drop(self.manifests.wait_while_any(|(of, _)| is_meant(of)));
        drop(self.tags.wait_while_any(|(of, _)| is_meant(of)));
    }
}

/// An entry, until its last guard is dropped.
pub(super) struct Pending<'a, K: Hash + Eq, V> {
    entries: &'a Entries<K, V>,
    key: K,
}

impl<K: Hash + Eq, V> Drop for Pending<'_, K, V> {
    fn drop(&mut self) {
        let mut table = lock(&self.entries.table);
        if let Some((_, guards)) = table.get_mut(&self.key) {
            *guards -= 1;
            if *guards == 0 {
                table.remove(&self.key);
            }
        }
        self.entries.removed.notify_all();
    }
}
