//! Decides how many connections a large download uses: more, as long as they make it faster.
//!
//! A pure calculation; callers pass in the time. It starts with one connection and measures its rate. If the rest of the
//! blob would take long at this rate, it opens all others, waits until they receive bytes, and measures again. If the rate
//! has grown by less than a part of what they could have brought, the link or the registry is the limit, and the surplus
//! connections end. Each step costs some round trips, so there is only one.

use std::time::{Duration, Instant};

/// The rate of a single connection is known earlier than [`ConnectionPolicy::measured`] if it has received this much.
const MEASURED_BYTES: u64 = 1024 * 1024;
/// How much a connection requests at a time until it is known whether more connections are worthwhile. Otherwise they would
/// delay the bytes that clients receive next, if the link is the limit.
const UNPROVEN_BYTES: u64 = 3 * 1024 * 1024;
/// Afterwards, a request should take this long: a connection is idle for a round trip between two of them.
const REQUEST: Duration = Duration::from_secs(1);
/// How long to wait before connections are wanted again, if no fetcher was free for them.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// How many connections the download of one large blob may use, and when it opens them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionPolicy {
    /// The maximum number of connections.
    pub max: usize,
    /// How long the rate is measured.
    pub measured: Duration,
    /// If the rest of the blob takes less time than this, more connections would be open hardly sooner than it has arrived.
    pub worthwhile: Duration,
    /// The percentage of the ideal growth of the rate below which more connections are not worthwhile.
    pub gain_min: i32,
    /// How long the part with the first missing byte may be without progress before the first connection takes it over; and
    /// how long another process that downloads the blob may be, before this one does.
    pub stalled_after: Duration,
}

impl Default for ConnectionPolicy {
    fn default() -> Self {
        ConnectionPolicy {
            max: 8,
            measured: Duration::from_millis(100),
            worthwhile: Duration::from_millis(400),
            gain_min: 30,
            stalled_after: Duration::from_secs(5),
        }
    }
}

#[derive(Debug)]
pub(super) struct Growth {
    policy: ConnectionPolicy,
    /// The open connections.
    open: usize,
    /// How many may be open.
    allowed: usize,
    /// The opened connections that have not received anything yet.
    connecting: usize,
    /// Since when the rate is measured, and the bytes received since then.
    since: Option<Instant>,
    received: u64,
    /// The last measured rate in bytes per second, and with how many connections.
    last: Option<(usize, f64)>,
    /// The rate of one connection in bytes per second at the last measurement.
    rate_of_each: Option<f64>,
    is_settled: bool,
}

impl Growth {
    pub(super) fn new(policy: ConnectionPolicy) -> Growth {
        let is_settled = policy.max <= 1;
        Growth {
            policy,
            open: 1,
            allowed: 1,
            connecting: 0,
            since: None,
            received: 0,
            last: None,
            rate_of_each: None,
            is_settled,
        }
    }

    /// Whether there is more than one connection, or may be. Otherwise the first one requests all that is missing.
    pub(super) fn is_possible(&self) -> bool {
        !self.is_settled || self.open > 1
    }

    /// How much a connection should request at a time; `None` until a rate was measured.
    pub(super) fn request_bytes(&self) -> Option<u64> {
        let rate = self.rate_of_each?;
        let is_unproven = !self.is_settled && self.open > 1;
        Some(if is_unproven { UNPROVEN_BYTES } else { (rate * REQUEST.as_secs_f64()) as u64 })
    }

    /// How many connections are open.
    pub(super) fn open(&self) -> usize {
        self.open
    }

    /// How many connections may be open.
    pub(super) fn allowed(&self) -> usize {
        self.allowed
    }

    /// Opens no more connections.
    pub(super) fn settle(&mut self) {
        self.is_settled = true;
    }

    /// Opens no more connections, and ends those that are open.
    pub(super) fn settle_for_one(&mut self) {
        (self.is_settled, self.allowed) = (true, 1);
    }

    /// Records received bytes.
    pub(super) fn received(&mut self, bytes: u64, now: Instant) {
        match self.since {
            None => self.since = Some(now),
            // The measurement begins later.
            Some(since) if now < since => {}
            Some(_) => self.received += bytes,
        }
    }

    /// How many connections should be opened now, if `left` bytes are missing.
    pub(super) fn wanted(&mut self, left: u64, now: Instant) -> usize {
        let Some(since) = self.since else { return 0 };
        let Some(elapsed) = now.checked_duration_since(since) else { return 0 };
        let is_measured =
            elapsed >= self.policy.measured || (self.open == 1 && self.received >= MEASURED_BYTES);
        if self.is_settled || self.connecting > 0 || !is_measured {
            return 0;
        }
        let rate = self.received as f64 / elapsed.as_secs_f64().max(f64::EPSILON);
        self.rate_of_each = Some(rate / self.open as f64);
        if let Some((connections, before)) = self.last {
            let ideal = self.open as f64 / connections as f64 - 1.0;
            let gain = rate / before.max(1.0) - 1.0;
            if gain < ideal * f64::from(self.policy.gain_min) / 100.0 {
                self.is_settled = true;
                // As many as would have the same rate, if each had that of the first ones.
                self.allowed = (connections as f64 * (1.0 + gain.max(0.0))).ceil() as usize;
                return 0;
            }
        }
        if left as f64 <= rate * self.policy.worthwhile.as_secs_f64()
            || self.open >= self.policy.max
        {
            self.is_settled = true;
            return 0;
        }
        self.last = Some((self.open, rate));
        self.allowed = self.policy.max;
        self.allowed - self.open
    }

