//! The operator's proxies, and which connection uses which one.
//!
//! This file decides; `tunnel.rs` connects.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::location::Location;
use super::no_proxy::NoProxy;

/// The proxies for upstreams.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxySettings {
    /// For http URLs.
    pub http: Option<Proxy>,
    /// For https URLs.
    pub https: Option<Proxy>,
    /// The hosts that are reached without a proxy.
    pub no_proxy: NoProxy,
}

impl ProxySettings {
    /// The proxy for `location`.
    pub(in crate::upstream) fn towards(&self, location: &Location) -> Option<&Proxy> {
        let proxy = if location.is_https() { &self.https } else { &self.http };
        let is_direct = self.no_proxy.matches(location.host(), location.port());
        proxy.as_ref().filter(|_| !is_direct)
    }
}

/// An HTTP proxy, which is reached by plain HTTP or by TLS.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    /// Scheme, host and port.
    shown: Arc<str>,
    /// With user and password, which are sent to the proxy only and never displayed.
    secret: ureq::Proxy,
}

impl Proxy {
    pub(in crate::upstream) fn for_ureq(&self) -> ureq::Proxy {
        self.secret.clone()
    }

    /// Whether it is reached by TLS.
    pub(in crate::upstream) fn is_https(&self) -> bool {
        self.secret.protocol() == ureq::ProxyProtocol::Https
    }
}

/// Scheme, host and port, without user and password.
impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({})", self.shown)
    }
}

/// Why a text is not the URL of a proxy. Does not quote the text, which may contain a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParseProxyError {
    /// It is not a URL, or has a path or a query.
    Malformed,
    /// This kind of proxy is not supported.
    Scheme,
}

impl fmt::Display for ParseProxyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ParseProxyError::Malformed => {
                "it is not the URL of a proxy, e.g. http://proxy.example.com:3128 or \
                 http://user:password@proxy.example.com:3128; encode special characters in user and \
                 password as %XX"
            }
            ParseProxyError::Scheme => {
                "only http:// and https:// proxies are supported, no SOCKS"
            }
        })
    }
}

impl std::error::Error for ParseProxyError {}

impl FromStr for Proxy {
    type Err = ParseProxyError;

    /// Without a scheme it is `http://`, as in other programs.
    fn from_str(text: &str) -> Result<Proxy, ParseProxyError> {
        let text = text.trim();
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let scheme = scheme.to_ascii_lowercase();
        if !matches!(scheme.as_str(), "http" | "https") {
            let is_scheme = scheme.bytes().all(|byte| byte.is_ascii_alphanumeric());
            let is_url = is_scheme && !scheme.is_empty();
            return Err(if is_url { ParseProxyError::Scheme } else { ParseProxyError::Malformed });
        }
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let secret = ureq::Proxy::new(&format!("{scheme}://{rest}"))
            .map_err(|_| ParseProxyError::Malformed)?;
        // ureq's parser accepts invalid hosts and ports, and text after them.
        let authority = rest.rsplit_once('@').map_or(rest, |(_, authority)| authority);
        let is_authority = !authority.contains(['/', '?', '#']) && !authority.ends_with(':');
        let location = Location::parse(&format!("{scheme}://{authority}"))
            .filter(|it| {
                is_authority && it.port() > 0 && secret.host().eq_ignore_ascii_case(it.host())
            })
            .ok_or(ParseProxyError::Malformed)?;
        let shown = format!("{scheme}://{}", location.host_and_port()).into();
        Ok(Proxy { shown, secret })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_proxies() {
        for (text, shown, user, password) in [
            ("http://p:3128", "http://p:3128", None, None),
            ("HTTP://p:3128/", "http://p:3128", None, None),
            ("https://p.example.com", "https://p.example.com:443", None, None),
            ("http://p", "http://p:80", None, None),
            ("proxy_1:3128", "http://proxy_1:3128", None, None),
            (" http://10.0.0.1:8080 ", "http://10.0.0.1:8080", None, None),
            ("http://[fd00::1]:3128", "http://[fd00::1]:3128", None, None),
            ("http://u:p%40ss@p:3128", "http://p:3128", Some("u"), Some("p@ss")),
            ("u:p@p:3128", "http://p:3128", Some("u"), Some("p")),
        ] {
            let proxy: Proxy = text.parse().unwrap();
            assert_eq!(proxy.to_string(), shown, "{text}");
            assert_eq!(proxy.secret.username(), user, "{text}");
            assert_eq!(proxy.secret.password(), password, "{text}");
        }
    }

    #[test]
    fn texts_that_are_not_urls_of_proxies() {
        use ParseProxyError::{Malformed, Scheme};
        for (text, error) in [
            ("", Malformed),
            ("http://", Malformed),
            ("http://p:99999", Malformed),
            ("http://p:0", Malformed),
            ("http://p:x", Malformed),
            ("http://p:", Malformed),
            ("http://:3128", Malformed),
            ("http://[:@1]:3128", Malformed),
            ("http://[::x]:3128", Malformed),
            ("http://p:3128/path", Malformed),
            ("http://p:3128?x", Malformed),
            ("http://u:p#w@p:3128", Malformed),
            ("http://u:p/w@p:3128", Malformed),
            ("a b", Malformed),
            ("://p", Malformed),
            ("socks5://p:1080", Scheme),
            ("socks5h://u:p@p:1080", Scheme),
            ("ftp://p", Scheme),
        ] {
            assert_eq!(text.parse::<Proxy>(), Err(error), "{text}");
        }
    }

    #[test]
    fn a_password_is_never_shown() {
        let proxy: Proxy = "http://user:hunter2@p:3128".parse().unwrap();
        let settings = ProxySettings { http: Some(proxy.clone()), ..ProxySettings::default() };
        for text in [format!("{proxy}"), format!("{proxy:?}"), format!("{settings:?}")] {
            assert!(!text.contains("hunter2") && !text.contains("user"), "{text}");
        }
    }

    #[test]
    fn each_scheme_has_its_own_proxy_and_exceptions_have_none() {
        let settings = ProxySettings {
            http: "http://a:1".parse().ok(),
            https: "http://b:2".parse().ok(),
            no_proxy: "internal.io, x.io:5000".parse().unwrap(),
        };
        for (url, expected) in [
            ("http://x.io/", Some("http://a:1")),
            ("https://x.io/", Some("http://b:2")),
            ("https://x.io:5000/", None),
            ("https://reg.internal.io/", None),
            ("http://localhost:5000/", None),
            ("https://127.0.0.1/", None),
        ] {
            let location = Location::parse(url).unwrap();
            let proxy = settings.towards(&location).map(ToString::to_string);
            assert_eq!(proxy.as_deref(), expected, "{url}");
        }
        let none = ProxySettings::default();
        assert_eq!(none.towards(&Location::parse("https://x.io/").unwrap()), None);
    }
}
