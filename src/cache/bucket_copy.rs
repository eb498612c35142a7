//! Copies images between the cache directory and a bucket: `larder export` and `larder import` with `s3://…`.
//!
//! The bucket then has the layout of a cache directory. Content precedes names in both directions, so an interrupted copy
//! leaves no name without its content, and a repeated one sends only what is missing.

use std::collections::HashSet;
use std::fmt;
use std::io::{ErrorKind, Read};
use std::sync::atomic::AtomicBool;

use super::bucket_sweep::{BucketImage, SweepError, Sweeper};
use super::uploads::Upload;
use crate::oci::{
    Digest, ManifestRecord, PartReference, Record, Reference, TagRecord, blob_path, manifest_path,
    tag_path,
};
use crate::store::{IngestError, OutgoingFile, Store, StoreError, StoredImage};
use crate::upstream::{Condition, ObjectStore, Put, RECORD_BYTES_MAX, UpstreamError};

/// How much is read at a time.
const CHUNK_BYTES: usize = 256 * 1024;
/// How often a download that breaks off is continued.
const ATTEMPTS: u32 = 5;

/// What was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CopySummary {
    /// Images.
    pub images: usize,
    /// Blobs, manifests included, that were not there before.
    pub blobs: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Blobs that were there.
    pub blobs_there: usize,
}

/// Why a copy has ended early.
#[derive(Debug)]
pub enum CopyError {
    /// The bucket cannot be read or written.
    Bucket(SweepError),
    /// The cache directory cannot be read or written.
    Store(StoreError),
    /// An object has the wrong content.
    Wrong {
        /// Its key.
        key: String,
        /// What is wrong.
        reason: String,
    },
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
            CopyError::Wrong { key, reason } => write!(f, "{key} in the bucket: {reason}"),
        }
    }
}

impl std::error::Error for CopyError {}

/// Copies images to a bucket, and calls `copied` after each.
///
/// # Errors
/// [`CopyError`]. The images before it are complete in the bucket.
pub fn copy_to_bucket(
    store: &Store,
    bucket: &ObjectStore,
    images: &[StoredImage],
    copied: &mut dyn FnMut(&str),
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
        copied(&image.full_reference());
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

/// Copies the images of a bucket into the cache directory, and calls `copied` after each.
///
/// # Errors
/// [`CopyError`]. The images before it are complete.
pub fn copy_from_bucket(
    sweeper: &Sweeper<'_>,
    copied: &mut dyn FnMut(&BucketImage),
) -> Result<CopySummary, CopyError> {
    let (bucket, store) = (sweeper.bucket, sweeper.local);
    let mut summary = CopySummary::default();
    for (image, parts) in sweeper.list_with_parts()? {
        let Ok(PartReference { name, reference: Some(reference) }) =
            PartReference::parse(&image.image)
        else {
            continue;
        };
        // Until its names are written, the blobs are nobody's.
        let lock = store.bundle_lock()?;
        for digest in &parts.blobs {
            match store.blob(digest, None) {
                Some(_) => summary.blobs_there += 1,
                None => copy_blob_in(store, bucket, digest, &mut summary)?,
            }
        }
        for digest in &parts.manifests {
            let record: Option<ManifestRecord> = read(bucket, &manifest_path(&name, digest))?;
            if let Some(record) =
                record.filter(|record| store.blob(digest, Some(record.size)).is_some())
            {
                store.put_manifest(&name, digest, &record)?;
            }
        }
        if let Reference::Tag(tag) = &reference
            && let Some(record) = read::<TagRecord>(bucket, &tag_path(&name, tag))?
        {
            store.put_tag(&name, tag, &record)?;
        }
        drop(lock);
        summary.images += 1;
        copied(&image);
    }
    Ok(summary)
}

fn read<T: Record>(bucket: &ObjectStore, key: &str) -> Result<Option<T>, CopyError> {
    Ok(bucket.find(key, RECORD_BYTES_MAX)?.and_then(|read| T::from_json(&read.bytes)))
}

fn copy_blob_in(
    store: &Store,
    bucket: &ObjectStore,
    digest: &Digest,
    summary: &mut CopySummary,
) -> Result<(), CopyError> {
    let key = blob_path(digest);
    let mut writer = store.digesting_writer(digest.algorithm())?;
    let (mut at, mut attempts, mut chunk) = (0, 0, vec![0; CHUNK_BYTES]);
    'connection: loop {
        let mut object = match bucket.get(&key, at, None) {
            // A part that no cache had, such as another platform.
            Err(error) if error.is_not_found() && at == 0 => return Ok(()),
            other => other?,
        };
        if object.start != at {
            let reason = "the store does not support ranges".to_owned();
            return Err(CopyError::Wrong { key, reason });
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
            summary.blobs += 1;
            summary.bytes += size;
            Ok(())
        }
        Err(IngestError::Store(error)) => Err(error.into()),
        Err(error) => Err(CopyError::Wrong { key, reason: error.to_string() }),
    }
}
