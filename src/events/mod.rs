//! Events that operators want to hear about: kept in memory for the page, and delivered to a webhook.
//!
//! The same event is recorded once a minute, and each type has its own share of the memory: many
//! evictions, or images that a stranger moves, displace no event of another type.
//!
//! This module must not know who records events, and how they are sent.

mod delivery;

pub use delivery::{Delivery, Post, PostError};

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// How many events of each type are kept in memory. All together take at most 2 MB, and usually 100 KB.
const KEPT_OF_A_TYPE: usize = 64;
/// How many events wait for their delivery while the webhook does not respond.
const QUEUE: usize = 1024;
/// An event is not recorded again within this time.
const REPEATED_AFTER: Duration = Duration::from_secs(60);
/// The maximum length of a text in an event, in characters.
const TEXT_CHARS_MAX: usize = 500;

/// The types of events, with their names in the configuration and in the API.
pub const TYPES: [(EventType, &str); 8] = [
    (EventType::TagMoved, "tag-moved"),
    (EventType::TagHeld, "tag-held"),
    (EventType::ImageComplete, "image-complete"),
    (EventType::ImageEvicted, "image-evicted"),
    (EventType::Damaged, "damaged"),
    (EventType::RegistryDown, "registry-down"),
    (EventType::RegistryUp, "registry-up"),
    (EventType::SyncFailed, "sync-failed"),
];

/// The type of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventType {
    /// A tag refers to another manifest than before.
    TagMoved,
    /// A tag has moved at the registry, and the previous manifest is served until that is accepted (`tags[].hold`).
    TagHeld,
    /// An image was fetched completely.
    ImageComplete,
    /// An image was removed to free disk space.
    ImageEvicted,
    /// A file in the cache is damaged.
    Damaged,
    /// No endpoint of a listed registry can be used.
    RegistryDown,
    /// A registry that was down can be used again.
    RegistryUp,
    /// A run of `sync` did not load all of its images.
    SyncFailed,
}

impl EventType {
    /// The name in the configuration and in the API.
    pub fn as_str(self) -> &'static str {
        TYPES.iter().find(|(each, _)| *each == self).map_or("", |(_, name)| name)
    }
}

impl std::str::FromStr for EventType {
    type Err = String;

    fn from_str(text: &str) -> Result<EventType, String> {
        let found = TYPES.iter().find(|(_, name)| *name == text);
        found.map(|(each, _)| *each).ok_or_else(|| {
            let names: Vec<&str> = TYPES.iter().map(|(_, name)| *name).collect();
            format!("{text:?} is no type of event: use one of {}", names.join(", "))
        })
    }
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its type.
    pub is: EventType,
    /// What it is about: an image, a registry, a file.
    pub subject: String,
    /// The details, by name.
    pub details: Vec<(&'static str, String)>,
}

impl Event {
    /// An event without details.
    pub fn new(is: EventType, subject: impl fmt::Display) -> Event {
        Event { is, subject: shortened(subject), details: Vec::new() }
    }

    /// Adds a detail.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl fmt::Display) -> Event {
        self.details.push((name, shortened(value)));
        self
    }
}

fn shortened(value: impl fmt::Display) -> String {
    value.to_string().chars().take(TEXT_CHARS_MAX).collect()
}

/// An event, with its number since the start and its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedEvent {
    /// The first event has number 1.
    pub number: u64,
    /// When it was recorded.
    pub time: SystemTime,
    /// What has happened.
    pub event: Event,
}

