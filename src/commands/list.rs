//! `larder list`: what is in the cache, and what it lacks. Reads the directory; needs no server.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::io::{self, Write};
use std::time::SystemTime;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{CommandError, existing_store, units};
use crate::cache::FreshnessPolicy;
use crate::cli;
use crate::config::Settings;
use crate::oci::{Digest, ManifestKind, Pattern, Reference};
use crate::store::{Graph, GraphManifest, Store, StoredImage};

/// The largest config read for the time at which its image was made, in bytes.
const CONFIG_BYTES_MAX: u64 = 1024 * 1024;
/// Characters of a digest's hexadecimal form in a table, as other tools have it.
const SHORT_DIGEST: usize = 12;

/// Lists what the patterns mean.
///
/// # Errors
/// [`CommandError`] for a pattern that is none, an order that is none, or no cache.
pub(super) fn list(settings: &Settings, command: &cli::List) -> Result<(), CommandError> {
    let patterns = patterns(&command.patterns)?;
    let sort = Sort::parse(command.sort.as_deref())?;
    let store = existing_store(&settings.store)?;
    let mut rows = rows(&store, &settings.cache.freshness, &patterns);
    sort.apply(&mut rows);
    let out = &mut io::stdout().lock();
    let printed = match command {
        cli::List { digests: true, .. } => print_digests(out, &rows),
        cli::List { json: true, .. } => print_json(out, &rows),
        cli::List { tree: true, .. } => print_tree(out, &rows),
        _ => print_table(out, &rows, SystemTime::now()),
    };
    match printed {
        // The reader has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(|source| CommandError::System { doing: "print", source }),
    }
}

/// Patterns as they are typed; none means everything.
pub(super) fn patterns(texts: &[String]) -> Result<Vec<Pattern>, CommandError> {
    let parse = |text: &String| text.parse().map_err(|error| CommandError::usage(text, &error));
    texts.iter().map(parse).collect()
}

/// The images in the cache that one of the patterns means; all of them if there is none.
pub(super) fn images(store: &Store, patterns: &[Pattern]) -> Vec<StoredImage> {
    let mut images = Vec::new();
    let mut visit = |image: &StoredImage| {
        let is_meant = |each: &Pattern| each.matches_image(&image.name, &image.reference);
        if patterns.is_empty() || patterns.iter().any(is_meant) {
            images.push(image.clone());
        }
        Ok(())
    };
    // The visitor never fails, and so the walk does not.
    let _ = store.each_image(&mut visit);
    images
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
                let what = format!("{other} is none of name, size, pulled, created");
                Err(CommandError::usage("--sort", &what))
            }
        }
    }

    /// Names upwards; the rest downwards: the largest and the latest first.
    fn apply(&self, rows: &mut [Row]) {
        match self {
            Sort::Name => {}
            Sort::Size => rows.sort_by_key(|row| Reverse(row.graph.present_bytes())),
            Sort::Pulled => rows.sort_by_key(|row| Reverse(row.image.pulled)),
            Sort::Created => rows.sort_by(|one, other| other.created.cmp(&one.created)),
        }
    }
}

/// An image and what is known of it.
struct Row {
    image: StoredImage,
    graph: Graph,
    /// When it was made, as its config says.
    created: Option<String>,
    /// Whether upstream would be asked before it is served.
    is_stale: bool,
}

fn rows(store: &Store, policy: &FreshnessPolicy, patterns: &[Pattern]) -> Vec<Row> {
    let now = SystemTime::now();
    let row = |image: StoredImage| {
        let graph = store.graph_of(&image);
        let created = created(store, &graph);
        let is_stale = match (&image.reference, image.checked) {
            (Reference::Tag(tag), Some(checked)) => {
                !policy.is_fresh(&image.name.upstream, tag, checked, now)
            }
            _ => false,
        };
        Row { image, graph, created, is_stale }
    };
    images(store, patterns).into_iter().map(row).collect()
}

