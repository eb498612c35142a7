//! Authorization of requests: by a token, a login or nothing; and the reaction to a refusal.
//!
//! This module enforces the rules that protect credentials: a login is sent only to the endpoint's own scheme, host and
//! port, and to a token realm of the same owner.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use ureq::Body;
use ureq::http::{Response, header};

use super::{Ask, Session, discard_for};
use crate::oci::Repository;
use crate::upstream::auth::realm;
use crate::upstream::auth::{
    Challenge, Login, LoginError, Moment, Need, Place, Refusals, TOKEN_BODY_BYTES_MAX, Token,
    TokenKey,
};
use crate::upstream::error::{UpstreamError, UpstreamErrorKind};
use crate::upstream::network::Location;
use crate::upstream::response::{
    discard, foreign_status, is_complete, read_body, status_error, texts,
};

/// The authorization that a request presents.
enum Presented {
    Nothing,
    Token(Arc<Token>),
    Login(Arc<Login>),
}

impl Presented {
    fn header(&self) -> Option<String> {
        match self {
            Presented::Nothing => None,
            Presented::Token(token) => Some(format!("Bearer {}", token.value)),
            Presented::Login(login) => login.header(),
        }
    }

    fn token(&self) -> Option<&Arc<Token>> {
        match self {
            Presented::Token(token) => Some(token),
            _ => None,
        }
    }
}

impl Session {
    /// The same session, which does not log that its credentials are refused.
    pub(in crate::upstream::client) fn with_silent_refusals(self) -> Session {
        Session { refusals: Refusals::silent(), ..self }
    }

    /// Sends one request, without following redirects, with the authorization that its host demands.
    pub(super) fn call_authorized(
        &self,
        location: &Location,
        ask: &Ask<'_>,
        request: &Arc<str>,
    ) -> Result<Response<Body>, UpstreamError> {
        let place =
            Place { origin: location.origin(), repository: ask.repository.as_str().to_owned() };
        let presented = self.first_presented(location, ask, &place, request)?;
        let response = self.call(location, ask, presented.header(), request)?;
        match (response.status().as_u16(), &presented) {
            (_, Presented::Login(login)) => self.judge(response, login, location, ask, request),
            (401, _) => self.answer_challenge(response, &presented, place, location, ask, request),
            // The token has the scope of another kind of request. The registry may answer 403, and names the right scope
            // only in response to a request without a token.
            (403, Presented::Token(_)) if !self.tokens.has_scope(&place, need_of(ask)) => {
                discard_for(ask, response);
                let response = self.call(location, ask, None, request)?;
                match response.status().as_u16() {
                    401 => {
                        let presented = Presented::Nothing;
                        self.answer_challenge(response, &presented, place, location, ask, request)
                    }
                    _ => Ok(response),
                }
            }
            (_, Presented::Token(token)) => {
                let scope = self.scope_of(&token.challenge, ask.repository);
                self.tokens.note_scope(&place, need_of(ask), &scope);
                Ok(response)
            }
            _ => Ok(response),
        }
    }

    /// The preemptive authorization: the one that worked before.
    fn first_presented(
        &self,
        location: &Location,
        ask: &Ask<'_>,
        place: &Place,
        request: &Arc<str>,
    ) -> Result<Presented, UpstreamError> {
        let (now, repository) = (Instant::now(), ask.repository);
        let is_own = location.is_same_origin(&self.base);
        let prefers_basic = is_own && self.prefers_basic.load(Ordering::Relaxed);
        let scope = self.tokens.scope(place, need_of(ask)).filter(|_| !prefers_basic);
        let key = scope.map(|scope| TokenKey { place: place.clone(), scope });
        if let Some((key, token)) = key.and_then(|key| self.tokens.known(&key).map(|it| (key, it)))
        {
            if !token.is_due(now) {
                return Ok(Presented::Token(token));
            }
            let renewed = self.tokens.obtain(&key, Some(&token), now, || {
                self.fetch_token(token.challenge.clone(), location, ask, request)
            });
            return renewed.map(Presented::Token);
        }
        if !is_own {
            return Ok(Presented::Nothing);
        }
        if let Some(login) = self.logins.preemptive(repository) {
            return Ok(Presented::Login(login));
        }
        // Helpers and clouds are not used unless the endpoint demands a login.
        if !self.wants_basic.load(Ordering::Relaxed) {
            return Ok(Presented::Nothing);
        }
        let login = self.basic_login(location, repository, request)?;
        Ok(login.map_or(Presented::Nothing, Presented::Login))
    }

