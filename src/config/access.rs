//! Who decides which clients may pull: `registries[].access`, and the keys that belong to it.

use super::ConfigError;
use super::file::{AccessName, BlobsName, EndpointEntry, File, RegistryEntry};
use super::oidc;
use super::registry::settings;
use crate::cache::{AccessPolicy, BlobAccess, PullAccess, RegistryAccess};

/// The access policy of a file.
///
/// # Errors
/// [`ConfigError::Registry`] if two entries contradict each other, or if no endpoint could decide.
pub(super) fn policy(file: &File) -> Result<AccessPolicy, ConfigError> {
    let of_registry = |entry: &RegistryEntry| Ok((entry.name.0.clone(), registry(entry)?));
    Ok(AccessPolicy {
        by_upstream: file.registries.iter().map(of_registry).collect::<Result<_, _>>()?,
        ttl: file.access_ttl.0.0,
        offline: file.access_offline.0.0,
        blobs: match file.blobs {
            BlobsName::Linked => BlobAccess::Linked,
            BlobsName::Any => BlobAccess::Any,
        },
        restricted_to: oidc::restricted_to(file),
    })
}

fn registry(entry: &RegistryEntry) -> Result<RegistryAccess, ConfigError> {
    let refuse =
        |reason: String| Err(ConfigError::Registry { name: entry.name.0.to_string(), reason });
    let endpoints = entry.endpoints.iter().flatten();
    let of_endpoints = endpoints.flat_map(|EndpointEntry(each)| &each.repositories);
    let mut parts = Vec::new();
    for part in entry.repositories.iter().chain(of_endpoints) {
        let Some(access) = part.access else { continue };
        let prefix = part.prefix.0.prefix().clone();
        if parts.iter().any(|(before, _)| *before == prefix) {
            return refuse(format!("repositories: access for {prefix} is given twice: keep one"));
        }
        parts.push((prefix, pull_access(access)));
    }
    let access = RegistryAccess { parts, otherwise: pull_access(entry.access) };
    let has_clients = access.otherwise == PullAccess::Client
        || access.parts.iter().any(|(_, access)| *access == PullAccess::Client);
    if has_clients && settings(entry)?.itself().is_none() {
        return refuse(
            "with access: client, one of the endpoints must be the registry itself, which gets the passwords of \
             clients: the only one of kind registry, or the one with the registry's address"
                .into(),
        );
    }
    Ok(access)
}

fn pull_access(name: AccessName) -> PullAccess {
    match name {
        AccessName::Server => PullAccess::Server,
        AccessName::Client => PullAccess::Client,
    }
}
