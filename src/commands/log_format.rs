//! The formats of log lines: text for people (`logFormat: text`), JSON for programs (`json`).
//!
//! A line has a time, a level, a message and fields. Code that logs passes fields as the key-values of the `log` crate, with
//! the keys and units of JSON; [`FIELDS`] says how the text shows them. `docs/log.md` documents every field (checked).
//! Whatever a value contains, the result is one line, and nothing in it can be taken for another field.

use std::fmt::Write;
use std::time::Duration;

use log::kv::{self, Key, Value, VisitSource, VisitValue};
use log::{Level, Record};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use crate::config::LogFormat;
use crate::oci::quoted_up_to;
use crate::units::{duration, size};

/// The maximum length of a message, and of the value of a field, in characters. A message of the access log quotes the
/// target of a request, with up to 512 characters.
pub(super) const TEXT_CHARS_MAX: usize = 2048;

/// UTC with milliseconds (RFC 3339).
const TIME: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// How the text shows a value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Unchanged, in quotes if necessary.
    Plain,
    /// In lines about requests not at all, because their message contains it. In others unchanged, with the key of JSON.
    InMessage,
    /// Milliseconds as a duration.
    Milliseconds,
    /// Bytes as a size.
    Size,
    /// Bytes per second as a rate.
    Rate,
    /// Milliseconds as a duration of seconds, minutes or hours.
    Wait,
}
use Kind::{InMessage, Milliseconds, Plain, Rate, Size, Wait};

/// The fields: the key in JSON, the key in the text, and how the text shows the value. Programs rely on the keys.
const FIELDS: &[(&str, &str, Kind)] = &[
    // Requests.
    ("method", "", InMessage),
    ("path", "", InMessage),
    ("query", "", InMessage),
    ("status", "status", Plain),
    ("duration_ms", "latency", Milliseconds),
    ("host", "host", Plain),
    ("ip", "ip", Plain),
    ("bytes", "bytes", Plain),
    ("cache", "cache", Plain),
    ("reason", "reason", Plain),
    ("upstream", "upstream", Plain),
    ("digest", "digest", Plain),
    ("first_byte_ms", "ttfb", Milliseconds),
    ("user", "user", Plain),
    ("agent", "agent", Plain),
    ("request_id", "id", Plain),
    ("trace_parent", "trace", Plain),
    ("ended", "ended", Plain),
    ("error", "error", Plain),
    // Downloads.
    ("repository", "repository", Plain),
    ("size_bytes", "size", Size),
    ("resumed_bytes", "resumed", Size),
    ("from", "from", Plain),
    ("endpoint", "endpoint", Plain),
    ("took_ms", "took", Milliseconds),
    ("bytes_per_second", "rate", Rate),
    // Tags that move.
    ("image", "image", Plain),
    ("to", "to", Plain),
    // Other events.
    ("file", "file", Plain),
    ("address", "address", Plain),
    ("port", "port", Plain),
    ("proxy", "proxy", Plain),
    ("request", "request", Plain),
    ("peer", "peer", Plain),
    ("instance", "instance", Plain),
    ("wait_ms", "wait", Wait),
    ("outage_ms", "outage", Wait),
    ("window_ms", "window", Wait),
    ("received_bytes", "received", Size),
    ("freed_bytes", "freed", Size),
    ("images", "images", Plain),
    ("blobs", "blobs", Plain),
    ("files", "files", Plain),
    ("damaged", "damaged", Plain),
    ("pinned", "pinned", Plain),
    ("dry_run", "dry_run", Plain),
    ("connections", "connections", Plain),
    ("closed", "closed", Plain),
    ("count", "count", Plain),
    ("wanted", "wanted", Plain),
    ("limit", "limit", Plain),
    ("remaining", "remaining", Plain),
    ("source", "source", Plain),
    ("entry", "entry", Plain),
    ("pattern", "pattern", Plain),
    ("keys", "keys", Plain),
    ("registries", "registries", Plain),
    ("issuer", "issuer", Plain),
    ("event", "event", Plain),
    ("signal", "signal", Plain),
    ("thread", "thread", Plain),
    ("effect", "effect", Plain),
    ("feature", "feature", Plain),
    ("capabilities", "capabilities", Plain),
    // The start.
    ("pid", "pid", Plain),
    ("uid", "uid", Plain),
    ("gid", "gid", Plain),
    ("directory", "directory", Plain),
    ("listen", "listen", Plain),
    ("tls", "tls", Plain),
    ("management", "management", Plain),
    ("health", "health", Plain),
    ("metrics", "metrics", Plain),
    ("default_registry", "default_registry", Plain),
    ("air_gapped", "air_gapped", Plain),
    ("command", "command", Plain),
];

