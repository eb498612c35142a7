//! Lists: tag pages and referrers, in the variants that registries send.
//!
//! They are parsed as a stream, since a list may have megabytes and many are read at the same time.
//!
//! # Pages
//! Registries implement paging differently. ECR's `last` is a token unrelated to tags, and its pages are unordered;
//! ghcr.io lists tags by the time of the push. Therefore a page is passed on unchanged. It is cut only if the registry
//! has certainly ignored the query, as `docker-registry` 2.8 does: the response names no next page, and it either has
//! more than `n` tags for a first page, or contains the tag `last` itself. If the query has other parameters, which are
//! specific to the registry, its response is passed on unchanged.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, BufReader, Read};
use std::sync::Arc;

use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::oci::{MediaType, Repository, Tag, TagQuery};
use crate::upstream::error::UpstreamError;
use crate::upstream::{DocumentSink, List};

/// The longest query of a next page that is passed on: the longest request line that Larder accepts, minus the path.
const NEXT_QUERY_BYTES_MAX: usize = 6 * 1024;
/// The largest list of tags, in bytes. The lists of gcr.io describe every manifest.
const TAGS_ANSWER_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// The largest list of referrers, in bytes.
const REFERRERS_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// The longest string in a list of referrers, in bytes: annotations may contain a signature with its certificates.
const REFERRER_STRING_BYTES_MAX: u64 = 128 * 1024;
/// The longest string in a list of tags, in bytes. It is in memory while it is parsed.
const STRING_BYTES_MAX: u64 = 64 * 1024;
/// The largest page that is cut, in bytes. A larger one is passed on uncut: it is complete, but longer than requested.
const CUT_BYTES_MAX: usize = 512 * 1024;
/// The memory for a tag in addition to its bytes.
const TAG_OVERHEAD_BYTES: usize = 48;

/// Why a list cannot be read.
#[derive(Debug)]
pub(super) enum ListReadError {
    /// The response is not a list.
    NotAList,
    /// The connection broke, or the list is too large.
    Io(io::Error),
}

impl ListReadError {
    pub(super) fn of_request(self, request: &Arc<str>, no_list: &'static str) -> UpstreamError {
        match self {
            ListReadError::NotAList => UpstreamError::bad_answer(request, no_list),
            ListReadError::Io(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                UpstreamError::bad_answer(request, error.to_string())
            }
            ListReadError::Io(error) => UpstreamError::from_body(request, error),
        }
    }
}

impl From<serde_json::Error> for ListReadError {
    fn from(error: serde_json::Error) -> ListReadError {
        match error.is_io() {
            true => ListReadError::Io(error.into()),
            false => ListReadError::NotAList,
        }
    }
}

/// A reader that fails after a number of bytes, or on a string that is too long.
struct Bounded<R> {
    inner: R,
    bytes_max: u64,
    string_bytes_max: u64,
    bytes: u64,
    since_quote: u64,
    is_escaped: bool,
}

impl<R> Bounded<R> {
    fn new(inner: R, bytes_max: u64, string_bytes_max: u64) -> Bounded<R> {
        let (bytes, since_quote, is_escaped) = (0, 0, false);
        Bounded { inner, bytes_max, string_bytes_max, bytes, since_quote, is_escaped }
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.bytes += read as u64;
        // Between two quotation marks is a string, or the text between two strings.
        for byte in &buffer[..read] {
            self.since_quote = match (byte, self.is_escaped) {
                (b'"', false) => 0,
                _ => self.since_quote + 1,
            };
            self.is_escaped = *byte == b'\\' && !self.is_escaped;
            if self.since_quote > self.string_bytes_max {
                return Err(too_large("a string in it", self.string_bytes_max));
            }
        }
        match self.bytes > self.bytes_max {
            true => Err(too_large("it", self.bytes_max)),
            false => Ok(read),
        }
    }
}

fn too_large(what: &str, bytes_max: u64) -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, format!("{what} is larger than {bytes_max} bytes"))
}

/// Writes the document of a tag list: distribution-spec, "Listing Tags".
pub struct TagListWriter<'a> {
    sink: &'a mut dyn DocumentSink,
    is_empty: bool,
}

