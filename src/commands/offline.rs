//! `larder offline`: the switch that running servers heed.

use super::{CommandError, existing_store, say};
use crate::store;

/// Switches, if a word says which way, and says how it is.
///
/// # Errors
/// [`CommandError`] for another word, or a directory that cannot be written.
pub(super) fn offline(
    settings: &store::Settings,
    switch: Option<&str>,
) -> Result<(), CommandError> {
    let switch = match switch {
        None => None,
        Some("on") => Some(true),
        Some("off") => Some(false),
        Some(other) => {
            return Err(CommandError::usage("offline", &format!("{other} is neither on nor off")));
        }
    };
    let store = existing_store(settings)?;
    if let Some(offline) = switch {
        store.set_offline(offline)?;
    }
    match store.is_offline() {
        true => say("offline: no upstream is asked, what is cached is served"),
        false => say("online: upstreams are asked"),
    }
    Ok(())
}