    /// Reacts to a 401: repeats the request with a token or with user and password, or returns the response.
    fn answer_challenge(
        &self,
        response: Response<Body>,
        presented: &Presented,
        place: Place,
        location: &Location,
        ask: &Ask<'_>,
        request: &Arc<str>,
    ) -> Result<Response<Body>, UpstreamError> {
        let lines = || texts(response.headers(), header::WWW_AUTHENTICATE);
        let (bearer, wants_basic) = (Challenge::bearer(lines()), Challenge::wants_basic(lines()));
        if let Some(challenge) = bearer {
            discard_for(ask, response);
            let answered = self.answer_bearer(challenge, presented, place, location, ask, request);
            let is_refused = answered.as_ref().is_err_and(is_refused_bearer);
            let login = match is_refused && wants_basic {
                true => self.basic_login(location, ask.repository, request)?,
                false => None,
            };
            return match login {
                Some(login) => self.answer_basic_instead(&login, answered, location, ask, request),
                None => answered,
            };
        }
        if !wants_basic {
            return Ok(response);
        }
        let Some(login) = self.basic_login(location, ask.repository, request)? else {
            return Ok(response);
        };
        discard_for(ask, response);
        self.answer_basic(&login, location, ask, request)
    }

    fn answer_basic(
        &self,
        login: &Login,
        location: &Location,
        ask: &Ask<'_>,
        request: &Arc<str>,
    ) -> Result<Response<Body>, UpstreamError> {
        let response = self.call(location, ask, login.header(), request)?;
        let response = self.judge(response, login, location, ask, request)?;
        self.wants_basic.store(true, Ordering::Relaxed);
        Ok(response)
    }

    /// Repeats a request with the token that its challenge demands.
    ///
    /// Registries answer with 401 to hide content that does not exist or is private (Docker Hub since 2023). A 401 counts
    /// as that only if the token was fetched for this request, with the scope that the registry demands. A token that
    /// another request has fetched may be refused for other reasons.
    fn answer_bearer(
        &self,
        challenge: Challenge,
        presented: &Presented,
        place: Place,
        location: &Location,
        ask: &Ask<'_>,
        request: &Arc<str>,
    ) -> Result<Response<Body>, UpstreamError> {
        let (mut challenge, mut refused) = (challenge, presented.token().cloned());
        for _ in 0..TOKEN_ATTEMPTS_MAX {
            let scope = self.scope_of(&challenge, ask.repository);
            let key = TokenKey { place: place.clone(), scope };
            let mut is_own = false;
            let token = self.tokens.obtain(&key, refused.as_ref(), Instant::now(), || {
                is_own = true;
                self.fetch_token(challenge.clone(), location, ask, request)
            })?;
            let header = Presented::Token(Arc::clone(&token)).header();
            let response = self.call(location, ask, header, request)?;
            if response.status().as_u16() != 401 {
                self.tokens.note_scope(&key.place, need_of(ask), &key.scope);
                return Ok(response);
            }
            let demanded = Challenge::bearer(texts(response.headers(), header::WWW_AUTHENTICATE));
            let has_scope = demanded
                .as_ref()
                .is_none_or(|demanded| self.scope_of(demanded, ask.repository) == key.scope);
            if is_own && has_scope {
                break;
            }
            discard_for(ask, response);
            (challenge, refused) = (demanded.unwrap_or(challenge), Some(token));
        }
        Err(UpstreamError::new(Arc::clone(request), UpstreamErrorKind::Hidden))
    }

