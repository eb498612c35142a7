//! From a configuration file and flags to validated [`Settings`], at start and whenever the file changes.
//!
//! This module knows the settings of all other modules, and none of them knows this one: the rest of the
//! program reads no flags, files or environment variables. Errors name file, line and column, and what is
//! allowed.
//!
//! How a value gets from the file to the module that uses it:
//!
//! 1. `file.rs` declares every key once: name, type, default, documentation, flag, and whether a reload
//!    applies it. `section!` (`keys.rs`) derives from a declaration: the parser and its check for unknown
//!    keys, the output of `config show`, the comparison of two configurations, and the generated parts of
//!    `docs/configuration.md` and of the chart's schema, which a test compares with the declarations.
//! 2. [`load`] parses the file, sets the keys for which a flag was given, and moves what a registry's entry
//!    says about its only endpoint to that endpoint. The result is the `File` with every default filled in.
//! 3. `build` turns this file into the [`Settings`] of the modules, and refuses contradictions. The file
//!    stays part of the settings, so `config show` prints it and a reload compares it key by key.
//!
//! So a new key needs its declaration, the line that passes it on in step 3, and a test of what it does.

mod access;
mod auth;
mod aws;
mod clients;
mod environment;
mod error;
mod events;
mod file;
mod freshness;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod image_sync;
mod keys;
mod maintenance;
mod number;
mod object_store;
mod oidc;
mod overrides;
mod parse;
mod registry;
mod suggestion;
#[cfg(test)]
mod tests;
mod value;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;

use crate::api::Naming;
use crate::cache::PrefetchOnHead;
use crate::image_sync::SyncEntry;
use crate::introduction::Introduction;
use crate::oci::{Choice, Platform, PlatformError, Platforms, Upstream};
use crate::upstream::{
    Bucket, ObjectStoreSettings, ProxySettings, Registries, Timeouts, UnlistedPorts,
    UnlistedRegistries,
};
use crate::{api, cache, hello, http, store, upstream, users};

pub use error::ConfigError;
pub use events::EventSettings;
pub use number::{Count, Port, Timeout};
pub use object_store::{TierSettings, check_bucket, prefix as bucket_prefix};
pub use overrides::Overrides;
pub use suggestion::closest;
pub use value::{Interface, LogFormat, LogLevel, ParseValueError};

use file::{DrainName, File, OnHead, RegistryEntry, Unlisted};
use keys::{Applies, Section};
use object_store::ObjectStoreEntry;
use value::{Rate, Text};

/// Parses a rate such as `50MB`, in bytes per second.
///
/// # Errors
/// The reason, with what is allowed.
pub fn parse_rate(text: &str) -> Result<NonZeroU64, ParseValueError> {
    text.parse::<Rate>().map(|rate| rate.0)
}

/// The effective settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What is logged.
    pub log_level: LogLevel,
    /// How log lines are formatted.
    pub log_format: LogFormat,
    /// The log file; standard error if `None`.
    pub log_file: Option<PathBuf>,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Where to serve probes, metrics and the management API.
    pub management: api::ManagementSettings,
    /// The cache directory.
    pub store: store::Settings,
    /// The bucket, and how it is used.
    pub bucket: Option<(ObjectStoreSettings, TierSettings)>,
    /// Where events are sent, and which.
    pub events: Option<EventSettings>,
    /// How the cache decides.
    pub cache: cache::Settings,
    /// Whether downloads that an earlier process left unfinished are resumed at start.
    pub resume_on_start: bool,
    /// The registries.
    pub upstream: upstream::Settings,
    /// The server for clients.
    pub http: http::Settings,
    /// TLS for clients, if enabled.
    pub tls: Option<http::ServerTlsSettings>,
    /// Which clients are served, by user and password; all of them if this and `oidc` are `None`.
    pub access: Option<users::Settings>,
    /// Whose tokens are accepted as passwords.
    pub oidc: Option<crate::oidc::Settings>,
    /// The names of this server that clients may use; any if empty.
    pub allowed_hosts: Vec<api::HostName>,
    /// How requests name their upstream.
    pub naming: Naming,
    /// When all blobs are verified; never if `None`.
    pub scrub: Option<cache::ScrubPolicy>,
    /// Lists of images for `larder load` without arguments.
    pub image_file: Option<String>,
    /// A list of images that the server loads when it starts.
    pub preload_images: Option<PathBuf>,
    /// The images that are kept present on a schedule.
    pub sync: Vec<SyncEntry>,
    /// Which children of an index `larder load` fetches without `--platform`.
    pub load_platforms: Platforms,
    /// Keys in the file that have no effect, for a warning at start.
    pub without_effect: Vec<&'static str>,
    /// The keys from which all of the above was built.
    keys: File,
}

