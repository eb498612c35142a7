//! `larder load`: loads images into the cache from registries and bundles, and shows the progress.

use std::collections::HashMap;
use std::fs;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use indicatif::{MultiProgress, ProgressBar};

use super::progress::style;
use super::{CommandError, images, import, note, parsed};
use crate::api::Naming;
use crate::bundle::{self, LoadEvent, LoadSettings, LoadSummary, Manner, Outcome, Wanted};
use crate::cache::{self, Cache, Prefetch};
use crate::cli;
use crate::config::{Count, Settings};
use crate::image_references::Form;
use crate::oci::PartReference;
use crate::oci::{Digest, Pattern, Platforms};
use crate::store::Store;
use crate::units::{duration, plural, size};

/// The number of bytes of a file that are read to distinguish a list from a bundle.
const HEAD_BYTES: u64 = 8192;
/// The default number of images that are loaded at the same time.
const PARALLEL: usize = 4;
/// The default number of attempts for each image: with the waits between them, enough for an outage of half a
/// minute.
const ATTEMPTS: u32 = 5;
/// The wait before the second attempt.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The templates of the progress bars: for the total, and for one blob.
const TOTAL: &str = "total         {bar:24} {decimal_bytes:>10}/{decimal_total_bytes:10} \
                     {decimal_bytes_per_sec:>12}, {eta} left";
const BLOB: &str = "  {prefix}{bar:24} {decimal_bytes:>10}/{decimal_total_bytes:10} \
                   {decimal_bytes_per_sec:>12} {msg}";
/// The maximum number of blobs with a progress bar; more do not fit on a terminal.
const BARS_MAX: usize = 12;

/// Loads the given images and those in the given files.
///
/// # Errors
/// [`CommandError::Incomplete`] if an image could not be loaded; others for an invalid command line.
pub(super) fn load(settings: &Settings, command: &cli::Load) -> Result<(), CommandError> {
    let sources = Sources::read(settings, command)?;
    let name = command.resolve_ref.as_deref().map(PartReference::parse).transpose();
    let name = name.map_err(|error| CommandError::usage("--resolve-ref", &error))?;
    let parallel: Option<Count> = parsed("--parallel", command.parallel.as_deref())?;
    let attempts: Option<Count> = parsed("--attempts", command.attempts.as_deref())?;
    let load_settings = LoadSettings {
        platforms: platforms(settings, command)?,
        parallel: parallel.and_then(|Count(count)| count.try_into().ok()).unwrap_or(PARALLEL),
        attempts: attempts.map_or(ATTEMPTS, |Count(count)| count),
        first_wait: FIRST_WAIT,
        referrers: settings.cache.prefetch.referrers,
        newest: None,
        manner: Manner::Command,
    };
    let store = Store::open(&settings.store)?;
    if !sources.bundles.is_empty() {
        import::import_bundles(settings, &store, &sources.bundles, name, command.quiet)?;
    }
    if sources.wanted.is_empty() {
        return Ok(());
    }
    let cache = cache(settings, store.clone());
    let display = Display::start(command.quiet);
    let began = Instant::now();
    let summary =
        bundle::load(&cache, &sources.wanted, &load_settings, &|event| display.show(event));
    display.end();
    cache.close();
    // Also after failures: the images that were loaded must be in the index.
    store.settle_index()?;
    // The cache is new, so the counter has what this command fetched: exactly, unlike the sum of the images.
    conclude(&summary, cache.metrics().fetched_bytes.get(), began.elapsed(), command.quiet)
}

/// A cache with the server's settings, but without the negative cache and prefetching of blobs, since commands
/// wait for every image and retry failures.
pub(super) fn cache(settings: &Settings, store: Store) -> Cache {
    let registries = Arc::new(settings.registries());
    let cache_settings = cache::Settings {
        negative_ttl: Duration::ZERO,
        prefetch: Prefetch { blobs: false, ..settings.cache.prefetch.clone() },
        ..settings.cache.clone()
    };
    if settings.cache.maintenance.room.cap_bytes.is_some() {
        // A server counts the disk usage in the background; a command must do it here.
        let _ = store.count_disk(&mut || true);
    }
    Cache::new(store, registries, cache_settings, Arc::new(SystemTime::now))
}

/// The images to pull and the bundles to import.
#[derive(Default)]
struct Sources {
    wanted: Vec<Wanted>,
    bundles: Vec<PathBuf>,
}

impl Sources {
    fn read(settings: &Settings, command: &cli::Load) -> Result<Sources, CommandError> {
        let mut files = command.image_file.clone();
        if command.images.is_empty() && command.from.is_empty() && files.is_none() {
            files.clone_from(&settings.image_file);
        }
        let mut sources = Sources::default();
        for word in &command.images {
            match word.strip_prefix('@') {
                Some(path) => sources.add_file(Path::new(path), &settings.naming)?,
                None if is_path_of_file(word) => {
                    let text = format!("{word} is a file; did you mean @{word}?");
                    return Err(CommandError::Usage(text));
                }
                None => sources.wanted.push(
                    Wanted::parse(&settings.naming.expand(word))
                        .map_err(|error| CommandError::Usage(error.to_string()))?,
                ),
            }
        }
        let names = files.iter().flat_map(|names| names.split(',')).map(str::trim);
        for name in names.filter(|name| !name.is_empty()) {
            for path in matching(Path::new(name))? {
                sources.add_file(&path, &settings.naming)?;
            }
        }
        if !command.from.is_empty() {
            let found = images::find(&command.from, Form::Manifests).complete()?;
            sources.wanted.extend(found.map(|(name, reference)| Wanted::Image(name, reference)));
        }
        match sources.wanted.is_empty() && sources.bundles.is_empty() {
            true => Err(CommandError::Usage(
                "load: name images, image lists with @FILE or --image-file FILE, or manifests with --from FILE"
                    .into(),
            )),
            false => Ok(sources),
        }
    }

