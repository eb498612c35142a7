//! Writes log lines on a separate thread, so that a slow reader of the log does not delay the server.
//!
//! Lines wait in a bounded queue. When it is full, lines are dropped and counted, and a line with the number
//! of lost lines precedes the next line that is written. Every log text passes [`text`] first: whatever it
//! quotes, the result is a single line of limited length without control characters.

use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::oci::quoted_up_to;

/// The maximum number of lines in the queue: a few MiB at most, and enough for a burst of requests on a busy
/// server.
const QUEUE_MAX: usize = 1024;
/// The maximum length of a line's text, in characters. An access log line quotes two texts of a client with up
/// to 512 characters each.
const TEXT_CHARS_MAX: usize = 2048;
/// How long [`LineQueueHandle::flush`] waits for the reader of the log.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

enum Message {
    Line(Vec<u8>),
    /// Requests an answer when all lines before it have been written.
    Flush(Sender<()>),
}

/// Accepts lines without blocking. A line that is written in pieces is queued when it is complete.
pub(super) struct LineQueue {
    unfinished: Vec<u8>,
    handle: LineQueueHandle,
}

/// Waits until lines have been written; usable from any thread.
#[derive(Clone)]
pub(super) struct LineQueueHandle {
    queue: Sender<Message>,
    lost: Arc<AtomicU64>,
}

impl LineQueue {
    /// Starts the thread that writes to `out`.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub(super) fn start(out: Box<dyn Write + Send>) -> io::Result<LineQueue> {
        let (queue, messages) = bounded(QUEUE_MAX);
        let lost = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&lost);
        thread::Builder::new()
            .name("log".into())
            .spawn(move || write_all(out, &messages, &counter))?;
        Ok(LineQueue { unfinished: Vec::new(), handle: LineQueueHandle { queue, lost } })
    }

    pub(super) fn handle(&self) -> LineQueueHandle {
        self.handle.clone()
    }
}

impl Write for LineQueue {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.unfinished.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                let line = std::mem::take(&mut self.unfinished);
                if self.handle.queue.try_send(Message::Line(line)).is_err() {
                    self.handle.lost.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        Ok(bytes.len())
    }

    /// Does nothing, because it would have to wait for the reader. See [`LineQueueHandle::flush`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl LineQueueHandle {
    /// Waits until all lines so far have been written, for at most [`FLUSH_TIMEOUT`] twice.
    pub(super) fn flush(&self) {
        let (done, is_done) = bounded(1);
        if self.queue.send_timeout(Message::Flush(done), FLUSH_TIMEOUT).is_ok() {
            // A slower reader may lose lines; if it continues to read, their number is reported.
            let _ = is_done.recv_timeout(FLUSH_TIMEOUT);
        }
    }
}

fn write_all(mut out: Box<dyn Write + Send>, messages: &Receiver<Message>, lost: &AtomicU64) {
    for message in messages {
        let count = lost.swap(0, Ordering::Relaxed);
        // If the log cannot be written, there is no other place to report that.
        if count > 0 {
            let _ = out.write_all(lost_line(count).as_bytes());
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
fn lost_line(count: u64) -> String {
    let now = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
    let lines = if count == 1 { "line was" } else { "lines were" };
    format!("{now} [WARN] {count} log {lines} lost because the reader of the log is slow\n")
}

/// The text of a log line. Formatting stops when the maximum length is reached.
pub(super) fn text(arguments: &fmt::Arguments<'_>) -> String {
    quoted_up_to(TEXT_CHARS_MAX, arguments)
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
        let mut queue = LineQueue::start(Box::new(reader)).unwrap();
        let handle = queue.handle();
        // The reader blocks with the first line, and the queue fills up.
        writeln!(queue, "line 0").unwrap();
        has_entered.recv().unwrap();
        for number in 1..=QUEUE_MAX + 7 {
            writeln!(queue, "line {number}").unwrap();
        }
        drop(permit);
        handle.flush();
        let text = String::from_utf8(taken.lock().unwrap().clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 1 + QUEUE_MAX + 1);
        assert_eq!((lines[0], lines[2]), ("line 0", "line 1"));
        assert!(
            lines[1]
                .ends_with("[WARN] 7 log lines were lost because the reader of the log is slow"),
            "{}",
            lines[1]
        );
        assert_eq!(*lines.last().unwrap(), format!("line {QUEUE_MAX}"));
    }

    #[test]
    fn complete_lines_are_written_in_order_before_a_flush_returns() {
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
        let mut queue = LineQueue::start(Box::new(calls.clone())).unwrap();
        for piece in ["a", "b", "\nc\nd", "\n"] {
            queue.write_all(piece.as_bytes()).unwrap();
        }
        queue.handle().flush();
        assert_eq!(*calls.0.lock().unwrap(), ["ab\n", "c\n", "d\n"]);
    }

    #[test]
    fn texts_are_bounded_and_on_one_line() {
        assert_eq!(text(&format_args!("a {} é", 1)), "a 1 é");
        assert_eq!(
            text(&format_args!("a\nb{}", "\u{1b}[31m\u{202e}")),
            "a\\nb\\u{1b}[31m\\u{202e}"
        );
        for long in ["x".repeat(4_000_000), "é".repeat(9_000), "\0".repeat(9_000)] {
            let line = text(&format_args!("{long}{long}"));
            assert!(line.len() <= 4 * TEXT_CHARS_MAX && line.ends_with('…'), "{}", line.len());
        }
    }

    #[test]
    fn formatting_stops_when_the_line_is_full() {
        struct Endless;
        impl fmt::Display for Endless {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                loop {
                    f.write_str("again and ")?;
                }
            }
        }
        assert!(text(&format_args!("{Endless}")).starts_with("again and again"));
    }
}
