//! One registry over HTTP: the distribution-spec's pull and discovery requests.

use std::net::ToSocketAddrs;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use ureq::http::{Response, header};
use ureq::{Agent, Body};

use super::address::{Guard, is_public};
use super::answer::{
    check_encoding, content_digest, content_length, content_range, discard, is_web_page, read_body,
    status_error, text, texts,
};
use super::challenge::Challenge;
use super::error::{UpstreamError, UpstreamErrorKind};
use super::list::{accept_referrers, accept_tags, next_query};
use super::location::{Location, is_same_owner};
use super::registries::{Endpoint, ForeignAgents, RegistrySettings, Scheme};
use super::token::{TOKEN_BODY_BYTES_MAX, Token, TokenKey, Tokens};
use super::transport::{LazyAgent, Timeouts, Verification};
use super::{BlobBody, List, Source};
use crate::oci::{
    Algorithm, Digest, MANIFEST_BYTES_MAX, Manifest, MediaType, Reference, Repository, Tag,
    Upstream,
};

/// How many redirects are followed: more than any registry needs, fewer than a loop would like.
const REDIRECTS_MAX: usize = 10;
/// The largest list, in bytes: a page of tags, the referrers of one manifest.
const LIST_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// A registry, and what is known of how to speak to it.
pub struct Registry {
    base: Location,
    /// For the endpoint itself, with its own TLS; an unlisted registry has none.
    own: Option<LazyAgent>,
    /// For all other hosts that it leads to.
    foreign: Arc<ForeignAgents>,
    /// Whether the endpoint's own address is private; resolved when it first matters.
    is_private: OnceLock<bool>,
    tokens: Tokens,
    timeouts: Timeouts,
}

/// One question to the registry.
struct Ask<'a> {
    method: Method,
    /// Path and query below the endpoint.
    path: String,
    accept: Option<&'a str>,
    repository: &'a Repository,
    redirects: Redirects,
    /// The first byte wanted; 0 is the whole.
    from: u64,
    /// Bounds the exchange as a whole; `None` for blobs, which take as long as they take.
    total: Option<Duration>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    Get,
    Head,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Redirects {
    /// Content may be anywhere: CDNs, object stores.
    Anywhere,
    /// Lists may not: ghcr.io redirects referrers to a web page.
    SameOrigin,
}

/// What the registry said in the end, after tokens and redirects.
struct Answer {
    response: Response<Body>,
    /// Method and URL for messages.
    request: Arc<str>,
}

impl Registry {
    /// A registry from the configuration.
    pub(super) fn listed(
        entry: &RegistrySettings,
        timeouts: Timeouts,
        foreign: Arc<ForeignAgents>,
    ) -> Registry {
        let verification = match (entry.endpoint.scheme, entry.insecure_skip_verify) {
            (Scheme::Http, _) => Verification::Unused,
            (Scheme::Https, true) => Verification::Skipped,
            (Scheme::Https, false) => Verification::Roots,
        };
        let own = LazyAgent::new(Guard::Any, verification, timeouts);
        Registry::new(&entry.endpoint, Some(own), timeouts, foreign)
    }

    /// A registry that a client named and nobody listed: https, and public addresses only.
    pub(super) fn unlisted(
        upstream: &Upstream,
        timeouts: Timeouts,
        foreign: Arc<ForeignAgents>,
    ) -> Registry {
        Registry::new(&Endpoint::of(upstream, Scheme::Https), None, timeouts, foreign)
    }

    fn new(
        endpoint: &Endpoint,
        own: Option<LazyAgent>,
        timeouts: Timeouts,
        foreign: Arc<ForeignAgents>,
    ) -> Registry {
        Registry {
            base: Location::new(endpoint.scheme == Scheme::Https, &endpoint.authority, "/"),
            own,
            foreign,
            is_private: OnceLock::new(),
            tokens: Tokens::default(),
            timeouts,
        }
    }

