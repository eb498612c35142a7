//! **Larder: the server under test, in this process, put together as `commands/serve.rs` does it.**
//!
//! ```ignore
//! let registry = FakeRegistry::start();
//! let larder = Larder::start(&registry);
//! assert_eq!(larder.get("/v2/team/app/manifests/v1").status, 200);
//! larder.advance(minutes(10));                              // the cache's clock, nobody else's
//! larder.restart_with(|settings| settings.cache.air_gapped = true);
//! ```
//!
//! The registry is listed, and is what requests that name none mean; registries that are not listed
//! are not dialled, so that no test reaches the world. Waits for upstream are short
//! ([`HEADERS_TIMEOUT`], [`STALL_TIMEOUT`]); the clock stands still until [`Larder::advance`].
//!
//! **Dropping** drains and joins, and fails the test if a handler panicked. Declare the registry first
//! and the server second, so that the server goes first: its fetches end with the registry.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use larder::api::{Api, Naming};
use larder::cache::{self, Cache, Counts, IndexWriter, UpstreamStatus};
use larder::http::{self, Context, Controller, Ending, Handler, Outcome, Request, Server, Step};
use larder::store::{self, Store};
use larder::upstream::{
    self, BreakerPolicy, Endpoint, EndpointSettings, ProxySettings, RateLimit, Registries,
    RegistrySettings, Scheme, Timeouts, UnlistedPorts, UnlistedRegistries,
};

use super::client::{self, Connection};
use super::response::Response;
use super::{FakeRegistry, PATIENCE, lock};

/// How long an upstream may take to begin its answer.
pub const HEADERS_TIMEOUT: Duration = Duration::from_secs(2);
/// How long an upstream may be silent in the middle of a blob.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the drain of a test waits for clients that were left hanging on purpose.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(300);
/// Where the clock begins, in seconds since 1970: a full second, since records keep no fractions.
const NOON: u64 = 1_800_000_000;

/// What a test may choose.
#[derive(Clone)]
pub struct Settings {
    pub cache: cache::Settings,
    pub upstream: upstream::Settings,
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

/// See the file's own doc.
pub struct Larder {
    settings: Settings,
    clock: Arc<Mutex<SystemTime>>,
    ended: Arc<Endings>,
    running: Option<Running>,
    directory: tempfile::TempDir,
}

struct Running {
    address: SocketAddr,
    controller: Controller,
    thread: JoinHandle<()>,
    cache: Cache,
    registries: Arc<Registries>,
    _index_writer: IndexWriter,
}

/// Starting, stopping, time.
impl Larder {
    /// A server in front of that registry.
    pub fn start(registry: &FakeRegistry) -> Larder {
        Larder::start_with(registry, |_| {})
    }

    /// As [`Larder::start`], with settings of the test's.
    pub fn start_with(registry: &FakeRegistry, change: impl FnOnce(&mut Settings)) -> Larder {
        Larder::start_alone(|settings| {
            settings.list(&registry.host(), registry);
            settings.naming.default_upstream = registry.host().parse().ok();
            change(settings);
        })
    }

    /// A server that knows no registry but those that the test lists.
    pub fn start_alone(change: impl FnOnce(&mut Settings)) -> Larder {
        let mut settings = Settings::short();
        change(&mut settings);
        let clock = SystemTime::UNIX_EPOCH + Duration::from_secs(NOON);
        let mut larder = Larder {
            settings,
            clock: Arc::new(Mutex::new(clock)),
            ended: Arc::default(),
            running: None,
            directory: tempfile::tempdir().expect("a temporary directory can be made"),
        };
        larder.run();
        larder
    }

    /// Drains, and starts again on the same directory. The clock goes on where it is.
    pub fn restart(&mut self) {
        self.restart_with(|_| {});
    }

    /// As [`Larder::restart`], with changed settings.
    pub fn restart_with(&mut self, change: impl FnOnce(&mut Settings)) {
        self.stop();
        change(&mut self.settings);
        self.run();
    }

    /// Drains. Whoever connects after this is refused.
    pub fn stop(&mut self) {
        let Some(running) = self.running.take() else { return };
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
        let index_writer = IndexWriter::start(cache.clone()).expect("one more thread");
        let running =
            Running { address, controller, thread, cache, registries, _index_writer: index_writer };
        self.running = Some(running);
    }

    /// Lets time pass for the cache.
    pub fn advance(&self, by: Duration) {
        *lock(&self.clock) += by;
    }
}

/// Asking.
impl Larder {
    pub fn address(&self) -> SocketAddr {
        self.running().address
    }

    /// A new connection.
    pub fn connect(&self) -> Connection {
        Connection::open(self.address())
    }

    #[track_caller]
    pub fn get(&self, target: &str) -> Response {
        client::get(self.address(), target)
    }

    #[track_caller]
    pub fn head(&self, target: &str) -> Response {
        client::head(self.address(), target)
    }

    #[track_caller]
    pub fn request(&self, method: &str, target: &str, headers: &[(&str, &str)]) -> Response {
        client::request(self.address(), method, target, headers)
    }

    /// A request whose answer is read by nobody yet.
    pub fn begin(&self, target: &str) -> Connection {
        let mut connection = self.connect();
        connection.send("GET", target, &[]);
        connection
    }

    fn running(&self) -> &Running {
        self.running.as_ref().expect("the server was stopped by this test")
    }
}

/// Looking.
impl Larder {
    /// The cache directory.
    pub fn root(&self) -> PathBuf {
        self.directory.path().join("cache")
    }

