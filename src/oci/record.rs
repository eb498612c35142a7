//! What is recorded of a tag and of a repository's manifest, and the names of blobs and records: paths below the cache
//! directory, and keys in a bucket.
//!
//! Path components come from validated names only. None of them can be `..`, contain `/` or begin with `_`, so `_tags`
//! and `_manifests` cannot collide with a component of a repository.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::{Digest, ImageName, MediaType, Tag};

/// The directory of a repository's tags.
pub const TAGS: &str = "_tags";
/// The directory of a repository's manifests.
pub const MANIFESTS: &str = "_manifests";
/// The directory of all records.
pub const REFS: &str = "refs";
/// The directory of all blobs.
pub const BLOBS: &str = "blobs";

const SECONDS_OF_A_DAY: u64 = 86_400;

/// The path of a blob.
pub fn blob_path(digest: &Digest) -> String {
    format!("{BLOBS}/{}/{}", digest.algorithm().as_str(), digest.hex())
}

/// The path of a repository's record of a manifest.
pub fn manifest_path(name: &ImageName, digest: &Digest) -> String {
    let directory = repository_path(name);
    format!("{directory}/{MANIFESTS}/{}/{}", digest.algorithm().as_str(), digest.hex())
}

/// The path of a tag.
pub fn tag_path(name: &ImageName, tag: &Tag) -> String {
    format!("{}/{TAGS}/{tag}", repository_path(name))
}

/// The path of a repository's records.
pub fn repository_path(name: &ImageName) -> String {
    format!("{REFS}/{}/{}", name.upstream, name.repository)
}

/// What the path of a blob or a record names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredPath {
    /// A blob.
    Blob(Digest),
    /// A repository's record of a manifest.
    Manifest(ImageName, Digest),
    /// A tag.
    Tag(ImageName, Tag),
}

impl StoredPath {
    /// Parses a path; `None` if Larder gives no such path to a blob or a record.
    pub fn parse(path: &str) -> Option<StoredPath> {
        let digest = |text: &str| {
            let (algorithm, hex) = text.split_once('/')?;
            format!("{algorithm}:{hex}").parse().ok()
        };
        let (directory, rest) = path.split_once('/')?;
        if directory == BLOBS {
            return digest(rest).map(StoredPath::Blob);
        }
        let (upstream, rest) = rest.split_once('/').filter(|_| directory == REFS)?;
        let name = |repository: &str| {
            Some(ImageName::new(upstream.parse().ok()?, repository.parse().ok()?))
        };
        if let Some((repository, tag)) = rest.split_once(&format!("/{TAGS}/")) {
            return Some(StoredPath::Tag(name(repository)?, tag.parse().ok()?));
        }
        let (repository, rest) = rest.split_once(&format!("/{MANIFESTS}/"))?;
        Some(StoredPath::Manifest(name(repository)?, digest(rest)?))
    }
}

/// A tag as of its last check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagRecord {
    /// The manifest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: MediaType,
    /// Its size in bytes.
    pub size: u64,
    /// When the tag was first seen with this manifest.
    pub fetched: SystemTime,
    /// When upstream last confirmed it.
    pub checked: SystemTime,
    /// When upstream was first seen without the tag; `None` if upstream has it.
    pub gone: Option<SystemTime>,
}

/// A repository's record of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestRecord {
    /// Its media type.
    pub media_type: MediaType,
    /// Its size in bytes.
    pub size: u64,
    /// When it was fetched.
    pub fetched: SystemTime,
}

/// A record as JSON.
pub trait Record: Sized {
    /// The form in which it is stored.
    type Wire: Serialize + for<'de> Deserialize<'de>;

    /// The form in which it is stored.
    fn wire(&self) -> Self::Wire;

    /// The record; `None` if a field has an invalid value.
    fn accept(wire: Self::Wire) -> Option<Self>;

    /// Parses JSON; `None` if it is not such a record.
    fn from_json(json: &[u8]) -> Option<Self> {
        serde_json::from_slice(json).ok().and_then(Self::accept)
    }
}

/// A [`TagRecord`] as JSON.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TagWire {
    digest: String,
    media_type: String,
    size: u64,
    fetched: u64,
    checked: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gone: Option<u64>,
}

/// A [`ManifestRecord`] as JSON.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ManifestWire {
    media_type: String,
    size: u64,
    fetched: u64,
}