/// The message of a record with its fields, as in the text format.
pub(super) fn text(record: &Record<'_>) -> String {
    let mut out = quoted_up_to(TEXT_CHARS_MAX, record.args());
    let _ = record.key_values().visit(&mut TextFields { out: &mut out, target: record.target() });
    out
}

/// A record as a line, without its line break.
pub(super) fn line(format: LogFormat, time: OffsetDateTime, record: &Record<'_>) -> String {
    let message = quoted_up_to(TEXT_CHARS_MAX, record.args());
    // Formatting fails only for years after 9999.
    let time = time.format(TIME).unwrap_or_default();
    // Most lines are shorter.
    let mut out = String::with_capacity(512);
    // Writing to a `String` cannot fail, and the visitors return no errors.
    match format {
        LogFormat::Text => {
            let _ = write!(out, "{time} {:<5} {message}", record.level());
            let mut fields = TextFields { out: &mut out, target: record.target() };
            let _ = record.key_values().visit(&mut fields);
        }
        LogFormat::Json => {
            let level = level_word(record.level());
            let target = target_word(record.target());
            let _ = write!(
                out,
                "{{\"time\":\"{time}\",\"level\":\"{level}\",\"target\":\"{target}\",\"message\":"
            );
            push_json(&mut out, &message);
            let _ = record.key_values().visit(&mut JsonFields(&mut out));
            out.push('}');
        }
    }
    out
}

fn level_word(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug | Level::Trace => "debug",
    }
}

/// The target of the lines about requests.
pub(super) const ACCESS: &str = "access";

/// The names of modules are not stable, so all lines but those about requests have one target.
fn target_word(target: &str) -> &'static str {
    if target == ACCESS { ACCESS } else { "larder" }
}

/// Whether a field has a value. One without, such as `None`, is left out.
fn has_value(value: &Value<'_>) -> bool {
    struct Seen(bool);
    impl VisitValue<'_> for Seen {
        fn visit_any(&mut self, _: Value<'_>) -> Result<(), kv::Error> {
            self.0 = true;
            Ok(())
        }

        fn visit_null(&mut self) -> Result<(), kv::Error> {
            Ok(())
        }
    }
    let mut seen = Seen(false);
    value.visit(&mut seen).is_ok() && seen.0
}

struct TextFields<'a> {
    out: &'a mut String,
    target: &'a str,
}

impl<'kvs> VisitSource<'kvs> for TextFields<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        let field = FIELDS.iter().find(|(json, ..)| *json == key.as_str());
        let (name, kind) = field.map_or((key.as_str(), Plain), |(_, text, kind)| (*text, *kind));
        if !has_value(&value) || kind == InMessage && self.target == ACCESS {
            return Ok(());
        }
        let name = if kind == InMessage { key.as_str() } else { name };
        let _ = write!(self.out, " {name}=");
        value.visit(TextValue { out: self.out, kind })
    }
}

struct TextValue<'a> {
    out: &'a mut String,
    kind: Kind,
}

impl<'v> VisitValue<'v> for TextValue<'_> {
    fn visit_any(&mut self, value: Value<'_>) -> Result<(), kv::Error> {
        push_text(self.out, &quoted_up_to(TEXT_CHARS_MAX, value));
        Ok(())
    }

    fn visit_str(&mut self, value: &str) -> Result<(), kv::Error> {
        push_text(self.out, value);
        Ok(())
    }

    fn visit_u64(&mut self, value: u64) -> Result<(), kv::Error> {
        let _ = match self.kind {
            Size => write!(self.out, "{}", size(value).replace(' ', "")),
            Rate => write!(self.out, "{}/s", size(value).replace(' ', "")),
            _ => write!(self.out, "{value}"),
        };
        Ok(())
    }

    fn visit_f64(&mut self, value: f64) -> Result<(), kv::Error> {
        match self.kind {
            Milliseconds => push_duration(self.out, value),
            Wait => {
                let wait = Duration::try_from_secs_f64(value / 1e3).unwrap_or(Duration::MAX);
                self.out.push_str(&duration(wait).replace(' ', ""));
            }
            _ => self.out.push_str(&value.to_string()),
        }
        Ok(())
    }
}

