//! `rateLimit`: limits the rate of a registry's blobs, over all its downloads together.
//!
//! The token bucket is pure: callers pass in the time. A reader takes bytes from the bucket, sleeps until they are due,
//! and reads no more than it took. TCP's flow control then slows the registry down. The stall timeout of the transport
//! applies to each read and does not include the sleep.

use std::io::{self, Read};
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The longest sleep. A reader that must wait longer returns `Interrupted`, so that its caller can stop the download.
const SLEEP_MAX: Duration = Duration::from_millis(100);
/// The bytes of one second are read in this many pieces, so that downloads that share a rate take turns.
const PIECES_PER_SECOND: u64 = 20;
/// The largest piece, in bytes: as much as a download without a limit reads at a time.
const PIECE_BYTES_MAX: u64 = 128 * 1024;
/// How much an idle registry may send at once, as a time at its rate.
const CREDIT: Duration = Duration::from_millis(200);

/// The clock: an argument, so that tests can control it.
pub(super) trait Time: Send + Sync {
    fn now(&self) -> Instant;
    fn sleep(&self, duration: Duration);
}

/// The machine's clock.
struct RealTime;

impl Time for RealTime {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn sleep(&self, duration: Duration) {
        thread::sleep(duration);
    }
}

/// A token bucket. Has no clock.
#[derive(Debug)]
struct Bucket {
    bytes_per_second: NonZeroU64,
    /// When the bytes taken so far are used up at this rate.
    paid: Option<Instant>,
}

impl Bucket {
    /// Takes `bytes` and returns how long to wait before reading them.
    fn take(&mut self, bytes: u64, now: Instant) -> Duration {
        let earliest = now.checked_sub(CREDIT).unwrap_or(now);
        let turn = self.paid.map_or(earliest, |paid| paid.max(earliest));
        self.paid = Some(turn + self.cost(bytes));
        turn.saturating_duration_since(now)
    }

    /// Returns bytes that were taken and not read.
    fn refund(&mut self, bytes: u64) {
        let cost = self.cost(bytes);
        self.paid = self.paid.and_then(|paid| paid.checked_sub(cost));
    }

    fn cost(&self, bytes: u64) -> Duration {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second.get());
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// The rate limit of one registry, shared by its downloads, or of all uploads.
pub struct Throttle {
    /// Locked for one calculation at a time.
    bucket: Mutex<Bucket>,
    piece_bytes: u64,
    time: Box<dyn Time>,
}

impl Throttle {
    /// A limit by the machine's clock.
    pub fn at(bytes_per_second: NonZeroU64) -> Throttle {
        Throttle::new(bytes_per_second, Box::new(RealTime))
    }

    pub(super) fn new(bytes_per_second: NonZeroU64, time: Box<dyn Time>) -> Throttle {
        let piece_bytes = (bytes_per_second.get() / PIECES_PER_SECOND).clamp(1, PIECE_BYTES_MAX);
        let bucket = Bucket { bytes_per_second, paid: None };
        Throttle { bucket: Mutex::new(bucket), piece_bytes, time }
    }

    /// Limits a reader to this rate.
    pub fn slow<R: Read>(self: &Arc<Self>, reader: R) -> Throttled<R> {
        Throttled { reader, throttle: Arc::clone(self), turn: None }
    }

    fn bucket(&self) -> MutexGuard<'_, Bucket> {
        // A panic leaves a time, and any time is valid.
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self, wanted: usize) -> Turn {
        let bytes = self.piece_bytes.min(wanted as u64);
        let now = self.time.now();
        Turn { bytes, at: now + self.bucket().take(bytes, now) }
    }
}

/// Bytes that were taken from the bucket, and the time when they may be read.
#[derive(Clone, Copy)]
struct Turn {
    bytes: u64,
    at: Instant,
}

/// A reader with a limited rate.
pub struct Throttled<R> {
    reader: R,
    throttle: Arc<Throttle>,
    /// The bytes that were taken and not read yet.
    turn: Option<Turn>,
}

impl<R: Read> Read for Throttled<R> {
    /// # Errors
    /// `Interrupted` if no bytes are due yet, so that the caller reads again; otherwise those of the inner reader.
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        let turn = *self.turn.get_or_insert_with(|| self.throttle.turn(out.len()));
        let time = &self.throttle.time;
        let wait = turn.at.saturating_duration_since(time.now());
        if !wait.is_zero() {
            time.sleep(wait.min(SLEEP_MAX));
            if time.now() < turn.at {
                return Err(io::ErrorKind::Interrupted.into());
            }
        }
        self.turn = None;
        let bytes = usize::try_from(turn.bytes).map_or(out.len(), |bytes| bytes.min(out.len()));
        let read = self.reader.read(&mut out[..bytes]);
        let used = read.as_ref().map_or(0, |count| *count as u64);
        self.throttle.bucket().refund(turn.bytes.saturating_sub(used));
        read
    }
}

