//! A token realm: whether it may be asked, and how it is.

use ureq::http::{Response, header};
use ureq::{Agent, Body};

use std::time::Duration;

use super::challenge::Challenge;
use super::credentials::Login;
use super::error::UpstreamError;
use super::location::{Location, is_same_owner};

/// Where a challenge sends us for a token: only to the registry's own people, and never in the clear
/// if the registry itself is not.
pub(super) fn realm(challenge: &Challenge, asking: &Location) -> Result<Location, UpstreamError> {
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

/// By GET as the token specification has it, or by POST for an identity token (OAuth 2).
pub(super) fn ask(
    agent: &Agent,
    realm: &Location,
    parameters: &[(&str, &str)],
    login: Option<&Login>,
    total: Duration,
) -> Result<Response<Body>, ureq::Error> {
    if let Some(Login::Identity(refresh_token)) = login {
        let grant = [
            ("grant_type", "refresh_token"),
            ("client_id", "larder"),
            ("refresh_token", refresh_token.reveal()),
        ];
        let form = grant.iter().chain(parameters).map(|(name, value)| (*name, *value));
        let builder = agent.post(realm.url()).config().timeout_global(Some(total)).build();
        return builder.send_form(form);
    }
    let builder = agent.get(realm.with_query(parameters).url());
    let builder = match login.and_then(Login::header) {
        Some(value) => builder.header(header::AUTHORIZATION, value),
        None => builder,
    };
    builder.config().timeout_global(Some(total)).build().call()
}
