//! Requests of commands to the management API of the running server with the same configuration.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use serde_json::Value;
use ureq::Agent;
use ureq::http::{Method, Request};

use super::CommandError;
use crate::api::{ManagementSettings, Scope};

/// How long the server may take to answer.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The longest response that is read, in bytes.
const BYTES_MAX: u64 = 64 << 20;

/// Requests a document.
///
/// # Errors
/// [`CommandError::Running`] if there is no management port, the server cannot be reached, or it refuses the request.
pub(super) fn get(settings: &ManagementSettings, path: &str) -> Result<Value, CommandError> {
    request(settings, Method::GET, path)
}

/// Requests a change.
///
/// # Errors
/// As [`get`].
pub(super) fn post(settings: &ManagementSettings, path: &str) -> Result<Value, CommandError> {
    request(settings, Method::POST, path)
}

fn request(
    settings: &ManagementSettings,
    method: Method,
    path: &str,
) -> Result<Value, CommandError> {
    let everything = settings.listeners.iter().find(|each| each.scope == Scope::Everything);
    let Some(listener) = everything else {
        return Err(failed(
            "the command asks the running server, which needs a management port: set management.port \
             in its configuration, and pass the same file with --config-file",
        ));
    };
    let address = reachable(listener.address);
    let agent: Agent = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .proxy(None)
        .timeout_global(Some(TIMEOUT))
        .build()
        .into();
    let request = Request::builder().method(method).uri(format!("http://{address}{path}"));
    let token = settings.token_file.as_deref().and_then(|path| fs::read_to_string(path).ok());
    let request = match token {
        Some(token) => request.header("Authorization", format!("Bearer {}", token.trim())),
        None => request,
    };
    let unreachable = |error: ureq::Error| {
        failed(&format!(
            "cannot ask the server at {address}: {error}; is it running with this configuration?"
        ))
    };
    let request = request.body(()).map_err(|error| unreachable(error.into()))?;
    let response = agent.run(request).map_err(unreachable)?;
    let status = response.status();
    let body = response.into_body().into_with_config().limit(BYTES_MAX).read_to_string();
    let document: Value = serde_json::from_str(&body.map_err(unreachable)?).unwrap_or(Value::Null);
    match (status.is_success(), document["error"].as_str()) {
        (true, _) => Ok(document),
        (false, Some(reason)) => Err(failed(reason)),
        (false, None) => Err(failed(&format!("the server at {address} answers {status}"))),
    }
}

fn failed(text: &str) -> CommandError {
    CommandError::Running(text.to_owned())
}

/// Where a server can be reached that listens at an address.
fn reachable(listening: SocketAddr) -> SocketAddr {
    let ip = match listening.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listening.port())
}
