//! Finds AWS keys, in the order of Amazon's SDKs.
//!
//! Environment, web identity (IRSA), shared credentials file, container (ECS, EKS Pod Identity), instance metadata. The
//! first configured source is used, even if it fails: the next one would use another identity than the intended one.
//! Keys are not cached here: `ecr` caches the login that it obtains with them, and `cached_keys` the keys.

use std::path::Path;
use std::time::SystemTime;

use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::sigv4::Keys;
use super::{
    Agents, AwsEnvironment, Call, ContainerEndpoint, Target, element, unavailable, unusable, url,
};
use crate::upstream::auth::credentials::{LoginError, Secret};
use crate::upstream::auth::logins::read;
use crate::upstream::network::{Endpoint, Scheme, encode_into};

/// The default name of the session in Amazon's audit log.
const SESSION_NAME: &str = "larder";
/// The default profile.
const DEFAULT_PROFILE: &str = "default";
/// The lifetime of a token for the instance metadata service: long enough for three requests.
const METADATA_TOKEN_SECONDS: &str = "60";
const METADATA_TOKEN_PATH: &str = "/latest/api/token";
const METADATA_ROLES_PATH: &str = "/latest/meta-data/iam/security-credentials/";

/// The response of ECS, EKS and the instance metadata service.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TemporaryKeys {
    access_key_id: String,
    secret_access_key: String,
    token: Option<String>,
    expiration: Option<String>,
}

/// Where to find keys.
pub(super) struct KeySource<'a> {
    /// Only the keys of this profile are used.
    pub(super) profile: Option<&'a str>,
    pub(super) environment: &'a AwsEnvironment,
    /// The service that issues keys for roles, unless `AWS_ENDPOINT_URL_STS` names another one.
    pub(super) sts: Endpoint,
}

/// The keys that were found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FoundKeys {
    pub(super) keys: Keys,
    /// Only temporary keys have one.
    pub(super) expires_at: Option<SystemTime>,
}

impl From<Keys> for FoundKeys {
    fn from(keys: Keys) -> FoundKeys {
        FoundKeys { keys, expires_at: None }
    }
}

/// The keys for signing.
///
/// # Errors
/// Which source fails, how, and what to do; or that there is none.
pub(super) fn keys(source: &KeySource<'_>, agents: &Agents) -> Result<FoundKeys, LoginError> {
    let environment = source.environment;
    // A profile in the entry of a registry or store takes precedence over the identity of the process.
    if let Some(profile) = source.profile {
        return from_profile(environment, profile).map(FoundKeys::from);
    }
    if let Some((id, secret)) = &environment.keys {
        let session_token = environment.session_token.clone();
        return Ok(Keys { id: id.clone(), secret: secret.clone(), session_token }.into());
    }
    if let Some((file, role)) = &environment.web_identity {
        return from_web_identity(source, file, role, agents);
    }
    if let Some(profile) = &environment.profile {
        return from_profile(environment, profile).map(FoundKeys::from);
    }
    if let Some(keys) = from_default_profile(environment)? {
        return Ok(keys.into());
    }
    if let Some(container) = &environment.container {
        return from_container(environment, container, agents);
    }
    match &environment.metadata {
        Some(endpoint) => from_metadata(endpoint, agents),
        None => Err(unusable(
            "there are no AWS credentials: not in AWS_ACCESS_KEY_ID, AWS_WEB_IDENTITY_TOKEN_FILE, \
             the shared credentials file or AWS_CONTAINER_CREDENTIALS_FULL_URI, and \
             AWS_EC2_METADATA_DISABLED disables the instance metadata service"
                .into(),
        )),
    }
}

