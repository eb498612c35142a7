//! Completes the images that nodes run, and records why an image is not complete.
//!
//! A node that has an image only sends HEAD, to see whether its tag has moved. If HEAD had no effect, an image that all
//! nodes have would never reach an empty cache, and the next node could not pull it in an outage. Therefore an image
//! that a container runtime checks with HEAD is fetched in the background.
//!
//! # Which checks count
//! A pull begins with HEAD as well. [`DELAY`] after the HEAD request, the image is fetched only if no client has
//! requested its manifest since. Update checkers and scanners send HEAD for thousands of tags: `checks` excludes them.
//!
//! # Limits
//! At most [`FETCHING_MAX`] images are fetched at a time, by fetchers that clients do not need, and none from a
//! registry of whose rate limit little is left. A failed image is tried again with growing pauses, at most
//! [`ATTEMPTS_MAX`] times.
//!
//! # Interleavings
//! Clients add entries, one thread takes those that are due ([`Completions::tick`]), and fetchers report results. Each
//! looks up the entry under the lock of the table, so an entry that was removed meanwhile stays removed. A fetcher that
//! never reports (it panicked, or the server stops) leaves an entry that is considered again after [`JOB_MAX`].

mod checks;
mod report;
mod table;

pub use report::CompletionThread;

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use super::blobs::BlobCache;
use super::bounded::BoundedCache;
use super::core::Core;
use super::manifests::ManifestCache;
use super::negative::Asked;
use super::prefetch::{Missing, Prefetcher, Wanted};
use super::scheduler::Length;
use super::{PrefetchOnHead, access, lock};
use crate::client_address::ClientAddress;
use crate::events::{Event, EventType};
use crate::oci::{Digest, ImageName, Platform, Reference};
use crate::store::Access;

use checks::{Checks, Verdict};
use table::{Entry, Key, Stage, Table};

/// How long after HEAD an image is fetched if no client pulls it. A client that pulls sends GET at once.
const DELAY: Duration = Duration::from_secs(3);
/// The same for a client that may turn out to be a scanner.
const DELAY_UNDECIDED: Duration = Duration::from_secs(120);
/// How many images are fetched at a time, and how many of one registry: a slow one must not delay the others.
const FETCHING_MAX: usize = 16;
const FETCHING_OF_ONE_MAX: usize = 4;
/// How often an image that is being fetched is checked, and one that a client pulls: there may be many of those.
const RECHECK: Duration = Duration::from_secs(2);
const RECHECK_PULLED: Duration = Duration::from_secs(10);
/// How long a fetcher may take for the manifests of an image.
const JOB_MAX: Duration = Duration::from_secs(900);
/// An image that was found complete is not checked again for this time.
const SETTLED: Duration = Duration::from_secs(300);
/// How many complete images are remembered.
const SETTLED_MAX: usize = 16_384;
/// How often a failing image is tried, and the first and the longest pause: the last attempt is about three hours
/// after the first.
const ATTEMPTS_MAX: u32 = 8;
const PAUSE_MIN: Duration = Duration::from_secs(60);
const PAUSE_MAX: Duration = Duration::from_secs(3600);
/// An image that was complete earlier than this before its report was complete before.
const NEW: Duration = Duration::from_secs(24 * 3600);
/// How long an image waits if the server is offline or little is left of a rate limit.
const LATER: Duration = Duration::from_secs(60);

/// An image that was complete, for nodes of a platform.
type Settled = (ImageName, Digest, Option<String>);

/// Completes images and records why they are not complete.
pub(super) struct Completions {
    core: Arc<Core>,
    manifests: Arc<ManifestCache>,
    blobs: Arc<BlobCache>,
    prefetcher: Arc<Prefetcher>,
    /// Locked for lookups, insertions and removals only, as are the next two.
    table: Mutex<Table>,
    checks: Mutex<Checks>,
    /// When images were found complete, with the platform that a node reported.
    settled: Mutex<BoundedCache<Settled, SystemTime>>,
    /// The images that were reported as complete.
    reported: Mutex<BoundedCache<(ImageName, Digest), ()>>,
}

/// Requests of clients.
impl Completions {
    pub(super) fn new(
        core: Arc<Core>,
        manifests: Arc<ManifestCache>,
        blobs: Arc<BlobCache>,
        prefetcher: Arc<Prefetcher>,
    ) -> Completions {
        let completions = Completions {
            core,
            manifests,
            blobs,
            prefetcher,
            table: Mutex::default(),
            checks: Mutex::new(Checks::new()),
            settled: Mutex::new(BoundedCache::new(SETTLED_MAX)),
            reported: Mutex::new(BoundedCache::new(SETTLED_MAX)),
        };
        completions.restore();
        completions
    }

