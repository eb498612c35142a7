//! Values as users write them: names, durations, sizes, levels. Each parses from its text and prints a text
//! that parses to the same value.

use std::fmt;
use std::marker::PhantomData;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU64;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::keys::Value;
use super::suggestion::one_of;
use crate::cache::Ttl;
use crate::oci::{Platform, PlatformError, quoted};
use crate::prune::{FreeSpace, parse_duration};
use crate::upstream::{ApiPath, Endpoint, Scheme, Secret};

/// A value in a message; an empty one is visible.
pub(super) fn shown(text: &str) -> String {
    if text.is_empty() { "nothing".to_owned() } else { quoted(text) }
}

/// A value that is text in the file. It is parsed while the file is read, so that an error has its position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Text<T>(pub(super) T);

impl<T> Value for Text<T> {}

impl<'de, T> Deserialize<'de> for Text<T>
where
    T: FromStr,
    T::Err: fmt::Display,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Text<T>, D::Error> {
        struct Visitor<T>(PhantomData<T>);
        impl<T: FromStr> de::Visitor<'_> for Visitor<T>
        where
            T::Err: fmt::Display,
        {
            type Value = Text<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text<T>, E> {
                text.parse().map(Text).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Visitor(PhantomData))
    }
}

impl<T: fmt::Display> Serialize for Text<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// The address of a network interface, or `localhost`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interface(pub IpAddr);

impl FromStr for Interface {
    type Err = ParseValueError;

    fn from_str(text: &str) -> Result<Interface, ParseValueError> {
        let address = match text {
            "localhost" => Some(Ipv4Addr::LOCALHOST.into()),
            _ => text.trim_start_matches('[').trim_end_matches(']').parse().ok(),
        };
        address.map(Interface).ok_or_else(|| {
            let allowed = "is not an IP address of this machine, such as 0.0.0.0 (all), :: (all, also IPv6), \
                           127.0.0.1 or localhost";
            ParseValueError(format!("{} {allowed}", quoted(text)))
        })
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A password or a token: printed as `***`, in logs and by `config show`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hidden(pub(super) Secret);

impl FromStr for Hidden {
    type Err = ParseValueError;

    fn from_str(text: &str) -> Result<Hidden, ParseValueError> {
        Ok(Hidden(Secret::new(text)))
    }
}

impl fmt::Display for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Why a value is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseValueError(String);

impl ParseValueError {
    pub(super) fn new(reason: impl Into<String>) -> ParseValueError {
        ParseValueError(reason.into())
    }
}

impl fmt::Display for ParseValueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ParseValueError {}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    /// Details for debugging.
    Debug,
    /// Requests and normal operation.
    Info,
    /// What may need attention.
    Warn,
    /// Failures that need attention.
    Error,
}

/// The levels as users write them.
const LOG_LEVELS: [(&str, LogLevel); 4] = [
    ("debug", LogLevel::Debug),
    ("info", LogLevel::Info),
    ("warn", LogLevel::Warn),
    ("error", LogLevel::Error),
];

impl LogLevel {
    /// This level, or `warn` if this level is more verbose: for commands that print their own progress.
    #[must_use]
    pub fn at_least_warn(self) -> LogLevel {
        match self {
            LogLevel::Debug | LogLevel::Info => LogLevel::Warn,
            quiet => quiet,
        }
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = LOG_LEVELS.iter().find(|(_, level)| level == self).map(|(name, _)| *name);
        f.write_str(name.unwrap_or_default())
    }
}

impl FromStr for LogLevel {
    type Err = ParseValueError;

    fn from_str(text: &str) -> Result<LogLevel, ParseValueError> {
        let level = LOG_LEVELS.iter().find(|(name, _)| *name == text).map(|(_, level)| *level);
        level.ok_or_else(|| {
            let names = LOG_LEVELS.map(|(name, _)| name);
            ParseValueError(format!("unknown log level {}", one_of(text, &names)))
        })
    }
}

/// How log lines are formatted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people: a message, then `key=value`.
    Text,
    /// For programs: a JSON object per line.
    Json,
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        })
    }
}

impl FromStr for LogFormat {
    type Err = ParseValueError;

    fn from_str(text: &str) -> Result<LogFormat, ParseValueError> {
        match text {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => {
                let choices = one_of(text, &["text", "json"]);
                Err(ParseValueError(format!("unknown log format {choices}")))
            }
        }
    }
}

/// A duration with its unit, e.g. `1h30m`, `5m`, `250ms`, or `0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span(pub(super) Duration);

impl FromStr for Span {
    type Err = ParseValueError;

    fn from_str(text: &str) -> Result<Span, ParseValueError> {
        parse_duration(text).map(Span).map_err(ParseValueError)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // No weeks: 30d is easier to read than a number of weeks that happens to fit.
        const UNITS: [(&str, u128); 7] = [
            ("d", 86_400_000_000_000),
            ("h", 3_600_000_000_000),
            ("m", 60_000_000_000),
            ("s", 1_000_000_000),
            ("ms", 1_000_000),
            ("us", 1000),
            ("ns", 1),
        ];
        write_exactly(f, self.0.as_nanos(), &UNITS)
    }
}