/// The keys whose values differ between two configurations.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Differences {
    /// The keys that a running server applies.
    pub at_once: Vec<&'static str>,
    /// The keys that take effect after a restart.
    pub after_restart: Vec<&'static str>,
}

impl Settings {
    /// The registries, with the bucket. Each call creates another client of the bucket.
    pub fn registries(&self) -> Registries {
        let client = |(settings, _): &(ObjectStoreSettings, TierSettings)| {
            Bucket::new(settings, &Arc::new(self.upstream.proxies.clone()))
        };
        let bucket = self.bucket.as_ref().map(client);
        Registries::new(upstream::Settings { bucket, ..self.upstream.clone() })
    }

    /// The keys whose values differ in `new`.
    pub fn differences(&self, new: &Settings) -> Differences {
        let mut differences = Differences::default();
        let is_toggled = self.tls.is_some() != new.tls.is_some();
        for (key, applies) in self.keys.changed(&new.keys) {
            match applies {
                Applies::AtOnce => differences.at_once.push(key),
                Applies::AtOnceUnlessToggled if !is_toggled => differences.at_once.push(key),
                Applies::AtOnceUnlessToggled | Applies::Restart => {
                    differences.after_restart.push(key);
                }
                Applies::Commands => {}
            }
        }
        differences
    }

    /// All keys as YAML, defaults included, with `***` for secrets. Proxies are not included: they are set in
    /// the environment.
    pub fn to_yaml(&self) -> String {
        // YAML can represent all of these types.
        let mut text =
            serde_saphyr::to_string(&self.keys).unwrap_or_else(|error| format!("# {error}\n"));
        text.push_str("# Not set, with what applies:\n");
        for (key, words) in self.keys.unset() {
            text.push_str(&format!("# {key}: {}\n", words.replace('`', "")));
        }
        text
    }

    /// The settings that all peers should share, for comparison. `None` without `peers`.
    pub fn introduction(&self) -> Option<Introduction> {
        self.keys.peers.as_ref()?;
        // A map, since YAML has represented it.
        let keys = serde_json::to_value(&self.keys).unwrap_or_default();
        let text = |key: &&'static str| {
            let value = keys.get(*key).unwrap_or(&serde_json::Value::Null);
            (*key, value.to_string())
        };
        Some(Introduction::new(file::SHARED_BY_PEERS.iter().map(text)))
    }

    /// Keeps the effect of `helloWorld` as it was at start, when its image was added to the cache or not.
    pub fn keep_hello_world_of(&mut self, started: &Settings) {
        self.cache.freshness.own.clone_from(&started.cache.freshness.own);
        self.cache.rules.own.clone_from(&started.cache.rules.own);
        self.cache.maintenance.pins.own.clone_from(&started.cache.maintenance.pins.own);
    }
}

/// Reads the file, if there is one, applies the flags, and adds the proxies of the environment.
///
/// # Errors
/// [`ConfigError`] for a file that cannot be read, does not parse, or contradicts itself, and for an invalid
/// proxy.
pub fn load(overrides: Overrides) -> Result<Settings, ConfigError> {
    let file = match &overrides.config_file {
        Some(path) => parse::read(path)?,
        None => file::all_defaults(),
    };
    let mut settings = build(file, overrides)?;
    settings.upstream.proxies = environment::proxies(|name| std::env::var_os(name))?;
    Ok(settings)
}

