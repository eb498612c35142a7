//! When images were pulled, from all caches: each writes what it knows to `usage/<instance>` in the bucket, with its pins.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::SweepError;
use crate::oci::{from_seconds, quoted, to_seconds};
use crate::store::{Pins, Store};
use crate::upstream::{Condition, ObjectStore, UpstreamError};

/// The directory of these objects.
const USAGE: &str = "usage/";
/// What sweeps have merged of caches that no longer write.
const MERGED: &str = "usage/merged";
/// The largest object that is read, in bytes.
const BYTES_MAX: u64 = 64 << 20;
/// A cache that has not written for this long has ended. What it knew is merged.
const ENDED_AFTER: Duration = Duration::from_secs(24 * 3600);
/// How long the pins of a cache count after it has written for the last time: it may be off for days.
const PINS_KEPT: Duration = Duration::from_secs(30 * 86_400);

/// What one cache knows.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Usage {
    /// When each image was pulled, in seconds since 1970 by the store's clock.
    images: HashMap<String, u64>,
    /// Its pins. They count as long as the cache writes, and for [`PINS_KEPT`] after that.
    #[serde(default)]
    pins: Vec<String>,
    /// In the merged object: the pins of caches that have ended, and when these last wrote them, in seconds since 1970.
    #[serde(default, rename = "endedPins", skip_serializing_if = "HashMap::is_empty")]
    ended_pins: HashMap<String, u64>,
}

/// What all caches know.
#[derive(Debug, Default)]
pub(super) struct AllUsage {
    pub(super) uses: HashMap<String, SystemTime>,
    /// The pins that count, of caches that have ended as well.
    pins: Vec<String>,
    /// The pins of caches that have ended, and when these last wrote them.
    ended_pins: HashMap<String, SystemTime>,
    /// The keys of the objects of these caches.
    ended: Vec<String>,
}

impl AllUsage {
    /// The pins that count. All of them can be parsed.
    pub(super) fn pins(&self) -> &[String] {
        &self.pins
    }

    fn add_ended_pin(&mut self, pin: String, written: SystemTime, now: SystemTime) {
        if !is_over(written, PINS_KEPT, now) {
            let known = self.ended_pins.entry(pin).or_insert(written);
            *known = (*known).max(written);
        }
    }
}

fn is_over(time: SystemTime, span: Duration, now: SystemTime) -> bool {
    now.duration_since(time).is_ok_and(|age| age > span)
}

/// Writes what this cache knows.
pub(super) fn write(
    bucket: &ObjectStore,
    local: &Store,
    instance: &str,
    pins: Vec<String>,
) -> Result<(), UpstreamError> {
    let mut usage = Usage { pins, ..Usage::default() };
    let (store, own) = (bucket.now(), SystemTime::now());
    local.each_usage(&mut |image| {
        if let Some(pulled) = image.pulled {
            usage.images.insert(image.image, by_clock_of(store, own, pulled));
        }
        true
    });
    put(bucket, &format!("{USAGE}{instance}"), &usage)
}

/// A time of this cache, in seconds since 1970, by the store's clock, with which sweeps compare it.
fn by_clock_of(store: SystemTime, own: SystemTime, time: u64) -> u64 {
    let ahead = to_seconds(store).cast_signed() - to_seconds(own).cast_signed();
    time.saturating_add_signed(ahead)
}

/// Reads what all caches know. Changes nothing.
pub(super) fn read(bucket: &ObjectStore, now: SystemTime) -> Result<AllUsage, SweepError> {
    let mut all = AllUsage::default();
    for object in bucket.list_all(USAGE)? {
        let Some(usage) = read_one(bucket, &object.key)? else { continue };
        for (image, pulled) in usage.images {
            let Some(pulled) = from_seconds(pulled) else { continue };
            let known = all.uses.entry(image).or_insert(pulled);
            *known = (*known).max(pulled);
        }
        for (pin, written) in usage.ended_pins {
            let Some(written) = from_seconds(written) else { continue };
            all.add_ended_pin(pin, written, now);
        }
        if object.key == MERGED || !is_over(object.modified, ENDED_AFTER, now) {
            all.pins.extend(usage.pins);
            continue;
        }
        for pin in usage.pins {
            all.add_ended_pin(pin, object.modified, now);
        }
        all.ended.push(object.key);
    }
    all.pins.extend(all.ended_pins.keys().cloned());
    Ok(all)
}

/// Merges what caches knew that no longer write, and forgets uses that are older than `unused_for`. The merged object is
/// written before the others are removed, so a kill in between loses nothing.
pub(super) fn merge(
    bucket: &ObjectStore,
    all: &AllUsage,
    unused_for: Duration,
    now: SystemTime,
) -> Result<(), SweepError> {
    if all.ended.is_empty() {
        return Ok(());
    }
    // Not those that were written again meanwhile.
    let ended: Vec<String> = bucket
        .list_all(USAGE)?
        .into_iter()
        .filter(|object| is_over(object.modified, ENDED_AFTER, now))
        .map(|object| object.key)
        .filter(|key| all.ended.contains(key))
        .collect();
    let recent = all.uses.iter().filter(|(_, used)| !is_over(**used, unused_for, now));
    let images = recent.map(|(image, used)| (image.clone(), to_seconds(*used))).collect();
    let ended_pins = all.ended_pins.iter();
    let ended_pins = ended_pins.map(|(pin, written)| (pin.clone(), to_seconds(*written))).collect();
    put(bucket, MERGED, &Usage { images, ended_pins, ..Usage::default() })?;
    bucket.delete(&ended)?;
    Ok(())
}

fn read_one(bucket: &ObjectStore, key: &str) -> Result<Option<Usage>, SweepError> {
    let Some(read) = bucket.find(key, BYTES_MAX)? else { return Ok(None) };
    // A sweep must not take the images for unused, or for unpinned.
    let unreadable = |reason: &dyn fmt::Display| SweepError::Unreadable {
        key: quoted(key),
        reason: quoted(reason),
    };
    let usage: Usage = serde_json::from_slice(&read.bytes).map_err(|error| unreadable(&error))?;
    let ended_pins: Vec<String> = usage.ended_pins.keys().cloned().collect();
    for pins in [&usage.pins, &ended_pins] {
        Pins::of(pins).map_err(|reason| unreadable(&format!("a pin is wrong: {reason}")))?;
    }
    Ok(Some(usage))
}

fn put(bucket: &ObjectStore, key: &str, usage: &Usage) -> Result<(), UpstreamError> {
    // A map of texts and numbers has a JSON form.
    let json = serde_json::to_vec(usage).unwrap_or_default();
    bucket.put(key, &json, Condition::None).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uses_are_written_with_the_time_of_the_store() {
        let at = |seconds| from_seconds(seconds).unwrap();
        for (store, own, time, expected) in
            [(500, 500, 100, 100), (900, 500, 100, 500), (450, 500, 100, 50), (0, 500, 100, 0)]
        {
            assert_eq!(by_clock_of(at(store), at(own), time), expected);
        }
    }
}
