//! What is so at the moment: handed in when metrics are asked for, and forgotten afterwards.

use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::ConstCounter;
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
struct OfRegistry {
    registry: Arc<str>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfEndpoint {
    registry: Arc<str>,
    endpoint: String,
}

/// What is so at the moment.
#[derive(Debug, Clone, Default)]
pub struct Gauges {
    /// The program's version.
    pub version: &'static str,
    /// When the process began, in seconds since 1970.
    pub started_seconds: f64,
    /// Whether clients should be sent here.
    pub is_ready: bool,
    /// Whether no upstream is asked.
    pub is_offline: bool,
    /// Clients that are connected.
    pub connections: usize,
    /// Bytes of responses in memory that clients have not read yet.
    pub response_memory_bytes: u64,
    /// Workers that are at work.
    pub busy_workers: usize,
    /// Connections that wait for a worker.
    pub worker_queue: usize,
    /// Downloads and questions under way, by kind.
    pub flights: Vec<(&'static str, usize)>,
    /// The fetch pools.
    pub pools: Vec<PoolGauges>,
    /// Endpoints of registries.
    pub endpoints: Vec<EndpointGauges>,
    /// TLS handshakes with clients that came to nothing since the start.
    pub failed_handshakes: u64,
    /// Files found to be damaged since the start.
    pub damaged_files: u64,
    /// What the cache holds, in bytes; nothing before it was counted.
    pub disk_used_bytes: Option<u64>,
    /// What is free on its disk.
    pub disk_free_bytes: Option<u64>,
    /// How large that is.
    pub disk_size_bytes: Option<u64>,
    /// Inodes that are free on the cache's file system; `None` where it has no limit.
    pub disk_free_inodes: Option<u64>,
    /// How many inodes it can have.
    pub disk_inodes: Option<u64>,
    /// `cacheSize`.
    pub cache_size_bytes: Option<u64>,
    /// `freeSpace` in bytes.
    pub free_space_bytes: Option<u64>,
    /// What the last walk of the images found.
    pub usage: Option<UsageGauges>,
}

/// A fetch pool.
#[derive(Debug, Clone, Copy)]
pub struct PoolGauges {
    /// `blobs` or `manifests`.
    pub name: &'static str,
    /// Its fetchers.
    pub fetchers: usize,
    /// Those at work.
    pub busy: usize,
    /// Jobs that somebody waits for.
    pub queued: usize,
    /// Jobs that nobody waits for.
    pub queued_behind: usize,
}

/// An endpoint of a registry.
#[derive(Debug, Clone)]
pub struct EndpointGauges {
    /// The registry.
    pub registry: String,
    /// Where it is.
    pub url: String,
    /// Whether it is left alone for a while.
    pub is_open: bool,
    /// Pulls that the registry still allows.
    pub rate_limit_remaining: Option<u64>,
    /// Pulls that it allows in a window.
    pub rate_limit: Option<u64>,
}

/// What the last walk of the images found.
#[derive(Debug, Clone, Default)]
pub struct UsageGauges {
    /// When it ended, in seconds since 1970.
    pub as_of_seconds: u64,
    /// Images.
    pub images: u64,
    /// Those that are complete.
    pub complete_images: u64,
    /// Manifests.
    pub manifests: u64,
    /// Their sizes together.
    pub manifest_bytes: u64,
    /// Blobs, manifests not among them.
    pub blobs: u64,
    /// Their sizes together.
    pub blob_bytes: u64,
    /// Registry, images, bytes.
    pub registries: Vec<(String, u64, u64)>,
}

/// A number as gauges want it; more than they hold is as good as that.
fn whole(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}

impl Gauges {
    pub(super) fn register(&self, metrics: &Metrics, to: &mut Registry) {
        let build = Family::<Vec<(&'static str, &'static str)>, Gauge>::default();
        build.get_or_create(&vec![("version", self.version)]).set(1);
        to.register("build_info", "The version that runs", build);
        let started = ConstGauge::new(self.started_seconds);
        to.register("start_time_seconds", "When the process began", started);
        let mut add = |name: &str, help: &str, value: Option<i64>| {
            if let Some(value) = value {
                to.register(name, help, ConstGauge::new(value));
            }
        };
        let some = |number: u64| Some(whole(number));
        add("ready", "Whether clients should be sent here", Some(self.is_ready.into()));
        add("offline", "Whether no registry is asked", Some(self.is_offline.into()));
        add("connections", "Clients that are connected", Some(whole(self.connections)));
        add(
            "response_memory_bytes",
            "Responses in memory that clients have not read yet",
            Some(whole(self.response_memory_bytes)),
        );
        add("workers_busy", "Workers that are at work", Some(whole(self.busy_workers)));
        add("worker_queue", "Connections that wait for a worker", Some(whole(self.worker_queue)));
        let disk = [
            ("disk_used_bytes", "What the cache holds on disk", self.disk_used_bytes),
            ("disk_free_bytes", "What is free on the cache's disk", self.disk_free_bytes),
            ("disk_size_bytes", "How large the cache's disk is", self.disk_size_bytes),
            (
                "disk_free_inodes",
                "Inodes that are free on the cache's file system",
                self.disk_free_inodes,
            ),
            ("disk_inodes", "Inodes of the cache's file system", self.disk_inodes),
            ("cache_size_limit_bytes", "The cap of the cache (cacheSize)", self.cache_size_bytes),
            ("free_space_limit_bytes", "The floor of its disk (freeSpace)", self.free_space_bytes),
        ];
        for (name, help, value) in disk {
            add(name, help, value.and_then(some));
        }
        if let Some(usage) = &self.usage {
            for (name, help, value) in [
                ("usage_timestamp_seconds", "When images were last counted", usage.as_of_seconds),
                ("images", "Images in the cache", usage.images),
                ("images_complete", "Images that need no registry", usage.complete_images),
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
            ("damaged_files", "Files of the cache found to be damaged", self.damaged_files),
            ("tls_handshake_failures", "Clients without a session", self.failed_handshakes),
        ] {
            to.register(name, help, ConstCounter::new(count));
        }
        self.register_work(metrics, to);
    }

    fn register_work(&self, metrics: &Metrics, to: &mut Registry) {
        let flights = Family::<Kind, Gauge>::default();
        for (kind, count) in &self.flights {
            flights.get_or_create(&Kind { kind }).set(whole(*count));
        }
        to.register("flights", "Downloads and questions under way", flights);
        let (fetchers, busy) = (Family::<Pool, Gauge>::default(), Family::<Pool, Gauge>::default());
        let queues = Family::<Queue, Gauge>::default();
        for PoolGauges { name: pool, fetchers: all, busy: at_work, queued, queued_behind } in
            self.pools.iter().copied()
        {
            fetchers.get_or_create(&Pool { pool }).set(whole(all));
            busy.get_or_create(&Pool { pool }).set(whole(at_work));
            for (queue, length) in [("clients", queued), ("behind", queued_behind)] {
                queues.get_or_create(&Queue { pool, queue }).set(whole(length));
            }
        }
        to.register("fetchers", "Threads that fetch", fetchers);
        to.register("fetchers_busy", "Threads that fetch something now", busy);
        to.register("fetch_queue", "Fetches that wait for a thread", queues);
        let endpoints = || Family::<OfEndpoint, Gauge>::default();
        let (open, limit, remaining) = (endpoints(), endpoints(), endpoints());
        for endpoint in &self.endpoints {
            let registry = metrics.label(&endpoint.registry);
            // Of registries that nobody has listed there could be any number.
            if *registry == *OTHER {
                continue;
            }
            let of = OfEndpoint { registry, endpoint: endpoint.url.clone() };
            open.get_or_create(&of).set(endpoint.is_open.into());
            if let Some(limited) = endpoint.rate_limit {
                limit.get_or_create(&of).set(whole(limited));
            }
            if let Some(left) = endpoint.rate_limit_remaining {
                remaining.get_or_create(&of).set(whole(left));
            }
        }
        to.register("upstream_breaker_open", "Whether an endpoint is left alone", open);
        to.register("upstream_rate_limit", "Pulls that a registry allows in a window", limit);
        let help = "Pulls that a registry still allows";
        to.register("upstream_rate_limit_remaining", help, remaining);
    }
}

/// By registry, those without a label together.
fn register_registries(usage: &UsageGauges, metrics: &Metrics, to: &mut Registry) {
    let families = || Family::<OfRegistry, Gauge>::default();
    let (images, bytes) = (families(), families());
    for (registry, count, size) in &usage.registries {
        let of = OfRegistry { registry: metrics.label(registry) };
        images.get_or_create(&of).inc_by(whole(*count));
        bytes.get_or_create(&of).inc_by(whole(*size));
    }
    to.register("registry_images", "Images in the cache, by registry", images);
    let help = "Bytes of images, by registry; what repositories share counts in each";
    to.register("registry_bytes", help, bytes);
}