    /// Records how many of the wanted connections are being opened.
    pub(super) fn opened(&mut self, count: usize, now: Instant) {
        self.open += count;
        self.connecting += count;
        self.allowed = self.open;
        if count == 0 {
            self.last = None;
            self.measure_from(now + RETRY_AFTER);
        }
    }

    /// Records that a connection has received its first bytes.
    pub(super) fn connected(&mut self, now: Instant) {
        self.connecting = self.connecting.saturating_sub(1);
        self.measure_from(now);
    }

    /// Records the end of an additional connection.
    pub(super) fn closed(&mut self, is_failed: bool, was_connected: bool, now: Instant) {
        self.open = self.open.saturating_sub(1).max(1);
        self.allowed = self.allowed.min(self.open.max(1));
        self.is_settled |= is_failed;
        if !was_connected {
            self.connecting = self.connecting.saturating_sub(1);
            self.measure_from(now);
        }
    }

    fn measure_from(&mut self, since: Instant) {
        (self.since, self.received) = (Some(since), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    /// A link on which each connection receives `per_connection` bytes per second, and all of them `total` at most.
    struct Link {
        per_connection: u64,
        total: u64,
    }

    impl Link {
        /// Downloads `size` bytes in steps of 10 ms, and returns the largest number of open connections, and the number
        /// of them that may be open at the end.
        fn download(&self, size: u64, policy: ConnectionPolicy) -> (usize, usize) {
            let mut growth = Growth::new(policy);
            let (mut now, mut left, mut most) = (Instant::now(), size, 1);
            while left > 0 {
                now += Duration::from_millis(10);
                let rate = self.total.min(self.per_connection * growth.open as u64);
                let bytes = (rate / 100).min(left);
                left -= bytes;
                growth.received(bytes, now);
                let wanted = growth.wanted(left, now);
                if wanted > 0 {
                    growth.opened(wanted, now);
                    (0..wanted).for_each(|_| growth.connected(now));
                }
                most = most.max(growth.open);
            }
            (most, growth.allowed())
        }
    }

    /// One connection was measured, and all others are wanted.
    fn measured() -> (Growth, Instant) {
        let mut growth = Growth::new(ConnectionPolicy::default());
        let start = Instant::now();
        growth.received(1, start);
        let now = start + Duration::from_millis(200);
        growth.received(MIB, now);
        assert_eq!(growth.wanted(100 * MIB, now), 7);
        (growth, now)
    }

    #[test]
    fn connections_are_added_as_long_as_each_has_a_rate_of_its_own() {
        let link = Link { per_connection: 20 * MIB, total: 1000 * MIB };
        assert_eq!(link.download(160 * MIB, ConnectionPolicy::default()), (8, 8));
        let three = ConnectionPolicy { max: 3, ..ConnectionPolicy::default() };
        assert_eq!(link.download(160 * MIB, three), (3, 3));
    }

    #[test]
    fn surplus_connections_end_if_the_link_is_the_limit() {
        let link = Link { per_connection: 10 * MIB, total: 10 * MIB };
        assert_eq!(link.download(160 * MIB, ConnectionPolicy::default()), (8, 1));
        let link = Link { per_connection: 10 * MIB, total: 15 * MIB };
        assert_eq!(link.download(160 * MIB, ConnectionPolicy::default()), (8, 2));
    }

    #[test]
    fn download_that_ends_soon_uses_one_connection() {
        let link = Link { per_connection: 500 * MIB, total: 1000 * MIB };
        assert_eq!(link.download(160 * MIB, ConnectionPolicy::default()), (1, 1));
        let link = Link { per_connection: 20 * MIB, total: 1000 * MIB };
        assert_eq!(link.download(9 * MIB, ConnectionPolicy::default()), (1, 1));
    }

    #[test]
    fn one_connection_never_grows() {
        let one = ConnectionPolicy { max: 1, ..ConnectionPolicy::default() };
        assert!(!Growth::new(one.clone()).is_possible());
        let link = Link { per_connection: MIB, total: 1000 * MIB };
        assert_eq!(link.download(160 * MIB, one), (1, 1));
    }

    #[test]
    fn no_more_connections_are_opened_after_one_has_failed() {
        let (mut growth, now) = measured();
        growth.opened(7, now);
        (0..7).for_each(|_| growth.closed(true, false, now));
        let later = now + Duration::from_secs(1);
        growth.received(10 * MIB, later);
        assert_eq!(growth.wanted(100 * MIB, later), 0);
        assert!(!growth.is_possible());
    }

    #[test]
    fn connections_are_wanted_again_if_no_fetcher_was_free() {
        let (mut growth, now) = measured();
        growth.opened(0, now);
        growth.received(5 * MIB, now + Duration::from_millis(500));
        assert_eq!(growth.wanted(100 * MIB, now + Duration::from_millis(500)), 0);
        // Meanwhile the only connection sends long requests.
        assert_eq!(growth.request_bytes(), Some(5 * MIB));
        let later = now + Duration::from_millis(1_500);
        growth.received(MIB, later);
        assert_eq!(growth.wanted(100 * MIB, later), 7);
    }
}
