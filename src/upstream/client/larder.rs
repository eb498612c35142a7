//! What is special about an endpoint that is a Larder: requests name the registry, and it has a name.

use std::sync::{Mutex, MutexGuard, PoisonError};

use ureq::http::{HeaderMap, header};

use super::registry::EndpointKind;
use super::session::Session;
use crate::oci::Upstream;
use crate::upstream::error::{UpstreamError, UpstreamErrorKind};
use crate::upstream::response::texts;
use crate::via::{self, Asking, Via};

pub(super) struct LarderEndpoint {
    /// The registry that requests name.
    namespace: Upstream,
    kind: EndpointKind,
    instance: Mutex<Instance>,
}

/// The name of the process behind the endpoint, which changes when it restarts.
enum Instance {
    /// It was not asked yet.
    Unknown,
    /// It has none if it is another kind of mirror.
    Known(Option<String>),
}

impl LarderEndpoint {
    pub(super) fn new(namespace: &Upstream, kind: EndpointKind) -> LarderEndpoint {
        let instance = Mutex::new(Instance::Unknown);
        LarderEndpoint { namespace: namespace.clone(), kind, instance }
    }

    pub(super) fn kind(&self) -> EndpointKind {
        self.kind
    }

    /// The chain of a request to it, for the current work.
    pub(super) fn chain(&self) -> Via {
        match self.kind {
            EndpointKind::Peer => via::current().to_peer(),
            EndpointKind::Larder | EndpointKind::Registry => via::current(),
        }
    }

    /// Whether it is known to be this process.
    pub(super) fn is_this_process(&self) -> bool {
        matches!(&*self.instance(), Instance::Known(Some(name)) if name == via::instance())
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
        path: &str,
    ) -> Result<Option<Asking>, UpstreamError> {
        let known = match &*self.instance() {
            Instance::Known(instance) => Some(instance.clone()),
            Instance::Unknown => None,
        };
        let instance = match known {
            Some(instance) => instance,
            None => {
                let instance = session.probe()?;
                *self.instance() = Instance::Known(instance.clone());
                instance
            }
        };
        if instance.as_deref() == Some(via::instance()) {
            return Err(UpstreamError::new(session.url(), UpstreamErrorKind::Loop));
        }
        let path = path.split('?').next().unwrap_or_default();
        let what = format!("{}{path}", self.namespace);
        Ok(instance.map(|instance| via::asking(instance, what)))
    }

    /// Learns its name from a response.
    pub(super) fn learn(&self, headers: &HeaderMap) {
        if let Some(instance) = via::sender(texts(headers, header::VIA)) {
            *self.instance() = Instance::Known(Some(instance));
        }
    }

    fn instance(&self) -> MutexGuard<'_, Instance> {
        // A panic cannot leave it half changed.
        self.instance.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
