//! How long tags are fresh: `tagTtl`, `tags`, and the keys next to them.

use super::ConfigError;
use super::file::{File, OnDelete, RegistryEntry};
use super::keys::{Comparison, Section, Unset, Value, section};
#[cfg(test)]
use super::keys::{Key, Map, Shape};
use super::value::{Span, Text, TtlText};
use crate::cache::{FreshnessPolicy, OnUpstreamDelete, TagRule, TagRules};
use crate::oci::Pattern;

section! {
    /// An entry of `tags`.
    TagRuleEntry {
        /// A glob that matches the complete tag (`*` is any text, `?` any character), or between slashes a regular
        /// expression that matches a part of it.
        "pattern" pattern: Text<Pattern>;
        /// As `tagTtl`, for the tags that match.
        "tagTtl" tag_ttl: Option<Text<TtlText>> = None, default "the next rule that matches";
        /// If a cached tag moves at the registry, keep serving the previous manifest until the move has been observed for
        /// this long, or until `larder tags accept`; `0` accepts moves at once. See [Tags that move](#tags-that-move).
        "hold" hold: Option<Text<Span>> = None, default "the next rule that matches, or `0`";
    }
}

/// The freshness policy of a file.
///
/// # Errors
/// [`ConfigError::Value`] for a rule that sets nothing.
pub(super) fn policy(file: &File) -> Result<FreshnessPolicy, ConfigError> {
    let of_registry = |entry: &RegistryEntry| {
        Ok((entry.name.0.clone(), rules(&entry.tags, entry.tag_ttl.as_ref())?))
    };
    Ok(FreshnessPolicy {
        own: None,
        always_pull_latest: file.always_pull_latest,
        by_upstream: file.registries.iter().map(of_registry).collect::<Result<_, _>>()?,
        rules: rules(&file.tags, Some(&file.tag_ttl))?,
        stale_while_revalidate: file.stale_while_revalidate.0.0,
        on_upstream_delete: match file.on_upstream_delete {
            OnDelete::Keep => OnUpstreamDelete::Keep,
            OnDelete::Drop => OnUpstreamDelete::Drop,
        },
    })
}

fn rules(
    tags: &[TagRuleEntry],
    otherwise: Option<&Text<TtlText>>,
) -> Result<TagRules, ConfigError> {
    let patterns = tags.iter().map(rule).collect::<Result<_, _>>()?;
    Ok(TagRules { patterns, otherwise: otherwise.map(|ttl| ttl.0.0) })
}

fn rule(entry: &TagRuleEntry) -> Result<TagRule, ConfigError> {
    let pattern = entry.pattern.0.clone();
    if entry.tag_ttl.is_none() && entry.hold.is_none() {
        let reason = format!("the rule for {pattern} needs tagTtl or hold");
        return Err(ConfigError::Value { key: "tags", reason });
    }
    let (ttl, hold) = (entry.tag_ttl.as_ref(), entry.hold.as_ref());
    Ok(TagRule { pattern, ttl: ttl.map(|ttl| ttl.0.0), hold: hold.map(|hold| hold.0.0) })
}
