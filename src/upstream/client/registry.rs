//! One endpoint of a registry: the distribution-spec's pull and discovery requests.

use std::io::{Cursor, Read};
use std::sync::Arc;
use std::time::Instant;

use ureq::Body;
use ureq::http::{HeaderMap, Response, header};

use super::larder::{Acquaintance, LarderEndpoint};
use super::list::{ListReadError, next_query, read_referrers, read_tags};
use super::quota::RateLimit;
use super::session::{Answer, Ask, Method, Redirects, Session};
use crate::oci::{
    Algorithm, Digest, MANIFEST_BYTES_MAX, Manifest, MediaType, Reference, Repository, Tag,
    Upstream,
};
use crate::upstream::auth::Credentials;
use crate::upstream::error::{UpstreamError, UpstreamErrorKind};
use crate::upstream::network::{Endpoint, ForeignAgents, Timeouts, TlsSettings, UnlistedPorts};
use crate::upstream::response::{
    ContentRange, check_encoding, confirmation, content_digest, content_length, content_range,
    copy_body, is_complete, is_web_page, range_of, text,
};
use crate::upstream::{
    BlobAsk, BlobBody, Confirmation, DocumentSink, List, ManifestHead, Origin, Permission, Source,
    Wanted,
};
use crate::via;

/// How much of a blob with the content type of a web page is read before any of it is passed on, in bytes: more than the
/// size of a login page.
const WEB_PAGE_BYTES_MAX: u64 = 1024 * 1024;

/// The time for a request with its redirects and tokens, as a multiple of the timeout of one exchange.
const EXCHANGES_OF_FULL_LENGTH: u32 = 2;

/// What an endpoint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EndpointKind {
    /// The registry itself, or a mirror of it.
    #[default]
    Registry,
    /// A Larder, or another mirror of many registries that expects the name of the registry in `ns`. What it does not
    /// have may exist nevertheless.
    Larder,
    /// A Larder that shares its cache with this one, and is asked for what it is responsible for.
    Peer,
    /// The bucket (`objectStore`).
    Bucket,
}

impl EndpointKind {
    /// All of them.
    pub const ALL: [EndpointKind; 4] =
        [EndpointKind::Registry, EndpointKind::Larder, EndpointKind::Peer, EndpointKind::Bucket];

    /// Where its credentials are configured.
    pub(super) const fn auth_setting(self) -> &'static str {
        match self {
            EndpointKind::Registry => "registries[].auth",
            EndpointKind::Larder => "parents[].auth or registries[].auth",
            EndpointKind::Peer => "peers.auth",
            EndpointKind::Bucket => "objectStore",
        }
    }

    /// The word for it in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            EndpointKind::Registry => "registry",
            EndpointKind::Larder => "parent",
            EndpointKind::Peer => "peer",
            EndpointKind::Bucket => "bucket",
        }
    }
}

/// One entry of `registries[].endpoints`, or of `parents`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSettings {
    /// The location.
    pub endpoint: Endpoint,
    /// What it is, and with that how requests name the registry.
    pub kind: EndpointKind,
    /// The trusted authorities and the client certificate.
    pub tls: TlsSettings,
    /// The credentials.
    pub credentials: Credentials,
    /// Whether a Larder decides which clients may pull from registries that decide it, and gets the logins of clients.
    pub decides: bool,
}

impl EndpointSettings {
    /// An endpoint without credentials, with the usual trusted authorities.
    pub fn at(endpoint: Endpoint) -> EndpointSettings {
        let (tls, credentials) = (TlsSettings::default(), Credentials::default());
        let (kind, decides) = (EndpointKind::Registry, false);
        EndpointSettings { endpoint, kind, tls, credentials, decides }
    }
}

