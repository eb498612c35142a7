//! Writes log lines on a thread of its own, so that a slow reader of the log delays nobody else.
//!
//! Lines wait in a bounded queue. When it is full, lines are dropped and counted, and the next line that
//! is written is preceded by one that says how many were lost. Every text that is logged passes
//! [`text`] first: whatever it quotes, it is one line, of limited length, without control characters.

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

/// Lines that wait for the reader: some MiB at most, and a burst of requests on a server that works.
const QUEUE_MAX: usize = 1024;
/// The longest text of a line, in characters. An access log line has two texts of a client of 512 characters each.
const TEXT_CHARS_MAX: usize = 2048;
/// How long [`LineQueue::flush`] waits for the reader of the log.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

enum Message {
    Line(Vec<u8>),
    /// Everything before this was written.
    Flush(Sender<()>),
}

/// Takes complete lines and returns at once. What is written in pieces leaves as a whole.
pub(super) struct LineQueue {
    unfinished: Vec<u8>,
    handle: LineQueueHandle,
}

/// Waits for lines to be written, from any thread.
#[derive(Clone)]
pub(super) struct LineQueueHandle {
    queue: Sender<Message>,
    lost: Arc<AtomicU64>,
}

impl LineQueue {
    /// Starts the thread that writes to `out`.
    ///
    /// # Errors
    /// The system has no more threads.
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

    /// Nothing: that would wait for the reader. See [`LineQueueHandle::flush`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl LineQueueHandle {
    /// Waits until all lines so far were written, or for [`FLUSH_TIMEOUT`].
    pub(super) fn flush(&self) {
        let (done, is_done) = bounded(1);
        if self.queue.send_timeout(Message::Flush(done), FLUSH_TIMEOUT).is_ok() {
            // A reader that is slower than this loses lines, and says so if it ever reads on.
            let _ = is_done.recv_timeout(FLUSH_TIMEOUT);
        }
    }
}

fn write_all(mut out: Box<dyn Write + Send>, messages: &Receiver<Message>, lost: &AtomicU64) {
    for message in messages {
        let count = lost.swap(0, Ordering::Relaxed);
        // Where the log cannot be written, there is no place to say so.
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

/// In the format of all other lines.
fn lost_line(count: u64) -> String {
    let now = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
    let lines = if count == 1 { "line was" } else { "lines were" };
    format!("{now} [WARN] {count} log {lines} lost because the reader of the log is slow\n")
}

/// The text of a log line. Formatting ends when the line is full.
pub(super) fn text(arguments: &fmt::Arguments<'_>) -> String {
    quoted_up_to(TEXT_CHARS_MAX, arguments)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// A reader of the log that takes a line whenever the test says so.
    struct Slow {
        entered: Sender<()>,
        permits: Receiver<()>,
        taken: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.entered.send(());
            // Once the test is over there is nothing to wait for.
            let _ = self.permits.recv();
            self.taken.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_takes_nothing_delays_nobody_and_is_told_how_many_lines_it_lost() {
        let ((entered, has_entered), (permit, permits)) = (channel(), channel());
        let taken = Arc::<Mutex<Vec<u8>>>::default();
        let reader = Slow { entered, permits, taken: Arc::clone(&taken) };
        let mut queue = LineQueue::start(Box::new(reader)).unwrap();
        let handle = queue.handle();
        // The first is with the reader, and as many as the queue takes wait.
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
    fn lines_are_written_whole_and_in_order_before_a_flush_returns() {
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
