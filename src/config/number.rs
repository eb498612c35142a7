//! Numbers as users write them: counts, ports and timeouts.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::keys::Value;
use super::value::{ParseValueError, Span, Text, shown};
use crate::oci::quoted;
use crate::prune::parse_duration;

/// Implements `Deserialize` for numbers that are read from their text, so that errors have a position.
macro_rules! deserialize_from_text {
    ($($number:ty),*) => {$(
        impl<'de> Deserialize<'de> for $number {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$number, D::Error> {
                Text::deserialize(deserializer).map(|text| text.0)
            }
        }
    )*};
}

deserialize_from_text!(Count, Port);

/// A number of things of which there must be at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count(pub u32);

impl Value for Count {}

impl FromStr for Count {
    type Err = ParseValueError;

    fn from_str(text: &str) -> Result<Count, ParseValueError> {
        text.parse().ok().filter(|count| *count > 0).map(Count).ok_or_else(|| {
            ParseValueError::new(format!(
                "{} is not a whole number from 1 to {}",
                quoted(text),
                u32::MAX
            ))
        })
    }
}

impl Serialize for Count {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(self.0)
    }
}

/// A duration of more than zero; a number without a unit is milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeout(pub Duration);

impl FromStr for Timeout {
    type Err = ParseValueError;

    fn from_str(text: &str) -> Result<Timeout, ParseValueError> {
        let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
        let timeout = match is_number {
            true => parse_duration(&format!("{text}ms")),
            false => parse_duration(text),
        };
        timeout.ok().filter(|timeout| !timeout.is_zero()).map(Timeout).ok_or_else(|| {
            let allowed = "a duration such as 20s or 1m30s, or a number of milliseconds, and not 0";
            ParseValueError::new(format!("{} is not a timeout: {allowed}", shown(text)))
        })
    }
}

impl fmt::Display for Timeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Span(self.0).fmt(f)
    }
}

/// A TCP port; 0 for any free one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port(pub u16);

impl Value for Port {}

impl FromStr for Port {
    type Err = ParseValueError;

    fn from_str(text: &str) -> Result<Port, ParseValueError> {
        let refuse =
            |_| ParseValueError::new(format!("{} is not a port (0 to {})", quoted(text), u16::MAX));
        text.parse().map(Port).map_err(refuse)
    }
}

impl Serialize for Port {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u16(self.0)
    }
}
