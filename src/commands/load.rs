//! `larder load`: images from lists into the cache, with the progress shown.

use std::collections::HashMap;
use std::fs;
use std::io::IsTerminal;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::{CommandError, note, units};
use crate::bundle::{self, LoadEvent, LoadSettings, LoadSummary, Outcome, Wanted};
use crate::cache::{self, Cache, Prefetch};
use crate::cli;
use crate::config::Settings;
use crate::oci::{Digest, Platforms};
use crate::store::Store;
use crate::upstream::Registries;

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
    let wanted = wanted(settings, command)?;
    let load_settings = LoadSettings {
        platforms: platforms(settings, command)?,
        parallel: command.parallel.unwrap_or(PARALLEL),
        attempts: command.attempts.unwrap_or(ATTEMPTS),
        first_wait: FIRST_WAIT,
        referrers: settings.cache.prefetch.referrers,
    };
    let store = Store::open(&settings.store)?;
    let cache = cache(settings, store.clone());
    let display = Display::start(command.quiet);
    let began = Instant::now();
    let summary = bundle::load(&cache, &wanted, &load_settings, &|event| display.show(event));
    display.end();
    cache.close();
    // Loaded or not, what is there has its names.
    store.write_index()?;
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
    Cache::new(store, registries, cache_settings, Arc::new(SystemTime::now))
}

fn wanted(settings: &Settings, command: &cli::Load) -> Result<Vec<Wanted>, CommandError> {
    let files = command.image_file.iter().flat_map(|names| names.split(','));
    let files = files.map(|name| format!("@{}", name.trim()));
    let mut words: Vec<String> = command.images.iter().cloned().chain(files).collect();
    if words.is_empty() {
        words.extend(
            settings
                .image_file
                .iter()
                .flat_map(|names| names.split(','))
                .map(|name| format!("@{}", name.trim())),
        );
    }
    let mut wanted = Vec::new();
    for word in &words {
        match word.strip_prefix('@') {
            Some(path) => wanted.extend(read_list(Path::new(path))?),
            None => wanted
                .push(Wanted::parse(word).map_err(|error| CommandError::Usage(error.to_string()))?),
        }
    }
    match wanted.is_empty() {
        true => Err(CommandError::Usage(
            "load: name images, or a list of them as @FILE or --image-file FILE".into(),
        )),
        false => Ok(wanted),
    }
}

/// Reads an image list.
pub(super) fn read_list(path: &Path) -> Result<Vec<Wanted>, CommandError> {
    let refuse = |reason: String| CommandError::Usage(format!("{}: {reason}", path.display()));
    let text = fs::read_to_string(path).map_err(|error| refuse(error.to_string()))?;
    Wanted::parse_list(&text).map_err(|error| refuse(error.to_string()))
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
