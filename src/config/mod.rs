//! From a configuration file and flags to validated [`Settings`]: at start, and whenever the file changes.
//!
//! This room knows every other room's settings, and no room knows this one: nothing below reads flags,
//! files or the environment. What is wrong is said with file, line and column, and with what is
//! allowed.

mod auth;
mod aws;
mod clients;
mod difference;
#[cfg(test)]
mod documented;
mod environment;
mod error;
mod file;
mod freshness;
mod registry;
mod show;
mod upkeep;
mod value;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::api::Naming;
use crate::oci::{Choice, Platform, Platforms, Upstream};
use crate::upstream::{
    ProxySettings, RegistrySettings, Timeouts, UnlistedPorts, UnlistedRegistries,
};
use crate::{api, cache, hello, http, store, upstream, users};

pub use difference::Differences;
pub use error::ConfigError;
pub use value::{LogLevel, ParseValueError};

/// A rate as users write it, e.g. `50MB`, in bytes a second.
///
/// # Errors
/// What is allowed.
pub fn parse_rate(text: &str) -> Result<NonZeroU64, ParseValueError> {
    text.parse::<Rate>().map(|rate| rate.0)
}

use file::{File, RegistryEntry};
use value::{Rate, Span, Text, Whole};

/// Where the cache is if nobody says; the reference server's place is another, so that the two can be
/// installed side by side.
pub const DEFAULT_IMAGE_PATH: &str = "/var/lib/larder";
/// The port if nobody says.
pub const DEFAULT_PORT: u16 = 8080;

/// How often all blobs are hashed if nobody says.
const SCRUB_EVERY: Duration = Duration::from_secs(7 * 86_400);
/// How many bytes a second that may read: a terabyte in a day, and no disk minds.
// Twelve million is not zero.
const SCRUB_RATE: NonZeroU64 = NonZeroU64::new(12_000_000).expect("it is not zero");

/// Everything that is in force.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What is logged.
    pub log_level: LogLevel,
    /// Where the log goes; standard error if nowhere else.
    pub log_file: Option<PathBuf>,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Where to answer probes, metrics and the management API.
    pub management: api::ManagementSettings,
    /// The cache directory.
    pub store: store::Settings,
    /// How the cache decides.
    pub cache: cache::Settings,
    /// Whether downloads that an earlier process has left are gone on with unasked.
    pub resume_on_start: bool,
    /// The registries.
    pub upstream: upstream::Settings,
    /// The serving edge.
    pub http: http::Settings,
    /// TLS to clients, if they must speak it.
    pub tls: Option<http::ServerTlsSettings>,
    /// Which clients are served, if not all of them.
    pub access: Option<users::Settings>,
    /// The names of this server that clients may use; any if there are none.
    pub allowed_hosts: Vec<api::HostName>,
    /// How requests name their upstream.
    pub naming: Naming,
    /// When all blobs are hashed, if that is wished.
    pub scrub: Option<cache::ScrubPolicy>,
    /// Lists of images for `larder load` if it is told none.
    pub image_file: Option<String>,
    /// A list of images that the server loads when it starts.
    pub preload_images: Option<PathBuf>,
    /// Which children of an index `larder load` takes if it is told none.
    pub load_platforms: Platforms,
    /// Keys that are known and have no effect in this version, to be said at start.
    pub without_effect: Vec<&'static str>,
}

/// What the command line says over the file.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--config-file`.
    pub config_file: Option<PathBuf>,
    /// `--image-path`.
    pub image_path: Option<PathBuf>,
    /// `--log-level`.
    pub log_level: Option<LogLevel>,
    /// `--log-file`.
    pub log_file: Option<PathBuf>,
    /// `--port`.
    pub port: Option<u16>,
    /// `--host`.
    pub host: Option<IpAddr>,
    /// `--health`.
    pub health: Option<u16>,
    /// `--metrics`.
    pub metrics: Option<u16>,
    /// `--default-ns`.
    pub default_ns: Option<Upstream>,
    /// `--pull-timeout`, in milliseconds.
    pub pull_timeout_ms: Option<u64>,
    /// `--preload-images`.
    pub preload_images: Option<PathBuf>,
    /// `--os`.
    pub os: Option<String>,
    /// `--arch`.
    pub arch: Option<String>,
    /// `--air-gapped`.
    pub air_gapped: bool,
    /// `--always-pull-latest`.
    pub always_pull_latest: bool,
    /// `--hello-world`.
    pub hello_world: bool,
}

