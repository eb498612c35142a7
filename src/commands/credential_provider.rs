//! `larder credential-provider`: a plugin of the kubelet that presents the token of a pod's service account to Larder.
//!
//! The protocol is `credentialprovider.kubelet.k8s.io/v1`. The token is passed on as it is: Larder verifies it. The kubelet
//! refuses responses with unknown fields.

use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{CommandError, note, say};
use crate::cli;
use crate::oci::{Upstream, json_reason, quoted};

/// The version of the protocol.
const API_VERSION: &str = "credentialprovider.kubelet.k8s.io/v1";
/// The largest request: a token, the name of an image, and annotations (256 KiB at most).
const REQUEST_BYTES_MAX: u64 = 1024 * 1024;
/// The user of the response. Larder takes the user from the token.
const USER: &str = "token";
/// How long before its end the kubelet should not use a token any more: pulls take a while, and Larder checks it with each
/// of their requests.
const MARGIN: Duration = Duration::from_secs(300);
/// How long the kubelet keeps a token at most: it refuses durations of centuries.
const KEPT_MAX: Duration = Duration::from_secs(24 * 3600);

/// Reads a request and prints the response.
///
/// # Errors
/// [`CommandError`] for a request or a file that cannot be used.
pub(super) fn credential_provider(typed: &cli::CredentialProvider) -> Result<(), CommandError> {
    let mut request = Vec::new();
    io::stdin()
        .take(REQUEST_BYTES_MAX)
        .read_to_end(&mut request)
        .map_err(|source| CommandError::System { doing: "read the request", source })?;
    let refused = |reason: String| CommandError::Usage(format!("credential-provider: {reason}"));
    let request = Request::parse(&request).map_err(refused)?;
    let of_file = || typed.token_file.as_deref().map(read).transpose();
    let token = match request.token.clone() {
        Some(token) => Some(token),
        None => of_file()?,
    };
    if token.is_none() {
        note(
            &"the request has no token of a service account, so there are no credentials; set tokenAttributes in the \
              kubelet's configuration (Kubernetes 1.33 or newer), or --token-file",
        );
    }
    say(&request.response(token.as_deref(), SystemTime::now()).to_string());
    Ok(())
}

fn read(path: &Path) -> Result<String, CommandError> {
    let text = fs::read_to_string(path).map_err(|source| CommandError::ClientFile {
        doing: "read",
        path: path.to_owned(),
        source,
    })?;
    match text.trim() {
        "" => Err(CommandError::usage("--token-file", &format!("{}: it is empty", path.display()))),
        token => Ok(token.to_owned()),
    }
}

/// A `CredentialProviderRequest`.
struct Request {
    /// The registry of the image, as the image has it.
    registry: String,
    token: Option<String>,
}

impl Request {
    fn parse(json: &[u8]) -> Result<Request, String> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Written {
            api_version: String,
            kind: String,
            image: String,
            service_account_token: Option<String>,
        }
        let written: Written = serde_json::from_slice(json)
            .map_err(|error| format!("the request is invalid: {}", json_reason(&error)))?;
        if (written.api_version.as_str(), written.kind.as_str())
            != (API_VERSION, "CredentialProviderRequest")
        {
            let (version, kind) = (quoted(&written.api_version), quoted(&written.kind));
            return Err(format!(
                "the request is a {kind} of {version}; set apiVersion: {API_VERSION} in the kubelet's configuration"
            ));
        }
        let token = written.service_account_token.filter(|token| !token.is_empty());
        Ok(Request { registry: registry_of(&written.image), token })
    }

    /// A `CredentialProviderResponse`.
    fn response(&self, token: Option<&str>, now: SystemTime) -> Value {
        let auth = match token {
            Some(token) => json!({ &self.registry: { "username": USER, "password": token } }),
            None => json!({}),
        };
        let seconds = token.and_then(|token| usable_for(token, now)).map_or(0, |it| it.as_secs());
        json!({
            "apiVersion": API_VERSION,
            "kind": "CredentialProviderResponse",
            "cacheKeyType": "Registry",
            "cacheDuration": format!("{seconds}s"),
            "auth": auth,
        })
    }
}