    /// Where the content of that digest is, if it is.
    pub fn blob_file(&self, digest: &str) -> PathBuf {
        let (algorithm, hex) = digest.split_once(':').expect("a digest");
        self.root().join("blobs").join(algorithm).join(hex)
    }

    pub fn has(&self, digest: &str) -> bool {
        self.blob_file(digest).exists()
    }

    /// Blocks until the content of that digest is in the cache: a client has its last byte before
    /// the file has its name.
    #[track_caller]
    pub fn wait_until_cached(&self, digest: &str) {
        until(&format!("{digest} in the cache"), || self.has(digest));
    }

    /// Every file below `blobs/` and `refs/`: what the cache believes that it has.
    pub fn names(&self) -> Vec<PathBuf> {
        let mut names = files(&self.root().join("blobs"));
        names.extend(files(&self.root().join("refs")));
        names
    }

    /// The downloads under way.
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

    /// What the index writer does twice a second.
    pub fn look_at_offline_switch(&self) {
        self.running().cache.look_at_offline_switch();
    }

    /// What `/health?verbose` tells.
    pub fn upstreams(&self) -> Vec<UpstreamStatus> {
        self.running().cache.upstreams()
    }

    /// What happened how often since the start.
    pub fn counts(&self) -> Counts {
        self.running().cache.counts()
    }

    /// What registries have told about their rate limits, by name.
    pub fn quotas(&self) -> Vec<(String, RateLimit)> {
        let told = |status: UpstreamStatus| {
            let quota = status.endpoints.first()?.quota.clone()?;
            Some((status.upstream.to_string(), quota))
        };
        self.upstreams().into_iter().filter_map(told).collect()
    }

    /// How many clients are connected.
    pub fn connections(&self) -> usize {
        self.running().controller.connections()
    }

    /// Blocks until `n` responses to that target have ended, and returns them.
    #[track_caller]
    pub fn wait_for_ended(&self, target: &str, n: usize) -> Vec<Ended> {
        let too_few = |all: &mut Vec<Ended>| all.iter().filter(|e| e.target == target).count() < n;
        let list = lock(&self.ended.list);
        let waited = self.ended.changed.wait_timeout_while(list, PATIENCE, too_few);
        let (list, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        let found: Vec<Ended> = list.iter().filter(|e| e.target == target).cloned().collect();
        drop(list);
        assert!(!timeout.timed_out(), "{} of {n} responses to {target} have ended", found.len());
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

/// A download that breaks off fails at once, so that a test sees the failure; tests of resuming say
/// otherwise.
fn no_retries() -> cache::RetryPolicy {
    cache::RetryPolicy { fruitless_max: 0, ..cache::RetryPolicy::default() }
}

impl Settings {
    fn short() -> Settings {
        let timeouts = Timeouts {
            // Nothing on the loopback interface waits for it, but TLS on a busy machine may take its time.
            connect: Duration::from_secs(10),
            headers: HEADERS_TIMEOUT,
            stall: STALL_TIMEOUT,
            metadata: Duration::from_secs(3),
        };
        Settings {
            cache: cache::Settings {
                retry: no_retries(),
                // Tests count what a registry is asked.
                prefetch: cache::Prefetch { blobs: false, ..cache::Prefetch::default() },
                ..cache::Settings::default()
            },
            upstream: upstream::Settings {
                registries: Vec::new(),
                unlisted: UnlistedRegistries::Deny,
                unlisted_ports: UnlistedPorts::default(),
                timeouts,
                // A test that wants a breaker says so; others make a registry fail as often as they like.
                breaker: BreakerPolicy { failures: u32::MAX, ..BreakerPolicy::default() },
                proxies: ProxySettings::default(),
            },
            http: http::Settings {
                workers: 4,
                max_connections: 1024,
                drain_timeout: DRAIN_TIMEOUT,
                ..http::Settings::default()
            },
            naming: Naming::default(),
        }
    }

    /// Lists the registry under that name, wherever it really is.
    pub fn list(&mut self, name: &str, registry: &FakeRegistry) -> &mut EndpointSettings {
        let upstream = name.parse().expect("the name of a registry");
        let endpoints = vec![Settings::endpoint(registry)];
        self.upstream.registries.push(RegistrySettings { upstream, endpoints, rate_limit: None });
        let entry = self.upstream.registries.last_mut().expect("one was pushed");
        &mut entry.endpoints[0]
    }

    /// Lists a registry under that name which has these endpoints, to be asked in that order.
    pub fn list_all(&mut self, name: &str, endpoints: &[&FakeRegistry]) {
        let upstream = name.parse().expect("the name of a registry");
        let endpoints = endpoints.iter().copied().map(Settings::endpoint).collect();
        self.upstream.registries.push(RegistrySettings { upstream, endpoints, rate_limit: None });
    }

    fn endpoint(registry: &FakeRegistry) -> EndpointSettings {
        let is_tls = registry.url("").starts_with("https");
        let scheme = if is_tls { Scheme::Https } else { Scheme::Http };
        EndpointSettings::at(Endpoint::new(scheme, &registry.host()))
    }

    /// Lets a path component or a namespace mean the registry of that name.
    pub fn alias(&mut self, alias: &str, name: &str) {
        let upstream = name.parse().expect("the name of a registry");
        self.naming.aliases.insert(alias.to_owned(), upstream);
    }
}

/// The handler under test, and a book of how its responses ended.
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

/// Blocks until something holds that nobody signals (a file's name, a counter of the server's).
///
/// # Panics
/// After [`PATIENCE`].
#[track_caller]
pub fn until(awaited: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{PATIENCE:?} have passed without {awaited}");
        // Not a wait for an amount of time: a breath between two looks.
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
