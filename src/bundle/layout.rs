//! Reads and writes the `index.json` of an image layout: image-spec, image-layout.md.
//!
//! Annotations give the name of an entry. Each tool reads its own annotation.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::oci::{
    Descriptor, Digest, ImageName, MediaType, NameError, PartReference, Reference, json_reason,
    quoted,
};

/// The full reference, read by containerd.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// The reference or the bare tag, read by skopeo and podman.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The full reference of content that is not a runnable image, such as a signature or an SBOM. `ctr images import`
/// unpacks every entry with one of the other two annotations, and fails on these.
const LARDER_NAME: &str = "larder.image.name";

/// The content of `oci-layout`.
pub(super) const OCI_LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// The path of a blob in a layout: image-spec, image-layout.md, "Blobs".
pub(super) fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex())
}

/// An entry of an `index.json` that is read.
#[derive(Debug)]
pub(super) struct Entry {
    /// The manifest or index.
    pub(super) descriptor: Descriptor,
    /// The media type that the entry gives.
    pub(super) media_type: Option<String>,
    /// The name that the entry gives.
    pub(super) name: EntryName,
}

/// The name of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum EntryName {
    /// A reference.
    Full(String),
    /// A bare tag: the user has to give the repository.
    Tag(String),
    /// The entry has no name.
    None,
}

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EntryName::Full(text) | EntryName::Tag(text) => write!(f, "\"{}\"", quoted(text)),
            EntryName::None => f.write_str("(none)"),
        }
    }
}

impl EntryName {
    /// Parses the value of an annotation. References to repositories contain one of three characters that a tag
    /// cannot contain.
    pub(super) fn of(text: &str) -> EntryName {
        match text {
            "" => EntryName::None,
            _ if text.contains(['/', ':', '@']) => EntryName::Full(text.to_owned()),
            _ => EntryName::Tag(text.to_owned()),
        }
    }

    /// The reference to import under. The `given` name takes precedence over the written one. `None` if neither
    /// names a repository.
    pub(super) fn resolve(
        &self,
        given: Option<&PartReference>,
    ) -> Result<Option<(ImageName, Reference)>, NameError> {
        let written = match self {
            EntryName::Full(text) => Some(PartReference::parse(text)?),
            EntryName::Tag(_) | EntryName::None => None,
        };
        let written_tag = match (self, &written) {
            (EntryName::Tag(tag), _) => Some(Reference::Tag(tag.parse()?)),
            (_, Some(PartReference { reference: Some(Reference::Tag(tag)), .. })) => {
                Some(Reference::Tag(tag.clone()))
            }
            _ => None,
        };
        Ok(match given {
            Some(given) => {
                let reference = given.reference.clone().or(written_tag);
                Some(PartReference { name: given.name.clone(), reference }.or_latest())
            }
            None => written.map(PartReference::or_latest),
        })
    }
}

#[derive(Deserialize)]
struct IndexWire {
    manifests: Vec<EntryWire>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EntryWire {
    media_type: Option<String>,
    digest: String,
    /// Go clients accept a negative or absent size.
    size: Option<i64>,
    annotations: Option<BTreeMap<String, String>>,
}

/// Reads `index.json`.
///
/// # Errors
/// A text that describes the error.
pub(super) fn parse_index(bytes: &[u8]) -> Result<Vec<Entry>, String> {
    let wire: IndexWire = serde_json::from_slice(bytes).map_err(|error| json_reason(&error))?;
    wire.manifests.into_iter().map(accept).collect()
}

fn accept(wire: EntryWire) -> Result<Entry, String> {
    let digest: Digest =
        wire.digest.parse().map_err(|error| format!("{}: {error}", quoted(&wire.digest)))?;
    let annotations = wire.annotations.unwrap_or_default();
    let annotated = [LARDER_NAME, CONTAINERD_NAME, REF_NAME].map(|key| annotations.get(key));
    let name = annotated.into_iter().flatten().find(|text| !text.is_empty());
    Ok(Entry {
        descriptor: Descriptor::new(digest, wire.size.unwrap_or_default().max(0).unsigned_abs()),
        media_type: wire.media_type,
        name: name.map_or(EntryName::None, |text| EntryName::of(text)),
    })
}

/// The tools that should see an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Audience {
    /// Every tool: an image that was selected.
    AllTools,
    /// Larder only: a referrer that accompanies an image.
    Larder,
}

