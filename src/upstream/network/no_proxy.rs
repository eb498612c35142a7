//! `NO_PROXY`: which hosts are reached without a proxy.
//!
//! The rules are those of Go's `httpproxy`, which other programs of a cluster use. An entry is one of: a name (matches
//! itself and its subdomains), a name after a dot (its subdomains only), an address, a network, or `*`. A name or an
//! address may have a port and then matches that port only.
//!
//! This machine is never reached through a proxy, whatever the entries are: `localhost` would be the proxy's machine.

use std::convert::Infallible;
use std::net::IpAddr;
use std::str::FromStr;

/// Hosts that are reached without a proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NoProxy {
    rules: Vec<Rule>,
    misunderstood: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Rule {
    Everything,
    Network { first: IpAddr, prefix_bits: u32 },
    Address { ip: IpAddr, port: Option<u16> },
    Name { name: String, includes_itself: bool, port: Option<u16> },
}

impl NoProxy {
    /// Whether `host` is reached without a proxy. It is a name, or an address with or without brackets.
    pub(super) fn matches(&self, host: &str, port: u16) -> bool {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        match host.parse::<IpAddr>() {
            Ok(ip) => {
                let ip = ip.to_canonical();
                is_this_machine(ip) || self.rules.iter().any(|rule| rule.matches_ip(ip, port))
            }
            Err(_) => {
                let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
                let is_local = name == "localhost" || name.ends_with(".localhost");
                is_local || self.rules.iter().any(|rule| rule.matches_name(&name, port))
            }
        }
    }

    /// The entries that could not be parsed, for a warning.
    pub fn misunderstood(&self) -> &[String] {
        &self.misunderstood
    }
}

impl FromStr for NoProxy {
    type Err = Infallible;

    /// Entries are separated by commas or white space. An entry that cannot be parsed is not an error, since other
    /// programs with other rules share the variable.
    fn from_str(text: &str) -> Result<NoProxy, Infallible> {
        let mut all = NoProxy::default();
        let is_between = |c: char| c == ',' || c.is_whitespace();
        for entry in text.split(is_between).filter(|entry| !entry.is_empty()) {
            match Rule::parse(&entry.to_ascii_lowercase()) {
                Some(rule) => all.rules.push(rule),
                None => all.misunderstood.push(entry.to_owned()),
            }
        }
        Ok(all)
    }
}

impl Rule {
    fn parse(entry: &str) -> Option<Rule> {
        if entry == "*" {
            return Some(Rule::Everything);
        }
        if let Some((first, bits)) = entry.split_once('/') {
            let first = first.parse::<IpAddr>().ok()?;
            let prefix_bits = bits.parse().ok().filter(|bits| *bits <= width(first))?;
            return Some(Rule::Network { first, prefix_bits });
        }
        if let Ok(ip) = unbracketed(entry).parse::<IpAddr>() {
            return Some(Rule::Address { ip: ip.to_canonical(), port: None });
        }
        let (host, port) = match entry.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().ok()?)),
            None => (entry, None),
        };
        if let Ok(ip) = unbracketed(host).parse::<IpAddr>() {
            return Some(Rule::Address { ip: ip.to_canonical(), port });
        }
        let host = host.strip_prefix('*').unwrap_or(host);
        let (name, includes_itself) = match host.strip_prefix('.') {
            Some(name) => (name, false),
            None => (host, true),
        };
        let name = name.strip_suffix('.').unwrap_or(name);
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        let is_legal = !name.is_empty() && name.bytes().all(is_name);
        is_legal.then(|| Rule::Name { name: name.to_owned(), includes_itself, port })
    }

    fn matches_ip(&self, host: IpAddr, at: u16) -> bool {
        match self {
            Rule::Everything => true,
            Rule::Network { first, prefix_bits } => is_within(host, *first, *prefix_bits),
            Rule::Address { ip, port } => *ip == host && port.is_none_or(|port| port == at),
            Rule::Name { .. } => false,
        }
    }

    fn matches_name(&self, host: &str, at: u16) -> bool {
        match self {
            Rule::Everything => true,
            Rule::Name { name, includes_itself, port } => {
                let above = host.strip_suffix(name.as_str());
                let is_it = match above {
                    Some("") => *includes_itself,
                    Some(above) => above.ends_with('.'),
                    None => false,
                };
                is_it && port.is_none_or(|port| port == at)
            }
            Rule::Network { .. } | Rule::Address { .. } => false,
        }
    }
}

