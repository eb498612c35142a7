//! Upstream registries: fetches manifests, blobs and lists from them over HTTP.
//!
//! [`Registries`] returns the [`Source`] of a registry. A source has one or more endpoints, which are tried in order.
//! Each endpoint has a circuit breaker and its own session with tokens, credentials and TLS. Calls block and are made
//! from fetcher threads only. Every wait is bounded: DNS, connecting, the response headers, and the time between two
//! reads of a body. The total time of a blob's body is not bounded, since a large layer may take long on a slow link.
//!
//! This module does not know the cache, the disk or clients. Its folders depend on one another in one direction:
//! `endpoints` uses `client`, which uses `auth`, which uses `network`. `object_store` uses `auth` and `network`; an object
//! store is not a registry, and is dialled at the configured endpoint only.
//!
//! # Security rules
//! * Requests do not depend on the client: `Accept` is fixed, and `Accept-Encoding` is `identity`.
//! * Redirects are followed here and not by the HTTP library. `Authorization` is sent to its own scheme, host and port
//!   only, a redirect never leads from https to http, and every address is checked before it is dialled.
//! * A proxy is used only for hosts that Larder may dial directly. Only the proxy gets the proxy's credentials.
//! * Credentials are sent to a token realm only if it has the same owner as the registry that names it.
//! * Only `auth::aws` contacts the metadata services of clouds, at addresses that no registry can choose.

mod auth;
mod check;
mod client;
mod endpoints;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod issuer;
mod network;
mod object_store;
mod response;
mod webhook;

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use crate::oci::{
    Algorithm, Digest, ImageName, Manifest, ManifestError, MediaType, Reference, Repository, Tag,
    TagRecord, Upstream,
};

pub use auth::{
    AwsEnvironment, ContainerEndpoint, Credentials, EcrRegistry, EcrSettings, FixedKeys,
    HelperProgram, HelperSettings, KeySettings, RepositoryPrefix, Secret, SecretSource,
};
pub use check::{CheckState, CheckStep, EndpointCheck};
pub use client::{EndpointKind, EndpointSettings, RateLimit, TagListWriter};
pub use endpoints::{
    BreakerPolicy, BreakerState, Bucket, EndpointFailures, EndpointStatus, PeerMembers,
    PeerSettings, PeerStatus, RECORD_BYTES_MAX, Registries, RegistryChanges, RegistrySettings,
    Settings, Throttle, Throttled, UnlistedRegistries, UpstreamStatus,
};
pub use error::{UpstreamError, UpstreamErrorKind};
pub use issuer::{DiscoverySettings, IssuerClient, IssuerUrl};
pub use network::{
    ApiPath, Endpoint, NoProxy, ParseProxyError, Proxy, ProxySettings, Scheme, Timeouts,
    TlsSettings, UnlistedPorts,
};
pub use object_store::{
    Addressing, ClockSkew, Condition, ListedObject, Object, ObjectHead, ObjectStore,
    ObjectStoreSettings, Page, Probe, Put, ReadObject, UploadSource,
};

pub use webhook::{Webhook, WebhookSettings, WebhookUrl};

/// The header of a Larder's response by which it states that the registry has let the client pull.
pub const DECIDED: (&str, &str) = ("Larder-Access", "client");

/// Finds the source of a registry's content. Tests implement it with a fake.
pub trait Sources: Send + Sync {
    /// The source for `upstream`.
    ///
    /// # Errors
    /// [`UpstreamErrorKind::NotAllowed`] if this registry may not be dialled.
    fn source(&self, upstream: &Upstream) -> Result<Arc<dyn Source>, UpstreamError>;

    /// Whether a registry may be dialled, and what is known about it. Makes no requests and does not block.
    ///
    /// # Errors
    /// [`UpstreamErrorKind::NotAllowed`] if it may not be dialled.
    fn standing(&self, upstream: &Upstream) -> Result<Standing, UpstreamError>;

    /// What the bucket has of a registry; `None` without a bucket. The registry is not contacted.
    fn bucket(&self, _upstream: &Upstream) -> Option<Arc<dyn Source>> {
        None
    }

    /// The bucket's record of a tag.
    ///
    /// # Errors
    /// [`UpstreamError`]: it has none, it fails, or there is no bucket.
    fn tag_in_bucket(&self, name: &ImageName, _tag: &Tag) -> Result<TagRecord, UpstreamError> {
        Err(UpstreamError::new(name.to_string(), UpstreamErrorKind::Unsupported))
    }

    /// Whether others are asked for the blobs of a registry as well: peers, parents or the bucket.
    fn asks_others(&self, _upstream: &Upstream) -> bool {
        false
    }

    /// The health of the bucket, as far as what clients wait for is concerned.
    fn bucket_status(&self) -> Option<EndpointStatus> {
        None
    }

    /// The bucket, for uploads.
    fn shared_bucket(&self) -> Option<Bucket> {
        None
    }