/// A duration in the most readable unit.
fn push_duration(out: &mut String, milliseconds: f64) {
    let _ = match milliseconds {
        _ if milliseconds >= 1e3 => write!(out, "{:.3}s", milliseconds / 1e3),
        _ if milliseconds >= 1.0 => write!(out, "{milliseconds:.3}ms"),
        _ => write!(out, "{:.0}us", milliseconds * 1e3),
    };
}

/// A value without quotes if it is a word, or else in quotes. `=` is always escaped, so that no value contains what looks
/// like another field.
fn push_text(out: &mut String, value: &str) {
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\' | b'=');
    if !value.is_empty() && value.len() <= TEXT_CHARS_MAX && value.bytes().all(is_plain) {
        out.push_str(value);
        return;
    }
    out.push('"');
    for char in value.chars().take(TEXT_CHARS_MAX) {
        match char {
            '=' => out.push_str("\\x3d"),
            // Rust escapes it only for use within single quotes.
            '\'' => out.push(char),
            // Also characters that change the direction of writing on a terminal.
            _ => out.extend(char.escape_default()),
        }
    }
    out.push('"');
}

struct JsonFields<'a>(&'a mut String);

impl<'kvs> VisitSource<'kvs> for JsonFields<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        if !has_value(&value) {
            return Ok(());
        }
        self.0.push(',');
        push_json(self.0, key.as_str());
        self.0.push(':');
        value.visit(JsonValue(self.0))
    }
}

struct JsonValue<'a>(&'a mut String);

impl<'v> VisitValue<'v> for JsonValue<'_> {
    fn visit_any(&mut self, value: Value<'_>) -> Result<(), kv::Error> {
        push_json(self.0, &quoted_up_to(TEXT_CHARS_MAX, value));
        Ok(())
    }

    fn visit_str(&mut self, value: &str) -> Result<(), kv::Error> {
        push_json(self.0, value);
        Ok(())
    }

    fn visit_u64(&mut self, value: u64) -> Result<(), kv::Error> {
        let _ = write!(self.0, "{value}");
        Ok(())
    }

    fn visit_bool(&mut self, value: bool) -> Result<(), kv::Error> {
        let _ = write!(self.0, "{value}");
        Ok(())
    }

    /// With three digits: microseconds, where the unit is milliseconds.
    fn visit_f64(&mut self, value: f64) -> Result<(), kv::Error> {
        // JSON has neither infinity nor NaN.
        let value = if value.is_finite() { value } else { 0.0 };
        let _ = write!(self.0, "{value:.3}");
        Ok(())
    }
}

