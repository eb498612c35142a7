//! Conditional and range requests: RFC 9110, sections 13 and 14, for content whose ETag is its digest.

use std::ops::Range;

use crate::http::Request;
use crate::oci::Digest;

/// The entity tag of content: its digest, quoted.
pub(super) fn entity_tag(digest: &Digest) -> String {
    ["\"", &digest.to_string(), "\""].concat()
}

/// Whether `If-None-Match` matches this content, so that the answer is 304. Accepts quoted, unquoted, weak and
/// several tags, and `*`.
pub(super) fn is_not_modified(request: &Request, digest: &Digest) -> bool {
    let tags = request.headers("if-none-match").flat_map(|line| line.split(','));
    let mut text = None;
    tags.map(|tag| tag.trim().trim_start_matches("W/").trim_matches('"'))
        .any(|tag| tag == "*" || tag == text.get_or_insert_with(|| digest.to_string()))
}

/// The part of the content that a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    /// The complete content: there is no range, there are several, or the range must be ignored.
    Whole,
    /// These bytes.
    Bytes(Range<u64>),
    /// A range outside of the content: 416.
    Unsatisfiable,
}

/// Reads `Range` and `If-Range` against content of `size` bytes.
pub(super) fn part(request: &Request, digest: &Digest, size: u64) -> Part {
    let Some(range) = request.header("range") else { return Part::Whole };
    // A range of another version must not be combined with this one, so the digest must be the same.
    let is_same = request
        .header("if-range")
        .is_none_or(|tag| tag.trim().trim_matches('"') == digest.to_string());
    if is_same { parse(range, size) } else { Part::Whole }
}

fn parse(header: &str, size: u64) -> Part {
    let Some((unit, set)) = header.split_once('=') else { return Part::Whole };
    // The answer to several ranges is the complete content, which is allowed and understood by every client.
    if !unit.trim().eq_ignore_ascii_case("bytes") || set.contains(',') {
        return Part::Whole;
    }
    let Some((first, last)) = set.trim().split_once('-') else { return Part::Whole };
    let (first, last) = (first.trim(), last.trim());
    let (first, end) = match (number(first), number(last)) {
        (Some(first), Some(last)) => (first, last.saturating_add(1).min(size)),
        (Some(first), None) if last.is_empty() => (first, size),
        // A suffix: the last bytes, or all if the content is shorter.
        (None, Some(suffix)) if first.is_empty() => {
            if suffix == 0 {
                return Part::Unsatisfiable;
            }
            (size.saturating_sub(suffix), size)
        }
        _ => return Part::Whole,
    };
    if size == 0 {
        // Empty content has no ranges: 200 without a body, as in Go's net/http.
        Part::Whole
    } else if first >= size || first >= end {
        Part::Unsatisfiable
    } else {
        Part::Bytes(first..end)
    }
}

/// Accepts digits only: the standard library also parses `+5` and `-5`, which the RFC does not allow.
fn number(text: &str) -> Option<u64> {
    let is_digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    // A number that overflows is a position beyond any end.
    is_digits.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_conformance_suites_six_cases() {
        for (header, expected) in [
            ("bytes=500-1499", Part::Bytes(500..1500)),
            ("bytes=500-", Part::Bytes(500..2048)),
            ("bytes=-500", Part::Bytes(1548..2048)),
            ("bytes=2000-5000", Part::Bytes(2000..2048)),
            ("bytes=500-0", Part::Unsatisfiable),
            ("bytes=5000-10000", Part::Unsatisfiable),
        ] {
            assert_eq!(parse(header, 2048), expected, "{header}");
        }
    }

    #[test]
    fn odd_ranges() {
        for (header, size, expected) in [
            ("bytes=0-0", 10, Part::Bytes(0..1)),
            ("bytes=9-", 10, Part::Bytes(9..10)),
            ("bytes=10-", 10, Part::Unsatisfiable),
            ("bytes=-20", 10, Part::Bytes(0..10)),
            ("bytes=-0", 10, Part::Unsatisfiable),
            ("Bytes = 1-2", 10, Part::Bytes(1..3)),
            ("bytes=0-", 0, Part::Whole),
            ("bytes=0-1,4-5", 10, Part::Whole),
            ("lines=0-1", 10, Part::Whole),
            ("bytes=a-b", 10, Part::Whole),
            ("bytes=+1-2", 10, Part::Whole),
            ("bytes=1", 10, Part::Whole),
            ("bytes=-", 10, Part::Whole),
            ("", 10, Part::Whole),
            ("bytes=0-99999999999999999999999", 10, Part::Bytes(0..10)),
            ("bytes=99999999999999999999999-", 10, Part::Unsatisfiable),
        ] {
            assert_eq!(parse(header, size), expected, "{header} of {size}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_part_lies_within(header in "bytes=[0-9]{0,20}-[0-9]{0,20}", size in 0..5000_u64) {
            if let Part::Bytes(range) = parse(&header, size) {
                proptest::prop_assert!(range.start < range.end && range.end <= size);
            }
        }

        #[test]
        fn no_header_panics(header in ".{0,60}", size in proptest::prelude::any::<u64>()) {
            let _ = parse(&header, size);
        }
    }
}
