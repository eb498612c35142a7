//! `/health` on a port of its own, for probes that must not depend on the serving port's load.
//!
//! `/health?verbose` tells more, for people: each upstream's endpoints with their circuit breakers, and
//! what had to be served without being cached. It tells names and failures, no secrets; the port is
//! meant for the cluster's inside.

use serde_json::{Value, json};

use super::status::route_failure;
use super::{RouteError, ping};
use crate::cache::{BreakerState, Cache, EndpointStatus, UpstreamStatus};
use crate::http::{Body, Context, Handler, Method, Reply, Request, Step};

/// Answers health probes. That it answers is the health; upstreams that are down are no reason to
/// restart a cache.
pub struct Health {
    cache: Cache,
}

impl Health {
    /// Probes of the server that serves `cache`.
    pub fn new(cache: Cache) -> Health {
        Health { cache }
    }

    fn report(&self) -> Value {
        let counts = self.cache.counts();
        json!({
            "status": "UP",
            "upstreams": self.cache.upstreams().iter().map(upstream).collect::<Vec<_>>(),
            "damagedFiles": counts.damaged_files,
            "servedWithoutCaching": {
                "blobs": counts.blobs_not_cached,
                "manifests": counts.manifests_not_cached,
            },
        })
    }
}

impl Handler for Health {
    fn handle(&self, request: &Request, _: &Context<'_>) -> Step {
        Step::Reply(match (request.method(), request.path()) {
            (Method::Get | Method::Head, "/health") => match is_verbose(request) {
                true => document(&self.report()),
                false => document(&json!({ "status": "UP" })),
            },
            (Method::Get | Method::Head, "/v2/") => ping(),
            (Method::Get | Method::Head, _) => route_failure(&RouteError::NotFound),
            _ => route_failure(&RouteError::Method),
        })
    }
}

/// `verbose`, alone or with a value, as Kubernetes' own probes have it.
fn is_verbose(request: &Request) -> bool {
    let mut pairs = request.query().unwrap_or_default().split('&');
    pairs.any(|pair| pair.split('=').next() == Some("verbose"))
}

fn document(value: &Value) -> Reply {
    Reply::new(200, Body::Bytes(value.to_string().into_bytes().into()))
        .header("Content-Type", "application/json")
}

fn upstream(status: &UpstreamStatus) -> Value {
    let endpoints: Vec<Value> = status.endpoints.iter().map(endpoint).collect();
    json!({ "name": status.upstream.as_str(), "endpoints": endpoints })
}

fn endpoint(status: &EndpointStatus) -> Value {
    let (breaker, asked_again_in) = match status.breaker {
        BreakerState::Closed => ("closed", None),
        BreakerState::Open(wait) => ("open", Some(wait.as_secs_f64())),
        BreakerState::HalfOpen => ("half-open", None),
    };
    json!({
        "url": status.url,
        "breaker": breaker,
        "askedAgainInSeconds": asked_again_in,
        "failuresInARow": status.failures,
        "lastFailure": status.last_failure,
        "rateLimit": status.quota.as_ref().map(|quota| json!({
            "limit": quota.limit,
            "remaining": quota.remaining,
            "windowSeconds": quota.window.map(|window| window.as_secs()),
        })),
    })
}
