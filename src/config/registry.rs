//! One entry of `registries` as settings: endpoint, TLS, credentials.

use super::ConfigError;
use super::file::{AuthEntry, RegistryEntry, TlsEntry};
use super::value::{EndpointUrl, Text};
use crate::upstream::{
    Credentials, Endpoint, IdentityFiles, RegistrySettings, Scheme, Secret, TlsSettings,
};

/// The settings of an entry.
///
/// # Errors
/// [`ConfigError::Registry`] if what it says contradicts itself, or names a variable that is not set.
pub(super) fn settings(entry: &RegistryEntry) -> Result<RegistrySettings, ConfigError> {
    let upstream = entry.name.0.clone();
    let refuse = |reason: String| ConfigError::Registry { name: upstream.to_string(), reason };
    let scheme = entry.scheme.map_or(Scheme::Https, Scheme::from);
    let given = entry.endpoints.as_ref().and_then(|endpoints| endpoints.first());
    let endpoint = match given {
        Some(Text(EndpointUrl(endpoint))) => endpoint.clone(),
        None => Endpoint::of(&upstream, scheme),
    };
    let tls = entry.tls.as_ref().map(tls).transpose().map_err(refuse)?.unwrap_or_default();
    let auth = entry.auth.as_ref().map(credentials).transpose().map_err(refuse)?;
    Ok(RegistrySettings { endpoint, tls, credentials: auth.unwrap_or_default(), upstream })
}

fn tls(entry: &TlsEntry) -> Result<TlsSettings, String> {
    let identity = match (&entry.cert, &entry.key) {
        (Some(cert), Some(key)) => Some(IdentityFiles { cert: cert.clone(), key: key.clone() }),
        (None, None) => None,
        (Some(_), None) => return Err("tls.cert needs tls.key beside it".into()),
        (None, Some(_)) => return Err("tls.key needs tls.cert beside it".into()),
    };
    let insecure_skip_verify = entry.insecure_skip_verify.unwrap_or(false);
    Ok(TlsSettings { ca: entry.ca.clone(), identity, insecure_skip_verify })
}

/// Exactly one source of credentials: two could only contradict each other.
fn credentials(entry: &AuthEntry) -> Result<Credentials, String> {
    let fixed = entry.token.as_ref().and_then(|token| token.fixed.as_ref());
    let sources = [
        ("password", entry.password.is_some()),
        ("passwordFromEnv", entry.password_from_env.is_some()),
        ("passwordFile", entry.password_file.is_some()),
        ("dockerConfig", entry.docker_config.is_some()),
        ("token.static", fixed.is_some()),
    ];
    let given: Vec<&str> = sources.iter().filter(|(_, is)| *is).map(|(name, _)| *name).collect();
    if let [one, another, ..] = given[..] {
        return Err(format!("auth has both {one} and {another}: keep one"));
    }
    let user = || {
        let user = entry.user.clone().filter(|user| !user.is_empty());
        user.ok_or_else(|| format!("auth.{} needs auth.user beside it", given[0]))
    };
    if let Some(password) = &entry.password {
        return Ok(Credentials::Password { user: user()?, password: Secret::new(password) });
    }
    if let Some(variable) = &entry.password_from_env {
        let password = std::env::var(variable).map_err(|_| {
            format!("auth.passwordFromEnv: the environment variable {variable} is not set")
        })?;
        return Ok(Credentials::Password { user: user()?, password: Secret::new(password) });
    }
    if let Some(path) = &entry.password_file {
        return Ok(Credentials::PasswordFile { user: user()?, path: path.clone() });
    }
    match (&entry.docker_config, fixed, &entry.user) {
        (Some(path), ..) => Ok(Credentials::DockerConfig { path: path.clone() }),
        (_, Some(token), _) => Ok(Credentials::Bearer(Secret::new(token))),
        (None, None, Some(_)) => {
            Err("auth.user needs password, passwordFromEnv or passwordFile beside it".into())
        }
        (None, None, None) => Ok(Credentials::Anonymous),
    }
}
