//! **FakeBucket: a scripted S3 server with one bucket.**
//!
//! A server on its own port of `127.0.0.1` with plain HTTP and path-style URLs: `/larder-test/KEY`. It keeps objects in
//! memory, records every request, and fails as scripted. Any number of caches and processes may share it.
//!
//! ```ignore
//! let bucket = FakeBucket::start();
//! bucket.put("blobs/sha256/…", &layer);
//!
//! bucket.fault(On::s3(Operation::GetObject, "blobs/*").times(1), Fault::slow_down());
//! // … a pull through the program under test …
//! assert_eq!(bucket.count_of(Operation::GetObject, "blobs/*"), 2);
//! ```
//!
//! **Signatures are not verified.** The server checks the key, the scope, the time and the list of signed headers, and that
//! the signature is a hash. Only the end-to-end tests against real servers prove that signatures are right.
//!
//! **Order.** A request is recorded, then authenticated, then handled by the first fault that matches and is not used up.
//! A fault that replaces the response (such as [`Fault::Status`]) prevents the effect of the request, unless it is wrapped
//! in [`Fault::Performed`]. Gates and damage leave the effect as it is; [`Fault::GateRequest`] waits before the effect, and
//! [`Fault::Gate`] after it.
//!
//! **A faulty request fails the test.** Requests that a correct client never sends (unknown operations, missing or wrong
//! credentials, wrong checksums, malformed XML) get the error of a real server, and the bucket panics when it is dropped.
//! [`FakeBucket::take_refused`] and [`FakeBucket::expect_refusals`] allow them. Misses and failed preconditions are
//! normal, and so is anything about keys below `probe/`.
//!
//! **Time.** The clock is that of the machine until [`FakeBucket::set_clock`] stops it. `Last-Modified`, `Date` and the limit
//! of 15 minutes for the time of a request use it.
//!
//! **Stricter than some servers**, as Amazon is: parts need a checksum if and only if the upload was created with
//! `x-amz-checksum-algorithm: SHA256`, and deleting a batch needs `Content-MD5` or a checksum. An upload cannot be completed
//! twice, as with MinIO (Amazon repeats its response).
//!
//! **Dropping** opens all gates of the script, closes all connections and joins all threads. The bucket must outlive the
//! program under test, so declare it first.

mod access;
mod client;
mod contents;
mod listing;
mod multipart;
mod operation;
mod refusal;
mod server;
mod xml;

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use self::contents::Contents;
use self::server::{Shared, State};
use super::fault::{Fault, On};
use super::port::Port;
use super::server::line;
use super::wire::Recorded;
use super::{Gate, PATIENCE, lock};

pub use self::contents::Object;
pub use self::multipart::Upload;
pub use self::operation::Operation;
pub(super) use self::operation::target;

pub const BUCKET: &str = "larder-test";
pub const REGION: &str = "us-east-1";
/// The access key that is accepted unless [`FakeBucket::accept_key`] changes it.
pub const ACCESS_KEY: &str = "test";
/// Any secret is accepted, because signatures are not verified.
pub const SECRET_KEY: &str = "test-secret";

/// See the module documentation.
pub struct FakeBucket {
    shared: Arc<Shared>,
    port: Port,
}

/// Starting, stopping, addresses, clock.
impl FakeBucket {
    /// An empty bucket.
    pub fn start() -> FakeBucket {
        let shared = Arc::new(Shared::default());
        let server = Arc::clone(&shared);
        let port = Port::open(move |socket, connection| server.serve(socket, connection));
        FakeBucket { shared, port }
    }

    /// Closes all connections and refuses new ones. Content, script and records stay.
    pub fn down(&self) {
        self.port.stop();
    }

    /// Listens again, on the same port, after [`FakeBucket::down`].
    pub fn up(&self) {
        self.port.start_again();
    }

    /// Closes all connections, but accepts new ones.
    pub fn cut_connections(&self) {
        self.port.cut_connections();
    }

    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// `http://127.0.0.1:PORT`, without the bucket.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address())
    }

    /// `/larder-test/KEY`, not encoded.
    pub fn path(key: &str) -> String {
        format!("/{BUCKET}/{key}")
    }

    pub fn clock(&self) -> SystemTime {
        self.state(|state| state.clock.now())
    }

    /// Stops the clock at this time.
    pub fn set_clock(&self, time: SystemTime) {
        self.state(|state| state.clock = server::Clock::Stopped(time));
    }

    /// Advances the clock, whether it runs or not.
    pub fn advance(&self, by: Duration) {
        self.state(|state| state.clock.advance(by));
    }
}

/// Objects and uploads.
impl FakeBucket {
    /// All keys in the order of listings.
    pub fn keys(&self) -> Vec<String> {
        self.contents(|contents| contents.objects.keys().cloned().collect())
    }

    pub fn object(&self, key: &str) -> Option<Vec<u8>> {
        self.stored(key).map(|object| object.bytes)
    }

