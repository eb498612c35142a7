//! Room, pins, pruning, and the management port.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::file::{File, PruneByName};
use super::value::{Span, Text};
use super::{ConfigError, Overrides};
use crate::api::{ManagementListener, ManagementSettings, Scope};
use crate::cache::Upkeep;
use crate::prune::{CacheLimits, PinSettings, PruneBy, PrunePolicy};

/// After how long images are pruned if nobody says, as in the reference server.
const PRUNE_AFTER: Duration = Duration::from_secs(30 * 86_400);
/// How often that is looked for if nobody says.
const PRUNE_EVERY: Duration = Duration::from_secs(86_400);
/// What `pruneConfig.count` is for no limit.
const NO_LIMIT: i64 = -1;

/// How the cache is kept within bounds.
pub(super) fn upkeep(file: &File) -> Result<Upkeep, ConfigError> {
    Ok(Upkeep { room: room(file)?, pins: pins(file), prune: prune(file)? })
}

/// `cacheSize` and `freeSpace`.
fn room(file: &File) -> Result<CacheLimits, ConfigError> {
    let cap_bytes = file.cache_size.as_ref().map(|size| size.0.0);
    if cap_bytes == Some(0) {
        // Elsewhere it means no bound; here it would cost the whole cache.
        let reason = "0 would keep nothing; without the key there is no bound".into();
        return Err(ConfigError::Value { key: "cacheSize", reason });
    }
    Ok(CacheLimits { cap_bytes, floor: file.free_space.as_ref().map(|free_space| free_space.0.0) })
}

/// `pin` and `pinLists`.
fn pins(file: &File) -> PinSettings {
    PinSettings {
        pins: file.pin.iter().flatten().map(|pin| pin.0.clone()).collect(),
        own: None,
        lists: file.pin_lists.clone().unwrap_or_default(),
    }
}

/// `pruneConfig`, if it is enabled.
fn prune(file: &File) -> Result<Option<PrunePolicy>, ConfigError> {
    let Some(entry) = file.prune_config.as_ref().filter(|entry| entry.enabled == Some(true)) else {
        return Ok(None);
    };
    let span =
        |given: &Option<Text<Span>>, default| given.as_ref().map_or(default, |span| span.0.0);
    let every = span(&entry.frequency, PRUNE_EVERY);
    if every.is_zero() {
        let reason = "0 would prune all the time; 1d is once a day".into();
        return Err(ConfigError::Value { key: "pruneConfig.frequency", reason });
    }
    let count = match entry.count.unwrap_or(NO_LIMIT) {
        NO_LIMIT => None,
        count => Some(usize::try_from(count).map_err(|_| ConfigError::Value {
            key: "pruneConfig.count",
            reason: format!("{count} is neither a number of images nor -1, which is no limit"),
        })?),
    };
    let by = match entry.by.unwrap_or(PruneByName::Accessed) {
        PruneByName::Accessed => PruneBy::Accessed,
        PruneByName::Created => PruneBy::Created,
    };
    let duration = span(&entry.duration, PRUNE_AFTER);
    let is_dry_run = entry.dry_run.unwrap_or(false);
    Ok(Some(PrunePolicy { by, duration, every, count, is_dry_run }))
}

/// `management`, `health` and `metrics`: one listener for each address.
pub(super) fn management(
    file: &File,
    over: &Overrides,
    serving: SocketAddr,
) -> Result<ManagementSettings, ConfigError> {
    let mut listeners: Vec<ManagementListener> = Vec::new();
    let mut add = |key: &'static str, address: SocketAddr, scope: Scope| {
        if collide(address, serving) {
            return Err(ConfigError::SamePort { keys: ["port", key], port: serving.port() });
        }
        match listeners.iter_mut().find(|each| collide(each.address, address)) {
            Some(same) if same.address == address => same.scope = same.scope.and(scope),
            // `health` and `metrics` have one address, so it can only be the other one.
            Some(_) => {
                let keys = ["management.port", key];
                return Err(ConfigError::SamePort { keys, port: address.port() });
            }
            None => listeners.push(ManagementListener { address, scope }),
        }
        Ok(())
    };
    if let Some(entry) = &file.management {
        // What can be read there is for who is on the machine, unless somebody says otherwise.
        let host = entry.host.as_ref().map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |host| host.0);
        add("management.port", SocketAddr::new(host, entry.port.0.0), Scope::Everything)?;
    }
    let health = over.health.or(file.health.as_ref().map(|port| port.0.0));
    let metrics = over.metrics.or(file.metrics.as_ref().map(|port| port.0.0));
    let others = [("health", health, Scope::Health), ("metrics", metrics, Scope::Metrics)];
    for (key, port, scope) in others {
        if let Some(port) = port {
            add(key, SocketAddr::new(serving.ip(), port), scope)?;
        }
    }
    let token_file = file.management.as_ref().and_then(|entry| entry.token_file.clone());
    Ok(ManagementSettings { listeners, token_file })
}

/// Whether no two sockets can listen on these. Port 0 is any that is free.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let is_any = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() != 0 && one.port() == other.port() && (is_any || one.ip() == other.ip())
}
