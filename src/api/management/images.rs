//! Requests that read the content of the cache: images, repositories and blobs, in pages.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::iter;

use serde_json::{Value, json};

use super::super::activity::PullCounts;
use super::super::status::Refusal;
use super::query::Query;
use super::{Handlers, documents};
use crate::cache::{Cache, GraphManifest, ImageUsage};
use crate::http::Request;
use crate::oci::{
    Descriptor, Digest, ImageName, ManifestKind, PartReference, Pattern, Reference, Upstream,
    quoted,
};
use crate::prune::Pins;

/// The default and the maximum number of entries on a page.
const LIMIT: usize = 100;
const LIMIT_MAX: u32 = 1000;
/// The number of configs of an image whose content is shown: more than the platforms of usual images.
const CONFIGS_MAX: usize = 32;

/// The conditions on listed images.
struct Filter {
    patterns: Vec<Pattern>,
    registry: Option<String>,
    state: Option<String>,
    is_pinned: Option<bool>,
    /// The images that contain the requested digest.
    among: Option<HashSet<String>>,
}

impl Filter {
    fn of(handlers: &Handlers, query: &Query) -> Result<Filter, Refusal> {
        let digest: Option<Digest> = query.parsed("digest")?;
        Ok(Filter {
            patterns: query.patterns()?,
            registry: query.parsed::<Upstream>("registry")?.map(|upstream| format!("{upstream}/")),
            state: query.word("state", &["complete", "partial", "held"])?.map(str::to_owned),
            is_pinned: query.flag("pinned")?,
            among: digest.map(|digest| needing(handlers, &digest)).transpose()?,
        })
    }

    fn matches(&self, image: &ImageUsage, is_pinned: bool) -> bool {
        let is_match =
            |pattern: &Pattern| pattern.matches(&image.image) || pattern.matches(&image.repository);
        (self.patterns.is_empty() || self.patterns.iter().any(is_match))
            && self.registry.as_ref().is_none_or(|registry| image.image.starts_with(registry))
            && match self.state.as_deref() {
                Some("complete") => image.complete,
                Some("partial") => !image.complete,
                Some(_) => image.held.is_some(),
                None => true,
            }
            && self.is_pinned.is_none_or(|pinned| pinned == is_pinned)
            && self.among.as_ref().is_none_or(|among| among.contains(&image.image))
    }
}

/// The images that contain a manifest, config or layer.
fn needing(handlers: &Handlers, digest: &Digest) -> Result<HashSet<String>, Refusal> {
    let _heavy = handlers.heavy()?;
    let catalogue = handlers.cache.store().catalogue(&mut || true);
    let catalogue = catalogue.map_err(|error| Refusal::Broken(error.to_string()))?;
    let Some(catalogue) = catalogue else { return Ok(HashSet::new()) };
    let Some(number) = catalogue.number_of(digest) else { return Ok(HashSet::new()) };
    let needing = catalogue.images.iter().filter(|image| image.content.contains(&number));
    Ok(needing.map(|image| catalogue.full_reference(image)).collect())
}

pub(super) fn images(handlers: &Handlers, request: &Request) -> Result<Value, Refusal> {
    let known =
        ["pattern", "registry", "digest", "state", "pinned", "sort", "order", "limit", "offset"];
    let query = handlers.query(request, &known)?;
    let sort = query.word("sort", &["name", "size", "pulled", "pulls", "fetched", "created"])?;
    let order = query.word("order", &["ascending", "descending"])?;
    let (limit, offset) = page(&query)?;
    let filter = Filter::of(handlers, &query)?;
    let pins = match (handlers.cache.pins(), filter.is_pinned) {
        (Ok(pins), _) => pins,
        (Err(error), Some(_)) => return Err(Refusal::Busy(error.to_string())),
        // The request for pins reports their error; the list of images does not need them.
        (Err(_), None) => Pins::default(),
    };
    let store = handlers.cache.store();
    // Two passes, so that the complete list is never in memory: the first collects positions and sort keys, the
    // second reads the entries of the page.
    let mut keys: Vec<(SortKey, usize)> = Vec::new();
    let mut place = 0;
    store.each_usage(&mut |image| {
        if filter.matches(&image, is_pinned(&handlers.cache, &pins, &image)) {
            keys.push((SortKey::of(sort, &image, &handlers.activity.pulls), place));
        }
        place += 1;
        true
    });
    keys.sort();
    let is_by_name = matches!(sort, None | Some("name"));
    if order.is_some_and(|order| (order == "ascending") != is_by_name) {
        keys.reverse();
    }
    let total = keys.len();
    let wanted: Vec<usize> = keys.into_iter().skip(offset).take(limit).map(|(_, at)| at).collect();
    let mut found: Vec<(usize, Value)> = Vec::new();
    let mut place = 0;
    store.each_usage(&mut |image| {
        if let Some(at) = wanted.iter().position(|wanted| *wanted == place) {
            let is_stale = is_stale(&handlers.cache, &image);
            let is_pinned = is_pinned(&handlers.cache, &pins, &image);
            let mut document = documents::image_document(&image, is_pinned, is_stale);
            document["pulls"] = pulls(handlers, &image);
            found.push((at, document));
        }
        place += 1;
        found.len() < wanted.len()
    });
    found.sort_by_key(|(at, _)| *at);
    Ok(json!({
        "asOf": documents::time(store.usage().map(|usage| usage.as_of)),
        "total": total,
        "next": next(offset, limit, total),
        "images": found.into_iter().map(|(_, image)| image).collect::<Vec<_>>(),
    }))
}

