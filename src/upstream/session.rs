//! A session with a registry: one question through tokens, credentials and redirects to its answer.
//!
//! Threats: a registry or a redirect that wants our credentials for somebody else, our certificate for
//! somebody else, or a connection to where it cannot reach itself. So credentials go to the endpoint's
//! own origin and to a token realm of the same owner, client certificates to the endpoint alone, and
//! every other host is dialled by agents that mind the address.

use std::net::ToSocketAddrs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use ureq::http::{Response, header};
use ureq::{Agent, Body};

use super::address::{Guard, is_public};
use super::answer::{discard, read_body, status_error, text, texts};
use super::challenge::Challenge;
use super::credentials::{Credentials, Login};
use super::error::{UpstreamError, UpstreamErrorKind};
use super::location::{Location, is_same_owner};
use super::quota::{Quota, RateLimit};
use super::registries::{Endpoint, EndpointSettings, ForeignAgents, Scheme};
use super::tls::TlsSettings;
use super::token::{TOKEN_BODY_BYTES_MAX, Token, TokenKey, Tokens};
use super::transport::{LazyAgent, Timeouts};
use crate::oci::{Repository, Upstream};

/// How many redirects are followed: more than any registry needs, fewer than a loop would like.
const REDIRECTS_MAX: usize = 10;
/// Refused credentials are said this often, not once a request.
const REFUSAL_SAID_EVERY: Duration = Duration::from_secs(60);

/// A registry, and what is known of how to speak to it.
pub(super) struct Session {
    upstream: Upstream,
    base: Location,
    /// For the endpoint itself, with its own TLS; an unlisted registry has none.
    own: Option<LazyAgent>,
    /// For other hosts of a private network that has its own certificate authority: trusts it, and
    /// shows no certificate of ours.
    trusting: Option<LazyAgent>,
    /// For all other hosts that it leads to.
    foreign: Arc<ForeignAgents>,
    /// Whether the endpoint's own address is private; resolved when it first matters.
    is_private: OnceLock<bool>,
    credentials: Credentials,
    /// Whether the endpoint has asked for user and password: then they are sent without being asked.
    wants_basic: AtomicBool,
    /// When it was last said that the credentials are refused.
    refusal_said: Mutex<Option<Instant>>,
    tokens: Tokens,
    quota: Quota,
    timeouts: Timeouts,
}

/// One question to the registry.
pub(super) struct Ask<'a> {
    pub(super) method: Method,
    /// Path and query below the endpoint.
    pub(super) path: String,
    pub(super) accept: Option<&'a str>,
    pub(super) repository: &'a Repository,
    pub(super) redirects: Redirects,
    /// The first byte wanted; 0 is the whole.
    pub(super) from: u64,
    /// Bounds the exchange as a whole; `None` for blobs, which take as long as they take.
    pub(super) total: Option<Duration>,
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
}

impl Answer {
    /// What it means if its status is none that was hoped for.
    pub(super) fn failure(&self) -> UpstreamError {
        let status = self.response.status().as_u16();
        let error = status_error(status, self.response.headers(), &self.request);
        if self.is_elsewhere { error.elsewhere() } else { error }
    }
}

/// What a request shows to be let in.
enum Shown {
    Nothing,
    Token(Arc<Token>),
    Login(Login),
}

impl Shown {
    fn header(&self) -> Option<String> {
        match self {
            Shown::Nothing => None,
            Shown::Token(token) => Some(format!("Bearer {}", token.value)),
            Shown::Login(login) => login.header(),
        }
    }

