//! Waiting for the cache on a thread of one's own, as commands do and servers must not.

use std::sync::Arc;
use std::task::{Poll, Wake, Waker};
use std::thread::{self, Thread};

/// Wakes a thread that is parked.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Polls until there is an answer, and sleeps in between.
pub(super) fn wait<T>(mut poll: impl FnMut(&Waker) -> Poll<T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    loop {
        match poll(&waker) {
            Poll::Ready(answer) => return answer,
            // A wake-up before this is not lost, and a needless one does no harm.
            Poll::Pending => thread::park(),
        }
    }
}