/// The registry of an image. The kubelet compares it with the image, so it is not replaced by another name.
fn registry_of(image: &str) -> String {
    match image.split_once('/') {
        Some((first, _)) if Upstream::looks_like_host(first) => first.to_owned(),
        _ => "docker.io".to_owned(),
    }
}

/// How long the kubelet may use a token again. The token is not verified, since only its own sender would be deceived.
fn usable_for(token: &str, now: SystemTime) -> Option<Duration> {
    let payload = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: Value = serde_json::from_slice(&payload).ok()?;
    let ends = Duration::try_from_secs_f64(claims.get("exp")?.as_f64()?).ok()?;
    let left = UNIX_EPOCH.checked_add(ends)?.duration_since(now).ok()?.checked_sub(MARGIN)?;
    Some(left.min(KEPT_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(changes: Value) -> Result<Request, String> {
        let mut request = json!({
            "apiVersion": API_VERSION, "kind": "CredentialProviderRequest",
            "image": "registry.example.com:5000/team-a/app", "serviceAccountToken": "a.b.c",
            "serviceAccountAnnotations": {"team": "a"},
        });
        request.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        Request::parse(request.to_string().as_bytes())
    }

    #[test]
    fn the_response_has_the_token_for_the_registry_of_the_image() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000);
        let token = |exp: Value| {
            let claims = BASE64_URL_SAFE_NO_PAD.encode(json!({ "exp": exp }).to_string());
            format!("e30.{claims}.AA")
        };
        for (token, duration) in [
            (token(json!(4_600)), "3300s"),
            (token(json!(4_600.5)), "3300s"),
            (token(json!(1_300)), "0s"),
            (token(json!(1_000)), "0s"),
            (token(json!(0)), "0s"),
            (token(json!(-1)), "0s"),
            (token(json!("soon")), "0s"),
            (token(json!(99_999_999_999_u64)), "86400s"),
            (token(json!(u64::MAX)), "0s"),
            ("not a token".to_owned(), "0s"),
        ] {
            let response = request(json!({})).unwrap().response(Some(&token), now);
            assert_eq!(
                response,
                json!({
                    "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
                    "kind": "CredentialProviderResponse",
                    "cacheKeyType": "Registry",
                    "cacheDuration": duration,
                    "auth": {"registry.example.com:5000": {"username": "token", "password": token}},
                })
            );
        }
        let response = request(json!({})).unwrap().response(None, now);
        assert_eq!((&response["auth"], &response["cacheDuration"]), (&json!({}), &json!("0s")));
    }

    #[test]
    fn the_registry_is_the_first_component_of_the_image() {
        for (image, registry) in [
            ("docker.io/library/alpine", "docker.io"),
            ("alpine", "docker.io"),
            ("org/app:v1", "docker.io"),
            ("localhost:5000/app", "localhost:5000"),
            ("index.docker.io/library/alpine", "index.docker.io"),
            ("larder.example:8080/quay.io/org/app@sha256:aa", "larder.example:8080"),
        ] {
            assert_eq!(request(json!({ "image": image })).unwrap().registry, registry, "{image}");
        }
    }

    #[test]
    fn requests_of_other_versions_and_without_an_image_are_refused() {
        for (changes, words) in [
            (json!({"apiVersion": "credentialprovider.kubelet.k8s.io/v1beta1"}), "set apiVersion"),
            (json!({"kind": "Pod"}), "is a Pod of"),
            (json!({"image": null}), "invalid"),
        ] {
            let error = request(changes.clone()).err().unwrap();
            assert!(error.contains(words), "{changes}: {error}");
        }
        assert!(Request::parse(b"").is_err());
        assert_eq!(request(json!({"serviceAccountToken": ""})).unwrap().token, None);
        assert_eq!(request(json!({"new": 1})).unwrap().token.as_deref(), Some("a.b.c"));
    }
}
