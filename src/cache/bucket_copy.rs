//! Copies images between the cache directory and a bucket: `larder export` and `larder import` with `s3://…`.
//!
//! The bucket then has the layout of a cache directory. Content precedes names in both directions, so an interrupted copy
//! leaves no name without its content, and a repeated one sends only what is missing.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::{ErrorKind, Read};
use std::sync::atomic::AtomicBool;

use super::bucket_sweep::{BucketImage, Parts, SweepError, Sweeper};
use super::uploads::Upload;
use crate::oci::{
    Descriptor, Digest, ImageName, ManifestRecord, PartReference, Record, Reference, TagRecord,
    blob_path, manifest_path, tag_path,
};
use crate::store::{IngestError, OutgoingFile, Store, StoreError, StoredImage};
use crate::units::plural;
use crate::upstream::{Condition, ObjectStore, Put, RECORD_BYTES_MAX, UpstreamError};

/// How much is read at a time.
const CHUNK_BYTES: usize = 256 * 1024;
/// How often a download that breaks off is continued.
const ATTEMPTS: u32 = 5;
/// How many missing objects of an image are listed.
const MISSING_LISTED_MAX: usize = 10;

/// What was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CopySummary {
    /// Images.
    pub images: usize,
    /// Images that were not copied.
    pub failures: usize,
    /// Blobs, manifests included, that were not there before.
    pub blobs: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Blobs that were there.
    pub blobs_there: usize,
}

/// What has become of an image in a bucket.
#[derive(Debug)]
pub enum CopyEvent<'a> {
    /// It was imported.
    Imported(&'a BucketImage),
    /// It was not imported, and its name is as it was before.
    NotImported(&'a BucketImage, ImageFailure),
}

/// Why an image was not imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageFailure {
    /// Neither the bucket nor the cache has all of it.
    Incomplete {
        /// The keys of what is missing.
        missing: Vec<String>,
    },
    /// An object has the wrong content.
    Wrong {
        /// Its URL.
        object: String,
        /// What is wrong.
        reason: String,
    },
    /// Its tag has moved since the bucket was listed.
    Moved,
}

impl fmt::Display for ImageFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImageFailure::Incomplete { missing } => {
                let count = plural(missing.len(), "object");
                write!(f, "{count} missing in both the bucket and the cache:")?;
                let mut listed = missing.iter().take(MISSING_LISTED_MAX);
                listed.try_for_each(|key| write!(f, "\n    {key}"))?;
                match missing.len().saturating_sub(MISSING_LISTED_MAX) {
                    0 => Ok(()),
                    more => write!(f, "\n    and {more} more"),
                }
            }
            ImageFailure::Wrong { object, reason } => write!(
                f,
                "{object} has the wrong content ({reason}); delete this object, and export the image again"
            ),
            ImageFailure::Moved => f.write_str("its tag has moved meanwhile; repeat the import"),
        }
    }
}

/// Why a copy has ended early.
#[derive(Debug)]
pub enum CopyError {
    /// The bucket cannot be read or written.
    Bucket(SweepError),
    /// The cache directory cannot be read or written.
    Store(StoreError),
}

impl From<UpstreamError> for CopyError {
    fn from(error: UpstreamError) -> CopyError {
        CopyError::Bucket(error.into())
    }
}

impl From<SweepError> for CopyError {
    fn from(error: SweepError) -> CopyError {
        CopyError::Bucket(error)
    }
}

impl From<StoreError> for CopyError {
    fn from(error: StoreError) -> CopyError {
        CopyError::Store(error)
    }
}

