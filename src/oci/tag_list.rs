//! Tag lists and their pagination: distribution-spec, "Listing Tags".

use super::Tag;

/// A page of a tag list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagPage {
    /// The tags, in byte order.
    pub tags: Vec<String>,
    /// The query of the next page, if there is one.
    pub next: Option<String>,
}

/// The query of a request for a tag list. Parameters other than `n` and `last` are specific to a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TagQuery<'a> {
    /// `n`: the maximum number of tags. Together with any other parameter, 0 is not a number: in ghcr.io's links to
    /// the next page it means "no limit".
    pub count: Option<usize>,
    /// `last`: only tags after this one.
    pub last: Option<&'a str>,
    /// Whether there are other parameters. A registry put them into its link to the next page. Only the registry
    /// knows what they mean, and what `n` and `last` mean beside them.
    pub has_others: bool,
}

impl<'a> TagQuery<'a> {
    /// Parses a raw query. Tags need no percent-encoding, so nothing is decoded. Invalid values are ignored.
    pub fn parse(query: &'a str) -> TagQuery<'a> {
        let value = |name: &str| {
            query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
        };
        let last = value("last").filter(|last| !last.is_empty());
        let count = value("n").and_then(|n| n.parse().ok());
        let is_other = |pair: &str| {
            !matches!(pair.split('=').next(), Some("n" | "last" | "")) && !pair.is_empty()
        };
        let has_others = query.split('&').any(is_other);
        let is_number = |count: &usize| *count > 0 || (last.is_none() && !has_others);
        TagQuery { count: count.filter(is_number), last, has_others }
    }

    /// Whether the query requests no tags at all: distribution-spec, "Listing Tags".
    pub fn is_for_none(&self) -> bool {
        self.count == Some(0)
    }

    /// Whether the query can be applied to any list of tags. In some registries (ECR), `last` may be an opaque token.
    pub fn is_by_name(&self) -> bool {
        !self.has_others && self.last.is_none_or(|last| last.parse::<Tag>().is_ok())
    }

    /// The page of a complete list.
    pub fn page(&self, mut tags: Vec<String>) -> TagPage {
        tags.sort();
        tags.dedup();
        if let Some(last) = self.last {
            tags.retain(|tag| tag.as_str() > last);
        }
        let next = match self.count {
            Some(count) if count < tags.len() => {
                tags.truncate(count);
                tags.last().map(|last| format!("n={count}&last={last}"))
            }
            _ => None,
        };
        TagPage { tags, next }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(tags: &[&str], query: &str) -> (String, Option<String>) {
        let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
        let page = TagQuery::parse(query).page(tags);
        (page.tags.join(" "), page.next)
    }

    #[test]
    fn pages_follow_each_other_to_the_end() {
        let tags = ["c", "a", "d", "b", "a"];
        assert_eq!(page(&tags, ""), ("a b c d".into(), None));
        assert_eq!(page(&tags, "n=2"), ("a b".into(), Some("n=2&last=b".into())));
        assert_eq!(page(&tags, "n=2&last=b"), ("c d".into(), None));
        assert_eq!(page(&tags, "last=bb"), ("c d".into(), None));
        assert_eq!(page(&tags, "n=4"), ("a b c d".into(), None));
        assert_eq!(page(&tags, "n=0"), (String::new(), None));
        assert_eq!(page(&tags, "n=0&last=b"), ("c d".into(), None));
        assert_eq!(page(&tags, "n=x&last="), ("a b c d".into(), None));
        assert_eq!(page(&[], "n=2&last=b"), (String::new(), None));
    }

    #[test]
    fn registry_specific_parameters_are_detected() {
        for (query, is_for_none, is_by_name) in [
            ("", false, true),
            ("n=0", true, true),
            ("n=0&", true, true),
            ("n=0&last=", true, true),
            ("n=0&last=a", false, true),
            ("n=0&next_page=abc", false, false),
            ("page=2&n=5", false, false),
            ("n=5&last=eyJuIjo1fQ%3D%3D", false, false),
            ("n=5&last=v1.0", false, true),
        ] {
            let parsed = TagQuery::parse(query);
            assert_eq!(
                (parsed.is_for_none(), parsed.is_by_name()),
                (is_for_none, is_by_name),
                "{query}"
            );
        }
    }
}
