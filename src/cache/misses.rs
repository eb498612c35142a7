//! What upstreams denied or failed a moment ago, so that the next client need not wait for it again.
//!
//! Seconds only: a push must show soon, and an upstream that is back must be used soon.

use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use super::lock;
use super::recent::Recent;
use crate::oci::{Digest, ImageName, Reference, Upstream};
use crate::upstream::UpstreamError;

/// Names remembered as missing. Clients choose them, so there is a bound.
const MISSING_MAX: usize = 16_384;
/// Upstreams remembered as being in trouble.
const TROUBLED_MAX: usize = 1024;

/// The longest that a `Retry-After` holds us back: a client may be let in again sooner than that, and a
/// registry that says a day would else be a day's outage.
const HOLD_BACK_MAX: Duration = Duration::from_secs(60);

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Asked {
    Manifest(ImageName, Reference),
    Blob(ImageName, Digest),
}

impl Asked {
    fn upstream(&self) -> &Upstream {
        match self {
            Asked::Manifest(name, _) | Asked::Blob(name, _) => &name.upstream,
        }
    }
}

/// The tables are locked for a look-up or an insertion only, or to forget some of them.
pub(super) struct Misses {
    ttl: Mutex<Duration>,
    missing: Mutex<Recent<Asked, SystemTime>>,
    troubled: Mutex<Recent<Upstream, SystemTime>>,
    /// What was answered with a server error, which may be about the request alone.
    failing: Mutex<Recent<Asked, SystemTime>>,
    /// Until when upstreams asked to be left alone.
    limited: Mutex<Recent<Upstream, SystemTime>>,
}

impl Misses {
    pub(super) fn new(ttl: Duration) -> Misses {
        Misses {
            ttl: Mutex::new(ttl),
            missing: Mutex::new(Recent::new(MISSING_MAX)),
            troubled: Mutex::new(Recent::new(TROUBLED_MAX)),
            failing: Mutex::new(Recent::new(MISSING_MAX)),
            limited: Mutex::new(Recent::new(TROUBLED_MAX)),
        }
    }

    /// Whether upstream said a moment ago that it does not have this.
    pub(super) fn is_missing(&self, asked: &Asked, now: SystemTime) -> bool {
        is_young(lock(&self.missing).get(asked), self.ttl(), now)
    }

    /// Whether this upstream failed to answer a moment ago.
    pub(super) fn is_troubled(&self, upstream: &Upstream, now: SystemTime) -> bool {
        is_young(lock(&self.troubled).get(upstream), self.ttl(), now)
    }

    /// Whether upstream answered this with a server error a moment ago.
    pub(super) fn is_failing(&self, asked: &Asked, now: SystemTime) -> bool {
        is_young(lock(&self.failing).get(asked), self.ttl(), now)
    }

    fn ttl(&self) -> Duration {
        *lock(&self.ttl)
    }

    /// How long things are remembered from now on, those that were noted before included.
    pub(super) fn set_ttl(&self, ttl: Duration) {
        *lock(&self.ttl) = ttl;
    }

    /// Forgets all about these upstreams.
    pub(super) fn forget(&self, upstreams: &[Upstream]) {
        let is_other = |upstream: &Upstream| !upstreams.contains(upstream);
        lock(&self.missing).retain(|asked| is_other(asked.upstream()));
        lock(&self.failing).retain(|asked| is_other(asked.upstream()));
        lock(&self.troubled).retain(is_other);
        lock(&self.limited).retain(is_other);
    }

    /// How much longer this upstream asked to be left alone.
    pub(super) fn held_back(&self, upstream: &Upstream, now: SystemTime) -> Option<Duration> {
        let until = *lock(&self.limited).get(upstream)?;
        // A clock that was set back must not hold us back for longer than was asked.
        until.duration_since(now).ok().filter(|wait| !wait.is_zero() && *wait <= HOLD_BACK_MAX)
    }

    /// Notes how a request went.
    pub(super) fn note<T>(
        &self,
        upstream: &Upstream,
        asked: Asked,
        result: &Result<T, UpstreamError>,
        now: SystemTime,
    ) {
        match result {
            // An object store that fails or limits us leaves the registry before it as it is.
            Err(error) if error.is_trouble() && error.may_be_of_one_request() => {
                lock(&self.failing).insert(asked, now);
            }
            Err(error) if error.is_trouble() && !error.is_elsewhere() => {
                self.note_trouble(upstream, now);
            }
            Err(error) if error.is_not_found() => {
                lock(&self.troubled).remove(upstream);
                lock(&self.missing).insert(asked, now);
            }
            _ => lock(&self.troubled).remove(upstream),
        }
    }

    /// Notes for how long an upstream asked to be left alone, if it did.
    pub(super) fn note_limit<T>(
        &self,
        upstream: &Upstream,
        result: &Result<T, UpstreamError>,
        now: SystemTime,
    ) {
        let error = result.as_ref().err().filter(|error| !error.is_elsewhere());
        if let Some(wait) = error.and_then(UpstreamError::retry_after) {
            lock(&self.limited).insert(upstream.clone(), now + wait.min(HOLD_BACK_MAX));
        }
    }

    /// Notes that an upstream did not answer in the time that a client waits.
    pub(super) fn note_trouble(&self, upstream: &Upstream, now: SystemTime) {
        lock(&self.troubled).insert(upstream.clone(), now);
    }
}

/// A clock that was set back makes a note old rather than everlasting.
fn is_young(noted: Option<&SystemTime>, ttl: Duration, now: SystemTime) -> bool {
    noted.is_some_and(|noted| now.duration_since(*noted).is_ok_and(|age| age < ttl))
}
