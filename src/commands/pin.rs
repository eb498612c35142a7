//! `larder pin` and `larder unpin`: what is never evicted.

use super::export::choices;
use super::{CommandError, existing_store, say};
use crate::cli;
use crate::config::Settings;
use crate::oci::Choice;
use crate::store::Store;

/// Pins what was typed and what is in the lists; without any, prints what is pinned.
///
/// # Errors
/// [`CommandError`] for what was typed wrong, and if the disk refuses.
pub(super) fn pin(settings: &Settings, command: &cli::Pin) -> Result<(), CommandError> {
    let choices = choices(settings, &command.images, &command.list)?;
    let store = existing_store(&settings.store)?;
    if choices.is_empty() {
        let configured = &settings.cache.upkeep.pins;
        configured.named().for_each(|pin| say(&format!("{pin}  (configuration)")));
        for path in &configured.lists {
            say(&format!("what is in {}  (configuration)", path.display()));
        }
        let here = configured.all().unwrap_or_default();
        let of_server = of_server(&store)?.into_iter();
        of_server
            .filter(|pin| !here.iter().any(|configured| configured.to_string() == *pin))
            .for_each(|pin| say(&format!("{pin}  (configuration of the server)")));
        kept(&store)?.iter().for_each(|pin| say(pin));
        return Ok(());
    }
    let texts: Vec<String> = choices.iter().map(Choice::to_string).collect();
    let added = store.add_pins(&texts)?;
    texts.iter().for_each(|text| say(&format!("pinned {text}")));
    if added < texts.len() {
        say(&format!("{} of them were pinned before", texts.len() - added));
    }
    Ok(())
}

/// Takes pins off.
///
/// # Errors
/// [`CommandError`] for what was typed wrong or is not pinned, and if the disk refuses.
pub(super) fn unpin(settings: &Settings, command: &cli::Unpin) -> Result<(), CommandError> {
    let texts: Vec<String> =
        choices(settings, &command.images, &[])?.iter().map(Choice::to_string).collect();
    if texts.is_empty() {
        return Err(CommandError::Usage("unpin: which pins? larder pin prints them".into()));
    }
    let store = existing_store(&settings.store)?;
    let pins = kept(&store)?;
    if let Some(unknown) = texts.iter().find(|text| !pins.contains(text)) {
        let is_configured =
            settings.cache.upkeep.pins.named().any(|pin| pin.to_string() == *unknown)
                || of_server(&store)?.contains(unknown);
        return Err(CommandError::Usage(match is_configured {
            true => format!("{unknown} is pinned by the configuration (pin); take it off there"),
            false => format!("{unknown} is no pin; larder pin prints them"),
        }));
    }
    store.remove_pins(&texts)?;
    texts.iter().for_each(|text| say(&format!("unpinned {text}")));
    Ok(())
}

/// What the configuration of the last server pins.
fn of_server(store: &Store) -> Result<Vec<String>, CommandError> {
    let doing = "read what the server's configuration pins";
    store.configured_pins().map_err(|source| CommandError::System { doing, source })
}

/// The pins of the cache directory.
fn kept(store: &Store) -> Result<Vec<String>, CommandError> {
    let doing = "read the pins of the cache directory";
    store.pins().map_err(|source| CommandError::System { doing, source })
}
