//! When an entry runs: at intervals, or at the times of a cron expression in UTC.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use croner::Cron;
use croner::errors::CronError;
use croner::parser::{CronParser, Seconds, Year};
use croner::time::{CivilDate, CivilDateTime, CivilTime, CronDateTime, Resolution, Weekday};
use time::{Date, Month, OffsetDateTime, PrimitiveDateTime, Time};

use crate::oci::quoted;

/// When an entry runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Schedule {
    /// At this interval from the start of one run to the start of the next one.
    Every(Duration),
    /// At these times.
    Cron(CronSchedule),
    /// Once, at the start of the server.
    AtStart,
}

impl Schedule {
    /// When the next run is due, which may be in the past: a run that was missed while the server was down is made up.
    /// `last` is when the last run that has ended was started. `None` if there is no further run.
    pub fn next(&self, last: Option<SystemTime>, now: SystemTime) -> Option<SystemTime> {
        let Some(last) = last else { return Some(now) };
        // The clock was set back: the record must not delay the next run until the clock has caught up.
        if last > now && *self != Schedule::AtStart {
            return Some(now);
        }
        match self {
            Schedule::Every(interval) => last.checked_add(*interval),
            Schedule::Cron(cron) => cron.next_after(last),
            Schedule::AtStart => None,
        }
    }
}

/// A cron expression with five fields: minute, hour, day of the month, month, day of the week. Its times are UTC.
#[derive(Debug, Clone)]
pub struct CronSchedule {
    text: String,
    /// Some hundred bytes.
    cron: Box<Cron>,
}

impl CronSchedule {
    /// The first of its times after this one. `None` beyond the years that it can compute.
    fn next_after(&self, time: SystemTime) -> Option<SystemTime> {
        let seconds = time.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
        let start = OffsetDateTime::from_unix_timestamp(seconds.try_into().ok()?).ok()?;
        let start = Utc(start);
        let next = self.cron.find_next_occurrence(&start, false).ok()?;
        Some(next.0.into())
    }
}

impl FromStr for CronSchedule {
    type Err = String;

    fn from_str(text: &str) -> Result<CronSchedule, String> {
        let refuse = |reason: &str| {
            format!(
                "\"{}\" is not a schedule ({reason}); give minute, hour, day of the month, month and day of \
                 the week in UTC, such as \"30 3 * * 1-5\" for 03:30 from Monday to Friday",
                quoted(text)
            )
        };
        if !text.starts_with('@') && !text.split_whitespace().all(is_field) {
            return Err(refuse(
                "a field is *, a number, a name such as MON, a range, or a list of these",
            ));
        }
        let parser =
            CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let cron =
            parser.parse(text).map_err(|error| refuse(quoted(error).trim_end_matches('.')))?;
        let schedule = CronSchedule { text: text.to_owned(), cron: Box::new(cron) };
        // The 30th of February: any start gives the same result.
        match schedule.next_after(SystemTime::UNIX_EPOCH) {
            Some(_) => Ok(schedule),
            None => Err(refuse("there is no such day")),
        }
    }
}

/// Whether a text is a field as in crontab(5). The parser's extensions (`L`, `#`, `W`, `+`) would not be understood by
/// everybody, and it searches for seconds for the next time of an empty field.
fn is_field(text: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_name =
        |text: &str| text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_alphabetic());
    let is_value = |text: &str| is_number(text) || is_name(text);
    text.split(',').all(|part| {
        let (range, step) = part.split_once('/').unwrap_or((part, "1"));
        let is_range = match range.split_once('-') {
            Some((first, last)) => is_value(first) && is_value(last),
            None => range == "*" || is_value(range),
        };
        is_range && is_number(step)
    })
}

impl fmt::Display for CronSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialEq for CronSchedule {
    fn eq(&self, other: &CronSchedule) -> bool {
        self.text == other.text
    }
}

impl Eq for CronSchedule {}

/// A time in UTC, which has no gaps and no repeated hours.
#[derive(Debug, Clone)]
struct Utc(OffsetDateTime);

impl CronDateTime for Utc {
    fn to_civil(&self) -> CivilDateTime {
        let (date, time) = (self.0.date(), self.0.time());
        let (hour, minute, second) = time.as_hms();
        let date =
            CivilDate::from_ymd_opt(date.year(), u8::from(date.month()).into(), date.day().into());
        let time = CivilTime::from_hms_opt(hour.into(), minute.into(), second.into());
        // Every date and time of the one library is one of the other.
        CivilDateTime::new(date.expect("a valid date"), time.expect("a valid time"))
    }

    fn civil_weekday(&self) -> Weekday {
        match self.0.weekday() {
            time::Weekday::Sunday => Weekday::Sunday,
            time::Weekday::Monday => Weekday::Monday,
            time::Weekday::Tuesday => Weekday::Tuesday,
            time::Weekday::Wednesday => Weekday::Wednesday,
            time::Weekday::Thursday => Weekday::Thursday,
            time::Weekday::Friday => Weekday::Friday,
            time::Weekday::Saturday => Weekday::Saturday,
        }
    }

