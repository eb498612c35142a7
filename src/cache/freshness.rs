//! How long a tag is fresh. Pure functions of the policy and the age of a record.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use crate::oci::{ImageName, PartReference, Pattern, Reference, Tag, Upstream};

/// How long a tag is served without a confirmation by its registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ttl {
    /// Never: the tag is revalidated on every request.
    Always,
    /// For this time after the registry last confirmed it.
    For(Duration),
    /// Forever: a tag never moves once it was pulled.
    Forever,
}

/// Rules for the tags of one registry or of all registries.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TagRules {
    /// Rules by pattern. The first that matches and sets a value applies.
    pub patterns: Vec<TagRule>,
    /// The rule for other tags. `None` leaves them to the next rules.
    pub otherwise: Option<Ttl>,
}

/// A rule for the tags that match a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagRule {
    /// Which tags.
    pub pattern: Pattern,
    /// How long they are fresh. `None` leaves that to the next rules.
    pub ttl: Option<Ttl>,
    /// How long a move must have been observed before it is accepted; zero accepts it at once. `None` leaves that to the
    /// next rules.
    pub hold: Option<Duration>,
}

impl TagRules {
    fn ttl(&self, tag: &Tag) -> Option<Ttl> {
        self.first(tag, |rule| rule.ttl).or(self.otherwise)
    }

    fn first<T>(&self, tag: &Tag, value: impl Fn(&TagRule) -> Option<T>) -> Option<T> {
        let matching = self.patterns.iter().filter(|rule| rule.pattern.matches(tag.as_str()));
        matching.filter_map(value).next()
    }
}

/// What happens to a cached tag that its registry has deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnUpstreamDelete {
    /// It is kept, marked as deleted and served as stale.
    #[default]
    Keep,
    /// It is removed.
    Drop,
}

/// The freshness policy of this server.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FreshnessPolicy {
    /// This server's own image, if there is one. It is always fresh, whatever the rules are: no registry has a newer
    /// version.
    pub own: Option<PartReference>,
    /// Whether the tag `latest` is revalidated on every request, whatever the rules are.
    pub always_pull_latest: bool,
    /// Rules by registry, which override the general rules.
    pub by_upstream: HashMap<Upstream, TagRules>,
    /// The general rules.
    pub rules: TagRules,
    /// How long after its expiry a tag is still served at once while it is revalidated in the background.
    pub stale_while_revalidate: Duration,
    /// What happens to tags that their registry has deleted.
    pub on_upstream_delete: OnUpstreamDelete,
}

/// Five minutes: a rollout of one tag to a cluster causes one request, and a re-tag becomes visible soon.
pub const TAG_TTL: Ttl = Ttl::For(Duration::from_secs(300));

/// By how much a clock is corrected in normal operation.
const CLOCK_STEP_MAX: Duration = Duration::from_secs(60);

/// Whether a tag is fresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Belief {
    /// Yes, until this time; `None` means forever.
    Fresh(Option<SystemTime>),
    /// It is served at once and revalidated in the background.
    Revalidate,
    /// It is revalidated before it is served.
    Stale,
}

impl FreshnessPolicy {
    /// One rule for all tags.
    pub fn of(ttl: Ttl) -> FreshnessPolicy {
        let rules = TagRules { otherwise: Some(ttl), ..TagRules::default() };
        FreshnessPolicy { rules, ..FreshnessPolicy::default() }
    }

    /// How long this tag is fresh.
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

    /// How long a tag must have been observed at another manifest before that is accepted; `None` if it is accepted at
    /// once. Tags that the referrers of an image are found by are not held: they move with each new signature.
    pub fn hold(&self, name: &ImageName, tag: &Tag) -> Option<Duration> {
        if tag.subject().is_some() {
            return None;
        }
        let of_registry = self.by_upstream.get(&name.upstream);
        let own = of_registry.and_then(|rules| rules.first(tag, |rule| rule.hold));
        let hold = own.or_else(|| self.rules.first(tag, |rule| rule.hold));
        hold.filter(|hold| !hold.is_zero())
    }

    /// Whether a tag that its registry has deleted is removed. Not if it may be held: without a record nothing is held, so
    /// whoever can delete a tag could move it.
    pub(super) fn drops_deleted(&self, name: &ImageName, tag: &Tag) -> bool {
        self.on_upstream_delete == OnUpstreamDelete::Drop && self.hold(name, tag).is_none()
    }

    /// Whether a tag that was confirmed at `checked` is served without a request.
    pub fn is_fresh(
        &self,
        name: &ImageName,
        tag: &Tag,
        checked: SystemTime,
        now: SystemTime,
    ) -> bool {
        matches!(self.belief(name, tag, checked, now), Belief::Fresh(_))
    }