    fn ask(&self, ask: &Ask<'_>) -> Result<Answer, UpstreamError> {
        let method = if ask.method == Method::Head { "HEAD" } else { "GET" };
        let mut location = self.base.join(&ask.path).unwrap_or_else(|| self.base.clone());
        let first: Arc<str> = format!("{method} {}", location.for_log()).into();
        for _ in 0..=REDIRECTS_MAX {
            let request: Arc<str> = format!("{method} {}", location.for_log()).into();
            let response = self.call_authorized(&location, ask, &request)?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(Answer { response, request });
            }
            location = self.redirect(&location, ask, &response, &request)?;
            discard(response);
        }
        let reason = format!("more than {REDIRECTS_MAX} redirects").into();
        Err(UpstreamError::new(first, UpstreamErrorKind::Redirect { reason }))
    }

    /// Where a redirect leads, if it may be followed.
    fn redirect(
        &self,
        from: &Location,
        ask: &Ask<'_>,
        response: &Response<Body>,
        request: &Arc<str>,
    ) -> Result<Location, UpstreamError> {
        let refused = |reason: String| {
            let kind = UpstreamErrorKind::Redirect { reason: reason.into() };
            Err(UpstreamError::new(Arc::clone(request), kind))
        };
        let Some(to) = text(response.headers(), header::LOCATION).and_then(|to| from.join(to))
        else {
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

    /// One hop, with the token that its host wants, if any.
    fn call_authorized(
        &self,
        location: &Location,
        ask: &Ask<'_>,
        request: &Arc<str>,
    ) -> Result<Response<Body>, UpstreamError> {
        let key =
            TokenKey { origin: location.origin(), repository: ask.repository.as_str().to_owned() };
        let now = Instant::now();
        let known = match self.tokens.known(&key) {
            Some(token) if token.is_due(now) => {
                let challenge = token.challenge.clone();
                Some(self.tokens.obtain(&key, Some(&token), now, || {
                    self.fetch_token(challenge, location, ask.repository)
                })?)
            }
            known => known,
        };
        let response = self.call(location, ask, known.as_deref(), request)?;
        if response.status().as_u16() != 401 {
            return Ok(response);
        }
        let Some(challenge) =
            Challenge::bearer(texts(response.headers(), header::WWW_AUTHENTICATE))
        else {
            return Ok(response);
        };
        discard(response);
        let token = self.tokens.obtain(&key, known.as_ref(), Instant::now(), || {
            self.fetch_token(challenge, location, ask.repository)
        })?;
        let response = self.call(location, ask, Some(&token), request)?;
        // A fresh token, and still 401: so registries hide what does not exist or is private
        // (Docker Hub since 2023). A third try would be a loop.
        match response.status().as_u16() {
            401 => Err(UpstreamError::new(Arc::clone(request), UpstreamErrorKind::NotFound)),
            _ => Ok(response),
        }
    }

    /// One request on the wire, repeated once if a pooled connection turned out to be dead.
    fn call(
        &self,
        location: &Location,
        ask: &Ask<'_>,
        token: Option<&Token>,
        request: &Arc<str>,
    ) -> Result<Response<Body>, UpstreamError> {
        let agent = self.agent(location);
        let send = || {
            let builder = match ask.method {
                Method::Get => agent.get(location.url()),
                Method::Head => agent.head(location.url()),
            };
            let builder = match ask.accept {
                Some(accept) => builder.header(header::ACCEPT, accept),
                None => builder,
            };
            let builder = match token {
                Some(token) => {
                    builder.header(header::AUTHORIZATION, format!("Bearer {}", token.value))
                }
                None => builder,
            };
            let builder = match ask.from {
                0 => builder,
                from => builder.header(header::RANGE, format!("bytes={from}-")),
            };
            builder.config().timeout_global(ask.total).build().call()
        };
        let answered = match send() {
            Err(error) if is_stale_connection(&error) => {
                log::debug!("{request}: {error} before an answer, trying once more");
                send()
            }
            other => other,
        };
        answered.map_err(|error| UpstreamError::from_ureq(request, error))
    }

    /// The agent for a host: the endpoint's own, or one that minds where it connects.
    fn agent(&self, location: &Location) -> &Agent {
        match &self.own {
            Some(own) if location.is_same_origin(&self.base) => own.get(),
            // The operator listed it, and so vouches for the network it is in.
            Some(_) if self.is_private() => self.foreign.private_too.get(),
            _ => self.foreign.public.get(),
        }
    }

    /// Whether the endpoint is in a private network: then what it redirects to may be as well.
    fn is_private(&self) -> bool {
        *self.is_private.get_or_init(|| {
            let resolved = self.base.host_and_port().to_socket_addrs();
            resolved.is_ok_and(|mut addresses| addresses.any(|address| !is_public(address.ip())))
        })
    }

    /// Asks the realm of a challenge for an anonymous token.
    fn fetch_token(
        &self,
        challenge: Challenge,
        asking: &Location,
        repository: &Repository,
    ) -> Result<Token, UpstreamError> {
        let refused = |reason: String| {
            UpstreamError::bad_answer(&asking.for_log(), format!("its token realm {reason}"))
        };
        let Some(realm) = challenge.parameter("realm").and_then(Location::parse) else {
            return Err(refused("is missing or no URL".into()));
        };
        if asking.is_https() && !realm.is_https() {
            return Err(refused(format!("{} is not https", realm.for_log())));
        }
        if !is_same_owner(asking.host(), realm.host()) {
            return Err(refused(format!("{} belongs to somebody else", realm.for_log())));
        }
        let default_scope = format!("repository:{repository}:pull");
        let scope = challenge.parameter("scope").unwrap_or(&default_scope);
        let url = match challenge.parameter("service") {
            Some(service) => realm.with_query(&[("service", service), ("scope", scope)]),
            None => realm.with_query(&[("scope", scope)]),
        };
        let request: Arc<str> = format!("GET {}", url.for_log()).into();
        let response = self.ask_realm(&url, &request)?;
        let body = read_body(response, TOKEN_BODY_BYTES_MAX, &request)?;
        Token::parse(&body, challenge, Instant::now())
            .ok_or_else(|| UpstreamError::bad_answer(&request, "it holds no token"))
    }

    fn ask_realm(
        &self,
        url: &Location,
        request: &Arc<str>,
    ) -> Result<Response<Body>, UpstreamError> {
        let builder = self.agent(url).get(url.url());
        let answered = builder.config().timeout_global(Some(self.timeouts.metadata)).build().call();
        let response = answered.map_err(|error| UpstreamError::from_ureq(request, error))?;
        match response.status().as_u16() {
            200 => Ok(response),
            status => Err(status_error(status, response.headers(), request)),
        }
    }

    fn metadata<'a>(
        &self,
        method: Method,
        repository: &'a Repository,
        rest: &str,
        accept: Option<&'a str>,
    ) -> Ask<'a> {
        Ask {
            method,
            path: format!("/v2/{repository}/{rest}"),
            accept,
            repository,
            redirects: Redirects::Anywhere,
            from: 0,
            total: Some(self.timeouts.metadata),
        }
    }

    fn list(&self, ask: Ask<'_>) -> Result<Answer, UpstreamError> {
        let answer = self.ask(&Ask { redirects: Redirects::SameOrigin, ..ask })?;
        match answer.response.status().as_u16() {
            200 => Ok(answer),
            status => Err(status_error(status, answer.response.headers(), &answer.request)),
        }
    }
}

