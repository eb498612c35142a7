//! Requests that change something.

use serde_json::{Value, json};

use super::super::status::Refusal;
use super::check::{CheckTarget, check_document};
use super::{Handlers, accepted, document, documents, images, sync};
use crate::cache::CacheError;
use crate::http::{Method, Reply, Request};
use crate::oci::{Choice, Decision, Digest, Reference, Upstream};
use crate::prune::{Criteria, PruneError, parse_duration, parse_since};

pub(super) fn answer(handlers: &Handlers, what: &str, request: &Request) -> Result<Reply, Refusal> {
    match what {
        "pins" => pin(handlers, request),
        "prune" => prune(handlers, request),
        "prefetch" => prefetch(handlers, request),
        "check" => check(handlers, request),
        "sync" => sync::request(handlers, request),
        "flights/resume" => resume(handlers, request),
        "tags/accept" => decide(handlers, request, Decision::Accepted),
        "tags/reject" => decide(handlers, request, Decision::Rejected),
        _ => cancel(handlers, request),
    }
}

fn pin(handlers: &Handlers, request: &Request) -> Result<Reply, Refusal> {
    let query = handlers.query(request, &["pattern"])?;
    query.required("pattern")?;
    let patterns: Vec<Choice> = query.patterns()?;
    let [pattern] = &patterns[..] else {
        return Err(Refusal::Parameter("pattern is given twice".into()));
    };
    let texts = [pattern.to_string()];
    let store = handlers.cache.store();
    let changed = match request.method() {
        Method::Delete => store.remove_pins(&texts),
        _ => store.add_pins(&texts),
    };
    let changed = changed.map_err(|error| Refusal::Broken(error.to_string()))?;
    if request.method() == Method::Delete && changed == 0 {
        let text = format!(
            "{pattern} is not a pin of the cache directory; GET /api/v1/pins lists all pins"
        );
        return Err(Refusal::NotFound(text));
    }
    let ip = request.peer().ip();
    match request.method() {
        Method::Delete => log::info!(pattern:%, ip:%; "management: pin removed"),
        _ => log::info!(pattern:%, ip:%; "management: pin added"),
    }
    Ok(document(&json!({ "pattern": texts[0], "changed": changed > 0 })))
}

fn prune(handlers: &Handlers, request: &Request) -> Result<Reply, Refusal> {
    let known = ["unusedFor", "createdBefore", "pattern", "count", "includePinned", "dryRun"];
    let query = handlers.query(request, &known)?;
    let wrong = |key: &str, error: String| Refusal::Parameter(format!("{key}: {error}"));
    let unused_for = query.text("unusedFor").map(parse_duration).transpose();
    let before = query.text("createdBefore").map(|text| parse_since(text, handlers.cache.now()));
    let criteria = Criteria {
        unused_for: unused_for.map_err(|error| wrong("unusedFor", error))?,
        fetched_before: before.transpose().map_err(|error| wrong("createdBefore", error))?,
        count: query.number("count", 0, u32::MAX)?,
        include_pinned: query.flag("includePinned")?.unwrap_or(false),
    };
    let choices: Vec<Choice> = query.patterns()?;
    let is_everything = criteria.unused_for.is_none() && criteria.fetched_before.is_none();
    if is_everything && choices.is_empty() {
        let text = "select images with unusedFor, createdBefore or pattern (* selects all)";
        return Err(Refusal::Parameter(text.into()));
    }
    let is_dry_run = query.flag("dryRun")?.unwrap_or(false);
    let _heavy = handlers.heavy()?;
    let may_continue = &mut || !handlers.edge.is_draining();
    let report = handlers.cache.prune(&criteria, &choices, is_dry_run, may_continue);
    let report = report.map_err(|error| match error {
        PruneError::Locked(_) => Refusal::Conflict(error.to_string()),
        PruneError::Stopped => Refusal::Busy(error.to_string()),
        PruneError::Pins(_) | PruneError::Store(_) => Refusal::Broken(error.to_string()),
    })?;
    if !is_dry_run {
        log::info!(
            images = report.removed, freed_bytes = report.freed_bytes, ip:% = request.peer().ip();
            "management: pruned"
        );
    }
    Ok(document(&documents::report_document(&report, is_dry_run)))
}

