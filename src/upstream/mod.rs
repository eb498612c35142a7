//! One upstream registry: asking it for manifests, blobs and lists over HTTP.
//!
//! [`Registries`] finds the [`Source`] of a registry: its endpoints in order, each behind a circuit
//! breaker, each a session of its own with tokens, credentials and TLS. Calls block and
//! are made from fetcher threads only. Every wait in here is bounded: resolving, connecting, the
//! answer's head, and the silence between two reads of a body. A body as a whole is not: a large layer
//! on a slow link takes the time it takes.
//!
//! This room must not know that a cache, a disk or clients exist.
//!
//! # Rules that protect others
//! * What is asked does not depend on the client: fixed `Accept`, `Accept-Encoding: identity`.
//! * Redirects are followed by hand: `Authorization` stays with its scheme, host and port, https never
//!   becomes http, and every address that is dialled is checked ([`guard`](Registries)).
//! * A proxy is asked for what may be dialled without one, and for nothing else; it gets its own
//!   credentials and nobody else gets them.
//! * A token realm is asked only if it belongs to the registry that names it.
//! * Metadata services of clouds are asked by `aws` alone, at addresses that no registry can choose.

mod auth;
mod client;
mod endpoints;
mod error;
mod network;
mod response;

use std::io::Read;
use std::sync::Arc;

use crate::oci::{Digest, Manifest, MediaType, Reference, Repository, Tag, Upstream};

pub use auth::{
    AwsEnvironment, ContainerEndpoint, Credentials, EcrRegistry, EcrSettings, HelperProgram,
    HelperSettings, RepositoryPrefix, Secret,
};
pub use client::{EndpointSettings, RateLimit, TagListWriter};
pub use endpoints::{
    BreakerPolicy, BreakerState, EndpointFailures, EndpointStatus, Registries, RegistryChanges,
    RegistrySettings, Settings, UnlistedRegistries, UpstreamStatus,
};
pub use error::{UpstreamError, UpstreamErrorKind};
pub use network::{
    ApiPath, Endpoint, NoProxy, ParseProxyError, Proxy, ProxySettings, Scheme, Timeouts,
    TlsSettings, UnlistedPorts,
};

/// Finds the source of a registry's content. The seam behind which tests put a fake.
pub trait Sources: Send + Sync {
    /// The source for `upstream`.
    ///
    /// # Errors
    /// [`UpstreamErrorKind::NotAllowed`] if this registry may not be dialled.
    fn source(&self, upstream: &Upstream) -> Result<Arc<dyn Source>, UpstreamError>;

    /// Whether a registry may be dialled, and what is known of it. Asks nothing and waits for nothing.
    ///
    /// # Errors
    /// [`UpstreamErrorKind::NotAllowed`] if it may not be dialled.
    fn standing(&self, upstream: &Upstream) -> Result<Standing, UpstreamError>;

    /// What is known of the registries' health, sorted by name.
    fn statuses(&self) -> Vec<UpstreamStatus>;
}

/// What the operator and experience say about a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is in the configuration.
    Listed,
    /// It is not, and it has answered before.
    Unlisted,
    /// It is not, and it has never answered.
    Unproven,
}

/// One registry, as the cache sees it. All calls block, within the bounds that this room promises.
pub trait Source: Send + Sync {
    /// How many endpoints the registry has.
    fn endpoints(&self) -> usize;

    /// What `tag` is now, by HEAD, which rate limits do not count. `None` if the registry answers
    /// HEAD in a way that does not tell (no digest header, 405).
    ///
    /// # Errors
    /// [`UpstreamError`]; [`UpstreamError::is_not_found`] if there is no such tag.
    fn resolve(&self, repository: &Repository, tag: &Tag) -> Result<Option<Digest>, UpstreamError>;

    /// What HEAD says of `tag`: all that an answer to a client's HEAD needs. `None` if it does not tell, or
    /// may not be asked so.
    ///
    /// # Errors
    /// As [`Source::resolve`].
    fn head(&self, _: &Repository, _: &Tag) -> Result<Option<ManifestHead>, UpstreamError> {
        Ok(None)
    }

    /// The manifest, verified against the digest asked for, or told by the registry.
    ///
    /// # Errors
    /// [`UpstreamError`].
    fn manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<(Digest, Manifest), UpstreamError>;

    /// The blob's size by HEAD; `None` if the registry does not tell.
    ///
    /// # Errors
    /// [`UpstreamError`]; [`UpstreamError::is_not_found`] if there is no such blob.
    fn blob_size(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<u64>, UpstreamError>;

    /// The blob from offset `from`, or from an earlier one if the registry does not do ranges. The
    /// bytes are not verified here. Always asked at the registry's own URL: where it redirects to is
    /// signed for a while only.
    ///
    /// # Errors
    /// [`UpstreamError`].
    fn blob(&self, ask: &BlobAsk<'_>) -> Result<BlobBody, UpstreamError>;

    /// A page of the tag list; `query` is `n=…&last=…` or empty. The document goes to `sink`.
    ///
    /// # Errors
    /// [`UpstreamError`]. What was written to `sink` is then worth nothing.
    fn tags(
        &self,
        repository: &Repository,
        query: &str,
        sink: &mut dyn ListSink,
    ) -> Result<List, UpstreamError>;

    /// The manifests that refer to `digest`; `query` may filter and page. The document goes to `sink`.
    ///
    /// # Errors
    /// [`UpstreamErrorKind::Unsupported`] if the registry does not offer the referrers API, however it
    /// says so. What was written to `sink` is then worth nothing.
    fn referrers(
        &self,
        repository: &Repository,
        digest: &Digest,
        query: &str,
        sink: &mut dyn ListSink,
    ) -> Result<List, UpstreamError>;
}

/// A manifest as the head of an answer describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestHead {
    /// Its digest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: MediaType,
    /// Its size in bytes.
    pub size: u64,
}

/// Which bytes of which blob are wanted.
#[derive(Debug, Clone, Copy)]
pub struct BlobAsk<'a> {
    /// The repository.
    pub repository: &'a Repository,
    /// The blob.
    pub digest: &'a Digest,
    /// The offset of the first byte wanted.
    pub from: u64,
    /// How the endpoints have fared with this blob so far.
    pub endpoint_failures: &'a EndpointFailures,
}

/// A blob that is arriving.
pub struct BlobBody {
    /// The endpoint that sends it, counted from 0, for [`EndpointFailures::add`].
    pub endpoint: usize,
    /// The offset of the first byte that comes.
    pub start: u64,
    /// The size of the whole blob in bytes, where the registry tells.
    pub size: Option<u64>,
    /// The bytes. Ends early with an error if the connection does; `Interrupted` is none, and asks to
    /// be called again.
    pub reader: Box<dyn Read + Send>,
}

/// Takes the document of a list as it arrives, so that nobody needs memory for all of it.
pub trait ListSink {
    /// Drops what was written: another endpoint is asked, or a page is cut out of the list.
    fn restart(&mut self);

    /// Appends to the document.
    fn write(&mut self, bytes: &[u8]);
}

/// An answer that changes with time: a page of tags, the referrers of a manifest. Its document is in a
/// [`ListSink`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct List {
    /// The query of the next page.
    pub next: Option<String>,
    /// `OCI-Filters-Applied`.
    pub filters_applied: Option<String>,
}