    /// Continues with the images that an earlier process has recorded.
    fn restore(&self) {
        let now = self.core.now();
        let mut table = lock(&self.table);
        for image in self.core.store.incomplete() {
            let Some((name, reference, digest)) = image.parse() else { continue };
            let entry = || {
                let mut entry = Entry::new(digest, image.since(now), now + DELAY);
                entry.platforms.extend(image.platforms.iter().filter_map(|each| each.parse().ok()));
                entry
            };
            let _ = table.entry(&(name, reference), entry);
        }
    }

    /// A client has checked an image with HEAD. `is_node` states whether it is a container runtime.
    pub(super) fn checked(
        &self,
        name: &ImageName,
        reference: &Reference,
        digest: &Digest,
        is_node: bool,
        platform: Option<Platform>,
        client: Option<ClientAddress>,
    ) {
        let settings = self.core.settings();
        let counts = match settings.prefetch.on_head {
            PrefetchOnHead::Never => false,
            PrefetchOnHead::Runtimes => is_node,
            PrefetchOnHead::Always => true,
        };
        if !counts || !settings.prefetch.blobs || !self.core.store.is_writable() {
            return;
        }
        let now = self.core.now();
        let delay = match lock(&self.checks).count(client, name, reference, now) {
            Verdict::Node => DELAY,
            Verdict::Undecided => DELAY_UNDECIDED,
            Verdict::Scanner { is_new } => {
                if is_new {
                    self.exclude(client);
                }
                return;
            }
        };
        let key = (name.clone(), reference.clone());
        let settled = (name.clone(), *digest, platform.as_ref().map(ToString::to_string));
        let is_recent = |at: &SystemTime| now.duration_since(*at).is_ok_and(|age| age < SETTLED);
        if lock(&self.settled).get(&settled).is_some_and(is_recent) {
            return;
        }
        let mut table = lock(&self.table);
        table.revive(&key, now, now + delay);
        let new = || Entry::new(*digest, now, now + delay).undecided();
        match table.entry(&key, new) {
            Some(entry) => {
                entry.digest = *digest;
                entry.is_undecided &= delay > DELAY;
                entry.add(client, platform);
            }
            None => self.core.metrics.completed("dropped"),
        }
    }

    /// Forgets the images that a scanner has checked.
    fn exclude(&self, client: Option<ClientAddress>) {
        lock(&self.table).forget_client(client);
        self.core.metrics.completed("scanner");
        let ip = client.map(|client| client.to_string());
        log::info!(
            ip = ip.as_deref();
            "a client checks too many images with HEAD for a node and counts as a scanner for an hour: what it \
             checks is not fetched (prefetchOnHead)"
        );
    }

    /// A client pulls an image: its manifest was served to GET.
    pub(super) fn pulled(&self, name: &ImageName, digest: &Digest, client: Option<ClientAddress>) {
        if !self.prefetcher.complete_later(name, digest, client) {
            return;
        }
        let now = self.core.now();
        let key = (name.clone(), Reference::Digest(*digest));
        if let Some(entry) = lock(&self.table).entry(&key, || Entry::new(*digest, now, now)) {
            entry.add(client, None);
            entry.stage = Stage::Fetching;
            entry.is_pulled = true;
            entry.due = now + RECHECK_PULLED;
        }
    }
}

/// What is due.
impl Completions {
    /// Considers the images that are due.
    pub(super) fn tick(self: &Arc<Self>) {
        let now = self.core.now();
        let (due, mut fetching) = {
            let mut table = lock(&self.table);
            (table.due(now), table.fetching())
        };
        for (key, entry) in due {
            let pass = entry.pass.clone().filter(|pass| pass.is_fresh(now));
            if entry.stage == Stage::Fetching {
                access::enter(pass, || self.check(&key, &entry, now));
                continue;
            }
            let upstream = key.0.upstream.clone();
            let of_this = fetching.get(&upstream).copied().unwrap_or_default();
            let of_all: usize = fetching.values().sum();
            if of_all < FETCHING_MAX
                && of_this < FETCHING_OF_ONE_MAX
                && access::enter(pass, || self.begin(key, &entry, now))
            {
                fetching.insert(upstream, of_this + 1);
            }
        }
    }

