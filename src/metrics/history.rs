//! The traffic of the last day in minutes, and of the last week in hours: bounded, and kept across restarts by the caller.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Traffic;

/// The number of minutes: a day.
const MINUTES: usize = 1440;
/// The number of hours: a week.
const HOURS: usize = 168;
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// The traffic of a minute, or of a longer step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// The end of the step.
    pub time: SystemTime,
    /// Answers without a download.
    pub hits: u64,
    /// Answers that needed a download.
    pub misses: u64,
    /// Bytes sent to clients.
    pub served_bytes: u64,
    /// Bytes received from upstreams.
    pub fetched_bytes: u64,
}

impl Step {
    /// Whether nothing happened.
    pub fn is_idle(&self) -> bool {
        [self.hits, self.misses, self.served_bytes, self.fetched_bytes] == [0; 4]
    }

    fn add(&mut self, other: &Step) {
        for (sum, more) in [
            (&mut self.hits, other.hits),
            (&mut self.misses, other.misses),
            (&mut self.served_bytes, other.served_bytes),
            (&mut self.fetched_bytes, other.fetched_bytes),
        ] {
            *sum = sum.saturating_add(more);
        }
    }
}

/// The part of the history that is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// The last hour in minutes.
    Hour,
    /// The last day in quarters of an hour.
    Day,
    /// The last week in hours.
    Week,
}

impl Span {
    /// The length of its steps.
    pub fn step(self) -> Duration {
        match self {
            Span::Hour => MINUTE,
            Span::Day => 15 * MINUTE,
            Span::Week => HOUR,
        }
    }

    fn length(self) -> Duration {
        match self {
            Span::Hour => HOUR,
            Span::Day => 24 * HOUR,
            Span::Week => 7 * 24 * HOUR,
        }
    }
}

/// What is kept across restarts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recorded {
    /// The minutes of the last day, oldest first.
    pub minutes: Vec<Step>,
    /// The hours of the last week, oldest first.
    pub hours: Vec<Step>,
}

#[derive(Default)]
pub(super) struct History {
    minutes: VecDeque<Step>,
    hours: VecDeque<Step>,
    last: Traffic,
}

impl History {
    /// Completes a minute. Returns the traffic up to which it was completed before.
    pub(super) fn replace_last(&mut self, now: Traffic) -> Traffic {
        std::mem::replace(&mut self.last, now)
    }

    pub(super) fn push(&mut self, step: Step) {
        push(&mut self.minutes, step, MINUTES);
        merge(&mut self.hours, step, HOUR, HOURS);
    }

    pub(super) fn minutes(&self) -> Vec<Step> {
        self.minutes.iter().copied().collect()
    }

    /// The traffic up to which minutes are complete.
    pub(super) fn last(&self) -> Traffic {
        self.last
    }

    /// The steps of a span up to now, with `current`, the minute that is not complete. Steps of which nothing is known
    /// are left out.
    pub(super) fn steps(&self, span: Span, current: Step) -> Vec<Step> {
        let now = current.time;
        let begin = now.checked_sub(span.length()).unwrap_or(UNIX_EPOCH);
        let all = if span == Span::Week { &self.hours } else { &self.minutes };
        let mut steps = VecDeque::new();
        let current = (!current.is_idle()).then_some(&current);
        for step in all.iter().filter(|step| step.time > begin).chain(current) {
            merge(&mut steps, *step, span.step(), MINUTES);
        }
        steps.into()
    }

    pub(super) fn recorded(&self) -> Recorded {
        Recorded { minutes: self.minutes(), hours: self.hours.iter().copied().collect() }
    }

    /// Puts what an earlier process has recorded before what this one has. Steps in the future, which a wrong clock
    /// leaves, and steps in the wrong order are dropped.
    pub(super) fn restore(&mut self, recorded: Recorded, now: SystemTime) {
        for (own, before, max) in [
            (&mut self.minutes, recorded.minutes, MINUTES),
            (&mut self.hours, recorded.hours, HOURS),
        ] {
            let mut all = VecDeque::new();
            for step in before {
                let is_later = all.back().is_none_or(|last: &Step| last.time < step.time);
                if is_later && step.time <= now + HOUR {
                    push(&mut all, step, max);
                }
            }
            for step in own.drain(..) {
                push(&mut all, step, max);
            }
            *own = all;
        }
    }
}

