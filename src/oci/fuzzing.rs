//! Fuzz targets: manifests, names and patterns.

use std::collections::HashSet;

use super::timestamp::is_timestamp;
use super::*;
use crate::fuzzing::{assert_is_safe_text, assert_round_trip, line, round_trip};

/// Input: a line with the content type (empty for none), a line with platforms, and a manifest.
pub(crate) fn manifest(data: &[u8]) {
    let (content_type, rest) = line(data);
    let (platforms, bytes) = line(rest);
    let content_type = Some(content_type.as_str()).filter(|text| !text.is_empty());
    let parsed = Manifest::parse(bytes, content_type);
    let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_ok();
    let manifest = match parsed {
        Ok(manifest) => manifest,
        Err(error) => {
            assert_is_safe_text(&error.to_string());
            return;
        }
    };
    assert!(is_json, "what is not JSON is not a manifest");
    assert_eq!(manifest.size(), bytes.len() as u64);
    assert_eq!(
        MediaType::parse(manifest.media_type().as_str()).as_ref(),
        Some(manifest.media_type())
    );
    assert!(!manifest.media_type().is_schema1());
    let descriptors: Vec<&Descriptor> = manifest.descriptors().chain(manifest.subject()).collect();
    assert!(descriptors.len() <= DESCRIPTORS_MAX + 1, "{} descriptors", descriptors.len());
    for descriptor in descriptors {
        assert_round_trip(&descriptor.digest);
        assert!(descriptor.size <= 1 << 50);
        descriptor.platform.iter().for_each(|platform| assert_is_safe_text(platform));
    }
    // The cache parses a stored manifest with the media type that it recorded.
    let again = Manifest::parse(bytes, Some(manifest.media_type().as_str()));
    let again = again.expect("a manifest parses with its own media type");
    assert_eq!(again.media_type(), manifest.media_type());
    assert_eq!(again.kind(), manifest.kind());
    assert_eq!(again.subject(), manifest.subject());
    if let ManifestKind::Index { manifests } = manifest.kind() {
        select(&platforms, manifests);
    }
}

fn select(platforms: &str, children: &[Descriptor]) {
    let Ok(platforms) = Platforms::parse(platforms.split(',')) else { return };
    let selected = platforms.select(children);
    let known: HashSet<Digest> = children.iter().map(|child| child.digest).collect();
    assert!(selected.len() <= children.len());
    assert!(selected.iter().all(|child| known.contains(&child.digest)));
    if platforms == Platforms::All {
        assert_eq!(selected.len(), children.len());
    }
    // A choice is stable: the selected children contain the same selection.
    let chosen: Vec<Descriptor> = selected.into_iter().cloned().collect();
    assert_eq!(platforms.select(&chosen).into_iter().cloned().collect::<Vec<_>>(), chosen);
}

/// Input: a name of any kind.
pub(crate) fn names(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    assert_is_safe_text(&quoted(text));
    if let Some(digest) = round_trip::<Digest>(text) {
        assert_eq!(Digest::from_dashed(&digest.dashed()), Some(digest));
        for suffix in Tag::COSIGN_SUFFIXES {
            let tag = Tag::of_digest(&digest, suffix);
            assert!(tag.is_none_or(|tag| tag.subject() == Some(digest)));
        }
    }
    if let Some(upstream) = round_trip::<Upstream>(text) {
        assert_is_file_name(upstream.as_str());
        let port = upstream.port().map(|port| format!(":{port}")).unwrap_or_default();
        let host = upstream.host();
        let is_split = [format!("{host}{port}"), format!("[{host}]{port}")];
        assert!(is_split.contains(&upstream.to_string()), "{upstream}");
    }
    if let Some(repository) = round_trip::<Repository>(text) {
        repository.as_str().split('/').for_each(assert_is_file_name);
    }
    if let Some(tag) = round_trip::<Tag>(text) {
        assert_is_file_name(tag.as_str());
    }
    round_trip::<Reference>(text);
    round_trip::<Choice>(text);
    if let Some(platform) = round_trip::<Platform>(text) {
        assert!(platform.is(text) && platform.runs(text), "{platform}");
    }
    if let Some(media_type) = MediaType::parse(text) {
        assert_eq!(MediaType::parse(media_type.as_str()), Some(media_type));
    }
    if let Ok(part) = PartReference::parse(text) {
        let (name, reference) = part.or_latest();
        let full = name.with(&reference);
        let again = PartReference::parse(&full).expect("a full reference parses").or_latest();
        assert_eq!(again, (name.clone(), reference.clone()), "{full}");
        let choice: Choice = full.parse().expect("a full reference is a choice");
        assert!(choice.covers(&name, &reference), "{full}");
    }
    if is_timestamp(text) {
        assert_is_safe_text(text);
    }
    let query = TagQuery::parse(text);
    let page = query.page(vec!["a".into(), "b".into(), "v1".into(), "b".into()]);
    assert!(query.count.is_none_or(|count| page.tags.len() <= count));
    assert!(page.next.iter().all(|next| TagQuery::parse(next).count == query.count));
}

/// Input: lines of an image list. The last line is also a text to match.
pub(crate) fn pattern(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let last = text.lines().last().unwrap_or_default();
    let name =
        ImageName::new("docker.io".parse().expect("valid"), "alpine".parse().expect("valid"));
    let reference = "3.20".parse().expect("valid");
    for line in text.lines() {
        assert!(!uncommented(line).starts_with('#'));
        if let Some(pattern) = round_trip::<NamePattern>(line) {
            pattern.covers(&name);
        }
        if let Some(pattern) = round_trip::<Pattern>(line) {
            pattern.matches(last);
            pattern.matches_image(&name, &reference);
            let is_glob = !(line.len() > 1 && line.starts_with('/') && line.ends_with('/'));
            // A glob matches itself, and a pattern matches the same text every time.
            assert!(!is_glob || line.contains('\n') || pattern.matches(line), "{line:?}");
        }
    }
    for (number, entry) in entries(text) {
        assert!(number <= text.lines().count() && !entry.is_empty() && !entry.contains(','));
    }
    match Choice::parse_list(text) {
        Ok(choices) => {
            let shown: Vec<String> = choices.iter().map(Choice::to_string).collect();
            // At the start of a line, such an entry is a comment. It matches no name.
            if !shown.iter().any(|text| text.starts_with('#')) {
                assert_eq!(Choice::parse_list(&shown.join("\n")), Ok(choices), "{shown:?}");
            }
        }
        Err(error) => assert_is_safe_text(&error),
    }
}

/// A component of a path in the cache directory.
fn assert_is_file_name(text: &str) {
    let is_plain = !matches!(text, "" | "." | "..") && !text.contains(['/', '\\', '\0']);
    assert!(is_plain && text.len() <= 255, "{text:?}");
}