/// Writes a number in the largest unit that divides it; 0 has no unit.
fn write_exactly(f: &mut fmt::Formatter<'_>, number: u128, units: &[(&str, u128)]) -> fmt::Result {
    match units.iter().find(|(_, unit)| number > 0 && number.is_multiple_of(*unit)) {
        Some((name, unit)) => write!(f, "{}{name}", number / unit),
        None => write!(f, "{number}"),
    }
}

/// A number of bytes with its unit, e.g. `10MB`, `1MiB`, `500k`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size(pub(super) u64);

/// The units of [`Size`] without the optional `B`.
const SIZE_UNITS: [(&str, u64); 10] = [
    ("", 1),
    ("k", 1000),
    ("K", 1000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
];

impl FromStr for Size {
    type Err = ParseValueError;

    fn from_str(text: &str) -> Result<Size, ParseValueError> {
        let refuse = || {
            let allowed = "a whole number of bytes, with an optional unit: k, M, G, T (powers of 1000) or Ki, \
                           Mi, Gi, Ti (powers of 1024), with or without B, e.g. 500k, 10MB or 1MiB";
            ParseValueError(format!("{} is not a size: {allowed}", shown(text)))
        };
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = text[..digits].parse().map_err(|_| refuse())?;
        let unit = &text[digits..];
        let unit = unit.strip_suffix('B').unwrap_or(unit);
        let (_, bytes) = SIZE_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(refuse)?;
        number.checked_mul(*bytes).map(Size).ok_or_else(refuse)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u128); 7] = [
            ("TB", 1_000_000_000_000),
            ("GB", 1_000_000_000),
            ("GiB", 1 << 30),
            ("MB", 1_000_000),
            ("MiB", 1 << 20),
            ("kB", 1000),
            ("KiB", 1 << 10),
        ];
        write_exactly(f, self.0.into(), &UNITS)
    }
}

/// `freeSpace`: bytes, or a percentage of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FreeSpaceText(pub(super) FreeSpace);

impl FromStr for FreeSpaceText {
    type Err = ParseValueError;

    fn from_str(text: &str) -> Result<FreeSpaceText, ParseValueError> {
        let free_space = match text.strip_suffix('%') {
            Some(number) => number
                .parse()
                .ok()
                .filter(|percent| (1..100).contains(percent))
                .map(FreeSpace::Percent),
            None => text
                .parse()
                .ok()
                .filter(|Size(bytes)| *bytes > 0)
                .map(|Size(bytes)| FreeSpace::Bytes(bytes)),
        };
        free_space.map(FreeSpaceText).ok_or_else(|| {
            let allowed = "a size such as 20GB, or a percentage of the disk such as 10%, and not 0";
            ParseValueError(format!("{} is not a free space: {allowed}", shown(text)))
        })
    }
}

impl fmt::Display for FreeSpaceText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            FreeSpace::Bytes(bytes) => Size(bytes).fmt(f),
            FreeSpace::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// A number of bytes per second: a [`Size`] with a unit that is not zero. Without a unit it would probably mean more than
/// bytes, and block what it limits for hours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rate(pub(super) NonZeroU64);

impl FromStr for Rate {
    type Err = ParseValueError;

    fn from_str(text: &str) -> Result<Rate, ParseValueError> {
        let Size(bytes) = text.parse()?;
        if bytes > 0 && text.bytes().all(|byte| byte.is_ascii_digit()) {
            let text = quoted(text);
            let reason = format!(
                "{text} has no unit: {text}MB, for example, or {text}B for bytes per second"
            );
            return Err(ParseValueError(reason));
        }
        NonZeroU64::new(bytes).map(Rate).ok_or_else(|| {
            let reason = "a rate of 0 would stop all transfers; for no limit, leave it out";
            ParseValueError(reason.into())
        })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A rate has a unit.
        let size = Size(self.0.get()).to_string();
        let unit = if size.bytes().all(|byte| byte.is_ascii_digit()) { "B" } else { "" };
        write!(f, "{size}{unit}")
    }
}

/// `tagTtl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TtlText(pub(super) Ttl);

impl FromStr for TtlText {
    type Err = ParseValueError;

    fn from_str(text: &str) -> Result<TtlText, ParseValueError> {
        match text {
            "always" => Ok(TtlText(Ttl::Always)),
            "forever" => Ok(TtlText(Ttl::Forever)),
            _ => match text.parse() {
                Ok(Span(Duration::ZERO)) => Ok(TtlText(Ttl::Always)),
                Ok(Span(duration)) => Ok(TtlText(Ttl::For(duration))),
                Err(ParseValueError(reason)) => {
                    Err(ParseValueError(format!("{reason}; or always, or forever")))
                }
            },
        }
    }
}

