//! Rust source as text, for `tidy.rs`. A small lexer, not a parser: it removes comments and the content of strings, marks
//! items under `#[cfg(test)]`, and joins paths, including those in `use` groups. Only [`sources`] reads files.

use std::fs;
use std::path::Path;

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

/// A line of a file, prepared for the rules.
pub struct Line {
    /// Without comments, and with nothing inside string and character literals.
    pub code: String,
    /// Whether there is a comment or a part of one. Doc comments do not count: they are contracts with the caller, not
    /// reasons for the reader.
    pub comment: bool,
    /// Whether it belongs to an item under `#[cfg(test)]`.
    pub in_test: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Code,
    LineComment,
    BlockComment(usize),
    Text,
    /// A raw string that ends with this number of `#`.
    RawText(usize),
}

pub fn lines(text: &str) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut state = State::Code;
    for line in text.lines() {
        if state == State::LineComment {
            state = State::Code;
        }
        let (code, comment, after) = lex(line, state);
        state = after;
        lines.push(Line { code, comment, in_test: false });
    }
    mark_tests(&mut lines);
    lines
}

/// One line: its code, whether there is a comment in it, and the state at its end.
fn lex(line: &str, mut state: State) -> (String, bool, State) {
    let chars: Vec<char> = line.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or(' ');
    let mut code = String::new();
    let mut comment = matches!(state, State::BlockComment(_));
    let mut i = 0;
    while i < chars.len() {
        match (state, at(i), at(i + 1)) {
            (State::Code, '/', '/') => {
                comment = !matches!(at(i + 2), '/' | '!');
                (state, i) = (State::LineComment, i + 2);
            }
            (State::Code, '/', '*') => (state, comment, i) = (State::BlockComment(1), true, i + 2),
            (State::Code, '"', _) => {
                code.push('"');
                (state, i) = (State::Text, i + 1);
            }
            (State::Code, 'r', '"' | '#') if raw_text(&chars, i).is_some() => {
                let hashes = raw_text(&chars, i).unwrap_or(0);
                code.push('"');
                (state, i) = (State::RawText(hashes), i + hashes + 2);
            }
            (State::Code, '\'', '\\') => {
                let end = (i + 3..chars.len()).find(|end| at(*end) == '\'');
                i = end.unwrap_or(chars.len()) + 1;
            }
            (State::Code, '\'', _) if at(i + 2) == '\'' => i += 3,
            (State::Code, other, _) => {
                code.push(other);
                i += 1;
            }
            (State::BlockComment(1), '*', '/') => (state, i) = (State::Code, i + 2),
            (State::BlockComment(n), '*', '/') => (state, i) = (State::BlockComment(n - 1), i + 2),
            (State::BlockComment(n), '/', '*') => (state, i) = (State::BlockComment(n + 1), i + 2),
            (State::Text, '\\', _) => i += 2,
            (State::Text, '"', _) => {
                code.push('"');
                (state, i) = (State::Code, i + 1);
            }
            (State::RawText(n), '"', _) if (1..=n).all(|k| at(i + k) == '#') => {
                code.push('"');
                (state, i) = (State::Code, i + n + 1);
            }
            _ => i += 1,
        }
    }
    (code, comment, state)
}

/// The number of `#` that open the raw string at `i`, if there is one.
fn raw_text(chars: &[char], i: usize) -> Option<usize> {
    let before = if i == 0 { ' ' } else { chars[i - 1] };
    let hashes = chars[i + 1..].iter().take_while(|c| **c == '#').count();
    let opens = chars.get(i + 1 + hashes) == Some(&'"');
    (opens && (before == 'b' || !(before.is_alphanumeric() || before == '_'))).then_some(hashes)
}

/// Marks every item under `#[cfg(test)]`: from the attribute to the `;` or `}` that ends the item.
fn mark_tests(lines: &mut [Line]) {
    let mut depth = 0usize;
    let mut inside = false;
    for line in lines {
        let start = match line.code.find("#[cfg(test)]") {
            Some(at) if !inside => {
                (inside, depth) = (true, 0);
                at + "#[cfg(test)]".len()
            }
            _ => 0,
        };
        line.in_test = inside;
        for c in line.code[start..].chars().filter(|_| inside) {
            match c {
                '(' | '[' | '{' => depth += 1,
                ')' | ']' | '}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth == 0 && matches!(c, '}' | ';') {
                inside = false;
                break;
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub struct Token {
    pub line: usize,
    pub kind: Kind,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Kind {
    Word(String),
    /// `::`
    Separator,
    Other(char),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Tests {
    Included,
    LeftOut,
}

pub fn tokens(lines: &[Line], tests: Tests) -> Vec<Token> {
    let mut tokens = Vec::new();
    for (number, line) in lines.iter().enumerate() {
        if line.in_test && tests == Tests::LeftOut {
            continue;
        }
        let mut rest = line.code.trim_start();
        while let Some(first) = rest.chars().next() {
            let is_word = |c: char| c.is_alphanumeric() || c == '_';
            let word = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            let (kind, length) = match first {
                _ if word > 0 => (Kind::Word(rest[..word].to_owned()), word),
                ':' if rest.starts_with("::") => (Kind::Separator, 2),
                other => (Kind::Other(other), other.len_utf8()),
            };
            tokens.push(Token { line: number + 1, kind });
            rest = rest[length..].trim_start();
        }
    }
    tokens
}

/// Every path in the code outside tests, with its line: `a::b`, and each of `a::{b, c::d}`.
pub fn paths(lines: &[Line]) -> Vec<(usize, String)> {
    let tokens = tokens(lines, Tests::LeftOut);
    let mut paths = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        at = path(&tokens, at, "", &mut paths);
    }
    paths
}

/// Reads the path that starts at `at`, if any. Returns where to continue.
fn path(tokens: &[Token], at: usize, prefix: &str, found: &mut Vec<(usize, String)>) -> usize {
    let kind = |at: usize| tokens.get(at).map(|token| &token.kind);
    let Some(Kind::Word(first)) = kind(at) else { return at + 1 };
    let (line, mut path_so_far) = (tokens[at].line, format!("{prefix}{first}"));
    let mut at = at + 1;
    while kind(at) == Some(&Kind::Separator) {
        match kind(at + 1) {
            Some(Kind::Word(next)) => path_so_far = format!("{path_so_far}::{next}"),
            Some(Kind::Other('*')) => path_so_far.push_str("::*"),
            Some(Kind::Other('{')) => {
                at += 2;
                while at < tokens.len() && kind(at) != Some(&Kind::Other('}')) {
                    at = path(tokens, at, &format!("{path_so_far}::"), found);
                }
                return at + 1;
            }
            _ => {
                at += 1;
                break;
            }
        }
        at += 2;
    }
    found.push((line, path_so_far));
    at
}