/// Assumes a role with a token that the cluster has written to a file (IRSA) and renews there from time to time.
fn from_web_identity(
    source: &KeySource<'_>,
    file: &Path,
    role: &str,
    agents: &Agents,
) -> Result<FoundKeys, LoginError> {
    let environment = source.environment;
    let token = read(file, "AWS_WEB_IDENTITY_TOKEN_FILE").map_err(unusable)?;
    let session = environment.role_session_name.as_deref().unwrap_or(SESSION_NAME);
    let form = form(&[
        ("Action", "AssumeRoleWithWebIdentity"),
        ("Version", "2011-06-15"),
        ("RoleArn", role),
        ("RoleSessionName", session),
        ("WebIdentityToken", token.trim()),
    ]);
    let endpoint = environment.sts_endpoint.clone().unwrap_or_else(|| source.sts.clone());
    let call = Call {
        method: "POST",
        url: url(&endpoint, "/"),
        headers: vec![("content-type", "application/x-www-form-urlencoded".to_owned())],
        body: form.into_bytes(),
    };
    let body = agents.call(Target::Service, endpoint.scheme, call)?.ok(
        "AssumeRoleWithWebIdentity: the role in AWS_ROLE_ARN must trust this cluster's identity \
         provider and this service account",
    )?;
    let part = |name| element(&body, name);
    match (part("AccessKeyId"), part("SecretAccessKey"), part("SessionToken")) {
        (Some(id), Some(secret), Some(token)) => Ok(FoundKeys {
            keys: Keys {
                id: id.to_owned(),
                secret: Secret::new(secret),
                session_token: Some(Secret::new(token)),
            },
            expires_at: part("Expiration").and_then(point_in_time),
        }),
        _ => Err(unavailable("the response to AssumeRoleWithWebIdentity contains no keys".into())),
    }
}

/// The keys of a configured profile, which must exist.
fn from_profile(environment: &AwsEnvironment, profile: &str) -> Result<Keys, LoginError> {
    let Some(path) = &environment.shared_credentials_file else {
        return Err(unusable(format!(
            "there is no file for the AWS profile {profile}: set AWS_SHARED_CREDENTIALS_FILE"
        )));
    };
    let text = read(path, "AWS_SHARED_CREDENTIALS_FILE").map_err(unusable)?;
    profile_keys(&text, profile).ok_or_else(|| {
        unusable(format!(
            "{} has no aws_access_key_id and aws_secret_access_key in the profile {profile}",
            path.display()
        ))
    })
}

/// The keys of the default profile, if it exists.
fn from_default_profile(environment: &AwsEnvironment) -> Result<Option<Keys>, LoginError> {
    match &environment.shared_credentials_file {
        Some(path) if path.exists() => {
            let text = read(path, "AWS_SHARED_CREDENTIALS_FILE").map_err(unusable)?;
            Ok(profile_keys(&text, DEFAULT_PROFILE))
        }
        _ => Ok(None),
    }
}

/// The keys under `[profile]` in a file of sections with `name = value` lines.
pub(super) fn profile_keys(text: &str, profile: &str) -> Option<Keys> {
    let (mut id, mut secret, mut session_token, mut is_ours) = (None, None, None, false);
    for line in text.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            is_ours = section.trim() == profile;
        } else if let Some((name, value)) = line.split_once('=').filter(|_| is_ours) {
            let value = Some(value.trim()).filter(|value| !value.is_empty());
            match name.trim() {
                "aws_access_key_id" => id = value,
                "aws_secret_access_key" => secret = value,
                "aws_session_token" => session_token = value,
                _ => {}
            }
        }
    }
    let session_token = session_token.map(Secret::new);
    Some(Keys { id: id?.to_owned(), secret: Secret::new(secret?), session_token })
}

/// The keys of the task (ECS) or pod (EKS Pod Identity).
fn from_container(
    environment: &AwsEnvironment,
    endpoint: &ContainerEndpoint,
    agents: &Agents,
) -> Result<FoundKeys, LoginError> {
    let token = match &environment.container_token_file {
        // Renewed by the cluster from time to time.
        Some(path) => {
            let token = read(path, "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE").map_err(unusable)?;
            Some(token.trim().to_owned())
        }
        None => environment.container_token.as_ref().map(|token| token.reveal().to_owned()),
    };
    let headers = token.map(|token| ("authorization", token)).into_iter().collect();
    let url = endpoint.url().to_owned();
    let scheme = if url.starts_with("https:") { Scheme::Https } else { Scheme::Http };
    let call = Call { method: "GET", url, headers, body: Vec::new() };
    let body = agents
        .call(Target::Metadata, scheme, call)?
        .ok("the task or the service account must have a role (AWS_CONTAINER_CREDENTIALS_*)")?;
    temporary_keys(&body, "the container's credentials service")
}

