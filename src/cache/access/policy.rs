//! Who decides which clients may pull a repository. Pure.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use crate::oci::{ImageName, Upstream};
use crate::upstream::RepositoryPrefix;

/// Who decides which clients may pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PullAccess {
    /// This server: everyone who may use it.
    #[default]
    Server,
    /// The registry, with the credentials of the client.
    Client,
}

/// Which clients may pull what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessPolicy {
    /// By registry. The others are open to everyone who may use this server.
    pub by_upstream: HashMap<Upstream, RegistryAccess>,
    /// How long a registry's permission is used before it is asked again.
    pub ttl: Duration,
    /// How long the registry's last permission is used while it cannot be asked.
    pub offline: Duration,
    /// In which repositories cached blobs are served.
    pub blobs: BlobAccess,
    /// If some clients may pull only some repositories, according to their tokens: the registries that these rules name.
    pub restricted_to: Option<BTreeSet<Upstream>>,
}

/// Who decides about the repositories of a registry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RegistryAccess {
    /// For parts of the registry. The longest prefix that covers a repository counts.
    pub parts: Vec<(RepositoryPrefix, PullAccess)>,
    /// For all other repositories.
    pub otherwise: PullAccess,
}

/// In which repositories cached blobs are served. For repositories whose registry decides who may pull, it is always
/// [`BlobAccess::Linked`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BlobAccess {
    /// In those that contain them, according to a cached manifest or the registry.
    #[default]
    Linked,
    /// In all of them.
    Any,
}

/// What is known of a blob and a repository, and what a client needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::cache) enum Link {
    /// The repository contains the blob.
    Proven,
    /// A cached manifest names the blob, or the registry cannot be asked. Not sufficient for private blobs.
    Assumed,
}

/// The default of `accessTtl`.
const TTL: Duration = Duration::from_secs(10 * 60);
/// The default of `accessOffline`.
const OFFLINE: Duration = Duration::from_secs(7 * 24 * 3600);

impl Default for AccessPolicy {
    fn default() -> AccessPolicy {
        AccessPolicy {
            by_upstream: HashMap::new(),
            ttl: TTL,
            offline: OFFLINE,
            blobs: BlobAccess::default(),
            restricted_to: None,
        }
    }
}

impl AccessPolicy {
    /// Who decides about a repository.
    pub fn of(&self, name: &ImageName) -> PullAccess {
        let Some(registry) = self.by_upstream.get(&name.upstream) else {
            return PullAccess::Server;
        };
        let part = RepositoryPrefix::longest(&registry.parts, &name.repository);
        part.copied().unwrap_or(registry.otherwise)
    }

    /// Whether the registry of a repository decides.
    pub fn is_private(&self, name: &ImageName) -> bool {
        self.of(name) == PullAccess::Client
    }

    /// Whether any registry decides.
    pub fn has_clients(&self) -> bool {
        let all = self.by_upstream.values();
        all.flat_map(|registry| {
            registry.parts.iter().map(|(_, access)| *access).chain([registry.otherwise])
        })
        .any(|access| access == PullAccess::Client)
    }

    /// Whether it is recorded which repositories contain which blobs, because not everyone may pull everything.
    pub fn keeps_links(&self) -> bool {
        self.restricted_to.is_some() || self.has_clients()
    }

    /// What clients need to know at most of a blob and a repository.
    pub(in crate::cache) fn strictest_link(&self) -> Link {
        if self.restricted_to.is_some() { Link::Proven } else { Link::Assumed }
    }

    /// Whether a rule for some repositories names a registry.
    pub(in crate::cache) fn is_named(&self, upstream: &Upstream) -> bool {
        self.restricted_to.as_ref().is_some_and(|named| named.contains(upstream))
    }

    /// In which repositories the blobs of this one are served.
    pub fn blobs_of(&self, name: &ImageName) -> BlobAccess {
        match self.of(name) {
            PullAccess::Client => BlobAccess::Linked,
            PullAccess::Server => self.blobs,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::PartReference;

    #[test]
    fn the_longest_prefix_decides_and_other_registries_are_open() {
        let part = |prefix: &str, access| (prefix.parse().unwrap(), access);
        let registry = RegistryAccess {
            parts: vec![
                part("team", PullAccess::Server),
                part("team/secret", PullAccess::Client),
                part("team/secret/docs", PullAccess::Server),
            ],
            otherwise: PullAccess::Client,
        };
        let by_upstream = [("quay.io".parse().unwrap(), registry)].into();
        let policy =
            AccessPolicy { by_upstream, blobs: BlobAccess::Any, ..AccessPolicy::default() };
        for (text, access) in [
            ("quay.io/other", PullAccess::Client),
            ("quay.io/team/app", PullAccess::Server),
            ("quay.io/team/secret", PullAccess::Client),
            ("quay.io/team/secrets", PullAccess::Server),
            ("quay.io/team/secret/docs/a", PullAccess::Server),
            ("ghcr.io/team/secret", PullAccess::Server),
        ] {
            let name = PartReference::parse(text).unwrap().name;
            assert_eq!(policy.of(&name), access, "{text}");
            let linked = policy.blobs_of(&name) == BlobAccess::Linked;
            assert_eq!(linked, access == PullAccess::Client, "{text}");
        }
        assert!(policy.has_clients() && !AccessPolicy::default().has_clients());
    }
}
