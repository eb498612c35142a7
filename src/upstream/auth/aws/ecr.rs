//! The login for a private ECR registry: `GetAuthorizationToken`.

use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use time::UtcDateTime;

use super::sigv4::{Scope, Signed, hash};
use super::sources::{KeySource, keys};
use super::{Agents, AwsEnvironment, Call, EcrRegistry, Target, unavailable};
use crate::upstream::auth::cached_login::Fetched;
use crate::upstream::auth::credentials::{Login, LoginError, Secret};
use crate::upstream::network::Reach;

/// The operation, by its name in the service's JSON protocol.
const OPERATION: &str = "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken";

/// `token.provider: ecr`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EcrSettings {
    /// The registry.
    pub registry: EcrRegistry,
    /// `profile` of `providerOpts`: only the keys of this profile are used.
    pub profile: Option<String>,
    /// The longest time for which a login is cached. Amazon's logins last twelve hours.
    pub expiry: Duration,
    /// Where to find keys.
    pub environment: AwsEnvironment,
}

/// Gets the login for one registry.
pub(in crate::upstream) struct Ecr {
    settings: EcrSettings,
    agents: Agents,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    authorization_data: Vec<Authorization>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Authorization {
    authorization_token: String,
    /// Seconds since 1970.
    expires_at: Option<f64>,
}

impl Ecr {
    pub(in crate::upstream) fn new(settings: EcrSettings, reach: &Reach) -> Ecr {
        let agents = Agents::new(reach, &settings.environment);
        Ecr { settings, agents }
    }

    /// Requests a login. The signature includes the time `now`.
    ///
    /// # Errors
    /// Which service failed, its response, and what to do.
    pub(in crate::upstream) fn login(&self, now: SystemTime) -> Result<Fetched, LoginError> {
        let registry = &self.settings.registry;
        let source = KeySource {
            profile: self.settings.profile.as_deref(),
            environment: &self.settings.environment,
            sts: registry.sts(),
        };
        let keys = keys(&source, &self.agents)?.keys;
        let configured = self.settings.environment.ecr_endpoint.clone();
        let endpoint = configured.unwrap_or_else(|| registry.ecr());
        let headers = vec![
            ("content-type", "application/x-amz-json-1.1".to_owned()),
            ("host", endpoint.authority.clone()),
            ("x-amz-target", OPERATION.to_owned()),
        ];
        let body = b"{}";
        let payload = hash(body);
        let request = Signed { method: "POST", path: "/", query: "", payload: &payload, headers };
        let time = UtcDateTime::from(now);
        let scope = Scope { region: registry.region(), service: "ecr", time };
        let call = Call {
            method: "POST",
            url: super::url(&endpoint, "/"),
            headers: keys.sign(&scope, request),
            body: body.to_vec(),
        };
        let body = self.agents.call(Target::Service, endpoint.scheme, call)?.ok(
            "the AWS credentials must be valid and allow ecr:GetAuthorizationToken, and the clock must \
             be right",
        )?;
        parse(&body, now, self.settings.expiry).ok_or_else(|| {
            unavailable("the response to ECR's GetAuthorizationToken contains no login".into())
        })
    }
}

/// The token is `user:password`. The lifetime is that of the service, at most `expiry`.
pub(super) fn parse(body: &str, now: SystemTime, expiry: Duration) -> Option<Fetched> {
    let answer: Answer = serde_json::from_str(body).ok()?;
    let authorization = answer.authorization_data.first()?;
    let decoded = STANDARD.decode(&authorization.authorization_token).ok()?;
    let pair = String::from_utf8(decoded).ok()?;
    let (user, password) = pair.split_once(':').filter(|(_, password)| !password.is_empty())?;
    let left = authorization.expires_at.and_then(|seconds| {
        let since = Duration::try_from_secs_f64(seconds).ok()?;
        let expires_at = SystemTime::UNIX_EPOCH.checked_add(since)?;
        Some(expires_at.duration_since(now).unwrap_or_default())
    });
    let login = Login::Basic { user: user.to_owned(), password: Secret::new(password) };
    Some(Fetched { login: Some(login), lifetime: left.map_or(expiry, |left| left.min(expiry)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_limits_the_configured_lifetime() {
        let hour = Duration::from_secs(3600);
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let token = STANDARD.encode("AWS:pass:word");
        for (expires, lifetime) in [
            (r#","expiresAt":1800043200.123"#, 6 * hour),
            (r#","expiresAt":1.8000036E9"#, hour),
            (r#","expiresAt":17"#, Duration::ZERO),
            (r#","expiresAt":-1"#, 6 * hour),
            ("", 6 * hour),
        ] {
            let body =
                format!(r#"{{"authorizationData":[{{"authorizationToken":"{token}"{expires}}}]}}"#);
            let got = parse(&body, now, 6 * hour).unwrap();
            let login = Login::Basic { user: "AWS".into(), password: Secret::new("pass:word") };
            assert_eq!((got.login, got.lifetime), (Some(login), lifetime), "{expires}");
        }
    }

    #[test]
    fn responses_without_a_login() {
        let no_password = STANDARD.encode("AWS");
        for body in [
            "",
            "{}",
            r#"{"authorizationData":[]}"#,
            r#"{"authorizationData":[{"authorizationToken":"%%"}]}"#,
            &format!(r#"{{"authorizationData":[{{"authorizationToken":"{no_password}"}}]}}"#),
        ] {
            assert!(parse(body, SystemTime::now(), Duration::ZERO).is_none(), "{body}");
        }
    }
}
