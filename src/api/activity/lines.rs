//! The latest warnings and errors of the log.

use std::time::SystemTime;

use log::Level;

use super::{Ring, up_to};

/// The number of lines that are kept, and the maximum length of each in characters.
const LINES_MAX: usize = 200;
const CHARS_MAX: usize = 1000;

/// A line of the log.
#[derive(Debug, Clone)]
pub(in crate::api) struct RecentLine {
    pub(in crate::api) time: SystemTime,
    pub(in crate::api) level: Level,
    pub(in crate::api) text: Box<str>,
}

/// See the description of the module. The logger fills it, and drops what it would not log.
pub struct RecentLines(Ring<RecentLine>);

impl Default for RecentLines {
    fn default() -> RecentLines {
        RecentLines(Ring::new(LINES_MAX))
    }
}

impl RecentLines {
    /// Notes a line.
    pub fn note(&self, time: SystemTime, level: Level, text: &str) {
        self.0.push(RecentLine { time, level, text: up_to(CHARS_MAX, text).into() });
    }

    /// The lines, newest first.
    pub(in crate::api) fn newest_first(&self) -> Vec<RecentLine> {
        self.0.newest_first()
    }

    /// The texts of the lines, newest first.
    #[cfg(test)]
    pub(crate) fn texts(&self) -> Vec<String> {
        self.newest_first().into_iter().map(|line| line.text.into()).collect()
    }
}
