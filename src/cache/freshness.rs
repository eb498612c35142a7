//! How long a tag is believed. Pure: a policy, a record's age, a verdict.

use std::time::{Duration, SystemTime};

use crate::oci::Tag;

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

/// The freshness policy of this server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FreshnessPolicy {
    /// For all tags.
    pub tag_ttl: Ttl,
    /// Whether `latest` is asked for every time whatever `tag_ttl` says.
    pub always_pull_latest: bool,
}

/// Five minutes: a rollout of one tag to a cluster asks upstream once, a re-tag is seen soon.
const TAG_TTL: Duration = Duration::from_secs(300);

impl Default for FreshnessPolicy {
    fn default() -> Self {
        FreshnessPolicy { tag_ttl: Ttl::For(TAG_TTL), always_pull_latest: false }
    }
}

impl FreshnessPolicy {
    /// Until when a tag that upstream confirmed at `checked` is believed; `None` is for ever.
    ///
    /// A `checked` in the future (the clock was set back) counts as now: such a record would else be
    /// believed for as long as the clock was wrong.
    pub fn fresh_until(
        &self,
        tag: &Tag,
        checked: SystemTime,
        now: SystemTime,
    ) -> Option<SystemTime> {
        let ttl = match self.always_pull_latest && tag.as_str() == "latest" {
            true => Ttl::Always,
            false => self.tag_ttl,
        };
        match ttl {
            Ttl::Always => Some(SystemTime::UNIX_EPOCH),
            Ttl::For(duration) => checked.min(now).checked_add(duration),
            Ttl::Forever => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let minute = Ttl::For(Duration::from_secs(60));
        for (tag_ttl, always_pull_latest, tag, checked, now, fresh) in [
            (minute, false, "1", 1000, 1059, true),
            (minute, false, "1", 1000, 1060, false),
            (minute, false, "latest", 1000, 1001, true),
            (minute, true, "latest", 1000, 1001, false),
            (minute, true, "latest-1", 1000, 1001, true),
            (Ttl::Forever, false, "1", 0, u64::from(u32::MAX), true),
            (Ttl::Forever, true, "latest", 0, 1, false),
            (Ttl::Always, false, "1", 1000, 1000, false),
            (minute, false, "1", 5000, 1000, true),
        ] {
            let policy = FreshnessPolicy { tag_ttl, always_pull_latest };
            let until = policy.fresh_until(&tag.parse().unwrap(), at(checked), at(now));
            let is_fresh = until.is_none_or(|until| at(now) < until);
            assert_eq!(is_fresh, fresh, "{tag_ttl:?} {tag} {checked} {now}");
        }
    }

    #[test]
    fn a_record_from_the_future_is_not_believed_until_then() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let policy = FreshnessPolicy {
            tag_ttl: Ttl::For(Duration::from_secs(60)),
            always_pull_latest: false,
        };
        let tag = "1".parse().unwrap();
        assert_eq!(policy.fresh_until(&tag, at(9_999_999), at(1000)), Some(at(1060)));
    }
}