impl<'a> TagListWriter<'a> {
    /// Begins the document and discards the contents of the sink.
    pub fn start(sink: &'a mut dyn DocumentSink, repository: &Repository) -> TagListWriter<'a> {
        sink.restart();
        // Names of repositories and tags contain no characters that need escaping in JSON.
        sink.write(format!("{{\"name\":\"{repository}\",\"tags\":[").as_bytes());
        TagListWriter { sink, is_empty: true }
    }

    /// Appends a tag, which must be valid.
    pub fn push(&mut self, tag: &str) {
        self.sink.write(if self.is_empty { b"\"" } else { b",\"" });
        self.sink.write(tag.as_bytes());
        self.sink.write(b"\"");
        self.is_empty = false;
    }

    /// Ends the document.
    pub fn finish(self) {
        self.sink.write(b"]}");
    }
}

/// Selects the tags of the requested page while the list is read.
struct Cut<'a> {
    query: TagQuery<'a>,
    tags: BTreeSet<String>,
    bytes: usize,
    /// The number of tags in the response.
    count: usize,
    has_last: bool,
    begins_with_last: bool,
    is_sorted: bool,
    previous: String,
    is_too_large: bool,
}

impl<'a> Cut<'a> {
    fn new(query: TagQuery<'a>) -> Cut<'a> {
        Cut {
            query,
            tags: BTreeSet::new(),
            bytes: 0,
            count: 0,
            has_last: false,
            begins_with_last: false,
            is_sorted: true,
            previous: String::new(),
            is_too_large: false,
        }
    }

    fn note(&mut self, tag: &str) {
        self.is_sorted &= self.previous.as_str() <= tag;
        tag.clone_into(&mut self.previous);
        if self.query.last == Some(tag) {
            self.has_last = true;
            self.begins_with_last |= self.count == 0;
        }
        self.count += 1;
        if self.is_too_large || self.query.last.is_some_and(|last| tag <= last) {
            return;
        }
        if self.tags.insert(tag.to_owned()) {
            self.bytes += tag.len() + TAG_OVERHEAD_BYTES;
        }
        // One tag more than the page shows that there is a next page.
        if self.query.count.is_some_and(|count| self.tags.len() > count.saturating_add(1))
            && let Some(largest) = self.tags.pop_last()
        {
            self.bytes -= largest.len() + TAG_OVERHEAD_BYTES;
        }
        if self.bytes > CUT_BYTES_MAX {
            (self.is_too_large, self.tags) = (true, BTreeSet::new());
        }
    }

    /// Whether the registry has ignored the query.
    fn is_ignored(&self) -> bool {
        if self.query.has_others {
            return false;
        }
        match self.query.last {
            // An unsorted list that begins with `last` comes from a registry that includes `last` in the page.
            Some(_) => self.has_last && (self.is_sorted || !self.begins_with_last),
            None => self.query.count.is_some_and(|count| self.count > count),
        }
    }
}

/// Reads a page of tags. Skips `null` lists and `null` entries, which Nexus sends, and digests, which Artifactory sends
/// among the tags. `next` is the query of the next page.
pub(super) fn read_tags(
    reader: impl Read,
    repository: &Repository,
    query: &str,
    next: Option<String>,
    sink: &mut dyn DocumentSink,
) -> Result<List, ListReadError> {
    let reader = Bounded::new(reader, TAGS_ANSWER_BYTES_MAX, STRING_BYTES_MAX);
    let mut cut = Cut::new(TagQuery::parse(query));
    let has_query = cut.query != TagQuery::default();
    let mut writer = TagListWriter::start(sink, repository);
    let mut take = |tag: &str| {
        writer.push(tag);
        if has_query {
            cut.note(tag);
        }
    };
    let mut answer = serde_json::Deserializer::from_reader(BufReader::new(reader));
    let is_list = answer.deserialize_map(TagsAnswer { take: &mut take })?;
    answer.end()?;
    if !is_list {
        return Err(ListReadError::NotAList);
    }
    writer.finish();
    if next.is_some() || !has_query || !cut.is_ignored() || cut.is_too_large {
        return Ok(List { next, filters_applied: None });
    }
    let page = cut.query.page(cut.tags.into_iter().collect());
    let mut writer = TagListWriter::start(sink, repository);
    page.tags.iter().for_each(|tag| writer.push(tag));
    writer.finish();
    Ok(List { next: page.next, filters_applied: None })
}

/// The complete response. Its value is whether it is a list.
struct TagsAnswer<'a> {
    take: &'a mut dyn FnMut(&str),
}

impl<'de> Visitor<'de> for TagsAnswer<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of tags")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<bool, A::Error> {
        let (mut has_name, mut has_tags) = (false, false);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "tags" if has_tags => {
                    return Err(de::Error::custom("it contains two lists of tags"));
                }
                "tags" => {
                    has_tags = map.next_value_seed(Tags { take: &mut *self.take })?;
                }
                "name" => has_name = map.next_value::<Option<IgnoredAny>>()?.is_some(),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(has_name || has_tags)
    }
}

