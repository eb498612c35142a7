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
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::breaker::BreakerPolicy;
use super::guarded::{EndpointStatus, GuardedEndpoint, RateLimits};
use super::peers::{PEERS_ASKED, Peers};
use super::throttle::Throttle;
use crate::oci::{Digest, Manifest, Reference, Repository, Tag, Upstream};
use crate::upstream::client::{EndpointKind, Registry};
use crate::upstream::error::{UpstreamError, UpstreamErrorKind};
use crate::upstream::{
    BlobAsk, BlobBody, Confirmation, DocumentSink, List, ManifestHead, Origin, Permission, Source,
    Wanted,
};
use crate::via;

/// The endpoints of a registry, in the order in which they are tried.
pub(super) struct Failover {
    pub(super) upstream: Upstream,
    pub(super) endpoints: Vec<Arc<GuardedEndpoint>>,
    /// How many of them are not the registry's: parents, and the bucket. They come first.
    pub(super) others: usize,
    /// Asked first, for what they are responsible for.
    pub(super) peers: Option<Arc<Peers>>,
    /// Limits the rate of blobs, over all endpoints together.
    pub(super) throttle: Option<Arc<Throttle>>,
    /// Whether it has ever returned content.
    pub(super) has_answered: AtomicBool,
    /// The endpoints that have a client's login and decide whether it may pull, in the order in which they are asked.
    pub(super) deciders: Vec<usize>,
}

/// The status of a registry's endpoints.
#[derive(Debug, Clone)]
pub struct UpstreamStatus {
    /// The registry.
    pub upstream: Upstream,
    /// Its endpoints, in the order in which they are tried.
    pub endpoints: Vec<EndpointStatus>,
}

/// How often each endpoint of a registry has failed to deliver one blob: its body broke off or was wrong. The next
/// attempt begins with the endpoint that has failed least.
#[derive(Debug, Clone, Default)]
pub struct EndpointFailures {
    /// By endpoint; missing entries are 0.
    counts: Vec<u32>,
    /// Whether the bucket is left out.
    is_without_bucket: bool,
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

    /// Whether the bucket may be asked as well. It has blobs, and does not know in which repositories they are.
    pub fn with_bucket(self, may_ask: bool) -> EndpointFailures {
        EndpointFailures { is_without_bucket: !may_ask, ..self }
    }

    /// Whether the bucket is left out.
    pub fn is_without_bucket(&self) -> bool {
        self.is_without_bucket
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
        let guarded = |registry| Arc::new(GuardedEndpoint::new(registry, policy));
        let endpoints = registries.into_iter().map(guarded).collect();
        let (others, peers, throttle) = (0, None, None);
        let (has_answered, deciders) = (AtomicBool::new(false), Vec::new());
        Failover { upstream, endpoints, others, peers, throttle, has_answered, deciders }
    }

    /// What the bucket has of a registry, and nothing else.
    pub(super) fn of_bucket(upstream: Upstream, bucket: Arc<GuardedEndpoint>) -> Failover {
        let none = Failover::new(upstream, [], BreakerPolicy::default());
        Failover { endpoints: vec![bucket], others: 1, ..none }
    }

    /// Asks these first, in this order: the parents, and then the bucket.
    pub(super) fn after(
        self,
        parents: impl IntoIterator<Item = Registry>,
        bucket: Option<Arc<GuardedEndpoint>>,
        policy: BreakerPolicy,
    ) -> Failover {
        let parents = parents.into_iter();
        let parents = parents.map(|parent| Arc::new(GuardedEndpoint::new(parent, policy)));
        let mut endpoints: Vec<_> = parents.chain(bucket).collect();
        let others = endpoints.len();
        endpoints.extend(self.endpoints);
        Failover { endpoints, others, ..self }
    }

    /// Asks these peers first.
    pub(super) fn with_peers(self, peers: Option<Arc<Peers>>) -> Failover {
        Failover { peers, ..self }
    }

    /// The endpoints for some content: first those of the responsible peers, then its own. The positions do not depend on
    /// how many peers there are.
    fn route(&self, content: &str) -> Vec<Option<Arc<GuardedEndpoint>>> {
        let own = self.endpoints.iter().map(|endpoint| Some(Arc::clone(endpoint)));
        match &self.peers {
            // A peer's request is for what this process is responsible for.
            Some(_) if via::current().is_from_peer() => {
                [const { None }; PEERS_ASKED].into_iter().chain(own).collect()
            }
            Some(peers) => {
                peers.responsible(&self.upstream, content).into_iter().chain(own).collect()
            }
            None => own.collect(),
        }
    }

