//! One entry of `registries` as settings: endpoints with their TLS and credentials.

use super::file::{
    AccessName, EndpointEntry, EndpointKindName, EndpointMap, PeersEntry, RegistryEntry,
    SchemeName, TlsEntry,
};
use super::value::EndpointUrl;
use super::{ConfigError, auth};
use crate::certificates::IdentityFiles;
use crate::oci::{Upstream, quoted};
use crate::upstream::{
    Endpoint, EndpointKind, EndpointSettings, PeerMembers, PeerSettings, RegistrySettings, Scheme,
    TlsSettings,
};

/// Moves `auth`, `repositories` and `tls` of an entry to its only endpoint, which is the registry itself if the
/// entry lists none. Sets the default `expiry` of the credentials.
///
/// # Errors
/// [`ConfigError::Registry`] if there are several endpoints: which one a password is for must not be guessed.
pub(super) fn move_to_endpoints(entry: &mut RegistryEntry) -> Result<(), ConfigError> {
    let scheme = match entry.scheme.take() {
        Some(SchemeName::Http) => Scheme::Http,
        Some(SchemeName::Https) | None => Scheme::Https,
    };
    let itself = || vec![EndpointEntry::of(EndpointUrl(Endpoint::of(&entry.name.0, scheme)))];
    let endpoints = entry.endpoints.get_or_insert_with(itself);
    let refuse = |reason: &str| {
        let (name, reason) = (entry.name.0.to_string(), reason.to_owned());
        Err(ConfigError::Registry { name, reason })
    };
    let result = match &mut endpoints[..] {
        [] => refuse("endpoints is empty: list one, or leave the key out"),
        [EndpointEntry(one)] => {
            one.auth = one.auth.take().or(entry.auth.take());
            one.tls = one.tls.take().or(entry.tls.take());
            if one.repositories.is_empty() {
                one.repositories = std::mem::take(&mut entry.repositories);
            }
            Ok(())
        }
        several => {
            let has_auth = entry.repositories.iter().any(|part| part.auth.is_some());
            let is_ambiguous = entry.auth.is_some() || entry.tls.is_some() || has_auth;
            let twice = (1..several.len())
                .find(|at| several[..*at].iter().any(|before| before.0.url == several[*at].0.url));
            match twice {
                _ if is_ambiguous => refuse(
                    "with several endpoints, auth, repositories and tls belong to one of them: \
                     - url: https://…, with auth and tls below it",
                ),
                Some(at) => {
                    refuse(&format!("the endpoint {} is listed twice", several[at].0.url.0))
                }
                None => Ok(()),
            }
        }
    };
    set_expiries(endpoints);
    result
}

/// Sets the default `expiry` of the credentials.
pub(super) fn set_expiries(endpoints: &mut [EndpointEntry]) {
    for EndpointEntry(each) in endpoints {
        each.auth.iter_mut().for_each(auth::set_expiry);
        let parts = each.repositories.iter_mut();
        parts.flat_map(|part| &mut part.auth).for_each(auth::set_expiry);
    }
}

/// The settings of `parents`.
///
/// # Errors
/// [`ConfigError::Parent`] if an entry contradicts itself, or another one.
pub(super) fn parents(entries: &[EndpointEntry]) -> Result<Vec<EndpointSettings>, ConfigError> {
    let mut parents: Vec<EndpointSettings> = Vec::new();
    for EndpointEntry(entry) in entries {
        let refuse = |reason: String| ConfigError::Parent { url: entry.url.0.to_string(), reason };
        let host: Upstream = entry.url.0.0.authority.parse().map_err(|_| {
            refuse(
                "its host is not a name that a certificate or a credentials file can have".into(),
            )
        })?;
        let settings = endpoint(entry, &host).map_err(refuse)?;
        if entry.kind == Some(EndpointKindName::Registry) {
            return Err(refuse(
                "a parent has many registries: it cannot be of kind registry".into(),
            ));
        }
        if parents.iter().any(|other| other.endpoint == settings.endpoint) {
            return Err(refuse("it is listed twice".into()));
        }
        parents.push(EndpointSettings { kind: EndpointKind::Larder, ..settings });
    }
    Ok(parents)
}

