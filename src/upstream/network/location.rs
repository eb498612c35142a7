//! URLs: resolving the targets of redirects, and comparing origins.

use std::net::Ipv6Addr;

use ureq::http::uri::{Authority, PathAndQuery};

/// An absolute http or https URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::upstream) struct Location {
    https: bool,
    /// Host and port in lower case, without the scheme's default port.
    authority: String,
    path_and_query: String,
}

impl Location {
    /// A URL from its parts; `path_and_query` begins with `/`.
    pub(in crate::upstream) fn new(https: bool, authority: &str, path_and_query: &str) -> Location {
        let default_port = if https { ":443" } else { ":80" };
        let authority = authority.strip_suffix(default_port).unwrap_or(authority);
        Location {
            https,
            authority: authority.to_ascii_lowercase(),
            path_and_query: path_and_query.to_owned(),
        }
    }

    /// Parses an absolute URL as browsers and curl do: resolves dot segments and percent-encodes characters that a URL
    /// must not contain. Existing percent-encoding stays unchanged, since a signature may cover it. User info is
    /// refused: no registry sends a password that way.
    pub(in crate::upstream) fn parse(text: &str) -> Option<Location> {
        let text = text.split('#').next()?.trim();
        let (scheme, rest) = text.split_once("://")?;
        let https = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let (authority, path_and_query) =
            rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let authority = authority.strip_suffix(':').unwrap_or(authority);
        // Parsers disagree on these: user info, an encoded host, a backslash as a path separator.
        if authority.is_empty() || authority.contains(['@', '%', '\\']) {
            return None;
        }
        authority.parse::<Authority>().ok()?;
        let (host, port) = split_port(authority);
        let is_host = match host.strip_prefix('[') {
            // Of `[::1]x`, ureq dials `::1`; of `[:@1]`, it takes `[:` for a user.
            Some(rest) => rest.strip_suffix(']')?.parse::<Ipv6Addr>().is_ok(),
            None => !host.is_empty() && !host.contains(['[', ']']),
        };
        let is_port =
            |port: &str| port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
        if !is_host || !(port.is_empty() || is_port(port)) {
            return None;
        }
        let path_and_query = normalized(path_and_query);
        path_and_query.parse::<PathAndQuery>().ok()?;
        Some(Location::new(https, authority, &path_and_query))
    }

    /// Resolves a `Location` header or the realm of a challenge against this URL (RFC 3986, section 5.2). `None` if it
    /// is empty or invalid, or its scheme is neither http nor https.
    pub(in crate::upstream) fn join(&self, reference: &str) -> Option<Location> {
        let reference = reference.split('#').next()?.trim();
        let is_scheme = |text: &str| {
            !text.is_empty()
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
        };
        if reference.split_once("://").is_some_and(|(scheme, _)| is_scheme(scheme)) {
            return Location::parse(reference);
        }
        let scheme = if self.https { "https" } else { "http" };
        if let Some(rest) = reference.strip_prefix("//") {
            return Location::parse(&format!("{scheme}://{rest}"));
        }
        let path = self.path_and_query.split('?').next().unwrap_or("/");
        let path = match reference.chars().next()? {
            '/' => reference.to_owned(),
            '?' => format!("{path}{reference}"),
            _ => format!("{}/{reference}", path.rsplit_once('/')?.0),
        };
        Location::parse(&format!("{scheme}://{}{path}", self.authority))
    }

    /// The same origin with another path and query, which begins with `/`.
    pub(in crate::upstream) fn with_path(&self, path_and_query: &str) -> Location {
        Location { path_and_query: path_and_query.to_owned(), ..self.clone() }
    }

    /// The complete URL. It may contain a signature and must not be logged.
    pub(in crate::upstream) fn url(&self) -> String {
        format!("{}{}", self.origin(), self.path_and_query)
    }

    /// Scheme, host and port.
    pub(in crate::upstream) fn origin(&self) -> String {
        format!("{}://{}", if self.https { "https" } else { "http" }, self.authority)
    }

    /// The URL without its query, which may contain a signature.
    pub(in crate::upstream) fn for_log(&self) -> String {
        let path = self.path_and_query.split('?').next().unwrap_or_default();
        format!("{}{path}", self.origin())
    }

    /// Whether it is https.
    pub(in crate::upstream) fn is_https(&self) -> bool {
        self.https
    }

    /// Whether scheme, host and port are the same. `Authorization` may be sent to the same origin only.
    pub(in crate::upstream) fn is_same_origin(&self, other: &Location) -> bool {
        (self.https, &self.authority) == (other.https, &other.authority)
    }

    /// The host without port; an IPv6 address with its brackets.
    pub(in crate::upstream) fn host(&self) -> &str {
        split_port(&self.authority).0
    }

