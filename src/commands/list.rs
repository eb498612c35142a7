//! `larder list`: lists cached images and what is missing of them. Reads the directory; needs no server.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashSet};
use std::io::{self, Write};
use std::time::SystemTime;

use serde_json::Value;

use super::selection::{Selected, all};
use super::{CommandError, bucket, existing_store, printed, table};
use crate::api::image_document;
use crate::cache::FreshnessPolicy;
use crate::cli;
use crate::config::Settings;
use crate::oci::{Digest, Reference};
use crate::prune::{Pins, PruneError};
use crate::store::{Access, Graph, ImageUsage, IncompleteImage, Store, StoredImage};
use crate::units;

/// Lists the images that match the patterns, or all.
///
/// # Errors
/// [`CommandError`] for an invalid pattern or order, and if there is no cache.
pub(super) fn list(settings: &Settings, command: &cli::List) -> Result<(), CommandError> {
    let selected = Selected::parse(settings, &command.patterns, command.pattern.as_deref())?;
    if command.bucket {
        return bucket::list(settings, &selected, command);
    }
    let sort = Sort::parse(command.sort.as_deref())?;
    let store = existing_store(&settings.store)?;
    let pins = Pins::load(&store, &settings.cache.maintenance.pins).map_err(PruneError::Pins)?;
    let all = all(&store)?;
    let mut rows = rows(&store, &settings.cache.freshness, &pins, selected.among(&all));
    let uncached = uncached(&store, &selected, &rows);
    let matched = selected.check_among(&all, &uncached);
    rows.retain(|row| row.is_pinned || !command.pinned);
    sort.apply(&mut rows);
    let out = &mut io::stdout().lock();
    printed(match command {
        cli::List { digests: true, .. } => print_digests(out, &rows),
        cli::List { quiet: true, .. } => {
            rows.iter().try_for_each(|row| writeln!(out, "{}", row.image.full_reference()))
        }
        cli::List { json: true, .. } => print_json(out, &rows),
        cli::List { tree: true, .. } => print_tree(out, &rows),
        cli::List { pinned: true, .. } => print_table(out, &rows, &[], SystemTime::now()),
        // An error says so.
        _ if rows.is_empty() && uncached.is_empty() && matched.is_err() => Ok(()),
        _ => print_table(out, &rows, &uncached, SystemTime::now()),
    })?;
    matched
}

enum Sort {
    Name,
    Size,
    Pulled,
    Created,
}

impl Sort {
    fn parse(text: Option<&str>) -> Result<Sort, CommandError> {
        match text {
            None | Some("name") => Ok(Sort::Name),
            Some("size") => Ok(Sort::Size),
            Some("pulled") => Ok(Sort::Pulled),
            Some("created") => Ok(Sort::Created),
            Some(other) => {
                let what = format!("unknown order {other}; use name, size, pulled or created");
                Err(CommandError::usage("--sort", &what))
            }
        }
    }

    /// Sorts names in ascending order, sizes and times in descending order.
    fn apply(&self, rows: &mut [Row]) {
        match self {
            Sort::Name => {}
            Sort::Size => rows.sort_by_key(|row| Reverse(row.graph.present_bytes())),
            Sort::Pulled => rows.sort_by_key(|row| Reverse(row.image.pulled)),
            Sort::Created => rows.sort_by(|one, other| other.created.cmp(&one.created)),
        }
    }
}

/// An image and its properties.
struct Row {
    image: StoredImage,
    graph: Graph,
    /// The creation time in its config.
    created: Option<String>,
    /// Whether the next pull checks the registry before it is served.
    is_stale: bool,
    /// Whether it is never evicted.
    is_pinned: bool,
    /// Why the server has not completed it.
    reason: Option<String>,
}

fn rows(
    store: &Store,
    policy: &FreshnessPolicy,
    pins: &Pins,
    images: impl Iterator<Item = StoredImage>,
) -> Vec<Row> {
    let (now, incomplete) = (SystemTime::now(), store.incomplete());
    let row = |image: StoredImage| {
        let mut graph = store.graph_of(&image);
        let created = store.read_configs(&mut graph);
        let is_stale = match (&image.reference, image.checked) {
            (Reference::Tag(tag), Some(checked)) => {
                !policy.is_fresh(&image.name, tag, checked, now)
            }
            _ => false,
        };
        let is_pinned = pins.cover_any(&image.name, &image.reference, graph.manifest_digests());
        let reason = match graph.is_complete() {
            true => None,
            false => reason(&incomplete, &image, &graph),
        };
        Row { image, graph, created, is_stale, is_pinned, reason }
    };
    images.map(row).collect()
}

/// Why the server has not completed an image, according to its last report.
fn reason(incomplete: &[IncompleteImage], image: &StoredImage, graph: &Graph) -> Option<String> {
    let (name, full) = (image.name.to_string(), image.full_reference());
    let digests: HashSet<String> = graph.manifest_digests().map(|each| each.to_string()).collect();
    let is_it = |each: &&IncompleteImage| {
        each.image == full || each.repository() == name && digests.contains(&each.digest)
    };
    incomplete.iter().find(is_it).map(|each| each.reason.clone())
}