impl Source for Registry {
    fn resolve(&self, repository: &Repository, tag: &Tag) -> Result<Option<Digest>, UpstreamError> {
        let rest = format!("manifests/{tag}");
        let accept = Some(MediaType::ACCEPTED_MANIFESTS);
        let answer = self.ask(&self.metadata(Method::Head, repository, &rest, accept))?;
        let headers = answer.response.headers();
        match answer.response.status().as_u16() {
            200 => Ok(content_digest(headers)),
            // Some registries do not do HEAD well; GET will tell.
            400 | 405 | 406 | 501 => Ok(None),
            status => Err(status_error(status, headers, &answer.request)),
        }
    }

    fn manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<(Digest, Manifest), UpstreamError> {
        let rest = format!("manifests/{reference}");
        let accept = Some(MediaType::ACCEPTED_MANIFESTS);
        let answer = self.ask(&self.metadata(Method::Get, repository, &rest, accept))?;
        let (response, request) = (answer.response, answer.request);
        if response.status().as_u16() != 200 {
            return Err(status_error(response.status().as_u16(), response.headers(), &request));
        }
        check_encoding(response.headers(), &request)?;
        let told = content_digest(response.headers());
        let content_type = text(response.headers(), header::CONTENT_TYPE).map(str::to_owned);
        let bytes = read_body(response, MANIFEST_BYTES_MAX as u64, &request)?;
        let expected = match reference {
            Reference::Digest(digest) => Some(*digest),
            Reference::Tag(_) => told,
        };
        let algorithm = expected.map_or(Algorithm::Sha256, |digest| digest.algorithm());
        let manifest = Manifest::parse(bytes.into(), content_type.as_deref())
            .map_err(|error| UpstreamError::bad_answer(&request, error.to_string()))?;
        let actual = Digest::of(algorithm, manifest.bytes());
        match expected {
            Some(expected) if expected != actual => {
                let reason = format!("its bytes have the digest {actual}, not {expected}");
                Err(UpstreamError::bad_answer(&request, reason))
            }
            _ => Ok((actual, manifest)),
        }
    }

