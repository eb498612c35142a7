//! Images: a tag, or a digest that was pulled without a tag, with the cached part of its content: child manifests,
//! configs and layers.
//!
//! Reading images here does not count as use.

use std::collections::{HashMap, HashSet};
use std::io;
use std::time::SystemTime;

use crate::oci::{
    Descriptor, Digest, HeldManifest, ImageName, Manifest, ManifestKind, MediaType, Reference, Tag,
    TagRecord,
};
use crate::store::Store;
use crate::store::files::record::Access;

/// The maximum depth of nested manifests; deeper ones are ignored. Real images have at most an index of indexes,
/// and a deeply nested document must not exhaust the stack.
const DEPTH_MAX: usize = 8;

/// An image in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredImage {
    /// Its repository.
    pub name: ImageName,
    /// Its tag, or its digest if it has no tag.
    pub reference: Reference,
    /// Its manifest or index.
    pub digest: Digest,
    /// The media type of the manifest or index.
    pub media_type: MediaType,
    /// The size of the manifest or index in bytes.
    pub size: u64,
    /// When the reference was first seen with this manifest.
    pub fetched: SystemTime,
    /// When upstream last confirmed the tag; a digest needs no confirmation.
    pub checked: Option<SystemTime>,
    /// When upstream was first seen without the tag.
    pub gone: Option<SystemTime>,
    /// When a client last pulled it, to the minute.
    pub pulled: Option<SystemTime>,
    /// What upstream has instead, if the tag has moved there and that is not accepted here.
    pub held: Option<HeldManifest>,
    /// Whether it has no tag here because a tag that has moved to it was not accepted: it was fetched only to know what the
    /// tag refers to upstream. Not set for an image that was looked up by its digest.
    pub is_unaccepted: bool,
}

impl StoredImage {
    /// The full reference as users write it.
    pub fn full_reference(&self) -> String {
        self.name.with(&self.reference)
    }
}

/// A manifest and its descendants, each digest once, parents before children.
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
    /// Its descriptor in its parent.
    pub descriptor: Descriptor,
    /// The manifest, if it is cached.
    pub manifest: Option<Manifest>,
}

/// A config or a layer in a graph.
#[derive(Debug, Clone)]
pub struct GraphBlob {
    /// Its descriptor in the first manifest that refers to it.
    pub descriptor: Descriptor,
    /// Whether it is cached with its full size.
    pub is_present: bool,
}

impl Graph {
    /// Total size of the missing blobs, in bytes.
    pub fn missing_bytes(&self) -> u64 {
        self.missing_blobs().map(|blob| blob.size).fold(0, u64::saturating_add)
    }

    /// Missing configs and layers of cached manifests. Foreign layers never count as missing, since clients get
    /// them from elsewhere.
    pub fn missing_blobs(&self) -> impl Iterator<Item = &Descriptor> {
        let blobs = self.blobs.iter().map(|blob| (&blob.descriptor, blob.is_present));
        let missing =
            blobs.filter(|(descriptor, is_present)| !is_present && !descriptor.is_foreign);
        missing.map(|(descriptor, _)| descriptor)
    }

    /// The digests of all manifests and blobs.
    pub fn digests(&self) -> impl Iterator<Item = &Digest> {
        let blobs = self.blobs.iter().map(|blob| &blob.descriptor.digest);
        self.manifests.iter().map(|manifest| &manifest.descriptor.digest).chain(blobs)
    }

    /// Total size of the cached content, in bytes.
    pub fn present_bytes(&self) -> u64 {
        let manifests = self.manifests.iter().filter_map(|each| each.manifest.as_ref());
        let blobs = self.blobs.iter().filter(|blob| blob.is_present);
        manifests.map(Manifest::size).sum::<u64>()
            + blobs.map(|blob| blob.descriptor.size).sum::<u64>()
    }

    /// Whether a client can run it for at least one platform: at least one image manifest is cached, and so are the
    /// configs and layers of all cached manifests. Children of an index that were never pulled do not count.
    pub fn is_complete(&self) -> bool {
        let is_image = |each: &GraphManifest| {
            let kind = each.manifest.as_ref().map(Manifest::kind);
            matches!(kind, Some(ManifestKind::Image { .. }))
        };
        self.manifests.iter().any(is_image) && self.missing_blobs().next().is_none()
    }

