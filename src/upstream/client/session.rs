//! A session with a registry: one question through tokens, credentials and redirects to its answer.
//!
//! Threats: a registry or a redirect that wants our credentials for somebody else, our certificate for
//! somebody else, or a connection to where it cannot reach itself. So credentials go to the endpoint's
//! own origin and to a token realm of the same owner, client certificates to the endpoint alone, and
//! every other host is dialled by agents that mind the address.

mod authorization;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use ureq::http::{HeaderName, Response, header};
use ureq::{Agent, Body};

use super::quota::{Quota, RateLimit};
use super::registry::EndpointSettings;
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
use crate::via;

/// How many redirects are followed: more than any registry needs, fewer than a loop would like.
const REDIRECTS_MAX: usize = 10;

/// The longest that `Retry-After` of a host keeps us from asking it.
const HOST_LIMIT_MAX: Duration = Duration::from_secs(60);
/// Hosts remembered for it.
const LIMITED_HOSTS_MAX: usize = 64;

/// How long the probe of a circuit breaker waits: somebody waits for what was asked meanwhile.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// A registry, and what is known of how to speak to it.
pub(super) struct Session {
    upstream: Upstream,
    base: Location,
    /// What precedes the repository in a path.
    api: ApiPath,
    /// For the endpoint itself, with its own TLS; an unlisted registry has none.
    own: Option<LazyAgent>,
    /// For other hosts of a private network that has its own certificate authority: trusts it, and
    /// shows no certificate of ours.
    trusting: Option<LazyAgent>,
    /// For all other hosts that it leads to.
    foreign: Arc<ForeignAgents>,
    /// The ports at which an unlisted registry, its redirects and its token services may be contacted.
    ports: Option<UnlistedPorts>,
    /// Whether the endpoint's own address is private; resolved when it first matters.
    is_private: OnceLock<bool>,
    /// Who we are to the endpoint.
    logins: Logins,
    /// Whether the endpoint has asked for user and password: then they are sent without being asked.
    wants_basic: AtomicBool,
    /// Whether it refused a token, offered Basic beside Bearer, and took the password.
    prefers_basic: AtomicBool,
    refusals: Refusals,
    tokens: Tokens,
    quota: Quota,
    /// Until when hosts to which the endpoint redirects asked to be left alone. Locked for a look-up or an insertion.
    limited: Mutex<HashMap<String, Instant>>,
    /// Whether the connections that idle are probably dead: somebody waited on one in vain.
    idle_is_suspect: AtomicBool,
    timeouts: Timeouts,
}

/// What becomes of the connections that idle.
#[derive(Clone, Copy)]
enum Idle {
    /// One is used if there is one.
    Used,
    /// All towards this host are dropped: the request is sent on a fresh one.
    Dropped,
}

/// One question to the registry.
pub(super) struct Ask<'a> {
    pub(super) method: Method,
    /// Path and query, with `/v2` for wherever the endpoint's API is.
    pub(super) path: String,
    pub(super) accept: Option<&'a str>,
    pub(super) repository: &'a Repository,
    pub(super) redirects: Redirects,
    /// The first byte wanted; 0 is the whole.
    pub(super) from: u64,
    /// Bounds one exchange, its body included; `None` for blobs, which take as long as they take.
    pub(super) total: Option<Duration>,
    /// When all of it must be over: redirects, tokens and, where `total` bounds it, the last body. Without it, ten
    /// redirects that take their time each would hold a fetcher for minutes.
    pub(super) deadline: Instant,
}

impl Ask<'_> {
    /// How long the next exchange may take.
    ///
    /// # Errors
    /// [`UpstreamErrorKind::TimedOut`] if the time is over.
    fn time_left(&self, request: &Arc<str>) -> Result<Option<Duration>, UpstreamError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let kind = UpstreamErrorKind::TimedOut { phase: "the last of redirects and tokens" };
            return Err(UpstreamError::new(Arc::clone(request), kind));
        }
        Ok(self.total.map(|total| total.min(left)))
    }

    /// How long a token service may take for it.
    fn time_for_token(&self, at_most: Duration) -> Duration {
        // Never zero: it is the request after the token that says that the time is over.
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
    /// Content may be anywhere: CDNs, object stores.
    Anywhere,
    /// Lists may not: ghcr.io redirects referrers to a web page.
    SameOrigin,
}