impl fmt::Display for TtlText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Ttl::Always => f.write_str("always"),
            Ttl::Forever => f.write_str("forever"),
            Ttl::For(duration) => Span(duration).fmt(f),
        }
    }
}

/// An entry of `platforms`: a platform, or `None` for `all`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PlatformText(pub(super) Option<Platform>);

impl FromStr for PlatformText {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<PlatformText, PlatformError> {
        match text {
            "all" => Ok(PlatformText(None)),
            one => one.parse().map(Some).map(PlatformText),
        }
    }
}

impl fmt::Display for PlatformText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            None => f.write_str("all"),
            Some(platform) => platform.fmt(f),
        }
    }
}

/// The URL of an endpoint: scheme, host, port, and the path of its API if that is not `/v2`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EndpointUrl(pub(super) Endpoint);

impl FromStr for EndpointUrl {
    type Err = ParseValueError;

    fn from_str(text: &str) -> Result<EndpointUrl, ParseValueError> {
        let refuse = || {
            ParseValueError(
                "an endpoint is a URL such as https://mirror.example.com:5000 or \
                 https://harbor.example.com/v2/project, without user, query and fragment"
                    .into(),
            )
        };
        let (scheme, rest) = text.split_once("://").ok_or_else(refuse)?;
        let scheme = match scheme {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return Err(refuse()),
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let api = ApiPath::parse(path).ok_or_else(refuse)?;
        // The grammar of a registry's name is that of an authority.
        let upstream: crate::oci::Upstream = authority.parse().map_err(|_| refuse())?;
        Ok(EndpointUrl(match upstream.is_docker_hub() {
            true => Endpoint { api, ..Endpoint::of(&upstream, scheme) },
            false => Endpoint { api, ..Endpoint::new(scheme, authority) },
        }))
    }
}

impl fmt::Display for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.url())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, seconds) in [
            ("0", 0.0),
            ("5m", 300.0),
            ("1h30m", 5400.0),
            ("250ms", 0.25),
            ("30d", 2_592_000.0),
            ("4w", 2_419_200.0),
        ] {
            let Span(span) = text.parse().unwrap();
            assert!((span.as_secs_f64() - seconds).abs() < 1e-9, "{text}");
        }
        for text in ["", "5", "m", "5 m", "-5m", "5x", "1.5h", "5mm", "99999999999d", "5m3"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("1500", 1500),
            ("7B", 7),
            ("500k", 500_000),
            ("500KB", 500_000),
            ("10MB", 10_000_000),
            ("2G", 2_000_000_000),
            ("1KiB", 1024),
            ("1MiB", 1_048_576),
            ("3Gi", 3_221_225_472),
            ("2TB", 2_000_000_000_000),
            ("1Ti", 1_099_511_627_776),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in [
            "",
            "B",
            "k",
            "1.5M",
            "-1",
            "10 MB",
            "10mb",
            "10Mb",
            "1kiB",
            "1P",
            "1MBB",
            "1MB/s",
            "99999999999G",
            "\u{661}",
        ] {
            let error = text.parse::<Size>().unwrap_err().to_string();
            assert!(error.contains("10MB") && error.contains(text), "{text}: {error}");
        }
        assert_eq!("10MB".parse(), Ok(Rate(NonZeroU64::new(10_000_000).unwrap())));
        for text in ["0MB", "0", "5", "fast"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }

    #[test]
    fn free_spaces() {
        for (text, expected) in
            [("20GB", FreeSpace::Bytes(20_000_000_000)), ("10%", FreeSpace::Percent(10))]
        {
            assert_eq!(text.parse(), Ok(FreeSpaceText(expected)), "{text}");
        }
        for text in ["", "%", "0%", "0", "0GB", "100%", "110%", "-1%", "1.5%", "much"] {
            let error = text.parse::<FreeSpaceText>().unwrap_err().to_string();
            assert!(error.contains(text) && error.contains("10%"), "{error}");
        }
    }

    #[test]
    fn lifetimes() {
        for (text, ttl) in [
            ("0", Ttl::Always),
            ("0s", Ttl::Always),
            ("always", Ttl::Always),
            ("forever", Ttl::Forever),
            ("90s", Ttl::For(Duration::from_secs(90))),
        ] {
            assert_eq!(text.parse(), Ok(TtlText(ttl)), "{text}");
        }
        assert!("never".parse::<TtlText>().is_err());
    }

    #[test]
    fn endpoints() {
        for text in [
            "http://127.0.0.1:5000",
            "https://mirror.example.com/",
            "https://[::1]:5000",
            "https://harbor.corp/v2/hub-cache",
            "https://corp/artifactory/api/docker/x/",
        ] {
            assert!(text.parse::<EndpointUrl>().is_ok(), "{text}");
        }
        for text in [
            "127.0.0.1:5000",
            "ftp://x",
            "http://",
            "http://a/../b",
            "http://u:p@a",
            "https://a?b",
            "https://a/b?c",
            "https://a/b#c",
        ] {
            assert!(text.parse::<EndpointUrl>().is_err(), "{text}");
        }
    }
}
