//! A session with an endpoint: sends requests with tokens and credentials, and follows redirects.
//!
//! Threats: a registry or a redirect obtains credentials or the client certificate for another host, or makes Larder
//! connect to a host that the attacker cannot reach. Therefore credentials are sent only to the endpoint's own origin
//! and to a token realm of the same owner, client certificates are presented to the endpoint only, and all other hosts
//! are dialled by agents that check addresses.

mod authorization;
mod limited_hosts;
mod probing;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use ureq::http::{HeaderName, Response, header};
use ureq::{Agent, Body};

use super::quota::{Quota, RateLimit};
use super::registry::{EndpointKind, EndpointSettings};
use crate::oci::{Repository, Upstream};
use crate::upstream::auth::{Logins, Refusals, Tokens};
use crate::upstream::error::{UpstreamError, UpstreamErrorKind, is_broken_connection};
use crate::upstream::network::{
    ApiPath, Endpoint, ForeignAgents, Guard, LazyAgent, Location, Reach, Scheme, Timeouts,
    TlsSettings, UnlistedPorts, is_public,
};
use crate::upstream::response::{
    ERROR_BODY_BYTES_MAX, discard, foreign_status, is_registry_error, read_body, redirect_target,
    status_error,
};
use crate::via::{self, Via};

/// The most redirects that are followed: more than any registry needs.
const REDIRECTS_MAX: usize = 10;

/// An endpoint of a registry, and what has been learned about it.
pub(super) struct Session {
    upstream: Upstream,
    base: Location,
    /// The prefix of all paths.
    api: ApiPath,
    /// For the endpoint itself, with its TLS settings; `None` for an unlisted registry.
    own: Option<LazyAgent>,
    /// For other hosts of a private network with its own certificate authority: trusts this authority, and presents no
    /// client certificate.
    trusting: Option<LazyAgent>,
    /// For all other hosts.
    foreign: Arc<ForeignAgents>,
    /// The ports at which an unlisted registry, its redirects and its token services may be contacted.
    ports: Option<UnlistedPorts>,
    /// Whether the endpoint's address is private; resolved on first use.
    is_private: OnceLock<bool>,
    logins: Logins,
    /// Where they are configured.
    auth_setting: &'static str,
    /// Whether the endpoint has demanded user and password: then they are sent preemptively.
    wants_basic: AtomicBool,
    /// Whether the endpoint refused a token, offered Basic in addition to Bearer, and accepted the password.
    prefers_basic: AtomicBool,
    refusals: Refusals,
    /// Whether it has presented a login, to the endpoint or its token service.
    presented_login: AtomicBool,
    tokens: Tokens,
    quota: Quota,
    /// Hosts to which the endpoint redirects and that limit the rate, with the end of their wait. Locked for a lookup or
    /// an insertion.
    limited: Mutex<HashMap<String, Instant>>,
    /// Whether idle connections are probably dead: a request timed out.
    idle_is_suspect: AtomicBool,
    timeouts: Timeouts,
}

/// Whether a request may use an idle connection.
#[derive(Clone, Copy)]
enum Idle {
    /// It may.
    Used,
    /// All idle connections to the host are dropped, and the request uses a new one.
    Dropped,
}

/// A request to the registry.
pub(super) struct Ask<'a> {
    pub(super) method: Method,
    /// Path and query; its prefix `/v2` is replaced by the path of the endpoint's API.
    pub(super) path: String,
    pub(super) accept: Option<&'a str>,
    pub(super) repository: &'a Repository,
    pub(super) redirects: Redirects,
    /// The value of `Range`; `None` for the complete content.
    pub(super) range: Option<String>,
    /// The timeout of one exchange, body included; `None` for blobs, which may take any time.
    pub(super) total: Option<Duration>,
    /// The deadline for redirects, tokens and, with `total`, the last body. Without it, ten slow redirects would occupy a
    /// fetcher for minutes.
    pub(super) deadline: Instant,
}

