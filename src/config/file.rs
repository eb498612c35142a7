//! The keys of the configuration file: those of the reference server, and Larder's own. All of them are
//! declared here, once; [`super::keys`] explains the notation and lists what follows from a declaration.
//! `make generate` then writes `docs/configuration.md` and the schema of the chart.

use std::fmt;
use std::net::Ipv4Addr;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, de};

use super::auth::{AuthEntry, Prefix};
use super::events::EventsEntry;
use super::freshness::TagRuleEntry;
use super::image_sync::SyncKeys;
use super::keys::{Applies, Comparison, Section, Unset, Value, names, not_null, section};
#[cfg(test)]
use super::keys::{Key, Map, Shape};
use super::number::{Count, Port, Timeout};
use super::object_store::ObjectStoreEntry;
use super::oidc::OidcEntry;
use super::value::{
    EndpointUrl, FreeSpaceText, Interface, LogFormat, LogLevel, PlatformText, Rate, Size, Span,
    Text, TtlText,
};
use crate::api::HostName;
use crate::cache::{self, TAG_TTL};
use crate::http;
use crate::oci::{Choice, NamePattern, Upstream};
use crate::upstream::UnlistedPorts;

/// A different path than the reference server's, so that both can be installed on one machine.
const IMAGE_PATH: &str = "/var/lib/larder";
/// `pruneConfig.count` for no limit.
pub(super) const NO_LIMIT: i64 = -1;
/// A terabyte in a day, and little enough for any disk.
// Twelve million is not zero.
const SCRUB_RATE: NonZeroU64 = NonZeroU64::new(12_000_000).expect("it is not zero");
const DAY: u64 = 86_400;
/// The keys that all members of a group should have in common: what is fetched from where, and when a tag is fresh.
pub(super) const SHARED_BY_PEERS: &[&str] = &[
    "airGapped",
    "allow",
    "alwaysPullLatest",
    "blobs",
    "deny",
    "onUpstreamDelete",
    "parents",
    "registries",
    "staleWhileRevalidate",
    "tagTtl",
    "tags",
    "unlistedPorts",
    "unlistedRegistries",
];

