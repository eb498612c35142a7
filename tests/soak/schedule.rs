//! What happens in a storm, and when: a pure function of the seed, so that a run can be repeated.

use std::time::Duration;

use crate::faults::Outage;
use crate::random::Random;
use crate::server::{Stop, Variant};

/// The three actors, which do not wait for each other: a prune is killed, a reload happens during an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// Who pushes images and moves tags.
    Publisher,
    /// What goes wrong: the registry, the server.
    Chaos,
    /// Who runs commands and uses the management API.
    Operator,
}

#[derive(Clone, Debug)]
pub enum Event {
    Push,
    Retag,
    DeleteTag,
    FaultRate(usize),
    Outage(Outage, Duration),
    Reload(Variant),
    /// An invalid configuration for a moment: the number of one of several texts.
    ReloadInvalid(usize),
    Stop(Stop),
    PruneCommand,
    PruneApi,
    /// Pins an image, by one of several ways.
    Pin(usize),
    Unpin,
    List,
    Verify,
    ExportImport,
    Load,
    Prefetch,
    CancelDownloads,
    ReadApi,
    /// A command that is killed while it runs.
    KilledCommand(usize),
}

/// The events of an actor in a storm of this length: how long to wait before each, and the event.
pub fn events(
    seed: u64,
    round: usize,
    actor: Actor,
    length: Duration,
    has_kills: bool,
) -> Vec<(Duration, Event)> {
    let mut random = Random::new(seed, &format!("round {round} {actor:?}"));
    let (mut events, mut at) = (Vec::new(), Duration::ZERO);
    let pause = match actor {
        Actor::Publisher => 600..=2500,
        Actor::Chaos => 1500..=7000,
        Actor::Operator => 500..=4000,
    };
    loop {
        let wait = Duration::from_millis(random.between(*pause.start(), *pause.end()) as u64);
        at += wait;
        if at > length {
            return events;
        }
        let event = match actor {
            Actor::Publisher => publish(&mut random),
            Actor::Chaos => chaos(&mut random, has_kills),
            Actor::Operator => operate(&mut random, has_kills),
        };
        events.push((wait, event));
    }
}

fn publish(random: &mut Random) -> Event {
    match random.below(10) {
        0..=5 => Event::Push,
        6..=8 => Event::Retag,
        _ => Event::DeleteTag,
    }
}

fn chaos(random: &mut Random, has_kills: bool) -> Event {
    match random.below(if has_kills { 14 } else { 10 }) {
        0..=2 => Event::FaultRate(random.between(0, 25)),
        3..=5 => {
            let outage = *random.pick(&Outage::ALL).unwrap_or(&Outage::Down);
            Event::Outage(outage, Duration::from_millis(random.between(800, 6000) as u64))
        }
        6..=8 => Event::Reload(Variant {
            cache_megabytes: random.between(18, 45),
            tag_ttl_seconds: random.between(1, 3),
            downloads: random.between(4, 24),
            is_scheduled: random.percent(50),
        }),
        9 => Event::ReloadInvalid(random.below(4)),
        10 | 11 => Event::Stop(Stop::Kill),
        12 => Event::Stop(Stop::Terminate),
        _ => Event::FaultRate(60),
    }
}

fn operate(random: &mut Random, has_kills: bool) -> Event {
    match random.below(if has_kills { 16 } else { 15 }) {
        0 | 1 => Event::PruneCommand,
        2 => Event::PruneApi,
        3 | 4 => Event::Pin(random.below(3)),
        5 => Event::Unpin,
        6 => Event::List,
        7 => Event::Verify,
        8 | 9 => Event::ExportImport,
        10 => Event::Load,
        11 => Event::Prefetch,
        12 => Event::CancelDownloads,
        13 | 14 => Event::ReadApi,
        _ => Event::KilledCommand(random.below(4)),
    }
}