impl Ask<'_> {
    /// The timeout of the next exchange.
    ///
    /// # Errors
    /// [`UpstreamErrorKind::TimedOut`] if the deadline has passed.
    fn time_left(&self, request: &Arc<str>) -> Result<Option<Duration>, UpstreamError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let kind = UpstreamErrorKind::TimedOut { phase: "redirects and tokens" };
            return Err(UpstreamError::new(Arc::clone(request), kind));
        }
        Ok(self.total.map(|total| total.min(left)))
    }

    /// The timeout of a token service.
    fn time_for_token(&self, at_most: Duration) -> Duration {
        // Never zero: the request after the token reports that the deadline has passed.
        let left = self.deadline.saturating_duration_since(Instant::now());
        at_most.min(left).max(Duration::from_millis(1))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Get,
    Head,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Redirects {
    /// For content, which may be at any host: CDNs, object stores.
    Anywhere,
    /// For lists: ghcr.io redirects referrers to a web page.
    SameOrigin,
}

/// The final response, after tokens and redirects.
pub(super) struct Answer {
    pub(super) response: Response<Body>,
    /// Method and URL for messages.
    pub(super) request: Arc<str>,
    /// Whether it comes from another host, to which the endpoint redirected.
    is_elsewhere: bool,
    /// Whether the endpoint redirected, to another host or to itself.
    is_redirected: bool,
}

impl Answer {
    /// The error for its status.
    pub(super) fn failure(&self) -> UpstreamError {
        let status = self.response.status().as_u16();
        let error = status_error(status, self.response.headers(), &self.request);
        if self.is_elsewhere { error.elsewhere() } else { error }
    }

    /// Whether this response to HEAD says nothing about a GET. Some registries do not support HEAD, and the targets of
    /// redirects are often signed for GET only.
    pub(super) fn refuses_head(&self) -> bool {
        match self.response.status().as_u16() {
            400 | 405 | 406 | 501 => true,
            429 => false,
            status => self.is_redirected && (400..500).contains(&status),
        }
    }
}

impl Answer {
    /// Like [`Answer::failure`], for a response to GET with a small body: a 404 counts only if it comes from a registry.
    pub(super) fn into_failure(self) -> UpstreamError {
        let status = self.response.status().as_u16();
        let failure = self.failure();
        if !failure.is_not_found() {
            return failure;
        }
        let headers = self.response.headers().clone();
        match read_body(self.response, ERROR_BODY_BYTES_MAX, &self.request) {
            Ok(body) if is_registry_error(&headers, &body) => failure,
            _ => foreign_status(status, &self.request),
        }
    }

    /// Like [`Answer::into_failure`], for a blob. A 404 from the host of a redirect counts as well, since object stores
    /// do not send the errors of a registry.
    pub(super) fn into_blob_failure(self) -> UpstreamError {
        if self.is_elsewhere { self.failure() } else { self.into_failure() }
    }
}

impl Session {
    pub(super) fn listed(
        upstream: &Upstream,
        entry: &EndpointSettings,
        timeouts: Timeouts,
        foreign: Arc<ForeignAgents>,
    ) -> Session {
        let tls = (entry.endpoint.scheme == Scheme::Https).then(|| entry.tls.clone());
        // Peers are near, and the environment's proxy leads out of the network.
        let is_near = entry.kind == EndpointKind::Peer;
        let proxies = || if is_near { Arc::default() } else { Arc::clone(&foreign.proxies) };
        let added = entry.tls.ca.clone().map(|ca| {
            let trust = TlsSettings { ca: Some(ca), ..TlsSettings::default() };
            LazyAgent::new(Guard::PrivateToo, Some(trust), timeouts, proxies())
        });
        Session {
            own: Some(LazyAgent::new(Guard::Any, tls, timeouts, proxies())),
            trusting: added,
            logins: Logins::new(
                &entry.credentials,
                &entry.endpoint.identity(upstream),
                &Reach { timeouts, proxies: proxies() },
            ),
            auth_setting: entry.kind.auth_setting(),
            ..Session::new(upstream, &entry.endpoint, timeouts, foreign)
        }
    }

    pub(super) fn unlisted(
        upstream: &Upstream,
        timeouts: Timeouts,
        foreign: Arc<ForeignAgents>,
        ports: UnlistedPorts,
    ) -> Session {
        let endpoint = Endpoint::of(upstream, Scheme::Https);
        // Docker Hub's name is not invented, and many repositories are in use there.
        let tokens = match upstream.is_docker_hub() {
            true => Tokens::default(),
            false => Tokens::of_unlisted(),
        };
        let session = Session::new(upstream, &endpoint, timeouts, foreign);
        Session { ports: Some(ports), tokens, ..session }
    }

    fn new(
        upstream: &Upstream,
        endpoint: &Endpoint,
        timeouts: Timeouts,
        foreign: Arc<ForeignAgents>,
    ) -> Session {
        Session {
            upstream: upstream.clone(),
            base: Location::new(endpoint.scheme == Scheme::Https, &endpoint.authority, "/"),
            api: endpoint.api.clone(),
            own: None,
            trusting: None,
            foreign,
            ports: None,
            is_private: OnceLock::new(),
            logins: Logins::none(upstream),
            auth_setting: EndpointKind::Registry.auth_setting(),
            wants_basic: AtomicBool::new(false),
            prefers_basic: AtomicBool::new(false),
            refusals: Refusals::default(),
            presented_login: AtomicBool::new(false),
            tokens: Tokens::default(),
            quota: Quota::default(),
            limited: Mutex::default(),
            idle_is_suspect: AtomicBool::new(false),
            timeouts,
        }
    }

    /// Scheme, host and port of the endpoint, and the path of its API where that is not `/v2`.
    pub(super) fn url(&self) -> String {
        let path = if self.api == ApiPath::default() { "" } else { self.api.as_str() };
        format!("{}{path}", self.base.origin())
    }

    /// Whether the remaining pulls of the rate limit should be kept for clients.
    pub(super) fn is_low_on_pulls(&self, now: Instant) -> bool {
        self.quota.is_reserved(now)
    }

    /// The rate limit that the registry reported last.
    pub(super) fn quota(&self) -> Option<RateLimit> {
        self.quota.latest()
    }

    /// [`Registries::refresh`](crate::upstream::Registries::refresh), for this endpoint.
    pub(super) fn refresh(&self) {
        self.own.iter().chain(&self.trusting).for_each(LazyAgent::refresh);
        self.logins.refresh(Instant::now());
    }

    /// Sends a request, follows redirects, and returns the final response, whatever its status.
    pub(super) fn ask(&self, ask: &Ask<'_>) -> Result<Answer, UpstreamError> {
        let method = if ask.method == Method::Head { "HEAD" } else { "GET" };
        let below_api = ask.path.strip_prefix("/v2").unwrap_or(&ask.path);
        let mut location = self.base.with_path(&format!("{}{below_api}", self.api.as_str()));
        let first: Arc<str> = format!("{method} {}", location.for_log()).into();
        for redirects in 0..=REDIRECTS_MAX {
            let request: Arc<str> = format!("{method} {}", location.for_log()).into();
            let is_elsewhere = !location.is_same_origin(&self.base);
            let mark = |error: UpstreamError| if is_elsewhere { error.elsewhere() } else { error };
            if is_elsewhere {
                self.check_limit(&location, &request, Instant::now())?;
            }
            let response = self.call_authorized(&location, ask, &request).map_err(mark)?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                let is_redirected = redirects > 0;
                let answer = Answer { response, request, is_elsewhere, is_redirected };
                if is_elsewhere && answer.response.status().as_u16() == 429 {
                    self.note_limit(&location, &answer.failure(), Instant::now());
                }
                return Ok(answer);
            }
            location = redirect(&location, ask, &response, &request)?;
            discard_for(ask, response);
        }
        let reason = format!("more than {REDIRECTS_MAX} redirects").into();
        Err(UpstreamError::new(first, UpstreamErrorKind::Redirect { reason }))
    }

    /// Sends one request without following redirects.
    fn call(
        &self,
        location: &Location,
        ask: &Ask<'_>,
        authorization: Option<String>,
        request: &Arc<str>,
    ) -> Result<Response<Body>, UpstreamError> {
        // For the endpoint only: the host of a redirect is not a Larder.
        let via = location.is_same_origin(&self.base).then(via::current);
        let user = via.as_ref().and_then(Via::user_for_peer);
        let via = via.as_ref().map(ToString::to_string);
        let headers = [
            (header::VIA, via.as_deref()),
            (HeaderName::from_static(via::USER), user.as_deref()),
            (header::ACCEPT, ask.accept),
            (header::AUTHORIZATION, authorization.as_deref()),
            (header::RANGE, ask.range.as_deref()),
        ];
        let total = ask.time_left(request)?;
        let response = self.send(ask.method, location, &headers, total, request)?;
        if location.is_same_origin(&self.base) {
            self.quota.note(response.headers(), &self.upstream, Instant::now());
        }
        Ok(response)
    }

    /// Sends one request, and repeats it once on a new connection if an idle one may have been dead.
    fn send(
        &self,
        method: Method,
        location: &Location,
        headers: &[(HeaderName, Option<&str>)],
        total: Option<Duration>,
        request: &Arc<str>,
    ) -> Result<Response<Body>, UpstreamError> {
        let agent = self.agent(location, request)?;
        let send = |idle: Idle| {
            let builder = match method {
                Method::Get => agent.get(location.url()),
                Method::Head => agent.head(location.url()),
            };
            let builder = headers.iter().fold(builder, |builder, (name, value)| match value {
                Some(value) => builder.header(name, *value),
                None => builder,
            });
            let config = builder.config().timeout_global(total);
            match idle {
                Idle::Used => config.build().call(),
                Idle::Dropped => config.max_idle_age(Duration::ZERO).build().call(),
            }
        };
        // A network that has dropped a connection may not report this. Then the request times out, and the other idle
        // connections are probably dead as well.
        let suspect = self.idle_is_suspect.swap(false, Ordering::Relaxed);
        let answered = match send(if suspect { Idle::Dropped } else { Idle::Used }) {
            Err(error) if is_stale_connection(&error) => {
                log::debug!(request:%, error:%; "retrying on a new connection");
                send(Idle::Dropped)
            }
            other => other,
        };
        if matches!(&answered, Err(ureq::Error::Timeout(_))) {
            self.idle_is_suspect.store(true, Ordering::Relaxed);
        }
        answered.map_err(|error| UpstreamError::from_ureq(request, error))
    }

    /// The agent for a host: the endpoint's own, or one that checks addresses.
    ///
    /// # Errors
    /// If the port of an unlisted registry or of its redirect is not in `unlistedPorts`, or certificate files are
    /// unusable.
    fn agent(&self, location: &Location, request: &Arc<str>) -> Result<Agent, UpstreamError> {
        if self.ports.as_ref().is_some_and(|ports| !ports.allows(location.port())) {
            let reason = format!("port {} is not in `unlistedPorts`", location.port()).into();
            let kind = UpstreamErrorKind::NotAllowed { reason };
            return Err(UpstreamError::new(Arc::clone(request), kind));
        }
        let agent = match (&self.own, &self.trusting) {
            (Some(own), _) if location.is_same_origin(&self.base) => own,
            // The operator listed the registry and thereby trusts its network.
            (Some(own), Some(trusting)) if self.is_private(own) => trusting,
            (Some(own), None) if self.is_private(own) => &self.foreign.private_too,
            _ => &self.foreign.public,
        };
        agent.get(location).map_err(|error| {
            let kind = UpstreamErrorKind::Tls { reason: error.to_string().into() };
            UpstreamError::new(Arc::clone(request), kind)
        })
    }

    /// Whether a listed endpoint is in a private network: then it may redirect to private addresses.
    fn is_private(&self, own: &LazyAgent) -> bool {
        if let Some(known) = self.is_private.get() {
            return *known;
        }
        let addresses = own.addresses(&self.base.host_and_port());
        if addresses.is_empty() {
            // The name may resolve later, so a failure is not stored.
            return false;
        }
        let is_private = addresses.iter().any(|address| !is_public(*address));
        *self.is_private.get_or_init(|| is_private)
    }
}

