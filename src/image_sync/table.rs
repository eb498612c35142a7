//! The state of the entries, and what is done next. Values and decisions only: the thread acts.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::entry::SyncEntry;
use super::schedule::Schedule;
use crate::bundle::{Outcome, Wanted};
use crate::oci::{from_seconds, to_seconds};
use crate::store::SyncRecord;

/// How often a run tries to load an image, and the wait before the second attempt, which doubles with each further one:
/// together some minutes, in which the network of a booting machine comes up.
pub(super) const ATTEMPTS: u32 = 8;
const FIRST_WAIT: Duration = Duration::from_secs(2);
/// The longest wait between two attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How many missing images of an entry are reported with their reasons, and how many that were not confirmed.
const REASONS_MAX: usize = 100;

/// A run, between its attempts.
#[derive(Debug, Clone, Default)]
pub(super) struct Attempted {
    /// Each image, and each pattern and list that could not be read, with its last outcome.
    pub(super) outcomes: BTreeMap<String, Outcome>,
    /// What the next attempt loads; `None` for everything that the entry names.
    pub(super) pending: Option<Pending>,
    /// How many attempts were made.
    pub(super) attempts: u32,
}

/// What an attempt has left.
#[derive(Debug, Clone, Default)]
pub(super) struct Pending {
    /// Images and patterns that may be loaded by another attempt.
    pub(super) wanted: Vec<Wanted>,
    /// Lists that could not be read.
    pub(super) lists: Vec<PathBuf>,
}

impl Attempted {
    /// What another attempt may load: what failed for the time being, or could not be confirmed.
    pub(super) fn retriable(&self) -> impl Iterator<Item = &str> {
        let retriable = self.outcomes.iter().filter(|(_, outcome)| {
            matches!(
                outcome,
                Outcome::Failed { is_permanent: false, .. }
                    | Outcome::Unconfirmed { is_permanent: false, .. }
            )
        });
        retriable.map(|(image, _)| image.as_str())
    }

    /// The wait before the next attempt; `None` if the run has ended.
    pub(super) fn next_wait(&self) -> Option<Duration> {
        let is_over = self.attempts >= ATTEMPTS || self.retriable().next().is_none();
        let doubled = self.attempts.saturating_sub(1).min(u32::BITS - 1);
        (!is_over).then(|| FIRST_WAIT.saturating_mul(1 << doubled).min(LONGEST_WAIT))
    }

    /// The images that are missing, with the reasons.
    pub(super) fn missing(&self) -> impl Iterator<Item = (&str, &str)> {
        self.outcomes.iter().filter_map(|(image, outcome)| match outcome {
            Outcome::Failed { reason, .. } => Some((image.as_str(), reason.as_str())),
            _ => None,
        })
    }

    /// The images whose registry did not confirm them, with the reasons.
    pub(super) fn unconfirmed(&self) -> impl Iterator<Item = (&str, &str)> {
        self.outcomes.iter().filter_map(|(image, outcome)| match outcome {
            Outcome::Unconfirmed { reason, .. } => Some((image.as_str(), reason.as_str())),
            _ => None,
        })
    }
}

/// What an entry does.
#[derive(Debug, Clone)]
enum Phase {
    /// Nothing: it waits for its time.
    Idle,
    /// An attempt is under way.
    Running { started: SystemTime, done: usize, total: usize, attempt: u32 },
    /// Some images failed; another attempt follows.
    Retrying { started: SystemTime, at: SystemTime, attempted: Attempted },
}

/// What an entry does, for the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncStage {
    /// It waits for its time.
    Idle,
    /// It is due, and waits for another entry or for another process.
    Queued,
    /// It loads images.
    Running,
    /// Some images failed, and it waits before it tries them again.
    Retrying,
}

impl SyncStage {
    /// The stage as a word.
    pub fn as_str(self) -> &'static str {
        match self {
            SyncStage::Idle => "idle",
            SyncStage::Queued => "queued",
            SyncStage::Running => "running",
            SyncStage::Retrying => "retrying",
        }
    }
}

