//! The proxy variables of the environment, with the meaning that they have for `curl` and most other programs.

use std::ffi::OsString;

use super::ConfigError;
use crate::upstream::{Proxy, ProxySettings};

/// The variables for each scheme: the first one that is set and not empty is used. Lower case takes precedence,
/// as in curl.
const HTTP: [&str; 4] = ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"];
const HTTPS: [&str; 4] = ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
const NO_PROXY: [&str; 2] = ["no_proxy", "NO_PROXY"];

/// Reads the proxies from the environment.
///
/// # Errors
/// [`ConfigError::Environment`] if a variable that is used is not the URL of a proxy. Without its proxy, a server
/// would connect directly to hosts that it must only reach through the proxy.
pub(super) fn proxies(
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<ProxySettings, ConfigError> {
    let first = |names: &[&'static str]| {
        let set = names.iter().filter_map(|name| Some((*name, variable(name)?)));
        let mut texts = set.map(|(name, value)| match value.into_string() {
            Ok(text) => Ok((name, text)),
            Err(_) => Err(refused(name, "it is not valid UTF-8".into())),
        });
        let is_empty = |text: &str| text.trim().is_empty();
        texts.find(|found| found.as_ref().map_or(true, |(_, text)| !is_empty(text))).transpose()
    };
    let proxy = |names| -> Result<Option<Proxy>, ConfigError> {
        let Some((name, text)) = first(names)? else { return Ok(None) };
        text.parse().map(Some).map_err(|error| refused(name, format!("{error}")))
    };
    let no_proxy = first(&NO_PROXY)?.map(|(_, text)| text).unwrap_or_default();
    let Ok(no_proxy) = no_proxy.parse();
    Ok(ProxySettings { http: proxy(&HTTP)?, https: proxy(&HTTPS)?, no_proxy })
}

fn refused(variable: &'static str, reason: String) -> ConfigError {
    ConfigError::Environment { variable, reason }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<ProxySettings, String> {
        let find = |name: &str| variables.iter().find(|(set, _)| *set == name);
        proxies(|name| find(name).map(|(_, value)| value.into())).map_err(|error| error.to_string())
    }

    #[test]
    fn first_variable_that_is_set_is_used() {
        for (variables, http, https) in [
            (&[][..], None, None),
            (&[("HTTP_PROXY", "http://a:1")], Some("http://a:1"), None),
            (&[("https_proxy", "http://a:1")], None, Some("http://a:1")),
            (&[("ALL_PROXY", "a:1")], Some("http://a:1"), Some("http://a:1")),
            (&[("all_proxy", "a:1"), ("ALL_PROXY", "b:1")], Some("http://a:1"), Some("http://a:1")),
            (
                &[("ALL_PROXY", "a:1"), ("HTTPS_PROXY", "b:2")],
                Some("http://a:1"),
                Some("http://b:2"),
            ),
            (&[("http_proxy", "a:1"), ("HTTP_PROXY", "b:2")], Some("http://a:1"), None),
            (&[("http_proxy", ""), ("HTTP_PROXY", "b:2")], Some("http://b:2"), None),
            (&[("HTTP_PROXY", " ")], None, None),
            // Variables that are not used are not checked.
            (
                &[("ALL_PROXY", "socks5://a:1"), ("HTTPS_PROXY", "b:2"), ("HTTP_PROXY", "c:3")],
                Some("http://c:3"),
                Some("http://b:2"),
            ),
        ] {
            let read = read(variables).unwrap();
            let shown = |proxy: &Option<Proxy>| proxy.as_ref().map(ToString::to_string);
            assert_eq!(shown(&read.http).as_deref(), http, "{variables:?}");
            assert_eq!(shown(&read.https).as_deref(), https, "{variables:?}");
        }
        let read = read(&[("NO_PROXY", "a.io,b.io:no")]).unwrap();
        assert_eq!(read.no_proxy.misunderstood(), ["b.io:no"]);
    }

    #[test]
    fn invalid_variable_is_named_and_not_quoted() {
        for (variable, value, words) in [
            ("HTTPS_PROXY", "http://user:hunter2@p:port", "not the URL of a proxy"),
            ("http_proxy", "socks5://user:hunter2@p:1", "no SOCKS"),
            ("ALL_PROXY", "http://", "e.g. http://proxy"),
        ] {
            let error = read(&[(variable, value)]).unwrap_err();
            assert!(error.contains(variable) && error.contains(words), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        let not_text = |name: &str| (name == "NO_PROXY").then(|| OsString::from_vec(vec![0xff]));
        assert!(proxies(not_text).unwrap_err().to_string().contains("NO_PROXY"));
    }
}
