//! The registry API for clients: distribution-spec pull and discovery, over the cache.
//!
//! A request is parsed into a [`Target`], answered from the cache or suspended until a flight has data, and
//! rendered with the headers that clients need. This module must not know how upstreams are contacted or
//! where files are stored.
//!
//! `status.rs` is the only place that maps failures to status codes.

mod access;
mod access_log;
mod activity;
mod auth;
mod blobs;
mod bodies;
mod following;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod hosts;
mod lists;
mod login;
mod management;
mod manifests;
mod range;
mod route;
mod runtimes;
mod status;
mod token_login;
mod waiting;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use crate::cache::{Cache, CacheError, DECIDED, How, PullAccess, Why};
use crate::http::{Context, Ending, Handler, Method, Reply, Request, Step};
use crate::introduction;
use crate::oci::{ImageName, Reference};
use crate::via::{self, Loop, Via};

pub use activity::{Activity, RecentLines};
use auth::Admission;
pub use auth::ServerAuth;
pub use hosts::{HostName, HostNameError};
pub use management::{
    CheckTarget, ConfigurationInForce, ConfigurationReport, Management, ManagementListener,
    ManagementSettings, ReadToken, Scope, Setting, check_document, event_document, image_document,
    previous_document, report_document,
};
pub use route::{Addressing, Naming, Route, RouteError, Target};
pub use status::Failure;

/// Serves container clients.
pub struct Api {
    handlers: Arc<Handlers>,
    /// Which clients may use this server. Locked while it is copied or replaced.
    auth: RwLock<ServerAuth>,
    /// The host names that clients may use for this server; any if empty. Locked as above.
    allowed_hosts: RwLock<Arc<[HostName]>>,
}

/// The current rules by which a request names its upstream, shared by several owners. Locked while a request is
/// parsed and while the rules are replaced; neither blocks.
#[derive(Clone)]
pub struct NamingInForce(Arc<RwLock<Naming>>);

impl NamingInForce {
    fn read(&self) -> RwLockReadGuard<'_, Naming> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Handles requests that have passed the checks of host and user.
struct Handlers {
    cache: Cache,
    naming: NamingInForce,
    activity: Arc<Activity>,
    /// Whether this server uses TLS.
    is_tls: AtomicBool,
}

impl Api {
    /// An API over `cache` with these naming rules, for access without credentials.
    pub fn new(cache: Cache, naming: Naming) -> Api {
        let naming = NamingInForce(Arc::new(RwLock::new(naming)));
        let (activity, is_tls) = (Arc::default(), AtomicBool::new(false));
        let handlers = Arc::new(Handlers { cache, naming, activity, is_tls });
        Api { handlers, auth: RwLock::default(), allowed_hosts: RwLock::new(Arc::new([])) }
    }

    /// Replaces the naming rules for all requests from now on.
    pub fn set_naming(&self, naming: Naming) {
        // The assignment is atomic for readers, so the rules are complete even after a panic.
        *self.handlers.naming.0.write().unwrap_or_else(PoisonError::into_inner) = naming;
    }

    /// A handle to the rules that follows replacements.
    pub fn naming(&self) -> NamingInForce {
        self.handlers.naming.clone()
    }

    /// What this port notes for the management port.
    pub fn activity(&self) -> Arc<Activity> {
        Arc::clone(&self.handlers.activity)
    }

    /// Whether clients reach this server by TLS, unless a proxy in front of it says otherwise (`X-Forwarded-Proto`).
    pub fn set_tls(&self, is_tls: bool) {
        self.handlers.is_tls.store(is_tls, Ordering::Relaxed);
    }

    /// Replaces which clients may use this server, for all requests from now on.
    pub fn set_auth(&self, auth: ServerAuth) {
        *self.auth.write().unwrap_or_else(PoisonError::into_inner) = auth;
    }

    /// Accepts only requests for one of these host names; any if empty.
    pub fn set_allowed_hosts(&self, hosts: &[HostName]) {
        *self.allowed_hosts.write().unwrap_or_else(PoisonError::into_inner) = hosts.into();
    }

