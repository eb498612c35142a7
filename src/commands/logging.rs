//! Where log lines go.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::Path;

use log::{Log, Metadata, Record};
use simplelog::{Config, ConfigBuilder, LevelFilter, WriteLogger};

use super::CommandError;
use super::log_writer::{self, LineQueue, LineQueueHandle};
use crate::config::LogLevel;

/// Starts logging, to a file or to standard error.
///
/// # Errors
/// If the file cannot be opened for appending.
pub(super) fn start(level: LogLevel, file: Option<&Path>) -> Result<(), CommandError> {
    let out: Box<dyn Write + Send> = match file {
        None => Box::new(io::stderr()),
        Some(path) => {
            let failed = |source| CommandError::LogFile { path: path.to_owned(), source };
            Box::new(open(path).map_err(failed)?)
        }
    };
    // The formatter writes a line in pieces; the queue makes it one system call, so that lines do not
    // interleave with those of another process on the same file.
    let queue = LineQueue::start(out)
        .map_err(|source| CommandError::System { doing: "start logging", source })?;
    let handle = queue.handle();
    // It would write everything: which lines there are is decided before they come to it, at a level that
    // may change.
    let formatter = WriteLogger::new(LevelFilter::Debug, format(), queue);
    let started = log::set_boxed_logger(Box::new(Logger { formatter, queue: handle.clone() }));
    set_level(level);
    match started {
        Ok(()) => flush_before_panics(handle),
        Err(_) => log::warn!("logging was started before; that logger stays in force"),
    }
    Ok(())
}

/// Waits until the lines so far were written, for a bounded time: for the end of the program.
pub(super) fn flush() {
    log::logger().flush();
}

/// What led to a panic is in the log before the panic is.
fn flush_before_panics(queue: LineQueueHandle) {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        queue.flush();
        report(panic);
    }));
}

/// The one place that every log line passes: its text is bounded and printable.
struct Logger {
    formatter: Box<WriteLogger<LineQueue>>,
    queue: LineQueueHandle,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.formatter.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text = log_writer::text(record.args());
        self.formatter.log(
            &Record::builder()
                .metadata(record.metadata().clone())
                .args(format_args!("{text}"))
                .module_path(record.module_path())
                .build(),
        );
    }

    fn flush(&self) {
        self.queue.flush();
    }
}

/// Opens a log file for appending. One that root's command makes, before a server of another user could, is
/// given to whom its directory belongs: that server would else not start.
fn open(path: &Path) -> io::Result<File> {
    match File::options().create_new(true).append(true).open(path) {
        Ok(file) => {
            let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            if let Ok(owner) = fs::metadata(directory.unwrap_or(Path::new("."))) {
                // Refused to everybody but root, who made it his own.
                let _ = fchown(&file, Some(owner.uid()), Some(owner.gid()));
            }
            Ok(file)
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            File::options().append(true).open(path)
        }
        Err(error) => Err(error),
    }
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::chown;

    use super::*;

    #[test]
    fn a_new_log_is_its_directorys_owners_and_an_old_one_is_gone_on_with() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("larder.log");
        // Who may not give files away is not root, and makes only what is his own.
        let _ = chown(directory.path(), Some(65_532), Some(65_532));
        let owner = fs::metadata(directory.path()).unwrap();
        for text in ["one\n", "two\n"] {
            open(&path).unwrap().write_all(text.as_bytes()).unwrap();
        }
        let log = fs::metadata(&path).unwrap();
        assert_eq!((log.uid(), log.gid()), (owner.uid(), owner.gid()));
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntwo\n");
        assert!(open(&directory.path().join("none/larder.log")).is_err());
    }
}
