//! What an import tells as it goes, and what it came to, with the words for it.

use std::fmt;

use super::error::REASON_CHARS_MAX;
use crate::oci::{Descriptor, Digest, quoted_up_to};

/// How many platforms of one image are listed.
const PLATFORMS_LISTED_MAX: usize = 32;
/// How many missing blobs of one image are listed.
const MISSING_LISTED_MAX: usize = 20;

/// Something that happened to one image or blob.
#[derive(Debug)]
pub enum Told<'a> {
    /// An image has its name.
    Imported {
        /// The full reference.
        reference: &'a str,
        /// Its manifest or index.
        digest: &'a Digest,
        /// The platforms that came, as an index tells them.
        platforms: Vec<&'a str>,
        /// What the name was before.
        before: Before,
        /// Whether its digest is the registry's.
        origin: Origin,
    },
    /// An image was not named, since something is in neither the bundle nor the cache.
    Incomplete {
        /// The full reference.
        reference: &'a str,
        /// Digest and size of what is missing.
        missing: Vec<&'a Descriptor>,
    },
    /// Something in a bundle was not taken.
    Refused {
        /// The bundle.
        bundle: &'a str,
        /// A blob's path, or an image.
        entry: &'a str,
        /// Why.
        reason: &'a str,
    },
}

/// What a name was before the import.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// It was not there.
    Absent,
    /// The same.
    Same,
    /// Another manifest.
    Other(Digest),
}

/// Where a manifest comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// From whoever made the image, byte for byte.
    Original,
    /// Made from config and layers, by us or by `docker save`: the registry's digest is lost.
    Rebuilt,
}

/// What an import came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImportSummary {
    /// Images that have their names, also those that had them before.
    pub images: usize,
    /// Images and blobs that were refused or are not whole.
    pub failures: usize,
    /// Blobs written.
    pub blobs_written: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Blobs passed over, since the cache had them.
    pub blobs_present: u64,
}

impl ImportSummary {
    /// Adds what another import came to.
    pub fn add(&mut self, other: ImportSummary) {
        self.images += other.images;
        self.failures += other.failures;
        self.blobs_written += other.blobs_written;
        self.bytes_written += other.bytes_written;
        self.blobs_present += other.blobs_present;
    }
}

/// A number of bytes as people read it, e.g. `45.2 MB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u64); 4] =
            [("TB", 1_000_000_000_000), ("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1_000)];
        match UNITS.into_iter().find(|(_, factor)| self.0 >= *factor) {
            Some((unit, factor)) => {
                let (whole, tenth) = (self.0 / factor, self.0 % factor * 10 / factor);
                write!(f, "{whole}.{tenth} {unit}")
            }
            None => write!(f, "{} bytes", self.0),
        }
    }
}

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Told::Imported { reference, digest, platforms, before, origin } => {
                // What is known by its digest has it in its reference.
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
                    Before::Same => write!(f, " (as before)")?,
                    Before::Other(digest) => write!(f, " (was {digest})")?,
                }
                match origin {
                    Origin::Original => Ok(()),
                    Origin::Rebuilt => write!(
                        f,
                        "\n    docker save keeps no registry digest: this one was made from config \
                         and layers, and pods that pin the image by digest will not find it"
                    ),
                }
            }
            Told::Incomplete { reference, missing } => {
                let bytes = missing.iter().map(|each| each.size).fold(0, u64::saturating_add);
                write!(
                    f,
                    "{reference}: not imported; {} of its blobs ({}) are in neither the bundle nor the \
                     cache:",
                    missing.len(),
                    Bytes(bytes)
                )?;
                let listed = missing.iter().take(MISSING_LISTED_MAX);
                listed.clone().try_for_each(|each| {
                    write!(f, "\n    {} ({} bytes)", each.digest, each.size)
                })?;
                match missing.len().saturating_sub(MISSING_LISTED_MAX) {
                    0 => Ok(()),
                    more => write!(f, "\n    and {more} more"),
                }
            }
            Told::Refused { bundle, entry, reason } => {
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
        let plural = if self.images == 1 { "" } else { "s" };
        write!(
            f,
            "{} image{plural} imported; {} blobs ({}) written, {} were in the cache",
            self.images,
            self.blobs_written,
            Bytes(self.bytes_written),
            self.blobs_present
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_at_a_glance() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (999, "999 bytes"),
            (1_000, "1.0 kB"),
            (45_290_000, "45.2 MB"),
            (4_000_000_000, "4.0 GB"),
            (u64::MAX, "18446744.0 TB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }
}
