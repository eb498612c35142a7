//! What the registry has, and what it had: the truth that responses are compared with.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::random::Random;

pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

pub const REPOSITORIES: [&str; 6] =
    ["team/app0", "team/app1", "team/app2", "team/app3", "team/app4", "library/base"];
pub const TAGS: [&str; 5] = ["latest", "v1", "v2", "v3", "nightly"];
/// The repository of images that are pinned. Its tags do not move, and the registry forgets its content once it is
/// pinned: only the cache has it.
pub const PINNED: &str = "pinned/keep";

/// How many images the registry keeps. Older ones are gone, as after garbage collection.
const IMAGES_MAX: usize = 90;

/// The digest of `content`.
pub fn digest_of(content: &[u8]) -> String {
    let hash = Sha256::digest(content);
    hash.iter().fold(String::from("sha256:"), |text, byte| format!("{text}{byte:02x}"))
}

/// A manifest or an index.
#[derive(Clone)]
pub struct Document {
    pub digest: String,
    pub media_type: &'static str,
    pub bytes: Arc<Vec<u8>>,
}

#[derive(Clone)]
pub struct Blob {
    pub digest: String,
    pub bytes: Arc<Vec<u8>>,
}

/// An image or an index of two images, with all of its content.
pub struct Image {
    pub repository: String,
    pub top: Document,
    /// The manifests of an index.
    pub children: Vec<Document>,
    pub blobs: Vec<Blob>,
}

/// The value of a tag from a point in time on; `None` if it does not exist.
type Values = Vec<(Instant, Option<String>)>;

#[derive(Default)]
struct Content {
    images: VecDeque<Arc<Image>>,
    /// By repository and digest.
    manifests: HashMap<(String, String), Document>,
    /// Content, and the number of images that use it.
    blobs: HashMap<String, (Arc<Vec<u8>>, usize)>,
    tags: BTreeMap<String, BTreeMap<String, Values>>,
    /// The referrers of each manifest, by its digest: repository, digest and size.
    referrers: HashMap<String, Vec<(String, String, usize)>>,
}

#[derive(Default)]
pub struct World(Mutex<Content>);

impl World {
    fn lock(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an image and points a tag at it.
    pub fn push(&self, image: Image, tag: &str) -> Arc<Image> {
        let image = Arc::new(image);
        let mut content = self.lock();
        content.add(&image);
        content.set(&image.repository, tag, Some(image.top.digest.clone()));
        if image.repository != PINNED {
            content.images.push_back(Arc::clone(&image));
        }
        if content.images.len() > IMAGES_MAX {
            content.forget_oldest();
        }
        image
    }

    /// Adds a signature of an image, which refers to it.
    pub fn sign(&self, image: &Image, random: &mut Random) {
        let signature = build(&image.repository, &[], 1, Some(&image.top), random);
        let entry =
            (image.repository.clone(), signature.top.digest.clone(), signature.top.bytes.len());
        let mut content = self.lock();
        content.add(&Arc::new(signature));
        content.referrers.entry(image.top.digest.clone()).or_default().push(entry);
    }

    /// Points a tag at another image of the repository, or deletes it.
    pub fn retag(&self, repository: &str, tag: &str, digest: Option<String>) {
        self.lock().set(repository, tag, digest);
    }

    /// Removes the content of an image, but remembers what its tag was.
    pub fn forget(&self, image: &Image) {
        self.lock().remove(image);
    }

    /// Images of a repository that the registry has, oldest first.
    pub fn images(&self, repository: &str) -> Vec<Arc<Image>> {
        let content = self.lock();
        content.images.iter().filter(|image| image.repository == repository).cloned().collect()
    }

    pub fn manifest(&self, repository: &str, reference: &str) -> Option<Document> {
        let content = self.lock();
        let digest = match reference.contains(':') {
            true => reference.to_owned(),
            false => content.tags.get(repository)?.get(reference)?.last()?.1.clone()?,
        };
        content.manifests.get(&(repository.to_owned(), digest)).cloned()
    }

    pub fn blob(&self, digest: &str) -> Option<Arc<Vec<u8>>> {
        self.lock().blobs.get(digest).map(|(bytes, _)| Arc::clone(bytes))
    }

    /// The tags that exist now.
    pub fn tags(&self, repository: &str) -> Vec<String> {
        let content = self.lock();
        let tags = content.tags.get(repository).into_iter().flatten();
        let existing =
            tags.filter(|(_, values)| values.last().is_some_and(|last| last.1.is_some()));
        existing.map(|(tag, _)| tag.clone()).collect()
    }

    /// Whether a tag ever existed.
    pub fn has_had(&self, repository: &str, tag: &str) -> bool {
        self.lock().tags.get(repository).is_some_and(|tags| tags.contains_key(tag))
    }

    /// The values that a tag had at some moment between two points in time.
    pub fn values(
        &self,
        repository: &str,
        tag: &str,
        from: Instant,
        to: Instant,
    ) -> Vec<Option<String>> {
        let content = self.lock();
        let Some(values) = content.tags.get(repository).and_then(|tags| tags.get(tag)) else {
            return vec![None];
        };
        let began = values.iter().rposition(|(since, _)| *since <= from);
        let first = began.unwrap_or_default();
        let during = values[first..].iter().filter(|(since, _)| *since <= to);
        let mut found: Vec<_> = during.map(|(_, digest)| digest.clone()).collect();
        if began.is_none() {
            found.push(None);
        }
        found
    }

    pub fn referrers(&self, repository: &str, digest: &str) -> Vec<(String, usize)> {
        let content = self.lock();
        let entries = content.referrers.get(digest).into_iter().flatten();
        let own = entries.filter(|entry| entry.0 == repository);
        own.map(|(_, digest, size)| (digest.clone(), *size)).collect()
    }
}

impl Content {
    fn add(&mut self, image: &Arc<Image>) {
        for document in image.children.iter().chain([&image.top]) {
            let key = (image.repository.clone(), document.digest.clone());
            self.manifests.insert(key, document.clone());
        }
        for blob in &image.blobs {
            let entry = self.blobs.entry(blob.digest.clone());
            entry.or_insert_with(|| (Arc::clone(&blob.bytes), 0)).1 += 1;
        }
    }

