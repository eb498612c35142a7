//! A client of object stores with Amazon's S3 protocol: objects are read, written, listed and deleted.
//!
//! `client` sends signed requests and repeats them after temporary failures; `objects` and `multipart` are the
//! operations; `probe` finds out what a store supports. Calls block, and every wait is bounded, as for registries. Only
//! the configured endpoint is contacted: redirects are not followed, since the signature covers the host.
//!
//! Stores differ: some ignore conditions or checksums, some refuse them with 501. A refused header is left out from then
//! on. What a store ignores only [`ObjectStore::probe`] can find out. The content that a store returns is not verified
//! here.
//!
//! Does not know what the objects are.

mod address;
mod client;
mod clock;
mod content;
mod failure;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod multipart;
mod objects;
mod probe;
mod retry;
#[cfg(test)]
mod tests;
mod xml;

use std::fmt;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub use probe::{ClockSkew, Probe};

use self::client::Client;
use self::retry::RetryPolicy;
use super::auth::KeySettings;
use super::error::UpstreamError;
use super::network::{Endpoint, ProxySettings, Reach, Timeouts, TlsSettings};

/// An object that is looked for to find out whether a bucket can be read. It need not exist.
const LOOKED_FOR: &str = "oci-layout";
/// The timeouts of requests for which a client waits.
const IMPATIENT: Timeouts = Timeouts {
    connect: Duration::from_secs(1),
    headers: Duration::from_secs(2),
    stall: Duration::from_secs(5),
    metadata: Duration::from_secs(3),
    probe: Duration::from_secs(3),
};

/// `objectStore`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectStoreSettings {
    /// Where the store is. The path of its API is not used.
    pub endpoint: Endpoint,
    /// Where clients find the store, if not there.
    pub public_endpoint: Option<Endpoint>,
    /// The bucket, which must exist.
    pub bucket: String,
    /// Precedes every key: empty, or ends with `/`.
    pub prefix: String,
    /// The region in signatures, for example `eu-central-1`. Most stores that are not Amazon's accept any.
    pub region: String,
    /// Where the bucket's name is in a URL.
    pub addressing: Addressing,
    /// The store's authority, and the client certificate.
    pub tls: TlsSettings,
    /// The keys for signing.
    pub keys: KeySettings,
    /// Larger content is uploaded in parts of this size, in bytes. Stores accept 5 MiB and more. Parts are larger if
    /// there would be more than 10,000.
    pub part_bytes: u64,
}

/// Where the bucket's name is in a URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addressing {
    /// `https://s3.example.com/bucket/key`.
    Path,
    /// `https://bucket.s3.example.com/key`.
    VirtualHost,
}

/// A part of a bucket. Keys are those below the configured prefix.
pub struct ObjectStore {
    client: Client,
}

/// An object, or a part of it, that is arriving.
pub struct Object {
    /// The offset of the first byte in `reader`: less than requested if the store does not support ranges.
    pub start: u64,
    /// The offset after its last byte, if the store sends less than the rest of the object.
    pub end: Option<u64>,
    /// The size of the complete object in bytes, if the store reports it.
    pub size: Option<u64>,
    /// The bytes, which are not verified. Fails if the connection breaks.
    pub reader: Box<dyn Read + Send>,
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Object");
        debug.field("start", &self.start).field("end", &self.end).field("size", &self.size);
        debug.finish_non_exhaustive()
    }
}

/// A small object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadObject {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// For [`Condition::IfMatch`]; in quotes, as the store sends it.
    pub etag: Option<String>,
    /// When it was written, by the store's clock.
    pub modified: SystemTime,
}

/// What HEAD returns for an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectHead {
    /// Its size in bytes.
    pub size: u64,
    /// For [`Condition::IfMatch`]; in quotes, as the store sends it.
    pub etag: Option<String>,
    /// When it was written, by the store's clock.
    pub modified: SystemTime,
}

