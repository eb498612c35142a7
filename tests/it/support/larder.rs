//! **Larder: the server under test, in this process, assembled as in `commands/serve.rs`.**
//!
//! ```ignore
//! let registry = FakeRegistry::start();
//! let larder = Larder::start(&registry);
//! assert_eq!(larder.get("/v2/team/app/manifests/v1").status, 200);
//! larder.advance(minutes(10));                              // advances the clock of the cache
//! larder.restart_with(|settings| settings.cache.air_gapped = true);
//! ```
//!
//! The registry is listed and is the default for requests that name none. Unlisted registries are denied, so that no
//! test leaves the machine. Upstream timeouts are longer than a test waits, so that a gate may stay closed; tests of
//! silent upstreams make them short ([`Settings::be_impatient`]). The clock changes only by [`Larder::advance`].
//!
//! **Dropping** drains the server, joins its threads, and fails the test if a handler panicked. Declare the registry
//! first and the server second, so that the server is dropped first: its fetches end with the registry.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use larder::api::{Api, Naming};
use larder::cache::{
    self, Cache, Counts, IndexWriter, UploadSettings, UploadThread, UpstreamStatus,
};
use larder::http::{self, Context, Controller, Ending, Handler, Outcome, Request, Server, Step};
use larder::store::{self, Store};
use larder::upstream::{
    self, BreakerPolicy, Bucket, Endpoint, EndpointSettings, ProxySettings, RateLimit, Registries,
    RegistrySettings, Scheme, Sources, Timeouts, UnlistedPorts, UnlistedRegistries,
};

use super::client::{self, Connection};
use super::response::Response;
use super::{FakeRegistry, PATIENCE, lock};

/// The timeout for the response head of an upstream, if it is short.
pub const HEADERS_TIMEOUT: Duration = Duration::from_secs(2);
/// The timeout for silence during a blob, if it is short.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(1);
/// The drain timeout, for clients that a test leaves open on purpose.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(300);
/// The initial time in seconds since 1970. A whole second, because records have no fractions.
const NOON: u64 = 1_800_000_000;

/// The settings that a test may change.
#[derive(Clone)]
pub struct Settings {
    pub cache: cache::Settings,
    pub upstream: upstream::Settings,
    /// How content is uploaded to the bucket, if there is one.
    pub uploads: Option<UploadSettings>,
    /// From how many bytes of a cached blob on clients are redirected to the bucket.
    pub redirects: Option<u64>,
    pub http: http::Settings,
    pub naming: Naming,
}

/// A response that has ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Path and query as the client sent them.
    pub target: String,
    pub status: u16,
    pub outcome: Outcome,
}

/// See the module documentation.
pub struct Larder {
    settings: Settings,
    clock: Arc<Mutex<SystemTime>>,
    ended: Arc<Endings>,
    running: Option<Running>,
    directory: Arc<tempfile::TempDir>,
}

struct Running {
    address: SocketAddr,
    controller: Controller,
    thread: JoinHandle<()>,
    cache: Cache,
    registries: Arc<Registries>,
    _keeper: IndexWriter,
    uploads: Option<UploadThread>,
}

/// Starting, stopping, time.
impl Larder {
    /// A server with this registry.
    pub fn start(registry: &FakeRegistry) -> Larder {
        Larder::start_with(registry, |_| {})
    }

    /// As [`Larder::start`], with changed settings.
    pub fn start_with(registry: &FakeRegistry, change: impl FnOnce(&mut Settings)) -> Larder {
        Larder::start_alone(|settings| {
            settings.list(&registry.host(), registry);
            settings.naming.default_upstream = registry.host().parse().ok();
            change(settings);
        })
    }

    /// A server with only those registries that `change` lists.
    pub fn start_alone(change: impl FnOnce(&mut Settings)) -> Larder {
        let mut settings = Settings::of_tests();
        change(&mut settings);
        let clock = SystemTime::UNIX_EPOCH + Duration::from_secs(NOON);
        let mut larder = Larder {
            settings,
            clock: Arc::new(Mutex::new(clock)),
            ended: Arc::default(),
            running: None,
            directory: Arc::new(tempfile::tempdir().expect("a temporary directory")),
        };
        larder.run();
        larder
    }