impl Row {
    fn state(&self) -> String {
        let mut state = match (self.graph.is_complete(), self.graph.missing_bytes()) {
            (true, _) => "complete".to_owned(),
            (false, _) if self.image.is_unaccepted => "not accepted for its tag".to_owned(),
            (false, 0) => "no platform".to_owned(),
            (false, missing) => format!("partial, {} missing", units::size(missing)),
        };
        if let Some(reason) = &self.reason {
            state.push_str(&format!(" ({reason})"));
        }
        if self.image.gone.is_some() {
            state.push_str(", gone upstream");
        }
        if self.image.held.is_some() {
            state.push_str(", moved upstream (held)");
        }
        if self.is_stale {
            state.push_str(", stale");
        }
        if self.is_pinned {
            state.push_str(", pinned");
        }
        state
    }

    fn platforms(&self) -> Vec<&str> {
        self.graph.platforms().collect()
    }
}

/// The images that nodes have and of which nothing is cached.
fn uncached(store: &Store, selected: &Selected, rows: &[Row]) -> Vec<IncompleteImage> {
    let listed: HashSet<String> = rows.iter().map(|row| row.image.full_reference()).collect();
    let mut incomplete = store.incomplete();
    incomplete.retain(|image| {
        let Some((name, reference, digest)) = image.parse() else { return false };
        let is_selected = selected.covers(&name, &reference);
        let is_cached =
            listed.contains(&image.image) || store.manifest(&name, &digest, Access::Look).is_some();
        is_selected && !is_cached
    });
    incomplete
}

fn print_table(
    out: &mut dyn Write,
    rows: &[Row],
    uncached: &[IncompleteImage],
    now: SystemTime,
) -> io::Result<()> {
    let mut lines = vec![
        ["IMAGE", "DIGEST", "SIZE", "PLATFORMS", "PULLED", "CREATED", "STATE"].map(str::to_owned),
    ];
    lines.extend(rows.iter().map(|row| {
        let platforms = row.platforms().join(",");
        [
            row.image.full_reference(),
            table::short(&row.image.digest.hex()),
            units::size(row.graph.present_bytes()),
            if platforms.is_empty() { "-".into() } else { platforms },
            row.image.pulled.map_or_else(|| "-".into(), |pulled| units::ago(pulled, now)),
            row.created.as_deref().map_or("-", |text| text.get(..10).unwrap_or(text)).to_owned(),
            row.state(),
        ]
    }));
    lines.extend(uncached.iter().map(|image| {
        let hex = image.digest.split_once(':').map_or("", |(_, hex)| hex);
        [
            image.image.clone(),
            table::short(hex),
            "-".into(),
            "-".into(),
            "-".into(),
            "-".into(),
            format!("not cached ({})", image.reason),
        ]
    }));
    table::print(out, &lines)
}

fn print_tree(out: &mut dyn Write, rows: &[Row]) -> io::Result<()> {
    for row in rows {
        writeln!(out, "{}  {}", row.image.full_reference(), row.state())?;
        for (each, blobs) in row.graph.tree() {
            let platform = each.descriptor.platform.as_deref().unwrap_or("-");
            let is_present = each.manifest.is_some();
            print_leaf(out, 1, each.descriptor.digest, each.descriptor.size, is_present, platform)?;
            for blob in blobs {
                let is_present = blob.is_present;
                print_leaf(out, 2, blob.descriptor.digest, blob.descriptor.size, is_present, "")?;
            }
        }
    }
    Ok(())
}

fn print_leaf(
    out: &mut dyn Write,
    depth: usize,
    digest: Digest,
    size: u64,
    is_present: bool,
    note: &str,
) -> io::Result<()> {
    let missing = if is_present { "" } else { "missing" };
    let line = format!(
        "{:indent$}{digest}  {:>10}  {note}  {missing}",
        "",
        units::size(size),
        indent = depth * 2
    );
    writeln!(out, "{}", line.trim_end())
}

fn print_digests(out: &mut dyn Write, rows: &[Row]) -> io::Result<()> {
    let digests: BTreeSet<String> = rows
        .iter()
        .flat_map(|row| row.graph.present_digests())
        .map(|each| each.to_string())
        .collect();
    digests.iter().try_for_each(|digest| writeln!(out, "{digest}"))
}

fn print_json(out: &mut dyn Write, rows: &[Row]) -> io::Result<()> {
    let all: Vec<Value> = rows.iter().map(to_json).collect();
    let text = serde_json::to_string_pretty(&all).map_err(io::Error::other)?;
    writeln!(out, "{text}")
}

fn to_json(row: &Row) -> Value {
    let usage = ImageUsage::of(&row.image, &row.graph, row.created.clone());
    let mut document = image_document(&usage, row.is_pinned, row.is_stale);
    if let Some(reason) = &row.reason {
        document["reason"] = reason.as_str().into();
    }
    document
}
