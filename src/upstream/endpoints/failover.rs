//! A registry with one or more endpoints: asked in order, each behind a circuit breaker.
//!
//! Whatever goes wrong at one endpoint (trouble, no such content, refused credentials, an answer that
//! cannot be used) is a reason to ask the next: a mirror need not have everything, and a login that
//! fails here proves nothing about the next endpoint. If none answers, the error that leaves most hope is reported: that
//! one is down rather than that others have no such content, since a 404 is remembered.
//!
//! A breaker counts failures of the endpoint itself, or of its token service. Failures after a redirect to another host
//! do not count: object stores fail while the registry works. A 5xx answer to one request, which a client has chosen,
//! proves nothing about the next request, so a probe of `/v2/` decides. A 429 counts where there is another endpoint
//! ([`RateLimits`]).

use std::cell::RefCell;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::breaker::{Breaker, BreakerPolicy, BreakerState, Change, Permit};
use super::throttle::{RealTime, Throttle};
use crate::oci::{Digest, Manifest, Reference, Repository, Tag, Upstream};
use crate::upstream::client::{RateLimit, Registry};
use crate::upstream::error::{UpstreamError, UpstreamErrorKind};
use crate::upstream::{BlobAsk, BlobBody, LargeBody, List, ListSink, ManifestHead, Source};

/// The endpoints of a registry, in the order in which they are asked.
pub(super) struct Failover {
    upstream: Upstream,
    endpoints: Vec<GuardedEndpoint>,
    /// Slows its blobs down, those of all endpoints together.
    throttle: Option<Arc<Throttle>>,
    /// Whether it has ever answered a request with content.
    has_answered: AtomicBool,
}

/// One endpoint behind its breaker.
struct GuardedEndpoint {
    registry: Registry,
    /// Locked for a look or a change, never while it is asked.
    health: Mutex<Health>,
}

struct Health {
    breaker: Breaker,
    /// The latest failure that counted.
    last_failure: Option<UpstreamError>,
}

/// What is known of a registry's endpoints.
#[derive(Debug, Clone)]
pub struct UpstreamStatus {
    /// The registry.
    pub upstream: Upstream,
    /// Its endpoints, in the order in which they are asked.
    pub endpoints: Vec<EndpointStatus>,
}

/// What is known of an endpoint.
#[derive(Debug, Clone)]
pub struct EndpointStatus {
    /// Scheme, host and port.
    pub url: String,
    /// Whether it is asked.
    pub breaker: BreakerState,
    /// Failures since its last success.
    pub failures: u32,
    /// The latest failure, with method and URL of its request.
    pub last_failure: Option<String>,
    /// What it said last about its rate limit.
    pub quota: Option<RateLimit>,
}

/// How the endpoints of a registry fared with one blob, so that the next try begins with another one.
/// Each body that broke off or was wrong is a demerit for the endpoint that sent it.
#[derive(Debug, Clone, Default)]
pub struct EndpointFailures {
    /// By endpoint; those that are not there have none.
    counts: Vec<u32>,
}

impl EndpointFailures {
    /// Notes that what this endpoint sent ([`BlobBody::endpoint`]) was of no use.
    pub fn add(&mut self, endpoint: usize) {
        if self.counts.len() <= endpoint {
            self.counts.resize(endpoint + 1, 0);
        }
        self.counts[endpoint] = self.counts[endpoint].saturating_add(1);
    }

    /// How many this endpoint has.
    pub fn of(&self, endpoint: usize) -> u32 {
        self.counts.get(endpoint).copied().unwrap_or_default()
    }

    /// Whether one of so many endpoints has none.
    pub fn leave_one_of(&self, endpoints: usize) -> bool {
        (0..endpoints).any(|endpoint| self.of(endpoint) == 0)
    }

    /// The order in which to ask: the configured one, but for those that were of less use than others.
    fn order(&self, endpoints: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..endpoints).collect();
        order.sort_by_key(|endpoint| self.of(*endpoint));
        order
    }
}

impl Failover {
    pub(super) fn new(
        upstream: Upstream,
        registries: impl IntoIterator<Item = Registry>,
        policy: BreakerPolicy,
    ) -> Failover {
        let guarded = |registry| GuardedEndpoint {
            registry,
            health: Mutex::new(Health { breaker: Breaker::new(policy), last_failure: None }),
        };
        let endpoints = registries.into_iter().map(guarded).collect();
        Failover { upstream, endpoints, throttle: None, has_answered: AtomicBool::new(false) }
    }

