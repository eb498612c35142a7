//! Images: the unit in which people think. A tag, or a digest that was pulled without one, and all that
//! hangs below it: child manifests, configs, layers, as far as they are here.
//!
//! Looking at images counts as no use of them.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use super::Store;
use super::refs::Access;
use crate::oci::{Descriptor, Digest, ImageName, Manifest, ManifestKind, MediaType, Reference};

/// How deep manifests may be nested before the rest is passed over: an index of indexes is the most
/// that is seen, and a document made to be deep must not exhaust the stack.
const DEPTH_MAX: usize = 8;

/// An image in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredImage {
    /// Its repository.
    pub name: ImageName,
    /// Its tag, or its digest if it has none.
    pub reference: Reference,
    /// Its manifest or index.
    pub digest: Digest,
    /// Of which type that is.
    pub media_type: MediaType,
    /// How many bytes that has.
    pub size: u64,
    /// When it was first seen to be this manifest.
    pub fetched: SystemTime,
    /// When upstream last confirmed it; a digest needs no confirmation.
    pub checked: Option<SystemTime>,
    /// When upstream was first seen not to have the tag any more.
    pub gone: Option<SystemTime>,
    /// When a client last pulled it, to the minute.
    pub pulled: Option<SystemTime>,
}

impl StoredImage {
    /// The full reference as users write it.
    pub fn full_reference(&self) -> String {
        self.name.with(&self.reference)
    }
}

/// What hangs below a manifest, itself included, each digest once, parents before children.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    /// Manifests and indexes.
    pub manifests: Vec<GraphManifest>,
    /// Configs and layers of the manifests that are present.
    pub blobs: Vec<GraphBlob>,
}

/// A manifest in a graph.
#[derive(Debug, Clone)]
pub struct GraphManifest {
    /// Its descriptor, as its parent has it.
    pub descriptor: Descriptor,
    /// The manifest, if it is here.
    pub manifest: Option<Manifest>,
}

/// A config or a layer in a graph.
#[derive(Debug, Clone)]
pub struct GraphBlob {
    /// Its descriptor, as the first manifest that names it has it.
    pub descriptor: Descriptor,
    /// Whether it is here, in full length.
    pub is_present: bool,
}

impl Graph {
    /// Bytes of configs and layers that are not here although their manifest is.
    pub fn missing_bytes(&self) -> u64 {
        self.missing_blobs().map(|blob| blob.size).fold(0, u64::saturating_add)
    }

    /// Configs and layers that are not here although their manifest is. Foreign layers are never missing:
    /// clients get them from elsewhere.
    pub fn missing_blobs(&self) -> impl Iterator<Item = &Descriptor> {
        let blobs = self.blobs.iter().map(|blob| (&blob.descriptor, blob.is_present));
        let missing =
            blobs.filter(|(descriptor, is_present)| !is_present && !descriptor.is_foreign);
        missing.map(|(descriptor, _)| descriptor)
    }

    /// Bytes of everything that is here.
    pub fn present_bytes(&self) -> u64 {
        let manifests = self.manifests.iter().filter_map(|each| each.manifest.as_ref());
        let blobs = self.blobs.iter().filter(|blob| blob.is_present);
        manifests.map(|manifest| manifest.bytes().len() as u64).sum::<u64>()
            + blobs.map(|blob| blob.descriptor.size).sum::<u64>()
    }

    /// Whether a client can run it for at least one platform: an image manifest is here, and every
    /// config and layer of those that are. Children of an index that were never asked for do not count.
    pub fn is_complete(&self) -> bool {
        let is_image = |each: &GraphManifest| {
            let kind = each.manifest.as_ref().map(Manifest::kind);
            matches!(kind, Some(ManifestKind::Image { .. }))
        };
        self.manifests.iter().any(is_image) && self.missing_blobs().next().is_none()
    }

    /// The platforms of the image manifests that are here, where an index gives them. An attestation has
    /// none.
    pub fn platforms(&self) -> impl Iterator<Item = &str> {
        let present = self.manifests.iter().filter(|each| each.manifest.is_some());
        let images = present.map(|each| &each.descriptor).filter(|each| each.attests.is_none());
        images.filter_map(|descriptor| descriptor.platform.as_deref())
    }