fn push(steps: &mut VecDeque<Step>, step: Step, max: usize) {
    if steps.len() == max {
        steps.pop_front();
    }
    steps.push_back(step);
}

/// Adds a step to the longer one that it is a part of.
fn merge(steps: &mut VecDeque<Step>, step: Step, length: Duration, max: usize) {
    let end = end_of(step.time, length);
    match steps.back_mut() {
        Some(last) if last.time == end => last.add(&step),
        _ => push(steps, Step { time: end, ..step }, max),
    }
}

/// The end of the step of this length that ends at `time`, or that contains it.
fn end_of(time: SystemTime, length: Duration) -> SystemTime {
    let length = length.as_secs();
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs() + u64::from(since.subsec_nanos() > 0);
    UNIX_EPOCH + Duration::from_secs(seconds.div_ceil(length).saturating_mul(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn step(seconds: u64, hits: u64) -> Step {
        Step { time: at(seconds), hits, misses: 1, served_bytes: 2, fetched_bytes: 3 }
    }

    fn idle(seconds: u64) -> Step {
        Step { time: at(seconds), hits: 0, misses: 0, served_bytes: 0, fetched_bytes: 0 }
    }

    fn filled(minutes: u64) -> History {
        let mut history = History::default();
        (1..=minutes).for_each(|minute| history.push(step(minute * 60, 1)));
        history
    }

    #[test]
    fn longer_spans_have_longer_steps_with_the_same_totals() {
        let history = filled(1440);
        let (now, idle) = (at(1440 * 60), idle(1440 * 60));
        for (span, steps, hits) in [(Span::Hour, 60, 60), (Span::Day, 96, 1440)] {
            let found = history.steps(span, idle);
            assert_eq!(found.len(), steps, "{span:?}");
            assert_eq!(found.iter().map(|step| step.hits).sum::<u64>(), hits, "{span:?}");
            assert_eq!(found.last().unwrap().time, now);
        }
        let week = history.steps(Span::Week, idle);
        assert_eq!((week.len(), week[0].hits, week[0].time), (24, 60, at(3600)));
    }

    #[test]
    fn the_minute_that_is_not_complete_is_shown() {
        let history = filled(2);
        let steps = history.steps(Span::Hour, step(150, 7));
        assert_eq!(steps.iter().map(|step| step.hits).collect::<Vec<_>>(), [1, 1, 7]);
        assert_eq!(steps[2].time, at(180));
        let week = history.steps(Span::Week, step(150, 7));
        assert_eq!((week.len(), week[0].hits), (1, 9));
    }

    #[test]
    fn the_history_is_bounded_in_both_resolutions() {
        let history = filled(60 * 24 * 9);
        assert_eq!((history.minutes.len(), history.hours.len()), (MINUTES, HOURS));
        assert_eq!(history.steps(Span::Week, idle(60 * 60 * 24 * 9)).len(), HOURS);
    }

    #[test]
    fn a_step_belongs_to_the_step_that_contains_it() {
        for (time, end) in [(0, 0), (1, 3600), (3600, 3600), (3601, 7200)] {
            assert_eq!(end_of(at(time), HOUR), at(end));
        }
        let later = at(3600) + Duration::from_millis(1);
        assert_eq!(end_of(later, HOUR), at(7200));
    }

    #[test]
    fn an_earlier_process_comes_first_and_nonsense_is_dropped() {
        let mut history = filled(2);
        let wrong = step(10_000_000, 9);
        let recorded = Recorded { minutes: vec![step(30, 5), step(20, 9), wrong], hours: vec![] };
        history.restore(recorded, at(120));
        let hits: Vec<u64> = history.minutes().iter().map(|step| step.hits).collect();
        assert_eq!(hits, [5, 1, 1]);
        assert_eq!(history.recorded().hours.len(), 1);
    }
}
