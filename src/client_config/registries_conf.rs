//! CRI-O, podman, buildah and skopeo: `containers-registries.conf(5)`.
//!
//! These clients do not send `?ns=`, so the registry is part of the path. There is no entry for all registries.

use super::{Fallback, Mirror, MirrorError, Registry, Server, explicit_header, path_on, quoted};

pub(super) fn text(mirror: &Mirror) -> Result<String, MirrorError> {
    let mut text = explicit_header();
    for registry in mirror.explicit_registries() {
        text += "\n[[registry]]\n";
        text += &format!("prefix = {}\n", quoted(registry.name.as_str()));
        let (location, mirrors) = match (mirror.fallback, mirror.servers.split_last()) {
            // The prefix is replaced by the location, so the last server can take the place of the registry,
            // which is tried after all mirrors.
            (Fallback::None, Some((last, others))) => (place(mirror, last, &registry)?, others),
            _ => (itself(&registry), &mirror.servers[..]),
        };
        text += &location;
        for server in mirrors {
            text += &format!("[[registry.mirror]]\n{}", place(mirror, server, &registry)?);
        }
    }
    Ok(text + &certificates(mirror))
}

fn itself(registry: &Registry) -> String {
    let insecure = if registry.is_plain { "insecure = true\n" } else { "" };
    format!("location = {}\n{insecure}", quoted(registry.name.as_str()))
}

fn place(mirror: &Mirror, server: &Server, registry: &Registry) -> Result<String, MirrorError> {
    let insecure =
        if !server.is_tls || mirror.trust.is_unverified { "insecure = true\n" } else { "" };
    Ok(format!("location = {}\n{insecure}", quoted(&path_on(server, registry)?)))
}

/// Comments that tell where to copy certificates: clients find them by the server's name.
fn certificates(mirror: &Mirror) -> String {
    let mut text = String::new();
    for server in mirror.servers.iter().filter(|server| server.is_tls) {
        let files = [
            mirror.trust.ca.as_ref().map(|ca| (ca, "ca.crt")),
            mirror.trust.identity.as_ref().map(|(cert, _)| (cert, "client.cert")),
            mirror.trust.identity.as_ref().map(|(_, key)| (key, "client.key")),
        ];
        for (file, name) in files.into_iter().flatten() {
            text +=
                &format!("\n# Copy {file} to /etc/containers/certs.d/{}/{name}", server.authority);
        }
    }
    if !text.is_empty() {
        text += "\n";
    }
    text
}
