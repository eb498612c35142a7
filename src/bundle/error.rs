//! What can go wrong between a bundle and the cache.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::oci::{Digest, quoted, quoted_up_to};
use crate::store::StoreError;

/// The most characters of a reason that a document or a library gives.
pub(super) const REASON_CHARS_MAX: usize = 300;

/// Why a bundle could not be read or written as a whole. What concerns one image only is told as it is
/// met, and counted in [`BundleError::SomeFailed`].
#[derive(Debug)]
pub enum BundleError {
    /// A file or directory cannot be opened.
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A bundle cannot be read on.
    Read {
        /// The bundle.
        bundle: String,
        /// The last thing in it that was begun.
        entry: String,
        /// Why.
        source: io::Error,
    },
    /// All volumes that are there were read, and they end in the middle.
    CutOff {
        /// The bundle.
        bundle: String,
        /// The volume that would be the next.
        next: PathBuf,
    },
    /// The name of an entry leads out of the bundle.
    Escapes {
        /// The bundle.
        bundle: String,
        /// The entry.
        entry: String,
    },
    /// A bundle has more entries than anything that holds images.
    TooManyEntries {
        /// The bundle.
        bundle: String,
        /// The limit.
        limit: u64,
    },
    /// Its documents name the same manifests over and over.
    Entangled {
        /// The bundle.
        bundle: String,
    },
    /// A document in it is larger than any that describes images.
    TooLarge {
        /// The bundle.
        bundle: String,
        /// The document.
        entry: String,
        /// Its size in bytes.
        bytes: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// A document in it does not say what it should.
    Document {
        /// The bundle.
        bundle: String,
        /// The document.
        entry: String,
        /// What is wrong.
        reason: String,
    },
    /// There is neither an `index.json` nor a `manifest.json` in it.
    NoImages {
        /// The bundle.
        bundle: String,
    },
    /// A volume is missing, or a later one was given without the first.
    MissingVolume {
        /// The volume.
        path: PathBuf,
    },
    /// One tagged name was given for a bundle of several images.
    OneNameForMany {
        /// The bundle.
        bundle: String,
        /// How many images it has.
        images: usize,
    },
    /// Nothing in the cache was chosen.
    NothingChosen,
    /// Images were refused, each with its reason told before; nothing was written.
    Refused {
        /// How many.
        images: usize,
    },
    /// Images or blobs failed, each with its reason told before; the others were imported.
    SomeFailed {
        /// How many.
        failures: usize,
    },
    /// A blob of the cache cannot be read, or is not what its name says.
    DamagedBlob {
        /// Which.
        digest: Digest,
        /// What is wrong.
        reason: String,
    },
    /// What is written cannot be written.
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A directory holds something that is no image layout, and is left alone.
    NotALayout {
        /// The directory.
        path: PathBuf,
    },
    /// The volumes would be more than their names can count.
    TooManyVolumes {
        /// The limit.
        limit: u32,
    },
    /// The cache's disk refused.
    Store(StoreError),
}

impl BundleError {
    pub(super) fn write(path: &Path, source: io::Error) -> BundleError {
        BundleError::Write { path: path.to_owned(), source }
    }
}

impl From<StoreError> for BundleError {
    fn from(error: StoreError) -> BundleError {
        BundleError::Store(error)
    }
}

impl fmt::Display for BundleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BundleError::Open { path, source } => {
                write!(f, "cannot open {}: {source}", path.display())
            }
            BundleError::Read { bundle, entry, source } => write!(
                f,
                "{bundle}: cannot be read beyond {} ({}); it is damaged, cut off, or no tar. What came \
                 before is kept without a name: get a whole copy and import it again",
                quoted(entry),
                quoted_up_to(REASON_CHARS_MAX, source)
            ),
            BundleError::CutOff { bundle, next } => {
                write!(f, "{bundle}: its volumes end in the middle; {} is missing", next.display())
            }
            BundleError::Escapes { bundle, entry } => write!(
                f,
                "{bundle}: the entry \"{}\" leads out of the bundle; no image tool writes that, so \
                 nothing is taken from it",
                quoted(entry)
            ),
            BundleError::TooManyEntries { bundle, limit } => {
                write!(f, "{bundle}: it has more than {limit} entries; it is no bundle of images")
            }
            BundleError::Entangled { bundle } => write!(
                f,
                "{bundle}: its documents refer to the same manifests far more often than any tool \
                 writes; import the images in several bundles"
            ),
            BundleError::TooLarge { bundle, entry, bytes, limit } => {
                write!(f, "{bundle}: {} has {bytes} bytes, the limit is {limit}", quoted(entry))
            }
            BundleError::Document { bundle, entry, reason } => {
                let (entry, reason) = (quoted(entry), quoted_up_to(REASON_CHARS_MAX, reason));
                write!(f, "{bundle}: {entry} is malformed: {reason}")
            }
            BundleError::NoImages { bundle } => write!(
                f,
                "{bundle}: there is no index.json and no manifest.json in it, so it is cut off, or no \
                 OCI image layout and no output of docker, podman or ctr"
            ),
            BundleError::MissingVolume { path } => write!(
                f,
                "the volume {} is missing; all volumes have to be in one directory, and the first \
                 one (.001) or their common name is what to import",
                path.display()
            ),
            BundleError::OneNameForMany { bundle, images } => write!(
                f,
                "{bundle}: it has {images} images, and --name gives all of them the same tag; give a \
                 name without a tag, or one image a bundle"
            ),
            BundleError::NothingChosen => {
                write!(f, "nothing was written: the cache has none of what was chosen")
            }
            BundleError::Refused { images } => write!(
                f,
                "nothing was written: {images} of what was chosen cannot be exported whole; pull it \
                 first, or export what there is with --partial"
            ),
            BundleError::SomeFailed { failures } => {
                write!(f, "{failures} failed, as said above; everything else was imported")
            }
            BundleError::DamagedBlob { digest, reason } => write!(
                f,
                "the blob {digest} in the cache is damaged ({reason}); remove its file and pull it again"
            ),
            BundleError::Write { path, source } => {
                write!(f, "cannot write {}: {source}", path.display())
            }
            BundleError::NotALayout { path } => write!(
                f,
                "{} is neither empty nor an OCI image layout; give a directory of its own",
                path.display()
            ),
            BundleError::TooManyVolumes { limit } => {
                write!(f, "more than {limit} volumes; choose a larger --volume-size")
            }
            BundleError::Store(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for BundleError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            BundleError::Open { source, .. }
            | BundleError::Read { source, .. }
            | BundleError::Write { source, .. } => Some(source),
            BundleError::Store(error) => Some(error),
            _ => None,
        }
    }
}