fn unbracketed(text: &str) -> &str {
    text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text)
}

fn is_this_machine(ip: IpAddr) -> bool {
    ip.is_loopback() || ip.is_unspecified()
}

fn width(ip: IpAddr) -> u32 {
    if ip.is_ipv4() { 32 } else { 128 }
}

fn is_within(host: IpAddr, first: IpAddr, prefix_bits: u32) -> bool {
    let bits = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => u128::from(ip.to_bits()) << 96,
        IpAddr::V6(ip) => ip.to_bits(),
    };
    let differing = bits(host) ^ bits(first);
    width(host) == width(first) && differing.leading_zeros() >= prefix_bits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> NoProxy {
        text.parse().unwrap()
    }

    #[test]
    fn hosts_that_an_entry_matches() {
        for (entry, host, port, matches) in [
            ("example.com", "example.com", 443, true),
            ("example.com", "Example.COM.", 443, true),
            ("example.com", "a.b.example.com", 443, true),
            ("example.com", "notexample.com", 443, false),
            ("example.com", "example.com.evil.io", 443, false),
            (".example.com", "a.example.com", 443, true),
            (".example.com", "example.com", 443, false),
            ("*.example.com", "a.example.com", 443, true),
            ("*.example.com", "example.com", 443, false),
            ("EXAMPLE.com:5000", "example.com", 5000, true),
            ("example.com:5000", "example.com", 443, false),
            ("reg", "reg", 80, true),
            ("*", "anything.io", 443, true),
            ("*", "10.0.0.1", 443, true),
            ("10.0.0.1", "10.0.0.1", 443, true),
            ("10.0.0.1", "10.0.0.11", 443, false),
            ("10.0.0.1:80", "10.0.0.1", 443, false),
            ("10.0.0.0/8", "10.200.0.1", 443, true),
            ("10.0.0.0/8", "11.0.0.1", 443, false),
            ("10.0.0.0/8", "ten.example.com", 443, false),
            ("0.0.0.0/0", "9.9.9.9", 443, true),
            ("0.0.0.0/0", "[2001:db8::1]", 443, false),
            ("10.0.0.0/8", "[::ffff:10.0.0.1]", 443, true),
            ("fd00::/8", "[fd12::1]", 443, true),
            ("fd00::/8", "[fe80::1]", 443, false),
            ("[fd12::1]:443", "[fd12::1]", 443, true),
            ("[fd12::1]", "[fd12::1]", 80, true),
            ("fd12::1", "[fd12::1]", 80, true),
            ("::/0", "[2001:db8::1]", 443, true),
            (" a.io,\tb.io  c.io,,", "c.io", 443, true),
            ("", "example.com", 443, false),
        ] {
            assert_eq!(rules(entry).matches(host, port), matches, "{entry} {host}:{port}");
        }
    }

    #[test]
    fn this_machine_is_never_reached_through_a_proxy() {
        for host in ["localhost", "LOCALHOST", "x.localhost", "127.0.0.1", "127.8.8.8", "[::1]"] {
            assert!(NoProxy::default().matches(host, 5000), "{host}");
        }
        for host in ["[::ffff:127.0.0.1]", "0.0.0.0", "[::]", "localhost."] {
            assert!(NoProxy::default().matches(host, 5000), "{host}");
        }
        for host in ["localhost.example.com", "128.0.0.1", "10.0.0.1", "quay.io"] {
            assert!(!NoProxy::default().matches(host, 5000), "{host}");
        }
    }

    #[test]
    fn invalid_entries_are_reported_and_the_others_apply() {
        let all = rules("a.io,10.0.0.0/99,192.168.*,x/8,b.io:no,https://c.io,.");
        let misunderstood = ["10.0.0.0/99", "192.168.*", "x/8", "b.io:no", "https://c.io", "."];
        assert_eq!(all.misunderstood(), misunderstood);
        assert!(all.matches("a.io", 443) && !all.matches("b.io", 443));
    }
}