/// Reads the file, if one is named, puts the flags over it, and adds the environment's proxies.
///
/// # Errors
/// [`ConfigError`] for a file that cannot be read, does not parse, or contradicts itself, and for a proxy
/// that is none.
pub fn load(overrides: Overrides) -> Result<Settings, ConfigError> {
    let file = match &overrides.config_file {
        Some(path) => read(path)?,
        None => File::default(),
    };
    let mut settings = build(file, overrides)?;
    settings.upstream.proxies = environment::proxies(|name| std::env::var_os(name))?;
    Ok(settings)
}

fn read(path: &Path) -> Result<File, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    parse(path, &text)
}

fn parse(path: &Path, text: &str) -> Result<File, ConfigError> {
    serde_saphyr::from_str(text).map_err(|error| ConfigError::Parse {
        path: path.to_owned(),
        position: error.location().map(|at| (at.line(), at.column())),
        // The rest of the parser's text quotes the file, and files hold passwords.
        reason: first_line(&error.to_string()),
    })
}

/// The parser's message without its own position and without the lines that quote the file.
fn first_line(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    let line = line.strip_prefix("error: ").unwrap_or(line);
    match line.strip_prefix("line ").and_then(|rest| rest.split_once(": ")) {
        Some((_, reason)) => for_operators(reason),
        None => for_operators(line),
    }
}

/// What the parser says to programmers, said to whoever wrote the file.
fn for_operators(reason: &str) -> String {
    match reason {
        "expected mapping start" => {
            "this is a map: `key: value` on lines of their own, or {key: value}".into()
        }
        "expected sequence start" => {
            "this is a list: lines that begin with `- `, or [one, other]".into()
        }
        other => {
            let twice = other.strip_prefix("duplicate mapping key: ");
            match twice.and_then(|rest| rest.split_once(", set DuplicateKeyPolicy")) {
                Some((key, _)) => format!("the key {key} stands there twice"),
                None => other.to_owned(),
            }
        }
    }
}

fn build(file: File, over: Overrides) -> Result<Settings, ConfigError> {
    let host = over.host.or(file.host.as_ref().map(|host| host.0));
    let host = host.unwrap_or(IpAddr::from([0, 0, 0, 0]));
    let listen = SocketAddr::new(
        host,
        over.port.or(file.port.as_ref().map(|port| port.0.0)).unwrap_or(DEFAULT_PORT),
    );
    let root = over.image_path.clone().or(file.image_path.clone());
    Ok(Settings {
        log_level: over
            .log_level
            .or(file.log_level.as_ref().map(|level| level.0))
            .unwrap_or(LogLevel::Info),
        log_file: over.log_file.clone().or(file.log_file.clone()),
        listen,
        management: upkeep::management(&file, &over, listen)?,
        store: store::Settings {
            root: root.unwrap_or_else(|| DEFAULT_IMAGE_PATH.into()),
            fsync: file.fsync.unwrap_or(true),
        },
        cache: cache_settings(&file, &over)?,
        resume_on_start: file.resume_on_start.unwrap_or(true),
        upstream: upstream_settings(&file, &over)?,
        http: http_settings(&file),
        tls: clients::tls(&file)?,
        access: clients::access(&file),
        allowed_hosts: clients::allowed_hosts(&file),
        naming: Naming {
            default_upstream: over
                .default_ns
                .clone()
                .or(file.default_ns.as_ref().map(|ns| ns.0.clone())),
            aliases: aliases(file.registries.as_deref().unwrap_or_default())?,
        },
        scrub: scrub(&file),
        image_file: file.image_file.clone(),
        preload_images: over.preload_images.clone().or(file.preload_images.clone()),
        load_platforms: load_platforms(&file, &over)?,
        without_effect: file.without_effect(),
    })
}

fn cache_settings(file: &File, over: &Overrides) -> Result<cache::Settings, ConfigError> {
    let default = cache::Settings::default();
    let always_pull_latest = over.always_pull_latest || file.always_pull_latest == Some(true);
    let span =
        |value: &Option<Text<Span>>, default| value.as_ref().map_or(default, |span| span.0.0);
    let mut settings = cache::Settings {
        freshness: freshness::policy(file, always_pull_latest),
        revalidate_timeout: span(&file.revalidate_timeout, default.revalidate_timeout),
        negative_ttl: span(&file.negative_ttl, default.negative_ttl),
        prefetch: prefetch(file),
        upkeep: upkeep::upkeep(file)?,
        air_gapped: over.air_gapped || file.air_gapped == Some(true),
        minimum_rate: file.minimum_rate.as_ref().map_or(default.minimum_rate, |rate| rate.0.0),
        blob_fetchers: count(&file.max_downloads, default.blob_fetchers),
        downloads_per_upstream: downloads_per_upstream(file),
        ..default
    };
    if over.hello_world || file.hello_world == Some(true) {
        has_image_of_its_own(&mut settings);
    }
    Ok(settings)
}

