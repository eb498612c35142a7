//! The content of repositories whose registry decides who may pull.
//!
//! Threat: anyone can publish a manifest that names a digest. If Larder took its word, whoever knows the digest of a private
//! layer or image would get it through a repository of their own. So for these digests a manifest proves nothing
//! (`cache/blobs/links.rs`).

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};

use crate::cache::lock;
use crate::oci::{Digest, Manifest};
use crate::store::Store;

/// The digests that are in a private repository. They are marked on the disk, for all processes on the directory.
#[derive(Default)]
pub(in crate::cache) struct PrivateDigests {
    /// Whether the manifests on the disk have been read, which may be older than the marks. Until then every digest may be
    /// private.
    is_complete: AtomicBool,
    /// Locked for a lookup or for the digests of one manifest.
    known: RwLock<Known>,
    /// Held while the disk is read.
    reading: Mutex<()>,
}

#[derive(Default)]
struct Known {
    /// The manifests whose digests are marked. Proportional to what is cached of private repositories.
    manifests: HashSet<Digest>,
    /// Digests that could not be marked, because the disk is full or read-only.
    unmarked: HashSet<Digest>,
}

impl PrivateDigests {
    /// Whether a digest may be private.
    pub(in crate::cache) fn may_have(&self, store: &Store, digest: &Digest) -> bool {
        !self.is_complete.load(Ordering::Acquire)
            || self.known().unmarked.contains(digest)
            || store.is_private(digest)
    }

    /// Adds a manifest of a private repository, and what it refers to.
    pub(in crate::cache) fn add_manifest(
        &self,
        store: &Store,
        digest: Digest,
        manifest: &Manifest,
    ) {
        if self.known().manifests.contains(&digest) {
            return;
        }
        let parts = manifest.descriptors().map(|descriptor| descriptor.digest);
        self.add(store, &parts.chain([digest]).collect::<Vec<_>>());
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.manifests.insert(digest);
    }

    /// Adds digests that a private repository has.
    pub(in crate::cache) fn add(&self, store: &Store, digests: &[Digest]) {
        if let Err(error) = store.mark_private(digests) {
            log::warn!(
                error:% = error;
                "access: cannot mark private content on the disk, so other processes do not know that it is private"
            );
            // Insertions of single digests: any part of them is valid after a panic.
            let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
            known.unmarked.extend(digests);
        }
    }

    fn known(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the disk with `read`, which adds what it finds, unless that has been done.
    ///
    /// # Errors
    /// That of `read`.
    pub(in crate::cache) fn complete<E>(
        &self,
        read: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let _reading = lock(&self.reading);
        if !self.is_complete.load(Ordering::Acquire) {
            read()?;
            self.is_complete.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Other repositories are private now.
    pub(in crate::cache) fn reset(&self) {
        let _reading = lock(&self.reading);
        self.is_complete.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Algorithm, MediaType};
    use crate::store::Settings;

    #[test]
    fn everything_may_be_private_until_the_disk_was_read() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().to_owned();
        let store = &Store::open(&Settings { root, fsync: false }).unwrap();
        let digests = PrivateDigests::default();
        let digest = |text: &str| Digest::of(Algorithm::Sha256, text.as_bytes());
        assert!(digests.may_have(store, &digest("open")));
        let json = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"application/json","size":1,"digest":"{}"}},"layers":[]}}"#,
            digest("config")
        );
        let manifest = Manifest::parse(json.as_bytes(), Some(MediaType::OCI_MANIFEST)).unwrap();
        digests.complete(|| Err("unreadable")).unwrap_err();
        assert!(digests.may_have(store, &digest("open")), "not all of it was read");
        digests
            .complete::<()>(|| {
                digests.add_manifest(store, digest("image"), &manifest);
                Ok(())
            })
            .unwrap();
        assert!(
            digests.may_have(store, &digest("image")) && digests.may_have(store, &digest("config"))
        );
        assert!(!digests.may_have(store, &digest("open")));
        digests.reset();
        assert!(digests.may_have(store, &digest("open")));
    }
}