    /// What must be fetched before the cache has the image: configs and layers of cached manifests, or, if no image
    /// manifest is cached, the manifests that are absent. Nothing for an index that lists only empty indexes.
    pub fn missing(&self) -> Vec<&Descriptor> {
        let blobs: Vec<&Descriptor> = self.missing_blobs().collect();
        if self.is_complete() || !blobs.is_empty() {
            return blobs;
        }
        let absent = self.manifests.iter().filter(|each| each.manifest.is_none());
        absent.map(|each| &each.descriptor).collect()
    }

    /// The platforms of the cached image manifests, as an index states them, or their configs
    /// ([`Store::read_configs`]). An attestation has none.
    pub fn platforms(&self) -> impl Iterator<Item = &str> {
        let present = self.manifests.iter().filter(|each| each.manifest.is_some());
        let images = present.map(|each| &each.descriptor).filter(|each| each.attests.is_none());
        images.filter_map(|descriptor| descriptor.platform.as_deref())
    }

    /// Its manifests, each with its config and layers.
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

    /// The digests of its manifests, including missing ones.
    pub fn manifest_digests(&self) -> impl Iterator<Item = Digest> {
        self.manifests.iter().map(|each| each.descriptor.digest)
    }

    /// Descriptors of all cached content.
    pub fn present(&self) -> impl Iterator<Item = &Descriptor> {
        let manifests = self.manifests.iter().filter(|each| each.manifest.is_some());
        let blobs = self.blobs.iter().filter(|blob| blob.is_present);
        manifests.map(|each| &each.descriptor).chain(blobs.map(|blob| &blob.descriptor))
    }

    /// Digests of all cached content.
    pub fn present_digests(&self) -> impl Iterator<Item = Digest> {
        self.present().map(|each| each.digest)
    }
}

impl Store {
    /// Calls `visit` with every cached image, in the order of the directories; a repository's tags come first.
    ///
    /// # Errors
    /// The first error of `visit`. At the end, an error if anything could not be read, since images may be missing
    /// from the visit. Files that vanish during the walk are ignored.
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

    /// The images of a repository: its tags, then the manifests that belong to none of them.
    pub fn images_of(&self, name: &ImageName) -> Vec<StoredImage> {
        self.images_of_while(name, &mut || true).unwrap_or_default()
    }

    /// Like [`Store::images_of`], for slow walks: calls `keep_going` before each tag and manifest. It may
    /// block, and stops the walk by returning `false`.
    ///
    /// # Errors
    /// `Interrupted` if the walk was stopped.
    pub(in crate::store) fn images_of_while(
        &self,
        name: &ImageName,
        keep_going: &mut dyn FnMut() -> bool,
    ) -> io::Result<Vec<StoredImage>> {
        let mut images: Vec<StoredImage> = Vec::new();
        let mut below: HashSet<Digest> = HashSet::new();
        let mut unaccepted: HashSet<Digest> = HashSet::new();
        for tag in self.tags(name) {
            check_stopped(keep_going)?;
            let Some(record) = self.tag(name, &tag, Access::Look) else { continue };
            unaccepted.extend(record.unaccepted());
            let image = self.tagged(name, tag, record);
            self.collect_manifests(name, &image.digest, 0, &mut below);
            images.push(image);
        }
        let mut untagged = self.manifests(name);
        untagged.retain(|digest| !below.contains(digest));
        // Children of an index that was pulled by digest are not images themselves.
        let mut children: HashSet<Digest> = HashSet::new();
        for digest in &untagged {
            check_stopped(keep_going)?;
            if children.contains(digest) {
                continue;
            }
            let Some(manifest) = self.stored_manifest(name, digest) else { continue };
            if let ManifestKind::Index { manifests } = manifest.kind() {
                // One set for all indexes, so that each child is read only once.
                for child in manifests {
                    self.collect_manifests(name, &child.digest, 1, &mut children);
                }
            }
        }
        untagged.retain(|digest| !children.contains(digest));
        untagged.sort_by_key(Digest::to_string);
        let untagged = untagged.into_iter();
        let untagged = untagged.filter_map(|digest| self.image(name, &Reference::Digest(digest)));
        images.extend(untagged.map(|image| StoredImage {
            is_unaccepted: unaccepted.contains(&image.digest),
            ..image
        }));
        Ok(images)
    }

