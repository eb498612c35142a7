//! The blob sizes that manifests state. They show that a file is truncated, and make it unnecessary to wait for the
//! registry to report the size.

use std::sync::Mutex;

use super::ManifestCache;
use crate::cache::bounded::BoundedCache;
use crate::cache::lock;
use crate::oci::{Digest, ImageName, Manifest};
use crate::store::Access;

/// How many descriptors of one manifest are remembered: more than any image has. A manifest with more cannot displace
/// all other entries.
const DESCRIPTORS_REMEMBERED: usize = 512;

/// How many manifests of a repository are read for their sizes, and the maximum size of each: a few milliseconds of
/// work.
const MANIFESTS_LEARNED_MAX: usize = 8;
const MANIFEST_LEARNED_BYTES_MAX: u64 = 64 * 1024;

/// Sizes of blobs as manifests state them, each for the repository of the manifest.
pub(super) type Sizes = Mutex<BoundedCache<(ImageName, Digest), u64>>;

impl ManifestCache {
    /// Reads the sizes that the cached manifests of a repository state, once per process. After a restart, clients may
    /// request blobs of manifests that they already have, and a file that was truncated meanwhile must be detected.
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

    /// The size of a blob in bytes, as stated by the cached manifests of this repository.
    ///
    /// Anyone can publish a manifest with a wrong size, so it applies to its own repository only.
    pub(in crate::cache) fn stated_size(&self, name: &ImageName, digest: &Digest) -> Option<u64> {
        let stated = || lock(&self.sizes_from_manifests).get(&(name.clone(), *digest)).copied();
        stated().or_else(|| {
            self.learn_sizes(name);
            stated()
        })
    }

    /// Remembers the blob sizes in a manifest. Its blobs will be requested next, and the sizes show truncated files.
    pub(super) fn remember_sizes(&self, name: &ImageName, manifest: &Manifest) {
        remember(&self.sizes_from_manifests, name, manifest);
    }
}

/// Adds the sizes in a manifest to the table.
pub(super) fn remember(sizes: &Sizes, name: &ImageName, manifest: &Manifest) {
    let mut sizes = lock(sizes);
    for descriptor in manifest.descriptors().take(DESCRIPTORS_REMEMBERED) {
        if let Some(size) = descriptor.known_size() {
            sizes.insert((name.clone(), descriptor.digest), size);
        }
    }
}
