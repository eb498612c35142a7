//! Changing: what is done for who has the token.

use serde_json::json;

use super::super::status::Refusal;
use super::{Desk, accepted, document, documents, look};
use crate::cache::CacheError;
use crate::http::{Method, Reply, Request};
use crate::oci::{Choice, Digest, Upstream};
use crate::prune::{Criteria, PruneError, parse_duration, parse_since};

pub(super) fn answer(desk: &Desk, what: &str, request: &Request) -> Result<Reply, Refusal> {
    match what {
        "pins" => pin(desk, request),
        "prune" => prune(desk, request),
        "prefetch" => prefetch(desk, request),
        "flights/resume" => resume(desk, request),
        _ => cancel(desk, request),
    }
}

fn pin(desk: &Desk, request: &Request) -> Result<Reply, Refusal> {
    let query = desk.query(request, &["pattern"])?;
    query.required("pattern")?;
    let patterns: Vec<Choice> = query.patterns()?;
    let [pattern] = &patterns[..] else {
        return Err(Refusal::Parameter("pattern is given twice".into()));
    };
    let texts = [pattern.to_string()];
    let store = desk.cache.store();
    let changed = match request.method() {
        Method::Delete => store.remove_pins(&texts),
        _ => store.add_pins(&texts),
    };
    let changed = changed.map_err(|error| Refusal::Broken(error.to_string()))?;
    if request.method() == Method::Delete && changed == 0 {
        let text = format!("{pattern} is no pin of the cache directory; see the pins");
        return Err(Refusal::NotFound(text));
    }
    let verb = if request.method() == Method::Delete { "unpinned" } else { "pinned" };
    log::info!("{verb} {pattern} for {}", request.peer().ip());
    Ok(document(&json!({ "pattern": texts[0], "changed": changed > 0 })))
}

fn prune(desk: &Desk, request: &Request) -> Result<Reply, Refusal> {
    let known = ["unusedFor", "createdBefore", "pattern", "count", "includePinned", "dryRun"];
    let query = desk.query(request, &known)?;
    let wrong = |key: &str, error: String| Refusal::Parameter(format!("{key}: {error}"));
    let unused_for = query.text("unusedFor").map(parse_duration).transpose();
    let before = query.text("createdBefore").map(|text| parse_since(text, desk.cache.now()));
    let criteria = Criteria {
        unused_for: unused_for.map_err(|error| wrong("unusedFor", error))?,
        fetched_before: before.transpose().map_err(|error| wrong("createdBefore", error))?,
        count: query.number("count", 0, u32::MAX)?,
        include_pinned: query.flag("includePinned")?.unwrap_or(false),
    };
    let choices: Vec<Choice> = query.patterns()?;
    let is_everything = criteria.unused_for.is_none() && criteria.fetched_before.is_none();
    if is_everything && choices.is_empty() {
        let text = "say which images: unusedFor, createdBefore or pattern (* is all of them)";
        return Err(Refusal::Parameter(text.into()));
    }
    let is_dry_run = query.flag("dryRun")?.unwrap_or(false);
    let _heavy = desk.heavy()?;
    let go_on = &mut || !desk.edge.is_draining();
    let report = desk.cache.prune(&criteria, &choices, is_dry_run, go_on);
    let report = report.map_err(|error| match error {
        PruneError::Locked(_) => Refusal::Conflict(error.to_string()),
        PruneError::Stopped => Refusal::Busy(error.to_string()),
        PruneError::Pins(_) | PruneError::Store(_) => Refusal::Broken(error.to_string()),
    })?;
    if !is_dry_run {
        let (images, bytes) = (report.removed, report.freed_bytes);
        log::info!("pruned {images} images, {bytes} bytes, for {}", request.peer().ip());
    }
    Ok(document(&documents::report_document(&report, is_dry_run)))
}

fn prefetch(desk: &Desk, request: &Request) -> Result<Reply, Refusal> {
    let query = desk.query(request, &["image"])?;
    let (name, reference) = look::reference(&query)?;
    let begun = desk.cache.prefetch(&name, &reference, desk.platforms.clone());
    begun.map_err(|error| match error {
        CacheError::NotCached => {
            Refusal::Conflict("no upstream may be asked: airGapped, or larder offline".into())
        }
        CacheError::GivenUp | CacheError::Suspended => Refusal::Busy(error.to_string()),
        error => Refusal::Conflict(error.to_string()),
    })?;
    let image = name.with(&reference);
    log::info!("prefetching {image} for {}", request.peer().ip());
    Ok(accepted(&json!({ "image": image })))
}

fn resume(desk: &Desk, request: &Request) -> Result<Reply, Refusal> {
    desk.query(request, &[])?;
    if desk.cache.is_offline() {
        let text = "no upstream may be asked: airGapped, or larder offline";
        return Err(Refusal::Conflict(text.into()));
    }
    let resumed = desk.cache.resume_downloads();
    log::info!("resumed {resumed} downloads for {}", request.peer().ip());
    Ok(accepted(&json!({ "resumed": resumed })))
}

fn cancel(desk: &Desk, request: &Request) -> Result<Reply, Refusal> {
    let query = desk.query(request, &["upstream", "digest"])?;
    query.required("upstream")?;
    query.required("digest")?;
    let upstream: Option<Upstream> = query.parsed("upstream")?;
    let digest: Option<Digest> = query.parsed("digest")?;
    match upstream.zip(digest) {
        Some((upstream, digest)) if desk.cache.cancel(&upstream, &digest) => {
            log::info!("cancelled {digest} from {upstream} for {}", request.peer().ip());
            Ok(accepted(&json!({ "cancelled": digest.to_string() })))
        }
        _ => Err(Refusal::NotFound("there is no such download".into())),
    }
}
