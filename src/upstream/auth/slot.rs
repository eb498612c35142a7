//! A place for one login that costs something to get: kept until it expires, got once for all who need it.
//!
//! Who gets it holds no lock while doing so, and the others wait for that. What cannot be got is not
//! tried again at once, so that a broken helper is not started once a request. Must not know where
//! logins come from.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::credentials::{Login, LoginError};

/// The first wait after a failure; it doubles with each further one.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
/// The longest wait after a failure: what was mended counts after that, at the latest.
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// A login is renewed this long before it expires, so that it does not expire on its way.
const MARGIN_MAX: Duration = Duration::from_secs(5 * 60);
/// The part of its life that a short-lived login may lose to that margin.
const MARGIN_DIVISOR: u32 = 10;
/// The least that is believed of a lifetime: else a wrong clock would mean a new login a request.
const LIFETIME_MIN: Duration = Duration::from_secs(60);
/// How often a login is got anew because the registry refuses it. Else every request for what this
/// login may not see would get a new one.
const RENEWED_EVERY: Duration = Duration::from_secs(60);

/// A login, or that there is none: who asks anonymously also wants to know it without asking again.
pub(super) type Shared = Option<Arc<Login>>;

/// What was got.
pub(super) struct Got {
    pub(super) login: Option<Login>,
    /// How long it is good from now on.
    pub(super) lifetime: Duration,
}

/// See the file's own doc.
#[derive(Default)]
pub(super) struct Slot {
    state: Mutex<State>,
    /// Signalled whenever a try ends.
    ended: Condvar,
}

#[derive(Default)]
struct State {
    is_getting: bool,
    held: Option<Held>,
    failure: Option<Failure>,
    /// When it was last got anew because it was refused.
    renewed: Option<Instant>,
}

#[derive(Clone)]
struct Held {
    login: Shared,
    renew_at: Instant,
    expires_at: Instant,
}

struct Failure {
    error: LoginError,
    /// Until when nobody tries again.
    until: Instant,
    /// How long the next wait is.
    next: Duration,
}

impl Slot {
    /// The login, got by `get` if there is none or it is due. One that is due and cannot be renewed is
    /// good until it expires.
    pub(super) fn login(
        &self,
        now: Instant,
        get: impl FnOnce() -> Result<Got, LoginError>,
    ) -> Result<Shared, LoginError> {
        let mut state = self.settled();
        let held = state.held.clone();
        match &held {
            Some(held) if now < held.renew_at => return Ok(held.login.clone()),
            _ => {}
        }
        let unexpired = held.filter(|held| now < held.expires_at).map(|held| held.login);
        if let Some(error) = state.resting(now) {
            return unexpired.ok_or(error);
        }
        state.is_getting = true;
        drop(state);
        self.get(Why::Needed, now, get).or_else(|error| {
            let unexpired = unexpired.ok_or_else(|| error.clone())?;
            log::warn!(
                "a login cannot be renewed and is used until it expires: {}",
                error.reason()
            );
            Ok(unexpired)
        })
    }

    /// Another login than `rejected`, which the registry refuses; `None` if there is none, or if it was
    /// looked for a moment ago.
    pub(super) fn renew(
        &self,
        rejected: &Login,
        now: Instant,
        get: impl FnOnce() -> Result<Got, LoginError>,
    ) -> Result<Shared, LoginError> {
        let is_other = |login: &Shared| login.as_deref() != Some(rejected);
        let mut state = self.settled();
        if let Some(held) = state.held.as_ref().filter(|held| now < held.renew_at)
            && is_other(&held.login)
        {
            return Ok(held.login.clone());
        }
        let is_recent = |renewed| now.saturating_duration_since(renewed) < RENEWED_EVERY;
        if state.renewed.is_some_and(is_recent) {
            return Ok(None);
        }
        if let Some(error) = state.resting(now) {
            return Err(error);
        }
        state.is_getting = true;
        drop(state);
        let login = self.get(Why::Refused, now, get)?;
        Ok(login.filter(|login| **login != *rejected))
    }

