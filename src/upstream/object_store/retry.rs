//! When a request is sent again, and after which wait.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use crate::upstream::error::{UpstreamError, UpstreamErrorKind};

/// The longest wait that a store can demand. A request that should wait longer fails, and its error says how long.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

/// How often and how long a request is tried. A request with a body that may take any time is limited by the number of
/// attempts only.
#[derive(Debug, Clone, Copy)]
pub(super) struct RetryPolicy {
    /// The most attempts.
    pub(super) attempts: u32,
    /// The longest wait after the first failure; it doubles with each further one.
    pub(super) first_wait: Duration,
    /// The longest wait, unless the store demands a longer one.
    pub(super) longest_wait: Duration,
    /// No attempt begins after this time.
    pub(super) total: Duration,
}

impl Default for RetryPolicy {
    fn default() -> RetryPolicy {
        RetryPolicy {
            attempts: 4,
            first_wait: Duration::from_millis(200),
            longest_wait: Duration::from_secs(5),
            total: Duration::from_secs(60),
        }
    }
}

impl RetryPolicy {
    /// The wait after a number of failed attempts; `None` if there should be no other one. `elapsed` is the time since
    /// the first attempt.
    pub(super) fn next_wait(
        &self,
        error: &UpstreamError,
        failures: u32,
        elapsed: Duration,
    ) -> Option<Duration> {
        if failures >= self.attempts || !is_retriable(error) {
            return None;
        }
        let doubled = self.first_wait.saturating_mul(1 << (failures - 1).min(16));
        // Full jitter: otherwise all waiting threads would send their next requests at the same time.
        let wait = doubled.min(self.longest_wait).mul_f64(random());
        let demanded = error.retry_after().unwrap_or_default();
        let wait = wait.max(demanded);
        let is_short = demanded <= RETRY_AFTER_MAX && elapsed.saturating_add(wait) < self.total;
        is_short.then_some(wait)
    }
}

/// Whether the same request may succeed a little later.
fn is_retriable(error: &UpstreamError) -> bool {
    match error.kind() {
        UpstreamErrorKind::Unreachable { .. }
        | UpstreamErrorKind::TimedOut { .. }
        | UpstreamErrorKind::Proxy { .. } => true,
        UpstreamErrorKind::ObjectStore { status, .. } => *status != 501 && error.is_trouble(),
        _ => false,
    }
}

/// A number from 0 to 1. `RandomState` is seeded with random numbers of the operating system.
fn random() -> f64 {
    let bits = RandomState::new().hash_one(()) >> 32;
    bits as f64 / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use super::*;

    fn store_error(status: u16, code: &str, retry_after: Option<u64>) -> UpstreamError {
        let kind = UpstreamErrorKind::ObjectStore {
            status,
            code: Some(code.into()),
            reason: "x".into(),
            retry_after: retry_after.map(Duration::from_secs),
        };
        UpstreamError::new("GET x", kind)
    }

    #[test]
    fn temporary_failures_are_retried_and_others_are_not() {
        for (status, code, expected) in [
            (500, "InternalError", true),
            (502, "", true),
            (503, "SlowDown", true),
            (504, "", true),
            (429, "", true),
            (400, "RequestTimeout", true),
            (409, "OperationAborted", true),
            (200, "InternalError", true),
            (501, "NotImplemented", false),
            (400, "InvalidRequest", false),
            (403, "AccessDenied", false),
            (404, "NoSuchKey", false),
            (409, "ConditionalRequestConflict", false),
            (412, "PreconditionFailed", false),
        ] {
            assert_eq!(is_retriable(&store_error(status, code, None)), expected, "{status} {code}");
        }
        let source = Arc::new(io::ErrorKind::ConnectionReset.into());
        let broken = UpstreamError::new("x", UpstreamErrorKind::Unreachable { source });
        assert!(is_retriable(&broken));
        let tls = UpstreamErrorKind::Tls { reason: "x".into() };
        assert!(!is_retriable(&UpstreamError::new("x", tls)));
    }

    #[test]
    fn waits_grow_within_limits_and_the_store_may_demand_longer_ones() {
        let policy = RetryPolicy { attempts: 10, ..RetryPolicy::default() };
        let error = store_error(503, "SlowDown", None);
        for failures in 1..10 {
            let longest = policy.first_wait * (1 << (failures - 1));
            let wait = policy.next_wait(&error, failures, Duration::ZERO).unwrap();
            assert!(wait <= longest.min(policy.longest_wait), "{failures}: {wait:?}");
        }
        assert_eq!(policy.next_wait(&error, 10, Duration::ZERO), None, "too many");
        assert_eq!(policy.next_wait(&error, 1, policy.total), None, "too late");
        let demanded = Duration::from_secs(30);
        let slow = store_error(503, "SlowDown", Some(30));
        assert_eq!(policy.next_wait(&slow, 1, Duration::ZERO), Some(demanded));
        assert_eq!(
            policy.next_wait(&slow, 1, Duration::from_secs(31)),
            None,
            "longer than is left"
        );
    }
}
