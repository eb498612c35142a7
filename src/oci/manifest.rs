//! Image manifests and indexes: a parsed view of their bytes.
//!
//! The view is never serialized: a digest covers the bytes, and a re-serialized manifest would be a
//! different manifest. Specifications: image-spec `manifest.md` and `image-index.md`, and Docker's "Image
//! Manifest Version 2, Schema 2".

use std::fmt;

use super::digest::Digest;
use super::manifest_wire::Wire;
use super::media_type::MediaType;
use super::quoted::json_reason;

/// The largest manifest that is accepted from an upstream, in bytes. Clients accept about as much (containerd
/// 4,393,216 bytes, podman 4 MiB), and the distribution-spec asks registries to support this size.
pub const MANIFEST_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The most descriptors in a manifest: its config and layers, or the entries of an index. Images have tens, the
/// largest artifacts hundreds. Work and memory per manifest are proportional to the number.
pub const DESCRIPTORS_MAX: usize = 4096;

/// An accepted manifest or index: JSON with a known structure, not schema 1.
#[derive(Debug, Clone)]
pub struct Manifest {
    size: u64,
    media_type: MediaType,
    kind: ManifestKind,
    subject: Option<Descriptor>,
}

/// The content that a manifest refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManifestKind {
    /// One image: a config (absent in artifact manifests) and layers in order.
    Image {
        /// The configuration blob.
        config: Option<Descriptor>,
        /// Layers, or an artifact's blobs.
        layers: Vec<Descriptor>,
    },
    /// Several manifests, usually one per platform.
    Index {
        /// The children.
        manifests: Vec<Descriptor>,
    },
}

/// A reference to content: image-spec `descriptor.md`, reduced to what Larder uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// The content's digest.
    pub digest: Digest,
    /// The content's size in bytes; 0 if the descriptor does not give it. To compare it with a file, use
    /// [`Descriptor::known_size`].
    pub size: u64,
    /// The platform of a child of an index as `os/architecture[/variant]`, without control characters.
    pub platform: Option<String>,
    /// The manifest in the same index for which this one is an attestation
    /// (`vnd.docker.reference.digest`).
    pub attests: Option<Digest>,
    /// Whether the registry may lack the content: a layer with a non-distributable media type or with `urls`, as in
    /// Windows base images.
    pub is_foreign: bool,
    /// Whether this child of an index may be a manifest. An index may list any content, and registries store
    /// content that is not a manifest as blobs.
    pub may_be_manifest: bool,
}

impl Descriptor {
    /// A descriptor with this digest and size, and no other properties.
    pub fn new(digest: Digest, size: u64) -> Descriptor {
        Descriptor {
            digest,
            size,
            platform: None,
            attests: None,
            is_foreign: false,
            may_be_manifest: true,
        }
    }

    /// The size to compare with the size of a file. `None` if the descriptor gives no size, as in
    /// `"size": -1`, which Go clients accept. An empty blob needs no comparison either.
    pub fn known_size(&self) -> Option<u64> {
        (self.size > 0).then_some(self.size)
    }

    /// Whether the content may have this many bytes.
    pub fn is_of_size(&self, bytes: u64) -> bool {
        self.known_size().is_none_or(|size| size == bytes)
    }
}

impl Manifest {
    /// Parses the body of a manifest response.
    ///
    /// `content_type` is the type that the server sent. If it does not identify a manifest (missing, `text/plain`,
    /// `application/json`, …), the `mediaType` in the body decides, and otherwise the structure of the body. The
    /// same applies to a schema 1 type for a body with `schemaVersion` 2.
    ///
    /// # Errors
    /// [`ManifestError`] for a body that no client could use: too large, not a JSON object (such as the page of
    /// a captive portal), schema 1, or neither a manifest nor an index.
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Manifest, ManifestError> {
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLarge { bytes: bytes.len() });
        }
        let wire: Wire = serde_json::from_slice(bytes)
            .map_err(|error| ManifestError::NotJson { reason: json_reason(&error) })?;
        let declared = content_type.and_then(MediaType::parse);
        let is_schema1 = match wire.schema_version {
            Some(version) => version == 1,
            None => declared.as_ref().is_some_and(MediaType::is_schema1),
        };
        if is_schema1 {
            return Err(ManifestError::Schema1);
        }
        let in_body = wire.media_type.as_deref().and_then(MediaType::parse);
        let media_type = declared
            .filter(|declared| !declared.is_vague() && !declared.is_schema1())
            .or_else(|| in_body.filter(|in_body| !in_body.is_schema1()))
            .or_else(|| type_from_structure(&wire).and_then(MediaType::parse))
            .ok_or(ManifestError::NoShape)?;
        let subject = wire.subject.as_ref().and_then(|subject| subject.accept());
        let kind = kind_of(wire, &media_type)?;
        let size = bytes.len() as u64;
        Ok(Manifest { size, media_type, kind, subject })
    }

    /// The number of its bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The media type to serve the manifest with.
    pub fn media_type(&self) -> &MediaType {
        &self.media_type
    }

    /// The content that the manifest refers to.
    pub fn kind(&self) -> &ManifestKind {
        &self.kind
    }

    /// The subject: the manifest that this one refers to, such as the image of a signature.
    pub fn subject(&self) -> Option<&Descriptor> {
        self.subject.as_ref()
    }

    /// All descriptors: config and layers, or children.
    pub fn descriptors(&self) -> impl Iterator<Item = &Descriptor> {
        let (first, rest) = match &self.kind {
            ManifestKind::Image { config, layers } => (config.as_ref(), layers),
            ManifestKind::Index { manifests } => (None, manifests),
        };
        first.into_iter().chain(rest)
    }
}

