//! Delivers events to the webhook of `events`, as CloudEvents 1.0 in JSON (structured mode of the HTTP binding).

use std::sync::Arc;

use serde_json::json;

use super::CommandError;
use crate::api::event_document;
use crate::cache::Cache;
use crate::config::Settings;
use crate::events::{Delivery, Post, PostError, RecordedEvent};
use crate::upstream::{UpstreamErrorKind, Webhook};
use crate::via;

/// The media type of an event.
const CONTENT_TYPE: &str = "application/cloudevents+json";

/// Starts the delivery, if a webhook is configured.
///
/// # Errors
/// [`CommandError::System`] if no thread can be started.
pub(super) fn start(settings: &Settings, cache: &Cache) -> Result<Option<Delivery>, CommandError> {
    let Some(events) = &settings.events else { return Ok(None) };
    let proxies = Arc::new(settings.upstream.proxies.clone());
    let webhook = Webhook::new(events.webhook.clone(), &proxies);
    let source = format!("/larder/{}", rustix::system::uname().nodename().to_string_lossy());
    let post = Box::new(WebhookPost { webhook, source });
    let started = Delivery::start(cache.events(), events.types.clone(), post);
    let failed = |source| CommandError::System { doing: "deliver events", source };
    started.map(Some).map_err(failed)
}

struct WebhookPost {
    webhook: Webhook,
    /// Names this server.
    source: String,
}

impl Post for WebhookPost {
    fn post(&self, event: &RecordedEvent) -> Result<(), PostError> {
        let mut document = event_document(event);
        let mut cloud_event = json!({
            "specversion": "1.0",
            "id": format!("{}/{}", via::instance(), event.number),
            "source": self.source,
            "type": format!("larder.{}", event.event.is),
            "subject": event.event.subject,
            "time": document["time"].take(),
            "datacontenttype": "application/json",
        });
        cloud_event["data"] = document["details"].take();
        let sent = self.webhook.post(CONTENT_TYPE, cloud_event.to_string().as_bytes());
        sent.map_err(|error| PostError {
            reason: error.to_string(),
            is_temporary: match error.kind() {
                UpstreamErrorKind::Status { status } => {
                    matches!(status, 408 | 425 | 429) || *status >= 500
                }
                // The network may come back, and a certificate or a token may be replaced.
                _ => true,
            },
        })
    }
}