    fn blob_size(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<u64>, UpstreamError> {
        let rest = format!("blobs/{digest}");
        let answer = self.ask(&self.metadata(Method::Head, repository, &rest, None))?;
        let headers = answer.response.headers();
        match answer.response.status().as_u16() {
            200 => Ok(content_length(headers)),
            400 | 405 | 406 | 501 => Ok(None),
            status => Err(status_error(status, headers, &answer.request)),
        }
    }

    fn blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        from: u64,
    ) -> Result<BlobBody, UpstreamError> {
        let rest = format!("blobs/{digest}");
        let metadata = self.metadata(Method::Get, repository, &rest, None);
        let answer = self.ask(&Ask { total: None, from, ..metadata })?;
        let (headers, request) = (answer.response.headers(), &answer.request);
        let (start, size) = match answer.response.status().as_u16() {
            200 => (0, content_length(headers)),
            206 => content_range(headers)
                .filter(|(start, _)| from > 0 && *start == from)
                .map(|(start, size)| (start, Some(size)))
                .ok_or_else(|| {
                    UpstreamError::bad_answer(request, "its range is not the one asked for")
                })?,
            // Beyond the end: what was kept is longer than the blob, so it is asked for anew.
            416 if from > 0 => return self.blob(repository, digest, 0),
            status => return Err(status_error(status, headers, request)),
        };
        check_encoding(headers, request)?;
        // A login page has no place among a blob's bytes, and must not cost what was kept of them.
        if is_web_page(headers) {
            return Err(UpstreamError::bad_answer(request, "it is a web page"));
        }
        let reader = Box::new(answer.response.into_body().into_reader());
        Ok(BlobBody { start, size, reader })
    }

    fn tags(&self, repository: &Repository, query: &str) -> Result<List, UpstreamError> {
        let rest = with_query("tags/list", query);
        let answer = self.list(self.metadata(Method::Get, repository, &rest, None))?;
        let next = next_query(texts(answer.response.headers(), header::LINK));
        let body = read_body(answer.response, LIST_BYTES_MAX, &answer.request)?;
        accept_tags(&body, repository.as_str(), query, next)
            .ok_or_else(|| UpstreamError::bad_answer(&answer.request, "it is no tag list"))
    }

    fn referrers(
        &self,
        repository: &Repository,
        digest: &Digest,
        query: &str,
    ) -> Result<List, UpstreamError> {
        let rest = with_query(&format!("referrers/{digest}"), query);
        let accept = Some(MediaType::OCI_INDEX);
        let asked = self.list(self.metadata(Method::Get, repository, &rest, accept));
        let unsupported = |request: &Arc<str>| {
            UpstreamError::new(Arc::clone(request), UpstreamErrorKind::Unsupported)
        };
        let answer = match asked {
            Err(error) if !error.is_trouble() => return Err(unsupported(error.request())),
            other => other?,
        };
        let headers = answer.response.headers();
        let next = next_query(texts(headers, header::LINK));
        let filters = text(headers, "oci-filters-applied").map(str::to_owned);
        let is_index = text(headers, header::CONTENT_TYPE)
            .and_then(MediaType::parse)
            .is_some_and(|said| said.as_str() == MediaType::OCI_INDEX);
        let body = read_body(answer.response, LIST_BYTES_MAX, &answer.request)?;
        match accept_referrers(body).filter(|_| is_index) {
            Some(body) => Ok(List { body, next, filters_applied: filters }),
            None => Err(unsupported(&answer.request)),
        }
    }
}

fn with_query(path: &str, query: &str) -> String {
    if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
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
