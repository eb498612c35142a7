//! What is special about an endpoint that is a Larder: requests name the registry, and it has a name.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ureq::http::{HeaderMap, header};

use super::registry::EndpointKind;
use super::session::{Ask, Session};
use crate::introduction::{self, Introduction};
use crate::oci::Upstream;
use crate::upstream::error::{UpstreamError, UpstreamErrorKind};
use crate::upstream::response::{text, texts};
use crate::via::{self, Asking, Via};

pub(super) struct LarderEndpoint {
    /// The registry that requests name.
    namespace: Upstream,
    kind: EndpointKind,
    acquaintance: Arc<Acquaintance>,
}

/// What is known about the process behind an endpoint. The endpoints of a peer, one for each registry, share it.
#[derive(Debug, Default)]
pub(in crate::upstream) struct Acquaintance(Mutex<Known>);

#[derive(Debug, Clone, Default)]
struct Known {
    /// Whether it has introduced itself. It has to again after it was restarted.
    is_introduced: bool,
    /// Its name, which changes when it restarts; `None` if it is another kind of mirror.
    name: Option<String>,
    /// What it told its peer.
    introduction: Option<Introduction>,
}

impl Acquaintance {
    /// Whether it is known to be this process.
    pub(in crate::upstream) fn is_this_process(&self) -> bool {
        self.known().name.as_deref() == Some(via::instance())
    }

    /// What it told its peer.
    pub(in crate::upstream) fn introduction(&self) -> Option<Introduction> {
        self.known().introduction.clone()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // A panic cannot leave it half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LarderEndpoint {
    pub(super) fn new(
        namespace: &Upstream,
        kind: EndpointKind,
        acquaintance: Arc<Acquaintance>,
    ) -> LarderEndpoint {
        LarderEndpoint { namespace: namespace.clone(), kind, acquaintance }
    }

    pub(super) fn kind(&self) -> EndpointKind {
        self.kind
    }

    /// The chain of a request to it, for the current work.
    pub(super) fn chain(&self) -> Via {
        match self.kind {
            EndpointKind::Peer => via::current().to_peer(),
            _ => via::current(),
        }
    }

    /// Whether it is known to be this process.
    pub(super) fn is_this_process(&self) -> bool {
        self.acquaintance.is_this_process()
    }

    /// The path of a request, with the registry.
    pub(super) fn path(&self, path: String) -> String {
        let separator = if path.contains('?') { '&' } else { '?' };
        format!("{path}{separator}ns={}", self.namespace)
    }

    /// Notes that a request to it is under way, for [`Via::is_asked_for`](via::Via::is_asked_for).
    ///
    /// # Errors
    /// [`UpstreamError`] if its name is unknown and it does not answer, or if it is this process.
    pub(super) fn asking(
        &self,
        session: &Session,
        ask: &Ask<'_>,
    ) -> Result<Option<Asking>, UpstreamError> {
        if !self.acquaintance.known().is_introduced {
            // With its login, because a Larder says nothing about itself to those who may not use it.
            let headers = self.chain().enter(|| session.introduce(ask.repository))?;
            self.note_introduction(session, &headers);
        }
        let name = self.acquaintance.known().name.clone();
        if self.is_this_process() {
            return Err(UpstreamError::new(session.url(), UpstreamErrorKind::Loop));
        }
        let path = ask.path.split('?').next().unwrap_or_default();
        let what = format!("{}{path}", self.namespace);
        Ok(name.map(|name| via::asking(name, what)))
    }

    /// Learns from a response whether another process has taken the place of the one that introduced itself.
    pub(super) fn learn(&self, headers: &HeaderMap) {
        let Some(name) = via::sender(texts(headers, header::VIA)) else { return };
        let mut known = self.acquaintance.known();
        if known.name.as_deref() != Some(&name) {
            // Several parents may share an address; peers have one each.
            let is_introduced = known.is_introduced && self.kind != EndpointKind::Peer;
            let introduction = known.introduction.take();
            *known = Known { is_introduced, name: Some(name), introduction };
        }
    }

    fn note_introduction(&self, session: &Session, headers: &HeaderMap) {
        let introduction = text(headers, introduction::HEADER).and_then(Introduction::parse);
        let known = Known {
            is_introduced: true,
            name: via::sender(texts(headers, header::VIA)),
            introduction: introduction.clone(),
        };
        let before = std::mem::replace(&mut *self.acquaintance.known(), known);
        if self.kind == EndpointKind::Larder && self.is_this_process() {
            log::error!(
                registry:% = self.namespace, endpoint:% = session.url();
                "parents: an endpoint is this Larder itself and is never used; remove it"
            );
        }
        let (Some(theirs), Some(own)) = (introduction, introduction::own()) else { return };
        let differences = own.differences(&theirs).join(", ");
        if !self.is_this_process() && !differences.is_empty() && before.introduction != Some(theirs)
        {
            log::warn!(
                endpoint:% = session.url(), keys = differences.as_str();
                "peers: a peer has other settings than this Larder; peers work together nevertheless, but which \
                 of them asks a registry depends on the content"
            );
        }
    }
}
