//! `larder import`: imports bundles into the cache, also while a server runs.

use std::path::PathBuf;
use std::time::SystemTime;

use super::progress::{Progress, note_unless};
use super::{CommandError, bucket, logging, note};
use crate::bundle::{self, BundleError, BundleSource, ImportEvent, ImportSettings, ImportSummary};
use crate::cli::Import;
use crate::config::Settings;
use crate::oci::{ImageName, PartReference};
use crate::store::Store;
use crate::units::plural;

/// Imports every given bundle. One that cannot be read does not prevent the import of the others.
///
/// # Errors
/// [`CommandError`] for an invalid command line, for I/O errors, and if an image was not imported.
pub(super) fn import(typed: &Import, settings: &Settings) -> Result<(), CommandError> {
    logging::start(settings.log_level, settings)?;
    let name = name(typed)?;
    if typed.paths.is_empty() {
        let text = "import: name the bundles: files, directories, or - for standard input";
        return Err(CommandError::Usage(text.into()));
    }
    let store = Store::open(&settings.store)?;
    let (mut imported, mut places, mut paths) = (Vec::new(), Vec::new(), Vec::new());
    for path in &typed.paths {
        match bucket::Place::parse(path).transpose()? {
            Some(_) if name.is_some() => {
                let text = "--name: images of a bucket have their names";
                return Err(CommandError::Usage(text.into()));
            }
            Some(place) => places.push(place),
            None => paths.push(path.clone()),
        }
    }
    let mut named = |reference: &str| imported.push(reference.to_owned());
    let mut results: Vec<Result<(), CommandError>> = places
        .into_iter()
        .map(|place| bucket::import(settings, place, &store, typed.quiet, &mut named))
        .collect();
    if !paths.is_empty() {
        results.push(import_with(settings, &store, &paths, name, typed.quiet, &mut named));
    }
    // Images that were imported are pinned even if others failed.
    if typed.pin {
        store.add_pins(&imported)?;
        note_unless(typed.quiet, &format!("{} pinned", plural(imported.len(), "image")));
    }
    let mut errors = results.into_iter().filter_map(Result::err);
    let first = errors.next();
    errors.for_each(|error| note(&error));
    first.map_or(Ok(()), Err)
}

/// Imports bundles into the store.
///
/// # Errors
/// [`CommandError`] if an image was not imported.
pub(super) fn import_bundles(
    settings: &Settings,
    store: &Store,
    paths: &[PathBuf],
    name: Option<PartReference>,
    is_quiet: bool,
) -> Result<(), CommandError> {
    import_with(settings, store, paths, name, is_quiet, &mut |_| {})
}

/// As [`import_bundles`], and calls `named` with every imported reference.
fn import_with(
    settings: &Settings,
    store: &Store,
    paths: &[PathBuf],
    name: Option<PartReference>,
    is_quiet: bool,
    named: &mut dyn FnMut(&str),
) -> Result<(), CommandError> {
    let sources = BundleSource::all_of(paths)?;
    let is_private = |name: &ImageName| settings.cache.access.is_private(name);
    let import_settings = ImportSettings { name, now: SystemTime::now(), is_private: &is_private };
    let mut summary = ImportSummary::default();
    for source in &sources {
        let mut progress = Progress::start(is_quiet, "imported", None);
        let imported = bundle::import(store, source, &import_settings, &mut |event| match event {
            ImportEvent::Progress { bytes } => progress.add(*bytes),
            ImportEvent::Imported { reference, .. } => {
                named(reference);
                if !is_quiet {
                    progress.note(event);
                }
            }
            ImportEvent::Incomplete { .. } | ImportEvent::Refused { .. } => progress.note(event),
        });
        progress.end();
        match imported {
            Ok(of_one) => summary.add(of_one),
            Err(error @ BundleError::Store(_)) => return Err(error.into()),
            Err(error) if sources.len() == 1 => return Err(error.into()),
            Err(error) => {
                note(&error);
                summary.failures += 1;
            }
        }
    }
    note_unless(is_quiet, &summary);
    match summary.failures {
        0 => Ok(()),
        failures => Err(BundleError::SomeFailed { failures }.into()),
    }
}

fn name(typed: &Import) -> Result<Option<PartReference>, CommandError> {
    let (flag, text) = match (&typed.name, &typed.resolve_ref) {
        (None, None) => return Ok(None),
        (Some(name), None) => ("--name", name),
        (None, Some(name)) => ("--resolve-ref", name),
        (Some(_), Some(_)) => {
            let text = "--name and --resolve-ref have the same meaning; use one of them";
            return Err(CommandError::Usage(text.into()));
        }
    };
    PartReference::parse(text).map(Some).map_err(|error| CommandError::usage(flag, &error))
}
