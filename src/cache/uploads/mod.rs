//! Uploads what the store has queued to the bucket, in the background: blobs, then records of manifests, then tags.
//!
//! The store's queue is durable, so a kill or an outage of the bucket loses nothing. Clients never wait for an upload, and
//! no failure here affects them. Of the processes on a directory, one uploads at a time.
//!
//! # Interleavings
//! * *Another cache uploads the same blob*: the second upload finds the object, by HEAD or because it may only create one,
//!   and that is as good.
//! * *Another cache has moved the same tag*: the record that was confirmed last stays. Between the check and the write, a
//!   tag can be replaced by one that was confirmed some milliseconds earlier; the next confirmation repairs that.
//! * *Stop during an upload*: the part that is being sent is not completed. The claim stays in the queue, and the parts that
//!   the server has are not sent again.

mod objects;
mod outage;
mod parts;
mod source;
mod status;

use std::collections::HashMap;
use std::io;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use super::maintenance::Background;
use super::{Cache, lock};
use crate::metrics::Metrics;
use crate::store::{OutgoingContent, OutgoingEntry, OutgoingKind, Store};
use crate::upstream::{Bucket, EndpointStatus, Probe, Throttle, UpstreamError};
use outage::{Delay, Outage};
use parts::Plans;

pub(super) use source::Upload;
pub use status::{BucketStatus, examine_bucket};

/// How often the queue is looked at while it is empty.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The pauses after failures.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// How many entries are read from the queue at a time.
const BATCH: usize = 65_536;
/// After so many failures in a row, the bucket counts as failing.
const FAILURES_MAX: usize = 8;
/// How long to wait before what is cached is queued again after a failure of that.
const SEEDED_AGAIN_AFTER: Duration = Duration::from_secs(600);

/// How content is uploaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadSettings {
    /// Whether nothing is uploaded.
    pub is_read_only: bool,
    /// How many objects at the same time.
    pub threads: usize,
    /// The most bytes per second that all uploads use together.
    pub rate: Option<NonZeroU64>,
}

/// How long the end of the server waits for requests to the bucket that are under way. What is interrupted is still queued.
pub(super) const LEFT_AFTER: Duration = Duration::from_secs(1);

/// The thread that uploads. Dropping it stops the uploads.
pub struct UploadThread {
    shared: Arc<Shared>,
    _thread: Background,
}

pub(super) struct Shared {
    store: Store,
    bucket: Bucket,
    settings: UploadSettings,
    metrics: Arc<Metrics>,
    throttle: Option<Arc<Throttle>>,
    probe: Mutex<Option<Probe>>,
    queued: AtomicUsize,
    running: AtomicUsize,
    done: AtomicU64,
    sent_bytes: AtomicU64,
    outage: Mutex<Option<Outage>>,
    is_stopped: AtomicBool,
    plans: Mutex<Plans>,
    delayed: Mutex<HashMap<OutgoingEntry, Delay>>,
    /// When what is cached may be queued; `None` for at once.
    next_seed: Mutex<Option<Instant>>,
}

impl UploadThread {
    /// Starts the thread. It probes the bucket first. From now on, new content is queued unless the bucket is read-only.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(
        cache: Cache,
        bucket: Bucket,
        settings: UploadSettings,
    ) -> io::Result<UploadThread> {
        let store = cache.store().clone();
        let url = bucket.store.url();
        store.set_outgoing((!settings.is_read_only).then_some(&*url));
        let shared = Arc::new(Shared {
            store,
            bucket,
            metrics: Arc::clone(&cache.core().metrics),
            throttle: settings.rate.map(|rate| Arc::new(Throttle::at(rate))),
            settings,
            probe: Mutex::default(),
            queued: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            done: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
            outage: Mutex::default(),
            is_stopped: AtomicBool::new(false),
            plans: Mutex::default(),
            delayed: Mutex::default(),
            next_seed: Mutex::default(),
        });
        cache.core().set_uploads(&shared);
        let work = Arc::clone(&shared);
        let loss = "nothing is uploaded to the bucket until a restart";
        let thread = Background::start("uploads", loss, move |stopped| work.run(&cache, &stopped))?;
        Ok(UploadThread { shared, _thread: thread.left_after(LEFT_AFTER) })
    }
}

impl Drop for UploadThread {
    fn drop(&mut self) {
        self.shared.is_stopped.store(true, Ordering::Relaxed);
    }
}

/// The uploads of one round.
#[derive(Default)]
struct Batch {
    done: AtomicUsize,
    /// Failures since the last success.
    failures: AtomicUsize,
}

impl Batch {
    fn is_over(&self) -> bool {
        self.failures.load(Ordering::Relaxed) >= FAILURES_MAX
    }
}

/// When the bucket is examined again, after it could not be used.
struct NextProbe {
    at: Instant,
    wait: Duration,
    /// The failure, which is logged once.
    failure: String,
}

/// What has become of an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Uploaded {
    /// It was sent.
    Sent,
    /// The bucket has it.
    Exists,
    /// It must wait for something else.
    Later,
    /// It must not be uploaded: it is damaged.
    Damaged,
}

