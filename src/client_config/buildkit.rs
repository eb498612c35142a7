//! BuildKit: `buildkitd.toml`, with one entry for each registry.
//!
//! BuildKit names the registry in `?ns=` if the image is from another host, so no path is needed. The scheme and the
//! TLS settings of the connection to Larder are in an entry for Larder's host.

use super::{Fallback, Mirror, MirrorError, explicit_header, quoted};

pub(super) fn text(mirror: &Mirror) -> Result<String, MirrorError> {
    if mirror.fallback == Fallback::None {
        return Err(MirrorError::AlwaysFallsBack);
    }
    let mut text = explicit_header();
    let servers: Vec<String> =
        mirror.servers.iter().map(|server| quoted(&server.authority)).collect();
    let servers = servers.join(", ");
    for registry in mirror.explicit_registries() {
        text +=
            &format!("\n[registry.{}]\n  mirrors = [{servers}]\n", quoted(registry.name.as_str()));
        if registry.is_plain {
            text += "  http = true\n";
        }
    }
    for server in &mirror.servers {
        // Without the key, BuildKit uses plain HTTP for every host on loopback, whatever its certificates are.
        let mut keys = vec![format!("http = {}", !server.is_tls)];
        keys.extend(mirror.trust.is_unverified.then(|| "insecure = true".to_owned()));
        keys.extend(mirror.trust.ca.iter().map(|ca| format!("ca = [{}]", quoted(ca))));
        let name = quoted(&server.authority);
        if let Some((cert, key)) = &mirror.trust.identity {
            keys.push(format!(
                "[[registry.{name}.keypair]]\n    key = {}\n    cert = {}",
                quoted(key),
                quoted(cert)
            ));
        }
        text += &format!("\n[registry.{name}]\n");
        text.extend(keys.iter().map(|key| format!("  {key}\n")));
    }
    Ok(text)
}
