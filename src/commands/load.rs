//! `larder load`: images from lists, and from bundles, into the cache, with the progress shown.

use std::collections::HashMap;
use std::fs;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::{CommandError, import, note, units};
use crate::api::Naming;
use crate::bundle::{self, LoadEvent, LoadSettings, LoadSummary, Outcome, Wanted};
use crate::cache::{self, Cache, Prefetch};
use crate::cli;
use crate::config::Settings;
use crate::oci::PartReference;
use crate::oci::{Digest, Pattern, Platforms};
use crate::store::Store;
use crate::upstream::Registries;

/// How much of a file is looked at to tell a list from a bundle.
const HEAD_BYTES: u64 = 8192;
/// Images loaded at a time if nobody says.
const PARALLEL: usize = 4;
/// Tries an image gets if nobody says: with the waits between them, half a minute of outage.
const ATTEMPTS: u32 = 5;
/// The wait before the second try.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// What the bars show: of everything, and of one blob.
const TOTAL: &str = "total         {bar:24} {decimal_bytes:>10}/{decimal_total_bytes:10} \
                     {decimal_bytes_per_sec:>12}, {eta} left";
const ONE: &str = "  {prefix}{bar:24} {decimal_bytes:>10}/{decimal_total_bytes:10} \
                   {decimal_bytes_per_sec:>12} {msg}";
/// Blobs that get a bar of their own; more would not fit a terminal.
const BARS_MAX: usize = 12;

/// Loads what is typed and what is in the files.
///
/// # Errors
/// [`CommandError::Incomplete`] if an image could not be had; others for what was typed wrong.
pub(super) fn load(settings: &Settings, command: &cli::Load) -> Result<(), CommandError> {
    let typed = Typed::read(settings, command)?;
    let name = command.resolve_ref.as_deref().map(PartReference::parse).transpose();
    let name = name.map_err(|error| CommandError::usage("--resolve-ref", &error))?;
    let load_settings = LoadSettings {
        platforms: platforms(settings, command)?,
        parallel: command.parallel.unwrap_or(PARALLEL),
        attempts: command.attempts.unwrap_or(ATTEMPTS),
        first_wait: FIRST_WAIT,
        referrers: settings.cache.prefetch.referrers,
    };
    let store = Store::open(&settings.store)?;
    if !typed.bundles.is_empty() {
        import::import_bundles(&store, &typed.bundles, name)?;
    }
    if typed.wanted.is_empty() {
        return Ok(());
    }
    let cache = cache(settings, store.clone());
    let display = Display::start(command.quiet);
    let began = Instant::now();
    let summary = bundle::load(&cache, &typed.wanted, &load_settings, &|event| display.show(event));
    display.end();
    cache.close();
    // Loaded or not, what is there has its names.
    store.settle_index()?;
    conclude(&summary, began.elapsed())
}

/// A cache as the server has it, for one who waits for everything and remembers no refusal.
pub(super) fn cache(settings: &Settings, store: Store) -> Cache {
    let registries = Arc::new(Registries::new(settings.upstream.clone()));
    let cache_settings = cache::Settings {
        negative_ttl: Duration::ZERO,
        prefetch: Prefetch { blobs: false, ..settings.cache.prefetch.clone() },
        ..settings.cache.clone()
    };
    if settings.cache.maintenance.room.cap_bytes.is_some() {
        // A server counts in the background, and this one has none.
        let _ = store.count_disk(&mut || true);
    }
    Cache::new(store, registries, cache_settings, Arc::new(SystemTime::now))
}

/// What is typed: images to pull, and bundles to import.
#[derive(Default)]
struct Typed {
    wanted: Vec<Wanted>,
    bundles: Vec<PathBuf>,
}

