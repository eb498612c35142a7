//! Collects the gauges of the server when metrics are requested.

use std::time::SystemTime;

use super::Handlers;
use crate::cache::{BreakerState, EndpointStatus, SchedulerLoad, UpstreamStatus, UsageSummary};
use crate::metrics::{BucketGauges, EndpointGauges, Gauges, IssuerGauges, PoolGauges, UsageGauges};
use crate::oidc::IssuerStatus;
use crate::prune::Disk;

/// The gauges of the server.
pub(super) fn gauges(handlers: &Handlers) -> Gauges {
    let cache = &handlers.cache;
    let (load, disk, room) = (cache.load(), Disk::of(cache.store()), cache.maintenance().room);
    let since_epoch = handlers.started.duration_since(SystemTime::UNIX_EPOCH);
    let pool = |name, load: SchedulerLoad| PoolGauges {
        name,
        fetchers: load.fetchers,
        busy: load.busy,
        queued: load.queued,
        queued_in_background: load.queued_in_background,
    };
    Gauges {
        version: handlers.version,
        started_seconds: since_epoch.map_or(0.0, |since| since.as_secs_f64()),
        is_ready: handlers.is_ready(),
        is_offline: cache.is_offline(),
        connections: handlers.edge.connections(),
        response_memory_bytes: handlers.edge.response_memory(),
        busy_workers: handlers.edge.busy_workers(),
        worker_queue: handlers.edge.queue_depth(),
        flights: vec![("blob", load.blobs), ("manifest", load.manifests), ("other", load.others)],
        pools: vec![pool("blobs", load.blob_pool), pool("manifests", load.manifest_pool)],
        completions: cache.completion_states(),
        endpoints: cache.upstreams().iter().flat_map(endpoints).collect(),
        failed_handshakes: handlers.edge.failed_handshakes(),
        damaged_files: cache.counts().damaged_files,
        events: cache.events().counts(),
        events_dropped: cache.events().dropped(),
        disk_used_bytes: disk.used_bytes,
        disk_free_bytes: disk.free_bytes,
        disk_size_bytes: disk.size_bytes,
        disk_free_inodes: disk.free_files,
        disk_inodes: disk.files_max,
        cache_size_bytes: room.cap_bytes,
        free_space_bytes: room.floor_bytes(&disk),
        bucket: cache.bucket_status().map(|status| BucketGauges {
            is_open: status.reads.is_some_and(|reads| reads.breaker != BreakerState::Closed),
            is_failing: status.failure.is_some(),
            queued: status.queued,
        }),
        syncs: super::sync::gauges(handlers),
        issuers: handlers.api.auth().issuer_status().into_iter().map(issuer).collect(),
        usage: cache.store().usage().map(usage_gauges),
    }
}

fn endpoints(status: &UpstreamStatus) -> Vec<EndpointGauges> {
    let of = |endpoint: &EndpointStatus| EndpointGauges {
        registry: status.upstream.to_string(),
        url: endpoint.url.clone(),
        is_open: !matches!(endpoint.breaker, BreakerState::Closed),
        rate_limit_remaining: endpoint.quota.as_ref().and_then(|quota| quota.remaining),
        rate_limit: endpoint.quota.as_ref().and_then(|quota| quota.limit),
    };
    status.endpoints.iter().map(of).collect()
}

fn issuer(status: IssuerStatus) -> IssuerGauges {
    IssuerGauges {
        issuer: status.issuer.to_string(),
        keys: status.keys,
        is_failing: status.failing_since.is_some(),
    }
}

fn usage_gauges(usage: UsageSummary) -> UsageGauges {
    let registries = usage.registries.into_iter();
    UsageGauges {
        as_of_seconds: usage.as_of,
        images: usage.images,
        complete_images: usage.complete_images,
        manifests: usage.manifests,
        manifest_bytes: usage.manifest_bytes,
        blobs: usage.blobs,
        blob_bytes: usage.blob_bytes,
        registries: registries.map(|each| (each.name, each.images, each.bytes)).collect(),
    }
}