section! {
    /// The complete file.
    File {
        /// The cache directory; created if missing. If it is full or cannot be written, Larder still serves what is
        /// cached, streams the rest to clients without caching it, and logs a warning for each response.
        Restart "imagePath" image_path: PathBuf = IMAGE_PATH.into(), flag "--image-path";
        /// `debug`, `info`, `warn` or `error`. At `info`, each request is one line.
        AtOnce "logLevel" log_level: Text<LogLevel> = Text(LogLevel::Info), flag "--log-level";
        /// `text` for people, or `json`: one object per line. [docs/log.md](log.md) has all fields.
        Restart "logFormat" log_format: Text<LogFormat> = Text(LogFormat::Text), flag "--log-format";
        /// Append the log to this file.
        Restart "logFile" log_file: Option<PathBuf> = None, flag "--log-file", default "standard error";
        /// The port to listen on; 0 picks a free port and prints it.
        Restart "port" port: Port = Port(8080), flag "--port";
        /// The address to listen on.
        Restart "host" host: Text<Interface> = Text(Interface(Ipv4Addr::UNSPECIFIED.into())), flag "--host";
        /// A port for probes, metrics, the management API and a web page: [docs/management.md](management.md).
        Restart "management" management: Option<ManagementEntry> = None;
        /// A port for `GET /health`, `/livez` and `/readyz`, and for `GET /health?verbose`, which shows the state of
        /// each endpoint of the listed registries and the number of unlisted registries in use. On `host`.
        Restart "health" health: Option<Port> = None, flag "--health";
        /// A port for `GET /metrics`. On `host`; may be the port of `health`.
        Restart "metrics" metrics: Option<Port> = None, flag "--metrics";
        /// The maximum size of the cache, such as `200GB`. See [Disk space](#disk-space).
        AtOnce "cacheSize" cache_size: Option<Text<Size>> = None;
        /// The space to keep free on the cache's disk: a size, or a percentage such as `10%`.
        AtOnce "freeSpace" free_space: Option<Text<FreeSpaceText>> = None;
        /// Images that are never evicted: references, globs, or regular expressions between slashes.
        AtOnce "pin" pin: Vec<Text<Choice>> = vec![];
        /// Files with more entries for `pin`, separated by commas or line breaks, `#` for comments. Read each time they
        /// are used.
        AtOnce "pinLists" pin_lists: Vec<PathBuf> = vec![];
        /// Scheduled removal of images.
        AtOnce "pruneConfig" prune_config: PruneEntry = all_defaults();
        /// TLS for clients on `port`. See [TLS to clients](#tls-to-clients).
        AtOnceUnlessToggled "serverTlsConfig" server_tls_config: Option<ServerTlsEntry> = None, parser "not_null";
        /// Which clients may use `port`. See [Users](#users).
        AtOnce "serverAuthConfig" server_auth_config: Option<ServerAuthEntry> = None, parser "not_null";
        /// The names that clients may use for this server in `Host`, without a port, such as `larder.example.com`.
        /// Requests with another name get 421. This protects against DNS rebinding, where a web page reaches the cache
        /// through a browser inside the network. IP addresses and `localhost` are always allowed, so probes by address
        /// work.
        AtOnce "allowedHosts" allowed_hosts: Vec<Text<HostName>> = vec![], default "any", parser "not_null";
        /// The registry for requests that name none; `docker.io` for Docker's `registry-mirrors`.
        AtOnce "defaultNs" default_ns: Option<Text<Upstream>> = None, flag "--default-ns";
        /// Serve only the repositories that one of these covers: patterns for `registry/repository`, such as
        /// `docker.io/library/*`, or for a registry, such as `quay.io` or `*.example.com`, or regular expressions between
        /// slashes. They apply to cached content, too. See [Which images are served](#which-images-are-served).
        AtOnce "allow" allow: Vec<Text<NamePattern>> = vec![], default "all", parser "not_null";
        /// Do not serve the repositories that one of these covers, whatever `allow` says: as `allow`.
        AtOnce "deny" deny: Vec<Text<NamePattern>> = vec![], default "none", parser "not_null";
        /// Where `access` is `client`: how long a registry's permission for a login and a repository is used before the
        /// registry is asked again. See [Private images](private-images.md).
        AtOnce "accessTtl" access_ttl: Text<Span> = span(cache::AccessPolicy::default().ttl);
        /// Where `access` is `client`: how long such a permission is used while the registry cannot be asked, also after a
        /// restart. `0`: not at all.
        AtOnce "accessOffline" access_offline: Text<Span> = span(cache::AccessPolicy::default().offline);
        /// `linked`: cached blobs are served only in repositories that contain them, according to a cached manifest or to
        /// the registry. `any`: in every repository, except those blobs that are in one with `access: client`.
        AtOnce "blobs" blobs: BlobsName = BlobsName::Linked;
        /// Never contact a registry: what is not cached is 404.
        AtOnce "airGapped" air_gapped: bool = false, flag "--air-gapped", parser "not_null";
        /// Check with the registry on every pull of a tag named `latest`, whatever `tagTtl` says.
        AtOnce "alwaysPullLatest" always_pull_latest: bool = false, flag "--always-pull-latest";
        /// How long a registry may take to start a response: a duration, or a number of milliseconds. Without the key, a
        /// complete manifest, token or list may take `30s`; with it, also this long.
        AtOnce "pullTimeout" pull_timeout: Option<Text<Timeout>> = None, flag "--pull-timeout", default "20s";
        /// How long a tag is fresh after the registry confirmed it: a duration, `0` or `always` to check on every pull,
        /// `forever` to never check again.
        AtOnce "tagTtl" tag_ttl: Text<TtlText> = Text(TtlText(TAG_TTL));
        /// Rules for tags by name; the first that matches and sets a value applies. See [How long a tag is fresh](#how-long-a-tag-is-fresh).
        AtOnce "tags" tags: Vec<TagRuleEntry> = vec![];
        /// How long after it expired a tag is still served immediately, as stale, while Larder checks it in the
        /// background.
        AtOnce "staleWhileRevalidate" stale_while_revalidate: Text<Span> = span(Duration::ZERO);
        /// What to do with a cached tag when the registry answers HEAD and GET with 404: `keep` it and serve it as stale,
        /// or `drop` it.
        AtOnce "onUpstreamDelete" on_upstream_delete: OnDelete = OnDelete::Keep;
        /// How long a client waits for the check of an expired tag before it gets the cached tag, with `Warning: 110`.
        AtOnce "revalidateTimeout" revalidate_timeout: Text<Span> = span(cache::Settings::default().revalidate_timeout);
        /// How long Larder remembers that content does not exist, or that a registry failed.
        AtOnce "negativeTtl" negative_ttl: Text<Span> = span(cache::Settings::default().negative_ttl);
        /// Fetch the config and all layers of an image whose manifest was pulled, in the background and after what
        /// clients request, so that the image is complete when the network fails.
        AtOnce "prefetch" prefetch: bool = cache::Prefetch::default().blobs;
        /// Fetch an image completely, in the background, if a client checks it with HEAD and then does not pull it,
        /// because it has it already: `runtimes` (containerd, CRI-O, Docker, podman and others, by their `User-Agent`),
        /// `always` (any client) or `never`. A client that checks more than 256 images, or more than 32 tags of one
        /// repository, in an hour counts as a scanner, whose checks have no effect. Requires `prefetch`.
        AtOnce "prefetchOnHead" prefetch_on_head: OnHead = OnHead::Runtimes;
        /// The platforms of a pulled index to fetch in addition to the requested one: `[linux/amd64, linux/arm64]`, or
        /// `[all]`.
        AtOnce "platforms" platforms: Vec<Text<PlatformText>> = vec![];
        /// Fetch the signatures, attestations and SBOMs of a pulled image too: those that the referrers API lists (or the
        /// tag `sha256-…`, where there is no such API), and the tags `sha256-….sig`, `.att` and `.sbom`. They are
        /// refreshed like tags.
        AtOnce "prefetchReferrers" prefetch_referrers: bool = cache::Prefetch::default().referrers;
        /// Serve `docker.io/library/hello-world:latest` from an image that is built into the program, to
        /// [test whether clients can pull](bootstrap.md#testing-whether-a-cluster-can-pull). The image is pinned, and no
        /// registry is contacted for it.
        Restart "helloWorld" hello_world: bool = false, flag "--hello-world";
        /// A list of images to load at start, while the server is already serving: one or more per line, `#` for
        /// comments, patterns for tags, as in `quay.io/org/app:v1.*`.
        Restart "preloadImages" preload_images: Option<PathBuf> = None, flag "--preload-images";
        /// Images that are kept present on a schedule. See [docs/sync.md](sync.md).
        AtOnce "sync" sync: Vec<SyncKeys> = vec![];
        /// Lists for `larder load` without arguments, separated by commas.
        Commands "imageFile" image_file: Option<String> = None;
        /// With `arch`: the platform that `preloadImages`, `sync` and `larder load` choose from multi-platform images.
        Restart "os" os: Option<String> = None, flag "--os", default "`platforms`, or `linux`";
        /// With `os`: the platform that `preloadImages`, `sync` and `larder load` choose from multi-platform images.
        Restart "arch" arch: Option<String> = None, flag "--arch", default "`platforms`, or this machine's";
        /// Periodic verification of all cached blobs. Damaged blobs are moved to `quarantine/` and fetched again.
        Restart "scrub" scrub: ScrubEntry = all_defaults();
        /// `allow`: registries without an entry may be contacted by HTTPS at public addresses; `deny`: not at all.
        AtOnce "unlistedRegistries" unlisted_registries: Unlisted = Unlisted::Allow, parser "not_null";
        /// The ports on which registries without an entry may be contacted, as well as the hosts that they redirect to or
        /// that issue their tokens. Entries of `registries` may use any port.
        AtOnce "unlistedPorts" unlisted_ports: Option<Vec<Port>> =
            Some(UnlistedPorts::default().iter().map(Port).collect());
        /// Other Larders, or mirrors that expect `?ns=`, which are asked before each registry: URLs, or maps with the keys
        /// of [endpoints](#endpoints). See [Parents](#parents).
        AtOnce "parents" parents: Vec<EndpointEntry> = vec![];
        /// Larders that share their caches with this one: replicas, or the nodes of a cluster. See [Peers](#peers).
        AtOnce "peers" peers: Option<PeersEntry> = None;
        /// A bucket of an S3-compatible store that keeps what is cached. See [Object storage](#object-storage).
        Restart "objectStore" object_store: Option<ObjectStoreEntry> = None;
        /// Where events are sent, such as tags that move and registries that go down. See [Events](management.md#events).
        Restart "events" events: Option<EventsEntry> = None;
        /// Settings for single registries. See [below](#registries).
        AtOnce "registries" registries: Vec<RegistryEntry> = vec![];
        /// Threads that serve clients. They never block on a single client.
        Restart "workers" workers: Count = count_of(http::Settings::default().workers), default "4 × cores, at least 16";
        /// Maximum concurrent connections. When all are in use, a new connection replaces one that has not sent a complete
        /// request, first from the client address that has the most. One address gets at most eight ninths. The limit
        /// is also capped at half of the open file limit, which Larder raises to the hard limit at start.
        Restart "maxConnections" max_connections: Count = count_of(http::Settings::default().max_connections);
        /// Maximum concurrent blob downloads. A registry gets another download only while it has fewer than are free,
        /// so one registry that hangs uses at most half, and two use at most a third each; `maxDownloads` of a registry
        /// replaces that share. Unlisted registries together get at most half. One client address gets at most three
        /// quarters of a registry's share.
        Restart "maxDownloads" max_downloads: Count = count_of(cache::Settings::default().blob_fetchers);
        /// Maximum connections for one blob of 8 MiB or more. More than one is used if the registry supports ranges, no other
        /// download needs the slot, and the rate grows with each connection: where a registry or a link limits each
        /// connection. Each of them counts as a download for `maxDownloads`. `1` disables it.
        AtOnce "connectionsPerBlob" connections_per_blob: Count = count_of(cache::Settings::default().connections.max);
        /// Bytes per second, averaged over a minute: a slower download is suspended while another one waits, and resumes
        /// later. `0` disables this.
        AtOnce "minimumRate" minimum_rate: Text<Size> = Text(Size(cache::Settings::default().minimum_rate));
        /// Resume unfinished downloads at start; `false` leaves them until a client requests the content.
        Restart "resumeOnStart" resume_on_start: bool = true;
        /// What happens to clients that connect after SIGTERM, while running responses finish: `serve` serves them until
        /// no response is running, with `Connection: close`, for a port that no other instance can take over; `refuse`
        /// closes the port at once, so that another instance can listen on it; `handover` serves them until another
        /// instance listens on it as well, which it may do before if both run as the same user with `drain: handover`.
        Restart "drain" drain: DrainName = DrainName::Refuse;
        /// How long running responses may take to finish after SIGTERM.
        Restart "drainTimeout" drain_timeout: Text<Span> = span(http::Settings::default().drain_timeout);
        /// Flush content and names to the disk before they are used; `false` only for disposable caches.
        Restart "fsync" fsync: bool = true;
    }
}

