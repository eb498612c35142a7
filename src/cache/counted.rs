//! Counts the requests to registries.
//!
//! In one place, around every request of the cache, so that none is forgotten: HEAD requests whose outcome does not
//! matter for later requests count as well, and so do lists.

use std::io::{self, Read};
use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;

use crate::metrics::Metrics;
use crate::oci::{Digest, Manifest, Reference, Repository, Tag, Upstream};
use crate::upstream::{
    BlobAsk, BlobBody, Confirmation, DocumentSink, List, ManifestHead, Permission, Source,
    UpstreamError, UpstreamErrorKind, Wanted,
};

/// A source whose requests are counted.
pub(super) struct CountedSource {
    source: Arc<dyn Source>,
    upstream: Upstream,
    metrics: Arc<Metrics>,
}

impl CountedSource {
    pub(super) fn new(
        source: Arc<dyn Source>,
        upstream: Upstream,
        metrics: Arc<Metrics>,
    ) -> CountedSource {
        CountedSource { source, upstream, metrics }
    }

    fn count<T>(&self, result: Result<T, UpstreamError>) -> Result<T, UpstreamError> {
        self.metrics.asked_upstream(self.upstream.as_str(), outcome(&result));
        result
    }
}

/// Counts the bytes of a blob as they arrive.
struct CountedReader {
    reader: Box<dyn Read + Send>,
    counter: Counter,
}

impl Read for CountedReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.counter.inc_by(read as u64);
        Ok(read)
    }
}

impl Source for CountedSource {
    fn endpoints(&self) -> usize {
        self.source.endpoints()
    }

    fn has_mirrors(&self) -> bool {
        self.source.has_mirrors()
    }

    fn is_authoritative(&self) -> bool {
        self.source.is_authoritative()
    }

    fn is_low_on_pulls(&self) -> bool {
        self.source.is_low_on_pulls()
    }

    fn resolve(
        &self,
        repository: &Repository,
        tag: &Tag,
    ) -> Result<Option<(Digest, Confirmation)>, UpstreamError> {
        self.count(self.source.resolve(repository, tag))
    }

    fn head(
        &self,
        repository: &Repository,
        tag: &Tag,
    ) -> Result<Option<(ManifestHead, Confirmation)>, UpstreamError> {
        self.count(self.source.head(repository, tag))
    }

    fn ask_to_pull(
        &self,
        repository: &Repository,
        wanted: &Wanted,
    ) -> Result<Permission, UpstreamError> {
        self.count(self.source.ask_to_pull(repository, wanted))
    }

    fn manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
        sink: &mut dyn DocumentSink,
    ) -> Result<(Digest, Manifest, Confirmation), UpstreamError> {
        self.count(self.source.manifest(repository, reference, sink))
    }

    fn blob_size(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<u64>, UpstreamError> {
        self.count(self.source.blob_size(repository, digest))
    }

    fn blob(&self, ask: &BlobAsk<'_>) -> Result<BlobBody, UpstreamError> {
        let body = self.count(self.source.blob(ask))?;
        let counter = self.metrics.received_bytes(body.sender.as_str());
        Ok(BlobBody { reader: Box::new(CountedReader { reader: body.reader, counter }), ..body })
    }

    fn tags(
        &self,
        repository: &Repository,
        query: &str,
        sink: &mut dyn DocumentSink,
    ) -> Result<List, UpstreamError> {
        self.count(self.source.tags(repository, query, sink))
    }

    fn referrers(
        &self,
        repository: &Repository,
        digest: &Digest,
        query: &str,
        sink: &mut dyn DocumentSink,
    ) -> Result<List, UpstreamError> {
        self.count(self.source.referrers(repository, digest, query, sink))
    }
}

/// The label value for the outcome of a request to a registry.
fn outcome<T>(result: &Result<T, UpstreamError>) -> &'static str {
    let Err(error) = result else { return "ok" };
    match error.kind() {
        UpstreamErrorKind::NotFound => "404",
        UpstreamErrorKind::Hidden => "hidden",
        UpstreamErrorKind::Denied { .. } => "denied",
        UpstreamErrorKind::Credentials { .. }
        | UpstreamErrorKind::CredentialsUnavailable { .. } => "credentials",
        UpstreamErrorKind::RateLimited { .. } => "429",
        UpstreamErrorKind::OutOfService => "503",
        UpstreamErrorKind::NoSpace => "no-space",
        UpstreamErrorKind::Loop => "loop",
        UpstreamErrorKind::CircuitOpen { .. } => "breaker-open",
        UpstreamErrorKind::Status { status } => match status / 100 {
            5 => "5xx",
            _ => "other-status",
        },
        UpstreamErrorKind::Unsupported | UpstreamErrorKind::NoRanges => "unsupported",
        UpstreamErrorKind::TimedOut { .. } => "timed-out",
        UpstreamErrorKind::Unreachable { .. } => "unreachable",
        UpstreamErrorKind::Proxy { .. } => "proxy",
        UpstreamErrorKind::Tls { .. } => "tls",
        UpstreamErrorKind::BadAnswer { .. } => "bad-answer",
        UpstreamErrorKind::Redirect { .. } => "redirect",
        UpstreamErrorKind::NotAllowed { .. } => "not-allowed",
        UpstreamErrorKind::ObjectStore { .. } => "object-store",
        UpstreamErrorKind::Unreadable { .. } => "unreadable",
        UpstreamErrorKind::Cancelled => "cancelled",
    }
}
