//! The bucket as a place that has content: blobs, and the records of one registry.
//!
//! It is as untrusted as a registry: whoever receives a blob or a manifest verifies it. Like a cache directory, it decides
//! what a tag is, until the registry is asked. What it does not have may exist nevertheless.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::oci::{
    Digest, ImageName, MANIFEST_BYTES_MAX, Manifest, ManifestRecord, Record, Reference, Repository,
    Tag, TagRecord, Upstream, blob_path, manifest_path, tag_path,
};
use crate::upstream::client::EndpointKind;
use crate::upstream::error::{UpstreamError, UpstreamErrorKind};
use crate::upstream::network::ProxySettings;
use crate::upstream::object_store::{ObjectStore, ObjectStoreSettings};
use crate::upstream::response::copy_body;
use crate::upstream::{
    BlobAsk, BlobBody, Confirmation, DocumentSink, List, Origin, Permission, Source, Wanted,
};

/// What only the registry itself knows, for messages.
const TAGS: &str = "tags";
const LISTS: &str = "lists";
const PERMISSIONS: &str = "permissions";
/// The largest record of a tag or manifest that is read from a bucket, in bytes.
pub const RECORD_BYTES_MAX: u64 = 64 * 1024;

/// How long an object with wrong content is not read again. Another cache may replace it.
const WRONG_SKIPPED_FOR: Duration = Duration::from_secs(60);
/// How many keys are remembered of each kind.
const REMEMBERED: usize = 16_384;

/// The bucket, and what this process knows about its objects. Clones share it.
#[derive(Clone)]
pub struct Bucket {
    /// For uploads and other work in the background.
    pub store: Arc<ObjectStore>,
    /// For what a client waits for.
    reads: Arc<ObjectStore>,
    known: Arc<Mutex<Known>>,
}

/// Locked for an insertion, a lookup or a removal. Each set is emptied when it is full: its entries only save requests, or
/// are found again.
#[derive(Default)]
struct Known {
    present: HashMap<String, Instant>,
    wrong: HashMap<String, Instant>,
}

impl Bucket {
    /// A bucket about which nothing is known. Makes no request.
    pub fn new(settings: &ObjectStoreSettings, proxies: &Arc<ProxySettings>) -> Bucket {
        Bucket {
            store: Arc::new(ObjectStore::new(settings.clone(), Arc::clone(proxies))),
            reads: Arc::new(ObjectStore::impatient(settings.clone(), Arc::clone(proxies))),
            known: Arc::default(),
        }
    }

    /// Makes the next requests read keys and certificate files again.
    pub fn refresh(&self) {
        self.store.refresh();
        self.reads.refresh();
    }

    /// Notes that an object was replaced or created.
    pub fn note_uploaded(&self, key: &str) {
        self.known().wrong.remove(key);
        self.note_present(key);
    }

    /// Notes that an object is there, so it need not be uploaded.
    pub fn note_present(&self, key: &str) {
        let mut known = self.known();
        if known.present.len() >= REMEMBERED {
            known.present.clear();
        }
        known.present.insert(key.to_owned(), Instant::now());
    }

    /// Notes that an object is not there. If it was there before, somebody has removed it, and others may be gone as well.
    pub fn note_missing(&self, key: &str) {
        let mut known = self.known();
        if known.present.contains_key(key) {
            known.present.clear();
        }
    }

    /// Forgets which objects are there: the bucket fails.
    pub fn forget_present(&self) {
        self.known().present.clear();
    }