    /// Lets the login be got anew by whoever needs it next, whether it was refused, could not be got, or is
    /// good for long. One that cannot be renewed then is used until it expires, as ever.
    pub(super) fn look_again(&self, now: Instant) {
        let mut state = self.lock();
        state.held.iter_mut().for_each(|held| held.renew_at = held.renew_at.min(now));
        (state.failure, state.renewed) = (None, None);
    }

    /// Gets it, while `is_getting` keeps all others waiting.
    fn get(
        &self,
        why: Why,
        now: Instant,
        get: impl FnOnce() -> Result<Got, LoginError>,
    ) -> Result<Shared, LoginError> {
        let mut getting = Getting { slot: self, why, now, started: Instant::now(), outcome: None };
        let outcome = get().map(|got| (got.login.map(Arc::new), got.lifetime));
        let login = outcome.as_ref().map(|(login, _)| login.clone()).map_err(Clone::clone);
        getting.outcome = Some(outcome);
        login
    }

    /// The state while nobody gets anything. Each try is bounded by its own time-outs.
    fn settled(&self) -> MutexGuard<'_, State> {
        let waited = self.ended.wait_while(self.lock(), |state| state.is_getting);
        waited.unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic leaves the state valid: each change is one assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The failure after which nobody tries again yet.
    fn resting(&self, now: Instant) -> Option<LoginError> {
        let failure = self.failure.as_ref().filter(|failure| now < failure.until)?;
        Some(failure.error.clone())
    }

    fn keep(&mut self, login: Shared, lifetime: Duration, now: Instant) {
        let lifetime = lifetime.max(LIFETIME_MIN);
        let margin = (lifetime / MARGIN_DIVISOR).min(MARGIN_MAX);
        let (renew_at, expires_at) = (now + (lifetime - margin), now + lifetime);
        self.held = Some(Held { login, renew_at, expires_at });
        self.failure = None;
    }

    /// What was held stays: it may be good, and a refusal may have been about something else.
    fn note_failure(&mut self, error: LoginError, now: Instant) {
        let wait = self.failure.as_ref().map_or(BACKOFF_MIN, |failure| failure.next);
        let next = (wait * 2).min(BACKOFF_MAX);
        self.failure = Some(Failure { error, until: now + wait, next });
    }
}

/// Why a login is got.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    /// There was none, or it was due.
    Needed,
    /// The one there is was refused.
    Refused,
}

/// A try under way. Its end, by success, error or panic, lets the waiting go on.
struct Getting<'a> {
    slot: &'a Slot,
    why: Why,
    now: Instant,
    started: Instant,
    outcome: Option<Result<(Shared, Duration), LoginError>>,
}

