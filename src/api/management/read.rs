//! Requests that read: the content of the cache and the state of the server.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::iter;

use serde_json::{Value, json};

use super::super::status::Refusal;
use super::query::Query;
use super::{Handlers, document, documents, sync};
use crate::cache::{Cache, EndpointKind, ImageUsage};
use crate::http::{Reply, Request};
use crate::metrics::ANSWERS;
use crate::oci::{Digest, ImageName, PartReference, Pattern, Reference, Upstream};
use crate::prune::{Disk, Pins, read_pins, timestamp};

/// The default and the maximum number of entries on a page.
const LIMIT: usize = 100;
const LIMIT_MAX: u32 = 1000;

pub(super) fn answer(handlers: &Handlers, what: &str, request: &Request) -> Result<Reply, Refusal> {
    let none: &[&str] = &[];
    let value = match what {
        "status" => handlers.query(request, none).map(|_| status(handlers)),
        "history" => handlers.query(request, none).map(|_| history(&handlers.cache)),
        "images" => images(handlers, request),
        "image" => image(handlers, request),
        "repositories" => repositories(handlers, request),
        "blobs" => blobs(handlers, request),
        "incomplete" => handlers.query(request, none).map(|_| incomplete(&handlers.cache)),
        "events" => handlers.query(request, none).map(|_| events(&handlers.cache)),
        "flights" => handlers.query(request, none).map(|_| flights(&handlers.cache)),
        "upstreams" => handlers.query(request, none).map(|_| upstreams(&handlers.cache)),
        "peers" => peers(handlers, request),
        "sync" => handlers.query(request, none).map(|_| sync::read(handlers)),
        "bucket" => handlers.query(request, none).map(|_| bucket(&handlers.cache)),
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
        "offline": cache.is_offline(),
        "airGapped": cache.is_air_gapped(),
        "readOnly": !cache.store().is_writable(),
        "usage": cache.store().usage().map(|usage| documents::usage(&usage)),
        "disk": {
            "usedBytes": disk.used_bytes,
            "freeBytes": disk.free_bytes,
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

fn history(cache: &Cache) -> Value {
    let steps = cache.metrics().history().into_iter().map(|step| {
        json!({
            "time": timestamp(step.time),
            "hits": step.hits,
            "misses": step.misses,
            "bytesServed": step.served_bytes,
            "bytesFetched": step.fetched_bytes,
        })
    });
    json!({ "history": steps.collect::<Vec<_>>() })
}

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

fn images(handlers: &Handlers, request: &Request) -> Result<Value, Refusal> {
    let known = ["pattern", "registry", "digest", "state", "pinned", "sort", "limit", "offset"];
    let query = handlers.query(request, &known)?;
    let sort = query.word("sort", &["name", "size", "pulled", "fetched", "created"])?;
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
            keys.push((SortKey::of(sort, &image), place));
        }
        place += 1;
        true
    });
    keys.sort();
    let total = keys.len();
    let wanted: Vec<usize> = keys.into_iter().skip(offset).take(limit).map(|(_, at)| at).collect();
    let mut found: Vec<(usize, Value)> = Vec::new();
    let mut place = 0;
    store.each_usage(&mut |image| {
        if let Some(at) = wanted.iter().position(|wanted| *wanted == place) {
            let is_stale = is_stale(&handlers.cache, &image);
            let is_pinned = is_pinned(&handlers.cache, &pins, &image);
            let document = documents::image_document(&image, is_pinned, is_stale);
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

fn incomplete(cache: &Cache) -> Value {
    let images = cache.incomplete_images();
    json!({ "incomplete": images.iter().map(documents::incomplete).collect::<Vec<_>>() })
}

fn repositories(handlers: &Handlers, request: &Request) -> Result<Value, Refusal> {
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

/// The sort key of an image. Names keep the order of the list; everything else is in descending order.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum SortKey {
    Name,
    Number(Reverse<Option<u64>>),
    Text(Reverse<Option<String>>),
}

impl SortKey {
    fn of(sort: Option<&str>, image: &ImageUsage) -> SortKey {
        let number = |number| SortKey::Number(Reverse(number));
        match sort {
            Some("size") => number(Some(image.size_bytes)),
            Some("pulled") => number(image.pulled),
            Some("fetched") => number(Some(image.fetched)),
            Some("created") => SortKey::Text(Reverse(image.created.clone())),
            _ => SortKey::Name,
        }
    }
}

fn page(query: &Query) -> Result<(usize, usize), Refusal> {
    let limit = query.number("limit", 1, LIMIT_MAX)?.unwrap_or(LIMIT);
    Ok((limit, query.number("offset", 0, u32::MAX)?.unwrap_or(0)))
}

fn next(offset: usize, limit: usize, total: usize) -> Option<usize> {
    let next = offset.saturating_add(limit);
    (next < total).then_some(next)
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

fn image(handlers: &Handlers, request: &Request) -> Result<Value, Refusal> {
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
    let tree = graph.tree().map(|(each, blobs)| {
        let blobs = blobs.into_iter().map(|blob| {
            json!({
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
            "blobs": blobs.collect::<Vec<_>>(),
        })
    });
    value["tree"] = tree.collect();
    if let Reference::Tag(tag) = &reference
        && let Some(record) = cache.tag_record(&name, tag)
    {
        value["previous"] = record.previous.iter().map(documents::previous).collect();
    }
    Ok(value)
}

/// The parameter `image`.
pub(super) fn reference(query: &Query) -> Result<(ImageName, Reference), Refusal> {
    let text = query.required("image")?;
    let parsed = PartReference::parse(text);
    let parsed = parsed.map_err(|error| Refusal::Parameter(format!("image: {error}")))?;
    Ok(parsed.or_latest())
}

fn blobs(handlers: &Handlers, request: &Request) -> Result<Value, Refusal> {
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
        (None, Some(_)) => Some(match reference(&query)? {
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
    let (listed, unlisted): (Vec<_>, Vec<_>) = handlers
        .cache
        .upstreams()
        .into_iter()
        .partition(|status| handlers.cache.metrics().has_label(status.upstream.as_str()));
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