/// The state of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncStatus {
    /// Its name.
    pub name: String,
    /// When it runs.
    pub schedule: Schedule,
    /// What it does.
    pub stage: SyncStage,
    /// How many images the attempt under way has tried.
    pub done: usize,
    /// How many images it will try; 0 until that is known.
    pub total: usize,
    /// The number of the attempt under way, or of the last one, of the run under way; 0 if there is none.
    pub attempt: u32,
    /// How many runs have ended since the server started.
    pub runs: u64,
    /// When the next run or attempt is due; `None` if there is none.
    pub next: Option<SystemTime>,
    /// When the run under way was started, or the last one.
    pub started: Option<SystemTime>,
    /// How long the last run took.
    pub took: Option<Duration>,
    /// When a run last ended with all images present and confirmed.
    pub succeeded: Option<SystemTime>,
    /// How many images were present after the last attempt of the last run, or of the run under way.
    pub present: u64,
    /// How many of them their registry did not confirm.
    pub unconfirmed: u64,
    /// How many images were missing.
    pub missing: u64,
    /// Some of them, with the reasons.
    pub reasons: Vec<(String, String)>,
    /// Some of the images that were not confirmed, with the reasons.
    pub unconfirmed_reasons: Vec<(String, String)>,
}

/// A run that was requested.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requested {
    /// The name of the entry.
    pub name: String,
    /// The value that [`SyncStatus::runs`] has when the run has ended.
    pub run: u64,
}

/// An attempt that the thread makes.
pub(super) struct Attempt {
    pub(super) entry: Arc<SyncEntry>,
    pub(super) started: SystemTime,
    pub(super) attempted: Attempted,
}

struct Row {
    entry: Arc<SyncEntry>,
    record: SyncRecord,
    /// How many runs have ended since the server started.
    runs: u64,
    is_requested: bool,
    phase: Phase,
}

impl Row {
    fn new(entry: SyncEntry, records: &[SyncRecord]) -> Row {
        let identity = entry.identity();
        let is_it = |record: &&SyncRecord| record.name == entry.name && record.settings == identity;
        let new = || SyncRecord {
            name: entry.name.clone(),
            settings: identity.clone(),
            ..SyncRecord::default()
        };
        let record = records.iter().find(is_it).cloned().unwrap_or_else(new);
        Row { entry: Arc::new(entry), record, runs: 0, is_requested: false, phase: Phase::Idle }
    }

    fn last(&self) -> Option<SystemTime> {
        // A run at start belongs to this start of the server.
        if self.entry.schedule == Schedule::AtStart && self.runs == 0 {
            return None;
        }
        from_seconds(self.record.started).filter(|_| self.record.started > 0)
    }

    /// When the entry is due; `None` while it runs, and if there is no further run.
    fn due(&self, now: SystemTime) -> Option<SystemTime> {
        match &self.phase {
            Phase::Running { .. } => None,
            _ if self.is_requested => Some(SystemTime::UNIX_EPOCH),
            Phase::Idle => self.entry.schedule.next(self.last(), now),
            // Not later than it can be: the clock may have been set back.
            Phase::Retrying { at, .. } => Some((*at).min(now + LONGEST_WAIT)),
        }
    }

    fn status(&self, now: SystemTime) -> SyncStatus {
        let is_due = self.due(now).is_some_and(|due| due <= now);
        let (stage, started, done, total, attempt) = match &self.phase {
            Phase::Running { started, done, total, attempt } => {
                (SyncStage::Running, Some(*started), *done, *total, *attempt)
            }
            Phase::Retrying { started, attempted, .. } => {
                (SyncStage::Retrying, Some(*started), 0, 0, attempted.attempts)
            }
            Phase::Idle if is_due => (SyncStage::Queued, self.last(), 0, 0, 0),
            Phase::Idle => (SyncStage::Idle, self.last(), 0, 0, 0),
        };
        let record = &self.record;
        SyncStatus {
            name: self.entry.name.clone(),
            schedule: self.entry.schedule.clone(),
            stage,
            done,
            total,
            attempt,
            runs: self.runs,
            next: self.due(now).map(|due| due.max(now)),
            started,
            took: (record.started > 0).then(|| Duration::from_secs(record.seconds)),
            succeeded: record.succeeded.and_then(from_seconds),
            present: record.present,
            unconfirmed: record.unconfirmed,
            missing: record.missing,
            reasons: record.reasons.clone(),
            unconfirmed_reasons: record.unconfirmed_reasons.clone(),
        }
    }
}

/// The entries and what they do.
#[derive(Default)]
pub(super) struct Table {
    rows: Vec<Row>,
}

