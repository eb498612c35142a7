//! **FakeRegistry: an upstream that does what the test says.**
//!
//! A registry on `127.0.0.1` with a port of its own, a thread per connection, HTTP/1.1 with
//! keep-alive. It serves what was put into it, records every request, and fails in scripted ways.
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
//! **An unscripted request fails the test.** Who asks for something that is not there gets the 404
//! that a real registry gives, and the registry panics when it is dropped. A test in which this
//! shall happen says so first: [`FakeRegistry::expect_unknown`]. A request that a fault took is
//! scripted.
//!
//! **Order.** A request is recorded; then authentication answers 401 or lets it pass; then the
//! first fault that matches and is not used up takes it.
//!
//! **Waiting for events.** [`Gate`]s hold requests; [`FakeRegistry::wait_for`] waits for requests.
//!
//! **Dropping** opens every gate of the script, cuts all connections and joins all threads. Let the
//! registry outlive the program under test: it is declared first.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use rustix::net::{AddressFamily, SocketAddrAny, SocketFlags, SocketType};
use rustls::ServerConfig;

use super::fault::{Fault, On};
use super::image::{Manifest, Publish};
use super::server::{Shared, State, line};
use super::tls::{self, Authority, ClientCertificate, Identity};
use super::token::{Auth, TokenServer};
use super::wire::Recorded;
use super::{Gate, PATIENCE, digest_of, lock};

/// See the file's own doc.
pub struct FakeRegistry {
    shared: Arc<Shared>,
    /// The accepting thread; `None` while stopped.
    listening: Mutex<Option<Listening>>,
    authority: Option<Authority>,
    /// Bound and never listening: keeps the port ours while the registry is stopped.
    _port: OwnedFd,
}

struct Listening {
    closing: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

/// Starting, stopping, and where it is.
impl FakeRegistry {
    /// An empty registry over plain HTTP.
    pub fn start() -> FakeRegistry {
        FakeRegistry::launch(None, None)
    }

    /// Over TLS, with a certificate for `127.0.0.1`, `localhost` and `registry.test` by an authority of its own.
    pub fn start_tls() -> FakeRegistry {
        FakeRegistry::launch_tls(ClientCertificate::NotAsked)
    }

    /// Over TLS, for clients with a certificate of [`FakeRegistry::client_identity`] only.
    pub fn start_mtls() -> FakeRegistry {
        FakeRegistry::launch_tls(ClientCertificate::Demanded)
    }

    /// Over TLS, with the certificate and the key in this PEM text.
    pub fn start_with_certificate(pem: &str) -> FakeRegistry {
        FakeRegistry::launch(None, Some(tls::server_config_of(pem)))
    }

    /// Over TLS, with a certificate and a key on the curve P-521, of `p521-authority.pem`.
    pub fn start_p521() -> FakeRegistry {
        FakeRegistry::launch(None, Some(tls::p521_server_config()))
    }

    fn launch_tls(clients: ClientCertificate) -> FakeRegistry {
        let authority = Authority::new("fake registry's authority");
        let config = tls::server_config(&authority, clients);
        FakeRegistry::launch(Some(authority), Some(config))
    }

    fn launch(authority: Option<Authority>, tls: Option<Arc<ServerConfig>>) -> FakeRegistry {
        let (port, address) = reserve_port();
        let shared = Arc::new(Shared::new(address, tls));
        let registry = FakeRegistry { shared, listening: Mutex::new(None), authority, _port: port };
        registry.start_again();
        registry
    }

    /// Refuses connections from now on, and cuts those there are. Content, script and records stay.
    pub fn stop(&self) {
        let Some(listening) = lock(&self.listening).take() else {
            return;
        };
        listening.closing.store(true, Ordering::SeqCst);
        // Wakes the thread out of accept; should it be refused, the thread is awake already.
        let _ = TcpStream::connect(self.shared.address);
        if listening.thread.join().is_err() && !thread::panicking() {
            panic!("the fake registry's accepting thread panicked");
        }
        self.cut_connections();
    }

    /// Listens again, on the same port, after [`FakeRegistry::stop`].
    pub fn start_again(&self) {
        let mut listening = lock(&self.listening);
        assert!(listening.is_none(), "the fake registry is running");
        let listener = TcpListener::bind(self.shared.address).expect("the port is kept for us");
        let closing = Arc::new(AtomicBool::new(false));
        let (shared, flag) = (Arc::clone(&self.shared), Arc::clone(&closing));
        let thread = thread::spawn(move || shared.accept(&listener, &flag));
        *listening = Some(Listening { closing, thread });
    }

