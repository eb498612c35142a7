//! How many pulls a registry still allows, by Docker Hub's `ratelimit-*` headers.
//!
//! Responses to HEAD, which is not counted, contain them as well, so the values are usually current.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ureq::http::HeaderMap;

use crate::oci::Upstream;
use crate::upstream::response::text;

/// The shortest time between two warnings.
const WARN_INTERVAL: Duration = Duration::from_secs(3600);
/// A warning is logged if less than this part of the limit remains.
const LOW_PERCENT: u64 = 10;
/// This part of the limit is kept for clients: images that no client waits for are fetched with the rest.
const RESERVED_PERCENT: u64 = 25;
/// The length of a window that the registry does not report; that of Docker Hub.
const WINDOW_DEFAULT: Duration = Duration::from_secs(6 * 3600);
/// The longest `source`, in bytes: an address or an account.
const SOURCE_BYTES_MAX: usize = 64;

/// The rate limit that a registry reported last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RateLimit {
    /// Allowed pulls in a window.
    pub limit: Option<u64>,
    /// Remaining pulls in the window.
    pub remaining: Option<u64>,
    /// The length of the window.
    pub window: Option<Duration>,
    /// Whose pulls are counted: Larder's address, or an account.
    pub source: Option<String>,
}

impl RateLimit {
    /// Parses the headers of a response; `None` if they contain no rate limit.
    fn of(headers: &HeaderMap) -> Option<RateLimit> {
        let count = |name| text(headers, name).and_then(parse);
        let (limit, remaining) = (count("ratelimit-limit"), count("ratelimit-remaining"));
        let window = [&limit, &remaining].into_iter().flatten().find_map(|(_, window)| *window);
        let source = text(headers, "docker-ratelimit-source").map(str::trim).filter(|source| {
            !source.is_empty() && source.len() <= SOURCE_BYTES_MAX && !source.contains(['"', '\\'])
        });
        (limit.is_some() || remaining.is_some()).then(|| RateLimit {
            limit: limit.map(|(count, _)| count),
            remaining: remaining.map(|(count, _)| count),
            window,
            source: source.map(str::to_owned),
        })
    }

    /// Limit and remaining pulls, if less than this part remains.
    fn below(&self, percent: u64) -> Option<(u64, u64)> {
        let (limit, remaining) = self.limit.zip(self.remaining)?;
        let is_below = u128::from(remaining) * 100 < u128::from(limit) * u128::from(percent);
        is_below.then_some((limit, remaining))
    }
}

/// Parses `100;w=21600`: a count, and a window in seconds.
fn parse(value: &str) -> Option<(u64, Option<Duration>)> {
    // Some registries send a list, whose first element counts.
    let mut parts = value.split(',').next()?.split(';').map(str::trim);
    let count = parts.next()?.parse().ok()?;
    let seconds = parts.find_map(|part| {
        let (name, value) = part.split_once('=')?;
        let is_window = ["w", "window"].iter().any(|known| name.trim().eq_ignore_ascii_case(known));
        value.trim().parse().ok().filter(|_| is_window)
    });
    Some((count, seconds.map(Duration::from_secs)))
}

/// The rate limit of one registry.
#[derive(Debug, Default)]
pub(super) struct Quota {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    latest: Option<RateLimit>,
    /// When it was reported.
    noted: Option<Instant>,
    /// When a warning was last logged.
    warned: Option<Instant>,
}

impl Quota {
    /// Records the headers of a response of the registry itself.
    pub(super) fn note(&self, headers: &HeaderMap, upstream: &Upstream, now: Instant) {
        let Some(latest) = RateLimit::of(headers) else { return };
        if let Some(low) = self.update(latest, now) {
            let window_ms = low.window.map(|window| window.as_secs_f64() * 1e3);
            log::warn!(
                upstream:%, remaining = low.remaining, limit = low.limit, window_ms,
                source = low.source.as_deref();
                "few or no pulls are left; without any, the registry answers 429, and images that are \
                 not cached must wait (registries[].auth and tagTtl help)"
            );
        }
    }

    /// The rate limit that the registry reported last.
    pub(super) fn latest(&self) -> Option<RateLimit> {
        self.lock().latest.clone()
    }