/// Why a round of uploads ended.
enum Round {
    /// Nothing is queued.
    Empty,
    /// Something was uploaded.
    Progress,
    /// Nothing could be uploaded: the bucket failed.
    Failed,
    /// Only content that is not there yet is queued.
    Waiting,
}

impl Shared {
    pub(super) fn status(&self, reads: Option<EndpointStatus>) -> BucketStatus {
        BucketStatus {
            url: self.bucket.store.url(),
            reads,
            is_read_only: self.settings.is_read_only,
            probe: lock(&self.probe).clone(),
            queued: self.queued.load(Ordering::Relaxed),
            running: self.running.load(Ordering::Relaxed),
            done: self.done.load(Ordering::Relaxed),
            sent_bytes: self.sent_bytes.load(Ordering::Relaxed),
            failure: lock(&self.outage).as_ref().map(|outage| (outage.since, outage.text.clone())),
        }
    }

    fn run(&self, cache: &Cache, stopped: &Receiver<()>) {
        if self.settings.is_read_only {
            // Nothing else to do but to keep the status.
            let mut next_probe = self.probe(None);
            while let Some(next) = next_probe {
                match stopped.recv_timeout(next.wait) {
                    Err(RecvTimeoutError::Timeout) => next_probe = self.probe(Some(next)),
                    _ => return,
                }
            }
            let _ = stopped.recv();
            return;
        }
        // First, because nothing is evicted until everything is queued.
        if let Some(_lock) = self.store.lock_uploads() {
            self.seed(stopped);
        }
        let mut next_probe = self.probe(None);
        let mut pause = PAUSE_MIN;
        while !self.is_stopped(stopped) {
            if next_probe.as_ref().is_some_and(|next| Instant::now() >= next.at) {
                next_probe = self.probe(next_probe);
            }
            let round = match self.store.lock_uploads() {
                Some(_lock) => {
                    self.seed(stopped);
                    self.upload_batch(cache.now(), stopped)
                }
                // Another process uploads.
                None => Round::Empty,
            };
            let wait = match round {
                Round::Progress => {
                    pause = PAUSE_MIN;
                    continue;
                }
                Round::Empty | Round::Waiting => LOOK_EVERY,
                Round::Failed => {
                    let wait = pause;
                    pause = (pause * 2).min(PAUSE_MAX);
                    wait
                }
            };
            match stopped.recv_timeout(wait) {
                Err(RecvTimeoutError::Timeout) => {}
                _ => return,
            }
        }
    }

    fn is_stopped(&self, stopped: &Receiver<()>) -> bool {
        self.is_stopped.load(Ordering::Relaxed)
            || matches!(stopped.try_recv(), Err(TryRecvError::Disconnected))
    }

    /// Finds out what the bucket can do, and reports it. If it cannot be used, that is repeated: it may be down.
    fn probe(&self, before: Option<NextProbe>) -> Option<NextProbe> {
        let url = self.bucket.store.url();
        let (probe, found) = examine_bucket(&self.bucket.store, self.settings.is_read_only);
        let is_unreadable = probe.as_ref().is_some_and(|probe| !probe.is_readable);
        if probe.is_some() {
            *lock(&self.probe) = probe;
        }
        let failure = match &found {
            Ok(capabilities) if !is_unreadable => {
                log::info!(
                    endpoint:% = url, capabilities:%; "objectStore: the bucket was examined"
                );
                return None;
            }
            Ok(capabilities) => capabilities.clone(),
            Err(error) => error.to_string(),
        };
        if before.as_ref().is_none_or(|before| before.failure != failure) {
            match found {
                Ok(capabilities) => log::error!(
                    endpoint:% = url, capabilities:%;
                    "objectStore: the bucket cannot be read; allow the keys to get objects"
                ),
                Err(error) => log::error!(
                    endpoint:% = url, error:%;
                    "objectStore: the bucket cannot be used; cached content, peers and registries are used meanwhile"
                ),
            }
        }
        let wait = before.map_or(PAUSE_MIN, |before| (before.wait * 2).min(PAUSE_MAX));
        Some(NextProbe { at: Instant::now() + wait, wait, failure })
    }

    /// Queues what was cached before there was a bucket, or what is not known to be queued because the queue was removed.
    fn seed(&self, stopped: &Receiver<()>) {
        let url = self.bucket.store.url();
        let mut next = lock(&self.next_seed);
        if self.store.is_seeded_for(&url) || next.is_some_and(|next| Instant::now() < next) {
            return;
        }
        self.store.set_outgoing(Some(&url));
        let mut count = 0_u64;
        let seeded = self.store.seed_outgoing(&url, &mut || {
            count += 1;
            !self.is_stopped(stopped)
        });
        match seeded {
            Ok(()) if count > 0 => {
                log::info!(
                    files = count, endpoint:% = url;
                    "objectStore: cached files are queued for upload"
                );
            }
            Ok(()) => {}
            Err(error) => {
                *next = Some(Instant::now() + SEEDED_AGAIN_AFTER);
                log::error!(
                    wait_ms = SEEDED_AGAIN_AFTER.as_secs_f64() * 1e3, error:%;
                    "objectStore: cannot queue what is cached; nothing is evicted until it is queued, which is \
                     tried again"
                );
            }
        }
    }

