//! Housekeeping beside the requests: `index.json` follows the tags, and the server `larder offline`.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::background::Background;
use crate::cache::Cache;

/// How often it is looked for something to do. `larder offline` is heeded after this long at most.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// `index.json` is rewritten at most this often.
const INDEX_INTERVAL: Duration = Duration::from_secs(1);
/// And after a pause of this many times the duration of the last rewrite, so that at most 1 % of a core is
/// spent on it: with 100,000 tags a rewrite reads and writes for about a second.
const INDEX_PAUSE_FACTOR: u32 = 100;

/// The thread that keeps house. Dropping it ends the thread and writes what is outstanding.
pub struct IndexWriter {
    _thread: Background,
}

impl IndexWriter {
    /// Starts to keep house for `cache`.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn start(cache: Cache) -> std::io::Result<IndexWriter> {
        let loss = "index.json may lack the newest tags";
        let work = move |stopped: Receiver<()>| keep(&cache, &stopped);
        Ok(IndexWriter { _thread: Background::start("index-writer", loss, work)? })
    }
}

fn keep(cache: &Cache, stopped: &Receiver<()>) {
    let (mut pause, mut written) = (INDEX_INTERVAL, Instant::now());
    loop {
        cache.check_offline_switch();
        let is_last = match stopped.recv_timeout(LOOK_INTERVAL) {
            Err(RecvTimeoutError::Timeout) => false,
            Ok(()) | Err(RecvTimeoutError::Disconnected) => true,
        };
        let is_due = is_last || written.elapsed() >= pause;
        if is_due && cache.store().is_index_outdated() {
            let began = Instant::now();
            if let Err(error) = cache.store().write_index() {
                log::warn!("index.json lacks the newest tags, larder does not mind: {error}");
            }
            pause = pause_after(began.elapsed());
            written = Instant::now();
        }
        if is_last {
            return;
        }
    }
}

/// How long `index.json` is left alone after a rewrite that took so long.
fn pause_after(duration: Duration) -> Duration {
    INDEX_INTERVAL.max(duration * INDEX_PAUSE_FACTOR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rewriting_the_index_costs_a_hundredth_of_the_time_at_most() {
        for (milliseconds, pause_seconds) in [(0, 1), (5, 1), (10, 1), (20, 2), (1_200, 120)] {
            let pause = pause_after(Duration::from_millis(milliseconds));
            assert_eq!(pause, Duration::from_secs(pause_seconds), "{milliseconds} ms");
        }
    }
}
