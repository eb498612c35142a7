//! Errors of reading and writing bundles.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::oci::{Digest, quoted, quoted_up_to};
use crate::store::StoreError;

/// The most characters of a path in messages: Linux does not open longer paths.
const PATH_CHARS_MAX: usize = 4096;

/// A path for messages. It may come from an archive that was unpacked.
pub(super) fn shown(path: &Path) -> String {
    quoted_up_to(PATH_CHARS_MAX, path.display())
}

/// The most characters that are printed of a reason from a document or a library.
pub(super) const REASON_CHARS_MAX: usize = 300;

/// Why a bundle could not be read or written. A problem with one image is reported as an event when it
/// occurs, and counted in [`BundleError::SomeFailed`].
#[derive(Debug)]
pub enum BundleError {
    /// A file or directory cannot be opened.
    Open {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Reading a bundle failed.
    Read {
        /// The bundle.
        bundle: String,
        /// The last entry whose reading began.
        entry: String,
        /// The cause.
        source: io::Error,
    },
    /// The last volume that exists ends in the middle of the archive.
    CutOff {
        /// The bundle.
        bundle: String,
        /// The volume that should follow.
        next: PathBuf,
    },
    /// The path of an entry leads outside the bundle.
    Escapes {
        /// The bundle.
        bundle: String,
        /// The entry.
        entry: String,
    },
    /// A bundle has more entries than any bundle of images.
    TooManyEntries {
        /// The bundle.
        bundle: String,
        /// The limit.
        limit: u64,
    },
    /// The bundle's documents refer to the same manifests too often.
    Entangled {
        /// The bundle.
        bundle: String,
    },
    /// A document is larger than the limit.
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
    /// A document is malformed.
    Document {
        /// The bundle.
        bundle: String,
        /// The document.
        entry: String,
        /// What is wrong.
        reason: String,
    },
    /// The bundle has neither an `index.json` nor a `manifest.json`.
    NoImages {
        /// The bundle.
        bundle: String,
    },
    /// A volume is missing, or a later volume was given instead of the first.
    MissingVolume {
        /// The volume.
        path: PathBuf,
    },
    /// `--name` gives one tag, and the bundle has several images.
    OneNameForMany {
        /// The bundle.
        bundle: String,
        /// How many images the bundle has.
        images: usize,
    },
    /// No image in the cache matches the selection.
    NothingChosen,
    /// Images were refused, and nothing was written. An event has reported the reason for each.
    Refused {
        /// How many images.
        images: usize,
    },
    /// Some images or blobs failed, and the others were imported. An event has reported the reason for each.
    SomeFailed {
        /// How many images and blobs.
        failures: usize,
    },
    /// A blob in the cache cannot be read, or does not match its digest.
    DamagedBlob {
        /// The blob's digest.
        digest: Digest,
        /// What is wrong.
        reason: String,
    },
    /// Writing the output failed.
    Write {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The destination directory has content that is not an image layout. It was not changed.
    NotALayout {
        /// The directory.
        path: PathBuf,
    },
    /// The output needs more volumes than the names can number.
    TooManyVolumes {
        /// The limit.
        limit: u32,
    },
    /// Reading or writing the cache failed.
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
                write!(f, "cannot open {}: {source}", shown(path))
            }
            BundleError::Read { bundle, entry, source } => write!(
                f,
                "{bundle}: cannot be read beyond {} ({}); it is damaged, truncated or not a tar archive. The \
                 content before that point is kept without a name: get an intact copy and import it again",
                quoted(entry),
                quoted_up_to(REASON_CHARS_MAX, source)
            ),
            BundleError::CutOff { bundle, next } => {
                write!(
                    f,
                    "{bundle}: the last volume is truncated, or {} is missing",
                    next.display()
                )
            }
            BundleError::Escapes { bundle, entry } => write!(
                f,
                "{bundle}: the entry \"{}\" leads outside the bundle; no image tool writes such a path, so \
                 nothing is imported from this bundle",
                quoted(entry)
            ),
            BundleError::TooManyEntries { bundle, limit } => {
                write!(
                    f,
                    "{bundle}: it has more than {limit} entries; this is not a bundle of images"
                )
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
                "{bundle}: it has neither an index.json nor a manifest.json, so it is truncated, or neither an \
                 OCI image layout nor the output of docker, podman or ctr"
            ),
            BundleError::MissingVolume { path } => write!(
                f,
                "the volume {} is missing; all volumes must be in one directory, and the argument must be the \
                 first one (.001) or their common name",
                shown(path)
            ),
            BundleError::OneNameForMany { bundle, images } => write!(
                f,
                "{bundle}: it has {images} images, and --name would give all of them the same tag; give a \
                 name without a tag, or import bundles of one image each"
            ),
            BundleError::NothingChosen => {
                write!(f, "nothing was written: no image in the cache matches the selection")
            }
            BundleError::Refused { images } => write!(
                f,
                "nothing was written: {images} of the selected images cannot be exported completely; pull \
                 them first, or export what is cached with --partial"
            ),
            BundleError::SomeFailed { failures } => {
                write!(f, "{failures} failed, as reported above; everything else was imported")
            }
            BundleError::DamagedBlob { digest, reason } => write!(
                f,
                "the blob {digest} in the cache is damaged ({reason}); remove its file and pull it again"
            ),
            BundleError::Write { path, source } => {
                write!(f, "cannot write {}: {source}", shown(path))
            }
            BundleError::NotALayout { path } => write!(
                f,
                "{} is neither empty nor an OCI image layout; choose an empty directory",
                shown(path)
            ),
            BundleError::TooManyVolumes { limit } => {
                write!(
                    f,
                    "the output needs more than {limit} volumes; choose a larger --volume-size"
                )
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