impl Table {
    /// Replaces the entries. Those that load the same as before keep their state.
    pub(super) fn configure(&mut self, entries: Vec<SyncEntry>, records: &[SyncRecord]) {
        let mut before = std::mem::take(&mut self.rows);
        let row = |entry: SyncEntry| {
            let identity = entry.identity();
            let is_it = |row: &Row| row.entry.name == entry.name && row.record.settings == identity;
            match before.iter().position(is_it) {
                Some(at) => Row { entry: Arc::new(entry), ..before.swap_remove(at) },
                None => {
                    // Those who wait for the end of a run count on.
                    let former = before.iter().find(|row| row.entry.name == entry.name);
                    let runs = former.map_or(0, |row| row.runs);
                    let is_requested = former.is_some_and(|row| row.is_requested);
                    Row { runs, is_requested, ..Row::new(entry, records) }
                }
            }
        };
        self.rows = entries.into_iter().map(row).collect();
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &Arc<SyncEntry>> {
        self.rows.iter().map(|row| &row.entry)
    }

    /// Takes over the runs of other processes on the directory.
    pub(super) fn adopt(&mut self, records: &[SyncRecord]) {
        for row in &mut self.rows {
            let is_it = |record: &&SyncRecord| {
                record.name == row.record.name && record.settings == row.record.settings
            };
            if let Some(newer) =
                records.iter().find(is_it).filter(|it| it.started > row.record.started)
            {
                row.record = newer.clone();
            }
        }
    }

    /// The entry to run now: one that was requested, or the one that has been due for the longest time.
    pub(super) fn due(&self, now: SystemTime) -> Option<String> {
        let due = self.rows.iter().filter_map(|row| Some((row.due(now)?, row)));
        let due = due.filter(|(due, _)| *due <= now).min_by_key(|(due, _)| *due);
        due.map(|(_, row)| row.entry.name.clone())
    }

    /// Requests a run of an entry, or of all. The run under way counts. `None` if there is no such entry.
    pub(super) fn request(&mut self, name: Option<&str>) -> Option<Vec<Requested>> {
        let mut requested = Vec::new();
        for row in &mut self.rows {
            if name.is_none_or(|name| row.entry.name == name) {
                row.is_requested = !matches!(row.phase, Phase::Running { .. });
                let (name, run) = (row.entry.name.clone(), row.runs + 1);
                requested.push(Requested { name, run });
            }
        }
        (name.is_none() || !requested.is_empty()).then_some(requested)
    }

    /// Begins an attempt of an entry.
    pub(super) fn begin(&mut self, name: &str, now: SystemTime) -> Option<Attempt> {
        let row = self.rows.iter_mut().find(|row| row.entry.name == name)?;
        let (started, attempted) = match std::mem::replace(&mut row.phase, Phase::Idle) {
            Phase::Retrying { started, attempted, .. } => (started, attempted),
            _ => (now, Attempted::default()),
        };
        let attempt = attempted.attempts + 1;
        row.phase = Phase::Running { started, done: 0, total: 0, attempt };
        row.is_requested = false;
        Some(Attempt { entry: Arc::clone(&row.entry), started, attempted })
    }

    /// Notes how far the attempt of an entry is.
    pub(super) fn progress(&mut self, entry: &Arc<SyncEntry>, more: usize, of: usize) {
        if let Some(Phase::Running { done, total, .. }) = self.row(entry).map(|row| &mut row.phase)
        {
            *done += more;
            *total = of;
        }
    }

    /// Gives up an attempt that was interrupted. The run is due again.
    pub(super) fn interrupt(&mut self, entry: &Arc<SyncEntry>) {
        if let Some(row) = self.row(entry) {
            row.phase = Phase::Idle;
        }
    }

    /// Ends an attempt. Returns whether the run has ended, and not only the attempt.
    pub(super) fn end(&mut self, attempt: &Attempt, attempted: Attempted, now: SystemTime) -> bool {
        let started = attempt.started;
        let Some(row) = self.row(&attempt.entry) else { return true };
        let missing = attempted.missing().count();
        let unconfirmed = attempted.unconfirmed().count();
        row.record.present = (attempted.outcomes.len() - missing) as u64;
        row.record.unconfirmed = unconfirmed as u64;
        row.record.missing = missing as u64;
        row.record.reasons = first(attempted.missing());
        row.record.unconfirmed_reasons = first(attempted.unconfirmed());
        if let Some(wait) = attempted.next_wait() {
            row.phase = Phase::Retrying { started, at: now + wait, attempted };
            return false;
        }
        row.record.started = to_seconds(started);
        row.record.seconds = now.duration_since(started).map_or(0, |took| took.as_secs());
        if missing == 0 && unconfirmed == 0 {
            row.record.succeeded = Some(to_seconds(now));
        }
        row.runs += 1;
        row.phase = Phase::Idle;
        true
    }

    /// Whether an entry is still the one of its name, and not replaced by one that loads something else.
    pub(super) fn is_current(&self, entry: &SyncEntry) -> bool {
        let identity = entry.identity();
        self.rows.iter().any(|row| row.entry.name == entry.name && row.record.settings == identity)
    }

    pub(super) fn records(&self) -> Vec<SyncRecord> {
        self.rows.iter().map(|row| row.record.clone()).filter(|record| record.started > 0).collect()
    }

    pub(super) fn statuses(&self, now: SystemTime) -> Vec<SyncStatus> {
        self.rows.iter().map(|row| row.status(now)).collect()
    }

    /// The row of an entry, unless a reload has replaced it by one that loads something else.
    fn row(&mut self, entry: &Arc<SyncEntry>) -> Option<&mut Row> {
        let identity = entry.identity();
        self.rows
            .iter_mut()
            .find(|row| row.entry.name == entry.name && row.record.settings == identity)
    }
}

/// The first of many images with their reasons.
fn first<'a>(all: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<(String, String)> {
    all.take(REASONS_MAX).map(|(image, why)| (image.to_owned(), why.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Platforms;

    const MINUTE: Duration = Duration::from_secs(60);

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn entry(name: &str, list: &str, schedule: Schedule) -> SyncEntry {
        SyncEntry {
            name: name.to_owned(),
            images: Wanted::parse_list(list, str::to_owned).unwrap(),
            lists: Vec::new(),
            newest: None,
            schedule,
            platforms: Platforms::All,
            referrers: false,
        }
    }

    fn hourly(name: &str) -> SyncEntry {
        entry(name, "alpine:3", Schedule::Every(60 * MINUTE))
    }

    fn table(entries: Vec<SyncEntry>) -> Table {
        let mut table = Table::default();
        table.configure(entries, &[]);
        table
    }

    fn failed(is_permanent: bool) -> Outcome {
        Outcome::Failed { reason: "it is gone".into(), is_permanent }
    }

    const LOADED: Outcome = Outcome::Loaded { fetched_bytes: 1 };

    /// Makes an attempt with these outcomes, and returns whether the run has ended.
    fn run(table: &mut Table, name: &str, outcomes: &[(&str, Outcome)], now: u64) -> bool {
        let attempt = table.begin(name, at(now)).unwrap();
        let outcomes = outcomes.iter().map(|(image, is)| ((*image).to_owned(), is.clone()));
        let attempts = attempt.attempted.attempts + 1;
        let attempted = Attempted { outcomes: outcomes.collect(), pending: None, attempts };
        table.end(&attempt, attempted, at(now))
    }

    #[test]
    fn entries_run_when_they_are_due_and_requested_ones_first() {
        let mut table = table(vec![hourly("one"), entry("two", "redis", Schedule::AtStart)]);
        assert_eq!(table.due(at(1000)).as_deref(), Some("one"));
        assert!(run(&mut table, "one", &[("a", LOADED)], 1000));
        assert_eq!(table.due(at(1000)).as_deref(), Some("two"));
        assert!(run(&mut table, "two", &[("a", LOADED)], 1100));
        for (now, due) in [(1100, None), (4599, None), (4600, Some("one"))] {
            assert_eq!(table.due(at(now)).as_deref(), due, "{now}");
        }
        let requested = table.request(Some("two")).unwrap();
        assert_eq!(requested, [Requested { name: "two".into(), run: 2 }]);
        assert_eq!(table.due(at(4600)).as_deref(), Some("two"));
        let attempt = table.begin("two", at(4600)).unwrap();
        assert_eq!(table.due(at(4600)).as_deref(), Some("one"), "two is running");
        assert_eq!(table.request(Some("two")).unwrap()[0].run, 2, "the run under way counts");
        assert!(table.end(&attempt, Attempted::default(), at(4600)));
        assert_eq!(table.statuses(at(4600))[1].runs, 2);
        assert!(table.request(Some("three")).is_none());
        assert_eq!(table.request(None).unwrap().len(), 2);
    }

    #[test]
    fn failures_are_retried_with_growing_waits_and_then_at_the_next_run() {
        let mut table = table(vec![hourly("one")]);
        let outcomes = [("a", LOADED), ("b", failed(false))];
        let (mut now, mut waits) = (1000, Vec::new());
        while !run(&mut table, "one", &outcomes, now) {
            let status = &table.statuses(at(now))[0];
            assert_eq!(status.stage, SyncStage::Retrying);
            let next = status.next.unwrap();
            assert_eq!(table.due(next - Duration::from_secs(1)), None);
            assert_eq!(table.due(next).as_deref(), Some("one"));
            let wait = next.duration_since(at(now)).unwrap().as_secs();
            waits.push(wait);
            now += wait;
        }
        assert_eq!(waits, [2, 4, 8, 16, 32, 60, 60]);
        let status = &table.statuses(at(now))[0];
        assert_eq!((status.present, status.missing, status.runs), (1, 1, 1));
        assert_eq!(status.reasons, [("b".to_owned(), "it is gone".to_owned())]);
        assert_eq!((status.stage, status.succeeded), (SyncStage::Idle, None));
        assert_eq!(status.next, Some(at(4600)), "an hour after its start");
    }

    #[test]
    fn permanent_failures_end_a_run_and_unconfirmed_images_are_no_success() {
        let mut table = table(vec![hourly("one")]);
        assert!(run(&mut table, "one", &[("a", LOADED)], 1000));
        assert!(run(&mut table, "one", &[("a", LOADED), ("b", failed(true))], 5000));
        let status = &table.statuses(at(5000))[0];
        assert_eq!((status.succeeded, status.missing), (Some(at(1000)), 1));
        let unconfirmed = |is_permanent| {
            let reason = "it is down".to_owned();
            [("a", Outcome::Unconfirmed { fetched_bytes: 0, reason, is_permanent })]
        };
        assert!(!run(&mut table, "one", &unconfirmed(false), 9000), "it is retried");
        assert!(run(&mut table, "one", &unconfirmed(true), 9000), "it was deleted");
        let status = &table.statuses(at(9000))[0];
        assert_eq!((status.succeeded, status.missing), (Some(at(1000)), 0));
        assert_eq!((status.present, status.unconfirmed), (1, 1));
        assert_eq!(status.unconfirmed_reasons, [("a".to_owned(), "it is down".to_owned())]);
    }

    #[test]
    fn a_missed_run_is_made_up_after_a_restart_and_others_are_not_repeated() {
        let mut first = table(vec![hourly("one"), entry("two", "redis", Schedule::AtStart)]);
        run(&mut first, "one", &[("a", LOADED)], 1000);
        run(&mut first, "two", &[("a", LOADED)], 1000);
        let restarted = || {
            let mut table = Table::default();
            let two = entry("two", "redis", Schedule::AtStart);
            table.configure(vec![hourly("one"), two], &first.records());
            table
        };
        let mut soon = restarted();
        assert_eq!(soon.due(at(2000)).as_deref(), Some("two"), "each start runs it");
        run(&mut soon, "two", &[("a", LOADED)], 2000);
        assert_eq!(soon.due(at(2000)), None);
        assert_eq!(soon.statuses(at(2000))[0].succeeded, Some(at(1000)));
        assert_eq!(restarted().due(at(4600)).as_deref(), Some("one"));
    }

    #[test]
    fn a_reload_keeps_the_state_of_entries_that_load_the_same() {
        let mut table = table(vec![hourly("one"), hourly("two"), hourly("three")]);
        for name in ["one", "two"] {
            run(&mut table, name, &[("a", LOADED)], 1000);
        }
        let running = table.begin("three", at(1000)).unwrap();
        let rarer = entry("one", "alpine:3", Schedule::Every(120 * MINUTE));
        table.configure(vec![rarer, entry("two", "alpine:4", Schedule::AtStart)], &[]);
        assert_eq!(table.due(at(4600)).as_deref(), Some("two"), "its images are others");
        let status = &table.statuses(at(4600))[0];
        assert_eq!((status.succeeded, status.next), (Some(at(1000)), Some(at(8200))));
        assert!(table.end(&running, Attempted::default(), at(4600)), "it was removed meanwhile");
        assert_eq!(table.records().len(), 1);
    }

    #[test]
    fn runs_of_other_processes_count() {
        let (mut one, mut other) = (table(vec![hourly("one")]), table(vec![hourly("one")]));
        run(&mut other, "one", &[("a", LOADED)], 1000);
        assert_eq!(one.due(at(1001)).as_deref(), Some("one"));
        one.adopt(&other.records());
        assert_eq!(one.due(at(1001)), None);
        assert_eq!(one.statuses(at(1001))[0].succeeded, Some(at(1000)));
    }

    #[test]
    fn an_interrupted_run_is_due_again() {
        let mut table = table(vec![hourly("one")]);
        let attempt = table.begin("one", at(1000)).unwrap();
        table.progress(&attempt.entry, 1, 5);
        let status = &table.statuses(at(1000))[0];
        assert_eq!((status.stage, status.done, status.total), (SyncStage::Running, 1, 5));
        table.interrupt(&attempt.entry);
        assert_eq!(table.due(at(1000)).as_deref(), Some("one"));
    }
}
