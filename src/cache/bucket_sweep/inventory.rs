//! What is in the bucket: lists of keys, and the content of all records and manifests.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use super::SweepError;
use crate::cache::lock;
use crate::oci::{
    BLOBS, Digest, ImageName, MANIFEST_BYTES_MAX, Manifest, ManifestKind, REFS, Record, StoredPath,
    Tag, TagRecord, blob_path, tag_path,
};
use crate::store::Store;
use crate::upstream::{ObjectStore, RECORD_BYTES_MAX, UpstreamError};

/// How many objects are read at the same time.
const READERS: usize = 8;

/// A tag in the bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TagEntry {
    /// Its manifest.
    pub(super) digest: Digest,
    /// When it was written, by the store's clock.
    pub(super) modified: SystemTime,
}

/// A blob in the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlobEntry {
    pub(super) size: u64,
    /// When it was written, by the store's clock.
    pub(super) modified: SystemTime,
}

/// What a manifest refers to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct References {
    digests: Vec<Digest>,
    is_index: bool,
    subject: Option<Digest>,
}

/// The content of the bucket.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Inventory {
    pub(super) tags: HashMap<(ImageName, Tag), TagEntry>,
    /// The records of manifests, and when they were written.
    pub(super) manifests: HashMap<(ImageName, Digest), SystemTime>,
    pub(super) blobs: HashMap<Digest, BlobEntry>,
    references: HashMap<Digest, References>,
}

impl Inventory {
    /// Lists everything, and reads the records that `before` does not have as they are now.
    ///
    /// # Errors
    /// [`SweepError`] if anything cannot be read: what is not known must not be taken for absent.
    pub(super) fn read(
        bucket: &ObjectStore,
        local: &Store,
        before: Option<&Inventory>,
        should_go_on: &(dyn Fn() -> bool + Sync),
    ) -> Result<Inventory, SweepError> {
        let mut inventory = Inventory::default();
        let mut unread_tags = Vec::new();
        each_object(
            bucket,
            &format!("{REFS}/"),
            should_go_on,
            &mut |path, _, modified| match path {
                StoredPath::Tag(name, tag) => {
                    let key = (name, tag);
                    match before.and_then(|before| before.tags.get(&key)) {
                        Some(known) if known.modified == modified => {
                            inventory.tags.insert(key, known.clone());
                        }
                        _ => unread_tags.push((key, modified)),
                    }
                }
                StoredPath::Manifest(name, digest) => {
                    inventory.manifests.insert((name, digest), modified);
                }
                StoredPath::Blob(_) => {}
            },
        )?;
        each_object(bucket, &format!("{BLOBS}/"), should_go_on, &mut |path, size, modified| {
            if let StoredPath::Blob(digest) = path {
                inventory.blobs.insert(digest, BlobEntry { size, modified });
            }
        })?;
        let read = in_parallel(&unread_tags, should_go_on, |(key, modified)| {
            let read = bucket.find(&tag_path(&key.0, &key.1), RECORD_BYTES_MAX)?;
            // One that cannot be parsed refers to nothing.
            Ok(read.and_then(|read| {
                let record = TagRecord::from_json(&read.bytes)?;
                Some((key.clone(), TagEntry { digest: record.digest, modified: *modified }))
            }))
        })?;
        inventory.tags.extend(read.into_iter().flatten());
        let roots = inventory.tags.values().map(|tag| tag.digest);
        let mut wanted: Vec<Digest> =
            inventory.manifests.keys().map(|(_, digest)| *digest).chain(roots).collect();
        wanted.sort_unstable();
        wanted.dedup();
        if let Some(before) = before {
            for digest in &wanted {
                if let Some(known) = before.references.get(digest) {
                    inventory.references.insert(*digest, known.clone());
                }
            }
        }
        wanted.retain(|digest| !inventory.references.contains_key(digest));
        let read = in_parallel(&wanted, should_go_on, |digest| {
            Ok((*digest, references(bucket, local, digest)?))
        })?;
        inventory.references.extend(read);
        Ok(inventory)
    }

    /// What a manifest refers to.
    pub(super) fn refers_to(&self, manifest: &Digest) -> impl Iterator<Item = Digest> {
        self.references.get(manifest).into_iter().flat_map(|each| each.digests.iter().copied())
    }

    pub(super) fn is_index(&self, manifest: &Digest) -> bool {
        self.references.get(manifest).is_some_and(|each| each.is_index)
    }

    pub(super) fn subject_of(&self, manifest: &Digest) -> Option<Digest> {
        self.references.get(manifest).and_then(|each| each.subject)
    }
}

/// What a manifest refers to. It is read here if it is cached, or else from the bucket. One that is missing or damaged refers
/// to nothing: no cache can use it.
fn references(
    bucket: &ObjectStore,
    local: &Store,
    digest: &Digest,
) -> Result<References, UpstreamError> {
    let parse = |bytes: &[u8]| match Digest::of(digest.algorithm(), bytes) == *digest {
        true => Manifest::parse(bytes, None).ok(),
        false => None,
    };
    let cached = local.blob(digest, None).filter(|blob| blob.size <= MANIFEST_BYTES_MAX as u64);
    let manifest = match cached.and_then(|blob| local.read(digest, blob.size)) {
        Some(bytes) => parse(&bytes),
        None => bucket
            .find(&blob_path(digest), MANIFEST_BYTES_MAX as u64)?
            .and_then(|read| parse(&read.bytes)),
    };
    let Some(manifest) = manifest else { return Ok(References::default()) };
    Ok(References {
        digests: manifest.descriptors().map(|each| each.digest).collect(),
        is_index: matches!(manifest.kind(), ManifestKind::Index { .. }),
        subject: manifest.subject().map(|subject| subject.digest),
    })
}

/// Calls `visit` with each blob or record below a prefix, its size, and when it was written.
fn each_object(
    bucket: &ObjectStore,
    prefix: &str,
    should_go_on: &(dyn Fn() -> bool + Sync),
    visit: &mut dyn FnMut(StoredPath, u64, SystemTime),
) -> Result<(), SweepError> {
    let mut after: Option<String> = None;
    loop {
        if !should_go_on() {
            return Err(SweepError::Stopped);
        }
        let page = bucket.list(prefix, after.as_deref())?;
        for object in page.objects {
            if let Some(path) = StoredPath::parse(&object.key) {
                visit(path, object.size, object.modified);
            }
        }
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(()),
        }
    }
}

/// Applies `read` to all items, several at the same time.
fn in_parallel<T: Sync, R: Send>(
    items: &[T],
    should_go_on: &(dyn Fn() -> bool + Sync),
    read: impl Fn(&T) -> Result<R, UpstreamError> + Sync,
) -> Result<Vec<R>, SweepError> {
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(items.len())));
    let failure: Mutex<Option<SweepError>> = Mutex::new(None);
    let work = || {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            let result = match should_go_on() {
                true => read(item).map_err(SweepError::from),
                false => Err(SweepError::Stopped),
            };
            match result {
                Ok(result) => lock(&results).push(result),
                Err(error) => {
                    *lock(&failure) = Some(error);
                    next.store(items.len(), Ordering::Relaxed);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..READERS.min(items.len()) {
            scope.spawn(work);
        }
    });
    let failure = lock(&failure).take();
    match failure {
        Some(error) => Err(error),
        None => Ok(std::mem::take(&mut *lock(&results))),
    }
}
