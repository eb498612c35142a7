//! The registry API for clients: distribution-spec pull and discovery, over the cache.
//!
//! A request is parsed into one [`Target`], answered from the cache or left waiting on a flight, and
//! rendered with the headers that clients need. This room must not know how upstreams are asked or
//! where files lie.
//!
//! Only one place knows status codes for failures: `status.rs`.

mod access_log;
mod blobs;
mod bodies;
mod following;
mod hosts;
mod lists;
mod login;
mod management;
mod manifests;
mod range;
mod route;
mod status;
mod waiting;

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use crate::cache::{Cache, How};
use crate::http::{Context, Ending, Handler, Reply, Request, Step};
use crate::oci::Upstream;
use crate::users::Users;
use crate::via::{self, Loop, Via};

pub use hosts::{HostName, HostNameError};
pub use management::{
    Management, ManagementListener, ManagementSettings, ReadToken, Scope, Setting, image_document,
    report_document,
};
pub use route::{Addressing, Naming, Route, RouteError, Target};
pub use status::Failure;

/// Answers container clients.
pub struct Api {
    desk: Arc<Desk>,
    /// Who is served; everybody if `None`. Locked while it is copied or replaced.
    users: RwLock<Option<Arc<Users>>>,
    /// The names of this server that clients may use; any if it is empty. Locked as above.
    allowed_hosts: RwLock<Arc<[HostName]>>,
}

/// The rules by which a request names its upstream, shared by all who need them. Locked while something is
/// parsed by them, or while they are replaced: neither waits for anything.
#[derive(Clone)]
pub struct NamingInForce(Arc<RwLock<Naming>>);

impl NamingInForce {
    fn read(&self) -> RwLockReadGuard<'_, Naming> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers those who may ask.
struct Desk {
    cache: Cache,
    naming: NamingInForce,
}

impl Api {
    /// An API over `cache`, with the rules by which a request names its upstream, for everybody.
    pub fn new(cache: Cache, naming: Naming) -> Api {
        let naming = NamingInForce(Arc::new(RwLock::new(naming)));
        let desk = Arc::new(Desk { cache, naming });
        Api { desk, users: RwLock::new(None), allowed_hosts: RwLock::new(Arc::new([])) }
    }

    /// Puts other rules into force, for the requests that come from now on.
    pub fn set_naming(&self, naming: Naming) {
        // Replaced at once or not at all, so a panic leaves whole rules.
        *self.desk.naming.0.write().unwrap_or_else(PoisonError::into_inner) = naming;
    }

    /// The rules in force, now and after they are replaced.
    pub fn naming(&self) -> NamingInForce {
        self.desk.naming.clone()
    }

    /// Serves these users alone from now on, or everybody.
    pub fn set_users(&self, users: Option<Arc<Users>>) {
        *self.users.write().unwrap_or_else(PoisonError::into_inner) = users;
    }

    /// Answers only requests that use one of these names for this server, or any if there are none.
    pub fn set_allowed_hosts(&self, hosts: &[HostName]) {
        *self.allowed_hosts.write().unwrap_or_else(PoisonError::into_inner) = hosts.into();
    }

