//! containerd: `certs.d/NAME/hosts.toml`, and `_default` for every registry that has none of its own.
//!
//! The registry is said by `?ns=`. Where a file names no `server`, the registry itself is asked last; the one
//! way to have it not asked is to name Larder there. See containerd's `docs/hosts.md`.

use std::time::Duration;

use super::{Document, Fallback, MARK, Mirror, Registry, Server, quoted};

/// The directory for all registries that have none.
const DEFAULT: &str = "_default";

pub(super) fn documents(mirror: &Mirror) -> Vec<Document> {
    let default = document(mirror, DEFAULT, None);
    // What `_default` says of it would do for one by https; but that it is there tells a reader.
    let listed = mirror
        .registries
        .iter()
        .map(|registry| document(mirror, registry.name.as_str(), Some(registry)));
    std::iter::once(default).chain(listed).collect()
}

fn document(mirror: &Mirror, directory: &str, registry: Option<&Registry>) -> Document {
    let mut text = format!("{MARK}, which writes over it.\n");
    let (last, others) = match (mirror.fallback, mirror.servers.split_last()) {
        (Fallback::None, Some((last, others))) => (Some(last), others),
        _ => (None, &mirror.servers[..]),
    };
    match (last, registry) {
        (Some(server), _) => {
            text += &format!("server = {}\n{}", quoted(&server.url()), keys(mirror, server, ""));
            // containerd wants to see the table, be there anything in it or not.
            if others.is_empty() {
                text += "\n[host]\n";
            }
        }
        (None, Some(registry)) => text += &format!("server = {}\n", quoted(&registry.url())),
        (None, None) => {}
    }
    for server in others {
        text += &format!("\n[host.{}]\n{}", quoted(&server.url()), keys(mirror, server, "  "));
    }
    Document { path: Some(format!("{directory}/hosts.toml")), text }
}

fn keys(mirror: &Mirror, server: &Server, indent: &str) -> String {
    let mut lines = vec![
        "capabilities = [\"pull\", \"resolve\"]".to_owned(),
        format!("dial_timeout = {}", quoted(&duration(mirror.dial_timeout))),
    ];
    if server.is_tls {
        lines.extend(mirror.trust.ca.iter().map(|ca| format!("ca = {}", quoted(ca))));
        let pair = |(cert, key): &(String, String)| {
            format!("client = [[{}, {}]]", quoted(cert), quoted(key))
        };
        lines.extend(mirror.trust.identity.iter().map(pair));
        lines.extend(mirror.trust.is_unverified.then(|| "skip_verify = true".to_owned()));
    }
    lines.iter().map(|line| format!("{indent}{line}\n")).collect()
}

/// As Go reads it.
fn duration(duration: Duration) -> String {
    match duration.subsec_nanos() {
        0 => format!("{}s", duration.as_secs()),
        nanos if nanos.is_multiple_of(1_000_000) => format!("{}ms", duration.as_millis()),
        _ => format!("{}ns", duration.as_nanos()),
    }
}