    /// The image of a tag or a digest.
    pub fn image(&self, name: &ImageName, reference: &Reference) -> Option<StoredImage> {
        match reference {
            Reference::Tag(tag) => {
                let record = self.tag(name, tag, Access::Look)?;
                Some(self.tagged(name, tag.clone(), record))
            }
            Reference::Digest(digest) => {
                let record = self.manifest(name, digest, Access::Look)?;
                Some(StoredImage {
                    name: name.clone(),
                    reference: reference.clone(),
                    digest: *digest,
                    media_type: record.media_type,
                    size: record.size,
                    fetched: record.fetched,
                    checked: None,
                    gone: None,
                    held: None,
                    is_unaccepted: false,
                    pulled: self.modified(&self.inner.layout.manifest(name, digest)),
                })
            }
        }
    }

    fn tagged(&self, name: &ImageName, tag: Tag, record: TagRecord) -> StoredImage {
        let layout = &self.inner.layout;
        // Clients often resolve the tag and pull by digest, and some only pull by digest.
        let pulled = self
            .modified(&layout.tag(name, &tag))
            .max(self.modified(&layout.manifest(name, &record.digest)));
        StoredImage {
            name: name.clone(),
            reference: Reference::Tag(tag),
            digest: record.digest,
            media_type: record.media_type,
            size: record.size,
            fetched: record.fetched,
            checked: Some(record.checked),
            gone: record.gone,
            held: record.held,
            is_unaccepted: false,
            pulled,
        }
    }

    /// Reads a manifest of this repository.
    pub fn stored_manifest(&self, name: &ImageName, digest: &Digest) -> Option<Manifest> {
        let record = self.manifest(name, digest, Access::Look)?;
        self.parse_manifest(digest, record.size, Some(record.media_type.as_str()))
    }

    /// Parses a blob as a manifest. `None` if it is absent or unreadable, or not a manifest.
    pub fn parse_manifest(
        &self,
        digest: &Digest,
        size_bytes: u64,
        media_type: Option<&str>,
    ) -> Option<Manifest> {
        let media_type = media_type.map(str::to_owned);
        let parse = move |bytes: &[u8]| Manifest::parse(bytes, media_type.as_deref()).ok();
        self.with_document(digest, size_bytes, parse).ok().flatten().flatten()
    }

    /// A manifest of a repository and its descendants.
    pub fn graph(&self, name: &ImageName, root: Descriptor) -> Graph {
        let load = |descriptor: &Descriptor| self.stored_manifest(name, &descriptor.digest);
        self.graph_by(root, &load, &|_| true)
    }

    /// `root` and its descendants. `load` reads manifests; children that are not `wanted` are skipped.
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

    /// The manifest of an image and its descendants.
    pub fn graph_of(&self, image: &StoredImage) -> Graph {
        let root = Descriptor::new(image.digest, image.size);
        self.graph(&image.name, root)
    }

    /// Digests of a manifest and its descendant manifests, including missing ones.
    pub fn manifests_at(&self, name: &ImageName, digest: &Digest) -> HashSet<Digest> {
        let mut found = HashSet::new();
        self.collect_manifests(name, digest, 0, &mut found);
        found
    }

    /// Collects a manifest of this repository and its descendants.
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

/// Fails if the caller wants to stop.
///
/// # Errors
/// `Interrupted` if `keep_going` returns `false`.
pub(in crate::store) fn check_stopped(keep_going: &mut dyn FnMut() -> bool) -> io::Result<()> {
    keep_going().then_some(()).ok_or_else(|| io::ErrorKind::Interrupted.into())
}

/// `root` and its descendants.
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

/// The state of a walk from a manifest to its descendants.
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
            // A non-manifest entry of an index counts as a blob if it is cached. If not, it counts as a child that
            // was never pulled, like a missing platform.
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
