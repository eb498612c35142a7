//! Redirects: clients get large cached blobs from the bucket, with a signed URL.
//!
//! A request never waits here. A client is redirected only while the bucket is known to have the blob, with its size; what
//! is not known is found out in the background, for the next client.
//!
//! A client that asks a second time has not received the blob: it cannot reach the bucket, does not trust its certificate,
//! or has found wrong bytes. It gets everything from this cache for some time, so a redirect costs a pull one attempt at
//! most.
//!
//! # Interleavings
//! * *The object is removed after the check*, by a sweep or by hand: the client's request fails, and its second one is
//!   served here.
//! * *Two clients behind one address*: the second one counts as a return of the first. Then fewer are redirected.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::bounded::BoundedCache;
use super::core::Core;
use super::scheduler::{Class, Length, Purpose};
use super::{Cache, lock};
use crate::client_address::ClientAddress;
use crate::oci::{Digest, ImageName, blob_path};
use crate::store::OutgoingKind;
use crate::upstream::Bucket;

/// A smaller response costs less than another connection.
pub const REDIRECTED_BYTES_MIN: u64 = 8 << 20;
/// How long a URL can be used. The clock of the store may be wrong by some minutes.
const VALID_FOR: Duration = Duration::from_secs(15 * 60);
/// How long a client is redirected after the bucket was last seen to have the blob.
const KNOWN_FOR: Duration = Duration::from_secs(4 * 60);
/// After this time, the bucket is asked again in the background.
const CHECKED_AFTER: Duration = Duration::from_secs(30);
/// How many requests to the bucket may run for this at a time.
const CHECKS_MAX: usize = 4;
/// A client that asks again within this time after a redirect has not received the blob.
const RETURNS_WITHIN: Duration = Duration::from_secs(5 * 60);
/// How long it is not redirected afterwards.
const SERVED_HERE_FOR: Duration = Duration::from_secs(10 * 60);
/// How many redirects, and clients, are remembered.
const REMEMBERED: usize = 16_384;

/// Redirects to the bucket.
impl Cache {
    /// Redirects clients to the bucket from now on, for at least `min_bytes` of a cached blob.
    pub fn redirect_to(&self, bucket: Bucket, min_bytes: u64) {
        // There is one bucket in the life of a process.
        let _ = self.services.core.redirects.set(Arc::new(Redirects::new(bucket, min_bytes)));
    }

    /// Whether clients are redirected at all.
    pub fn has_redirects(&self) -> bool {
        self.services.core.redirects.get().is_some()
    }

    /// Where the client gets this part of a cached blob of `size` bytes, if not from this process.
    pub fn redirect(
        &self,
        name: &ImageName,
        digest: &Digest,
        size: u64,
        part: &Range<u64>,
    ) -> Option<String> {
        let (core, client) = (&self.services.core, self.client?);
        core.redirects.get()?.location(core, client, name, (digest, size), part)
    }
}

/// The redirects to one bucket.
pub(super) struct Redirects {
    bucket: Bucket,
    min_bytes: u64,
    /// The blobs about which the bucket is being asked. Locked for an insertion or a removal.
    checking: Mutex<HashSet<Digest>>,
    /// Locked for a lookup and an insertion.
    clients: Mutex<Clients>,
}

impl Redirects {
    pub(super) fn new(bucket: Bucket, min_bytes: u64) -> Redirects {
        let clients = Mutex::new(Clients::default());
        Redirects { bucket, min_bytes, checking: Mutex::default(), clients }
    }

    /// Where a client gets this part of a cached blob of `size` bytes. `None` if it is to be served here.
    pub(super) fn location(
        self: &Arc<Self>,
        core: &Arc<Core>,
        client: ClientAddress,
        name: &ImageName,
        (digest, size): (&Digest, u64),
        part: &Range<u64>,
    ) -> Option<String> {
        let bytes = part.end.saturating_sub(part.start);
        let key = blob_path(digest);
        if bytes < self.min_bytes || self.bucket.is_wrong(&key) {
            return None;
        }
        if !self.bucket.was_present(&key, CHECKED_AFTER) {
            self.check_later(core, client, name, (*digest, size));
        }
        if !self.bucket.was_present(&key, KNOWN_FOR) {
            return None;
        }
        let Some(url) = self.bucket.presigned_get(&key, VALID_FOR) else {
            // The check fetches the keys.
            self.check_later(core, client, name, (*digest, size));
            return None;
        };
        match lock(&self.clients).next(client, (*digest, part.start), Instant::now()) {
            Next::Redirect => {}
            Next::Serve => return None,
            Next::Returned => {
                log::warn!(
                    ip:% = client, digest:%, endpoint = self.bucket.public_url().as_str(),
                    wait_ms = SERVED_HERE_FOR.as_secs_f64() * 1e3;
                    "objectStore: a client asked again for a blob, although it was redirected to the bucket; it \
                     gets all blobs from here for a while. Check that it can reach the endpoint and trusts its \
                     certificate"
                );
                return None;
            }
        }
        core.metrics.redirected.inc();
        core.metrics.redirected_bytes.inc_by(bytes);
        Some(url)
    }