    /// Ends every open connection, while new ones are welcome.
    pub fn cut_connections(&self) {
        self.shared.cut_connections();
    }

    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// `127.0.0.1:PORT`: the registry's name in image references.
    pub fn host(&self) -> String {
        self.shared.address.to_string()
    }

    /// `http://127.0.0.1:PORT` (or `https://`) with `path` behind it.
    pub fn url(&self, path: &str) -> String {
        let scheme = if self.shared.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}{path}", self.host())
    }

    /// The certificate to trust.
    ///
    /// # Panics
    /// If the registry speaks plain HTTP.
    pub fn ca_pem(&self) -> String {
        self.authority().pem()
    }

    /// A new client certificate that the registry's authority vouches for.
    ///
    /// # Panics
    /// If the registry speaks plain HTTP.
    pub fn client_identity(&self, name: &str) -> Identity {
        self.authority().issue(&[name])
    }

    fn authority(&self) -> &Authority {
        self.authority.as_ref().expect("only a registry over TLS has an authority")
    }
}

/// Content. What is put in is copied.
impl FakeRegistry {
    /// Puts an image or index with all that belongs to it into a repository, under a tag. Returns
    /// its digest.
    pub fn add(&self, repository: &str, tag: &str, content: &impl Publish) -> String {
        let digest = self.add_untagged(repository, content);
        self.tag(repository, tag, &digest);
        digest
    }

    /// As [`FakeRegistry::add`], reachable by digest only.
    pub fn add_untagged(&self, repository: &str, content: &impl Publish) -> String {
        lock(&self.shared.state).content.publish(repository, content)
    }

    /// Lets the tag point to that manifest, whether it is there or not.
    pub fn tag(&self, repository: &str, tag: &str, digest: &str) {
        lock(&self.shared.state).content.tag(repository, tag, digest);
    }

    /// One blob by itself. Returns its sha256 digest.
    pub fn add_blob(&self, repository: &str, bytes: &[u8]) -> String {
        let digest = digest_of(bytes);
        self.add_blob_as(repository, &digest, bytes);
        digest
    }

    /// One blob under any digest, right or wrong.
    pub fn add_blob_as(&self, repository: &str, digest: &str, bytes: &[u8]) {
        lock(&self.shared.state).content.add_blob(repository, digest.to_owned(), bytes.to_vec());
    }

    /// Any bytes as a manifest under a tag, nothing else. Returns their sha256 digest.
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

    /// A plain file at a path outside `/v2/`, Range included: what a redirect leads to. Whatever
    /// query it is asked with (a signature, say) is recorded and ignored.
    pub fn add_file(&self, path: &str, content_type: &str, bytes: &[u8]) {
        lock(&self.shared.state).content.add_file(path, content_type, bytes.to_vec());
    }

    /// Answers `/referrers/` from the subjects of the manifests; without this it is unknown.
    pub fn enable_referrers(&self) {
        lock(&self.shared.state).content.referrers = true;
    }

    /// Never lists more than so many tags at once.
    pub fn tags_page(&self, n: usize) {
        lock(&self.shared.state).content.tags_page = Some(n);
    }

    /// Puts `http://127.0.0.1:PORT` before the paths in `Link` headers.
    pub fn absolute_links(&self) {
        lock(&self.shared.state).content.link_prefix = self.url("");
    }
}

/// The script.
impl FakeRegistry {
    /// Lets requests go wrong; see [`On`] and [`Fault`].
    pub fn fault(&self, on: On, fault: Fault) {
        let mut state = lock(&self.shared.state);
        state.gates.extend(fault.gates());
        state.script.add(on, fault);
    }

    /// Forgets all faults. Requests that one has taken already stay taken.
    pub fn clear_faults(&self) {
        lock(&self.shared.state).script.clear();
    }

    /// Expects requests for things that are not there (`*` in the path stands for any text).
    pub fn expect_unknown(&self, path: &str) {
        lock(&self.shared.state).expected_unknown.push(path.to_owned());
    }

    /// Demands bearer tokens, which are had at `/token` of this registry.
    pub fn require_bearer(&self, tokens: &TokenServer) {
        self.serve_tokens(tokens);
        self.require_bearer_from(tokens, self);
    }

    /// Demands bearer tokens, which are had at `/token` of another registry.
    pub fn require_bearer_from(&self, tokens: &TokenServer, issuer: &FakeRegistry) {
        issuer.serve_tokens(tokens);
        lock(&self.shared.state).auth = Auth::Bearer(tokens.clone(), issuer.url("/token"));
    }

