//! `docker save` archives: `manifest.json` names config and layers by paths. There is no registry manifest.
//!
//! <https://github.com/moby/moby/blob/master/image/spec/v1.2.md>. The archive contains neither the registry's
//! name of the image nor its digest. Larder builds a manifest from the content, the same one each time.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read};

use serde::{Deserialize, Serialize};

use super::compression::{Compression, decompress};
use super::error::BundleError;
use super::event::Origin;
use super::import::Root;
use super::layout::{EntryName, blob_name};
use super::reader::Contents;
use crate::oci::{
    Algorithm, DESCRIPTORS_MAX, Descriptor, Digest, MANIFEST_BYTES_MAX, Manifest, ManifestKind,
    MediaType, Reference, Verifier, json_reason, quoted,
};
use crate::store::{Blob, Graph, IngestError, Store, StoredImage};
use crate::units::plural;

/// The media types for a Docker manifest, the ones that containerd uses for its imports.
const CONFIG_TYPE: &str = "application/vnd.docker.container.image.v1+json";
const LAYER_TYPE: &str = "application/vnd.docker.image.rootfs.diff.tar";
/// The media types of configs of runnable images.
const IMAGE_CONFIGS: [&str; 2] = ["application/vnd.oci.image.config.v1+json", CONFIG_TYPE];
/// The media type of an uncompressed layer in an OCI manifest.
const UNPACKED_LAYER: &str = r#""application/vnd.oci.image.layer.v1.tar""#;

/// An image in `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct SavedImage {
    /// The path of its config.
    pub(super) config: String,
    /// Its names, as `docker images` shows them.
    pub(super) repo_tags: Option<Vec<String>>,
    /// The paths of its layers, the lowest first.
    pub(super) layers: Vec<String>,
}

impl SavedImage {
    /// A name for messages.
    pub(super) fn label(&self) -> String {
        match self.repo_tags.as_deref() {
            Some([first, ..]) => first.clone(),
            _ => self.config.clone(),
        }
    }
}

/// The entry for a tagged image in `manifest.json`, read by `docker load`: the first of its platforms that an
/// engine can run. `None` if no platform has all of its content.
pub(super) fn saved(store: &Store, image: &StoredImage, graph: &Graph) -> Option<SavedImage> {
    if !matches!(image.reference, Reference::Tag(_)) {
        return None;
    }
    let mut manifests = graph
        .manifests
        .iter()
        .filter_map(|each| Some((&each.descriptor.digest, each.manifest.as_ref()?)));
    let (_, manifest) =
        manifests.find(|(digest, manifest)| is_runnable(store, digest, manifest))?;
    let ManifestKind::Image { config: Some(config), layers } = manifest.kind() else {
        return None;
    };
    // Including foreign layers: no engine loads an image without them.
    let present: HashSet<Digest> = graph.present_digests().collect();
    if !layers.iter().chain([config]).all(|each| present.contains(&each.digest)) {
        return None;
    }
    Some(SavedImage {
        config: blob_name(&config.digest),
        repo_tags: Some(vec![image.full_reference()]),
        layers: layers.iter().map(|layer| blob_name(&layer.digest)).collect(),
    })
}

