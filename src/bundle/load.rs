//! Loading: images named in lists are pulled into the cache, through the same flights as clients'.
//!
//! What is there already is not fetched again, what was begun is gone on with, and what fails is tried
//! again: so a list can be loaded over a bad link by repeating the command until nothing is left.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use super::blocking::wait;
use super::list::Wanted;
use crate::cache::{
    BlobLookup, Cache, CacheError, How, ListLookup, ListQuestion, ManifestAnswer, ManifestLookup,
    Purpose, Reason,
};
use crate::oci::{
    Descriptor, Digest, ImageName, Manifest, ManifestKind, Pattern, Platforms, Reference, Tag,
    json_reason,
};

/// Pages of a tag list that are read for a pattern: at a registry's usual hundred a page, more tags than
/// any repository has.
const TAG_PAGES_MAX: usize = 1000;
/// How deep manifests are followed: an index of indexes is the most that is seen.
const DEPTH_MAX: usize = 4;
/// How many platforms are listed when none of them is wanted.
const PLATFORMS_TOLD_MAX: usize = 20;
/// No wait between two tries is longer.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// How images are loaded.
#[derive(Debug, Clone)]
pub struct LoadSettings {
    /// Which children of an index.
    pub platforms: Platforms,
    /// How many images at a time.
    pub parallel: usize,
    /// How often an image is tried.
    pub attempts: u32,
    /// The wait before the second try; doubled with each further one.
    pub first_wait: Duration,
    /// Signatures, attestations and SBOMs as well.
    pub referrers: bool,
}

/// What happens while images are loaded.
#[derive(Debug, Clone, Copy)]
pub enum LoadEvent<'a> {
    /// It is known of how many bytes a blob is, which are not here yet.
    Blob {
        /// The image for which it is fetched first.
        image: &'a str,
        /// The blob.
        digest: &'a Digest,
        /// Its size in bytes.
        size: u64,
    },
    /// So much of a blob is here.
    Progress {
        /// The blob.
        digest: &'a Digest,
        /// How many bytes.
        bytes: u64,
    },
    /// A blob is here.
    BlobDone {
        /// The blob.
        digest: &'a Digest,
    },
    /// An image failed and is tried again.
    Retry {
        /// The image.
        image: &'a str,
        /// Why.
        reason: &'a str,
        /// After this long.
        wait: Duration,
    },
    /// An image is here, or given up.
    Image {
        /// The image.
        image: &'a str,
        /// How it went.
        outcome: &'a Outcome,
    },
}

/// How the loading of an image went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is in the cache, whole, and upstream was asked which it is.
    Loaded {
        /// Bytes that had to be fetched.
        fetched_bytes: u64,
    },
    /// It is in the cache, whole, but upstream could not say whether it is still this one.
    Unconfirmed,
    /// It could not be had.
    Failed {
        /// Why.
        reason: String,
    },
}

/// What came of a list.
#[derive(Debug, Clone, Default)]
pub struct LoadSummary {
    /// Each image with how it went, in the order of the list.
    pub images: Vec<(String, Outcome)>,
}

impl LoadSummary {
    /// The images that could not be had, with the reasons.
    pub fn failed(&self) -> impl Iterator<Item = (&str, &str)> {
        self.images.iter().filter_map(|(image, outcome)| match outcome {
            Outcome::Failed { reason } => Some((image.as_str(), reason.as_str())),
            _ => None,
        })
    }

    /// How many bytes were fetched.
    pub fn fetched_bytes(&self) -> u64 {
        let fetched = self.images.iter().map(|(_, outcome)| match outcome {
            Outcome::Loaded { fetched_bytes } => *fetched_bytes,
            _ => 0,
        });
        fetched.sum()
    }
}

