//! k3s and RKE2: `registries.yaml`, from which they generate containerd's configuration.
//!
//! `"*"` applies to every registry without an entry, since v1.26.13, v1.27.10, v1.28.6 and v1.29.1. There is no
//! setting for the dial timeout, and falling back is disabled in the server's own configuration. The fallback
//! uses HTTPS, so a registry with plain HTTP is listed as the last of its own endpoints.

use super::{Fallback, MARK, Mirror, Registry, Server, quoted};

pub(super) fn text(mirror: &Mirror) -> String {
    let mut text = format!("{MARK}, which overwrites this file.\n");
    if mirror.fallback == Fallback::None {
        text += "# To disable the fallback, set disable-default-registry-endpoint: true in config.yaml.\n";
    }
    text += "mirrors:\n";
    let urls: Vec<String> = mirror.servers.iter().map(Server::url).collect();
    let listed = mirror.registries.iter().map(|registry| (registry.name.as_str(), Some(registry)));
    for (name, registry) in std::iter::once(("*", None)).chain(listed) {
        text += &format!("  {}:\n    endpoint:\n", quoted(name));
        let is_last = |it: &&Registry| it.is_plain && mirror.fallback == Fallback::Registry;
        let last = registry.filter(is_last).map(Registry::url);
        let endpoints = urls.iter().chain(&last);
        text.extend(endpoints.map(|url| format!("      - {}\n", quoted(url))));
    }
    text + &configs(mirror)
}

fn configs(mirror: &Mirror) -> String {
    let trust = &mirror.trust;
    let mut keys = Vec::new();
    keys.extend(trust.ca.iter().map(|ca| format!("ca_file: {}", quoted(ca))));
    if let Some((cert, key)) = &trust.identity {
        keys.push(format!("cert_file: {}", quoted(cert)));
        keys.push(format!("key_file: {}", quoted(key)));
    }
    keys.extend(trust.is_unverified.then(|| "insecure_skip_verify: true".to_owned()));
    if keys.is_empty() {
        return String::new();
    }
    let mut text = "configs:\n".to_owned();
    for server in &mirror.servers {
        text += &format!("  {}:\n    tls:\n", quoted(&server.authority));
        text.extend(keys.iter().map(|key| format!("      {key}\n")));
    }
    text
}
