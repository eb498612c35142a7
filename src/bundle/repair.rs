//! Repair: fetches the content that a check of the store reported as missing or damaged.

use std::collections::HashSet;

use super::blocking::wait;
use crate::cache::{BlobLookup, Cache, CacheError, ManifestLookup, Purpose};
use crate::oci::{Digest, ImageName, Reference};
use crate::store::{Graph, StoredImage};

/// Fetches the missing content of an image: its manifest, the `damaged` ones among its children, and every
/// config and layer of the manifests in the store. Blocks.
///
/// # Errors
/// The first content that could not be fetched, with the reason.
pub fn repair(cache: &Cache, image: &StoredImage, damaged: &HashSet<Digest>) -> Result<(), String> {
    // A manifest that was fetched may name damaged children, so each round walks the image again.
    loop {
        let graph = cache.store().graph_of(image);
        let Some(digest) = wanted_manifest(&graph, image, damaged) else {
            return blobs(cache, &image.name, &graph);
        };
        manifest(cache, &image.name, digest).map_err(|error| format!("{digest}: {error}"))?;
        cache.wait_until_stored(Some(&image.name));
        if cache.store().stored_manifest(&image.name, &digest).is_none() {
            return Err(format!("{digest}: it was fetched but is not in the store; see the log"));
        }
    }
}

fn wanted_manifest(
    graph: &Graph,
    image: &StoredImage,
    damaged: &HashSet<Digest>,
) -> Option<Digest> {
    let mut missing = graph.manifests.iter().filter(|each| each.manifest.is_none());
    let is_wanted = |digest: &Digest| *digest == image.digest || damaged.contains(digest);
    missing.find(|each| is_wanted(&each.descriptor.digest)).map(|each| each.descriptor.digest)
}

fn manifest(cache: &Cache, name: &ImageName, digest: Digest) -> Result<(), CacheError> {
    match cache.manifest(name, &Reference::Digest(digest))? {
        ManifestLookup::Ready(_) => Ok(()),
        ManifestLookup::Wait(waiting) => wait(|waker| waiting.poll(waker)).map(drop),
    }
}

fn blobs(cache: &Cache, name: &ImageName, graph: &Graph) -> Result<(), String> {
    let missing = graph.missing_blobs().map(|blob| blob.digest);
    let lookups = missing.map(|digest| (digest, cache.blob(name, &digest, Purpose::Read)));
    let mut failed = None;
    for (digest, lookup) in lookups.collect::<Vec<_>>() {
        let outcome = match lookup {
            Ok(BlobLookup::Ready(_)) => Ok(()),
            Ok(BlobLookup::Unlinked(waiting)) => wait(|waker| waiting.poll(waker)),
            Ok(BlobLookup::Wait(waiting)) => {
                wait(|waker| waiting.poll_end(waker)).map(drop).map_err(|failure| failure.error)
            }
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            failed.get_or_insert(format!("{digest}: {error}"));
        }
    }
    failed.map_or(Ok(()), Err)
}
