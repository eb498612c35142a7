//! Scrubbing: all blobs are hashed periodically, so that damage on the disk is detected while the registries are still
//! available.
//!
//! Damaged blobs are moved to quarantine and fetched again. A pass is slow on purpose. If several processes share a
//! directory, one of them scrubs it.

use std::num::NonZeroU64;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use super::background::Background;
use crate::cache::Cache;
use crate::oci::{Digest, ImageName, Reference};
use crate::store::{Checked, PeriodicJob, StoredImage};

/// How much is read at a time, in bytes.
const CHUNK_BYTES: usize = 256 * 1024;
/// How often the thread checks whether a pass is due.
const CHECK_INTERVAL: Duration = Duration::from_secs(30);

/// When blobs are hashed, and how fast.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScrubPolicy {
    /// The time from one pass to the next.
    pub every: Duration,
    /// The maximum rate in bytes per second.
    pub rate: NonZeroU64,
}

/// What a pass found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScrubReport {
    /// The number of hashed blobs.
    pub blobs: u64,
    /// Their size in bytes.
    pub bytes: u64,
    /// The damaged ones.
    pub damaged: Vec<Digest>,
}

/// Computes the pauses that keep work below a rate.
#[derive(Debug)]
pub struct Pace {
    rate: NonZeroU64,
    began: Instant,
    bytes: u64,
}

impl Pace {
    /// `rate` bytes per second from `now` on.
    pub fn new(rate: NonZeroU64, now: Instant) -> Pace {
        Pace { rate, began: now, bytes: 0 }
    }

    /// How long to wait after these bytes.
    pub fn after(&mut self, bytes: u64, now: Instant) -> Duration {
        self.bytes += bytes;
        // The precision of `f64` is enough for pauses.
        let due = Duration::from_secs_f64(self.bytes as f64 / self.rate.get() as f64);
        due.saturating_sub(now.duration_since(self.began))
    }
}

/// The thread that scrubs. Dropping it stops the current pass.
pub struct Scrubber {
    _thread: Background,
}

impl Scrubber {
    /// Starts the thread for `cache`.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn start(cache: Cache, policy: ScrubPolicy) -> std::io::Result<Scrubber> {
        let loss = "blobs are not scrubbed until a restart";
        let work = move |stopped: Receiver<()>| work(&cache, &policy, &stopped);
        Ok(Scrubber { _thread: Background::start("scrubber", loss, work)? })
    }
}

fn work(cache: &Cache, policy: &ScrubPolicy, stopped: &Receiver<()>) {
    let mut go_on = || matches!(stopped.try_recv(), Err(TryRecvError::Empty));
    // Damage from an earlier pass that ended before the blobs were fetched again.
    cache.refetch_damaged(&cache.store().quarantined(), &mut go_on);
    loop {
        let store = cache.store();
        if store.is_writable()
            && let Some(lease) = store.acquire_lease(PeriodicJob::Scrub, policy.every, cache.now())
        {
            let mut pace = Pace::new(policy.rate, Instant::now());
            let report = cache.scrub(&mut |bytes| {
                let wait = pace.after(bytes, Instant::now());
                matches!(stopped.recv_timeout(wait), Err(RecvTimeoutError::Timeout))
            });
            if let Some(report) = report {
                log::info!(
                    blobs = report.blobs, size_bytes = report.bytes, damaged = report.damaged.len();
                    "scrub: finished"
                );
                lease.finish(cache.now());
                cache.refetch_damaged(&report.damaged, &mut go_on);
            }
        }
        match stopped.recv_timeout(CHECK_INTERVAL) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

impl Cache {
    /// Hashes every blob and moves damaged ones to quarantine. `pace` receives the number of bytes that were read. If
    /// it returns `false`, the pass ends without a report.
    pub fn scrub(&self, pace: &mut dyn FnMut(u64) -> bool) -> Option<ScrubReport> {
        let store = self.store();
        let (mut report, mut buffer) = (ScrubReport::default(), vec![0; CHUNK_BYTES]);
        let blobs = match store.blobs() {
            Ok(blobs) => blobs,
            Err(error) => {
                log::error!(error:%; "scrub: cannot list the blobs");
                return None;
            }
        };
        for (digest, size) in blobs {
            match store.check_blob(&digest, &mut buffer, pace) {
                Checked::Sound => {}
                Checked::Gone => continue,
                Checked::Unreadable(error) => {
                    log::warn!(digest:%, error:%; "scrub: a blob cannot be read");
                    continue;
                }
                Checked::Stopped => return None,
                Checked::Damaged(damage) => {
                    match store.quarantine(&damage) {
                        Ok(Some(path)) => log::error!(
                            digest:%, file:% = path.display(), error = damage.reason.as_str();
                            "scrub: a blob is damaged; it was moved to quarantine"
                        ),
                        Ok(None) => continue,
                        Err(error) => log::error!(
                            digest:%, error:%;
                            "scrub: a blob is damaged and cannot be moved to quarantine"
                        ),
                    }
                    report.damaged.push(digest);
                    self.metrics().scrub_damaged.inc();
                    self.services.blobs.forget_size(&digest);
                }
            }
            report.blobs += 1;
            report.bytes += size;
            self.metrics().scrubbed_blobs.inc();
            self.metrics().scrubbed_bytes.inc_by(size);
        }
        Some(report)
    }

    /// Fetches damaged content again if an image needs it, in the background.
    pub fn refetch_damaged(&self, damaged: &[Digest], go_on: &mut dyn FnMut() -> bool) {
        if damaged.is_empty() || self.is_offline() {
            return;
        }
        let store = self.store().clone();
        let mut visit = |image: &StoredImage| {
            if !go_on() {
                return Err(std::io::ErrorKind::Interrupted.into());
            }
            let graph = store.graph_of(image);
            for each in graph.manifests.iter().filter(|each| each.manifest.is_none()) {
                if damaged.contains(&each.descriptor.digest) {
                    self.refetch_manifest(&image.name, each.descriptor.digest);
                }
            }
            for blob in graph.missing_blobs().filter(|blob| damaged.contains(&blob.digest)) {
                self.services.prefetcher.fetch_if_missing(&image.name, blob);
            }
            Ok(())
        };
        // The visitor returns an error only to end the walk.
        let _ = store.each_image(&mut visit);
    }

    fn refetch_manifest(&self, name: &ImageName, digest: Digest) {
        let key = (name.clone(), Reference::Digest(digest));
        self.services.manifests.fetch_in_background(key, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_keep_the_average_rate() {
        let start = Instant::now();
        let mut pace = Pace::new(NonZeroU64::new(1000).unwrap(), start);
        let second = Duration::from_secs(1);
        assert_eq!(pace.after(500, start), second / 2);
        assert_eq!(pace.after(500, start + second / 2), second / 2);
        // A pass that fell behind schedule catches up.
        assert_eq!(pace.after(1000, start + 5 * second), Duration::ZERO);
        assert_eq!(pace.after(4000, start + 5 * second), second);
    }
}
