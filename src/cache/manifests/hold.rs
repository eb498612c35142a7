//! Tags that have moved at the registry: accepted at once, or only after the move has been observed for some time
//! (`tags[].hold`). Until then the previous manifest is served.
//!
//! A hijacked tag is usually discovered within days. Only a tag that is cached can be held: the first pull of a tag has
//! nothing to compare with.
//!
//! # Interleavings
//! A check and an operator's decision may overlap. Both write the complete record of the tag, under a lock, and what is
//! written keeps the decisions of the record that it replaces ([`TagRecord::after`]). A check reads the record again after
//! its requests, before it decides.

use std::time::{Duration, SystemTime};

use super::content::{Checked, Found};
use super::{ManifestCache, Reference};
use crate::cache::CacheError;
use crate::oci::{Decision, Digest, HeldManifest, ImageName, Tag, TagRecord};
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
        self.span.is_some() || self.record.held.is_some() || !self.record.rejected.is_empty()
    }

    /// Whether the registry is known to have this manifest, so that it need not be fetched for the decision.
    pub(super) fn knows(&self, current: &Digest) -> bool {
        self.record.held.as_ref().is_some_and(|held| held.digest == *current)
    }

    /// What is recorded if the registry has `current` and that is held; `None` if it is accepted. A move that another
    /// Larder has held already is accepted: otherwise the times would add up along a chain.
    pub(super) fn decide(&self, current: &Digest, is_vetted: bool) -> Option<HeldManifest> {
        if *current == self.record.digest {
            return None;
        }
        let held = match &self.record.held {
            // If the clock was set back, the time begins again.
            Some(held) if held.digest == *current && held.since <= self.now => held.clone(),
            Some(held) if held.digest == *current => {
                HeldManifest { since: self.now, ..held.clone() }
            }
            _ => {
                let decision = Decision::Waiting;
                HeldManifest { digest: *current, since: self.now, decision }
            }
        };
        let observed = self.now.duration_since(held.since).unwrap_or_default();
        match (held.decision, self.span) {
            (Decision::Accepted, _) => None,
            // A decision counts even if the rule was removed since, and if the tag has moved elsewhere in between.
            _ if self.record.rejected.contains(current) => {
                Some(HeldManifest { decision: Decision::Rejected, ..held })
            }
            (_, Some(span)) if observed < span && !is_vetted => Some(held),
            _ => None,
        }
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
                match fetched {
                    Ok(found) => found.content,
                    Err(error) if !error.is_not_found() => return Err(error),
                    Err(_) => {
                        // Recorded nevertheless, so that the time passes, and an operator can accept the move.
                        let held =
                            TagRecord { checked: checked.at, held: Some(held), ..record.clone() };
                        self.core.store.put_tag(name, tag, &held)?;
                        return Err(CacheError::Held { previous: record.digest });
                    }
                }
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

    fn held(letter: &str, since: u64, decision: Decision) -> Option<HeldManifest> {
        Some(HeldManifest { digest: digest(letter), since: at(since), decision })
    }

    fn record(held: Option<HeldManifest>) -> TagRecord {
        let rejected = held.iter().filter(|held| held.decision == Decision::Rejected);
        let rejected = rejected.map(|held| held.digest).collect();
        let media_type = MediaType::parse(MediaType::OCI_INDEX).unwrap();
        TagRecord { held, rejected, ..TagRecord::new(digest("a"), media_type, 1, at(0), at(0)) }
    }

    #[test]
    fn a_move_is_accepted_when_it_was_observed_for_long_enough() {
        use Decision::{Accepted, Rejected, Waiting};
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
            let got = Hold::new(&record, span, at(10_000)).decide(&digest(current), false);
            assert_eq!(got, expected, "{before:?} {span:?} {current}");
        }
    }

    #[test]
    fn a_move_that_another_larder_has_held_is_accepted_unless_it_was_rejected_here() {
        let waiting = record(held("b", 9_999, Decision::Waiting));
        let rejected = record(held("b", 1, Decision::Rejected));
        assert_eq!(Hold::new(&waiting, HOUR, at(10_000)).decide(&digest("b"), true), None);
        let got = Hold::new(&rejected, HOUR, at(10_000)).decide(&digest("b"), true);
        assert_eq!(got, held("b", 1, Decision::Rejected));
        // The tag has moved to another manifest and back.
        let elsewhere = TagRecord { held: held("c", 1, Decision::Waiting), ..rejected };
        let got = Hold::new(&elsewhere, None, at(10_000)).decide(&digest("b"), false);
        assert_eq!(got, held("b", 10_000, Decision::Rejected));
    }
}
