//! A token realm: whether it may be asked, and how it is.
//!
//! Threats: a registry that sends our credentials to another owner, or in the clear. So a login goes to a
//! realm of the registry's own owner only, and along redirects within one origin. Without a login
//! nothing secret is sent, and any realm may be asked that the address guard allows.

use std::time::{Duration, Instant};

use ureq::http::{Response, StatusCode, header};
use ureq::{Agent, Body};

use super::challenge::Challenge;
use super::credentials::Login;
use crate::upstream::error::UpstreamError;
use crate::upstream::network::{Location, is_same_owner};
use crate::upstream::response::{discard, redirect_target};

/// How many redirects of a token service are followed: one adds a slash or another one a version.
const REDIRECTS_MAX: usize = 4;

/// Where a challenge sends us for a token; never in the clear if the registry itself is not.
pub(in crate::upstream) fn realm(
    challenge: &Challenge,
    asking: &Location,
) -> Result<Location, UpstreamError> {
    let Some(realm) = challenge.parameter("realm").and_then(|realm| asking.join(realm)) else {
        return Err(refused(asking, "is missing or no URL"));
    };
    if asking.is_https() && !realm.is_https() {
        return Err(refused(asking, &format!("{} is not https", realm.for_log())));
    }
    Ok(realm)
}

/// Refuses to show a login to a realm that does not belong to the registry's owner.
pub(in crate::upstream) fn check_owner(
    realm: &Location,
    asking: &Location,
) -> Result<(), UpstreamError> {
    match is_same_owner(asking.host(), realm.host()) {
        true => Ok(()),
        false => {
            let reason = format!(
                "{} belongs to another owner, which must not get the credentials of this registry \
                 (registries[].auth)",
                realm.for_log()
            );
            Err(refused(asking, &reason))
        }
    }
}

fn refused(asking: &Location, reason: &str) -> UpstreamError {
    UpstreamError::bad_answer(&asking.for_log(), format!("its token realm {reason}"))
}

/// By GET as the token specification has it, or by POST for an identity token (OAuth 2). Redirects within
/// the realm's origin are followed, and repeated as what they were. Other answers are returned. All of it takes
/// `total` at most.
pub(in crate::upstream) fn ask(
    agent: &Agent,
    realm: &Location,
    parameters: &[(&str, &str)],
    login: Option<&Login>,
    total: Duration,
) -> Result<Response<Body>, ureq::Error> {
    let end = Instant::now() + total;
    // Never zero, which would be refused as no time-out at all.
    let left = || end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let is_post = matches!(login, Some(Login::Identity(_)));
    let mut location = if is_post { realm.clone() } else { realm.with_query(parameters) };
    for _ in 0..REDIRECTS_MAX {
        let response = ask_once(agent, &location, parameters, login, left())?;
        match redirect(&location, &response).filter(|to| to.is_same_origin(realm)) {
            Some(to) => location = to,
            None => return Ok(response),
        }
        discard(response);
    }
    ask_once(agent, &location, parameters, login, left())
}

fn ask_once(
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
