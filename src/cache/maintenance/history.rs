//! Completes the steps of the traffic's history, and keeps it in the cache directory for the next process.

use std::time::{Duration, Instant, SystemTime};

use crate::cache::Cache;
use crate::metrics::{Recorded, Step};
use crate::oci::{from_seconds, to_seconds};
use crate::store::{TrafficRecord, TrafficRow};

/// How often a step is completed.
const STEP_INTERVAL: Duration = Duration::from_secs(60);
/// How often the history is written, if there was traffic: a killed process loses this much, and every write wears the
/// disk.
const WRITE_INTERVAL: Duration = Duration::from_secs(300);

pub(super) struct HistoryKeeper {
    cache: Cache,
    next_step: Instant,
    next_write: Instant,
    /// The time of the last step with traffic that was written.
    written: Option<SystemTime>,
}

impl HistoryKeeper {
    /// Continues the history of an earlier process.
    pub(super) fn start(cache: Cache) -> HistoryKeeper {
        let now = Instant::now();
        let recorded = recorded(&cache.store().traffic());
        cache.metrics().restore_history(recorded, cache.now());
        let written = last_busy(&cache);
        let (next_step, next_write) = (now + STEP_INTERVAL, now + WRITE_INTERVAL);
        HistoryKeeper { cache, next_step, next_write, written }
    }

    /// Does what is due.
    pub(super) fn work(&mut self) {
        if Instant::now() >= self.next_step {
            self.cache.metrics().step(self.cache.now());
            self.next_step += STEP_INTERVAL;
        }
        if Instant::now() >= self.next_write {
            self.write();
            self.next_write = Instant::now() + WRITE_INTERVAL;
        }
    }

    /// Completes the last step and writes the history, before the process ends.
    pub(super) fn finish(mut self) {
        self.cache.metrics().step(self.cache.now());
        self.write();
    }

    /// Writes the history if there was traffic since the last write. A failure is not important.
    fn write(&mut self) {
        let last = last_busy(&self.cache);
        if last == self.written || !self.cache.store().is_writable() {
            return;
        }
        let history = self.cache.metrics().recorded_history();
        let rows = |steps: &[Step]| steps.iter().filter(|step| !step.is_idle()).map(row).collect();
        let record = TrafficRecord { minutes: rows(&history.minutes), hours: rows(&history.hours) };
        match self.cache.store().put_traffic(&record) {
            Ok(()) => self.written = last,
            Err(error) => log::debug!(error:%; "cannot write the history of traffic"),
        }
    }
}

fn last_busy(cache: &Cache) -> Option<SystemTime> {
    let minutes = cache.metrics().history();
    minutes.iter().rev().find(|step| !step.is_idle()).map(|step| step.time)
}

fn row(step: &Step) -> TrafficRow {
    [to_seconds(step.time), step.hits, step.misses, step.served_bytes, step.fetched_bytes]
}

fn recorded(record: &TrafficRecord) -> Recorded {
    let steps = |rows: &[TrafficRow]| {
        let step = |&[time, hits, misses, served_bytes, fetched_bytes]: &TrafficRow| {
            let time = from_seconds(time)?;
            Some(Step { time, hits, misses, served_bytes, fetched_bytes })
        };
        rows.iter().filter_map(step).collect()
    };
    Recorded { minutes: steps(&record.minutes), hours: steps(&record.hours) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_the_conversion_and_an_impossible_time_is_dropped() {
        let rows = vec![[60, 1, 2, 3, 4], [120, u64::MAX, 0, u64::MAX, 0]];
        let mut record = TrafficRecord { minutes: rows.clone(), hours: rows[..1].to_vec() };
        let steps = recorded(&record);
        assert_eq!(steps.minutes.iter().map(row).collect::<Vec<_>>(), rows);
        assert_eq!(steps.hours.len(), 1);
        record.minutes = vec![[u64::MAX, 1, 1, 1, 1]];
        assert_eq!(recorded(&record).minutes, []);
    }
}