    /// Whether a tag that was confirmed at `checked` is fresh.
    ///
    /// A `checked` in the future counts as now if it is near, and as unknown otherwise: the clock was set back, and the
    /// record would be fresh for as long as the clock had been wrong.
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
        if checked.duration_since(now).is_ok_and(|ahead| ahead > CLOCK_STEP_MAX) {
            return Belief::Stale;
        }
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
    fn a_tag_is_fresh_until_its_ttl_ends() {
        for (ttl, always_pull_latest, tag, checked, now, fresh) in [
            (MINUTE, false, "1", 1000, 1059, true),
            (MINUTE, false, "1", 1000, 1060, false),
            (MINUTE, false, "latest", 1000, 1001, true),
            (MINUTE, true, "latest", 1000, 1001, false),
            (MINUTE, true, "latest-1", 1000, 1001, true),
            (Ttl::Forever, false, "1", 0, u64::from(u32::MAX), true),
            (Ttl::Forever, true, "latest", 0, 1, false),
            (Ttl::Always, false, "1", 1000, 1000, false),
            (MINUTE, false, "1", 1060, 1000, true),
            (MINUTE, false, "1", 1061, 1000, false),
            (Ttl::Forever, false, "1", 5000, 1000, true),
        ] {
            let policy = FreshnessPolicy { always_pull_latest, ..FreshnessPolicy::of(ttl) };
            let belief = policy.belief(&quay(), &tag.parse().unwrap(), at(checked), at(now));
            let is_fresh = matches!(belief, Belief::Fresh(_));
            assert_eq!(is_fresh, fresh, "{ttl:?} {tag} {checked} {now}");
        }
    }

    #[test]
    fn a_record_from_the_future_is_fresh_for_one_ttl_at_most() {
        let policy = FreshnessPolicy::of(MINUTE);
        let belief = |checked| policy.belief(&quay(), &"1".parse().unwrap(), at(checked), at(1000));
        assert_eq!(belief(1060), Belief::Fresh(Some(at(1060))));
        assert_eq!(belief(9_999_999), Belief::Stale);
    }

    #[test]
    fn the_first_matching_rule_applies_and_rules_of_a_registry_come_first() {
        let rule = |pattern: &str, ttl| TagRule {
            pattern: pattern.parse().unwrap(),
            ttl: Some(ttl),
            hold: None,
        };
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
    fn the_first_rule_that_sets_hold_applies() {
        let hours = |hours: u64| Some(Duration::from_secs(hours * 3600));
        let rule =
            |pattern: &str, ttl, hold| TagRule { pattern: pattern.parse().unwrap(), ttl, hold };
        let own = TagRules {
            patterns: vec![rule("nightly", None, hours(0)), rule("v*", Some(MINUTE), None)],
            otherwise: None,
        };
        let rules = TagRules {
            patterns: vec![rule("v1*", None, hours(24)), rule("*", None, hours(72))],
            otherwise: Some(Ttl::Always),
        };
        let by_upstream = HashMap::from([(quay().upstream, own)]);
        let policy = FreshnessPolicy { by_upstream, rules, ..FreshnessPolicy::default() };
        let referrers = format!("sha256-{}.sig", "a".repeat(64));
        for (upstream, tag, hold, ttl) in [
            ("quay.io", "nightly", None, Ttl::Always),
            ("quay.io", "v1.2", hours(24), MINUTE),
            ("quay.io", "v2", hours(72), MINUTE),
            ("ghcr.io", "nightly", hours(72), Ttl::Always),
            ("ghcr.io", referrers.as_str(), None, Ttl::Always),
        ] {
            let tag = tag.parse().unwrap();
            assert_eq!(policy.hold(&image(upstream), &tag), hold, "{upstream} {tag}");
            assert_eq!(policy.ttl(&image(upstream), &tag), ttl, "{upstream} {tag}");
        }
    }

    #[test]
    fn the_servers_own_image_is_never_revalidated() {
        let own = Some(PartReference::parse("quay.io/org/app:latest").unwrap());
        let asked =
            FreshnessPolicy { always_pull_latest: true, ..FreshnessPolicy::of(Ttl::Always) };
        let policy = FreshnessPolicy { own, ..asked };
        let belief = policy.belief(&quay(), &"latest".parse().unwrap(), at(0), at(1_000_000));
        assert_eq!(belief, Belief::Fresh(None));
        assert_eq!(policy.ttl(&image("ghcr.io"), &"latest".parse().unwrap()), Ttl::Always);
        let other = policy.ttl(&quay(), &"linux".parse().unwrap());
        assert_eq!(other, Ttl::Always, "the rules apply to the other tags of that repository");
    }

    #[test]
    fn an_expired_tag_is_served_while_it_is_revalidated_for_a_limited_time() {
        let stale_while_revalidate = Duration::from_secs(30);
        let policy = |ttl| FreshnessPolicy { stale_while_revalidate, ..FreshnessPolicy::of(ttl) };
        for (ttl, now, belief) in [
            (MINUTE, 1059, Belief::Fresh(Some(at(1060)))),
            (MINUTE, 1060, Belief::Revalidate),
            (MINUTE, 1089, Belief::Revalidate),
            (MINUTE, 1090, Belief::Stale),
            // `Always` means that each request waits for the registry.
            (Ttl::Always, 1001, Belief::Stale),
        ] {
            let got = policy(ttl).belief(&quay(), &"1".parse().unwrap(), at(1000), at(now));
            assert_eq!(got, belief, "{ttl:?} {now}");
        }
    }
}
