//! The access log: one line for each request.
//!
//! The line begins with `method:path?query status=… latency=… host=… ip=…`, the format of the server that
//! Larder replaces. The cache's fields follow, and `ended=` if the client did not get the complete response.
//! Text from clients is escaped, so that it cannot end a line or a field, or forge a field.

use std::fmt;
use std::time::Duration;

use crate::http::{Ending, Outcome, Request};

/// The maximum length of a target or host in a line, in characters.
const QUOTED_CHARS_MAX: usize = 512;

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
        write!(f, "{}:{}", quoted(request.method_text()), quoted(request.path()))?;
        if let Some(query) = request.query() {
            write!(f, "?{}", quoted(query))?;
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
            Outcome::Cut(reason) => write!(f, " ended=cut reason=\"{}\"", quoted(reason)),
            Outcome::Panicked => write!(f, " ended=panicked"),
            Outcome::Drained => write!(f, " ended=drained"),
        }
    }
}

/// A duration in the most readable unit.
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

/// Client text as a single field: without spaces, quotes, control characters, characters that change the
/// direction of text on a terminal, and `=`, which would look like another field.
fn field(text: &str) -> impl fmt::Display + '_ {
    struct Field<'a>(&'a str);
    impl fmt::Display for Field<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            for char in self.0.chars().take(QUOTED_CHARS_MAX) {
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

/// Client text on one line, as in a quoted string.
fn quoted(text: &str) -> impl fmt::Display + '_ {
    struct Quoted<'a>(&'a str);
    impl fmt::Display for Quoted<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            for char in self.0.chars().take(QUOTED_CHARS_MAX) {
                match char.is_control() || !char.is_ascii() || matches!(char, '"' | '\\') {
                    true => write!(f, "{}", char.escape_default())?,
                    false => write!(f, "{char}")?,
                }
            }
            Ok(())
        }
    }
    Quoted(text)
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
        // The HTTP parser refuses the control character; everything else is a valid header value.
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
        assert_eq!(quoted("a\nGET:/ status=200").to_string(), "a\\nGET:/ status=200");
        assert_eq!(quoted(&"x".repeat(9999)).to_string().len(), QUOTED_CHARS_MAX);
    }
}
