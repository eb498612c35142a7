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

/// The digests that are in a private repository. Proportional to what is cached of private repositories.
#[derive(Default)]
pub(in crate::cache) struct PrivateDigests {
    /// Whether the manifests on the disk have been read. Until then every digest may be private.
    is_complete: AtomicBool,
    /// Locked for a lookup or for the digests of one manifest.
    known: RwLock<Known>,
    /// Held while the disk is read.
    reading: Mutex<()>,
}

#[derive(Default)]
struct Known {
    digests: HashSet<Digest>,
    /// The manifests whose digests are among them.
    manifests: HashSet<Digest>,
}

impl PrivateDigests {
    /// Whether a digest may be private.
    pub(in crate::cache) fn may_have(&self, digest: &Digest) -> bool {
        !self.is_complete.load(Ordering::Acquire) || self.known().digests.contains(digest)
    }

    /// Adds a manifest of a private repository, and what it refers to.
    pub(in crate::cache) fn add(&self, digest: Digest, manifest: &Manifest) {
        if self.known().manifests.contains(&digest) {
            return;
        }
        // Insertions of single digests: any part of them is valid after a panic.
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.digests.insert(digest);
        known.digests.extend(manifest.descriptors().map(|descriptor| descriptor.digest));
        known.manifests.insert(digest);
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

    #[test]
    fn everything_may_be_private_until_the_disk_was_read() {
        let digests = PrivateDigests::default();
        let digest = |text: &str| Digest::of(Algorithm::Sha256, text.as_bytes());
        assert!(digests.may_have(&digest("open")));
        let json = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"application/json","size":1,"digest":"{}"}},"layers":[]}}"#,
            digest("config")
        );
        let manifest = Manifest::parse(json.as_bytes(), Some(MediaType::OCI_MANIFEST)).unwrap();
        digests.complete(|| Err("unreadable")).unwrap_err();
        assert!(digests.may_have(&digest("open")), "not all of it was read");
        digests
            .complete::<()>(|| {
                digests.add(digest("image"), &manifest);
                Ok(())
            })
            .unwrap();
        assert!(digests.may_have(&digest("image")) && digests.may_have(&digest("config")));
        assert!(!digests.may_have(&digest("open")));
        digests.reset();
        assert!(digests.may_have(&digest("open")));
    }
}
