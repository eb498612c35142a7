//! The file as it is written: every key of the reference server and ours, all optional.
//!
//! `docs/configuration.md` is the reference for users; a test keeps the two in step.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, de};

use super::auth::{Helper, Prefix, ProviderOptions, TokenProvider};
use super::value::{
    EndpointUrl, FreeSpaceText, LogLevel, PlatformText, Rate, Size, Span, Text, TtlText, Whole,
};
use crate::api::HostName;
use crate::oci::{Choice, Pattern, Upstream};
use crate::upstream::{Scheme, UnlistedRegistries};

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct File {
    pub(super) image_path: Option<PathBuf>,
    pub(super) log_level: Option<Text<LogLevel>>,
    pub(super) log_file: Option<PathBuf>,
    pub(super) preload_images: Option<PathBuf>,
    pub(super) image_file: Option<String>,
    pub(super) port: Option<Text<Whole<u16>>>,
    pub(super) host: Option<Text<IpAddr>>,
    pub(super) os: Option<String>,
    pub(super) arch: Option<String>,
    /// Milliseconds, as in the reference.
    pub(super) pull_timeout: Option<Text<Whole<u32>>>,
    pub(super) always_pull_latest: Option<bool>,
    pub(super) air_gapped: Option<bool>,
    pub(super) hello_world: Option<bool>,
    pub(super) default_ns: Option<Text<Upstream>>,
    pub(super) health: Option<Text<Whole<u16>>>,
    pub(super) metrics: Option<Text<Whole<u16>>>,
    pub(super) registries: Option<Vec<RegistryEntry>>,
    pub(super) prune_config: Option<PruneEntry>,
    pub(super) server_tls_config: Option<ServerTlsEntry>,
    pub(super) server_auth_config: Option<ServerAuthEntry>,
    pub(super) allowed_hosts: Option<Vec<Text<HostName>>>,
    pub(super) tag_ttl: Option<Text<TtlText>>,
    pub(super) tags: Option<Vec<TagRuleEntry>>,
    pub(super) stale_while_revalidate: Option<Text<Span>>,
    pub(super) on_upstream_delete: Option<OnDelete>,
    pub(super) revalidate_timeout: Option<Text<Span>>,
    pub(super) negative_ttl: Option<Text<Span>>,
    pub(super) unlisted_registries: Option<Unlisted>,
    pub(super) unlisted_ports: Option<Vec<Text<Whole<u16>>>>,
    pub(super) prefetch: Option<bool>,
    pub(super) platforms: Option<Vec<Text<PlatformText>>>,
    pub(super) prefetch_referrers: Option<bool>,
    pub(super) scrub: Option<ScrubEntry>,
    pub(super) workers: Option<Text<Whole<u32>>>,
    pub(super) cache_size: Option<Text<Size>>,
    pub(super) free_space: Option<Text<FreeSpaceText>>,
    pub(super) pin: Option<Vec<Text<Choice>>>,
    pub(super) pin_lists: Option<Vec<PathBuf>>,
    pub(super) management: Option<ManagementEntry>,
    pub(super) max_connections: Option<Text<Whole<u32>>>,
    pub(super) max_downloads: Option<Text<Whole<u32>>>,
    pub(super) minimum_rate: Option<Text<Size>>,
    pub(super) resume_on_start: Option<bool>,
    pub(super) drain_timeout: Option<Text<Span>>,
    pub(super) fsync: Option<bool>,
}

/// An entry of `tags`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct TagRuleEntry {
    pub(super) pattern: Text<Pattern>,
    pub(super) tag_ttl: Text<TtlText>,
}

/// `scrub`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct ScrubEntry {
    pub(super) every: Option<Text<Span>>,
    pub(super) rate: Option<Text<Rate>>,
}

/// `onUpstreamDelete`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum OnDelete {
    Keep,
    Drop,
}

/// An entry of `registries`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RegistryEntry {
    pub(super) name: Text<Upstream>,
    #[serde(default, rename = "description")]
    pub(super) _description: Option<String>,
    #[serde(default)]
    pub(super) scheme: Option<SchemeName>,
    #[serde(default)]
    pub(super) endpoints: Option<Vec<EndpointEntry>>,
    #[serde(default)]
    pub(super) aliases: Option<Vec<String>>,
    #[serde(default)]
    pub(super) auth: Option<AuthEntry>,
    #[serde(default)]
    pub(super) repositories: Option<Vec<RepositoriesEntry>>,
    #[serde(default)]
    pub(super) tls: Option<TlsEntry>,
    #[serde(default)]
    pub(super) tag_ttl: Option<Text<TtlText>>,
    #[serde(default)]
    pub(super) tags: Option<Vec<TagRuleEntry>>,
    #[serde(default)]
    pub(super) rate_limit: Option<Text<Rate>>,
    #[serde(default)]
    pub(super) max_downloads: Option<Text<Whole<u32>>>,
}

