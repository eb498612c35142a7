//! `larder verify`: checks that every blob matches its digest and that every image is complete.

use std::cell::RefCell;
use std::collections::HashSet;
use std::num::NonZeroU64;
use std::thread;
use std::time::Instant;

use super::progress::Progress;
use super::selection::Selected;
use super::{CommandError, existing_store, load, say};
use crate::bundle;
use crate::cache::Pace;
use crate::cli;
use crate::config::{Settings, parse_rate};
use crate::oci::Digest;
use crate::store::{Checked, Store, StoreError, StoredImage};
use crate::units::{plural, size};

/// The size of the read buffer, in bytes.
const CHUNK_BYTES: usize = 256 * 1024;
/// Hashes every blob, moves damaged ones to quarantine, checks that the images are complete, and repairs
/// them if requested.
///
/// # Errors
/// [`CommandError::Unsound`] if problems remain.
pub(super) fn verify(settings: &Settings, command: &cli::Verify) -> Result<(), CommandError> {
    let selected = Selected::parse(settings, &command.patterns, None)?;
    let rate = command.rate.as_deref().map(parse_rate).transpose();
    let rate = rate.map_err(|error| CommandError::usage("--rate", &error))?;
    let store = existing_store(&settings.store)?;
    // Before the blobs are hashed, which takes long.
    selected.check_in(&store)?;
    let BlobFindings { damaged, unreadable } = check_blobs(&store, rate, command.quiet)?;
    let mut images = selected.images(&store)?;
    // What is held is not pulled, so it is incomplete, and a repair must not fetch it.
    images.retain(|image| !image.is_unaccepted);
    let mut broken = Vec::new();
    let cache = command.repair.then(|| load::cache(settings, store.clone()));
    for image in &images {
        let Some(problem) = problem(&store, image) else { continue };
        let name = image.full_reference();
        let repaired = cache.as_ref().map(|cache| bundle::repair(cache, image, &damaged));
        match repaired {
            Some(Ok(())) => say(&format!("{name}: {problem}; repaired")),
            Some(Err(reason)) => {
                say(&format!("{name}: {problem}; not repaired: {reason}"));
                broken.push(name);
            }
            None => {
                say(&format!("{name}: {problem}"));
                broken.push(name);
            }
        }
    }
    if !command.quiet {
        say(&format!(
            "{}, {} incomplete; {}",
            plural(images.len(), "image"),
            broken.len(),
            plural(damaged.len(), "damaged blob")
        ));
    }
    // A damaged blob that no image needs is in quarantine now and does no harm.
    match (broken.is_empty() && unreadable == 0, damaged.is_empty() || command.repair) {
        (true, true) => Ok(()),
        _ => Err(CommandError::Unsound {
            images: broken.len(),
            blobs: damaged.len() + unreadable,
            is_repaired: command.repair,
        }),
    }
}

/// The results of hashing the blobs.
#[derive(Default)]
struct BlobFindings {
    damaged: HashSet<Digest>,
    /// The number of blobs that could not be read.
    unreadable: usize,
}

/// Hashes every blob and moves damaged ones to quarantine.
fn check_blobs(
    store: &Store,
    rate: Option<NonZeroU64>,
    is_quiet: bool,
) -> Result<BlobFindings, StoreError> {
    let blobs = store.blobs()?;
    let total = blobs.iter().map(|(_, size)| size).sum();
    let progress = RefCell::new(Progress::start(is_quiet, "verified", Some(total)));
    let mut pace = rate.map(|rate| Pace::new(rate, Instant::now()));
    let mut keep_pace = |bytes| {
        progress.borrow_mut().add(bytes);
        if let Some(pace) = &mut pace {
            thread::sleep(pace.after(bytes, Instant::now()));
        }
        true
    };
    let (mut found, mut buffer) = (BlobFindings::default(), vec![0; CHUNK_BYTES]);
    for (digest, _) in &blobs {
        let damage = match store.check_blob(digest, &mut buffer, &mut keep_pace) {
            Checked::Damaged(damage) => damage,
            Checked::Unreadable(error) => {
                progress.borrow().say(&format!("{digest}: cannot be read: {error}"));
                found.unreadable += 1;
                continue;
            }
            Checked::Sound | Checked::Gone | Checked::Stopped => continue,
        };
        let moved = match store.quarantine(&damage) {
            Ok(Some(path)) => format!("moved to {}", path.display()),
            Ok(None) => continue,
            Err(error) => format!("cannot move it to quarantine: {error}"),
        };
        progress.borrow().say(&format!("{digest}: damaged: {}; {moved}", damage.reason));
        found.damaged.insert(*digest);
    }
    progress.borrow().end();
    Ok(found)
}

/// Why an image is incomplete, if it is.
fn problem(store: &Store, image: &StoredImage) -> Option<String> {
    let graph = store.graph_of(image);
    let missing: Vec<_> = graph.missing_blobs().collect();
    if graph.manifests.first().is_none_or(|root| root.manifest.is_none()) {
        return Some(format!("manifest {} is missing", image.digest));
    }
    match (&missing[..], &graph.missing()[..]) {
        ([], []) => None,
        ([], _) => Some("no platform is cached".into()),
        ([first, ..], _) => Some(format!(
            "{} of {} missing in {}, first {}",
            size(graph.missing_bytes()),
            size(graph.missing_bytes() + graph.present_bytes()),
            plural(missing.len(), "blob"),
            first.digest
        )),
    }
}