    fn remove(&mut self, image: &Image) {
        for document in image.children.iter().chain([&image.top]) {
            self.manifests.remove(&(image.repository.clone(), document.digest.clone()));
        }
        for blob in &image.blobs {
            let Some(entry) = self.blobs.get_mut(&blob.digest) else { continue };
            entry.1 -= 1;
            if entry.1 == 0 {
                self.blobs.remove(&blob.digest);
            }
        }
    }

    fn set(&mut self, repository: &str, tag: &str, digest: Option<String>) {
        let tags = self.tags.entry(repository.to_owned()).or_default();
        tags.entry(tag.to_owned()).or_default().push((Instant::now(), digest));
    }

    /// Removes the oldest image that no tag points to.
    fn forget_oldest(&mut self) {
        let is_tagged = |image: &Image| {
            let tags = self.tags.get(&image.repository).into_iter().flatten();
            let mut last = tags.filter_map(|(_, values)| values.last()?.1.as_ref());
            last.any(|digest| *digest == image.top.digest)
        };
        let oldest = self.images.iter().position(|image| !is_tagged(image));
        if let Some(image) = oldest.and_then(|oldest| self.images.remove(oldest)) {
            self.remove(&image);
        }
    }
}

/// Makes an image: a few layers of which some are `shared` with other images, sometimes for two platforms.
pub fn make(repository: &str, shared: &[Blob], random: &mut Random) -> Image {
    let layers = random.between(1, 4);
    if !random.percent(25) {
        return build(repository, shared, layers, None, random);
    }
    let images = ["amd64", "arm64"].map(|architecture| {
        (architecture, build(repository, shared, random.between(1, 2), None, random))
    });
    let entries: Vec<_> = images
        .iter()
        .map(|(architecture, image)| {
            json!({"mediaType": OCI_MANIFEST, "digest": image.top.digest, "size": image.top.bytes.len(),
                "platform": {"os": "linux", "architecture": architecture}})
        })
        .collect();
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries});
    let top = document(index.to_string(), OCI_INDEX);
    let (mut children, mut blobs) = (Vec::new(), Vec::new());
    for (_, image) in images {
        children.push(image.top);
        blobs.extend(image.blobs);
    }
    Image { repository: repository.to_owned(), top, children, blobs }
}

fn build(
    repository: &str,
    shared: &[Blob],
    layers: usize,
    subject: Option<&Document>,
    random: &mut Random,
) -> Image {
    let mut blobs = Vec::new();
    for _ in 0..layers {
        match random.pick(shared).filter(|_| random.percent(30)) {
            Some(layer) => blobs.push(layer.clone()),
            None => {
                let length = layer_length(random);
                blobs.push(blob(random.bytes(length)));
            }
        }
    }
    let diff_ids: Vec<_> = blobs.iter().map(|layer| &layer.digest).collect();
    let config = json!({"architecture": "amd64", "os": "linux", "created": "2026-11-01T00:00:00Z",
        "config": {"Labels": {"number": random.next()}},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = blob(config.to_string().into_bytes());
    let describe = |blob: &Blob, kind: &str| json!({"mediaType": kind, "digest": blob.digest, "size": blob.bytes.len()});
    let descriptors: Vec<_> = blobs.iter().map(|layer| describe(layer, OCI_LAYER)).collect();
    let mut manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": describe(&config, OCI_CONFIG), "layers": descriptors});
    if let Some(subject) = subject {
        manifest["artifactType"] = json!("application/vnd.example.signature");
        manifest["subject"] = json!({"mediaType": subject.media_type, "digest": subject.digest,
            "size": subject.bytes.len()});
    }
    let top = document(manifest.to_string(), OCI_MANIFEST);
    blobs.push(config);
    Image { repository: repository.to_owned(), top, children: Vec::new(), blobs }
}

/// Most layers are small, as in real images; a few are large enough to be cut in the middle.
fn layer_length(random: &mut Random) -> usize {
    match random.below(10) {
        0..=4 => random.between(1, 20_000),
        5..=8 => random.between(20_000, 400_000),
        _ => random.between(400_000, 3_000_000),
    }
}

fn blob(bytes: Vec<u8>) -> Blob {
    Blob { digest: digest_of(&bytes), bytes: Arc::new(bytes) }
}

fn document(text: String, media_type: &'static str) -> Document {
    let bytes = text.into_bytes();
    Document { digest: digest_of(&bytes), media_type, bytes: Arc::new(bytes) }
}