/// Loads what is wanted. Blocks; `tell` is called from several threads.
pub fn load(
    cache: &Cache,
    wanted: &[Wanted],
    settings: &LoadSettings,
    tell: &(dyn Fn(LoadEvent<'_>) + Sync),
) -> LoadSummary {
    let loading = Loading { cache, settings, tell };
    let mut images: Vec<Image> = wanted.iter().flat_map(|each| loading.expand(each)).collect();
    // A list may name an image twice, or by a pattern and by itself.
    let mut seen = HashSet::new();
    images.retain(|image| seen.insert(image.reference.clone()));
    let next = AtomicUsize::new(0);
    let outcomes: Vec<Mutex<Option<Outcome>>> = images.iter().map(|_| Mutex::default()).collect();
    let work = || {
        while let Some(at) = Some(next.fetch_add(1, Ordering::Relaxed))
            && let Some(image) = images.get(at)
        {
            let outcome = loading.image(image);
            tell(LoadEvent::Image { image: &image.reference, outcome: &outcome });
            if let Ok(mut slot) = outcomes[at].lock() {
                *slot = Some(outcome);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..settings.parallel.clamp(1, images.len().max(1)) {
            scope.spawn(work);
        }
    });
    let outcomes = outcomes.into_iter().map(|slot| {
        let outcome = slot.into_inner().ok().flatten();
        outcome.unwrap_or_else(|| Outcome::Failed { reason: "its loading panicked".into() })
    });
    LoadSummary { images: images.into_iter().map(|image| image.reference).zip(outcomes).collect() }
}

/// An image to load, or what failed before it was known which.
struct Image {
    reference: String,
    wanted: Result<(ImageName, Reference), String>,
}

struct Loading<'a> {
    cache: &'a Cache,
    settings: &'a LoadSettings,
    tell: &'a (dyn Fn(LoadEvent<'_>) + Sync),
}

/// Why a try failed.
struct Failure {
    reason: String,
    /// How long to wait before another, if that may help.
    retry: Option<Duration>,
}

impl From<CacheError> for Failure {
    fn from(error: CacheError) -> Failure {
        let retry = match (error.reason(), &error) {
            (_, CacheError::BackingOff { wait }) => Some(*wait),
            (Reason::RateLimited { retry_after }, _) => Some(retry_after.unwrap_or_default()),
            (Reason::NotFound | Reason::Unsupported | Reason::NotAllowed | Reason::Denied, _) => {
                None
            }
            _ => Some(Duration::ZERO),
        };
        Failure { reason: error.to_string(), retry }
    }
}

impl From<String> for Failure {
    fn from(reason: String) -> Failure {
        Failure { reason, retry: None }
    }
}

/// What was found below a manifest.
struct Below {
    fetched_bytes: u64,
    /// Image manifests, and other content of indexes, of which everything is here now.
    manifests: usize,
    /// Platforms that indexes list, for the message if none of them is wanted.
    others: Vec<String>,
}

impl Below {
    fn of_index(children: &[Descriptor]) -> Below {
        let platforms = children.iter().filter_map(|child| child.platform.clone());
        let others = platforms.take(PLATFORMS_TOLD_MAX).collect();
        Below { fetched_bytes: 0, manifests: 0, others }
    }

    fn add(&mut self, other: Below) {
        self.fetched_bytes += other.fetched_bytes;
        self.manifests += other.manifests;
        let left = PLATFORMS_TOLD_MAX.saturating_sub(self.others.len());
        self.others.extend(other.others.into_iter().take(left));
    }
}

