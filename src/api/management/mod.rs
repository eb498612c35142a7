//! The management port: probes, metrics, the API of `docs/openapi.yaml`, and a page over it.
//!
//! It has a small pool of its own, whose workers may read the disk for seconds, unlike those of the
//! serving port. Reading is free from a loopback address and needs the token from elsewhere; changing
//! something always needs it. There is no way from the serving port to here.

mod access;
mod change;
mod documents;
mod gauges;
mod look;
mod page;
mod query;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use serde_json::Value;

use super::bodies::Bodies;
use super::status::{Refusal, refusal, unready};
use super::{NamingInForce, ping};
use crate::cache::Cache;
use crate::http::{Body, Context, Controller, Handler, Method, Reply, Request, Step};
use crate::oci::Platforms;
use access::Token;
use query::Query;

pub use access::ReadToken;
pub use documents::{image_document, report_document};

/// Requests at a time that look at all images, or remove some: they leave workers to the probes.
const HEAVY_MAX: usize = 2;

/// What a listener answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Probes (`health`).
    Health,
    /// Metrics (`metrics`).
    Metrics,
    /// Both.
    HealthAndMetrics,
    /// All there is (`management`).
    Everything,
}

impl Scope {
    /// What answers what either does.
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

/// Where something is answered, and what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ManagementListener {
    /// Address and port.
    pub address: SocketAddr,
    /// What is answered there.
    pub scope: Scope,
}

/// `management`, `health` and `metrics`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ManagementSettings {
    /// One for each address.
    pub listeners: Vec<ManagementListener>,
    /// `management.tokenFile`, read when it is needed.
    pub token_file: Option<PathBuf>,
}

/// What the management port knows of the server.
pub struct Setting {
    /// The cache.
    pub cache: Cache,
    /// How clients may name registries.
    pub naming: NamingInForce,
    /// The serving edge.
    pub edge: Controller,
    /// What must be shown to change something; nothing can be changed without it.
    pub token: Option<ReadToken>,
    /// Of an index that is prefetched, these children.
    pub platforms: Platforms,
    /// When the process began.
    pub started: SystemTime,
    /// The program's version.
    pub version: &'static str,
}

/// Answers operators.
pub struct Management {
    desk: Arc<Desk>,
    scope: Scope,
}

/// What all listeners share.
struct Desk {
    cache: Cache,
    naming: NamingInForce,
    edge: Controller,
    token: Token,
    platforms: Platforms,
    started: SystemTime,
    version: &'static str,
    bodies: Bodies,
    /// Requests that look at all images, or remove some.
    heavy: AtomicUsize,
}

impl Management {
    /// One for each scope.
    pub fn new(setting: Setting, scopes: &[Scope]) -> Vec<Management> {
        let Setting { cache, naming, edge, token, platforms, started, version } = setting;
        let token = Token::new(token);
        let heavy = AtomicUsize::new(0);
        let bodies = Bodies::new(cache.clone());
        let desk = Desk { cache, naming, edge, token, platforms, started, version, bodies, heavy };
        let desk = Arc::new(desk);
        let of = |scope: &Scope| Management { desk: Arc::clone(&desk), scope: *scope };
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
            Body::Bytes(bytes) => self.desk.bodies.body(bytes, client),
            other => other,
        });
        Step::Reply(answered.header("Cache-Control", "no-store"))
    }
}

impl Management {
    fn answer(&self, request: &Request) -> Result<Reply, Refusal> {
        let (desk, path) = (&*self.desk, request.path());
        let is_read = matches!(request.method(), Method::Get | Method::Head);
        let open = match path {
            "/health" if self.scope.has_health() => Some(self.health(request)),
            "/livez" if self.scope.has_health() => Some(Ok(text("ok\n"))),
            "/readyz" if self.scope.has_health() => Some(Ok(desk.ready())),
            "/metrics" if self.scope.has_metrics() => Some(Ok(desk.metrics())),
            // The reference server's probes may be pointed there.
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
            Some(what) => desk.api(what, request, is_read),
            None => Err(Refusal::NotFound(format!("there is nothing at {path}"))),
        }
    }

    /// `verbose`, alone or with a value, as Kubernetes' own probes have it.
    fn health(&self, request: &Request) -> Result<Reply, Refusal> {
        let mut pairs = request.query().unwrap_or_default().split('&');
        if !pairs.any(|pair| pair.split('=').next() == Some("verbose")) {
            return Ok(document(&serde_json::json!({ "status": "UP" })));
        }
        // It has a port of its own, which the operator has opened to whom it is for.
        if self.scope == Scope::Everything {
            self.desk.token.check_reading(request)?;
        }
        Ok(document(&look::verbose_health(&self.desk)))
    }
}

impl Desk {
    fn api(&self, what: &str, request: &Request, is_read: bool) -> Result<Reply, Refusal> {
        let methods = match what {
            "status" | "history" | "images" | "image" | "repositories" | "blobs" | "upstreams" => {
                "GET, HEAD"
            }
            "flights" => "GET, HEAD, DELETE",
            "pins" => "GET, HEAD, POST, DELETE",
            "flights/resume" | "prune" | "prefetch" => "POST",
            _ => return Err(Refusal::NotFound(format!("there is no /api/v1/{what}"))),
        };
        let method = if request.method() == Method::Head { "GET" } else { request.method_text() };
        if !methods.split(", ").any(|allowed| allowed == method) {
            return Err(Refusal::Method(methods));
        }
        match is_read {
            true => {
                self.token.check_reading(request)?;
                look::answer(self, what, request)
            }
            false => {
                self.token.check_changing(request)?;
                change::answer(self, what, request)
            }
        }
    }

    /// The parameters of a request, with the names of registries in place of their aliases.
    fn query(&self, request: &Request, known: &[&str]) -> Result<Query, Refusal> {
        let query = Query::of(request, known)?;
        Ok(query.expanded(&self.naming.read()))
    }

    /// The right to look at all images, which a few requests have at a time.
    fn heavy(&self) -> Result<Heavy<'_>, Refusal> {
        let heavy = Heavy(&self.heavy);
        match self.heavy.fetch_add(1, Ordering::AcqRel) < HEAVY_MAX {
            true => Ok(heavy),
            false => Err(Refusal::Busy(
                "others are looking at all images just now; try again in a moment".into(),
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

/// Given back when it is dropped.
struct Heavy<'a>(&'a AtomicUsize);

impl Drop for Heavy<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn document(value: &Value) -> Reply {
    json(200, value)
}

/// It was understood, and is done in its time.
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
