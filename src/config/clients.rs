//! How the server identifies itself to clients, and which clients it serves: TLS and passwords.

use super::ConfigError;
use super::file::{ClientAuthName, File};
use crate::api::HostName;
use crate::certificates::IdentityFiles;
use crate::http::{ClientAuth, ServerTlsSettings};
use crate::users;

/// `serverTlsConfig`, unless it is empty.
pub(super) fn tls(file: &File) -> Result<Option<ServerTlsSettings>, ConfigError> {
    let Some(entry) = &file.server_tls_config else { return Ok(None) };
    let verifies = entry.client_auth == ClientAuthName::Verify;
    match (&entry.cert, &entry.key) {
        (Some(cert), Some(key)) => {
            let identity = IdentityFiles { cert: cert.clone(), key: key.clone() };
            let clients = match verifies {
                true => ClientAuth::Verify { ca: entry.ca.clone() },
                false => ClientAuth::None,
            };
            Ok(Some(ServerTlsSettings { identity, clients }))
        }
        (None, None) if entry.ca.is_none() && !verifies => Ok(None),
        // The operator relies on TLS: serving without it would be a security hole.
        _ => Err(ConfigError::Value {
            key: "serverTlsConfig",
            reason: "cert and key belong together, and both are needed for TLS".into(),
        }),
    }
}

/// Keys that are accepted but have no effect.
pub(super) fn without_effect(file: &File) -> Vec<&'static str> {
    let is_ca_unused = file
        .server_tls_config
        .as_ref()
        .is_some_and(|entry| entry.ca.is_some() && entry.client_auth != ClientAuthName::Verify);
    // An operator who sets it expects that clients must log in.
    let is_open = file
        .server_auth_config
        .as_ref()
        .is_some_and(|entry| entry.htpasswd.is_none() && entry.oidc.is_empty());
    let all = [
        ("serverTlsConfig.ca (without clientAuth: verify)", is_ca_unused),
        ("serverAuthConfig (without htpasswd and oidc)", is_open),
    ];
    all.into_iter().filter(|(_, is_set)| *is_set).map(|(key, _)| key).collect()
}

/// `serverAuthConfig`, unless it is empty.
pub(super) fn access(file: &File) -> Option<users::Settings> {
    let htpasswd = file.server_auth_config.as_ref()?.htpasswd.clone()?;
    Some(users::Settings { htpasswd })
}

/// `allowedHosts`.
pub(super) fn allowed_hosts(file: &File) -> Vec<HostName> {
    file.allowed_hosts.iter().map(|name| name.0.clone()).collect()
}
