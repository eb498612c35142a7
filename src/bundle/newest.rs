//! The newest of the tags that match a pattern: by version, or by the date of the image.

use std::cmp::Reverse;

use semver::{BuildMetadata, Prerelease, Version};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::oci::Tag;

/// The most matching tags whose images are compared by date: each costs a request, and up to three more the first
/// time.
pub const DATED_TAGS_MAX: usize = 200;

/// How many tags of a pattern are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Newest {
    /// At most this many.
    pub count: usize,
    /// What makes a tag newer than another one.
    pub by: NewestBy,
}

/// What makes a tag newer than another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewestBy {
    /// The version that the tag is. Other tags are ignored.
    Semver,
    /// When its image was built, as the config states.
    Date,
}

/// The newest tags by version, the newest first. Tags that are not versions are ignored.
pub(super) fn newest_by_version(tags: Vec<Tag>, count: usize) -> Vec<Tag> {
    let mut versions: Vec<(Version, Tag)> =
        tags.into_iter().filter_map(|tag| Some((version(tag.as_str())?, tag))).collect();
    versions.sort_by(|(one, tag), (other, other_tag)| {
        (other, other_tag.as_str()).cmp(&(one, tag.as_str()))
    });
    versions.into_iter().take(count).map(|(_, tag)| tag).collect()
}

/// The newest tags by the dates of their images, the newest first. Images without a date are the oldest.
pub(super) fn newest_by_date(tags: Vec<(Tag, Option<String>)>, count: usize) -> Vec<Tag> {
    let date = |text: String| OffsetDateTime::parse(&text, &Rfc3339).ok();
    let mut dated: Vec<(Option<OffsetDateTime>, Tag)> =
        tags.into_iter().map(|(tag, created)| (created.and_then(date), tag)).collect();
    dated.sort_by_key(|(date, tag)| Reverse((*date, tag.as_str().to_owned())));
    dated.into_iter().take(count).map(|(_, tag)| tag).collect()
}

/// The version that a tag is: `1.2.3`, `v1.2.3-rc.1`. Components that are left out are zero (`3.20`), and may have
/// leading zeros (`24.04`), because tags are written in this way.
fn version(tag: &str) -> Option<Version> {
    let text = tag.strip_prefix(['v', 'V']).unwrap_or(tag);
    let (core, pre) = match text.split_once('-') {
        Some((_, "")) => return None,
        Some(parts) => parts,
        None => (text, ""),
    };
    let mut numbers = [0; 3];
    for (at, part) in core.split('.').enumerate() {
        // `parse` would also accept a sign.
        let is_number = part.bytes().all(|byte| byte.is_ascii_digit());
        *numbers.get_mut(at)? = part.parse().ok().filter(|_| is_number)?;
    }
    let [major, minor, patch] = numbers;
    let pre = Prerelease::new(pre).ok()?;
    Some(Version { major, minor, patch, pre, build: BuildMetadata::EMPTY })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(texts: &[&str]) -> Vec<Tag> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn texts(tags: &[Tag]) -> Vec<&str> {
        tags.iter().map(Tag::as_str).collect()
    }

    #[test]
    fn the_newest_versions_come_first_and_other_tags_are_ignored() {
        for (all, count, expected) in [
            (&["1.9.0", "1.10.0", "1.2.0"][..], 2, &["1.10.0", "1.9.0"][..]),
            (&["v1.2.3", "V1.2.4", "1.2.2"], 3, &["V1.2.4", "v1.2.3", "1.2.2"]),
            (
                &["2.0.0-rc.2", "2.0.0-rc.10", "2.0.0", "1.9.9"],
                3,
                &["2.0.0", "2.0.0-rc.10", "2.0.0-rc.2"],
            ),
            (&["latest", "nightly", "v1", "sha-12ab", "1.x", "1.2.3.4", "+1.0.0"], 5, &["v1"]),
            (&["3.9", "3.20", "3"], 2, &["3.20", "3.9"]),
            (&["22.04", "24.04", "24.10"], 2, &["24.10", "24.04"]),
            (&["1.0.0", "v1.0.0"], 1, &["v1.0.0"]),
            (&["1.0.0-", "1.0.0-a_b", "99999999999999999999.0.0"], 5, &[]),
            (&[], 5, &[]),
        ] {
            let all: Vec<&str> =
                all.iter().copied().filter(|text| text.parse::<Tag>().is_ok()).collect();
            assert_eq!(texts(&newest_by_version(tags(&all), count)), expected, "{all:?}");
        }
    }

    #[test]
    fn the_newest_dates_come_first_and_images_without_a_date_last() {
        for (all, count, expected) in [
            (
                &[
                    ("old", Some("2025-01-01T00:00:00Z")),
                    ("none", None),
                    ("new", Some("2026-01-01T00:00:00Z")),
                ][..],
                3,
                &["new", "old", "none"][..],
            ),
            // An hour later than it looks, and an hour earlier.
            (
                &[
                    ("b", Some("2026-01-01T10:00:00Z")),
                    ("c", Some("2026-01-01T11:30:00+02:00")),
                    ("a", Some("2026-01-01T09:30:00-02:00")),
                ],
                2,
                &["a", "b"],
            ),
            (
                &[("x", Some("2026-99-01T00:00:00Z")), ("y", Some("1970-01-01T00:00:00Z"))],
                1,
                &["y"],
            ),
            (&[("1", None), ("2", None)], 1, &["2"]),
        ] {
            let all = all.iter().map(|(tag, date)| (tag.parse().unwrap(), date.map(str::to_owned)));
            let found = newest_by_date(all.collect(), count);
            assert_eq!(texts(&found), expected);
        }
    }
}