section! {
    /// `scrub`.
    ScrubEntry {
        /// How often all cached blobs are verified against their digests; `0` for never.
        "every" every: Text<Span> = span(days(7));
        /// How many bytes per second the verification may read.
        "rate" rate: Text<Rate> = Text(Rate(SCRUB_RATE));
    }
}

section! {
    /// `pruneConfig`.
    PruneEntry {
        /// Whether images are pruned on a schedule.
        "enabled" enabled: bool = false;
        /// `accessed`: by the time of the last pull; `created`: by the time when the image was cached.
        "type" by: PruneByName = PruneByName::Accessed;
        // As in the reference server.
        /// Images older than this are removed.
        "duration" duration: Text<Span> = span(days(30));
        /// How often.
        "frequency" frequency: Text<Span> = span(days(1));
        /// The maximum number of images per run; `-1` for no limit.
        "count" count: i64 = NO_LIMIT;
        /// Only log what would be removed.
        "dryRun" dry_run: bool = false, parser "not_null";
    }
}

section! {
    /// `management`.
    ManagementEntry {
        /// The port.
        "port" port: Port;
        // The port shows the cache's contents, so other machines have access only if the operator says so.
        /// Its address.
        "host" host: Text<Interface> = Text(Interface(Ipv4Addr::LOCALHOST.into()));
        /// A file with the token that requests must present to change something. Read when needed.
        "tokenFile" token_file: Option<PathBuf> = None;
    }
}

