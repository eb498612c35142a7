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
    /// The manifests that it referred to before, the latest first; at most [`PREVIOUS_MAX`].
    pub previous: Vec<PreviousManifest>,
    /// What upstream has now, if the tag has moved there and that is not accepted here.
    pub held: Option<HeldManifest>,
}

/// How many former manifests of a tag are recorded. A tag that moves daily then shows more than a week.
pub(super) const PREVIOUS_MAX: usize = 10;

/// A manifest that a tag referred to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreviousManifest {
    /// The manifest.
    pub digest: Digest,
    /// When the tag was first seen with it.
    pub fetched: SystemTime,
}

/// A manifest to which a tag has moved upstream, while the previous one is still served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldManifest {
    /// The manifest.
    pub digest: Digest,
    /// When upstream was first seen with it.
    pub since: SystemTime,
    /// What an operator has decided.
    pub verdict: Verdict,
}

/// What an operator has decided about a tag that has moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// Nothing: it is accepted when it has been observed for long enough.
    #[default]
    Waiting,
    /// It is accepted at the next check.
    Accepted,
    /// It is never accepted. If the tag moves again, that is another move.
    Rejected,
}

impl Verdict {
    /// The word for people and for JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Waiting => "waiting",
            Verdict::Accepted => "accepted",
            Verdict::Rejected => "rejected",
        }
    }
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
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    previous: Vec<PreviousWire>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    held: Option<HeldWire>,
}

#[derive(Serialize, Deserialize)]
struct PreviousWire {
    digest: String,
    fetched: u64,
}

#[derive(Serialize, Deserialize)]
struct HeldWire {
    digest: String,
    since: u64,
    #[serde(default)]
    verdict: Verdict,
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
    /// A tag without a history.
    pub fn new(
        digest: Digest,
        media_type: MediaType,
        size: u64,
        fetched: SystemTime,
        checked: SystemTime,
    ) -> TagRecord {
        let (gone, previous, held) = (None, Vec::new(), None);
        TagRecord { digest, media_type, size, fetched, checked, gone, previous, held }
    }

    /// Whether it differs from an earlier record only in the time of its confirmation, on the same day (UTC).
    pub fn is_hardly_newer(&self, before: &TagRecord) -> bool {
        let day = |time: SystemTime| to_seconds(time) / SECONDS_OF_A_DAY;
        *before == TagRecord { checked: before.checked, ..self.clone() }
            && day(before.checked) == day(self.checked)
    }

    /// The record that replaces `before`: with the history of the tag, and with an operator's decision that was made
    /// meanwhile.
    #[must_use]
    pub fn after(&self, before: &TagRecord) -> TagRecord {
        let mut previous = before.previous.clone();
        if before.digest != self.digest {
            let former = PreviousManifest { digest: before.digest, fetched: before.fetched };
            previous.insert(0, former);
            previous.truncate(PREVIOUS_MAX);
        }
        let mut held = self.held.clone();
        if let (Some(held), Some(earlier)) = (&mut held, &before.held)
            && held.digest == earlier.digest
            && held.verdict == Verdict::Waiting
        {
            held.verdict = earlier.verdict;
        }
        TagRecord { previous, held, ..self.clone() }
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
            previous: self.previous.iter().map(PreviousManifest::wire).collect(),
            held: self.held.as_ref().map(HeldManifest::wire),
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
            // What cannot be understood of the history is left out: the tag itself is what matters.
            previous: wire
                .previous
                .iter()
                .filter_map(PreviousManifest::accept)
                .take(PREVIOUS_MAX)
                .collect(),
            held: wire.held.as_ref().and_then(HeldManifest::accept),
        })
    }
}

impl PreviousManifest {
    fn wire(&self) -> PreviousWire {
        PreviousWire { digest: self.digest.to_string(), fetched: to_seconds(self.fetched) }
    }

    fn accept(wire: &PreviousWire) -> Option<PreviousManifest> {
        let (digest, fetched) = (wire.digest.parse().ok()?, from_seconds(wire.fetched)?);
        Some(PreviousManifest { digest, fetched })
    }
}

impl HeldManifest {
    fn wire(&self) -> HeldWire {
        let (digest, since) = (self.digest.to_string(), to_seconds(self.since));
        HeldWire { digest, since, verdict: self.verdict }
    }

    fn accept(wire: &HeldWire) -> Option<HeldManifest> {
        let (digest, since) = (wire.digest.parse().ok()?, from_seconds(wire.since)?);
        Some(HeldManifest { digest, since, verdict: wire.verdict })
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
        let media_type = MediaType::parse(MediaType::OCI_INDEX).unwrap();
        TagRecord::new(digest_of("a"), media_type, 5, at(7), at(checked))
    }

    fn digest_of(letter: &str) -> Digest {
        format!("sha256:{}", letter.repeat(64)).parse().unwrap()
    }

    fn held(letter: &str, verdict: Verdict) -> HeldManifest {
        HeldManifest { digest: digest_of(letter), since: from_seconds(9).unwrap(), verdict }
    }

    #[test]
    fn a_tag_that_moves_keeps_its_history() {
        let mut record = record(1);
        for number in 0..PREVIOUS_MAX + 3 {
            let letter = ["b", "c", "d", "e", "f"][number % 5];
            let next = TagRecord { digest: digest_of(letter), ..self::record(2) };
            record = next.after(&record);
            assert_eq!(record.previous.len(), (number + 1).min(PREVIOUS_MAX));
        }
        let letters: Vec<String> =
            record.previous.iter().map(|each| each.digest.hex()[..1].to_owned()).collect();
        assert_eq!(letters.join(""), "cbfedcbfed", "the latest first");
        let confirmed = self::record(3);
        let same = TagRecord { digest: record.digest, ..confirmed }.after(&record);
        assert_eq!(same.previous, record.previous, "a confirmation is not a move");
        let json = serde_json::to_vec(&same.wire()).unwrap();
        assert_eq!(TagRecord::from_json(&json), Some(same));
    }

    #[test]
    fn an_operators_decision_survives_a_check_that_began_before_it() {
        let with = |letter, verdict| TagRecord { held: Some(held(letter, verdict)), ..record(1) };
        for (before, is, after) in [
            (with("b", Verdict::Rejected), with("b", Verdict::Waiting), Some(Verdict::Rejected)),
            (with("b", Verdict::Accepted), with("b", Verdict::Waiting), Some(Verdict::Accepted)),
            (with("b", Verdict::Rejected), with("b", Verdict::Accepted), Some(Verdict::Accepted)),
            (with("b", Verdict::Rejected), with("c", Verdict::Waiting), Some(Verdict::Waiting)),
            (with("b", Verdict::Rejected), record(1), None),
        ] {
            let record = is.after(&before);
            assert_eq!(record.held.as_ref().map(|held| held.verdict), after);
            let json = serde_json::to_vec(&record.wire()).unwrap();
            assert_eq!(TagRecord::from_json(&json), Some(record));
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
