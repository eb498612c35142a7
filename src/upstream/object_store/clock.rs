//! The time in signatures: this machine's clock, corrected if the store refuses it.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use time::UtcDateTime;

/// A signature whose time differs by more than this from the store's may be refused for that reason. Amazon allows 15
/// minutes.
const DIFFERENCE_MAX: Duration = Duration::from_secs(5 * 60);
/// No response had a date yet.
const UNKNOWN: i64 = i64::MIN;

/// The difference between the store's clock and this machine's, in seconds: positive if the store's is ahead.
#[derive(Debug)]
pub(super) struct Clock {
    /// What is added to this machine's time in signatures.
    correction: AtomicI64,
    /// The difference in the latest response.
    latest: AtomicI64,
}

impl Default for Clock {
    fn default() -> Clock {
        Clock { correction: AtomicI64::new(0), latest: AtomicI64::new(UNKNOWN) }
    }
}

impl Clock {
    /// The time for a signature.
    pub(super) fn time(&self, now: SystemTime) -> UtcDateTime {
        let correction = time::Duration::seconds(self.correction.load(Ordering::Relaxed));
        let now = UtcDateTime::from(now);
        now.checked_add(correction).unwrap_or(now)
    }

    /// Notes the date of a response.
    pub(super) fn note(&self, date: SystemTime, now: SystemTime) {
        self.latest.store(seconds_ahead(date, now), Ordering::Relaxed);
    }

    /// The difference in the latest response, in seconds.
    pub(super) fn latest(&self) -> Option<i64> {
        Some(self.latest.load(Ordering::Relaxed)).filter(|latest| *latest != UNKNOWN)
    }

    /// Corrects the time after a refusal. Returns the difference if the correction was wrong by more than the store may
    /// allow, or by anything if the store named the time as its reason.
    pub(super) fn correct(&self, date: SystemTime, now: SystemTime, is_named: bool) -> Option<i64> {
        let ahead = seconds_ahead(date, now);
        let before = self.correction.load(Ordering::Relaxed);
        let is_far = ahead.abs_diff(before) > DIFFERENCE_MAX.as_secs();
        let is_reason = is_far || (is_named && ahead != before);
        is_reason.then(|| {
            self.correction.store(ahead, Ordering::Relaxed);
            ahead
        })
    }
}

fn seconds_ahead(date: SystemTime, now: SystemTime) -> i64 {
    let seconds = |difference: Duration| i64::try_from(difference.as_secs()).unwrap_or(i64::MAX);
    match date.duration_since(now) {
        Ok(ahead) => seconds(ahead),
        Err(behind) => -seconds(behind.duration()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_difference_is_corrected_once() {
        let (clock, now) = (Clock::default(), SystemTime::UNIX_EPOCH + Duration::from_secs(10_000));
        let date = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(clock.latest(), None);
        assert_eq!(clock.correct(date(10_299), now, false), None, "within what stores allow");
        assert_eq!(clock.correct(date(13_600), now, false), Some(3_600));
        assert_eq!(clock.time(now), UtcDateTime::from(date(13_600)));
        assert_eq!(clock.correct(date(13_600), now, false), None, "it has another reason");
        assert_eq!(clock.correct(date(13_600), now, true), None, "no loop");
        assert_eq!(clock.correct(date(6_400), now, true), Some(-3_600));
        assert_eq!(clock.time(now), UtcDateTime::from(date(6_400)));
        clock.note(date(9_990), now);
        assert_eq!(clock.latest(), Some(-10));
    }
}