    /// Whether the remaining pulls are kept for clients. A limit that was reported a window ago no longer counts.
    pub(super) fn is_reserved(&self, now: Instant) -> bool {
        let state = self.lock();
        let Some((latest, noted)) = state.latest.as_ref().zip(state.noted) else { return false };
        let window = latest.window.unwrap_or(WINDOW_DEFAULT);
        latest.below(RESERVED_PERCENT).is_some() && now.saturating_duration_since(noted) < window
    }

    /// Stores the rate limit. Returns it if a warning is due: few pulls are left, and both counts are known.
    fn update(&self, latest: RateLimit, now: Instant) -> Option<RateLimit> {
        let mut state = self.lock();
        let low = latest.below(LOW_PERCENT).map(|_| latest.clone());
        state.latest = Some(latest);
        state.noted = Some(now);
        let low = low?;
        if state.warned.is_some_and(|warned| now.saturating_duration_since(warned) < WARN_INTERVAL)
        {
            return None;
        }
        state.warned = Some(now);
        Some(low)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic leaves the old values or the new ones; both are valid.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn counts_and_windows() {
        let window = |seconds| Some(Duration::from_secs(seconds));
        for (value, expected) in [
            ("100;w=21600", Some((100, window(21600)))),
            (" 76 ; W = 21600 ", Some((76, window(21600)))),
            ("0;w=60", Some((0, window(60)))),
            ("60", Some((60, None))),
            ("100;w=x", Some((100, None))),
            ("100;q=1", Some((100, None))),
            ("100, 100;w=60, 1000;w=3600", Some((100, None))),
            ("10;window=1", Some((10, window(1)))),
            ("", None),
            ("-1;w=60", None),
            ("many", None),
            (";w=60", None),
            ("99999999999999999999999", None),
        ] {
            assert_eq!(parse(value), expected, "{value:?}");
        }
    }

    #[test]
    fn docker_hubs_headers() {
        let all = headers(&[
            ("ratelimit-limit", "100;w=21600"),
            ("ratelimit-remaining", "76;w=21600"),
            ("docker-ratelimit-source", "192.0.2.1"),
        ]);
        let expected = RateLimit {
            limit: Some(100),
            remaining: Some(76),
            window: Some(Duration::from_secs(21600)),
            source: Some("192.0.2.1".into()),
        };
        assert_eq!(RateLimit::of(&all), Some(expected));
        let some = RateLimit::of(&headers(&[("ratelimit-remaining", "5")])).unwrap();
        assert_eq!((some.limit, some.remaining, some.window), (None, Some(5), None));
        for nothing in [&[][..], &[("ratelimit-limit", "?")], &[("docker-ratelimit-source", "x")]] {
            assert_eq!(RateLimit::of(&headers(nothing)), None, "{nothing:?}");
        }
    }

    #[test]
    fn a_response_without_a_rate_limit_changes_nothing() {
        let (quota, upstream) = (Quota::default(), "docker.io".parse().unwrap());
        let now = Instant::now();
        assert_eq!(quota.latest(), None);
        quota.note(&headers(&[("ratelimit-remaining", "5")]), &upstream, now);
        quota.note(&headers(&[]), &upstream, now);
        assert_eq!(quota.latest().unwrap().remaining, Some(5));
        quota.note(&headers(&[("ratelimit-remaining", "4")]), &upstream, now);
        assert_eq!(quota.latest().unwrap().remaining, Some(4));
    }

    #[test]
    fn a_low_quota_is_logged_once_an_hour() {
        let (quota, start) = (Quota::default(), Instant::now());
        let left = |remaining| RateLimit {
            limit: Some(100),
            remaining: Some(remaining),
            window: Some(Duration::from_secs(21600)),
            source: Some("192.0.2.1".into()),
        };
        for (minutes, remaining, warned) in
            [(0, 10, false), (1, 9, true), (2, 8, false), (60, 0, false), (61, 0, true)]
        {
            let low = quota.update(left(remaining), start + Duration::from_secs(minutes * 60));
            let expected = warned.then(|| left(remaining));
            assert_eq!(low, expected, "{remaining} left after {minutes} minutes");
        }
        assert_eq!(quota.update(RateLimit::default(), start), None);
        let none = RateLimit { limit: Some(0), remaining: Some(0), ..RateLimit::default() };
        assert_eq!(quota.update(none, start + Duration::from_secs(36_000)), None);
    }
}