/// A JSON string (RFC 8259, section 7). Everything is escaped that is not visible ASCII or a letter, mark or symbol, so
/// that a line can be shown on a terminal.
fn push_json(out: &mut String, text: &str) {
    out.push('"');
    for char in text.chars().take(2 * TEXT_CHARS_MAX) {
        match char {
            '"' | '\\' => out.extend(['\\', char]),
            '\'' => out.push(char),
            // These are the characters that need no escape in Rust either.
            _ if char.escape_debug().len() == 1 => out.push(char),
            _ => {
                for unit in char.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(format: LogFormat, fields: &dyn kv::Source, message: &str) -> String {
        rendered_of("larder::cache", format, fields, message)
    }

    fn rendered_of(
        target: &str,
        format: LogFormat,
        fields: &dyn kv::Source,
        message: &str,
    ) -> String {
        let time = OffsetDateTime::from_unix_timestamp_nanos(1_795_967_773_242_999_999).unwrap();
        let args = format_args!("{message}");
        let record = Record::builder()
            .level(Level::Info)
            .target(target)
            .args(args)
            .key_values(&fields)
            .build();
        line(format, time, &record)
    }

    const FORGED: &str = "x status=200 \"a\\b\u{7f}\u{e9}\u{202e}\n\u{1f980}";

    #[test]
    fn text_is_aligned_and_has_milliseconds() {
        let fields: &[(&str, Value<'_>)] = &[
            ("status", 200_u64.into()),
            ("duration_ms", 2.664_2.into()),
            ("path", "/v2/".into()),
            ("size_bytes", 45_290_000_u64.into()),
            ("bytes_per_second", 1_500_u64.into()),
            ("agent", "curl/8.5.0".into()),
            ("ended", "".into()),
            ("air_gapped", true.into()),
        ];
        assert_eq!(
            rendered_of(ACCESS, LogFormat::Text, &fields, "GET:/v2/"),
            "2026-11-29T15:56:13.242Z INFO  GET:/v2/ status=200 latency=2.664ms size=45.2MB rate=1.5kB/s \
             agent=curl/8.5.0 ended=\"\" air_gapped=true"
        );
    }

    #[test]
    fn no_value_can_forge_a_field_or_a_line() {
        let fields: &[(&str, Value<'_>)] = &[("host", FORGED.into())];
        assert_eq!(
            rendered(LogFormat::Text, &fields, FORGED),
            "2026-11-29T15:56:13.242Z INFO  x status=200 \"a\\b\\u{7f}\u{e9}\\u{202e}\\n\u{1f980} \
             host=\"x status\\x3d200 \\\"a\\\\b\\u{7f}\\u{e9}\\u{202e}\\n\\u{1f980}\""
        );
    }

    #[test]
    fn json_is_one_object_with_exact_values() {
        let fields: &[(&str, Value<'_>)] = &[
            ("status", 200_u64.into()),
            ("duration_ms", 2.664_2.into()),
            ("host", FORGED.into()),
            ("air_gapped", true.into()),
        ];
        let line = rendered(LogFormat::Json, &fields, FORGED);
        assert_eq!(line.matches('\n').count(), 0);
        assert!(line.contains("\\u007f\u{e9}\\u202e\\u000a"), "{line}");
        let parsed: serde_json::Value = serde_json::from_str(&line).unwrap();
        let message = "x status=200 \"a\\b\\u{7f}\u{e9}\\u{202e}\\n\u{1f980}";
        assert_eq!(
            parsed,
            serde_json::json!({
                "time": "2026-11-29T15:56:13.242Z", "level": "info", "target": "larder",
                "message": message, "status": 200, "duration_ms": 2.664, "host": FORGED,
                "air_gapped": true,
            })
        );
    }

    #[test]
    fn a_field_without_a_value_is_left_out_and_a_path_is_shown_unless_the_message_has_it() {
        let fields: &[(&str, Value<'_>)] = &[
            ("error", Value::null()),
            ("path", "/v2/".into()),
            ("wait_ms", 125_000.4.into()),
            ("window_ms", 21_600_000.0.into()),
        ];
        assert_eq!(
            rendered(LogFormat::Text, &fields, "panic"),
            "2026-11-29T15:56:13.242Z INFO  panic path=/v2/ wait=2min5s window=6h"
        );
        assert!(
            rendered(LogFormat::Json, &fields, "panic").ends_with(
                r#""panic","path":"/v2/","wait_ms":125000.400,"window_ms":21600000.000}"#
            )
        );
    }

    #[test]
    fn durations_have_readable_units() {
        for (milliseconds, expected) in [(0.25, "250us"), (2.664, "2.664ms"), (1_500.0, "1.500s")] {
            let mut text = String::new();
            push_duration(&mut text, milliseconds);
            assert_eq!(text, expected);
        }
    }

    #[test]
    fn lines_are_bounded_and_formatting_stops_when_they_are_full() {
        struct Endless;
        impl std::fmt::Display for Endless {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                loop {
                    f.write_str("again and ")?;
                }
            }
        }
        for format in [LogFormat::Text, LogFormat::Json] {
            let endless = Endless;
            let long = "\0".repeat(100_000);
            let fields: &[(&str, Value<'_>)] =
                &[("host", Value::from_display(&endless)), ("agent", long.as_str().into())];
            let line = rendered(format, &fields, &long);
            assert!(line.len() < 40_000 && line.contains("again and again"), "{}", line.len());
        }
    }

    #[test]
    fn every_field_is_documented_and_every_documented_field_exists() {
        // Rows of the tables: | `key in JSON` | `key in the text` | meaning |
        let document = include_str!("../../docs/log.md");
        let cell =
            |cell: Option<&str>| cell.unwrap_or_default().trim().trim_matches('`').to_owned();
        let rows = document.lines().filter(|line| line.starts_with("| `")).map(|line| {
            let mut cells = line.split('|').skip(1);
            (cell(cells.next()), cell(cells.next()))
        });
        let always = [("time", ""), ("level", ""), ("target", ""), ("message", "")];
        let fields = FIELDS.iter().map(|(json, text, _)| (*json, *text));
        let known: Vec<(String, String)> =
            always.into_iter().chain(fields).map(|(a, b)| (a.to_owned(), b.to_owned())).collect();
        assert_eq!(rows.collect::<Vec<_>>(), known);
    }
}
