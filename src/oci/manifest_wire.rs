//! The JSON of manifests and descriptors, as Go's `encoding/json` reads it.
//!
//! Registries contain documents of many ages and makers, and what counts is what their clients read, which
//! are written in Go: every member is optional, `null` is absence, of a member that occurs twice the last
//! one counts, and the names of members are compared without regard to case. Larder serves the bytes
//! unchanged and uses this view for what hangs below a manifest only, so a document that another reader
//! understands differently harms nobody but its own image.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::digest::Digest;
use super::manifest::{DESCRIPTORS_MAX, Descriptor};
use super::media_type::MediaType;
use super::quoted::quoted;

/// What `vnd.docker.reference.type` says of an attestation in an index.
const ATTESTATION: &str = "attestation-manifest";
/// How the media types of layers begin that registries need not have: image-spec, "Non-Distributable
/// Layers", and Docker's "foreign" ones.
const FOREIGN_TYPES: [&str; 2] = [
    "application/vnd.oci.image.layer.nondistributable.v1.",
    "application/vnd.docker.image.rootfs.foreign.",
];
/// A blob of more bytes than this does not exist; so that sums of sizes stay within 64 bits.
const SIZE_MAX: i64 = 1 << 50;

/// A struct of optional members that is read as Go reads it. (`serde`'s own derive refuses a member that
/// occurs twice, and compares names exactly.)
macro_rules! object {
    ($(#[$doc:meta])* struct $name:ident { $($field:ident: $type:ty = $member:literal,)* }) => {
        $(#[$doc])*
        #[derive(Default)]
        pub(super) struct $name {
            $(pub(super) $field: Option<$type>,)*
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Members;

                impl<'de> Visitor<'de> for Members {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("an object")
                    }

                    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<$name, A::Error> {
                        let mut object = $name::default();
                        while let Some(name) = map.next_key::<Cow<'de, str>>()? {
                            $(if name.eq_ignore_ascii_case($member) {
                                object.$field = map.next_value()?;
                                continue;
                            })*
                            map.next_value::<IgnoredAny>()?;
                        }
                        Ok(object)
                    }
                }

                deserializer.deserialize_map(Members)
            }
        }
    };
}

object! {
    /// A manifest or an index.
    struct Wire {
        schema_version: i64 = "schemaVersion",
        media_type: String = "mediaType",
        config: WireDescriptor = "config",
        layers: Descriptors = "layers",
        blobs: Descriptors = "blobs",
        manifests: Descriptors = "manifests",
        subject: WireDescriptor = "subject",
    }
}

object! {
    /// A descriptor.
    struct WireDescriptor {
        media_type: String = "mediaType",
        digest: String = "digest",
        size: i64 = "size",
        platform: WirePlatform = "platform",
        // Takes no memory, however many there are.
        urls: Vec<IgnoredAny> = "urls",
        annotations: WireAnnotations = "annotations",
    }
}

object! {
    /// A platform.
    struct WirePlatform {
        architecture: String = "architecture",
        os: String = "os",
        variant: String = "variant",
    }
}

object! {
    /// Annotations that Larder understands; others may contain anything.
    struct WireAnnotations {
        reference_type: String = "vnd.docker.reference.type",
        reference_digest: String = "vnd.docker.reference.digest",
    }
}

/// A list of descriptors. Those with a digest that Larder cannot verify are left out: the manifest itself
/// is still served to the client, which may know more.
#[derive(Default)]
pub(super) struct Descriptors {
    /// How many there are. Beyond [`DESCRIPTORS_MAX`] they are counted and not kept.
    pub(super) count: usize,
    pub(super) accepted: Vec<Descriptor>,
}

impl<'de> Deserialize<'de> for Descriptors {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements;

        impl<'de> Visitor<'de> for Elements {
            type Value = Descriptors;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of descriptors")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Descriptors, A::Error> {
                let mut all = Descriptors::default();
                while all.count < DESCRIPTORS_MAX
                    && let Some(descriptor) = seq.next_element::<Option<WireDescriptor>>()?
                {
                    all.count += 1;
                    all.accepted.extend(descriptor.and_then(|descriptor| descriptor.accept()));
                }
                if all.count == DESCRIPTORS_MAX {
                    while seq.next_element::<IgnoredAny>()?.is_some() {
                        all.count += 1;
                    }
                }
                Ok(all)
            }
        }

        deserializer.deserialize_seq(Elements)
    }
}

impl WireDescriptor {
    /// The descriptor; `None` without a digest that can be verified.
    pub(super) fn accept(&self) -> Option<Descriptor> {
        let media_type = self.media_type.as_deref().unwrap_or_default();
        let has_foreign_type = FOREIGN_TYPES.iter().any(|prefix| {
            media_type.get(..prefix.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(prefix))
        });
        let says_otherwise =
            |media_type: MediaType| !media_type.is_manifest() && !media_type.is_schema1();
        let size = self.size.filter(|size| (1..=SIZE_MAX).contains(size)).unwrap_or_default();
        Some(Descriptor {
            digest: self.digest.as_deref()?.parse().ok()?,
            size: size.unsigned_abs(),
            platform: self.platform.as_ref().and_then(WirePlatform::accept),
            attests: self.annotations.as_ref().and_then(WireAnnotations::attests),
            may_be_manifest: !MediaType::parse(media_type).is_some_and(says_otherwise),
            is_foreign: has_foreign_type || self.urls.as_ref().is_some_and(|urls| !urls.is_empty()),
        })
    }
}

impl WireAnnotations {
    fn attests(&self) -> Option<Digest> {
        let is_attestation = self.reference_type.as_deref() == Some(ATTESTATION);
        self.reference_digest.as_deref().filter(|_| is_attestation)?.parse().ok()
    }
}

impl WirePlatform {
    /// As users write it. One without an operating system is Linux, as containerd normalises it; one that
    /// says nothing is none.
    fn accept(&self) -> Option<String> {
        let said = |text: &'_ Option<String>| text.clone().filter(|text| !text.is_empty());
        let (os, architecture) = match (said(&self.os), said(&self.architecture)) {
            (None, None) => return None,
            (os, architecture) => (
                os.unwrap_or_else(|| "linux".to_owned()),
                architecture.unwrap_or_else(|| "unknown".to_owned()),
            ),
        };
        Some(match said(&self.variant) {
            Some(variant) => quoted(format_args!("{os}/{architecture}/{variant}")),
            None => quoted(format_args!("{os}/{architecture}")),
        })
    }
}