/// One endpoint of a registry.
pub(in crate::upstream) struct Registry {
    pub(super) session: Session,
    /// If it is a Larder.
    pub(super) larder: Option<LarderEndpoint>,
    /// Whether it has the login of a client.
    pub(super) is_for_client: bool,
    /// Whether it has a client certificate besides, which is Larder's.
    pub(super) opens_with_certificate: bool,
    pub(super) timeouts: Timeouts,
}

impl Registry {
    /// An endpoint from the configuration.
    pub(in crate::upstream) fn listed(
        upstream: &Upstream,
        endpoint: &EndpointSettings,
        timeouts: Timeouts,
        foreign: Arc<ForeignAgents>,
    ) -> Registry {
        Registry::acquainted(upstream, endpoint, timeouts, foreign, Arc::default())
    }

    /// As [`Registry::listed`], with what is known about the Larder at the endpoint.
    pub(in crate::upstream) fn acquainted(
        upstream: &Upstream,
        endpoint: &EndpointSettings,
        timeouts: Timeouts,
        foreign: Arc<ForeignAgents>,
        acquaintance: Arc<Acquaintance>,
    ) -> Registry {
        let is_larder = endpoint.kind != EndpointKind::Registry;
        let larder = is_larder.then(|| LarderEndpoint::new(upstream, endpoint.kind, acquaintance));
        let session = Session::listed(upstream, endpoint, timeouts, foreign);
        Registry { session, larder, is_for_client: false, opens_with_certificate: false, timeouts }
    }

    /// A registry that a client named and that is not in the configuration: https and public addresses only.
    pub(in crate::upstream) fn unlisted(
        upstream: &Upstream,
        timeouts: Timeouts,
        foreign: Arc<ForeignAgents>,
        ports: UnlistedPorts,
    ) -> Registry {
        let session = Session::unlisted(upstream, timeouts, foreign, ports);
        Registry {
            session,
            larder: None,
            is_for_client: false,
            opens_with_certificate: false,
            timeouts,
        }
    }

    pub(super) fn metadata<'a>(
        &self,
        method: Method,
        repository: &'a Repository,
        rest: &str,
        accept: Option<&'a str>,
    ) -> Ask<'a> {
        let path = format!("/v2/{repository}/{rest}");
        let path = match &self.larder {
            Some(larder) => larder.path(path),
            None => path,
        };
        Ask {
            method,
            path,
            accept,
            repository,
            redirects: Redirects::Anywhere,
            range: None,
            total: Some(self.timeouts.metadata),
            deadline: Instant::now() + self.timeouts.metadata * EXCHANGES_OF_FULL_LENGTH,
        }
    }

    pub(super) fn ask(&self, ask: &Ask<'_>) -> Result<Answer, UpstreamError> {
        let Some(larder) = &self.larder else { return self.session.ask(ask) };
        let _asking = larder.asking(&self.session, ask)?;
        let answer = larder.chain().enter(|| self.session.ask(ask))?;
        larder.learn(answer.response.headers());
        Ok(answer)
    }

    /// Sends a GET whose response must be complete, and returns the response and the request for messages.
    fn get(&self, ask: &Ask<'_>) -> Result<(Response<Body>, Arc<str>), UpstreamError> {
        let answer = self.ask(ask)?;
        match is_complete(answer.response.status().as_u16()) {
            true => Ok((answer.response, answer.request)),
            false => Err(self.error(answer.into_failure())),
        }
    }
}

impl Registry {
    /// When the registry confirmed a response: now, unless a Larder reports something else.
    fn confirmation(&self, headers: &HeaderMap) -> Confirmation {
        match self.larder {
            Some(_) => confirmation(headers),
            None => Confirmation::default(),
        }
    }

    /// The error of a response. A Larder that does not have the content does not prove that it does not exist.
    pub(super) fn error(&self, error: UpstreamError) -> UpstreamError {
        match self.larder.is_some() && error.is_not_found() {
            true => error.elsewhere(),
            false => error,
        }
    }

