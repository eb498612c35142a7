//! Which images are not complete, and why: for the API, the metrics and `larder list`; and the thread that completes
//! images and keeps that report.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::Completions;
use super::table::{Entry, Stage};
use crate::cache::maintenance::Background;
use crate::cache::{Cache, lock};
use crate::oci::{ImageName, Reference};
use crate::store::IncompleteImage;

impl Completions {
    /// The images that are not complete, and why. Those that a client pulls and that have not failed are left out.
    pub(in crate::cache) fn report(&self) -> Vec<IncompleteImage> {
        let table = lock(&self.table);
        let is_reported = |entry: &Entry| !(entry.is_pulled && entry.stage == Stage::Fetching);
        let entries = table.iter().filter(|(_, entry)| is_reported(entry));
        let mut report: Vec<IncompleteImage> =
            entries.map(|((name, reference), entry)| describe(name, reference, entry)).collect();
        drop(table);
        report.sort_by(|one, other| one.image.cmp(&other.image));
        report
    }

    /// The report for `larder list` and for the next process, without images of clients that may be scanners.
    fn report_to_keep(&self) -> Vec<IncompleteImage> {
        let mut report = self.report();
        let table = lock(&self.table);
        report.retain(|image| {
            let key = image.parse().map(|(name, reference, _)| (name, reference));
            !key.is_some_and(|key| table.get(&key).is_some_and(|entry| entry.is_undecided))
        });
        report
    }

    /// How many images are in each stage, with the label values of the metrics.
    pub(in crate::cache) fn stages(&self) -> Vec<(&'static str, usize)> {
        let mut stages: Vec<(&'static str, usize)> =
            ["queued", "fetching", "retrying", "failed"].map(|stage| (stage, 0)).into();
        for (_, entry) in lock(&self.table).iter() {
            let stage = word(&entry.stage);
            stages.iter_mut().filter(|(name, _)| *name == stage).for_each(|(_, count)| *count += 1);
        }
        stages
    }
}

fn word(stage: &Stage) -> &'static str {
    match stage {
        Stage::Queued => "queued",
        Stage::Fetching => "fetching",
        Stage::Retrying(_) => "retrying",
        Stage::GivenUp(_) => "failed",
    }
}

fn describe(name: &ImageName, reference: &Reference, entry: &Entry) -> IncompleteImage {
    let reason = match &entry.stage {
        Stage::Queued => "waiting to be fetched",
        Stage::Fetching => "being fetched",
        Stage::Retrying(reason) | Stage::GivenUp(reason) => reason,
    };
    let platforms = entry.platforms.iter().map(ToString::to_string).collect();
    IncompleteImage::new(name, reference, &entry.digest, word(&entry.stage), reason, platforms)
        .at(entry.since, entry.attempts)
}

/// How often the thread checks for images that are due.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// The report for `larder list` is written at most this often.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// The thread that completes images. Dropping it ends the thread after a last report.
pub struct CompletionThread {
    _thread: Background,
}

impl CompletionThread {
    /// Starts the thread for `cache`.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn start(cache: Cache) -> std::io::Result<CompletionThread> {
        let loss = "images that nodes check with HEAD are not fetched until a restart";
        let work = move |stopped: Receiver<()>| run(&cache, &stopped);
        Ok(CompletionThread { _thread: Background::start("completion", loss, work)? })
    }
}

fn run(cache: &Cache, stopped: &Receiver<()>) {
    let completions = &cache.services.completions;
    let store = &completions.core.store;
    let (mut written, mut next_report) = (store.incomplete(), Instant::now() + REPORT_INTERVAL);
    loop {
        completions.tick();
        let is_last = match stopped.recv_timeout(CHECK_INTERVAL) {
            Err(RecvTimeoutError::Timeout) => false,
            Ok(()) | Err(RecvTimeoutError::Disconnected) => true,
        };
        if is_last || Instant::now() >= next_report {
            next_report = Instant::now() + REPORT_INTERVAL;
            let report = completions.report_to_keep();
            if report != written && store.is_writable() {
                match store.put_incomplete(&report) {
                    Ok(()) => written = report,
                    Err(error) => log::warn!(
                        error:%;
                        "larder list does not show why images are not complete, the server is not affected"
                    ),
                }
            }
        }
        if is_last {
            return;
        }
    }
}