    /// The source of a registry's content with the login of a client, which only the registry itself receives. It knows
    /// nothing of earlier requests, except whether the registry answers.
    ///
    /// # Errors
    /// [`UpstreamErrorKind::NotAllowed`] if the registry is not listed.
    fn source_for(
        &self,
        upstream: &Upstream,
        _login: Credentials,
    ) -> Result<Arc<dyn Source>, UpstreamError> {
        let reason = "it is not listed".into();
        Err(UpstreamError::new(upstream.as_str(), UpstreamErrorKind::NotAllowed { reason }))
    }

    /// Whether the configuration has credentials for a repository.
    fn has_credentials(&self, _name: &ImageName) -> bool {
        true
    }

    /// Tries everything that a pull needs: see [`Registries::check`].
    ///
    /// # Errors
    /// [`UpstreamErrorKind::NotAllowed`] if the registry may not be dialled.
    fn check(
        &self,
        _upstream: &Upstream,
        _image: Option<(&Repository, &Reference)>,
    ) -> Result<Vec<EndpointCheck>, UpstreamError> {
        Ok(Vec::new())
    }

    /// The health of all registries used so far, sorted by name.
    fn statuses(&self) -> Vec<UpstreamStatus>;

    /// Whether a request that claims to be from a peer is from one, by the user and the password that it presents.
    fn peer_proof(&self, _login: Option<(&str, &str)>) -> PeerProof {
        PeerProof::Missing
    }

    /// The members of the group of this process, itself included, with their ranks for some content: a digest, or
    /// `repository:tag`.
    fn peers(&self, _content: Option<&str>) -> Vec<PeerStatus> {
        Vec::new()
    }
}

/// How much a registry is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is in the configuration.
    Listed,
    /// It is not in the configuration, but has returned content before.
    Unlisted,
    /// It is not in the configuration and has never returned content.
    Unproven,
}

/// Whether a request is from a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerProof {
    /// It presents the credentials of the group (`peers.auth`).
    Proven,
    /// The group has no credentials, so anyone may claim it.
    Unproven,
    /// It does not present them, or there is no group.
    Missing,
}

/// That a registry lets something be pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permission {
    /// Whether the registry has demanded the login. One that it lets in without any was not checked.
    pub was_demanded: bool,
}

/// What a client wants to pull.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// A manifest.
    Manifest(Reference),
    /// A blob.
    Blob(Digest),
    /// A list of tags or referrers.
    Lists,
}

/// One registry, as the cache sees it. All calls block, for a bounded time.
pub trait Source: Send + Sync {
    /// How many endpoints the registry has.
    fn endpoints(&self) -> usize;

    /// Whether another endpoint can answer while one limits the rate of requests.
    fn has_mirrors(&self) -> bool {
        self.endpoints() > 1
    }

    /// Whether its answers are the registry's: that content does not exist, or that the registry fails.
    fn is_authoritative(&self) -> bool {
        true
    }

    /// Whether so little is left of the registry's rate limit that it should be kept for clients.
    fn is_low_on_pulls(&self) -> bool {
        false
    }

    /// The current digest of `tag`, by HEAD, which does not count against rate limits. `None` if the response to HEAD
    /// does not contain it (no digest header, 405).
    ///
    /// # Errors
    /// [`UpstreamError`]; [`UpstreamError::is_not_found`] if there is no such tag.
    fn resolve(
        &self,
        repository: &Repository,
        tag: &Tag,
    ) -> Result<Option<(Digest, Confirmation)>, UpstreamError>;

    /// What HEAD returns for `tag`: all that the response to a client's HEAD needs. `None` if the registry's response
    /// lacks a part of it, or if the registry does not support HEAD.
    ///
    /// # Errors
    /// As [`Source::resolve`].
    fn head(
        &self,
        _: &Repository,
        _: &Tag,
    ) -> Result<Option<(ManifestHead, Confirmation)>, UpstreamError> {
        Ok(None)
    }

    /// Whether the registry lets `wanted` be pulled from a repository. Neither peers nor the bucket are asked: what they
    /// have does not depend on the repository.
    ///
    /// # Errors
    /// [`UpstreamError`]: [`UpstreamError::is_denied`] and [`UpstreamError::is_not_found`] are refusals; with other errors
    /// it is not known.
    fn ask_to_pull(
        &self,
        repository: &Repository,
        wanted: &Wanted,
    ) -> Result<Permission, UpstreamError>;