    fn token(&self) -> Option<&Arc<Token>> {
        match self {
            Shown::Token(token) => Some(token),
            _ => None,
        }
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
            credentials: entry.credentials.clone(),
            ..Session::new(upstream, &entry.endpoint, timeouts, foreign)
        }
    }

    pub(super) fn unlisted(
        upstream: &Upstream,
        timeouts: Timeouts,
        foreign: Arc<ForeignAgents>,
    ) -> Session {
        Session::new(upstream, &Endpoint::of(upstream, Scheme::Https), timeouts, foreign)
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
            own: None,
            trusting: None,
            foreign,
            is_private: OnceLock::new(),
            credentials: Credentials::Anonymous,
            wants_basic: AtomicBool::new(false),
            refusal_said: Mutex::new(None),
            tokens: Tokens::default(),
            quota: Quota::default(),
            timeouts,
        }
    }

    /// Scheme, host and port of the endpoint.
    pub(super) fn url(&self) -> String {
        self.base.origin()
    }

    /// What the registry said last about its rate limit.
    pub(super) fn quota(&self) -> Option<RateLimit> {
        self.quota.latest()
    }

    /// Asks, follows redirects, and returns whatever answer is not one.
    pub(super) fn ask(&self, ask: &Ask<'_>) -> Result<Answer, UpstreamError> {
        let method = if ask.method == Method::Head { "HEAD" } else { "GET" };
        let mut location = self.base.with_path(&ask.path);
        let first: Arc<str> = format!("{method} {}", location.for_log()).into();
        for _ in 0..=REDIRECTS_MAX {
            let request: Arc<str> = format!("{method} {}", location.for_log()).into();
            let is_elsewhere = !location.is_same_origin(&self.base);
            let mark = |error: UpstreamError| if is_elsewhere { error.elsewhere() } else { error };
            let response = self.call_authorized(&location, ask, &request).map_err(mark)?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(Answer { response, request, is_elsewhere });
            }
            location = redirect(&location, ask, &response, &request)?;
            discard_for(ask, response);
        }
        let reason = format!("more than {REDIRECTS_MAX} redirects").into();
        Err(UpstreamError::new(first, UpstreamErrorKind::Redirect { reason }))
    }

    /// One hop, with what its host wants to see.
    fn call_authorized(
        &self,
        location: &Location,
        ask: &Ask<'_>,
        request: &Arc<str>,
    ) -> Result<Response<Body>, UpstreamError> {
        let key =
            TokenKey { origin: location.origin(), repository: ask.repository.as_str().to_owned() };
        let shown = self.first_shown(location, ask.repository, &key, request)?;
        let response = self.call(location, ask, shown.header(), request)?;
        match response.status().as_u16() {
            401 => self.answer_challenge(response, &shown, &key, location, ask, request),
            _ => Ok(response),
        }
    }

    /// What is shown without being asked: what worked before.
    fn first_shown(
        &self,
        location: &Location,
        repository: &Repository,
        key: &TokenKey,
        request: &Arc<str>,
    ) -> Result<Shown, UpstreamError> {
        let now = Instant::now();
        if let Some(token) = self.tokens.known(key) {
            if !token.is_due(now) {
                return Ok(Shown::Token(token));
            }
            let renewed = self.tokens.obtain(key, Some(&token), now, || {
                self.fetch_token(token.challenge.clone(), location, repository, request)
            });
            return renewed.map(Shown::Token);
        }
        let is_basic = self.wants_basic.load(Ordering::Relaxed);
        match self.login(location, request)? {
            Some(login @ Login::Bearer(_)) => Ok(Shown::Login(login)),
            Some(login @ Login::Basic { .. }) if is_basic => Ok(Shown::Login(login)),
            _ => Ok(Shown::Nothing),
        }
    }

    /// Goes on after a 401: with a token, with user and password, or not at all.
    fn answer_challenge(
        &self,
        response: Response<Body>,
        shown: &Shown,
        key: &TokenKey,
        location: &Location,
        ask: &Ask<'_>,
        request: &Arc<str>,
    ) -> Result<Response<Body>, UpstreamError> {
        let lines = || texts(response.headers(), header::WWW_AUTHENTICATE);
        let (bearer, wants_basic) = (Challenge::bearer(lines()), Challenge::wants_basic(lines()));
        if matches!(shown, Shown::Login(_)) {
            return Err(self.refused(request, 401));
        }
        if let Some(challenge) = bearer {
            discard_for(ask, response);
            let token = self.tokens.obtain(key, shown.token(), Instant::now(), || {
                self.fetch_token(challenge, location, ask.repository, request)
            })?;
            let response = self.call(location, ask, Shown::Token(token).header(), request)?;
            // A fresh token, and still 401: so registries hide what does not exist or is private
            // (Docker Hub since 2023). A third try would be a loop.
            return match response.status().as_u16() {
                401 => Err(UpstreamError::new(Arc::clone(request), UpstreamErrorKind::NotFound)),
                _ => Ok(response),
            };
        }
        let Some(login @ Login::Basic { .. }) = self.login(location, request)? else {
            return Ok(response);
        };
        if !wants_basic {
            return Ok(response);
        }
        discard_for(ask, response);
        let response = self.call(location, ask, login.header(), request)?;
        match response.status().as_u16() {
            401 => Err(self.refused(request, 401)),
            _ => {
                self.wants_basic.store(true, Ordering::Relaxed);
                Ok(response)
            }
        }
    }

    /// The credentials, for the endpoint's own origin only.
    fn login(
        &self,
        location: &Location,
        request: &Arc<str>,
    ) -> Result<Option<Login>, UpstreamError> {
        if !location.is_same_origin(&self.base) {
            return Ok(None);
        }
        self.credentials.login(&self.upstream).map_err(|reason| {
            let kind = UpstreamErrorKind::Credentials { reason: reason.into() };
            UpstreamError::new(Arc::clone(request), kind)
        })
    }

    /// Says, once in a while, that the credentials are refused; the requests themselves fail fast.
    fn refused(&self, request: &Arc<str>, status: u16) -> UpstreamError {
        let now = Instant::now();
        // A panic elsewhere leaves a time or none, both valid.
        let mut said = self.refusal_said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.is_none_or(|said| now.duration_since(said) >= REFUSAL_SAID_EVERY) {
            *said = Some(now);
            log::warn!(
                "{} refuses the credentials in registries[].auth ({request}: {status})",
                self.upstream
            );
        }
        UpstreamError::new(Arc::clone(request), UpstreamErrorKind::Denied { status })
    }

    /// One request on the wire, repeated once if a pooled connection turned out to be dead.
    fn call(
        &self,
        location: &Location,
        ask: &Ask<'_>,
        authorization: Option<String>,
        request: &Arc<str>,
    ) -> Result<Response<Body>, UpstreamError> {
        let agent = self.agent(location, request)?;
        let range = (ask.from > 0).then(|| format!("bytes={}-", ask.from));
        let headers = [
            (header::ACCEPT, ask.accept),
            (header::AUTHORIZATION, authorization.as_deref()),
            (header::RANGE, range.as_deref()),
        ];
        let send = || {
            let builder = match ask.method {
                Method::Get => agent.get(location.url()),
                Method::Head => agent.head(location.url()),
            };
            let builder = headers.iter().fold(builder, |builder, (name, value)| match value {
                Some(value) => builder.header(name, *value),
                None => builder,
            });
            builder.config().timeout_global(ask.total).build().call()
        };
        let answered = match send() {
            Err(error) if is_stale_connection(&error) => {
                log::debug!("{request}: {error} before an answer, trying once more");
                send()
            }
            other => other,
        };
        let response = answered.map_err(|error| UpstreamError::from_ureq(request, error))?;
        if location.is_same_origin(&self.base) {
            self.quota.note(response.headers(), &self.upstream, Instant::now());
        }
        Ok(response)
    }

    /// The agent for a host: the endpoint's own, or one that minds where it connects.
    fn agent(&self, location: &Location, request: &Arc<str>) -> Result<Agent, UpstreamError> {
        let agent = match (&self.own, &self.trusting) {
            (Some(own), _) if location.is_same_origin(&self.base) => own,
            // The operator listed it, and so vouches for the network it is in.
            (Some(_), Some(trusting)) if self.is_private() => trusting,
            (Some(_), None) if self.is_private() => &self.foreign.private_too,
            _ => &self.foreign.public,
        };
        agent.get(location).map_err(|error| {
            let kind = UpstreamErrorKind::Tls { reason: error.to_string().into() };
            UpstreamError::new(Arc::clone(request), kind)
        })
    }

    /// Whether the endpoint is in a private network: then what it redirects to may be as well.
    fn is_private(&self) -> bool {
        if let Some(known) = self.is_private.get() {
            return *known;
        }
        // A name that does not resolve right now may do so later: only an answer is remembered.
        let Ok(mut addresses) = self.base.host_and_port().to_socket_addrs() else { return false };
        let is_private = addresses.any(|address| !is_public(address.ip()));
        *self.is_private.get_or_init(|| is_private)
    }

    /// Asks the realm of a challenge for a token.
    fn fetch_token(
        &self,
        challenge: Challenge,
        asking: &Location,
        repository: &Repository,
        request: &Arc<str>,
    ) -> Result<Token, UpstreamError> {
        let realm = realm(&challenge, asking)?;
        let login = self.login(asking, request)?;
        let default_scope = format!("repository:{repository}:pull");
        let scope = challenge.parameter("scope").unwrap_or(&default_scope);
        let mut parameters = vec![("scope", scope)];
        if let Some(service) = challenge.parameter("service") {
            parameters.insert(0, ("service", service));
        }
        let response = self.ask_realm(&realm, &parameters, login.as_ref())?;
        let request: Arc<str> = format!("GET {}", realm.for_log()).into();
        let body = read_body(response, TOKEN_BODY_BYTES_MAX, &request)?;
        Token::parse(&body, challenge, Instant::now())
            .ok_or_else(|| UpstreamError::bad_answer(&request, "it holds no token"))
    }

    /// By GET as the token specification has it, or by POST for an identity token (OAuth 2).
    fn ask_realm(
        &self,
        realm: &Location,
        parameters: &[(&str, &str)],
        login: Option<&Login>,
    ) -> Result<Response<Body>, UpstreamError> {
        let request: Arc<str> = format!("token from {}", realm.for_log()).into();
        let agent = self.agent(realm, &request)?;
        let total = Some(self.timeouts.metadata);
        let answered = match login {
            Some(Login::Identity(refresh_token)) => {
                let grant = [
                    ("grant_type", "refresh_token"),
                    ("client_id", "larder"),
                    ("refresh_token", refresh_token.reveal()),
                ];
                let form = grant.iter().chain(parameters).map(|(name, value)| (*name, *value));
                let builder = agent.post(realm.url()).config().timeout_global(total).build();
                builder.send_form(form)
            }
            login => {
                let builder = agent.get(realm.with_query(parameters).url());
                let builder = match login.and_then(Login::header) {
                    Some(value) => builder.header(header::AUTHORIZATION, value),
                    None => builder,
                };
                builder.config().timeout_global(total).build().call()
            }
        };
        let response = answered.map_err(|error| UpstreamError::from_ureq(&request, error))?;
        match response.status().as_u16() {
            200 => Ok(response),
            status @ (401 | 403) if login.is_some() => Err(self.refused(&request, status)),
            status => Err(status_error(status, response.headers(), &request)),
        }
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
    let Some(to) = text(response.headers(), header::LOCATION).and_then(|to| from.join(to)) else {
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

/// Where a challenge sends us for a token: only to the registry's own people, and never in the clear
/// if the registry itself is not.
fn realm(challenge: &Challenge, asking: &Location) -> Result<Location, UpstreamError> {
    let refused = |reason: String| {
        Err(UpstreamError::bad_answer(&asking.for_log(), format!("its token realm {reason}")))
    };
    let Some(realm) = challenge.parameter("realm").and_then(Location::parse) else {
        return refused("is missing or no URL".into());
    };
    if asking.is_https() && !realm.is_https() {
        return refused(format!("{} is not https", realm.for_log()));
    }
    if !is_same_owner(asking.host(), realm.host()) {
        return refused(format!("{} belongs to somebody else", realm.for_log()));
    }
    Ok(realm)
}

/// Whether a request failed the way it does on a pooled connection that the other side has closed
/// meanwhile. It was not answered, and it changes nothing, so it may be repeated.
fn is_stale_connection(error: &ureq::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    match error {
        ureq::Error::Io(error) => {
            matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
        }
        _ => false,
    }
}
