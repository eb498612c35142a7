//! Images and indexes for a fake registry, with deterministic content.
//!
//! ```ignore
//! let image = Image::sample("v1").layer(bytes(1 << 20, 7));
//! let index = Index::new().image(&image).image(&Image::sample("v1").platform("linux", "arm64"));
//! registry.add("library/alpine", "3.20", &index);
//! ```
//! Layers are plain pseudo-random bytes, since neither registry nor server unpacks them.

use serde_json::{Value, json};

use super::{bytes, digest_of, sha512_of};

/// The media types of the two families.
pub mod media_type {
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    /// Docker's first schema, obsolete and refused by clients.
    pub const SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
}

/// A reference to content in a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    pub media_type: String,
    pub digest: String,
    pub size: usize,
}

impl Descriptor {
    fn json(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest, "size": self.size})
    }
}

/// A config or a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    pub digest: String,
    pub bytes: Vec<u8>,
}

/// A manifest, ready to be served.
#[derive(Clone, Debug)]
pub struct Manifest {
    pub media_type: String,
    pub digest: String,
    pub bytes: Vec<u8>,
}

/// Content that can be added to a repository: manifests and blobs, one manifest being the top.
pub trait Publish {
    /// The manifest that a tag points to.
    fn top(&self) -> Manifest;
    /// The manifests below the top (the images of an index), without the top.
    fn children(&self) -> Vec<Manifest>;
    /// All configs and layers.
    fn blobs(&self) -> Vec<Blob>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Oci,
    Docker,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    fn digest(self, content: &[u8]) -> String {
        match self {
            Algorithm::Sha256 => digest_of(content),
            Algorithm::Sha512 => sha512_of(content),
        }
    }
}

/// An image: a config, layers and their manifest. The builder is also the result: accessors such as
/// [`digest`](Image::digest) and [`layers`](Image::layers) compute their value.
#[derive(Clone, Debug)]
pub struct Image {
    label: String,
    layers: Vec<Vec<u8>>,
    family: Family,
    algorithm: Algorithm,
    os: String,
    architecture: String,
    annotations: Vec<(String, String)>,
    artifact_type: Option<String>,
    subject: Option<Descriptor>,
    created: Option<String>,
}

impl Image {
    /// An OCI image for linux/amd64 without layers. `label` makes its config unique.
    pub fn new(label: &str) -> Image {
        Image {
            label: label.to_owned(),
            layers: Vec::new(),
            family: Family::Oci,
            algorithm: Algorithm::Sha256,
            os: "linux".to_owned(),
            architecture: "amd64".to_owned(),
            annotations: Vec::new(),
            artifact_type: None,
            subject: None,
            created: None,
        }
    }

    /// As [`Image::new`], with two layers of 2048 and 5000 bytes that depend on `label`.
    pub fn sample(label: &str) -> Image {
        let seed = label.bytes().fold(17u64, |seed, b| seed.wrapping_mul(31) + u64::from(b));
        Image::new(label).layer(bytes(2048, seed)).layer(bytes(5000, seed.wrapping_add(1)))
    }

    /// Adds a layer on top.
    pub fn layer(mut self, content: Vec<u8>) -> Image {
        self.layers.push(content);
        self
    }

    /// Uses Docker's media types (manifest schema 2) instead of OCI's.
    pub fn docker(mut self) -> Image {
        self.family = Family::Docker;
        self
    }

    /// Uses sha512 digests for everything, including the manifest.
    pub fn sha512(mut self) -> Image {
        self.algorithm = Algorithm::Sha512;
        self
    }

    pub fn platform(mut self, os: &str, architecture: &str) -> Image {
        self.os = os.to_owned();
        self.architecture = architecture.to_owned();
        self
    }

    pub fn annotation(mut self, key: &str, value: &str) -> Image {
        self.annotations.push((key.to_owned(), value.to_owned()));
        self
    }

    /// States when it was built.
    pub fn created(mut self, time: &str) -> Image {
        self.created = Some(time.to_owned());
        self
    }

    pub fn artifact_type(mut self, artifact_type: &str) -> Image {
        self.artifact_type = Some(artifact_type.to_owned());
        self
    }

    /// Makes this image a referrer of `subject`.
    pub fn subject(mut self, subject: Descriptor) -> Image {
        self.subject = Some(subject);
        self
    }

