//! One entry of `registries` as settings: endpoints with their TLS and credentials.

use super::ConfigError;
use super::file::{AuthEntry, EndpointEntry, RegistryEntry, TlsEntry};
use crate::upstream::{
    Credentials, Endpoint, EndpointSettings, IdentityFiles, RegistrySettings, Scheme, Secret,
    TlsSettings,
};

/// The settings of an entry.
///
/// # Errors
/// [`ConfigError::Registry`] if what it says contradicts itself, or names a variable that is not set.
pub(super) fn settings(entry: &RegistryEntry) -> Result<RegistrySettings, ConfigError> {
    let upstream = entry.name.0.clone();
    let refuse = |reason: String| ConfigError::Registry { name: upstream.to_string(), reason };
    let endpoints = endpoints(entry).map_err(refuse)?;
    let rate_limit = entry.rate_limit.as_ref().map(|rate| rate.0.0);
    Ok(RegistrySettings { upstream, endpoints, rate_limit })
}

/// Each endpoint with its own credentials and TLS. Where there is but one, the entry's are its.
fn endpoints(entry: &RegistryEntry) -> Result<Vec<EndpointSettings>, String> {
    let scheme = entry.scheme.map_or(Scheme::Https, Scheme::from);
    let (auth, tls) = (entry.auth.as_ref(), entry.tls.as_ref());
    let here = || Endpoint::of(&entry.name.0, scheme);
    match entry.endpoints.as_deref() {
        None => Ok(vec![endpoint(here(), auth, tls)?]),
        Some([]) => Err("endpoints is empty: name one, or leave the key out".into()),
        Some([one]) => {
            let (auth, tls) = (one.auth.as_ref().or(auth), one.tls.as_ref().or(tls));
            Ok(vec![endpoint(one.url.0.clone(), auth, tls)?])
        }
        // Which of them a password is for must not be guessed.
        Some(_) if auth.is_some() || tls.is_some() => Err(
            "auth and tls belong into the endpoint that they are for, where there are several: \
             - url: https://…, with auth and tls below it"
                .into(),
        ),
        Some(all) => {
            let urls: Vec<&Endpoint> = all.iter().map(|each| &each.url.0).collect();
            if let Some(twice) = (1..urls.len()).find(|at| urls[..*at].contains(&urls[*at])) {
                return Err(format!("the endpoint {} is listed twice", urls[twice].authority));
            }
            let each = |each: &EndpointEntry| {
                endpoint(each.url.0.clone(), each.auth.as_ref(), each.tls.as_ref())
            };
            all.iter().map(each).collect()
        }
    }
}

fn endpoint(
    endpoint: Endpoint,
    auth: Option<&AuthEntry>,
    tls: Option<&TlsEntry>,
) -> Result<EndpointSettings, String> {
    let tls = tls.map(tls_settings).transpose()?.unwrap_or_default();
    let credentials = auth.map(credentials).transpose()?.unwrap_or_default();
    Ok(EndpointSettings { endpoint, tls, credentials })
}

fn tls_settings(entry: &TlsEntry) -> Result<TlsSettings, String> {
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
