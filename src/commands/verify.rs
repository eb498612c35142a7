//! `larder verify`: is everything still what its name says, and is every image whole?

use std::collections::HashSet;
use std::io::{self, IsTerminal};
use std::num::NonZeroU64;
use std::thread;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};

use super::export::choices;
use super::list::images;
use super::{CommandError, existing_store, load, say, units};
use crate::bundle;
use crate::cache::Pace;
use crate::cli;
use crate::config::{Settings, parse_rate};
use crate::oci::Digest;
use crate::store::{Checked, Store, StoreError, StoredImage};

/// How much is read at a time, in bytes.
const CHUNK_BYTES: usize = 256 * 1024;
/// What the bar shows.
const TEMPLATE: &str =
    "{bar:32} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec}, {eta} left";

/// Hashes every blob, keeps damaged ones aside, looks whether images are whole, and mends them if that is
/// wished.
///
/// # Errors
/// [`CommandError::Unsound`] if something is wrong in the end.
pub(super) fn verify(settings: &Settings, command: &cli::Verify) -> Result<(), CommandError> {
    let meant = choices(settings, &command.patterns, &[])?;
    let rate = command.rate.as_deref().map(parse_rate).transpose();
    let rate = rate.map_err(|error| CommandError::usage("--rate", &error))?;
    let store = existing_store(&settings.store)?;
    let Found { damaged, unreadable } = check_blobs(&store, rate)?;
    let images = images(&store, &meant)?;
    let mut broken = Vec::new();
    let cache = command.repair.then(|| load::cache(settings, store.clone()));
    for image in &images {
        let Some(what) = lacks(&store, image) else { continue };
        let name = image.full_reference();
        let mended = cache.as_ref().map(|cache| bundle::repair(cache, image, &damaged));
        match mended {
            Some(Ok(())) => say(&format!("{name}: {what}; mended")),
            Some(Err(reason)) => {
                say(&format!("{name}: {what}; not mended: {reason}"));
                broken.push(name);
            }
            None => {
                say(&format!("{name}: {what}"));
                broken.push(name);
            }
        }
    }
    say(&format!(
        "{} images, {} of them not whole; {} damaged blobs",
        images.len(),
        broken.len(),
        damaged.len()
    ));
    // A damaged blob that no image needs was taken out of the way, and harms nobody.
    match (broken.is_empty() && unreadable == 0, damaged.is_empty() || command.repair) {
        (true, true) => Ok(()),
        _ => Err(CommandError::Unsound {
            images: broken.len(),
            blobs: damaged.len() + unreadable,
            is_repaired: command.repair,
        }),
    }
}

/// What hashing brought to light.
#[derive(Default)]
struct Found {
    damaged: HashSet<Digest>,
    /// Blobs of which nothing can be said.
    unreadable: usize,
}

/// Hashes every blob and says which are damaged; they are out of the way then.
fn check_blobs(store: &Store, rate: Option<NonZeroU64>) -> Result<Found, StoreError> {
    let blobs = store.blobs()?;
    let bar = match io::stderr().is_terminal() {
        true => ProgressBar::new(blobs.iter().map(|(_, size)| size).sum()),
        false => ProgressBar::hidden(),
    };
    bar.set_style(
        ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    let mut pace = rate.map(|rate| Pace::new(rate, Instant::now()));
    let mut keep_pace = |bytes| {
        bar.inc(bytes);
        if let Some(pace) = &mut pace {
            thread::sleep(pace.after(bytes, Instant::now()));
        }
        true
    };
    let (mut found, mut buffer) = (Found::default(), vec![0; CHUNK_BYTES]);
    for (digest, _) in &blobs {
        let damage = match store.check_blob(digest, &mut buffer, &mut keep_pace) {
            Checked::Damaged(damage) => damage,
            Checked::Unreadable(error) => {
                bar.suspend(|| say(&format!("{digest}: cannot be read: {error}")));
                found.unreadable += 1;
                continue;
            }
            Checked::Sound | Checked::Gone | Checked::Stopped => continue,
        };
        let moved = match store.quarantine(&damage) {
            Ok(Some(path)) => format!("moved to {}", path.display()),
            Ok(None) => continue,
            Err(error) => format!("it stays: {error}"),
        };
        bar.suspend(|| say(&format!("{digest}: damaged: {}; {moved}", damage.reason)));
        found.damaged.insert(*digest);
    }
    bar.finish_and_clear();
    Ok(found)
}

/// What an image lacks, if anything.
fn lacks(store: &Store, image: &StoredImage) -> Option<String> {
    let graph = store.graph_of(image);
    let missing: Vec<_> = graph.missing_blobs().collect();
    if graph.manifests.first().is_none_or(|root| root.manifest.is_none()) {
        return Some(format!("its manifest {} is missing", image.digest));
    }
    match (&missing[..], graph.is_complete()) {
        ([], true) => None,
        ([], false) => Some("none of its platforms is here".into()),
        ([first, ..], _) => Some(format!(
            "{} of {} in {} blobs are missing, {} among them",
            units::size(graph.missing_bytes()),
            units::size(graph.missing_bytes() + graph.present_bytes()),
            missing.len(),
            first.digest
        )),
    }
}
