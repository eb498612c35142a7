//! What an image needs: the walk from its manifest to everything below.

use std::sync::Arc;

use crate::oci::{Descriptor, MANIFEST_BYTES_MAX, Manifest, ManifestKind, MediaType};
use crate::store::{Graph, Store};

/// Whether everything that has to be there is: at least one image with all of its content, or an index
/// that lists nothing (of referrers, say). Children of an index that were never asked for do not count.
pub(super) fn is_whole(graph: &Graph) -> bool {
    let lists_nothing = |manifest: &Manifest| matches!(manifest.kind(), ManifestKind::Index { manifests } if manifests.is_empty());
    let root = graph.manifests.first().and_then(|root| root.manifest.as_ref());
    graph.is_complete() || root.is_some_and(lists_nothing)
}

/// What is missing of it: blobs, and manifests if there is no image at all.
pub(super) fn missing(graph: &Graph) -> Vec<&Descriptor> {
    let mut missing: Vec<&Descriptor> = graph.missing_blobs().collect();
    if missing.is_empty() && !is_whole(graph) {
        let absent = graph.manifests.iter().filter(|each| each.manifest.is_none());
        missing.extend(absent.map(|each| &each.descriptor));
    }
    missing
}

/// A manifest by its digest alone, whatever repository it may belong to.
pub(super) fn manifest_by_digest(
    store: &Store,
    descriptor: &Descriptor,
    media_type: Option<&str>,
) -> Option<Manifest> {
    // A layout's author may have written anything here; what is no manifest's type tells nothing.
    let media_type = media_type
        .filter(|text| MediaType::parse(text).is_some_and(|media_type| media_type.is_manifest()));
    let size = store.blob(&descriptor.digest, descriptor.known_size())?.size;
    if size > MANIFEST_BYTES_MAX as u64 {
        return None;
    }
    let bytes = store.read(&descriptor.digest, size)?;
    Manifest::parse(Arc::from(bytes), media_type).ok()
}
