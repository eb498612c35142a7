//! docs/configuration.md and the parser name the same keys: none is undocumented, none is only documented.

use std::path::Path;

const DOCUMENT: &str = include_str!("../../docs/configuration.md");

/// Each level that keys are on, by the key that leads to it, and a file in which `?` stands for a key of it.
const LEVELS: [(&str, &str); 13] = [
    ("", "?: 1"),
    ("registries", "registries: [{?: 1}]"),
    ("auth", "registries: [{name: a.io, auth: {?: 1}}]"),
    ("token", "registries: [{name: a.io, auth: {token: {?: 1}}}]"),
    ("repositories", "registries: [{name: a.io, repositories: [{?: 1}]}]"),
    ("tls", "registries: [{name: a.io, tls: {?: 1}}]"),
    ("endpoints", "registries: [{name: a.io, endpoints: [{?: 1}]}]"),
    ("tags", "tags: [{?: 1}]"),
    ("scrub", "scrub: {?: 1}"),
    ("pruneConfig", "pruneConfig: {?: 1}"),
    ("management", "management: {port: 1, ?: 1}"),
    ("serverTlsConfig", "serverTlsConfig: {?: 1}"),
    ("serverAuthConfig", "serverAuthConfig: {?: 1}"),
];

/// A key, after the level that it is on.
pub(super) type Key = (String, String);

#[test]
fn every_key_is_documented_and_every_documented_key_is_one() {
    let (known, documented) = (known(), documented());
    assert!(known.len() > 80 && documented.len() > 80, "the keys are not found");
    for key in &known {
        assert!(documented.contains(key), "{key:?} is not in docs/configuration.md");
    }
    for key in &documented {
        assert!(known.contains(key), "{key:?} is in docs/configuration.md, and is no key");
    }
}

/// What the parser says that it would have taken.
pub(super) fn known() -> Vec<Key> {
    let of_level = |(level, text): (&str, &str)| {
        let text = text.replace('?', "unheardOf");
        let error = super::parse(Path::new("larder.yaml"), &text).unwrap_err().to_string();
        let keys = error.split("expected one of ").nth(1).unwrap_or_default().split(", ");
        keys.map(|key| (level.to_owned(), key.trim().to_owned())).collect::<Vec<Key>>()
    };
    LEVELS.into_iter().flat_map(of_level).collect()
}

/// The first cells of the tables of keys, and whatever is written with a dot behind the name of a level.
fn documented() -> Vec<Key> {
    let (mut keys, mut table) = (Vec::new(), None);
    for line in DOCUMENT.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            table = match heading {
                "Keys in force" => Some(""),
                "`registries[]`" => Some("registries"),
                _ => None,
            };
        }
        let first_cell = line.strip_prefix("| ").and_then(|row| row.split(" | ").next());
        if let (Some(level), Some(cell)) = (table, first_cell) {
            quoted(cell).for_each(|path| follow(level, path, &mut keys));
        }
        for path in quoted(line) {
            // `registries[].rateLimit`, `tls.ca`; but not `config.json`.
            let Some((level, rest)) = path.split_once('.') else { continue };
            let level = level.trim_end_matches("[]");
            let is_level = LEVELS.iter().any(|(name, _)| !name.is_empty() && *name == level);
            let is_path = |char: char| char.is_ascii_alphabetic() || ".[]".contains(char);
            if is_level && rest.chars().all(is_path) {
                follow(level, rest, &mut keys);
            }
        }
    }
    keys
}

/// A path's components, each as a key of the one before.
fn follow(level: &str, path: &str, keys: &mut Vec<Key>) {
    let mut level = level;
    for key in path.split('.').map(|key| key.trim_end_matches("[]")) {
        keys.push((level.to_owned(), key.to_owned()));
        level = key;
    }
}

/// What stands between backticks in a line.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}