    /// The position of the first endpoint of its own.
    pub(super) fn first_own(&self) -> usize {
        if self.peers.is_some() { PEERS_ASKED } else { 0 }
    }

    /// Limits the rate of blobs to `rate` bytes per second.
    pub(super) fn with_rate_limit(self, rate: Option<NonZeroU64>) -> Failover {
        let throttle = rate.map(|rate| Arc::new(Throttle::at(rate)));
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
        let endpoints = self.endpoints.iter().filter(|endpoint| !endpoint.is_bucket());
        let endpoints = endpoints.map(|endpoint| endpoint.status(now)).collect();
        UpstreamStatus { upstream: self.upstream.clone(), endpoints }
    }

    /// [`Registries::refresh`](crate::upstream::Registries::refresh), for its endpoints.
    pub(super) fn refresh(&self) {
        self.endpoints.iter().for_each(|endpoint| endpoint.origin.refresh());
    }

    fn rate_limits(&self) -> RateLimits {
        if self.has_mirrors() { RateLimits::Apply } else { RateLimits::Ignore }
    }

    /// Tries the endpoints in order until one succeeds.
    fn ask<T>(
        &self,
        content: &str,
        rate_limits: RateLimits,
        ask: impl Fn(&dyn Origin) -> Result<T, UpstreamError>,
    ) -> Result<T, UpstreamError> {
        let route = self.route(content);
        let order: Vec<usize> = (0..route.len()).collect();
        self.ask_in(&route, &order, rate_limits, |_, registry| ask(registry))
    }

    /// As [`Failover::ask`], for what changes: only the registry knows what it is now, so the bucket is not asked, unless
    /// nothing else may be.
    fn ask_for_current<T>(
        &self,
        content: &str,
        rate_limits: RateLimits,
        ask: impl Fn(&dyn Origin) -> Result<T, UpstreamError>,
    ) -> Result<T, UpstreamError> {
        let mut route = self.route(content);
        if !self.is_bucket_only() {
            for place in &mut route {
                *place = place.take().filter(|endpoint| !endpoint.is_bucket());
            }
        }
        let order: Vec<usize> = (0..route.len()).collect();
        self.ask_in(&route, &order, rate_limits, |_, registry| ask(registry))
    }

    fn is_bucket_only(&self) -> bool {
        self.endpoints.len() == self.others
    }

    /// Whether the answers of the endpoint at a position are the registry's.
    fn is_own(&self, index: usize) -> bool {
        index >= self.first_own() + self.others
    }

    pub(super) fn ask_in<T>(
        &self,
        route: &[Option<Arc<GuardedEndpoint>>],
        order: &[usize],
        rate_limits: RateLimits,
        ask: impl Fn(usize, &dyn Origin) -> Result<T, UpstreamError>,
    ) -> Result<T, UpstreamError> {
        // With the rank of its place: what the registry itself says counts more than what anyone else says.
        let mut failure: Option<((bool, u32), UpstreamError)> = None;
        // Whether this process has recognized itself as the peer to ask.
        let mut is_responsible = false;
        let began = Instant::now();
        for &index in order {
            let Some(endpoint) = &route[index] else { continue };
            if is_responsible && index < PEERS_ASKED {
                continue;
            }
            let ask = |registry: &dyn Origin| ask(index, registry);
            match endpoint.ask_since(began, &self.upstream, rate_limits, ask) {
                Ok(answer) => {
                    if self.is_own(index) {
                        self.note_answer();
                    }
                    return Ok(answer);
                }
                Err(error) => {
                    log::debug!(
                        upstream:% = self.upstream, endpoint:% = endpoint.origin.url(), error:%;
                        "an endpoint has not delivered"
                    );
                    if index < self.first_own() && endpoint.origin.is_this_process() {
                        // The others have a lower rank.
                        is_responsible = true;
                        continue;
                    }
                    if error.is_no_space() {
                        return Err(error);
                    }
                    let weight = (self.is_own(index), rank(error.kind()));
                    failure = match failure {
                        Some(before) if before.0 >= weight => Some(before),
                        _ => Some((weight, error)),
                    };
                }
            }
        }
        Err(failure.map_or_else(|| self.no_endpoint(), |(_, error)| error))
    }

    pub(super) fn no_endpoint(&self) -> UpstreamError {
        let reason = "it has no endpoints".into();
        UpstreamError::new(self.upstream.as_str(), UpstreamErrorKind::NotAllowed { reason })
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
        | UpstreamErrorKind::NoSpace
        // Only object stores have these.
        | UpstreamErrorKind::ObjectStore { .. }
        | UpstreamErrorKind::Unreadable { .. }
        | UpstreamErrorKind::Cancelled => 5,
    }
}

