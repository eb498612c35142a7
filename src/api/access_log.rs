//! One line a request.
//!
//! `method:path?query status=… latency=… host=… ip=…` as users of the reference server know it, then
//! what the cache did. Everything that came from a client is escaped.

use std::fmt;
use std::time::Duration;

use crate::http::{Ending, Outcome, Request};

/// The longest target and host that a line shows, in characters.
const SHOWN_CHARS_MAX: usize = 512;

pub(super) fn line(request: &Request, ending: &Ending) {
    match &ending.outcome {
        // Clients that fetch in parallel leave all the time; it says nothing about this server.
        Outcome::ClientGone => log::debug!(target: "access", "{}", Line { request, ending }),
        _ => log::info!(target: "access", "{}", Line { request, ending }),
    }
}

struct Line<'a> {
    request: &'a Request,
    ending: &'a Ending,
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Line { request, ending } = self;
        write!(f, "{}:{}", shown(request.method_text()), shown(request.path()))?;
        if let Some(query) = request.query() {
            write!(f, "?{}", shown(query))?;
        }
        write!(
            f,
            " status={} latency={} host={} ip={} bytes={}",
            ending.status,
            Latency(ending.latency),
            shown(request.header("host").unwrap_or("-")),
            request.peer().ip(),
            ending.bytes_sent
        )?;
        if let Some(note) = &ending.note {
            write!(f, " {note}")?;
        }
        match &ending.outcome {
            Outcome::Complete => Ok(()),
            Outcome::ClientGone => write!(f, " ended=client-gone"),
            Outcome::WriteStalled => write!(f, " ended=write-stalled"),
            Outcome::Cut(reason) => write!(f, " ended=cut reason=\"{}\"", shown(reason)),
            Outcome::Panicked => write!(f, " ended=panicked"),
            Outcome::Drained => write!(f, " ended=drained"),
        }
    }
}

/// A duration in the unit that reads best.
struct Latency(Duration);

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs_f64();
        match seconds {
            _ if seconds >= 1.0 => write!(f, "{seconds:.3}s"),
            _ if seconds >= 0.001 => write!(f, "{:.3}ms", seconds * 1e3),
            _ => write!(f, "{:.0}us", seconds * 1e6),
        }
    }
}

/// Client text on one line: a line break in a path must not forge another entry.
fn shown(text: &str) -> impl fmt::Display + '_ {
    struct Shown<'a>(&'a str);
    impl fmt::Display for Shown<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            for char in self.0.chars().take(SHOWN_CHARS_MAX) {
                match char.is_control() || char == '"' {
                    true => write!(f, "{}", char.escape_default())?,
                    false => write!(f, "{char}")?,
                }
            }
            Ok(())
        }
    }
    Shown(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_have_readable_units() {
        for (micros, expected) in [(250, "250us"), (2_664, "2.664ms"), (1_500_000, "1.500s")] {
            assert_eq!(Latency(Duration::from_micros(micros)).to_string(), expected);
        }
    }

    #[test]
    fn a_line_break_cannot_forge_an_entry() {
        assert_eq!(shown("a\nGET:/ status=200").to_string(), "a\\nGET:/ status=200");
        assert_eq!(shown(&"x".repeat(9999)).to_string().len(), SHOWN_CHARS_MAX);
    }
}