section! {
    /// `serverTlsConfig`.
    ServerTlsEntry {
        /// PEM file with the server's certificate chain, its own certificate first.
        "cert" cert: Option<PathBuf> = None, parser "not_null";
        /// PEM file with its private key.
        "key" key: Option<PathBuf> = None, parser "not_null";
        /// `none`: no client certificates; `verify`: only clients with a valid certificate are served.
        "clientAuth" client_auth: ClientAuthName = ClientAuthName::None, parser "not_null";
        /// PEM file with the authorities that sign client certificates.
        "ca" ca: Option<PathBuf> = None, default "the operating system's";
    }
}

section! {
    /// `serverAuthConfig`.
    ServerAuthEntry {
        /// A file of users and bcrypt hashes. Clients without a valid user and password get 401.
        "htpasswd" htpasswd: Option<PathBuf> = None;
        /// Issuers of tokens that clients may use as passwords. See [Tokens](#tokens).
        "oidc" oidc: Vec<OidcEntry> = vec![];
    }
}

section! {
    /// An entry of `registries`.
    RegistryEntry {
        /// The registry as clients name it, `host` or `host:port`. A listed registry may have a private address.
        "name" name: Text<Upstream>;
        /// A comment.
        "description" description: Option<String> = None;
        /// `http` connects without TLS.
        "scheme" scheme: Option<SchemeName> = None, default "https";
        /// Other names for the registry in paths and in `?ns=`, for registries whose name has a port; also in commands
        /// (`larder load hub/library/alpine`) and in the management API.
        "aliases" aliases: Vec<String> = vec![];
        /// Who decides which clients may pull: `server`, that is everyone who may use this server; or `client`: the registry,
        /// with the credentials of each client. See [Private images](private-images.md).
        "access" access: AccessName = AccessName::Server, parser "not_null";
        /// Credentials. See [Credentials](#credentials).
        "auth" auth: Option<AuthEntry> = None;
        /// Other credentials or another `access` for parts of the registry.
        "repositories" repositories: Vec<RepositoriesEntry> = vec![];
        /// TLS to the registry.
        "tls" tls: Option<TlsEntry> = None;
        /// Where the registry and its mirrors are, in the order in which Larder tries them: URLs, with a path if the API is
        /// not at `/v2`, or maps with the keys below. See [Endpoints](#endpoints).
        "endpoints" endpoints: Option<Vec<EndpointEntry>> = None, default "the name itself", parser "not_null";
        /// As the global key, for this registry.
        "tagTtl" tag_ttl: Option<Text<TtlText>> = None, default "the global keys";
        /// As the global key, for this registry.
        "tags" tags: Vec<TagRuleEntry> = vec![], default "the global keys";
        /// Bytes per second that all blob downloads from this registry may use together; manifests do not count.
        "rateLimit" rate_limit: Option<Text<Rate>> = None;
        /// Maximum concurrent blob downloads from this registry, within the global limit. Manifests never wait for a
        /// slot. With 1, a client may have to wait until the prefetch of another blob has finished.
        "maxDownloads" max_downloads: Option<Count> = None, default "a fair share of the global `maxDownloads`";
    }
}