    /// Presents user and password to a registry that offers Basic and Bearer and refused a token: some servers have a
    /// token service in front of a registry that does not accept its tokens. If the password is refused as well, the
    /// outcome with the token counts, since registries hide content that way.
    fn answer_basic_instead(
        &self,
        login: &Login,
        answered: Result<Response<Body>, UpstreamError>,
        location: &Location,
        ask: &Ask<'_>,
        request: &Arc<str>,
    ) -> Result<Response<Body>, UpstreamError> {
        let response = self.call(location, ask, login.header(), request)?;
        if is_refusal(response.status().as_u16()) {
            return answered;
        }
        self.refusals.accepted(ask.repository);
        self.wants_basic.store(true, Ordering::Relaxed);
        self.prefers_basic.store(true, Ordering::Relaxed);
        Ok(response)
    }

    /// The scope that a challenge demands.
    fn scope_of(&self, challenge: &Challenge, repository: &Repository) -> String {
        let demanded = challenge.parameter("scope").filter(|scope| scope.len() <= SCOPE_BYTES_MAX);
        demanded.map(str::to_owned).unwrap_or_else(|| {
            format!("repository:{}{repository}:pull", self.api.repository_prefix())
        })
    }

    /// The login, if it is one with user and password.
    fn basic_login(
        &self,
        location: &Location,
        repository: &Repository,
        request: &Arc<str>,
    ) -> Result<Option<Arc<Login>>, UpstreamError> {
        let login = self.login(location, repository, request)?;
        Ok(login.filter(|login| matches!(**login, Login::Basic { .. })))
    }

    /// Checks a response to a login. If the login is refused, fetches it again and repeats the request once: it may have
    /// expired, which Amazon reports with 403, or have been replaced.
    fn judge(
        &self,
        response: Response<Body>,
        login: &Login,
        location: &Location,
        ask: &Ask<'_>,
        request: &Arc<str>,
    ) -> Result<Response<Body>, UpstreamError> {
        let mut response = response;
        if is_refusal(response.status().as_u16()) {
            let renewed = self.logins.renew(ask.repository, login, Moment::now());
            let renewed = renewed.map_err(|error| self.no_login(ask.repository, request, error))?;
            if let Some(header) = renewed.and_then(|login| login.header()) {
                discard_for(ask, response);
                response = self.call(location, ask, Some(header), request)?;
            }
        }
        match response.status().as_u16() {
            status if is_refusal(status) => {
                self.prefers_basic.store(false, Ordering::Relaxed);
                Err(self.refused(ask.repository, request, status))
            }
            _ => {
                self.refusals.accepted(ask.repository);
                Ok(response)
            }
        }
    }

    /// The credentials, for the endpoint's own origin only.
    fn login(
        &self,
        location: &Location,
        repository: &Repository,
        request: &Arc<str>,
    ) -> Result<Option<Arc<Login>>, UpstreamError> {
        if !location.is_same_origin(&self.base) {
            return Ok(None);
        }
        let login = self.logins.login(repository, Moment::now());
        let login = login.map_err(|error| self.no_login(repository, request, error))?;
        if login.is_some() {
            self.presented_login.store(true, Ordering::Relaxed);
        }
        Ok(login)
    }

    /// Whether a login was demanded and presented.
    pub(in crate::upstream::client) fn has_presented_login(&self) -> bool {
        self.presented_login.load(Ordering::Relaxed)
    }

    fn no_login(
        &self,
        repository: &Repository,
        request: &Arc<str>,
        error: LoginError,
    ) -> UpstreamError {
        // A temporary error is logged by the fetch.
        if let LoginError::Unusable(reason) = &error
            && self.refusals.is_warning_due(repository)
        {
            log::warn!(upstream:% = self.upstream, error:% = reason; "no credentials");
        }
        UpstreamError::no_login(request, error)
    }

