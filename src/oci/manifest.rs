//! Image manifests and indexes: a parsed view beside the bytes it came from.
//!
//! The bytes are never written again from the view: a digest is over bytes, and a manifest that was
//! re-serialised is another manifest. Specifications: image-spec `manifest.md` and `image-index.md`,
//! and Docker's "Image Manifest Version 2, Schema 2".

use std::fmt;
use std::sync::Arc;

use serde::Deserialize;

use super::digest::Digest;
use super::media_type::MediaType;

/// The largest manifest taken from an upstream, in bytes: what clients accept (containerd stops at
/// 4,393,216, podman at 4 MiB) and what the distribution-spec asks registries to support.
pub const MANIFEST_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A manifest or an index that was accepted: JSON of a known shape, not schema 1.
#[derive(Debug, Clone)]
pub struct Manifest {
    bytes: Arc<[u8]>,
    media_type: MediaType,
    kind: ManifestKind,
    subject: Option<Descriptor>,
}

/// What a manifest points at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManifestKind {
    /// One image: a config (absent in artifact manifests) and layers in order.
    Image {
        /// The configuration blob.
        config: Option<Descriptor>,
        /// Layers, or an artifact's blobs.
        layers: Vec<Descriptor>,
    },
    /// Several manifests, one a platform.
    Index {
        /// The children.
        manifests: Vec<Descriptor>,
    },
}

/// Points at content: image-spec `descriptor.md`, reduced to what Larder uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// The content's digest.
    pub digest: Digest,
    /// The content's size in bytes.
    pub size: u64,
    /// The platform of an index's child as `os/architecture[/variant]`.
    pub platform: Option<String>,
}

impl Manifest {
    /// Accepts the body of a manifest answer.
    ///
    /// `content_type` is what the server said; where it says nothing useful (missing, `text/plain`,
    /// `application/json`, …) the body's `mediaType` decides, and failing that its shape.
    ///
    /// # Errors
    /// [`ManifestError`] for anything that no client could use: too large, not a JSON object (a
    /// captive portal's page), schema 1, or neither manifest nor index.
    pub fn parse(bytes: Arc<[u8]>, content_type: Option<&str>) -> Result<Manifest, ManifestError> {
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLarge { bytes: bytes.len() });
        }
        let wire: Wire = serde_json::from_slice(&bytes)
            .map_err(|error| ManifestError::NotJson { reason: error.to_string() })?;
        let said = content_type.and_then(MediaType::parse);
        if wire.schema_version == Some(1) || said.as_ref().is_some_and(MediaType::is_schema1) {
            return Err(ManifestError::Schema1);
        }
        let media_type = said
            .filter(|said| !said.is_vague())
            .or_else(|| wire.media_type.as_deref().and_then(MediaType::parse))
            .or_else(|| wire.shape().and_then(MediaType::parse))
            .ok_or(ManifestError::NoShape)?;
        let subject = wire.subject.as_ref().and_then(WireDescriptor::accept);
        let kind = wire.into_kind(&media_type)?;
        Ok(Manifest { bytes, media_type, kind, subject })
    }

    /// The bytes as upstream sent them.
    pub fn bytes(&self) -> &Arc<[u8]> {
        &self.bytes
    }

    /// The media type to answer with.
    pub fn media_type(&self) -> &MediaType {
        &self.media_type
    }

    /// What it points at.
    pub fn kind(&self) -> &ManifestKind {
        &self.kind
    }

    /// The manifest that this one refers to (a signature's image), if any.
    pub fn subject(&self) -> Option<&Descriptor> {
        self.subject.as_ref()
    }

    /// Every descriptor in it: config and layers, or children.
    pub fn descriptors(&self) -> impl Iterator<Item = &Descriptor> {
        let (first, rest) = match &self.kind {
            ManifestKind::Image { config, layers } => (config.as_ref(), layers),
            ManifestKind::Index { manifests } => (None, manifests),
        };
        first.into_iter().chain(rest)
    }
}

