//! `larder import`: bundles into the cache, beside a server that may be running.

use std::path::PathBuf;
use std::time::SystemTime;

use super::{CommandError, logging, note};
use crate::bundle::{self, BundleError, BundleSource, ImportEvent, ImportSettings, ImportSummary};
use crate::cli::Import;
use crate::config::Settings;
use crate::oci::PartReference;
use crate::store::Store;

/// Imports every bundle that was named. One that cannot be read does not keep the others out.
///
/// # Errors
/// [`CommandError`] for what was typed wrong, for a disk that refuses, and if anything was not imported.
pub(super) fn import(typed: &Import, settings: &Settings) -> Result<(), CommandError> {
    logging::start(settings.log_level, settings.log_file.as_deref())?;
    let name = name(typed)?;
    if typed.paths.is_empty() {
        let text = "import: which bundle? Name files, directories, or - for standard input";
        return Err(CommandError::Usage(text.into()));
    }
    let store = Store::open(&settings.store)?;
    let mut imported = Vec::new();
    let taken = take_with(&store, &typed.paths, name, &mut |reference| {
        imported.push(reference.to_owned());
    });
    // What came is pinned also where the rest did not.
    if typed.pin {
        store.add_pins(&imported)?;
        note(&format!("{} images pinned", imported.len()));
    }
    taken
}

/// Takes bundles into the store.
///
/// # Errors
/// [`CommandError`] if anything was not imported.
pub(super) fn take(
    store: &Store,
    paths: &[PathBuf],
    name: Option<PartReference>,
) -> Result<(), CommandError> {
    take_with(store, paths, name, &mut |_| {})
}

/// The same, and calls `named` with every reference that was imported.
fn take_with(
    store: &Store,
    paths: &[PathBuf],
    name: Option<PartReference>,
    named: &mut dyn FnMut(&str),
) -> Result<(), CommandError> {
    let sources = BundleSource::all_of(paths)?;
    let import_settings = ImportSettings { name, now: SystemTime::now() };
    let mut summary = ImportSummary::default();
    for source in &sources {
        match bundle::import(store, source, &import_settings, &mut |told| {
            if let ImportEvent::Imported { reference, .. } = told {
                named(reference);
            }
            note(told);
        }) {
            Ok(of_one) => summary.add(of_one),
            Err(error @ BundleError::Store(_)) => return Err(error.into()),
            Err(error) if sources.len() == 1 => return Err(error.into()),
            Err(error) => {
                note(&error);
                summary.failures += 1;
            }
        }
    }
    note(&summary);
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
            let text = "--name and --resolve-ref are the same; give one of them";
            return Err(CommandError::Usage(text.into()));
        }
    };
    PartReference::parse(text).map(Some).map_err(|error| CommandError::usage(flag, &error))
}
