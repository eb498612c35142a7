//! Recent misses and failures of registries, so that later clients do not wait for them again.
//!
//! Entries live for seconds: a pushed tag must become visible, and a registry that recovers must be used again.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use super::bounded::{Part, PartitionedCache};
use super::lock;
use crate::oci::{Digest, ImageName, Reference, Repository, Upstream};
use crate::upstream::{Sources, Standing, UpstreamError};

/// How many missing names are remembered. Clients choose them, so the number is bounded.
const MISSING_MAX: usize = 16_384;
/// How many different requests must time out before the registry counts as slow.
const SLOW_REQUESTS: usize = 3;
/// How many repositories must be rate limited at a time before the registry counts as rate limited.
const LIMITED_REPOSITORIES: usize = 3;
/// How many failing registries and how many failed requests are remembered.
const TROUBLED_MAX: usize = 1024;

/// The longest time for which a `Retry-After` is respected. Registries often accept requests sooner, and a value of one
/// day would cause an outage of one day.
const HOLD_BACK_MAX: Duration = Duration::from_secs(60);

/// The subject of a request.
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

/// The tables are locked for a lookup, an insertion or a removal only.
///
/// Threat: clients choose the requests. Therefore a failure counts for its own request only, unless it happened before
/// the registry could know the request. And registries that a client invents do not displace entries about others.
pub(super) struct NegativeCache {
    ttl: Mutex<Duration>,
    sources: Arc<dyn Sources>,
    missing: Mutex<PartitionedCache<Asked, SystemTime>>,
    /// Requests that failed at their registry.
    failed: Mutex<PartitionedCache<Asked, SystemTime>>,
    /// Registries that currently fail.
    troubled: Mutex<PartitionedCache<Upstream, SystemTime>>,
    /// Requests that timed out since the last response of their registry.
    slow: Mutex<PartitionedCache<Upstream, Vec<Asked>>>,
    /// Repositories with a rate limit, and when it ends. A client that knows a repository for which the registry always
    /// responds with 429 must not make the other repositories unavailable.
    limited: Mutex<PartitionedCache<Upstream, Vec<(Repository, SystemTime)>>>,
}

impl NegativeCache {
    pub(super) fn new(ttl: Duration, sources: Arc<dyn Sources>) -> NegativeCache {
        NegativeCache {
            ttl: Mutex::new(ttl),
            sources,
            missing: Mutex::new(PartitionedCache::new(MISSING_MAX)),
            failed: Mutex::new(PartitionedCache::new(TROUBLED_MAX)),
            troubled: Mutex::new(PartitionedCache::new(TROUBLED_MAX)),
            slow: Mutex::new(PartitionedCache::new(TROUBLED_MAX)),
            limited: Mutex::new(PartitionedCache::new(TROUBLED_MAX)),
        }
    }

    fn part_of(&self, upstream: &Upstream) -> Part {
        match self.sources.standing(upstream) {
            Ok(Standing::Listed | Standing::Unlisted) => Part::Proven,
            Ok(Standing::Unproven) | Err(_) => Part::Unproven,
        }
    }

    /// Whether the registry recently reported that this does not exist.
    pub(super) fn is_missing(&self, asked: &Asked, now: SystemTime) -> bool {
        is_young(lock(&self.missing).get(asked), self.ttl(), now)
    }

    /// Whether this registry recently failed.
    pub(super) fn is_troubled(&self, upstream: &Upstream, now: SystemTime) -> bool {
        is_young(lock(&self.troubled).get(upstream), self.ttl(), now)
    }

    /// Whether this request recently failed, or its registry did.
    pub(super) fn has_failed(&self, asked: &Asked, now: SystemTime) -> bool {
        self.is_troubled(asked.upstream(), now)
            || is_young(lock(&self.failed).get(asked), self.ttl(), now)
    }

    fn ttl(&self) -> Duration {
        *lock(&self.ttl)
    }

    /// Sets how long entries are valid, existing ones included.
    pub(super) fn set_ttl(&self, ttl: Duration) {
        *lock(&self.ttl) = ttl;
    }