/// Reads the rest of an unused response to reuse its connection, if the request has a timeout. A request for a blob has
/// none, and its connection is dropped.
fn discard_for(ask: &Ask<'_>, response: Response<Body>) {
    if ask.total.is_some() {
        discard(response);
    }
}

/// The target of a redirect, if it may be followed.
fn redirect(
    from: &Location,
    ask: &Ask<'_>,
    response: &Response<Body>,
    request: &Arc<str>,
) -> Result<Location, UpstreamError> {
    let refused = |reason: String| {
        let kind = UpstreamErrorKind::Redirect { reason: reason.into() };
        Err(UpstreamError::new(Arc::clone(request), kind))
    };
    let target = redirect_target(response.headers());
    let Some(to) = target.and_then(|target| from.join(&target)) else {
        return refused("its Location is missing or invalid".into());
    };
    if from.is_https() && !to.is_https() {
        return refused(format!("it leads from https to {}", to.for_log()));
    }
    if ask.redirects == Redirects::SameOrigin && !to.is_same_origin(from) {
        return refused(format!("it leads to another host, {}", to.origin()));
    }
    Ok(to)
}

/// Whether a request failed as it does on an idle connection that the server has closed. It may be repeated, since it
/// got no response and changes nothing.
fn is_stale_connection(error: &ureq::Error) -> bool {
    matches!(error, ureq::Error::Io(error) if is_broken_connection(error.kind()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn foreign() -> Arc<ForeignAgents> {
        let agent = |guard| LazyAgent::new(guard, None, Timeouts::default(), Arc::default());
        Arc::new(ForeignAgents {
            public: agent(Guard::PublicOnly),
            private_too: agent(Guard::PrivateToo),
            proxies: Arc::default(),
        })
    }

    #[test]
    fn redirects_and_token_services_of_an_unlisted_registry_must_use_allowed_ports() {
        let upstream: Upstream = "registry.test".parse().unwrap();
        let ports = UnlistedPorts::default();
        let unlisted = Session::unlisted(&upstream, Timeouts::default(), foreign(), ports);
        // An address, so that there is no DNS lookup.
        let entry = EndpointSettings::at(Endpoint::new(Scheme::Https, "127.0.0.1:5000"));
        let listed = Session::listed(&upstream, &entry, Timeouts::default(), foreign());
        for (target, allowed) in [
            ("https://registry.test/", true),
            ("https://cdn.test/", true),
            ("https://cdn.test:443/", true),
            ("https://registry.test:8443/", false),
            ("https://cdn.test:25/", false),
            ("http://cdn.test/", false),
        ] {
            let location = Location::parse(target).unwrap();
            let request: Arc<str> = "GET x".into();
            let found = unlisted.agent(&location, &request);
            assert_eq!(found.is_ok(), allowed, "{target}");
            let is_refused = |error: UpstreamError| error.to_string().contains("`unlistedPorts`");
            assert!(allowed || found.is_err_and(is_refused), "{target}");
            assert!(listed.agent(&location, &request).is_ok(), "{target}");
        }
    }

    #[test]
    fn a_request_has_one_deadline_for_all_its_exchanges() {
        let repository: Repository = "a".parse().unwrap();
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let ask = |total, deadline| Ask {
            method: Method::Get,
            path: "/v2/a/manifests/b".into(),
            accept: None,
            repository: &repository,
            redirects: Redirects::Anywhere,
            range: None,
            total,
            deadline,
        };
        let request: Arc<str> = "GET x".into();
        let early = ask(Some(second), now + 3600 * second);
        assert_eq!(early.time_left(&request).unwrap(), Some(second));
        let late = ask(Some(3600 * second), now + 60 * second);
        let left = late.time_left(&request).unwrap().unwrap();
        assert!(left <= 60 * second && late.time_for_token(3600 * second) <= 60 * second);
        for total in [None, Some(second)] {
            let over = ask(total, now).time_left(&request).unwrap_err();
            let kind = over.kind();
            assert!(matches!(kind, UpstreamErrorKind::TimedOut { .. }), "{kind:?}");
        }
        assert_eq!(ask(None, now + 60 * second).time_left(&request).unwrap(), None);
    }
}