    pub fn media_type(&self) -> &'static str {
        match self.family {
            Family::Oci => media_type::OCI_MANIFEST,
            Family::Docker => media_type::DOCKER_MANIFEST,
        }
    }

    pub fn config(&self) -> Blob {
        let diff_ids: Vec<String> = self.layers.iter().map(|layer| digest_of(layer)).collect();
        let mut config = json!({
            "architecture": self.architecture,
            "os": self.os,
            "config": {"Labels": {"label": self.label}},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        if let Some(created) = &self.created {
            config["created"] = created.as_str().into();
        }
        self.blob(config.to_string().into_bytes())
    }

    pub fn layers(&self) -> Vec<Blob> {
        self.layers.iter().map(|layer| self.blob(layer.clone())).collect()
    }

    /// The manifest exactly as it is served.
    pub fn manifest(&self) -> Vec<u8> {
        let (config_type, layer_type) = match self.family {
            Family::Oci => (media_type::OCI_CONFIG, media_type::OCI_LAYER),
            Family::Docker => (media_type::DOCKER_CONFIG, media_type::DOCKER_LAYER),
        };
        let layers: Vec<Value> =
            self.layers().iter().map(|layer| described(layer, layer_type).json()).collect();
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": self.media_type(),
            "config": described(&self.config(), config_type).json(),
            "layers": layers,
        });
        if let Some(artifact_type) = &self.artifact_type {
            manifest["artifactType"] = json!(artifact_type);
        }
        if let Some(subject) = &self.subject {
            manifest["subject"] = subject.json();
        }
        for (key, value) in &self.annotations {
            manifest["annotations"][key.as_str()] = json!(value);
        }
        // Indented, as in most registries: parsing and serializing it again changes the bytes.
        serde_json::to_vec_pretty(&manifest).expect("a JSON value can be written")
    }

    /// The digest of the manifest, which identifies the image.
    pub fn digest(&self) -> String {
        self.algorithm.digest(&self.manifest())
    }

    pub fn descriptor(&self) -> Descriptor {
        Descriptor {
            media_type: self.media_type().to_owned(),
            digest: self.digest(),
            size: self.manifest().len(),
        }
    }

    fn blob(&self, bytes: Vec<u8>) -> Blob {
        Blob { digest: self.algorithm.digest(&bytes), bytes }
    }
}

impl Publish for Image {
    fn top(&self) -> Manifest {
        Manifest {
            media_type: self.media_type().to_owned(),
            digest: self.digest(),
            bytes: self.manifest(),
        }
    }

    fn children(&self) -> Vec<Manifest> {
        Vec::new()
    }

    fn blobs(&self) -> Vec<Blob> {
        let mut blobs = self.layers();
        blobs.push(self.config());
        blobs
    }
}

/// An index of images, one per platform.
#[derive(Clone, Debug)]
pub struct Index {
    images: Vec<Image>,
    family: Family,
    algorithm: Algorithm,
}

impl Index {
    /// An empty OCI index.
    pub fn new() -> Index {
        Index { images: Vec::new(), family: Family::Oci, algorithm: Algorithm::Sha256 }
    }

    /// Adds an image under its platform.
    pub fn image(mut self, image: &Image) -> Index {
        self.images.push(image.clone());
        self
    }

    /// Uses Docker's manifest list instead of OCI's index; the children stay unchanged.
    pub fn docker(mut self) -> Index {
        self.family = Family::Docker;
        self
    }

    /// Uses a sha512 digest for the index; the children stay unchanged.
    pub fn sha512(mut self) -> Index {
        self.algorithm = Algorithm::Sha512;
        self
    }

    pub fn media_type(&self) -> &'static str {
        match self.family {
            Family::Oci => media_type::OCI_INDEX,
            Family::Docker => media_type::DOCKER_LIST,
        }
    }

    /// The index exactly as it is served.
    pub fn manifest(&self) -> Vec<u8> {
        let manifests: Vec<Value> = self
            .images
            .iter()
            .map(|image| {
                let mut entry = image.descriptor().json();
                entry["platform"] = json!({"os": image.os, "architecture": image.architecture});
                entry
            })
            .collect();
        let index =
            json!({"schemaVersion": 2, "mediaType": self.media_type(), "manifests": manifests});
        serde_json::to_vec_pretty(&index).expect("a JSON value can be written")
    }

    pub fn digest(&self) -> String {
        self.algorithm.digest(&self.manifest())
    }

    pub fn descriptor(&self) -> Descriptor {
        Descriptor {
            media_type: self.media_type().to_owned(),
            digest: self.digest(),
            size: self.manifest().len(),
        }
    }
}

impl Publish for Index {
    fn top(&self) -> Manifest {
        Manifest {
            media_type: self.media_type().to_owned(),
            digest: self.digest(),
            bytes: self.manifest(),
        }
    }

    fn children(&self) -> Vec<Manifest> {
        self.images.iter().map(Publish::top).collect()
    }

    fn blobs(&self) -> Vec<Blob> {
        self.images.iter().flat_map(Publish::blobs).collect()
    }
}

fn described(blob: &Blob, media_type: &str) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest: blob.digest.clone(),
        size: blob.bytes.len(),
    }
}
