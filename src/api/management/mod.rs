//! The management port: probes, metrics, the API of `docs/openapi.yaml`, and a page over it.
//!
//! The port has a small pool of workers, which may read the disk for seconds, unlike those of the serving port.
//! Reading is free from a loopback address and needs the token from elsewhere; changes always need it. Nothing
//! here is reachable through the serving port.

mod access;
mod change;
mod check;
mod documents;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod gauges;
mod images;
mod page;
mod query;
mod read;
mod setup;
mod state;
mod sync;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use serde_json::Value;

use super::bodies::Bodies;
use super::status::{Refusal, refusal, unready};
use super::{Activity, Api, NamingInForce, RecentLines, ping};
use crate::cache::Cache;
use crate::http::{Body, Context, Controller, Handler, Method, Reply, Request, Step};
use crate::image_sync::ImageSync;
use crate::oci::Platforms;
use access::Token;
use query::Query;

pub use access::ReadToken;
pub use check::{CheckTarget, check_document};
pub use documents::{event_document, image_document, previous_document, report_document};
pub use setup::{ConfigurationInForce, ConfigurationReport};

/// The number of concurrent requests that read all images or remove some, so that workers are left for probes.
const HEAVY_MAX: usize = 2;

/// What a listener serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Probes (`health`).
    Health,
    /// Metrics (`metrics`).
    Metrics,
    /// Both.
    HealthAndMetrics,
    /// Everything (`management`).
    Everything,
}

impl Scope {
    /// The union of two scopes.
    #[must_use]
    pub fn and(self, other: Scope) -> Scope {
        match (self, other) {
            (one, other) if one == other => one,
            (Scope::Everything, _) | (_, Scope::Everything) => Scope::Everything,
            _ => Scope::HealthAndMetrics,
        }
    }

    fn has_health(self) -> bool {
        self != Scope::Metrics
    }

    fn has_metrics(self) -> bool {
        self != Scope::Health
    }
}

/// An address and what is served there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ManagementListener {
    /// Address and port.
    pub address: SocketAddr,
    /// What is served there.
    pub scope: Scope,
}

/// `management`, `health` and `metrics`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ManagementSettings {
    /// One for each address.
    pub listeners: Vec<ManagementListener>,
    /// `management.tokenFile`, read for each request that needs it.
    pub token_file: Option<PathBuf>,
}

/// The parts of the server that the management port uses.
pub struct Setting {
    /// The cache.
    pub cache: Cache,
    /// The images that are kept present.
    pub sync: ImageSync,
    /// What clients are served by: how they name registries, who they are, and what was noted of them.
    pub api: Arc<Api>,
    /// The serving port.
    pub edge: Controller,
    /// The latest warnings and errors of the log.
    pub lines: Arc<RecentLines>,
    /// The configuration in effect.
    pub configuration: ConfigurationInForce,
    /// The token that changes require; without it, nothing can be changed.
    pub token: Option<ReadToken>,
    /// The platforms that are prefetched of multi-platform images.
    pub platforms: Platforms,
    /// The start time of the process.
    pub started: SystemTime,
    /// The program's version.
    pub version: &'static str,
}

/// Serves operators.
pub struct Management {
    handlers: Arc<Handlers>,
    scope: Scope,
}

/// The request handlers' state, shared by all listeners.
struct Handlers {
    cache: Cache,
    sync: ImageSync,
    naming: NamingInForce,
    edge: Controller,
    activity: Arc<Activity>,
    api: Arc<Api>,
    lines: Arc<RecentLines>,
    configuration: ConfigurationInForce,
    token: Token,
    platforms: Platforms,
    started: SystemTime,
    version: &'static str,
    bodies: Bodies,
    /// The number of running requests that read all images or remove some.
    heavy: AtomicUsize,
}

impl Management {
    /// One for each scope.
    pub fn new(setting: Setting, scopes: &[Scope]) -> Vec<Management> {
        let handlers = Handlers {
            bodies: Bodies::new(setting.cache.clone()),
            cache: setting.cache,
            sync: setting.sync,
            naming: setting.api.naming(),
            edge: setting.edge,
            activity: setting.api.activity(),
            api: setting.api,
            lines: setting.lines,
            configuration: setting.configuration,
            token: Token::new(setting.token),
            platforms: setting.platforms,
            started: setting.started,
            version: setting.version,
            heavy: AtomicUsize::new(0),
        };
        let handlers = Arc::new(handlers);
        let of = |scope: &Scope| Management { handlers: Arc::clone(&handlers), scope: *scope };
        scopes.iter().map(of).collect()
    }
}

impl Handler for Management {
    fn handle(&self, request: &Request, _: &Context<'_>) -> Step {
        let answered = match self.answer(request) {
            Ok(reply) => reply,
            Err(refused) => refusal(&refused),
        };
        let client = request.client_address();
        let answered = answered.with_body(|body| match body {
            Body::Bytes(bytes) => self.handlers.bodies.body(bytes, client),
            other => other,
        });
        Step::Reply(answered.header("Cache-Control", "no-store"))
    }
}

