//! Requests that read the state of the server.

use serde_json::{Value, json};

use super::super::activity::{RecentLine, RecentRequest};
use super::super::status::Refusal;
use super::state::{DiskShare, Observed, problems};
use super::{Handlers, document, documents, images, setup, state, sync};
use crate::cache::{Cache, EndpointKind, RequestedPull, UpstreamStatus};
use crate::http::{Reply, Request};
use crate::metrics::{ANSWERS, Span, Step};
use crate::oci::{Digest, Reference, quoted_up_to};
use crate::prune::{Disk, read_pins, timestamp};

pub(super) fn answer(handlers: &Handlers, what: &str, request: &Request) -> Result<Reply, Refusal> {
    let none: &[&str] = &[];
    let value = match what {
        "status" => handlers.query(request, none).map(|_| status(handlers)),
        "history" => history(handlers, request),
        "images" => images::images(handlers, request),
        "image" => images::image(handlers, request),
        "repositories" => images::repositories(handlers, request),
        "blobs" => images::blobs(handlers, request),
        "incomplete" => handlers.query(request, none).map(|_| incomplete(&handlers.cache)),
        "events" => handlers.query(request, none).map(|_| events(&handlers.cache)),
        "sync" => handlers.query(request, none).map(|_| sync::read(handlers)),
        "flights" => handlers.query(request, none).map(|_| flights(&handlers.cache)),
        "prefetches" => handlers.query(request, none).map(|_| prefetches(&handlers.cache)),
        "upstreams" => handlers.query(request, none).map(|_| upstreams(&handlers.cache)),
        "peers" => peers(handlers, request),
        "bucket" => handlers.query(request, none).map(|_| bucket(&handlers.cache)),
        "requests" => handlers.query(request, none).map(|_| requests(handlers)),
        "log" => handlers.query(request, none).map(|_| log(handlers)),
        "configuration" => handlers.query(request, none).map(|_| setup::configuration(handlers)),
        "client-configuration" => setup::client_configuration(handlers, request),
        _ => handlers.query(request, none).map(|_| pins(&handlers.cache)),
    };
    value.map(|value| document(&value))
}

fn status(handlers: &Handlers) -> Value {
    let cache = &handlers.cache;
    let (metrics, counts) = (cache.metrics(), cache.counts());
    let traffic = metrics.traffic();
    let mut traffic_document = json!({
        "bytesServed": traffic.served_bytes,
        "bytesFetched": traffic.fetched_bytes,
        "bytesReceived": {},
    });
    for kind in EndpointKind::ALL {
        let bytes = metrics.received_bytes(kind.as_str()).get();
        traffic_document["bytesReceived"][kind.as_str()] = bytes.into();
    }
    for (word, count) in ANSWERS.iter().zip(traffic.answers) {
        traffic_document[*word] = count.into();
    }
    let (room, disk) = (cache.maintenance().room, Disk::of(cache.store()));
    json!({
        "version": handlers.version,
        "started": timestamp(handlers.started),
        "now": timestamp(cache.now()),
        "ready": handlers.is_ready(),
        "state": overall_state(handlers, &disk),
        "offline": cache.is_offline(),
        "airGapped": cache.is_air_gapped(),
        "readOnly": !cache.store().is_writable(),
        "usage": cache.store().usage().map(|usage| documents::usage(&usage)),
        "disk": {
            "usedBytes": disk.used_bytes,
            "freeBytes": disk.free_bytes,
            "sizeBytes": disk.size_bytes,
            "freeInodes": disk.free_files,
            "inodes": disk.files_max,
            "cacheSizeBytes": room.cap_bytes,
            "freeSpaceBytes": room.floor_bytes(&disk),
        },
        "traffic": traffic_document,
        "connections": handlers.edge.connections(),
        "busyWorkers": handlers.edge.busy_workers(),
        "counts": {
            "damagedFiles": counts.damaged_files,
            "blobsNotCached": counts.blobs_not_cached,
            "manifestsNotCached": counts.manifests_not_cached,
            "imagesEvicted": counts.images_evicted,
            "bytesEvicted": counts.bytes_evicted,
        },
    })
}

