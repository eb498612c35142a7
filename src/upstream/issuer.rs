//! An issuer of tokens, as far as its public keys are concerned: OpenID Connect Discovery 1.0. It is not a registry: only
//! the configured URL and the one that its document names are dialled, over TLS, and redirects are not followed.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use serde::Deserialize;
use ureq::http::{Request, header};

use super::check::{self, CheckStep, EndpointCheck};
use super::error::{UpstreamError, UpstreamErrorKind};
use super::network::{Guard, LazyAgent, Location, ProxySettings, Timeouts, TlsSettings};
use super::response::{check_encoding, read_body};
use crate::oci::json_reason;

/// The largest document of an issuer. Its keys have a few KiB, with certificates some dozens.
const DOCUMENT_BYTES_MAX: u64 = 256 * 1024;
/// How the text about an unexpected status begins.
const STATUS: &str = "its status is ";
/// Where the document of an issuer is (OpenID Connect Discovery 1.0, section 4).
const WELL_KNOWN: &str = "/.well-known/openid-configuration";

/// The URL of an issuer, as in the claim `iss` of its tokens: https, without a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuerUrl(Arc<str>);

impl IssuerUrl {
    /// The URL as it was written. Tokens must contain exactly this text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The URL of the document that describes the issuer.
    fn document(&self) -> Option<Location> {
        Location::parse(&format!("{}{WELL_KNOWN}", self.0.trim_end_matches('/')))
    }
}

impl FromStr for IssuerUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<IssuerUrl, String> {
        let url = IssuerUrl(text.into());
        let is_plain =
            text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#'));
        match url.document() {
            Some(document) if document.is_https() && is_plain => Ok(url),
            _ => Err(
                "an issuer is an https URL such as https://kubernetes.default.svc.cluster.local, \
                      as in the claim iss of its tokens"
                    .into(),
            ),
        }
    }
}

impl fmt::Display for IssuerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How the keys of an issuer are fetched.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DiscoverySettings {
    /// A file with a token, which is sent as `Authorization: Bearer`. It is read for each fetch.
    pub token_file: Option<PathBuf>,
    /// TLS to the issuer.
    pub tls: TlsSettings,
}

/// A client of one issuer.
#[derive(Debug)]
pub struct IssuerClient {
    url: IssuerUrl,
    token_file: Option<PathBuf>,
    agent: LazyAgent,
}

impl IssuerClient {
    /// Makes no request.
    pub fn new(
        url: IssuerUrl,
        settings: DiscoverySettings,
        proxies: &Arc<ProxySettings>,
    ) -> IssuerClient {
        let DiscoverySettings { token_file, tls } = settings;
        let agent = LazyAgent::new(Guard::Any, Some(tls), Timeouts::default(), Arc::clone(proxies));
        IssuerClient { url, token_file, agent }
    }

    /// The JSON Web Key Set of the issuer. Blocks for at most twice [`Timeouts::metadata`].
    ///
    /// # Errors
    /// [`UpstreamError`], also for a status other than 200, a document of another issuer, and a token that cannot be
    /// read.
    pub fn keys(&self) -> Result<Vec<u8>, UpstreamError> {
        self.get(&self.discover()?)
    }

    /// Tries how the issuer is reached and what it answers. Returns its key set too, if that was received. Blocks.
    pub fn check(&self) -> (EndpointCheck, Option<Vec<u8>>) {
        let mut steps = Vec::new();
        let keys = self.try_keys(&mut steps);
        (EndpointCheck { url: self.url.to_string(), kind: "issuer", steps }, keys)
    }

    fn try_keys(&self, steps: &mut Vec<CheckStep>) -> Option<Vec<u8>> {
        if !check::examine(&self.agent, Guard::Any, &self.url.document()?, steps) {
            return None;
        }
        let location = or_failed("discovery", self.discover(), steps)?;
        steps.push(CheckStep::passed(
            "discovery",
            format!("its keys are at {}", location.for_log()),
        ));
        or_failed("keys", self.get(&location), steps)
    }

