//! Rust source for `tidy.rs`: its paths, unwraps and log messages outside tests, with their lines. Only [`sources`] reads files.

use std::fs;
use std::path::Path;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// A file: its path from the project root, with `/`, and its text.
pub struct Source {
    pub path: String,
    pub text: String,
}

/// All `.rs` files below `src` and `tests`, ordered by path.
pub fn sources(root: &Path) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut folders = vec!["src".to_owned(), "tests".to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder)).expect("src and tests can be read") {
            let entry = entry.expect("a folder's entries can be read");
            let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
            if entry.path().is_dir() {
                folders.push(path);
            } else if path.ends_with(".rs") {
                let text = fs::read_to_string(entry.path()).expect("UTF-8 sources");
                sources.push(Source { path, text });
            }
        }
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    sources
}

/// A file, prepared for the rules.
pub struct Code<'a> {
    pub lines: Vec<&'a str>,
    /// The number of lines of items under `#[cfg(test)]`. These items are left out of the following.
    pub test_lines: usize,
    /// Every path with its line: `a::b`, and each of `a::{b, c::d}`.
    pub paths: Vec<(usize, String)>,
    /// The lines of `.unwrap()` and `.expect(…)`.
    pub unwraps: Vec<usize>,
    /// The messages of `log::info!(…)` and so on, as literals, with the lines of the macros.
    pub log_messages: Vec<(usize, String)>,
}

impl<'a> Code<'a> {
    pub fn of(text: &'a str) -> Code<'a> {
        let stream: TokenStream = text.parse().expect("Rust source");
        let (mut tokens, mut test_lines) = (Vec::new(), 0);
        flatten(stream, &mut tokens, &mut test_lines);
        let (mut paths, mut at) = (Vec::new(), 0);
        while at < tokens.len() {
            at = path(&tokens, at, "", &mut paths);
        }
        let unwraps = tokens.windows(3).filter(|three| {
            three[0].1 == "." && matches!(&*three[1].1, "unwrap" | "expect") && three[2].1 == "("
        });
        let unwraps = unwraps.map(|three| three[1].0).collect();
        let log_messages = log_messages(&tokens);
        Code { lines: text.lines().collect(), test_lines, paths, unwraps, log_messages }
    }
}

/// The message of a log macro is the first text outside brackets, or the one after the `;` that follows the fields.
fn log_messages(tokens: &[(usize, String)]) -> Vec<(usize, String)> {
    const START: [&str; 3] = ["log", ":", ":"];
    const MACROS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "log"];
    let starts = |six: &[(usize, String)]| {
        START.iter().zip(six).all(|(expected, token)| *expected == token.1)
            && MACROS.contains(&&*six[3].1)
            && (six[4].1.as_str(), six[5].1.as_str()) == ("!", "(")
    };
    let mut messages = Vec::new();
    for (at, _) in tokens.windows(6).enumerate().filter(|(_, six)| starts(six)) {
        let (mut depth, mut message) = (1, None);
        for (_, text) in &tokens[at + 6..] {
            match text.as_str() {
                "(" | "{" => depth += 1,
                ")" | "}" => depth -= 1,
                ";" if depth == 1 => message = None,
                text if depth == 1 && message.is_none() && text.contains('"') => {
                    message = Some(text.to_owned());
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
        messages.push((tokens[at].0, message.expect("a log macro has a message")));
    }
    messages
}

/// Appends words, punctuation and brackets with their lines, without items under `#[cfg(test)]`.
fn flatten(stream: TokenStream, tokens: &mut Vec<(usize, String)>, test_lines: &mut usize) {
    let mut trees = stream.into_iter();
    while let Some(tree) = trees.next() {
        let line = tree.span().start().line;
        match tree {
            TokenTree::Group(group) if group.to_string() == "[cfg (test)]" => {
                let ends = |tree: &TokenTree| match tree {
                    TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
                    tree => tree.to_string() == ";",
                };
                let end = trees.find(ends).map_or(line, |tree| tree.span().end().line);
                *test_lines += end + 1 - line;
            }
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Brace => ("{", "}"),
                    _ => ("(", ")"),
                };
                tokens.push((line, open.to_owned()));
                flatten(group.stream(), tokens, test_lines);
                tokens.push((line, close.to_owned()));
            }
            tree => tokens.push((line, tree.to_string())),
        }
    }
}

/// Reads the path that starts at `at`, if any. Returns where to continue.
fn path(
    tokens: &[(usize, String)],
    at: usize,
    prefix: &str,
    found: &mut Vec<(usize, String)>,
) -> usize {
    let text = |at: usize| tokens.get(at).map_or("", |token| token.1.as_str());
    let is_word = |text: &str| text.starts_with(|c: char| c.is_alphabetic() || c == '_');
    if !is_word(text(at)) {
        return at + 1;
    }
    let (line, mut path_so_far, mut at) = (tokens[at].0, format!("{prefix}{}", text(at)), at + 1);
    while (text(at), text(at + 1)) == (":", ":") {
        at += 2;
        match text(at) {
            "{" => {
                at += 1;
                while at < tokens.len() && text(at) != "}" {
                    at = path(tokens, at, &format!("{path_so_far}::"), found);
                }
                return at + 1;
            }
            next if is_word(next) || next == "*" => path_so_far = format!("{path_so_far}::{next}"),
            _ => break,
        }
        at += 1;
    }
    found.push((line, path_so_far));
    at
}
