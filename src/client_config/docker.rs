//! Docker: `registry-mirrors` of `daemon.json`, for images of docker.io and no other registry.
//!
//! Docker has a single file for all settings, so entries are added to the existing file. The classic image
//! store does not name the registry in its requests; see `defaultNs`.

use serde_json::{Map, Value};

use super::{Fallback, Mirror, MirrorError};

/// Mirrors of Docker Hub, in order.
const MIRRORS: &str = "registry-mirrors";
/// Registries whose certificates are not verified.
const INSECURE: &str = "insecure-registries";

pub(super) fn merged(mirror: &Mirror, existing: Option<&str>) -> Result<String, MirrorError> {
    if mirror.fallback == Fallback::None {
        return Err(MirrorError::AlwaysFallsBack);
    }
    let refuse = |reason: String| MirrorError::DaemonJson(reason);
    let mut settings: Map<String, Value> = match existing.map(str::trim) {
        None | Some("") => Map::new(),
        Some(text) => serde_json::from_str(text).map_err(|error| refuse(error.to_string()))?,
    };
    let urls = mirror.servers.iter().map(super::Server::url).collect();
    add_first(&mut settings, MIRRORS, urls)?;
    if mirror.trust.is_unverified {
        let authorities = mirror.servers.iter().map(|server| server.authority.clone()).collect();
        add_first(&mut settings, INSECURE, authorities)?;
    }
    let text = serde_json::to_string_pretty(&Value::Object(settings));
    text.map(|text| text + "\n").map_err(|error| refuse(error.to_string()))
}

/// Adds entries before the existing ones, without duplicates.
fn add_first(
    settings: &mut Map<String, Value>,
    key: &str,
    first: Vec<String>,
) -> Result<(), MirrorError> {
    // For Docker, a URL with a trailing slash and one without are the same mirror.
    let bare = |text: &Value| text.as_str().map(|text| text.trim_end_matches('/').to_owned());
    let before = match settings.remove(key) {
        None => Vec::new(),
        Some(Value::Array(before)) => before,
        Some(_) => return Err(MirrorError::DaemonJson(format!("{key} is not an array"))),
    };
    let others =
        before.into_iter().filter(|each| !bare(each).is_some_and(|url| first.contains(&url)));
    let all = first.iter().cloned().map(Value::from).chain(others).collect();
    settings.insert(key.to_owned(), Value::Array(all));
    Ok(())
}
