//! One entry of `registries` as settings: endpoints with their TLS and credentials.

use super::file::{AuthEntry, EndpointEntry, RegistryEntry, RepositoriesEntry, TlsEntry};
use super::{ConfigError, auth};
use crate::certificates::IdentityFiles;
use crate::oci::Upstream;
use crate::upstream::{Endpoint, EndpointSettings, RegistrySettings, Scheme, TlsSettings};

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
    let of_entry = Belongings {
        auth: entry.auth.as_ref(),
        repositories: entry.repositories.as_deref(),
        tls: entry.tls.as_ref(),
    };
    let settings = |endpoint: &Endpoint, belongings: &Belongings<'_>| {
        belongings.settings(endpoint, &entry.name.0)
    };
    match entry.endpoints.as_deref() {
        None => Ok(vec![settings(&Endpoint::of(&entry.name.0, scheme), &of_entry)?]),
        Some([]) => Err("endpoints is empty: name one, or leave the key out".into()),
        Some([one]) => Ok(vec![settings(&one.url.0, &Belongings::of(one).or(&of_entry))?]),
        // Which of them a password is for must not be guessed.
        Some(_) if of_entry.is_something() => Err(
            "auth, repositories and tls belong into the endpoint that they are for, where there are \
             several: - url: https://…, with auth and tls below it"
                .into(),
        ),
        Some(all) => {
            let urls: Vec<&Endpoint> = all.iter().map(|each| &each.url.0).collect();
            if let Some(twice) = (1..urls.len()).find(|at| urls[..*at].contains(&urls[*at])) {
                return Err(format!("the endpoint {} is listed twice", urls[twice].url()));
            }
            all.iter().map(|each| settings(&each.url.0, &Belongings::of(each))).collect()
        }
    }
}

/// What is an endpoint's own.
struct Belongings<'a> {
    auth: Option<&'a AuthEntry>,
    repositories: Option<&'a [RepositoriesEntry]>,
    tls: Option<&'a TlsEntry>,
}

impl<'a> Belongings<'a> {
    fn of(entry: &'a EndpointEntry) -> Belongings<'a> {
        let (auth, tls) = (entry.auth.as_ref(), entry.tls.as_ref());
        Belongings { auth, repositories: entry.repositories.as_deref(), tls }
    }

    fn or(&self, other: &Belongings<'a>) -> Belongings<'a> {
        Belongings {
            auth: self.auth.or(other.auth),
            repositories: self.repositories.or(other.repositories),
            tls: self.tls.or(other.tls),
        }
    }

    fn is_something(&self) -> bool {
        self.auth.is_some() || self.repositories.is_some() || self.tls.is_some()
    }

    fn settings(&self, endpoint: &Endpoint, name: &Upstream) -> Result<EndpointSettings, String> {
        let tls = self.tls.map(tls_settings).transpose()?.unwrap_or_default();
        let repositories = self.repositories.unwrap_or_default();
        let credentials = auth::credentials(&endpoint.identity(name), self.auth, repositories)?;
        Ok(EndpointSettings { endpoint: endpoint.clone(), tls, credentials })
    }
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