/// Determines the media type from the members of a manifest that does not declare one.
fn type_from_structure(wire: &Wire) -> Option<&'static str> {
    if wire.manifests.is_some() {
        Some(MediaType::OCI_INDEX)
    } else if wire.config.is_some() && wire.layers.is_some() {
        Some(MediaType::OCI_MANIFEST)
    } else {
        None
    }
}

fn kind_of(wire: Wire, media_type: &MediaType) -> Result<ManifestKind, ManifestError> {
    let check = |count: usize| match count > DESCRIPTORS_MAX {
        true => Err(ManifestError::TooManyDescriptors { count }),
        false => Ok(()),
    };
    let is_image = wire.config.is_some() || wire.layers.is_some() || wire.blobs.is_some();
    if media_type.is_index() || (wire.manifests.is_some() && wire.layers.is_none()) {
        // An index without children may have `null`, or nothing, in their place.
        let manifests = match wire.manifests {
            None if is_image => return Err(ManifestError::NoShape),
            manifests => manifests.unwrap_or_default(),
        };
        check(manifests.count)?;
        return Ok(ManifestKind::Index { manifests: manifests.accepted });
    }
    if wire.config.is_none() && wire.layers.is_none() && wire.blobs.is_none() {
        return Err(ManifestError::NoShape);
    }
    let layers = wire.layers.or(wire.blobs).unwrap_or_default();
    check(layers.count + usize::from(wire.config.is_some()))?;
    let config = wire.config.as_ref().and_then(|config| config.accept());
    Ok(ManifestKind::Image { config, layers: layers.accepted })
}

