//! One login, or set of keys, that is expensive to get: cached until it expires, and fetched once for all callers that
//! need it.
//!
//! No lock is held during a fetch; the other callers wait for it to end. After a failure there is a backoff, so that
//! a broken helper is not started for every request. Does not know where logins come from.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::credentials::{Login, LoginError};
use super::single_flight::SingleFlight;

/// The first backoff after a failure; it doubles with each further one.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
/// The longest backoff: a repaired helper or service is used after this time at the latest.
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// A login is renewed this long before it expires, so that it does not expire in transit.
const MARGIN_MAX: Duration = Duration::from_secs(5 * 60);
/// The part of its lifetime that a short-lived login may lose to that margin.
const MARGIN_DIVISOR: u32 = 10;
/// The shortest lifetime that is believed: with a wrong clock, every request would fetch a new login.
const LIFETIME_MIN: Duration = Duration::from_secs(60);
/// How often a login is fetched again because the registry refuses it. Without this limit, every request for
/// content that the login does not give access to would fetch a new one.
const REFUSED_INTERVAL: Duration = Duration::from_secs(60);

/// A login; `None` means anonymous access, which is cached as well.
pub(super) type SharedLogin<T = Login> = Option<Arc<T>>;

/// A login as a helper or a cloud has returned it.
pub(super) struct Fetched<T = Login> {
    pub(super) login: Option<T>,
    /// How long it is valid from now on.
    pub(super) lifetime: Duration,
}

/// See the module documentation.
pub(super) struct CachedLogin<T = Login> {
    /// Locked for a lookup or a change, never during a fetch.
    state: Mutex<State<T>>,
    fetching: SingleFlight<()>,
}

impl<T> Default for CachedLogin<T> {
    fn default() -> CachedLogin<T> {
        let state = State { cached: None, failure: None, renewed: None };
        CachedLogin { state: Mutex::new(state), fetching: SingleFlight::default() }
    }
}

struct State<T> {
    cached: Option<Cached<T>>,
    failure: Option<Failure>,
    /// When it was last fetched because the registry refused the cached one.
    renewed: Option<Instant>,
}

struct Cached<T> {
    login: SharedLogin<T>,
    renew_at: Instant,
    expires_at: Instant,
}

struct Failure {
    error: LoginError,
    /// No caller tries again before this time.
    until: Instant,
    next_backoff: Duration,
}

impl<T: PartialEq> CachedLogin<T> {
    /// Returns the login. Calls `fetch` if there is none or it is due for renewal. A login that cannot be renewed is
    /// used until it expires.
    pub(super) fn login(
        &self,
        now: Instant,
        fetch: impl FnOnce() -> Result<Fetched<T>, LoginError>,
    ) -> Result<SharedLogin<T>, LoginError> {
        let _inside = self.fetching.enter(&());
        let state = self.lock();
        let cached = state.cached.as_ref();
        match cached {
            Some(cached) if now < cached.renew_at => return Ok(cached.login.clone()),
            _ => {}
        }
        let unexpired = cached.filter(|cached| now < cached.expires_at);
        let unexpired = unexpired.map(|cached| cached.login.clone());
        if let Some(error) = state.backoff(now) {
            return unexpired.ok_or(error);
        }
        drop(state);
        self.fetch(Why::Needed, now, fetch).or_else(|error| {
            let unexpired = unexpired.ok_or_else(|| error.clone())?;
            log::warn!(
                error:% = error.reason(); "a login cannot be renewed and is used until it expires"
            );
            Ok(unexpired)
        })
    }

    /// The cached login, if it has not expired. Never waits.
    pub(super) fn current(&self, now: Instant) -> SharedLogin<T> {
        let state = self.lock();
        state.cached.as_ref().filter(|cached| now < cached.expires_at)?.login.clone()
    }

    /// Returns a login other than `rejected`, which the registry refuses; `None` if there is none, or if one was
    /// fetched within the last minute.
    pub(super) fn renew(
        &self,
        rejected: &T,
        now: Instant,
        fetch: impl FnOnce() -> Result<Fetched<T>, LoginError>,
    ) -> Result<SharedLogin<T>, LoginError> {
        let is_other = |login: &SharedLogin<T>| login.as_deref() != Some(rejected);
        let _inside = self.fetching.enter(&());
        let state = self.lock();
        if let Some(cached) = state.cached.as_ref().filter(|cached| now < cached.renew_at)
            && is_other(&cached.login)
        {
            return Ok(cached.login.clone());
        }
        let is_recent = |renewed| now.saturating_duration_since(renewed) < REFUSED_INTERVAL;
        if state.renewed.is_some_and(is_recent) {
            return Ok(None);
        }
        if let Some(error) = state.backoff(now) {
            return Err(error);
        }
        drop(state);
        let login = self.fetch(Why::Refused, now, fetch)?;
        Ok(login.filter(|login| **login != *rejected))
    }

