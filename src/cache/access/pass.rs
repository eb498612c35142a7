//! The login with which content is fetched, if the configuration has none for the repository.
//!
//! It follows the work across threads: requests to the cache enter the pass of their client, and code that queues a job
//! for another thread passes the [`current`] one along.

use std::cell::RefCell;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use crate::cache::bounded::BoundedCache;
use crate::cache::lock;
use crate::oci::{ImageName, KeyedHash, Upstream};
use crate::upstream::{Credentials, Source, Sources, UpstreamError};

/// How many sources with the login of a client are kept, for their connections and tokens. Each one needs 270 KiB, which is
/// the buffers of a connection.
const SOURCES_KEPT: usize = 32;

thread_local! {
    /// The pass that this thread's current work has.
    static CURRENT: RefCell<Option<Pass>> = RefCell::default();
}

/// The login of a client that may pull a repository. Cheap to clone.
#[derive(Clone)]
pub struct Pass(Arc<Inner>);

impl fmt::Debug for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pass").field(&self.0.name).finish()
    }
}

struct Inner {
    name: ImageName,
    key: KeyedHash,
    credentials: Credentials,
    until: SystemTime,
    kept: Arc<KeptSources>,
    sources: Arc<dyn Sources>,
}

/// The sources that were used recently, each with the login of a client, and how long they may be.
pub(super) struct KeptSources(Mutex<BoundedCache<KeyedHash, Kept>>);

type Kept = (Arc<dyn Source>, SystemTime);

impl KeptSources {
    pub(super) fn new() -> KeptSources {
        KeptSources(Mutex::new(BoundedCache::new(SOURCES_KEPT)))
    }

    pub(super) fn keep(&self, key: KeyedHash, source: Arc<dyn Source>, until: SystemTime) {
        lock(&self.0).insert(key, (source, until));
    }

    pub(super) fn remove(&self, key: &KeyedHash) {
        lock(&self.0).remove(key);
    }

    pub(super) fn clear(&self) {
        lock(&self.0).clear();
    }

    /// Drops the logins that are no longer needed.
    pub(super) fn drop_old(&self, now: SystemTime) {
        lock(&self.0).retain_entries(|_, (_, until)| *until > now);
    }
}

impl Pass {
    pub(super) fn new(
        name: &ImageName,
        key: KeyedHash,
        credentials: Credentials,
        until: SystemTime,
        kept: &Arc<KeptSources>,
        sources: &Arc<dyn Sources>,
    ) -> Pass {
        let (kept, sources) = (Arc::clone(kept), Arc::clone(sources));
        Pass(Arc::new(Inner { name: name.clone(), key, credentials, until, kept, sources }))
    }

    /// Whether work may still begin with it.
    pub(in crate::cache) fn is_fresh(&self, now: SystemTime) -> bool {
        now < self.0.until
    }

    /// The source with this login.
    ///
    /// # Errors
    /// [`UpstreamError`] if the registry is no longer listed.
    fn source(&self) -> Result<Arc<dyn Source>, UpstreamError> {
        let Inner { name, key, credentials, until, kept, sources } = &*self.0;
        if let Some((source, _)) = lock(&kept.0).get(key) {
            return Ok(Arc::clone(source));
        }
        let source = sources.source_for(&name.upstream, credentials.clone())?;
        kept.keep(*key, Arc::clone(&source), *until);
        Ok(source)
    }
}

/// Runs `work` with this pass, or with none.
pub(in crate::cache) fn enter<T>(pass: Option<Pass>, work: impl FnOnce() -> T) -> T {
    struct Restore(Option<Pass>);
    impl Drop for Restore {
        fn drop(&mut self) {
            CURRENT.set(self.0.take());
        }
    }
    // Also restored after a panic, because the thread continues with other work.
    let _restore = Restore(CURRENT.replace(pass));
    work()
}

/// The pass that this thread's current work has.
pub(in crate::cache) fn current() -> Option<Pass> {
    CURRENT.with_borrow(Option::clone)
}

/// The source of a registry with the login of the current work, if it has one for this registry.
///
/// # Errors
/// [`UpstreamError`] if the registry is no longer listed.
pub(in crate::cache) fn source(
    upstream: &Upstream,
) -> Option<Result<Arc<dyn Source>, UpstreamError>> {
    let pass = current().filter(|pass| pass.0.name.upstream == *upstream)?;
    Some(pass.source())
}
