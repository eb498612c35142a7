//! `larder pin` and `larder unpin`: images that are never evicted.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::selection::choices;
use super::{CommandError, existing_store, printed, say};
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
        return print(&all(settings, &store)?, command.json);
    }
    if command.json {
        let text = "--json prints all pins; it does not apply to pinning";
        return Err(CommandError::Usage(text.into()));
    }
    let texts: Vec<String> = choices.iter().map(Choice::to_string).collect();
    let added = store.add_pins(&texts)?;
    texts.iter().for_each(|text| say(&format!("pinned {text}")));
    if added < texts.len() {
        say(&format!("{} of them already pinned", texts.len() - added));
    }
    Ok(())
}

/// A pin, or a list of images that are pinned, and where it is.
struct Pin {
    text: String,
    is_list: bool,
    place: Place,
}

/// Where a pin is, as in the output.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Directory,
    Configuration,
    ServerConfiguration,
    Sync,
}

fn all(settings: &Settings, store: &Store) -> Result<Vec<Pin>, CommandError> {
    let configured = &settings.cache.maintenance.pins;
    let pin = |text: String, place| Pin { text, is_list: false, place };
    let mut pins: Vec<Pin> =
        configured.named().map(|choice| pin(choice.to_string(), Place::Configuration)).collect();
    pins.extend(configured.lists.iter().map(|path| Pin {
        text: path.display().to_string(),
        is_list: true,
        place: Place::Configuration,
    }));
    let local: Vec<String> =
        configured.all().unwrap_or_default().iter().map(ToString::to_string).collect();
    let of_server = server_pins(store)?.into_iter().filter(|text| !local.contains(text));
    pins.extend(of_server.map(|text| pin(text, Place::ServerConfiguration)));
    let doing = "read the images that sync keeps present";
    let synced = store.synced_pins();
    let synced = synced.map_err(|source| CommandError::System { doing, source })?;
    pins.extend(synced.into_iter().map(|text| pin(text, Place::Sync)));
    pins.extend(directory_pins(store)?.into_iter().map(|text| pin(text, Place::Directory)));
    Ok(pins)
}

fn print(pins: &[Pin], is_json: bool) -> Result<(), CommandError> {
    let out = &mut io::stdout().lock();
    if is_json {
        let documents: Vec<Value> = pins
            .iter()
            .map(|pin| {
                let place = match pin.place {
                    Place::Directory => "directory",
                    Place::Configuration => "configuration",
                    Place::ServerConfiguration => "serverConfiguration",
                    Place::Sync => "sync",
                };
                let key = if pin.is_list { "list" } else { "pin" };
                json!({key: pin.text, "in": place})
            })
            .collect();
        return printed(writeln!(out, "{:#}", Value::from(documents)));
    }
    let line = |pin: &Pin| {
        let text = match pin.is_list {
            true => format!("images listed in {}", pin.text),
            false => pin.text.clone(),
        };
        match pin.place {
            Place::Directory => text,
            Place::Configuration => format!("{text}  (configuration)"),
            Place::ServerConfiguration => format!("{text}  (configuration of the server)"),
            Place::Sync => format!("{text}  (sync)"),
        }
    };
    printed(pins.iter().try_for_each(|pin| writeln!(out, "{}", line(pin))))
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
        let is_synced = store.synced_pins().is_ok_and(|pins| pins.contains(unknown));
        return Err(CommandError::Usage(match is_configured {
            false if is_synced => {
                format!("{unknown} is kept present by sync; remove it from the configuration")
            }
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
