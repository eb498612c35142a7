//! Makes untrusted text safe for messages, tables and documents.
//!
//! A manifest, an archive or a registry may contain any text: four megabytes of it, or control characters that move
//! a terminal's cursor or reverse the direction of the text that follows. So untrusted text is shortened and escaped
//! here, where it enters the program, and not by every part of the code that prints it.

use std::fmt::{self, Display, Write};

/// The most characters of one text that are quoted.
pub const QUOTED_CHARS_MAX: usize = 100;

/// At most [`QUOTED_CHARS_MAX`] characters of a text. Control characters, line breaks and characters that change the
/// direction of writing are escaped as in Rust (`\u{1b}`). A final `…` shows that the text was cut.
///
/// Formatting stops at the limit: a value that prints megabytes is not formatted completely first.
pub fn quoted(text: impl Display) -> String {
    quoted_up_to(QUOTED_CHARS_MAX, text)
}

/// [`quoted`] with another limit.
pub fn quoted_up_to(chars_max: usize, text: impl Display) -> String {
    let mut bounded = Bounded { text: String::new(), chars_left: chars_max };
    // The only possible error is that the limit was reached.
    if write!(bounded, "{text}").is_err() {
        bounded.text.push('…');
    }
    bounded.text
}

/// The message of a JSON parser, with the position in the document. The parser's own message contains the offending
/// string in full.
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
                // Rust escapes these only for use within quotes. They are harmless.
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
    fn control_and_direction_characters_are_escaped() {
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
    fn a_long_text_is_cut_while_it_is_formatted() {
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
    fn a_json_error_keeps_its_position_without_the_full_string() {
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
