//! What an image needs: the walk from its manifest to everything below.

use std::collections::HashSet;
use std::sync::Arc;

use crate::oci::{Descriptor, Digest, MANIFEST_BYTES_MAX, Manifest, ManifestKind, MediaType};
use crate::store::{Graph, GraphBlob, GraphManifest, Store};

/// How deep manifests may be nested: as in the store.
const DEPTH_MAX: usize = 8;

/// What hangs below `root`, as `load` finds manifests, without the children that are not `wanted`.
pub(super) fn closure(
    store: &Store,
    root: Descriptor,
    load: &dyn Fn(&Descriptor) -> Option<Manifest>,
    wanted: &dyn Fn(&Descriptor) -> bool,
) -> Graph {
    let mut walk = Walk { store, load, wanted, seen: HashSet::new(), graph: Graph::default() };
    walk.add(root, 0);
    walk.graph
}

struct Walk<'a> {
    store: &'a Store,
    load: &'a dyn Fn(&Descriptor) -> Option<Manifest>,
    wanted: &'a dyn Fn(&Descriptor) -> bool,
    seen: HashSet<Digest>,
    graph: Graph,
}

impl Walk<'_> {
    fn add(&mut self, descriptor: Descriptor, depth: usize) {
        if depth > DEPTH_MAX || !self.seen.insert(descriptor.digest) {
            return;
        }
        let manifest = (self.load)(&descriptor);
        let below: Vec<Descriptor> =
            manifest.iter().flat_map(Manifest::descriptors).cloned().collect();
        let is_index = manifest.as_ref().is_some_and(is_index);
        self.graph.manifests.push(GraphManifest { descriptor, manifest });
        for descriptor in below {
            if is_index {
                if (self.wanted)(&descriptor) {
                    self.add(descriptor, depth + 1);
                }
            } else if self.seen.insert(descriptor.digest) {
                let size = Some(descriptor.size);
                let is_present = self.store.blob(&descriptor.digest, size).is_some();
                self.graph.blobs.push(GraphBlob { descriptor, is_present });
            }
        }
    }
}

fn is_index(manifest: &Manifest) -> bool {
    matches!(manifest.kind(), ManifestKind::Index { .. })
}

/// Whether everything that has to be there is: at least one image with all of its content, or an index
/// that lists nothing (of referrers, say). Children of an index that were never asked for do not count.
pub(super) fn is_whole(graph: &Graph) -> bool {
    let lists_nothing = |manifest: &Manifest| matches!(manifest.kind(), ManifestKind::Index { manifests } if manifests.is_empty());
    let root = graph.manifests.first().and_then(|root| root.manifest.as_ref());
    graph.is_complete() || root.is_some_and(lists_nothing)
}

/// What is missing of it: blobs, and manifests if there is no image at all.
pub(super) fn missing(graph: &Graph) -> Vec<&Descriptor> {
    let blobs = graph.blobs.iter().filter(|blob| !blob.is_present).map(|blob| &blob.descriptor);
    let mut missing: Vec<&Descriptor> = blobs.collect();
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
    if descriptor.size > MANIFEST_BYTES_MAX as u64 {
        return None;
    }
    // A layout's author may have written anything here; what is no manifest's type tells nothing.
    let media_type = media_type
        .filter(|text| MediaType::parse(text).is_some_and(|media_type| media_type.is_manifest()));
    let bytes = store.read(&descriptor.digest, descriptor.size)?;
    Manifest::parse(Arc::from(bytes), media_type).ok()
}
