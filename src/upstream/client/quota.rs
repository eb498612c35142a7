//! How many pulls a registry has left for us, as its answers tell: Docker Hub's `ratelimit-*` headers.
//!
//! They are on answers to HEAD as well, which cost nothing, so what is known here is rarely old.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ureq::http::HeaderMap;

use crate::oci::Upstream;
use crate::upstream::response::text;

/// That little is left is warned this often, not once a request.
const WARN_INTERVAL: Duration = Duration::from_secs(3600);
/// Below this part of the limit it is warned.
const LOW_PERCENT: u64 = 10;
/// The longest name of who is counted, in bytes: an address or an account.
const SOURCE_BYTES_MAX: usize = 64;

/// What a registry warned last about its rate limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RateLimit {
    /// Pulls allowed in a window.
    pub limit: Option<u64>,
    /// Pulls left in it.
    pub remaining: Option<u64>,
    /// How long a window is.
    pub window: Option<Duration>,
    /// Whose pulls are counted: an address of ours, or an account.
    pub source: Option<String>,
}

impl RateLimit {
    /// What the headers of an answer say; `None` if they say nothing of use, as those of registries
    /// without a limit do.
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

    /// Limit and remaining, if there is cause for worry.
    fn low(&self) -> Option<(u64, u64)> {
        let (limit, remaining) = self.limit.zip(self.remaining)?;
        let percent = u128::from(remaining) * 100;
        (percent < u128::from(limit) * u128::from(LOW_PERCENT)).then_some((limit, remaining))
    }
}

/// Reads `100;w=21600`: a count, and a window in seconds.
fn parse(value: &str) -> Option<(u64, Option<Duration>)> {
    // Some send a list whose first member is what counts.
    let mut parts = value.split(',').next()?.split(';').map(str::trim);
    let count = parts.next()?.parse().ok()?;
    let seconds = parts.find_map(|part| {
        let (name, value) = part.split_once('=')?;
        let is_window = ["w", "window"].iter().any(|known| name.trim().eq_ignore_ascii_case(known));
        value.trim().parse().ok().filter(|_| is_window)
    });
    Some((count, seconds.map(Duration::from_secs)))
}

/// What is known of one registry's limit.
#[derive(Debug, Default)]
pub(super) struct Quota {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    latest: Option<RateLimit>,
    /// When it was last warned that little is left.
    warned: Option<Instant>,
}

impl Quota {
    /// Takes note of an answer of the registry itself.
    pub(super) fn note(&self, headers: &HeaderMap, upstream: &Upstream, now: Instant) {
        let Some(latest) = RateLimit::of(headers) else { return };
        if let Some(warning) = self.update(latest, now) {
            log::warn!("{upstream}: {warning}");
        }
    }

    /// What the registry warned last.
    pub(super) fn latest(&self) -> Option<RateLimit> {
        self.lock().latest.clone()
    }

    /// Keeps it, and returns what is to be warned about it, if it is time to say something.
    fn update(&self, latest: RateLimit, now: Instant) -> Option<String> {
        let mut state = self.lock();
        let low = latest.low();
        let source = latest.source.clone();
        let window = latest.window;
        state.latest = Some(latest);
        let (limit, remaining) = low?;
        if state.warned.is_some_and(|warned| now.saturating_duration_since(warned) < WARN_INTERVAL)
        {
            return None;
        }
        state.warned = Some(now);
        let of = window.map(|window| format!(" in {} s", window.as_secs())).unwrap_or_default();
        let by = source.map(|source| format!(" by {source}")).unwrap_or_default();
        Some(format!(
            "{remaining} of {limit} pulls{of}{by} are left; then it answers 429, and what is not \
             cached has to wait (registries[].auth and tagTtl help)"
        ))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves the former values or the new ones, all valid.
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
    fn an_answer_that_says_nothing_leaves_what_was_known() {
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
    fn little_that_is_left_is_said_once_an_hour() {
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
            let text = quota.update(left(remaining), start + Duration::from_secs(minutes * 60));
            assert_eq!(text.is_some(), warned, "{remaining} left after {minutes} minutes");
            if let Some(text) = text {
                let words = format!("{remaining} of 100 pulls in 21600 s by 192.0.2.1");
                assert!(text.starts_with(&words), "{text}");
            }
        }
        assert_eq!(quota.update(RateLimit::default(), start), None);
        let none = RateLimit { limit: Some(0), remaining: Some(0), ..RateLimit::default() };
        assert_eq!(quota.update(none, start + Duration::from_secs(36_000)), None);
    }
}
