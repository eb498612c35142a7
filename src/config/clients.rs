//! Whom clients see, and which of them are served: TLS and passwords.

use super::ConfigError;
use super::file::{ClientAuthName, File, ServerTlsEntry};
use crate::api::HostName;
use crate::certificates::IdentityFiles;
use crate::http::{ClientAuth, ServerTlsSettings};
use crate::users;

/// `serverTlsConfig`, if it says anything.
pub(super) fn tls(file: &File) -> Result<Option<ServerTlsSettings>, ConfigError> {
    let Some(entry) = &file.server_tls_config else { return Ok(None) };
    let ServerTlsEntry { cert, key, ca, client_auth } = entry;
    let verifies = *client_auth == Some(ClientAuthName::Verify);
    match (cert, key) {
        (Some(cert), Some(key)) => {
            let identity = IdentityFiles { cert: cert.clone(), key: key.clone() };
            let clients = match verifies {
                true => ClientAuth::Verify { ca: ca.clone() },
                false => ClientAuth::None,
            };
            Ok(Some(ServerTlsSettings { identity, clients }))
        }
        (None, None) if ca.is_none() && !verifies => Ok(None),
        // Whoever wrote this relies on TLS: serving in the clear instead would be a hole.
        _ => Err(ConfigError::Value {
            key: "serverTlsConfig",
            reason: "cert and key belong together, and both are needed for TLS".into(),
        }),
    }
}

/// `serverAuthConfig`, if it says anything.
pub(super) fn access(file: &File) -> Option<users::Settings> {
    let htpasswd = file.server_auth_config.as_ref()?.htpasswd.clone()?;
    Some(users::Settings { htpasswd })
}

/// `allowedHosts`.
pub(super) fn allowed_hosts(file: &File) -> Vec<HostName> {
    file.allowed_hosts.iter().flatten().map(|name| name.0.clone()).collect()
}
