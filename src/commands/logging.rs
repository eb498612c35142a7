//! Sets up logging.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use log::{Level, Log, Metadata, Record};
use simplelog::{Config, ConfigBuilder, LevelFilter, WriteLogger};
use time::OffsetDateTime;

use super::CommandError;
use super::log_format;
use super::log_writer::{LineQueue, Lines};
use crate::api::RecentLines;
use crate::config::{LogFormat, LogLevel, Settings};

/// Starts logging to a file or to standard error, at this level.
///
/// # Errors
/// If the file cannot be opened for appending.
pub(super) fn start(level: LogLevel, settings: &Settings) -> Result<(), CommandError> {
    start_with(level, settings, None)
}

/// The same. The latest warnings and errors are kept in `recent` as well.
///
/// # Errors
/// As for [`start`].
pub(super) fn start_with(
    level: LogLevel,
    settings: &Settings,
    recent: Option<Arc<RecentLines>>,
) -> Result<(), CommandError> {
    let out: Box<dyn Write + Send> = match &settings.log_file {
        None => Box::new(io::stderr()),
        Some(path) => {
            let failed = |source| CommandError::LogFile { path: path.to_owned(), source };
            Box::new(open(path).map_err(failed)?)
        }
    };
    let format = settings.log_format;
    let queue = LineQueue::start(out, format)
        .map_err(|source| CommandError::System { doing: "start logging", source })?;
    // It accepts every level, because the level in effect may change and is checked before.
    let writer = WriteLogger::new(LevelFilter::Debug, config(), Lines::to(queue.clone()));
    let logger = Logger { format, writer, queue: queue.clone(), recent };
    let started = log::set_boxed_logger(Box::new(logger));
    set_level(level);
    match started {
        Ok(()) => flush_before_panics(queue),
        Err(_) => log::warn!("logging is already started; the new settings are ignored"),
    }
    Ok(())
}

/// Waits until the lines so far have been written, for a limited time. For use before the process exits.
pub(super) fn flush() {
    log::logger().flush();
}

/// Writes the log lines that led to a panic before the message of the panic.
fn flush_before_panics(queue: LineQueue) {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        queue.flush();
        report(panic);
    }));
}

/// Formats each record as one line with its fields, and passes it on.
struct Logger {
    format: LogFormat,
    writer: Box<WriteLogger<Lines>>,
    queue: LineQueue,
    recent: Option<Arc<RecentLines>>,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.writer.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let recent = self.recent.as_ref().filter(|_| record.level() <= Level::Warn);
        // Failed requests are among the recent requests.
        let is_kept = !is_ignored(record.target()) && record.target() != log_format::ACCESS;
        if let Some(recent) = recent.filter(|_| is_kept) {
            recent.note(SystemTime::now(), record.level(), &log_format::text(record));
        }
        let line = log_format::line(self.format, OffsetDateTime::now_utc(), record);
        self.writer.log(
            &Record::builder()
                .metadata(record.metadata().clone())
                .args(format_args!("{line}"))
                .module_path(record.module_path())
                .build(),
        );
    }

    fn flush(&self) {
        self.queue.flush();
    }
}

/// Opens a log file for appending. A new file gets the owner of its directory: if a command run by root
/// creates it first, a server that runs as another user can still open it.
/// Checks whether the log file can be opened, without creating it.
///
/// # Errors
/// [`CommandError::LogFile`] if not.
pub(super) fn check_file(path: &Path) -> Result<(), CommandError> {
    let opened = match File::options().append(true).open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            fs::metadata(directory.unwrap_or(Path::new("."))).map(drop)
        }
        other => other.map(drop),
    };
    opened.map_err(|source| CommandError::LogFile { path: path.to_owned(), source })
}

fn open(path: &Path) -> io::Result<File> {
    match File::options().create_new(true).append(true).open(path) {
        Ok(file) => {
            let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            if let Ok(owner) = fs::metadata(directory.unwrap_or(Path::new("."))) {
                // Fails for users other than root, whose files already have the right owner.
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

/// Changes the log level.
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

/// These crates log complete URLs, which may contain signatures.
const IGNORED: [&str; 2] = ["ureq", "rustls"];

fn is_ignored(target: &str) -> bool {
    IGNORED.iter().any(|ignored| target.starts_with(ignored))
}

/// The time and the level are parts of the line, since JSON has them as fields.
fn config() -> Config {
    let mut config = ConfigBuilder::new();
    for ignored in IGNORED {
        config.add_filter_ignore_str(ignored);
    }
    config
        .set_time_level(LevelFilter::Off)
        .set_max_level(LevelFilter::Off)
        .set_target_level(LevelFilter::Off)
        .set_thread_level(LevelFilter::Off)
        .set_location_level(LevelFilter::Off)
        .build()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::chown;

    use super::*;

    #[test]
    fn only_warnings_of_larder_itself_are_kept() {
        let (recent, format) = (Arc::<RecentLines>::default(), LogFormat::Text);
        let queue = LineQueue::start(Box::new(io::sink()), format).unwrap();
        let writer = WriteLogger::new(LevelFilter::Debug, config(), Lines::to(queue.clone()));
        let logger = Logger { format, writer, queue, recent: Some(Arc::clone(&recent)) };
        for (level, target, text) in [
            (Level::Warn, "larder::cache", "a warning"),
            (Level::Info, "larder::cache", "information"),
            (Level::Error, "larder", "an error"),
            (Level::Warn, "ureq::run", "https://bucket.test/?X-Amz-Signature=1"),
            (Level::Error, "rustls::conn", "something"),
            (Level::Warn, log_format::ACCESS, "GET:/v2/app/manifests/1"),
        ] {
            let mut record = Record::builder();
            record.level(level).target(target);
            logger.log(&record.args(format_args!("{text}")).build());
        }
        assert_eq!(recent.texts(), ["an error", "a warning"]);
    }

    #[test]
    fn a_new_log_gets_its_directorys_owner_and_an_existing_one_is_appended_to() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("larder.log");
        // Fails for users other than root, whose directory and file have the same owner anyway.
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
