//! Repositories whose registry decides which clients may pull: a request for one needs credentials, which the registry
//! judges.
//!
//! Credentials reach the registry only from here. Those that are for a Larder never do: the passwords and tokens of
//! `serverAuthConfig`, and the ones that Larders present to each other.

use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use super::route::{Addressing, Route};
use super::{Handlers, ServerAuth, access_log, login, status};
use crate::cache::{
    AccessError, AccessLookup, AccessWait, Cache, DECIDED, Login, Pass, PeerProof, PullAccess,
    Wanted,
};
use crate::http::{Body, Context, Pending, Reply, Request, Step};
use crate::oci::ImageName;
use crate::via::{self, Via};

/// Programs built with go-containerregistry, such as crane, send credentials only if `GET /v2/` demands them, and pull without
/// any where none are needed. Others react to the response for an image; podman, skopeo and CRI-O to the challenge of a
/// `GET /v2/` with any status.
const ASKS_FOR_BASIC: &str = "go-containerregistry/";
/// Docker with its own image store sends credentials only if `GET /v2/` demands them, too. If it demands Basic, Docker pulls
/// nothing without a login. If it demands a token, Docker requests one also without a login.
const ASKS_FOR_TOKEN: &str = "docker/";
/// The path at which Docker gets tokens.
pub(super) const TOKEN_PATH: &str = "/token";
/// The token of a client without a login. It is not base64, so it cannot be a login.
const NO_LOGIN: &str = "anonymous-client";

/// What `GET /v2/` answers to a client that sends its credentials for images only if it is asked here; `None` for others.
pub(super) fn challenge(request: &Request, is_tls: bool) -> Option<Reply> {
    if request.header("authorization").is_some() {
        return None;
    }
    let agent = request.header("user-agent").unwrap_or_default();
    let has = |program: &str| agent.split(' ').any(|word| word.starts_with(program));
    let text = "some of the registries here require a user and a password";
    if has(ASKS_FOR_BASIC) {
        return Some(status::login(text));
    }
    let host = request.header("host").filter(|host| !host.contains(['"', '\\']))?;
    let realm = format!("{}://{host}{TOKEN_PATH}", scheme(request, is_tls));
    has(ASKS_FOR_TOKEN).then(|| status::token_challenge(text, &realm))
}

/// The scheme under which the client reaches this server, or the proxy in front of it.
fn scheme(request: &Request, is_tls: bool) -> &'static str {
    match request.header("x-forwarded-proto") {
        Some(scheme) if scheme.eq_ignore_ascii_case("https") => "https",
        Some(scheme) if scheme.eq_ignore_ascii_case("http") => "http",
        _ if is_tls => "https",
        _ => "http",
    }
}

/// The token for a client: its login, unchanged. It says nothing about what the client may pull, which the registry decides
/// as with Basic, and it is kept nowhere.
pub(super) fn token(request: &Request) -> Reply {
    let presented = request.header("authorization").and_then(login::encoded);
    let token = presented.filter(|encoded| login::decoded(encoded).is_some());
    let document = serde_json::json!({ "token": token.unwrap_or(NO_LOGIN), "expires_in": 300 });
    Reply::new(200, Body::Bytes(document.to_string().into_bytes().into()))
        .header("Content-Type", "application/json")
        .header("Cache-Control", "no-store")
}

/// A request for a repository whose registry decides.
pub(super) struct Checked {
    pub(super) route: Route,
    pub(super) addressing: Addressing,
}

/// Handles a request if the registry lets its client pull.
pub(super) fn answer(
    handlers: &Arc<Handlers>,
    auth: &ServerAuth,
    checked: Checked,
    request: &Request,
    context: &Context<'_>,
) -> Step {
    let name = checked.route.name();
    let text = || format!("{} decides who may pull {}", name.upstream, name.repository);
    // podman, skopeo and CRI-O send an empty user and an empty password if they have none.
    let login = request.header("authorization").and_then(login::credentials);
    let Some((user, password)) =
        login.filter(|(user, password)| !(user.is_empty() && password.is_empty()))
    else {
        let text = format!("{}: log in with a user and a password for it", text());
        return Step::Reply(with_reason(status::login(&text), "login-required", name));
    };
    if via::current().is_from_peer() {
        return match handlers.cache.peer_proof(Some((&user, &password))) {
            PeerProof::Proven => admit_peer(handlers, checked, request, context),
            _ => Step::Reply(status::login("this is for peers only (peers.auth)")),
        };
    }
    // A user of this server presents a password or a token for it.
    if auth.owns(&user, &password) {
        let text = format!(
            "{}: this login is for Larder itself (serverAuthConfig) and is not sent there; log in with one of the registry",
            text()
        );
        return Step::Reply(with_reason(status::login(&text), "own-login", name));
    }
    let cache = handlers.cache.for_client(request.client_address());
    let check = Check {
        handlers: Arc::clone(handlers),
        cache,
        login: Login { user, password },
        checked,
        chain: via::current(),
    };
    check.start(None, request, context)
}