    /// Begins to fetch an image, unless there is a reason not to. Returns whether it has begun.
    fn begin(self: &Arc<Self>, key: Key, entry: &Entry, now: SystemTime) -> bool {
        let (name, reference) = &key;
        let prefetch = self.core.settings().prefetch.clone();
        let is_off = !entry.is_pulled && prefetch.on_head == PrefetchOnHead::Never;
        if !prefetch.blobs || is_off {
            lock(&self.table).remove(&key);
            return false;
        }
        // A client that received HEAD here may have pulled through another process that shares the directory.
        self.manifests.write_tags_of_stored(name, &entry.digest);
        // Before the obstacles: nothing is wrong with an image that is complete, and nothing has to be requested.
        if self.missing(name, entry).is_nothing() {
            self.settle(&key, entry, now);
            return false;
        }
        if entry.attempts == 0 && self.prefetcher.was_pulled_since(name, &entry.digest, entry.since)
        {
            lock(&self.table).remove(&key);
            return false;
        }
        if self.manifests.is_being_fetched(name, reference, &entry.digest) {
            self.postpone(&key, now + DELAY, None);
            return false;
        }
        if let Some((wait, reason)) = self.obstacle(name, now) {
            self.postpone(&key, now + wait, Some(reason));
            return false;
        }
        let Ok(purpose) = self.core.purpose(name, entry.client()) else {
            lock(&self.table).remove(&key);
            return false;
        };
        self.change(&key, |entry| {
            entry.stage = Stage::Fetching;
            entry.due = now + JOB_MAX;
            entry.platforms_fetched = entry.platforms.len();
        });
        let (service, job_key, job_entry) = (Arc::clone(self), key.clone(), entry.clone());
        let run = move || service.fetch(&job_key, job_entry);
        let is_queued =
            self.core.metadata_fetchers.submit_in_background(purpose, Length::Short, run);
        if !is_queued {
            self.postpone(&key, now + RECHECK, None);
        }
        is_queued
    }

    /// Why no request is sent to the registry now, and for how long.
    fn obstacle(&self, name: &ImageName, now: SystemTime) -> Option<(Duration, String)> {
        if self.core.is_offline() {
            return Some((LATER, "the server is offline".into()));
        }
        if let Some(wait) = self.core.negative.backoff(name, now) {
            return Some((wait, "the registry limits the rate of requests".into()));
        }
        if self.core.negative.is_troubled(&name.upstream, now) {
            return Some((LATER, "the registry does not respond".into()));
        }
        let is_low = self.core.source(&name.upstream).is_ok_and(|source| source.is_low_on_pulls());
        is_low.then(|| (LATER, "the rest of the registry's rate limit is kept for pulls".into()))
    }

    /// Fetches the manifests of an image and queues its blobs, on a fetcher.
    fn fetch(&self, key: &Key, mut entry: Entry) {
        let (name, reference) = key;
        // The tag of a cached image is left alone: when it is checked and moved is decided by the freshness policy.
        let fetched = match reference {
            Reference::Tag(tag) if self.core.store.tag(name, tag, Access::Look).is_none() => {
                self.manifests.fetch_by_tag(name, tag)
            }
            _ => self.manifests.fetch_by_digest(name, &entry.digest),
        };
        match fetched {
            Ok(content) => {
                entry.digest = *content.digest();
                self.prefetcher.complete(name, &entry.digest, &self.wanted(name, &entry));
                let now = self.core.now();
                self.change(key, |changed| {
                    changed.digest = entry.digest;
                    changed.due = now + RECHECK;
                });
            }
            Err(error) => self.failed(key, &error.to_string(), error.is_not_found()),
        }
    }

    /// Checks an image that is being fetched.
    fn check(&self, key: &Key, entry: &Entry, now: SystemTime) {
        let (name, _) = key;
        let missing = self.missing(name, entry);
        if missing.is_nothing() {
            self.settle(key, entry, now);
            self.report_complete(key, entry, now);
            if !entry.is_pulled {
                self.core.metrics.completed("complete");
                log::info!(
                    image = name.with(&key.1).as_str(); "image complete, after HEAD by a node"
                );
            }
            return;
        }
        if !entry.is_pulled && entry.platforms.len() > entry.platforms_fetched {
            // A node of another platform has checked it meanwhile.
            self.postpone(key, now, None);
            self.change(key, |entry| entry.stage = Stage::Queued);
            return;
        }
        let is_pending = |digest: &Digest| self.blobs.is_pending(&name.upstream, digest);
        if missing.blobs.iter().any(|blob| is_pending(&blob.digest)) {
            let pause = if entry.is_pulled { RECHECK_PULLED } else { RECHECK };
            self.change(key, |entry| entry.due = now + pause);
            return;
        }
        let (reason, is_final) = self.why(name, &missing, now);
        self.failed(key, &reason, is_final);
    }