impl Typed {
    fn read(settings: &Settings, command: &cli::Load) -> Result<Typed, CommandError> {
        let mut files = command.image_file.clone();
        if command.images.is_empty() && files.is_none() {
            files.clone_from(&settings.image_file);
        }
        let mut typed = Typed::default();
        for word in &command.images {
            match word.strip_prefix('@') {
                Some(path) => typed.add_file(Path::new(path), &settings.naming)?,
                None => typed.wanted.push(
                    Wanted::parse(&settings.naming.expand(word))
                        .map_err(|error| CommandError::Usage(error.to_string()))?,
                ),
            }
        }
        let names = files.iter().flat_map(|names| names.split(',')).map(str::trim);
        for name in names.filter(|name| !name.is_empty()) {
            for path in matching(Path::new(name))? {
                typed.add_file(&path, &settings.naming)?;
            }
        }
        match typed.wanted.is_empty() && typed.bundles.is_empty() {
            true => Err(CommandError::Usage(
                "load: name images, or a list of them as @FILE or --image-file FILE".into(),
            )),
            false => Ok(typed),
        }
    }

    /// A list of images, or a bundle: what is no text is none of the former.
    fn add_file(&mut self, path: &Path, naming: &Naming) -> Result<(), CommandError> {
        match path.is_dir() || !is_text(path)? {
            true => self.bundles.push(path.to_owned()),
            false => self.wanted.extend(read_list(path, naming)?),
        }
        Ok(())
    }
}

/// The files that a name means, in which the last component may be a glob.
fn matching(path: &Path) -> Result<Vec<PathBuf>, CommandError> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if !name.contains(['*', '?']) {
        return Ok(vec![path.to_owned()]);
    }
    let pattern: Pattern =
        name.parse().map_err(|error| CommandError::usage("--image-file", &error))?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let entries = fs::read_dir(directory.unwrap_or(Path::new("."))).map_err(|error| {
        CommandError::usage("--image-file", &format!("{}: {error}", path.display()))
    })?;
    let files = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let is_meant = |file: &PathBuf| {
        file.file_name().and_then(|name| name.to_str()).is_some_and(|name| pattern.matches(name))
    };
    let mut files: Vec<PathBuf> = files.filter(is_meant).collect();
    files.sort();
    match files.is_empty() {
        true => Err(CommandError::usage("--image-file", &format!("{} is none", path.display()))),
        false => Ok(files),
    }
}

/// Whether a file begins as a text does: tars and what is compressed have bytes that no text has.
fn is_text(path: &Path) -> Result<bool, CommandError> {
    let mut head = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(HEAD_BYTES).read_to_end(&mut head));
    read.map_err(|error| CommandError::Usage(format!("cannot read {}: {error}", path.display())))?;
    Ok(!head.iter().any(|byte| *byte == 0 || *byte >= 0xf8) && !head.starts_with(&[0x1f, 0x8b]))
}

/// Reads an image list.
pub(super) fn read_list(path: &Path, naming: &Naming) -> Result<Vec<Wanted>, CommandError> {
    let text = fs::read_to_string(path).map_err(|error| {
        CommandError::Usage(format!("cannot read the image list {}: {error}", path.display()))
    })?;
    let refuse = |error| CommandError::usage(&path.display().to_string(), &error);
    Wanted::parse_list(&text, |entry| naming.expand(entry)).map_err(refuse)
}

/// Which children of an index: as typed, else as configured, else this machine's.
fn platforms(settings: &Settings, command: &cli::Load) -> Result<Platforms, CommandError> {
    if !command.platform.is_empty() {
        let typed = Platforms::parse(command.platform.iter().map(String::as_str));
        return typed.map_err(|error| CommandError::usage("--platform", &error));
    }
    Ok(settings.load_platforms.clone())
}

fn conclude(summary: &LoadSummary, took: Duration) -> Result<(), CommandError> {
    let failed: Vec<_> = summary.failed().collect();
    let unconfirmed = summary.images.iter().filter(|(_, how)| *how == Outcome::Unconfirmed);
    let loaded = summary.images.len() - failed.len();
    note(&format!(
        "{loaded} of {} images are in the cache, {} fetched in {:.1} s",
        summary.images.len(),
        units::size(summary.fetched_bytes()),
        took.as_secs_f64()
    ));
    for (image, _) in unconfirmed {
        note(&format!("  unconfirmed: {image}: it is there, but upstream could not be asked"));
    }
    for (image, reason) in &failed {
        note(&format!("  failed: {image}: {reason}"));
    }
    match failed.len() {
        0 => Ok(()),
        failed => Err(CommandError::Incomplete { failed, of: summary.images.len() }),
    }
}