fn events(cache: &Cache) -> Value {
    let events = cache.events().recent_events();
    json!({ "events": events.iter().map(documents::event_document).collect::<Vec<_>>() })
}

/// The registries that are listed, and the others that have answered or not: clients can name any.
fn by_standing(cache: &Cache) -> (Vec<UpstreamStatus>, Vec<UpstreamStatus>) {
    let is_listed = |status: &UpstreamStatus| cache.metrics().has_label(status.upstream.as_str());
    cache.upstreams().into_iter().partition(is_listed)
}

fn overall_state(handlers: &Handlers, disk: &Disk) -> Value {
    let (cache, report) = (&handlers.cache, handlers.configuration.report());
    let (mut upstreams, unlisted) = by_standing(cache);
    let has_answered = |status: &UpstreamStatus| {
        status.endpoints.iter().any(|endpoint| endpoint.answered.is_some())
    };
    upstreams.extend(unlisted.into_iter().filter(has_answered));
    let bucket = cache.bucket_status();
    let peers = cache.peers(None);
    let failing = peers.iter().filter(|peer| peer.failing > 0);
    let failing_peers: Vec<_> = failing.map(|peer| peer.failing_since).collect();
    let observed = Observed {
        is_draining: handlers.edge.is_draining(),
        is_readable: cache.store().is_readable(),
        is_offline: cache.is_offline(),
        upstreams: &upstreams,
        incomplete: &cache.incomplete_images(),
        disk: DiskShare {
            size_bytes: disk.size_bytes,
            free_bytes: disk.free_bytes,
            floor_bytes: cache.maintenance().room.floor_bytes(disk),
        },
        bucket: bucket.as_ref(),
        failing_peers: &failing_peers,
        issuers: &handlers.api.auth().issuer_status(),
        has_unreadable_pins: cache.pins().is_err(),
        refused: report.refused.as_ref().map(|(since, _)| *since),
        after_restart: &report.after_restart,
    };
    state::document(&problems(&observed))
}

fn history(handlers: &Handlers, request: &Request) -> Result<Value, Refusal> {
    let query = handlers.query(request, &["span"])?;
    let metrics = handlers.cache.metrics();
    let span = match query.word("span", &["hour", "day", "week"])? {
        None => None,
        Some("hour") => Some(Span::Hour),
        Some("day") => Some(Span::Day),
        Some(_) => Some(Span::Week),
    };
    let steps = match span {
        None => metrics.history(),
        Some(span) => metrics.history_of(span, handlers.cache.now()),
    };
    let document = |step: &Step| {
        json!({
            "time": timestamp(step.time),
            "hits": step.hits,
            "misses": step.misses,
            "bytesServed": step.served_bytes,
            "bytesFetched": step.fetched_bytes,
        })
    };
    Ok(json!({
        "stepSeconds": span.unwrap_or(Span::Hour).step().as_secs(),
        "history": steps.iter().map(document).collect::<Vec<_>>(),
    }))
}

fn requests(handlers: &Handlers) -> Value {
    let document = |request: &RecentRequest| {
        json!({
            "time": timestamp(request.time),
            "method": shown(&request.method),
            "path": shown(&request.path),
            "status": request.status,
            "bytes": request.bytes_sent,
            "milliseconds": request.latency.as_secs_f64() * 1e3,
            "client": request.client.to_string(),
            "agent": request.agent.as_deref().map(shown),
            "user": request.user.as_deref().map(shown),
            "cache": request.cache,
            "reason": request.reason,
            "upstream": request.upstream,
            "ended": request.ended,
            "error": request.error.as_deref().map(shown),
        })
    };
    let requests = handlers.activity.requests.newest_first();
    json!({ "requests": requests.iter().map(document).collect::<Vec<_>>() })
}

/// Text from clients without control characters. It is short already.
fn shown(text: &str) -> String {
    quoted_up_to(usize::MAX, text)
}

