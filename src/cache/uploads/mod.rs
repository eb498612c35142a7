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

mod parts;
mod source;
mod status;

use std::io::{self, Read};
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use super::maintenance::Background;
use super::{Cache, lock};
use crate::metrics::Metrics;
use crate::oci::{Record, StoredPath, TagRecord};
use crate::store::{OutgoingContent, OutgoingEntry, OutgoingFile, OutgoingKind, Store};
use crate::units::{duration, plural, size};
use crate::upstream::{Bucket, Condition, EndpointStatus, Probe, Put, Throttle, UpstreamError};
use crate::via;
use parts::{CONFIRMED_FOR, Fate, Plans};
use source::Section;
use status::capabilities;

pub(super) use source::Upload;
pub use status::BucketStatus;

/// How often the queue is looked at while it is empty.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The pauses after failures.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// How many entries are read from the queue at a time.
const BATCH: usize = 4096;
/// A larger blob is uploaded only after a HEAD request has shown that it is missing.
const ASKED_FIRST_BYTES: u64 = 256 * 1024;
/// The largest record of a tag that is read, in bytes.
const RECORD_BYTES_MAX: u64 = 64 * 1024;

/// An object that a read-only cache looks for to find out whether the bucket can be reached. It need not exist.
const READ_TO_PROBE: &str = "oci-layout";

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
    failure: Mutex<Option<(SystemTime, String)>>,
    is_stopped: AtomicBool,
    plans: Mutex<Plans>,
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
            failure: Mutex::default(),
            is_stopped: AtomicBool::new(false),
            plans: Mutex::default(),
        });
        cache.core().set_uploads(&shared);
        let work = Arc::clone(&shared);
        let loss = "nothing is uploaded to the bucket until a restart";
        let thread = Background::start("uploads", loss, move |stopped| work.run(&cache, &stopped))?;
        Ok(UploadThread { shared, _thread: thread })
    }
}

