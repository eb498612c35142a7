//! `larder config check`: reports the problems that a server would find with this configuration at its start.

use std::path::Path;

use super::{CommandError, load, note, reload, say};
use crate::config::Settings;
use crate::units::plural;

/// Reads the files that the configuration refers to, and prints errors and warnings.
///
/// # Errors
/// [`CommandError`] for whatever would prevent a server from starting, except ports and the cache directory.
pub(super) fn check(settings: &Settings, file: Option<&Path>) -> Result<(), CommandError> {
    reload::check(settings)?;
    let preload = settings.preload_images.as_deref();
    preload.map(|path| load::read_list(path, &settings.naming)).transpose()?;
    for remark in reload::remarks(settings) {
        note(&remark);
    }
    let file = file.map_or("the default configuration".into(), |file| file.display().to_string());
    let registries = plural(settings.upstream.registries.len(), "registry entry");
    say(&format!("{file}: valid, {registries}"));
    Ok(())
}
