//! `sync`: its keys, and the entries that keep images present.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ConfigError;
use super::file::File;
use super::keys::{Comparison, Section, Unset, Value, names, section};
#[cfg(test)]
use super::keys::{Key, Map, Shape};
use super::number::Count;
use super::value::{ParseValueError, PlatformText, Span, Text};
use crate::api::Naming;
use crate::image_sync::{CronSchedule, Newest, NewestBy, PRELOAD, Schedule, SyncEntry, Wanted};
use crate::oci::{Platform, Platforms, quoted};

/// The longest name of an entry. It is a label in metrics.
const NAME_CHARS_MAX: usize = 64;
/// The shortest interval: as often as a cron expression can.
const INTERVAL_MIN: Duration = Duration::from_secs(60);
/// The most entries: each has series of its own in metrics.
const ENTRIES_MAX: usize = 100;

section! {
    /// An entry of `sync`.
    SyncKeys {
        /// Its name, for `larder sync`, the log and metrics: letters, digits, `.`, `-` and `_`.
        "name" name: Text<SyncName>;
        /// References and patterns for tags, as for `larder load`: `alpine:3.20`, `quay.io/org/app:/^v1\./`.
        "images" images: Vec<Text<ImageText>> = vec![];
        /// Files with more of them, separated by commas or line breaks, `#` for comments. Read by each run.
        "lists" lists: Vec<PathBuf> = vec![];
        /// Of the tags that match a pattern, keep only this many of the newest ones present.
        "newest" newest: Option<Count> = None, default "all of them";
        /// What makes a tag newer: `semver`, its version; tags that are not versions are ignored. `date`, when its image
        /// was built; for at most 200 matching tags.
        "newestBy" newest_by: Option<NewestByName> = None, default "`semver`";
        /// The interval from one run to the next, at least `1m`. Either this or `cron`.
        "every" every: Option<Text<Interval>> = None;
        /// When it runs, in UTC: minute, hour, day of the month, month, day of the week, as in `30 3 * * 1-5`.
        "cron" cron: Option<Text<CronSchedule>> = None;
        /// The platforms to load of multi-platform images: `[linux/amd64, linux/arm64]`, or `[all]`.
        "platforms" platforms: Vec<Text<PlatformText>> = vec![], default "those of `larder load`";
        /// Whether to load signatures, attestations and SBOMs as well.
        "referrers" referrers: Option<bool> = None, default "`prefetchReferrers`";
    }
}

names! {
    /// `sync[].newestBy`.
    NewestByName { Semver, Date }
}

/// The name of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SyncName(String);

impl FromStr for SyncName {
    type Err = ParseValueError;

    fn from_str(text: &str) -> Result<SyncName, ParseValueError> {
        let is_legal = !text.is_empty()
            && text.len() <= NAME_CHARS_MAX
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
        match text {
            PRELOAD => Err(ParseValueError::new(
                "the name preload is that of the list in preloadImages; choose another one",
            )),
            _ if is_legal => Ok(SyncName(text.to_owned())),
            _ => Err(ParseValueError::new(format!(
                "a name has letters, digits, '.', '-' and '_', and at most {NAME_CHARS_MAX} of them"
            ))),
        }
    }
}

impl fmt::Display for SyncName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An image, or a pattern for tags, as it was written: aliases are replaced later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ImageText(String);

impl FromStr for ImageText {
    type Err = ParseValueError;

    fn from_str(text: &str) -> Result<ImageText, ParseValueError> {
        let parsed = Wanted::parse(text);
        parsed.map_err(|error| ParseValueError::new(error.to_string()))?;
        Ok(ImageText(text.to_owned()))
    }
}

impl fmt::Display for ImageText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A duration of at least a minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Interval(Duration);

impl FromStr for Interval {
    type Err = ParseValueError;

    fn from_str(text: &str) -> Result<Interval, ParseValueError> {
        match text.parse()? {
            Span(interval) if interval >= INTERVAL_MIN => Ok(Interval(interval)),
            _ => Err(ParseValueError::new(format!(
                "{} is too short: at least 1m, such as 6h or 1d",
                quoted(text)
            ))),
        }
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Span(self.0).fmt(f)
    }
}

/// The entries of `sync`. `platforms` are those of an entry that has none.
///
/// # Errors
/// [`ConfigError::Sync`] for an entry that contradicts itself or another one.
pub(super) fn entries(
    file: &File,
    naming: &Naming,
    platforms: &Platforms,
) -> Result<Vec<SyncEntry>, ConfigError> {
    if file.sync.len() > ENTRIES_MAX {
        let reason = format!("{} entries; at most {ENTRIES_MAX}", file.sync.len());
        return Err(ConfigError::Value { key: "sync", reason });
    }
    let mut entries: Vec<SyncEntry> = Vec::new();
    for keys in &file.sync {
        let name = &keys.name.0.0;
        let refuse = |reason: String| ConfigError::Sync { name: name.clone(), reason };
        if entries.iter().any(|other| other.name == *name) {
            return Err(refuse("the name is given twice".into()));
        }
        let entry = entry(keys, file, naming, platforms).map_err(refuse)?;
        entries.push(entry);
    }
    Ok(entries)
}

fn entry(
    keys: &SyncKeys,
    file: &File,
    naming: &Naming,
    platforms: &Platforms,
) -> Result<SyncEntry, String> {
    if keys.images.is_empty() && keys.lists.is_empty() {
        return Err("it names no images: set images or lists".into());
    }
    let schedule = match (&keys.every, &keys.cron) {
        (Some(every), None) => Schedule::Every(every.0.0),
        (None, Some(cron)) => Schedule::Cron(cron.0.clone()),
        (Some(_), Some(_)) => return Err("every and cron exclude each other: keep one".into()),
        (None, None) => return Err("it has no schedule: set every, such as 6h, or cron".into()),
    };
    if keys.newest.is_none() && keys.newest_by.is_some() {
        return Err("newestBy needs newest, the number of tags".into());
    }
    let newest = keys.newest.map(|Count(count)| Newest {
        count: count.try_into().unwrap_or(usize::MAX),
        by: match keys.newest_by {
            None | Some(NewestByName::Semver) => NewestBy::Semver,
            Some(NewestByName::Date) => NewestBy::Date,
        },
    });
    let images = keys.images.iter().map(|image| Wanted::parse(&naming.expand(&image.0.0)));
    let images = images.collect::<Result<_, _>>().map_err(|error| error.to_string())?;
    let own: Option<Vec<Platform>> = keys.platforms.iter().map(|each| each.0.0.clone()).collect();
    Ok(SyncEntry {
        name: keys.name.0.0.clone(),
        images,
        lists: keys.lists.clone(),
        newest,
        schedule,
        platforms: match own {
            None => Platforms::All,
            Some(own) if own.is_empty() => platforms.clone(),
            Some(own) => Platforms::Only(own),
        },
        referrers: keys.referrers.unwrap_or(file.prefetch_referrers),
    })
}
