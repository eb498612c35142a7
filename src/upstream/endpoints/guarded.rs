//! An endpoint with its circuit breaker, which stops requests to one that cannot be used at the moment.

use std::io::{self, Read};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::breaker::{Breaker, BreakerPolicy, BreakerState, Change, Permit};
use crate::oci::Upstream;
use crate::upstream::client::{EndpointKind, RateLimit, Registry};
use crate::upstream::error::{UpstreamError, UpstreamErrorKind};
use crate::upstream::{BlobBody, Origin};

/// How long after the beginning of a request a peer is asked again while it waits for the registry. Then there is time
/// left to ask the next peer and the registry, before clients are no longer kept waiting (25 s).
const PATIENCE: Duration = Duration::from_secs(10);

/// An endpoint with its circuit breaker.
pub(super) struct GuardedEndpoint {
    pub(super) origin: Box<dyn Origin>,
    /// Whether one failure is enough to stop asking it: a peer or a bucket that is frozen would delay every request, and
    /// there is someone else to ask.
    is_near: bool,
    health: Arc<Mutex<Health>>,
}

/// The health of an endpoint, which several registries may share. Locked for a lookup or a change, never during a request.
pub(super) struct Health {
    breaker: Breaker,
    /// The latest failure that the breaker counted, and its time.
    last_failure: Option<(SystemTime, UpstreamError)>,
    /// When it last answered.
    last_success: Option<SystemTime>,
    /// When the first failure since then was.
    failing_since: Option<SystemTime>,
}

/// The status of an endpoint.
#[derive(Debug, Clone, Default)]
pub struct EndpointStatus {
    /// Scheme, host and port.
    pub url: String,
    /// Whether requests are sent to it.
    pub breaker: BreakerState,
    /// Failures since its last success.
    pub failures: u32,
    /// The latest failure, with method and URL of its request.
    pub last_failure: Option<String>,
    /// When that was.
    pub failed: Option<SystemTime>,
    /// When it last answered; `None` if it has not since the start.
    pub answered: Option<SystemTime>,
    /// The first failure since its last success.
    pub failing_since: Option<SystemTime>,
    /// The rate limit that it reported last.
    pub quota: Option<RateLimit>,
}

/// Whether a 429 stops further requests to the endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RateLimits {
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

/// The body of a blob from an endpoint that is near.
struct WatchedReader {
    reader: Box<dyn Read + Send>,
    endpoint: Arc<GuardedEndpoint>,
    upstream: Upstream,
}

impl Read for WatchedReader {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(bytes);
        if let Err(error) = &read
            && error.kind() != io::ErrorKind::Interrupted
        {
            self.endpoint.note_broken_body(&self.upstream, error);
        }
        read
    }
}

impl Health {
    pub(super) fn new(policy: BreakerPolicy) -> Arc<Mutex<Health>> {
        let (last_failure, last_success, failing_since) = (None, None, None);
        let breaker = Breaker::new(policy);
        Arc::new(Mutex::new(Health { breaker, last_failure, last_success, failing_since }))
    }

    fn succeeded(&mut self) -> Option<Change> {
        (self.last_success, self.failing_since) = (Some(SystemTime::now()), None);
        self.breaker.succeeded()
    }

    /// Notes a failure that the breaker counts.
    fn note(&mut self, error: &UpstreamError) {
        let now = SystemTime::now();
        self.last_failure = Some((now, error.clone()));
        self.failing_since.get_or_insert(now);
    }
}

impl GuardedEndpoint {
    pub(super) fn new(registry: Registry, policy: BreakerPolicy) -> GuardedEndpoint {
        GuardedEndpoint::with_health(Box::new(registry), Health::new(policy))
    }

    pub(super) fn with_health(
        origin: Box<dyn Origin>,
        health: Arc<Mutex<Health>>,
    ) -> GuardedEndpoint {
        let is_near = origin.kind() == EndpointKind::Bucket;
        GuardedEndpoint { origin, is_near, health }
    }

    /// The endpoint of a peer, whose breaker opens at the first failure.
    pub(super) fn of_peer(registry: Registry, policy: BreakerPolicy) -> GuardedEndpoint {
        let policy = BreakerPolicy { failures: 1, ..policy };
        GuardedEndpoint { is_near: true, ..GuardedEndpoint::new(registry, policy) }
    }

    /// Makes failures of a body count, if others can continue: the response had begun, so the request was a success.
    pub(super) fn watch(self: &Arc<Self>, upstream: &Upstream, body: BlobBody) -> BlobBody {
        if !self.is_near {
            return body;
        }
        let (endpoint, upstream) = (Arc::clone(self), upstream.clone());
        let reader = Box::new(WatchedReader { reader: body.reader, endpoint, upstream });
        BlobBody { reader, ..body }
    }

    fn note_broken_body(&self, upstream: &Upstream, error: &io::Error) {
        let request = format!("GET {}", self.origin.url());
        let kind = UpstreamErrorKind::Unreachable {
            source: Arc::new(io::Error::new(error.kind(), error.to_string())),
        };
        let error = UpstreamError::new(request, kind);
        let change = {
            let mut health = self.health();
            health.note(&error);
            health.breaker.failed(Instant::now(), None)
        };
        self.log(upstream, change, Some(&error));
    }

    fn is_peer(&self) -> bool {
        self.origin.kind() == EndpointKind::Peer
    }

    pub(super) fn is_bucket(&self) -> bool {
        self.origin.kind() == EndpointKind::Bucket
    }