/// When an object is written.
///
/// On stores that refuse conditions, HEAD is used instead; two writers may then both write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// Always. The last writer wins.
    None,
    /// If there is no object with this key.
    IfAbsent,
    /// If the object still has this ETag.
    IfMatch(String),
}

/// The outcome of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Put {
    /// The object was written.
    Done {
        /// Its ETag.
        etag: Option<String>,
    },
    /// The condition does not apply: an object exists, was changed, or is being written at this moment. Also the outcome
    /// if this very write succeeded but its response was lost.
    Exists,
}

/// An object in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedObject {
    /// Its key, without the configured prefix.
    pub key: String,
    /// Its size in bytes.
    pub size: u64,
    /// When it was written, by the store's clock.
    pub modified: SystemTime,
}

/// A page of a list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Page {
    /// At most 1,000 objects, in the order of their keys.
    pub objects: Vec<ListedObject>,
    /// For [`ObjectStore::list`]: the next page begins here. `None` on the last page.
    pub next: Option<String>,
}

/// Content to upload. It is read at several places, and again after a failure.
pub trait UploadSource: Sync {
    /// Its size in bytes.
    fn size(&self) -> u64;

    /// The SHA-256 of the complete content, if it is known. Otherwise the content is read twice.
    fn sha256(&self) -> Option<[u8; 32]>;

    /// Reads `length` bytes from offset `from`.
    ///
    /// # Errors
    /// If it cannot be read. The upload then fails, and is not repeated.
    fn open(&self, from: u64, length: u64) -> io::Result<Box<dyn Read + Send + '_>>;

    /// As [`UploadSource::open`], for bytes that are hashed and not sent, so that a limited rate does not apply.
    ///
    /// # Errors
    /// As [`UploadSource::open`].
    fn open_for_hash(&self, from: u64, length: u64) -> io::Result<Box<dyn Read + Send + '_>> {
        self.open(from, length)
    }

    /// Whether the upload should end early.
    fn is_cancelled(&self) -> bool;

    /// Whether the store should discard the parts of a cancelled upload. Otherwise the next upload of this content
    /// resumes there.
    fn discards_parts_when_cancelled(&self) -> bool {
        false
    }
}

impl ObjectStore {
    /// Makes no request.
    pub fn new(settings: ObjectStoreSettings, proxies: Arc<ProxySettings>) -> ObjectStore {
        let timeouts = Timeouts { probe: IMPATIENT.probe, ..Timeouts::default() };
        let reach = Reach { timeouts, proxies };
        ObjectStore { client: Client::new(settings, &reach, RetryPolicy::default()) }
    }

    /// As [`ObjectStore::new`], for a caller that has another source: requests are not repeated, and a store that does
    /// not answer is not waited for.
    pub fn impatient(settings: ObjectStoreSettings, proxies: Arc<ProxySettings>) -> ObjectStore {
        let reach = Reach { timeouts: IMPATIENT, proxies };
        let retries = RetryPolicy { attempts: 1, ..RetryPolicy::default() };
        ObjectStore { client: Client::new(settings, &reach, retries) }
    }

    /// The settings.
    pub fn settings(&self) -> &ObjectStoreSettings {
        self.client.settings()
    }

    /// The time by the store's clock, as far as its responses have shown it.
    pub fn now(&self) -> SystemTime {
        let now = SystemTime::now();
        let ahead = self.client.clock().latest().unwrap_or_default();
        let difference = Duration::from_secs(ahead.unsigned_abs());
        let shifted =
            if ahead < 0 { now.checked_sub(difference) } else { now.checked_add(difference) };
        shifted.unwrap_or(now)
    }

    /// The URL of the bucket and the prefix, for messages.
    pub fn url(&self) -> String {
        self.client.url()
    }

    /// The same where clients find it.
    pub fn public_url(&self) -> String {
        self.client.public_url()
    }

    /// Makes the next request read the keys and the certificate files again.
    pub fn refresh(&self) {
        self.client.refresh();
    }