    /// The port, or the scheme's default port.
    pub(in crate::upstream) fn port(&self) -> u16 {
        let given = split_port(&self.authority).1.strip_prefix(':');
        let scheme_port = if self.https { 443 } else { 80 };
        given.and_then(|port| port.parse().ok()).unwrap_or(scheme_port)
    }

    /// `host:port`, to resolve.
    pub(in crate::upstream) fn host_and_port(&self) -> String {
        match self.authority.len() == self.host().len() {
            true => format!("{}:{}", self.authority, if self.https { 443 } else { 80 }),
            false => self.authority.clone(),
        }
    }

    /// The same URL with the encoded `pairs` appended to its query.
    pub(in crate::upstream) fn with_query(&self, pairs: &[(&str, &str)]) -> Location {
        let mut location = self.clone();
        for (name, value) in pairs {
            let separator = if location.path_and_query.contains('?') { '&' } else { '?' };
            location.path_and_query.push(separator);
            location.path_and_query.push_str(name);
            location.path_and_query.push('=');
            encode_into(&mut location.path_and_query, value);
        }
        location
    }
}

/// The host of an authority, an IPv6 address with its brackets, and what follows it: a port with its colon, or nothing.
fn split_port(authority: &str) -> (&str, &str) {
    let after_bracket = authority.rfind(']').map_or(0, |at| at + 1);
    let port =
        authority[after_bracket..].find(':').map_or(authority.len(), |at| after_bracket + at);
    authority.split_at(port)
}

/// Percent-encodes everything except RFC 3986's unreserved characters and `:/`. These two are legal in a query, and
/// token services expect them unencoded.
pub(in crate::upstream) fn encode_into(out: &mut String, value: &str) {
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
}

/// A path and query as they are sent: without dot segments (RFC 3986, section 5.2.4), and with illegal characters
/// encoded.
fn normalized(path_and_query: &str) -> String {
    let (path, query) = match path_and_query.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (path_and_query, None),
    };
    let mut out = String::new();
    encode_unsafe(&mut out, &without_dot_segments(path), b"\"<>\\^`{|}");
    if let Some(query) = query {
        out.push('?');
        encode_unsafe(&mut out, query, b"\"<>");
    }
    out
}

/// Resolves `.` and `..`. Empty segments are kept, since the key of an object may contain `//`.
fn without_dot_segments(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let segments: Vec<&str> = path.strip_prefix('/').unwrap_or(path).split('/').collect();
    for (at, segment) in segments.iter().enumerate() {
        let is_last = at + 1 == segments.len();
        match *segment {
            "." | ".." => {
                if *segment == ".." {
                    kept.pop();
                }
                // `/a/..` is the directory `/`, not the file before it.
                if is_last {
                    kept.push("");
                }
            }
            other => kept.push(other),
        }
    }
    format!("/{}", kept.join("/"))
}

