//! `events`: which events are sent, and where.

use std::path::PathBuf;

use super::file::TlsEntry;
use super::keys::{Comparison, Section, Unset, Value, section};
#[cfg(test)]
use super::keys::{Key, Map, Shape};
use super::value::Text;
use super::{ConfigError, registry};
use crate::events::{EventType, TYPES};
use crate::upstream::{WebhookSettings, WebhookUrl};

section! {
    /// `events`.
    EventsEntry {
        /// A URL that receives each event with POST, as a CloudEvent in JSON.
        "webhook" webhook: Text<WebhookUrl>;
        /// Which events: `tag-moved`, `tag-held`, `image-complete`, `image-evicted`, `damaged`, `registry-down`,
        /// `registry-up` and `sync-failed`.
        "types" types: Vec<Text<EventType>> = vec![], default "all";
        /// A file with a token for `Authorization: Bearer`, read for each event.
        "tokenFile" token_file: Option<PathBuf> = None;
        /// TLS to the webhook.
        "tls" tls: Option<TlsEntry> = None;
    }
}

/// The webhook of `events`.
#[derive(Debug, Clone)]
pub struct EventSettings {
    /// Where.
    pub webhook: WebhookSettings,
    /// Which.
    pub types: Vec<EventType>,
}

/// # Errors
/// [`ConfigError::Value`] if the entry contradicts itself.
pub(super) fn settings(entry: &EventsEntry) -> Result<EventSettings, ConfigError> {
    let refuse = |reason: String| ConfigError::Value { key: "events", reason };
    let tls = entry.tls.as_ref().map(registry::tls_settings).transpose().map_err(refuse)?;
    let (url, token_file) = (entry.webhook.0.clone(), entry.token_file.clone());
    let webhook = WebhookSettings { url, token_file, tls: tls.unwrap_or_default() };
    let types = match entry.types.is_empty() {
        true => TYPES.iter().map(|(each, _)| *each).collect(),
        false => entry.types.iter().map(|each| each.0).collect(),
    };
    Ok(EventSettings { webhook, types })
}