/// The keys of the instance, by version 2 of its metadata service only: version 1 answers any GET that an attacker can
/// make a process send.
fn from_metadata(endpoint: &Endpoint, agents: &Agents) -> Result<FoundKeys, LoginError> {
    let ask = |method, path: &str, header| {
        let call =
            Call { method, url: url(endpoint, path), headers: vec![header], body: Vec::new() };
        agents.call(Target::Metadata, endpoint.scheme, call)
    };
    let ttl = ("x-aws-ec2-metadata-token-ttl-seconds", METADATA_TOKEN_SECONDS.to_owned());
    let token = ask("PUT", METADATA_TOKEN_PATH, ttl).map_err(|error| {
        unavailable(format!(
            "there are no AWS credentials in the environment, and the instance metadata service does \
             not answer ({}); for containers its hop limit must be 2",
            error.reason()
        ))
    })?;
    let token = token.ok("the instance metadata service must be enabled")?;
    let header = || ("x-aws-ec2-metadata-token", token.trim().to_owned());
    let roles = ask("GET", METADATA_ROLES_PATH, header())?.ok("the instance must have a role")?;
    let role = roles.lines().next().unwrap_or_default().trim();
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"_+=,.@-".contains(&byte);
    if role.is_empty() || !role.bytes().all(is_name) {
        return Err(unusable("the instance has no role (instance metadata service)".into()));
    }
    let path = format!("{METADATA_ROLES_PATH}{role}");
    let body = ask("GET", &path, header())?.ok("the instance must have a role")?;
    temporary_keys(&body, "the instance metadata service")
}

pub(super) fn temporary_keys(body: &str, whose: &str) -> Result<FoundKeys, LoginError> {
    let temporary_keys: TemporaryKeys = serde_json::from_str(body)
        // The parser's text could quote the keys.
        .map_err(|_| unavailable(format!("the response of {whose} contains no keys")))?;
    Ok(FoundKeys {
        expires_at: temporary_keys.expiration.as_deref().and_then(point_in_time),
        keys: Keys {
            id: temporary_keys.access_key_id,
            secret: Secret::new(temporary_keys.secret_access_key),
            session_token: temporary_keys.token.map(Secret::new),
        },
    })
}

/// A time as Amazon's services write it: `2030-01-01T00:00:00Z`.
fn point_in_time(text: &str) -> Option<SystemTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok().map(SystemTime::from)
}

fn form(pairs: &[(&str, &str)]) -> String {
    let mut form = String::new();
    for (name, value) in pairs {
        form.push_str(if form.is_empty() { "" } else { "&" });
        form.push_str(name);
        form.push('=');
        encode_into(&mut form, value);
    }
    form
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn keys_of(id: &str, secret: &str, token: Option<&str>) -> Keys {
        let session_token = token.map(Secret::new);
        Keys { id: id.into(), secret: Secret::new(secret), session_token }
    }

    #[test]
    fn profiles_of_a_shared_credentials_file() {
        let text = "
# comment
[default]
aws_access_key_id = A1
aws_secret_access_key=s/1+=
[ team ]  ; comment
aws_access_key_id=A2
aws_secret_access_key = s2
aws_session_token = t2
region = eu-west-1
[half]
aws_access_key_id = A3
[empty]
aws_access_key_id =
aws_secret_access_key =
";
        for (profile, keys) in [
            ("default", Some(keys_of("A1", "s/1+=", None))),
            ("team", Some(keys_of("A2", "s2", Some("t2")))),
            ("half", None),
            ("empty", None),
            ("absent", None),
        ] {
            assert_eq!(profile_keys(text, profile), keys, "{profile}");
        }
    }

    #[test]
    fn temporary_keys_are_parsed_and_never_quoted() {
        let body = r#"{"Code":"Success","AccessKeyId":"A","SecretAccessKey":"s","Token":"t",
                       "Expiration":"2030-01-01T00:00:00Z"}"#;
        let found = temporary_keys(body, "x").unwrap();
        assert_eq!(found.keys, keys_of("A", "s", Some("t")));
        let expires_at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_893_456_000);
        assert_eq!(found.expires_at, Some(expires_at));
        let error =
            temporary_keys(r#"{"AccessKeyId":"A","SecretAccessKey":hunter2}"#, "it").unwrap_err();
        assert!(!error.reason().contains("hunter2"), "{error:?}");
    }

    #[test]
    fn a_form_is_encoded() {
        assert_eq!(form(&[("a", "x y&z="), ("b", "1")]), "a=x%20y%26z%3D&b=1");
    }
}