    /// Another server on the same directory and clock, as another process or pod would be.
    pub fn second(&self) -> Larder {
        let mut second = Larder {
            settings: self.settings.clone(),
            clock: Arc::clone(&self.clock),
            ended: Arc::default(),
            running: None,
            directory: Arc::clone(&self.directory),
        };
        second.run();
        second
    }

    /// Drains and restarts on the same directory. The clock is unchanged.
    pub fn restart(&mut self) {
        self.restart_with(|_| {});
    }

    /// As [`Larder::restart`], with changed settings.
    pub fn restart_with(&mut self, change: impl FnOnce(&mut Settings)) {
        self.stop();
        change(&mut self.settings);
        self.run();
    }

    /// Drains. Later connections are refused.
    pub fn stop(&mut self) {
        let Some(mut running) = self.running.take() else { return };
        drop(running.uploads.take());
        running.controller.drain();
        let joined = running.thread.join();
        running.cache.close();
        if joined.is_err() && !thread::panicking() {
            panic!("the server's thread panicked");
        }
    }

    /// Starts again after [`Larder::stop`].
    pub fn run(&mut self) {
        let root = self.directory.path().join("cache");
        let store =
            Store::open(&store::Settings { root, fsync: false }).expect("a cache directory");
        let registries = Arc::new(Registries::new(self.settings.upstream.clone()));
        let clock = Arc::clone(&self.clock);
        let now = Arc::new(move || *lock(&clock));
        let cache = Cache::new(store.clone(), registries.clone(), self.settings.cache.clone(), now);
        let api = Api::new(cache.clone(), self.settings.naming.clone());
        let handler = Arc::new(Watched { api, ended: Arc::clone(&self.ended) });
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let server = Server::bind(&[listen], self.settings.http.clone(), None, handler)
            .expect("a port of the loopback interface");
        let (address, controller) = (server.address(), server.controller());
        let thread = thread::spawn(move || {
            server.run();
        });
        let keeper = IndexWriter::start(cache.clone()).expect("a new thread");
        let uploads = self.settings.uploads.as_ref().zip(registries.shared_bucket());
        let uploads = uploads.map(|(settings, bucket)| {
            UploadThread::start(cache.clone(), bucket, settings.clone()).expect("a new thread")
        });
        if let Some((bytes, bucket)) = self.settings.redirects.zip(registries.shared_bucket()) {
            cache.redirect_to(bucket, bytes);
        }
        let running =
            Running { address, controller, thread, cache, registries, _keeper: keeper, uploads };
        self.running = Some(running);
    }

    /// Advances the clock of the cache.
    pub fn advance(&self, by: Duration) {
        *lock(&self.clock) += by;
    }
}

/// Requests.
impl Larder {
    pub fn address(&self) -> SocketAddr {
        self.running().address
    }

    /// A new connection.
    pub fn connect(&self) -> Connection {
        Connection::open(self.address())
    }

    /// Sends a GET. Afterwards, a manifest that was fetched for it is on the disk.
    #[track_caller]
    pub fn get(&self, target: &str) -> Response {
        self.request("GET", target, &[])
    }

    /// As [`Larder::get`], with HEAD.
    #[track_caller]
    pub fn head(&self, target: &str) -> Response {
        self.request("HEAD", target, &[])
    }

    /// As [`Larder::get`], with another method and header fields.
    #[track_caller]
    pub fn request(&self, method: &str, target: &str, headers: &[(&str, &str)]) -> Response {
        let response = client::request(self.address(), method, target, headers);
        self.cache().wait_until_stored(None);
        response
    }

    /// Sends a GET without reading the response.
    pub fn begin(&self, target: &str) -> Connection {
        let mut connection = self.connect();
        connection.send("GET", target, &[]);
        connection
    }

    fn running(&self) -> &Running {
        self.running.as_ref().expect("the server was stopped by this test")
    }
}

/// Inspection.
impl Larder {
    /// The cache directory.
    pub fn root(&self) -> PathBuf {
        self.directory.path().join("cache")
    }

