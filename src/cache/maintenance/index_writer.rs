//! Keeps `index.json` up to date with the tags, and checks for changes of `larder offline`.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::background::Background;
use crate::cache::Cache;

/// How often the thread checks for work. `larder offline` takes effect after this time at most.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// `index.json` is rewritten at most this often.
const INDEX_INTERVAL: Duration = Duration::from_secs(1);
/// The pause between rewrites is also at least this many times the duration of the last one, so that they take at most
/// 1 % of a core. With 100,000 tags, one from all records takes about a second, and one from the changes a tenth of that.
const INDEX_PAUSE_FACTOR: u32 = 100;

/// The thread that writes `index.json`. Dropping it ends the thread after a last write, if one is due.
pub struct IndexWriter {
    _thread: Background,
}

impl IndexWriter {
    /// Starts the thread for `cache`.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn start(cache: Cache) -> std::io::Result<IndexWriter> {
        let loss = "index.json may lack the newest tags";
        let work = move |stopped: Receiver<()>| run(&cache, &stopped);
        Ok(IndexWriter { _thread: Background::start("index-writer", loss, work)? })
    }
}

fn run(cache: &Cache, stopped: &Receiver<()>) {
    let (mut pause, mut written) = (INDEX_INTERVAL, Instant::now());
    loop {
        cache.check_switches();
        cache.record_registry_changes();
        cache.store().probe();
        let is_last = match stopped.recv_timeout(CHECK_INTERVAL) {
            Err(RecvTimeoutError::Timeout) => false,
            Ok(()) | Err(RecvTimeoutError::Disconnected) => true,
        };
        let is_due = is_last || written.elapsed() >= pause;
        if is_due && cache.store().is_index_outdated() {
            let began = Instant::now();
            if let Err(error) = cache.store().write_index() {
                log::warn!(error:%; "index.json lacks the newest tags, the server is not affected");
            }
            pause = pause_after(began.elapsed());
            written = Instant::now();
        }
        if is_last {
            return;
        }
    }
}

/// The pause after a rewrite that took `duration`.
fn pause_after(duration: Duration) -> Duration {
    INDEX_INTERVAL.max(duration * INDEX_PAUSE_FACTOR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_rewrites_take_at_most_one_percent_of_the_time() {
        for (milliseconds, pause_seconds) in [(0, 1), (5, 1), (10, 1), (20, 2), (1_200, 120)] {
            let pause = pause_after(Duration::from_millis(milliseconds));
            assert_eq!(pause, Duration::from_secs(pause_seconds), "{milliseconds} ms");
        }
    }
}
