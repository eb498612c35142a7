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

/// The key of the value at a position, which counts from 1, with the keys that contain it: `management.port`. `[]` stands
/// for an entry of a list.
fn key_before(text: &str, line: usize, column: usize) -> Option<String> {
    let lines: Vec<&str> = text.lines().take(line).collect();
    let (last, above) = lines.split_last()?;
    let end = last.char_indices().nth(column.checked_sub(1)?).map_or(last.len(), |(at, _)| at);
    let (before, value) = (&last[..end], &last[end..]);
    let (mut start, mut path) = match entry_of(before) {
        // A value that is missing is where its colon is.
        None => key_at_end(before, value.starts_with(':'))?,
        Some(start) => (start, String::new()),
    };
    // Maps and lists on the same line.
    let mut is_entry = false;
    while let Some((bracket, at)) = open_bracket(&last[..start]) {
        is_entry |= bracket == '[';
        match key_at_end(&last[..at], false) {
            Some((outer, key)) => {
                path = join(&key, is_entry, &path);
                (start, is_entry) = (outer, false);
            }
            None => start = at,
        }
    }
    // Those that are indented less, on lines above.
    let mut column = start;
    is_entry |= is_entry_at(last, column);
    for line in above.iter().rev() {
        let content = line.trim_start_matches([' ', '-']);
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        let at = line.len() - content.len();
        if at < column {
            let Some((_, key)) = content.split_once(':').and_then(|(key, _)| key_at_end(key, true))
            else {
                break;
            };
            path = join(&key, is_entry, &path);
            (column, is_entry) = (at, is_entry_at(line, at));
        } else if at == column {
            is_entry |= is_entry_at(line, at);
        }
    }
    (!path.is_empty()).then_some(path)
}

/// Where the value begins, if it is an entry of a list.
fn entry_of(before: &str) -> Option<usize> {
    let is_of_block =
        before.trim_start().starts_with('-') && before.trim_matches([' ', '-']).is_empty();
    let is_of_flow =
        before.trim_end().ends_with(['[', ',']) && matches!(open_bracket(before), Some(('[', _)));
    (is_of_block || is_of_flow).then_some(before.len())
}

/// Whether the text that begins there is that of an entry of a list.
fn is_entry_at(line: &str, at: usize) -> bool {
    let before = line.get(..at).unwrap_or_default();
    before.trim_end().ends_with('-') && before.trim_matches([' ', '-']).is_empty()
}

/// The key at the end of a text, before its colon if that is not missing, and where it begins.
fn key_at_end(text: &str, is_without_colon: bool) -> Option<(usize, String)> {
    let text = text.trim_end();
    let text = match text.strip_suffix(':') {
        Some(text) => text.trim_end(),
        None => is_without_colon.then_some(text)?,
    };
    let key = text.rsplit(|char: char| !char.is_ascii_alphanumeric()).next()?;
    (!key.is_empty()).then(|| (text.len() - key.len(), key.to_owned()))
}

/// The innermost bracket that is open at the end of a text, and where it is.
fn open_bracket(text: &str) -> Option<(char, usize)> {
    let mut closed = 0_usize;
    for (at, char) in text.char_indices().rev() {
        match char {
            ']' | '}' => closed += 1,
            '[' | '{' if closed == 0 => return Some((char, at)),
            '[' | '{' => closed -= 1,
            _ => {}
        }
    }
    None
}

fn join(key: &str, is_list: bool, path: &str) -> String {
    let list = if is_list { "[]" } else { "" };
    match path.is_empty() || path.starts_with("[]") {
        true => format!("{key}{list}{path}"),
        false => format!("{key}{list}.{path}"),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_key_with_those_that_contain_it() {
        // The position is that of the exclamation mark.
        for (text, expected) in [
            ("port: !", Some("port")),
            ("port!:", Some("port")),
            ("management: {port: !", Some("management.port")),
            ("management: {host: a, port: !", Some("management.port")),
            ("management:\n  host: a\n\n  # note: this\n  port: !", Some("management.port")),
            ("a: 1\nscrub: {rate: !", Some("scrub.rate")),
            ("unlistedPorts: [!", Some("unlistedPorts[]")),
            ("unlistedPorts: [443, !", Some("unlistedPorts[]")),
            ("allow:\n  - a\n  - !", Some("allow[]")),
            ("allow:\n- !", Some("allow[]")),
            ("events:\n  types: [a, !", Some("events.types[]")),
            ("registries: [{name: a, scheme: !", Some("registries[].scheme")),
            ("registries:\n- name: a\n  auth:\n    user: !", Some("registries[].auth.user")),
            ("x: 1\nregistries:\n  - {auth: {user: !", Some("registries[].auth.user")),
            ("registries:\n  - endpoints:\n      - url: !", Some("registries[].endpoints[].url")),
            ("!prt: 1", None),
            ("a: {!prt: 1", None),
            ("!", None),
        ] {
            let (before, _) = text.split_once('!').unwrap();
            let line = before.lines().count().max(1);
            let column = before.rsplit('\n').next().unwrap().chars().count() + 1;
            let found = key_before(&text.replace('!', ""), line, column);
            assert_eq!(found.as_deref(), expected, "{text}");
        }
    }
}
