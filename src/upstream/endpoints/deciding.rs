//! Who decides whether something may be pulled: the endpoints that have the login of a client; or all of them, with Larder's own.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::failover::Failover;
use super::guarded::{GuardedEndpoint, RateLimits};
use crate::oci::Repository;
use crate::upstream::client::EndpointKind;
use crate::upstream::{Permission, UpstreamError, Wanted};

impl Failover {
    /// The same endpoints, except those that decide who may pull, which get a client's login: the registry itself, and Larders
    /// that decide for it. Positions of the former are among its own endpoints, those of the latter among all of them. They
    /// are asked in this order.
    pub(super) fn with_login(
        &self,
        itself: Option<(usize, GuardedEndpoint)>,
        parents: Vec<(usize, GuardedEndpoint)>,
    ) -> Failover {
        let itself = itself.map(|(at, endpoint)| (self.others + at, endpoint));
        let mut endpoints = self.endpoints.clone();
        let mut deciders = Vec::new();
        for (at, endpoint) in itself.into_iter().chain(parents) {
            if let Some(place) = endpoints.get_mut(at) {
                *place = Arc::new(endpoint);
                deciders.push(at);
            }
        }
        Failover {
            upstream: self.upstream.clone(),
            endpoints,
            others: self.others,
            peers: self.peers.clone(),
            throttle: self.throttle.clone(),
            has_answered: AtomicBool::new(false),
            deciders,
        }
    }

    /// Asks the registry and its mirrors whether a repository has something. What the bucket and peers have does not depend on
    /// the repository, and a parent says what its own rules let it say: a manifest may be enough for it.
    pub(super) fn ask_whether(
        &self,
        repository: &Repository,
        wanted: &Wanted,
    ) -> Result<Permission, UpstreamError> {
        let own = self.endpoints.iter();
        let own = own
            .map(|each| (each.origin.kind() == EndpointKind::Registry).then(|| Arc::clone(each)));
        let route: Vec<_> = std::iter::repeat_n(None, self.first_own()).chain(own).collect();
        let order: Vec<usize> = (0..route.len()).collect();
        self.ask_in(&route, &order, RateLimits::Ignore, |_, origin| {
            origin.ask_to_pull(repository, wanted)
        })
    }

    /// Asks the endpoints that have the login of a client whether it may pull. A refusal is final, whoever else could be asked.
    pub(super) fn decide(
        &self,
        repository: &Repository,
        wanted: &Wanted,
    ) -> Result<Permission, UpstreamError> {
        let mut failure = None;
        for endpoint in self.deciders.iter().map(|at| &self.endpoints[*at]) {
            let asked = endpoint.ask(&self.upstream, RateLimits::Ignore, |origin| {
                origin.ask_to_pull(repository, wanted)
            });
            match asked {
                Err(error) if !(error.is_denied() || error.is_certainly_not_found()) => {
                    failure.get_or_insert(error);
                }
                decided => return decided,
            }
        }
        Err(failure.unwrap_or_else(|| self.no_endpoint()))
    }
}