    /// The object with its ETag, time, checksum and headers.
    pub fn stored(&self, key: &str) -> Option<Object> {
        self.contents(|contents| contents.objects.get(key).cloned())
    }

    /// Stores an object, as another client would.
    pub fn put(&self, key: &str, bytes: &[u8]) {
        self.state(|state| {
            let object = Object::new(bytes.to_vec(), state.clock.now()).with_checksum();
            state.contents.objects.insert(key.to_owned(), object);
        });
    }

    /// Removes an object. Returns whether it existed.
    pub fn remove(&self, key: &str) -> bool {
        self.contents(|contents| contents.objects.remove(key).is_some())
    }

    /// Removes all objects and uploads: a bucket that was wiped.
    pub fn clear(&self) {
        self.contents(|contents| {
            contents.objects.clear();
            contents.uploads.clear();
        });
    }

    /// Flips one bit of a stored object, and leaves its ETag and checksum as they are.
    ///
    /// # Panics
    /// If the object does not exist or is empty.
    pub fn corrupt(&self, key: &str) {
        self.contents(|contents| {
            let object = contents.objects.get_mut(key).expect("an object to damage");
            let middle = object.bytes.len() / 2;
            object.bytes[middle] ^= 1;
        });
    }

    /// Changes the time of an object.
    ///
    /// # Panics
    /// If the object does not exist.
    pub fn set_modified(&self, key: &str, time: SystemTime) {
        self.contents(|contents| {
            contents.objects.get_mut(key).expect("an object to date").modified = time;
        });
    }

    /// The unfinished multipart uploads, in the order of listings.
    pub fn uploads(&self) -> Vec<Upload> {
        self.contents(|contents| contents.uploads.values().cloned().collect())
    }

    /// Starts an upload, as a client would that never continues it. Returns its id.
    pub fn abandon_upload(&self, key: &str, initiated: SystemTime) -> String {
        self.contents(|contents| contents.start_upload(key, initiated, false, Vec::new()))
    }
}

/// The script and switches, which stay until they are changed.
impl FakeBucket {
    /// Makes requests fail; see [`On`] and [`Fault`].
    pub fn fault(&self, on: On, fault: Fault) {
        self.state(|state| {
            state.gates.extend(fault.gates());
            state.script.add(on, fault);
        });
    }

    /// Removes all faults. Requests that are already failing continue to fail.
    pub fn clear_faults(&self) {
        self.state(|state| state.script.clear());
    }

    /// 403 AccessDenied for every operation that changes something.
    pub fn deny_writes(&self, denied: bool) {
        self.contents(|contents| contents.settings.writes_denied = denied);
    }

    /// 507 InsufficientStorage for every operation that stores something. Deletion works.
    pub fn full(&self, full: bool) {
        self.contents(|contents| contents.settings.full = full);
    }

    /// 403 AccessDenied for the deletion of these keys: an object lock. In a batch, only these keys fail.
    pub fn protect(&self, keys: &[&str]) {
        let keys = keys.iter().map(|key| (*key).to_owned()).collect();
        self.contents(|contents| contents.settings.protected = keys);
    }

    /// Omits these keys from listings, whether they exist or not. Replaces the previous list.
    pub fn hide_from_listings(&self, keys: &[&str]) {
        let keys = keys.iter().map(|key| (*key).to_owned()).collect();
        self.contents(|contents| contents.settings.hidden = keys);
    }

    /// Keeps these existing keys in listings after they are removed. Replaces the previous list.
    pub fn keep_in_listings(&self, keys: &[&str]) {
        self.contents(|contents| {
            let found = keys.iter().map(|key| (*key).to_owned());
            let found =
                found.filter_map(|key| Some((key.clone(), contents.objects.get(&key)?.clone())));
            contents.settings.kept = found.collect();
        });
    }

    /// Ignores `If-None-Match` and `If-Match` of writes, as servers without conditional writes do. For servers that
    /// refuse them, use `On::….with_header("if-none-match")` with `Fault::s3_error(501, "NotImplemented")`.
    pub fn ignore_preconditions(&self, ignored: bool) {
        self.contents(|contents| contents.settings.preconditions_ignored = ignored);
    }

    /// Whether `x-amz-checksum-sha256` is verified (default) or stored as sent.
    pub fn verify_checksums(&self, verified: bool) {
        self.contents(|contents| contents.settings.checksums_verified = verified);
    }

    /// Whether `x-amz-content-sha256` is verified (default).
    pub fn verify_content_hashes(&self, verified: bool) {
        self.contents(|contents| contents.settings.content_hashes_verified = verified);
    }

    /// Limits the number of entries per page of all listings (1000 by default).
    pub fn page_size(&self, n: usize) {
        self.contents(|contents| contents.settings.page_size = n);
    }

    /// The minimum size of all parts of an upload but the last (5 MiB by default), in bytes.
    pub fn minimum_part_size(&self, bytes: usize) {
        self.contents(|contents| contents.settings.minimum_part = bytes);
    }