fn build(mut file: File, over: Overrides) -> Result<Settings, ConfigError> {
    over.apply(&mut file);
    let mut names: Vec<&Upstream> = file.registries.iter().map(|entry| &entry.name.0).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(ConfigError::Twice { name: twice[0].to_string() });
    }
    file.registries.iter_mut().try_for_each(registry::move_to_endpoints)?;
    registry::set_expiries(&mut file.parents);
    let auth_of_peers = file.peers.iter_mut().filter_map(|peers| peers.auth.as_mut());
    auth_of_peers.for_each(auth::set_expiry);
    let listen = SocketAddr::new(file.host.0.0, file.port.0);
    let naming = Naming {
        default_upstream: file.default_ns.as_ref().map(|ns| ns.0.clone()),
        aliases: aliases(&file.registries)?,
    };
    let load_platforms = load_platforms(&file)?;
    Ok(Settings {
        log_level: file.log_level.0,
        log_format: file.log_format.0,
        log_file: file.log_file.clone(),
        listen,
        management: maintenance::management(&file, listen)?,
        store: store::Settings { root: file.image_path.clone(), fsync: file.fsync },
        bucket: file.object_store.as_ref().map(bucket).transpose()?,
        events: file.events.as_ref().map(events::settings).transpose()?,
        cache: cache_settings(&file)?,
        resume_on_start: file.resume_on_start,
        upstream: upstream_settings(&file)?,
        http: http::Settings {
            workers: count(file.workers),
            max_connections: count(file.max_connections),
            drain_timeout: file.drain_timeout.0.0,
            drain: match file.drain {
                DrainName::Refuse => http::Drain::Refuse,
                DrainName::Serve => http::Drain::Serve,
                DrainName::Handover => http::Drain::Handover,
            },
            ..http::Settings::default()
        },
        tls: clients::tls(&file)?,
        access: clients::access(&file),
        oidc: oidc::settings(&file)?,
        allowed_hosts: clients::allowed_hosts(&file),
        sync: image_sync::entries(&file, &naming, &load_platforms)?,
        naming,
        scrub: (!file.scrub.every.0.0.is_zero()).then_some(cache::ScrubPolicy {
            every: file.scrub.every.0.0,
            rate: file.scrub.rate.0.0,
        }),
        image_file: file.image_file.clone(),
        preload_images: file.preload_images.clone(),
        load_platforms,
        without_effect: clients::without_effect(&file),
        keys: file,
    })
}

fn bucket(entry: &ObjectStoreEntry) -> Result<(ObjectStoreSettings, TierSettings), ConfigError> {
    Ok((object_store::bucket(entry)?, object_store::tier(entry)?))
}

fn cache_settings(file: &File) -> Result<cache::Settings, ConfigError> {
    let limited = file.registries.iter().filter_map(|entry| Some((entry, entry.max_downloads?)));
    let mut settings = cache::Settings {
        freshness: freshness::policy(file)?,
        revalidate_timeout: file.revalidate_timeout.0.0,
        negative_ttl: file.negative_ttl.0.0,
        prefetch: prefetch(file)?,
        maintenance: maintenance::maintenance(file)?,
        rules: cache::RepositoryRules {
            allow: file.allow.iter().map(|rule| rule.0.clone()).collect(),
            deny: file.deny.iter().map(|rule| rule.0.clone()).collect(),
            own: None,
        },
        access: access::policy(file)?,
        air_gapped: file.air_gapped,
        minimum_rate: file.minimum_rate.0.0,
        blob_fetchers: count(file.max_downloads),
        connections: cache::ConnectionPolicy {
            max: count(file.connections_per_blob),
            ..cache::ConnectionPolicy::default()
        },
        downloads_per_upstream: limited
            .map(|(entry, limit)| (entry.name.0.clone(), count(limit)))
            .collect(),
        ..cache::Settings::default()
    };
    if file.hello_world {
        // No registry is contacted for the image, and eviction must not remove it.
        let image = hello::reference();
        settings.freshness.own = Some(image.clone());
        settings.rules.own = Some(image.clone());
        settings.maintenance.pins.own = Some(Choice::Exact(image));
    }
    Ok(settings)
}

