//! How long tags are believed: `tagTtl`, `tags`, and what stands beside them.

use std::collections::HashMap;

use super::file::{File, OnDelete, TagRuleEntry};
use super::value::{Text, TtlText};
use crate::cache::{FreshnessPolicy, OnUpstreamDelete, TAG_TTL, TagRules};

/// The policy of a file. `always_pull_latest` is a flag's as well.
pub(super) fn policy(file: &File, always_pull_latest: bool) -> FreshnessPolicy {
    let by_upstream =
        file.registries.iter().flatten().map(|entry| {
            (entry.name.0.clone(), rules(entry.tags.as_deref(), entry.tag_ttl.as_ref()))
        });
    let mut for_all = rules(file.tags.as_deref(), file.tag_ttl.as_ref());
    for_all.otherwise.get_or_insert(TAG_TTL);
    FreshnessPolicy {
        own: None,
        always_pull_latest,
        by_upstream: by_upstream.collect::<HashMap<_, _>>(),
        rules: for_all,
        stale_while_revalidate: file
            .stale_while_revalidate
            .as_ref()
            .map(|span| span.0.0)
            .unwrap_or_default(),
        on_upstream_delete: match file.on_upstream_delete {
            None | Some(OnDelete::Keep) => OnUpstreamDelete::Keep,
            Some(OnDelete::Drop) => OnUpstreamDelete::Drop,
        },
    }
}

fn rules(tags: Option<&[TagRuleEntry]>, otherwise: Option<&Text<TtlText>>) -> TagRules {
    let patterns = tags.unwrap_or_default().iter();
    TagRules {
        patterns: patterns.map(|rule| (rule.pattern.0.clone(), rule.tag_ttl.0.0)).collect(),
        otherwise: otherwise.map(|ttl| ttl.0.0),
    }
}