impl<R> Drop for Throttled<R> {
    fn drop(&mut self) {
        if let Some(turn) = self.turn {
            self.throttle.bucket().refund(turn.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(bytes_per_second: u64) -> Bucket {
        Bucket { bytes_per_second: NonZeroU64::new(bytes_per_second).unwrap(), paid: None }
    }

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn bytes_wait_for_those_before_them() {
        let (mut bucket, start) = (bucket(1000), Instant::now());
        // Time since the start, bytes, wait: all in thousandths.
        for (at, bytes, wait) in [
            (0, 200, 0),
            (0, 500, 0),
            (0, 100, 500),
            (600, 100, 0),
            (650, 1000, 50),
            (700, 0, 1000),
            // After a long idle time, still no more than the credit at once.
            (9000, 200, 0),
            (9000, 1, 0),
            (9000, 1, 1),
        ] {
            let waited = bucket.take(bytes, start + millis(at));
            assert_eq!(waited, millis(wait), "{bytes} bytes at {at}");
        }
    }

    #[test]
    fn returned_bytes_cost_nothing() {
        let (mut bucket, now) = (bucket(1000), Instant::now());
        bucket.take(1000, now);
        bucket.refund(700);
        assert_eq!(bucket.take(1, now), millis(100));
    }

    #[test]
    fn costs_do_not_overflow() {
        assert_eq!(bucket(1).cost(3), Duration::from_secs(3));
        assert_eq!(bucket(u64::MAX).cost(u64::MAX), Duration::from_secs(1));
        assert_eq!(bucket(1).cost(u64::MAX), Duration::from_nanos(u64::MAX));
    }

    /// Advances only by sleeping.
    #[derive(Clone)]
    struct FakeTime {
        start: Instant,
        slept: Arc<Mutex<Vec<Duration>>>,
    }

    impl FakeTime {
        fn new() -> FakeTime {
            FakeTime { start: Instant::now(), slept: Arc::default() }
        }

        fn passed(&self) -> Duration {
            self.slept.lock().unwrap().iter().sum()
        }
    }

    impl Time for FakeTime {
        fn now(&self) -> Instant {
            self.start + self.passed()
        }

        fn sleep(&self, duration: Duration) {
            self.slept.lock().unwrap().push(duration);
        }
    }

    fn throttle(bytes_per_second: u64) -> (Arc<Throttle>, FakeTime) {
        let time = FakeTime::new();
        let rate = NonZeroU64::new(bytes_per_second).unwrap();
        (Arc::new(Throttle::new(rate, Box::new(time.clone()))), time)
    }

    #[test]
    fn a_body_arrives_completely_and_at_its_rate() {
        let (throttle, time) = throttle(100_000);
        let content: Vec<u8> = (0..250_000u32).map(|number| number as u8).collect();
        let mut read = Vec::new();
        throttle.slow(&content[..]).read_to_end(&mut read).unwrap();
        assert!(read == content);
        // The bytes of 2.5 seconds: those of the first 0.2 s at once, and without a wait after the last piece.
        assert!((millis(2200)..=millis(2300)).contains(&time.passed()), "{:?}", time.passed());
    }

    #[test]
    fn downloads_share_the_rate_and_take_turns() {
        let (throttle, time) = throttle(100_000);
        let content = vec![7; 100_000];
        let mut readers = [throttle.slow(&content[..]), throttle.slow(&content[..])];
        let (mut counts, mut out) = ([0, 0], [0; 50_000]);
        while counts != [100_000, 100_000] {
            for (reader, count) in readers.iter_mut().zip(&mut counts) {
                *count += reader.read(&mut out).unwrap_or(0);
            }
            assert!(counts[0].abs_diff(counts[1]) <= 5000, "{counts:?}");
        }
        assert!((millis(1700)..=millis(1850)).contains(&time.passed()), "{:?}", time.passed());
    }

    #[test]
    fn a_download_can_be_stopped_at_any_rate() {
        let (throttle, time) = throttle(1);
        let mut reader = throttle.slow(&[7; 10][..]);
        let mut out = [0; 10];
        assert_eq!(reader.read(&mut out).unwrap(), 1);
        let sleeps = std::iter::repeat_with(|| reader.read(&mut out).map_err(|error| error.kind()));
        let sleeps: Vec<_> = sleeps.take(5).collect();
        assert_eq!(sleeps, [Err(io::ErrorKind::Interrupted); 5]);
        assert!(time.slept.lock().unwrap().iter().all(|sleep| *sleep <= SLEEP_MAX));
    }

    #[test]
    fn a_dropped_reader_returns_its_bytes() {
        let (throttle, time) = throttle(10);
        let mut out = [0; 10];
        drop(throttle.slow(&[][..]).read(&mut out));
        assert_eq!(throttle.bucket().take(0, time.now()), Duration::ZERO);
        throttle.bucket().take(12, time.now());
        let before = throttle.bucket().paid;
        let mut waiting = throttle.slow(&[7; 10][..]);
        assert!(waiting.read(&mut out).is_err());
        assert_ne!(throttle.bucket().paid, before);
        drop(waiting);
        assert_eq!(throttle.bucket().paid, before);
    }
}