impl Settings {
    /// Leaves `helloWorld` as it was at the start, when its image came into the cache or did not.
    pub fn keep_hello_world_of(&mut self, started: &Settings) {
        self.cache.freshness.own.clone_from(&started.cache.freshness.own);
        self.cache.upkeep.pins.own.clone_from(&started.cache.upkeep.pins.own);
    }
}

/// `helloWorld`: nobody is asked for that image, and what a server is to have must not be evicted.
fn has_image_of_its_own(settings: &mut cache::Settings) {
    let image = hello::reference();
    settings.freshness.own = Some(image.clone());
    settings.upkeep.pins.own = Some(Choice::Exact(image));
}

/// Which children of an index are loaded: those of `os` and `arch`, else of `platforms`, else this
/// machine's. Containers are Linux's unless somebody says otherwise.
fn load_platforms(file: &File, over: &Overrides) -> Result<Platforms, ConfigError> {
    let (os, arch) =
        (over.os.as_ref().or(file.os.as_ref()), over.arch.as_ref().or(file.arch.as_ref()));
    let configured = prefetch(file).platforms;
    if os.is_none() && arch.is_none() && !configured.is_none() {
        return Ok(configured);
    }
    let os = os.map_or("linux", String::as_str);
    let platform = format!("{os}/{}", arch.map_or(architecture(), String::as_str));
    Platforms::parse([platform.as_str()])
        .map_err(|error| ConfigError::Value { key: "os and arch", reason: error.to_string() })
}

/// This machine's architecture as images call it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// Every week if nobody says otherwise; never if `every` is 0.
fn scrub(file: &File) -> Option<cache::ScrubPolicy> {
    let entry = file.scrub.as_ref();
    let every = entry.and_then(|scrub| scrub.every.as_ref()).map_or(SCRUB_EVERY, |span| span.0.0);
    let rate = entry.and_then(|scrub| scrub.rate.as_ref()).map_or(SCRUB_RATE, |rate| rate.0.0);
    (!every.is_zero()).then_some(cache::ScrubPolicy { every, rate })
}

fn prefetch(file: &File) -> cache::Prefetch {
    let default = cache::Prefetch::default();
    let platforms = file.platforms.iter().flatten().map(|each| each.0.0.clone());
    let platforms: Option<Vec<Platform>> = platforms.collect();
    cache::Prefetch {
        blobs: file.prefetch.unwrap_or(default.blobs),
        platforms: platforms.map_or(Platforms::All, Platforms::Only),
        referrers: file.prefetch_referrers.unwrap_or(default.referrers),
    }
}

/// What entries of `registries` say about downloads at a time.
fn downloads_per_upstream(file: &File) -> HashMap<Upstream, usize> {
    let entries = file.registries.iter().flatten();
    let limited = entries.filter(|entry| entry.max_downloads.is_some());
    limited.map(|entry| (entry.name.0.clone(), count(&entry.max_downloads, 1))).collect()
}

fn upstream_settings(file: &File, over: &Overrides) -> Result<upstream::Settings, ConfigError> {
    let mut registries: Vec<RegistrySettings> = Vec::new();
    for entry in file.registries.iter().flatten() {
        let upstream = entry.name.0.clone();
        if registries.iter().any(|before| before.upstream == upstream) {
            return Err(ConfigError::Twice { name: upstream.to_string() });
        }
        registries.push(registry::settings(entry)?);
    }
    let mut timeouts = Timeouts::default();
    if let Some(milliseconds) =
        over.pull_timeout_ms.or(file.pull_timeout.as_ref().map(|timeout| timeout.0.0.into()))
    {
        timeouts.headers = Duration::from_millis(milliseconds);
        timeouts.metadata = timeouts.headers;
    }
    let unlisted = file.unlisted_registries.map(UnlistedRegistries::from).unwrap_or_default();
    let ports = file.unlisted_ports.as_ref();
    let unlisted_ports = ports
        .map(|ports| UnlistedPorts::new(ports.iter().map(|port| port.0.0)))
        .unwrap_or_default();
    let proxies = ProxySettings::default();
    Ok(upstream::Settings {
        registries,
        unlisted,
        unlisted_ports,
        timeouts,
        proxies,
        ..upstream::Settings::default()
    })
}

fn http_settings(file: &File) -> http::Settings {
    let default = http::Settings::default();
    http::Settings {
        workers: count(&file.workers, default.workers),
        max_connections: count(&file.max_connections, default.max_connections),
        drain_timeout: file.drain_timeout.as_ref().map_or(default.drain_timeout, |span| span.0.0),
        ..default
    }
}

