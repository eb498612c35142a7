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
    /// The manifests that it referred to before, the latest first; at most ten.
    pub previous: Vec<PreviousManifest>,
    /// What upstream has now, if the tag has moved there and that is not accepted here.
    pub held: Option<HeldManifest>,
    /// The manifests that an operator has rejected for it, the latest first; at most ten.
    pub rejected: Vec<Digest>,
    /// The manifests that were held for it until it moved elsewhere, the latest first; at most ten.
    pub abandoned: Vec<Digest>,
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
    pub decision: Decision,
}

/// What an operator has decided about a tag that has moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Decision {
    /// Nothing: it is accepted when it has been observed for long enough.
    #[default]
    Waiting,
    /// It is accepted at the next check.
    Accepted,
    /// It is never accepted. If the tag moves again, that is another move.
    Rejected,
}

impl Decision {
    /// The word for people and for JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Decision::Waiting => "waiting",
            Decision::Accepted => "accepted",
            Decision::Rejected => "rejected",
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
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    rejected: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    abandoned: Vec<String>,
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
    decision: String,
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
        TagRecord {
            digest,
            media_type,
            size,
            fetched,
            checked,
            gone: None,
            previous: Vec::new(),
            held: None,
            rejected: Vec::new(),
            abandoned: Vec::new(),
        }
    }

    /// The manifests to which the tag has moved upstream and that were not accepted here.
    pub fn unaccepted(&self) -> impl Iterator<Item = Digest> {
        let held = self.held.iter().filter(|held| held.decision != Decision::Accepted);
        let held = held.map(|held| held.digest);
        held.chain(self.rejected.iter().copied()).chain(self.abandoned.iter().copied())
    }

    /// Whether it differs from an earlier record only in the time of its confirmation, on the same day (UTC).
    pub fn is_hardly_newer(&self, before: &TagRecord) -> bool {
        let day = |time: SystemTime| to_seconds(time) / SECONDS_OF_A_DAY;
        *before == TagRecord { checked: before.checked, ..self.clone() }
            && day(before.checked) == day(self.checked)
    }

    /// The record that replaces `before`: with the history of the tag, and with an operator's decisions that were made
    /// meanwhile.
    #[must_use]
    pub fn after(&self, before: &TagRecord) -> TagRecord {
        let mut is = TagRecord { previous: before.previous.clone(), ..self.clone() };
        if before.digest != is.digest {
            let former = PreviousManifest { digest: before.digest, fetched: before.fetched };
            is.previous.insert(0, former);
            is.previous.truncate(PREVIOUS_MAX);
        }
        if let (Some(held), Some(earlier)) = (&mut is.held, &before.held)
            && held.digest == earlier.digest
            && held.decision == Decision::Waiting
        {
            held.decision = earlier.decision;
            if held.decision == Decision::Accepted {
                // The next pull checks the tag.
                is.checked = before.checked;
            }
        }
        is.note_rejections(&before.rejected);
        is.note_abandoned(before);
        is
    }

    /// Adds what was held before and is not any more, and removes what is held or was accepted.
    fn note_abandoned(&mut self, before: &TagRecord) {
        let (is, held) = (self.digest, self.held.as_ref().map(|held| held.digest));
        let was_held = before.held.iter().map(|held| held.digest);
        self.abandoned = was_held.chain(before.abandoned.iter().copied()).collect();
        let mut seen = Vec::new();
        self.abandoned.retain(|digest| {
            let is_kept = *digest != is && Some(*digest) != held && !seen.contains(digest);
            seen.push(*digest);
            is_kept
        });
        self.abandoned.truncate(PREVIOUS_MAX);
    }

    /// Adds what an operator has rejected, now and before, and removes what was accepted.
    fn note_rejections(&mut self, before: &[Digest]) {
        let held = self.held.as_ref().map(|held| (held.digest, held.decision));
        if let Some((digest, Decision::Rejected)) = held {
            self.rejected.insert(0, digest);
        }
        self.rejected.extend(before);
        let mut seen = Vec::new();
        self.rejected.retain(|digest| {
            let is_kept = held != Some((*digest, Decision::Accepted)) && !seen.contains(digest);
            seen.push(*digest);
            is_kept
        });
        self.rejected.truncate(PREVIOUS_MAX);
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
            rejected: self.rejected.iter().map(Digest::to_string).collect(),
            abandoned: self.abandoned.iter().map(Digest::to_string).collect(),
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
            rejected: digests(&wire.rejected),
            abandoned: digests(&wire.abandoned),
        })
    }
}

