//! Formats sizes, counts and times for people: in log lines, errors and the output of commands.
//!
//! Texts for programs, such as metrics, JSON and configuration files, have exact numbers and do not use this module.

use std::fmt::Display;
use std::time::{Duration, SystemTime};

/// Bytes with a decimal unit, rounded down: `12.3 MB`. Use [`plural`] where a difference of one byte matters.
pub fn size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 4] =
        [("TB", 1_000_000_000_000), ("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1_000)];
    match UNITS.into_iter().find(|(_, factor)| bytes >= *factor) {
        Some((unit, factor)) => {
            let (whole, tenth) = (bytes / factor, bytes % factor * 10 / factor);
            format!("{whole}.{tenth} {unit}")
        }
        None => plural(bytes, "byte"),
    }
}

/// A count and its noun with a regular plural: `1 image`, `2 images`, `3 registry entries`, `4 keys`.
pub fn plural<N: Display + PartialEq + From<u8>>(count: N, noun: &str) -> String {
    match noun.strip_suffix('y').filter(|stem| !stem.ends_with(['a', 'e', 'o', 'u'])) {
        _ if count == N::from(1) => format!("{count} {noun}"),
        Some(stem) => format!("{count} {stem}ies"),
        None => format!("{count} {noun}s"),
    }
}

/// A duration in its largest unit and the next one: `350 ms`, `1.5 s`, `2 min 5 s`, `6 h`.
pub fn duration(duration: Duration) -> String {
    let two_units = |all: u64, unit: &str, smaller: &str| match (all / 60, all % 60) {
        (whole, 0) => format!("{whole} {unit}"),
        (whole, rest) => format!("{whole} {unit} {rest} {smaller}"),
    };
    // Rounded to a tenth of a second, and from a minute on down to seconds or minutes.
    let tenths = (duration.as_millis() + 50) / 100;
    match duration.as_secs() {
        0 if duration.is_zero() => "0 s".into(),
        0 => format!("{} ms", duration.as_millis()),
        1..60 if tenths.is_multiple_of(10) => format!("{} s", tenths / 10),
        1..60 => format!("{}.{} s", tenths / 10, tenths % 10),
        seconds @ 60..3600 => two_units(seconds, "min", "s"),
        seconds => two_units(seconds / 60, "h", "min"),
    }
}

/// The time since `time`, rounded down to one unit: `5m`, `3h`, `12d`.
pub fn ago(time: SystemTime, now: SystemTime) -> String {
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
    use super::*;

    #[test]
    fn sizes_have_decimal_units() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1, "1 byte"),
            (999, "999 bytes"),
            (1_000, "1.0 kB"),
            (45_290_000, "45.2 MB"),
            (4_000_000_000, "4.0 GB"),
            (u64::MAX, "18446744.0 TB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn nouns_are_plural_except_after_one() {
        for (count, text) in [(0_u64, "0 images"), (1, "1 image"), (2, "2 images")] {
            assert_eq!(plural(count, "image"), text);
        }
        for (count, text) in [(1_usize, "1 registry entry"), (2, "2 registry entries")] {
            assert_eq!(plural(count, "registry entry"), text);
        }
        assert_eq!(plural(2_u64, "key"), "2 keys");
    }

    #[test]
    fn durations_have_at_most_two_units() {
        for (milliseconds, text) in [
            (0, "0 s"),
            (1, "1 ms"),
            (999, "999 ms"),
            (1_000, "1 s"),
            (1_549, "1.5 s"),
            (4_999, "5 s"),
            (59_949, "59.9 s"),
            (60_000, "1 min"),
            (125_900, "2 min 5 s"),
            (21_600_000, "6 h"),
            (90_000_000, "25 h"),
            (5_461_000, "1 h 31 min"),
        ] {
            assert_eq!(duration(Duration::from_millis(milliseconds)), text);
        }
    }

    #[test]
    fn ages_have_one_unit() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        for (age, text) in [(0, "now"), (61, "1m"), (7300, "2h"), (200_000, "2d")] {
            assert_eq!(ago(at(1_000_000), at(1_000_000 + age)), text);
        }
        assert_eq!(ago(at(10), at(5)), "now");
    }
}
