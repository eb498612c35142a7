//! Decides when a download is retried. Pure functions of the policy and the progress.

use std::time::Duration;

/// How a download that broke off is resumed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// The wait before the first retry after progress. It doubles with each retry without progress.
    pub first_wait: Duration,
    /// The longest wait.
    pub longest_wait: Duration,
    /// The maximum number of retries in a row without progress. Progress resets the count, so any blob is finished
    /// over a link that works from time to time.
    pub fruitless_max: u32,
}

impl Default for RetryPolicy {
    /// Waits of about fifteen seconds without a byte, plus the timeouts of the requests: below the minute after which
    /// clients give up a stalled pull.
    fn default() -> Self {
        RetryPolicy {
            first_wait: Duration::from_millis(250),
            longest_wait: Duration::from_secs(8),
            fruitless_max: 6,
        }
    }
}

/// Counts retries of one download.
#[derive(Debug)]
pub(super) struct Retries {
    policy: RetryPolicy,
    fruitless: u32,
    /// How far the download was when it last broke off, in bytes.
    reached: u64,
}

impl Retries {
    pub(super) fn new(policy: RetryPolicy) -> Retries {
        Retries { policy, fruitless: 0, reached: 0 }
    }

    /// How long to wait before the next attempt of a download that broke off at `reached` bytes; `None` to give up. A
    /// download without a byte is not retried: its client can use other registries.
    ///
    /// `asked` is the registry's `Retry-After`. `spread` is a number from 0 to 1 that keeps the downloads interrupted
    /// by one outage from retrying at the same moment.
    pub(super) fn next_wait(
        &mut self,
        reached: u64,
        asked: Option<Duration>,
        spread: f64,
    ) -> Option<Duration> {
        if reached > self.reached {
            self.fruitless = 0;
            self.reached = reached;
        }
        if reached == 0 || self.fruitless >= self.policy.fruitless_max {
            return None;
        }
        let doubled = self.policy.first_wait.saturating_mul(1 << self.fruitless.min(16));
        self.fruitless += 1;
        let wait = doubled.min(self.policy.longest_wait).mul_f64(0.5 + spread / 2.0);
        match asked {
            Some(asked) if asked > self.policy.longest_wait => None,
            Some(asked) => Some(wait.max(asked)),
            None => Some(wait),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retries() -> Retries {
        Retries::new(RetryPolicy {
            first_wait: Duration::from_secs(1),
            longest_wait: Duration::from_secs(5),
            fruitless_max: 4,
        })
    }

    #[test]
    fn waits_double_up_to_the_longest_and_then_end() {
        let mut retries = retries();
        let waits: Vec<_> =
            (0..5).map(|_| retries.next_wait(7, None, 1.0).map(|wait| wait.as_secs())).collect();
        assert_eq!(waits, [Some(1), Some(2), Some(4), Some(5), None]);
    }

    #[test]
    fn progress_resets_the_count() {
        let mut retries = retries();
        for reached in 1..100 {
            assert_eq!(retries.next_wait(reached, None, 1.0), Some(Duration::from_secs(1)));
        }
    }

    #[test]
    fn a_download_without_a_byte_is_not_retried() {
        assert_eq!(retries().next_wait(0, None, 1.0), None);
    }

    #[test]
    fn retry_after_is_respected_or_the_download_given_up() {
        for (asked, wait) in [(3, Some(3)), (0, Some(1)), (6, None)] {
            let got = retries().next_wait(7, Some(Duration::from_secs(asked)), 1.0);
            assert_eq!(got, wait.map(Duration::from_secs), "{asked}");
        }
    }

    #[test]
    fn waits_are_spread_over_half_of_their_length() {
        assert_eq!(retries().next_wait(7, None, 0.0), Some(Duration::from_millis(500)));
    }
}
