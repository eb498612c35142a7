//! Load: pulls the images of a list into the cache, through the same fetches that serve clients.
//!
//! Skips content that is cached, resumes partial downloads, and retries failures. So a list can be loaded over
//! an unreliable link by repeating the command until it succeeds.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use super::blocking::wait;
use super::expand::{Image, expand};
use super::failure::Failure;
use super::list::Wanted;
use super::newest::Newest;
use super::outcome::{LoadSummary, Outcome};
use crate::cache::{
    BackgroundLookup, BlobLookup, Cache, CacheError, How, ManifestAnswer, ManifestLookup, Purpose,
};
use crate::oci::{
    Descriptor, Digest, ImageName, Manifest, ManifestKind, Platforms, Reference, Tag,
};
use crate::store::Access;

/// How deep nested indexes are followed: an index of indexes is the deepest in use.
const DEPTH_MAX: usize = 4;
/// How many platforms are listed when no requested platform exists.
const PLATFORMS_LISTED_MAX: usize = 20;
/// The longest wait between two attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Settings of a load.
#[derive(Debug, Clone)]
pub struct LoadSettings {
    /// The platforms to load from an index.
    pub platforms: Platforms,
    /// How many images to load at the same time.
    pub parallel: usize,
    /// The number of attempts per image.
    pub attempts: u32,
    /// The wait before the second attempt. It doubles with each further attempt.
    pub first_wait: Duration,
    /// Whether to load signatures, attestations and SBOMs as well.
    pub referrers: bool,
    /// How many of the tags that match a pattern to load; all of them if `None`.
    pub newest: Option<Newest>,
    /// For whom the images are loaded.
    pub manner: Manner,
}

/// For whom images are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// For a command that waits: as for a client.
    Command,
    /// For no client in particular: clients of the server have priority. Tags are confirmed by their registry even if they
    /// are fresh.
    Background,
}

/// An event of a load.
#[derive(Debug, Clone, Copy)]
pub enum LoadEvent<'a> {
    /// A blob is being fetched, and its size is known.
    Blob {
        /// The first image that needs the blob.
        image: &'a str,
        /// The blob.
        digest: &'a Digest,
        /// Its size in bytes.
        size: u64,
    },
    /// More of a blob has been fetched.
    Progress {
        /// The blob.
        digest: &'a Digest,
        /// How many bytes have been fetched so far.
        bytes: u64,
    },
    /// The fetch of a blob has ended.
    BlobDone {
        /// The blob.
        digest: &'a Digest,
    },
    /// An attempt to load an image failed, and another will follow.
    Retry {
        /// The image.
        image: &'a str,
        /// The reason.
        reason: &'a str,
        /// The wait before the next attempt.
        wait: Duration,
    },
    /// An image was loaded, or its last attempt failed.
    Image {
        /// The image.
        image: &'a str,
        /// The result.
        outcome: &'a Outcome,
    },
}