section! {
    /// The long form of an entry of `registries[].endpoints`, or of `parents`.
    EndpointMap {
        /// The URL.
        "url" url: Text<EndpointUrl>;
        /// `registry`: the registry itself or a mirror of it. `larder`: a Larder, or another mirror of many registries such
        /// as Spegel, to which requests name the registry with `?ns=`. Its 404 does not prove that content was deleted.
        "kind" kind: Option<EndpointKindName> = None, default "`registry`; for parents `larder`";
        /// As `auth` of the registry.
        "auth" auth: Option<AuthEntry> = None;
        /// Of a Larder: `client` gives it the logins of clients, so that it decides who may pull from registries whose `access`
        /// is `client`, if the registry itself cannot be asked. It needs the same `access` for these registries.
        "access" access: AccessName = AccessName::Server, parser "not_null";
        /// As `repositories` of the registry.
        "repositories" repositories: Vec<RepositoriesEntry> = vec![];
        /// As `tls` of the registry.
        "tls" tls: Option<TlsEntry> = None;
    }
}

section! {
    /// `peers`: either `dns` or `urls`.
    PeersEntry {
        /// A name whose addresses are the members, such as that of a headless Service. It is looked up every 5 s.
        "dns" dns: Option<String> = None;
        /// The port of the members that `dns` finds.
        "port" port: Port = Port(8080);
        /// The scheme of the members that `dns` finds. With `https`, their certificates must be valid for the name in `dns`.
        "scheme" scheme: SchemeName = SchemeName::Http;
        /// The URLs of the members, the same list for all of them.
        "urls" urls: Vec<Text<EndpointUrl>> = vec![];
        /// Credentials of the members, if they require some (`serverAuthConfig`).
        "auth" auth: Option<AuthEntry> = None;
        /// TLS to the members.
        "tls" tls: Option<TlsEntry> = None;
    }
}

