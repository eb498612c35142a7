//! Which parts of an existing `hosts.toml` would be lost if Larder replaced it.
//!
//! People write this file as the chart's notes and the documentation show it, without the line that marks Larder's
//! own files. Such a file may be replaced: it has only what Larder writes. Everything that this reader does not know
//! counts as lost, so a file with another purpose stays.

use std::net::IpAddr;

use serde_json::Value;

use super::Mirror;
use crate::oci::{Upstream, quoted};

/// The keys that every generated host has, so that no file loses them.
const ALWAYS_WRITTEN: [&str; 2] = ["capabilities", "dial_timeout"];
/// What Larder may be used for. `push` is something else.
const CAPABILITIES: [&str; 2] = ["pull", "resolve"];

/// A line of a `hosts.toml`, without its indentation and comment.
enum Line {
    Empty,
    /// `[host]`, which configures no host.
    NoHost,
    /// `[host."URL"]`.
    Host(String),
    Key(String, Value),
    Unknown,
}

/// The first line of `existing` that `new` has no equivalent for, quoted, or the reason why it is not a mirror on
/// Larder; `None` if nothing is lost.
pub(super) fn lost(mirror: &Mirror, existing: &str, new: &str) -> Option<String> {
    let new_lines: Vec<Line> = new.lines().map(parse).collect();
    let mut uses_larder = false;
    for (index, line) in existing.lines().enumerate() {
        let is_kept = match parse(line) {
            Line::Empty | Line::NoHost => true,
            Line::Host(url) => is_larder(mirror, &url),
            Line::Key(key, value) if key == "server" => keeps_server(mirror, &value, &new_lines),
            Line::Key(key, value) => keeps_key(&key, &value, &new_lines),
            Line::Unknown => false,
        };
        if !is_kept {
            return Some(format!("line {} is {}", index + 1, quoted(line.trim())));
        }
        uses_larder |= names_larder(mirror, &parse(line));
    }
    (!uses_larder).then(|| "it does not name Larder".to_owned())
}

fn names_larder(mirror: &Mirror, line: &Line) -> bool {
    match line {
        Line::Host(url) => is_larder(mirror, url),
        Line::Key(key, Value::String(url)) => key == "server" && is_larder(mirror, url),
        _ => false,
    }
}

/// Whether this is the URL of a server of the mirror, or of its port on the node itself: nodes have several names for
/// their own addresses.
fn is_larder(mirror: &Mirror, url: &str) -> bool {
    let Some((_, authority)) = url.split_once("://") else { return false };
    let Ok(named) = authority.trim_end_matches('/').parse::<Upstream>() else { return false };
    mirror.servers.iter().filter_map(|server| server.authority.parse::<Upstream>().ok()).any(
        |server| {
            let is_same_port = server.port() == named.port();
            is_same_port && (server.host() == named.host() || is_loopback(named.host()))
        },
    )
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

/// A `server` is what containerd tries last. It is kept if the new file has the same, or if both are Larder.
fn keeps_server(mirror: &Mirror, value: &Value, new: &[Line]) -> bool {
    let Some(url) = value.as_str() else { return false };
    new.iter().any(|line| match line {
        Line::Key(key, Value::String(new)) if key == "server" => {
            new == url || (is_larder(mirror, new) && is_larder(mirror, url))
        }
        _ => false,
    })
}

fn keeps_key(key: &str, value: &Value, new: &[Line]) -> bool {
    if key == "capabilities" {
        let all = value.as_array().map(Vec::as_slice).unwrap_or_default();
        let is_known =
            |each: &Value| each.as_str().is_some_and(|each| CAPABILITIES.contains(&each));
        return !all.is_empty() && all.iter().all(is_known);
    }
    ALWAYS_WRITTEN.contains(&key)
        || new.iter().any(|line| matches!(line, Line::Key(new, _) if new == key))
}

/// Parses what Larder and its documentation write, one line at a time. Their strings and lists are the same in TOML
/// and in JSON.
fn parse(line: &str) -> Line {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Line::Empty;
    }
    if let Some(table) = line.strip_prefix('[') {
        return table_of(table).unwrap_or(Line::Unknown);
    }
    let Some((key, text)) = line.split_once('=') else { return Line::Unknown };
    match value(text) {
        Some((value, rest)) if is_comment(rest) => Line::Key(key.trim().to_owned(), value),
        _ => Line::Unknown,
    }
}

fn table_of(text: &str) -> Option<Line> {
    let rest = text.trim_start().strip_prefix("host")?.trim_start();
    if let Some(rest) = rest.strip_prefix(']') {
        return is_comment(rest).then_some(Line::NoHost);
    }
    let (url, rest) = value(rest.strip_prefix('.')?)?;
    let rest = rest.trim_start().strip_prefix(']')?;
    is_comment(rest).then_some(Line::Host(url.as_str()?.to_owned()))
}

/// The value at the beginning of a text, and the rest.
fn value(text: &str) -> Option<(Value, &str)> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let value = values.next()?.ok()?;
    Some((value, text.get(values.byte_offset()..)?))
}

