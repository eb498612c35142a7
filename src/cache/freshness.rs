//! How long a tag is believed. Pure: a policy, a record's age, a verdict.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use crate::oci::{ImageName, PartReference, Pattern, Reference, Tag, Upstream};

/// How long the answer to "which manifest is this tag" stays good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ttl {
    /// Not at all: upstream is asked every time.
    Always,
    /// This long after upstream last confirmed it.
    For(Duration),
    /// For ever: once pulled, a tag never moves.
    Forever,
}

/// Rules for the tags of a registry, or of all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TagRules {
    /// For tags of a kind; the first that matches wins.
    pub patterns: Vec<(Pattern, Ttl)>,
    /// For the others; `None` leaves them to the next rules.
    pub otherwise: Option<Ttl>,
}

impl TagRules {
    fn ttl(&self, tag: &Tag) -> Option<Ttl> {
        let matching = self.patterns.iter().find(|(pattern, _)| pattern.matches(tag.as_str()));
        matching.map(|(_, ttl)| *ttl).or(self.otherwise)
    }
}

/// What becomes of a cached tag that upstream says it does not have any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnUpstreamDelete {
    /// It stays, is served as stale, and is noted as gone.
    #[default]
    Keep,
    /// It is forgotten.
    Drop,
}

/// The freshness policy of this server.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FreshnessPolicy {
    /// The image that is this server's own, if there is one: nobody else knows it better, whatever the rules
    /// say.
    pub own: Option<PartReference>,
    /// Whether `latest` is asked for every time whatever the rules say.
    pub always_pull_latest: bool,
    /// By registry. A registry's own rules stand before those for all.
    pub by_upstream: HashMap<Upstream, TagRules>,
    /// For all.
    pub rules: TagRules,
    /// For how long after its time a tag is served at once, while upstream is asked in the background.
    pub stale_while_revalidate: Duration,
    /// What becomes of tags that upstream has deleted.
    pub on_upstream_delete: OnUpstreamDelete,
}

/// Five minutes: a rollout of one tag to a cluster asks upstream once, a re-tag is seen soon.
pub const TAG_TTL: Ttl = Ttl::For(Duration::from_secs(300));

/// Whether a tag is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Belief {
    /// Yes, until then; `None` is for ever.
    Fresh(Option<SystemTime>),
    /// It is served at once, and upstream is asked in the background.
    Revalidate,
    /// Upstream is asked first.
    Stale,
}

impl FreshnessPolicy {
    /// One rule for all tags.
    pub fn of(ttl: Ttl) -> FreshnessPolicy {
        let rules = TagRules { otherwise: Some(ttl), ..TagRules::default() };
        FreshnessPolicy { rules, ..FreshnessPolicy::default() }
    }

    /// How long this tag is believed.
    pub fn ttl(&self, name: &ImageName, tag: &Tag) -> Ttl {
        if self.own.as_ref().is_some_and(|own| is_tag_of(own, name, tag)) {
            return Ttl::Forever;
        }
        if self.always_pull_latest && tag.as_str() == "latest" {
            return Ttl::Always;
        }
        let own = self.by_upstream.get(&name.upstream).and_then(|rules| rules.ttl(tag));
        own.or_else(|| self.rules.ttl(tag)).unwrap_or(TAG_TTL)
    }

    /// Whether a tag that upstream confirmed at `checked` would be served without asking.
    pub fn is_fresh(
        &self,
        name: &ImageName,
        tag: &Tag,
        checked: SystemTime,
        now: SystemTime,
    ) -> bool {
        matches!(self.belief(name, tag, checked, now), Belief::Fresh(_))
    }

    /// Whether a tag that upstream confirmed at `checked` is believed.
    ///
    /// A `checked` in the future (the clock was set back) counts as now: such a record would else be
    /// believed for as long as the clock was wrong.
    pub(super) fn belief(
        &self,
        name: &ImageName,
        tag: &Tag,
        checked: SystemTime,
        now: SystemTime,
    ) -> Belief {
        let ttl = match self.ttl(name, tag) {
            Ttl::Forever => return Belief::Fresh(None),
            Ttl::For(duration) => duration,
            Ttl::Always => Duration::ZERO,
        };
        let checked = checked.min(now);
        let Some(until) = checked.checked_add(ttl) else { return Belief::Fresh(None) };
        let grace = until.checked_add(self.stale_while_revalidate);
        if now < until {
            Belief::Fresh(Some(until))
        } else if now < grace.unwrap_or(until) && self.ttl(name, tag) != Ttl::Always {
            Belief::Revalidate
        } else {
            Belief::Stale
        }
    }
}