/// Why a body was not accepted as a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManifestError {
    /// It is larger than [`MANIFEST_BYTES_MAX`].
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// It is not a JSON object: an HTML page or a truncated response, for example.
    NotJson {
        /// The error of the JSON parser, shortened.
        reason: String,
    },
    /// It has more descriptors than [`DESCRIPTORS_MAX`].
    TooManyDescriptors {
        /// How many.
        count: usize,
    },
    /// It is Docker's schema 1, which clients no longer support and whose digest cannot be verified.
    Schema1,
    /// It is JSON, but neither a manifest nor an index.
    NoShape,
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ManifestError::TooLarge { bytes } => {
                write!(f, "the manifest has {bytes} bytes, the limit is {MANIFEST_BYTES_MAX}")
            }
            ManifestError::NotJson { reason } => {
                write!(f, "the response is not a JSON manifest ({reason})")
            }
            ManifestError::TooManyDescriptors { count } => {
                write!(f, "the manifest has {count} descriptors, the limit is {DESCRIPTORS_MAX}")
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
        Manifest::parse(body.as_bytes(), content_type)
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
    fn an_image_has_a_size_and_descriptors() {
        let body = image("");
        let manifest = parse(&body, Some(MediaType::OCI_MANIFEST)).unwrap();
        assert_eq!(manifest.size(), body.len() as u64);
        assert_eq!(manifest.descriptors().map(|each| each.size).collect::<Vec<_>>(), [2, 5]);
    }

    #[test]
    fn the_body_decides_if_the_content_type_is_vague() {
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
    fn an_index_without_children_is_empty() {
        for body in [r#"{"schemaVersion":2,"manifests":null}"#, r#"{"schemaVersion":2}"#] {
            let index = parse(body, Some(MediaType::OCI_INDEX)).unwrap();
            assert_eq!(*index.kind(), ManifestKind::Index { manifests: Vec::new() }, "{body}");
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
        assert_eq!(
            platforms,
            [Some("linux/arm64/v8".to_owned())],
            "a descriptor with an unknown digest is skipped"
        );
    }

    #[test]
    fn refused_manifests() {
        let schema1 = "application/vnd.docker.distribution.manifest.v1+prettyjws";
        type Check = fn(&ManifestError) -> bool;
        let table: [(&str, Option<&str>, Check); 8] = [
            ("<html>log in</html>", Some("text/html"), |error| {
                matches!(error, ManifestError::NotJson { .. })
            }),
            ("", None, |error| matches!(error, ManifestError::NotJson { .. })),
            (r#"{"schemaVersion":2"#, None, |error| matches!(error, ManifestError::NotJson { .. })),
            (r#"{"schemaVersion":1}"#, None, |error| *error == ManifestError::Schema1),
            (r#"{"fsLayers":[]}"#, Some(schema1), |error| *error == ManifestError::Schema1),
            (r#"{"schemaVersion":2}"#, Some(schema1), |error| *error == ManifestError::NoShape),
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
        let large = vec![b' '; MANIFEST_BYTES_MAX + 1];
        assert!(matches!(Manifest::parse(&large, None), Err(ManifestError::TooLarge { .. })));
    }

    #[test]
    fn the_body_decides_for_schema_2_labelled_as_schema_1() {
        let schema1 = Some("application/vnd.docker.distribution.manifest.v1+prettyjws");
        let docker = format!(r#","mediaType":"{}""#, MediaType::DOCKER_MANIFEST);
        for (field, expected) in
            [("", MediaType::OCI_MANIFEST), (docker.as_str(), MediaType::DOCKER_MANIFEST)]
        {
            assert_eq!(parse(&image(field), schema1).unwrap().media_type().as_str(), expected);
        }
    }

    #[test]
    fn members_are_read_as_in_go() {
        let digest = Digest::of(Algorithm::Sha256, b"");
        let other = Digest::of(Algorithm::Sha256, b"other");
        for layers in [
            format!(
                r#""layers":[{{"digest":"{other}","size":1}}],"layers":[{{"digest":"{digest}","size":5}}]"#
            ),
            format!(r#""Layers":[{{"Digest":"{digest}","SIZE":5}}]"#),
            format!(
                r#""layers":[{{"digest":"{other}","digest":"{digest}","size":7,"size":5}},null]"#
            ),
        ] {
            let body = format!(r#"{{"schemaVersion":2,"schemaVersion":2,"config":null,{layers}}}"#);
            let manifest = parse(&body, Some(MediaType::OCI_MANIFEST)).unwrap();
            let all: Vec<_> = manifest.descriptors().cloned().collect();
            assert_eq!(all, [Descriptor::new(digest, 5)], "{body}");
        }
    }

    #[test]
    fn an_absent_or_invalid_size_is_not_compared() {
        let digest = Digest::of(Algorithm::Sha256, b"");
        for size in [r#","size":-1"#, "", r#","size":null"#, r#","size":0"#] {
            let body = format!(
                r#"{{"schemaVersion":2,"layers":[{{"digest":"{digest}"{size}}}],"config":{{}}}}"#
            );
            let manifest = parse(&body, None).unwrap();
            let layer = manifest.descriptors().next().unwrap();
            assert_eq!((layer.size, layer.known_size()), (0, None), "{body}");
            assert!(layer.is_of_size(7));
        }
        assert!(!Descriptor::new(digest, 6).is_of_size(7));
    }

    #[test]
    fn foreign_layers_are_recognized_by_urls_and_by_media_type() {
        let digest = Digest::of(Algorithm::Sha256, b"");
        for (members, expected) in [
            (r#""mediaType":"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip""#, true),
            (r#""mediaType":"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd""#, true),
            (r#""mediaType":"application/vnd.oci.image.layer.nondistributable.v1.tar""#, true),
            (r#""mediaType":"x","urls":["https://example.com/layer"]"#, true),
            (r#""mediaType":"application/vnd.oci.image.layer.v1.tar","urls":[]"#, false),
            (r#""mediaType":"application/vnd.oci.image.layer.v1.tar","urls":null"#, false),
        ] {
            let body = format!(
                r#"{{"schemaVersion":2,"config":{{}},"layers":[{{"digest":"{digest}","size":1,{members}}}]}}"#
            );
            let manifest = parse(&body, None).unwrap();
            assert_eq!(manifest.descriptors().next().unwrap().is_foreign, expected, "{members}");
        }
    }

    #[test]
    fn an_attestation_names_its_manifest() {
        let digest = Digest::of(Algorithm::Sha256, b"");
        for (kind, expected) in [("attestation-manifest", Some(digest)), ("other", None)] {
            let body = format!(
                r#"{{"schemaVersion":2,"manifests":[{{"digest":"{digest}","size":1,"annotations":{{"x":7,
                    "vnd.docker.reference.type":"{kind}","vnd.docker.reference.digest":"{digest}"}}}}]}}"#
            );
            let manifest = parse(&body, None).unwrap();
            assert_eq!(manifest.descriptors().next().unwrap().attests, expected);
        }
    }

    #[test]
    fn platforms_never_contain_control_characters() {
        let digest = Digest::of(Algorithm::Sha256, b"");
        let long = "x".repeat(100_000);
        for (platform, expected) in [
            (r#"{"os":"linux\u001b[2J","architecture":"amd64"}"#, Some(r"linux\u{1b}[2J/amd64")),
            (
                r#"{"os":"linux","architecture":"\u202e46dma","variant":"a\nb"}"#,
                Some(r"linux/\u{202e}46dma/a\nb"),
            ),
            (r#"{"os":"linux","architecture":"arm64","variant":""}"#, Some("linux/arm64")),
            (r#"{"architecture":"amd64"}"#, Some("linux/amd64")),
            (r#"{"os":"","architecture":""}"#, None),
            ("{}", None),
            ("null", None),
        ] {
            let body = format!(
                r#"{{"schemaVersion":2,"manifests":[{{"digest":"{digest}","size":1,"platform":{platform}}}]}}"#
            );
            let manifest = parse(&body, None).unwrap();
            let child = manifest.descriptors().next().unwrap();
            assert_eq!(child.platform.as_deref(), expected, "{platform}");
        }
        let body = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"digest":"{digest}","size":1,"platform":{{"os":"{long}","architecture":"a"}}}}]}}"#
        );
        let manifest = parse(&body, None).unwrap();
        let platform = manifest.descriptors().next().unwrap().platform.clone().unwrap();
        assert!(platform.chars().count() <= 101, "{platform}");
    }

    #[test]
    fn a_manifest_has_a_bounded_number_of_descriptors() {
        let digest = Digest::of(Algorithm::Sha256, b"");
        let descriptor = format!(r#"{{"digest":"{digest}","size":1}}"#);
        let list = |count: usize| vec![descriptor.as_str(); count].join(",");
        let image = |count| {
            format!(r#"{{"schemaVersion":2,"config":{descriptor},"layers":[{}]}}"#, list(count))
        };
        let index = |count| {
            format!(r#"{{"schemaVersion":2,"manifests":[{}],"subject":{descriptor}}}"#, list(count))
        };
        assert_eq!(
            parse(&image(DESCRIPTORS_MAX - 1), None).unwrap().descriptors().count(),
            DESCRIPTORS_MAX
        );
        assert_eq!(
            parse(&index(DESCRIPTORS_MAX), None).unwrap().descriptors().count(),
            DESCRIPTORS_MAX
        );
        for (body, count) in [
            (image(DESCRIPTORS_MAX), DESCRIPTORS_MAX + 1),
            (index(DESCRIPTORS_MAX + 1), DESCRIPTORS_MAX + 1),
            (index(30_000), 30_000),
        ] {
            let error = parse(&body, None).unwrap_err();
            assert_eq!(error, ManifestError::TooManyDescriptors { count });
            assert!(error.to_string().contains("4096"), "{error}");
        }
        // Empty entries count as well: they cost as much to read.
        let empty = format!(r#"{{"manifests":[{}]}}"#, vec!["{}"; DESCRIPTORS_MAX + 1].join(","));
        assert!(matches!(parse(&empty, None), Err(ManifestError::TooManyDescriptors { .. })));
    }

    #[test]
    fn an_error_never_quotes_a_manifest_in_full() {
        let long = "x\\u001b".repeat(500_000);
        for body in [
            format!(r#"{{"schemaVersion":"{long}"}}"#),
            format!(r#"{{"schemaVersion":2,"layers":"{long}"}}"#),
            format!(r#"{{"schemaVersion":2,"config":{{"size":"{long}"}}}}"#),
            format!(r#""{long}""#),
        ] {
            let error = parse(&body, None).unwrap_err().to_string();
            assert!(error.len() < 500 && !error.contains('\u{1b}'), "{error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_body_panics(body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = Manifest::parse(&body, None);
        }

        #[test]
        fn no_json_like_body_panics(body in r#"\{("(schemaVersion|layers|manifests|config|digest|size)":(\[|\]|\{|\}|null|-?[0-9]{1,20}|"x"|,)){0,8}\}"#) {
            let _ = Manifest::parse(body.as_bytes(), None);
        }
    }
}
