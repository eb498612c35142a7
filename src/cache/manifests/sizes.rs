//! The sizes of blobs that manifests state: a file of another size is truncated, and a client need not wait for the
//! registry to learn the size.

use super::ManifestCache;
use crate::cache::lock;
use crate::oci::{Digest, ImageName, Manifest};
use crate::store::Access;

/// Descriptors remembered of one manifest: more than any image has, so that one made to push out
/// everybody else's does not.
const DESCRIPTORS_REMEMBERED: usize = 512;

/// How many manifests of a repository are read for the sizes in them, and how large each may be: some milliseconds
/// of work.
const MANIFESTS_LEARNED_MAX: usize = 8;
const MANIFEST_LEARNED_BYTES_MAX: u64 = 64 * 1024;

impl ManifestCache {
    /// Reads the sizes that the cached manifests of a repository state, once in the life of a process: after a
    /// restart clients may ask for blobs of manifests that they have, and a file that was truncated meanwhile must
    /// be noticed all the same.
    fn learn_sizes(&self, name: &ImageName) {
        if lock(&self.learned).get(name).is_some() {
            return;
        }
        lock(&self.learned).insert(name.clone(), ());
        for digest in self.core.store.manifests(name).into_iter().take(MANIFESTS_LEARNED_MAX) {
            let record = self.core.store.manifest(name, &digest, Access::Look);
            if record.is_some_and(|record| record.size <= MANIFEST_LEARNED_BYTES_MAX) {
                // Reading a manifest remembers the sizes in it.
                let _ = self.stored_manifest(name, &digest, Access::Look);
            }
        }
    }

    /// The size of a blob as the cached manifests of this repository state it, in bytes.
    ///
    /// Anybody can publish a manifest that lies about the size of a blob, so it counts for its own repository only.
    pub(in crate::cache) fn stated_size(&self, name: &ImageName, digest: &Digest) -> Option<u64> {
        let stated = || lock(&self.sizes_from_manifests).get(&(name.clone(), *digest)).copied();
        stated().or_else(|| {
            self.learn_sizes(name);
            stated()
        })
    }

    /// Remembers the sizes of the blobs of a manifest. Clients request these blobs next, and a file of another size is
    /// truncated.
    pub(super) fn remember_sizes(&self, name: &ImageName, manifest: &Manifest) {
        let mut sizes = lock(&self.sizes_from_manifests);
        for descriptor in manifest.descriptors().take(DESCRIPTORS_REMEMBERED) {
            if let Some(size) = descriptor.known_size() {
                sizes.insert((name.clone(), descriptor.digest), size);
            }
        }
    }
}
