//! The nouns of the OCI specifications, validated when they are parsed.
//!
//! A [`Digest`], an [`Upstream`], a [`Repository`], a [`Tag`] or a [`Manifest`] exists only if it is valid, so the
//! other modules never validate a name again. This module must not know files, networks, clocks or HTTP: it has
//! only values and functions on values.

mod choice;
mod digest;
mod error_code;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod image_config;
mod image_details;
mod keyed_hash;
mod manifest;
mod manifest_wire;
mod media_type;
mod name;
mod name_pattern;
mod part_reference;
mod pattern;
mod platform;
mod quoted;
mod record;
mod tag_list;
mod timestamp;

pub use choice::{Choice, entries, uncommented};
pub use digest::{Algorithm, Digest, DigestError, Verifier};
pub use error_code::ErrorCode;
pub use image_config::ImageConfig;
pub use image_details::ImageDetails;
pub use keyed_hash::KeyedHash;
pub use manifest::{
    DESCRIPTORS_MAX, Descriptor, MANIFEST_BYTES_MAX, Manifest, ManifestError, ManifestKind,
};
pub use media_type::MediaType;
pub use name::{ImageName, NameError, Reference, Repository, Tag, Upstream};
pub use name_pattern::NamePattern;
pub use part_reference::PartReference;
pub use pattern::{Pattern, PatternError};
pub use platform::{Platform, PlatformError, Platforms};
pub use quoted::{QUOTED_CHARS_MAX, json_reason, quoted, quoted_up_to};
pub use record::{
    BLOBS, Decision, HeldManifest, MANIFESTS, ManifestRecord, PreviousManifest, REFS, Record,
    StoredPath, TAGS, TagRecord, blob_path, from_seconds, manifest_path, repository_path, tag_path,
    to_seconds,
};
pub use tag_list::{TagPage, TagQuery};
