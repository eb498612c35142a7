//! **FakeRegistry: a scripted upstream registry.**
//!
//! A registry on its own port of `127.0.0.1`, with one thread per connection and HTTP/1.1 keep-alive. It serves the
//! content that a test adds, records every request, and fails as scripted.
//!
//! ```ignore
//! let registry = FakeRegistry::start();
//! let image = Image::sample("v1");
//! registry.add("library/alpine", "3.20", &image);
//! let layer = &image.layers()[0].digest;
//!
//! registry.fault(On::get_blob(layer).times(1), Fault::CutAfter(100));
//! // … a pull through the program under test …
//! assert_eq!(registry.count("GET", &format!("/v2/library/alpine/blobs/{layer}")), 2);
//! ```
//!
//! **An unscripted request fails the test.** A request for missing content gets the 404 of a real registry, and the
//! registry panics when it is dropped. A test that needs such requests allows them with
//! [`FakeRegistry::expect_unknown`]. A request to which a fault applies counts as scripted.
//!
//! **Order.** A request is recorded, then authenticated (or answered with 401), then handled by the first fault that
//! matches and is not used up.
//!
//! **Waiting for events.** [`Gate`]s hold requests; [`FakeRegistry::wait_for`] waits for requests.
//!
//! **Dropping** opens all gates of the script, closes all connections and joins all threads. The registry must outlive
//! the program under test, so declare it first.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread;

use rustls::ServerConfig;

use super::fault::{Fault, On};
use super::image::{Image, Manifest, Publish};
use super::port::Port;
use super::server::{Shared, State, line};
use super::tls::{self, Authority, ClientCertificate, Identity};
use super::token::{Account, Auth, TokenServer};
use super::wire::Recorded;
use super::{Gate, PATIENCE, bytes, digest_of, lock};

/// See the module documentation.
pub struct FakeRegistry {
    shared: Arc<Shared>,
    port: Port,
    authority: Option<Authority>,
}

/// Starting, stopping, addresses.
impl FakeRegistry {
    /// An empty registry over plain HTTP.
    pub fn start() -> FakeRegistry {
        FakeRegistry::launch(None, None)
    }

    /// With the sample image `v1` under the tag `v1`.
    pub fn with_image(repository: &str) -> (FakeRegistry, Image) {
        let registry = FakeRegistry::start();
        let image = registry.add_sample(repository);
        (registry, image)
    }

    /// With a blob of `length` bytes. Returns its content and digest as well.
    pub fn with_blob(repository: &str, length: usize) -> (FakeRegistry, Vec<u8>, String) {
        let registry = FakeRegistry::start();
        let content = bytes(length, 1);
        let digest = registry.add_blob(repository, &content);
        (registry, content, digest)
    }

    /// With TLS and a certificate of a private authority for `127.0.0.1`, `localhost` and `registry.test`.
    pub fn start_tls() -> FakeRegistry {
        FakeRegistry::launch_tls(ClientCertificate::NotAsked)
    }

    /// With TLS, for clients with a certificate of [`FakeRegistry::client_identity`] only.
    pub fn start_mtls() -> FakeRegistry {
        FakeRegistry::launch_tls(ClientCertificate::Demanded)
    }

    /// With TLS and the certificate and key in this PEM text.
    pub fn start_with_certificate(pem: &str) -> FakeRegistry {
        FakeRegistry::launch(None, Some(tls::server_config_of(pem)))
    }

    /// With TLS and a certificate and key on the curve P-521, signed by `p521-authority.pem`.
    pub fn start_p521() -> FakeRegistry {
        FakeRegistry::launch(None, Some(tls::p521_server_config()))
    }

    fn launch_tls(clients: ClientCertificate) -> FakeRegistry {
        let authority = Authority::new("fake registry's authority");
        let config = tls::server_config(&authority, clients);
        FakeRegistry::launch(Some(authority), Some(config))
    }

    fn launch(authority: Option<Authority>, tls: Option<Arc<ServerConfig>>) -> FakeRegistry {
        let shared = Arc::new(Shared::new(tls));
        let server = Arc::clone(&shared);
        let port = Port::open(move |socket, connection| server.serve(socket, connection));
        FakeRegistry { shared, port, authority }
    }

    /// Closes all connections and refuses new ones. Content, script and records stay.
    pub fn stop(&self) {
        self.port.stop();
    }

    /// Listens again, on the same port, after [`FakeRegistry::stop`].
    pub fn start_again(&self) {
        self.port.start_again();
    }

    /// Closes all connections, but accepts new ones.
    pub fn cut_connections(&self) {
        self.port.cut_connections();
    }

    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// `127.0.0.1:PORT`: the name of the registry in image references.
    pub fn host(&self) -> String {
        self.address().to_string()
    }