/// The JSON, with everything optional: registries hold documents of many ages and makers.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    schema_version: Option<u32>,
    media_type: Option<String>,
    config: Option<WireDescriptor>,
    layers: Option<Vec<WireDescriptor>>,
    blobs: Option<Vec<WireDescriptor>>,
    manifests: Option<Vec<WireDescriptor>>,
    subject: Option<WireDescriptor>,
}

#[derive(Deserialize)]
struct WireDescriptor {
    digest: Option<String>,
    size: Option<u64>,
    platform: Option<WirePlatform>,
}

#[derive(Deserialize)]
struct WirePlatform {
    architecture: Option<String>,
    os: Option<String>,
    variant: Option<String>,
}

impl Wire {
    fn shape(&self) -> Option<&'static str> {
        if self.manifests.is_some() {
            Some(MediaType::OCI_INDEX)
        } else if self.config.is_some() && self.layers.is_some() {
            Some(MediaType::OCI_MANIFEST)
        } else {
            None
        }
    }

    fn into_kind(self, media_type: &MediaType) -> Result<ManifestKind, ManifestError> {
        if media_type.is_index() || (self.manifests.is_some() && self.layers.is_none()) {
            let manifests = self.manifests.ok_or(ManifestError::NoShape)?;
            return Ok(ManifestKind::Index { manifests: accept_all(&manifests) });
        }
        if self.config.is_none() && self.layers.is_none() && self.blobs.is_none() {
            return Err(ManifestError::NoShape);
        }
        let layers = self.layers.or(self.blobs).unwrap_or_default();
        Ok(ManifestKind::Image {
            config: self.config.as_ref().and_then(WireDescriptor::accept),
            layers: accept_all(&layers),
        })
    }
}

/// Descriptors with a digest that Larder cannot verify are left out of the view: the manifest itself
/// is still served to the client, which may know more.
fn accept_all(wire: &[WireDescriptor]) -> Vec<Descriptor> {
    wire.iter().filter_map(WireDescriptor::accept).collect()
}

impl WireDescriptor {
    fn accept(&self) -> Option<Descriptor> {
        Some(Descriptor {
            digest: self.digest.as_deref()?.parse().ok()?,
            size: self.size?,
            platform: self.platform.as_ref().and_then(WirePlatform::accept),
        })
    }
}

impl WirePlatform {
    fn accept(&self) -> Option<String> {
        let mut text = format!("{}/{}", self.os.as_deref()?, self.architecture.as_deref()?);
        if let Some(variant) = self.variant.as_deref().filter(|variant| !variant.is_empty()) {
            text.push('/');
            text.push_str(variant);
        }
        Some(text)
    }
}

/// Why a body is not taken as a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManifestError {
    /// It is larger than [`MANIFEST_BYTES_MAX`].
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// It is not a JSON object: an HTML page, a truncated answer.
    NotJson {
        /// What the JSON parser said.
        reason: String,
    },
    /// It is Docker's schema 1, which clients dropped and whose digest cannot be checked.
    Schema1,
    /// It is JSON but neither manifest nor index.
    NoShape,
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ManifestError::TooLarge { bytes } => {
                write!(f, "the manifest has {bytes} bytes, the limit is {MANIFEST_BYTES_MAX}")
            }
            ManifestError::NotJson { reason } => {
                write!(f, "the answer is not a JSON manifest ({reason})")
            }
            ManifestError::Schema1 => {
                write!(f, "the manifest is Docker schema 1, which no current client accepts")
            }
            ManifestError::NoShape => {
                write!(f, "the JSON is neither an image manifest nor an index")
            }
        }
    }
}

