//! The access log: one line for each request.
//!
//! The text of a line begins with `method:path?query status=… latency=… host=… ip=…`, the format of the server that
//! Larder replaces. What clients send is shortened here; the logger escapes it.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use log::kv::{self, Key, Source, Value, VisitSource};
use log::{Level, Record};

use crate::http::{Ending, Outcome, Request, RequestId};

/// The maximum length of a target or host in a line, in characters.
const QUOTED_CHARS_MAX: usize = 512;
/// The same of a user agent. The first words name the program and its version.
pub(super) const AGENT_CHARS_MAX: usize = 100;
/// The same of a user.
pub(super) const USER_CHARS_MAX: usize = 100;
/// The target of the lines in the log.
const TARGET: &str = "access";
/// The note of a reply with the failure that it reports.
pub(super) const ERROR: &str = "error";

pub(super) fn line(request: &Request, ending: &Ending) {
    let level = if failure(ending).is_some() { Level::Warn } else { Level::Info };
    // Checked first, because the fields cost more than the check.
    if !log::log_enabled!(target: TARGET, level) {
        return;
    }
    let fields = Fields::new(request, ending);
    let (method, path) = (request.method_text(), request.path());
    let (mark, query) = request.query().map_or(("", ""), |query| ("?", query));
    log::logger().log(
        &Record::builder()
            .level(level)
            .target(TARGET)
            .args(format_args!("{}:{}{mark}{}", Quoted(method), Quoted(path), Quoted(query)))
            .key_values(&fields)
            .build(),
    );
}

/// The fields of a line: `docs/log.md`.
struct Fields<'a> {
    request: &'a Request,
    ending: &'a Ending,
    ip: IpAddr,
    id: RequestId<'a>,
    user: Option<Arc<str>>,
}

impl<'a> Fields<'a> {
    fn new(request: &'a Request, ending: &'a Ending) -> Fields<'a> {
        let (ip, id, user) = (request.peer().ip(), request.id(), request.user());
        Fields { request, ending, ip, id, user }
    }
}

impl Source for Fields<'_> {
    fn visit<'kvs>(&'kvs self, visitor: &mut dyn VisitSource<'kvs>) -> Result<(), kv::Error> {
        let Fields { request, ending, .. } = self;
        let mut add = |key, value: Value<'kvs>| visitor.visit_pair(Key::from_str(key), value);
        add("method", up_to(QUOTED_CHARS_MAX, request.method_text()).into())?;
        add("path", up_to(QUOTED_CHARS_MAX, request.path()).into())?;
        if let Some(query) = request.query() {
            add("query", up_to(QUOTED_CHARS_MAX, query).into())?;
        }
        add("status", u64::from(ending.status).into())?;
        add("duration_ms", milliseconds(ending.latency).into())?;
        add("host", up_to(QUOTED_CHARS_MAX, request.header("host").unwrap_or("-")).into())?;
        add("ip", Value::from_display(&self.ip))?;
        add("bytes", ending.bytes_sent.into())?;
        for (key, value) in ending.notes.iter().filter(|(key, _)| *key != ERROR) {
            add(key, (&**value).into())?;
        }
        if let Some(first_byte) = ending.first_byte {
            add("first_byte_ms", milliseconds(first_byte).into())?;
        }
        if let Some(user) = &self.user {
            add("user", up_to(USER_CHARS_MAX, user).into())?;
        }
        if let Some(agent) = request.header("user-agent") {
            add("agent", up_to(AGENT_CHARS_MAX, agent).into())?;
        }
        add("request_id", Value::from_display(&self.id))?;
        if let Some(parent) = request.header("traceparent").filter(|text| is_trace_parent(text)) {
            add("trace_parent", parent.into())?;
        }
        if let Some(word) = ended(&ending.outcome) {
            add("ended", word.into())?;
        }
        match failure(ending) {
            Some(failure) => add(ERROR, up_to(QUOTED_CHARS_MAX, failure).into()),
            None => Ok(()),
        }
    }
}

/// How a response ended that is not complete.
pub(super) fn ended(outcome: &Outcome) -> Option<&'static str> {
    match outcome {
        Outcome::Complete => None,
        Outcome::ClientGone => Some("client-gone"),
        Outcome::WriteStalled => Some("write-stalled"),
        Outcome::Cut(_) => Some("cut"),
        Outcome::Panicked => Some("panicked"),
        Outcome::Drained => Some("drained"),
    }
}