/// Loads images. Blocks; `report` is called from several threads.
pub fn load(
    cache: &Cache,
    wanted: &[Wanted],
    settings: &LoadSettings,
    report: &(dyn Fn(LoadEvent<'_>) + Sync),
) -> LoadSummary {
    load_images(cache, expand(cache, wanted, settings, report), settings, report)
}

/// Loads images that [`expand`] has found. Blocks; `report` is called from several threads.
pub fn load_images(
    cache: &Cache,
    images: Vec<Image>,
    settings: &LoadSettings,
    report: &(dyn Fn(LoadEvent<'_>) + Sync),
) -> LoadSummary {
    let loading = Loading { cache, settings, report };
    let next = AtomicUsize::new(0);
    let outcomes: Vec<Mutex<Option<Outcome>>> = images.iter().map(|_| Mutex::default()).collect();
    let work = || {
        while let Some(at) = Some(next.fetch_add(1, Ordering::Relaxed))
            && let Some(image) = images.get(at)
        {
            let outcome = loading.image(image);
            report(LoadEvent::Image { image: &image.reference, outcome: &outcome });
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
        let panicked =
            || Outcome::Failed { reason: "loading it panicked".into(), is_permanent: false };
        outcome.unwrap_or_else(panicked)
    });
    LoadSummary { images: images.into_iter().map(|image| image.reference).zip(outcomes).collect() }
}

pub(super) struct Loading<'a> {
    pub(super) cache: &'a Cache,
    pub(super) settings: &'a LoadSettings,
    pub(super) report: &'a (dyn Fn(LoadEvent<'_>) + Sync),
}

/// What an attempt has visited and fetched, also if it fails.
#[derive(Default)]
struct Walk {
    /// The manifests that were visited, because indexes may name one manifest any number of times.
    seen: HashSet<Digest>,
    fetched_bytes: u64,
}

/// What is below a manifest.
struct Below {
    /// How many image manifests, and other content of indexes, are now complete.
    manifests: usize,
    /// Platforms that indexes list, for the message if none of the requested ones exists.
    others: Vec<String>,
}

impl Below {
    fn of_index(children: &[Descriptor]) -> Below {
        let platforms = children.iter().filter_map(|child| child.platform.clone());
        let others = platforms.take(PLATFORMS_LISTED_MAX).collect();
        Below { manifests: 0, others }
    }

    fn add(&mut self, other: Below) {
        self.manifests += other.manifests;
        let left = PLATFORMS_LISTED_MAX.saturating_sub(self.others.len());
        self.others.extend(other.others.into_iter().take(left));
    }
}

impl Loading<'_> {
    fn image(&self, image: &Image) -> Outcome {
        let (name, reference) = match &image.wanted {
            Ok(wanted) => wanted,
            Err(outcome) => return outcome.clone(),
        };
        // In all attempts.
        let mut fetched_bytes = 0;
        let pulled = self.retrying(&image.reference, || {
            let mut walk = Walk::default();
            let pulled = self.pull(&image.reference, name, reference, &mut walk);
            fetched_bytes += walk.fetched_bytes;
            pulled
        });
        match pulled {
            Ok(Some(Failure { reason, retry, .. })) => {
                Outcome::Unconfirmed { fetched_bytes, reason, is_permanent: retry.is_none() }
            }
            Ok(None) => Outcome::Loaded { fetched_bytes },
            // Retries would download what does not fit again each time, and no client waits for it.
            Err(Failure { reason, is_of_disk: true, .. })
                if self.settings.manner == Manner::Background =>
            {
                Outcome::Failed { reason, is_permanent: true }
            }
            Err(failure) => failure.into(),
        }
    }

    pub(super) fn retrying<T>(
        &self,
        image: &str,
        mut attempt: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut backoff = self.settings.first_wait;
        for left in (0..self.settings.attempts.max(1)).rev() {
            match attempt() {
                Ok(value) => return Ok(value),
                Err(Failure { reason, retry: Some(required), .. }) if left > 0 => {
                    let wait = backoff.max(required).min(LONGEST_WAIT);
                    (self.report)(LoadEvent::Retry { image, reason: &reason, wait });
                    thread::sleep(wait);
                    backoff = backoff.saturating_mul(2);
                }
                Err(failure) => return Err(failure),
            }
        }
        Err("it was not attempted".to_owned().into())
    }

    /// One attempt: fetches the manifest, then everything below it. Returns why its tag was not confirmed, if it was not.
    fn pull(
        &self,
        image: &str,
        name: &ImageName,
        reference: &Reference,
        walk: &mut Walk,
    ) -> Result<Option<Failure>, Failure> {
        let unconfirmed = match (self.settings.manner, reference) {
            (Manner::Background, Reference::Tag(tag)) => self.cache.confirm_tag(name, tag).err(),
            _ => None,
        };
        // The lookup of what is not cached would send the same request again.
        if let (Some(error), Reference::Tag(tag)) = (&unconfirmed, reference)
            && !self.has_tag(name, tag)?
        {
            return Err(error.clone().into());
        }
        let answer = self.manifest(name, reference)?;
        let below = self.below(image, name, &answer, 0, walk)?;
        if let Reference::Tag(tag) = reference {
            let record = self
                .cache
                .store()
                .find_tag(name, tag, Access::Look)
                .map_err(Failure::not_stored)?;
            if record.is_none_or(|record| record.digest != *answer.digest()) {
                return Err(Failure::not_stored("its tag is not in the cache"));
            }
        }
        if let Below { manifests: 0, others, .. } = &below
            && !others.is_empty()
        {
            let listed = others.join(", ");
            return Err(format!("it has none of the requested platforms; it has {listed}").into());
        }
        if self.settings.referrers {
            // Also those of each platform's manifest, which clients look up after they have selected one.
            let subjects: Vec<Digest> = walk.seen.iter().copied().collect();
            for subject in subjects {
                for referrer in self.cache.fetch_referrers(name, &subject) {
                    let answer = self.manifest(name, &Reference::Digest(referrer))?;
                    self.below(image, name, &answer, 0, walk)?;
                }
            }
        }
        Ok(match (unconfirmed, answer.how) {
            (Some(error), _) => Some(error.into()),
            (None, How::Stale) => Some(Failure {
                reason: "the registry did not confirm that this is the current version".into(),
                retry: Some(Duration::ZERO),
                is_of_disk: false,
            }),
            (None, _) => None,
        })
    }

    fn manifest(
        &self,
        name: &ImageName,
        reference: &Reference,
    ) -> Result<ManifestAnswer, CacheError> {
        if let (Manner::Background, Reference::Digest(digest)) = (self.settings.manner, reference) {
            self.cache.check_pulls_left(name, digest)?;
        }
        let answer = match self.cache.manifest(name, reference)? {
            ManifestLookup::Ready(answer) => answer,
            ManifestLookup::Wait(waiting) => wait(|waker| waiting.poll(waker))?,
        };
        self.cache.wait_until_stored(Some(name));
        Ok(answer)
    }

    /// Fetches everything below a manifest.
    fn below(
        &self,
        image: &str,
        name: &ImageName,
        answer: &ManifestAnswer,
        depth: usize,
        walk: &mut Walk,
    ) -> Result<Below, Failure> {
        walk.seen.insert(*answer.digest());
        // A manifest that could not be stored is served nevertheless. A load promises that it is stored.
        let store = self.cache.store();
        let record = store
            .find_manifest(name, answer.digest(), Access::Look)
            .map_err(Failure::not_stored)?;
        if record.is_none() {
            return Err(Failure::not_stored(format!("{} is not in the cache", answer.digest())));
        }
        let media_type = Some(answer.media_type().as_str());
        let bytes =
            answer.body().read().map_err(|error| format!("{}: {error}", answer.digest()))?;
        if !matches!(answer.how, How::Hit | How::Stale) {
            walk.fetched_bytes += bytes.len() as u64;
        }
        let manifest = Manifest::parse(&bytes, media_type)
            .map_err(|error| format!("{}: {error}", answer.digest()))?;
        match manifest.kind() {
            ManifestKind::Image { .. } => {
                // Only their vendor may distribute foreign layers, so the registry may not have them.
                let mut named = HashSet::new();
                let blobs: Vec<&Descriptor> = manifest
                    .descriptors()
                    .filter(|blob| !blob.is_foreign && named.insert(blob.digest))
                    .collect();
                self.blobs(image, name, &blobs, walk)?;
                Ok(Below { manifests: 1, others: Vec::new() })
            }
            ManifestKind::Index { .. } if depth >= DEPTH_MAX => {
                Err(format!("its indexes are nested deeper than {DEPTH_MAX}").into())
            }
            ManifestKind::Index { manifests } => {
                let mut below = Below::of_index(manifests);
                for child in self.settings.platforms.select(manifests) {
                    if walk.seen.contains(&child.digest) {
                        continue;
                    }
                    match self.child(image, name, child, depth, walk) {
                        Ok(of_child) => below.add(of_child),
                        // Tools that copy single platforms often omit attestations, and no client needs
                        // them to run the image.
                        Err(Failure { retry: None, reason, .. }) if child.attests.is_some() => {
                            log::info!(
                                image:%, digest:% = child.digest, error = reason.as_str();
                                "skipped an attestation"
                            );
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
        walk: &mut Walk,
    ) -> Result<Below, Failure> {
        if !child.may_be_manifest {
            self.blobs(image, name, &[child], walk)?;
            return Ok(Below { manifests: 1, others: Vec::new() });
        }
        let answer = self.manifest(name, &Reference::Digest(child.digest))?;
        self.below(image, name, &answer, depth + 1, walk)
    }

    /// Fetches blobs, in parallel as far as there are fetch threads.
    fn blobs(
        &self,
        image: &str,
        name: &ImageName,
        blobs: &[&Descriptor],
        walk: &mut Walk,
    ) -> Result<(), Failure> {
        let mut waits = Vec::new();
        let mut first_failure = None;
        for blob in blobs {
            match self.find_blob(name, blob) {
                Ok(BackgroundLookup::Found(BlobLookup::Ready(_))) => {}
                Ok(lookup) => {
                    let (digest, size) = (&blob.digest, blob.size);
                    (self.report)(LoadEvent::Blob { image, digest, size });
                    waits.push((blob, lookup));
                }
                Err(error) => first_failure = first_failure.or(Some(error)),
            }
        }
        for (blob, lookup) in waits {
            let digest = &blob.digest;
            let found = match lookup {
                BackgroundLookup::Found(found) => Ok(found),
                BackgroundLookup::Queued(queued) => queued.started(),
            };
            let waiting = match found {
                Ok(BlobLookup::Wait(waiting)) => waiting,
                other => {
                    first_failure = first_failure.or(other.err());
                    (self.report)(LoadEvent::BlobDone { digest });
                    continue;
                }
            };
            let mut position = 0;
            // All bytes are visible before the blob has its name. A load must wait for the name.
            while position < blob.size
                && let Ok(bytes) = wait(|waker| waiting.poll_available(position, waker))
                && bytes > position
            {
                position = bytes;
                (self.report)(LoadEvent::Progress { digest, bytes });
            }
            match wait(|waker| waiting.poll_end(waker)) {
                Ok(size) => walk.fetched_bytes += size,
                Err(failure) => first_failure = first_failure.or(Some(failure.error)),
            }
            (self.report)(LoadEvent::BlobDone { digest });
        }
        first_failure.map_or(Ok(()), |error| Err(error.into()))
    }
    fn has_tag(&self, name: &ImageName, tag: &Tag) -> Result<bool, Failure> {
        let found = self.cache.store().find_tag(name, tag, Access::Look);
        found.map(|record| record.is_some()).map_err(Failure::not_stored)
    }

    fn find_blob(
        &self,
        name: &ImageName,
        blob: &Descriptor,
    ) -> Result<BackgroundLookup, CacheError> {
        match self.settings.manner {
            Manner::Background => self.cache.blob_in_background(name, blob),
            Manner::Command => {
                let found = self.cache.blob(name, &blob.digest, Purpose::Read);
                found.map(BackgroundLookup::Found)
            }
        }
    }
}
