//! Large generated response bodies: tag lists, listings of the management API, metrics.
//!
//! In memory, each client that does not read would cost a copy. Therefore such a body is written to an unnamed
//! file in the cache directory, once for all responses with the same bytes, and sent from there. The files
//! count against a budget that is divided among clients. If the disk or the budget refuses, the body stays in
//! memory, subject to the HTTP server's own budget (`http/memory.rs`).

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::budget::{Budget, Charge};
use crate::cache::Cache;
use crate::client_address::ClientAddress;
use crate::http::{Body, BodyFile};
use crate::oci::{Algorithm, Digest};

/// Smaller bodies stay in memory, because a file would cost more. In bytes.
const FILE_MIN: usize = 64 * 1024;
/// The maximum disk space for bodies that are being sent, in bytes.
const FILE_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// The number of table entries at which entries of finished bodies are removed.
const SWEPT_AT: usize = 256;

/// Turns bytes into response bodies.
pub(crate) struct Bodies {
    cache: Cache,
    budget: Arc<Budget<Digest>>,
    /// Locked for lookups only.
    shared: Mutex<HashMap<Digest, Weak<File>>>,
}

/// A file and its share of the budget.
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

    /// `None` if the disk or the budget has no space.
    fn file(&self, bytes: &[u8], client: ClientAddress) -> Option<Body> {
        let (size, digest) = (bytes.len() as u64, Digest::of(Algorithm::Sha256, bytes));
        let charge = self.budget.charge(digest, size, client)?;
        let known = self.shared().get(&digest).and_then(Weak::upgrade);
        let file = match known {
            Some(file) => file,
            None => {
                // Two concurrent requests for the same bytes may write a file each. This is harmless.
                let file = Arc::new(self.cache.store().unlinked_file(bytes).ok()?);
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
        // No code that can panic runs under this lock.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::store::{self, Store};
    use crate::upstream::{self, Registries};

    fn client(number: u8) -> ClientAddress {
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, number)).into()
    }

    fn cache() -> (Cache, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let settings = store::Settings { root: directory.path().to_owned(), fsync: false };
        let store = Store::open(&settings).unwrap();
        let registries = Arc::new(Registries::new(upstream::Settings::default()));
        let clock = Arc::new(std::time::SystemTime::now);
        (Cache::new(store, registries, crate::cache::Settings::default(), clock), directory)
    }

    #[test]
    fn large_bodies_with_equal_bytes_share_a_file() {
        let (cache, directory) = cache();
        let bodies = Bodies::new(cache);
        let large: Arc<[u8]> = vec![b'x'; FILE_MIN].into();
        let sent: Vec<Body> =
            (0..100).map(|number| bodies.body(Arc::clone(&large), client(number % 2))).collect();
        for body in &sent {
            let Body::File { file, range } = body else { panic!("{body:?}") };
            assert_eq!(*range, 0..FILE_MIN as u64);
            let mut bytes = vec![0; FILE_MIN];
            std::os::unix::fs::FileExt::read_exact_at(file.file(), &mut bytes, 0).unwrap();
            assert!(bytes[..] == large[..]);
        }
        assert_eq!(bodies.budget.used(), FILE_MIN as u64, "there is one file");
        let incoming = directory.path().join("incoming");
        let names = std::fs::read_dir(incoming).unwrap().filter(|entry| {
            entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("tmp-")
        });
        assert_eq!(names.count(), 0, "and it has no name");
        drop(sent);
        assert_eq!(bodies.budget.used(), 0);
        let small: Arc<[u8]> = vec![b'x'; FILE_MIN - 1].into();
        assert!(matches!(bodies.body(small, client(1)), Body::Bytes(_)));
    }

    #[test]
    fn a_body_stays_in_memory_if_no_file_can_be_written() {
        let (cache, directory) = cache();
        let bodies = Bodies::new(cache);
        std::fs::remove_dir_all(directory.path().join("incoming")).unwrap();
        let body = bodies.body(vec![b'x'; FILE_MIN].into(), client(1));
        assert!(matches!(body, Body::Bytes(_)));
        assert_eq!(bodies.budget.used(), 0);
    }
}
