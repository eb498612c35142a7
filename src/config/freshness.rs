//! How long tags are fresh: `tagTtl`, `tags`, and the keys next to them.

use super::file::{File, OnDelete, TagRuleEntry};
use super::value::{Text, TtlText};
use crate::cache::{FreshnessPolicy, OnUpstreamDelete, TagRules};

/// The freshness policy of a file.
pub(super) fn policy(file: &File) -> FreshnessPolicy {
    let of_registry = file.registries.iter();
    let of_registry =
        of_registry.map(|entry| (entry.name.0.clone(), rules(&entry.tags, entry.tag_ttl.as_ref())));
    FreshnessPolicy {
        own: None,
        always_pull_latest: file.always_pull_latest,
        by_upstream: of_registry.collect(),
        rules: rules(&file.tags, Some(&file.tag_ttl)),
        stale_while_revalidate: file.stale_while_revalidate.0.0,
        on_upstream_delete: match file.on_upstream_delete {
            OnDelete::Keep => OnUpstreamDelete::Keep,
            OnDelete::Drop => OnUpstreamDelete::Drop,
        },
    }
}

fn rules(tags: &[TagRuleEntry], otherwise: Option<&Text<TtlText>>) -> TagRules {
    TagRules {
        patterns: tags.iter().map(|rule| (rule.pattern.0.clone(), rule.tag_ttl.0.0)).collect(),
        otherwise: otherwise.map(|ttl| ttl.0.0),
    }
}
