//! Whether the registry lets something be pulled.
//!
//! Threats: something other than the registry answers for it: a captive portal, a maintenance page, a load balancer without
//! a backend. It must neither let anyone in nor revoke what the registry has allowed. So a response counts only if it is one
//! of a registry: content has the headers of a registry, and a refusal has a challenge or a list of errors. A token proves
//! nothing: token services issue tokens without the requested access (token authentication specification, "Requesting a
//! Token").

use std::sync::Arc;

use serde::Deserialize;
use serde::de::IgnoredAny;
use ureq::http::{HeaderMap, header};

use super::registry::{EndpointSettings, Registry};
use super::session::{Answer, Ask, Method, Redirects};
use crate::oci::{Digest, MediaType, Repository, Upstream};
use crate::upstream::error::UpstreamError;
use crate::upstream::network::{ForeignAgents, Timeouts};
use crate::upstream::response::{
    ERROR_BODY_BYTES_MAX, content_digest, content_range, is_complete, is_registry_error, range_of,
    read_body, status_error, text, texts,
};
use crate::upstream::{DECIDED, Permission, Wanted};

/// The shortest page of a tag list. One of no tags could be answered without a look at the repository.
const SHORTEST_TAG_LIST: &str = "tags/list?n=1";
/// The largest page that is read. Some registries ignore `n`.
const TAG_LIST_BYTES_MAX: u64 = 4 * 1024 * 1024;

impl Registry {
    /// An endpoint with a client's login, whose refusal is not worth a line in the log.
    pub(in crate::upstream) fn of_client(
        upstream: &Upstream,
        endpoint: &EndpointSettings,
        timeouts: Timeouts,
        foreign: Arc<ForeignAgents>,
    ) -> Registry {
        let registry = Registry::listed(upstream, endpoint, timeouts, foreign);
        let session = registry.session.with_silent_refusals();
        let opens_with_certificate = endpoint.tls.identity.is_some();
        Registry { session, is_for_client: true, opens_with_certificate, ..registry }
    }

    /// Asks whether `wanted` may be pulled from a repository.
    ///
    /// # Errors
    /// [`UpstreamError`]: it may not, or the registry does not say. [`UpstreamError::is_not_found`] if the registry has no
    /// such content, or says so to this client.
    pub(super) fn ask_whether(
        &self,
        repository: &Repository,
        wanted: &Wanted,
    ) -> Result<Permission, UpstreamError> {
        let get = |rest: &str| self.metadata(Method::Get, repository, rest, None);
        match wanted {
            Wanted::Manifest(reference) => {
                let rest = format!("manifests/{reference}");
                let accept = Some(MediaType::ACCEPTED_MANIFESTS);
                let head = self.metadata(Method::Head, repository, &rest, accept);
                let answer = self.ask(&head)?;
                // The body of a refusal shows whether it comes from a registry, and some registries refuse HEAD.
                let answer = match is_refusal(&answer) {
                    true => self.ask(&Ask { method: Method::Get, ..head })?,
                    false => answer,
                };
                self.judge(answer, is_manifest)
            }
            Wanted::Blob(digest) => {
                let rest = format!("blobs/{digest}");
                let answer = self.ask(&self.metadata(Method::Head, repository, &rest, None))?;
                let is_shown = is_complete(answer.response.status().as_u16())
                    && is_blob(answer.response.headers(), digest);
                let answer = match is_shown {
                    true => answer,
                    // Object stores, to which registries redirect, have no headers of a registry and often no HEAD.
                    false => self.ask(&Ask { range: range_of(0, Some(1)), ..get(&rest) })?,
                };
                self.judge(answer, |headers| is_blob(headers, digest) || is_first_byte(headers))
            }
            Wanted::Lists => {
                let ask = Ask { redirects: Redirects::SameOrigin, ..get(SHORTEST_TAG_LIST) };
                let answer = self.ask(&ask)?;
                if !is_complete(answer.response.status().as_u16()) {
                    return self.judge(answer, |_| false);
                }
                let request = Arc::clone(&answer.request);
                let is_decision = self.is_decision(answer.response.headers());
                let body = read_body(answer.response, TAG_LIST_BYTES_MAX, &request)?;
                match is_decision && is_tag_list(&body) {
                    true => Ok(self.permission()),
                    false => Err(UpstreamError::bad_answer(&request, NO_DECISION)),
                }
            }
        }
    }

    /// # Errors
    /// [`UpstreamError`] unless the response has content, and comes from a registry.
    fn judge(
        &self,
        answer: Answer,
        is_content: impl Fn(&HeaderMap) -> bool,
    ) -> Result<Permission, UpstreamError> {
        let status = answer.response.status().as_u16();
        let headers = answer.response.headers().clone();
        let request = Arc::clone(&answer.request);
        let no_decision = || Err(UpstreamError::bad_answer(&request, NO_DECISION));
        if is_complete(status) || status == 206 {
            return match is_content(&headers) && self.is_decision(&headers) {
                true if self.opens_with_certificate && !self.session.has_presented_login() => {
                    Err(UpstreamError::bad_answer(&request, CERTIFICATE_DECIDES))
                }
                true => Ok(self.permission()),
                false => no_decision(),
            };
        }
        let failure = answer.failure();
        if !failure.is_denied() && !failure.is_certainly_not_found() {
            return Err(failure);
        }
        let has_challenge = texts(&headers, header::WWW_AUTHENTICATE).next().is_some();
        let body = read_body(answer.response, ERROR_BODY_BYTES_MAX, &request).unwrap_or_default();
        let is_of_registry = (status == 401 && has_challenge) || is_registry_error(&headers, &body);
        match is_of_registry && self.is_decision(&headers) {
            true if self.is_for_client => Err(status_error(status, &headers, &request)),
            true => Err(self.error(failure)),
            false => no_decision(),
        }
    }

    /// Whether a response is a decision about the client: those of a Larder that lets everyone in are not.
    fn is_decision(&self, headers: &HeaderMap) -> bool {
        !(self.is_for_client && self.larder.is_some())
            || text(headers, DECIDED.0) == Some(DECIDED.1)
    }

    fn permission(&self) -> Permission {
        Permission { was_demanded: self.session.has_presented_login() }
    }
}

/// Why a response does not count.
const NO_DECISION: &str = "it is not the decision of a registry";

const CERTIFICATE_DECIDES: &str = "the registry demands no login of a client, perhaps because of Larder's own certificate (tls.cert)";

/// Whether a response to HEAD has to be confirmed by one to GET.
fn is_refusal(answer: &Answer) -> bool {
    let status = answer.response.status().as_u16();
    matches!(status, 401 | 403 | 404 | 410) || answer.refuses_head()
}

fn is_manifest(headers: &HeaderMap) -> bool {
    let media_type = text(headers, header::CONTENT_TYPE).and_then(MediaType::parse);
    content_digest(headers).is_some() || media_type.as_ref().is_some_and(MediaType::is_manifest)
}

fn is_blob(headers: &HeaderMap, digest: &Digest) -> bool {
    content_digest(headers).as_ref() == Some(digest)
}

fn is_first_byte(headers: &HeaderMap) -> bool {
    content_range(headers).is_some_and(|range| range.start == 0 && range.end == 1)
}

fn is_tag_list(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct TagList {
        #[serde(rename = "name")]
        _name: String,
        #[serde(rename = "tags")]
        _tags: Option<Vec<IgnoredAny>>,
    }
    serde_json::from_slice::<TagList>(body).is_ok()
}