    /// Makes the next caller fetch the login again, whether it was refused, could not be fetched, or is still valid.
    /// If that fails, the cached login is used until it expires.
    pub(super) fn refresh(&self, now: Instant) {
        let mut state = self.lock();
        state.cached.iter_mut().for_each(|cached| cached.renew_at = cached.renew_at.min(now));
        (state.failure, state.renewed) = (None, None);
    }

    /// Fetches a login and stores the outcome. The caller is the only one inside. A panic changes nothing.
    fn fetch(
        &self,
        why: Why,
        now: Instant,
        fetch: impl FnOnce() -> Result<Fetched<T>, LoginError>,
    ) -> Result<SharedLogin<T>, LoginError> {
        let started = Instant::now();
        let fetched = fetch();
        let mut state = self.lock();
        match fetched {
            Ok(Fetched { login, lifetime }) => {
                let login = login.map(Arc::new);
                state.store(login.clone(), lifetime, now);
                if why == Why::Refused {
                    state.renewed = Some(now);
                }
                Ok(login)
            }
            Err(error) => {
                // The backoff begins when the attempt has ended, which may have taken longer than the backoff.
                state.note_failure(error.clone(), now + started.elapsed());
                Err(error)
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // A panic leaves the state valid: each change is one assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> State<T> {
    /// The latest failure, while its backoff lasts.
    fn backoff(&self, now: Instant) -> Option<LoginError> {
        let failure = self.failure.as_ref().filter(|failure| now < failure.until)?;
        Some(failure.error.clone())
    }

    fn store(&mut self, login: SharedLogin<T>, lifetime: Duration, now: Instant) {
        let lifetime = lifetime.max(LIFETIME_MIN);
        let margin = (lifetime / MARGIN_DIVISOR).min(MARGIN_MAX);
        let (renew_at, expires_at) = (now + (lifetime - margin), now + lifetime);
        self.cached = Some(Cached { login, renew_at, expires_at });
        self.failure = None;
    }

    /// Keeps the cached login: it may be valid, and a refusal may have had another reason.
    fn note_failure(&mut self, error: LoginError, now: Instant) {
        let backoff = self.failure.as_ref().map_or(BACKOFF_MIN, |failure| failure.next_backoff);
        let next_backoff = (backoff * 2).min(BACKOFF_MAX);
        self.failure = Some(Failure { error, until: now + backoff, next_backoff });
    }
}

/// Why a login is fetched.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    /// There was none, or it was due for renewal.
    Needed,
    /// The registry refused the cached one.
    Refused,
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::upstream::auth::credentials::Secret;

    const HOUR: Duration = Duration::from_secs(3600);

    fn login(password: &str) -> Login {
        Login::Basic { user: "u".into(), password: Secret::new(password) }
    }

    fn fetched(password: &str) -> Result<Fetched, LoginError> {
        Ok(Fetched { login: Some(login(password)), lifetime: HOUR })
    }

    fn failed() -> Result<Fetched, LoginError> {
        Err(LoginError::Unavailable("down".into()))
    }

    fn unexpected() -> Result<Fetched, LoginError> {
        panic!("no fetch is expected")
    }

    fn shared(password: &str) -> Result<SharedLogin, LoginError> {
        Ok(Some(Arc::new(login(password))))
    }

    #[test]
    fn twenty_threads_fetch_once() {
        let (cached, now) = (CachedLogin::default(), Instant::now());
        let (barrier, fetches) = (Barrier::new(20), AtomicUsize::new(0));
        let login_once = || {
            barrier.wait();
            cached.login(now, || {
                fetches.fetch_add(1, Ordering::SeqCst);
                fetched("a")
            })
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..20).map(|_| scope.spawn(login_once)).collect();
            assert!(threads.into_iter().all(|thread| thread.join().unwrap() == shared("a")));
        });
        assert_eq!(fetches.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_login_is_renewed_before_it_expires() {
        let (cached, now) = (CachedLogin::default(), Instant::now());
        assert_eq!(cached.login(now, || fetched("a")), shared("a"));
        let due = now + HOUR - MARGIN_MAX;
        assert_eq!(cached.login(due - Duration::from_secs(1), unexpected), shared("a"));
        assert_eq!(cached.current(due), Some(Arc::new(login("a"))));
        assert_eq!(cached.current(now + HOUR), None);
        assert_eq!(cached.login(due, || fetched("b")), shared("b"));
    }

    #[test]
    fn a_login_that_cannot_be_renewed_is_used_until_it_expires() {
        let (cached, now) = (CachedLogin::default(), Instant::now());
        cached.login(now, || fetched("a")).unwrap();
        let due = now + HOUR - MARGIN_MAX;
        assert_eq!(cached.login(due, failed), shared("a"));
        assert_eq!(
            cached.login(due, unexpected),
            shared("a"),
            "not fetched again during the backoff"
        );
        assert!(cached.login(now + HOUR, failed).is_err());
    }

    #[test]
    fn a_login_is_cached_for_a_minute_at_least() {
        let (cached, now) = (CachedLogin::default(), Instant::now());
        cached.login(now, || Ok(Fetched { lifetime: Duration::ZERO, ..fetched("a")? })).unwrap();
        assert_eq!(cached.login(now + Duration::from_secs(53), unexpected), shared("a"));
        assert_eq!(cached.login(now + Duration::from_secs(54), || fetched("b")), shared("b"));
    }

    #[test]
    fn failures_are_followed_by_an_increasing_backoff() {
        let (cached, mut now) = (CachedLogin::default(), Instant::now());
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert!(cached.login(now, failed).is_err());
            let wait = Duration::from_secs(seconds);
            assert!(cached.login(now + wait - Duration::from_millis(1), unexpected).is_err());
            // The backoff begins when the attempt has ended, shortly after `now`.
            now += wait + HOUR;
        }
        assert_eq!(cached.login(now, || fetched("a")), shared("a"));
        let late = now + HOUR;
        assert!(cached.login(late, failed).is_err());
        let second = late + Duration::from_secs(1) + HOUR;
        assert_eq!(
            cached.login(second, || fetched("b")),
            shared("b"),
            "a success resets the backoff"
        );
    }

    #[test]
    fn a_refused_login_is_fetched_again_once_a_minute() {
        let (cached, now) = (CachedLogin::default(), Instant::now());
        cached.login(now, || fetched("a")).unwrap();
        assert_eq!(cached.renew(&login("a"), now, || fetched("b")), shared("b"));
        assert_eq!(
            cached.renew(&login("a"), now, unexpected),
            shared("b"),
            "a later caller uses the new one"
        );
        assert_eq!(cached.renew(&login("b"), now, unexpected), Ok(None), "too soon");
        let later = now + REFUSED_INTERVAL;
        assert_eq!(
            cached.renew(&login("b"), later, || fetched("b")),
            Ok(None),
            "the same login again"
        );
        assert_eq!(cached.login(later, unexpected), shared("b"), "the login is kept");
    }

    #[test]
    fn a_refused_login_is_kept_while_no_other_is_available() {
        let (cached, now) = (CachedLogin::default(), Instant::now());
        cached.login(now, || fetched("a")).unwrap();
        assert!(cached.renew(&login("a"), now, failed).is_err());
        assert_eq!(cached.login(now, unexpected), shared("a"), "another repository may accept it");
        let later = now + HOUR / 2;
        assert_eq!(cached.renew(&login("a"), later, || fetched("b")), shared("b"));
    }

    #[test]
    fn a_refresh_fetches_another_login_and_ends_the_backoff() {
        let (cached, now) = (CachedLogin::default(), Instant::now());
        assert!(cached.login(now, failed).is_err());
        cached.refresh(now);
        assert_eq!(cached.login(now, || fetched("a")), shared("a"), "no backoff");
        cached.refresh(now);
        assert_eq!(cached.login(now, failed), shared("a"), "the valid login is kept");
        cached.refresh(now);
        assert_eq!(cached.login(now, || fetched("b")), shared("b"));
        assert_eq!(cached.login(now, unexpected), shared("b"));
    }

    #[test]
    fn a_panic_admits_the_next_caller() {
        let (cached, now) = (CachedLogin::default(), Instant::now());
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _ = cached.login(now, unexpected);
        }));
        assert!(caught.is_err());
        assert_eq!(cached.login(now, || fetched("a")), shared("a"));
    }
}