/// What the config of the first image manifest that is here says.
fn created(store: &Store, graph: &Graph) -> Option<String> {
    #[derive(Deserialize)]
    struct Config {
        created: Option<String>,
    }
    let config = graph.manifests.iter().find_map(|each| match each.manifest.as_ref()?.kind() {
        ManifestKind::Image { config, .. } => config.as_ref(),
        ManifestKind::Index { .. } => None,
    })?;
    if config.size > CONFIG_BYTES_MAX {
        return None;
    }
    let bytes = store.read(&config.digest, config.size)?;
    serde_json::from_slice::<Config>(&bytes).ok()?.created
}

impl Row {
    fn state(&self) -> String {
        let mut state = match (self.graph.is_complete(), self.graph.missing_bytes()) {
            (true, _) => "complete".to_owned(),
            (false, 0) => "no platform".to_owned(),
            (false, missing) => format!("partial, {} missing", units::size(missing)),
        };
        if self.image.gone.is_some() {
            state.push_str(", gone upstream");
        }
        if self.is_stale {
            state.push_str(", stale");
        }
        state
    }

    fn platforms(&self) -> Vec<&str> {
        self.graph.platforms().collect()
    }
}

fn print_table(out: &mut dyn Write, rows: &[Row], now: SystemTime) -> io::Result<()> {
    let mut lines = vec![
        ["IMAGE", "DIGEST", "SIZE", "PLATFORMS", "PULLED", "CREATED", "STATE"].map(str::to_owned),
    ];
    lines.extend(rows.iter().map(|row| {
        let platforms = row.platforms().join(",");
        [
            row.image.full_reference(),
            row.image.digest.hex().chars().take(SHORT_DIGEST).collect(),
            units::size(row.graph.present_bytes()),
            if platforms.is_empty() { "-".into() } else { platforms },
            row.image.pulled.map_or_else(|| "-".into(), |pulled| units::ago(pulled, now)),
            row.created.as_deref().map_or("-", |text| text.get(..10).unwrap_or(text)).to_owned(),
            row.state(),
        ]
    }));
    let widths: [usize; 7] = std::array::from_fn(|column| {
        lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default()
    });
    for line in &lines {
        let cells = line.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

fn print_tree(out: &mut dyn Write, rows: &[Row]) -> io::Result<()> {
    for row in rows {
        writeln!(out, "{}  {}", row.image.full_reference(), row.state())?;
        for each in &row.graph.manifests {
            let platform = each.descriptor.platform.as_deref().unwrap_or("-");
            let is_here = each.manifest.is_some();
            print_leaf(out, 1, each.descriptor.digest, each.descriptor.size, is_here, platform)?;
            for blob in blobs_of(&row.graph, each) {
                let is_here = blob.is_present;
                print_leaf(out, 2, blob.descriptor.digest, blob.descriptor.size, is_here, "")?;
            }
        }
    }
    Ok(())
}

/// The config and layers that a manifest is the first to name.
fn blobs_of<'a>(
    graph: &'a Graph,
    of: &'a GraphManifest,
) -> impl Iterator<Item = &'a crate::store::GraphBlob> {
    let named: Vec<Digest> = match of.manifest.as_ref().map(|manifest| manifest.kind()) {
        Some(ManifestKind::Image { .. }) => {
            of.manifest.iter().flat_map(|each| each.descriptors()).map(|each| each.digest).collect()
        }
        _ => Vec::new(),
    };
    graph.blobs.iter().filter(move |blob| named.contains(&blob.descriptor.digest))
}

fn print_leaf(
    out: &mut dyn Write,
    depth: usize,
    digest: Digest,
    size: u64,
    is_here: bool,
    note: &str,
) -> io::Result<()> {
    let missing = if is_here { "" } else { "missing" };
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
    let image = &row.image;
    let time = |time: Option<SystemTime>| time.map(units::timestamp);
    json!({
        "image": image.full_reference(),
        "digest": image.digest.to_string(),
        "mediaType": image.media_type.as_str(),
        "sizeBytes": row.graph.present_bytes(),
        "missingBytes": row.graph.missing_bytes(),
        "complete": row.graph.is_complete(),
        "platforms": row.platforms(),
        "created": row.created,
        "fetched": units::timestamp(image.fetched),
        "checked": time(image.checked),
        "pulled": time(image.pulled),
        "stale": row.is_stale,
        "goneUpstream": time(image.gone),
    })
}
