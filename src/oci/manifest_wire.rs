//! The JSON of manifests and descriptors, read as Go's `encoding/json` reads it.
//!
//! Registries contain documents of many ages and from many tools. What counts is how their clients read them, and
//! the clients are written in Go: every member is optional, `null` means absent, the last of several members with
//! the same name counts, and names are compared case-insensitively. Larder serves the original bytes and uses this
//! view only to find the content below a manifest. So if another reader interprets a document differently, only
//! that image is affected.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::digest::Digest;
use super::manifest::{DESCRIPTORS_MAX, Descriptor};
use super::media_type::MediaType;
use super::quoted::quoted;

/// The value of `vnd.docker.reference.type` for an attestation in an index.
const ATTESTATION: &str = "attestation-manifest";
/// The prefixes of the media types of layers that registries may lack: image-spec, "Non-Distributable Layers", and
/// Docker's "foreign" layers.
const FOREIGN_TYPES: [&str; 2] = [
    "application/vnd.oci.image.layer.nondistributable.v1.",
    "application/vnd.docker.image.rootfs.foreign.",
];
/// The largest size that is accepted, so that sums of sizes fit in 64 bits. No blob is larger.
const SIZE_MAX: i64 = 1 << 50;

/// Defines a struct of optional members that is read as in Go. (`serde`'s derive refuses duplicate members, and
/// compares names case-sensitively.)
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
        // Zero-sized elements: takes no memory, however many there are.
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
    /// The config of an image.
    struct WireConfig {
        created: String = "created",
        architecture: String = "architecture",
        os: String = "os",
        variant: String = "variant",
    }
}

object! {
    /// The annotations that Larder uses; others may have any value.
    struct WireAnnotations {
        reference_type: String = "vnd.docker.reference.type",
        reference_digest: String = "vnd.docker.reference.digest",
    }
}

/// A list of descriptors. Descriptors with a digest that Larder cannot verify are skipped: the manifest itself is
/// still served to the client, which may support the algorithm.
#[derive(Default)]
pub(super) struct Descriptors {
    /// The number of descriptors. Those beyond [`DESCRIPTORS_MAX`] are counted but not kept.
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
    /// Converts it to a descriptor; `None` without a digest that can be verified.
    pub(super) fn accept(&self) -> Option<Descriptor> {
        let media_type = self.media_type.as_deref().unwrap_or_default();
        let has_foreign_type = FOREIGN_TYPES.iter().any(|prefix| {
            media_type.get(..prefix.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(prefix))
        });
        let is_other_type =
            |media_type: MediaType| !media_type.is_manifest() && !media_type.is_schema1();
        let size = self.size.filter(|size| (1..=SIZE_MAX).contains(size)).unwrap_or_default();
        Some(Descriptor {
            digest: self.digest.as_deref()?.parse().ok()?,
            size: size.unsigned_abs(),
            platform: self.platform.as_ref().and_then(WirePlatform::accept),
            attests: self.annotations.as_ref().and_then(WireAnnotations::attests),
            may_be_manifest: !MediaType::parse(media_type).is_some_and(is_other_type),
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

impl WireConfig {
    /// The platform, if the config states both parts: the configs of artifacts often state none, or empty ones.
    pub(super) fn platform(&mut self) -> Option<String> {
        let part = |text: &mut Option<String>| text.take().filter(|text| !text.is_empty());
        let (os, architecture) = (part(&mut self.os)?, part(&mut self.architecture)?);
        let variant = part(&mut self.variant);
        WirePlatform { os: Some(os), architecture: Some(architecture), variant }.accept()
    }
}

impl WirePlatform {
    /// The platform in the form that users write. A platform without an operating system is Linux, as in containerd;
    /// an empty one is none.
    fn accept(&self) -> Option<String> {
        let non_empty = |text: &'_ Option<String>| text.clone().filter(|text| !text.is_empty());
        let (os, architecture) = match (non_empty(&self.os), non_empty(&self.architecture)) {
            (None, None) => return None,
            (os, architecture) => (
                os.unwrap_or_else(|| "linux".to_owned()),
                architecture.unwrap_or_else(|| "unknown".to_owned()),
            ),
        };
        Some(match non_empty(&self.variant) {
            Some(variant) => quoted(format_args!("{os}/{architecture}/{variant}")),
            None => quoted(format_args!("{os}/{architecture}")),
        })
    }
}
