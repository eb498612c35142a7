//! `larder pin` and `larder unpin`: images that are never evicted.

use super::export::choices;
use super::{CommandError, existing_store, say};
use crate::cli;
use crate::config::Settings;
use crate::oci::Choice;
use crate::store::Store;

/// Pins the given images and those in the lists; without any, prints all pins.
///
/// # Errors
/// [`CommandError`] for an invalid command line, and for I/O errors.
pub(super) fn pin(settings: &Settings, command: &cli::Pin) -> Result<(), CommandError> {
    let choices = choices(settings, &command.images, &command.list)?;
    let store = existing_store(&settings.store)?;
    if choices.is_empty() {
        let configured = &settings.cache.maintenance.pins;
        configured.named().for_each(|pin| say(&format!("{pin}  (configuration)")));
        for path in &configured.lists {
            say(&format!("images listed in {}  (configuration)", path.display()));
        }
        let local = configured.all().unwrap_or_default();
        let of_server = server_pins(&store)?.into_iter();
        of_server
            .filter(|pin| !local.iter().any(|configured| configured.to_string() == *pin))
            .for_each(|pin| say(&format!("{pin}  (configuration of the server)")));
        directory_pins(&store)?.iter().for_each(|pin| say(pin));
        return Ok(());
    }
    let texts: Vec<String> = choices.iter().map(Choice::to_string).collect();
    let added = store.add_pins(&texts)?;
    texts.iter().for_each(|text| say(&format!("pinned {text}")));
    if added < texts.len() {
        say(&format!("{} of them already pinned", texts.len() - added));
    }
    Ok(())
}

/// Removes pins.
///
/// # Errors
/// [`CommandError`] for an invalid command line, for an image without a pin, and for I/O errors.
pub(super) fn unpin(settings: &Settings, command: &cli::Unpin) -> Result<(), CommandError> {
    let texts: Vec<String> =
        choices(settings, &command.images, &[])?.iter().map(Choice::to_string).collect();
    if texts.is_empty() {
        return Err(CommandError::Usage(
            "unpin: name the pins to remove; larder pin prints all pins".into(),
        ));
    }
    let store = existing_store(&settings.store)?;
    let pins = directory_pins(&store)?;
    if let Some(unknown) = texts.iter().find(|text| !pins.contains(text)) {
        let is_configured =
            settings.cache.maintenance.pins.named().any(|pin| pin.to_string() == *unknown)
                || server_pins(&store)?.contains(unknown);
        return Err(CommandError::Usage(match is_configured {
            true => format!("{unknown} is pinned by the configuration; remove it from pin there"),
            false => format!("{unknown} is not pinned; larder pin prints all pins"),
        }));
    }
    store.remove_pins(&texts)?;
    texts.iter().for_each(|text| say(&format!("unpinned {text}")));
    Ok(())
}

/// The pins in the configuration of the server that ran last.
fn server_pins(store: &Store) -> Result<Vec<String>, CommandError> {
    let doing = "read the pins of the server's configuration";
    store.configured_pins().map_err(|source| CommandError::System { doing, source })
}

/// The pins of the cache directory.
fn directory_pins(store: &Store) -> Result<Vec<String>, CommandError> {
    let doing = "read the pins of the cache directory";
    store.pins().map_err(|source| CommandError::System { doing, source })
}