/// The sort key of an image. Names keep the order of the list; everything else is in descending order.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum SortKey {
    Name,
    Number(Reverse<Option<u64>>),
    Text(Reverse<Option<String>>),
}

impl SortKey {
    fn of(sort: Option<&str>, image: &ImageUsage, pulls: &PullCounts) -> SortKey {
        let number = |number| SortKey::Number(Reverse(number));
        match sort {
            Some("size") => number(Some(image.size_bytes)),
            Some("pulled") => number(image.pulled),
            Some("pulls") => number(named(image).map(|image| pulls.count(&image))),
            Some("fetched") => number(Some(image.fetched)),
            Some("created") => SortKey::Text(Reverse(image.created.clone())),
            _ => SortKey::Name,
        }
    }
}

/// The name of an image in the list.
fn named(image: &ImageUsage) -> Option<(ImageName, Reference)> {
    let part = PartReference::parse(&image.image).ok()?;
    Some((part.name, part.reference?))
}

/// Whether an image is pinned, by its name or by the digest of one of its manifests, as in a prune.
fn is_pinned(cache: &Cache, pins: &Pins, image: &ImageUsage) -> bool {
    named(image).is_some_and(|(name, reference)| {
        let manifests =
            || image.digest.parse().map(|root| cache.store().manifests_at(&name, &root));
        let manifests = iter::once_with(manifests).flatten().flatten();
        pins.cover_any(&name, &reference, manifests)
    })
}

fn is_stale(cache: &Cache, image: &ImageUsage) -> bool {
    let named = named(image).zip(image.checked);
    named.is_some_and(|((name, reference), checked)| cache.is_stale(&name, &reference, checked))
}

pub(super) fn image(handlers: &Handlers, request: &Request) -> Result<Value, Refusal> {
    let query = handlers.query(request, &["image"])?;
    let (name, reference) = reference(&query)?;
    let (cache, store) = (&handlers.cache, handlers.cache.store());
    let Some(image) = store.image(&name, &reference) else {
        let text = format!("{} is not in the cache", name.with(&reference));
        return Err(Refusal::NotFound(text));
    };
    let mut graph = store.graph_of(&image);
    let created = store.read_configs(&mut graph);
    let usage = ImageUsage::of(&image, &graph, created);
    let pins = cache.pins().unwrap_or_default();
    let is_stale = is_stale(cache, &usage);
    let mut value = documents::image_document(&usage, is_pinned(cache, &pins, &usage), is_stale);
    value["pulls"] = pulls(handlers, &usage);
    let mut configs_left = CONFIGS_MAX;
    let tree = graph.tree().map(|(each, blobs)| {
        let config = config_of(each);
        let details = config.filter(|_| configs_left > 0);
        configs_left -= usize::from(details.is_some());
        let details = details.and_then(|config| store.image_details(config));
        let blobs = blobs.into_iter().map(|blob| {
            let is_config = config.is_some_and(|config| config.digest == blob.descriptor.digest);
            json!({
                "role": if is_config { "config" } else { "layer" },
                "digest": blob.descriptor.digest.to_string(),
                "sizeBytes": blob.descriptor.size,
                "present": blob.is_present,
            })
        });
        json!({
            "digest": each.descriptor.digest.to_string(),
            "sizeBytes": each.descriptor.size,
            "platform": each.descriptor.platform,
            "present": each.manifest.is_some(),
            "details": details.as_ref().map(documents::image_details),
            "blobs": blobs.collect::<Vec<_>>(),
        })
    });
    value["tree"] = tree.collect();
    if let Reference::Tag(tag) = &reference
        && let Some(record) = cache.tag_record(&name, tag)
    {
        value["previous"] = record.previous.iter().map(documents::previous_document).collect();
    }
    Ok(value)
}

