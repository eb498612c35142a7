//! Docker: `registry-mirrors` of `daemon.json`, for images of docker.io and no other registry.
//!
//! The file is one for everything that Docker is told, so there is only adding to it. The classic image store
//! does not say which registry it means; see `defaultNs`.

use serde_json::{Map, Value};

use super::{Fallback, Mirror, MirrorError};

/// Mirrors of Docker Hub, in their order.
const MIRRORS: &str = "registry-mirrors";
/// Registries whose certificates are not looked at.
const INSECURE: &str = "insecure-registries";

pub(super) fn merged(mirror: &Mirror, existing: Option<&str>) -> Result<String, MirrorError> {
    if mirror.fallback == Fallback::None {
        return Err(MirrorError::AlwaysFallsBack);
    }
    let refuse = |reason: String| MirrorError::DaemonJson(reason);
    let mut told: Map<String, Value> = match existing.map(str::trim) {
        None | Some("") => Map::new(),
        Some(text) => serde_json::from_str(text).map_err(|error| refuse(error.to_string()))?,
    };
    let urls = mirror.servers.iter().map(super::Server::url).collect();
    add_first(&mut told, MIRRORS, urls)?;
    if mirror.trust.is_unverified {
        let authorities = mirror.servers.iter().map(|server| server.authority.clone()).collect();
        add_first(&mut told, INSECURE, authorities)?;
    }
    let text = serde_json::to_string_pretty(&Value::Object(told));
    text.map(|text| text + "\n").map_err(|error| refuse(error.to_string()))
}

/// Puts entries before those that are there, each of them once.
fn add_first(
    told: &mut Map<String, Value>,
    key: &str,
    first: Vec<String>,
) -> Result<(), MirrorError> {
    // Docker takes it for the same mirror, with the slash and without.
    let bare = |text: &Value| text.as_str().map(|text| text.trim_end_matches('/').to_owned());
    let before = match told.remove(key) {
        None => Vec::new(),
        Some(Value::Array(before)) => before,
        Some(_) => return Err(MirrorError::DaemonJson(format!("{key} is no array"))),
    };
    let others =
        before.into_iter().filter(|each| !bare(each).is_some_and(|url| first.contains(&url)));
    let all = first.iter().cloned().map(Value::from).chain(others).collect();
    told.insert(key.to_owned(), Value::Array(all));
    Ok(())
}