fn is_tag_of(image: &PartReference, name: &ImageName, tag: &Tag) -> bool {
    image.name == *name && matches!(&image.reference, Some(Reference::Tag(own)) if own == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    const MINUTE: Ttl = Ttl::For(Duration::from_secs(60));

    fn image(upstream: &str) -> ImageName {
        ImageName::new(upstream.parse().unwrap(), "org/app".parse().unwrap())
    }

    fn quay() -> ImageName {
        image("quay.io")
    }

    #[test]
    fn verdicts() {
        for (ttl, always_pull_latest, tag, checked, now, fresh) in [
            (MINUTE, false, "1", 1000, 1059, true),
            (MINUTE, false, "1", 1000, 1060, false),
            (MINUTE, false, "latest", 1000, 1001, true),
            (MINUTE, true, "latest", 1000, 1001, false),
            (MINUTE, true, "latest-1", 1000, 1001, true),
            (Ttl::Forever, false, "1", 0, u64::from(u32::MAX), true),
            (Ttl::Forever, true, "latest", 0, 1, false),
            (Ttl::Always, false, "1", 1000, 1000, false),
            (MINUTE, false, "1", 5000, 1000, true),
        ] {
            let policy = FreshnessPolicy { always_pull_latest, ..FreshnessPolicy::of(ttl) };
            let belief = policy.belief(&quay(), &tag.parse().unwrap(), at(checked), at(now));
            let is_fresh = matches!(belief, Belief::Fresh(_));
            assert_eq!(is_fresh, fresh, "{ttl:?} {tag} {checked} {now}");
        }
    }

    #[test]
    fn a_record_from_the_future_is_not_believed_until_then() {
        let policy = FreshnessPolicy::of(MINUTE);
        let belief = policy.belief(&quay(), &"1".parse().unwrap(), at(9_999_999), at(1000));
        assert_eq!(belief, Belief::Fresh(Some(at(1060))));
    }

    #[test]
    fn the_first_rule_that_matches_wins_and_a_registrys_own_stand_first() {
        let rule = |pattern: &str, ttl| (pattern.parse().unwrap(), ttl);
        let own = TagRules {
            patterns: vec![rule("/^v[0-9.]+$/", Ttl::Forever), rule("v*", Ttl::Always)],
            otherwise: None,
        };
        let rules = TagRules {
            patterns: vec![rule("nightly", Ttl::Always), rule("v*", MINUTE)],
            otherwise: Some(MINUTE),
        };
        let by_upstream = HashMap::from([(quay().upstream, own)]);
        let policy = FreshnessPolicy { by_upstream, rules, ..FreshnessPolicy::default() };
        for (upstream, tag, ttl) in [
            ("quay.io", "v1.2", Ttl::Forever),
            ("quay.io", "v1-rc", Ttl::Always),
            ("quay.io", "nightly", Ttl::Always),
            ("quay.io", "other", MINUTE),
            ("ghcr.io", "v1.2", MINUTE),
            ("ghcr.io", "nightly", Ttl::Always),
        ] {
            let got = policy.ttl(&image(upstream), &tag.parse().unwrap());
            assert_eq!(got, ttl, "{upstream} {tag}");
        }
        let default = FreshnessPolicy::default();
        assert_eq!(default.ttl(&quay(), &"v1".parse().unwrap()), TAG_TTL);
    }

    #[test]
    fn nobody_is_asked_for_what_is_our_own() {
        let own = Some(PartReference::parse("quay.io/org/app:latest").unwrap());
        let asked =
            FreshnessPolicy { always_pull_latest: true, ..FreshnessPolicy::of(Ttl::Always) };
        let policy = FreshnessPolicy { own, ..asked };
        let belief = policy.belief(&quay(), &"latest".parse().unwrap(), at(0), at(1_000_000));
        assert_eq!(belief, Belief::Fresh(None));
        assert_eq!(policy.ttl(&image("ghcr.io"), &"latest".parse().unwrap()), Ttl::Always);
        let other = policy.ttl(&quay(), &"linux".parse().unwrap());
        assert_eq!(other, Ttl::Always, "another tag of that name is the registry's");
    }

    #[test]
    fn for_a_while_a_stale_tag_is_served_while_it_is_confirmed() {
        let stale_while_revalidate = Duration::from_secs(30);
        let policy = |ttl| FreshnessPolicy { stale_while_revalidate, ..FreshnessPolicy::of(ttl) };
        for (ttl, now, belief) in [
            (MINUTE, 1059, Belief::Fresh(Some(at(1060)))),
            (MINUTE, 1060, Belief::Revalidate),
            (MINUTE, 1089, Belief::Revalidate),
            (MINUTE, 1090, Belief::Stale),
            // Who wants to be asked every time wants the answer.
            (Ttl::Always, 1001, Belief::Stale),
        ] {
            let got = policy(ttl).belief(&quay(), &"1".parse().unwrap(), at(1000), at(now));
            assert_eq!(got, belief, "{ttl:?} {now}");
        }
    }
}