    /// With so many bytes of blobs a second at most.
    pub(super) fn with_rate_limit(self, rate: Option<NonZeroU64>) -> Failover {
        let throttle = rate.map(|rate| Arc::new(Throttle::new(rate, Box::new(RealTime))));
        Failover { throttle, ..self }
    }

    /// Whether it has ever answered a request with content: anybody can have a host that answers 404.
    pub(super) fn has_answered(&self) -> bool {
        self.has_answered.load(Ordering::Relaxed)
    }

    /// Notes that it answered with content.
    pub(super) fn note_answer(&self) {
        self.has_answered.store(true, Ordering::Relaxed);
    }

    pub(super) fn status(&self) -> UpstreamStatus {
        let now = Instant::now();
        let endpoints = self.endpoints.iter().map(|endpoint| endpoint.status(now)).collect();
        UpstreamStatus { upstream: self.upstream.clone(), endpoints }
    }

    /// [`Registries::refresh`](crate::upstream::Registries::refresh), for its endpoints.
    pub(super) fn refresh(&self) {
        self.endpoints.iter().for_each(|endpoint| endpoint.registry.refresh());
    }

    fn rate_limits(&self) -> RateLimits {
        if self.endpoints.len() > 1 { RateLimits::Apply } else { RateLimits::Ignore }
    }

    /// Asks the endpoints one after the other until one answers.
    fn ask<T>(
        &self,
        rate_limits: RateLimits,
        ask: impl Fn(&Registry) -> Result<T, UpstreamError>,
    ) -> Result<T, UpstreamError> {
        let order: Vec<usize> = (0..self.endpoints.len()).collect();
        self.ask_in(&order, rate_limits, |_, registry| ask(registry))
    }

    fn ask_in<T>(
        &self,
        order: &[usize],
        rate_limits: RateLimits,
        ask: impl Fn(usize, &Registry) -> Result<T, UpstreamError>,
    ) -> Result<T, UpstreamError> {
        let mut failure: Option<UpstreamError> = None;
        for &index in order {
            let endpoint = &self.endpoints[index];
            match endpoint.ask(&self.upstream, rate_limits, |registry| ask(index, registry)) {
                Ok(answer) => {
                    self.note_answer();
                    return Ok(answer);
                }
                Err(error) => {
                    log::debug!("{}: endpoint {}: {error}", self.upstream, index + 1);
                    failure = Some(match failure {
                        Some(before) if rank(before.kind()) >= rank(error.kind()) => before,
                        _ => error,
                    });
                }
            }
        }
        Err(failure.unwrap_or_else(|| {
            let reason = "it has no endpoint".into();
            UpstreamError::new(self.upstream.as_str(), UpstreamErrorKind::NotAllowed { reason })
        }))
    }
}

/// Whether a 429 keeps later requests away from the endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RateLimits {
    /// Manifests and blobs share a quota, and there is another endpoint.
    Apply,
    /// Lists often have limits of their own. And where there is no other endpoint, the caller decides: the limit may be
    /// that of one repository, which a client has chosen.
    Ignore,
}

/// What the outcome of a request says about its endpoint.
enum Verdict {
    /// It answers.
    Answers,
    /// Nothing.
    Nothing,
    /// Something is wrong with it, or with the request.
    Doubtful,
    /// It cannot be used just now.
    Down,
}

impl Verdict {
    fn of<T>(rate_limits: RateLimits, result: &Result<T, UpstreamError>) -> Verdict {
        let Err(error) = result else { return Verdict::Answers };
        match error.is_endpoint_trouble() {
            false => Verdict::Answers,
            true if error.is_about_the_registry() => Verdict::Down,
            true if !error.is_rate_limit() => Verdict::Doubtful,
            true => match rate_limits {
                RateLimits::Apply => Verdict::Down,
                RateLimits::Ignore => Verdict::Nothing,
            },
        }
    }
}