    /// Accepts this access key only: the old one gets 403 InvalidAccessKeyId.
    pub fn accept_key(&self, key: &str) {
        self.state(|state| state.access_key = key.to_owned());
    }

    /// Requires this session token; any other gets 400 ExpiredToken.
    pub fn require_session_token(&self, token: Option<&str>) {
        self.state(|state| state.session_token = token.map(str::to_owned));
    }
}

/// Records.
impl FakeBucket {
    /// Every request so far, in the order of arrival. The body is empty until it has arrived.
    pub fn requests(&self) -> Vec<Recorded> {
        self.state(|state| state.requests.clone())
    }

    /// The requests with this method (`"*"` for any) to this path, as sent or decoded (`*` matches any text).
    pub fn requests_for(&self, method: &str, path: &str) -> Vec<Recorded> {
        self.state(|state| state.requests_for(method, path).cloned().collect())
    }

    /// The number of [`FakeBucket::requests_for`].
    pub fn count(&self, method: &str, path: &str) -> usize {
        self.state(|state| state.requests_for(method, path).count())
    }

    /// The requests for this operation on keys that match the pattern.
    pub fn requests_of(&self, operation: Operation, key: &str) -> Vec<Recorded> {
        self.state(|state| state.requests_of(operation, key).cloned().collect())
    }

    /// The number of [`FakeBucket::requests_of`].
    pub fn count_of(&self, operation: Operation, key: &str) -> usize {
        self.state(|state| state.requests_of(operation, key).count())
    }

    /// Blocks until there have been `n` requests for this operation, and returns them.
    ///
    /// # Panics
    /// After [`PATIENCE`], with all requests so far.
    #[track_caller]
    pub fn wait_for(&self, operation: Operation, key: &str, n: usize) -> Vec<Recorded> {
        let state = lock(&self.shared.state);
        let too_few = |state: &mut State| state.requests_of(operation, key).count() < n;
        let waited = self.shared.changed.wait_timeout_while(state, PATIENCE, too_few);
        let (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        let found: Vec<Recorded> = state.requests_of(operation, key).cloned().collect();
        let all: Vec<String> = state.requests.iter().map(line).collect();
        // Release the lock before the panic, so that unwinding does not wait for it.
        drop(state);
        let came = found.len();
        assert!(
            !timeout.timed_out(),
            "only {came} of {n} {operation:?} {key} arrived; all requests: {all:#?}"
        );
        found
    }

    /// Blocks until this object exists, and returns its content.
    ///
    /// # Panics
    /// After [`PATIENCE`], with all keys.
    #[track_caller]
    pub fn wait_for_object(&self, key: &str) -> Vec<u8> {
        let state = lock(&self.shared.state);
        let missing = |state: &mut State| !state.contents.objects.contains_key(key);
        let waited = self.shared.changed.wait_timeout_while(state, PATIENCE, missing);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let found = state.contents.objects.get(key).map(|object| object.bytes.clone());
        let keys: Vec<String> = state.contents.objects.keys().cloned().collect();
        drop(state);
        found.unwrap_or_else(|| panic!("no object {key} within {PATIENCE:?}; all keys: {keys:#?}"))
    }

    /// Clears the records, except for refused requests.
    pub fn clear_requests(&self) {
        self.state(|state| state.requests.clear());
    }

    /// The number of accepted connections.
    pub fn connection_count(&self) -> u64 {
        self.port.accepted()
    }

    /// The number of body bytes sent, over all responses.
    pub fn body_bytes_sent(&self) -> u64 {
        self.shared.body_bytes_sent.load(Ordering::SeqCst)
    }

    /// Takes the faulty requests, each with the code of its error, so that they do not fail the test.
    pub fn take_refused(&self) -> Vec<String> {
        self.state(|state| std::mem::take(&mut state.refused))
    }

    /// Faulty requests do not fail the test, for example because it changes the accepted key.
    pub fn expect_refusals(&self) {
        self.state(|state| state.refusals_expected = true);
    }

    fn state<T>(&self, action: impl FnOnce(&mut State) -> T) -> T {
        let result = action(&mut lock(&self.shared.state));
        self.shared.changed.notify_all();
        result
    }

    fn contents<T>(&self, action: impl FnOnce(&mut Contents) -> T) -> T {
        self.state(|state| action(&mut state.contents))
    }
}

impl Drop for FakeBucket {
    fn drop(&mut self) {
        self.down();
        self.shared.until_drop.open();
        let gates = self.state(|state| std::mem::take(&mut state.gates));
        gates.iter().for_each(Gate::open);
        let panicked = self.port.join_threads();
        let (refused, expected) =
            (self.take_refused(), self.state(|state| state.refusals_expected));
        if thread::panicking() {
            return;
        }
        assert!(panicked == 0, "{panicked} of the fake bucket's threads panicked");
        assert!(refused.is_empty() || expected, "faulty requests: {refused:#?}");
    }
}