impl Drop for Getting<'_> {
    fn drop(&mut self) {
        let mut state = self.slot.lock();
        state.is_getting = false;
        match self.outcome.take() {
            Some(Ok((login, lifetime))) => {
                state.keep(login, lifetime, self.now);
                if self.why == Why::Refused {
                    state.renewed = Some(self.now);
                }
            }
            // The rest begins when the try has ended: it may have taken longer than the rest.
            Some(Err(error)) => state.note_failure(error, self.now + self.started.elapsed()),
            None => {}
        }
        drop(state);
        self.slot.ended.notify_all();
    }
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

    fn got(password: &str) -> Result<Got, LoginError> {
        Ok(Got { login: Some(login(password)), lifetime: HOUR })
    }

    fn failed() -> Result<Got, LoginError> {
        Err(LoginError::Unavailable("down".into()))
    }

    fn unneeded() -> Result<Got, LoginError> {
        panic!("nobody should have asked")
    }

    fn shared(password: &str) -> Result<Shared, LoginError> {
        Ok(Some(Arc::new(login(password))))
    }

    #[test]
    fn twenty_threads_ask_once() {
        let (slot, now) = (Slot::default(), Instant::now());
        let (barrier, asked) = (Barrier::new(20), AtomicUsize::new(0));
        let ask = || {
            barrier.wait();
            slot.login(now, || {
                asked.fetch_add(1, Ordering::SeqCst);
                got("a")
            })
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..20).map(|_| scope.spawn(ask)).collect();
            assert!(threads.into_iter().all(|thread| thread.join().unwrap() == shared("a")));
        });
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_login_is_renewed_before_it_expires() {
        let (slot, now) = (Slot::default(), Instant::now());
        assert_eq!(slot.login(now, || got("a")), shared("a"));
        let due = now + HOUR - MARGIN_MAX;
        assert_eq!(slot.login(due - Duration::from_secs(1), unneeded), shared("a"));
        assert_eq!(slot.login(due, || got("b")), shared("b"));
    }

    #[test]
    fn a_login_that_cannot_be_renewed_is_good_until_it_expires() {
        let (slot, now) = (Slot::default(), Instant::now());
        slot.login(now, || got("a")).unwrap();
        let due = now + HOUR - MARGIN_MAX;
        assert_eq!(slot.login(due, failed), shared("a"));
        assert_eq!(slot.login(due, unneeded), shared("a"), "and nobody is asked again at once");
        assert!(slot.login(now + HOUR, failed).is_err());
    }

    #[test]
    fn a_lifetime_of_nothing_is_a_minute() {
        let (slot, now) = (Slot::default(), Instant::now());
        slot.login(now, || Ok(Got { lifetime: Duration::ZERO, ..got("a")? })).unwrap();
        assert_eq!(slot.login(now + Duration::from_secs(53), unneeded), shared("a"));
        assert_eq!(slot.login(now + Duration::from_secs(54), || got("b")), shared("b"));
    }

    #[test]
    fn after_a_failure_nobody_is_asked_for_longer_and_longer() {
        let (slot, mut now) = (Slot::default(), Instant::now());
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert!(slot.login(now, failed).is_err());
            let wait = Duration::from_secs(seconds);
            assert!(slot.login(now + wait - Duration::from_millis(1), unneeded).is_err());
            // The rest begins when the try has ended, a moment after `now`.
            now += wait + HOUR;
        }
        assert_eq!(slot.login(now, || got("a")), shared("a"));
        let late = now + HOUR;
        assert!(slot.login(late, failed).is_err());
        let second = late + Duration::from_secs(1) + HOUR;
        assert_eq!(slot.login(second, || got("b")), shared("b"), "and it begins anew");
    }

    #[test]
    fn a_refused_login_is_got_anew_once_a_minute() {
        let (slot, now) = (Slot::default(), Instant::now());
        slot.login(now, || got("a")).unwrap();
        assert_eq!(slot.renew(&login("a"), now, || got("b")), shared("b"));
        assert_eq!(slot.renew(&login("a"), now, unneeded), shared("b"), "who is late takes it");
        assert_eq!(slot.renew(&login("b"), now, unneeded), Ok(None), "too soon");
        let later = now + RENEWED_EVERY;
        assert_eq!(slot.renew(&login("b"), later, || got("b")), Ok(None), "it is the same again");
        assert_eq!(slot.login(later, unneeded), shared("b"), "and it is kept");
    }

    #[test]
    fn a_refused_login_is_kept_while_no_other_can_be_had() {
        let (slot, now) = (Slot::default(), Instant::now());
        slot.login(now, || got("a")).unwrap();
        assert!(slot.renew(&login("a"), now, failed).is_err());
        assert_eq!(slot.login(now, unneeded), shared("a"), "another repository may take it");
        let later = now + HOUR / 2;
        assert_eq!(slot.renew(&login("a"), later, || got("b")), shared("b"));
    }

    #[test]
    fn who_is_told_to_look_again_gets_another_login_and_minds_no_failure() {
        let (slot, now) = (Slot::default(), Instant::now());
        assert!(slot.login(now, failed).is_err());
        slot.look_again(now);
        assert_eq!(slot.login(now, || got("a")), shared("a"), "no wait for what has failed");
        slot.look_again(now);
        assert_eq!(slot.login(now, failed), shared("a"), "what is good stays good");
        slot.look_again(now);
        assert_eq!(slot.login(now, || got("b")), shared("b"));
        assert_eq!(slot.login(now, unneeded), shared("b"));
    }

    #[test]
    fn a_panic_lets_the_others_go_on() {
        let (slot, now) = (Slot::default(), Instant::now());
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _ = slot.login(now, unneeded);
        }));
        assert!(caught.is_err());
        assert_eq!(slot.login(now, || got("a")), shared("a"));
    }
}