/// How much a failure lets rank that the content is to be had after all.
fn rank(kind: &UpstreamErrorKind) -> u32 {
    match kind {
        UpstreamErrorKind::NotFound => 0,
        UpstreamErrorKind::Unsupported | UpstreamErrorKind::Hidden => 1,
        UpstreamErrorKind::Denied { .. }
        | UpstreamErrorKind::Credentials { .. }
        | UpstreamErrorKind::NotAllowed { .. } => 2,
        UpstreamErrorKind::BadAnswer { .. } | UpstreamErrorKind::Redirect { .. } => 3,
        UpstreamErrorKind::Loop | UpstreamErrorKind::CircuitOpen { .. } => 4,
        UpstreamErrorKind::Status { .. }
        | UpstreamErrorKind::RateLimited { .. }
        | UpstreamErrorKind::TimedOut { .. }
        | UpstreamErrorKind::Unreachable { .. }
        | UpstreamErrorKind::Tls { .. }
        | UpstreamErrorKind::Proxy { .. }
        | UpstreamErrorKind::CredentialsUnavailable { .. }
        | UpstreamErrorKind::OutOfService => 5,
    }
}

impl GuardedEndpoint {
    /// Asks, if the breaker lets it, and tells the breaker how it went.
    fn ask<T>(
        &self,
        upstream: &Upstream,
        rate_limits: RateLimits,
        ask: impl FnOnce(&Registry) -> Result<T, UpstreamError>,
    ) -> Result<T, UpstreamError> {
        let permit = self.health().breaker.permit(Instant::now());
        match permit {
            Permit::Ask => {}
            Permit::Wait(wait) => return Err(self.refusal(wait)),
            Permit::Probe => {
                log::info!("{upstream}: asking {} again", self.registry.url());
                // With a request of our own: a client's may be one that fails whatever state the endpoint is in.
                let probed = self.registry.probe();
                let change = {
                    let mut health = self.health();
                    match &probed {
                        Ok(()) => health.breaker.succeeded(),
                        Err(error) => {
                            health.last_failure = Some(error.clone());
                            health.breaker.failed(Instant::now(), None)
                        }
                    }
                };
                self.log(upstream, change, probed.as_ref().err());
                probed?;
            }
        }
        self.ask_anyway(upstream, rate_limits, ask)
    }

    fn ask_anyway<T>(
        &self,
        upstream: &Upstream,
        rate_limits: RateLimits,
        ask: impl FnOnce(&Registry) -> Result<T, UpstreamError>,
    ) -> Result<T, UpstreamError> {
        let result = ask(&self.registry);
        let (verdict, failure) = (Verdict::of(rate_limits, &result), result.as_ref().err());
        let mut should_probe = false;
        let change = {
            let mut health = self.health();
            match (verdict, failure) {
                (Verdict::Nothing, _) => None,
                (Verdict::Answers, _) | (_, None) => health.breaker.succeeded(),
                (Verdict::Down, Some(error)) => {
                    health.last_failure = Some(error.clone());
                    health.breaker.failed(Instant::now(), error.retry_after())
                }
                (Verdict::Doubtful, Some(error)) => {
                    health.last_failure = Some(error.clone());
                    should_probe = health.breaker.doubted(Instant::now());
                    None
                }
            }
        };
        self.log(upstream, change, failure);
        if should_probe {
            self.probe(upstream);
        }
        result
    }

    /// Finds out whether failures of single requests are the endpoint's.
    fn probe(&self, upstream: &Upstream) {
        let probed = self.registry.probe();
        let mut health = self.health();
        let change = match &probed {
            Ok(()) => health.breaker.succeeded(),
            Err(_) => health.breaker.confirmed(Instant::now()),
        };
        drop(health);
        self.log(upstream, change, probed.as_ref().err());
    }

    fn log(&self, upstream: &Upstream, change: Option<Change>, failure: Option<&UpstreamError>) {
        match (change, failure) {
            (Some(Change::Closed), _) => {
                log::info!("{upstream}: {} answers again", self.registry.url());
            }
            (Some(Change::Opened(wait)), Some(error)) => log::warn!(
                "{upstream}: {} is not asked for {:.1} s: {error}",
                self.registry.url(),
                wait.as_secs_f64()
            ),
            _ => {}
        }
    }

    /// The failure that opened the breaker, once more.
    fn refusal(&self, wait: Duration) -> UpstreamError {
        let last = self.health().last_failure.clone();
        let kind = UpstreamErrorKind::CircuitOpen { wait, last: last.map(Arc::new) };
        UpstreamError::new(self.registry.url(), kind)
    }