    /// Removes all entries about these registries.
    pub(super) fn forget(&self, upstreams: &[Upstream]) {
        let is_other = |upstream: &Upstream| !upstreams.contains(upstream);
        lock(&self.missing).retain(|asked| is_other(asked.upstream()));
        lock(&self.failed).retain(|asked| is_other(asked.upstream()));
        lock(&self.troubled).retain(is_other);
        lock(&self.slow).retain(is_other);
        lock(&self.limited).retain(is_other);
    }

    /// The repositories with a rate limit, and the time until it ends.
    fn limits(&self, upstream: &Upstream, now: SystemTime) -> Vec<(Repository, Duration)> {
        let limited = lock(&self.limited);
        let of_upstream = limited.get(upstream).map(Vec::as_slice).unwrap_or_default();
        let left = |(repository, until): &(Repository, SystemTime)| {
            Some((repository.clone(), time_left(*until, now)?))
        };
        of_upstream.iter().filter_map(left).collect()
    }

    /// The time until the next request for this repository is allowed; `None` if it is allowed now.
    pub(super) fn backoff(&self, name: &ImageName, now: SystemTime) -> Option<Duration> {
        let limits = self.limits(&name.upstream, now);
        let applies_to_all = limits.len() >= LIMITED_REPOSITORIES;
        let applies = |repository: &Repository| applies_to_all || *repository == name.repository;
        limits.iter().filter(|(repository, _)| applies(repository)).map(|(_, wait)| *wait).max()
    }

    /// Records the outcome of a request.
    pub(super) fn note<T>(
        &self,
        upstream: &Upstream,
        asked: Asked,
        result: &Result<T, UpstreamError>,
        now: SystemTime,
    ) {
        match result {
            Err(error) if error.is_about_the_registry() => self.note_trouble(upstream, now),
            Err(error)
                if error.is_rate_limit()
                    && self.limits(upstream, now).len() >= LIMITED_REPOSITORIES =>
            {
                self.note_trouble(upstream, now);
            }
            // The failure or rate limit of an object store does not count against the registry that redirected to it.
            Err(error) if error.is_trouble() => self.note_failure(asked, now),
            Err(error) if error.is_not_found() => {
                self.note_answer(upstream);
                lock(&self.missing).insert(self.part_of(upstream), asked, now);
            }
            _ => self.note_answer(upstream),
        }
    }

    fn note_answer(&self, upstream: &Upstream) {
        lock(&self.troubled).remove(upstream);
        lock(&self.slow).remove(upstream);
    }

    fn note_failure(&self, asked: Asked, now: SystemTime) {
        // Only failures of manifests are ever looked up.
        if let Asked::Manifest(name, _) = &asked {
            lock(&self.failed).insert(self.part_of(&name.upstream), asked, now);
        }
    }

    /// Records a rate limit for a repository and when it ends. Without `Retry-After`, it lasts for
    /// [`NegativeCache::ttl`].
    pub(super) fn note_limit<T>(
        &self,
        name: &ImageName,
        result: &Result<T, UpstreamError>,
        now: SystemTime,
    ) {
        let Some(error) = result.as_ref().err().filter(|error| error.is_rate_limit()) else {
            return;
        };
        let wait = error.retry_after().unwrap_or_else(|| self.ttl()).min(HOLD_BACK_MAX);
        let mut limited = lock(&self.limited);
        let mut repositories = limited.get(&name.upstream).cloned().unwrap_or_default();
        repositories.retain(|(repository, until)| {
            *repository != name.repository && time_left(*until, now).is_some()
        });
        repositories.truncate(LIMITED_REPOSITORIES - 1);
        repositories.insert(0, (name.repository.clone(), now + wait));
        limited.insert(self.part_of(&name.upstream), name.upstream.clone(), repositories);
    }

    /// Records that a registry fails.
    pub(super) fn note_trouble(&self, upstream: &Upstream, now: SystemTime) {
        lock(&self.troubled).insert(self.part_of(upstream), upstream.clone(), now);
    }

