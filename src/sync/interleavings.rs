//! Explores the interleavings of tests (`make interleavings`).

use shuttle::scheduler::{DfsScheduler, PctScheduler, RandomScheduler};
use shuttle::{Config, MaxSteps, Runner};
use std::sync::Arc;
use std::task::{Poll, Wake, Waker};

use super::atomic::{AtomicBool, Ordering};
use super::{Condvar, Mutex};

/// The maximum number of interleavings of a test that tries all.
const ALL_MAX: usize = 100_000;
/// The number of random interleavings of each kind; `INTERLEAVINGS` sets another one.
const SOME: usize = 4_000;
/// How many switches the second kind places at random: most faults need one or two.
const SWITCHES: usize = 3;

/// The maximum number of switches in a test: a loop without an end is an error.
const STEPS_MAX: usize = 50_000;

fn config() -> Config {
    let mut config = Config::new();
    // Unoptimised code that parses manifests needs more than the default.
    config.stack_size = 512 * 1024;
    config.max_steps = MaxSteps::FailAfter(STEPS_MAX);
    // It treats every ordering as sequentially consistent, and warns about others.
    config.silence_warnings = true;
    config
}

/// Runs a test with every interleaving, and fails if there are too many to try all.
pub(crate) fn all(test: impl Fn() + Send + Sync + 'static) {
    let count = Runner::new(DfsScheduler::new(Some(ALL_MAX), false), config()).run(test);
    println!("all {count} interleavings");
    assert!(count < ALL_MAX, "there are more interleavings");
}

/// Runs a test with random interleavings: first with a switch possible everywhere, then with few switches in
/// random places.
pub(crate) fn some(test: impl Fn() + Send + Sync + 'static) {
    some_of(SOME, test);
}

/// As [`some`], for tests that take longer.
pub(crate) fn few(test: impl Fn() + Send + Sync + 'static) {
    some_of(SOME / 2, test);
}

fn some_of(count: usize, test: impl Fn() + Send + Sync + 'static) {
    let count = std::env::var("INTERLEAVINGS").ok().and_then(|it| it.parse().ok()).unwrap_or(count);
    let test = Arc::new(test);
    let again = Arc::clone(&test);
    Runner::new(RandomScheduler::new(count), config()).run(move || test());
    Runner::new(PctScheduler::new(SWITCHES, count), config()).run(move || again());
}

/// A point at which another thread may continue. A yield would tell shuttle that this thread waits for others.
pub(super) fn switch() {
    AtomicBool::new(false).load(Ordering::SeqCst);
}

/// Wakes a thread that waits in [`wait_for`].
#[derive(Default)]
pub(crate) struct Bell {
    has_rung: Mutex<bool>,
    rung: Condvar,
}

impl Bell {
    /// Waits until it rings, or has rung. (`park` may return without a reason, so that there is no last order.)
    pub(crate) fn wait(&self) {
        let has_rung = self.has_rung.lock().unwrap();
        *self.rung.wait_while(has_rung, |has_rung| !*has_rung).unwrap() = false;
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        *self.has_rung.lock().unwrap() = true;
        self.rung.notify_one();
    }
}

/// Polls until the value is there, and waits for the waker in between. A wake-up that is lost is a deadlock, which
/// shuttle reports.
pub(crate) fn wait_for<T>(poll: impl Fn(&Waker) -> Poll<T>) -> T {
    let bell = Arc::new(Bell::default());
    let waker = Waker::from(Arc::clone(&bell));
    loop {
        if let Poll::Ready(value) = poll(&waker) {
            return value;
        }
        bell.wait();
    }
}
