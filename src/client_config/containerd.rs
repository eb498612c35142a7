//! containerd: `certs.d/NAME/hosts.toml`, and `_default` for every registry without a file.
//!
//! containerd names the registry in `?ns=`. If a file has no `server`, containerd tries the registry itself
//! last; the only way to prevent that is to set `server` to Larder. See containerd's `docs/hosts.md`.

use std::time::Duration;

use super::{Document, Fallback, MARK, Mirror, Registry, Server, quoted};

/// The directory for registries without a directory.
const DEFAULT: &str = "_default";

pub(super) fn documents(mirror: &Mirror) -> Vec<Document> {
    let default = document(mirror, DEFAULT, None);
    // For a registry with TLS, `_default` would be sufficient. The file shows a reader that it is mirrored.
    let listed = mirror
        .registries
        .iter()
        .map(|registry| document(mirror, registry.name.as_str(), Some(registry)));
    std::iter::once(default).chain(listed).collect()
}

fn document(mirror: &Mirror, directory: &str, registry: Option<&Registry>) -> Document {
    let mut text = format!("{MARK}, which overwrites this file.\n");
    let (last, others) = match (mirror.fallback, mirror.servers.split_last()) {
        (Fallback::None, Some((last, others))) => (Some(last), others),
        _ => (None, &mirror.servers[..]),
    };
    match (last, registry) {
        (Some(server), _) => {
            text += &format!("server = {}\n{}", quoted(&server.url()), keys(mirror, server, ""));
            // containerd requires the table even if it is empty.
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

/// In the format of Go's `time.ParseDuration`.
fn duration(duration: Duration) -> String {
    match duration.subsec_nanos() {
        0 => format!("{}s", duration.as_secs()),
        nanos if nanos.is_multiple_of(1_000_000) => format!("{}ms", duration.as_millis()),
        _ => format!("{}ns", duration.as_nanos()),
    }
}
