//! The environment variables of Amazon's SDKs, for `token.provider: ecr`.

use std::str::FromStr;

use super::value::EndpointUrl;
use crate::upstream::{AwsEnvironment, ContainerEndpoint, Endpoint, Secret};

/// The instance metadata service, over IPv4 and over IPv6.
const METADATA_V4: &str = "http://169.254.169.254";
const METADATA_V6: &str = "http://[fd00:ec2::254]";

/// The settings and the region from the environment. Empty variables count as not set.
///
/// # Errors
/// The name of the variable with an invalid value.
pub(super) fn environment(
    get: impl Fn(&str) -> Option<String>,
) -> Result<(AwsEnvironment, Option<String>), String> {
    let get = |name: &str| get(name).filter(|value| !value.is_empty());
    let either = |one: &str, other: &str| get(one).or_else(|| get(other));
    let home = get("HOME").map(|home| format!("{home}/.aws/credentials"));
    let keys = match (get("AWS_ACCESS_KEY_ID"), get("AWS_SECRET_ACCESS_KEY")) {
        (Some(id), Some(secret)) => Some((id, Secret::new(secret))),
        (None, None) => None,
        _ => {
            return Err(
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY belong together: set both, or neither"
                    .into(),
            );
        }
    };
    let environment = AwsEnvironment {
        keys,
        session_token: get("AWS_SESSION_TOKEN").map(Secret::new),
        web_identity: get("AWS_WEB_IDENTITY_TOKEN_FILE")
            .and_then(|file| Some((file.into(), get("AWS_ROLE_ARN")?))),
        role_session_name: get("AWS_ROLE_SESSION_NAME"),
        shared_credentials_file: get("AWS_SHARED_CREDENTIALS_FILE").or(home).map(Into::into),
        profile: either("AWS_PROFILE", "AWS_DEFAULT_PROFILE"),
        container: container(&get)?,
        container_token: get("AWS_CONTAINER_AUTHORIZATION_TOKEN").map(Secret::new),
        container_token_file: get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE").map(Into::into),
        metadata: metadata(&get)?,
        ecr_endpoint: endpoint(&get, "AWS_ENDPOINT_URL_ECR")?,
        sts_endpoint: endpoint(&get, "AWS_ENDPOINT_URL_STS")?,
        ca_bundle: get("AWS_CA_BUNDLE").map(Into::into),
    };
    Ok((environment, either("AWS_REGION", "AWS_DEFAULT_REGION")))
}

fn container(get: &impl Fn(&str) -> Option<String>) -> Result<Option<ContainerEndpoint>, String> {
    let (relative, full) =
        ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI");
    let (name, parsed) = match (get(relative), get(full)) {
        (Some(path), _) => (relative, ContainerEndpoint::relative(&path)),
        (None, Some(url)) => (full, ContainerEndpoint::from_str(&url)),
        (None, None) => return Ok(None),
    };
    parsed.map(Some).map_err(|reason| format!("the environment variable {name} {reason}"))
}

fn metadata(get: &impl Fn(&str) -> Option<String>) -> Result<Option<Endpoint>, String> {
    if get("AWS_EC2_METADATA_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true")) {
        return Ok(None);
    }
    if let Some(endpoint) = endpoint(get, "AWS_EC2_METADATA_SERVICE_ENDPOINT")? {
        return Ok(Some(endpoint));
    }
    let mode = get("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE");
    let is_v6 = mode.is_some_and(|mode| mode.eq_ignore_ascii_case("ipv6"));
    let usual: Result<EndpointUrl, _> = if is_v6 { METADATA_V6 } else { METADATA_V4 }.parse();
    Ok(usual.ok().map(|endpoint| endpoint.0))
}

fn endpoint(get: &impl Fn(&str) -> Option<String>, name: &str) -> Result<Option<Endpoint>, String> {
    let Some(text) = get(name) else { return Ok(None) };
    let parsed = text.parse::<EndpointUrl>();
    parsed
        .map(|endpoint| Some(endpoint.0))
        .map_err(|reason| format!("the environment variable {name}: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<(AwsEnvironment, Option<String>), String> {
        environment(|name| {
            let found = variables.iter().find(|(each, _)| *each == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn every_variable_is_read() {
        let (read, region) = read(&[
            ("AWS_ACCESS_KEY_ID", "A"),
            ("AWS_SECRET_ACCESS_KEY", "s"),
            ("AWS_SESSION_TOKEN", "t"),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", "/w"),
            ("AWS_ROLE_ARN", "arn:aws:iam::1:role/r"),
            ("AWS_ROLE_SESSION_NAME", "n"),
            ("AWS_SHARED_CREDENTIALS_FILE", "/c"),
            ("HOME", "/home/x"),
            ("AWS_PROFILE", "p"),
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://169.254.170.23/v1/credentials"),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "ct"),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "/ct"),
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:1338/"),
            ("AWS_ENDPOINT_URL_ECR", "https://vpce.example.com"),
            ("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:4566"),
            ("AWS_CA_BUNDLE", "/ca"),
            ("AWS_REGION", "eu-west-1"),
        ])
        .unwrap();
        let endpoint = |text: &str| Some(text.parse::<EndpointUrl>().unwrap().0);
        let expected = AwsEnvironment {
            keys: Some(("A".into(), Secret::new("s"))),
            session_token: Some(Secret::new("t")),
            web_identity: Some(("/w".into(), "arn:aws:iam::1:role/r".into())),
            role_session_name: Some("n".into()),
            shared_credentials_file: Some("/c".into()),
            profile: Some("p".into()),
            container: Some("http://169.254.170.23/v1/credentials".parse().unwrap()),
            container_token: Some(Secret::new("ct")),
            container_token_file: Some("/ct".into()),
            metadata: endpoint("http://127.0.0.1:1338"),
            ecr_endpoint: endpoint("https://vpce.example.com"),
            sts_endpoint: endpoint("http://127.0.0.1:4566"),
            ca_bundle: Some("/ca".into()),
        };
        assert_eq!((read, region.as_deref()), (expected, Some("eu-west-1")));
    }

    #[test]
    fn defaults_without_variables() {
        let (plain, region) = read(&[("HOME", "/home/x"), ("AWS_PROFILE", "")]).unwrap();
        let expected = AwsEnvironment {
            shared_credentials_file: Some("/home/x/.aws/credentials".into()),
            metadata: Some(METADATA_V4.parse::<EndpointUrl>().unwrap().0),
            ..AwsEnvironment::default()
        };
        assert_eq!((plain, region), (expected, None));
        let (off, _) = read(&[("AWS_EC2_METADATA_DISABLED", "true")]).unwrap();
        assert_eq!(off, AwsEnvironment::default());
        let (six, _) = read(&[("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "IPv6")]).unwrap();
        assert_eq!(six.metadata.unwrap().authority, "[fd00:ec2::254]");
    }

    #[test]
    fn invalid_variable_is_named() {
        for (name, value) in [
            ("AWS_ACCESS_KEY_ID", "A"),
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://evil.example.com/"),
            ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "evil"),
            ("AWS_ENDPOINT_URL_ECR", "nowhere"),
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "169.254.169.254"),
        ] {
            assert!(read(&[(name, value)]).unwrap_err().contains(name), "{name}");
        }
    }
}