/// Which children of an index are loaded: those of `os` and `arch`, or else of `platforms`, or else this
/// machine's. The default `os` is Linux, since containers are Linux's unless configured otherwise.
fn load_platforms(file: &File) -> Result<Platforms, ConfigError> {
    let configured = configured_platforms(file);
    if file.os.is_none() && file.arch.is_none() && !configured.is_none() {
        return Ok(configured);
    }
    Ok(Platforms::Only(vec![platform(file)?]))
}

/// `os` and `arch`, or else this machine's.
fn platform(file: &File) -> Result<Platform, ConfigError> {
    let own = Platform::of_this_machine();
    let (os, arch) = (file.os.as_deref(), file.arch.as_deref());
    let platform = format!("{}/{}", os.unwrap_or(own.os()), arch.unwrap_or(own.architecture()));
    platform.parse().map_err(|error: PlatformError| ConfigError::Value {
        key: "os and arch",
        reason: error.to_string(),
    })
}

fn configured_platforms(file: &File) -> Platforms {
    let platforms: Option<Vec<Platform>> =
        file.platforms.iter().map(|each| each.0.0.clone()).collect();
    platforms.map_or(Platforms::All, Platforms::Only)
}

fn prefetch(file: &File) -> Result<cache::Prefetch, ConfigError> {
    Ok(cache::Prefetch {
        blobs: file.prefetch,
        platforms: configured_platforms(file),
        referrers: file.prefetch_referrers,
        on_head: match file.prefetch_on_head {
            OnHead::Runtimes => PrefetchOnHead::Runtimes,
            OnHead::Always => PrefetchOnHead::Always,
            OnHead::Never => PrefetchOnHead::Never,
        },
        default_platform: platform(file)?,
    })
}

fn upstream_settings(file: &File) -> Result<upstream::Settings, ConfigError> {
    let mut timeouts = Timeouts::default();
    if let Some(Text(Timeout(headers))) = file.pull_timeout {
        timeouts.headers = headers;
        timeouts.metadata = timeouts.headers;
        timeouts.probe = timeouts.probe.min(timeouts.headers);
    }
    if file.unlisted_ports.iter().flatten().any(|port| port.0 == 0) {
        let reason = "0 is not a port of a registry (1 to 65535)".into();
        return Err(ConfigError::Value { key: "unlistedPorts", reason });
    }
    Ok(upstream::Settings {
        peers: file.peers.as_ref().map(registry::peers).transpose()?,
        parents: registry::parents(&file.parents)?,
        registries: file.registries.iter().map(registry::settings).collect::<Result<_, _>>()?,
        unlisted: match file.unlisted_registries {
            Unlisted::Allow => UnlistedRegistries::Allow,
            Unlisted::Deny => UnlistedRegistries::Deny,
        },
        unlisted_ports: UnlistedPorts::new(file.unlisted_ports.iter().flatten().map(|port| port.0)),
        timeouts,
        proxies: ProxySettings::default(),
        ..upstream::Settings::default()
    })
}

fn count(Count(number): Count) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// The aliases of all registries, checked against each other and against the names.
fn aliases(registries: &[RegistryEntry]) -> Result<HashMap<String, Upstream>, ConfigError> {
    let mut aliases: HashMap<String, Upstream> = HashMap::new();
    for entry in registries {
        for alias in &entry.aliases {
            let refuse = |reason| Err(ConfigError::Alias { alias: alias.clone(), reason });
            let alias_key = alias.to_ascii_lowercase();
            let is_legal = !alias_key.is_empty()
                && alias_key
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte));
            if !is_legal {
                return refuse("may have only letters, digits, '.', '-', '_' and ':'");
            }
            if registries.iter().any(|other| other.name.0.as_str() == alias_key) {
                return refuse("is the name of a listed registry");
            }
            if aliases.insert(alias_key, entry.name.0.clone()).is_some() {
                return refuse("is given twice");
            }
        }
    }
    Ok(aliases)
}
