//! Where log lines go.

use std::fs::File;
use std::io::{self, LineWriter, Write};
use std::path::Path;

use simplelog::{Config, ConfigBuilder, LevelFilter, WriteLogger};

use super::CommandError;
use crate::config::LogLevel;

/// Starts logging, to a file or to standard error.
///
/// # Errors
/// If the file cannot be opened for appending.
pub(super) fn start(level: LogLevel, file: Option<&Path>) -> Result<(), CommandError> {
    let out: Box<dyn Write + Send> = match file {
        None => Box::new(io::stderr()),
        Some(path) => {
            let opened = File::options().create(true).append(true).open(path);
            let failed = |source| CommandError::LogFile { path: path.to_owned(), source };
            Box::new(opened.map_err(failed)?)
        }
    };
    // The logger writes a line in pieces; whole lines are one system call each and do not interleave
    // with those of another process on the same file.
    // It would write everything: which lines there are is decided before they come to it, at a level that
    // may change.
    let started = WriteLogger::init(LevelFilter::Debug, format(), LineWriter::new(out));
    set_level(level);
    if started.is_err() {
        log::warn!("logging was started before; that logger stays in force");
    }
    Ok(())
}

/// Changes how much is logged.
pub(super) fn set_level(level: LogLevel) {
    log::set_max_level(filter(level));
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Debug => LevelFilter::Debug,
        LogLevel::Info => LevelFilter::Info,
        LogLevel::Warn => LevelFilter::Warn,
        LogLevel::Error => LevelFilter::Error,
    }
}

fn format() -> Config {
    ConfigBuilder::new()
        .set_time_format_rfc3339()
        .set_target_level(LevelFilter::Off)
        .set_thread_level(LevelFilter::Off)
        .set_location_level(LevelFilter::Off)
        // They log URLs in full, and URLs may be signed.
        .add_filter_ignore_str("ureq")
        .add_filter_ignore_str("rustls")
        .build()
}
