//! The bytes of a manifest: in memory if it is small, in its file if it is large, shared by all clients.
//!
//! This module must not know freshness, nor how a manifest is stored.

use std::sync::{Arc, Weak};
use std::time::SystemTime;

use super::{ManifestCache, sizes};
use crate::cache::{CacheError, How, Why, lock};
use crate::oci::{Digest, ImageName, MANIFEST_BYTES_MAX, Manifest, MediaType};
use crate::store::Document;
use crate::upstream::{Confirmation, ManifestHead};

/// Larger manifests are sent from their file, so that memory stays bounded.
pub(super) const MEMORY_BYTES_MAX: usize = 16 * 1024;

/// When the table of large manifests in use has this many entries, unused ones are removed.
const IN_USE_SWEPT_AT: usize = 1024;

/// The bytes of a manifest, with its digest and media type.
#[derive(Debug)]
pub(in crate::cache) struct Content {
    pub(super) digest: Digest,
    pub(super) media_type: MediaType,
    /// A large manifest is a file of the store: a client that reads slowly takes no memory.
    pub(in crate::cache) body: Document,
}

impl Content {
    pub(in crate::cache) fn digest(&self) -> &Digest {
        &self.digest
    }

    pub(super) fn head(&self) -> ManifestHead {
        let (digest, media_type) = (self.digest, self.media_type.clone());
        ManifestHead { digest, media_type, size: self.size() }
    }

    pub(in crate::cache) fn size(&self) -> u64 {
        self.body.length()
    }
}

/// When the registry confirmed that a tag is a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Checked {
    pub(super) at: SystemTime,
    /// Whether a Larder in between could not confirm it when it should have.
    pub(super) is_stale: bool,
    /// Whether the registry has another manifest, which is not accepted yet.
    pub(super) is_held: bool,
    /// Whether the tag has moved to this manifest and the move was held first, here or at another Larder.
    pub(super) is_vetted: bool,
}

impl Checked {
    /// By this process. A manifest by its digest needs no confirmation.
    pub(super) fn at(at: SystemTime) -> Checked {
        Checked { at, is_stale: false, is_held: false, is_vetted: false }
    }

    /// According to a response that arrives now.
    pub(super) fn of(confirmation: Confirmation, now: SystemTime) -> Checked {
        let Confirmation { age, is_stale, is_vetted } = confirmation;
        let at = now.checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
        Checked { at, is_stale, is_held: false, is_vetted }
    }

    /// Where a response came from, if a Larder could not confirm what it sent, or if the registry has moved the tag.
    pub(super) fn restrict(self, how: How, why: Option<Why>) -> (How, Option<Why>) {
        match self.is_stale {
            true if how != How::Stale => (How::Stale, Some(Why::StaleAtParent)),
            false if self.is_held && how != How::Stale => (how, Some(Why::Held)),
            _ => (how, why),
        }
    }
}

/// A manifest that was found, and when its tag was confirmed.
#[derive(Debug, Clone)]
pub(in crate::cache) struct Found {
    pub(in crate::cache) content: Arc<Content>,
    pub(super) checked: Checked,
}

/// A manifest to be served.
#[derive(Debug, Clone)]
pub struct ManifestAnswer {
    pub(super) content: Arc<Content>,
    /// Where it comes from.
    pub how: How,
    /// Why it is not a plain hit.
    pub why: Option<Why>,
    /// When the registry confirmed its tag.
    pub checked: SystemTime,
    /// Whether the tag has moved to it and the move was held first (`tags[].hold`).
    pub is_vetted: bool,
}

impl ManifestAnswer {
    pub(super) fn new(found: Found, how: How, why: Option<Why>) -> ManifestAnswer {
        let (how, why) = found.checked.restrict(how, why);
        let Checked { at: checked, is_vetted, .. } = found.checked;
        ManifestAnswer { content: found.content, how, why, checked, is_vetted }
    }

    /// The manifest's digest.
    pub fn digest(&self) -> &Digest {
        &self.content.digest
    }

    /// The media type for the response.
    pub fn media_type(&self) -> &MediaType {
        &self.content.media_type
    }

    /// The bytes, as the registry sent them.
    pub fn body(&self) -> &Document {
        &self.content.body
    }
}

impl ManifestCache {
    pub(super) fn read_content(
        &self,
        name: &ImageName,
        digest: Digest,
        media_type: MediaType,
        size: u64,
    ) -> Result<Option<Arc<Content>>, CacheError> {
        if size > MANIFEST_BYTES_MAX as u64 {
            // Nothing else than a damaged record says so.
            return Ok(None);
        }
        if size > MEMORY_BYTES_MAX as u64 {
            return self.large_content(name, digest, media_type, size);
        }
        let Some(bytes) = self.core.store.find_bytes(&digest, size)? else { return Ok(None) };
        if let Ok(manifest) = Manifest::parse(&bytes, Some(media_type.as_str())) {
            self.remember_sizes(name, &manifest);
            self.core.note_private(name, digest, &manifest);
        }
        let body = Document::Memory(bytes.into());
        Ok(Some(Arc::new(Content { digest, media_type, body })))
    }

    /// A manifest that is sent from its file. It is read into memory only occasionally, for the sizes that it states.
    fn large_content(
        &self,
        name: &ImageName,
        digest: Digest,
        media_type: MediaType,
        size: u64,
    ) -> Result<Option<Arc<Content>>, CacheError> {
        if let Some(content) = lock(&self.in_use).get(&digest).and_then(Weak::upgrade)
            && content.media_type == media_type
        {
            return Ok(Some(content));
        }
        let Some(blob) = self.core.store.find_verified(&digest, size)? else { return Ok(None) };
        let file = blob.file;
        let key = (name.clone(), digest);
        if lock(&self.sizes_read).get(&key).is_none() {
            lock(&self.sizes_read).insert(key, ());
            let (name, media_type) = (name.clone(), media_type.clone());
            let sizes = Arc::clone(&self.sizes_from_manifests);
            let core = Arc::clone(&self.core);
            // This may be a worker, which must not wait for other large manifests.
            self.core.store.with_range_later(&file, 0..size, move |bytes| {
                if let Ok(manifest) = Manifest::parse(bytes, Some(media_type.as_str())) {
                    sizes::remember(&sizes, &name, &manifest);
                    core.note_private(&name, digest, &manifest);
                }
            });
        }
        let body = Document::File { file, range: 0..size };
        Ok(Some(self.share(Content { digest, media_type, body })))
    }

    /// Makes all clients of a large manifest share one file.
    pub(super) fn share(&self, content: Content) -> Arc<Content> {
        let content = Arc::new(content);
        let mut in_use = lock(&self.in_use);
        if in_use.len() >= IN_USE_SWEPT_AT {
            in_use.retain(|_, content| content.strong_count() > 0);
        }
        in_use.insert(content.digest, Arc::downgrade(&content));
        content
    }
}