fn log(handlers: &Handlers) -> Value {
    let document = |line: &RecentLine| {
        json!({
            "time": timestamp(line.time),
            "level": if line.level == log::Level::Error { "error" } else { "warning" },
            "text": shown(&line.text),
        })
    };
    let lines = handlers.lines.newest_first();
    json!({ "lines": lines.iter().map(document).collect::<Vec<_>>() })
}

fn prefetches(cache: &Cache) -> Value {
    let document = |pull: &RequestedPull| {
        json!({
            "image": pull.image,
            "state": pull.state.as_str(),
            "since": timestamp(pull.since),
            "reason": pull.reason,
        })
    };
    json!({ "prefetches": cache.requested_pulls().iter().map(document).collect::<Vec<_>>() })
}

fn incomplete(cache: &Cache) -> Value {
    let images = cache.incomplete_images();
    json!({ "incomplete": images.iter().map(documents::incomplete).collect::<Vec<_>>() })
}

fn flights(cache: &Cache) -> Value {
    let partials = cache.store().partial_files();
    let partials = partials.iter().map(|partial| {
        json!({
            "upstream": partial.upstream().as_str(),
            "digest": partial.digest().to_string(),
            "bytes": partial.bytes,
            "written": partial.written.map(timestamp),
        })
    });
    json!({
        "flights": cache.flights().iter().map(documents::flight).collect::<Vec<_>>(),
        "partials": partials.collect::<Vec<_>>(),
    })
}

fn upstreams(cache: &Cache) -> Value {
    json!({ "upstreams": cache.upstreams().iter().map(documents::upstream).collect::<Vec<_>>() })
}

fn bucket(cache: &Cache) -> Value {
    json!({ "bucket": cache.bucket_status().as_ref().map(documents::bucket) })
}

fn peers(handlers: &Handlers, request: &Request) -> Result<Value, Refusal> {
    let query = handlers.query(request, &["image", "digest"])?;
    let digest: Option<Digest> = query.parsed("digest")?;
    let content = match (digest, query.text("image")) {
        (Some(digest), _) => Some(digest.to_string()),
        (None, Some(_)) => Some(match images::reference(&query)? {
            (_, Reference::Digest(digest)) => digest.to_string(),
            (name, Reference::Tag(tag)) => format!("{}:{tag}", name.repository),
        }),
        (None, None) => None,
    };
    let peers = handlers.cache.peers(content.as_deref());
    Ok(json!({ "peers": peers.iter().map(documents::peer).collect::<Vec<_>>() }))
}

fn pins(cache: &Cache) -> Value {
    let settings = cache.maintenance().pins;
    let configured = settings.named().map(|pin| (pin.to_string(), "configuration"));
    let listed = settings.lists.iter().flat_map(|path| {
        let choices = read_pins(path).unwrap_or_default();
        choices.into_iter().map(|choice| (choice.to_string(), "list"))
    });
    let kept = cache.store().pins().unwrap_or_default().into_iter().map(|pin| (pin, "cache"));
    let synced = cache.store().synced_pins().unwrap_or_default();
    let synced = synced.into_iter().map(|pin| (pin, "sync"));
    let all = configured.chain(listed).chain(synced).chain(kept);
    let all = all.map(|(pattern, source)| json!({ "pattern": pattern, "source": source }));
    let problem = cache.pins().err().map(|error| error.to_string());
    json!({ "pins": all.collect::<Vec<_>>(), "problem": problem })
}

/// `/health?verbose`.
pub(super) fn verbose_health(handlers: &Handlers) -> Value {
    let counts = handlers.cache.counts();
    // This may be public, so registries that are not listed are only counted: they reveal what clients use.
    let (listed, unlisted) = by_standing(&handlers.cache);
    json!({
        "status": "UP",
        "upstreams": listed.iter().map(documents::upstream).collect::<Vec<_>>(),
        "unlistedUpstreams": unlisted.len(),
        "bucket": handlers.cache.bucket_status().as_ref().map(documents::bucket),
        "damagedFiles": counts.damaged_files,
        "servedWithoutCaching": {
            "blobs": counts.blobs_not_cached,
            "manifests": counts.manifests_not_cached,
        },
    })
}