    /// Where its keys are.
    fn discover(&self) -> Result<Location, UpstreamError> {
        #[derive(Deserialize)]
        struct Document {
            issuer: String,
            jwks_uri: String,
        }
        let location = self.url.document().ok_or_else(|| self.bad("it has no valid URL".into()))?;
        let json = self.get(&location)?;
        let document: Document = serde_json::from_slice(&json)
            .map_err(|error| self.bad(format!("{WELL_KNOWN}: {}", json_reason(&error))))?;
        if document.issuer != self.url.as_str() {
            return Err(self.bad(format!("it describes another issuer: {}", document.issuer)));
        }
        // The API server of Kubernetes names itself by another address, and demands the token there as well. Whoever
        // could write another address into the document has received the token with the request for it.
        match Location::parse(&document.jwks_uri).filter(Location::is_https) {
            Some(keys) => Ok(keys),
            None => Err(self.bad(format!("jwks_uri is not an https URL: {}", document.jwks_uri))),
        }
    }

    fn get(&self, location: &Location) -> Result<Vec<u8>, UpstreamError> {
        let request: Arc<str> = format!("GET {}", location.for_log()).into();
        let failed = |kind| UpstreamError::new(Arc::clone(&request), kind);
        let mut builder = Request::get(location.url())
            .header(header::ACCEPT, "application/json, application/jwk-set+json")
            .header(header::ACCEPT_ENCODING, "identity");
        if let Some(path) = &self.token_file {
            let token = bearer(path).map_err(|error| {
                let reason = format!("tokenFile: {}: {error}", path.display()).into();
                failed(UpstreamErrorKind::CredentialsUnavailable { reason })
            })?;
            builder = builder.header(header::AUTHORIZATION, token);
        }
        let agent = self
            .agent
            .get(location)
            .map_err(|error| failed(UpstreamErrorKind::Tls { reason: error.to_string().into() }))?;
        let from_ureq = |error| UpstreamError::from_ureq(&request, error);
        let prepared = builder.body(()).map_err(|error| from_ureq(error.into()))?;
        let config = agent.configure_request(prepared);
        let config = config.timeout_global(Some(Timeouts::default().metadata)).build();
        let response = agent.run(config).map_err(from_ureq)?;
        match response.status().as_u16() {
            200 => {
                check_encoding(response.headers(), &request)?;
                read_body(response, DOCUMENT_BYTES_MAX, &request)
            }
            status => Err(UpstreamError::bad_answer(&request, format!("{STATUS}{status}"))),
        }
    }

    fn bad(&self, reason: String) -> UpstreamError {
        UpstreamError::bad_answer(self.url.as_str(), reason)
    }
}

/// Adds a failed step for an error.
fn or_failed<T>(
    name: &'static str,
    result: Result<T, UpstreamError>,
    steps: &mut Vec<CheckStep>,
) -> Option<T> {
    result
        .map_err(|error| steps.push(CheckStep::failed(name, error.to_string(), remedy(&error))))
        .ok()
}

/// The value of `Authorization` with the token in a file.
fn bearer(path: &Path) -> io::Result<String> {
    let token = fs::read_to_string(path)?;
    match token.trim() {
        token if token.is_empty() || token.contains(|char: char| !char.is_ascii_graphic()) => {
            Err(io::Error::other("it does not contain one token"))
        }
        token => Ok(format!("Bearer {token}")),
    }
}

/// What to do about a failure whose text does not say it.
fn remedy(error: &UpstreamError) -> &'static str {
    let UpstreamErrorKind::BadAnswer { reason } = error.kind() else { return "" };
    match reason.strip_prefix(STATUS) {
        Some("401" | "403") => {
            "a Kubernetes cluster demands tokenFile, and the right to read its keys (the ClusterRole \
             system:service-account-issuer-discovery)"
        }
        _ => {
            "correct issuer: it must be exactly the claim iss of the tokens, and be reachable from here"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_issuer_is_an_https_url_without_a_query() {
        for (text, document) in [
            ("https://a.example", "https://a.example/.well-known/openid-configuration"),
            ("https://a.example/", "https://a.example/.well-known/openid-configuration"),
            (
                "https://a.example:8443/x/y",
                "https://a.example:8443/x/y/.well-known/openid-configuration",
            ),
        ] {
            let url: IssuerUrl = text.parse().unwrap();
            assert_eq!(url.document().unwrap().url(), document);
            assert_eq!(url.to_string(), text, "the text is compared with tokens");
        }
        for text in [
            "",
            "a.example",
            "http://a.example",
            "https://",
            "https://u@a.example",
            "https://a.example?x",
            "https://a.example#x",
            " https://a.example",
        ] {
            assert!(text.parse::<IssuerUrl>().is_err(), "{text}");
        }
    }
}
