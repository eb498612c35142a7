//! A registry with one or more endpoints, which are tried in order. Each endpoint has a circuit breaker.
//!
//! After any failure at one endpoint (an error, missing content, refused credentials, an unusable response) the next one
//! is tried: a mirror need not have all content, and credentials differ between endpoints. If all fail, the error with
//! the highest [`rank`] is returned. For example, "endpoint is down" outranks "no such content", which the cache would
//! remember.
//!
//! The breaker counts failures of the endpoint itself or of its token service. Failures at the target of a redirect do
//! not count, since an object store may fail while the registry works. A 5xx response to one request, which a client has
//! chosen, says nothing about other requests, so the breaker probes `/v2/` first. A 429 counts if there is another
//! endpoint, see [`RateLimits`].

use std::cell::RefCell;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::breaker::{Breaker, BreakerPolicy, BreakerState, Change, Permit};
use super::throttle::{RealTime, Throttle};
use crate::oci::{Digest, Manifest, Reference, Repository, Tag, Upstream};
use crate::units::duration;
use crate::upstream::client::{RateLimit, Registry};
use crate::upstream::error::{UpstreamError, UpstreamErrorKind};
use crate::upstream::{BlobAsk, BlobBody, Confirmation, DocumentSink, List, ManifestHead, Source};

/// The endpoints of a registry, in the order in which they are tried.
pub(super) struct Failover {
    upstream: Upstream,
    endpoints: Vec<GuardedEndpoint>,
    /// Limits the rate of blobs, over all endpoints together.
    throttle: Option<Arc<Throttle>>,
    /// Whether it has ever returned content.
    has_answered: AtomicBool,
}

/// An endpoint with its circuit breaker.
struct GuardedEndpoint {
    registry: Registry,
    /// Locked for a lookup or a change, never during a request.
    health: Mutex<Health>,
}

struct Health {
    breaker: Breaker,
    /// The latest failure that the breaker counted.
    last_failure: Option<UpstreamError>,
}

/// The status of a registry's endpoints.
#[derive(Debug, Clone)]
pub struct UpstreamStatus {
    /// The registry.
    pub upstream: Upstream,
    /// Its endpoints, in the order in which they are tried.
    pub endpoints: Vec<EndpointStatus>,
}

/// The status of an endpoint.
#[derive(Debug, Clone)]
pub struct EndpointStatus {
    /// Scheme, host and port.
    pub url: String,
    /// Whether requests are sent to it.
    pub breaker: BreakerState,
    /// Failures since its last success.
    pub failures: u32,
    /// The latest failure, with method and URL of its request.
    pub last_failure: Option<String>,
    /// The rate limit that it reported last.
    pub quota: Option<RateLimit>,
}

/// How often each endpoint of a registry has failed to deliver one blob: its body broke off or was wrong. The next
/// attempt begins with the endpoint that has failed least.
#[derive(Debug, Clone, Default)]
pub struct EndpointFailures {
    /// By endpoint; missing entries are 0.
    counts: Vec<u32>,
}

impl EndpointFailures {
    /// Records that the body from this endpoint ([`BlobBody::endpoint`]) was unusable.
    pub fn add(&mut self, endpoint: usize) {
        if self.counts.len() <= endpoint {
            self.counts.resize(endpoint + 1, 0);
        }
        self.counts[endpoint] = self.counts[endpoint].saturating_add(1);
    }

    /// The failures of this endpoint.
    pub fn of(&self, endpoint: usize) -> u32 {
        self.counts.get(endpoint).copied().unwrap_or_default()
    }

    /// Whether at least one of `endpoints` endpoints has not failed.
    pub fn has_clean_endpoint(&self, endpoints: usize) -> bool {
        (0..endpoints).any(|endpoint| self.of(endpoint) == 0)
    }

    /// The order in which to try the endpoints: by failures, then by configuration.
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

    /// Limits the rate of blobs to `rate` bytes per second.
    pub(super) fn with_rate_limit(self, rate: Option<NonZeroU64>) -> Failover {
        let throttle = rate.map(|rate| Arc::new(Throttle::new(rate, Box::new(RealTime))));
        Failover { throttle, ..self }
    }

    /// Whether it has ever returned content. Other responses do not count, since any web server answers 404.
    pub(super) fn has_answered(&self) -> bool {
        self.has_answered.load(Ordering::Relaxed)
    }

    /// Records that it returned content.
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

    /// Tries the endpoints in order until one succeeds.
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
                    if error.is_no_space() {
                        return Err(error);
                    }
                    failure = Some(match failure {
                        Some(before) if rank(before.kind()) >= rank(error.kind()) => before,
                        _ => error,
                    });
                }
            }
        }
        Err(failure.unwrap_or_else(|| {
            let reason = "it has no endpoints".into();
            UpstreamError::new(self.upstream.as_str(), UpstreamErrorKind::NotAllowed { reason })
        }))
    }
}

