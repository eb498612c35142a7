//! Reports what happens to names and content to one observer, which is set when the server starts.

use std::fmt;
use std::sync::OnceLock;

use crate::oci::{Digest, ImageName, Reference, Tag};
use crate::store::Store;

/// What has happened.
#[derive(Clone, Copy)]
pub enum StoreEvent<'a> {
    /// A tag refers to another manifest than before.
    TagMoved {
        /// The repository.
        name: &'a ImageName,
        /// The tag.
        tag: &'a Tag,
        /// The manifest before.
        from: Digest,
        /// The manifest now.
        to: Digest,
    },
    /// A tag has moved upstream, and the previous manifest is still served.
    TagHeld {
        /// The repository.
        name: &'a ImageName,
        /// The tag.
        tag: &'a Tag,
        /// The manifest that is served.
        serves: Digest,
        /// The manifest that upstream has.
        held: Digest,
    },
    /// A file of the cache is damaged.
    Damaged {
        /// The file, below the cache directory, or the digest of the blob.
        what: &'a dyn fmt::Display,
        /// What is wrong with it.
        reason: &'a str,
    },
    /// An image was removed to free disk space.
    Evicted {
        /// The repository.
        name: &'a ImageName,
        /// The tag or digest.
        reference: &'a Reference,
    },
}

type Observe = Box<dyn Fn(&StoreEvent<'_>) + Send + Sync>;

/// The observer, if one is set.
#[derive(Default)]
pub(in crate::store) struct Observer(OnceLock<Observe>);

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Observer").field(&self.0.get().is_some()).finish()
    }
}

impl Store {
    /// Calls `observe` for everything that happens through this store and its clones from now on. It must not block and
    /// must not use the store. Only the first observer counts.
    pub fn set_observer(&self, observe: impl Fn(&StoreEvent<'_>) + Send + Sync + 'static) {
        // The documentation says that only the first one counts.
        let _ = self.inner.observer.0.set(Box::new(observe));
    }

    pub(in crate::store) fn observe(&self, event: &StoreEvent<'_>) {
        if let Some(observe) = self.inner.observer.0.get() {
            observe(event);
        }
    }
}