fn is_comment(rest: &str) -> bool {
    let rest = rest.trim_start();
    rest.is_empty() || rest.starts_with('#')
}

#[cfg(test)]
mod tests {
    use super::super::tests::mirror;
    use super::super::{Client, Fallback, Mirror, Registry, Trust};

    /// As the chart's notes print it.
    const NOTES: &str = "[host.\"http://127.0.0.1:31080\"]\n  capabilities = [\"pull\", \"resolve\"]\n  \
                         dial_timeout = \"2s\"\n";

    fn lost(mirror: &Mirror, existing: &str) -> Option<String> {
        let documents = mirror.documents(Client::Containerd).unwrap();
        mirror.lost(Client::Containerd, documents.last().unwrap(), existing)
    }

    #[test]
    fn a_file_as_in_the_notes_loses_nothing() {
        let plain = mirror(&["http://127.0.0.1:31080"]);
        for existing in [
            NOTES.to_owned(),
            NOTES.replace("127.0.0.1", "localhost"),
            NOTES.replace("127.0.0.1", "[::1]"),
            NOTES.replace('\n', "\r\n"),
            format!("\n# Larder\n{}", NOTES.replace("  ", "\t")),
            NOTES.replace("\"]\n", "\"] # the node port\n"),
            NOTES.replace("[host.", "[ host . ").replace(" = ", "="),
            NOTES.replace("  dial_timeout = \"2s\"\n", ""),
            NOTES.replace("\"pull\", \"resolve\"", "\"resolve\",\"pull\""),
        ] {
            assert_eq!(lost(&plain, &existing), None, "{existing}");
        }
        for servers in [["http://10.0.0.5:31080"], ["http://[fd00::5]:31080"]] {
            assert_eq!(lost(&mirror(&servers), NOTES), None, "the node has several addresses");
        }
        let tls = NOTES.replace("http:", "https:") + "  ca = \"/etc/ca.crt\"   # the CA\n";
        let trust = Trust { ca: Some("/other.crt".into()), ..Trust::default() };
        let secure = Mirror { trust, ..mirror(&["https://127.0.0.1:31080"]) };
        assert_eq!(lost(&secure, &tls), None);
        assert_eq!(lost(&secure, NOTES), None, "TLS was enabled later");
    }

    #[test]
    fn the_server_of_a_registry_is_kept() {
        let registries = vec![Registry::named("quay.io".parse().unwrap())];
        let of_registry = Mirror { registries, ..mirror(&["http://127.0.0.1:31080"]) };
        assert_eq!(lost(&of_registry, &format!("server = \"https://quay.io\"\n{NOTES}")), None);
        let other = lost(&of_registry, &format!("server = \"https://mirror\"\n{NOTES}"));
        assert_eq!(other.as_deref(), Some("line 1 is server = \"https://mirror\""));
        let alone = Mirror { fallback: Fallback::None, ..mirror(&["http://127.0.0.1:31080"]) };
        let no_fallback = "server = \"http://localhost:31080\"\n[host]\n";
        assert_eq!(lost(&alone, no_fallback), None);
        let falls_back = mirror(&["http://127.0.0.1:31080"]);
        assert!(lost(&falls_back, no_fallback).is_some(), "the node would fall back from now on");
    }

    #[test]
    fn a_file_with_anything_else_is_kept() {
        let plain = mirror(&["http://127.0.0.1:31080"]);
        for (existing, reason) in [
            (NOTES.replace("31080", "5000"), "line 1 is [host.\"http://127.0.0.1:5000\"]"),
            (NOTES.replace("127.0.0.1", "10.0.0.5"), "line 1 is"),
            (format!("{NOTES}[host.\"https://mirror.corp\"]\n"), "line 4 is"),
            (NOTES.replace("\"resolve\"", "\"push\""), "line 2 is capabilities"),
            (NOTES.replace("[\"pull\", \"resolve\"]", "[]"), "line 2 is"),
            (NOTES.replace("[\"pull\", \"resolve\"]", "[\n\"pull\"]"), "line 2 is"),
            (format!("{NOTES}  skip_verify = true\n"), "line 4 is skip_verify = true"),
            (format!("{NOTES}  override_path = true\n"), "line 4 is override_path"),
            (format!("{NOTES}[host.\"http://127.0.0.1:31080\".header]\n"), "line 4 is"),
            (format!("{NOTES}nonsense\n"), "line 4 is nonsense"),
            ("# no mirror for this registry\n".into(), "it does not name Larder"),
            (String::new(), "it does not name Larder"),
            ("[host]\n".into(), "it does not name Larder"),
        ] {
            let found = lost(&plain, &existing);
            assert!(
                found.as_deref().is_some_and(|it| it.contains(reason)),
                "{existing}: {found:?}"
            );
        }
    }

    #[test]
    fn other_clients_lose_every_file_without_the_mark() {
        let plain = mirror(&["http://127.0.0.1:31080"]);
        for client in [Client::K3s, Client::RegistriesConf, Client::BuildKit] {
            let document = plain.documents(client).unwrap().remove(0);
            assert!(plain.lost(client, &document, NOTES).is_some());
        }
    }
}
