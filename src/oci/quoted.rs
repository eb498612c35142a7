//! Text from outside, as it may appear in messages, tables and documents.
//!
//! A manifest, an archive or a registry may contain any text: one of four megabytes, or one with control
//! characters that move a terminal's cursor or reverse the direction of what follows. So whatever is quoted
//! is bounded and escaped here, where it is taken over, and not by everything that prints it.

use std::fmt::{self, Display, Write};

/// The most characters that are quoted of one text.
pub const QUOTED_CHARS_MAX: usize = 100;

/// At most [`QUOTED_CHARS_MAX`] characters of a text. Control characters, line breaks and characters that
/// change the direction of writing are escaped as in Rust (`\u{1b}`); `…` marks where a text was cut.
///
/// Formatting stops at the bound: a value that prints megabytes is not printed first and cut then.
pub fn quoted(text: impl Display) -> String {
    quoted_up_to(QUOTED_CHARS_MAX, text)
}

/// [`quoted`] with a bound of its own.
pub fn quoted_up_to(chars_max: usize, text: impl Display) -> String {
    let mut bounded = Bounded { text: String::new(), chars_left: chars_max };
    // An error is the bound that was reached; nothing else fails here.
    if write!(bounded, "{text}").is_err() {
        bounded.text.push('…');
    }
    bounded.text
}

/// What a JSON parser says, with the place in the document. Its own text contains the offending string
/// in full length.
pub fn json_reason(error: &serde_json::Error) -> String {
    let reason = quoted(error);
    match reason.ends_with('…') {
        true => format!("{reason} at line {} column {}", error.line(), error.column()),
        false => reason,
    }
}

struct Bounded {
    text: String,
    chars_left: usize,
}

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for char in text.chars() {
            self.chars_left = self.chars_left.checked_sub(1).ok_or(fmt::Error)?;
            match char {
                // Escaped by Rust within quotes only, and harmless.
                '"' | '\'' | '\\' => self.text.push(char),
                _ => self.text.extend(char.escape_debug()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_and_changes_of_direction_are_escaped() {
        for (text, expected) in [
            ("linux/amd64", "linux/amd64"),
            ("it's \"quoted\" \\ as is", "it's \"quoted\" \\ as is"),
            ("\u{1b}[2J", "\\u{1b}[2J"),
            ("a\nb\r\t\0", "a\\nb\\r\\t\\0"),
            ("x\u{202e}gpj.exe", "x\\u{202e}gpj.exe"),
            (
                "\u{2066}\u{200f}\u{feff}\u{85}\u{2028}",
                "\\u{2066}\\u{200f}\\u{feff}\\u{85}\\u{2028}",
            ),
            ("grüße, 世界", "grüße, 世界"),
        ] {
            assert_eq!(quoted(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_long_text_is_cut_before_it_is_formatted_in_full() {
        struct Endless;
        impl Display for Endless {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                loop {
                    f.write_str("ab")?;
                }
            }
        }
        let text = quoted(Endless);
        assert_eq!(text.chars().count(), QUOTED_CHARS_MAX + 1);
        assert!(text.ends_with("ab…"), "{text}");
        assert_eq!(quoted("a".repeat(QUOTED_CHARS_MAX)), "a".repeat(QUOTED_CHARS_MAX));
        assert_eq!(quoted_up_to(2, "abc"), "ab…");
    }

    #[test]
    fn a_json_error_keeps_its_place_without_the_string_that_caused_it() {
        let json =
            format!("{{\"a\":\n\"{}\u{1b}\"}}", "x".repeat(1_000_000)).replace('\u{1b}', "\\u001b");
        let error =
            serde_json::from_str::<std::collections::HashMap<String, u32>>(&json).unwrap_err();
        let reason = json_reason(&error);
        assert!(reason.starts_with("invalid type: string \"xxx"), "{reason}");
        assert!(reason.contains("… at line 2 column 1000008"), "{reason}");
        assert!(reason.len() < 200, "{reason}");
    }
}
