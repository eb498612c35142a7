//! The bytes of a manifest: in memory if it is small, in its file if it is large, shared by all clients.
//!
//! This module must not know freshness, nor how a manifest is stored.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Weak};

use super::ManifestCache;
use crate::cache::{CacheError, How, lock};
use crate::oci::{Digest, ImageName, MediaType};
use crate::upstream::ManifestHead;

/// Larger manifests are sent from their file, so that memory stays bounded.
pub(super) const MEMORY_BYTES_MAX: usize = 16 * 1024;

/// When the table of large manifests in use has this many entries, unused ones are removed.
const IN_USE_SWEPT_AT: usize = 1024;

/// The bytes of a manifest, with its digest and media type.
#[derive(Debug)]
pub(in crate::cache) struct Content {
    pub(super) digest: Digest,
    pub(super) media_type: MediaType,
    pub(super) payload: Payload,
}

/// Where a manifest's bytes are.
#[derive(Debug)]
pub enum Payload {
    /// In memory.
    Memory(Arc<[u8]>),
    /// In the store, verified. A large manifest thus uses no memory while a slow client reads it.
    File {
        /// It contains only these bytes.
        file: Arc<File>,
        /// The number of bytes.
        size: u64,
    },
}

impl Content {
    pub(in crate::cache) fn digest(&self) -> &Digest {
        &self.digest
    }

    pub(super) fn head(&self) -> ManifestHead {
        let (digest, media_type) = (self.digest, self.media_type.clone());
        ManifestHead { digest, media_type, size: self.size() }
    }

    /// The bytes, wherever they are.
    pub(in crate::cache) fn read(&self) -> io::Result<Arc<[u8]>> {
        match &self.payload {
            Payload::Memory(bytes) => Ok(Arc::clone(bytes)),
            Payload::File { file, size } => read_all(file, *size),
        }
    }

    pub(in crate::cache) fn size(&self) -> u64 {
        match &self.payload {
            Payload::Memory(bytes) => bytes.len() as u64,
            Payload::File { size, .. } => *size,
        }
    }
}

/// A manifest to be served.
#[derive(Debug, Clone)]
pub struct ManifestAnswer {
    pub(super) content: Arc<Content>,
    /// Where it comes from.
    pub how: How,
}

impl ManifestAnswer {
    /// The manifest's digest.
    pub fn digest(&self) -> &Digest {
        &self.content.digest
    }

    /// The media type for the response.
    pub fn media_type(&self) -> &MediaType {
        &self.content.media_type
    }

    /// The bytes as the registry sent them.
    pub fn payload(&self) -> &Payload {
        &self.content.payload
    }

    /// The bytes, wherever they are.
    ///
    /// # Errors
    /// If the file can no longer be read.
    pub fn read(&self) -> io::Result<Arc<[u8]>> {
        self.content.read()
    }
}

fn read_all(file: &File, size: u64) -> io::Result<Arc<[u8]>> {
    let mut bytes = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes.into())
}

impl ManifestCache {
    pub(super) fn read_content(
        &self,
        name: &ImageName,
        digest: Digest,
        media_type: MediaType,
        size: u64,
    ) -> Result<Option<Arc<Content>>, CacheError> {
        if size > MEMORY_BYTES_MAX as u64 {
            return self.large_content(name, digest, media_type, size);
        }
        let Some(bytes) = self.core.store.find_bytes(&digest, size)? else { return Ok(None) };
        let bytes: Arc<[u8]> = bytes.into();
        self.parse_sizes(name, &media_type, &bytes);
        let payload = Payload::Memory(bytes);
        Ok(Some(Arc::new(Content { digest, media_type, payload })))
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
        if lock(&self.sizes_read).get(&key).is_none()
            && let Ok(bytes) = read_all(&file, size)
        {
            self.parse_sizes(name, &media_type, &bytes);
            lock(&self.sizes_read).insert(key, ());
        }
        let payload = Payload::File { file, size };
        Ok(Some(self.share(Content { digest, media_type, payload })))
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
