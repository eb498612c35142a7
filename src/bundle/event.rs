//! Events and summaries of imports, and their texts.

use std::fmt;

use super::error::REASON_CHARS_MAX;
use crate::oci::{Descriptor, Digest, quoted_up_to};
use crate::units::{plural, size};

/// How many platforms of an image are listed.
const PLATFORMS_LISTED_MAX: usize = 32;
/// How many missing blobs of an image are listed.
const MISSING_LISTED_MAX: usize = 20;

/// An event of an import, about one image or blob.
#[derive(Debug)]
pub enum ImportEvent<'a> {
    /// An image was imported and has its name.
    Imported {
        /// The full reference.
        reference: &'a str,
        /// The digest of its manifest or index.
        digest: &'a Digest,
        /// The platforms that were imported, as the index names them.
        platforms: Vec<&'a str>,
        /// What the name referred to before.
        before: Before,
        /// Whether the digest is the registry's.
        origin: Origin,
    },
    /// An image was not named, because neither the bundle nor the cache has all of its content.
    Incomplete {
        /// The full reference.
        reference: &'a str,
        /// The missing content.
        missing: Vec<&'a Descriptor>,
    },
    /// More content was copied into the cache.
    Progress {
        /// How many bytes more.
        bytes: u64,
    },
    /// An entry or image of a bundle was not imported.
    Refused {
        /// The bundle.
        bundle: &'a str,
        /// The path of a blob, or the name of an image.
        entry: &'a str,
        /// The reason.
        reason: &'a str,
    },
}

/// What a name referred to before the import.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// Nothing: the name is new.
    Absent,
    /// The same manifest.
    Same,
    /// A different manifest.
    Other(Digest),
}

/// Where a manifest comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// From the builder of the image, byte for byte.
    Original,
    /// From its config and layers, rebuilt by Larder or by `docker save`. The registry's digest is lost.
    Rebuilt,
}

/// The result of an import.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImportSummary {
    /// Images that were named, including those that had their names before.
    pub images: usize,
    /// Images and blobs that were refused or are incomplete.
    pub failures: usize,
    /// Blobs written.
    pub blobs_written: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Blobs skipped because the cache had them.
    pub blobs_present: u64,
}

impl ImportSummary {
    /// Adds the result of another import.
    pub fn add(&mut self, other: ImportSummary) {
        self.images += other.images;
        self.failures += other.failures;
        self.blobs_written += other.blobs_written;
        self.bytes_written += other.bytes_written;
        self.blobs_present += other.blobs_present;
    }
}

impl fmt::Display for ImportEvent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImportEvent::Imported { reference, digest, platforms, before, origin } => {
                // A reference by digest already contains it.
                let shown =
                    if reference.contains('@') { String::new() } else { format!(" {digest}") };
                write!(f, "{reference}{shown}")?;
                if !platforms.is_empty() {
                    let listed = &platforms[..platforms.len().min(PLATFORMS_LISTED_MAX)];
                    write!(f, " {}", listed.join(", "))?;
                }
                if let more @ 1.. = platforms.len().saturating_sub(PLATFORMS_LISTED_MAX) {
                    write!(f, " and {more} more")?;
                }
                match before {
                    Before::Absent => {}
                    Before::Same => write!(f, " (unchanged)")?,
                    Before::Other(digest) => write!(f, " (was {digest})")?,
                }
                match origin {
                    Origin::Original => Ok(()),
                    Origin::Rebuilt => write!(
                        f,
                        "\n    docker save does not keep the registry's digest: this one was computed from the \
                         config and layers, and pods that pin the image by digest will not find it"
                    ),
                }
            }
            ImportEvent::Progress { bytes } => write!(f, "{} copied", size(*bytes)),
            ImportEvent::Incomplete { reference, missing } => {
                let bytes = missing.iter().map(|each| each.size).fold(0, u64::saturating_add);
                write!(
                    f,
                    "{reference}: not imported; {} ({}) missing in both the bundle and the cache:",
                    plural(missing.len(), "blob"),
                    size(bytes)
                )?;
                let listed = missing.iter().take(MISSING_LISTED_MAX);
                listed.clone().try_for_each(|each| {
                    write!(f, "\n    {} ({})", each.digest, size(each.size))
                })?;
                match missing.len().saturating_sub(MISSING_LISTED_MAX) {
                    0 => Ok(()),
                    more => write!(f, "\n    and {more} more"),
                }
            }
            ImportEvent::Refused { bundle, entry, reason } => {
                let reason = quoted_up_to(REASON_CHARS_MAX, reason);
                write!(
                    f,
                    "{bundle}: {}: not imported; {reason}",
                    quoted_up_to(REASON_CHARS_MAX, entry)
                )
            }
        }
    }
}

impl fmt::Display for ImportSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} imported; {} ({}) written, {} already in the cache",
            plural(self.images, "image"),
            plural(self.blobs_written, "blob"),
            size(self.bytes_written),
            self.blobs_present
        )
    }
}