    /// Sends a request if the breaker permits it, and reports the outcome to the breaker.
    pub(super) fn ask<T>(
        &self,
        upstream: &Upstream,
        rate_limits: RateLimits,
        ask: impl Fn(&dyn Origin) -> Result<T, UpstreamError>,
    ) -> Result<T, UpstreamError> {
        self.ask_since(Instant::now(), upstream, rate_limits, ask)
    }

    /// As [`GuardedEndpoint::ask`], for a request for which the first endpoint was asked at `began`.
    pub(super) fn ask_since<T>(
        &self,
        began: Instant,
        upstream: &Upstream,
        rate_limits: RateLimits,
        ask: impl Fn(&dyn Origin) -> Result<T, UpstreamError>,
    ) -> Result<T, UpstreamError> {
        let permit = self.health().breaker.permit(Instant::now());
        match permit {
            Permit::Ask => {}
            Permit::Wait(wait) => return Err(self.refusal(wait)),
            Permit::Probe => {
                log::info!(upstream:%, endpoint:% = self.origin.url(); "asking the endpoint again");
                // With a request of Larder's own: the client's request may fail even if the endpoint works.
                let probed = self.origin.probe();
                let change = {
                    let mut health = self.health();
                    match &probed {
                        Ok(()) => health.succeeded(),
                        Err(error) => {
                            health.note(error);
                            health.breaker.failed(Instant::now(), None)
                        }
                    }
                };
                self.log(upstream, change, probed.as_ref().err());
                probed?;
            }
        }
        self.ask_anyway(began, upstream, rate_limits, ask)
    }

    /// As [`GuardedEndpoint::ask_since`], whatever the breaker says.
    pub(super) fn ask_anyway<T>(
        &self,
        began: Instant,
        upstream: &Upstream,
        rate_limits: RateLimits,
        ask: impl Fn(&dyn Origin) -> Result<T, UpstreamError>,
    ) -> Result<T, UpstreamError> {
        let mut result = ask(&*self.origin);
        while began.elapsed() < PATIENCE
            && result.as_ref().is_err_and(|error| self.is_waiting_itself(error))
        {
            log::debug!(
                upstream:%, endpoint:% = self.origin.url(); "the peer waits as well; asking it again"
            );
            result = ask(&*self.origin);
        }
        let failure = result.as_ref().err();
        let verdict = match failure {
            // It says what the registry has said, and may have everything else.
            Some(error) if self.is_peer() && error.is_response() => Verdict::Answers,
            // A client cannot make it refuse a request: there are no permissions for some objects only.
            Some(error) if self.is_bucket() && error.is_refusal_of_the_store() => Verdict::Down,
            _ => Verdict::of(rate_limits, &result),
        };
        let mut should_probe = false;
        let change = {
            let mut health = self.health();
            match (verdict, failure) {
                (Verdict::Nothing, _) => None,
                (Verdict::Answers, _) | (_, None) => health.succeeded(),
                (Verdict::Doubtful, Some(error)) if !self.is_near => {
                    health.note(error);
                    should_probe = health.breaker.doubted(Instant::now());
                    None
                }
                (Verdict::Down | Verdict::Doubtful, Some(error)) => {
                    health.note(error);
                    health.breaker.failed(Instant::now(), error.retry_after())
                }
            }
        };
        self.log(upstream, change, failure);
        if should_probe {
            self.probe(upstream);
        }
        result
    }

    /// Whether a peer that has not answered in time waits for the registry, as far as can be seen: it answers a probe. On a
    /// slow link, everyone would otherwise request what the peer is about to receive. It continues meanwhile, and a
    /// repeated request joins its own.
    fn is_waiting_itself(&self, error: &UpstreamError) -> bool {
        let may_ask = || self.health().breaker.state(Instant::now()) == BreakerState::Closed;
        self.is_peer() && error.is_timeout() && may_ask() && self.origin.probe().is_ok()
    }

    /// Probes the endpoint after doubtful failures.
    fn probe(&self, upstream: &Upstream) {
        let probed = self.origin.probe();
        let mut health = self.health();
        let change = match &probed {
            Ok(()) => health.succeeded(),
            Err(_) => health.breaker.confirmed(Instant::now()),
        };
        drop(health);
        self.log(upstream, change, probed.as_ref().err());
    }

    fn log(&self, upstream: &Upstream, change: Option<Change>, failure: Option<&UpstreamError>) {
        match (change, failure) {
            (Some(Change::Closed), _) => {
                log::info!(
                    upstream:%, endpoint:% = self.origin.url(); "the endpoint answers again"
                );
            }
            (Some(Change::Opened(wait)), Some(error)) => log::warn!(
                upstream:%, endpoint:% = self.origin.url(), wait_ms = wait.as_secs_f64() * 1e3,
                error:%;
                "the endpoint is not asked for a while"
            ),
            _ => {}
        }
    }

    /// The error of a request that the breaker refuses. Contains the failure that opened it.
    fn refusal(&self, wait: Duration) -> UpstreamError {
        let last = self.health().last_failure.as_ref().map(|(_, error)| error.clone());
        let kind = UpstreamErrorKind::CircuitOpen { wait, last: last.map(Arc::new) };
        UpstreamError::new(self.origin.url(), kind)
    }

    pub(super) fn status(&self, now: Instant) -> EndpointStatus {
        let health = self.health();
        EndpointStatus {
            url: self.origin.url(),
            breaker: health.breaker.state(now),
            failures: health.breaker.failures(),
            last_failure: health.last_failure.as_ref().map(|(_, error)| error.to_string()),
            failed: health.last_failure.as_ref().map(|(time, _)| *time),
            answered: health.last_success,
            failing_since: health.failing_since,
            quota: self.origin.quota(),
        }
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        // A panic cannot leave an invalid state: each change sets one or two fields, and any state of a breaker is valid.
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