/// The array of tags, or `null`. Its value is whether it is an array.
struct Tags<'a> {
    take: &'a mut dyn FnMut(&str),
}

impl<'de> de::DeserializeSeed<'de> for Tags<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tags<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tags or null")
    }

    fn visit_unit<E: de::Error>(self) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut tags: A) -> Result<bool, A::Error> {
        while let Some(tag) = tags.next_element::<Option<String>>()? {
            if let Some(tag) = tag.filter(|tag| tag.parse::<Tag>().is_ok()) {
                (self.take)(&tag);
            }
        }
        Ok(true)
    }
}

/// The members that show whether a document is an image index. Parsed like Go's `encoding/json`, which clients use: the
/// last of duplicate members counts, and names ignore case.
#[derive(Default)]
struct Index {
    media_type: Option<String>,
    manifests: Manifests,
}

impl<'de> Deserialize<'de> for Index {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Index, D::Error> {
        deserializer.deserialize_map(IndexVisitor)
    }
}

struct IndexVisitor;

impl<'de> Visitor<'de> for IndexVisitor {
    type Value = Index;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an image index")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Index, A::Error> {
        let mut index = Index::default();
        while let Some(key) = map.next_key::<String>()? {
            if key.eq_ignore_ascii_case("mediaType") {
                index.media_type = map.next_value()?;
            } else if key.eq_ignore_ascii_case("manifests") {
                index.manifests = map.next_value()?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(index)
    }
}

/// The `manifests` of an index.
#[derive(Default, PartialEq, Eq)]
enum Manifests {
    #[default]
    Missing,
    /// An empty list, as servers written in Go send it.
    Null,
    Some,
}

impl<'de> Deserialize<'de> for Manifests {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Manifests, D::Error> {
        let listed = Option::<Vec<IgnoredAny>>::deserialize(deserializer)?;
        Ok(listed.map_or(Manifests::Null, |_| Manifests::Some))
    }
}

/// A reader that copies everything to a sink.
struct Copying<'a, R> {
    inner: R,
    sink: &'a mut dyn DocumentSink,
}

impl<R: Read> Read for Copying<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.sink.write(&buffer[..read]);
        Ok(read)
    }
}

/// The document of an empty index.
pub(super) fn empty_index() -> String {
    let media_type = MediaType::OCI_INDEX;
    format!("{{\"schemaVersion\":2,\"mediaType\":\"{media_type}\",\"manifests\":[]}}")
}

/// Passes on a response to a referrers request unchanged, if it is an image index.
pub(super) fn read_referrers(
    reader: impl Read,
    sink: &mut dyn DocumentSink,
) -> Result<(), ListReadError> {
    sink.restart();
    let bounded = Bounded::new(reader, REFERRERS_BYTES_MAX, REFERRER_STRING_BYTES_MAX);
    let copying = Copying { inner: bounded, sink: &mut *sink };
    let index: Index = serde_json::from_reader(BufReader::new(copying))?;
    let media_type = index.media_type.filter(|media_type| !media_type.is_empty());
    // An index with a media type may omit an empty list.
    let is_index = match &media_type {
        Some(media_type) => media_type == MediaType::OCI_INDEX,
        None => index.manifests != Manifests::Missing,
    };
    if is_index && index.manifests != Manifests::Some {
        sink.restart();
        sink.write(empty_index().as_bytes());
    }
    if is_index { Ok(()) } else { Err(ListReadError::NotAList) }
}

/// The query of the next page from `Link` headers (RFC 8288). Only the query is used, since the rest of the URL is the
/// registry's.
///
/// Some clients follow any link, whatever its relation. Therefore a link without a relation is the next page, and the
/// angle brackets may be missing.
///
/// # Errors
/// The link, if it leads to a next page and its query is unusable, or a line without a readable link.
pub(super) fn next_query<'a>(
    lines: impl IntoIterator<Item = &'a str>,
) -> Result<Option<String>, String> {
    let shortened = |text: &str| text.chars().take(200).collect::<String>();
    for line in lines.into_iter().filter(|line| !line.trim().is_empty()) {
        let mut rest = line;
        let mut has_links = false;
        loop {
            let (target, after) = match rest.split_once('<') {
                Some((_, link)) => match link.split_once('>') {
                    Some(parts) => parts,
                    None => return Err(shortened(line)),
                },
                // Without brackets, it is the only link in its line.
                None if !has_links => rest.split_at(rest.find(';').unwrap_or(rest.len())),
                None => break,
            };
            has_links = true;
            let (is_next, following) = parameters(after);
            rest = following;
            if is_next {
                return clean_query(target).map(Some).ok_or_else(|| shortened(target));
            }
        }
    }
    Ok(None)
}