/// Serves a peer, which has asked the registry for its client.
fn admit_peer(
    handlers: &Arc<Handlers>,
    checked: Checked,
    request: &Request,
    context: &Context<'_>,
) -> Step {
    request.set_user(request.header(via::USER).unwrap_or("peer"));
    let cache = handlers.cache.for_client(request.client_address());
    let Checked { route, addressing } = checked;
    handlers.answer_content(cache, PullAccess::Client, route, addressing, request, context)
}

/// Whether a request that claims to be from a peer is from one.
pub(super) fn peer_proof(cache: &Cache, request: &Request) -> PeerProof {
    let login = request.header("authorization").and_then(login::credentials);
    cache.peer_proof(login.as_ref().map(|(user, password)| (user.as_str(), password.as_str())))
}

struct Check {
    handlers: Arc<Handlers>,
    cache: Cache,
    login: Login,
    checked: Checked,
    /// The Larders that the request has passed.
    chain: Via,
}

impl Check {
    /// Begins, or begins again for a client that waits until `deadline`.
    fn start(self, deadline: Option<Instant>, request: &Request, context: &Context<'_>) -> Step {
        let wanted = match &self.checked.route {
            Route::Manifest { reference, .. } => Wanted::Manifest(reference.clone()),
            Route::Blob { digest, .. } => Wanted::Blob(*digest),
            Route::List { .. } => Wanted::Lists,
        };
        match self
            .chain
            .clone()
            .enter(|| self.cache.check_login(self.checked.route.name(), &self.login, wanted))
        {
            Ok(AccessLookup::Granted(pass)) => self.admit(pass, request, context),
            Ok(AccessLookup::Wait(wait)) => {
                let deadline = deadline.unwrap_or_else(|| context.now() + wait.patience());
                Box::new(Waiting { check: self, wait, deadline }).resume(request, context)
            }
            Err(error) => Step::Reply(self.refuse(&error)),
        }
    }

    fn admit(self, pass: Option<Pass>, request: &Request, context: &Context<'_>) -> Step {
        request.set_user(&self.login.user);
        let cache = self.cache.with_pass(pass);
        let Checked { route, addressing } = self.checked;
        self.chain.of_user(&self.login.user).enter(|| {
            let access = PullAccess::Client;
            self.handlers.answer_content(cache, access, route, addressing, request, context)
        })
    }

    fn refuse(&self, error: &AccessError) -> Reply {
        let name = self.checked.route.name();
        let reply = status::access_refusal(error, &self.checked.route);
        let why = match error {
            AccessError::Refused { .. } => "denied",
            AccessError::NotFound => "not-found",
            AccessError::TooManyGuesses { .. } => "too-many-guesses",
            AccessError::Unconfirmed(_) => "unconfirmed",
        };
        let is_decided = matches!(error, AccessError::Refused { .. } | AccessError::NotFound);
        let reply = if is_decided { reply.header(DECIDED.0, DECIDED.1) } else { reply };
        let reply = with_reason(reply, why, name);
        match error {
            AccessError::Unconfirmed(error) => reply.note(access_log::ERROR, error.to_string()),
            _ => reply,
        }
    }
}

/// A response whose line in the log says why a client gets nothing of a repository.
fn with_reason(reply: Reply, why: &'static str, name: &ImageName) -> Reply {
    reply.note("reason", why).note("upstream", name.upstream.as_str().to_owned())
}

/// A request that waits for the registry to judge its credentials.
struct Waiting {
    check: Check,
    wait: AccessWait,
    deadline: Instant,
}

impl Pending for Waiting {
    fn resume(self: Box<Self>, request: &Request, context: &Context<'_>) -> Step {
        let Waiting { check, wait, deadline } = *self;
        match wait.poll(context.waker()) {
            Poll::Ready(Some(Ok(pass))) => check.admit(pass, request, context),
            Poll::Ready(Some(Err(error))) => Step::Reply(check.refuse(&error)),
            Poll::Ready(None) if context.now() < deadline => {
                check.start(Some(deadline), request, context)
            }
            Poll::Pending if context.now() < deadline => {
                Step::Wait(Box::new(Waiting { check, wait, deadline }))
            }
            _ => {
                let error = wait.give_up(context.waker());
                Step::Reply(check.refuse(&error))
            }
        }
    }

    fn deadline(&self) -> Instant {
        self.deadline
    }
}