    /// The path of the content with this digest, whether it exists or not.
    pub fn blob_file(&self, digest: &str) -> PathBuf {
        let (algorithm, hex) = digest.split_once(':').expect("a digest");
        self.root().join("blobs").join(algorithm).join(hex)
    }

    pub fn has(&self, digest: &str) -> bool {
        self.blob_file(digest).exists()
    }

    /// Blocks until the content with this digest is published in the cache, which may happen after a client has received its
    /// last byte.
    #[track_caller]
    pub fn wait_until_cached(&self, digest: &str) {
        until(&format!("{digest} in the cache"), || self.has(digest));
    }

    /// Every file below `blobs/` and `refs/`: the content that the cache has published.
    pub fn names(&self) -> Vec<PathBuf> {
        let mut names = files(&self.root().join("blobs"));
        names.extend(files(&self.root().join("refs")));
        names
    }

    /// The partial downloads.
    pub fn partials(&self) -> Vec<PathBuf> {
        let mut files = files(&self.root().join("partials"));
        files.retain(|path| path.extension().is_none());
        files
    }

    /// The cache of the running server.
    pub fn cache(&self) -> Cache {
        self.running().cache.clone()
    }

    /// The store of the running server.
    pub fn store(&self) -> Store {
        self.running().cache.store().clone()
    }

    /// The bucket of the running server.
    pub fn bucket(&self) -> Bucket {
        self.running().registries.shared_bucket().expect("the settings have a bucket")
    }

    /// Runs the check that the maintenance thread performs twice a second.
    pub fn check_offline_switch(&self) {
        self.running().cache.check_switches();
    }

    /// The upstreams as in `/health?verbose`.
    pub fn upstreams(&self) -> Vec<UpstreamStatus> {
        self.running().cache.upstreams()
    }

    /// The counters since the start.
    pub fn counts(&self) -> Counts {
        self.running().cache.counts()
    }

    /// The rate limits that registries have reported, by name.
    pub fn quotas(&self) -> Vec<(String, RateLimit)> {
        let quota_of = |status: UpstreamStatus| {
            let quota = status.endpoints.first()?.quota.clone()?;
            Some((status.upstream.to_string(), quota))
        };
        self.upstreams().into_iter().filter_map(quota_of).collect()
    }

    /// The number of connected clients.
    pub fn connections(&self) -> usize {
        self.running().controller.connections()
    }

    /// Blocks until `n` responses to this target have ended, and returns them.
    #[track_caller]
    pub fn wait_for_ended(&self, target: &str, n: usize) -> Vec<Ended> {
        let too_few = |all: &mut Vec<Ended>| all.iter().filter(|e| e.target == target).count() < n;
        let list = lock(&self.ended.list);
        let waited = self.ended.changed.wait_timeout_while(list, PATIENCE, too_few);
        let (list, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        let found: Vec<Ended> = list.iter().filter(|e| e.target == target).cloned().collect();
        drop(list);
        assert!(
            !timeout.timed_out(),
            "only {} of {n} responses to {target} have ended",
            found.len()
        );
        found
    }
}

impl Drop for Larder {
    fn drop(&mut self) {
        self.stop();
        let panicked = |ended: &&Ended| ended.outcome == Outcome::Panicked;
        let panicked: Vec<Ended> =
            lock(&self.ended.list).iter().filter(panicked).cloned().collect();
        if !thread::panicking() {
            assert!(panicked.is_empty(), "handlers panicked: {panicked:#?}");
        }
    }
}

/// Makes interrupted downloads fail at once, so that tests see the failure. Tests of resuming use another policy.
fn no_retries() -> cache::RetryPolicy {
    cache::RetryPolicy { fruitless_max: 0, ..cache::RetryPolicy::default() }
}

impl Settings {
    fn of_tests() -> Settings {
        // Loopback connections need no time, but a TLS handshake on a busy machine may.
        let connect = Duration::from_secs(10);
        let [headers, stall, metadata, probe] = [2 * PATIENCE; 4];
        let timeouts = Timeouts { connect, headers, stall, metadata, probe };
        Settings {
            cache: cache::Settings {
                retry: no_retries(),
                // Off, because tests count the requests to a registry.
                prefetch: cache::Prefetch { blobs: false, ..cache::Prefetch::default() },
                ..cache::Settings::default()
            },
            upstream: upstream::Settings {
                peers: None,
                bucket: None,
                parents: Vec::new(),
                registries: Vec::new(),
                unlisted: UnlistedRegistries::Deny,
                unlisted_ports: UnlistedPorts::default(),
                timeouts,
                // Off unless a test sets it, because tests make registries fail many times.
                breaker: BreakerPolicy { failures: u32::MAX, ..BreakerPolicy::default() },
                proxies: ProxySettings::default(),
            },
            uploads: None,
            redirects: None,
            http: http::Settings {
                workers: 4,
                max_connections: 1024,
                drain_timeout: DRAIN_TIMEOUT,
                ..http::Settings::default()
            },
            naming: Naming::default(),
        }
    }