impl fmt::Display for CopyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CopyError::Bucket(error) => error.fmt(f),
            CopyError::Store(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for CopyError {}

/// Copies images to a bucket.
///
/// # Errors
/// [`CopyError`]. The images before it are complete in the bucket.
pub fn copy_to_bucket(
    store: &Store,
    bucket: &ObjectStore,
    images: &[StoredImage],
) -> Result<CopySummary, CopyError> {
    let (mut summary, mut seen) = (CopySummary::default(), HashSet::new());
    for image in images {
        let graph = store.graph_of(image);
        for digest in graph.present_digests() {
            if seen.insert(digest) {
                copy_blob_out(store, bucket, &digest, &mut summary)?;
            }
        }
        for digest in graph.manifest_digests() {
            put_file(store, bucket, &manifest_path(&image.name, &digest))?;
        }
        if let Reference::Tag(tag) = &image.reference {
            put_file(store, bucket, &tag_path(&image.name, tag))?;
        }
        summary.images += 1;
    }
    Ok(summary)
}

fn copy_blob_out(
    store: &Store,
    bucket: &ObjectStore,
    digest: &Digest,
    summary: &mut CopySummary,
) -> Result<(), CopyError> {
    let key = blob_path(digest);
    // It may have been evicted meanwhile.
    let Some(file) = store.outgoing_file(&key)? else { return Ok(()) };
    let condition = match bucket.head(&key) {
        Ok(head) if head.size == file.size => {
            summary.blobs_there += 1;
            return Ok(());
        }
        Ok(_) => Condition::None,
        Err(error) if error.is_not_found() => Condition::IfAbsent,
        Err(error) => return Err(error.into()),
    };
    match upload(bucket, &file, condition)? {
        Put::Done { .. } => {
            summary.blobs += 1;
            summary.bytes += file.size;
        }
        Put::Exists => summary.blobs_there += 1,
    }
    Ok(())
}

fn put_file(store: &Store, bucket: &ObjectStore, key: &str) -> Result<(), CopyError> {
    let Some(file) = store.outgoing_file(key)? else { return Ok(()) };
    upload(bucket, &file, Condition::None)?;
    Ok(())
}

fn upload(
    bucket: &ObjectStore,
    file: &OutgoingFile,
    condition: Condition,
) -> Result<Put, UpstreamError> {
    let source = Upload { file, throttle: None, is_stopped: &AtomicBool::new(false) };
    bucket.upload(&file.key, &source, condition)
}

/// Copies the images of a bucket into the cache directory, and reports each. One that is incomplete or damaged does not
/// prevent the import of the others. `is_private`: whether the registry of a repository decides who may pull.
///
/// # Errors
/// [`CopyError`]. The images that were reported before are complete.
pub fn copy_from_bucket(
    sweeper: &Sweeper<'_>,
    is_private: &dyn Fn(&ImageName) -> bool,
    report: &mut dyn FnMut(&CopyEvent<'_>),
) -> Result<CopySummary, CopyError> {
    let mut import = Import {
        bucket: sweeper.bucket,
        store: sweeper.local,
        summary: CopySummary::default(),
        wrong: HashMap::new(),
    };
    for (image, parts) in sweeper.list_with_parts()? {
        let Ok(PartReference { name, reference: Some(reference) }) =
            PartReference::parse(&image.image)
        else {
            continue;
        };
        if is_private(&name) {
            sweeper.local.mark_private(parts.blobs.iter().chain(&parts.manifests))?;
        }
        match import.image(&name, &reference, image.digest, &parts)? {
            Ok(()) => {
                import.summary.images += 1;
                report(&CopyEvent::Imported(&image));
            }
            Err(failure) => {
                import.summary.failures += 1;
                report(&CopyEvent::NotImported(&image, failure));
            }
        }
    }
    Ok(import.summary)
}

/// An import from a bucket.
struct Import<'a> {
    bucket: &'a ObjectStore,
    store: &'a Store,
    summary: CopySummary,
    /// Blobs of which the bucket has other bytes, which several images may have.
    wrong: HashMap<Digest, ImageFailure>,
}

/// The outcome of a step for one image, unless the import must end.
type OfImage<T> = Result<Result<T, ImageFailure>, CopyError>;

impl Import<'_> {
    fn image(
        &mut self,
        name: &ImageName,
        reference: &Reference,
        root: Digest,
        parts: &Parts,
    ) -> OfImage<()> {
        // Until its names are written, the blobs are nobody's.
        let _lock = self.store.bundle_lock()?;
        for digest in &parts.blobs {
            if self.store.blob(digest, None).is_some() {
                self.summary.blobs_there += 1;
            } else if let Err(failure) = self.blob(digest)? {
                return Ok(Err(failure));
            }
        }
        let mut records = HashMap::new();
        for digest in &parts.manifests {
            if let Some(record) = self.read::<ManifestRecord>(&manifest_path(name, digest))? {
                records.insert(*digest, record);
            }
        }
        let missing = self.missing(name, root, &records);
        if !missing.is_empty() {
            return Ok(Err(ImageFailure::Incomplete { missing }));
        }
        let tag = match reference {
            Reference::Digest(_) => None,
            Reference::Tag(tag) => match self.read::<TagRecord>(&tag_path(name, tag))? {
                Some(record) if record.digest == root => Some((tag, record)),
                _ => return Ok(Err(ImageFailure::Moved)),
            },
        };
        // What an index names comes before the index.
        for digest in parts.manifests.iter().rev() {
            let record = records.get(digest);
            if let Some(record) =
                record.filter(|record| self.store.blob(digest, Some(record.size)).is_some())
            {
                self.store.put_manifest(name, digest, record)?;
            }
        }
        if let Some((tag, record)) = tag {
            self.store.put_tag(name, tag, &record)?;
        }
        Ok(Ok(()))
    }

    /// The keys of what the cache lacks to serve an image for one platform at least, as for a bundle.
    fn missing(
        &self,
        name: &ImageName,
        root: Digest,
        records: &HashMap<Digest, ManifestRecord>,
    ) -> Vec<String> {
        let load = |descriptor: &Descriptor| {
            let digest = &descriptor.digest;
            match records.get(digest) {
                Some(record) => {
                    let media_type = Some(record.media_type.as_str());
                    self.store.parse_manifest(digest, record.size, media_type)
                }
                None if *digest == root => self.store.stored_manifest(name, digest),
                None => None,
            }
        };
        let size = records.get(&root).map_or(0, |record| record.size);
        let graph = self.store.graph_by(Descriptor::new(root, size), &load, &|_| true);
        let missing = graph.missing().into_iter();
        let key_of = |descriptor: &Descriptor| {
            let digest = &descriptor.digest;
            let is_record = *digest == root && self.store.blob(digest, None).is_some();
            if is_record { manifest_path(name, digest) } else { blob_path(digest) }
        };
        missing.map(key_of).collect()
    }

    fn read<T: Record>(&self, key: &str) -> Result<Option<T>, CopyError> {
        let read = self.bucket.find(key, RECORD_BYTES_MAX)?;
        Ok(read.and_then(|read| T::from_json(&read.bytes)))
    }

    /// Copies a blob, if the bucket has it.
    fn blob(&mut self, digest: &Digest) -> OfImage<()> {
        if let Some(failure) = self.wrong.get(digest) {
            return Ok(Err(failure.clone()));
        }
        let key = blob_path(digest);
        let mut writer = self.store.digesting_writer(digest.algorithm())?;
        let (mut at, mut attempts, mut chunk) = (0, 0, vec![0; CHUNK_BYTES]);
        'connection: loop {
            let mut object = match self.bucket.get(&key, at, None) {
                // A part that no cache had, such as another platform.
                Err(error) if error.is_not_found() && at == 0 => return Ok(Ok(())),
                other => other?,
            };
            if object.start != at {
                let request = format!("GET {}{key}", self.bucket.url());
                let reason = "the store does not support ranges";
                return Err(UpstreamError::bad_answer(&request, reason).into());
            }
            loop {
                match object.reader.read(&mut chunk) {
                    Ok(0) => break 'connection,
                    Ok(count) => {
                        writer.write(&chunk[..count])?;
                        at += count as u64;
                    }
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(_) if attempts < ATTEMPTS => {
                        attempts += 1;
                        continue 'connection;
                    }
                    Err(error) => {
                        return Err(UpstreamError::from_body(&format!("GET {key}"), error).into());
                    }
                }
            }
        }
        match writer.commit(Some(digest)) {
            Ok((_, size)) => {
                self.summary.blobs += 1;
                self.summary.bytes += size;
                Ok(Ok(()))
            }
            Err(IngestError::Store(error)) => Err(error.into()),
            Err(error) => {
                let object = format!("{}{key}", self.bucket.url());
                let failure = ImageFailure::Wrong { object, reason: error.to_string() };
                self.wrong.insert(*digest, failure.clone());
                Ok(Err(failure))
            }
        }
    }
}