    /// Warns, at most once a minute, that the credentials are refused. The requests fail at once.
    fn refused(&self, repository: &Repository, request: &Arc<str>, status: u16) -> UpstreamError {
        if self.refusals.is_warning_due(repository) {
            log::warn!(
                upstream:% = self.upstream, request:%, status, setting = self.auth_setting;
                "the credentials for an endpoint are refused"
            );
        }
        UpstreamError::new(Arc::clone(request), UpstreamErrorKind::Denied { status })
    }

    /// Fetches a token from the realm of a challenge.
    fn fetch_token(
        &self,
        challenge: Challenge,
        asking: &Location,
        ask: &Ask<'_>,
        request: &Arc<str>,
    ) -> Result<Token, UpstreamError> {
        let repository = ask.repository;
        let realm = realm::realm(&challenge, asking)?;
        let scope = self.scope_of(&challenge, repository);
        let mut parameters = vec![("scope", scope.as_str())];
        if let Some(service) = challenge.parameter("service") {
            parameters.insert(0, ("service", service));
        }
        let named: Arc<str> = format!("token from {}", realm.for_log()).into();
        let agent = self.agent(&realm, &named)?;
        let ask = |login: Option<&Login>| {
            let total = ask.time_for_token(self.timeouts.metadata);
            realm::request_token(&agent, &realm, &parameters, login, total)
                .map_err(|error| UpstreamError::from_ureq(&named, error))
        };
        let login = self.login(asking, repository, request)?;
        if login.is_some() {
            realm::check_owner(&realm, asking)?;
        }
        let mut response = ask(login.as_deref())?;
        if let Some(login) = login.as_deref().filter(|_| is_refusal(response.status().as_u16())) {
            let renewed = self.logins.renew(repository, login, Moment::now());
            let renewed = renewed.map_err(|error| self.no_login(repository, &named, error))?;
            if let Some(renewed) = renewed {
                discard(response);
                response = ask(Some(&renewed))?;
            }
        }
        match response.status().as_u16() {
            status if is_complete(status) => self.refusals.accepted(repository),
            status if is_refusal(status) && login.is_some() => {
                return Err(self.refused(repository, &named, status));
            }
            // A 404 of a token service says nothing about content.
            status @ (404 | 410) => return Err(foreign_status(status, &named)),
            status => return Err(status_error(status, response.headers(), &named)),
        }
        let request: Arc<str> = format!("GET {}", realm.for_log()).into();
        let body = read_body(response, TOKEN_BODY_BYTES_MAX, &request)?;
        Token::parse(&body, challenge, Instant::now())
            .ok_or_else(|| UpstreamError::bad_answer(&request, "it contains no token"))
    }
}

/// The most tokens that are tried for one request: one that another request was fetching, one that was fetched for this
/// request, and one with another scope than the first challenge demanded.
const TOKEN_ATTEMPTS_MAX: usize = 3;

/// The longest accepted scope, in bytes; a repository with its actions has some 300. Tokens are cached by scope.
const SCOPE_BYTES_MAX: usize = 2048;

/// The kind of request, for the choice of a token.
fn need_of(ask: &Ask<'_>) -> Need {
    let path = ask.path.split('?').next().unwrap_or_default();
    if path.ends_with("/tags/list") { Need::TagList } else { Need::Content }
}

/// Whether a token was refused or could not be fetched, so that the password is sent instead: the token service may be
/// down while the registry is not.
fn is_refused_bearer(error: &UpstreamError) -> bool {
    matches!(
        error.kind(),
        UpstreamErrorKind::Hidden
            | UpstreamErrorKind::Denied { .. }
            | UpstreamErrorKind::NotFound
            | UpstreamErrorKind::BadAnswer { .. }
            | UpstreamErrorKind::Status { .. }
            | UpstreamErrorKind::OutOfService
            | UpstreamErrorKind::Unreachable { .. }
            | UpstreamErrorKind::Tls { .. }
    )
}

/// Whether a status refuses the authorization.
fn is_refusal(status: u16) -> bool {
    matches!(status, 401 | 403)
}