section! {
    /// An entry of `registries[].repositories`.
    RepositoriesEntry {
        /// The part: `team-a` covers `team-a` and `team-a/x`, but not `team-ab`. The longest match wins.
        "prefix" prefix: Text<Prefix>;
        /// As `auth` of the registry.
        "auth" auth: Option<AuthEntry> = None, default "the registry's";
        /// As `access` of the registry.
        "access" access: Option<AccessName> = None, default "the registry's", parser "not_null";
    }
}

section! {
    /// `registries[].tls`.
    TlsEntry {
        /// PEM file with authorities to trust for this registry, in addition to the usual roots, or with the registry's
        /// own self-signed certificate. Also used for its token service, and for redirect targets in a private network.
        "ca" ca: Option<PathBuf> = None;
        /// PEM file with Larder's client certificate, for a registry that requires one. Sent only to the endpoint.
        "cert" cert: Option<PathBuf> = None;
        /// PEM file with its private key (PKCS#8, PKCS#1 or SEC1).
        "key" key: Option<PathBuf> = None;
        /// Accept any certificate of the endpoint.
        "insecureSkipVerify" insecure_skip_verify: bool = false;
    }
}

names! {
    /// `onUpstreamDelete`.
    OnDelete { Keep, Drop }
    /// `prefetchOnHead`.
    OnHead { Runtimes, Always, Never }
    /// `drain`.
    DrainName { Refuse, Serve, Handover }
    /// `registries[].access`.
    AccessName { Server, Client }
    /// `blobs`.
    BlobsName { Linked, Any }
    /// `registries[].scheme`.
    SchemeName { Http, Https }
    /// `registries[].endpoints[].kind`.
    EndpointKindName { Registry, Larder }
    /// `unlistedRegistries`.
    Unlisted { Allow, Deny }
    /// `pruneConfig.type`.
    PruneByName { Accessed, Created }
    /// `serverTlsConfig.clientAuth`.
    ClientAuthName { None, Verify }
    /// `objectStore.sweep`.
    SweepName { Auto, Never, Always }
    /// `objectStore.addressing`.
    AddressingName { Path, Virtual }
}

/// An entry of `registries[].endpoints`: a URL, or a map.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub(super) struct EndpointEntry(pub(super) EndpointMap);

impl EndpointEntry {
    pub(super) fn of(url: EndpointUrl) -> EndpointEntry {
        EndpointEntry(EndpointMap {
            url: Text(url),
            kind: None,
            auth: None,
            access: AccessName::Server,
            repositories: vec![],
            tls: None,
        })
    }
}

impl Value for EndpointEntry {
    #[cfg(test)]
    fn shape() -> Shape {
        match EndpointMap::shape() {
            Shape::Map(map) => Shape::ScalarOrMap(map),
            other => other,
        }
    }
}

impl<'de> Deserialize<'de> for EndpointEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<EndpointEntry, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = EndpointEntry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a URL, or a map with url, auth and tls")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<EndpointEntry, E> {
                text.parse().map(EndpointEntry::of).map_err(E::custom)
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<EndpointEntry, A::Error> {
                EndpointMap::deserialize(de::value::MapAccessDeserializer::new(map))
                    .map(EndpointEntry)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// A section in which the file sets no key.
pub(super) fn all_defaults<T: for<'de> Deserialize<'de>>() -> T {
    // No key of these sections is required, and the defaults are constants.
    serde_json::from_str("{}").expect("all keys have defaults")
}

fn days(number: u64) -> Duration {
    Duration::from_secs(number * DAY)
}

fn span(duration: Duration) -> Text<Span> {
    Text(Span(duration))
}

fn count_of(number: usize) -> Count {
    Count(u32::try_from(number).unwrap_or(u32::MAX))
}
