//! Fuzz target: the responses of Amazon's services, and the file of shared credentials.

use std::time::{Duration, SystemTime};

use super::ecr;
use super::environment::{ContainerEndpoint, EcrRegistry};
use super::sources::{profile_keys, temporary_keys};
use super::{Answer, element, error_code};
use crate::fuzzing::{assert_is_safe_text, line};
use crate::oci::Upstream;
use crate::upstream::auth::fuzzing::assert_is_hidden;

/// Input: a line with a profile, a registry or a URL, and any of Amazon's responses, or a credentials file.
pub(crate) fn aws(data: &[u8]) {
    let (text, body) = line(data);
    let Ok(body) = std::str::from_utf8(body) else { return };
    if let Some(code) = error_code(body) {
        assert!(!code.is_empty() && code.len() <= 64 && code.is_ascii(), "{code:?}");
    }
    for name in ["AccessKeyId", "Code", &*text] {
        let value = element(body, name);
        assert!(value.is_none_or(|value| !value.is_empty() && !value.contains(['<', '&'])));
    }
    for status in [200, 400, 503] {
        let answer = Answer { status, body: body.to_owned(), request: "POST https://x/".into() };
        if let Err(error) = answer.ok("hint") {
            assert_is_safe_text(error.reason());
        }
    }
    let (now, expiry) = (SystemTime::now(), Duration::from_secs(3600));
    if let Some(fetched) = ecr::parse(body, now, expiry) {
        assert!(fetched.lifetime <= expiry);
        fetched.login.iter().for_each(assert_is_hidden);
    }
    // A file without this profile has no keys.
    assert!(profile_keys(body, &text).is_none() || body.contains(&*text));
    let _ = temporary_keys(body, "the service");
    if let Some(registry) = text.parse::<Upstream>().ok().and_then(|name| EcrRegistry::of(&name)) {
        for authority in [registry.ecr().authority, registry.sts().authority] {
            let is_amazons = [".amazonaws.com", ".amazonaws.com.cn"];
            assert!(is_amazons.iter().any(|suffix| authority.ends_with(suffix)), "{authority}");
        }
    }
    for endpoint in [text.parse::<ContainerEndpoint>(), ContainerEndpoint::relative(&text)] {
        let Ok(endpoint) = endpoint else { continue };
        assert_eq!(endpoint.url().parse(), Ok(endpoint.clone()), "{}", endpoint.url());
    }
}
