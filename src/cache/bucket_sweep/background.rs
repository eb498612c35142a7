//! The thread that writes what was pulled, and sweeps when it is this cache's turn.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::{BucketLimits, SweepError, SweepReport, SweepTimes, Sweeper, USAGE_EVERY};
use crate::cache::maintenance::Background;
use crate::cache::uploads::LEFT_AFTER;
use crate::cache::{Cache, lock};
use crate::upstream::Bucket;

/// How often the thread looks whether a sweep is due.
const LOOK_EVERY: Duration = Duration::from_secs(10 * 60);
/// The first usage walk of a new process takes some seconds.
const FIRST_LOOK_AFTER: Duration = Duration::from_secs(60);

/// The thread. Dropping it ends it, also in the middle of a sweep.
pub struct BucketSweepThread {
    _thread: Background,
}

impl BucketSweepThread {
    /// Starts the thread.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(
        cache: Cache,
        bucket: Bucket,
        limits: BucketLimits,
        may_sweep: impl Fn() -> bool + Send + 'static,
    ) -> io::Result<BucketSweepThread> {
        let loss = "the bucket is not swept by this process until a restart";
        let work = move |stopped| Work { cache, bucket, limits, stopped }.run(&may_sweep);
        let thread = Background::start("bucket-sweep", loss, work)?;
        Ok(BucketSweepThread { _thread: thread.left_after(LEFT_AFTER) })
    }
}

struct Work {
    cache: Cache,
    bucket: Bucket,
    limits: BucketLimits,
    stopped: Receiver<()>,
}

impl Work {
    fn run(self, may_sweep: &dyn Fn() -> bool) {
        let is_stopped = AtomicBool::new(false);
        let stopped = Mutex::new(self.stopped);
        // Returns when the time has passed, or the process is stopping.
        let wait = |time: Duration| {
            if let Err(RecvTimeoutError::Disconnected) = lock(&stopped).recv_timeout(time) {
                is_stopped.store(true, Ordering::Relaxed);
            }
        };
        let should_go_on = || !is_stopped.load(Ordering::Relaxed);
        let mut next_usage = Instant::now();
        wait(FIRST_LOOK_AFTER);
        while should_go_on() {
            let maintenance = self.cache.maintenance();
            let sweeper = Sweeper {
                bucket: &self.bucket.store,
                local: self.cache.store(),
                pins: &maintenance.pins,
                limits: self.limits,
                times: SweepTimes::default(),
                should_go_on: &should_go_on,
                wait: &wait,
            };
            if Instant::now() >= next_usage {
                next_usage = Instant::now() + USAGE_EVERY;
                match sweeper.write_usage() {
                    Ok(()) | Err(SweepError::Stopped) => {}
                    Err(error) => log::warn!(error:%; "objectStore: cannot write what was pulled"),
                }
            }
            if self.limits.is_bounded() && may_sweep() {
                report(sweeper.sweep_if_due());
            }
            wait(LOOK_EVERY);
        }
    }
}

fn report(result: Result<Option<SweepReport>, SweepError>) {
    match result {
        Ok(Some(report)) if report != SweepReport::default() => log::warn!(
            images = report.images.len(), blobs = report.blobs, freed_bytes = report.freed_bytes;
            "objectStore: removed images from the bucket"
        ),
        Ok(_) | Err(SweepError::Stopped) => {}
        Err(error) => log::warn!(error:%; "objectStore: the sweep of the bucket has ended early"),
    }
}