/// What the registry said in the end, after tokens and redirects.
pub(super) struct Answer {
    pub(super) response: Response<Body>,
    /// Method and URL for messages.
    pub(super) request: Arc<str>,
    /// Whether it is another host's, to which the endpoint has redirected.
    is_elsewhere: bool,
    /// Whether the endpoint has redirected, be it to itself.
    is_redirected: bool,
}

impl Answer {
    /// What it means if its status is none that was hoped for.
    pub(super) fn failure(&self) -> UpstreamError {
        let status = self.response.status().as_u16();
        let error = status_error(status, self.response.headers(), &self.request);
        if self.is_elsewhere { error.elsewhere() } else { error }
    }

    /// Whether this answer to HEAD says nothing about a GET. Some registries do not support HEAD, and where
    /// they redirect to is often signed for GET alone.
    pub(super) fn refuses_head(&self) -> bool {
        match self.response.status().as_u16() {
            400 | 405 | 406 | 501 => true,
            429 => false,
            status => self.is_redirected && (400..500).contains(&status),
        }
    }
}

impl Answer {
    /// As [`Answer::failure`] for an answer to GET with a small body: that something does not exist is
    /// believed only of a registry.
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

    /// The same for a blob. An object store to which the registry redirects reports in its own format that it does not
    /// have the blob.
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
        let proxies = || Arc::clone(&foreign.proxies);
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
        Session { ports: Some(ports), ..Session::new(upstream, &endpoint, timeouts, foreign) }
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
            wants_basic: AtomicBool::new(false),
            prefers_basic: AtomicBool::new(false),
            refusals: Refusals::default(),
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

    /// What the registry said last about its rate limit.
    pub(super) fn quota(&self) -> Option<RateLimit> {
        self.quota.latest()
    }

    /// [`Registries::refresh`](crate::upstream::Registries::refresh), for this endpoint.
    pub(super) fn refresh(&self) {
        self.own.iter().chain(&self.trusting).for_each(LazyAgent::refresh);
        self.logins.refresh(Instant::now());
    }

    /// Asks, follows redirects, and returns whatever answer is not one.
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

    /// Refuses a request to a host that limits us: an object store, while the registry that redirects there is
    /// asked as before.
    fn check_limit(
        &self,
        location: &Location,
        request: &Arc<str>,
        now: Instant,
    ) -> Result<(), UpstreamError> {
        let limited = self.limited.lock().unwrap_or_else(PoisonError::into_inner);
        let wait =
            limited.get(&location.origin()).and_then(|until| until.checked_duration_since(now));
        match wait.filter(|wait| !wait.is_zero()) {
            None => Ok(()),
            retry_after => {
                let kind = UpstreamErrorKind::RateLimited { retry_after };
                Err(UpstreamError::new(Arc::clone(request), kind).elsewhere())
            }
        }
    }

    fn note_limit(&self, location: &Location, error: &UpstreamError, now: Instant) {
        let Some(wait) = error.retry_after() else { return };
        let mut limited = self.limited.lock().unwrap_or_else(PoisonError::into_inner);
        limited.retain(|_, until| *until > now);
        // Registries choose these hosts, so there is a bound; one that is not noted is asked again.
        if limited.len() < LIMITED_HOSTS_MAX {
            limited.insert(location.origin(), now + wait.min(HOST_LIMIT_MAX));
        }
    }

    /// One request on the wire, repeated once on a fresh connection if a pooled one may have been dead.
    fn call(
        &self,
        location: &Location,
        ask: &Ask<'_>,
        authorization: Option<String>,
        request: &Arc<str>,
    ) -> Result<Response<Body>, UpstreamError> {
        let range = (ask.from > 0).then(|| format!("bytes={}-", ask.from));
        // To the endpoint itself alone: what it redirects to is no Larder.
        let via = location.is_same_origin(&self.base).then(|| via::current().to_string());
        let headers = [
            (header::VIA, via.as_deref()),
            (header::ACCEPT, ask.accept),
            (header::AUTHORIZATION, authorization.as_deref()),
            (header::RANGE, range.as_deref()),
        ];
        let total = ask.time_left(request)?;
        let response = self.send(ask.method, location, &headers, total, request)?;
        if location.is_same_origin(&self.base) {
            self.quota.note(response.headers(), &self.upstream, Instant::now());
        }
        Ok(response)
    }