/// Whether a 429 stops further requests to the endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RateLimits {
    /// It does: manifests and blobs share a quota, and there is another endpoint.
    Apply,
    /// It does not. Lists often have separate limits. Without another endpoint the caller decides, since the limit may be
    /// that of one repository, which a client has chosen.
    Ignore,
}

/// What the outcome of a request shows about its endpoint.
enum Verdict {
    /// It works.
    Answers,
    /// Nothing.
    Nothing,
    /// It may be down, or fail for this request only.
    Doubtful,
    /// It cannot be used at the moment.
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

/// Ranks errors by the chance that a later attempt succeeds.
fn rank(kind: &UpstreamErrorKind) -> u32 {
    match kind {
        UpstreamErrorKind::NotFound => 0,
        UpstreamErrorKind::Unsupported
        | UpstreamErrorKind::NoRanges
        | UpstreamErrorKind::Hidden => 1,
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
        | UpstreamErrorKind::OutOfService
        | UpstreamErrorKind::NoSpace => 5,
    }
}

impl GuardedEndpoint {
    /// Sends a request if the breaker permits it, and reports the outcome to the breaker.
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
                // With a request of Larder's own: the client's request may fail even if the endpoint works.
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

    /// Probes the endpoint after doubtful failures.
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
                "{upstream}: {} is not asked for {}: {error}",
                self.registry.url(),
                duration(wait)
            ),
            _ => {}
        }
    }

    /// The error of a request that the breaker refuses. Contains the failure that opened it.
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
        // A panic cannot leave an invalid state: each change sets one or two fields, and any state of a breaker is valid.
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source for Failover {
    fn endpoints(&self) -> usize {
        self.endpoints.len()
    }

    fn is_low_on_pulls(&self) -> bool {
        self.endpoints.iter().all(|endpoint| endpoint.registry.is_low_on_pulls(Instant::now()))
    }

    fn resolve(
        &self,
        repository: &Repository,
        tag: &Tag,
    ) -> Result<Option<(Digest, Confirmation)>, UpstreamError> {
        self.ask(self.rate_limits(), |registry| registry.resolve(repository, tag))
    }

    fn head(
        &self,
        repository: &Repository,
        tag: &Tag,
    ) -> Result<Option<(ManifestHead, Confirmation)>, UpstreamError> {
        self.ask(self.rate_limits(), |registry| registry.head(repository, tag))
    }

    fn manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
        sink: &mut dyn DocumentSink,
    ) -> Result<(Digest, Manifest, Confirmation), UpstreamError> {
        // There is one request at a time, so the sink is never borrowed twice.
        let sink = RefCell::new(sink);
        self.ask(self.rate_limits(), |registry| {
            registry.manifest(repository, reference, &mut **sink.borrow_mut())
        })
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
        let open = |registry: &Registry| registry.blob(ask);
        let body = |endpoint, body: BlobBody| match &self.throttle {
            Some(throttle) => {
                BlobBody { endpoint, reader: Box::new(throttle.slow(body.reader)), ..body }
            }
            None => BlobBody { endpoint, ..body },
        };
        if let Some(endpoint) = ask.additional_to {
            return open(&self.endpoints[endpoint].registry).map(|opened| body(endpoint, opened));
        }
        let asked = self
            .ask_in(&order, self.rate_limits(), |index, registry| Ok(body(index, open(registry)?)));
        match asked {
            // Clients are already receiving this blob, and the download has its own backoff, so the breaker is ignored.
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
        sink: &mut dyn DocumentSink,
    ) -> Result<List, UpstreamError> {
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
        sink: &mut dyn DocumentSink,
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
    fn endpoints_with_fewer_failures_are_tried_first() {
        let mut endpoint_failures = EndpointFailures::default();
        assert_eq!(endpoint_failures.order(3), [0, 1, 2]);
        endpoint_failures.add(0);
        assert_eq!(endpoint_failures.order(3), [1, 2, 0]);
        assert!(
            endpoint_failures.has_clean_endpoint(2) && !endpoint_failures.has_clean_endpoint(1)
        );
        endpoint_failures.add(1);
        assert_eq!(endpoint_failures.order(3), [2, 0, 1]);
        endpoint_failures.add(1);
        endpoint_failures.add(2);
        assert_eq!(endpoint_failures.order(3), [0, 2, 1]);
        assert!(!endpoint_failures.has_clean_endpoint(3));
    }

    #[test]
    fn an_endpoint_that_is_down_outranks_one_without_the_content() {
        let down = UpstreamErrorKind::OutOfService;
        let refused = UpstreamErrorKind::CircuitOpen { wait: Duration::ZERO, last: None };
        let denied = UpstreamErrorKind::Denied { status: 403 };
        let ranks = [down, refused, denied, UpstreamErrorKind::NotFound].map(|kind| rank(&kind));
        assert!(ranks.is_sorted_by(|more, less| more > less), "{ranks:?}");
    }
}
