//! Export: writes selected images as an OCI image layout, byte for byte.
//!
//! Each blob is hashed while it is written, so damaged content is never exported. The same images always
//! give the same bytes: entries are sorted by name and digest.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Read};

use super::docker::{BlobReader, SavedImage};
use super::error::BundleError;
use super::layout::{NewEntry, OCI_LAYOUT, blob_name, index_json};
use super::output::{Form, Output};
use super::select::{Chosen, parse_digests};
use crate::oci::{Digest, Verifier};
use crate::store::{Blob, Store};

/// The result of an export.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExportSummary {
    /// Images written.
    pub images: usize,
    /// Manifests, configs and layers written.
    pub blobs: u64,
    /// Their size in bytes, before compression.
    pub bytes: u64,
    /// Blobs omitted because the destination has them.
    pub blobs_left_out: u64,
    /// Their size in bytes.
    pub bytes_left_out: u64,
    /// Volumes written.
    pub volumes: Option<u32>,
}

/// An event of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportEvent {
    /// The export begins.
    Begins {
        /// The bytes of content to write, before compression.
        bytes: u64,
    },
    /// More content was written.
    Progress {
        /// How many bytes more.
        bytes: u64,
    },
}

/// An output to which nothing was written yet. Dropping it removes an unfinished file.
pub struct OpenOutput {
    output: Output,
    form: Form,
}

impl OpenOutput {
    /// Opens an output, so that one that cannot be written is noticed before any work.
    ///
    /// # Errors
    /// [`BundleError`] if it cannot be created, or is a directory with other content.
    pub fn open(form: Form) -> Result<OpenOutput, BundleError> {
        Ok(OpenOutput { output: Output::open(&form)?, form })
    }
}

/// The blobs that the destination already has.
#[derive(Debug, Clone, Default)]
pub struct Have(HashSet<Digest>);

impl Have {
    /// Parses a list of digests, one per line; `#` begins a comment.
    ///
    /// # Errors
    /// A description of the error, with its line number.
    pub fn parse(text: &str) -> Result<Have, String> {
        parse_digests(text).map(Have)
    }
}

/// Writes images, with those of their blobs that the cache has and the destination lacks.
///
/// # Errors
/// [`BundleError`] if the output cannot be written, or a blob in the cache is damaged. Then a tar archive does
/// not get its final name.
pub fn export(
    store: &Store,
    images: &[Chosen],
    have: &Have,
    output: OpenOutput,
    report: &mut dyn FnMut(ExportEvent),
) -> Result<ExportSummary, BundleError> {
    let OpenOutput { mut output, form } = output;
    // The lock keeps sweeps from removing blobs before they are written. Without write access there are no sweeps.
    let _lock = if store.is_writable() { Some(store.bundle_lock()?) } else { None };
    let contents = Contents::of(images, have);
    report(ExportEvent::Begins { bytes: contents.summary.bytes });
    let documents = contents.documents(images, &form)?;
    if !output.wants_names_last() {
        write_documents(&mut output, &documents)?;
    }
    let blobs = contents.manifests.iter().chain(&contents.blobs);
    for (digest, size) in blobs {
        write_blob(store, &mut output, digest, *size, report)?;
    }
    if output.wants_names_last() {
        write_documents(&mut output, &documents)?;
    }
    Ok(ExportSummary { volumes: output.finish()?, images: images.len(), ..contents.summary })
}

fn write_documents(output: &mut Output, documents: &[(&str, Vec<u8>)]) -> Result<(), BundleError> {
    documents
        .iter()
        .try_for_each(|(name, bytes)| output.put(name, bytes.len() as u64, &mut bytes.as_slice()))
}

/// The files to write.
#[derive(Default)]
struct Contents {
    manifests: BTreeMap<Digest, u64>,
    blobs: BTreeMap<Digest, u64>,
    summary: ExportSummary,
}