impl Management {
    fn answer(&self, request: &Request) -> Result<Reply, Refusal> {
        let (handlers, path) = (&*self.handlers, request.path());
        let is_read = matches!(request.method(), Method::Get | Method::Head);
        let open = match path {
            "/health" if self.scope.has_health() => Some(self.health(request)),
            "/livez" if self.scope.has_health() => Some(Ok(text("ok\n"))),
            "/readyz" if self.scope.has_health() => Some(Ok(handlers.ready())),
            "/metrics" if self.scope.has_metrics() => Some(Ok(handlers.metrics())),
            // Probes written for the server that Larder replaces may use this path.
            "/v2/" if self.scope.has_health() && self.scope != Scope::Everything => {
                Some(Ok(ping()))
            }
            _ if self.scope == Scope::Everything => page::answer(path).map(Ok),
            _ => None,
        };
        if let Some(reply) = open {
            return if is_read { reply } else { Err(Refusal::Method("GET, HEAD")) };
        }
        match path.strip_prefix("/api/v1/").filter(|_| self.scope == Scope::Everything) {
            Some(what) => handlers.api(what, request, is_read),
            None => Err(Refusal::NotFound(format!("no such path: {path}"))),
        }
    }

    /// `verbose` may have a value or none, as in Kubernetes' own health endpoints.
    fn health(&self, request: &Request) -> Result<Reply, Refusal> {
        let mut pairs = request.query().unwrap_or_default().split('&');
        if !pairs.any(|pair| pair.split('=').next() == Some("verbose")) {
            return Ok(document(&serde_json::json!({ "status": "UP" })));
        }
        // A separate port for `health` needs no token: the operator decides who can reach it.
        if self.scope == Scope::Everything {
            self.handlers.token.check_reading(request)?;
        }
        Ok(document(&read::verbose_health(&self.handlers)))
    }
}

impl Handlers {
    fn api(&self, what: &str, request: &Request, is_read: bool) -> Result<Reply, Refusal> {
        let methods = match what {
            "status"
            | "history"
            | "images"
            | "image"
            | "incomplete"
            | "repositories"
            | "blobs"
            | "upstreams"
            | "peers"
            | "bucket"
            | "events"
            | "requests"
            | "log"
            | "prefetches"
            | "configuration"
            | "client-configuration" => "GET, HEAD",
            "flights" => "GET, HEAD, DELETE",
            "sync" => "GET, HEAD, POST",
            "pins" => "GET, HEAD, POST, DELETE",
            "flights/resume" | "prune" | "prefetch" | "check" | "tags/accept" | "tags/reject" => {
                "POST"
            }
            _ => return Err(Refusal::NotFound(format!("no such path: /api/v1/{what}"))),
        };
        let method = if request.method() == Method::Head { "GET" } else { request.method_text() };
        if !methods.split(", ").any(|allowed| allowed == method) {
            return Err(Refusal::Method(methods));
        }
        match is_read {
            true => {
                self.token.check_reading(request)?;
                read::answer(self, what, request)
            }
            false => {
                self.token.check_changing(request)?;
                change::answer(self, what, request)
            }
        }
    }

    /// The parameters of a request, with aliases replaced by the names of registries.
    fn query(&self, request: &Request, known: &[&str]) -> Result<Query, Refusal> {
        let query = Query::of(request, known)?;
        Ok(query.expanded(&self.naming.read()))
    }

    /// Permission to read all images, which only a few requests have at the same time.
    fn heavy(&self) -> Result<Heavy<'_>, Refusal> {
        let heavy = Heavy(&self.heavy);
        match self.heavy.fetch_add(1, Ordering::AcqRel) < HEAVY_MAX {
            true => Ok(heavy),
            false => Err(Refusal::Busy(
                "too many requests are reading all images; try again in a moment".into(),
            )),
        }
    }

    fn is_ready(&self) -> bool {
        !self.edge.is_draining() && self.cache.store().is_readable()
    }

    fn ready(&self) -> Reply {
        if self.edge.is_draining() {
            return unready("draining\n");
        }
        match self.cache.store().is_readable() {
            true => text("ok\n"),
            false => unready("the cache directory cannot be read\n"),
        }
    }

    fn metrics(&self) -> Reply {
        let rendered = self.cache.metrics().render(&gauges::gauges(self));
        let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        Reply::new(200, Body::Bytes(rendered.into_bytes().into()))
            .header("Content-Type", content_type)
    }
}

/// Permission to read all images, returned when dropped.
struct Heavy<'a>(&'a AtomicUsize);

impl Drop for Heavy<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn document(value: &Value) -> Reply {
    json(200, value)
}

/// The request was accepted and is processed later.
fn accepted(value: &Value) -> Reply {
    json(202, value)
}

fn json(status: u16, value: &Value) -> Reply {
    Reply::new(status, Body::Bytes(value.to_string().into_bytes().into()))
        .header("Content-Type", "application/json")
}

fn text(text: &'static str) -> Reply {
    Reply::new(200, Body::Static(text.as_bytes())).header("Content-Type", "text/plain")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_add_up() {
        use Scope::{Everything, Health, HealthAndMetrics, Metrics};
        for (one, other, both) in [
            (Health, Health, Health),
            (Health, Metrics, HealthAndMetrics),
            (HealthAndMetrics, Metrics, HealthAndMetrics),
            (Everything, Health, Everything),
            (Metrics, Everything, Everything),
        ] {
            assert_eq!((one.and(other), other.and(one)), (both, both));
        }
    }
}
