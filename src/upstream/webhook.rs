//! A webhook of the operator: receives events with POST. It is not a registry: only the configured URL is dialled, and
//! redirects are not followed.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use ureq::http::Request;

use super::error::{UpstreamError, UpstreamErrorKind};
use super::network::{Guard, LazyAgent, Location, ProxySettings, Timeouts, TlsSettings};

/// The URL of a webhook. Its path and query may be secrets, so they are neither logged nor shown.
#[derive(Clone, PartialEq, Eq)]
pub struct WebhookUrl(Location);

impl fmt::Debug for WebhookUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for WebhookUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<WebhookUrl, String> {
        let location = Location::parse(text).ok_or(
            "a webhook is a URL such as https://alerts.example.com/larder, without a user and password",
        )?;
        Ok(WebhookUrl(location))
    }
}

impl fmt::Display for WebhookUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (origin, url) = (self.0.origin(), self.0.url());
        match url.strip_prefix(&origin) {
            Some("" | "/") => f.write_str(&origin),
            _ => write!(f, "{origin}/***"),
        }
    }
}

/// Settings of a webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookSettings {
    /// Where events are sent.
    pub url: WebhookUrl,
    /// A file with a token, which is sent as `Authorization: Bearer`. It is read for each event.
    pub token_file: Option<PathBuf>,
    /// TLS to the webhook.
    pub tls: TlsSettings,
}

/// A client of one webhook.
#[derive(Debug)]
pub struct Webhook {
    settings: WebhookSettings,
    agent: LazyAgent,
}

impl Webhook {
    /// Makes no request.
    pub fn new(settings: WebhookSettings, proxies: &Arc<ProxySettings>) -> Webhook {
        let tls = settings.url.0.is_https().then(|| settings.tls.clone());
        let agent = LazyAgent::new(Guard::Any, tls, Timeouts::default(), Arc::clone(proxies));
        Webhook { settings, agent }
    }

    /// Sends a body. Blocks for at most [`Timeouts::metadata`].
    ///
    /// # Errors
    /// [`UpstreamError`], also for a status other than 2xx, and for a token that cannot be read.
    pub fn post(&self, content_type: &str, body: &[u8]) -> Result<(), UpstreamError> {
        let location = &self.settings.url.0;
        let request: Arc<str> = format!("POST {}", location.origin()).into();
        let failed = |kind| UpstreamError::new(Arc::clone(&request), kind);
        let mut builder = Request::post(location.url()).header("content-type", content_type);
        if let Some(path) = &self.settings.token_file {
            let token = fs::read_to_string(path).map_err(|error| {
                let reason = format!("{}: {error}", path.display()).into();
                failed(UpstreamErrorKind::CredentialsUnavailable { reason })
            })?;
            builder = builder.header("authorization", format!("Bearer {}", token.trim()));
        }
        let agent = self
            .agent
            .get(location)
            .map_err(|error| failed(UpstreamErrorKind::Tls { reason: error.to_string().into() }))?;
        let from_ureq = |error| UpstreamError::from_ureq(&request, error);
        let prepared = builder.body(body).map_err(|error| from_ureq(error.into()))?;
        let config = agent.configure_request(prepared);
        let config = config.timeout_global(Some(Timeouts::default().metadata)).build();
        let response = agent.run(config).map_err(from_ureq)?;
        let status = response.status();
        match status.is_success() {
            true => Ok(()),
            false => Err(failed(UpstreamErrorKind::Status { status: status.as_u16() })),
        }
    }
}
