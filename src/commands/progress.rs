//! The progress of commands that read or write many bytes: a bar on a terminal, plain lines elsewhere.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::units::{duration, size};

/// With a known total, and without.
const OF_TOTAL: &str =
    "{bar:32} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec}, {eta} left";
const SO_FAR: &str = "{spinner} {decimal_bytes} {decimal_bytes_per_sec}, {elapsed}";
/// How often a line is printed where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// See the module documentation.
pub(super) struct Progress {
    shown: Shown,
    /// What is done with the bytes, for lines: `exported`.
    done: &'static str,
    bytes: u64,
    total: Option<u64>,
    began: Instant,
}

enum Shown {
    Nothing,
    Lines { next: Instant },
    Bar(ProgressBar),
}

impl Progress {
    /// Begins with no bytes of `total`; nothing is shown if `is_quiet`.
    pub(super) fn start(is_quiet: bool, done: &'static str, total: Option<u64>) -> Progress {
        let began = Instant::now();
        let shown = match (is_quiet, io::stderr().is_terminal()) {
            (true, _) => Shown::Nothing,
            (false, false) => Shown::Lines { next: began + LINE_EVERY },
            (false, true) => Shown::Bar(bar(total)),
        };
        Progress { shown, done, bytes: 0, total, began }
    }

    /// Notes more bytes.
    pub(super) fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
        match &mut self.shown {
            Shown::Nothing => {}
            Shown::Bar(bar) => bar.inc(bytes),
            Shown::Lines { next } if Instant::now() < *next => {}
            Shown::Lines { next } => {
                *next = Instant::now() + LINE_EVERY;
                let line = self.line();
                super::note(&line);
            }
        }
    }

    /// Prints a line to standard output, above the bar.
    pub(super) fn say(&self, line: &str) {
        // A closed pipe is not an error.
        self.above(|| drop(writeln!(io::stdout(), "{line}")));
    }

    /// Prints a line to standard error, above the bar.
    pub(super) fn note(&self, line: &dyn fmt::Display) {
        self.above(|| super::note(line));
    }

    /// Removes the bar.
    pub(super) fn end(&self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
    }

    fn above(&self, print: impl FnOnce()) {
        match &self.shown {
            Shown::Bar(bar) => bar.suspend(print),
            Shown::Nothing | Shown::Lines { .. } => print(),
        }
    }

    fn line(&self) -> String {
        let of = self.total.map_or(String::new(), |total| format!(" of {}", size(total)));
        let took = self.began.elapsed();
        let rate = self.bytes * 1000 / u64::try_from(took.as_millis()).unwrap_or(u64::MAX).max(1);
        format!("{}{of} {}, {}/s, {}", size(self.bytes), self.done, size(rate), duration(took))
    }
}

fn bar(total: Option<u64>) -> ProgressBar {
    let (bar, template) = match total {
        Some(total) => (ProgressBar::new(total), OF_TOTAL),
        None => (ProgressBar::new_spinner(), SO_FAR),
    };
    bar.with_style(style(template))
}

/// The style with this template.
pub(super) fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Prints a line for the user to standard error, unless the user asked for quiet.
pub(super) fn note_unless(is_quiet: bool, line: &dyn fmt::Display) {
    if !is_quiet {
        super::note(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_valid() {
        for template in [OF_TOTAL, SO_FAR] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }

    #[test]
    fn a_line_states_how_much_is_done() {
        let mut progress = Progress::start(true, "exported", Some(4_000_000));
        progress.add(1_000_000);
        let line = progress.line();
        assert!(line.starts_with("1.0 MB of 4.0 MB exported, "), "{line}");
    }
}
