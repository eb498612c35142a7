//! `larder config check`: what a server that starts with this configuration would say.

use std::path::Path;

use super::{CommandError, load, note, reload, say};
use crate::config::Settings;

/// Reads what the configuration names, and says what an operator should know.
///
/// # Errors
/// [`CommandError`] for whatever would keep a server from starting, ports and the cache directory aside.
pub(super) fn check(settings: &Settings, file: Option<&Path>) -> Result<(), CommandError> {
    reload::check(settings)?;
    let preload = settings.preload_images.as_deref();
    preload.map(|path| load::read_list(path, &settings.naming)).transpose()?;
    for remark in reload::remarks(settings) {
        note(&remark);
    }
    let file = file.map_or("the default configuration".into(), |file| file.display().to_string());
    let registries = settings.upstream.registries.len();
    say(&format!("{file}: good; {registries} registries have an entry"));
    Ok(())
}
