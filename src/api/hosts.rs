//! `allowedHosts`: the host names that clients may use for this server.
//!
//! The name of a malicious web page can resolve to this server's address ("DNS rebinding"). A browser then
//! considers this server the page's own origin, and sends requests with the page's name in `Host`. Therefore,
//! if names are listed, requests with other names are refused. Addresses need not be listed, since they are
//! not resolved, nor `localhost`, which always resolves to the local machine.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::status::misdirected;
use crate::http::{Reply, Request};
use crate::oci::quoted;

/// A host name without a port, in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostName(String);

/// An invalid host name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostNameError(String);

impl fmt::Display for HostNameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\" is not a host name without a port, such as larder.example.com", self.0)
    }
}

impl std::error::Error for HostNameError {}

impl FromStr for HostName {
    type Err = HostNameError;

    fn from_str(text: &str) -> Result<HostName, HostNameError> {
        let name = text.strip_suffix('.').unwrap_or(text);
        let is_label = |label: &str| {
            let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            (1..=63).contains(&label.len()) && label.bytes().all(is_inner)
        };
        match name.len() <= 253 && name.split('.').all(is_label) {
            true => Ok(HostName(name.to_ascii_lowercase())),
            false => Err(HostNameError(quoted(text))),
        }
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The response to a request with a host name that is not allowed. `None` if it is allowed.
pub(super) fn refusal(allowed: &[HostName], request: &Request) -> Option<Reply> {
    if allowed.is_empty() {
        return None;
    }
    // Browsers always send Host; requests without it, as in HTTP/1.0, are from other clients.
    let host = request.header("host")?;
    (!is_allowed(allowed, host)).then(misdirected)
}

/// The name or address in a `Host` header, without its port.
pub(super) fn without_port(host: &str) -> &str {
    match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) if rest.is_empty() || rest.starts_with(':') => address,
        Some(_) => host,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    }
}

fn is_allowed(allowed: &[HostName], host: &str) -> bool {
    let name = without_port(host);
    let name = name.strip_suffix('.').unwrap_or(name);
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok()
        || allowed.iter().any(|allowed| allowed.0.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_names_addresses_and_this_machine_are_allowed() {
        let allowed = ["Larder.example.com".parse().unwrap(), "larder".parse().unwrap()];
        for host in [
            "larder.example.com",
            "LARDER.example.com:5000",
            "larder.example.com.",
            "larder",
            "10.0.0.7:30020",
            "[fe80::1]:443",
            "127.0.0.1",
            "localhost:5000",
        ] {
            assert!(is_allowed(&allowed, host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "larder.example.com.evil.example",
            "xlarder",
            "larder example",
            "10.0.0.7.evil.example",
            "larder@evil.example",
            "[::1].evil.example",
            "[::1]evil.example:443",
            "[::1",
        ] {
            assert!(!is_allowed(&allowed, host), "{host}");
        }
    }

    #[test]
    fn names_in_the_configuration_have_no_port_and_no_scheme() {
        for text in ["", ".", "a b", "https://larder", "larder:5000", "*.example.com", "a..b"] {
            assert!(text.parse::<HostName>().is_err(), "{text:?}");
        }
        assert_eq!("Larder.Example.".parse::<HostName>().unwrap().to_string(), "larder.example");
    }
}