    /// Answers `/token`.
    pub fn serve_tokens(&self, tokens: &TokenServer) {
        lock(&self.shared.state).tokens = Some(tokens.clone());
    }

    /// Demands a user name and a password.
    pub fn require_basic(&self, user: &str, password: &str) {
        lock(&self.shared.state).auth = Auth::Basic(user.to_owned(), password.to_owned());
    }

    /// Offers tokens and Basic, and accepts Basic alone.
    pub fn require_basic_and_offer_bearer(&self, tokens: &TokenServer, user: &str, password: &str) {
        self.serve_tokens(tokens);
        let (url, user, password) = (self.url("/token"), user.to_owned(), password.to_owned());
        lock(&self.shared.state).auth = Auth::Both(tokens.clone(), url, user, password);
    }

    /// Demands a login as Amazon's registry does: one that does not do is answered 403.
    pub fn require_ecr(&self, password: &str) {
        lock(&self.shared.state).auth = Auth::Ecr(password.to_owned());
    }

    /// Lets everybody in again.
    pub fn require_nothing(&self) {
        lock(&self.shared.state).auth = Auth::Open;
    }

    /// Revokes every token that is good here.
    pub fn expire_tokens(&self) {
        if let Auth::Bearer(tokens, _) = &lock(&self.shared.state).auth {
            tokens.expire_tokens();
        }
    }
}

/// What happened.
impl FakeRegistry {
    /// Every request so far, in the order of arrival.
    pub fn requests(&self) -> Vec<Recorded> {
        lock(&self.shared.state).requests.clone()
    }

    /// The requests of that method (`"*"` for any) to that path (`*` in it for any text).
    pub fn requests_for(&self, method: &str, path: &str) -> Vec<Recorded> {
        lock(&self.shared.state).requests_for(method, path).cloned().collect()
    }

    /// How many [`FakeRegistry::requests_for`] finds.
    pub fn count(&self, method: &str, path: &str) -> usize {
        lock(&self.shared.state).requests_for(method, path).count()
    }

    /// Blocks until there were `n` such requests, and returns them.
    ///
    /// # Panics
    /// After [`PATIENCE`], with all requests there were.
    #[track_caller]
    pub fn wait_for(&self, method: &str, path: &str, n: usize) -> Vec<Recorded> {
        let state = lock(&self.shared.state);
        let too_few = |state: &mut State| state.requests_for(method, path).count() < n;
        let waited = self.shared.recorded.wait_timeout_while(state, PATIENCE, too_few);
        let (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        let found: Vec<Recorded> = state.requests_for(method, path).cloned().collect();
        let all: Vec<String> = state.requests.iter().map(line).collect();
        // Released before the panic, so that the unwinding drop need not wait for it.
        drop(state);
        let came = found.len();
        assert!(!timeout.timed_out(), "{came} of {n} {method} {path} came; all: {all:#?}");
        found
    }

    /// Forgets the requests so far; what was unscripted among them is not forgotten.
    pub fn clear_requests(&self) {
        lock(&self.shared.state).requests.clear();
    }

    /// How many connections were accepted.
    pub fn connection_count(&self) -> u64 {
        self.shared.accepted()
    }

    /// How many body bytes were sent, all answers together.
    pub fn body_bytes_sent(&self) -> u64 {
        self.shared.body_bytes_sent.load(Ordering::SeqCst)
    }

    /// Takes the list of unscripted requests, so that they do not fail the test.
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
        let panicked = self.shared.join_threads();
        let unscripted = self.take_unscripted();
        if thread::panicking() {
            return;
        }
        assert!(panicked == 0, "{panicked} of the fake registry's threads panicked");
        assert!(unscripted.is_empty(), "unscripted requests: {unscripted:#?}");
    }
}

/// A port of our own. While the socket is bound nobody is given the port, and as it never listens,
/// connections are refused unless a listener of ours shares it (both have SO_REUSEADDR).
pub fn reserve_port() -> (OwnedFd, SocketAddr) {
    // Not inherited: a server under test that was started as a child must not keep the port.
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)
        .expect("a socket can be made");
    rustix::net::sockopt::set_socket_reuseaddr(&socket, true).expect("the option is known");
    rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let name: SocketAddrAny = rustix::net::getsockname(&socket).expect("a bound socket has a name");
    let address = SocketAddrV4::try_from(name).expect("an IPv4 socket has an IPv4 address");
    (socket, SocketAddr::V4(address))
}
