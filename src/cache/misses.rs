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

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Asked {
    Manifest(ImageName, Reference),
    Blob(ImageName, Digest),
}

/// Both tables are locked for a look-up or an insertion only.
pub(super) struct Misses {
    ttl: Duration,
    missing: Mutex<Recent<Asked, SystemTime>>,
    troubled: Mutex<Recent<Upstream, SystemTime>>,
}

impl Misses {
    pub(super) fn new(ttl: Duration) -> Misses {
        Misses {
            ttl,
            missing: Mutex::new(Recent::new(MISSING_MAX)),
            troubled: Mutex::new(Recent::new(TROUBLED_MAX)),
        }
    }

    /// Whether upstream said a moment ago that it does not have this.
    pub(super) fn is_missing(&self, asked: &Asked, now: SystemTime) -> bool {
        is_young(lock(&self.missing).get(asked), self.ttl, now)
    }

    /// Whether this upstream failed to answer a moment ago.
    pub(super) fn is_troubled(&self, upstream: &Upstream, now: SystemTime) -> bool {
        is_young(lock(&self.troubled).get(upstream), self.ttl, now)
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
            Err(error) if error.is_trouble() => self.note_trouble(upstream, now),
            Err(error) if error.is_not_found() => {
                lock(&self.troubled).remove(upstream);
                lock(&self.missing).insert(asked, now);
            }
            _ => lock(&self.troubled).remove(upstream),
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
