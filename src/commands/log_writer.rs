//! Writes log lines on a separate thread, so that a slow reader of the log does not delay the server.
//!
//! Lines wait in a bounded queue. When it is full, lines are dropped and counted, and a line with the number
//! of lost lines precedes the next line that is written.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use log::{Level, Record};
use time::OffsetDateTime;

use super::log_format;
use crate::config::LogFormat;

/// The maximum number of lines in the queue: a few MiB at most, and enough for a burst of requests on a busy
/// server.
const QUEUE_MAX: usize = 1024;
/// How long [`LineQueue::flush`] waits for the reader of the log.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

enum Message {
    Line(Vec<u8>),
    /// Requests an answer when all lines before it have been written.
    Flush(Sender<()>),
}

/// Accepts lines without blocking, and waits until they are written; usable from any thread.
#[derive(Clone)]
pub(super) struct LineQueue {
    queue: Sender<Message>,
    lost: Arc<AtomicU64>,
}

impl LineQueue {
    /// Starts the thread that writes to `out`. Each line is one call, so that lines of several processes do not
    /// interleave in the same file. `format` is that of the line about lost lines.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub(super) fn start(out: Box<dyn Write + Send>, format: LogFormat) -> io::Result<LineQueue> {
        let (queue, messages) = bounded(QUEUE_MAX);
        let lost = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&lost);
        thread::Builder::new()
            .name("log".into())
            .spawn(move || write_all(out, &messages, &counter, format))?;
        Ok(LineQueue { queue, lost })
    }

    /// Queues a complete line, or counts it as lost if the queue is full.
    pub(super) fn send(&self, line: Vec<u8>) {
        if self.queue.try_send(Message::Line(line)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until all lines so far have been written, for at most [`FLUSH_TIMEOUT`] twice.
    pub(super) fn flush(&self) {
        let (done, is_done) = bounded(1);
        if self.queue.send_timeout(Message::Flush(done), FLUSH_TIMEOUT).is_ok() {
            // A slower reader may lose lines; if it continues to read, their number is reported.
            let _ = is_done.recv_timeout(FLUSH_TIMEOUT);
        }
    }
}

fn write_all(
    mut out: Box<dyn Write + Send>,
    messages: &Receiver<Message>,
    lost: &AtomicU64,
    format: LogFormat,
) {
    for message in messages {
        let count = lost.swap(0, Ordering::Relaxed);
        // If the log cannot be written, there is no other place to report that.
        if count > 0 {
            let _ = out.write_all(lost_line(count, format).as_bytes());
        }
        match message {
            Message::Line(line) => {
                let _ = out.write_all(&line);
            }
            Message::Flush(done) => {
                let _ = out.flush();
                let _ = done.try_send(());
            }
        }
    }
}

/// The line that reports lost lines, in the format of all other lines.
fn lost_line(count: u64, format: LogFormat) -> String {
    let mut record = Record::builder();
    record.level(Level::Warn).target(module_path!());
    let fields = [("count", count)];
    let line = log_format::line(
        format,
        OffsetDateTime::now_utc(),
        &record
            .key_values(&fields)
            .args(format_args!("log lines were lost because the reader of the log is slow"))
            .build(),
    );
    line + "\n"
}

/// Queues lines that are written in pieces, each when it is complete.
pub(super) struct Lines {
    unfinished: Vec<u8>,
    queue: LineQueue,
}

impl Lines {
    pub(super) fn to(queue: LineQueue) -> Lines {
        Lines { unfinished: Vec::new(), queue }
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.unfinished.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                let line = std::mem::take(&mut self.unfinished);
                self.queue.send(line);
            }
        }
        Ok(bytes.len())
    }

    /// Does nothing, because it would have to wait for the reader. See [`LineQueue::flush`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// A reader of the log that accepts one write for each permit of the test.
    struct Slow {
        entered: Sender<()>,
        permits: Receiver<()>,
        taken: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.entered.send(());
            // After the end of the test, the channel is closed and the reader does not wait.
            let _ = self.permits.recv();
            self.taken.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_blocked_reader_delays_no_writer_and_gets_the_number_of_lost_lines() {
        let ((entered, has_entered), (permit, permits)) = (channel(), channel());
        let taken = Arc::<Mutex<Vec<u8>>>::default();
        let reader = Slow { entered, permits, taken: Arc::clone(&taken) };
        let queue = LineQueue::start(Box::new(reader), LogFormat::Text).unwrap();
        // The reader blocks with the first line, and the queue fills up.
        queue.send("line 0\n".into());
        has_entered.recv().unwrap();
        for number in 1..=QUEUE_MAX + 7 {
            queue.send(format!("line {number}\n").into_bytes());
        }
        drop(permit);
        queue.flush();
        let text = String::from_utf8(taken.lock().unwrap().clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 1 + QUEUE_MAX + 1);
        assert_eq!((lines[0], lines[2]), ("line 0", "line 1"));
        assert!(
            lines[1].ends_with(
                " WARN  log lines were lost because the reader of the log is slow count=7"
            ),
            "{}",
            lines[1]
        );
        assert_eq!(*lines.last().unwrap(), format!("line {QUEUE_MAX}"));
    }

    #[test]
    fn lines_are_written_in_order_and_each_by_one_call_before_a_flush_returns() {
        #[derive(Clone, Default)]
        struct Calls(Arc<Mutex<Vec<String>>>);
        impl Write for Calls {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().push(String::from_utf8(bytes.to_vec()).unwrap());
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let calls = Calls::default();
        let queue = LineQueue::start(Box::new(calls.clone()), LogFormat::Text).unwrap();
        for line in ["a\n", "b\n", "c\n"] {
            queue.send(line.into());
        }
        queue.flush();
        assert_eq!(*calls.0.lock().unwrap(), ["a\n", "b\n", "c\n"]);
    }
}
