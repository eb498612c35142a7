//! Whether the registry lets something be pulled.
//!
//! A token proves nothing: token services issue tokens without the requested access (token authentication specification,
//! "Requesting a Token"). Only a response to a request for content does, and only if it comes from a registry: a captive
//! portal answers everything with a web page.

use std::sync::Arc;

use ureq::http::{HeaderMap, header};

use super::registry::Registry;
use super::session::{Answer, Ask, Method};
use crate::oci::{MediaType, Repository};
use crate::upstream::error::{UpstreamError, UpstreamErrorKind};
use crate::upstream::response::{content_digest, is_complete, is_web_page, range_of, text};
use crate::upstream::{DECIDED, Wanted};

/// The shortest page of a tag list. One of no tags could be answered without a look at the repository.
const SHORTEST_TAG_LIST: &str = "tags/list?n=1";

impl Registry {
    /// Asks whether `wanted` may be pulled from a repository. If the registry does not have it, the repository may be
    /// pulled nevertheless, which the tag list shows; a blob must be there.
    ///
    /// # Errors
    /// [`UpstreamError`]: it may not, or the registry does not say. [`UpstreamError::is_not_found`] if the registry has no
    /// such content, or says so to this client.
    pub(super) fn ask_whether(
        &self,
        repository: &Repository,
        wanted: &Wanted,
    ) -> Result<(), UpstreamError> {
        let is_silent =
            |error: &UpstreamError| error.is_certainly_not_found() || error.is_unsupported();
        match self.ask_for(repository, wanted) {
            Err(refused) if matches!(wanted, Wanted::Manifest(_)) && is_silent(&refused) => {
                match self.ask_for(repository, &Wanted::Lists) {
                    Err(error) if !is_silent(&error) => Err(error),
                    listed => listed.map_err(|_| refused),
                }
            }
            asked => asked,
        }
    }

    fn ask_for(&self, repository: &Repository, wanted: &Wanted) -> Result<(), UpstreamError> {
        let head = |rest: &str, accept| self.metadata(Method::Head, repository, rest, accept);
        let get = |rest: &str| self.metadata(Method::Get, repository, rest, None);
        match wanted {
            Wanted::Manifest(reference) => {
                let ask =
                    head(&format!("manifests/{reference}"), Some(MediaType::ACCEPTED_MANIFESTS));
                self.accepted(self.ask(&ask)?, is_manifest)
            }
            Wanted::Blob(digest) => {
                let rest = format!("blobs/{digest}");
                let answer = self.ask(&head(&rest, None))?;
                // The targets of redirects are often signed for GET only.
                if answer.refuses_head() {
                    let ask = Ask { range: range_of(0, Some(1)), ..get(&rest) };
                    return self.accepted(self.ask(&ask)?, |headers| !is_web_page(headers));
                }
                self.accepted(answer, |headers| !is_web_page(headers))
            }
            Wanted::Lists => self.accepted(self.ask(&get(SHORTEST_TAG_LIST))?, is_json),
        }
    }

    /// # Errors
    /// [`UpstreamError`] unless the response has content, and comes from a registry, or from a Larder that has asked one.
    fn accepted(
        &self,
        answer: Answer,
        is_of_registry: impl Fn(&HeaderMap) -> bool,
    ) -> Result<(), UpstreamError> {
        let headers = answer.response.headers();
        // Any other Larder lets everyone pull who may use it.
        let is_decision = !(self.is_for_client && self.larder.is_some())
            || text(headers, DECIDED.0) == Some(DECIDED.1);
        let other = || {
            let reason = "it is not the decision of a registry";
            Err(UpstreamError::bad_answer(&answer.request, reason))
        };
        match answer.response.status().as_u16() {
            status if is_complete(status) || status == 206 => {
                if is_of_registry(headers) && is_decision { Ok(()) } else { other() }
            }
            400..=428 if !is_decision => other(),
            405 | 501 => {
                let request = Arc::clone(&answer.request);
                Err(UpstreamError::new(request, UpstreamErrorKind::Unsupported))
            }
            _ if self.is_for_client => Err(answer.failure()),
            _ => Err(self.error(answer.failure())),
        }
    }
}

fn is_manifest(headers: &HeaderMap) -> bool {
    let media_type = text(headers, header::CONTENT_TYPE).and_then(MediaType::parse);
    content_digest(headers).is_some() || media_type.as_ref().is_some_and(MediaType::is_manifest)
}

fn is_json(headers: &HeaderMap) -> bool {
    let content_type = text(headers, header::CONTENT_TYPE).unwrap_or_default();
    content_type.to_ascii_lowercase().contains("json")
}
