//! Tag lists and their pages: distribution-spec, "Listing Tags".

/// The part of a tag list that a query asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagPage {
    /// The tags, in byte order.
    pub tags: Vec<String>,
    /// The query of the next page, if there is one.
    pub next: Option<String>,
}

/// What a tag list's query says; other parameters are a registry's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TagQuery<'a> {
    /// `n`: at most this many. Behind a `last`, 0 is not a number but the word of ghcr.io for "as many as
    /// you like": its links to the next page say so.
    pub count: Option<usize>,
    /// `last`: only those behind this one.
    pub last: Option<&'a str>,
}

impl<'a> TagQuery<'a> {
    /// Reads a raw query. A tag needs no percent-encoding, so nothing is decoded; a value that makes no
    /// sense counts as not given.
    pub fn parse(query: &'a str) -> TagQuery<'a> {
        let value = |name: &str| {
            query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
        };
        let last = value("last").filter(|last| !last.is_empty());
        let count = value("n").and_then(|n| n.parse().ok());
        TagQuery { count: count.filter(|count| *count > 0 || last.is_none()), last }
    }

    /// The page of a whole list.
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
}