    fn resolve_civil(&self, civil: CivilDateTime) -> Result<Resolution<Utc>, CronError> {
        let (date, time) = (civil.date(), civil.time());
        let small = |number: u32| u8::try_from(number).map_err(|_| CronError::InvalidDate);
        let month = Month::try_from(small(date.month())?).map_err(|_| CronError::InvalidDate)?;
        let date = Date::from_calendar_date(date.year(), month, small(date.day())?);
        let time =
            Time::from_hms(small(time.hour())?, small(time.minute())?, small(time.second())?);
        let date = date.map_err(|_| CronError::InvalidDate)?;
        let time = time.map_err(|_| CronError::InvalidTime)?;
        Ok(Resolution::Single(Utc(PrimitiveDateTime::new(date, time).assume_utc())))
    }

    fn checked_add_seconds(&self, seconds: i64) -> Option<Utc> {
        self.0.checked_add(time::Duration::seconds(seconds)).map(Utc)
    }

    fn cmp_instant(&self, other: &Utc) -> Ordering {
        self.0.cmp(&other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prune::{parse_since, timestamp};

    fn at(text: &str) -> SystemTime {
        parse_since(text, SystemTime::UNIX_EPOCH).unwrap()
    }

    fn cron(text: &str) -> Schedule {
        Schedule::Cron(text.parse().unwrap())
    }

    #[test]
    fn the_next_run_follows_the_last_one() {
        let hours = |number: u64| Schedule::Every(Duration::from_secs(3600 * number));
        // 2026-11-29 is a Sunday.
        for (schedule, last, next) in [
            (hours(6), "2026-11-29T12:00:00", "2026-11-29T18:00:00Z"),
            (hours(48), "2026-11-29T12:00:00", "2026-12-01T12:00:00Z"),
            (cron("30 3 * * *"), "2026-11-29T03:29:59", "2026-11-29T03:30:00Z"),
            (cron("30 3 * * *"), "2026-11-29T03:30:00", "2026-11-30T03:30:00Z"),
            (cron("30 3 * * *"), "2026-11-29T03:30:01", "2026-11-30T03:30:00Z"),
            (cron("30 3 * * 2-5"), "2026-11-29T03:30:00", "2026-12-01T03:30:00Z"),
            (cron("0 0 1 1 *"), "2026-11-29T03:30:00", "2027-01-01T00:00:00Z"),
            (cron("0 0 29 2 *"), "2026-11-29T03:30:00", "2028-02-29T00:00:00Z"),
            (cron("*/15 * * * *"), "2026-11-29T23:50:00", "2026-11-30T00:00:00Z"),
            (cron("0 12 * * sun"), "2026-11-29T12:00:00", "2026-12-06T12:00:00Z"),
            (cron("@daily"), "2026-11-29T12:00:00", "2026-11-30T00:00:00Z"),
        ] {
            let due = schedule.next(Some(at(last)), at("2027-06-01")).unwrap();
            assert_eq!(timestamp(due), next, "{schedule:?} after {last}");
        }
    }

    #[test]
    fn a_first_run_is_due_at_once_and_a_run_at_start_is_not_repeated() {
        let now = at("2026-11-29");
        for schedule in
            [Schedule::Every(Duration::from_secs(60)), cron("0 0 1 1 *"), Schedule::AtStart]
        {
            assert_eq!(schedule.next(None, now), Some(now), "{schedule:?}");
        }
        assert_eq!(Schedule::AtStart.next(Some(now), now), None);
    }

    #[test]
    fn a_clock_that_was_set_back_delays_no_run() {
        let later = at("2030-01-01");
        let every = Schedule::Every(Duration::from_secs(3600));
        for now in [at("2026-11-29T12:00:00"), at("2026-11-29T12:00:01")] {
            assert_eq!(every.next(Some(later), now), Some(now));
            assert_eq!(cron("0 13 * * *").next(Some(later), now), Some(now));
            assert_eq!(Schedule::AtStart.next(Some(later), now), None);
        }
    }

    #[test]
    fn expressions_have_five_fields_and_at_least_one_time() {
        for text in [
            "30 3 * * 1-5",
            "0 */6 * * *",
            "0 0 * * MON",
            "0 0 1,15 JAN-MAR *",
            "*/15 0-6/2 * * *",
            "@hourly",
            "5,35 8-18 * * *",
        ] {
            assert_eq!(text.parse::<CronSchedule>().map(|it| it.to_string()), Ok(text.to_owned()));
        }
        for text in [
            "",
            "* * * *",
            "0 30 3 * * *",
            "60 * * * *",
            "0 24 * * *",
            "x * * * *",
            "0 0 30 2 *",
            "@never",
            ", * * * *",
            "0 0 L * *",
            "0 0 * * 5#2",
            "0 0 1W * *",
            "-5 * * * *",
            "*/ * * * *",
        ] {
            let error = text.parse::<CronSchedule>().unwrap_err();
            assert!(error.contains("such as \"30 3 * * 1-5\""), "{text}: {error}");
        }
    }
}
