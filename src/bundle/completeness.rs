//! Completeness: whether the store has everything that an image needs.

use crate::oci::{Descriptor, MANIFEST_BYTES_MAX, Manifest, MediaType};
use crate::store::{Graph, Store};

/// Whether the store has enough of an image to name it ([`Graph::missing`]): at least one platform with all of its
/// content, or indexes that list nothing else (of referrers, for example).
pub(super) fn is_complete(graph: &Graph) -> bool {
    graph.missing().is_empty()
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