    /// The response to HEAD; `None` if the registry does not support it, so that GET must be used.
    fn head_of_manifest(
        &self,
        repository: &Repository,
        tag: &Tag,
    ) -> Result<Option<Answer>, UpstreamError> {
        let rest = format!("manifests/{tag}");
        let accept = Some(MediaType::ACCEPTED_MANIFESTS);
        let answer = self.ask(&self.metadata(Method::Head, repository, &rest, accept))?;
        match answer.response.status().as_u16() {
            status if is_complete(status) => Ok(Some(answer)),
            _ if answer.refuses_head() => Ok(None),
            _ => Err(self.error(answer.failure())),
        }
    }
}

impl Origin for Registry {
    fn kind(&self) -> EndpointKind {
        self.larder.as_ref().map_or(EndpointKind::Registry, LarderEndpoint::kind)
    }

    fn is_this_process(&self) -> bool {
        self.larder.as_ref().is_some_and(LarderEndpoint::is_this_process)
    }

    fn quota(&self) -> Option<RateLimit> {
        self.session.quota()
    }

    fn url(&self) -> String {
        self.session.url()
    }

    fn probe(&self) -> Result<(), UpstreamError> {
        let chain = self.larder.as_ref().map_or_else(via::current, LarderEndpoint::chain);
        chain.enter(|| self.session.probe()).map(|_| ())
    }

    fn refresh(&self) {
        self.session.refresh();
    }
}

impl Source for Registry {
    fn endpoints(&self) -> usize {
        1
    }

    fn is_low_on_pulls(&self) -> bool {
        self.session.is_low_on_pulls(Instant::now())
    }

    fn resolve(
        &self,
        repository: &Repository,
        tag: &Tag,
    ) -> Result<Option<(Digest, Confirmation)>, UpstreamError> {
        let Some(answer) = self.head_of_manifest(repository, tag)? else { return Ok(None) };
        let headers = answer.response.headers();
        Ok(content_digest(headers).map(|digest| (digest, self.confirmation(headers))))
    }

    fn head(
        &self,
        repository: &Repository,
        tag: &Tag,
    ) -> Result<Option<(ManifestHead, Confirmation)>, UpstreamError> {
        let Some(answer) = self.head_of_manifest(repository, tag)? else { return Ok(None) };
        let headers = answer.response.headers();
        let media_type = text(headers, header::CONTENT_TYPE).and_then(MediaType::parse);
        // A manifest is never empty, but some servers always report 0 for HEAD.
        let size = content_length(headers).filter(|size| *size > 0);
        let all = (content_digest(headers), media_type.filter(MediaType::is_manifest), size);
        Ok(match all {
            (Some(digest), Some(media_type), Some(size)) => {
                Some((ManifestHead { digest, media_type, size }, self.confirmation(headers)))
            }
            _ => None,
        })
    }

    fn ask_to_pull(
        &self,
        repository: &Repository,
        wanted: &Wanted,
    ) -> Result<Permission, UpstreamError> {
        self.ask_whether(repository, wanted)
    }