/// Percent-encodes control characters, spaces, bytes beyond ASCII and `unsafe_bytes`.
fn encode_unsafe(out: &mut String, text: &str, unsafe_bytes: &[u8]) {
    for byte in text.bytes() {
        if byte.is_ascii_graphic() && !unsafe_bytes.contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
}

/// Whether two hosts belong to the same owner: they are equal or have the same registrable domain.
///
/// The registrable domain is approximated without the public suffix list: the last two labels, or three if the last but
/// one is a second-level label under which countries register (`co.uk`). An address equals only itself.
pub(in crate::upstream) fn is_same_owner(one: &str, other: &str) -> bool {
    one == other || registrable(one).is_some_and(|domain| Some(domain) == registrable(other))
}

fn registrable(host: &str) -> Option<&str> {
    const SECOND_LEVEL: [&str; 8] = ["co", "com", "net", "org", "gov", "edu", "ac", "ne"];
    let is_name = !host.starts_with('[') && host.parse::<std::net::Ipv4Addr>().is_err();
    let labels: Vec<&str> = host.split('.').collect();
    let [.., second, top] = labels[..] else { return None };
    let wanted = if top.len() == 2 && SECOND_LEVEL.contains(&second) { 3 } else { 2 };
    if !is_name || labels.len() < wanted {
        return None;
    }
    let start: usize = labels[..labels.len() - wanted].iter().map(|label| label.len() + 1).sum();
    Some(&host[start..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_resolved_against_the_request() {
        let base = Location::new(true, "Reg.io:443", "/v2/a/blobs/x?y=1");
        let table = [
            ("https://CDN.io/b?sig=2#f", Some("https://cdn.io/b?sig=2")),
            ("http://cdn.io", Some("http://cdn.io/")),
            ("//cdn.io:8443/b", Some("https://cdn.io:8443/b")),
            ("/other", Some("https://reg.io/other")),
            ("y", Some("https://reg.io/v2/a/blobs/y")),
            ("?z", Some("https://reg.io/v2/a/blobs/x?z")),
            ("/b?next=https://x.io/y", Some("https://reg.io/b?next=https://x.io/y")),
            ("ftp://x/y", None),
            ("sha256:00", Some("https://reg.io/v2/a/blobs/sha256:00")),
            ("https://user:pw@x/y", None),
            ("https:///x", None),
            ("HTTPS://cdn.io:443/b", Some("https://cdn.io/b")),
            ("https://cdn.io:/b", Some("https://cdn.io/b")),
            (" /other ", Some("https://reg.io/other")),
            ("../manifests/./x", Some("https://reg.io/v2/a/manifests/x")),
            ("/a/b/../../../c/.", Some("https://reg.io/c/")),
            ("/a/..", Some("https://reg.io/")),
            (".", Some("https://reg.io/v2/a/blobs/")),
            ("https://cdn.io/a/../b?x=/../y", Some("https://cdn.io/b?x=/../y")),
            ("//cdn.io/key//part", Some("https://cdn.io/key//part")),
            ("/a b\"c'd<e>", Some("https://reg.io/a%20b%22c'd%3Ce%3E")),
            ("/ü?name=ü x", Some("https://reg.io/%C3%BC?name=%C3%BC%20x")),
            ("/a%20b%2Fc?s=%2B{|}", Some("https://reg.io/a%20b%2Fc?s=%2B{|}")),
            ("/{a|b}", Some("https://reg.io/%7Ba%7Cb%7D")),
            ("?f=a\"b", Some("https://reg.io/v2/a/blobs/x?f=a%22b")),
            ("https://evil.io\\@reg.io/x", None),
            ("https://a%40b.io/x", None),
            ("https://cdn.io:port/x", None),
            ("https://[2001:DB8::1]:8443/x", Some("https://[2001:db8::1]:8443/x")),
            ("https://[2001:db8::1]/x", Some("https://[2001:db8::1]/x")),
            ("https://[2001:db8::1]cdn.io/x", None),
            ("https://[2001:db8::1]cdn.io:443/x", None),
            ("https://cdn.io[::1]/x", None),
            ("https://[::1/x", None),
            ("https://[::x]/x", None),
            ("https://[]/x", None),
            ("https://:443/x", None),
            ("//:5000/x", None),
            ("https://:/x", None),
            ("", None),
        ];
        for (reference, expected) in table {
            let joined = base.join(reference).map(|location| location.url());
            assert_eq!(joined.as_deref(), expected, "{reference}");
        }
    }

    #[test]
    fn the_port_is_part_of_the_origin_and_the_default_port_is_dropped() {
        let base = Location::parse("https://reg.io/").unwrap();
        for (text, same) in [
            ("https://reg.io:443/x", true),
            ("https://REG.io/x", true),
            ("https://reg.io:8443/x", false),
            ("http://reg.io/x", false),
            ("https://reg.io.evil.com/", false),
        ] {
            assert_eq!(base.is_same_origin(&Location::parse(text).unwrap()), same, "{text}");
        }
    }

    #[test]
    fn every_location_has_a_port() {
        for (text, port) in [
            ("https://reg.io/", 443),
            ("http://reg.io/", 80),
            ("https://reg.io:5000/", 5000),
            ("http://[::1]:81/", 81),
            ("https://[::1]/", 443),
        ] {
            assert_eq!(Location::parse(text).unwrap().port(), port, "{text}");
        }
    }

    #[test]
    fn a_query_is_never_logged() {
        let location = Location::parse("https://s3.io/b?X-Amz-Signature=secret").unwrap();
        assert_eq!(location.for_log(), "https://s3.io/b");
    }

    #[test]
    fn query_pairs_are_merged_and_encoded() {
        let realm = Location::parse("https://a.io/t?x=1").unwrap();
        let url = realm.with_query(&[("service", "a b&c"), ("scope", "repository:a/b:pull")]).url();
        assert_eq!(url, "https://a.io/t?x=1&service=a%20b%26c&scope=repository:a/b:pull");
        let plain = Location::parse("https://a.io").unwrap();
        assert_eq!(plain.with_query(&[("n", "1")]).url(), "https://a.io/?n=1");
    }

    #[test]
    fn hosts_of_the_same_owner() {
        for (one, other, same) in [
            ("registry-1.docker.io", "auth.docker.io", true),
            ("ghcr.io", "ghcr.io", true),
            ("registry.gitlab.com", "gitlab.com", true),
            ("127.0.0.1", "127.0.0.1", true),
            ("10.0.0.1", "11.0.0.1", false),
            ("10.0.0.1", "9.0.0.1", false),
            ("docker.io", "evil.io", false),
            ("a.co.uk", "b.co.uk", false),
            ("x.a.co.uk", "y.a.co.uk", true),
            ("localhost", "localhost", true),
            ("reg", "other", false),
            ("[::1]", "[::2]", false),
        ] {
            assert_eq!(is_same_owner(one, other), same, "{one} {other}");
        }
    }
}
