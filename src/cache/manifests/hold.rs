//! Tags that have moved at the registry: accepted at once, or only after the move has been observed for some time
//! (`tags[].hold`). Until then the previous manifest is served.
//!
//! A hijacked tag is usually discovered within days. Only a tag that is cached can be held: the first pull of a tag has
//! nothing to compare with.
//!
//! # Interleavings
//! A check and an operator's decision may overlap. Both write the complete record of the tag; [`TagRecord::after`] keeps a
//! decision about the same manifest that was written during the check. A check that accepts the move at that moment wins.

use std::time::{Duration, SystemTime};

use super::content::{Checked, Found};
use super::{ManifestCache, Reference};
use crate::cache::CacheError;
use crate::oci::{Digest, HeldManifest, ImageName, Tag, TagRecord, Verdict};
use crate::store::Access;
use crate::upstream::Source;

/// Decides whether a tag may refer to another manifest now.
pub(super) struct Hold<'a> {
    pub(super) record: &'a TagRecord,
    /// How long a move must have been observed; `None` if moves are accepted at once.
    span: Option<Duration>,
    now: SystemTime,
}

impl<'a> Hold<'a> {
    pub(super) fn new(record: &'a TagRecord, span: Option<Duration>, now: SystemTime) -> Hold<'a> {
        Hold { record, span, now }
    }

    /// Whether there is a manifest that would be held.
    pub(super) fn may_hold(&self) -> bool {
        self.span.is_some() || self.record.held.is_some()
    }

    /// What is recorded if the registry has `current` and that is held; `None` if it is accepted.
    pub(super) fn decide(&self, current: &Digest) -> Option<HeldManifest> {
        if *current == self.record.digest {
            return None;
        }
        let first_seen =
            HeldManifest { digest: *current, since: self.now, verdict: Verdict::Waiting };
        let held = match &self.record.held {
            // If the clock was set back, the time begins again.
            Some(held) if held.digest == *current && held.since <= self.now => held.clone(),
            Some(held) if held.digest == *current => {
                HeldManifest { since: self.now, ..held.clone() }
            }
            _ => first_seen,
        };
        let observed = self.now.duration_since(held.since).unwrap_or_default();
        let is_accepted = match (held.verdict, self.span) {
            (Verdict::Accepted, _) => true,
            // A decision counts even if the rule was removed since.
            (Verdict::Rejected, _) => false,
            (Verdict::Waiting, Some(span)) => observed >= span,
            (Verdict::Waiting, None) => true,
        };
        (!is_accepted).then_some(held)
    }
}

impl ManifestCache {
    /// Serves the previous manifest of a tag, and records what the registry has instead.
    ///
    /// # Errors
    /// [`CacheError::Held`] if the registry no longer has the previous manifest, and neither has the cache.
    pub(super) fn keep_previous(
        &self,
        name: &ImageName,
        tag: &Tag,
        record: &TagRecord,
        held: HeldManifest,
        checked: Checked,
        source: &dyn Source,
    ) -> Result<Found, CacheError> {
        let stored = self.stored_manifest(name, &record.digest, Access::Look)?;
        let content = match stored {
            Some(stored) => stored.found.content,
            None => {
                let reference = Reference::Digest(record.digest);
                let fetched = self.get_manifest(name, source, &reference, Some(checked), &|_| {});
                fetched
                    .map_err(|error| match error.is_not_found() {
                        true => CacheError::Held { previous: record.digest },
                        false => error,
                    })?
                    .content
            }
        };
        let checked = Checked { is_held: true, ..checked };
        let found = Found { content, checked };
        self.point_tag(name, tag, &found, Some(record), Some(held));
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::MediaType;

    const HOUR: Option<Duration> = Some(Duration::from_secs(3600));

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn digest(letter: &str) -> Digest {
        format!("sha256:{}", letter.repeat(64)).parse().unwrap()
    }

    fn held(letter: &str, since: u64, verdict: Verdict) -> Option<HeldManifest> {
        Some(HeldManifest { digest: digest(letter), since: at(since), verdict })
    }

    fn record(held: Option<HeldManifest>) -> TagRecord {
        let media_type = MediaType::parse(MediaType::OCI_INDEX).unwrap();
        TagRecord { held, ..TagRecord::new(digest("a"), media_type, 1, at(0), at(0)) }
    }

    #[test]
    fn a_move_is_accepted_when_it_was_observed_for_long_enough() {
        use Verdict::{Accepted, Rejected, Waiting};
        let first = held("b", 10_000, Waiting);
        for (before, span, current, expected) in [
            (None, None, "b", None),
            (None, HOUR, "a", None),
            (None, HOUR, "b", first.clone()),
            // Observed for an hour less a second, and for an hour.
            (held("b", 6_401, Waiting), HOUR, "b", held("b", 6_401, Waiting)),
            (held("b", 6_400, Waiting), HOUR, "b", None),
            // The tag moved on: that is another move. It moved back: there is nothing to hold.
            (held("c", 1, Waiting), HOUR, "b", first.clone()),
            (held("b", 1, Waiting), HOUR, "a", None),
            // The clock was set back.
            (held("b", 99_999, Waiting), HOUR, "b", first.clone()),
            // Decisions.
            (held("b", 9_999, Accepted), HOUR, "b", None),
            (held("b", 1, Rejected), HOUR, "b", held("b", 1, Rejected)),
            (held("b", 1, Rejected), None, "b", held("b", 1, Rejected)),
            (held("c", 1, Rejected), HOUR, "b", first.clone()),
            (held("c", 1, Rejected), None, "b", None),
            (held("b", 99_999, Rejected), HOUR, "b", held("b", 10_000, Rejected)),
        ] {
            let record = record(before.clone());
            let got = Hold::new(&record, span, at(10_000)).decide(&digest(current));
            assert_eq!(got, expected, "{before:?} {span:?} {current}");
        }
    }
}