    fn manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
        sink: &mut dyn DocumentSink,
    ) -> Result<(Digest, Manifest, Confirmation), UpstreamError> {
        let rest = format!("manifests/{reference}");
        let accept = Some(MediaType::ACCEPTED_MANIFESTS);
        let ask = self.metadata(Method::Get, repository, &rest, accept);
        let (response, request) = self.get(&ask)?;
        check_encoding(response.headers(), &request)?;
        let reported = content_digest(response.headers());
        let confirmation = self.confirmation(response.headers());
        let content_type = text(response.headers(), header::CONTENT_TYPE).map(str::to_owned);
        sink.restart();
        let body = response.into_body().into_reader();
        copy_body(body, MANIFEST_BYTES_MAX as u64, &request, sink)?;
        let expected = match reference {
            Reference::Digest(digest) => Some(*digest),
            Reference::Tag(_) => reported,
        };
        let algorithm = expected.map_or(Algorithm::Sha256, |digest| digest.algorithm());
        let Some((actual, manifest)) = sink.parse(algorithm, content_type.as_deref()) else {
            return Err(UpstreamError::new(request, UpstreamErrorKind::NoSpace));
        };
        let manifest =
            manifest.map_err(|error| UpstreamError::bad_answer(&request, error.to_string()))?;
        match expected {
            Some(expected) if expected != actual => {
                let reason = format!("its bytes have the digest {actual}, not {expected}");
                Err(UpstreamError::bad_answer(&request, reason))
            }
            _ => Ok((actual, manifest, confirmation)),
        }
    }

    fn blob_size(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<u64>, UpstreamError> {
        let rest = format!("blobs/{digest}");
        let answer = self.ask(&self.metadata(Method::Head, repository, &rest, None))?;
        match answer.response.status().as_u16() {
            // Perhaps a captive portal: GET compares the content.
            status if is_complete(status) && is_web_page(answer.response.headers()) => Ok(None),
            status if is_complete(status) => Ok(content_length(answer.response.headers())),
            // Storage and the servers in front of it refuse HEAD in many ways.
            401 | 403 | 404 | 410 => Ok(None),
            _ if answer.refuses_head() => Ok(None),
            _ => Err(answer.failure()),
        }
    }

    fn blob(&self, ask: &BlobAsk<'_>) -> Result<BlobBody, UpstreamError> {
        let BlobAsk { repository, digest, from, to, .. } = *ask;
        let is_additional = ask.additional_to.is_some();
        let rest = format!("blobs/{digest}");
        let metadata = self.metadata(Method::Get, repository, &rest, None);
        let answer = self.ask(&Ask { total: None, range: range_of(from, to), ..metadata })?;
        let (headers, request) = (answer.response.headers(), &answer.request);
        let is_part = from > 0 || to.is_some();
        // Without support for ranges, the complete blob is useful, unless another connection receives it already.
        let without_ranges = || match is_additional {
            true => Err(UpstreamError::new(Arc::clone(request), UpstreamErrorKind::NoRanges)),
            false => self.blob(&BlobAsk { from: 0, to: None, ..*ask }),
        };
        let (start, end, size) = match answer.response.status().as_u16() {
            status if is_complete(status) && is_additional => return without_ranges(),
            status if is_complete(status) => (0, None, content_length(headers)),
            206 if is_part => match content_range(headers).filter(|range| range.start == from) {
                Some(range @ ContentRange { start, size, .. })
                    if range.may_be_last() && to.is_none() =>
                {
                    (start, None, size)
                }
                Some(ContentRange { start, end, size: Some(size) })
                    if to.is_some_and(|to| end == to.min(size)) =>
                {
                    (start, Some(end), Some(size))
                }
                // Another range than requested: the registry does not support ranges properly.
                _ => return without_ranges(),
            },
            206 => {
                let reason = "a partial response without a range in the request";
                return Err(UpstreamError::bad_answer(request, reason));
            }
            // The range was refused, or is beyond the end: fetches the complete blob instead.
            400 | 416 | 501 if is_part => return without_ranges(),
            _ => return Err(self.error(answer.into_blob_failure())),
        };
        check_encoding(headers, request)?;
        let reader = match answer.response.status().as_u16() != 206 && is_web_page(headers) {
            true => unless_it_is_a_web_page(answer.response, digest, request)?,
            false => Box::new(answer.response.into_body().into_reader()),
        };
        Ok(BlobBody { endpoint: 0, sender: self.kind(), url: self.url(), start, end, size, reader })
    }

    fn tags(
        &self,
        repository: &Repository,
        query: &str,
        sink: &mut dyn DocumentSink,
    ) -> Result<List, UpstreamError> {
        let rest = with_query("tags/list", query);
        let ask = self.metadata(Method::Get, repository, &rest, None);
        let (response, request) = self.get(&ask)?;
        check_encoding(response.headers(), &request)?;
        let next = next_page(response.headers(), &request)?;
        let reader = response.into_body().into_reader();
        read_tags(reader, repository, query, next, sink)
            .map_err(|error| error.of_request(&request, "it is not a tag list"))
    }

    fn referrers(
        &self,
        repository: &Repository,
        digest: &Digest,
        query: &str,
        sink: &mut dyn DocumentSink,
    ) -> Result<List, UpstreamError> {
        let rest = with_query(&format!("referrers/{digest}"), query);
        let accept = Some(MediaType::OCI_INDEX);
        let ask = self.metadata(Method::Get, repository, &rest, accept);
        // ghcr.io redirects referrers to a web page.
        let asked = self.ask(&Ask { redirects: Redirects::SameOrigin, ..ask });
        let unsupported = |request: &Arc<str>| {
            UpstreamError::new(Arc::clone(request), UpstreamErrorKind::Unsupported)
        };
        let asked = asked.and_then(|answer| match answer.response.status().as_u16() {
            status if is_complete(status) => Ok(answer),
            _ => Err(answer.failure()),
        });
        let answer = match asked {
            Err(error) if !error.is_trouble() || error.is_not_implemented() => {
                return Err(unsupported(error.request()));
            }
            other => other?,
        };
        let (response, request) = (answer.response, answer.request);
        let headers = response.headers();
        let filters_applied = text(headers, "oci-filters-applied").map(str::to_owned);
        let is_index = text(headers, header::CONTENT_TYPE)
            .and_then(MediaType::parse)
            .is_some_and(|media_type| media_type.as_str() == MediaType::OCI_INDEX);
        if !is_index {
            return Err(unsupported(&request));
        }
        let next = next_page(headers, &request)?;
        match read_referrers(response.into_body().into_reader(), sink) {
            Ok(()) => Ok(List { next, filters_applied }),
            Err(ListReadError::NotAList) => Err(unsupported(&request)),
            Err(error) => Err(error.of_request(&request, "it is not an index")),
        }
    }
}