fn config_of(each: &GraphManifest) -> Option<&Descriptor> {
    match each.manifest.as_ref()?.kind() {
        ManifestKind::Image { config, .. } => config.as_ref(),
        ManifestKind::Index { .. } => None,
    }
}

/// How often an image was pulled since the start, and by which client last.
fn pulls(handlers: &Handlers, image: &ImageUsage) -> Value {
    let pulls = named(image).and_then(|image| handlers.activity.pulls.of(&image));
    json!({
        "sinceStart": pulls.as_ref().map_or(0, |pulls| pulls.count),
        "lastClient": pulls.as_ref().map(|pulls| pulls.client.to_string()),
        "lastAgent": pulls.as_ref().and_then(|pulls| pulls.agent.as_deref()).map(quoted),
    })
}

/// The parameter `image`.
pub(super) fn reference(query: &Query) -> Result<(ImageName, Reference), Refusal> {
    let text = query.required("image")?;
    let parsed = PartReference::parse(text);
    let parsed = parsed.map_err(|error| Refusal::Parameter(format!("image: {error}")))?;
    Ok(parsed.or_latest())
}

pub(super) fn repositories(handlers: &Handlers, request: &Request) -> Result<Value, Refusal> {
    let query = handlers.query(request, &["registry", "limit", "offset"])?;
    let registry = query.parsed::<Upstream>("registry")?.map(|upstream| format!("{upstream}/"));
    let (limit, offset) = page(&query)?;
    let (store, mut total, mut found) = (handlers.cache.store(), 0, Vec::new());
    store.each_repository_usage(&mut |each| {
        if each.images > 0 && registry.as_ref().is_none_or(|registry| each.of.starts_with(registry))
        {
            if (offset..offset.saturating_add(limit)).contains(&total) {
                found.push(json!({
                    "repository": each.of,
                    "images": each.images,
                    "completeImages": each.complete_images,
                    "bytes": each.bytes,
                    "pulled": documents::time(each.pulled),
                }));
            }
            total += 1;
        }
        true
    });
    Ok(json!({
        "asOf": documents::time(store.usage().map(|usage| usage.as_of)),
        "total": total,
        "next": next(offset, limit, total),
        "repositories": found,
    }))
}

pub(super) fn blobs(handlers: &Handlers, request: &Request) -> Result<Value, Refusal> {
    let query = handlers.query(request, &["digest", "sort", "limit", "offset"])?;
    let sort = query.word("sort", &["digest", "size", "references"])?.unwrap_or("size");
    let digest: Option<Digest> = query.parsed("digest")?;
    let (limit, offset) = page(&query)?;
    let _heavy = handlers.heavy()?;
    let store = handlers.cache.store();
    let catalogue = store.catalogue(&mut || true);
    let catalogue = catalogue.map_err(|error| Refusal::Broken(error.to_string()))?;
    let Some(catalogue) = catalogue else { return Ok(Value::Null) };
    let counts = catalogue.references();
    let mut all: Vec<(Digest, u64, u32)> = store
        .blobs()
        .map_err(|error| Refusal::Broken(error.to_string()))?
        .into_iter()
        .filter(|(each, _)| digest.as_ref().is_none_or(|digest| digest == each))
        .map(|(each, size)| {
            let number = catalogue.number_of(&each);
            (each, size, number.map_or(0, |number| counts[number as usize]))
        })
        .collect();
    match sort {
        "digest" => all.sort_by_key(|(digest, ..)| digest.to_string()),
        "references" => all.sort_by_key(|(_, _, references)| Reverse(*references)),
        _ => all.sort_by_key(|(_, size, _)| Reverse(*size)),
    }
    let page = all.iter().skip(offset).take(limit).map(|(digest, size, references)| {
        json!({ "digest": digest.to_string(), "sizeBytes": size, "references": references })
    });
    Ok(json!({
        "total": all.len(),
        "next": next(offset, limit, all.len()),
        "blobs": page.collect::<Vec<_>>(),
    }))
}

fn page(query: &Query) -> Result<(usize, usize), Refusal> {
    let limit = query.number("limit", 1, LIMIT_MAX)?.unwrap_or(LIMIT);
    Ok((limit, query.number("offset", 0, u32::MAX)?.unwrap_or(0)))
}

fn next(offset: usize, limit: usize, total: usize) -> Option<usize> {
    let next = offset.saturating_add(limit);
    (next < total).then_some(next)
}