    /// Its manifests, each with the config and layers that it names.
    pub fn tree(&self) -> impl Iterator<Item = (&GraphManifest, Vec<&GraphBlob>)> {
        let blobs: HashMap<Digest, &GraphBlob> =
            self.blobs.iter().map(|blob| (blob.descriptor.digest, blob)).collect();
        self.manifests.iter().map(move |each| {
            let is_image =
                |manifest: &&Manifest| matches!(manifest.kind(), ManifestKind::Image { .. });
            let manifest = each.manifest.as_ref().filter(is_image);
            let mut seen = HashSet::new();
            let named = manifest.into_iter().flat_map(Manifest::descriptors);
            let named = named.filter(|descriptor| seen.insert(descriptor.digest));
            let named = named.filter_map(|descriptor| blobs.get(&descriptor.digest).copied());
            (each, named.collect())
        })
    }

    /// The digests of its manifests, also of those that are not here.
    pub fn manifest_digests(&self) -> impl Iterator<Item = Digest> {
        self.manifests.iter().map(|each| each.descriptor.digest)
    }

    /// Everything in it that is here.
    pub fn present(&self) -> impl Iterator<Item = &Descriptor> {
        let manifests = self.manifests.iter().filter(|each| each.manifest.is_some());
        let blobs = self.blobs.iter().filter(|blob| blob.is_present);
        manifests.map(|each| &each.descriptor).chain(blobs.map(|blob| &blob.descriptor))
    }

    /// Every digest in it that is here.
    pub fn present_digests(&self) -> impl Iterator<Item = Digest> {
        self.present().map(|each| each.digest)
    }
}

impl Store {
    /// Calls `visit` with every image in the cache, in the order of the directories, tags of a
    /// repository first.
    ///
    /// # Errors
    /// The first error of `visit`; what vanishes meanwhile is passed over. At the end, if something could not be
    /// read: there may be more images than were visited.
    pub fn each_image(
        &self,
        visit: &mut dyn FnMut(&StoredImage) -> io::Result<()>,
    ) -> io::Result<()> {
        let unreadable = self.unreadable_files();
        self.each_repository(&mut |name| self.images_of(name).iter().try_for_each(&mut *visit))?;
        match self.unreadable_files() == unreadable {
            true => Ok(()),
            false => Err(io::Error::other("some files in it cannot be read, see the log")),
        }
    }

    /// The images of a repository: its tags, then the manifests that hang below none of them.
    pub fn images_of(&self, name: &ImageName) -> Vec<StoredImage> {
        self.images_of_while(name, &mut || true).unwrap_or_default()
    }

    /// The same for who works slowly: `should_continue` is asked before each tag and each manifest, may take its
    /// time, and ends it by `false`.
    ///
    /// # Errors
    /// If it was ended: as interrupted.
    pub(super) fn images_of_while(
        &self,
        name: &ImageName,
        should_continue: &mut dyn FnMut() -> bool,
    ) -> io::Result<Vec<StoredImage>> {
        let mut images: Vec<StoredImage> = Vec::new();
        let mut below: HashSet<Digest> = HashSet::new();
        for tag in self.tags(name) {
            check_continue(should_continue)?;
            let Some(image) = self.image(name, &Reference::Tag(tag)) else { continue };
            self.collect_manifests(name, &image.digest, 0, &mut below);
            images.push(image);
        }
        let mut untagged = self.manifests(name);
        untagged.retain(|digest| !below.contains(digest));
        // Children of an index that was pulled by digest are no images of their own.
        let mut children: HashSet<Digest> = HashSet::new();
        for digest in &untagged {
            check_continue(should_continue)?;
            if children.contains(digest) {
                continue;
            }
            let Some(manifest) = self.stored_manifest(name, digest) else { continue };
            if let ManifestKind::Index { manifests } = manifest.kind() {
                // One set for all of them, so that each child is read once however many name it.
                for child in manifests {
                    self.collect_manifests(name, &child.digest, 1, &mut children);
                }
            }
        }
        untagged.retain(|digest| !children.contains(digest));
        untagged.sort_by_key(Digest::to_string);
        let untagged = untagged.into_iter();
        images.extend(untagged.filter_map(|digest| self.image(name, &Reference::Digest(digest))));
        Ok(images)
    }

    /// The image that a tag or a digest of a repository means.
    pub fn image(&self, name: &ImageName, reference: &Reference) -> Option<StoredImage> {
        let layout = &self.inner.layout;
        let image = match reference {
            Reference::Tag(tag) => {
                let record = self.tag(name, tag, Access::Look)?;
                StoredImage {
                    name: name.clone(),
                    reference: reference.clone(),
                    digest: record.digest,
                    media_type: record.media_type,
                    size: record.size,
                    fetched: record.fetched,
                    checked: Some(record.checked),
                    gone: record.gone,
                    // Clients go on by digest, and some always have.
                    pulled: self
                        .modified(&layout.tag(name, tag))
                        .max(self.modified(&layout.manifest(name, &record.digest))),
                }
            }
            Reference::Digest(digest) => {
                let record = self.manifest(name, digest, Access::Look)?;
                StoredImage {
                    name: name.clone(),
                    reference: reference.clone(),
                    digest: *digest,
                    media_type: record.media_type,
                    size: record.size,
                    fetched: record.fetched,
                    checked: None,
                    gone: None,
                    pulled: self.modified(&layout.manifest(name, digest)),
                }
            }
        };
        Some(image)
    }

