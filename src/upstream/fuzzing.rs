//! Fuzz targets: response heads, challenges and the responses of token services.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ureq::http::{HeaderMap, HeaderName, HeaderValue};

use super::auth::realm::{check_owner, realm};
use super::auth::{Challenge, Token};
use super::network::Location;
use super::response::{
    check_encoding, content_digest, content_length, content_range, is_registry_error, is_web_page,
    redirect_target, status_error,
};
use crate::fuzzing::{assert_is_safe_text, line};

pub(crate) use super::auth::fuzzing::{aws, credential_helper, docker_config};
pub(crate) use super::client::fuzzing::{link, referrers, tag_list};
pub(crate) use super::network::fuzzing::{location, proxy};
pub(crate) use super::object_store::fuzzing::object_store;

/// Input: one or more response heads, and the beginning of a body.
pub(crate) fn response_head(data: &[u8]) {
    let Some((status, lines)) = super::network::fuzzing::response_head(data) else { return };
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(&value))
        else {
            continue;
        };
        headers.append(name, value);
    }
    let request: Arc<str> = "GET https://registry.example/v2/".into();
    let error = status_error(status, &headers, &request);
    assert_is_safe_text(&error.to_string());
    assert!(error.retry_after().is_none() || status == 429 || status == 503, "{error}");
    if let Some(range) = content_range(&headers) {
        assert!(range.size.is_none_or(|size| range.start < size), "{range:?}");
    }
    content_digest(&headers);
    content_length(&headers);
    is_web_page(&headers);
    is_registry_error(&headers, data);
    if let Err(error) = check_encoding(&headers, &request) {
        assert_is_safe_text(&error.to_string());
    }
    super::client::fuzzing::response_headers(&headers);
    let from = Location::parse("https://registry.example/v2/a/blobs/x").expect("valid");
    if let Some(target) = redirect_target(&headers) {
        assert!(target.is_ascii());
        super::network::fuzzing::assert_joined(&from, &target);
    }
    let challenges = headers.get_all("www-authenticate").iter();
    for challenge in challenges.filter_map(|value| value.to_str().ok()) {
        check_challenge(challenge);
    }
}

/// Input: lines of `WWW-Authenticate`.
pub(crate) fn challenge(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    text.lines().for_each(check_challenge);
    // The first bearer challenge counts, on whichever line it is.
    let first = text.lines().find_map(|line| Challenge::bearer([line]));
    assert_eq!(Challenge::bearer(text.lines()), first);
    let any = text.lines().any(|line| Challenge::wants_basic([line]));
    assert_eq!(Challenge::wants_basic(text.lines()), any);
}

fn check_challenge(line: &str) {
    let Some(challenge) = Challenge::bearer([line]) else { return };
    let rendered = super::auth::fuzzing::rendered(&challenge);
    assert_eq!(Challenge::bearer([&*rendered]), Some(challenge.clone()), "{rendered}");
    let secure = Location::parse("https://registry.example/v2/").expect("valid");
    match realm(&challenge, &secure) {
        Ok(realm) => {
            // A login is sent over TLS, and to the registry's owner only.
            assert!(realm.is_https());
            let host = realm.host();
            let is_ours = host == "registry.example" || host.ends_with(".registry.example");
            assert_eq!(check_owner(&realm, &secure).is_ok(), is_ours, "{host}");
        }
        Err(error) => assert_is_safe_text(&error.to_string()),
    }
}

/// Input: a line with a challenge, and the response of a token service.
pub(crate) fn token(data: &[u8]) {
    let (header, body) = line(data);
    let challenge = Challenge::bearer([&*header]).or_else(|| Challenge::bearer(["Bearer realm=x"]));
    let (Some(challenge), now) = (challenge, Instant::now()) else { return };
    let Some(token) = Token::parse(body, challenge, now) else { return };
    let value = HeaderValue::from_str(&format!("Bearer {}", token.value));
    assert!(value.is_ok_and(|value| value.len() <= 17 * 1024));
    assert!(!token.is_due(now), "a token that is never used");
    assert!(token.is_due(now + Duration::from_secs(86_400)), "a token that is used forever");
}