/// The settings of an entry after [`move_to_endpoints`].
///
/// # Errors
/// [`ConfigError::Registry`] if the entry contradicts itself, or names an environment variable that is not set.
pub(super) fn settings(entry: &RegistryEntry) -> Result<RegistrySettings, ConfigError> {
    let upstream = entry.name.0.clone();
    let refuse = |reason: String| ConfigError::Registry { name: upstream.to_string(), reason };
    let endpoints = entry.endpoints.iter().flatten();
    let endpoints = endpoints.map(|EndpointEntry(each)| endpoint(each, &upstream));
    let endpoints = endpoints.collect::<Result<_, _>>().map_err(refuse)?;
    let rate_limit = entry.rate_limit.as_ref().map(|rate| rate.0.0);
    Ok(RegistrySettings { upstream, endpoints, rate_limit })
}

fn endpoint(entry: &EndpointMap, name: &Upstream) -> Result<EndpointSettings, String> {
    let endpoint = entry.url.0.0.clone();
    let tls = entry.tls.as_ref().map(tls_settings).transpose()?.unwrap_or_default();
    let identity = endpoint.identity(name);
    let credentials = auth::credentials(&identity, entry.auth.as_ref(), &entry.repositories)?;
    let kind = match entry.kind {
        Some(EndpointKindName::Larder) => EndpointKind::Larder,
        Some(EndpointKindName::Registry) | None => EndpointKind::Registry,
    };
    let decides = entry.access == AccessName::Client;
    Ok(EndpointSettings { endpoint, kind, tls, credentials, decides })
}

/// The settings of `peers`.
///
/// # Errors
/// [`ConfigError::Peers`] if the entry contradicts itself.
pub(super) fn peers(entry: &PeersEntry) -> Result<PeerSettings, ConfigError> {
    let refuse = |reason: &str| ConfigError::Peers { reason: reason.to_owned() };
    let scheme = match entry.scheme {
        SchemeName::Http => Scheme::Http,
        SchemeName::Https => Scheme::Https,
    };
    let members = match (&entry.dns, &entry.urls[..]) {
        (Some(name), []) => PeerMembers::Named { name: name.clone(), port: entry.port.0, scheme },
        (None, urls @ [_, ..]) => {
            let members: Vec<Endpoint> = urls.iter().map(|url| url.0.0.clone()).collect();
            let is_same = |one: &Endpoint, other: &Endpoint| {
                one.scheme == other.scheme && one.authority.eq_ignore_ascii_case(&other.authority)
            };
            for (at, member) in members.iter().enumerate() {
                if members[..at].iter().any(|before| is_same(before, member)) {
                    return Err(refuse(&format!(
                        "urls: {} is listed twice",
                        quoted(&member.authority)
                    )));
                }
            }
            PeerMembers::Listed(members)
        }
        (Some(_), _) => return Err(refuse("dns and urls exclude each other")),
        (None, []) => return Err(refuse("name the members with dns or urls")),
    };
    let host = match &members {
        PeerMembers::Named { name, .. } => name.as_str(),
        PeerMembers::Listed(endpoints) => endpoints.first().map_or("", |first| &first.authority),
    };
    let host: Upstream = host.parse().map_err(|_| refuse("dns is not a host name"))?;
    if matches!(&members, PeerMembers::Named { .. }) && host.port().is_some() {
        return Err(refuse("dns has a port: set peers.port"));
    }
    let tls = entry.tls.as_ref().map(tls_settings).transpose().map_err(|reason| refuse(&reason))?;
    let credentials =
        auth::credentials(&host, entry.auth.as_ref(), &[]).map_err(|reason| refuse(&reason))?;
    let endpoint = Endpoint::of(&host, scheme);
    // Members are contacted at their addresses, which change, so a certificate names what they have in common.
    let server_name = entry.dns.clone();
    let tls = TlsSettings { server_name, ..tls.unwrap_or_default() };
    let kind = EndpointKind::Peer;
    let access = EndpointSettings { endpoint, kind, tls, credentials, decides: false };
    Ok(PeerSettings { members, access })
}

pub(super) fn tls_settings(entry: &TlsEntry) -> Result<TlsSettings, String> {
    let identity = match (&entry.cert, &entry.key) {
        (Some(cert), Some(key)) => Some(IdentityFiles { cert: cert.clone(), key: key.clone() }),
        (None, None) => None,
        (Some(_), None) => return Err("tls.cert needs tls.key".into()),
        (None, Some(_)) => return Err("tls.key needs tls.cert".into()),
    };
    let insecure_skip_verify = entry.insecure_skip_verify;
    Ok(TlsSettings {
        ca: entry.ca.clone(),
        identity,
        insecure_skip_verify,
        ..TlsSettings::default()
    })
}
