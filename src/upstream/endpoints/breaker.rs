//! The circuit breaker of one endpoint: after failures in a row it is left alone for a while.
//!
//! Pure: what happened and when come in, a verdict comes out. Three states, as the field has them:
//!
//! * **closed**: it is asked.
//! * **open**: it is not asked until a time. Whoever would have is answered with the failure that
//!   opened it, at once.
//! * **half-open**: the time is over, and one request of ours, the probe, is on its way to find out. Others
//!   are still refused.
//!
//! Any success closes it. A failure of the probe opens it again, for twice as long.
//!
//! Threat: clients choose what is asked, and a client may know a request that the registry fails. So a failure
//! is either **certain** (no connection: every request would fare the same) or **doubtful** (an answer of 5xx,
//! a connection that broke after the request). Certain ones open the breaker; doubtful ones are a reason to
//! probe, and the probe decides.

use std::time::{Duration, Instant};

/// A probe that was never heard of again (its thread panicked) does not keep the breaker half-open.
const PROBE_FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

/// A registry that fails some requests and answers the probe is not probed again for this long.
const PROBED_EVERY: Duration = Duration::from_secs(5);

/// When a breaker opens, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerPolicy {
    /// Failures in a row that open it.
    pub failures: u32,
    /// How long it stays open the first time; doubled by each probe that fails.
    pub first_wait: Duration,
    /// It never stays open for longer: a registry that is back must be used soon.
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

/// What a breaker says to somebody who wants to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Permit {
    /// Go ahead.
    Ask,
    /// Go ahead, and be the one by whom we find out.
    Probe,
    /// Do not ask for this long.
    Wait(Duration),
}

/// A change of state that an operator should see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// It is left alone for this long.
    Opened(Duration),
    /// It answers again.
    Closed,
}

/// What is shown of a breaker's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// Asked as usual.
    Closed,
    /// Not asked for this long.
    Open(Duration),
    /// One request is finding out; or the next one will.
    HalfOpen,
}

#[derive(Debug)]
pub(super) struct Breaker {
    policy: BreakerPolicy,
    /// Failures since the last success.
    failures: u32,
    /// Of them those that do not depend on what was asked.
    certain: u32,
    /// When doubtful failures were last a reason to probe.
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

    /// Whether to ask at `now`. Whoever gets a [`Permit::Probe`] must report how it went.
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

    /// It answered, whatever it said.
    pub(super) fn succeeded(&mut self) -> Option<Change> {
        (self.failures, self.certain) = (0, 0);
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Closed => None,
            State::Open { .. } | State::HalfOpen { .. } => Some(Change::Closed),
        }
    }

    /// It failed in a way that may be about the request. Returns whether to probe: then the caller must, and
    /// report how it went.
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

    /// The probe that doubtful failures asked for failed as well.
    pub(super) fn confirmed(&mut self, now: Instant) -> Option<Change> {
        match self.state {
            State::Closed => self.open(now, self.policy.first_wait),
            State::Open { .. } | State::HalfOpen { .. } => None,
        }
    }

    /// It cannot be reached. `asked` is what it said to wait, which needs no second failure to be believed.
    pub(super) fn failed(&mut self, now: Instant, asked: Option<Duration>) -> Option<Change> {
        self.failures = self.failures.saturating_add(1);
        self.certain = self.certain.saturating_add(1);
        let wait = match (self.state, asked) {
            // It has been given up on already: this request had begun before.
            (State::Open { .. }, _) => return None,
            (_, Some(asked)) => asked.min(self.policy.longest_wait),
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
    fn failures_in_a_row_open_it_and_a_success_between_them_does_not() {
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
    fn when_the_time_is_over_one_finds_out_for_all() {
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
    fn a_probe_that_fails_doubles_the_wait_up_to_the_longest() {
        let (mut breaker, mut now) = opened();
        for wait in [2, 3, 3] {
            now += 3 * SECOND;
            assert_eq!(breaker.permit(now), Permit::Probe);
            assert_eq!(breaker.failed(now, None), Some(Change::Opened(wait * SECOND)));
        }
    }

    #[test]
    fn failures_of_requests_that_began_before_change_nothing() {
        let (mut breaker, now) = opened();
        assert_eq!(breaker.failed(now + SECOND / 2, None), None);
        assert_eq!(breaker.permit(now + SECOND), Permit::Probe);
    }

    #[test]
    fn what_it_asks_for_opens_it_at_once_within_bounds() {
        for (asked, wait) in [(2, 2), (3600, 3)] {
            let (mut breaker, now) = breaker();
            let change = breaker.failed(now, Some(asked * SECOND));
            assert_eq!(change, Some(Change::Opened(wait * SECOND)));
        }
    }

    #[test]
    fn doubtful_failures_ask_for_a_probe_and_never_open_it_by_themselves() {
        let (mut breaker, now) = breaker();
        assert_eq!([1, 2, 3, 4].map(|_| breaker.doubted(now)), [false, false, true, false]);
        assert_eq!((breaker.permit(now), breaker.failures()), (Permit::Ask, 4));
        assert_eq!(breaker.failed(now, None), None, "one certain failure among doubtful ones");
        assert_eq!(breaker.succeeded(), None, "the probe was answered");
        for _ in 0..100 {
            assert!(!breaker.doubted(now + PROBED_EVERY / 2), "probed a moment ago");
        }
        assert!(breaker.doubted(now + PROBED_EVERY));
        assert_eq!(breaker.confirmed(now + PROBED_EVERY), Some(Change::Opened(SECOND)));
        assert!(!breaker.doubted(now + PROBED_EVERY), "it is open already");
    }

    #[test]
    fn a_probe_that_is_never_heard_of_again_is_replaced() {
        let (mut breaker, now) = opened();
        assert_eq!(breaker.permit(now + SECOND), Permit::Probe);
        assert_eq!(breaker.permit(now + SECOND + PROBE_FORGOTTEN_AFTER), Permit::Probe);
    }
}