    /// The object from offset `from` to before `to`, or to its end. A body that breaks is not requested again here.
    ///
    /// # Errors
    /// [`UpstreamError`]; [`UpstreamError::is_not_found`] if there is no such object.
    pub fn get(&self, key: &str, from: u64, to: Option<u64>) -> Result<Object, UpstreamError> {
        objects::get(&self.client, key, from, to)
    }

    /// A small object of at most `limit_bytes`.
    ///
    /// # Errors
    /// As [`ObjectStore::get`]; also if the object is larger.
    pub fn read(&self, key: &str, limit_bytes: u64) -> Result<ReadObject, UpstreamError> {
        objects::read(&self.client, key, limit_bytes)
    }

    /// As [`ObjectStore::read`]; `None` if there is no such object.
    ///
    /// # Errors
    /// As [`ObjectStore::read`], except for a missing object.
    pub fn find(&self, key: &str, limit_bytes: u64) -> Result<Option<ReadObject>, UpstreamError> {
        match self.read(key, limit_bytes) {
            Ok(read) => Ok(Some(read)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The size and the age of an object.
    ///
    /// # Errors
    /// As [`ObjectStore::get`]. HEAD has no error code, so a missing bucket looks like a missing object.
    pub fn head(&self, key: &str) -> Result<ObjectHead, UpstreamError> {
        objects::head(&self.client, key)
    }

    /// Writes a small object.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub fn put(&self, key: &str, bytes: &[u8], condition: Condition) -> Result<Put, UpstreamError> {
        objects::put(&self.client, key, bytes, &condition)
    }

    /// Uploads content: with one request up to `part_bytes`, otherwise in parts. An upload in parts continues where an
    /// earlier one of the same key has ended.
    ///
    /// # Errors
    /// [`UpstreamError`]. The parts that were sent stay in the store, for the next upload.
    pub fn upload(
        &self,
        key: &str,
        content: &dyn UploadSource,
        condition: Condition,
    ) -> Result<Put, UpstreamError> {
        match content.size() > self.settings().part_bytes {
            true => multipart::upload(&self.client, key, content, &condition),
            false => objects::upload(&self.client, key, content, &condition),
        }
    }

    /// Deletes objects. Returns how many are gone, including those that did not exist.
    ///
    /// # Errors
    /// [`UpstreamError`]: the first failure. Other objects may have been deleted.
    pub fn delete(&self, keys: &[String]) -> Result<usize, UpstreamError> {
        objects::delete(&self.client, keys)
    }

    /// A page of the objects whose keys begin with `prefix`. `after` is [`Page::next`] of the previous page.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page, UpstreamError> {
        objects::list(&self.client, prefix, after)
    }

    /// All pages of [`ObjectStore::list`]. For prefixes with few objects.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub fn list_all(&self, prefix: &str) -> Result<Vec<ListedObject>, UpstreamError> {
        let (mut objects, mut after) = (Vec::new(), None);
        loop {
            let page = self.list(prefix, after.as_deref())?;
            objects.extend(page.objects);
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(objects),
            }
        }
    }

    /// Finds out whether the bucket can be read, and changes nothing: looks for an object that need not exist.
    ///
    /// # Errors
    /// [`UpstreamError`] if it cannot.
    pub fn reach(&self) -> Result<(), UpstreamError> {
        // HEAD has no error code, so a missing bucket would look like a missing object.
        match self.get(LOOKED_FOR, 0, None) {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// Tries what the store supports, with the object `probe/<name>`, which is then deleted. Two processes must not use
    /// one name at the same time. Takes seconds at most. Conditions and checksums that the store refuses are left out
    /// from then on.
    pub fn probe(&self, name: &str) -> Probe {
        probe::probe(&self.client, name)
    }

    /// A URL at [`ObjectStoreSettings::public_endpoint`] from which anyone can get the object, for at most seven days.
    /// Never waits: `None` if no request has fetched keys yet, or if they have expired. The URL ends to work with the keys.
    pub fn presigned_get(&self, key: &str, expires: Duration) -> Option<String> {
        self.client.presigned_get(key, expires)
    }
}