/// The events of this process.
#[derive(Debug, Default)]
pub struct Events {
    /// The latest last. Locked to add one or to copy them.
    recent: Mutex<Recent>,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Recent {
    /// Where events of some types are delivered. Sending does not block.
    delivery: Option<(Vec<EventType>, SyncSender<RecordedEvent>)>,
    events: VecDeque<RecordedEvent>,
    recorded: u64,
    by_type: [u64; TYPES.len()],
}

impl Events {
    /// Records an event. Never blocks for longer than it takes to copy the recent ones.
    pub fn record(&self, now: SystemTime, event: Event) {
        let mut recent = self.recent();
        let is_repeated = |earlier: &RecordedEvent| {
            earlier.event == event
                && now.duration_since(earlier.time).is_ok_and(|age| age < REPEATED_AFTER)
        };
        if recent.events.iter().any(is_repeated) {
            return;
        }
        recent.recorded += 1;
        if let Some(at) = TYPES.iter().position(|(each, _)| *each == event.is) {
            recent.by_type[at] += 1;
        }
        let recorded = RecordedEvent { number: recent.recorded, time: now, event };
        let is_same_type = |earlier: &RecordedEvent| earlier.event.is == recorded.event.is;
        if recent.events.iter().filter(|each| is_same_type(each)).count() == KEPT_OF_A_TYPE
            && let Some(oldest) = recent.events.iter().position(is_same_type)
        {
            recent.events.remove(oldest);
        }
        recent.events.push_back(recorded.clone());
        // Under the lock, so that events are delivered in the order of their numbers.
        if let Some((types, queue)) = &recent.delivery
            && types.contains(&recorded.event.is)
            && let Err(TrySendError::Full(_)) = queue.try_send(recorded)
        {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The recent events, the latest first.
    pub fn recent_events(&self) -> Vec<RecordedEvent> {
        self.recent().events.iter().rev().cloned().collect()
    }

    /// How many events of each type were recorded since the start.
    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        let counts = self.recent().by_type;
        TYPES.iter().zip(counts).map(|((_, name), count)| (*name, count)).collect()
    }

    /// How many events were not delivered, because too many were waiting.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// The events of these types from now on, for delivery. A second call ends the first one's.
    pub fn subscribe(&self, types: Vec<EventType>) -> Receiver<RecordedEvent> {
        let (sender, receiver) = sync_channel(QUEUE);
        self.recent().delivery = Some((types, sender));
        receiver
    }

    /// Counts an event that was given up.
    pub(in crate::events) fn note_dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        // Each change adds one event, so a panic elsewhere leaves a valid list.
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn damaged(what: usize) -> Event {
        Event::new(EventType::Damaged, what)
    }

    #[test]
    fn recent_events_are_bounded_for_each_type_and_the_latest_comes_first() {
        let events = Events::default();
        events.record(at(0), Event::new(EventType::TagHeld, "an image"));
        for number in 0..KEPT_OF_A_TYPE + 10 {
            events.record(at(1), damaged(number));
        }
        let recent = events.recent_events();
        assert_eq!(recent.len(), KEPT_OF_A_TYPE + 1);
        assert_eq!(recent[0].event, damaged(KEPT_OF_A_TYPE + 9));
        assert_eq!(recent[0].number, KEPT_OF_A_TYPE as u64 + 11);
        assert_eq!(
            recent[KEPT_OF_A_TYPE].event.is,
            EventType::TagHeld,
            "other types displace none"
        );
        let long =
            Event::new(EventType::Damaged, "x".repeat(10_000)).with("reason", "y".repeat(10_000));
        assert_eq!(long.subject.len() + long.details[0].1.len(), 2 * TEXT_CHARS_MAX);
    }

    #[test]
    fn repeated_event_is_recorded_once_a_minute() {
        let events = Events::default();
        for (time, recorded) in [(1000, 1), (1059, 1), (1060, 2), (1061, 2), (500, 3)] {
            events.record(at(time), damaged(1));
            assert_eq!(events.recent_events().len(), recorded, "{time}");
        }
        events.record(at(500), damaged(2));
        assert_eq!(events.recent_events().len(), 4, "another event");
        assert!(events.counts().contains(&("damaged", 4)));
    }

    #[test]
    fn full_queue_drops_events_of_the_wanted_types_and_does_not_block() {
        let events = Events::default();
        let received = events.subscribe(vec![EventType::Damaged]);
        for number in 0..QUEUE + 3 {
            events.record(at(1), damaged(number));
            events.record(at(1), Event::new(EventType::ImageEvicted, number));
        }
        assert_eq!((events.dropped(), received.try_iter().count()), (3, QUEUE));
    }

    #[test]
    fn types_have_names() {
        for (each, name) in TYPES {
            assert_eq!(name.parse(), Ok(each));
            assert_eq!(each.to_string(), name);
        }
        assert!("tag".parse::<EventType>().unwrap_err().contains("tag-moved, tag-held"));
    }
}