/// An entry of an `index.json` that is written.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NewEntry {
    media_type: String,
    digest: String,
    size: u64,
    annotations: BTreeMap<&'static str, String>,
}

impl NewEntry {
    pub(super) fn new(
        digest: &Digest,
        size: u64,
        media_type: &MediaType,
        reference: &str,
        audience: Audience,
    ) -> NewEntry {
        let keys: &[&str] = match audience {
            Audience::AllTools => &[CONTAINERD_NAME, REF_NAME],
            Audience::Larder => &[LARDER_NAME],
        };
        NewEntry {
            media_type: media_type.to_string(),
            digest: digest.to_string(),
            size,
            annotations: keys.iter().map(|key| (*key, reference.to_owned())).collect(),
        }
    }
}

/// Serializes an `index.json`.
///
/// # Errors
/// Does not fail in practice: the values always serialize.
pub(super) fn index_json(entries: &[NewEntry]) -> serde_json::Result<Vec<u8>> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Index<'a> {
        schema_version: u32,
        media_type: &'a str,
        manifests: &'a [NewEntry],
    }
    let index = Index { schema_version: 2, media_type: MediaType::OCI_INDEX, manifests: entries };
    serde_json::to_vec_pretty(&index)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn name_in(annotations: &str) -> EntryName {
        let text = format!(
            r#"{{"manifests":[{{"digest":"{DIGEST}","size":1,"annotations":{annotations}}}]}}"#
        );
        parse_index(text.as_bytes()).unwrap().remove(0).name
    }

    #[test]
    fn names_are_read_from_the_annotations_that_tools_write() {
        let full = EntryName::Full("docker.io/library/hello:v1".into());
        for (annotations, name) in [
            ("null", EntryName::None),
            ("{}", EntryName::None),
            (r#"{"org.opencontainers.image.ref.name":"v1"}"#, EntryName::Tag("v1".into())),
            (r#"{"org.opencontainers.image.ref.name":"docker.io/library/hello:v1"}"#, full.clone()),
            (
                r#"{"org.opencontainers.image.ref.name":"v1",
                    "io.containerd.image.name":"docker.io/library/hello:v1"}"#,
                full,
            ),
            (r#"{"org.opencontainers.image.base.name":"docker.io/a:1"}"#, EntryName::None),
        ] {
            assert_eq!(name_in(annotations), name, "{annotations}");
        }
    }

    #[test]
    fn a_given_name_takes_precedence_over_the_written_one() {
        let resolved = |written: &str, given: Option<&str>| {
            let given = given.map(|text| PartReference::parse(text).unwrap());
            let resolved = EntryName::of(written).resolve(given.as_ref()).unwrap();
            resolved.map(|(name, reference)| name.with(&reference))
        };
        for (written, given, expected) in [
            ("", None, None),
            ("v1", None, None),
            ("alpine:3", None, Some("docker.io/library/alpine:3")),
            ("v1", Some("quay.io/a"), Some("quay.io/a:v1")),
            ("alpine:3", Some("quay.io/a"), Some("quay.io/a:3")),
            ("alpine:3", Some("quay.io/a:4"), Some("quay.io/a:4")),
            ("", Some("quay.io/a"), Some("quay.io/a:latest")),
        ] {
            assert_eq!(resolved(written, given).as_deref(), expected, "{written} {given:?}");
        }
    }

    #[test]
    fn malformed_indexes_are_refused() {
        for text in ["", "[]", "{}", r#"{"manifests":[{"digest":"sha256:x","size":1}]}"#] {
            assert!(parse_index(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn written_entries_can_be_read() {
        let media_type = MediaType::parse(MediaType::OCI_MANIFEST).unwrap();
        let digest = DIGEST.parse().unwrap();
        for audience in [Audience::AllTools, Audience::Larder] {
            let entry = NewEntry::new(&digest, 7, &media_type, "quay.io/a:1", audience);
            let read = parse_index(&index_json(&[entry]).unwrap()).unwrap().remove(0);
            assert_eq!((read.descriptor.digest, read.descriptor.size), (digest, 7));
            assert_eq!(read.name, EntryName::Full("quay.io/a:1".into()));
        }
    }
}
