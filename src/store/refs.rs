//! Records: which tag is which manifest, and which repository has which manifest.
//!
//! One small JSON file each, replaced as a whole. A record that cannot be read is a miss.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Store;
use super::error::StoreError;
use super::layout::digest_of;
use super::lock::FileLock;
use crate::oci::{Algorithm, Digest, ImageName, MediaType, Tag};

/// Access times are this coarse: a name that is pulled all the time costs one `utimensat` a minute.
/// What is decided by them (eviction, pruning) thinks in hours.
const ACCESS_RESOLUTION: Duration = Duration::from_secs(60);
/// The largest record read.
const RECORD_BYTES_MAX: u64 = 1024 * 1024;

/// Whether looking at a record counts as use of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// A client pulls it, at this time.
    Pull(SystemTime),
    /// Revalidation, listing, pruning: the image is no more in use than before.
    Look,
}

/// What a tag was when it was last asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagRecord {
    /// The manifest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: MediaType,
    /// Its size in bytes.
    pub size: u64,
    /// When the tag was first seen to be this manifest.
    pub fetched: SystemTime,
    /// When upstream last confirmed it.
    pub checked: SystemTime,
    /// When upstream was first seen not to have the tag any more; nothing if it has it.
    pub gone: Option<SystemTime>,
}