    /// Adds an image list or a bundle. A file that is not text is a bundle.
    fn add_file(&mut self, path: &Path, naming: &Naming) -> Result<(), CommandError> {
        match path.is_dir() || !is_text(path)? {
            true => self.bundles.push(path.to_owned()),
            false => self.wanted.extend(read_list(path, naming)?),
        }
        Ok(())
    }
}

/// Whether a word looks like a path, and is one of a file. `redis` is an image even next to a file with that name.
fn is_path_of_file(word: &str) -> bool {
    let path = Path::new(word);
    let looks_like_path = path.extension().is_some() || word.starts_with(['.', '/']);
    looks_like_path && path.is_file()
}

/// The files that match a path, in which the last component may be a glob.
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
    let is_match = |file: &PathBuf| {
        file.file_name().and_then(|name| name.to_str()).is_some_and(|name| pattern.matches(name))
    };
    let mut files: Vec<PathBuf> = files.filter(is_match).collect();
    files.sort();
    match files.is_empty() {
        true => {
            Err(CommandError::usage("--image-file", &format!("no file matches {}", path.display())))
        }
        false => Ok(files),
    }
}

/// Whether a file begins like text: tar files and compressed files have bytes that never occur in text.
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

/// The platforms to load: from the command line, else from the configuration, else this machine's.
fn platforms(settings: &Settings, command: &cli::Load) -> Result<Platforms, CommandError> {
    if !command.platform.is_empty() {
        let typed = Platforms::parse(command.platform.iter().map(String::as_str));
        return typed.map_err(|error| CommandError::usage("--platform", &error));
    }
    Ok(settings.load_platforms.clone())
}

fn conclude(
    summary: &LoadSummary,
    fetched_bytes: u64,
    took: Duration,
    is_quiet: bool,
) -> Result<(), CommandError> {
    let failed = summary.failed().count();
    for (image, outcome) in &summary.images {
        match outcome {
            Outcome::Failed { reason, is_permanent: true } => {
                note(&format!("{image}: cannot be loaded: {reason}"));
            }
            Outcome::Failed { reason, is_permanent: false } => {
                note(&format!("{image}: not loaded yet: {reason}"));
            }
            Outcome::Loaded { .. } | Outcome::Unconfirmed { .. } => {}
        }
    }
    if is_quiet {
        return incomplete(summary, failed);
    }
    let unconfirmed =
        summary.images.iter().filter(|(_, how)| matches!(how, Outcome::Unconfirmed { .. }));
    let loaded = summary.images.len() - failed;
    note(&format!(
        "{loaded} of {} in the cache, {} fetched in {}",
        plural(summary.images.len(), "image"),
        size(fetched_bytes),
        duration(took)
    ));
    for (image, _) in unconfirmed {
        note(&format!(
            "  unconfirmed: {image}: cached, but the registry did not confirm that this is the current version"
        ));
    }
    incomplete(summary, failed)
}

fn incomplete(summary: &LoadSummary, failed: usize) -> Result<(), CommandError> {
    let permanent = summary.failed_permanently();
    match failed {
        0 => Ok(()),
        failed => Err(CommandError::Incomplete { failed, permanent, of: summary.images.len() }),
    }
}

/// Shows the progress: bars on a terminal, lines elsewhere.
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
    /// Only the first [`BARS_MAX`] have one.
    bar: Option<ProgressBar>,
    bytes: u64,
    size: u64,
}

impl Display {
    fn start(quiet: bool) -> Display {
        let bars = Bars::start();
        // Some terminals cannot show bars (TERM=dumb), and lines above hidden bars are hidden as well.
        match (quiet, std::io::stderr().is_terminal() && !bars.all.is_hidden()) {
            (true, _) => Display::Quiet,
            (false, false) => Display::Lines,
            (false, true) => Display::Bars(Box::new(bars)),
        }
    }

    fn show(&self, event: LoadEvent<'_>) {
        let line = match event {
            LoadEvent::Image { image, outcome } => match outcome {
                Outcome::Loaded { fetched_bytes: 0 } => format!("{image}: already cached"),
                Outcome::Loaded { fetched_bytes } => {
                    format!("{image}: loaded, {} fetched", size(*fetched_bytes))
                }
                Outcome::Unconfirmed { fetched_bytes: 0, .. } => {
                    format!("{image}: already cached, unconfirmed")
                }
                Outcome::Unconfirmed { fetched_bytes, .. } => {
                    format!("{image}: loaded, {} fetched, unconfirmed", size(*fetched_bytes))
                }
                // At the end, where it is not overlooked.
                Outcome::Failed { .. } => String::new(),
            },
            LoadEvent::Retry { image, reason, wait } => {
                format!("{image}: {reason}; retrying in {}", duration(wait))
            }
            _ => String::new(),
        };
        match self {
            Display::Quiet => {}
            Display::Lines if line.is_empty() => {}
            Display::Lines => note(&line),
            Display::Bars(bars) => {
                if !line.is_empty() {
                    // Printed above the bars. A closed terminal is not an error.
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
        // A panic while the lock is held cannot leave anything inconsistent but the bars.
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
            .with_style(style(BLOB));
        self.all.insert_before(&self.total, bar)
    }
}

#[cfg(test)]
mod tests {
    use indicatif::ProgressStyle;

    use super::*;

    #[test]
    fn the_templates_are_valid() {
        for template in [TOTAL, BLOB] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }
}