impl TagRecord {
    /// Whether it differs from an earlier record only in the time of its confirmation, on the same day (UTC).
    pub fn is_hardly_newer(&self, before: &TagRecord) -> bool {
        let day = |time: SystemTime| to_seconds(time) / SECONDS_OF_A_DAY;
        *before == TagRecord { checked: before.checked, ..self.clone() }
            && day(before.checked) == day(self.checked)
    }
}

impl Record for TagRecord {
    type Wire = TagWire;

    fn wire(&self) -> TagWire {
        TagWire {
            digest: self.digest.to_string(),
            media_type: self.media_type.to_string(),
            size: self.size,
            fetched: to_seconds(self.fetched),
            checked: to_seconds(self.checked),
            gone: self.gone.map(to_seconds),
        }
    }

    fn accept(wire: TagWire) -> Option<TagRecord> {
        Some(TagRecord {
            digest: wire.digest.parse().ok()?,
            media_type: MediaType::parse(&wire.media_type)?,
            size: wire.size,
            fetched: from_seconds(wire.fetched)?,
            checked: from_seconds(wire.checked)?,
            gone: wire.gone.and_then(from_seconds),
        })
    }
}

impl Record for ManifestRecord {
    type Wire = ManifestWire;

    fn wire(&self) -> ManifestWire {
        let fetched = to_seconds(self.fetched);
        ManifestWire { media_type: self.media_type.to_string(), size: self.size, fetched }
    }

    fn accept(wire: ManifestWire) -> Option<ManifestRecord> {
        Some(ManifestRecord {
            media_type: MediaType::parse(&wire.media_type)?,
            size: wire.size,
            fetched: from_seconds(wire.fetched)?,
        })
    }
}

/// The seconds from 1970 to a time; 0 for an earlier one.
pub fn to_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The time after so many seconds since 1970; `None` if it cannot be represented.
pub fn from_seconds(seconds: u64) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(checked: u64) -> TagRecord {
        let at = |seconds| from_seconds(seconds).unwrap();
        TagRecord {
            digest: format!("sha256:{}", "a".repeat(64)).parse().unwrap(),
            media_type: MediaType::parse(MediaType::OCI_INDEX).unwrap(),
            size: 5,
            fetched: at(7),
            checked: at(checked),
            gone: None,
        }
    }

    #[test]
    fn paths_and_records() {
        let name: ImageName =
            ImageName::new("reg.test:5000".parse().unwrap(), "a/b".parse().unwrap());
        let digest = record(8).digest;
        let hex = digest.hex().to_owned();
        assert_eq!(blob_path(&digest), format!("blobs/sha256/{hex}"));
        assert_eq!(
            manifest_path(&name, &digest),
            format!("refs/reg.test:5000/a/b/_manifests/sha256/{hex}")
        );
        assert_eq!(tag_path(&name, &"v1".parse().unwrap()), "refs/reg.test:5000/a/b/_tags/v1");
        for path in [
            StoredPath::Blob(digest),
            StoredPath::Manifest(name.clone(), digest),
            StoredPath::Tag(name.clone(), "v1".parse().unwrap()),
        ] {
            let text = match &path {
                StoredPath::Blob(digest) => blob_path(digest),
                StoredPath::Manifest(name, digest) => manifest_path(name, digest),
                StoredPath::Tag(name, tag) => tag_path(name, tag),
            };
            assert_eq!(StoredPath::parse(&text), Some(path), "{text}");
        }
        for text in ["", "blobs", "blobs/sha256/x", "refs/a.io/b", "refs/a.io/_tags/v1", "probe/x"]
        {
            assert_eq!(StoredPath::parse(text), None, "{text}");
        }
        let json = serde_json::to_vec(&record(8).wire()).unwrap();
        assert_eq!(TagRecord::from_json(&json), Some(record(8)));
        for json in
            ["", "{}", r#"{"digest":"x","mediaType":"a/b","size":1,"fetched":1,"checked":1}"#]
        {
            assert_eq!(TagRecord::from_json(json.as_bytes()), None, "{json}");
        }
    }

    #[test]
    fn record_is_hardly_newer_on_the_same_day_only() {
        let (now, later) = (record(86_400), record(2 * 86_400 - 1));
        assert!(later.is_hardly_newer(&now));
        assert!(!record(2 * 86_400).is_hardly_newer(&now));
        assert!(!TagRecord { gone: Some(now.checked), ..later.clone() }.is_hardly_newer(&now));
        assert!(!TagRecord { size: 6, ..later }.is_hardly_newer(&now));
    }
}