/// Shows what happens: bars on a terminal, lines elsewhere.
enum Display {
    Quiet,
    Lines,
    Bars(Box<Bars>),
}

struct Bars {
    all: MultiProgress,
    total: ProgressBar,
    blobs: Mutex<HashMap<Digest, Blob>>,
}

struct Blob {
    /// Only the first few have one.
    bar: Option<ProgressBar>,
    bytes: u64,
    size: u64,
}

impl Display {
    fn start(quiet: bool) -> Display {
        match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => Display::Quiet,
            (false, false) => Display::Lines,
            (false, true) => Display::Bars(Box::new(Bars::start())),
        }
    }

    fn show(&self, event: LoadEvent<'_>) {
        let line = match event {
            LoadEvent::Image { image, outcome } => match outcome {
                Outcome::Loaded { fetched_bytes: 0 } => format!("{image}: was there"),
                Outcome::Loaded { fetched_bytes } => {
                    format!("{image}: loaded, {} fetched", units::size(*fetched_bytes))
                }
                Outcome::Unconfirmed => format!("{image}: was there, unconfirmed"),
                Outcome::Failed { reason } => format!("{image}: failed: {reason}"),
            },
            LoadEvent::Retry { image, reason, wait } => {
                format!("{image}: {reason}; once more in {} s", wait.as_secs())
            }
            _ => String::new(),
        };
        match self {
            Display::Quiet => {}
            Display::Lines if line.is_empty() => {}
            Display::Lines => note(&line),
            Display::Bars(bars) => {
                if !line.is_empty() {
                    // Above the bars; a terminal that is gone is no reason to stop.
                    let _ = bars.all.println(line);
                }
                bars.show(event);
            }
        }
    }

    fn end(&self) {
        if let Display::Bars(bars) = self {
            bars.total.finish_and_clear();
        }
    }
}

impl Bars {
    fn start() -> Bars {
        let all = MultiProgress::new();
        let total = all.add(ProgressBar::new(0).with_style(style(TOTAL)));
        Bars { all, total, blobs: Mutex::default() }
    }

    fn show(&self, event: LoadEvent<'_>) {
        // A panic elsewhere leaves bars, which is all that they are.
        let mut blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            LoadEvent::Blob { digest, size, image } if !blobs.contains_key(digest) => {
                let bar = (blobs.values().filter(|blob| blob.bar.is_some()).count() < BARS_MAX)
                    .then(|| self.bar(digest, size, image));
                blobs.insert(*digest, Blob { bar, bytes: 0, size });
                self.total.inc_length(size);
            }
            LoadEvent::Progress { digest, bytes } => {
                if let Some(blob) = blobs.get_mut(digest).filter(|blob| bytes > blob.bytes) {
                    self.total.inc(bytes - blob.bytes);
                    blob.bytes = bytes;
                    blob.bar.iter().for_each(|bar| bar.set_position(bytes));
                }
            }
            LoadEvent::BlobDone { digest } => {
                if let Some(blob) = blobs.remove(digest) {
                    self.total.inc(blob.size.saturating_sub(blob.bytes));
                    blob.bar.iter().for_each(ProgressBar::finish_and_clear);
                }
            }
            _ => {}
        }
    }

    fn bar(&self, digest: &Digest, size: u64, image: &str) -> ProgressBar {
        let short: String = digest.hex().chars().take(12).collect();
        let bar = ProgressBar::new(size)
            .with_prefix(short)
            .with_message(image.to_owned())
            .with_style(style(ONE));
        self.all.insert_before(&self.total, bar)
    }
}

/// A style by its template.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_templates() {
        for template in [TOTAL, ONE] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }
}