/// Why a response is an error, or not complete, if a failure of the cache or the registry is the reason.
pub(super) fn failure(ending: &Ending) -> Option<&str> {
    match &ending.outcome {
        Outcome::Cut(reason) => Some(reason),
        _ => ending.notes.iter().find(|(key, _)| *key == ERROR).map(|(_, text)| &**text),
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// The first characters of a text.
fn up_to(chars_max: usize, text: &str) -> &str {
    text.char_indices().nth(chars_max).map_or(text, |(end, _)| &text[..end])
}

/// Whether this is a `traceparent` (W3C Trace Context, section 3.2) of the only version so far.
fn is_trace_parent(text: &str) -> bool {
    let is_hex = |part: &str, length: usize| {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        part.len() == length && part.bytes().all(is_digit)
    };
    let is_zero = |part: &str| part.bytes().all(|byte| byte == b'0');
    let mut parts = text.split('-');
    let [version, trace, parent, flags] = [(); 4].map(|()| parts.next().unwrap_or_default());
    version == "00"
        && is_hex(trace, 32)
        && !is_zero(trace)
        && is_hex(parent, 16)
        && !is_zero(parent)
        && is_hex(flags, 2)
        && parts.next().is_none()
}

/// Client text in the message of a line, as in a quoted string.
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::Ipv4Addr;
    use std::time::Instant;

    use super::*;

    fn request(headers: &str) -> Request {
        let head = format!("GET /v2/%20a=\"/?ns=x%20y HTTP/1.1\r\nHost: h\r\n{headers}\r\n");
        Request::parse(&head, (Ipv4Addr::LOCALHOST, 1).into(), Instant::now()).unwrap()
    }

    fn ending(outcome: Outcome) -> Ending {
        let (first_byte, latency) = (Some(Duration::from_micros(500)), Duration::from_millis(1));
        let notes = vec![("cache", "miss".into()), ("reason", "not-cached".into())];
        Ending { status: 404, bytes_sent: 7, first_byte, latency, notes, outcome }
    }

    /// The fields of a line in their order.
    fn fields(request: &Request, ending: &Ending) -> Vec<(String, String)> {
        struct Collected(Vec<(String, String)>);
        impl<'kvs> VisitSource<'kvs> for Collected {
            fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
                self.0.push((key.to_string(), value.to_string()));
                Ok(())
            }
        }
        let mut all = Collected(Vec::new());
        Fields::new(request, ending).visit(&mut all).unwrap();
        all.0
    }

    #[test]
    fn the_fields_of_the_replaced_server_come_first() {
        let fields = fields(&request(""), &ending(Outcome::Complete));
        let expected = [
            ("method", "GET"),
            ("path", "/v2/%20a=\"/"),
            ("query", "ns=x%20y"),
            ("status", "404"),
            ("duration_ms", "1"),
            ("host", "h"),
            ("ip", "127.0.0.1"),
            ("bytes", "7"),
            ("cache", "miss"),
            ("reason", "not-cached"),
            ("first_byte_ms", "0.5"),
            ("request_id", "000000000000-0"),
        ];
        assert_eq!(fields, expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
    }

    #[test]
    fn optional_fields_are_from_headers_the_login_and_the_end() {
        let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let request = request(&format!(
            "User-Agent: {}\r\nX-Request-Id: abc.1\r\ntraceparent: {trace}\r\n\
             Authorization: Basic YTpi\r\n",
            "x".repeat(9_999)
        ));
        request.set_user("ann");
        let outcome = Outcome::Cut("it broke off".into());
        let fields: BTreeMap<_, _> = fields(&request, &ending(outcome)).into_iter().collect();
        assert_eq!(fields["agent"].len(), AGENT_CHARS_MAX);
        for (key, value) in [
            ("request_id", "abc.1"),
            ("trace_parent", trace),
            ("user", "ann"),
            ("ended", "cut"),
            ("error", "it broke off"),
        ] {
            assert_eq!(fields[key], value);
        }
        assert!(!fields.values().any(|value| value.contains("YTpi")), "{fields:?}");
    }

    #[test]
    fn only_valid_trace_parents_are_logged() {
        let (trace, parent) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        assert!(is_trace_parent(&format!("00-{trace}-{parent}-01")));
        for text in [
            String::new(),
            format!("01-{trace}-{parent}-01"),
            format!("00-{trace}-{parent}-01-x"),
            format!("00-{trace}-{parent}"),
            format!("00-{}-{parent}-01", trace.to_uppercase()),
            format!("00-{}-{parent}-01", "0".repeat(32)),
            format!("00-{trace}-{}-01", "0".repeat(16)),
            format!("00-{trace} -{parent}-01"),
        ] {
            assert!(!is_trace_parent(&text), "{text}");
        }
    }

    #[test]
    fn a_line_break_cannot_forge_an_entry() {
        assert_eq!(Quoted("a\nGET:/ status=200").to_string(), "a\\nGET:/ status=200");
        assert_eq!(Quoted(&"x".repeat(9999)).to_string().len(), QUOTED_CHARS_MAX);
        assert_eq!(up_to(2, "äöü"), "äö");
    }
}
