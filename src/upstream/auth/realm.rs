//! Requests to a token realm.
//!
//! Threats: a registry sends credentials to another owner, or unencrypted. Therefore a login is sent only to a realm
//! with the same owner as the registry, and along redirects within one origin. Without a login nothing secret is sent,
//! and any realm may be used that the address guard allows.

use std::time::{Duration, Instant};

use ureq::http::{Response, StatusCode, header};
use ureq::{Agent, Body};

use super::challenge::Challenge;
use super::credentials::Login;
use crate::upstream::error::UpstreamError;
use crate::upstream::network::{Location, is_same_owner};
use crate::upstream::response::{discard, redirect_target};

/// The most redirects of a token service that are followed: some add a slash or a version.
const REDIRECTS_MAX: usize = 4;

/// The URL of a challenge's token service. It must be https if the registry is.
pub(in crate::upstream) fn realm(
    challenge: &Challenge,
    asking: &Location,
) -> Result<Location, UpstreamError> {
    let Some(realm) = challenge.parameter("realm").and_then(|realm| asking.join(realm)) else {
        return Err(refused(asking, "is missing or is not a URL"));
    };
    if asking.is_https() && !realm.is_https() {
        return Err(refused(asking, &format!("{} is not https", realm.for_log())));
    }
    Ok(realm)
}

/// Refuses to send a login to a realm that does not belong to the registry's owner.
pub(in crate::upstream) fn check_owner(
    realm: &Location,
    asking: &Location,
) -> Result<(), UpstreamError> {
    match is_same_owner(asking.host(), realm.host()) {
        true => Ok(()),
        false => {
            let reason = format!(
                "{} belongs to another owner, to which the credentials of this registry \
                 (registries[].auth) are not sent",
                realm.for_log()
            );
            Err(refused(asking, &reason))
        }
    }
}

fn refused(asking: &Location, reason: &str) -> UpstreamError {
    UpstreamError::bad_answer(&asking.for_log(), format!("its token realm {reason}"))
}

/// Requests a token by GET, as the token specification has it, or by POST for an identity token (OAuth 2). Follows
/// redirects within the realm's origin with the same method and returns all other responses. Takes at most `total`.
pub(in crate::upstream) fn request_token(
    agent: &Agent,
    realm: &Location,
    parameters: &[(&str, &str)],
    login: Option<&Login>,
    total: Duration,
) -> Result<Response<Body>, ureq::Error> {
    let end = Instant::now() + total;
    // Never zero, which ureq does not accept.
    let left = || end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let is_post = matches!(login, Some(Login::Identity(_)));
    let mut location = if is_post { realm.clone() } else { realm.with_query(parameters) };
    for _ in 0..REDIRECTS_MAX {
        let response = request_once(agent, &location, parameters, login, left())?;
        match redirect(&location, &response).filter(|to| to.is_same_origin(realm)) {
            Some(to) => location = to,
            None => return Ok(response),
        }
        discard(response);
    }
    request_once(agent, &location, parameters, login, left())
}

fn request_once(
    agent: &Agent,
    location: &Location,
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
        let builder = agent.post(location.url()).config().timeout_global(Some(total)).build();
        return builder.send_form(form);
    }
    let builder = agent.get(location.url());
    let builder = match login.and_then(Login::header) {
        Some(value) => builder.header(header::AUTHORIZATION, value),
        None => builder,
    };
    builder.config().timeout_global(Some(total)).build().call()
}

fn redirect(from: &Location, response: &Response<Body>) -> Option<Location> {
    match response.status() {
        StatusCode::MOVED_PERMANENTLY
        | StatusCode::FOUND
        | StatusCode::SEE_OTHER
        | StatusCode::TEMPORARY_REDIRECT
        | StatusCode::PERMANENT_REDIRECT => from.join(&redirect_target(response.headers())?),
        _ => None,
    }
}
