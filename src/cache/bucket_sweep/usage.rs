//! When images were pulled, from all caches: each writes what it knows to `usage/<instance>` in the bucket, with its pins.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::SweepError;
use crate::oci::{from_seconds, to_seconds};
use crate::store::Store;
use crate::upstream::{Condition, ObjectStore, UpstreamError};

/// The directory of these objects.
const USAGE: &str = "usage/";
/// What sweeps have merged of caches that no longer write.
const MERGED: &str = "usage/merged";
/// The largest object that is read, in bytes.
const BYTES_MAX: u64 = 64 << 20;
/// A cache that has not written for this long has ended. What it knew is merged.
const ENDED_AFTER: Duration = Duration::from_secs(24 * 3600);

/// What one cache knows.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Usage {
    /// When each image was pulled, in seconds since 1970.
    images: HashMap<String, u64>,
    /// Its pins. They count as long as the cache writes.
    #[serde(default)]
    pins: Vec<String>,
}

/// What all caches know.
#[derive(Debug, Default)]
pub(super) struct AllUsage {
    pub(super) uses: HashMap<String, SystemTime>,
    pub(super) pins: Vec<String>,
}

/// Writes what this cache knows.
pub(super) fn write(
    bucket: &ObjectStore,
    local: &Store,
    instance: &str,
    pins: Vec<String>,
) -> Result<(), UpstreamError> {
    let mut usage = Usage { pins, ..Usage::default() };
    local.each_usage(&mut |image| {
        if let Some(pulled) = image.pulled {
            usage.images.insert(image.image, pulled);
        }
        true
    });
    put(bucket, &format!("{USAGE}{instance}"), &usage)
}

/// Reads what all caches know.
pub(super) fn read(bucket: &ObjectStore) -> Result<AllUsage, SweepError> {
    let mut all = AllUsage::default();
    for object in bucket.list_all(USAGE)? {
        let Some(usage) = read_one(bucket, &object.key)? else { continue };
        for (image, pulled) in usage.images {
            let Some(pulled) = from_seconds(pulled) else { continue };
            let known = all.uses.entry(image).or_insert(pulled);
            *known = (*known).max(pulled);
        }
        all.pins.extend(usage.pins);
    }
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
    let is_over = |time: SystemTime, span| now.duration_since(time).is_ok_and(|age| age > span);
    let ended: Vec<String> = bucket
        .list_all(USAGE)?
        .into_iter()
        .filter(|object| object.key != MERGED && is_over(object.modified, ENDED_AFTER))
        .map(|object| object.key)
        .collect();
    if ended.is_empty() {
        return Ok(());
    }
    let recent = all.uses.iter().filter(|(_, used)| !is_over(**used, unused_for));
    let images = recent.map(|(image, used)| (image.clone(), to_seconds(*used))).collect();
    put(bucket, MERGED, &Usage { images, pins: Vec::new() })?;
    bucket.delete(&ended)?;
    Ok(())
}

fn read_one(bucket: &ObjectStore, key: &str) -> Result<Option<Usage>, SweepError> {
    let Some(read) = bucket.find(key, BYTES_MAX)? else { return Ok(None) };
    // A sweep must not take the images for unused.
    let unreadable = |error: serde_json::Error| SweepError::Unreadable {
        key: key.to_owned(),
        reason: error.to_string(),
    };
    serde_json::from_slice(&read.bytes).map(Some).map_err(unreadable)
}

fn put(bucket: &ObjectStore, key: &str, usage: &Usage) -> Result<(), UpstreamError> {
    // A map of texts and numbers has a JSON form.
    let json = serde_json::to_vec(usage).unwrap_or_default();
    bucket.put(key, &json, Condition::None).map(|_| ())
}
