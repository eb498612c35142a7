//! Clients that present a token of a trusted issuer as the password of HTTP Basic.

use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::auth::{Admission, ServerAuth};
use super::{Handlers, status};
use crate::http::{Context, Pending, Reply, Request, Step};
use crate::oci::ImageName;
use crate::oidc::{Identity, Issuers, KeyWait, Refusal, Verdict};

/// How long a client waits for the keys of an issuer to be fetched: less than clients wait for a response.
const PATIENCE: Duration = Duration::from_secs(5);

/// Handles a request whose password is a token of one of the issuers, or `None` if it is not.
pub(super) fn answer(
    handlers: &Arc<Handlers>,
    auth: &ServerAuth,
    password: &str,
    request: &Request,
    context: &Context<'_>,
) -> Option<Step> {
    let issuers = auth.issuers.as_ref()?;
    Some(
        match issuers.check(
            password,
            request.client_address(),
            handlers.cache.now(),
            context.now(),
        )? {
            Verdict::Known(verdict) => admit(handlers, auth, verdict, request, context),
            Verdict::Wait(wait) => {
                let waiting = Waiting {
                    handlers: Arc::clone(handlers),
                    auth: auth.clone(),
                    issuers: Arc::clone(issuers),
                    password: password.to_owned(),
                    wait,
                    deadline: context.now() + PATIENCE,
                };
                Box::new(waiting).resume(request, context)
            }
        },
    )
}

fn admit(
    handlers: &Arc<Handlers>,
    auth: &ServerAuth,
    verdict: Result<Arc<Identity>, Refusal>,
    request: &Request,
    context: &Context<'_>,
) -> Step {
    match verdict {
        Ok(identity) => {
            request.set_user(identity.user());
            handlers.answer(auth, Admission::Token(&identity), request, context)
        }
        Err(refusal) => {
            if let Some(user) = refusal.denied_user() {
                request.set_user(user);
            }
            Step::Reply(refuse(&refusal))
        }
    }
}

fn refuse(refusal: &Refusal) -> Reply {
    status::token_refusal(refusal).note("reason", refusal.word())
}

/// The response to a valid token that is not good for this repository.
pub(super) fn deny(name: &ImageName) -> Reply {
    let upstream = name.upstream.as_str().to_owned();
    status::token_denial(name).note("reason", Refusal::DENIED).note("upstream", upstream)
}

/// A request that waits for the keys of an issuer.
struct Waiting {
    handlers: Arc<Handlers>,
    auth: ServerAuth,
    issuers: Arc<Issuers>,
    password: String,
    wait: KeyWait,
    deadline: Instant,
}

impl Pending for Waiting {
    fn resume(self: Box<Self>, request: &Request, context: &Context<'_>) -> Step {
        match self.wait.poll(context.waker()) {
            Poll::Ready(()) => {
                let verdict = self.issuers.recheck(
                    &self.password,
                    request.client_address(),
                    self.handlers.cache.now(),
                );
                admit(&self.handlers, &self.auth, verdict, request, context)
            }
            Poll::Pending if context.now() < self.deadline => Step::Wait(self),
            Poll::Pending => {
                self.wait.give_up(context.waker());
                Step::Reply(refuse(&Refusal::NoKeys))
            }
        }
    }

    fn deadline(&self) -> Instant {
        self.deadline
    }
}
