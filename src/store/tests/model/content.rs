//! The content and the names that the model uses: few, so that operations meet each other often.

use std::fmt;
use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::oci::{Algorithm, Digest, ImageName, MediaType, Upstream};

/// A blob or a manifest, as an index into [`ALL`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Item(pub(super) usize);

/// Configs and layers come first.
pub(super) const BLOBS: usize = 5;
pub(super) const ITEMS: usize = 12;

/// What is known about an item.
pub(super) struct Content {
    name: &'static str,
    pub(super) bytes: Vec<u8>,
    pub(super) digest: Digest,
    pub(super) media_type: MediaType,
    /// The manifests of an index, or the config and layers of an image.
    pub(super) below: Vec<Item>,
    pub(super) is_index: bool,
    pub(super) subject: Option<Item>,
}

static ALL: LazyLock<Vec<Content>> = LazyLock::new(build);

impl Item {
    pub(super) fn all() -> impl Iterator<Item = Item> {
        (0..ITEMS).map(Item)
    }

    pub(super) fn is_manifest(self) -> bool {
        self.0 >= BLOBS
    }

    pub(super) fn size(self) -> u64 {
        self.bytes.len() as u64
    }
}

impl std::ops::Deref for Item {
    type Target = Content;

    fn deref(&self) -> &Content {
        &ALL[self.0]
    }
}

impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// Larger than the manifests that stay in memory (128 KiB).
const LARGE_MANIFEST_BYTES: usize = 140_000;

fn build() -> Vec<Content> {
    let mut all: Vec<Content> = Vec::new();
    let mut blob = |name, algorithm, bytes: Vec<u8>| {
        let digest = Digest::of(algorithm, &bytes);
        let media_type = MediaType::parse("application/octet-stream").unwrap();
        let (below, is_index, subject) = (Vec::new(), false, None);
        all.push(Content { name, bytes, digest, media_type, below, is_index, subject });
    };
    let numbered = |length: usize| (0..length).map(|place| (place % 251) as u8).collect();
    blob("config", Algorithm::Sha256, b"config".to_vec());
    blob("shared", Algorithm::Sha256, b"shared".to_vec());
    blob("layer512", Algorithm::Sha512, numbered(9_000));
    blob("large", Algorithm::Sha256, numbered(70_000));
    blob("empty", Algorithm::Sha256, Vec::new());

    image(&mut all, "one", &[0, 1], None, 0);
    image(&mut all, "two", &[0, 1, 2], None, 0);
    image(&mut all, "largeImage", &[0, 3, 4], None, LARGE_MANIFEST_BYTES);
    index(&mut all, "index", &[5, 6], 0);
    index(&mut all, "largeIndex", &[7, 8], LARGE_MANIFEST_BYTES);
    image(&mut all, "signature", &[0, 2], Some(5), 0);
    image(&mut all, "alone", &[3], None, 0);
    assert_eq!(all.len(), ITEMS);
    all
}

fn descriptor(of: &Content) -> Value {
    json!({
        "mediaType": of.media_type.as_str(),
        "digest": of.digest.to_string(),
        "size": of.bytes.len(),
    })
}

fn image(
    all: &mut Vec<Content>,
    name: &'static str,
    below: &[usize],
    subject: Option<usize>,
    pad: usize,
) {
    let layers: Vec<Value> = below[1..].iter().map(|place| descriptor(&all[*place])).collect();
    let mut document = json!({
        "schemaVersion": 2,
        "mediaType": MediaType::OCI_MANIFEST,
        "config": descriptor(&all[below[0]]),
        "layers": layers,
        "annotations": { "name": name, "padding": "x".repeat(pad) },
    });
    if let Some(subject) = subject {
        document["subject"] = descriptor(&all[subject]);
    }
    manifest(all, name, MediaType::OCI_MANIFEST, &document, below, subject);
}

fn index(all: &mut Vec<Content>, name: &'static str, below: &[usize], pad: usize) {
    let manifests: Vec<Value> = below.iter().map(|place| descriptor(&all[*place])).collect();
    let document = json!({
        "schemaVersion": 2,
        "mediaType": MediaType::OCI_INDEX,
        "manifests": manifests,
        "annotations": { "name": name, "padding": "x".repeat(pad) },
    });
    manifest(all, name, MediaType::OCI_INDEX, &document, below, None);
}

fn manifest(
    all: &mut Vec<Content>,
    name: &'static str,
    media_type: &str,
    document: &Value,
    below: &[usize],
    subject: Option<usize>,
) {
    let bytes = document.to_string().into_bytes();
    all.push(Content {
        name,
        digest: Digest::of(Algorithm::Sha256, &bytes),
        bytes,
        media_type: MediaType::parse(media_type).unwrap(),
        below: below.iter().copied().map(Item).collect(),
        is_index: media_type == MediaType::OCI_INDEX,
        subject: subject.map(Item),
    });
}

/// A repository; one is below another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Repo {
    Team,
    TeamApp,
    Docker,
}

impl Repo {
    pub(super) const ALL: [Repo; 3] = [Repo::Team, Repo::TeamApp, Repo::Docker];

    pub(super) fn name(self) -> ImageName {
        super::super::name(match self {
            Repo::Team => "quay.io/team",
            Repo::TeamApp => "quay.io/team/app",
            Repo::Docker => "docker.io/library/app",
        })
    }
}

/// A tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tagged {
    V1,
    V2,
}

impl Tagged {
    pub(super) const ALL: [Tagged; 2] = [Tagged::V1, Tagged::V2];

    pub(super) fn tag(self) -> crate::oci::Tag {
        super::super::tag(match self {
            Tagged::V1 => "v1",
            Tagged::V2 => "v2",
        })
    }
}

/// The upstream of a partial download.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    Quay,
    Mirror,
}

impl Source {
    pub(super) const ALL: [Source; 2] = [Source::Quay, Source::Mirror];

    pub(super) fn upstream(self) -> Upstream {
        let name = match self {
            Source::Quay => "quay.io",
            Source::Mirror => "mirror.test:5000",
        };
        name.parse().unwrap()
    }
}
