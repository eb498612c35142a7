//! `larder offline`: turns offline mode on or off for all servers on the cache directory.

use super::{CommandError, existing_store, say};
use crate::store;

/// Turns offline mode on or off if `switch` is given, and prints its state.
///
/// # Errors
/// [`CommandError`] if `switch` is neither `on` nor `off`, or the directory cannot be written.
pub(super) fn offline(
    settings: &store::Settings,
    switch: Option<&str>,
) -> Result<(), CommandError> {
    let switch = match switch {
        None => None,
        Some("on") => Some(true),
        Some("off") => Some(false),
        Some(other) => {
            return Err(CommandError::usage(
                "offline",
                &format!(
                    "{other} is neither on nor off; say on, off, or nothing to show the state"
                ),
            ));
        }
    };
    let store = existing_store(settings)?;
    if let Some(offline) = switch {
        store.set_offline(offline)?;
    }
    match store.is_offline() {
        true => say("offline: only cached content is served, registries are not contacted"),
        false => say("online: registries are contacted"),
    }
    Ok(())
}
