//! BuildKit: `buildkitd.toml`, one entry a registry.
//!
//! The registry is said by `?ns=` when the image is from another host, so no path is needed. How Larder is
//! spoken to is in an entry of its own.

use super::{Fallback, Mirror, MirrorError, head_of_some, quoted};

pub(super) fn text(mirror: &Mirror) -> Result<String, MirrorError> {
    if mirror.fallback == Fallback::None {
        return Err(MirrorError::AlwaysFallsBack);
    }
    let mut text = head_of_some();
    let servers: Vec<String> =
        mirror.servers.iter().map(|server| quoted(&server.authority)).collect();
    let servers = servers.join(", ");
    for registry in mirror.one_by_one() {
        text +=
            &format!("\n[registry.{}]\n  mirrors = [{servers}]\n", quoted(registry.name.as_str()));
        if registry.is_plain {
            text += "  http = true\n";
        }
    }
    for server in &mirror.servers {
        let mut keys = Vec::new();
        if !server.is_tls {
            keys.push("http = true".to_owned());
        }
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
        if !keys.is_empty() {
            text += &format!("\n[registry.{name}]\n");
            text.extend(keys.iter().map(|key| format!("  {key}\n")));
        }
    }
    Ok(text)
}
