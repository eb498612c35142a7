//! Completeness: whether the store has everything that an image needs.

use crate::oci::{Descriptor, MANIFEST_BYTES_MAX, Manifest, ManifestKind, MediaType};
use crate::store::{Graph, Store};

/// Whether the store has enough of an image to name it: at least one platform with all of its content, or an
/// index without entries (of referrers, for example). Children of an index that were never requested may be
/// absent.
pub(super) fn is_complete(graph: &Graph) -> bool {
    let lists_nothing = |manifest: &Manifest| matches!(manifest.kind(), ManifestKind::Index { manifests } if manifests.is_empty());
    let root = graph.manifests.first().and_then(|root| root.manifest.as_ref());
    graph.is_complete() || root.is_some_and(lists_nothing)
}

/// The content that an incomplete image lacks: its blobs, or its manifests if none of them is present.
pub(super) fn missing(graph: &Graph) -> Vec<&Descriptor> {
    let mut missing: Vec<&Descriptor> = graph.missing_blobs().collect();
    if missing.is_empty() && !is_complete(graph) {
        let absent = graph.manifests.iter().filter(|each| each.manifest.is_none());
        missing.extend(absent.map(|each| &each.descriptor));
    }
    missing
}

/// Reads a manifest by its digest, from any repository.
pub(super) fn manifest_by_digest(
    store: &Store,
    descriptor: &Descriptor,
    media_type: Option<&str>,
) -> Option<Manifest> {
    // A layout may give any media type here. Ignore a type that is not a manifest's.
    let media_type = media_type
        .filter(|text| MediaType::parse(text).is_some_and(|media_type| media_type.is_manifest()));
    let size = store.blob(&descriptor.digest, descriptor.known_size())?.size;
    if size > MANIFEST_BYTES_MAX as u64 {
        return None;
    }
    store.parse_manifest(&descriptor.digest, size, media_type)
}