impl Loading<'_> {
    /// The images that an entry of a list means.
    fn expand(&self, wanted: &Wanted) -> Vec<Image> {
        match wanted {
            Wanted::Image(name, reference) => vec![Image {
                reference: name.with(reference),
                wanted: Ok((name.clone(), reference.clone())),
            }],
            Wanted::Tags(name, pattern) => {
                let failed = |reason| {
                    let reference = format!("{name}:{pattern}");
                    vec![Image { reference, wanted: Err(reason) }]
                };
                match self.retrying(&format!("{name}:{pattern}"), || self.tags(name, pattern)) {
                    Err(reason) => failed(reason),
                    Ok(tags) if tags.is_empty() => failed("no tag matches".into()),
                    Ok(tags) => tags
                        .into_iter()
                        .map(|tag| {
                            let reference = Reference::Tag(tag);
                            Image {
                                reference: name.with(&reference),
                                wanted: Ok((name.clone(), reference)),
                            }
                        })
                        .collect(),
                }
            }
        }
    }

    fn tags(&self, name: &ImageName, pattern: &Pattern) -> Result<Vec<Tag>, Failure> {
        let (mut query, mut found) = (String::new(), Vec::new());
        for _ in 0..TAG_PAGES_MAX {
            let answer = match self.cache.list(name, ListQuestion::Tags { query })? {
                ListLookup::Ready(answer) => answer,
                ListLookup::Wait(waiting) => wait(|waker| waiting.poll(waker))?,
            };
            if answer.how == How::Stale {
                return Err(Failure::from(
                    "the registry does not list its tags just now".to_owned(),
                ));
            }
            let body = answer.body.read().map_err(|error| format!("the tag list: {error}"))?;
            let page: serde_json::Value = serde_json::from_slice(&body)
                .map_err(|error| format!("the tag list is no JSON: {}", json_reason(&error)))?;
            let tags = page["tags"].as_array().into_iter().flatten().filter_map(|tag| tag.as_str());
            let matching = tags.filter(|tag| pattern.matches(tag));
            found.extend(matching.filter_map(|tag| tag.parse::<Tag>().ok()));
            match answer.next {
                Some(next) => query = next,
                None => return Ok(found),
            }
        }
        Err(format!("the tag list has more than {TAG_PAGES_MAX} pages").into())
    }

    fn image(&self, image: &Image) -> Outcome {
        let (name, reference) = match &image.wanted {
            Ok(wanted) => wanted,
            Err(reason) => return Outcome::Failed { reason: reason.clone() },
        };
        match self.retrying(&image.reference, || self.pull(&image.reference, name, reference)) {
            Ok(outcome) => outcome,
            Err(reason) => Outcome::Failed { reason },
        }
    }

    fn retrying<T>(
        &self,
        image: &str,
        attempt: impl Fn() -> Result<T, Failure>,
    ) -> Result<T, String> {
        let mut own = self.settings.first_wait;
        for left in (0..self.settings.attempts.max(1)).rev() {
            match attempt() {
                Ok(value) => return Ok(value),
                Err(Failure { reason, retry: Some(asked) }) if left > 0 => {
                    let wait = own.max(asked).min(LONGEST_WAIT);
                    (self.tell)(LoadEvent::Retry { image, reason: &reason, wait });
                    thread::sleep(wait);
                    own = own.saturating_mul(2);
                }
                Err(Failure { reason, .. }) => return Err(reason),
            }
        }
        Err("it was not tried".into())
    }

    /// One try: the manifest, then all that hangs below it.
    fn pull(
        &self,
        image: &str,
        name: &ImageName,
        reference: &Reference,
    ) -> Result<Outcome, Failure> {
        let answer = self.manifest(name, reference)?;
        let mut seen = HashSet::new();
        let mut below = self.below(image, name, &answer, 0, &mut seen)?;
        if let Below { manifests: 0, others, .. } = &below
            && !others.is_empty()
        {
            return Err(format!("it has no such platform; it has {}", others.join(", ")).into());
        }
        if self.settings.referrers {
            // Also those of each platform's manifest, which clients look up after they have selected one.
            let subjects: Vec<Digest> = seen.iter().copied().collect();
            for subject in subjects {
                for referrer in self.cache.fetch_referrers(name, &subject) {
                    let answer = self.manifest(name, &Reference::Digest(referrer))?;
                    below.add(self.below(image, name, &answer, 0, &mut seen)?);
                }
            }
        }
        Ok(match answer.how {
            How::Stale => Outcome::Unconfirmed,
            _ => Outcome::Loaded { fetched_bytes: below.fetched_bytes },
        })
    }

    fn manifest(
        &self,
        name: &ImageName,
        reference: &Reference,
    ) -> Result<ManifestAnswer, CacheError> {
        match self.cache.manifest(name, reference)? {
            ManifestLookup::Ready(answer) => Ok(answer),
            ManifestLookup::Wait(waiting) => wait(|waker| waiting.poll(waker)),
        }
    }

    /// Fetches what hangs below a manifest. `seen` are the manifests that were visited: an index may name the
    /// same one any number of times.
    fn below(
        &self,
        image: &str,
        name: &ImageName,
        answer: &ManifestAnswer,
        depth: usize,
        seen: &mut HashSet<Digest>,
    ) -> Result<Below, Failure> {
        seen.insert(*answer.digest());
        let media_type = Some(answer.media_type().as_str());
        let bytes = answer.read().map_err(|error| format!("{}: {error}", answer.digest()))?;
        let manifest = Manifest::parse(bytes, media_type)
            .map_err(|error| format!("{}: {error}", answer.digest()))?;
        match manifest.kind() {
            ManifestKind::Image { .. } => {
                // Nobody but their maker may distribute foreign layers, and the registry may not have them.
                let mut named = HashSet::new();
                let blobs: Vec<&Descriptor> = manifest
                    .descriptors()
                    .filter(|blob| !blob.is_foreign && named.insert(blob.digest))
                    .collect();
                let fetched_bytes = self.blobs(image, name, &blobs)?;
                Ok(Below { fetched_bytes, manifests: 1, others: Vec::new() })
            }
            ManifestKind::Index { .. } if depth >= DEPTH_MAX => {
                Err(format!("its indexes are nested deeper than {DEPTH_MAX}").into())
            }
            ManifestKind::Index { manifests } => {
                let mut below = Below::of_index(manifests);
                for child in self.settings.platforms.select(manifests) {
                    if seen.contains(&child.digest) {
                        continue;
                    }
                    match self.child(image, name, child, depth, seen) {
                        Ok(of_child) => below.add(of_child),
                        // Registries that copy platforms leave attestations behind, and no client
                        // needs them to run the image.
                        Err(Failure { retry: None, reason }) if child.attests.is_some() => {
                            log::info!("{image}: the attestation {}: {reason}", child.digest);
                        }
                        Err(failure) => return Err(failure),
                    }
                }
                Ok(below)
            }
        }
    }

    fn child(
        &self,
        image: &str,
        name: &ImageName,
        child: &Descriptor,
        depth: usize,
        seen: &mut HashSet<Digest>,
    ) -> Result<Below, Failure> {
        if !child.may_be_manifest {
            let fetched_bytes = self.blobs(image, name, &[child])?;
            return Ok(Below { fetched_bytes, manifests: 1, others: Vec::new() });
        }
        let answer = self.manifest(name, &Reference::Digest(child.digest))?;
        self.below(image, name, &answer, depth + 1, seen)
    }

    /// Fetches blobs, all at the same time as far as there are fetchers.
    fn blobs(&self, image: &str, name: &ImageName, blobs: &[&Descriptor]) -> Result<u64, Failure> {
        let mut waits = Vec::new();
        let mut first_failure = None;
        for blob in blobs {
            match self.cache.blob(name, &blob.digest, Purpose::Read) {
                Ok(BlobLookup::Ready(_)) => {}
                Ok(BlobLookup::Wait(waiting)) => {
                    let (digest, size) = (&blob.digest, blob.size);
                    (self.tell)(LoadEvent::Blob { image, digest, size });
                    waits.push((blob, waiting));
                }
                Err(error) => first_failure = first_failure.or(Some(error)),
            }
        }
        let mut fetched_bytes = 0;
        for (blob, waiting) in waits {
            let digest = &blob.digest;
            let mut position = 0;
            // All of it is shown before it has its name; whoever loads wants the name.
            while position < blob.size
                && let Ok(bytes) = wait(|waker| waiting.poll_available(position, waker))
                && bytes > position
            {
                position = bytes;
                (self.tell)(LoadEvent::Progress { digest, bytes });
            }
            match wait(|waker| waiting.poll_end(waker)) {
                Ok(size) => fetched_bytes += size,
                Err(failure) => first_failure = first_failure.or(Some(failure.error)),
            }
            (self.tell)(LoadEvent::BlobDone { digest });
        }
        first_failure.map_or(Ok(fetched_bytes), |error| Err(error.into()))
    }
}
