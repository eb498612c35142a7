//! Formats sizes, counts and times for people.

use std::fmt::Display;
use std::time::SystemTime;

use crate::bundle::Bytes;

/// Bytes with a decimal unit: `12.3 MB`.
pub(super) fn size(bytes: u64) -> String {
    Bytes(bytes).to_string()
}

/// A count and its noun, which forms its plural with an `s`: `1 image`, `2 images`.
pub(super) fn plural<N: Display + PartialEq + From<u8>>(count: N, noun: &str) -> String {
    let s = if count == N::from(1) { "" } else { "s" };
    format!("{count} {noun}{s}")
}

/// The time since `time`, rounded down to one unit: `5m`, `3h`, `12d`.
pub(super) fn ago(time: SystemTime, now: SystemTime) -> String {
    let seconds = now.duration_since(time).map_or(0, |age| age.as_secs());
    match seconds {
        0..60 => "now".into(),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn nouns_are_plural_except_after_one() {
        for (count, text) in [(0_u64, "0 images"), (1, "1 image"), (2, "2 images")] {
            assert_eq!(plural(count, "image"), text);
        }
    }

    #[test]
    fn times() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        for (age, text) in [(0, "now"), (61, "1m"), (7300, "2h"), (200_000, "2d")] {
            assert_eq!(ago(at(1_000_000), at(1_000_000 + age)), text);
        }
        assert_eq!(ago(at(10), at(5)), "now");
    }
}
