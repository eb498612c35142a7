//! The circuit breaker of one endpoint: after repeated failures, no requests are sent to it for a while.
//!
//! Pure: callers pass in the time. Three states:
//!
//! * **closed**: requests are sent.
//! * **open**: no requests are sent until a certain time. They fail at once with the failure that opened the breaker.
//! * **half-open**: this time has passed, and one request of Larder's own, the probe, is under way. Other requests are
//!   still refused.
//!
//! Any success closes the breaker. A failed probe opens it again, for twice as long.
//!
//! Threat: clients choose requests, and a client may know one that makes the registry fail. Therefore a failure is either
//! **certain** (no connection, so every request would fail) or **doubtful** (a 5xx response, or a connection that broke
//! after the request). Certain failures open the breaker. Doubtful ones cause a probe, which decides.

use std::time::{Duration, Instant};

/// A probe that has not reported after this time (its thread panicked) is replaced.
const PROBE_FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

/// The shortest time between two probes of a registry that fails some requests but answers the probe.
const PROBED_EVERY: Duration = Duration::from_secs(5);

/// When a breaker opens, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerPolicy {
    /// The number of consecutive failures that opens it.
    pub failures: u32,
    /// How long it stays open the first time; each failed probe doubles this time.
    pub first_wait: Duration,
    /// The longest time for which it stays open: a recovered registry must be used soon.
    pub longest_wait: Duration,
}

impl Default for BreakerPolicy {
    fn default() -> Self {
        BreakerPolicy {
            failures: 3,
            first_wait: Duration::from_secs(5),
            longest_wait: Duration::from_secs(30),
        }
    }
}

/// Whether a request may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Permit {
    /// It may.
    Ask,
    /// The caller must probe the endpoint first.
    Probe,
    /// It may not, for this long.
    Wait(Duration),
}

/// A change of state, to be logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// No requests are sent for this long.
    Opened(Duration),
    /// The endpoint answers again.
    Closed,
}

/// The state of a breaker, for the status page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BreakerState {
    /// Requests are sent.
    #[default]
    Closed,
    /// No requests are sent for this long.
    Open(Duration),
    /// A probe is under way, or the next request will start one.
    HalfOpen,
}

#[derive(Debug)]
pub(super) struct Breaker {
    policy: BreakerPolicy,
    /// Failures since the last success.
    failures: u32,
    /// The certain ones among them, which do not depend on the request.
    certain: u32,
    /// When doubtful failures last caused a probe.
    probed: Option<Instant>,
    state: State,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Closed,
    Open { until: Instant, wait: Duration },
    HalfOpen { since: Instant, wait: Duration },
}

impl Breaker {
    pub(super) fn new(policy: BreakerPolicy) -> Breaker {
        Breaker { policy, failures: 0, certain: 0, probed: None, state: State::Closed }
    }

    /// Whether a request may be sent at `now`. A caller that gets [`Permit::Probe`] must report the outcome.
    pub(super) fn permit(&mut self, now: Instant) -> Permit {
        let wait = match self.state {
            State::Closed => return Permit::Ask,
            State::Open { until, .. } if now < until => return Permit::Wait(until - now),
            State::HalfOpen { since, .. } if now < since + PROBE_FORGOTTEN_AFTER => {
                return Permit::Wait(self.policy.first_wait);
            }
            State::Open { wait, .. } | State::HalfOpen { wait, .. } => wait,
        };
        self.state = State::HalfOpen { since: now, wait };
        Permit::Probe
    }