/// Whether an engine can run the image. The media types decide: an attestation in an index claims to have an
/// image's config, but its layers are not file systems.
fn is_runnable(store: &Store, digest: &Digest, manifest: &Manifest) -> bool {
    #[derive(Deserialize)]
    struct View {
        config: TypedDescriptor,
        layers: Vec<TypedDescriptor>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct TypedDescriptor {
        media_type: String,
    }
    let view = |bytes: &[u8]| serde_json::from_slice::<View>(bytes).ok();
    let view = store.with_document(digest, manifest.size(), view).ok().flatten().flatten();
    view.is_some_and(|view| {
        IMAGE_CONFIGS.contains(&view.config.media_type.as_str())
            && view.layers.iter().all(|layer| layer.media_type.contains(".tar"))
    })
}

/// Reads `manifest.json`.
///
/// # Errors
/// A text that describes the error.
pub(super) fn parse(bytes: &[u8]) -> Result<Vec<SavedImage>, String> {
    serde_json::from_slice(bytes).map_err(|error| match bytes.trim_ascii_start().first() {
        Some(b'{') => {
            "it is the manifest of a single image, as in skopeo's dir: format; copy the image \
                       to oci-archive: instead"
                .to_owned()
        }
        _ => json_reason(&error),
    })
}

/// Whether `docker save` appears to have created the manifest: a registry's manifest has compressed layers.
pub(super) fn is_over_unpacked_layers(store: &Store, digest: &Digest, manifest: &Manifest) -> bool {
    let needle = UNPACKED_LAYER.as_bytes();
    let contains = move |bytes: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
    store.with_document(digest, manifest.size(), contains).is_ok_and(|found| found == Some(true))
}

#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Option<Vec<String>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NewManifest {
    schema_version: u32,
    media_type: &'static str,
    config: NewDescriptor,
    layers: Vec<NewDescriptor>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NewDescriptor {
    media_type: String,
    size: u64,
    digest: String,
}

impl NewDescriptor {
    fn new(media_type: String, (digest, size): (Digest, u64)) -> NewDescriptor {
        NewDescriptor { media_type, size, digest: digest.to_string() }
    }
}

/// Rebuilds the manifests of saved images. Work is proportional to the archive, whatever its `manifest.json`
/// contains: each config is parsed once, and each layer is unpacked once.
pub(super) struct Rebuild<'a> {
    store: &'a Store,
    contents: &'a Contents,
    /// The last config that was parsed, with its layers.
    config: Option<(Digest, Option<Vec<Digest>>)>,
    /// The last manifest that was stored. Images that differ only in their names are adjacent.
    stored: Option<Digest>,
    /// The layers that were unpacked, with the digests of their content.
    unpacked: HashMap<(Digest, Algorithm), Result<(Compression, Digest), String>>,
}