fn prefetch(handlers: &Handlers, request: &Request) -> Result<Reply, Refusal> {
    let query = handlers.query(request, &["image"])?;
    let (name, reference) = images::reference(&query)?;
    let started = handlers.cache.prefetch(&name, &reference, handlers.platforms.clone());
    started.map_err(|error| match error {
        CacheError::NotCached => offline(),
        CacheError::GivenUp | CacheError::Suspended => Refusal::Busy(error.to_string()),
        error => Refusal::Conflict(error.to_string()),
    })?;
    let image = name.with(&reference);
    log::info!(image = image.as_str(), ip:% = request.peer().ip(); "management: prefetch started");
    Ok(accepted(&json!({ "image": image })))
}

/// Decides about a tag that has moved at its registry (`tags[].hold`).
fn decide(handlers: &Handlers, request: &Request, decision: Decision) -> Result<Reply, Refusal> {
    let query = handlers.query(request, &["image", "digest"])?;
    let (name, reference) = images::reference(&query)?;
    let digest: Option<Digest> = query.parsed("digest")?;
    let image = name.with(&reference);
    let decided = match &reference {
        Reference::Tag(tag) => {
            handlers.cache.store().decide_tag(&name, tag, digest.as_ref(), decision)
        }
        Reference::Digest(_) => Ok(None),
    };
    let decided = decided.map_err(|error| Refusal::Broken(error.to_string()))?;
    let Some(held) = decided else {
        return Err(Refusal::NotFound(format!("nothing is held for {image}, or another manifest")));
    };
    let (ip, digest) = (request.peer().ip(), held.digest.to_string());
    let (to, image_text) = (digest.as_str(), image.as_str());
    match decision {
        Decision::Accepted => {
            log::info!(image = image_text, to, ip:%; "management: move of a tag accepted");
        }
        Decision::Rejected => {
            log::info!(image = image_text, to, ip:%; "management: move of a tag rejected");
        }
        // Requests cannot ask for it.
        Decision::Waiting => {}
    }
    let decision = decision.as_str();
    Ok(document(&json!({ "image": image, "digest": digest, "decision": decision })))
}

/// Not a change, but it makes requests to a registry that the caller names.
fn check(handlers: &Handlers, request: &Request) -> Result<Reply, Refusal> {
    let query = handlers.query(request, &["target"])?;
    let target = CheckTarget::parse(query.required("target")?, &handlers.naming.read());
    let target = target.map_err(|error| Refusal::Parameter(format!("target: {error}")))?;
    let _heavy = handlers.heavy()?;
    let ip = request.peer().ip();
    match &target.image {
        None => log::info!(upstream:% = target.upstream, ip:%; "management: checking a registry"),
        Some(_) => log::info!(image = target.text.as_str(), ip:%; "management: checking an image"),
    }
    let checked = handlers.cache.check(&target.upstream, target.image());
    let checked = checked.map_err(|error| match error {
        CacheError::NotCached => offline(),
        error => Refusal::Conflict(error.to_string()),
    })?;
    let endpoints: Vec<Value> =
        checked.iter().map(|check| check_document(&target.text, check)).collect();
    Ok(document(&json!({ "target": target.text, "endpoints": endpoints })))
}

fn offline() -> Refusal {
    Refusal::Conflict("registries may not be contacted (airGapped, or larder offline on)".into())
}

fn resume(handlers: &Handlers, request: &Request) -> Result<Reply, Refusal> {
    handlers.query(request, &[])?;
    if handlers.cache.is_offline() {
        return Err(offline());
    }
    let resumed = handlers.cache.resume_downloads();
    log::info!(count = resumed, ip:% = request.peer().ip(); "management: downloads resumed");
    Ok(accepted(&json!({ "resumed": resumed })))
}

fn cancel(handlers: &Handlers, request: &Request) -> Result<Reply, Refusal> {
    let query = handlers.query(request, &["upstream", "digest"])?;
    query.required("upstream")?;
    query.required("digest")?;
    let upstream: Option<Upstream> = query.parsed("upstream")?;
    let digest: Option<Digest> = query.parsed("digest")?;
    match upstream.zip(digest) {
        Some((upstream, digest)) if handlers.cache.cancel(&upstream, &digest) => {
            log::info!(
                digest:%, upstream:%, ip:% = request.peer().ip(); "management: download cancelled"
            );
            Ok(accepted(&json!({ "cancelled": digest.to_string() })))
        }
        _ => Err(Refusal::NotFound("no such download".into())),
    }
}