/// The query of the next page. Fails if there is a next page that cannot be requested: otherwise a client would take this
/// page for the last one.
fn next_page(headers: &HeaderMap, request: &Arc<str>) -> Result<Option<String>, UpstreamError> {
    let lines = headers.get_all(header::LINK).into_iter();
    let lines: Vec<_> = lines.map(|line| String::from_utf8_lossy(line.as_bytes())).collect();
    next_query(lines.iter().map(|line| &**line)).map_err(|target| {
        let reason = format!("its link to the next page is unusable: {target}");
        UpstreamError::bad_answer(request, reason)
    })
}

/// The body of a blob with the content type of a web page.
///
/// A login page must not replace a partial download of the blob. But the blob may really be a web page (artifacts can
/// have any type), or the content type may be wrong. Therefore a body that is small enough to be a login page is read
/// completely and must have the digest. A larger body is verified like any other blob.
fn unless_it_is_a_web_page(
    response: Response<Body>,
    digest: &Digest,
    request: &Arc<str>,
) -> Result<Box<dyn Read + Send>, UpstreamError> {
    let mut reader = response.into_body().into_reader();
    let mut head = Vec::new();
    let read = reader.by_ref().take(WEB_PAGE_BYTES_MAX).read_to_end(&mut head);
    read.map_err(|error| UpstreamError::from_body(request, error))?;
    let is_all = (head.len() as u64) < WEB_PAGE_BYTES_MAX;
    if is_all && Digest::of(digest.algorithm(), &head) != *digest {
        return Err(UpstreamError::bad_answer(request, "it is a web page"));
    }
    Ok(Box::new(Cursor::new(head).chain(reader)))
}

fn with_query(path: &str, query: &str) -> String {
    if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
}