    fn allowed_hosts(&self) -> Arc<[HostName]> {
        Arc::clone(&self.allowed_hosts.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Which clients may use this server.
    pub fn auth(&self) -> ServerAuth {
        self.auth.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Handlers {
    fn target(&self, request: &Request) -> Result<Target, RouteError> {
        self.naming.read().target(request)
    }

    /// Whether the registry decides if the client may pull, and not the users of this server.
    fn is_for_registry(&self, request: &Request) -> bool {
        self.cache.has_client_access()
            && matches!(self.target(request), Ok(Target::Content(route, _)) if self.cache.access(route.name()) == PullAccess::Client)
    }
}

impl Handler for Api {
    fn is_busy(&self) -> bool {
        self.handlers.cache.is_fetching()
    }

    fn handle(&self, request: &Request, context: &Context<'_>) -> Step {
        if let Some(refusal) = hosts::refusal(&self.allowed_hosts(), request) {
            return Step::Reply(refusal);
        }
        if request.path() == access::TOKEN_PATH
            && request.method() == Method::Get
            && self.handlers.cache.has_client_access()
        {
            return Step::Reply(access::token(request));
        }
        let auth = self.auth();
        let admission = match auth.is_required() {
            false => Admission::Everything,
            true if self.handlers.is_for_registry(request) => Admission::None,
            true => return login::answer(&self.handlers, &auth, request, context),
        };
        self.handlers.answer(&auth, admission, request, context)
    }

    fn finished(&self, request: &Request, ending: &Ending) {
        let bytes = ending.bytes_sent;
        let word = route::word(request.path());
        self.handlers.cache.metrics().responded(word, ending.status, ending.latency, bytes);
        access_log::line(request, ending);
        // Probes would displace everything else.
        if word != "ping" {
            let now = self.handlers.cache.now();
            self.handlers.activity.requests.note(now, request, ending);
        }
    }
}

impl Handlers {
    /// The response to `GET /v2/`. If a registry decides who may pull, clients learn that there is something to log in for.
    fn ping(&self, request: &Request) -> Reply {
        if !self.cache.has_client_access() {
            return ping();
        }
        match access::challenge(request, self.is_tls.load(Ordering::Relaxed)) {
            Some(challenge) => challenge.header("Via", via::of_response()),
            None => ping().header(status::CHALLENGE.0, status::CHALLENGE.1),
        }
    }

    /// Handles a request of a client that may use this server as far as `admission` says.
    fn answer(
        self: &Arc<Self>,
        auth: &ServerAuth,
        admission: Admission<'_>,
        request: &Request,
        context: &Context<'_>,
    ) -> Step {
        let (route, addressing) = match self.target(request) {
            Ok(Target::Content(route, addressing)) => (route, addressing),
            Ok(Target::Ping) => return Step::Reply(introduced(self.ping(request), request)),
            Err(error) => return Step::Reply(status::route_failure(&error)),
        };
        if let Admission::Token(identity) = admission
            && !identity.may_pull(route.name())
        {
            return Step::Reply(token_login::deny(route.name()));
        }
        let chain = match Via::parse(request.headers("via")) {
            Ok(chain) => chain,
            Err(returned) => return Step::Reply(refuse_loop(&returned, &addressing, request)),
        };
        // Otherwise both would wait until one of them times out.
        if chain.is_asked_for(format_args!("{}{}", addressing.upstream, request.path())) {
            return Step::Reply(status::loop_detected(&addressing.upstream));
        }
        chain.enter(|| match self.cache.access(route.name()) {
            PullAccess::Client => {
                let checked = access::Checked { route, addressing };
                access::answer(self, auth, checked, request, context)
            }
            // The configuration has changed since the users were skipped.
            PullAccess::Server if matches!(admission, Admission::None) => {
                Step::Reply(status::login(login::REQUIRED))
            }
            PullAccess::Server => {
                let cache = self.cache.for_client(request.client_address());
                let cache = match admission {
                    Admission::Token(identity) if identity.is_restricted() => {
                        cache.for_restricted_client()
                    }
                    _ => cache,
                };
                self.answer_content(cache, PullAccess::Server, route, addressing, request, context)
            }
        })
    }

    fn answer_content(
        &self,
        cache: Cache,
        access: PullAccess,
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
        let (activity, is_from_peer) = (Arc::clone(&self.activity), via::current().is_from_peer());
        let call = Call { cache, access, addressing, kind, activity, is_from_peer };
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

/// Refuses a request that this server has sent itself and that came back through another Larder.
fn refuse_loop(returned: &Loop, addressing: &Addressing, request: &Request) -> Reply {
    log::error!(
        upstream:% = addressing.upstream, peer:% = returned.sender, ip:% = request.peer().ip(),
        instance:% = via::instance();
        "registries: request loop: a request of this Larder came back through another Larder. Each is configured \
         as an endpoint of the other; remove one of the two entries"
    );
    status::loop_detected(&addressing.upstream)
}

/// What every handler needs besides the request.
struct Call {
    cache: Cache,
    /// Whether this server or the registry authorized the pull.
    access: PullAccess,
    addressing: Addressing,
    /// The kind of content, as a label value of the metrics.
    kind: &'static str,
    activity: Arc<Activity>,
    /// Whether a peer has sent the request.
    is_from_peer: bool,
}

impl Call {
    /// Counts the response and adds the headers of every response about an upstream. `why`: why it is not a plain hit.
    fn finish(&self, reply: Reply, how: How, why: Option<Why>, storage: Storage) -> Reply {
        let upstream = self.addressing.upstream.as_str();
        self.cache.metrics().answered(self.kind, how.as_str(), upstream);
        let reply = match how {
            How::Stale => reply.header("Warning", "110 - \"Response is Stale\""),
            _ if why == Some(Why::Held) => reply.header("Warning", "199 - \"Tag Has Moved\""),
            _ => reply,
        };
        let reply = self
            .confirm_namespace(reply)
            .header("Cache-Status", cache_status(how, storage))
            .header("Via", via::of_response())
            .header(API_VERSION.0, API_VERSION.1);
        let reply = match self.access {
            // For the Larder that asks this one to decide.
            PullAccess::Client => reply.header(DECIDED.0, DECIDED.1),
            PullAccess::Server => reply,
        };
        self.note(reply, how.as_str(), why)
    }

    /// Counts a pull of an image. Peers count those of their clients.
    fn note_pull(&self, name: &ImageName, reference: &Reference, request: &Request) {
        if !self.is_from_peer {
            self.activity.pulls.note(name, reference, request, self.cache.now());
        }
    }

    /// The response for a failure.
    fn fail(&self, failure: &Failure) -> Reply {
        self.fail_because(failure, failure.error())
    }

    /// As [`Call::fail`], with a cause for the log, which the client may not know.
    fn fail_because(&self, failure: &Failure, cause: &CacheError) -> Reply {
        let reply = self.confirm_namespace(status::reply(failure));
        let reply = self.note(reply, "none", Some(failure.error().into()));
        match cause.is_worth_a_warning() {
            true => reply.note(access_log::ERROR, cause.to_string()),
            false => reply,
        }
    }

    /// Adds the fields about the cache in the access log.
    fn note(&self, reply: Reply, how: &'static str, why: Option<Why>) -> Reply {
        let reply = reply.note("cache", how);
        let reply = match why {
            Some(why) => reply.note("reason", why.as_str()),
            None => reply,
        };
        reply.note("upstream", self.addressing.upstream.as_str().to_owned())
    }

    /// Confirms the client's namespace: distribution-spec, "Registry Proxying".
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

/// Adds what this Larder tells its peers about itself, if one of them asks.
fn introduced(reply: Reply, request: &Request) -> Reply {
    let is_peer = Via::parse(request.headers("via")).is_ok_and(|chain| chain.is_from_peer());
    match introduction::own().filter(|_| is_peer) {
        Some(own) => reply.header(introduction::HEADER, own.to_string()),
        None => reply,
    }
}

/// `GET /v2/`: answered locally and at once, because clients consider a registry dead if this is slow.
fn ping() -> Reply {
    Reply::new(200, crate::http::Body::Static(b"{}"))
        .header("Content-Type", "application/json")
        .header("Via", via::of_response())
        .header(API_VERSION.0, API_VERSION.1)
}