    /// The size of an object, in bytes; `None` if there is none.
    ///
    /// # Errors
    /// [`UpstreamError`]. Requests are not repeated.
    pub fn size_of(&self, key: &str) -> Result<Option<u64>, UpstreamError> {
        match self.reads.head(key) {
            Ok(head) => Ok(Some(head.size)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// See [`ObjectStore::presigned_get`].
    pub fn presigned_get(&self, key: &str, expires: Duration) -> Option<String> {
        self.reads.presigned_get(key, expires)
    }

    /// The URL of the bucket for clients that are redirected.
    pub fn public_url(&self) -> String {
        self.reads.public_url()
    }

    /// Notes that the bucket has sent wrong bytes, so the object must be replaced.
    pub fn note_wrong(&self, key: &str) {
        log::warn!(
            endpoint:% = self.store.url(), file = key;
            "objectStore: an object has the wrong content and is not used; unless readOnly is set, it is replaced"
        );
        let mut known = self.known();
        known.present.remove(key);
        if known.wrong.len() >= REMEMBERED {
            known.wrong.clear();
        }
        known.wrong.insert(key.to_owned(), Instant::now());
    }

    /// Whether an object was there at most so long ago.
    pub fn was_present(&self, key: &str, within: Duration) -> bool {
        self.known().present.get(key).is_some_and(|seen| seen.elapsed() <= within)
    }

    /// Whether an object must be replaced.
    pub fn is_wrong(&self, key: &str) -> bool {
        self.known().wrong.contains_key(key)
    }

    /// Whether an object was wrong a moment ago, so reading it again would be in vain.
    fn was_wrong(&self, key: &str) -> bool {
        self.known().wrong.get(key).is_some_and(|seen| seen.elapsed() < WRONG_SKIPPED_FOR)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Each change is one insertion or removal.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Two are equal if they are the same.
impl PartialEq for Bucket {
    fn eq(&self, other: &Bucket) -> bool {
        Arc::ptr_eq(&self.store, &other.store)
    }
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.store.url())
    }
}

/// The content of one registry in the bucket.
pub(super) struct BucketOrigin {
    bucket: Bucket,
    upstream: Upstream,
}

impl BucketOrigin {
    pub(super) fn new(bucket: Bucket, upstream: Upstream) -> BucketOrigin {
        BucketOrigin { bucket, upstream }
    }

    fn name(&self, repository: &Repository) -> ImageName {
        ImageName { upstream: self.upstream.clone(), repository: repository.clone() }
    }

    /// Reads a record. One that is damaged counts as absent.
    fn record<T: Record>(&self, key: &str) -> Result<T, UpstreamError> {
        self.skip_wrong(key)?;
        let read = self.bucket.reads.read(key, RECORD_BYTES_MAX);
        let read = read.map_err(|error| self.missing(key, error))?;
        T::from_json(&read.bytes).ok_or_else(|| {
            self.bucket.note_wrong(key);
            self.absent(key)
        })
    }

    /// Treats an object that was wrong a moment ago as absent.
    fn skip_wrong(&self, key: &str) -> Result<(), UpstreamError> {
        if self.bucket.was_wrong(key) { Err(self.absent(key)) } else { Ok(()) }
    }

    /// What is missing in the bucket is not missing at the registry, and may be uploaded again.
    fn missing(&self, key: &str, error: UpstreamError) -> UpstreamError {
        if !error.is_not_found() {
            return error;
        }
        self.bucket.note_missing(key);
        error.elsewhere()
    }

    /// What is not in the bucket may exist nevertheless.
    fn absent(&self, key: &str) -> UpstreamError {
        let request = format!("GET {}{key}", self.url());
        UpstreamError::new(request, UpstreamErrorKind::NotFound).elsewhere()
    }
}

impl Origin for BucketOrigin {
    fn url(&self) -> String {
        self.bucket.reads.url()
    }

    fn probe(&self) -> Result<(), UpstreamError> {
        self.bucket.reads.reach()
    }

    fn kind(&self) -> EndpointKind {
        EndpointKind::Bucket
    }

    fn tag_record(&self, repository: &Repository, tag: &Tag) -> Result<TagRecord, UpstreamError> {
        self.record(&tag_path(&self.name(repository), tag))
    }
}

impl Source for BucketOrigin {
    fn endpoints(&self) -> usize {
        1
    }

    fn resolve(
        &self,
        _: &Repository,
        _: &Tag,
    ) -> Result<Option<(Digest, Confirmation)>, UpstreamError> {
        Err(self.absent(TAGS))
    }

    fn ask_to_pull(&self, _: &Repository, _: &Wanted) -> Result<Permission, UpstreamError> {
        Err(self.absent(PERMISSIONS))
    }

    fn manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
        sink: &mut dyn DocumentSink,
    ) -> Result<(Digest, Manifest, Confirmation), UpstreamError> {
        let Reference::Digest(digest) = reference else { return Err(self.absent(TAGS)) };
        let path = manifest_path(&self.name(repository), digest);
        let record: ManifestRecord = self.record(&path)?;
        self.bucket.note_present(&path);
        let key = blob_path(digest);
        self.skip_wrong(&key)?;
        let request = format!("GET {}{key}", self.url());
        let object = self.bucket.reads.get(&key, 0, None);
        let object = object.map_err(|error| self.missing(&key, error))?;
        sink.restart();
        copy_body(object.reader, MANIFEST_BYTES_MAX as u64, &request, sink)?;
        let parsed = sink.parse(digest.algorithm(), Some(record.media_type.as_str()));
        let Some((actual, manifest)) = parsed else {
            return Err(UpstreamError::new(request, UpstreamErrorKind::NoSpace));
        };
        let bad = |reason: String| UpstreamError::bad_answer(&request, reason);
        if actual != *digest {
            self.bucket.note_wrong(&key);
            return Err(bad(format!("its bytes have the digest {actual}")));
        }
        let manifest = manifest.map_err(|error| bad(error.to_string()))?;
        self.bucket.note_present(&key);
        Ok((actual, manifest, Confirmation::default()))
    }

    fn blob_size(&self, _: &Repository, digest: &Digest) -> Result<Option<u64>, UpstreamError> {
        let key = blob_path(digest);
        self.skip_wrong(&key)?;
        let head = self.bucket.reads.head(&key).map_err(|error| self.missing(&key, error))?;
        Ok(Some(head.size))
    }

    fn blob(&self, ask: &BlobAsk<'_>) -> Result<BlobBody, UpstreamError> {
        let key = blob_path(ask.digest);
        self.skip_wrong(&key)?;
        let object = self.bucket.reads.get(&key, ask.from, ask.to);
        let object = object.map_err(|error| self.missing(&key, error))?;
        Ok(BlobBody {
            endpoint: 0,
            sender: EndpointKind::Bucket,
            url: self.url(),
            start: object.start,
            end: object.end.filter(|_| ask.to.is_some()),
            size: object.size,
            reader: object.reader,
        })
    }

    fn tags(
        &self,
        _: &Repository,
        _: &str,
        _: &mut dyn DocumentSink,
    ) -> Result<List, UpstreamError> {
        Err(self.absent(LISTS))
    }

    fn referrers(
        &self,
        _: &Repository,
        _: &Digest,
        _: &str,
        _: &mut dyn DocumentSink,
    ) -> Result<List, UpstreamError> {
        Err(self.absent(LISTS))
    }
}
