//! Reading the file: YAML, and the parser's errors in words for operators.

use std::path::Path;

use super::ConfigError;
use super::file::File;
use super::suggestion::one_of;

pub(super) fn read(path: &Path) -> Result<File, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    parse(path, &text)
}

pub(super) fn parse(path: &Path, text: &str) -> Result<File, ConfigError> {
    serde_saphyr::from_str(text).map_err(|error| {
        let position = error.location().map(|at| (at.line(), at.column()));
        // The other lines of the parser's message quote the file, and files contain passwords.
        let reason = first_line(&error.to_string());
        let key = position.and_then(|(line, column)| {
            key_before(text, line.try_into().ok()?, column.try_into().ok()?)
        });
        let reason = key.map_or_else(|| reason.clone(), |key| format!("{key}: {reason}"));
        ConfigError::Parse { path: path.to_owned(), position, reason }
    })
}

/// The key of the value at a position, which counts from 1.
fn key_before(text: &str, line: usize, column: usize) -> Option<&str> {
    let line = text.lines().nth(line.checked_sub(1)?)?;
    let end = line.char_indices().nth(column.checked_sub(1)?).map_or(line.len(), |(at, _)| at);
    let (before, value) = (line[..end].trim_end(), &line[end..]);
    // A value that is missing is where its colon is.
    let before = before.strip_suffix(':').or_else(|| value.starts_with(':').then_some(before))?;
    let is_of_key = |char: char| char.is_ascii_alphanumeric();
    let key = before.rsplit(|char| !is_of_key(char)).next()?;
    (!key.is_empty()).then_some(key)
}

/// The first line of the parser's message, without the position.
fn first_line(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    let line = line.strip_prefix("error: ").unwrap_or(line);
    match line.strip_prefix("line ").and_then(|rest| rest.split_once(": ")) {
        Some((_, reason)) => for_operators(reason),
        None => for_operators(line),
    }
}

/// The parser's reason, which is written for programmers, in the words of the documentation.
fn for_operators(reason: &str) -> String {
    let unknown = |kind: &str, prefix: &str| {
        let (word, allowed) = reason.strip_prefix(prefix)?.split_once(", expected ")?;
        let allowed = allowed.trim_start_matches("one of ").replace(" or ", ", ");
        let allowed: Vec<&str> = allowed.split(", ").map(|name| name.trim_matches('`')).collect();
        Some(format!("unknown {kind} {}", one_of(word.trim_matches('`'), &allowed)))
    };
    let twice = || {
        let (key, _) = reason
            .strip_prefix("duplicate mapping key: ")?
            .split_once(", set DuplicateKeyPolicy")?;
        Some(format!("the key {key} is given twice"))
    };
    match reason {
        "expected mapping start" => {
            "this is a map: `key: value` on lines of their own, or {key: value}".into()
        }
        "expected sequence start" => {
            "this is a list: lines that begin with `- `, or [one, other]".into()
        }
        other if other.starts_with("cannot deserialize null") => "the value is missing".into(),
        other => unknown("key", "unknown field ")
            .or_else(|| unknown("value", "unknown variant "))
            .or_else(twice)
            .unwrap_or_else(|| other.to_owned()),
    }
}
