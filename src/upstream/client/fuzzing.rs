//! Fuzz targets: lists of tags and referrers, links to next pages, and rate limits.

use std::time::Instant;

use serde::Deserialize;
use ureq::http::HeaderMap;

use super::check::Memory;
use super::list::{empty_index, next_query, read_referrers, read_tags};
use super::quota::Quota;
use crate::fuzzing::line;
use crate::oci::{Repository, Tag, TagQuery};
use crate::upstream::response::texts;

/// Reads the headers that this module reads from any response.
pub(in crate::upstream) fn response_headers(headers: &HeaderMap) {
    let quota = Quota::default();
    quota.note(headers, &"docker.io".parse().expect("valid"), Instant::now());
    if let Some(limit) = quota.latest() {
        assert!(limit.limit.is_some() || limit.remaining.is_some());
        let is_safe = |source: &String| !source.chars().any(char::is_control) && source.len() <= 64;
        assert!(limit.source.iter().all(is_safe));
    }
    let lines: Vec<&str> = texts(headers, "link").collect();
    check_link(&lines);
}

/// Input: lines of `Link`.
pub(crate) fn link(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    check_link(&text.lines().collect::<Vec<_>>());
}

fn check_link(lines: &[&str]) {
    let query = match next_query(lines.iter().copied()) {
        Ok(Some(query)) => query,
        Ok(None) => return,
        Err(target) => {
            assert!(target.chars().count() <= 200);
            return;
        }
    };
    // It becomes part of a request to the registry, of a link for clients and of a stored record.
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"\"<>\\#".contains(&byte);
    assert!(!query.is_empty() && query.bytes().all(is_plain), "{query:?}");
    assert!(query.split('&').all(|pair| !pair.starts_with("ns=")), "{query:?}");
    let ours = format!("</v2/a/tags/list?{query}>; rel=\"next\"");
    assert_eq!(next_query([&*ours]), Ok(Some(query)), "the link for clients leads elsewhere");
}

/// Input: a line with the query, a line with the query of the next page (empty for none), and the response to a
/// request for tags.
pub(crate) fn tag_list(data: &[u8]) {
    #[derive(Deserialize)]
    struct List {
        name: String,
        tags: Vec<String>,
    }
    let (query, rest) = line(data);
    let (next, body) = line(rest);
    let next = Some(next).filter(|next| !next.is_empty());
    let repository: Repository = "team/app".parse().expect("valid");
    let mut sink = Memory::default();
    let Ok(read) = read_tags(body, &repository, &query, next.clone(), &mut sink) else { return };
    let list: List = serde_json::from_slice(&sink.0).expect("Larder writes valid lists");
    assert_eq!(list.name, "team/app");
    assert!(list.tags.iter().all(|tag| tag.parse::<Tag>().is_ok()), "{:?}", list.tags);
    let parsed = TagQuery::parse(&query);
    if let (None, Some(cut)) = (&next, &read.next) {
        // Larder has cut the list: the page is what the query demands, and the next one begins after it.
        let following = TagQuery::parse(cut);
        assert_eq!(following.count, parsed.count);
        assert_eq!(following.last, list.tags.last().map(String::as_str));
        assert_eq!(parsed.count, Some(list.tags.len()));
        assert!(
            list.tags.is_sorted() && parsed.last.is_none_or(|last| list.tags[0].as_str() > last)
        );
    } else {
        assert_eq!(read.next, next);
    }
    // A list from Larder, read by another Larder, is the same list.
    let mut again = Memory::default();
    read_tags(&*sink.0, &repository, "", None, &mut again).expect("a list is a list");
    assert_eq!(again.0, sink.0);
}

/// Input: the response to a request for referrers.
pub(crate) fn referrers(data: &[u8]) {
    let mut sink = Memory::default();
    if read_referrers(data, &mut sink).is_err() {
        return;
    }
    assert!(sink.0 == data || sink.0 == empty_index().as_bytes(), "it is passed on unchanged");
    let mut again = Memory::default();
    read_referrers(&*sink.0, &mut again).expect("an index is an index");
    assert_eq!(again.0, sink.0);
}
