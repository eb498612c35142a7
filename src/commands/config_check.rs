//! `larder config check`: reports the problems that a server would find with this configuration at its start.

use std::path::Path;

use super::{CommandError, load, logging, note, references, say};
use crate::config::Settings;
use crate::units::plural;

/// Reads the files that the configuration refers to, and prints errors and warnings.
///
/// # Errors
/// [`CommandError`] for whatever would prevent a server from starting, except ports and the cache directory.
pub(super) fn check(settings: &Settings, file: Option<&Path>) -> Result<(), CommandError> {
    references::check(settings)?;
    settings.log_file.as_deref().map(logging::check_file).transpose()?;
    let preload = settings.preload_images.as_deref();
    preload.map(|path| load::read_list(path, &settings.naming)).transpose()?;
    let remarks = references::remarks(settings);
    remarks.iter().for_each(|remark| note(remark));
    let errors = remarks.iter().filter(|remark| remark.is_error()).count();
    let file = file.map_or("the default configuration".into(), |file| file.display().to_string());
    if errors > 0 {
        return Err(CommandError::Flawed { file, errors });
    }
    let registries = plural(settings.upstream.registries.len(), "registry entry");
    let warnings = match remarks.len() {
        0 => String::new(),
        warnings => format!(", {}", plural(warnings, "warning")),
    };
    say(&format!("{file}: valid, {registries}{warnings}"));
    Ok(())
}
