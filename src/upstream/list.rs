//! Lists: tag pages and referrers as registries really send them.

use serde::Deserialize;

use super::List;
use crate::oci::{MediaType, Tag, TagPage, TagQuery};

/// The longest query of a next page that is passed on.
const NEXT_QUERY_BYTES_MAX: usize = 2048;

#[derive(Deserialize)]
struct Tags {
    name: Option<String>,
    tags: Option<Vec<Option<String>>>,
}

/// Normalises a page of tags: `null` lists and `null` entries occur (Nexus), as do digests among the
/// tags (Artifactory); neither is a tag. Registries that ignore `n` and `last` (docker-registry 2.8)
/// send everything every time; their list is cut to the page that was asked for.
///
/// `None` if it is no tag list at all.
pub(super) fn accept_tags(
    body: &[u8],
    repository: &str,
    query: &str,
    next: Option<String>,
) -> Option<List> {
    let answer: Tags = serde_json::from_slice(body).ok()?;
    if answer.name.is_none() && answer.tags.is_none() {
        return None;
    }
    let tags = answer.tags.unwrap_or_default().into_iter().flatten();
    let tags: Vec<String> = tags.filter(|tag| tag.parse::<Tag>().is_ok()).collect();
    let query = TagQuery::parse(query);
    let page = match next.is_some() || query.is_heeded_by(&tags) {
        true => TagPage { tags, next },
        false => query.page(tags),
    };
    Some(List::of_tags(repository, page))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    media_type: Option<String>,
    manifests: Option<Vec<serde_json::Value>>,
}

/// Takes a referrers answer as it is, if it is an image index.
pub(super) fn accept_referrers(body: Vec<u8>) -> Option<String> {
    let index: Index = serde_json::from_slice(&body).ok()?;
    let is_index = index.schema_version == 2
        && index.manifests.is_some()
        && index.media_type.is_none_or(|media_type| media_type == MediaType::OCI_INDEX);
    if is_index { String::from_utf8(body).ok() } else { None }
}

/// The query of the next page out of `Link` header lines (RFC 8288). Only the query: the rest of the
/// URL is the registry's, and ours is another.
pub(super) fn next_query<'a>(lines: impl IntoIterator<Item = &'a str>) -> Option<String> {
    lines.into_iter().find_map(|line| {
        // Each link begins with `<`, and its parameters end where the next one begins.
        line.split('<').skip(1).find_map(|link| {
            let (target, parameters) = link.split_once('>')?;
            if is_next(parameters) { clean_query(target) } else { None }
        })
    })
}

fn is_next(parameters: &str) -> bool {
    parameters.split([';', ',']).any(|parameter| {
        matches!(parameter.trim().to_ascii_lowercase().as_str(), "rel=\"next\"" | "rel=next")
    })
}

fn clean_query(target: &str) -> Option<String> {
    let query = target.split_once('?')?.1.split('#').next()?;
    let is_clean = query.len() <= NEXT_QUERY_BYTES_MAX
        && query.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"<>\\".contains(&byte));
    // `ns` chooses the registry at ours; a registry has no say in that.
    let pairs = query.split('&').filter(|pair| !pair.is_empty() && !pair.starts_with("ns="));
    is_clean.then(|| pairs.collect::<Vec<_>>().join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tag_pages_are_normalised() {
        let accept = |body: &str, query| accept_tags(body.as_bytes(), "r", query, None);
        for (body, query, expected, next) in [
            (r#"{"name":"x","tags":["a","b"]}"#, "", r#"{"name":"r","tags":["a","b"]}"#, None),
            (r#"{"name":"x","tags":null}"#, "", r#"{"name":"r","tags":[]}"#, None),
            (r#"{"tags":["a",null,"sha256:00"]}"#, "", r#"{"name":"r","tags":["a"]}"#, None),
            (r#"{"tags":["b","a"]}"#, "n=1", r#"{"name":"r","tags":["a"]}"#, Some("n=1&last=a")),
            (r#"{"tags":["b","a"]}"#, "last=a", r#"{"name":"r","tags":["b"]}"#, None),
        ] {
            let list = accept(body, query).unwrap();
            assert_eq!((list.body.as_str(), list.next.as_deref()), (expected, next), "{body}");
        }
        for body in ["", "{}", "<html>", r#"{"errors":[]}"#, "[]"] {
            assert_eq!(accept(body, ""), None, "{body}");
        }
    }

    #[test]
    fn the_next_page_is_a_query_only() {
        for (line, expected) in [
            (r#"</v2/a/tags/list?n=5&last=b>; rel="next""#, Some("n=5&last=b")),
            (r#"<https://reg.io/v2/a/tags/list?last=b&ns=evil&n=5>; rel=next"#, Some("last=b&n=5")),
            (r#"</prev?n=1>; rel="prev",</next?n=2>; rel="next""#, Some("n=2")),
            (r#"</x?last=p>; rel="prev", </x?last=n>; rel="next""#, Some("last=n")),
            (r#"</v2/a/tags/list?n=5>; rel="prev""#, None),
            ("<>; rel=next", None),
            ("garbage", None),
            (r#"</x?a"b>; rel="next""#, None),
        ] {
            assert_eq!(next_query([line]).as_deref(), expected, "{line}");
        }
    }

    #[test]
    fn referrers_must_be_an_index() {
        let index = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
        assert_eq!(accept_referrers(index.into()).as_deref(), Some(index));
        for body in [
            "<html>",
            "{}",
            r#"{"schemaVersion":2,"layers":[]}"#,
            r#"{"schemaVersion":2,"mediaType":"x/y","manifests":[]}"#,
        ] {
            assert_eq!(accept_referrers(body.into()), None, "{body}");
        }
    }
}