    /// Uploads what is queued now, one kind after the other.
    fn upload_batch(&self, now: SystemTime, stopped: &Receiver<()>) -> Round {
        let (entries, count) = self.store.outgoing(BATCH);
        self.queued.store(count, Ordering::Relaxed);
        self.forget_delays(&entries, count);
        if entries.is_empty() {
            return Round::Empty;
        }
        let batch = Batch::default();
        for kind in [OutgoingKind::Blob, OutgoingKind::Manifest, OutgoingKind::Tag] {
            let entries: Vec<&OutgoingEntry> =
                entries.iter().filter(|entry| entry.kind == kind).collect();
            let next = AtomicUsize::new(0);
            let work = || {
                while !batch.is_over() && !self.is_stopped.load(Ordering::Relaxed) {
                    match entries.get(next.fetch_add(1, Ordering::Relaxed)) {
                        Some(entry) => self.upload_one(entry, now, &batch),
                        None => return,
                    }
                }
            };
            let threads = self.settings.threads.min(entries.len());
            std::thread::scope(|scope| {
                // This thread waits for the stop while the others work.
                let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
                while workers.iter().any(|worker| !worker.is_finished()) {
                    if let Err(RecvTimeoutError::Disconnected) =
                        stopped.recv_timeout(Duration::from_millis(20))
                    {
                        self.is_stopped.store(true, Ordering::Relaxed);
                        break;
                    }
                }
            });
        }
        match (batch.done.load(Ordering::Relaxed), batch.is_over()) {
            (_, true) => Round::Failed,
            (0, false) => Round::Waiting,
            _ => Round::Progress,
        }
    }

    fn upload_one(&self, entry: &OutgoingEntry, now: SystemTime, batch: &Batch) {
        if lock(&self.delayed).get(entry).is_some_and(|delay| Instant::now() < delay.until) {
            return;
        }
        self.running.fetch_add(1, Ordering::Relaxed);
        let uploaded = self.upload_entry(entry, now);
        self.running.fetch_sub(1, Ordering::Relaxed);
        match uploaded {
            Ok(true) => {
                lock(&self.delayed).remove(entry);
                self.queued.fetch_sub(1, Ordering::Relaxed);
                self.done.fetch_add(1, Ordering::Relaxed);
                batch.done.fetch_add(1, Ordering::Relaxed);
                batch.failures.store(0, Ordering::Relaxed);
            }
            Ok(false) => drop(lock(&self.delayed).remove(entry)),
            Err(error) => {
                self.note_failure(&error, now);
                if error.is_unreachable() {
                    batch.failures.store(FAILURES_MAX, Ordering::Relaxed);
                    return;
                }
                // It may be about this object only. Several in a row are about the bucket.
                batch.failures.fetch_add(1, Ordering::Relaxed);
                self.delay(entry);
            }
        }
    }

    /// Uploads what an entry asks for. `false` if it must wait.
    fn upload_entry(&self, entry: &OutgoingEntry, now: SystemTime) -> Result<bool, UpstreamError> {
        let file = match self.store.claim_outgoing(entry, now) {
            Ok(OutgoingContent::File(file)) => file,
            Ok(OutgoingContent::NotYet) => return Ok(false),
            Ok(OutgoingContent::Gone) => return Ok(true),
            Err(error) => {
                log::warn!(error:%; "objectStore: cannot upload");
                return Ok(false);
            }
        };
        let uploaded = match entry.kind {
            OutgoingKind::Blob => self.upload_blob(&file),
            OutgoingKind::Manifest | OutgoingKind::Tag => {
                self.upload_record(entry.kind, &file, now)
            }
        };
        let outcome = match &uploaded {
            Ok(Uploaded::Sent) => "sent",
            Ok(Uploaded::Exists) => "exists",
            Ok(Uploaded::Later) => return Ok(false),
            Ok(Uploaded::Damaged) => {
                self.store.drop_outgoing(entry);
                return Ok(true);
            }
            Err(_) => "failed",
        };
        self.metrics.uploaded(outcome);
        let uploaded = uploaded?;
        match uploaded {
            Uploaded::Sent => self.bucket.note_uploaded(&file.key),
            _ if entry.kind != OutgoingKind::Tag => self.bucket.note_present(&file.key),
            _ => {}
        }
        if uploaded == Uploaded::Sent {
            self.sent_bytes.fetch_add(file.size, Ordering::Relaxed);
            self.metrics.uploaded_bytes.inc_by(file.size);
            log::debug!(
                file = file.key.as_str(), size_bytes = file.size; "objectStore: uploaded a file"
            );
        }
        self.store.finish_outgoing(entry, &file);
        self.note_success(entry, now);
        Ok(true)
    }
}
