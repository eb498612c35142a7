//! When the keys of an issuer are fetched: a pure function of the last fetch.

use std::time::{Duration, Instant};

/// How often keys are fetched. A key that its issuer has withdrawn is accepted for at most this long.
const INTERVAL: Duration = Duration::from_secs(3600);
/// How often they are fetched while that fails.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);
/// How often tokens with an unknown key may cause a fetch: invented ones must not burden the issuer.
const ASKED_INTERVAL: Duration = Duration::from_secs(30);

/// The last fetch.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    /// When it began; `None` before the first one.
    began: Option<Instant>,
    has_failed: bool,
}

impl Schedule {
    /// How long to wait until the next fetch.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        let interval = if self.has_failed { RETRY_INTERVAL } else { INTERVAL };
        self.began.map_or(Duration::ZERO, |began| {
            interval.saturating_sub(now.saturating_duration_since(began))
        })
    }

    /// Whether a token may cause a fetch now.
    pub(super) fn may_ask(&self, now: Instant) -> bool {
        self.began.is_none_or(|began| now.saturating_duration_since(began) >= ASKED_INTERVAL)
    }

    pub(super) fn begin(&mut self, now: Instant) {
        self.began = Some(now);
    }

    pub(super) fn end(&mut self, has_failed: bool) {
        self.has_failed = has_failed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_fetched_at_once_then_hourly_and_more_often_while_that_fails() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut schedule = Schedule::default();
        assert!(schedule.wait(start).is_zero() && schedule.may_ask(start));
        schedule.begin(start);
        schedule.end(false);
        assert_eq!(schedule.wait(at(600)), Duration::from_secs(3000));
        assert!(schedule.wait(at(3600)).is_zero());
        assert!(!schedule.may_ask(at(29)) && schedule.may_ask(at(30)));
        schedule.begin(at(3600));
        schedule.end(true);
        assert_eq!(schedule.wait(at(3610)), Duration::from_secs(50));
        assert!(!schedule.may_ask(at(3610)) && schedule.wait(at(3660)).is_zero());
    }
}
