//! JSON documents of the management API: `docs/openapi.yaml`, "schemas".

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::cache::{
    BreakerState, BucketStatus, EndpointStatus, FlightStatus, ImageUsage, IncompleteImage,
    PeerStatus, UpstreamStatus, UsageSummary,
};
use crate::events::RecordedEvent;
use crate::oci::{ImageDetails, PreviousManifest};
use crate::prune::{Report, timestamp};

/// An image.
pub fn image_document(image: &ImageUsage, is_pinned: bool, is_stale: bool) -> Value {
    json!({
        "image": image.image,
        "repository": image.repository,
        "digest": image.digest,
        "mediaType": image.media_type,
        "sizeBytes": image.size_bytes,
        "missingBytes": image.missing_bytes,
        "complete": image.complete,
        "platforms": image.platforms,
        "manifests": image.manifests,
        "blobs": image.blobs,
        "created": image.created,
        "fetched": time(Some(image.fetched)),
        "checked": time(image.checked),
        "goneUpstream": time(image.gone),
        "held": image.held,
        "heldSince": time(image.held_since),
        "pulled": time(image.pulled),
        "pinned": is_pinned,
        "stale": is_stale,
    })
}

/// An event.
pub fn event_document(recorded: &RecordedEvent) -> Value {
    let RecordedEvent { number, time, event } = recorded;
    let mut document = json!({
        "number": number,
        "time": timestamp(*time),
        "type": event.is.as_str(),
        "subject": event.subject,
        "details": {},
    });
    for (name, value) in &event.details {
        document["details"][*name] = value.as_str().into();
    }
    document
}

/// What the config of an image states about it.
pub(super) fn image_details(details: &ImageDetails) -> Value {
    let labels = details.labels.iter().map(|(name, value)| json!({ "name": name, "value": value }));
    json!({
        "created": details.created,
        "platform": details.platform,
        "entrypoint": details.entrypoint,
        "command": details.command,
        "user": details.user,
        "workingDirectory": details.working_directory,
        "ports": details.ports,
        "labels": labels.collect::<Vec<_>>(),
    })
}

/// The report of a prune.
pub fn report_document(report: &Report, is_dry_run: bool) -> Value {
    let mut value = json!(report);
    value["dryRun"] = is_dry_run.into();
    value
}

/// A time in seconds since 1970 as a timestamp; `None` for a time that has no timestamp, in a damaged record.
pub(super) fn time(seconds: Option<u64>) -> Option<String> {
    let since = Duration::from_secs(seconds?);
    let text = SystemTime::UNIX_EPOCH.checked_add(since).map(timestamp);
    text.filter(|text| !text.is_empty())
}

/// A manifest to which a tag referred.
pub fn previous_document(previous: &PreviousManifest) -> Value {
    json!({
        "digest": previous.digest.to_string(),
        "fetched": timestamp(previous.fetched),
    })
}

pub(super) fn usage(summary: &UsageSummary) -> Value {
    let registries: Vec<Value> = summary
        .registries
        .iter()
        .map(|registry| {
            json!({
                "name": registry.name,
                "repositories": registry.repositories,
                "images": registry.images,
                "bytes": registry.bytes,
                "pulled": time(registry.pulled),
            })
        })
        .collect();
    json!({
        "asOf": time(Some(summary.as_of)),
        "tookMilliseconds": summary.took_milliseconds,
        "images": summary.images,
        "completeImages": summary.complete_images,
        "repositories": summary.repositories,
        "manifests": summary.manifests,
        "manifestBytes": summary.manifest_bytes,
        "blobs": summary.blobs,
        "blobBytes": summary.blob_bytes,
        "registries": registries,
    })
}

pub(super) fn incomplete(image: &IncompleteImage) -> Value {
    json!({
        "image": image.image,
        "digest": image.digest,
        "state": image.state,
        "reason": image.reason,
        "since": time(Some(image.since)),
        "attempts": image.attempts,
    })
}

pub(super) fn flight(flight: &FlightStatus) -> Value {
    json!({
        "upstream": flight.upstream.as_str(),
        "repository": flight.origin.as_ref().map(ToString::to_string).unwrap_or_default(),
        "digest": flight.digest.to_string(),
        "bytes": flight.bytes,
        "sizeBytes": flight.size,
        "connections": flight.connections,
    })
}

pub(super) fn upstream(status: &UpstreamStatus) -> Value {
    let endpoints: Vec<Value> = status.endpoints.iter().map(endpoint).collect();
    json!({ "name": status.upstream.as_str(), "endpoints": endpoints })
}

pub(super) fn peer(status: &PeerStatus) -> Value {
    json!({
        "url": status.url,
        "isThisProcess": status.is_this_process,
        "rank": status.rank,
        "version": status.version,
        "differences": status.differences,
        "failing": status.failing,
        "failingSince": status.failing_since.map(timestamp),
        "lastFailure": status.last_failure,
        "lastFailureTime": status.failed.map(timestamp),
    })
}

pub(super) fn bucket(status: &BucketStatus) -> Value {
    let probe = status.probe.as_ref().map(|probe| {
        json!({
            "error": probe.error.as_ref().map(ToString::to_string),
            "readable": probe.is_readable,
            "writable": probe.is_writable,
            "createsIfAbsent": probe.has_create_if_absent,
            "verifiesChecksums": probe.verifies_checksum || probe.verifies_content_hash,
        })
    });
    json!({
        "url": status.url,
        "reads": status.reads.as_ref().map(endpoint),
        "readOnly": status.is_read_only,
        "probe": probe,
        "queued": status.queued,
        "running": status.running,
        "done": status.done,
        "bytesSent": status.sent_bytes,
        "failure": status.failure.as_ref().map(|(since, text)| {
            json!({ "since": timestamp(*since), "text": text })
        }),
    })
}

fn endpoint(status: &EndpointStatus) -> Value {
    let (breaker, asked_again_in) = match status.breaker {
        BreakerState::Closed => ("closed", None),
        BreakerState::Open(wait) => ("open", Some(wait.as_secs_f64())),
        BreakerState::HalfOpen => ("half-open", None),
    };
    let unreachable_since = match status.breaker {
        BreakerState::Closed => None,
        BreakerState::Open(_) | BreakerState::HalfOpen => status.failing_since,
    };
    json!({
        "url": status.url,
        "breaker": breaker,
        "askedAgainInSeconds": asked_again_in,
        "failuresInARow": status.failures,
        "lastSuccess": status.answered.map(timestamp),
        "lastFailure": status.last_failure,
        "lastFailureTime": status.failed.map(timestamp),
        "unreachableSince": unreachable_since.map(timestamp),
        "rateLimit": status.quota.as_ref().map(|quota| json!({
            "limit": quota.limit,
            "remaining": quota.remaining,
            "windowSeconds": quota.window.map(|window| window.as_secs()),
        })),
    })
}
