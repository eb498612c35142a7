//! Records events: what the store reports, and registries that go down and come back.
//!
//! Registries are compared at intervals and not in the circuit breakers: what recovers at once is not news.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use super::core::Core;
use super::{Cache, Clock, lock};
use crate::events::{Event, EventType, Events};
use crate::oci::Upstream;
use crate::store::{Store, StoreEvent};
use crate::units::duration;
use crate::upstream::{BreakerState, EndpointStatus, Standing, UpstreamStatus};

impl Cache {
    /// The events of this process.
    pub fn events(&self) -> &Arc<Events> {
        &self.core().events
    }

    /// Records which registries have gone down or come back since the last call.
    pub fn record_registry_changes(&self) {
        self.core().registry_watch.tick(self.core());
    }
}

/// Records what happens in the store from now on.
pub(super) fn record_events_of(store: &Store, events: &Arc<Events>, clock: &Clock) {
    let (events, clock) = (Arc::clone(events), Arc::clone(clock));
    store.set_observer(move |event| events.record(clock(), of_store(event)));
}

fn of_store(event: &StoreEvent<'_>) -> Event {
    match event {
        StoreEvent::TagMoved { name, tag, from, to } => {
            let image = format!("{name}:{tag}");
            log::info!(image:% = image, from:% = from, to:% = to; "tag moved");
            Event::new(EventType::TagMoved, image).with("from", from).with("to", to)
        }
        StoreEvent::TagHeld { name, tag, serves, held } => {
            let image = format!("{name}:{tag}");
            log::warn!(
                image:% = image, from:% = serves, to:% = held;
                "tag moved at the registry; the previous manifest is served (tags[].hold)"
            );
            Event::new(EventType::TagHeld, image).with("from", serves).with("to", held)
        }
        StoreEvent::Damaged { what, reason } => {
            Event::new(EventType::Damaged, what).with("reason", reason)
        }
        StoreEvent::Evicted { name, reference } => {
            Event::new(EventType::ImageEvicted, name.with(reference))
        }
    }
}

/// How often the registries are compared.
const COMPARED_EVERY: Duration = Duration::from_secs(2);

/// The listed registries that are down, since when.
#[derive(Default)]
struct Watched {
    down: HashMap<Upstream, SystemTime>,
    /// When they were last compared.
    compared: Option<Instant>,
}

/// The registries of this process. Locked while they are compared.
#[derive(Default)]
pub(super) struct RegistryWatch(Mutex<Watched>);

impl RegistryWatch {
    /// Records the changes since the last call.
    pub(super) fn tick(&self, core: &Core) {
        let mut watched = lock(&self.0);
        if watched.compared.is_some_and(|compared| compared.elapsed() < COMPARED_EVERY) {
            return;
        }
        watched.compared = Some(Instant::now());
        let is_listed = |status: &UpstreamStatus| {
            core.sources.standing(&status.upstream).is_ok_and(|is| is == Standing::Listed)
        };
        let statuses: Vec<_> = core.sources.statuses().into_iter().filter(is_listed).collect();
        let now = core.now();
        for event in changes(&mut watched.down, &statuses, now) {
            core.events.record(now, event);
        }
    }
}

/// Compares the statuses with the registries that were down. One without endpoints was removed from the configuration.
fn changes(
    down: &mut HashMap<Upstream, SystemTime>,
    statuses: &[UpstreamStatus],
    now: SystemTime,
) -> Vec<Event> {
    let mut events = Vec::new();
    for UpstreamStatus { upstream, endpoints } in statuses {
        let is_closed = |endpoint: &EndpointStatus| endpoint.breaker == BreakerState::Closed;
        let is_down = !endpoints.is_empty() && !endpoints.iter().any(is_closed);
        match (down.get(upstream).copied(), is_down) {
            (None, true) => {
                let reason = endpoints.iter().find_map(|each| each.last_failure.clone());
                let event = Event::new(EventType::RegistryDown, upstream);
                events.push(event.with("reason", reason.unwrap_or_default()));
                down.insert(upstream.clone(), now);
            }
            (Some(since), false) => {
                let outage = duration(now.duration_since(since).unwrap_or_default());
                events.push(Event::new(EventType::RegistryUp, upstream).with("after", outage));
                down.remove(upstream);
            }
            _ => {}
        }
    }
    down.retain(|upstream, _| statuses.iter().any(|status| status.upstream == *upstream));
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(upstream: &str, breakers: &[BreakerState]) -> UpstreamStatus {
        let endpoint = |breaker: &BreakerState| EndpointStatus {
            breaker: *breaker,
            last_failure: Some("it refuses connections".into()),
            ..EndpointStatus::default()
        };
        let endpoints = breakers.iter().map(endpoint).collect();
        UpstreamStatus { upstream: upstream.parse().unwrap(), endpoints }
    }

    #[test]
    fn registry_is_down_when_none_of_its_endpoints_is_used() {
        use BreakerState::{Closed, HalfOpen};
        let open = BreakerState::Open(Duration::from_secs(5));
        let (mut down, mut time) = (HashMap::new(), SystemTime::UNIX_EPOCH);
        for (statuses, expected) in [
            (vec![status("a.io", &[Closed]), status("b.io", &[])], ""),
            (vec![status("a.io", &[open, Closed])], ""),
            (
                vec![status("a.io", &[open, open])],
                "registry-down a.io reason: it refuses connections",
            ),
            (vec![status("a.io", &[open, HalfOpen])], ""),
            (vec![status("a.io", &[open, Closed])], "registry-up a.io after: 20 s"),
            (vec![status("a.io", &[open])], "registry-down a.io reason: it refuses connections"),
            // Removed from the configuration, and added again.
            (vec![], ""),
            (vec![status("a.io", &[Closed])], ""),
        ] {
            time += Duration::from_secs(10);
            let got = changes(&mut down, &statuses, time);
            let text = |event: &Event| {
                let (name, value) = &event.details[0];
                format!("{} {} {name}: {value}", event.is, event.subject)
            };
            assert_eq!(got.iter().map(text).collect::<Vec<_>>().join(", "), expected);
        }
    }
}
