//! What the cache offers to modules that serve clients, as far as it depends on who the client is.

use super::{AccessError, AccessLookup, Link, Login, Pass, PullAccess, enter};
use crate::cache::Cache;
use crate::oci::{Digest, ImageName};
use crate::upstream::{PeerProof, Wanted};

impl Cache {
    /// The same cache, which fetches content with this login.
    pub fn with_pass(&self, pass: Option<Pass>) -> Cache {
        Cache { pass, ..self.clone() }
    }

    pub(in crate::cache) fn as_client<T>(&self, work: impl FnOnce() -> T) -> T {
        enter(self.pass.clone(), work)
    }

    /// The same cache for a client that may pull some repositories only: it gets a cached blob where it is proven that the
    /// repository contains it.
    #[must_use]
    pub fn for_restricted_client(self) -> Cache {
        Cache { needed_link: Link::Proven, ..self }
    }

    /// Whether enough is known of a blob and a repository for this client.
    pub fn is_linked(&self, name: &ImageName, digest: &Digest) -> bool {
        self.services.blobs.is_linked(name, digest, self.needed_link)
    }

    /// A peer has checked that a repository contains a blob.
    pub fn trust_link(&self, name: &ImageName, digest: &Digest) {
        self.services.blobs.remember_link(name, digest);
    }

    /// Whether a request that claims to be from a peer is from one, by the user and the password that it presents.
    pub fn peer_proof(&self, login: Option<(&str, &str)>) -> PeerProof {
        self.core().sources.peer_proof(login)
    }

    /// Who decides which clients may pull a repository.
    pub fn access(&self, name: &ImageName) -> PullAccess {
        let settings = self.core().settings();
        match settings.rules.is_own(name) {
            true => PullAccess::Server,
            false => settings.access.of(name),
        }
    }

    /// Whether there is content that not everyone may pull who may use this server.
    pub fn has_private_content(&self) -> bool {
        self.core().settings().access.keeps_links()
    }

    /// Whether the registry decides about any repository.
    pub fn has_client_access(&self) -> bool {
        self.core().settings().access.has_clients()
    }

    /// Whether a login may pull `wanted` from a repository, according to its registry. Does not wait for anything but the
    /// local disk.
    ///
    /// # Errors
    /// [`AccessError`] if it is known that it may not.
    pub fn check_login(
        &self,
        name: &ImageName,
        login: &Login,
        wanted: Wanted,
    ) -> Result<AccessLookup, AccessError> {
        self.services.access.check(name, login, wanted, self.client)
    }
}
