//! Authentication of clients with HTTP Basic (RFC 7617), if the configuration has users or issuers of tokens.
//!
//! These are for this server: they are never sent to registries. Those that a registry judges are in [`super::access`].

use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::auth::{Admission, ServerAuth};
use super::{Handlers, status, token_login};
use crate::http::{Context, Pending, Request, Step};
use crate::users::{CheckWait, Verdict};

/// How long a client waits for its password to be checked: longer than all checks that can be queued for its
/// address.
const PATIENCE: Duration = Duration::from_secs(20);

/// The error message for requests without credentials.
pub(super) const REQUIRED: &str = "this registry requires a user and a password";

/// Handles a request if its credentials are valid.
pub(super) fn answer(
    handlers: &Arc<Handlers>,
    auth: &ServerAuth,
    request: &Request,
    context: &Context<'_>,
) -> Step {
    let Some((user, password)) = request.header("authorization").and_then(credentials) else {
        return Step::Reply(status::login(REQUIRED));
    };
    // The password of an htpasswd file never has this form, and its checks are slow.
    if let Some(step) = token_login::answer(handlers, auth, &password, request, context) {
        return step;
    }
    let Some(users) = &auth.users else {
        let text = "the password is not a token of an issuer in serverAuthConfig.oidc";
        return Step::Reply(status::login(text));
    };
    match users.check(request.client_address(), &user, &password) {
        Verdict::Known(verdict) => admit(handlers, auth, &user, verdict, request, context),
        Verdict::Wait(check) => {
            let deadline = context.now() + PATIENCE;
            let (handlers, auth) = (Arc::clone(handlers), auth.clone());
            let login = Login { handlers, auth, user, check, deadline };
            Box::new(login).resume(request, context)
        }
    }
}

fn admit(
    handlers: &Arc<Handlers>,
    auth: &ServerAuth,
    user: &str,
    verdict: bool,
    request: &Request,
    context: &Context<'_>,
) -> Step {
    match verdict {
        true => {
            request.set_user(user);
            handlers.answer(auth, Admission::Everything, request, context)
        }
        false => Step::Reply(status::login("the user or the password is wrong")),
    }
}

/// A request that waits for its password to be checked.
struct Login {
    handlers: Arc<Handlers>,
    auth: ServerAuth,
    user: String,
    check: CheckWait,
    deadline: Instant,
}

impl Pending for Login {
    fn resume(self: Box<Self>, request: &Request, context: &Context<'_>) -> Step {
        match self.check.poll(context.waker()) {
            Poll::Ready(Ok(verdict)) => {
                admit(&self.handlers, &self.auth, &self.user, verdict, request, context)
            }
            Poll::Ready(Err(_)) => Step::Reply(status::login_busy()),
            Poll::Pending if context.now() < self.deadline => Step::Wait(self),
            Poll::Pending => {
                self.check.give_up(context.waker());
                Step::Reply(status::login_busy())
            }
        }
    }

    fn deadline(&self) -> Instant {
        self.deadline
    }
}

/// User and password of an `Authorization` header: Basic, or the same as a token ([`super::access::token`]).
pub(super) fn credentials(header: &str) -> Option<(String, String)> {
    decoded(encoded(header)?)
}

/// The credentials in an `Authorization` header, still encoded.
pub(super) fn encoded(header: &str) -> Option<&str> {
    let (scheme, encoded) = header.split_once(' ')?;
    let is_known = ["basic", "bearer"].iter().any(|known| scheme.eq_ignore_ascii_case(known));
    is_known.then(|| encoded.trim())
}

/// User and password. The user ends at the first colon.
pub(super) fn decoded(encoded: &str) -> Option<(String, String)> {
    let text = String::from_utf8(BASE64_STANDARD.decode(encoded).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn basic_credentials_are_parsed() {
        let read = |header: &str| credentials(header);
        let ann = Some(("ann".to_owned(), "a:b".to_owned()));
        for header in [
            "Basic YW5uOmE6Yg==",
            "basic YW5uOmE6Yg==",
            "BASIC  YW5uOmE6Yg== ",
            "Bearer YW5uOmE6Yg==",
        ] {
            assert_eq!(read(header), ann, "{header}");
        }
        for header in ["", "Basic", "Basic !", "Basic YW5u", "Basic /w=="] {
            assert_eq!(read(header), None, "{header}");
        }
    }
}
