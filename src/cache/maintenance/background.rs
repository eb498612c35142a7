//! Threads that work in the background until they are dropped.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::RecvTimeoutError;

/// A background thread. Dropping this stops it and waits for its end.
pub(in crate::cache) struct Background {
    /// Dropped to end the thread.
    stop: Option<Sender<()>>,
    /// Disconnected when the thread has ended.
    ended: crossbeam_channel::Receiver<()>,
    thread: Option<JoinHandle<()>>,
    /// What no longer works if it panics.
    loss: &'static str,
    /// The longest wait for its end; `None` for any.
    patience: Option<Duration>,
}

impl Background {
    /// Starts a thread. `work` must return soon after its receiver reports `Disconnected`.
    pub(in crate::cache) fn start(
        name: &str,
        loss: &'static str,
        work: impl FnOnce(Receiver<()>) + Send + 'static,
    ) -> std::io::Result<Background> {
        let (stop, stopped) = channel();
        let (ends, ended) = crossbeam_channel::bounded(0);
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _ends: crossbeam_channel::Sender<()> = ends;
            work(stopped);
        })?;
        Ok(Background { stop: Some(stop), ended, thread: Some(thread), loss, patience: None })
    }

    /// Limits the wait for its end. Only for work that may be interrupted by the end of the process at any point, and that
    /// waits for a server that may not respond.
    pub(in crate::cache) fn left_after(mut self, patience: Duration) -> Background {
        self.patience = Some(patience);
        self
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        drop(self.stop.take());
        let wait = |patience| self.ended.recv_timeout(patience);
        if self.patience.map(wait) == Some(Err(RecvTimeoutError::Timeout)) {
            return;
        }
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::error!(effect = self.loss; "a background thread panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thread_that_does_not_end_is_left() {
        let (open, gate) = channel::<()>();
        let work = move |_stopped| gate.recv().unwrap_or_default();
        let thread = Background::start("stuck", "", work).expect("a thread");
        drop(thread.left_after(Duration::from_millis(10)));
        // Otherwise this is never reached.
        drop(open);
    }
}