    /// Asks the bucket for a blob in the background. Does nothing if this is done already, or too many are.
    fn check_later(
        self: &Arc<Self>,
        core: &Arc<Core>,
        client: ClientAddress,
        name: &ImageName,
        blob: (Digest, u64),
    ) {
        let mut checking = lock(&self.checking);
        if checking.len() >= CHECKS_MAX || !checking.insert(blob.0) {
            return;
        }
        drop(checking);
        let check = Check { redirects: Arc::clone(self), blob };
        let purpose = Purpose { class: Class::Local, name: name.clone(), client: Some(client) };
        let services = Arc::clone(core);
        core.metadata_fetchers
            .submit_in_background(purpose, Length::Short, move || check.run(&services));
    }
}

/// A question to the bucket. Dropping it allows the next one about the same blob.
struct Check {
    redirects: Arc<Redirects>,
    blob: (Digest, u64),
}

impl Check {
    fn run(self, core: &Core) {
        let (bucket, (digest, size)) = (&self.redirects.bucket, self.blob);
        let key = blob_path(&digest);
        match bucket.size_of(&key) {
            Ok(Some(found)) if found == size => return bucket.note_present(&key),
            Ok(Some(_)) => bucket.note_wrong(&key),
            Ok(None) => bucket.note_missing(&key),
            // It may have failed for all objects.
            Err(error) => {
                log::debug!(error:%; "objectStore: clients are not redirected");
                return bucket.forget_present();
            }
        }
        // Without uploads, nothing is queued.
        if let Err(error) = core.store.queue_again(OutgoingKind::Blob, &key) {
            log::warn!(file:% = key, error:%; "objectStore: cannot queue a file");
        }
    }
}

impl Drop for Check {
    fn drop(&mut self) {
        lock(&self.redirects.checking).remove(&self.blob.0);
    }
}

/// What the next request of a client gets.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// A redirect.
    Redirect,
    /// The blob: the client has returned some time ago.
    Serve,
    /// The blob: the client has just returned from a redirect without it.
    Returned,
}

/// Which clients were redirected, to which blob from which offset; and which of them have returned.
struct Clients {
    redirected: BoundedCache<(ClientAddress, Digest, u64), Instant>,
    returned: BoundedCache<ClientAddress, Instant>,
}

impl Default for Clients {
    fn default() -> Clients {
        Clients {
            redirected: BoundedCache::new(REMEMBERED),
            returned: BoundedCache::new(REMEMBERED),
        }
    }
}

impl Clients {
    fn next(&mut self, client: ClientAddress, part: (Digest, u64), now: Instant) -> Next {
        let is_recent = |at: Option<&Instant>, within: Duration| {
            at.is_some_and(|at| now.saturating_duration_since(*at) < within)
        };
        if is_recent(self.returned.get(&client), SERVED_HERE_FOR) {
            return Next::Serve;
        }
        let redirect = (client, part.0, part.1);
        if is_recent(self.redirected.get(&redirect), RETURNS_WITHIN) {
            self.redirected.remove(&redirect);
            self.returned.insert(client, now);
            return Next::Returned;
        }
        self.redirected.insert(redirect, now);
        Next::Redirect
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::oci::Algorithm;

    fn client(number: u8) -> ClientAddress {
        IpAddr::from([192, 0, 2, number]).into()
    }

    #[test]
    fn a_client_that_returns_is_served_here_for_some_time() {
        let (mut clients, now) = (Clients::default(), Instant::now());
        let blob = |text: &str| Digest::of(Algorithm::Sha256, text.as_bytes());
        let (a, b) = (blob("a"), blob("b"));
        let second = Duration::from_secs(1);
        assert_eq!(clients.next(client(1), (a, 0), now), Next::Redirect);
        assert_eq!(clients.next(client(2), (a, 0), now), Next::Redirect, "another client");
        assert_eq!(clients.next(client(1), (a, 8), now), Next::Redirect, "another part");
        assert_eq!(clients.next(client(1), (b, 0), now), Next::Redirect, "another blob");
        let returned = now + RETURNS_WITHIN - second;
        assert_eq!(clients.next(client(1), (a, 0), returned), Next::Returned);
        assert_eq!(clients.next(client(1), (b, 0), returned), Next::Serve);
        assert_eq!(clients.next(client(1), (a, 0), returned), Next::Serve);
        let again = returned + SERVED_HERE_FOR;
        assert_eq!(clients.next(client(1), (a, 0), again), Next::Redirect);
        let later = again + RETURNS_WITHIN;
        assert_eq!(clients.next(client(1), (a, 0), later), Next::Redirect, "pulled once more");
    }
}
