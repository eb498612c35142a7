//! Gauges: the current state, which is passed in when metrics are rendered and not kept.

use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;

use super::{Kind, Metrics, OTHER};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Pool {
    pool: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Queue {
    pool: &'static str,
    queue: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Type {
    r#type: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfState {
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfRegistry {
    registry: Arc<str>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfSync {
    sync: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfIssuer {
    issuer: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfEndpoint {
    registry: Arc<str>,
    endpoint: String,
}

/// The current state of the server.
#[derive(Debug, Clone, Default)]
pub struct Gauges {
    /// The program's version.
    pub version: &'static str,
    /// The start time of the process, in seconds since 1970.
    pub started_seconds: f64,
    /// Whether the server is ready for clients.
    pub is_ready: bool,
    /// Whether registries are not contacted.
    pub is_offline: bool,
    /// Open client connections.
    pub connections: usize,
    /// Bytes of responses in memory that have not been sent yet.
    pub response_memory_bytes: u64,
    /// Busy workers.
    pub busy_workers: usize,
    /// Connections that wait for a worker.
    pub worker_queue: usize,
    /// Downloads and requests in progress, by kind.
    pub flights: Vec<(&'static str, usize)>,
    /// The fetch pools.
    pub pools: Vec<PoolGauges>,
    /// Images that are being completed, by state.
    pub completions: Vec<(&'static str, usize)>,
    /// The endpoints of registries.
    pub endpoints: Vec<EndpointGauges>,
    /// TLS handshakes with clients that failed since the start.
    pub failed_handshakes: u64,
    /// Damaged files found since the start.
    pub damaged_files: u64,
    /// Events since the start, by type.
    pub events: Vec<(&'static str, u64)>,
    /// Events that the webhook did not receive.
    pub events_dropped: u64,
    /// The size of the cache in bytes; `None` until it has been counted.
    pub disk_used_bytes: Option<u64>,
    /// The free space on its disk, in bytes.
    pub disk_free_bytes: Option<u64>,
    /// The size of its disk, in bytes.
    pub disk_size_bytes: Option<u64>,
    /// Inodes that are free on the cache's file system; `None` where it has no limit.
    pub disk_free_inodes: Option<u64>,
    /// How many inodes it can have.
    pub disk_inodes: Option<u64>,
    /// `cacheSize`.
    pub cache_size_bytes: Option<u64>,
    /// `freeSpace` in bytes.
    pub free_space_bytes: Option<u64>,
    /// The bucket.
    pub bucket: Option<BucketGauges>,
    /// The entries of `sync`.
    pub syncs: Vec<SyncGauges>,
    /// The issuers in `serverAuthConfig.oidc`.
    pub issuers: Vec<IssuerGauges>,
    /// The results of the last walk over the images.
    pub usage: Option<UsageGauges>,
}

/// The bucket, and the uploads to it.
#[derive(Debug, Clone, Copy)]
pub struct BucketGauges {
    /// Whether requests of clients do not go there because of failures.
    pub is_open: bool,
    /// Whether uploads fail at present.
    pub is_failing: bool,
    /// Blobs and records that wait for their upload.
    pub queued: usize,
}

/// An entry of `sync`, whose name is in the configuration.
#[derive(Debug, Clone)]
pub struct SyncGauges {
    /// Its name.
    pub name: String,
    /// When a run last ended with all images present and confirmed, in seconds since 1970.
    pub succeeded_seconds: Option<u64>,
    /// The images that were present after its last run.
    pub images: u64,
    /// The images that were missing.
    pub missing: u64,
}

/// An issuer of tokens, whose URL is in the configuration.
#[derive(Debug, Clone)]
pub struct IssuerGauges {
    /// Its URL.
    pub issuer: String,
    /// The number of its keys.
    pub keys: usize,
    /// Whether newer keys cannot be fetched or read.
    pub is_failing: bool,
}

/// A fetch pool.
#[derive(Debug, Clone, Copy)]
pub struct PoolGauges {
    /// `blobs` or `manifests`.
    pub name: &'static str,
    /// The number of its threads.
    pub fetchers: usize,
    /// The number of busy threads.
    pub busy: usize,
    /// Queued jobs that clients wait for.
    pub queued: usize,
    /// Queued jobs that no client waits for.
    pub queued_in_background: usize,
}

/// An endpoint of a registry.
#[derive(Debug, Clone)]
pub struct EndpointGauges {
    /// The registry.
    pub registry: String,
    /// Its URL.
    pub url: String,
    /// Whether its breaker is open, so that it is not contacted for a while.
    pub is_open: bool,
    /// The remaining pulls of its rate limit.
    pub rate_limit_remaining: Option<u64>,
    /// The pulls that its rate limit allows in a window.
    pub rate_limit: Option<u64>,
}

/// The results of a walk over the images.
#[derive(Debug, Clone, Default)]
pub struct UsageGauges {
    /// The end of the walk, in seconds since 1970.
    pub as_of_seconds: u64,
    /// Images.
    pub images: u64,
    /// Complete images.
    pub complete_images: u64,
    /// Manifests.
    pub manifests: u64,
    /// Bytes of manifests.
    pub manifest_bytes: u64,
    /// Blobs other than manifests.
    pub blobs: u64,
    /// Bytes of these blobs.
    pub blob_bytes: u64,
    /// Name, images and bytes of each registry.
    pub registries: Vec<(String, u64, u64)>,
}

/// Converts a number for a gauge; larger ones become the maximum.
fn saturating(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}

impl Gauges {
    pub(super) fn register(&self, metrics: &Metrics, to: &mut Registry) {
        let build = Family::<Vec<(&'static str, &'static str)>, Gauge>::default();
        build.get_or_create(&vec![("version", self.version)]).set(1);
        to.register("build_info", "The version of the running server", build);
        if let Some(bucket) = self.bucket {
            let mut add = |name: &str, help: &str, value: i64| {
                to.register(name, help, ConstGauge::new(value));
            };
            add(
                "bucket_breaker_open",
                "1 if clients' requests skip the bucket",
                bucket.is_open.into(),
            );
            add("bucket_upload_failing", "1 if uploads fail", bucket.is_failing.into());
            add(
                "bucket_queued",
                "Blobs and records that wait for their upload",
                saturating(bucket.queued),
            );
        }
        let started = ConstGauge::new(self.started_seconds);
        to.register(
            "start_time_seconds",
            "Start time of the process, in seconds since 1970",
            started,
        );
        let mut add = |name: &str, help: &str, value: Option<i64>| {
            if let Some(value) = value {
                to.register(name, help, ConstGauge::new(value));
            }
        };
        let some = |number: u64| Some(saturating(number));
        add("ready", "1 if the server is ready for clients", Some(self.is_ready.into()));
        add("offline", "1 if registries are not contacted", Some(self.is_offline.into()));
        add("connections", "Open client connections", Some(saturating(self.connections)));
        add(
            "response_memory_bytes",
            "Bytes of responses in memory that have not been sent yet",
            Some(saturating(self.response_memory_bytes)),
        );
        add("workers_busy", "Busy worker threads", Some(saturating(self.busy_workers)));
        add(
            "worker_queue",
            "Connections that wait for a worker",
            Some(saturating(self.worker_queue)),
        );
        let disk = [
            ("disk_used_bytes", "Size of the cache on disk", self.disk_used_bytes),
            ("disk_free_bytes", "Free space on the disk of the cache", self.disk_free_bytes),
            ("disk_size_bytes", "Size of the disk of the cache", self.disk_size_bytes),
            (
                "disk_free_inodes",
                "Free inodes on the file system of the cache",
                self.disk_free_inodes,
            ),
            ("disk_inodes", "Inodes of the file system of the cache", self.disk_inodes),
            (
                "cache_size_limit_bytes",
                "Maximum size of the cache (cacheSize)",
                self.cache_size_bytes,
            ),
            (
                "free_space_limit_bytes",
                "Minimum free space on the disk (freeSpace)",
                self.free_space_bytes,
            ),
        ];
        for (name, help, value) in disk {
            add(name, help, value.and_then(some));
        }
        if let Some(usage) = &self.usage {
            for (name, help, value) in [
                (
                    "usage_timestamp_seconds",
                    "Time of the last count of images, in seconds since 1970",
                    usage.as_of_seconds,
                ),
                ("images", "Images in the cache", usage.images),
                ("images_complete", "Complete images in the cache", usage.complete_images),
                ("stored_manifests", "Manifests in the cache", usage.manifests),
                ("stored_manifest_bytes", "Bytes of manifests on disk", usage.manifest_bytes),
                ("stored_blobs", "Configs and layers in the cache", usage.blobs),
                ("stored_blob_bytes", "Bytes of configs and layers on disk", usage.blob_bytes),
            ] {
                add(name, help, some(value));
            }
            register_registries(usage, metrics, to);
        }
        for (name, help, count) in [
            ("damaged_files", "Damaged files found in the cache", self.damaged_files),
            ("events_dropped", "Events that the webhook did not receive", self.events_dropped),
            (
                "tls_handshake_failures",
                "Failed TLS handshakes with clients",
                self.failed_handshakes,
            ),
        ] {
            to.register(name, help, ConstCounter::new(count));
        }
        let events = Family::<Type, Counter>::default();
        for (word, count) in &self.events {
            events.get_or_create(&Type { r#type: word }).inc_by(*count);
        }
        to.register("events", "Events", events);
        self.register_work(metrics, to);
        register_syncs(&self.syncs, to);
        register_issuers(&self.issuers, to);
    }

    fn register_work(&self, metrics: &Metrics, to: &mut Registry) {
        let flights = Family::<Kind, Gauge>::default();
        for (kind, count) in &self.flights {
            flights.get_or_create(&Kind { kind }).set(saturating(*count));
        }
        to.register("flights", "Downloads and requests to registries in progress", flights);
        let (fetchers, busy) = (Family::<Pool, Gauge>::default(), Family::<Pool, Gauge>::default());
        let queues = Family::<Queue, Gauge>::default();
        for PoolGauges { name: pool, fetchers: all, busy: at_work, queued, queued_in_background } in
            self.pools.iter().copied()
        {
            fetchers.get_or_create(&Pool { pool }).set(saturating(all));
            busy.get_or_create(&Pool { pool }).set(saturating(at_work));
            for (queue, length) in [("clients", queued), ("background", queued_in_background)] {
                queues.get_or_create(&Queue { pool, queue }).set(saturating(length));
            }
        }
        let completions = Family::<OfState, Gauge>::default();
        for (state, count) in &self.completions {
            completions.get_or_create(&OfState { state }).set(saturating(*count));
        }
        let help = "Images that are not complete, by the state of their completion";
        to.register("incomplete_images", help, completions);
        to.register("fetchers", "Threads that fetch from registries", fetchers);
        to.register("fetchers_busy", "Busy threads that fetch from registries", busy);
        to.register("fetch_queue", "Queued fetches", queues);
        let endpoints = || Family::<OfEndpoint, Gauge>::default();
        let (open, limit, remaining) = (endpoints(), endpoints(), endpoints());
        for endpoint in &self.endpoints {
            let registry = metrics.label(&endpoint.registry);
            // The number of registries without a label is unbounded.
            if *registry == *OTHER {
                continue;
            }
            let of = OfEndpoint { registry, endpoint: endpoint.url.clone() };
            open.get_or_create(&of).set(endpoint.is_open.into());
            if let Some(limited) = endpoint.rate_limit {
                limit.get_or_create(&of).set(saturating(limited));
            }
            if let Some(left) = endpoint.rate_limit_remaining {
                remaining.get_or_create(&of).set(saturating(left));
            }
        }
        to.register(
            "upstream_breaker_open",
            "1 if an endpoint is not contacted because of failures",
            open,
        );
        to.register(
            "upstream_rate_limit",
            "Pulls that the rate limit of a registry allows in a window",
            limit,
        );
        let help = "Pulls that remain in the rate limit of a registry";
        to.register("upstream_rate_limit_remaining", help, remaining);
    }
}

/// Registers the results of the entries of `sync`.
fn register_syncs(syncs: &[SyncGauges], to: &mut Registry) {
    let families = || Family::<OfSync, Gauge>::default();
    let (succeeded, images, missing) = (families(), families(), families());
    for entry in syncs {
        let of = OfSync { sync: entry.name.clone() };
        // Absent before the first success.
        if let Some(seconds) = entry.succeeded_seconds {
            succeeded.get_or_create(&of).set(saturating(seconds));
        }
        images.get_or_create(&of).set(saturating(entry.images));
        missing.get_or_create(&of).set(saturating(entry.missing));
    }
    to.register(
        "sync_last_success_timestamp_seconds",
        "When a run of an entry of sync last ended with all images present and confirmed, in seconds since 1970",
        succeeded,
    );
    let help = "Images that were present after the last run of an entry of sync";
    to.register("sync_images", help, images);
    let help = "Images that were missing after the last run of an entry of sync";
    to.register("sync_missing_images", help, missing);
}

/// Registers the keys of issuers.
fn register_issuers(issuers: &[IssuerGauges], to: &mut Registry) {
    let families = || Family::<OfIssuer, Gauge>::default();
    let (keys, failing) = (families(), families());
    for entry in issuers {
        let of = OfIssuer { issuer: entry.issuer.clone() };
        keys.get_or_create(&of).set(saturating(entry.keys));
        failing.get_or_create(&of).set(entry.is_failing.into());
    }
    to.register("issuer_keys", "Keys of an issuer, which verify its tokens", keys);
    let help = "1 if newer keys of an issuer cannot be fetched or read";
    to.register("issuer_keys_failing", help, failing);
}

/// Registers images and bytes for each registry; registries without a label are added up.
fn register_registries(usage: &UsageGauges, metrics: &Metrics, to: &mut Registry) {
    let families = || Family::<OfRegistry, Gauge>::default();
    let (images, bytes) = (families(), families());
    for (registry, count, size) in &usage.registries {
        let of = OfRegistry { registry: metrics.label(registry) };
        images.get_or_create(&of).inc_by(saturating(*count));
        bytes.get_or_create(&of).inc_by(saturating(*size));
    }
    to.register("registry_images", "Images in the cache, by registry", images);
    let help = "Bytes of images, by registry; blobs that repositories share count in each";
    to.register("registry_bytes", help, bytes);
}