impl Contents {
    fn of(images: &[Chosen], have: &Have) -> Contents {
        let mut contents = Contents::default();
        let mut left_out: BTreeMap<Digest, u64> = BTreeMap::new();
        for chosen in images {
            contents.manifests.extend(chosen.manifests.iter().copied());
            for (digest, size) in &chosen.blobs {
                let to = match have.0.contains(digest) {
                    true => &mut left_out,
                    false => &mut contents.blobs,
                };
                to.insert(*digest, *size);
            }
        }
        let manifests = &contents.manifests;
        contents.blobs.retain(|digest, _| !manifests.contains_key(digest));
        contents.summary = ExportSummary {
            blobs: (contents.manifests.len() + contents.blobs.len()) as u64,
            bytes: contents.manifests.values().chain(contents.blobs.values()).sum(),
            blobs_left_out: left_out.len() as u64,
            bytes_left_out: left_out.values().sum(),
            ..ExportSummary::default()
        };
        contents
    }

    /// The files other than blobs, in the order in which they are read.
    fn documents(
        &self,
        images: &[Chosen],
        form: &Form,
    ) -> Result<Vec<(&'static str, Vec<u8>)>, BundleError> {
        let entries: Vec<NewEntry> = images.iter().map(entry).collect();
        let failed = |error: serde_json::Error| BundleError::Write {
            path: format!("index.json of {form:?}").into(),
            source: io::Error::other(error),
        };
        let mut documents = vec![("oci-layout", OCI_LAYOUT.to_vec())];
        // For `docker load` and old versions of podman. They cannot use a delta, which needs Larder.
        let saved: Vec<&SavedImage> =
            images.iter().filter_map(|chosen| chosen.saved.as_ref()).collect();
        if self.summary.blobs_left_out == 0 && !saved.is_empty() {
            documents.push(("manifest.json", serde_json::to_vec_pretty(&saved).map_err(failed)?));
        }
        documents.push(("index.json", index_json(&entries).map_err(failed)?));
        Ok(documents)
    }
}

fn entry(chosen: &Chosen) -> NewEntry {
    let image = &chosen.image;
    let reference = image.full_reference();
    NewEntry::new(&image.digest, image.size, &image.media_type, &reference, chosen.audience)
}

fn write_blob(
    store: &Store,
    output: &mut Output,
    digest: &Digest,
    size: u64,
    report: &mut dyn FnMut(ExportEvent),
) -> Result<(), BundleError> {
    let name = blob_name(digest);
    if output.has_blob(&name, size) {
        report(ExportEvent::Progress { bytes: size });
        return Ok(());
    }
    let blob = store.blob(digest, Some(size)).ok_or_else(|| BundleError::DamagedBlob {
        digest: *digest,
        reason: "it is absent or has another size".into(),
    })?;
    let mut content = Verified::new(&blob, digest, report);
    let put = output.put(&name, size, &mut content);
    match content.damage {
        Some(reason) => Err(BundleError::DamagedBlob { digest: *digest, reason }),
        None => put,
    }
}

/// Reads a blob, and compares its digest at the end.
struct Verified<'a> {
    source: BlobReader<'a>,
    left: u64,
    digest: &'a Digest,
    verifier: Verifier,
    damage: Option<String>,
    report: &'a mut dyn FnMut(ExportEvent),
}

impl<'a> Verified<'a> {
    fn new(
        blob: &'a Blob,
        digest: &'a Digest,
        report: &'a mut dyn FnMut(ExportEvent),
    ) -> Verified<'a> {
        Verified {
            source: BlobReader { blob, offset: 0 },
            left: blob.size,
            digest,
            verifier: Verifier::new(digest.algorithm()),
            damage: None,
            report,
        }
    }
}

impl Read for Verified<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = match self.source.read(buffer) {
            Ok(read) => read,
            Err(error) => {
                self.damage = Some(error.to_string());
                return Err(error);
            }
        };
        (self.report)(ExportEvent::Progress { bytes: read as u64 });
        self.verifier.update(&buffer[..read]);
        self.left = self.left.saturating_sub(read as u64);
        // Before the last bytes are passed on, so that damaged content is never written completely.
        let is_end = read == 0 && !buffer.is_empty() || self.left == 0;
        if is_end && self.damage.is_none() {
            let actual = self.verifier.clone().finish();
            if self.left > 0 || actual != *self.digest {
                self.damage = Some(format!("its bytes have the digest {actual}"));
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        Ok(read)
    }
}