    /// Asks for the version of the endpoint's API, without credentials.
    pub(super) fn probe(&self) -> Result<(), UpstreamError> {
        let location = self.base.with_path(&format!("{}/", self.api.as_str()));
        let request: Arc<str> = format!("GET {}", location.for_log()).into();
        let via = via::current().to_string();
        let headers = [(header::VIA, Some(via.as_str()))];
        let total = Some(PROBE_TIMEOUT.min(self.timeouts.headers));
        let response = self.send(Method::Get, &location, &headers, total, &request)?;
        match response.status().as_u16() {
            status if status >= 500 => Err(status_error(status, response.headers(), &request)),
            _ => {
                discard(response);
                Ok(())
            }
        }
    }

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
        // A network that has forgotten a connection may say nothing at all: then it took a time-out to
        // find out, and the other idle ones are no better.
        let suspect = self.idle_is_suspect.swap(false, Ordering::Relaxed);
        let answered = match send(if suspect { Idle::Dropped } else { Idle::Used }) {
            Err(error) if is_stale_connection(&error) => {
                log::debug!("{request}: {error} before an answer, trying a fresh connection");
                send(Idle::Dropped)
            }
            other => other,
        };
        if matches!(&answered, Err(ureq::Error::Timeout(_))) {
            self.idle_is_suspect.store(true, Ordering::Relaxed);
        }
        answered.map_err(|error| UpstreamError::from_ureq(request, error))
    }

    /// The agent for a host: the endpoint's own, or one that minds where it connects.
    ///
    /// # Errors
    /// An unlisted registry leads to a port that is not among `unlistedPorts`; files with certificates cannot
    /// be used.
    fn agent(&self, location: &Location, request: &Arc<str>) -> Result<Agent, UpstreamError> {
        if self.ports.as_ref().is_some_and(|ports| !ports.allows(location.port())) {
            let reason = format!("port {} is not among `unlistedPorts`", location.port()).into();
            let kind = UpstreamErrorKind::NotAllowed { reason };
            return Err(UpstreamError::new(Arc::clone(request), kind));
        }
        let agent = match (&self.own, &self.trusting) {
            (Some(own), _) if location.is_same_origin(&self.base) => own,
            // The operator listed it, and so vouches for the network it is in.
            (Some(own), Some(trusting)) if self.is_private(own) => trusting,
            (Some(own), None) if self.is_private(own) => &self.foreign.private_too,
            _ => &self.foreign.public,
        };
        agent.get(location).map_err(|error| {
            let kind = UpstreamErrorKind::Tls { reason: error.to_string().into() };
            UpstreamError::new(Arc::clone(request), kind)
        })
    }

    /// Whether a listed endpoint is in a private network: then what it redirects to may be as well.
    fn is_private(&self, own: &LazyAgent) -> bool {
        if let Some(known) = self.is_private.get() {
            return *known;
        }
        let addresses = own.addresses(&self.base.host_and_port());
        if addresses.is_empty() {
            // A name that does not resolve right now may do so later: only an answer is remembered here.
            return false;
        }
        let is_private = addresses.iter().any(|address| !is_public(*address));
        *self.is_private.get_or_init(|| is_private)
    }
}

/// Reads the rest of an answer that is of no use, to keep its connection, where that is bounded in time;
/// a request for a blob is not, and its connection is dropped.
fn discard_for(ask: &Ask<'_>, response: Response<Body>) {
    if ask.total.is_some() {
        discard(response);
    }
}

/// Where a redirect leads, if it may be followed.
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
        return refused("it has no usable Location".into());
    };
    if from.is_https() && !to.is_https() {
        return refused(format!("it leads from https to {}", to.for_log()));
    }
    if ask.redirects == Redirects::SameOrigin && !to.is_same_origin(from) {
        return refused(format!("it leads to another host, {}", to.origin()));
    }
    Ok(to)
}

/// Whether a request failed the way it does on a pooled connection that the other side has closed
/// meanwhile. It was not answered, and it changes nothing, so it may be repeated.
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
    fn redirects_and_token_services_of_an_unlisted_registry_are_at_allowed_ports() {
        let upstream: Upstream = "registry.test".parse().unwrap();
        let ports = UnlistedPorts::default();
        let unlisted = Session::unlisted(&upstream, Timeouts::default(), foreign(), ports);
        // At an address, so that nothing is looked up.
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
            from: 0,
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
