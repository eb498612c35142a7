//! Housekeeping beside the requests: `index.json` follows the tags, and the server `larder offline`.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::Cache;
use super::background::Background;

/// How often it is looked for something to do. `larder offline` is heeded after this long at most.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// `index.json` is rewritten at most this often.
const INDEX_INTERVAL: Duration = Duration::from_secs(2);
/// And at most this share of the time is spent on it: a rewrite walks all tags, which takes a second or
/// two where there are a hundred thousand.
const INDEX_SHARE: u32 = 20;

/// The thread that keeps house. Dropping it ends the thread and writes what is outstanding.
pub struct Keeper {
    _thread: Background,
}

impl Keeper {
    /// Starts to keep house for `cache`.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn start(cache: Cache) -> std::io::Result<Keeper> {
        let loss = "index.json may lack the newest tags";
        let work = move |stopped: Receiver<()>| keep(&cache, &stopped);
        Ok(Keeper { _thread: Background::start("keeper", loss, work)? })
    }
}

fn keep(cache: &Cache, stopped: &Receiver<()>) {
    let (mut pause, mut written) = (INDEX_INTERVAL, Instant::now());
    loop {
        cache.look_at_offline_switch();
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
            pause = INDEX_INTERVAL.max(began.elapsed() * INDEX_SHARE);
            written = Instant::now();
        }
        if is_last {
            return;
        }
    }
}