    fn status(&self, now: Instant) -> EndpointStatus {
        let health = self.health();
        EndpointStatus {
            url: self.registry.url(),
            breaker: health.breaker.state(now),
            failures: health.breaker.failures(),
            last_failure: health.last_failure.as_ref().map(UpstreamError::to_string),
            quota: self.registry.quota(),
        }
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        // Each change is a field or two, and a breaker in any state is a valid one.
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source for Failover {
    fn endpoints(&self) -> usize {
        self.endpoints.len()
    }

    fn resolve(&self, repository: &Repository, tag: &Tag) -> Result<Option<Digest>, UpstreamError> {
        self.ask(self.rate_limits(), |registry| registry.resolve(repository, tag))
    }

    fn head(
        &self,
        repository: &Repository,
        tag: &Tag,
    ) -> Result<Option<ManifestHead>, UpstreamError> {
        self.ask(self.rate_limits(), |registry| registry.head(repository, tag))
    }

    fn manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
        body: &LargeBody<'_>,
    ) -> Result<(Digest, Manifest), UpstreamError> {
        self.ask(self.rate_limits(), |registry| registry.manifest(repository, reference, body))
    }

    fn blob_size(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<u64>, UpstreamError> {
        self.ask(self.rate_limits(), |registry| registry.blob_size(repository, digest))
    }

    fn blob(&self, ask: &BlobAsk<'_>) -> Result<BlobBody, UpstreamError> {
        let order = ask.endpoint_failures.order(self.endpoints.len());
        let open = |registry: &Registry| registry.blob(ask.repository, ask.digest, ask.from);
        let body = |endpoint, body: BlobBody| match &self.throttle {
            Some(throttle) => {
                BlobBody { endpoint, reader: Box::new(throttle.slow(body.reader)), ..body }
            }
            None => BlobBody { endpoint, ..body },
        };
        let asked = self
            .ask_in(&order, self.rate_limits(), |index, registry| Ok(body(index, open(registry)?)));
        match asked {
            // Somebody has begun to receive this blob, and the download has waits of its own.
            Err(error) if ask.from > 0 && error.is_circuit_open() => {
                let first = order[0];
                let asked =
                    self.endpoints[first].ask_anyway(&self.upstream, self.rate_limits(), open);
                asked.map(|opened| body(first, opened))
            }
            other => other,
        }
    }

    fn tags(
        &self,
        repository: &Repository,
        query: &str,
        sink: &mut dyn ListSink,
    ) -> Result<List, UpstreamError> {
        // One request at a time: each endpoint has the sink to itself.
        let sink = RefCell::new(sink);
        self.ask(RateLimits::Ignore, |registry| {
            registry.tags(repository, query, &mut **sink.borrow_mut())
        })
    }

    fn referrers(
        &self,
        repository: &Repository,
        digest: &Digest,
        query: &str,
        sink: &mut dyn ListSink,
    ) -> Result<List, UpstreamError> {
        let sink = RefCell::new(sink);
        self.ask(RateLimits::Ignore, |registry| {
            registry.referrers(repository, digest, query, &mut **sink.borrow_mut())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demerits_put_an_endpoint_behind_those_that_have_fewer() {
        let mut endpoint_failures = EndpointFailures::default();
        assert_eq!(endpoint_failures.order(3), [0, 1, 2]);
        endpoint_failures.add(0);
        assert_eq!(endpoint_failures.order(3), [1, 2, 0]);
        assert!(endpoint_failures.leave_one_of(2) && !endpoint_failures.leave_one_of(1));
        endpoint_failures.add(1);
        assert_eq!(endpoint_failures.order(3), [2, 0, 1]);
        endpoint_failures.add(1);
        endpoint_failures.add(2);
        assert_eq!(endpoint_failures.order(3), [0, 2, 1]);
        assert!(!endpoint_failures.leave_one_of(3));
    }

    #[test]
    fn an_endpoint_that_is_down_outweighs_one_that_has_no_such_content() {
        let down = UpstreamErrorKind::OutOfService;
        let refused = UpstreamErrorKind::CircuitOpen { wait: Duration::ZERO, last: None };
        let denied = UpstreamErrorKind::Denied { status: 403 };
        let ranks = [down, refused, denied, UpstreamErrorKind::NotFound].map(|kind| rank(&kind));
        assert!(ranks.is_sorted_by(|more, less| more > less), "{ranks:?}");
    }
}
