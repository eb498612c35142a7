//! `larder tags`: tags that have moved, and decisions about moves that are held (`tags[].hold`). Works on the directory, also
//! while servers run.

use std::io::{self, Write};
use std::time::SystemTime;

use serde_json::{Value, json};

use super::selection::{Selected, all};
use super::table::{self, short};
use super::{CommandError, existing_store, parsed, printed, say};
use crate::api::previous_document;
use crate::cache::FreshnessPolicy;
use crate::cli::{self, TagsAction, TagsList};
use crate::config::Settings;
use crate::oci::{Decision, Digest, ImageName, PartReference, Reference, Tag, TagRecord};
use crate::prune::timestamp;
use crate::store::{Access, Store, StoredImage};
use crate::units::ago;

/// Lists tags, or decides about them.
///
/// # Errors
/// [`CommandError`] for an invalid command line, for I/O errors, and if nothing is held for a tag.
pub(super) fn tags(settings: &Settings, command: &cli::Tags) -> Result<(), CommandError> {
    match &command.action {
        None => list(settings, &TagsList::default()),
        Some(TagsAction::List(command)) => list(settings, command),
        Some(TagsAction::Accept(command)) => {
            decide(settings, &command.images, command.digest.as_deref(), Decision::Accepted)
        }
        Some(TagsAction::Reject(command)) => {
            decide(settings, &command.images, command.digest.as_deref(), Decision::Rejected)
        }
    }
}

/// A tag that has moved.
struct Moved {
    name: ImageName,
    tag: Tag,
    record: TagRecord,
}

fn list(settings: &Settings, command: &TagsList) -> Result<(), CommandError> {
    let selected = Selected::parse(settings, &command.images, None)?;
    let store = existing_store(&settings.store)?;
    let all = all(&store)?;
    selected.check_among(&all, &[])?;
    let mut moved = moved(&store, selected.among(&all))?;
    moved.retain(|each| each.record.held.is_some() || !command.held);
    let (out, policy) = (&mut io::stdout().lock(), &settings.cache.freshness);
    if command.json {
        let documents: Vec<Value> = moved.iter().map(|each| document(each, policy)).collect();
        return printed(writeln!(out, "{:#}", Value::from(documents)));
    }
    if moved.is_empty() {
        let which =
            if command.held { "no move of a tag is held" } else { "no cached tag has moved" };
        return printed(writeln!(out, "{which}"));
    }
    let now = SystemTime::now();
    let mut lines =
        vec![["IMAGE", "SERVED", "BEFORE", "MOVED", "HELD", "SINCE", "STATE"].map(str::to_owned)];
    lines.extend(moved.iter().map(|each| row(each, policy, now)));
    printed(table::print(out, &lines))
}

/// The tags that refer to another manifest than before, or would do so without `hold`.
fn moved(
    store: &Store,
    images: impl Iterator<Item = StoredImage>,
) -> Result<Vec<Moved>, CommandError> {
    let mut moved = Vec::new();
    for image in images {
        let Reference::Tag(tag) = image.reference else { continue };
        if let Some(record) = store.find_tag(&image.name, &tag, Access::Look)?
            && (record.held.is_some() || !record.previous.is_empty())
        {
            moved.push(Moved { name: image.name, tag, record });
        }
    }
    Ok(moved)
}

/// When the next check of a tag accepts the move that is held; `None` if none is, or an operator has decided.
fn until(moved: &Moved, policy: &FreshnessPolicy) -> Option<SystemTime> {
    let held = moved.record.held.as_ref().filter(|held| held.decision == Decision::Waiting)?;
    held.since.checked_add(policy.hold(&moved.name, &moved.tag).unwrap_or_default())
}

fn state(moved: &Moved, policy: &FreshnessPolicy, now: SystemTime) -> Option<String> {
    let decision = moved.record.held.as_ref()?.decision.as_str();
    Some(match until(moved, policy).map(|until| until.duration_since(now)) {
        None => decision.to_owned(),
        Some(Ok(left)) if left.as_secs() < 60 => format!("{decision}, less than 1m left"),
        Some(Ok(left)) => format!("{decision}, {} left", ago(now, now + left)),
        Some(Err(_)) => format!("{decision} for the next check"),
    })
}

fn row(moved: &Moved, policy: &FreshnessPolicy, now: SystemTime) -> [String; 7] {
    let Moved { name, tag, record } = moved;
    let none = || "-".to_owned();
    let before = record.previous.first();
    let held = record.held.as_ref();
    [
        format!("{name}:{tag}"),
        short(&record.digest.hex()),
        before.map_or_else(none, |before| short(&before.digest.hex())),
        before.map_or_else(none, |_| ago(record.fetched, now)),
        held.map_or_else(none, |held| short(&held.digest.hex())),
        held.map_or_else(none, |held| ago(held.since, now)),
        state(moved, policy, now).unwrap_or_else(none),
    ]
}

fn document(moved: &Moved, policy: &FreshnessPolicy) -> Value {
    let Moved { name, tag, record } = moved;
    let previous = record.previous.iter().map(previous_document);
    let held = record.held.as_ref().map(|held| {
        json!({
            "digest": held.digest.to_string(),
            "since": timestamp(held.since),
            "until": until(moved, policy).map(timestamp),
            "decision": held.decision.as_str(),
        })
    });
    json!({
        "image": format!("{name}:{tag}"),
        "digest": record.digest.to_string(),
        "fetched": timestamp(record.fetched),
        "previous": previous.collect::<Vec<_>>(),
        "held": held,
    })
}

fn decide(
    settings: &Settings,
    images: &[String],
    digest: Option<&str>,
    decision: Decision,
) -> Result<(), CommandError> {
    let digest: Option<Digest> = parsed("--digest", digest)?;
    let action = if decision == Decision::Accepted { "accept" } else { "reject" };
    if images.is_empty() {
        let text = format!(
            "tags {action}: name the images; larder tags list --held prints those that are held"
        );
        return Err(CommandError::Usage(text));
    }
    // All of them are parsed before anything is changed.
    let parse = |text: &String| {
        let parsed = PartReference::parse(&settings.naming.expand(text));
        let parsed = parsed.map_err(|error| CommandError::Usage(format!("{text}: {error}")))?;
        match parsed.or_latest() {
            (name, Reference::Tag(tag)) => Ok((name, tag)),
            (_, Reference::Digest(_)) => {
                Err(CommandError::Usage(format!("{text}: a digest does not move; name a tag")))
            }
        }
    };
    let images = images.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    let store = existing_store(&settings.store)?;
    let (mut unmatched, mut others) = (Vec::new(), Vec::new());
    for (name, tag) in images {
        match store.decide_tag(&name, &tag, digest.as_ref(), decision)? {
            Some(held) => say(&format!("{name}:{tag}: {} {}", decision.as_str(), held.digest)),
            None => match store.find_tag(&name, &tag, Access::Look)?.and_then(|record| record.held)
            {
                Some(held) => others.push(format!("{} for {name}:{tag}", held.digest)),
                None => unmatched.push(format!("{name}:{tag}")),
            },
        }
    }
    let mut reasons = Vec::new();
    if !unmatched.is_empty() {
        reasons.push(format!("nothing is held for {}", unmatched.join(", ")));
    }
    if !others.is_empty() {
        reasons.push(format!("another manifest than --digest is held: {}", others.join(", ")));
    }
    match reasons.is_empty() {
        true => Ok(()),
        false => {
            let reasons = reasons.join("; ");
            let text = format!("{reasons}; larder tags list --held prints what is held");
            Err(CommandError::Running(text))
        }
    }
}