/// An entry of `registries[].endpoints`: a URL, or a URL with what belongs to it.
#[derive(Debug)]
pub(super) struct EndpointEntry {
    pub(super) url: EndpointUrl,
    pub(super) auth: Option<AuthEntry>,
    pub(super) repositories: Option<Vec<RepositoriesEntry>>,
    pub(super) tls: Option<TlsEntry>,
}

/// The longer form of an entry of `registries[].endpoints`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct EndpointMap {
    url: Text<EndpointUrl>,
    #[serde(default)]
    auth: Option<AuthEntry>,
    #[serde(default)]
    repositories: Option<Vec<RepositoriesEntry>>,
    #[serde(default)]
    tls: Option<TlsEntry>,
}

impl<'de> Deserialize<'de> for EndpointEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<EndpointEntry, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = EndpointEntry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a URL, or url with auth and tls")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<EndpointEntry, E> {
                let url = text.parse().map_err(E::custom)?;
                Ok(EndpointEntry { url, auth: None, repositories: None, tls: None })
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<EndpointEntry, A::Error> {
                let map = EndpointMap::deserialize(de::value::MapAccessDeserializer::new(map))?;
                let EndpointMap { url, auth, repositories, tls } = map;
                Ok(EndpointEntry { url: url.0, auth, repositories, tls })
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// An entry of `registries[].repositories`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RepositoriesEntry {
    pub(super) prefix: Text<Prefix>,
    pub(super) auth: AuthEntry,
}

/// `registries[].scheme`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum SchemeName {
    Http,
    Https,
}

impl From<SchemeName> for Scheme {
    fn from(name: SchemeName) -> Scheme {
        match name {
            SchemeName::Http => Scheme::Http,
            SchemeName::Https => Scheme::Https,
        }
    }
}

/// `unlistedRegistries`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Unlisted {
    Allow,
    Deny,
}

impl From<Unlisted> for UnlistedRegistries {
    fn from(unlisted: Unlisted) -> UnlistedRegistries {
        match unlisted {
            Unlisted::Allow => UnlistedRegistries::Allow,
            Unlisted::Deny => UnlistedRegistries::Deny,
        }
    }
}

/// `registries[].auth`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[derive(Default)]
pub(super) struct AuthEntry {
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) password_from_env: Option<String>,
    pub(super) password_file: Option<PathBuf>,
    pub(super) docker_config: Option<PathBuf>,
    pub(super) credential_helper: Option<Text<Helper>>,
    pub(super) expiry: Option<Text<Span>>,
    pub(super) token: Option<TokenEntry>,
}

/// `registries[].auth.token`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct TokenEntry {
    pub(super) provider: Option<Text<TokenProvider>>,
    pub(super) provider_opts: Option<Text<ProviderOptions>>,
    pub(super) expiry: Option<Text<Span>>,
    #[serde(rename = "static")]
    pub(super) fixed: Option<String>,
}

/// `registries[].tls`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct TlsEntry {
    pub(super) ca: Option<PathBuf>,
    pub(super) cert: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
    pub(super) insecure_skip_verify: Option<bool>,
}

/// `pruneConfig`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct PruneEntry {
    pub(super) enabled: Option<bool>,
    pub(super) duration: Option<Text<Span>>,
    #[serde(rename = "type")]
    pub(super) by: Option<PruneByName>,
    pub(super) frequency: Option<Text<Span>>,
    pub(super) count: Option<i64>,
    pub(super) dry_run: Option<bool>,
}

/// `pruneConfig.type`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum PruneByName {
    Accessed,
    Created,
}

/// `management`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ManagementEntry {
    pub(super) port: Text<Whole<u16>>,
    #[serde(default)]
    pub(super) host: Option<Text<IpAddr>>,
    #[serde(default)]
    pub(super) token_file: Option<PathBuf>,
}

/// `serverTlsConfig`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct ServerTlsEntry {
    pub(super) cert: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
    pub(super) ca: Option<PathBuf>,
    pub(super) client_auth: Option<ClientAuthName>,
}

/// What `serverTlsConfig.clientAuth` may say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum ClientAuthName {
    None,
    Verify,
}

/// `serverAuthConfig`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct ServerAuthEntry {
    pub(super) htpasswd: Option<PathBuf>,
}

impl File {
    /// Keys that are taken from a reference server's file and have no effect here yet, harmlessly.
    pub(super) fn without_effect(&self) -> Vec<&'static str> {
        let is_ca_unused = self.server_tls_config.as_ref().is_some_and(|entry| {
            entry.ca.is_some() && entry.client_auth != Some(ClientAuthName::Verify)
        });
        let all = [("serverTlsConfig.ca (without clientAuth: verify)", is_ca_unused)];
        all.into_iter().filter(|(_, is_set)| *is_set).map(|(key, _)| key).collect()
    }
}