/// That a repository has a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestRecord {
    /// Its media type.
    pub media_type: MediaType,
    /// Its size in bytes.
    pub size: u64,
    /// When it was fetched.
    pub fetched: SystemTime,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TagWire {
    digest: String,
    media_type: String,
    size: u64,
    fetched: u64,
    checked: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gone: Option<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ManifestWire {
    media_type: String,
    size: u64,
    fetched: u64,
}

impl Store {
    /// What `tag` is, or `None` if it was never pulled or its record is damaged. For callers that lose nothing
    /// by a miss.
    pub fn tag(&self, name: &ImageName, tag: &Tag, access: Access) -> Option<TagRecord> {
        self.find_tag(name, tag, access).unwrap_or_default()
    }

    /// As [`Store::tag`].
    ///
    /// # Errors
    /// [`StoreError::Read`] if it is not known what the tag is.
    pub fn find_tag(
        &self,
        name: &ImageName,
        tag: &Tag,
        access: Access,
    ) -> Result<Option<TagRecord>, StoreError> {
        let path = self.inner.layout.tag(name, tag);
        let Some(wire) = self.find_record::<TagWire>(&path, access)? else { return Ok(None) };
        Ok(wire.accept().or_else(|| self.damaged(&path, "a field has no valid value")))
    }

    /// Writes what `tag` is. Its manifest must be in the store, and is recorded for the repository if it
    /// is not yet, or no more. `index.json` becomes outdated only if the tag is another manifest than
    /// before.
    ///
    /// # Errors
    /// [`StoreError`] if the disk refuses.
    pub fn put_tag(&self, name: &ImageName, tag: &Tag, is: &TagRecord) -> Result<(), StoreError> {
        if !self.is_writable() {
            return Err(StoreError::ReadOnly { root: self.root().to_owned() });
        }
        let lock = self.commit_lock()?;
        let is_recorded = self.manifest(name, &is.digest, Access::Look).is_some();
        if !is_recorded && self.blob(&is.digest, Some(is.size)).is_some() {
            let TagRecord { media_type, size, fetched, .. } = is.clone();
            let record = ManifestRecord { media_type, size, fetched };
            self.put_manifest_under(&lock, name, &is.digest, &record)?;
        }
        let wire = TagWire {
            digest: is.digest.to_string(),
            media_type: is.media_type.to_string(),
            size: is.size,
            fetched: to_seconds(is.fetched),
            checked: to_seconds(is.checked),
            gone: is.gone.map(to_seconds),
        };
        let is_other = self.tag(name, tag, Access::Look).is_none_or(|was| was.digest != is.digest);
        self.put_record(&self.inner.layout.tag(name, tag), &wire)?;
        if is_other {
            self.mark_index_outdated();
        }
        Ok(())
    }

    /// Forgets a tag. What it pointed at stays, for whoever knows the digest.
    ///
    /// # Errors
    /// [`StoreError`] if the disk refuses.
    pub fn remove_tag(&self, name: &ImageName, tag: &Tag) -> Result<(), StoreError> {
        let path = self.inner.layout.tag(name, tag);
        match fs::remove_file(&path) {
            Ok(()) => self.mark_index_outdated(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(StoreError::write(&path, error)),
        }
        Ok(())
    }

    /// Whether this repository has the manifest, and of what type it is. For callers that lose nothing by a
    /// miss.
    pub fn manifest(
        &self,
        name: &ImageName,
        digest: &Digest,
        access: Access,
    ) -> Option<ManifestRecord> {
        self.find_manifest(name, digest, access).unwrap_or_default()
    }

    /// As [`Store::manifest`].
    ///
    /// # Errors
    /// [`StoreError::Read`] if it is not known whether it has.
    pub fn find_manifest(
        &self,
        name: &ImageName,
        digest: &Digest,
        access: Access,
    ) -> Result<Option<ManifestRecord>, StoreError> {
        let path = self.inner.layout.manifest(name, digest);
        let Some(wire) = self.find_record::<ManifestWire>(&path, access)? else { return Ok(None) };
        Ok(wire.accept().or_else(|| self.damaged(&path, "a field has no valid value")))
    }

    /// Writes that this repository has the manifest, which must be in the store. What it names counts as
    /// new from then on, so that no sweep that looked at the names before takes it.
    ///
    /// # Errors
    /// [`StoreError`] if the disk refuses.
    pub fn put_manifest(
        &self,
        name: &ImageName,
        digest: &Digest,
        is: &ManifestRecord,
    ) -> Result<(), StoreError> {
        if !self.is_writable() {
            return Err(StoreError::ReadOnly { root: self.root().to_owned() });
        }
        self.put_manifest_under(&self.commit_lock()?, name, digest, is)
    }

    /// [`Store::put_manifest`] for a caller that has the lock: taking it once more would wait at the gate for a
    /// removal that waits for us.
    ///
    /// # Errors
    /// [`StoreError`] if the disk refuses.
    pub fn put_manifest_under(
        &self,
        _lock: &CommitLock,
        name: &ImageName,
        digest: &Digest,
        is: &ManifestRecord,
    ) -> Result<(), StoreError> {
        let wire = ManifestWire {
            media_type: is.media_type.to_string(),
            size: is.size,
            fetched: to_seconds(is.fetched),
        };
        self.renew_content(digest, is);
        self.put_record(&self.inner.layout.manifest(name, digest), &wire)
    }

    /// Whether the repository has a tag or a manifest.
    ///
    /// # Errors
    /// [`StoreError::Read`] if that is not known.
    pub fn has_images(&self, name: &ImageName) -> Result<bool, StoreError> {
        let layout = &self.inner.layout;
        let of_algorithms = Algorithm::ALL.map(|algorithm| layout.manifests(name, algorithm));
        for directory in of_algorithms.into_iter().chain([layout.tags(name)]) {
            let listed =
                self.inner.faults.check(&directory).and_then(|()| fs::read_dir(&directory));
            // One entry is enough.
            match listed.and_then(|mut entries| entries.next().transpose()) {
                Ok(Some(_)) => return Ok(true),
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    self.failed_to_read::<()>(&directory, error)?;
                }
            }
        }
        Ok(false)
    }

    /// The manifests that this repository has, as far as they can be read.
    pub fn manifests(&self, name: &ImageName) -> Vec<Digest> {
        self.find_manifests(name).unwrap_or_default()
    }

    /// As [`Store::manifests`].
    ///
    /// # Errors
    /// [`StoreError::Read`] if it is not known which they are.
    pub fn find_manifests(&self, name: &ImageName) -> Result<Vec<Digest>, StoreError> {
        let mut found = Vec::new();
        for algorithm in Algorithm::ALL {
            let names = self.find_names_in(&self.inner.layout.manifests(name, algorithm))?;
            found.extend(names.iter().filter_map(|hex| digest_of(algorithm, hex)));
        }
        Ok(found)
    }

    /// As [`Store::tags`].
    ///
    /// # Errors
    /// [`StoreError::Read`] if it is not known which they are.
    pub fn find_tags(&self, name: &ImageName) -> Result<Vec<Tag>, StoreError> {
        let names = self.find_names_in(&self.inner.layout.tags(name))?.into_iter();
        let mut tags: Vec<Tag> = names.filter_map(|name| name.parse().ok()).collect();
        tags.sort();
        Ok(tags)
    }

    /// The tags of a repository that are in the cache, sorted, as far as they can be read.
    pub fn tags(&self, name: &ImageName) -> Vec<Tag> {
        self.find_tags(name).unwrap_or_default()
    }

    /// The lock under which a manifest and its names are written, so that a sweep of unreferenced
    /// blobs sees all of them or none. Released by dropping it; held for disk work only, and never twice by
    /// one thread, except below a [`Store::bundle_lock`].
    ///
    /// # Errors
    /// [`StoreError`] if the lock file cannot be opened.
    pub fn commit_lock(&self) -> Result<CommitLock, StoreError> {
        let (path, gate) = (self.inner.layout.sweep_lock(), self.inner.layout.sweep_gate());
        // A removal that waits holds the gate; then it is its turn.
        let passed = self.inner.layout.open_lock(&gate).and_then(FileLock::shared);
        drop(passed.map_err(|error| StoreError::write(&gate, error))?);
        let lock = self.inner.layout.open_lock(&path).and_then(FileLock::shared);
        let lock = lock.map_err(|error| StoreError::write(&path, error))?;
        Ok(CommitLock { _lock: lock })
    }

    /// The same for as long as an import or an export takes: nothing is removed meanwhile, and a removal is
    /// told why.
    ///
    /// # Errors
    /// As [`Store::commit_lock`].
    pub fn bundle_lock(&self) -> Result<BundleLock, StoreError> {
        let path = self.inner.layout.bundle_lock();
        let bundle = self.inner.layout.open_lock(&path).and_then(FileLock::shared);
        let bundle = bundle.map_err(|error| StoreError::write(&path, error))?;
        Ok(BundleLock { _commit: self.commit_lock()?, _bundle: bundle })
    }

    pub(super) fn record<T: DeserializeOwned>(&self, path: &Path, access: Access) -> Option<T> {
        self.find_record(path, access).unwrap_or_default()
    }

    fn find_record<T: DeserializeOwned>(
        &self,
        path: &Path,
        access: Access,
    ) -> Result<Option<T>, StoreError> {
        let Some((file, _)) = self.open_file(path)? else { return Ok(None) };
        let mut bytes = Vec::new();
        if let Err(error) = (&file).take(RECORD_BYTES_MAX).read_to_end(&mut bytes) {
            return self.failed_to_read(path, error);
        }
        Ok(match serde_json::from_slice(&bytes) {
            Ok(record) => {
                if let Access::Pull(now) = access {
                    touch(&file, now);
                }
                Some(record)
            }
            Err(error) => self.damaged(path, &error.to_string()),
        })
    }

    fn put_record(&self, path: &Path, record: &impl Serialize) -> Result<(), StoreError> {
        if !self.is_writable() {
            return Err(StoreError::ReadOnly { root: self.root().to_owned() });
        }
        let json = serde_json::to_vec(record)
            .map_err(|error| StoreError::write(path, io::Error::other(error)))?;
        self.inner.replace(path, &json)
    }
}

/// See [`Store::commit_lock`].
#[derive(Debug)]
pub struct CommitLock {
    _lock: FileLock,
}

/// See [`Store::bundle_lock`].
#[derive(Debug)]
pub struct BundleLock {
    _commit: CommitLock,
    _bundle: FileLock,
}

impl TagWire {
    fn accept(&self) -> Option<TagRecord> {
        Some(TagRecord {
            digest: self.digest.parse().ok()?,
            media_type: MediaType::parse(&self.media_type)?,
            size: self.size,
            fetched: from_seconds(self.fetched)?,
            checked: from_seconds(self.checked)?,
            gone: self.gone.and_then(from_seconds),
        })
    }
}

impl ManifestWire {
    fn accept(&self) -> Option<ManifestRecord> {
        Some(ManifestRecord {
            media_type: MediaType::parse(&self.media_type)?,
            size: self.size,
            fetched: from_seconds(self.fetched)?,
        })
    }
}

/// Notes a use, at most once per [`ACCESS_RESOLUTION`]. A read-only directory keeps no access times,
/// and that is all it costs.
fn touch(file: &File, now: SystemTime) {
    let last = file.metadata().and_then(|metadata| metadata.modified()).unwrap_or(now);
    if now.duration_since(last).is_ok_and(|age| age >= ACCESS_RESOLUTION) {
        let _ = file.set_modified(now);
    }
}

pub(super) fn to_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

pub(super) fn from_seconds(seconds: u64) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}