impl<'a> Rebuild<'a> {
    pub(super) fn new(store: &'a Store, contents: &'a Contents) -> Rebuild<'a> {
        Rebuild { store, contents, config: None, stored: None, unpacked: HashMap::new() }
    }

    /// Builds and stores the manifests of images, in the order of the images, with one root for each name of
    /// an image. The inner error describes a problem with one image.
    ///
    /// # Errors
    /// [`BundleError`] if the cache cannot be written.
    pub(super) fn all(
        &mut self,
        images: &[SavedImage],
    ) -> Result<Vec<Result<Vec<Root>, String>>, BundleError> {
        // Handle images with the same config together, so that only one config is kept in memory.
        let config = |at: &usize| self.contents.file(self.store, &images[*at].config);
        let mut order: Vec<usize> = (0..images.len()).collect();
        order.sort_by_cached_key(config);
        let mut rebuilt: Vec<Result<Vec<Root>, String>> = Vec::new();
        rebuilt.resize_with(images.len(), || Ok(Vec::new()));
        for at in order {
            rebuilt[at] = self.image(&images[at])?;
        }
        Ok(rebuilt)
    }

    fn image(&mut self, image: &SavedImage) -> Result<Result<Vec<Root>, String>, BundleError> {
        let manifest = match self.manifest(image) {
            Ok(manifest) => manifest,
            Err(reason) => return Ok(Err(reason)),
        };
        let bytes = serde_json::to_vec(&manifest).unwrap_or_default();
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        let is_stored = self.stored.replace(digest) == Some(digest);
        let ingest = || self.store.ingest_bytes(&digest, &bytes);
        match if is_stored { Ok(()) } else { ingest() } {
            Ok(()) => {}
            Err(IngestError::Store(error)) => return Err(error.into()),
            Err(error) => return Ok(Err(error.to_string())),
        }
        let root = |name| Root {
            descriptor: Descriptor::new(digest, bytes.len() as u64),
            media_type: Some(MediaType::DOCKER_MANIFEST.to_owned()),
            name,
            origin: Origin::Rebuilt,
        };
        Ok(Ok(match image.repo_tags.as_deref() {
            Some([]) | None => vec![root(EntryName::None)],
            // Both `alpine:3` and `alpine` are references here; neither is a bare tag.
            Some(names) => names.iter().map(|name| root(EntryName::Full(name.clone()))).collect(),
        }))
    }

    fn manifest(&mut self, image: &SavedImage) -> Result<NewManifest, String> {
        let path = quoted(&image.config);
        let config = self.file(&image.config)?;
        let stem = image.config.strip_suffix(".json").unwrap_or(&image.config);
        let claimed: Option<Digest> = format!("sha256:{stem}").parse().ok();
        if let Some(claimed) = claimed.filter(|claimed| *claimed != config.0) {
            return Err(format!("{path}: the bytes have the digest {}, not {claimed}", config.0));
        }
        let diff_ids = self.diff_ids(config).ok_or_else(|| {
            format!("{path} is not an image config: it does not list the layers of the image")
        })?;
        let (layers, listed) = (image.layers.len(), diff_ids.len());
        if layers != listed {
            return Err(format!("it has {}, and {path} lists {listed}", plural(layers, "layer")));
        }
        if layers >= DESCRIPTORS_MAX {
            return Err(format!("it has {layers} layers, the limit is {}", DESCRIPTORS_MAX - 1));
        }
        let mut descriptors = Vec::new();
        for (path, diff_id) in image.layers.iter().zip(diff_ids.clone()) {
            let file = self.file(path)?;
            let media_type = match self.verified(file, &diff_id) {
                Ok(Compression::None) => LAYER_TYPE.to_owned(),
                Ok(Compression::Gzip) => format!("{LAYER_TYPE}.gzip"),
                Ok(Compression::Zstd) => format!("{LAYER_TYPE}.zstd"),
                Err(reason) => return Err(format!("{}: {reason}", quoted(path))),
            };
            descriptors.push(NewDescriptor::new(media_type, file));
        }
        Ok(NewManifest {
            schema_version: 2,
            media_type: MediaType::DOCKER_MANIFEST,
            config: NewDescriptor::new(CONFIG_TYPE.to_owned(), config),
            layers: descriptors,
        })
    }

    fn file(&self, path: &str) -> Result<(Digest, u64), String> {
        let file = self.contents.file(self.store, path);
        file.ok_or_else(|| format!("{} is not in the bundle", quoted(path)))
    }

    /// The digests of the uncompressed layers, from the config.
    fn diff_ids(&mut self, file: (Digest, u64)) -> Option<&Vec<Digest>> {
        if self.config.as_ref().is_none_or(|(digest, _)| *digest != file.0) {
            self.config = Some((file.0, diff_ids(self.store, file)));
        }
        self.config.as_ref()?.1.as_ref()
    }

    /// Verifies a layer against the digest of its uncompressed content in the config.
    fn verified(&mut self, file: (Digest, u64), diff_id: &Digest) -> Result<Compression, String> {
        if file.0 == *diff_id {
            return Ok(Compression::None);
        }
        let key = (file.0, diff_id.algorithm());
        let unpacked = self.unpacked.entry(key).or_insert_with(|| {
            let blob =
                self.store.blob(&file.0, Some(file.1)).ok_or("it vanished from the cache")?;
            unpacked_digest(&blob, diff_id.algorithm())
                .map_err(|error| format!("it cannot be unpacked ({error})"))
        });
        let (compression, actual) = unpacked.clone()?;
        match actual == *diff_id {
            true => Ok(compression),
            false => {
                Err(format!("its content has the digest {actual}, but the config lists {diff_id}"))
            }
        }
    }
}

fn diff_ids(store: &Store, (digest, size): (Digest, u64)) -> Option<Vec<Digest>> {
    if size > MANIFEST_BYTES_MAX as u64 {
        return None;
    }
    let config: Config = serde_json::from_slice(&store.read(&digest, size)?).ok()?;
    config.rootfs.diff_ids.unwrap_or_default().iter().map(|text| text.parse().ok()).collect()
}

fn unpacked_digest(blob: &Blob, algorithm: Algorithm) -> io::Result<(Compression, Digest)> {
    let (compression, mut content) = decompress(BlobReader { blob, offset: 0 })?;
    let mut verifier = Verifier::new(algorithm);
    let mut piece = vec![0; 64 * 1024];
    loop {
        match content.read(&mut piece)? {
            0 => return Ok((compression, verifier.finish())),
            read => verifier.update(&piece[..read]),
        }
    }
}

/// Reads a blob's file by offset, since the file is shared.
pub(super) struct BlobReader<'a> {
    pub(super) blob: &'a Blob,
    pub(super) offset: u64,
}

impl Read for BlobReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use std::os::unix::fs::FileExt;
        let read = self.blob.file.read_at(buffer, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}
