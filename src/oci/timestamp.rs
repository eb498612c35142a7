//! Timestamps in documents: image-spec requires RFC 3339, section 5.6.

/// The longest timestamp: nanoseconds and an offset have 35 characters.
const CHARS_MAX: usize = 40;

/// Whether a text has the form of a timestamp, `2026-01-31T08:00:00.5Z`, and is therefore safe to print. Does not
/// check that the day exists.
pub(super) fn is_timestamp(text: &str) -> bool {
    let Some((date, time)) = text.split_once(['T', 't']) else { return false };
    let is_date = date.len() == 10
        && date.bytes().enumerate().all(|(at, byte)| match at {
            4 | 7 => byte == b'-',
            _ => byte.is_ascii_digit(),
        });
    let is_time = |byte: u8| byte.is_ascii_digit() || b":.+-Zz".contains(&byte);
    is_date && text.len() <= CHARS_MAX && !time.is_empty() && time.bytes().all(is_time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_have_no_other_characters() {
        for (text, expected) in [
            ("2026-01-31T08:00:00Z", true),
            ("2026-01-31T08:00:00.123456789+01:00", true),
            ("0001-01-01T00:00:00Z", true),
            ("2026-01-31", false),
            ("", false),
            ("T", false),
            ("2026-01-31T", false),
            ("2026-01-31T08:00:00Z\u{1b}[2J", false),
            ("\u{1b}[2J26-01T08:00:00Z", false),
            ("2026-01-31T00000000000000000000000000000000000000000000", false),
        ] {
            assert_eq!(is_timestamp(text), expected, "{text:?}");
        }
    }
}
