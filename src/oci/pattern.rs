//! Patterns for names: globs or regular expressions.

use std::fmt;
use std::str::FromStr;

use regex_lite::Regex;

use super::name::{ImageName, Reference};
use super::quoted::{quoted, quoted_up_to};

/// The length of a pattern. Names of images are shorter.
const CHARS_MAX: usize = 1000;

/// A glob (`*` matches any text, `?` any character) or, between slashes, a regular expression: `v1.*`,
/// `docker.io/library/*`, `/^v[0-9]+$/`. A glob has to match the entire text, a regular expression any part of it.
#[derive(Debug, Clone)]
pub struct Pattern {
    text: String,
    regex: Regex,
}

impl Pattern {
    /// Whether the pattern matches a text.
    pub fn matches(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }

    /// Whether the pattern matches an image: by its full reference, or by its name without a tag, which selects all
    /// tags.
    pub fn matches_image(&self, name: &ImageName, reference: &Reference) -> bool {
        self.matches(&name.with(reference)) || self.matches(&name.to_string())
    }
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Pattern, PatternError> {
        let between_slashes = text.strip_prefix('/').and_then(|rest| rest.strip_suffix('/'));
        let expression = match between_slashes {
            Some(expression) => expression.to_owned(),
            None => glob(text),
        };
        match Regex::new(&expression) {
            _ if text.is_empty() => Err(PatternError { reason: "it is empty".into() }),
            // Patterns are printed as they are.
            _ if quoted_up_to(CHARS_MAX, text) != text => {
                let reason =
                    format!("it has a character that cannot be printed, or more than {CHARS_MAX}");
                Err(PatternError { reason })
            }
            Ok(regex) => Ok(Pattern { text: text.to_owned(), regex }),
            Err(error) => Err(PatternError { reason: quoted(error) }),
        }
    }
}

/// Converts a glob to a regular expression.
fn glob(text: &str) -> String {
    let mut expression = String::from("^");
    for char in text.chars() {
        match char {
            '*' => expression.push_str(".*"),
            '?' => expression.push('.'),
            other => expression.push_str(&regex_lite::escape(other.encode_utf8(&mut [0; 4]))),
        }
    }
    expression.push('$');
    expression
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Pattern) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

/// Why a text is not a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PatternError {
    reason: String,
}

impl PatternError {
    /// The error, without the description of valid patterns.
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

impl fmt::Display for PatternError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "not a pattern ({}): give a glob such as v1.*, or a regular expression between slashes such \
             as /^v[0-9]+$/",
            self.reason
        )
    }
}

impl std::error::Error for PatternError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_the_entire_text_and_expressions_a_part() {
        for (pattern, text, expected) in [
            ("v1.*", "v1.2", true),
            ("v1.*", "v1", false),
            ("v1.*", "v112", false),
            ("v?", "v1", true),
            ("v?", "v12", false),
            ("*", "", true),
            ("a+b", "a+b", true),
            ("a+b", "aab", false),
            ("/^v[0-9]+$/", "v12", true),
            ("/^v[0-9]+$/", "v12-rc", false),
            ("/rc/", "v1-rc2", true),
        ] {
            let parsed: Pattern = pattern.parse().unwrap();
            assert_eq!(parsed.matches(text), expected, "{pattern} {text}");
            assert_eq!(parsed.to_string(), pattern);
        }
        let long = "a".repeat(CHARS_MAX + 1);
        for text in ["", "/(/", "/[/", "a\u{1b}*", "a\n", "\u{202e}*", &long] {
            assert!(text.parse::<Pattern>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_image_is_matched_by_its_reference_or_its_name() {
        let name = ImageName::new("docker.io".parse().unwrap(), "alpine".parse().unwrap());
        let reference = "3.20".parse().unwrap();
        for (pattern, expected) in [
            ("docker.io/library/alpine:3.20", true),
            ("docker.io/library/alpine", true),
            ("docker.io/*", true),
            ("*alpine:3.*", true),
            ("docker.io/library/alpine:3.21", false),
            ("alpine", false),
            ("/alpine/", true),
        ] {
            let pattern: Pattern = pattern.parse().unwrap();
            assert_eq!(pattern.matches_image(&name, &reference), expected, "{pattern}");
        }
    }
}