    /// `http://127.0.0.1:PORT` (or `https://`) followed by `path`.
    pub fn url(&self, path: &str) -> String {
        let scheme = if self.shared.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}{path}", self.host())
    }

    /// The certificate to trust.
    ///
    /// # Panics
    /// If the registry has no TLS.
    pub fn ca_pem(&self) -> String {
        self.authority().pem()
    }

    /// A new client certificate of the registry's authority.
    ///
    /// # Panics
    /// If the registry has no TLS.
    pub fn client_identity(&self, name: &str) -> Identity {
        self.authority().issue(&[name])
    }

    fn authority(&self) -> &Authority {
        self.authority.as_ref().expect("only a registry over TLS has an authority")
    }
}

/// Content, which is copied.
impl FakeRegistry {
    /// Adds an image or index with everything below it to a repository, under a tag. Returns its digest.
    pub fn add(&self, repository: &str, tag: &str, content: &impl Publish) -> String {
        let digest = self.add_untagged(repository, content);
        self.tag(repository, tag, &digest);
        digest
    }

    /// Adds the sample image `v1` under the tag `v1`.
    pub fn add_sample(&self, repository: &str) -> Image {
        let image = Image::sample("v1");
        self.add(repository, "v1", &image);
        image
    }

    /// As [`FakeRegistry::add`], reachable by digest only.
    pub fn add_untagged(&self, repository: &str, content: &impl Publish) -> String {
        lock(&self.shared.state).content.publish(repository, content)
    }

    /// Points the tag to this manifest, whether it exists or not.
    pub fn tag(&self, repository: &str, tag: &str, digest: &str) {
        lock(&self.shared.state).content.tag(repository, tag, digest);
    }

    /// Adds a single blob. Returns its sha256 digest.
    pub fn add_blob(&self, repository: &str, bytes: &[u8]) -> String {
        let digest = digest_of(bytes);
        self.add_blob_as(repository, &digest, bytes);
        digest
    }

    /// Adds a single blob under any digest, right or wrong.
    pub fn add_blob_as(&self, repository: &str, digest: &str, bytes: &[u8]) {
        lock(&self.shared.state).content.add_blob(repository, digest.to_owned(), bytes.to_vec());
    }

    /// Adds any bytes as a manifest under a tag. Returns their sha256 digest.
    pub fn add_manifest(
        &self,
        repository: &str,
        tag: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> String {
        let digest = digest_of(bytes);
        let (media_type, bytes) = (media_type.to_owned(), bytes.to_vec());
        let manifest = Manifest { media_type, digest: digest.clone(), bytes };
        lock(&self.shared.state).content.add_manifest(repository, manifest);
        self.tag(repository, tag, &digest);
        digest
    }

    pub fn remove_tag(&self, repository: &str, tag: &str) {
        lock(&self.shared.state).content.remove_tag(repository, tag);
    }

    pub fn remove_manifest(&self, repository: &str, digest: &str) {
        lock(&self.shared.state).content.remove_manifest(repository, digest);
    }

    pub fn remove_blob(&self, repository: &str, digest: &str) {
        lock(&self.shared.state).content.remove_blob(repository, digest);
    }

    /// Adds a plain file at a path outside `/v2/`, with support for Range: the target of a redirect. The query of a request
    /// (a signature, for example) is recorded and ignored.
    pub fn add_file(&self, path: &str, content_type: &str, bytes: &[u8]) {
        lock(&self.shared.state).content.add_file(path, content_type, bytes.to_vec());
    }

    /// Enables the referrers API, based on the subjects of the manifests.
    pub fn enable_referrers(&self) {
        lock(&self.shared.state).content.referrers = true;
    }

    /// Limits the number of tags per page.
    pub fn tags_page(&self, n: usize) {
        lock(&self.shared.state).content.tags_page = Some(n);
    }

    /// Makes the paths in `Link` headers absolute: `http://127.0.0.1:PORT/…`.
    pub fn absolute_links(&self) {
        lock(&self.shared.state).content.link_prefix = self.url("");
    }
}

/// The script.
impl FakeRegistry {
    /// Makes requests fail; see [`On`] and [`Fault`].
    pub fn fault(&self, on: On, fault: Fault) {
        let mut state = lock(&self.shared.state);
        state.gates.extend(fault.gates());
        state.script.add(on, fault);
    }

    /// Removes all faults. Requests that are already failing continue to fail.
    pub fn clear_faults(&self) {
        lock(&self.shared.state).script.clear();
    }

    /// Allows requests for missing content (`*` in the path matches any text).
    pub fn expect_unknown(&self, path: &str) {
        lock(&self.shared.state).expected_unknown.push(path.to_owned());
    }