    /// Records a response, whatever its status.
    pub(super) fn succeeded(&mut self) -> Option<Change> {
        (self.failures, self.certain) = (0, 0);
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Closed => None,
            State::Open { .. } | State::HalfOpen { .. } => Some(Change::Closed),
        }
    }

    /// Records a failure that may depend on the request. Returns whether the caller must probe the endpoint and report
    /// the outcome.
    pub(super) fn doubted(&mut self, now: Instant) -> bool {
        self.failures = self.failures.saturating_add(1);
        let is_due = |probed| now.saturating_duration_since(probed) >= PROBED_EVERY;
        let is_needed = matches!(self.state, State::Closed)
            && self.failures >= self.policy.failures
            && self.probed.is_none_or(is_due);
        if is_needed {
            self.probed = Some(now);
        }
        is_needed
    }

    /// Records that the probe after doubtful failures failed as well.
    pub(super) fn confirmed(&mut self, now: Instant) -> Option<Change> {
        match self.state {
            State::Closed => self.open(now, self.policy.first_wait),
            State::Open { .. } | State::HalfOpen { .. } => None,
        }
    }

    /// Records a certain failure. `retry_after` is the wait that the endpoint demands, which opens the breaker at once.
    pub(super) fn failed(&mut self, now: Instant, retry_after: Option<Duration>) -> Option<Change> {
        self.failures = self.failures.saturating_add(1);
        self.certain = self.certain.saturating_add(1);
        let wait = match (self.state, retry_after) {
            // This request began before the breaker was opened.
            (State::Open { .. }, _) => return None,
            (_, Some(retry_after)) => retry_after.min(self.policy.longest_wait),
            (State::HalfOpen { wait, .. }, None) => (wait * 2).min(self.policy.longest_wait),
            (State::Closed, None) if self.certain < self.policy.failures => return None,
            (State::Closed, None) => self.policy.first_wait,
        };
        self.open(now, wait)
    }

    fn open(&mut self, now: Instant, wait: Duration) -> Option<Change> {
        self.state = State::Open { until: now + wait, wait };
        Some(Change::Opened(wait))
    }

    /// Failures since the last success.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    pub(super) fn state(&self, now: Instant) -> BreakerState {
        match self.state {
            State::Closed => BreakerState::Closed,
            State::Open { until, .. } if now < until => BreakerState::Open(until - now),
            State::Open { .. } | State::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn breaker() -> (Breaker, Instant) {
        let policy = BreakerPolicy { failures: 3, first_wait: SECOND, longest_wait: 3 * SECOND };
        (Breaker::new(policy), Instant::now())
    }

    fn opened() -> (Breaker, Instant) {
        let (mut breaker, now) = breaker();
        assert_eq!(breaker.failed(now, None), None);
        assert_eq!(breaker.failed(now, None), None);
        assert_eq!(breaker.failed(now, None), Some(Change::Opened(SECOND)));
        (breaker, now)
    }

    #[test]
    fn consecutive_failures_open_it_and_a_success_resets_the_count() {
        let (mut breaker, now) = breaker();
        for _ in 0..5 {
            assert_eq!(breaker.failed(now, None), None);
            assert_eq!(breaker.failed(now, None), None);
            assert_eq!(breaker.succeeded(), None);
        }
        assert_eq!(breaker.permit(now), Permit::Ask);
        let (mut breaker, now) = opened();
        assert_eq!(breaker.permit(now), Permit::Wait(SECOND));
        assert_eq!(breaker.state(now), BreakerState::Open(SECOND));
    }

    #[test]
    fn after_the_wait_one_caller_probes_and_the_others_are_refused() {
        let (mut breaker, now) = opened();
        let later = now + SECOND;
        assert_eq!(breaker.state(later), BreakerState::HalfOpen);
        assert_eq!(breaker.permit(later), Permit::Probe);
        assert_eq!(breaker.permit(later), Permit::Wait(SECOND));
        assert_eq!(breaker.succeeded(), Some(Change::Closed));
        assert_eq!(breaker.permit(later), Permit::Ask);
        assert_eq!((breaker.failures(), breaker.state(later)), (0, BreakerState::Closed));
    }

    #[test]
    fn a_failed_probe_doubles_the_wait_up_to_the_longest() {
        let (mut breaker, mut now) = opened();
        for wait in [2, 3, 3] {
            now += 3 * SECOND;
            assert_eq!(breaker.permit(now), Permit::Probe);
            assert_eq!(breaker.failed(now, None), Some(Change::Opened(wait * SECOND)));
        }
    }

    #[test]
    fn failures_of_earlier_requests_do_not_extend_the_wait() {
        let (mut breaker, now) = opened();
        assert_eq!(breaker.failed(now + SECOND / 2, None), None);
        assert_eq!(breaker.permit(now + SECOND), Permit::Probe);
    }

    #[test]
    fn retry_after_opens_it_at_once_within_bounds() {
        for (asked, wait) in [(2, 2), (3600, 3)] {
            let (mut breaker, now) = breaker();
            let change = breaker.failed(now, Some(asked * SECOND));
            assert_eq!(change, Some(Change::Opened(wait * SECOND)));
        }
    }

    #[test]
    fn doubtful_failures_cause_a_probe_and_do_not_open_it() {
        let (mut breaker, now) = breaker();
        assert_eq!([1, 2, 3, 4].map(|_| breaker.doubted(now)), [false, false, true, false]);
        assert_eq!((breaker.permit(now), breaker.failures()), (Permit::Ask, 4));
        assert_eq!(breaker.failed(now, None), None, "one certain failure among doubtful ones");
        assert_eq!(breaker.succeeded(), None, "the probe was answered");
        for _ in 0..100 {
            assert!(!breaker.doubted(now + PROBED_EVERY / 2), "probed within the interval");
        }
        assert!(breaker.doubted(now + PROBED_EVERY));
        assert_eq!(breaker.confirmed(now + PROBED_EVERY), Some(Change::Opened(SECOND)));
        assert!(!breaker.doubted(now + PROBED_EVERY), "already open");
    }

    #[test]
    fn a_probe_that_never_reports_is_replaced() {
        let (mut breaker, now) = opened();
        assert_eq!(breaker.permit(now + SECOND), Permit::Probe);
        assert_eq!(breaker.permit(now + SECOND + PROBE_FORGOTTEN_AFTER), Permit::Probe);
    }
}
