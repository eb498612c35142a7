//! Large bodies that are made for one answer: tag lists, listings of the management API, metrics.
//!
//! In memory, each client that does not read would cost a copy. So they are written to a file without a
//! name in the cache directory, once for all answers with the same bytes, and sent from there. The files
//! count against a budget that clients share. Where the disk or the budget refuses, the body stays in
//! memory, and the edge's own budget decides (`http/memory.rs`).

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::budget::{Budget, Charge};
use crate::cache::Cache;
use crate::client_address::ClientAddress;
use crate::http::{Body, BodyFile};
use crate::oci::{Algorithm, Digest};

/// Smaller bodies stay in memory: a file would cost more.
const FILE_MIN: usize = 64 * 1024;
/// Disk space for bodies that are being sent.
const FILE_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// The table is swept of bodies that were sent when it has this many.
const SWEPT_AT: usize = 256;

/// Makes bodies of bytes.
pub(crate) struct Bodies {
    cache: Cache,
    budget: Arc<Budget<Digest>>,
    /// Held for look-ups only.
    shared: Mutex<HashMap<Digest, Weak<File>>>,
}

/// A file, and what it takes of the budget.
struct Charged {
    file: Arc<File>,
    _charge: Charge<Digest>,
}

impl BodyFile for Charged {
    fn file(&self) -> &File {
        &self.file
    }
}

impl Bodies {
    pub(crate) fn new(cache: Cache) -> Bodies {
        let (budget, shared) = (Budget::new(FILE_BYTES_MAX), Mutex::default());
        Bodies { cache, budget, shared }
    }

    /// A body of these bytes for `client`.
    pub(crate) fn body(&self, bytes: Arc<[u8]>, client: ClientAddress) -> Body {
        match bytes.len() < FILE_MIN {
            true => Body::Bytes(bytes),
            false => self.file(&bytes, client).unwrap_or(Body::Bytes(bytes)),
        }
    }

    /// `None` if neither disk nor budget has room for it.
    fn file(&self, bytes: &[u8], client: ClientAddress) -> Option<Body> {
        let (size, digest) = (bytes.len() as u64, Digest::of(Algorithm::Sha256, bytes));
        let charge = self.budget.charge(digest, size, client)?;
        let known = self.shared().get(&digest).and_then(Weak::upgrade);
        let file = match known {
            Some(file) => file,
            None => {
                // Two that write the same at once have a file each, for this once.
                let file = Arc::new(self.cache.store().unnamed_file(bytes).ok()?);
                self.remember(digest, &file);
                file
            }
        };
        Some(Body::File { file: Arc::new(Charged { file, _charge: charge }), range: 0..size })
    }

    fn remember(&self, digest: Digest, file: &Arc<File>) {
        let mut shared = self.shared();
        if shared.len() >= SWEPT_AT {
            shared.retain(|_, file| file.strong_count() > 0);
        }
        shared.insert(digest, Arc::downgrade(file));
    }

    fn shared(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Weak<File>>> {
        // Nothing that can panic runs under this lock, so a poisoned one is as good as any.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