    /// Records that a registry did not respond in the time that a client waits. The registry counts as failing when
    /// that happens for several requests in a row: a single request may be slow for other reasons.
    pub(super) fn note_slow(&self, asked: Asked, now: SystemTime) {
        let upstream = asked.upstream().clone();
        let part = self.part_of(&upstream);
        {
            let mut slow = lock(&self.slow);
            let mut requests = slow.get(&upstream).cloned().unwrap_or_default();
            if !requests.contains(&asked) && requests.len() < SLOW_REQUESTS {
                requests.push(asked.clone());
            }
            let is_slow = requests.len() >= SLOW_REQUESTS;
            slow.insert(part, upstream.clone(), requests);
            drop(slow);
            if is_slow {
                self.note_trouble(&upstream, now);
            }
        }
        self.note_failure(asked, now);
    }
}

/// The time left until `until`; `None` if it has passed. Setting the clock back does not extend it.
fn time_left(until: SystemTime, now: SystemTime) -> Option<Duration> {
    until.duration_since(now).ok().filter(|wait| !wait.is_zero() && *wait <= HOLD_BACK_MAX)
}

/// Whether an entry is valid. If the clock was set back, it is not: otherwise it could last forever.
fn is_young(noted: Option<&SystemTime>, ttl: Duration, now: SystemTime) -> bool {
    noted.is_some_and(|noted| now.duration_since(*noted).is_ok_and(|age| age < ttl))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::{Source, UpstreamErrorKind, UpstreamStatus};

    /// Only `listed.io` is listed. All other registries are unproven.
    struct OneListed;

    impl Sources for OneListed {
        fn source(&self, upstream: &Upstream) -> Result<Arc<dyn Source>, UpstreamError> {
            Err(UpstreamError::new(upstream.as_str(), UpstreamErrorKind::NotFound))
        }

        fn standing(&self, upstream: &Upstream) -> Result<Standing, UpstreamError> {
            let is_listed = upstream.as_str() == "listed.io";
            Ok(if is_listed { Standing::Listed } else { Standing::Unproven })
        }

        fn statuses(&self) -> Vec<UpstreamStatus> {
            Vec::new()
        }
    }

    const TTL: Duration = Duration::from_secs(10);

    fn misses() -> (NegativeCache, SystemTime) {
        (NegativeCache::new(TTL, Arc::new(OneListed)), SystemTime::UNIX_EPOCH + 100 * TTL)
    }

    fn tag(image: &str) -> Asked {
        let (upstream, tag) = image.split_once('/').unwrap();
        let name = ImageName::new(upstream.parse().unwrap(), "a".parse().unwrap());
        Asked::Manifest(name, tag.parse().unwrap())
    }

    fn listed() -> Upstream {
        "listed.io".parse().unwrap()
    }

    fn failure(kind: UpstreamErrorKind) -> Result<(), UpstreamError> {
        Err(UpstreamError::new("GET x", kind))
    }

    #[test]
    fn a_failed_request_does_not_affect_other_requests() {
        for kind in [
            UpstreamErrorKind::Status { status: 500 },
            UpstreamErrorKind::OutOfService,
            UpstreamErrorKind::TimedOut { phase: "the answer's head" },
            UpstreamErrorKind::Unreachable {
                source: Arc::new(std::io::ErrorKind::ConnectionReset.into()),
            },
        ] {
            let (misses, now) = misses();
            misses.note(&listed(), tag("listed.io/bad"), &failure(kind.clone()), now);
            assert!(misses.has_failed(&tag("listed.io/bad"), now), "{kind:?}");
            assert!(!misses.has_failed(&tag("listed.io/good"), now), "{kind:?}");
            assert!(!misses.has_failed(&tag("listed.io/bad"), now + TTL), "{kind:?}");
        }
    }

    #[test]
    fn a_failure_that_does_not_depend_on_the_request_affects_all_requests() {
        for kind in [
            UpstreamErrorKind::TimedOut { phase: "a connection" },
            UpstreamErrorKind::CircuitOpen { wait: TTL, last: None },
            UpstreamErrorKind::Unreachable {
                source: Arc::new(std::io::ErrorKind::ConnectionRefused.into()),
            },
        ] {
            let (misses, now) = misses();
            misses.note(&listed(), tag("listed.io/a"), &failure(kind.clone()), now);
            assert!(misses.has_failed(&tag("listed.io/b"), now), "{kind:?}");
            misses.note(&listed(), tag("listed.io/c"), &Ok(()), now);
            assert!(
                !misses.has_failed(&tag("listed.io/b"), now),
                "{kind:?}: it has answered since"
            );
        }
    }

    #[test]
    fn a_registry_is_slow_after_several_slow_requests_in_a_row() {
        let (misses, now) = misses();
        for _ in 0..5 {
            misses.note_slow(tag("listed.io/a"), now);
        }
        misses.note_slow(tag("listed.io/b"), now);
        assert!(!misses.is_troubled(&listed(), now));
        assert!(misses.has_failed(&tag("listed.io/a"), now));
        misses.note(&listed(), tag("listed.io/x"), &Ok(()), now);
        misses.note_slow(tag("listed.io/c"), now);
        assert!(!misses.is_troubled(&listed(), now), "it has answered since");
        misses.note_slow(tag("listed.io/a"), now);
        misses.note_slow(tag("listed.io/b"), now);
        assert!(misses.is_troubled(&listed(), now));
    }

    fn name(upstream: &str, repository: &str) -> ImageName {
        ImageName::new(upstream.parse().unwrap(), repository.parse().unwrap())
    }

    #[test]
    fn a_limited_repository_does_not_delay_the_others_and_several_limit_the_registry() {
        let (misses, now) = misses();
        let limit = |seconds: Option<u64>| {
            let retry_after = seconds.map(Duration::from_secs);
            failure(UpstreamErrorKind::RateLimited { retry_after })
        };
        let note = |repository: &str, seconds| {
            let (name, limit) = (name("listed.io", repository), limit(seconds));
            misses.note_limit(&name, &limit, now);
            misses.note(
                &name.upstream,
                Asked::Manifest(name.clone(), "1".parse().unwrap()),
                &limit,
                now,
            );
        };
        let backoff = |repository: &str| misses.backoff(&name("listed.io", repository), now);
        for _ in 0..5 {
            note("a", Some(1_000_000_000));
        }
        note("b", None);
        assert_eq!((backoff("a"), backoff("b")), (Some(HOLD_BACK_MAX), Some(TTL)));
        assert_eq!(backoff("c"), None);
        assert!(!misses.is_troubled(&listed(), now));
        note("c", None);
        assert_eq!(backoff("d"), Some(HOLD_BACK_MAX));
        assert!(misses.is_troubled(&listed(), now));
        let later = now + HOLD_BACK_MAX;
        assert_eq!(misses.backoff(&name("listed.io", "a"), later), None);
    }

    #[test]
    fn invented_registries_do_not_displace_entries_of_a_listed_one() {
        let (misses, now) = misses();
        let limit = failure(UpstreamErrorKind::RateLimited { retry_after: Some(TTL) });
        let limited = name("listed.io", "a");
        misses.note_limit(&limited, &limit, now);
        misses.note(&listed(), tag("listed.io/gone"), &failure(UpstreamErrorKind::NotFound), now);
        misses.note_trouble(&listed(), now);
        for number in 0..2 * MISSING_MAX {
            let invented: Upstream = format!("r{number}.example.com").parse().unwrap();
            let asked = tag(&format!("r{number}.example.com/a"));
            misses.note_limit(&name(invented.as_str(), "a"), &limit, now);
            misses.note(&invented, asked.clone(), &failure(UpstreamErrorKind::NotFound), now);
            misses.note(&invented, asked, &limit, now);
        }
        assert_eq!(misses.backoff(&limited, now), Some(TTL));
        assert!(misses.is_missing(&tag("listed.io/gone"), now));
        assert!(misses.is_troubled(&listed(), now));
    }
}
