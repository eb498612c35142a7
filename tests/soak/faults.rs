//! Which requests the registry fails, and how.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::random::Random;

/// A failure of one response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection ends after this share of the body, in percent.
    Cut(usize),
    /// The connection ends before the response.
    Reset,
    /// One bit of the body differs.
    WrongBytes,
    /// A complete response with a part of the body.
    Truncated,
    Status(u16),
    /// 429 with `Retry-After`.
    RateLimited,
    /// The response begins after a pause that is longer than Larder's timeout.
    Stall,
    /// The body pauses in the middle.
    Pause,
    /// The complete content instead of a range.
    IgnoreRange,
    WrongDigestHeader,
}

/// A condition of the complete registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outage {
    /// Connections are refused.
    Down,
    RateLimited,
    Errors,
    /// Everything is answered 404.
    Missing,
    Stalls,
}

impl Outage {
    pub const ALL: [Outage; 5] =
        [Outage::Down, Outage::RateLimited, Outage::Errors, Outage::Missing, Outage::Stalls];
}

/// The faults in force.
pub struct Faults {
    seed: u64,
    /// How many requests out of a hundred fail.
    percent: AtomicUsize,
    outage: Mutex<Option<(Outage, Instant)>>,
    /// How many requests failed.
    pub injected: AtomicU64,
}

impl Faults {
    pub fn new(seed: u64) -> Faults {
        let percent = AtomicUsize::new(0);
        Faults { seed, percent, outage: Mutex::default(), injected: AtomicU64::new(0) }
    }

    pub fn set_percent(&self, percent: usize) {
        self.percent.store(percent, Ordering::Relaxed);
    }

    pub fn begin_outage(&self, outage: Outage, length: Duration) {
        let mut current = self.outage.lock().unwrap_or_else(PoisonError::into_inner);
        *current = Some((outage, Instant::now() + length));
    }

    /// Ends all faults.
    pub fn heal(&self) {
        self.set_percent(0);
        *self.outage.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub fn outage(&self) -> Option<Outage> {
        let current = self.outage.lock().unwrap_or_else(PoisonError::into_inner);
        current.filter(|(_, until)| Instant::now() < *until).map(|(outage, _)| outage)
    }

    /// The fault of a request: the n-th for its path. So the decisions do not depend on the order of requests for
    /// different paths.
    pub fn of(&self, method: &str, path: &str, number: u64) -> Option<Fault> {
        let fault = match self.outage() {
            Some(Outage::RateLimited) => Some(Fault::RateLimited),
            Some(Outage::Errors) => Some(Fault::Status(500)),
            Some(Outage::Missing) => Some(Fault::Status(404)),
            Some(Outage::Stalls) => Some(Fault::Stall),
            Some(Outage::Down) | None => self.single(method, path, number),
        };
        if fault.is_some() {
            self.injected.fetch_add(1, Ordering::Relaxed);
        }
        fault
    }

    fn single(&self, method: &str, path: &str, number: u64) -> Option<Fault> {
        let mut random = Random::new(self.seed, &format!("{method} {path} {number}"));
        if !random.percent(self.percent.load(Ordering::Relaxed)) {
            return None;
        }
        // Nothing verifies lists and the headers of a response to HEAD, so a lie there is passed on.
        let is_list = path.contains("/tags/list") || path.contains("/referrers/");
        let kinds = if method == "HEAD" || is_list { 8..16 } else { 0..16 };
        Some(match random.between(kinds.start, kinds.end - 1) {
            0..=3 => Fault::Cut(random.below(100)),
            4 | 5 => Fault::WrongBytes,
            6 => Fault::Truncated,
            7 => Fault::WrongDigestHeader,
            8 => Fault::Reset,
            9 => Fault::Status(500),
            10 => Fault::Status(503),
            11 => Fault::Status(404),
            12 => Fault::RateLimited,
            13 => Fault::Stall,
            14 => Fault::Pause,
            _ => Fault::IgnoreRange,
        })
    }
}
