//! Housekeeping beside the requests: `index.json` follows the tags, and the server `larder offline`.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::Cache;

/// How often it is looked for something to do. `larder offline` is heeded after this long at most.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// `index.json` is rewritten at most this often.
const INDEX_INTERVAL: Duration = Duration::from_secs(2);
/// And at most this share of the time is spent on it: a rewrite walks all tags, which takes a second or
/// two where there are a hundred thousand.
const INDEX_SHARE: u32 = 20;

/// The thread that keeps house. Dropping it ends the thread and writes what is outstanding.
pub struct Keeper {
    /// Dropped to end the thread.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Starts to keep house for `cache`.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn start(cache: Cache) -> std::io::Result<Keeper> {
        let (stop, stopped) = channel();
        let keep = move || keep(&cache, &stopped);
        let thread = thread::Builder::new().name("keeper".into()).spawn(keep)?;
        Ok(Keeper { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.stop.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::error!("the housekeeping thread panicked; index.json may lack the newest tags");
        }
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