impl Source for Failover {
    fn endpoints(&self) -> usize {
        self.first_own() + self.endpoints.len()
    }

    fn has_mirrors(&self) -> bool {
        self.endpoints.iter().filter(|each| !each.is_bucket()).count() > 1
    }

    fn is_authoritative(&self) -> bool {
        !self.is_bucket_only()
    }

    fn is_low_on_pulls(&self) -> bool {
        let own = &self.endpoints[self.others..];
        !own.is_empty() && own.iter().all(|endpoint| endpoint.origin.is_low_on_pulls())
    }

    fn resolve(
        &self,
        repository: &Repository,
        tag: &Tag,
    ) -> Result<Option<(Digest, Confirmation)>, UpstreamError> {
        self.ask_for_current(&of_tag(repository, tag), self.rate_limits(), |registry| {
            registry.resolve(repository, tag)
        })
    }

    fn head(
        &self,
        repository: &Repository,
        tag: &Tag,
    ) -> Result<Option<(ManifestHead, Confirmation)>, UpstreamError> {
        self.ask_for_current(&of_tag(repository, tag), self.rate_limits(), |registry| {
            registry.head(repository, tag)
        })
    }

    fn ask_to_pull(
        &self,
        repository: &Repository,
        wanted: &Wanted,
    ) -> Result<Permission, UpstreamError> {
        match self.deciders.is_empty() {
            true => self.ask_whether(repository, wanted),
            false => self.decide(repository, wanted),
        }
    }

    fn manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
        sink: &mut dyn DocumentSink,
    ) -> Result<(Digest, Manifest, Confirmation), UpstreamError> {
        // There is one request at a time, so the sink is never borrowed twice.
        let sink = RefCell::new(sink);
        let ask =
            |origin: &dyn Origin| origin.manifest(repository, reference, &mut **sink.borrow_mut());
        match reference {
            Reference::Digest(digest) => self.ask(&digest.to_string(), self.rate_limits(), ask),
            Reference::Tag(tag) => {
                self.ask_for_current(&of_tag(repository, tag), self.rate_limits(), ask)
            }
        }
    }

    fn blob_size(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<u64>, UpstreamError> {
        self.ask(&digest.to_string(), self.rate_limits(), |registry| {
            registry.blob_size(repository, digest)
        })
    }

    fn blob(&self, ask: &BlobAsk<'_>) -> Result<BlobBody, UpstreamError> {
        let route = self.route(&ask.digest.to_string());
        let mut order = ask.endpoint_failures.order(route.len());
        if ask.endpoint_failures.is_without_bucket {
            order.retain(|at| !route[*at].as_ref().is_some_and(|endpoint| endpoint.is_bucket()));
        }
        let first_own = self.first_own();
        let open = |origin: &dyn Origin| origin.blob(ask);
        let watched = |endpoint: usize, body: BlobBody| match &route[endpoint] {
            Some(guarded) => guarded.watch(&self.upstream, body),
            None => body,
        };
        let body = |endpoint, body: BlobBody| match &self.throttle {
            // The limit is that of the link to the registry.
            Some(throttle) if endpoint >= first_own && body.sender != EndpointKind::Bucket => {
                BlobBody { endpoint, reader: Box::new(throttle.slow(body.reader)), ..body }
            }
            _ => BlobBody { endpoint, ..watched(endpoint, body) },
        };
        if let Some(endpoint) = ask.additional_to {
            let Some(Some(asked)) = route.get(endpoint) else { return Err(self.no_endpoint()) };
            return open(&*asked.origin).map(|opened| body(endpoint, opened));
        }
        let asked = self.ask_in(&route, &order, self.rate_limits(), |index, registry| {
            Ok(body(index, open(registry)?))
        });
        match asked {
            // Clients are already receiving this blob, and the download has its own backoff, so the breaker is ignored.
            Err(error) if ask.from > 0 && error.is_circuit_open() => {
                let Some((first, Some(endpoint))) = order
                    .iter()
                    .map(|at| (*at, &route[*at]))
                    .find(|(_, endpoint)| endpoint.is_some())
                else {
                    return Err(error);
                };
                let asked =
                    endpoint.ask_anyway(Instant::now(), &self.upstream, self.rate_limits(), open);
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
        self.ask_for_current(repository.as_str(), RateLimits::Ignore, |registry| {
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
        self.ask_for_current(&digest.to_string(), RateLimits::Ignore, |registry| {
            registry.referrers(repository, digest, query, &mut **sink.borrow_mut())
        })
    }
}

fn of_tag(repository: &Repository, tag: &Tag) -> String {
    format!("{repository}:{tag}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
