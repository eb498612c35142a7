//! How fast an upstream may send.

use std::time::{Duration, Instant};

/// The tick of a throttled upstream: 50 KB at 100 MB/s, which makes the link smooth.
pub(crate) const LINK_TICK: Duration = Duration::from_micros(500);
/// How many ticks a link may make up for when this process did not get the CPU, which would not slow
/// down a real link.
const LINK_BURST_TICKS: u32 = 40;
/// Bytes per system call of an unthrottled upstream.
const SLICE_BYTES: usize = 1024 * 1024;

/// How many bytes may be sent now.
pub(crate) struct Link {
    bytes_per_second: u64,
    allowance: f64,
    filled: Instant,
}

impl Link {
    /// A rate of 0 is unlimited. The link earns its allowance from `start` on.
    pub(crate) fn new(bytes_per_second: u64, start: Instant) -> Link {
        Link { bytes_per_second, allowance: 0.0, filled: start }
    }

    pub(crate) fn is_limited(&self) -> bool {
        self.bytes_per_second > 0
    }

    pub(crate) fn refill(&mut self, now: Instant) {
        let rate = self.bytes_per_second as f64;
        let burst = rate * (LINK_TICK * LINK_BURST_TICKS).as_secs_f64();
        let earned = rate * now.saturating_duration_since(self.filled).as_secs_f64();
        self.allowance = (self.allowance + earned).min(burst);
        self.filled = self.filled.max(now);
    }

    pub(crate) fn grant(&self) -> usize {
        if self.bytes_per_second == 0 {
            return SLICE_BYTES;
        }
        // Never negative, and far below the maximum.
        self.allowance as usize
    }

    pub(crate) fn spend(&mut self, bytes: usize) {
        self.allowance = (self.allowance - bytes as f64).max(0.0);
    }
}
