//! Requests that no client waits for: they confirm tags and lists whatever the freshness policy is, and download blobs
//! when no client needs a fetcher. Callers may block.

use std::io::Read;
use std::sync::{Arc, Mutex, mpsc};

use super::blobs::BlobWait;
use super::bounded::BoundedCache;
use super::core::Core;
use super::negative::Asked;
use super::{BlobLookup, Cache, CacheError, SIZES_REMEMBERED, Ttl, lock};
use crate::oci::{
    Descriptor, Digest, ImageConfig, ImageName, Manifest, ManifestKind, Platforms, Reference, Tag,
    Verifier,
};
use crate::store::{Access, Document};
use crate::upstream::{BlobAsk, EndpointFailures, UpstreamError};

/// The largest config that is read for its creation time. Those of images have some kilobytes.
const CONFIG_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// A download that waits for a fetcher in the background.
pub struct QueuedBlob {
    /// Receives the flight when the download starts, or nothing if the blob is in the store by then.
    pub(super) started: mpsc::Receiver<Option<BlobWait>>,
    cache: Cache,
    name: ImageName,
    digest: Digest,
}

/// What a lookup for a download in the background found.
pub enum BackgroundLookup {
    /// As for a client: it is in the store, or a download is under way.
    Found(BlobLookup),
    /// The download is queued.
    Queued(QueuedBlob),
}

impl QueuedBlob {
    /// Waits until the download starts. Blocks.
    ///
    /// # Errors
    /// [`CacheError::GivenUp`] if the server is stopping.
    pub fn started(self) -> Result<BlobLookup, CacheError> {
        match self.started.recv() {
            Ok(Some(waiting)) => Ok(BlobLookup::Wait(waiting)),
            Ok(None) => self.cache.services.blobs.find_stored(&self.name, &self.digest),
            Err(mpsc::RecvError) => Err(CacheError::GivenUp),
        }
    }
}

/// The creation times of images, by the digest that their tags name.
pub(super) struct CreationTimes(Mutex<BoundedCache<(ImageName, Digest), Option<String>>>);

impl Default for CreationTimes {
    fn default() -> CreationTimes {
        CreationTimes(Mutex::new(BoundedCache::new(SIZES_REMEMBERED)))
    }
}

impl Cache {
    /// The blob of a digest, downloaded when no client needs a fetcher. Does not wait for anything but the local disk.
    ///
    /// # Errors
    /// [`CacheError`] if it is known that the blob is not available, or the queue is full.
    pub fn blob_in_background(
        &self,
        name: &ImageName,
        blob: &Descriptor,
    ) -> Result<BackgroundLookup, CacheError> {
        self.core().stop_if_refused(name)?;
        let blobs = &self.services.blobs;
        if let Some(found) = blobs.find_at_hand(name, &blob.digest)? {
            return Ok(BackgroundLookup::Found(found));
        }
        let started = blobs.queue_in_background(name, &blob.digest, blob.known_size())?;
        let (name, digest) = (name.clone(), blob.digest);
        Ok(BackgroundLookup::Queued(QueuedBlob { started, cache: self.clone(), name, digest }))
    }

    /// Confirms a tag with its registry even if it is fresh, and fetches its manifest if it has moved or is not cached.
    /// Tags that never move (`tagTtl: forever`) are not confirmed again. Blocks.
    ///
    /// # Errors
    /// [`CacheError`] if the registry does not confirm it.
    pub fn confirm_tag(&self, name: &ImageName, tag: &Tag) -> Result<(), CacheError> {
        let core = self.core();
        core.stop_if_refused(name)?;
        let is_cached = core.store.find_tag(name, tag, Access::Look)?.is_some();
        if is_cached && core.settings().freshness.ttl(name, tag) == Ttl::Forever {
            return Ok(());
        }
        if core.is_offline() {
            return Err(CacheError::NotCached);
        }
        core.stop_if_backing_off(name, |_| false)?;
        core.stop_if_closed()?;
        if !is_cached {
            // What is cached is confirmed with HEAD, which does not count.
            keep_pulls_for_clients(core, name)?;
        }
        self.services.manifests.confirm(name, tag)
    }

    /// Checks whether a manifest may be requested that no client waits for.
    ///
    /// # Errors
    /// [`CacheError::KeptForClients`] if little is left of the registry's rate limit, and the manifest is not cached.
    pub fn check_pulls_left(&self, name: &ImageName, digest: &Digest) -> Result<(), CacheError> {
        let core = self.core();
        if core.is_offline() || core.store.find_manifest(name, digest, Access::Look)?.is_some() {
            return Ok(());
        }
        keep_pulls_for_clients(core, name)
    }

    /// A page of the tags of a repository as the registry lists them now, and the query of the next page. Blocks.
    ///
    /// # Errors
    /// [`CacheError`] if the registry does not list them.
    pub fn current_tags(
        &self,
        name: &ImageName,
        query: &str,
    ) -> Result<(Document, Option<String>), CacheError> {
        let core = self.core();
        core.stop_if_refused(name)?;
        if core.is_offline() {
            return Err(CacheError::NotCached);
        }
        core.stop_if_backing_off(name, |_| false)?;
        core.stop_if_closed()?;
        self.services.lists.current_tags(name, query)
    }