impl Drop for UploadThread {
    fn drop(&mut self) {
        self.shared.is_stopped.store(true, Ordering::Relaxed);
    }
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
            failure: lock(&self.failure).clone(),
        }
    }

    fn run(&self, cache: &Cache, stopped: &Receiver<()>) {
        if self.settings.is_read_only {
            self.probe();
            // Nothing to do but to keep the status.
            let _ = stopped.recv();
            return;
        }
        // First, because nothing is evicted until everything is queued.
        if let Some(_lock) = self.store.lock_uploads() {
            self.seed(stopped);
        }
        self.probe();
        let mut pause = PAUSE_MIN;
        while !self.is_stopped(stopped) {
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

    /// Finds out what the bucket can do, and reports it.
    fn probe(&self) {
        let url = self.bucket.store.url();
        let found = match self.settings.is_read_only {
            // Nothing may be written.
            true => match self.bucket.store.head(READ_TO_PROBE) {
                Err(error) if !error.is_not_found() => Err(error),
                _ => Ok("reachable, readOnly".to_owned()),
            },
            false => {
                let probe = self.bucket.store.probe(via::instance());
                let found = probe.error.clone().map_or_else(|| Ok(capabilities(&probe)), Err);
                *lock(&self.probe) = Some(probe);
                found
            }
        };
        match found {
            Ok(capabilities) => log::info!("objectStore: {url}: {capabilities}"),
            Err(error) => log::error!(
                "objectStore: {error}; cached content, peers and registries are used meanwhile"
            ),
        }
    }

    /// Queues what was cached before there was a bucket.
    fn seed(&self, stopped: &Receiver<()>) {
        let url = self.bucket.store.url();
        if self.store.is_seeded_for(&url) {
            return;
        }
        let mut count = 0_u64;
        let seeded = self.store.seed_outgoing(&url, &mut || {
            count += 1;
            !self.is_stopped(stopped)
        });
        match seeded {
            Ok(()) if count > 0 => {
                log::info!("objectStore: {} queued for {url}", plural(count, "file"));
            }
            Ok(()) => {}
            Err(error) => log::warn!("objectStore: cannot queue what is cached: {error}"),
        }
    }

    /// Uploads what is queued now, one kind after the other.
    fn upload_batch(&self, now: SystemTime, stopped: &Receiver<()>) -> Round {
        let (entries, count) = self.store.outgoing(BATCH);
        self.queued.store(count, Ordering::Relaxed);
        if entries.is_empty() {
            return Round::Empty;
        }
        let (done, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        for kind in [OutgoingKind::Blob, OutgoingKind::Manifest, OutgoingKind::Tag] {
            let entries: Vec<&OutgoingEntry> =
                entries.iter().filter(|entry| entry.kind == kind).collect();
            let next = AtomicUsize::new(0);
            let work = || {
                while !failed.load(Ordering::Relaxed) && !self.is_stopped.load(Ordering::Relaxed) {
                    let Some(entry) = entries.get(next.fetch_add(1, Ordering::Relaxed)) else {
                        return;
                    };
                    self.running.fetch_add(1, Ordering::Relaxed);
                    let uploaded = self.upload_entry(entry, now);
                    self.running.fetch_sub(1, Ordering::Relaxed);
                    match uploaded {
                        Ok(true) => {
                            self.queued.fetch_sub(1, Ordering::Relaxed);
                            self.done.fetch_add(1, Ordering::Relaxed);
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(false) => {}
                        Err(error) => {
                            self.note_failure(&error, now);
                            // Any other error is about this object only.
                            if error.is_trouble() || error.is_refusal() {
                                failed.store(true, Ordering::Relaxed);
                            }
                        }
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
            if failed.load(Ordering::Relaxed) {
                return Round::Failed;
            }
        }
        match done.load(Ordering::Relaxed) {
            0 => Round::Waiting,
            _ => Round::Progress,
        }
    }

    /// Uploads what an entry asks for. `false` if it must wait.
    fn upload_entry(&self, entry: &OutgoingEntry, now: SystemTime) -> Result<bool, UpstreamError> {
        let file = match self.store.claim_outgoing(entry, now) {
            Ok(OutgoingContent::File(file)) => file,
            Ok(OutgoingContent::NotYet) => return Ok(false),
            Ok(OutgoingContent::Gone) => return Ok(true),
            Err(error) => {
                log::warn!("objectStore: cannot upload: {error}");
                return Ok(false);
            }
        };
        let uploaded = match entry.kind {
            OutgoingKind::Blob => self.upload_blob(&file),
            OutgoingKind::Manifest | OutgoingKind::Tag => self.upload_record(entry.kind, &file),
        };
        let outcome = match &uploaded {
            Ok(Uploaded::Sent) => "sent",
            Ok(Uploaded::Exists) => "exists",
            Ok(Uploaded::Later) => return Ok(false),
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
            log::debug!("objectStore: uploaded {} ({})", file.key, size(file.size));
        }
        self.store.finish_outgoing(entry);
        if let Some((since, _)) = lock(&self.failure).take() {
            let outage = now.duration_since(since).unwrap_or_default();
            log::info!("objectStore: uploads succeed again after {}", duration(outage));
        }
        Ok(true)
    }

    fn upload_blob(&self, file: &OutgoingFile) -> Result<Uploaded, UpstreamError> {
        let mut is_wrong = self.bucket.is_wrong(&file.key);
        let mut is_there = !is_wrong
            && self.bucket.was_present(&file.key, CONFIRMED_FOR)
            && self.fate(&file.key)? != Fate::MayBeGone;
        if !is_wrong && !is_there && file.size > ASKED_FIRST_BYTES {
            match self.bucket.store.head(&file.key) {
                Ok(head) if head.size == file.size => is_there = true,
                Ok(_) => is_wrong = true,
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        let uploaded = match is_there {
            true => Uploaded::Exists,
            false => {
                let condition = if is_wrong { Condition::None } else { Condition::IfAbsent };
                self.put(file, condition)?
            }
        };
        match uploaded == Uploaded::Exists && self.fate(&file.key)? == Fate::IsCondemned {
            true => Ok(Uploaded::Later),
            false => Ok(uploaded),
        }
    }

    /// Uploads a record when the bucket has what it refers to.
    fn upload_record(
        &self,
        kind: OutgoingKind,
        file: &OutgoingFile,
    ) -> Result<Uploaded, UpstreamError> {
        let Some(path) = StoredPath::parse(&file.key) else { return Ok(Uploaded::Exists) };
        let tag = (kind == OutgoingKind::Tag).then(|| read_tag(file)).flatten();
        let begun = Instant::now();
        if !self.has_parts(&path, tag.as_ref())? {
            return Ok(Uploaded::Later);
        }
        let uploaded = match (kind, &tag) {
            (OutgoingKind::Tag, Some(tag)) if self.is_confirmed_later(file, tag)? => {
                Uploaded::Exists
            }
            (OutgoingKind::Tag, _) => self.put(file, Condition::None)?,
            _ if self.bucket.was_present(&file.key, CONFIRMED_FOR)
                && self.fate(&file.key)? == Fate::Stays =>
            {
                Uploaded::Exists
            }
            _ => self.put(file, Condition::IfAbsent)?,
        };
        // An old record of the same manifest may be about to be removed.
        let is_condemned = kind == OutgoingKind::Manifest
            && uploaded == Uploaded::Exists
            && self.fate(&file.key)? == Fate::IsCondemned;
        // If this process was suspended meanwhile, a sweep may not have seen the record in time.
        match is_condemned || begun.elapsed() > CONFIRMED_FOR {
            true => Ok(Uploaded::Later),
            false => Ok(uploaded),
        }
    }

    /// Whether the bucket's record of a tag is that of another cache that has confirmed it later, or the same.
    fn is_confirmed_later(
        &self,
        file: &OutgoingFile,
        ours: &TagRecord,
    ) -> Result<bool, UpstreamError> {
        let theirs = match self.bucket.store.read(&file.key, RECORD_BYTES_MAX) {
            Ok(read) => TagRecord::from_json(&read.bytes),
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(error),
        };
        Ok(theirs.is_some_and(|theirs| {
            theirs.checked > ours.checked
                || (theirs.checked == ours.checked && theirs.digest == ours.digest)
        }))
    }

    fn upload_of<'a>(&'a self, file: &'a OutgoingFile) -> Upload<'a> {
        Upload { file, throttle: self.throttle.as_ref(), is_stopped: &self.is_stopped }
    }

    fn put(&self, file: &OutgoingFile, condition: Condition) -> Result<Uploaded, UpstreamError> {
        match self.bucket.store.upload(&file.key, &self.upload_of(file), condition)? {
            Put::Done { .. } => Ok(Uploaded::Sent),
            // Unless another cache was writing it at that moment, and fails.
            Put::Exists => self.bucket.store.head(&file.key).map(|_| Uploaded::Exists),
        }
    }

    fn note_failure(&self, error: &UpstreamError, now: SystemTime) {
        let mut failure = lock(&self.failure);
        // Once for each outage.
        match failure.as_mut() {
            Some((_, text)) => *text = error.to_string(),
            None => {
                log::warn!(
                    "objectStore: {error}; {} wait",
                    plural(self.queued.load(Ordering::Relaxed), "upload")
                );
                *failure = Some((now, error.to_string()));
            }
        }
    }
}

/// The record that is to be uploaded.
fn read_tag(file: &OutgoingFile) -> Option<TagRecord> {
    let mut bytes = Vec::new();
    Section { file, at: 0, left: RECORD_BYTES_MAX }.read_to_end(&mut bytes).ok()?;
    TagRecord::from_json(&bytes)
}
