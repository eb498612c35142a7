//! Threads that work in the background until they are dropped.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

/// A background thread. Dropping this stops it and waits for its end.
pub(in crate::cache) struct Background {
    /// Dropped to end the thread.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
    /// What no longer works if it panics.
    loss: &'static str,
}

impl Background {
    /// Starts a thread. `work` must return soon after its receiver reports `Disconnected`.
    pub(in crate::cache) fn start(
        name: &str,
        loss: &'static str,
        work: impl FnOnce(Receiver<()>) + Send + 'static,
    ) -> std::io::Result<Background> {
        let (stop, stopped) = channel();
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || work(stopped))?;
        Ok(Background { stop: Some(stop), thread: Some(thread), loss })
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        drop(self.stop.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::error!("a background thread panicked: {}", self.loss);
        }
    }
}