    /// Short timeouts, for upstreams that say nothing.
    pub fn be_impatient(&mut self) {
        self.upstream.timeouts = Timeouts {
            headers: HEADERS_TIMEOUT,
            stall: STALL_TIMEOUT,
            metadata: Duration::from_secs(3),
            ..self.upstream.timeouts
        };
    }

    /// Lists the registry under this name, whatever its address.
    pub fn list(&mut self, name: &str, registry: &FakeRegistry) -> &mut EndpointSettings {
        let upstream = name.parse().expect("the name of a registry");
        let endpoints = vec![Settings::endpoint(registry)];
        self.upstream.registries.push(RegistrySettings { upstream, endpoints, rate_limit: None });
        let entry = self.upstream.registries.last_mut().expect("one was pushed");
        &mut entry.endpoints[0]
    }

    /// Lists a registry with these endpoints, which are tried in order.
    pub fn list_all(&mut self, name: &str, endpoints: &[&FakeRegistry]) {
        let upstream = name.parse().expect("the name of a registry");
        let endpoints = endpoints.iter().copied().map(Settings::endpoint).collect();
        self.upstream.registries.push(RegistrySettings { upstream, endpoints, rate_limit: None });
    }

    pub fn endpoint(registry: &FakeRegistry) -> EndpointSettings {
        let is_tls = registry.url("").starts_with("https");
        let scheme = if is_tls { Scheme::Https } else { Scheme::Http };
        EndpointSettings::at(Endpoint::new(scheme, &registry.host()))
    }

    /// Adds an alias for a registry, for use in paths and namespaces.
    pub fn alias(&mut self, alias: &str, name: &str) {
        let upstream = name.parse().expect("the name of a registry");
        self.naming.aliases.insert(alias.to_owned(), upstream);
    }
}

/// The handler under test, recording how its responses end.
struct Watched {
    api: Api,
    ended: Arc<Endings>,
}

#[derive(Default)]
struct Endings {
    list: Mutex<Vec<Ended>>,
    changed: Condvar,
}

impl Handler for Watched {
    fn handle(&self, request: &Request, context: &Context<'_>) -> Step {
        self.api.handle(request, context)
    }

    fn finished(&self, request: &Request, ending: &Ending) {
        self.api.finished(request, ending);
        let target = match request.query() {
            Some(query) => format!("{}?{query}", request.path()),
            None => request.path().to_owned(),
        };
        let ended = Ended { target, status: ending.status, outcome: ending.outcome.clone() };
        lock(&self.ended.list).push(ended);
        self.ended.changed.notify_all();
    }
}

/// The path of a manifest.
pub fn manifest(repository: &str, reference: &str) -> String {
    format!("/v2/{repository}/manifests/{reference}")
}

/// The path of a blob.
pub fn blob(repository: &str, digest: &str) -> String {
    format!("/v2/{repository}/blobs/{digest}")
}

pub fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Blocks until a condition holds that has no event to wait for, such as the existence of a file or a counter.
///
/// # Panics
/// After [`PATIENCE`].
#[track_caller]
pub fn until(awaited: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{PATIENCE:?} have passed without {awaited}");
        // Polling interval, not a fixed wait.
        thread::sleep(Duration::from_millis(1));
    }
}

/// Every file below a directory.
pub fn files(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut found = Vec::new();
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found
}
