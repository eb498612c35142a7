//! Images that are kept present: the state of the entries of `sync`, and requests for runs.

use serde_json::{Value, json};

use super::super::status::Refusal;
use super::{Handlers, accepted, documents};
use crate::http::{Reply, Request};
use crate::image_sync::{RequestError, Schedule, SyncStatus};
use crate::metrics::SyncGauges;
use crate::oci::to_seconds;

pub(super) fn read(handlers: &Handlers) -> Value {
    let entries = handlers.sync.statuses();
    json!({
        "suspended": handlers.sync.suspension().map(|why| why.as_str()),
        "entries": entries.iter().map(entry).collect::<Vec<_>>(),
    })
}

fn entry(status: &SyncStatus) -> Value {
    let (every, cron) = match &status.schedule {
        Schedule::Every(interval) => (Some(interval.as_secs()), None),
        Schedule::Cron(cron) => (None, Some(cron.to_string())),
        Schedule::AtStart => (None, None),
    };
    let time = |time| documents::time(Option::map(time, to_seconds));
    let listed = |images: &[(String, String)]| -> Value {
        images.iter().map(|(image, reason)| json!({ "image": image, "reason": reason })).collect()
    };
    json!({
        "name": status.name,
        "everySeconds": every,
        "cron": cron,
        "state": status.stage.as_str(),
        "done": status.done,
        "total": status.total,
        "attempt": status.attempt,
        "runs": status.runs,
        "next": time(status.next),
        "started": time(status.started),
        "seconds": status.took.map(|took| took.as_secs()),
        "succeeded": time(status.succeeded),
        "images": status.present,
        "unconfirmedImages": status.unconfirmed,
        "missingImages": status.missing,
        "missing": listed(&status.reasons),
        "unconfirmed": listed(&status.unconfirmed_reasons),
    })
}

/// Requests a run of an entry, or of all.
pub(super) fn request(handlers: &Handlers, request: &Request) -> Result<Reply, Refusal> {
    let query = handlers.query(request, &["name"])?;
    let requested = handlers.sync.request(query.text("name"));
    let requested = requested.map_err(|error| match error {
        RequestError::Suspended(why) => Refusal::Conflict(why.as_str().into()),
        RequestError::Unknown(names) => Refusal::NotFound(match names.is_empty() {
            true => "the configuration has no entry of sync".into(),
            false => format!("there is no such entry of sync; there are {}", names.join(", ")),
        }),
    })?;
    let names: Vec<&str> = requested.iter().map(|each| each.name.as_str()).collect();
    log::info!(
        entry = names.join(", ").as_str(), ip:% = request.peer().ip(); "management: sync requested"
    );
    let requested = requested.iter().map(|each| json!({ "name": each.name, "run": each.run }));
    Ok(accepted(&json!({ "requested": requested.collect::<Vec<_>>() })))
}

pub(super) fn gauges(handlers: &Handlers) -> Vec<SyncGauges> {
    let statuses = handlers.sync.statuses().into_iter();
    let gauges = statuses.map(|status| SyncGauges {
        succeeded_seconds: status.succeeded.map(to_seconds),
        images: status.present,
        missing: status.missing,
        name: status.name,
    });
    gauges.collect()
}