/// A count, never zero: a server without workers would be none.
fn count(given: &Option<Text<Whole<u32>>>, default: usize) -> usize {
    given.as_ref().map_or(default, |count| usize::try_from(count.0.0).unwrap_or(usize::MAX).max(1))
}

/// The aliases of all registries, checked against each other and against the names.
fn aliases(registries: &[RegistryEntry]) -> Result<HashMap<String, Upstream>, ConfigError> {
    let mut aliases: HashMap<String, Upstream> = HashMap::new();
    for entry in registries {
        for alias in entry.aliases.iter().flatten() {
            let refuse = |reason| Err(ConfigError::Alias { alias: alias.clone(), reason });
            let alias_key = alias.to_ascii_lowercase();
            let is_legal = !alias_key.is_empty()
                && alias_key
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte));
            if !is_legal {
                return refuse("may have only letters, digits, '.', '-', '_' and ':'");
            }
            if registries.iter().any(|other| other.name.0.as_str() == alias_key) {
                return refuse("is the name of a listed registry");
            }
            if aliases.insert(alias_key, entry.name.0.clone()).is_some() {
                return refuse("is given twice");
            }
        }
    }
    Ok(aliases)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{OnUpstreamDelete, Prefetch, Ttl};
    use crate::certificates::IdentityFiles;
    use crate::http::{ClientAuth, ServerTlsSettings};
    use crate::oci::ImageName;
    use crate::prune;
    use crate::upstream::{Credentials, HelperSettings, Scheme, Secret, TlsSettings};

    fn settings(text: &str) -> Result<Settings, String> {
        let file = parse(Path::new("larder.yaml"), text).map_err(|error| error.to_string())?;
        build(file, Overrides::default()).map_err(|error| error.to_string())
    }

    #[test]
    fn no_configuration_serves_any_public_registry() {
        let settings = load(Overrides::default()).unwrap();
        assert_eq!(settings.listen.to_string(), "0.0.0.0:8080");
        assert_eq!(settings.upstream.unlisted, UnlistedRegistries::Allow);
        assert_eq!(settings.naming.default_upstream, None);
        assert!(settings.store.fsync && !settings.cache.air_gapped);
    }

    #[test]
    fn a_reference_servers_file_is_understood() {
        let text = "
imagePath: /tmp/images
logLevel: warn
port: 9090
host: 127.0.0.1
os: linux
arch: amd64
pullTimeout: 10000
alwaysPullLatest: true
airGapped: false
helloWorld: false
defaultNs: docker.io
health: 8081
metrics: 9091
preloadImages: /tmp/list
registries:
  - name: localhost:8080
    description: plain
    scheme: http
  - name: quay.io
    tls:
      insecureSkipVerify: true
pruneConfig:
  enabled: false
  duration: 30d
  type: accessed
  frequency: 1d
  count: -1
  dryRun: false
serverTlsConfig: {}
";
        let settings = settings(text).unwrap();
        assert_eq!(settings.listen.to_string(), "127.0.0.1:9090");
        let listeners = &settings.management.listeners;
        let ports: Vec<u16> = listeners.iter().map(|each| each.address.port()).collect();
        assert_eq!(ports, [8081, 9091]);
        assert_eq!(settings.cache.upkeep, cache::Upkeep::default());
        assert_eq!(settings.log_level, LogLevel::Warn);
        assert_eq!(settings.upstream.timeouts.headers, Duration::from_secs(10));
        let [local, quay] = &settings.upstream.registries[..] else { panic!("two registries") };
        let (local, quay) = (&local.endpoints[0], &quay.endpoints[0]);
        assert_eq!(local.endpoint.scheme, Scheme::Http);
        assert!(quay.tls.insecure_skip_verify && quay.endpoint.scheme == Scheme::Https);
        assert!(settings.without_effect.is_empty());
        assert_eq!(settings.preload_images, Some("/tmp/list".into()));
        assert_eq!(settings.load_platforms, Platforms::parse(["linux/amd64"]).unwrap());
    }

    #[test]
    fn our_own_keys() {
        let text = "
tagTtl: forever
tags: [{pattern: nightly-*, tagTtl: always}]
staleWhileRevalidate: 1m
onUpstreamDelete: drop
prefetch: false
platforms: [linux/amd64, linux/arm64]
prefetchReferrers: true
scrub: {every: 1d, rate: 5MB}
revalidateTimeout: 500ms
negativeTtl: 0
unlistedRegistries: deny
workers: 5
maxConnections: 100
maxDownloads: 3
drainTimeout: 10s
resumeOnStart: false
fsync: false
registries:
  - {name: docker.io, endpoints: [\"http://127.0.0.1:5000\"], aliases: [hub], tagTtl: 1h, tags: [{pattern: '/^[0-9]/', tagTtl: '0'}]}
  - {name: slow.io, rateLimit: 1MiB, maxDownloads: 2}
";
        let settings = settings(&text.replace("\\", "")).unwrap();
        let policy = &settings.cache.freshness;
        let ttl = |upstream: &str, tag: &str| {
            let name = ImageName::new(upstream.parse().unwrap(), "org/app".parse().unwrap());
            policy.ttl(&name, &tag.parse().unwrap())
        };
        assert_eq!(ttl("quay.io", "v1"), Ttl::Forever);
        assert_eq!(ttl("quay.io", "nightly-1"), Ttl::Always);
        assert_eq!(ttl("docker.io", "v1"), Ttl::For(Duration::from_secs(3600)));
        assert_eq!(ttl("docker.io", "1.2"), Ttl::Always);
        assert_eq!(policy.stale_while_revalidate, Duration::from_secs(60));
        assert_eq!(policy.on_upstream_delete, OnUpstreamDelete::Drop);
        let platforms = Platforms::parse(["linux/amd64", "linux/arm64"]).unwrap();
        let prefetch = Prefetch { blobs: false, platforms, referrers: true };
        assert_eq!(settings.cache.prefetch, prefetch);
        let scrub = settings.scrub.unwrap();
        assert_eq!((scrub.every.as_secs(), scrub.rate.get()), (86_400, 5_000_000));
        assert_eq!(settings.cache.revalidate_timeout, Duration::from_millis(500));
        assert_eq!(settings.upstream.unlisted, UnlistedRegistries::Deny);
        assert_eq!((settings.http.workers, settings.http.max_connections), (5, 100));
        assert!(!settings.resume_on_start);
        let [hub, slow] = &settings.upstream.registries[..] else { panic!("two registries") };
        assert_eq!(hub.endpoints[0].endpoint.authority, "127.0.0.1:5000");
        assert_eq!((hub.rate_limit, slow.rate_limit), (None, NonZeroU64::new(1 << 20)));
        let downloads = HashMap::from([(slow.upstream.clone(), 2)]);
        assert_eq!(settings.cache.downloads_per_upstream, downloads);
        assert_eq!(settings.naming.aliases["hub"].as_str(), "docker.io");
    }

    #[test]
    fn a_cache_that_keeps_itself() {
        let text = "
cacheSize: 200GB
freeSpace: 10%
pin: ['registry.k8s.io/*', 'alpine:3.20']
pinLists: [/etc/larder/pins]
pruneConfig: {enabled: true, duration: 12h, type: created, frequency: 1h, count: 50, dryRun: true}
management: {port: 8090, tokenFile: /token}
health: 8091
metrics: 8092
";
        let settings = settings(text).unwrap();
        let cache::Upkeep { room, pins, prune: pruned } = &settings.cache.upkeep;
        assert_eq!(room.cap_bytes, Some(200_000_000_000));
        assert_eq!(room.floor, Some(prune::FreeSpace::Percent(10)));
        let named: Vec<String> = pins.pins.iter().map(ToString::to_string).collect();
        assert_eq!(named, ["registry.k8s.io/*", "docker.io/library/alpine:3.20"]);
        assert_eq!(pins.lists, [PathBuf::from("/etc/larder/pins")]);
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        let expected = prune::PrunePolicy {
            by: prune::PruneBy::Created,
            duration: hours(12),
            every: hours(1),
            count: Some(50),
            is_dry_run: true,
        };
        assert_eq!(*pruned, Some(expected));
        let listeners: Vec<(String, api::Scope)> = settings
            .management
            .listeners
            .iter()
            .map(|each| (each.address.to_string(), each.scope))
            .collect();
        // The management port is on loopback unless it is said otherwise.
        let expected = [
            ("127.0.0.1:8090".to_owned(), api::Scope::Everything),
            ("0.0.0.0:8091".to_owned(), api::Scope::Health),
            ("0.0.0.0:8092".to_owned(), api::Scope::Metrics),
        ];
        assert_eq!(listeners, expected);
    }

    #[test]
    fn listeners_at_one_address_are_one() {
        let of = |text: &str| {
            let listeners = settings(text).unwrap().management.listeners;
            let scopes: Vec<api::Scope> = listeners.iter().map(|each| each.scope).collect();
            scopes
        };
        assert_eq!(of("health: 1\nmetrics: 1"), [api::Scope::HealthAndMetrics]);
        let all = "host: 127.0.0.1\nmanagement: {port: 1}\nhealth: 1\nmetrics: 1";
        assert_eq!(of(all), [api::Scope::Everything]);
        assert!(of("port: 1").is_empty());
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (text, place, words) in [
            ("prt: 1", "larder.yaml:1:1:", "unknown field"),
            ("port: x", "larder.yaml:1:7:", "from 0 to 65535"),
            ("port: -1", "larder.yaml:1:7:", "from 0 to 65535"),
            ("workers: 1.5", "larder.yaml:1:10:", "whole number"),
            ("port: 99999", "larder.yaml:1:7:", "from 0 to 65535"),
            ("tagTtl: 5", "larder.yaml:1:9:", "unit"),
            ("logLevel: loud", "larder.yaml:1:11:", "debug, info, warn, error"),
            ("host: nowhere", "larder.yaml:1:7:", "IP address"),
            ("port: 1\nport: 2", "larder.yaml:2:1:", "the key port stands there twice"),
            ("registries:\n  - name: a b", "larder.yaml:2:11:", "host name"),
            ("registries:\n  - scheme: http", "larder.yaml:2:", "name"),
            ("registries:\n  - name: a.io\n    scheme: ftp", "larder.yaml:3:13:", "http"),
            ("registries:\n  - name: a.io\n    endpoints: [a]", "larder.yaml:3:", "URL"),
            ("registries:\n  - name: a.io\n    endpoints: [{u: a}]", "larder.yaml:3:", "url"),
            ("registries:\n  - name: a.io\n    rateLimit: 5 MB", "larder.yaml:3:16:", "10MB"),
            ("registries:\n  - name: a.io\n    rateLimit: 0", "larder.yaml:3:16:", "leave it out"),
            ("registries:\n  - name: a.io\n    maxDownloads: x", "larder.yaml:3:19:", "whole"),
            ("tags: [{pattern: '/(/', tagTtl: 1m}]", "larder.yaml:1:18:", "not a pattern"),
            ("tags: [{pattern: x}]", "larder.yaml:1:", "tagTtl"),
            ("platforms: [linux]", "larder.yaml:1:13:", "linux/amd64"),
            ("onUpstreamDelete: burn", "larder.yaml:1:19:", "keep"),
            ("cacheSize: big", "larder.yaml:1:12:", "10MB"),
            ("freeSpace: 101%", "larder.yaml:1:12:", "10%"),
            ("pin: ['/(/']", "larder.yaml:1:", "not a pattern"),
            ("pin: quay.io/org/app", "larder.yaml:1:", "this is a list"),
            ("management: 8090", "larder.yaml:1:13:", "this is a map"),
            ("pruneConfig: {type: age}", "larder.yaml:1:21:", "accessed"),
            ("unlistedRegistries: maybe", "larder.yaml:1:21:", "allow"),
            (
                "registries:\n  - name: a.io\n    auth: {token: {provider: gcr}}",
                "larder.yaml:3:30:",
                "only token provider is ecr",
            ),
            (
                "registries:\n  - name: a.io\n    auth: {token: {providerOpts: role=x}}",
                "larder.yaml:3:34:",
                "profile=NAME",
            ),
            (
                "registries:\n  - name: a.io\n    auth: {credentialHelper: ../x}",
                "larder.yaml:3:30:",
                "absolute path",
            ),
            (
                "registries:\n  - name: a.io\n    repositories: [{prefix: \"\", auth: {}}]",
                "larder.yaml:3:29:",
                "whole components",
            ),
        ] {
            let error = settings(text).unwrap_err();
            assert!(error.starts_with(place) && error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn credentials_and_certificates_of_a_registry() {
        let text = "
registries:
  - {name: a.io, auth: {user: u, password: p}, tls: {ca: /ca, cert: /c, key: /k}}
  - {name: b.io, auth: {user: u, passwordFile: /f}}
  - {name: c.io, auth: {dockerConfig: /d}}
  - {name: d.io, auth: {token: {static: t}}}
  - {name: e.io, auth: {}}
  - {name: f.io, auth: {credentialHelper: ecr-login, expiry: 1h}}
";
        let settings = settings(text).unwrap();
        let user = || "u".to_owned();
        let expected = [
            Credentials::Password { user: user(), password: Secret::new("p") },
            Credentials::PasswordFile { user: user(), path: "/f".into() },
            Credentials::DockerConfig { path: "/d".into() },
            Credentials::Bearer(Secret::new("t")),
            Credentials::Anonymous,
            Credentials::Helper(HelperSettings {
                expiry: Duration::from_secs(3600),
                ..HelperSettings::of("ecr-login".parse().unwrap())
            }),
        ];
        for (entry, expected) in settings.upstream.registries.iter().zip(expected) {
            assert_eq!(entry.endpoints[0].credentials, expected, "{}", entry.upstream);
        }
        let identity = IdentityFiles { cert: "/c".into(), key: "/k".into() };
        let tls = TlsSettings {
            ca: Some("/ca".into()),
            identity: Some(identity),
            insecure_skip_verify: false,
        };
        assert_eq!(settings.upstream.registries[0].endpoints[0].tls, tls);
    }

    #[test]
    fn endpoints_have_credentials_and_certificates_of_their_own() {
        let text = "
registries:
  - name: docker.io
    endpoints:
      - http://mirror.lan:5000
      - url: https://docker.io
        auth: {user: u, password: p}
        tls: {insecureSkipVerify: true}
  - name: one.io
    endpoints: [{url: https://one.lan}]
    auth: {token: {static: t}}
";
        let settings = settings(text).unwrap();
        let [hub, one] = &settings.upstream.registries[..] else { panic!("two registries") };
        let [mirror, real] = &hub.endpoints[..] else { panic!("two endpoints") };
        assert_eq!(mirror.endpoint.authority, "mirror.lan:5000");
        assert_eq!(
            (mirror.endpoint.scheme, &mirror.credentials),
            (Scheme::Http, &Credentials::Anonymous)
        );
        assert_eq!(real.endpoint.authority, "registry-1.docker.io");
        assert!(matches!(&real.credentials, Credentials::Password { .. }));
        assert!(real.tls.insecure_skip_verify && !mirror.tls.insecure_skip_verify);
        assert_eq!(one.endpoints[0].credentials, Credentials::Bearer(Secret::new("t")));
    }

    #[test]
    fn parts_of_a_registry_have_credentials_of_their_own() {
        let text = "
registries:
  - name: a.io
    auth: {user: u, password: p}
    repositories:
      - {prefix: team-a, auth: {token: {static: t}}}
      - {prefix: team-a/open, auth: {}}
";
        let settings = settings(text).unwrap();
        let part = |prefix: &str, auth| (prefix.parse().unwrap(), auth);
        let otherwise = Credentials::Password { user: "u".into(), password: Secret::new("p") };
        let expected = Credentials::ByRepository {
            parts: vec![
                part("team-a", Credentials::Bearer(Secret::new("t"))),
                part("team-a/open", Credentials::Anonymous),
            ],
            otherwise: Box::new(otherwise),
        };
        assert_eq!(settings.upstream.registries[0].endpoints[0].credentials, expected);
    }

    #[test]
    fn a_reference_servers_login_to_ecr_is_understood() {
        let text = "
registries:
  - name: 123456789012.dkr.ecr.eu-west-1.amazonaws.com
    auth: {token: {provider: ecr, providerOpts: \"profile=dev,region=eu-west-1\", expiry: 2h}}
";
        let settings = settings(text).unwrap();
        let Credentials::Ecr(ecr) = &settings.upstream.registries[0].endpoints[0].credentials
        else {
            panic!("{settings:?}")
        };
        assert_eq!((ecr.registry.region(), ecr.profile.as_deref()), ("eu-west-1", Some("dev")));
        assert_eq!(ecr.expiry, Duration::from_secs(7200));
    }

    #[test]
    fn contradictions_are_refused() {
        for (text, words) in [
            ("port: 8081\nhealth: 8081", "port and health are both 8081"),
            ("port: 8081\nhost: 127.0.0.1\nmanagement: {port: 8081}", "port and management.port"),
            ("management: {port: 8081}\nhealth: 8081", "management.port and health are both 8081"),
            ("management: {tokenFile: /t}", "port"),
            ("cacheSize: 0", "cacheSize: 0 would keep nothing"),
            ("pruneConfig: {enabled: true, count: -2}", "pruneConfig.count"),
            ("pruneConfig: {enabled: true, frequency: '0'}", "pruneConfig.frequency"),
            ("registries: [{name: a.io}, {name: A.IO}]", "listed twice"),
            ("registries: [{name: a.io, aliases: [x]}, {name: b.io, aliases: [X]}]", "given twice"),
            ("registries: [{name: a.io, aliases: [b.io]}, {name: b.io}]", "name of a listed"),
            ("registries: [{name: a.io, aliases: [\"x/y\"]}]", "letters"),
            ("registries: [{name: a.io, auth: {user: u}}]", "needs password"),
            ("registries: [{name: a.io, auth: {password: p}}]", "needs auth.user"),
            (
                "registries: [{name: a.io, auth: {user: u, password: p, passwordFile: /f}}]",
                "keep one",
            ),
            (
                "registries: [{name: a.io, auth: {user: u, passwordFromEnv: LARDER_UNSET}}]",
                "not set",
            ),
            ("registries: [{name: a.io, tls: {cert: /c}}]", "needs tls.key"),
            ("registries: [{name: a.io, endpoints: []}]", "endpoints is empty"),
            ("registries: [{name: a.io, endpoints: [\"http://b\", \"http://b/\"]}]", "twice"),
            (
                "registries: [{name: a.io, endpoints: [\"http://b\", \"http://c\"], tls: {}}]",
                "belong into the endpoint",
            ),
            (
                "registries: [{name: a.io, auth: {credentialHelper: x, dockerConfig: /d}}]",
                "keep one",
            ),
            (
                "registries: [{name: a.io, auth: {token: {provider: ecr, static: t}}}]",
                "token.static and token.provider",
            ),
            ("registries: [{name: a.io, auth: {user: u, credentialHelper: x}}]", "auth.user"),
            ("registries: [{name: a.io, auth: {expiry: 1h}}]", "needs auth.credentialHelper"),
            ("registries: [{name: a.io, auth: {credentialHelper: x, expiry: 1s}}]", "at least 60s"),
            (
                "registries: [{name: a.io, auth: {token: {expiry: 1h}}}]",
                "needs auth.token.provider",
            ),
            (
                "registries: [{name: a.io, repositories: [{prefix: x, auth: {}}, \
                 {prefix: x, auth: {}}]}]",
                "given twice",
            ),
            ("registries: [{name: a.io, repositories: [{prefix: x, auth: {user: u}}]}]", "x: auth"),
        ] {
            let error = settings(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn tls_to_clients_is_whole_or_refused() {
        let tls = |text: &str| settings(&format!("serverTlsConfig: {text}")).map(|it| it.tls);
        let identity = IdentityFiles { cert: "/c".into(), key: "/k".into() };
        for (text, clients) in [
            ("{cert: /c, key: /k}", ClientAuth::None),
            ("{cert: /c, key: /k, ca: /a, clientAuth: none}", ClientAuth::None),
            ("{cert: /c, key: /k, clientAuth: verify}", ClientAuth::Verify { ca: None }),
            (
                "{cert: /c, key: /k, ca: /a, clientAuth: verify}",
                ClientAuth::Verify { ca: Some("/a".into()) },
            ),
        ] {
            let expected = ServerTlsSettings { identity: identity.clone(), clients };
            assert_eq!(tls(text), Ok(Some(expected)), "{text}");
        }
        for text in ["{}", "{clientAuth: none}"] {
            assert_eq!(tls(text), Ok(None), "{text}");
        }
        for text in ["{cert: /c}", "{key: /k}", "{ca: /a}", "{clientAuth: verify}"] {
            assert!(tls(text).unwrap_err().contains("both are needed"), "{text}");
        }
        assert!(tls("{cert: /c, key: /k, clientAuth: maybe}").unwrap_err().contains("verify"));
        let unused = settings("serverTlsConfig: {cert: /c, key: /k, ca: /a}").unwrap();
        assert_eq!(unused.without_effect, ["serverTlsConfig.ca (without clientAuth: verify)"]);
    }

    #[test]
    fn passwords_are_wanted_only_where_a_file_is_named() {
        assert_eq!(settings("serverAuthConfig: {}").unwrap().access, None);
        let expected = users::Settings { htpasswd: "/h".into() };
        assert_eq!(settings("serverAuthConfig: {htpasswd: /h}").unwrap().access, Some(expected));
    }

    #[test]
    fn a_secret_in_a_broken_file_is_not_quoted() {
        let error = settings("registries:\n  - name: a.io\n    auth: {password: hunter2, x: 1}")
            .unwrap_err();
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn flags_are_put_over_the_file() {
        let file = parse(Path::new("f"), "port: 1\nairGapped: false\nlogLevel: error").unwrap();
        let over = Overrides {
            port: Some(2),
            air_gapped: true,
            log_level: Some(LogLevel::Debug),
            ..Overrides::default()
        };
        let settings = build(file, over).unwrap();
        assert_eq!((settings.listen.port(), settings.cache.air_gapped), (2, true));
        assert_eq!(settings.log_level, LogLevel::Debug);
    }

    #[test]
    fn a_missing_file_is_named() {
        let over =
            Overrides { config_file: Some("/nonexistent/x.yaml".into()), ..Overrides::default() };
        assert!(load(over).unwrap_err().to_string().contains("/nonexistent/x.yaml"));
    }
}