    /// Requires bearer tokens, issued at `/token` of this registry.
    pub fn require_bearer(&self, tokens: &TokenServer) {
        self.serve_tokens(tokens);
        self.require_bearer_from(tokens, self);
    }

    /// Requires bearer tokens, issued at `/token` of another registry.
    pub fn require_bearer_from(&self, tokens: &TokenServer, issuer: &FakeRegistry) {
        issuer.serve_tokens(tokens);
        lock(&self.shared.state).auth = Auth::Bearer(tokens.clone(), issuer.url("/token"));
    }

    /// Answers `/token`.
    pub fn serve_tokens(&self, tokens: &TokenServer) {
        lock(&self.shared.state).tokens = Some(tokens.clone());
    }

    /// Requires a user name and a password.
    pub fn require_basic(&self, user: &str, password: &str) {
        lock(&self.shared.state).auth = Auth::Basic(user.to_owned(), password.to_owned());
    }

    /// Requires one of these users. One that may not pull a repository gets `status` for it.
    pub fn require_accounts(&self, accounts: &[Account], status: u16) {
        lock(&self.shared.state).auth = Auth::Accounts(accounts.to_vec(), status);
    }

    /// Offers both schemes, but accepts Basic only.
    pub fn require_basic_and_offer_bearer(&self, tokens: &TokenServer, user: &str, password: &str) {
        self.serve_tokens(tokens);
        let (url, user, password) = (self.url("/token"), user.to_owned(), password.to_owned());
        lock(&self.shared.state).auth = Auth::Both(tokens.clone(), url, user, password);
    }

    /// Requires a login like ECR: an invalid one gets 403.
    pub fn require_ecr(&self, password: &str) {
        lock(&self.shared.state).auth = Auth::Ecr(password.to_owned());
    }

    /// Removes the authentication.
    pub fn require_nothing(&self) {
        lock(&self.shared.state).auth = Auth::Open;
    }

    /// Revokes all valid tokens.
    pub fn expire_tokens(&self) {
        if let Auth::Bearer(tokens, _) = &lock(&self.shared.state).auth {
            tokens.expire_tokens();
        }
    }
}

/// Records.
impl FakeRegistry {
    /// Every request so far, in the order of arrival.
    pub fn requests(&self) -> Vec<Recorded> {
        lock(&self.shared.state).requests.clone()
    }

    /// The requests with this method (`"*"` for any) to this path (`*` matches any text).
    pub fn requests_for(&self, method: &str, path: &str) -> Vec<Recorded> {
        lock(&self.shared.state).requests_for(method, path).cloned().collect()
    }

    /// The number of [`FakeRegistry::requests_for`].
    pub fn count(&self, method: &str, path: &str) -> usize {
        lock(&self.shared.state).requests_for(method, path).count()
    }

    /// Blocks until there have been `n` of these requests, and returns them.
    ///
    /// # Panics
    /// After [`PATIENCE`], with all requests so far.
    #[track_caller]
    pub fn wait_for(&self, method: &str, path: &str, n: usize) -> Vec<Recorded> {
        let state = lock(&self.shared.state);
        let too_few = |state: &mut State| state.requests_for(method, path).count() < n;
        let waited = self.shared.recorded.wait_timeout_while(state, PATIENCE, too_few);
        let (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        let found: Vec<Recorded> = state.requests_for(method, path).cloned().collect();
        let all: Vec<String> = state.requests.iter().map(line).collect();
        // Release the lock before the panic, so that unwinding does not wait for it.
        drop(state);
        let came = found.len();
        assert!(
            !timeout.timed_out(),
            "only {came} of {n} {method} {path} arrived; all requests: {all:#?}"
        );
        found
    }

    /// Clears the records, except for unscripted requests.
    pub fn clear_requests(&self) {
        lock(&self.shared.state).requests.clear();
    }

    /// The number of accepted connections.
    pub fn connection_count(&self) -> u64 {
        self.port.accepted()
    }

    /// The number of body bytes sent, over all responses.
    pub fn body_bytes_sent(&self) -> u64 {
        self.shared.body_bytes_sent.load(Ordering::SeqCst)
    }

    /// Takes the unscripted requests, so that they do not fail the test.
    pub fn take_unscripted(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.shared.state).unscripted)
    }
}

impl Drop for FakeRegistry {
    fn drop(&mut self) {
        self.stop();
        self.shared.until_drop.open();
        let gates = std::mem::take(&mut lock(&self.shared.state).gates);
        gates.iter().for_each(Gate::open);
        let panicked = self.port.join_threads();
        let unscripted = self.take_unscripted();
        if thread::panicking() {
            return;
        }
        assert!(panicked == 0, "{panicked} of the fake registry's threads panicked");
        assert!(unscripted.is_empty(), "unscripted requests: {unscripted:#?}");
    }
}