    /// The manifest, verified against the requested digest, or for a tag against the digest that the registry reports,
    /// and when that was confirmed. Its bytes are written to `sink`.
    ///
    /// # Errors
    /// [`UpstreamError`].
    fn manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
        sink: &mut dyn DocumentSink,
    ) -> Result<(Digest, Manifest, Confirmation), UpstreamError>;

    /// The blob's size by HEAD; `None` if the registry does not report it.
    ///
    /// # Errors
    /// [`UpstreamError`]; [`UpstreamError::is_not_found`] if there is no such blob.
    fn blob_size(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<u64>, UpstreamError>;

    /// The blob from offset `from`, or from an earlier one if the registry does not support ranges. The bytes are not
    /// verified here. Each request goes to the registry's own URL, since the target of a redirect is signed for a
    /// limited time.
    ///
    /// # Errors
    /// [`UpstreamError`].
    fn blob(&self, ask: &BlobAsk<'_>) -> Result<BlobBody, UpstreamError>;

    /// A page of the tag list; `query` is `n=…&last=…` or empty. The document is written to `sink`.
    ///
    /// # Errors
    /// [`UpstreamError`]. The contents of `sink` must then be discarded.
    fn tags(
        &self,
        repository: &Repository,
        query: &str,
        sink: &mut dyn DocumentSink,
    ) -> Result<List, UpstreamError>;

    /// The manifests that refer to `digest`; `query` may filter and page. The document is written to `sink`.
    ///
    /// # Errors
    /// [`UpstreamErrorKind::Unsupported`] if the registry does not support the referrers API, however it reports
    /// this. The contents of `sink` must then be discarded.
    fn referrers(
        &self,
        repository: &Repository,
        digest: &Digest,
        query: &str,
        sink: &mut dyn DocumentSink,
    ) -> Result<List, UpstreamError>;
}

/// A place that has content of one registry: an endpoint of it, a Larder, or the bucket.
trait Origin: Source {
    /// Scheme, host and port, and a path if it has one.
    fn url(&self) -> String;

    /// Checks whether it answers.
    ///
    /// # Errors
    /// [`UpstreamError`] if it does not, or reports a server error.
    fn probe(&self) -> Result<(), UpstreamError>;

    /// What it is.
    fn kind(&self) -> EndpointKind;

    /// Its record of a tag, which only the bucket has.
    ///
    /// # Errors
    /// [`UpstreamError`].
    fn tag_record(&self, _: &Repository, _: &Tag) -> Result<TagRecord, UpstreamError> {
        Err(UpstreamError::new(self.url(), UpstreamErrorKind::Unsupported))
    }

    /// The rate limit that it reported last.
    fn quota(&self) -> Option<RateLimit> {
        None
    }

    /// [`Registries::refresh`], for this place.
    fn refresh(&self) {}

    /// Whether it is known to be this process.
    fn is_this_process(&self) -> bool {
        false
    }
}

/// When the registry confirmed what a response says about a tag. A Larder in between answers from its cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Confirmation {
    /// How long ago (`Age`, RFC 9111, section 5.1).
    pub age: Duration,
    /// Whether it should have been confirmed again, and could not be (`Warning: 110`).
    pub is_stale: bool,
    /// Whether that Larder has held the move of the tag to this manifest before it accepted it (`Larder-Hold: passed`).
    pub is_vetted: bool,
}

/// A manifest as response headers describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestHead {
    /// Its digest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: MediaType,
    /// Its size in bytes.
    pub size: u64,
}

/// A request for a blob or a part of it.
#[derive(Debug, Clone, Copy)]
pub struct BlobAsk<'a> {
    /// The repository.
    pub repository: &'a Repository,
    /// The blob.
    pub digest: &'a Digest,
    /// The offset of the first byte to fetch.
    pub from: u64,
    /// The offset after the last byte to fetch; `None` for the end of the blob.
    pub to: Option<u64>,
    /// The endpoint from which another connection is receiving the blob. Then only this endpoint is asked, only the
    /// requested part is useful, and a failure says nothing about the endpoint: it may limit the number of connections.
    pub additional_to: Option<usize>,
    /// How often each endpoint has failed to deliver this blob.
    pub endpoint_failures: &'a EndpointFailures,
}

/// A blob that is arriving.
pub struct BlobBody {
    /// The endpoint that sends it, counted from 0, for [`EndpointFailures::add`].
    pub endpoint: usize,
    /// What sends it.
    pub sender: EndpointKind,
    /// The scheme, host and port of the endpoint, and its path if it has one, for the log.
    pub url: String,
    /// The offset of the first byte in `reader`.
    pub start: u64,
    /// The offset after its last byte, if the registry sends less than the rest of the blob.
    pub end: Option<u64>,
    /// The size of the complete blob in bytes, if the registry reports it.
    pub size: Option<u64>,
    /// The bytes. Fails if the connection breaks. `Interrupted` is not a failure: the caller should read again.
    pub reader: Box<dyn Read + Send>,
}

/// Receives the bytes of a manifest or a list in pieces, so that they need not fit into memory.
pub trait DocumentSink {
    /// Discards what was written: another endpoint is tried, or a page is cut out of the list.
    fn restart(&mut self);

    /// Appends to the document.
    fn write(&mut self, bytes: &[u8]);

    /// The digest of the complete document, and what it is as a manifest: see [`Manifest::parse`]. `None` if there was no
    /// space for the document.
    fn parse(
        &mut self,
        algorithm: Algorithm,
        content_type: Option<&str>,
    ) -> Option<(Digest, Result<Manifest, ManifestError>)>;
}

/// A response that changes over time: a page of tags or the referrers of a manifest. Its document is in a
/// [`DocumentSink`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct List {
    /// The query of the next page.
    pub next: Option<String>,
    /// `OCI-Filters-Applied`.
    pub filters_applied: Option<String>,
}