/// The valid ones among at most [`PREVIOUS_MAX`] digests.
fn digests(texts: &[String]) -> Vec<Digest> {
    texts.iter().filter_map(|text| text.parse().ok()).take(PREVIOUS_MAX).collect()
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
        HeldWire { digest, since, decision: self.decision.as_str().to_owned() }
    }

    fn accept(wire: &HeldWire) -> Option<HeldManifest> {
        let (digest, since) = (wire.digest.parse().ok()?, from_seconds(wire.since)?);
        let all = [Decision::Waiting, Decision::Accepted, Decision::Rejected];
        let decision = all.into_iter().find(|each| each.as_str() == wire.decision);
        // A later version may know other decisions; until one is made here, the manifest is held.
        Some(HeldManifest { digest, since, decision: decision.unwrap_or_default() })
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

    fn held(letter: &str, decision: Decision) -> HeldManifest {
        HeldManifest { digest: digest_of(letter), since: from_seconds(9).unwrap(), decision }
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
        let with = |letter, decision| TagRecord { held: Some(held(letter, decision)), ..record(1) };
        for (before, is, after) in [
            (with("b", Decision::Rejected), with("b", Decision::Waiting), Some(Decision::Rejected)),
            (with("b", Decision::Accepted), with("b", Decision::Waiting), Some(Decision::Accepted)),
            (
                with("b", Decision::Rejected),
                with("b", Decision::Accepted),
                Some(Decision::Accepted),
            ),
            (with("b", Decision::Rejected), with("c", Decision::Waiting), Some(Decision::Waiting)),
            (with("b", Decision::Rejected), record(1), None),
        ] {
            let record = is.after(&before);
            assert_eq!(record.held.as_ref().map(|held| held.decision), after);
            let json = serde_json::to_vec(&record.wire()).unwrap();
            assert_eq!(TagRecord::from_json(&json), Some(record));
        }
    }

    #[test]
    fn manifests_that_were_not_accepted_are_known_until_they_are() {
        let hex = |record: &TagRecord| -> String {
            record.unaccepted().map(|digest| digest.hex()[..1].to_owned()).collect()
        };
        let with = |letter, decision| TagRecord { held: Some(held(letter, decision)), ..record(1) };
        let waiting = with("b", Decision::Waiting);
        assert_eq!(hex(&waiting), "b");
        let moved_again = with("c", Decision::Waiting).after(&waiting);
        assert_eq!(hex(&moved_again), "cb");
        let moved_back = record(1).after(&moved_again);
        assert_eq!(hex(&moved_back), "cb");
        let json = serde_json::to_vec(&moved_back.wire()).unwrap();
        assert_eq!(TagRecord::from_json(&json), Some(moved_back.clone()));
        assert_eq!(hex(&with("b", Decision::Accepted).after(&moved_back)), "c");
        let accepted = TagRecord { digest: digest_of("c"), ..record(1) };
        assert_eq!(hex(&accepted.after(&moved_back)), "b");
    }

    #[test]
    fn a_rejected_manifest_stays_rejected_until_it_is_accepted() {
        let with = |letter, decision| TagRecord { held: Some(held(letter, decision)), ..record(1) };
        let mut is = with("b", Decision::Rejected).after(&record(1));
        // The tag moves on, back, and on again.
        is = with("c", Decision::Waiting).after(&is);
        is = record(2).after(&is);
        assert_eq!(is.rejected, [digest_of("b")]);
        is = with("d", Decision::Rejected).after(&is);
        is = with("d", Decision::Rejected).after(&is);
        assert_eq!(is.rejected, [digest_of("d"), digest_of("b")]);
        is = with("b", Decision::Accepted).after(&is);
        assert_eq!(is.rejected, [digest_of("d")]);
        let json = r#"{"digest":"sha256:AA","mediaType":"a/b","size":1,"fetched":1,"checked":1,
            "held":{"digest":"sha256:BB","since":1,"decision":"postponed"}}"#;
        let json = json.replace("AA", &"a".repeat(64)).replace("BB", &"b".repeat(64));
        let later = TagRecord::from_json(json.as_bytes()).expect("a decision of a later version");
        assert_eq!(later.held.map(|held| held.decision), Some(Decision::Waiting));
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