impl std::error::Error for ManifestError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    fn parse(body: &str, content_type: Option<&str>) -> Result<Manifest, ManifestError> {
        Manifest::parse(body.as_bytes().into(), content_type)
    }

    fn image(media_type: &str) -> String {
        let digest = Digest::of(Algorithm::Sha256, b"");
        format!(
            r#"{{ "schemaVersion":2{media_type},
                 "config":{{"mediaType":"c","digest":"{digest}","size":2}},
                 "layers":[{{"mediaType":"l","digest":"{digest}","size":5}}]}}"#
        )
    }

    #[test]
    fn bytes_are_kept_as_they_came() {
        let body = image("");
        let manifest = parse(&body, Some(MediaType::OCI_MANIFEST)).unwrap();
        assert_eq!(&**manifest.bytes(), body.as_bytes());
        assert_eq!(manifest.descriptors().map(|each| each.size).collect::<Vec<_>>(), [2, 5]);
    }

    #[test]
    fn a_vague_content_type_is_decided_by_the_body() {
        let docker = format!(r#","mediaType":"{}""#, MediaType::DOCKER_MANIFEST);
        let table = [
            (Some("application/json"), docker.as_str(), MediaType::DOCKER_MANIFEST),
            (Some("text/plain; charset=utf-8"), "", MediaType::OCI_MANIFEST),
            (None, "", MediaType::OCI_MANIFEST),
            (Some(MediaType::DOCKER_MANIFEST), "", MediaType::DOCKER_MANIFEST),
        ];
        for (content_type, field, expected) in table {
            let manifest = parse(&image(field), content_type).unwrap();
            assert_eq!(manifest.media_type().as_str(), expected, "{content_type:?}");
        }
    }

    #[test]
    fn an_index_lists_its_platforms() {
        let digest = Digest::of(Algorithm::Sha512, b"x");
        let body = format!(
            r#"{{"schemaVersion":2,"manifests":[
                {{"digest":"{digest}","size":7,"platform":{{"os":"linux","architecture":"arm64","variant":"v8"}}}},
                {{"digest":"md5:00","size":1}}]}}"#
        );
        let manifest = parse(&body, None).unwrap();
        assert_eq!(manifest.media_type().as_str(), MediaType::OCI_INDEX);
        let platforms: Vec<_> = manifest.descriptors().map(|each| each.platform.clone()).collect();
        assert_eq!(platforms, [Some("linux/arm64/v8".to_owned())], "an unknown digest is left out");
    }

    #[test]
    fn refused_manifests() {
        let schema1 = "application/vnd.docker.distribution.manifest.v1+prettyjws";
        type Check = fn(&ManifestError) -> bool;
        let table: [(&str, Option<&str>, Check); 7] = [
            ("<html>log in</html>", Some("text/html"), |error| {
                matches!(error, ManifestError::NotJson { .. })
            }),
            ("", None, |error| matches!(error, ManifestError::NotJson { .. })),
            (r#"{"schemaVersion":2"#, None, |error| matches!(error, ManifestError::NotJson { .. })),
            (r#"{"schemaVersion":1}"#, None, |error| *error == ManifestError::Schema1),
            (r#"{"schemaVersion":2}"#, Some(schema1), |error| *error == ManifestError::Schema1),
            (r#"{"errors":[]}"#, Some("application/json"), |error| {
                *error == ManifestError::NoShape
            }),
            (r#"{"config":{}}"#, Some(MediaType::OCI_INDEX), |error| {
                *error == ManifestError::NoShape
            }),
        ];
        for (body, content_type, expected) in table {
            let error = parse(body, content_type).unwrap_err();
            assert!(expected(&error), "{body}: {error:?}");
        }
        let large: Arc<[u8]> = vec![b' '; MANIFEST_BYTES_MAX + 1].into();
        assert!(matches!(Manifest::parse(large, None), Err(ManifestError::TooLarge { .. })));
    }

    proptest::proptest! {
        #[test]
        fn no_body_panics(body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = Manifest::parse(body.into(), None);
        }

        #[test]
        fn no_json_like_body_panics(body in r#"\{("(schemaVersion|layers|manifests|config|digest|size)":(\[|\]|\{|\}|null|-?[0-9]{1,20}|"x"|,)){0,8}\}"#) {
            let _ = Manifest::parse(body.into_bytes().into(), None);
        }
    }
}