    /// When the image of a tag was built, as its config states; of an index, the image for the first of `platforms`
    /// that it has. `None` if it does not say. Nothing is stored: an image of which only the config is cached would
    /// be incomplete. Blocks.
    ///
    /// # Errors
    /// [`CacheError`] if the registry does not have the image, or does not answer.
    pub fn created(
        &self,
        name: &ImageName,
        tag: &Tag,
        platforms: &Platforms,
    ) -> Result<Option<String>, CacheError> {
        let core = self.core();
        core.stop_if_refused(name)?;
        core.stop_if_backing_off(name, |_| false)?;
        core.stop_if_closed()?;
        // HEAD, because GET counts against rate limits.
        let source = core.source(&name.upstream)?;
        let resolved = source.resolve(&name.repository, tag);
        let digest = match resolved {
            Ok(digest) => digest.map(|(digest, _)| digest),
            Err(error) if error.may_be_about_head() => None,
            Err(error) => {
                let asked = Asked::Manifest(name.clone(), Reference::Tag(tag.clone()));
                core.note_outcome(&*source, name, asked, &Err::<(), _>(error.clone()));
                return Err(error.into());
            }
        };
        let known = |digest: Digest| {
            lock(&self.services.creation_times.0).get(&(name.clone(), digest)).cloned()
        };
        if let Some(created) = digest.and_then(known) {
            return Ok(created);
        }
        keep_pulls_for_clients(core, name)?;
        let reference = digest.map_or_else(|| Reference::Tag(tag.clone()), Reference::Digest);
        let (root, mut manifest) = read_manifest(core, name, &reference)?;
        if let ManifestKind::Index { manifests } = manifest.kind() {
            let mut children = platforms.select(manifests).into_iter();
            let image = children.find(|child| child.attests.is_none() && child.may_be_manifest);
            let Some(image) = image.or(manifests.first()).map(|child| child.digest) else {
                return Ok(None);
            };
            (_, manifest) = read_manifest(core, name, &Reference::Digest(image))?;
        }
        let created = match manifest.kind() {
            ManifestKind::Image { config: Some(config), .. } => read_config(core, name, config)?,
            _ => None,
        };
        lock(&self.services.creation_times.0).insert((name.clone(), root), created.clone());
        Ok(created)
    }
}

/// # Errors
/// [`CacheError::KeptForClients`] if little is left of the registry's rate limit.
fn keep_pulls_for_clients(core: &Core, name: &ImageName) -> Result<(), CacheError> {
    match core.source(&name.upstream)?.is_low_on_pulls() {
        true => Err(CacheError::KeptForClients),
        false => Ok(()),
    }
}

/// A manifest from the store or from the registry, which is not stored.
fn read_manifest(
    core: &Core,
    name: &ImageName,
    reference: &Reference,
) -> Result<(Digest, Manifest), CacheError> {
    if let Reference::Digest(digest) = reference
        && let Some(manifest) = core.store.stored_manifest(name, digest)
    {
        return Ok((*digest, manifest));
    }
    let source = core.source(&name.upstream)?;
    let mut writer = core.store.manifest_writer();
    let fetched = source.manifest(&name.repository, reference, &mut writer);
    let asked = Asked::Manifest(name.clone(), reference.clone());
    core.note_outcome(&*source, name, asked, &fetched);
    let (digest, manifest, _) = fetched?;
    Ok((digest, manifest))
}

/// The creation time in a config from the store or from the registry, which is not stored.
fn read_config(
    core: &Core,
    name: &ImageName,
    config: &Descriptor,
) -> Result<Option<String>, CacheError> {
    if config.size > CONFIG_BYTES_MAX {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    if let Some(blob) = core.store.find_blob(&config.digest, config.known_size())? {
        let document = Document::File { file: Arc::clone(&blob.file), range: 0..blob.size };
        bytes = document.read().unwrap_or_default();
    } else {
        let source = core.source(&name.upstream)?;
        let begun = source.blob(&BlobAsk {
            repository: &name.repository,
            digest: &config.digest,
            from: 0,
            to: None,
            additional_to: None,
            endpoint_failures: &EndpointFailures::default(),
        });
        core.note_outcome(&*source, name, Asked::Blob(name.clone(), config.digest), &begun);
        let read = begun?.reader.take(CONFIG_BYTES_MAX).read_to_end(&mut bytes);
        let what = || format!("{name}@{}", config.digest);
        read.map_err(|error| UpstreamError::bad_answer(&what(), error.to_string()))?;
        let mut verifier = Verifier::new(config.digest.algorithm());
        verifier.update(&bytes);
        if verifier.finish() != config.digest {
            let reason = "the registry sent other content than was requested";
            return Err(UpstreamError::bad_answer(&what(), reason).into());
        }
    }
    Ok(ImageConfig::parse(&bytes).created)
}
