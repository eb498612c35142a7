//! Limits of disk space, pins, scheduled pruning, and the management port.

use std::net::SocketAddr;

use super::ConfigError;
use super::file::{File, NO_LIMIT, PruneByName};
use crate::api::{ManagementListener, ManagementSettings, Scope};
use crate::cache::Maintenance;
use crate::prune::{CacheLimits, PinSettings, PruneBy, PrunePolicy};

/// How the cache is kept within its limits.
pub(super) fn maintenance(file: &File) -> Result<Maintenance, ConfigError> {
    Ok(Maintenance { room: room(file)?, pins: pins(file), prune: prune(file)? })
}

/// `cacheSize` and `freeSpace`.
fn room(file: &File) -> Result<CacheLimits, ConfigError> {
    let cap_bytes = file.cache_size.as_ref().map(|size| size.0.0);
    if cap_bytes == Some(0) {
        // For other keys 0 means no limit; here it would evict the entire cache.
        let reason = "0 would keep nothing; for no limit, leave the key out".into();
        return Err(ConfigError::Value { key: "cacheSize", reason });
    }
    Ok(CacheLimits { cap_bytes, floor: file.free_space.as_ref().map(|free_space| free_space.0.0) })
}

/// `pin` and `pinLists`.
fn pins(file: &File) -> PinSettings {
    PinSettings {
        pins: file.pin.iter().map(|pin| pin.0.clone()).collect(),
        own: None,
        lists: file.pin_lists.clone(),
    }
}

/// `pruneConfig`, if it is enabled.
fn prune(file: &File) -> Result<Option<PrunePolicy>, ConfigError> {
    let entry = &file.prune_config;
    if !entry.enabled {
        return Ok(None);
    }
    let every = entry.frequency.0.0;
    if every.is_zero() {
        let reason = "0 would prune continuously; use a duration such as 1d".into();
        return Err(ConfigError::Value { key: "pruneConfig.frequency", reason });
    }
    if entry.duration.0.0.is_zero() {
        let reason = "0 would remove all images; use a duration such as 30d".into();
        return Err(ConfigError::Value { key: "pruneConfig.duration", reason });
    }
    let count = match entry.count {
        NO_LIMIT => None,
        0 => {
            let reason = "0 would remove nothing; use -1 for no limit, or enabled: false".into();
            return Err(ConfigError::Value { key: "pruneConfig.count", reason });
        }
        count => Some(usize::try_from(count).map_err(|_| ConfigError::Value {
            key: "pruneConfig.count",
            reason: format!("{count} is neither a number of images nor -1 (no limit)"),
        })?),
    };
    let by = match entry.by {
        PruneByName::Accessed => PruneBy::Accessed,
        PruneByName::Created => PruneBy::Created,
    };
    Ok(Some(PrunePolicy {
        by,
        duration: entry.duration.0.0,
        every,
        count,
        is_dry_run: entry.dry_run,
    }))
}

/// `management`, `health` and `metrics`: one listener per address.
pub(super) fn management(
    file: &File,
    serving: SocketAddr,
) -> Result<ManagementSettings, ConfigError> {
    let mut listeners: Vec<ManagementListener> = Vec::new();
    let mut add = |key: &'static str, address: SocketAddr, scope: Scope| {
        if collide(address, serving) {
            return Err(ConfigError::SamePort { keys: ["port", key], port: serving.port() });
        }
        match listeners.iter_mut().find(|each| collide(each.address, address)) {
            Some(same) if same.address == address => same.scope = same.scope.and(scope),
            // `health` and `metrics` share an address, so the other key is `management`.
            Some(_) => {
                let keys = ["management.port", key];
                return Err(ConfigError::SamePort { keys, port: address.port() });
            }
            None => listeners.push(ManagementListener { address, scope }),
        }
        Ok(())
    };
    if let Some(entry) = &file.management {
        let address = SocketAddr::new(entry.host.0.0, entry.port.0);
        add("management.port", address, Scope::Everything)?;
    }
    let others =
        [("health", file.health, Scope::Health), ("metrics", file.metrics, Scope::Metrics)];
    for (key, port, scope) in others {
        if let Some(port) = port {
            add(key, SocketAddr::new(serving.ip(), port.0), scope)?;
        }
    }
    let token_file = file.management.as_ref().and_then(|entry| entry.token_file.clone());
    Ok(ManagementSettings { listeners, token_file })
}

/// Whether two sockets cannot listen on these addresses. Port 0 is any free port.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let is_any = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() != 0 && one.port() == other.port() && (is_any || one.ip() == other.ip())
}