    /// A manifest that this repository has.
    pub fn stored_manifest(&self, name: &ImageName, digest: &Digest) -> Option<Manifest> {
        let record = self.manifest(name, digest, Access::Look)?;
        let bytes = self.read(digest, record.size)?;
        Manifest::parse(Arc::from(bytes), Some(record.media_type.as_str())).ok()
    }

    /// What hangs below a manifest of a repository.
    pub fn graph(&self, name: &ImageName, root: Descriptor) -> Graph {
        let load = |descriptor: &Descriptor| self.stored_manifest(name, &descriptor.digest);
        self.graph_by(root, &load, &|_| true)
    }

    /// What hangs below `root`, as `load` finds manifests, without the children that are not `wanted`.
    pub fn graph_by(
        &self,
        root: Descriptor,
        load: &dyn Fn(&Descriptor) -> Option<Manifest>,
        wanted: &dyn Fn(&Descriptor) -> bool,
    ) -> Graph {
        let is_present = |descriptor: &Descriptor| {
            self.blob(&descriptor.digest, descriptor.known_size()).is_some()
        };
        walk(root, load, wanted, &is_present)
    }

    /// What hangs below an image.
    pub fn graph_of(&self, image: &StoredImage) -> Graph {
        let root = Descriptor::new(image.digest, image.size);
        self.graph(&image.name, root)
    }

    /// A manifest and those below it, also those of them that are not here.
    pub fn manifests_at(&self, name: &ImageName, digest: &Digest) -> HashSet<Digest> {
        let mut found = HashSet::new();
        self.collect_manifests(name, digest, 0, &mut found);
        found
    }

    /// The manifests of this repository at and below `digest`.
    fn collect_manifests(
        &self,
        name: &ImageName,
        digest: &Digest,
        depth: usize,
        found: &mut HashSet<Digest>,
    ) {
        if depth > DEPTH_MAX || !found.insert(*digest) {
            return;
        }
        let Some(manifest) = self.stored_manifest(name, digest) else { return };
        if let ManifestKind::Index { manifests } = manifest.kind() {
            for child in manifests {
                self.collect_manifests(name, &child.digest, depth + 1, found);
            }
        }
    }
}

/// Asks whether to go on.
///
/// # Errors
/// If not: as interrupted.
pub(super) fn check_continue(should_continue: &mut dyn FnMut() -> bool) -> io::Result<()> {
    should_continue().then_some(()).ok_or_else(|| io::ErrorKind::Interrupted.into())
}

/// All that hangs below `root`.
pub(super) fn walk(
    root: Descriptor,
    load: &dyn Fn(&Descriptor) -> Option<Manifest>,
    wanted: &dyn Fn(&Descriptor) -> bool,
    is_present: &dyn Fn(&Descriptor) -> bool,
) -> Graph {
    let (seen, graph) = (HashSet::new(), Graph::default());
    let mut walk = Walk { load, wanted, is_present, seen, graph };
    walk.add(root, 0);
    walk.graph
}

/// A walk from a manifest to all that hangs below it.
struct Walk<'a> {
    load: &'a dyn Fn(&Descriptor) -> Option<Manifest>,
    wanted: &'a dyn Fn(&Descriptor) -> bool,
    is_present: &'a dyn Fn(&Descriptor) -> bool,
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
        let is_index =
            matches!(manifest.as_ref().map(Manifest::kind), Some(ManifestKind::Index { .. }));
        self.graph.manifests.push(GraphManifest { descriptor, manifest });
        for descriptor in below {
            if is_index && !(self.wanted)(&descriptor) {
                continue;
            }
            // What an index lists beside manifests is a blob where it is here, and no part of the image
            // where it is not, like a platform that was never asked for.
            let is_child =
                is_index && (descriptor.may_be_manifest || !(self.is_present)(&descriptor));
            if is_child {
                self.add(descriptor, depth + 1);
            } else if self.seen.insert(descriptor.digest) {
                let is_present = (self.is_present)(&descriptor);
                self.graph.blobs.push(GraphBlob { descriptor, is_present });
            }
        }
    }
}