    fn allowed_hosts(&self) -> Arc<[HostName]> {
        Arc::clone(&self.allowed_hosts.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The users who are served, if not everybody is.
    pub fn users(&self) -> Option<Arc<Users>> {
        self.users.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Desk {
    fn target(&self, request: &Request) -> Result<Target, RouteError> {
        self.naming.read().target(request)
    }
}

impl Handler for Api {
    fn handle(&self, request: &Request, context: &Context<'_>) -> Step {
        if let Some(refusal) = hosts::refusal(&self.allowed_hosts(), request) {
            return Step::Reply(refusal);
        }
        match self.users() {
            Some(users) => login::answer(&self.desk, &users, request, context),
            None => self.desk.answer(request, context),
        }
    }

    fn finished(&self, request: &Request, ending: &Ending) {
        let bytes = ending.bytes_sent;
        let word = route::word(request.path());
        self.desk.cache.metrics().responded(word, ending.status, ending.latency, bytes);
        access_log::line(request, ending);
    }
}

impl Desk {
    fn answer(&self, request: &Request, context: &Context<'_>) -> Step {
        let (route, addressing) = match self.target(request) {
            Ok(Target::Content(route, addressing)) => (route, addressing),
            Ok(Target::Ping) => return Step::Reply(ping()),
            Err(error) => return Step::Reply(status::route_failure(&error)),
        };
        let chain = match Via::parse(request.headers("via")) {
            Ok(chain) => chain,
            Err(returned) => return Step::Reply(refuse_loop(&returned, &addressing, request)),
        };
        chain.enter(|| self.answer_content(route, addressing, request, context))
    }

    fn answer_content(
        &self,
        route: Route,
        addressing: Addressing,
        request: &Request,
        context: &Context<'_>,
    ) -> Step {
        let kind = match &route {
            Route::Manifest { .. } => "manifest",
            Route::Blob { .. } => "blob",
            Route::List { .. } => "list",
        };
        let cache = self.cache.for_client(request.client_address());
        let call = Call { cache, addressing, kind };
        match route {
            Route::Manifest { name, reference } => {
                manifests::answer(call, &name, &reference, request, context)
            }
            Route::Blob { name, digest } => blobs::answer(call, name, digest, request, context),
            Route::List { name, question } => {
                lists::answer(call, &name, question, request, context)
            }
        }
    }
}

/// Refuses a request that this Larder has sent itself, by way of another one.
fn refuse_loop(returned: &Loop, addressing: &Addressing, request: &Request) -> Reply {
    log::error!(
        "registries: {} is asked of this Larder ({}) by the Larder {} at {}, which was asked for it by this \
         one: they are each other's endpoint; remove one of the two from the other's configuration",
        addressing.upstream,
        via::instance(),
        returned.sender,
        request.peer().ip()
    );
    status::loop_detected(&addressing.upstream)
}

/// What every handler needs beside the request.
struct Call {
    cache: Cache,
    addressing: Addressing,
    /// What is asked for, in the words of the metrics.
    kind: &'static str,
}

impl Call {
    /// Adds the headers of every answer about an upstream.
    fn dress(&self, reply: Reply, how: How, storage: Storage) -> Reply {
        let upstream = self.addressing.upstream.as_str();
        self.cache.metrics().answered(self.kind, how.as_str(), upstream);
        let reply = match how {
            How::Stale => reply.header("Warning", "110 - \"Response is Stale\""),
            _ => reply,
        };
        self.confirm_namespace(reply)
            .header("Cache-Status", cache_status(how, storage))
            .header(API_VERSION.0, API_VERSION.1)
            .note(note(how, &self.addressing.upstream))
    }

    /// A failure as an answer about an upstream.
    fn fail(&self, failure: &Failure) -> Reply {
        let upstream = &self.addressing.upstream;
        self.confirm_namespace(status::reply(failure))
            .note(format!("cache=none upstream={upstream}"))
    }

    /// Tells the client that its namespace was heeded: distribution-spec, "Registry Proxying".
    fn confirm_namespace(&self, reply: Reply) -> Reply {
        match &self.addressing.namespace {
            Some(namespace) => reply.header("OCI-Namespace", namespace.to_string()),
            None => reply,
        }
    }
}

/// Docker clients fall back to an older protocol without this header.
const API_VERSION: (&str, &str) = ("Docker-Distribution-API-Version", "registry/2.0");

/// Whether an answer from upstream is stored.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Storage {
    Stored,
    /// It describes content that is not cached, or may be too large to store.
    NotStored,
}

/// Where an answer came from (RFC 9211).
fn cache_status(how: How, storage: Storage) -> &'static str {
    match how {
        How::Hit => "larder; hit",
        How::Join => "larder; fwd=miss; collapsed",
        How::Miss if storage == Storage::Stored => "larder; fwd=miss; stored",
        How::Miss => "larder; fwd=miss",
        How::Stale => "larder; hit; detail=stale",
        How::Bypass => "larder; fwd=miss; detail=not-cached",
    }
}

/// What the access log says of the cache's part.
fn note(how: How, upstream: &Upstream) -> String {
    format!("cache={} upstream={upstream}", how.as_str())
}

/// `GET /v2/`: local and instant, since clients take a slow one for a dead registry.
fn ping() -> Reply {
    Reply::new(200, crate::http::Body::Static(b"{}"))
        .header("Content-Type", "application/json")
        .header(API_VERSION.0, API_VERSION.1)
}