/// Parses the parameters of one link. Returns whether it is the next page, and the rest of the header.
fn parameters(text: &str) -> (bool, &str) {
    let (mut is_quoted, mut is_escaped) = (false, false);
    let (mut relation, mut start) = (None, 0);
    let mut end = text.len();
    let mut take = |parameter: &str| {
        let Some((name, value)) = parameter.split_once('=') else { return };
        // The first `rel` counts (RFC 8288, section 3.3).
        if name.trim().eq_ignore_ascii_case("rel") && relation.is_none() {
            let value = value.trim().trim_matches(['"', '\'']);
            relation = Some(value.split_whitespace().any(|one| one.eq_ignore_ascii_case("next")));
        }
    };
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            b';' | b',' if !is_quoted => {
                take(&text[start..at]);
                start = at + 1;
                if byte == b',' {
                    end = at;
                    break;
                }
            }
            _ => {}
        }
    }
    if end == text.len() {
        take(&text[start..]);
    }
    (relation.unwrap_or(true), &text[end..])
}

fn clean_query(target: &str) -> Option<String> {
    let query = target.trim().split('#').next()?.split_once('?')?.1;
    let is_clean = query.len() <= NEXT_QUERY_BYTES_MAX
        && query.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"<>\\".contains(&byte));
    // `ns` selects the registry in requests to Larder; a registry must not change that.
    let pairs = query.split('&').filter(|pair| !pair.is_empty() && !pair.starts_with("ns="));
    let query = pairs.collect::<Vec<_>>().join("&");
    (is_clean && !query.is_empty()).then_some(query)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::client::check::Memory;

    fn accept(body: &str, query: &str, next: Option<&str>) -> Option<(String, Option<String>)> {
        let (mut text, repository) = (Memory::default(), "r".parse().unwrap());
        let next = next.map(str::to_owned);
        let list = read_tags(body.as_bytes(), &repository, query, next, &mut text).ok()?;
        Some((String::from_utf8(text.0).unwrap(), list.next))
    }

    #[test]
    fn tag_pages_are_normalised() {
        for (body, expected) in [
            (r#"{"name":"x","tags":["b","a"]}"#, r#"{"name":"r","tags":["b","a"]}"#),
            (
                r#"{"tags":["a"],"manifest":{"x":{"tag":["\""]}},"name":"x"}"#,
                r#"{"name":"r","tags":["a"]}"#,
            ),
            (r#"{"name":"x","tags":null}"#, r#"{"name":"r","tags":[]}"#),
            (r#"{"name":"x"}"#, r#"{"name":"r","tags":[]}"#),
            (r#"{"tags":["a",null,"sha256:00"]}"#, r#"{"name":"r","tags":["a"]}"#),
        ] {
            assert_eq!(accept(body, "", None), Some((expected.into(), None)), "{body}");
        }
        for body in
            ["", "{}", "<html>", r#"{"errors":[]}"#, "[]", r#"{"tags":[]} x"#, r#"{"tags":["a"#]
        {
            assert_eq!(accept(body, "", None), None, "{body}");
        }
    }

    #[test]
    fn pages_are_cut_only_where_the_query_was_certainly_ignored() {
        for (tags, query, next, expected, expected_next) in [
            (r#""b","a""#, "n=1", None, r#""a""#, Some("n=1&last=a")),
            (r#""b","a""#, "last=a", None, r#""b""#, None),
            (r#""c","b","a""#, "n=1&last=a", None, r#""b""#, Some("n=1&last=b")),
            // The registry names a next page, so it has cut this one.
            (r#""b","a""#, "n=1", Some("x=y"), r#""b","a""#, Some("x=y")),
            // An opaque token, and tags in the order of pushes.
            (r#""10","9""#, "last=eyJuIjo1fQ%3D%3D", None, r#""10","9""#, None),
            (r#""10","9""#, "n=1&last=zz", None, r#""10","9""#, None),
            (r#""v2","v1""#, "last=v3&n=0", None, r#""v2","v1""#, None),
            // Parameters specific to a registry (Quay, Harbor).
            (r#""10","9""#, "n=1&next_page=gAAA", None, r#""10","9""#, None),
            (r#""10","9""#, "n=0&page=2", None, r#""10","9""#, None),
            (r#""a","b""#, "page=2&last=a", None, r#""a","b""#, None),
            // `last` is included, in another order.
            (r#""v3","v2","v1""#, "last=v3&n=5", None, r#""v3","v2","v1""#, None),
        ] {
            let body = format!(r#"{{"name":"x","tags":[{tags}]}}"#);
            let expected = format!(r#"{{"name":"r","tags":[{expected}]}}"#);
            let expected = Some((expected, expected_next.map(str::to_owned)));
            assert_eq!(accept(&body, query, next), expected, "{tags} {query}");
        }
    }

    #[test]
    fn a_page_too_large_to_be_cut_is_passed_on_completely() {
        let tags: Vec<String> = (0..9_000).map(|number| format!("\"{number:0100}\"")).collect();
        let tags = tags.join(",");
        let got = accept(&format!(r#"{{"tags":[{tags}]}}"#), "n=8000", None);
        assert_eq!(got, Some((format!(r#"{{"name":"r","tags":[{tags}]}}"#), None)));
    }

    #[test]
    fn the_length_of_a_string_is_bounded() {
        for piece in ["x", "\\\""] {
            let tag = piece.repeat(100_000);
            let (mut text, repository) = (Memory::default(), "r".parse().unwrap());
            let body = format!(r#"{{"tags":["{tag}"]}}"#);
            let read = read_tags(body.as_bytes(), &repository, "", None, &mut text);
            assert!(matches!(read, Err(ListReadError::Io(_))), "{read:?}");
        }
    }

    #[test]
    fn only_the_query_of_the_next_page_is_used() {
        for (line, expected) in [
            (r#"</v2/a/tags/list?n=5&last=b>; rel="next""#, Some("n=5&last=b")),
            (r#"<https://reg.io/v2/a/tags/list?last=b&ns=evil&n=5>; rel=next"#, Some("last=b&n=5")),
            (r#"</prev?n=1>; rel="prev",</next?n=2>; rel="next""#, Some("n=2")),
            (r#"</x?last=p>; rel="prev", </x?last=n>; rel="next""#, Some("last=n")),
            (r#"<?last=n> ; REL = "last Next" ; title="a, <b>; rel=x""#, Some("last=n")),
            (r#"</x?last=p>; title="</y?n=1>; rel=next, \" "; rel=prev"#, None),
            (r#"</x?last=n>; rel="next last"; rel="prev""#, Some("last=n")),
            (r#"</x?last=n>; rel="prev"; rel="next""#, None),
            (r#"</v2/a/tags/list?n=5>; rel="prev""#, None),
            ("</x?n=5>; rel=nexte", None),
            // Like crane and oras, which ignore the relation.
            ("</x?n=5>", Some("n=5")),
            ("</x?n=5>; title=a", Some("n=5")),
            ("</x?n=5>; rel='next'", Some("n=5")),
            // Like regctl.
            (r#"/v2/a/tags/list?n=5&last=b; rel="next""#, Some("n=5&last=b")),
            ("/x?n=5; rel=prev", None),
            ("", None),
        ] {
            assert_eq!(next_query([line]), Ok(expected.map(str::to_owned)), "{line}");
        }
        let lines = ["</x?last=p>; rel=prev", "</x?last=n>; rel=next"];
        assert_eq!(next_query(lines), Ok(Some("last=n".into())));
    }

    #[test]
    fn an_unusable_link_to_the_next_page_is_an_error() {
        let long = format!("</x?{}>; rel=next", "x".repeat(NEXT_QUERY_BYTES_MAX + 1));
        for line in [
            "<>; rel=next",
            r#"</x?a"b>; rel="next""#,
            "</page/2>; rel=next",
            "</x?ns=a>; rel=next",
            "</x?n=5",
            "garbage",
            &long,
        ] {
            assert!(next_query([line]).is_err(), "{line}");
        }
    }

    #[test]
    fn referrers_must_be_an_index() {
        let index = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
        for (body, expected) in [
            (index, Some(index)),
            (r#"{"schemaVersion":2,"manifests":null}"#, Some(index)),
            (
                r#"{"schemaVersion":2,"manifests":[{"a":1}]}"#,
                Some(r#"{"schemaVersion":2,"manifests":[{"a":1}]}"#),
            ),
            (r#"{"mediaType":"application/vnd.oci.image.index.v1+json"}"#, Some(index)),
            (r#"{"MediaType":"","manifests":[],"manifests":null}"#, Some(index)),
            ("<html>", None),
            ("{}", None),
            (r#"{"schemaVersion":2,"layers":[]}"#, None),
            (r#"{"schemaVersion":2,"mediaType":"x/y","manifests":[]}"#, None),
        ] {
            let mut text = Memory::default();
            let read = read_referrers(body.as_bytes(), &mut text);
            let got = read.ok().map(|()| String::from_utf8(text.0).unwrap());
            assert_eq!(got.as_deref(), expected, "{body}");
        }
    }
}
