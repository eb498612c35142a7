//! One line a request.
//!
//! `method:path?query status=… latency=… host=… ip=…` as users of the reference server know it, then
//! what the cache did, and how the response ended if the client did not get all of it. Whatever comes
//! from outside is escaped: it cannot end a line or a field, nor look like another field.

use std::fmt;
use std::time::Duration;

use crate::http::{Ending, Outcome, Request};

/// The longest target and host that a line shows, in characters.
const SHOWN_CHARS_MAX: usize = 512;

pub(super) fn line(request: &Request, ending: &Ending) {
    log::info!(target: "access", "{}", Line { request, ending });
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
            field(request.header("host").unwrap_or("-")),
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

/// Outside text as a part of one field: no space, quote or control character is left, nothing that a
/// terminal could show in another place, and (but for queries) no `=` that would look like a field.
fn field(text: &str) -> impl fmt::Display + '_ {
    struct Field<'a>(&'a str);
    impl fmt::Display for Field<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            for char in self.0.chars().take(SHOWN_CHARS_MAX) {
                match char {
                    '"' | '\'' | '\\' | '=' => write!(f, "\\x{:02x}", u32::from(char))?,
                    _ if char.is_ascii_graphic() => write!(f, "{char}")?,
                    _ if char.is_ascii() => write!(f, "\\x{:02x}", u32::from(char))?,
                    _ => write!(f, "{}", char.escape_unicode())?,
                }
            }
            Ok(())
        }
    }
    Field(text)
}

/// Outside text within quotes, on one line.
fn shown(text: &str) -> impl fmt::Display + '_ {
    struct Shown<'a>(&'a str);
    impl fmt::Display for Shown<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            for char in self.0.chars().take(SHOWN_CHARS_MAX) {
                match char.is_control() || !char.is_ascii() || matches!(char, '"' | '\\') {
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
    fn no_header_can_forge_a_field() {
        let forged = "x status=200 ip=10.0.0.1\" a\\b\u{7f}\u{e9}\u{2028}\u{202e}\t";
        let peer = (std::net::Ipv4Addr::LOCALHOST, 1).into();
        let head = format!(
            "GET /v2/%20a=\"/?ns=x%20y HTTP/1.1\r\nHost: {forged}\r\nUser-Agent: a b=c\r\n\
             Authorization: Basic YTpi\r\n\r\n"
        );
        // The control character is refused at the edge; all else is a header value.
        assert!(Request::parse(&head, peer, std::time::Instant::now()).is_err());
        let head = head.replace('\u{7f}', "");
        let request = Request::parse(&head, peer, std::time::Instant::now()).unwrap();
        let latency = Duration::from_millis(1);
        let outcome = Outcome::Cut("a \"b\" status=200\n".into());
        let ending = Ending { status: 404, bytes_sent: 7, latency, note: None, outcome };
        let line = Line { request: &request, ending: &ending }.to_string();
        assert_eq!(
            line,
            "GET:/v2/%20a=\\\"/?ns=x%20y status=404 latency=1.000ms host=x\\x20status\\x3d200\\x20ip\\x3d10.0.0.1\\x22\\x20a\\x5cb\\u{e9}\\u{2028}\\u{202e} \
             ip=127.0.0.1 bytes=7 ended=cut reason=\"a \\\"b\\\" status=200\\n\""
        );
    }

    #[test]
    fn a_client_that_left_is_marked() {
        let peer = (std::net::Ipv4Addr::LOCALHOST, 1).into();
        let head = "GET /v2/ HTTP/1.1\r\nHost: h\r\n\r\n";
        let request = Request::parse(head, peer, std::time::Instant::now()).unwrap();
        let latency = Duration::from_millis(1);
        let outcome = Outcome::ClientGone;
        let ending = Ending { status: 200, bytes_sent: 7, latency, note: None, outcome };
        let line = Line { request: &request, ending: &ending }.to_string();
        assert!(line.ends_with(" bytes=7 ended=client-gone"), "{line}");
    }

    #[test]
    fn a_line_break_cannot_forge_an_entry() {
        assert_eq!(shown("a\nGET:/ status=200").to_string(), "a\\nGET:/ status=200");
        assert_eq!(shown(&"x".repeat(9999)).to_string().len(), SHOWN_CHARS_MAX);
    }
}