    /// Why content is missing that is not being fetched, and whether another attempt is pointless.
    fn why(&self, name: &ImageName, missing: &Missing, now: SystemTime) -> (String, bool) {
        if let Some((_, reason)) = self.obstacle(name, now) {
            return (reason, false);
        }
        let blob = missing.blobs.first();
        let is_missing = |digest: &Digest| {
            self.core.negative.is_missing(&Asked::Blob(name.clone(), *digest), now)
        };
        match blob {
            Some(blob) if is_missing(&blob.digest) => {
                (format!("the registry does not have the blob {}", blob.digest), true)
            }
            Some(blob) => (format!("the download of {} has failed", blob.digest), false),
            None => {
                let manifest = missing.manifests.first();
                let digest = manifest.map(ToString::to_string).unwrap_or_default();
                (format!("the manifest {digest} cannot be fetched"), false)
            }
        }
    }

    fn missing(&self, name: &ImageName, entry: &Entry) -> Missing {
        self.prefetcher.missing(name, &entry.digest, &self.wanted(name, entry))
    }

    /// Forgets an image that is complete.
    fn settle(&self, key: &Key, entry: &Entry, now: SystemTime) {
        let (name, _) = key;
        {
            let mut table = lock(&self.table);
            table.remove(key);
            // A pull has completed what was fetched in vain for a HEAD request.
            table.forget_failures(name, &entry.digest);
        }
        let mut settled = lock(&self.settled);
        let platforms = entry.platforms.iter().map(|platform| Some(platform.to_string()));
        for platform in platforms.chain([None]) {
            settled.insert((name.clone(), entry.digest, platform), now);
        }
    }

    /// Records that an image is complete now, if it was not before: once, and soon after its manifest was fetched.
    /// An index that a client pulled is not an image: those that it refers to are reported.
    fn report_complete(&self, key: &Key, entry: &Entry, now: SystemTime) {
        let (name, reference) = key;
        let Some(record) = self.core.store.manifest(name, &entry.digest, Access::Look) else {
            return;
        };
        let is_new = now.duration_since(record.fetched).is_ok_and(|age| age < NEW);
        if !is_new || entry.is_pulled && record.media_type.is_index() {
            return;
        }
        let mut reported = lock(&self.reported);
        if reported.get(&(name.clone(), entry.digest)).is_none() {
            reported.insert((name.clone(), entry.digest), ());
            let event = Event::new(EventType::ImageComplete, name.with(reference));
            self.core.events.record(now, event.with("digest", entry.digest));
        }
    }

    /// The platforms to complete. A client that pulls requests its own.
    fn wanted(&self, name: &ImageName, entry: &Entry) -> Wanted {
        match entry.is_pulled {
            true => Wanted::with_attestations(self.core.settings().prefetch.platforms.clone()),
            false => self.prefetcher.wanted(name, &entry.digest, &entry.platforms),
        }
    }

    /// Records that an image could not be completed. It is tried again unless that is pointless.
    fn failed(&self, key: &Key, reason: &str, is_final: bool) {
        let now = self.core.now();
        let mut given_up = false;
        self.change(key, |entry| {
            entry.attempts += 1;
            // A pull may continue to be tried by its client, so that one attempt is enough here.
            if is_final || entry.attempts >= ATTEMPTS_MAX {
                entry.stage = Stage::GivenUp(reason.to_owned());
                entry.due = now;
                given_up = true;
            } else {
                entry.stage = Stage::Retrying(reason.to_owned());
                entry.due = now + pause(entry.attempts);
            }
        });
        if given_up {
            self.core.metrics.completed("failed");
            log::warn!(
                image = key.0.with(&key.1).as_str(), error = reason;
                "image not complete, and not tried again"
            );
        }
    }

    fn postpone(&self, key: &Key, due: SystemTime, reason: Option<String>) {
        self.change(key, |entry| {
            entry.due = due;
            entry.stage = match reason {
                Some(reason) => Stage::Retrying(reason),
                None if entry.attempts == 0 => Stage::Queued,
                None => entry.stage.clone(),
            };
        });
    }

    fn change(&self, key: &Key, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = lock(&self.table).get_mut(key) {
            change(entry);
        }
    }
}

/// The pause after a failed attempt.
fn pause(attempts: u32) -> Duration {
    PAUSE_MAX.min(PAUSE_MIN * 2_u32.saturating_pow(attempts.saturating_sub(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_an_hour() {
        let minutes: Vec<u64> = (1..ATTEMPTS_MAX).map(|each| pause(each).as_secs() / 60).collect();
        assert_eq!(minutes, [1, 2, 4, 8, 16, 32, 60]);
    }
}
