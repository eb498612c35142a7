//! Parses and formats times and durations.

use std::time::{Duration, SystemTime};

use time::format_description::FormatItem;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{Date, OffsetDateTime, PrimitiveDateTime, Time};

use crate::oci::quoted;

/// The units. A name that begins with another one comes first.
const UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60 * 1_000_000_000),
    ("h", 3600 * 1_000_000_000),
    ("d", 86_400 * 1_000_000_000),
    ("w", 7 * 86_400 * 1_000_000_000),
];

/// A duration with its unit, e.g. `1h30m`, `5m`, `250ms`, or `0`.
///
/// # Errors
/// A description of the accepted format.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let refuse = || {
        format!(
            "{} is not a duration: a number with a unit of ns, us, ms, s, m, h, d, w, e.g. 5m or 1h30m, or 0",
            shown(text)
        )
    };
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut nanos: u64 = 0;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest[..digits].parse().map_err(|_| refuse())?;
        rest = &rest[digits..];
        let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        let unit = UNITS.iter().find(|(name, _)| *name == &rest[..letters]).ok_or_else(refuse)?;
        rest = &rest[letters..];
        let part = number.checked_mul(unit.1).ok_or_else(refuse)?;
        nanos = nanos.checked_add(part).ok_or_else(refuse)?;
    }
    if text.is_empty() { Err(refuse()) } else { Ok(Duration::from_nanos(nanos)) }
}

/// A value in a message; an empty one is visible.
fn shown(text: &str) -> String {
    if text.is_empty() { "nothing".to_owned() } else { quoted(text) }
}

/// A point in time: a date, a date and a time (both UTC), or a time before `now`, e.g. `7d`.
///
/// # Errors
/// A description of the accepted formats.
pub fn parse_since(text: &str, now: SystemTime) -> Result<SystemTime, String> {
    const DATE: &[FormatItem<'_>] = format_description!("[year]-[month]-[day]");
    const DATE_TIME: &[FormatItem<'_>] =
        format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]");
    let midnight = Date::parse(text, DATE).map(|date| date.with_time(Time::MIDNIGHT));
    let date_time =
        midnight.or_else(|_| PrimitiveDateTime::parse(text.trim_end_matches('Z'), DATE_TIME));
    if let Ok(date_time) = date_time {
        return Ok(date_time.assume_utc().into());
    }
    let ago = parse_duration(text).ok().map(|ago| ago.as_secs()).filter(|ago| *ago > 0);
    ago.and_then(|ago| now.checked_sub(Duration::from_secs(ago))).ok_or_else(|| {
        format!(
            "{text:?} is neither a date such as 2026-11-01 or 2026-11-01T12:00:00 (UTC) nor a time \
             ago such as 12h, 7d or 4w"
        )
    })
}

/// A point in time, UTC: `2026-11-23T12:00:00Z`. Empty for a time without this form, after the year 9999.
pub fn timestamp(time: SystemTime) -> String {
    // Not converted by `OffsetDateTime::from`, which panics after the year 9999.
    let seconds = match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).ok(),
        Err(before) => {
            let before = before.duration();
            let started = before.as_secs() + u64::from(before.subsec_nanos() > 0);
            i64::try_from(started).ok().map(|seconds| -seconds)
        }
    };
    let time = seconds.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_a_date_or_a_time_ago() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let now = at(2_000_000_000);
        for (text, expected) in [
            ("1970-01-02", 86_400),
            ("1970-01-02T00:00:01", 86_401),
            ("1970-01-02T00:00:01Z", 86_401),
            ("7d", 2_000_000_000 - 604_800),
            ("2w", 2_000_000_000 - 2 * 604_800),
            ("1d12h", 2_000_000_000 - 129_600),
        ] {
            assert_eq!(parse_since(text, now), Ok(at(expected)), "{text}");
        }
        for text in ["", "7", "0d", "d", "yesterday", "2026-13-01", "99999999999999999999d"] {
            assert!(parse_since(text, now).is_err(), "{text}");
        }
    }

    #[test]
    fn a_point_in_time_is_written_in_utc() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_800_000_000_123);
        assert_eq!(timestamp(time), "2027-01-15T08:00:00Z");
        let before = SystemTime::UNIX_EPOCH - Duration::from_millis(500);
        assert_eq!(timestamp(before), "1969-12-31T23:59:59Z");
    }

    #[test]
    fn a_time_after_the_year_9999_in_a_damaged_record_does_not_panic() {
        let at =
            |seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap();
        assert_eq!(timestamp(at(253_402_300_799)), "9999-12-31T23:59:59Z");
        assert_eq!(timestamp(at(253_402_300_800)), "");
        assert_eq!(timestamp(at(i64::MAX as u64)), "");
    }

    #[test]
    fn durations_have_units() {
        for (text, seconds) in
            [("0", 0.0), ("5m", 300.0), ("1h30m", 5400.0), ("250ms", 0.25), ("30d", 2_592_000.0)]
        {
            assert!((parse_duration(text).unwrap().as_secs_f64() - seconds).abs() < 1e-9, "{text}");
        }
        for text in ["", "5", "m", "5 m", "-5m", "5x", "1.5h", "5mm", "99999999999d", "5m3"] {
            assert!(parse_duration(text).unwrap_err().contains(text), "{text}");
        }
        assert!(parse_duration("1y").unwrap_err().starts_with("1y is not a duration: "));
        assert!(parse_duration("").unwrap_err().starts_with("nothing is not a duration: "));
    }
}
