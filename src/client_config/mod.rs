//! The mirror configuration that makes container clients pull through Larder.
//!
//! Pure functions turn a [`Mirror`] and a [`Client`] into [`Document`]s. Each client's format and its
//! peculiarities are in a file of their own. This module must not access files, or know how Larder itself is
//! configured.

mod buildkit;
mod containerd;
mod docker;
mod hosts_file;
mod k3s;
mod kubelet;
mod registries_conf;

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::time::Duration;

use crate::oci::{self, Upstream};

/// The beginning of every generated text. It identifies files that Larder may overwrite whatever they contain.
pub const MARK: &str = "# Written by larder hosts-toml";

/// The default for how long a client tries to reach Larder before it tries the next server: on a node's own
/// network a connection takes milliseconds, and pulls must not become slow where Larder is down.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(2);

/// The default for what the claim `aud` of a service account's token contains.
pub const AUDIENCE: &str = "larder";

/// A program that pulls images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// containerd, as in kubeadm clusters, kind and nerdctl: `certs.d`.
    Containerd,
    /// CRI-O, podman, buildah, skopeo: `registries.conf`.
    RegistriesConf,
    /// Docker: `daemon.json`.
    Docker,
    /// k3s: `registries.yaml`.
    K3s,
    /// RKE2: the format of k3s at another path.
    Rke2,
    /// BuildKit: `buildkitd.toml`.
    BuildKit,
    /// The kubelet: credential providers. It needs another client's configuration in addition.
    Kubelet,
}

impl Client {
    /// The names on the command line.
    const NAMES: [(&'static str, Client); 10] = [
        ("containerd", Client::Containerd),
        ("crio", Client::RegistriesConf),
        ("podman", Client::RegistriesConf),
        ("buildah", Client::RegistriesConf),
        ("skopeo", Client::RegistriesConf),
        ("docker", Client::Docker),
        ("k3s", Client::K3s),
        ("rke2", Client::Rke2),
        ("buildkit", Client::BuildKit),
        ("kubelet", Client::Kubelet),
    ];

    /// The usual path of its configuration: a file, or a directory for clients that read several files.
    pub fn usual_place(self) -> &'static str {
        match self {
            Client::Containerd => "/etc/containerd/certs.d",
            Client::RegistriesConf => "/etc/containers/registries.conf.d/50-larder.conf",
            Client::Docker => "/etc/docker/daemon.json",
            Client::K3s => "/etc/rancher/k3s/registries.yaml",
            Client::Rke2 => "/etc/rancher/rke2/registries.yaml",
            Client::BuildKit => "/etc/buildkit/buildkitd.toml",
            Client::Kubelet => "/etc/kubernetes/credential-providers.yaml",
        }
    }

    /// When the client reads the written configuration, for the user.
    pub fn when_it_takes_effect(self) -> &'static str {
        match self {
            Client::Containerd => {
                "containerd uses it from the next pull on, if config_path in its own configuration is set \
                 to this directory"
            }
            Client::RegistriesConf => {
                "podman uses it from the next pull on, CRI-O after systemctl reload crio"
            }
            Client::Docker => {
                "Docker uses it after systemctl reload docker, for images of docker.io only; its requests do \
                 not name the registry, so set defaultNs: docker.io in Larder's configuration"
            }
            Client::K3s => "k3s uses it after a restart",
            Client::Rke2 => "RKE2 uses it after a restart",
            Client::BuildKit => "buildkitd uses it after a restart",
            Client::Kubelet => {
                "the kubelet uses it after a restart with --image-credential-provider-config and \
                 --image-credential-provider-bin-dir; configure the container runtime as well"
            }
        }
    }
}

impl FromStr for Client {
    type Err = MirrorError;

    fn from_str(text: &str) -> Result<Client, MirrorError> {
        let lower = text.to_ascii_lowercase().replace("cri-o", "crio");
        let known = Client::NAMES.iter().find(|(name, _)| *name == lower);
        known.map(|(_, client)| *client).ok_or_else(|| MirrorError::Client(oci::quoted(text)))
    }
}

/// Where clients reach Larder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    is_tls: bool,
    /// Host and port as given.
    authority: String,
}

impl Server {
    /// A server with this host and port.
    pub fn new(is_tls: bool, authority: String) -> Server {
        Server { is_tls, authority }
    }

    /// Whether clients use TLS.
    pub fn is_tls(&self) -> bool {
        self.is_tls
    }

    /// Host and port.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("{}://{}", if self.is_tls { "https" } else { "http" }, self.authority)
    }
}

impl FromStr for Server {
    type Err = MirrorError;

    fn from_str(text: &str) -> Result<Server, MirrorError> {
        let refuse = || MirrorError::Server(oci::quoted(text));
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let is_tls = match scheme {
            "http" => false,
            "https" => true,
            _ => return Err(refuse()),
        };
        let authority = without_ipv4_brackets(rest.strip_suffix('/').unwrap_or(rest));
        // The grammar of a registry's name is the grammar of an authority.
        authority.parse::<Upstream>().map_err(|_| refuse())?;
        Ok(Server { is_tls, authority })
    }
}

/// `[10.0.0.5]:5000` is `10.0.0.5:5000`: a pod template inserts the address of a node without knowing its family, and
/// IPv6 requires the brackets.
fn without_ipv4_brackets(authority: &str) -> String {
    let inner = authority.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let is_ipv4 = |(host, port): &(&str, &str)| {
        host.parse::<Ipv4Addr>().is_ok() && (port.is_empty() || port.starts_with(':'))
    };
    match inner.filter(is_ipv4) {
        Some((host, port)) => format!("{host}{port}"),
        None => authority.to_owned(),
    }
}

/// A listed registry, to which clients fall back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registry {
    /// Its name.
    pub name: Upstream,
    /// Its name in paths, for clients that name the registry there: a path cannot contain a port.
    pub alias: Option<String>,
    /// Whether the registry is reached over plain HTTP.
    pub is_plain: bool,
}

impl Registry {
    /// A registry of which only the name is known.
    pub fn named(name: Upstream) -> Registry {
        Registry { name, alias: None, is_plain: false }
    }

    /// The URL of the registry itself.
    fn url(&self) -> String {
        // Docker Hub supports nothing but TLS.
        let is_tls = !self.is_plain || self.name.is_docker_hub();
        Server::new(is_tls, self.name.api_authority().to_owned()).url()
    }
}

/// Certificates, by their paths on the client's machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Trust {
    /// The CA of Larder's certificate, if the client's system does not trust it already.
    pub ca: Option<String>,
    /// The client certificate and its key, if Larder requires one.
    pub identity: Option<(String, String)>,
    /// Whether the client accepts any certificate.
    pub is_unverified: bool,
}

/// What a client does when Larder cannot serve a pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fallback {
    /// It pulls from the registry itself.
    #[default]
    Registry,
    /// The pull fails: Larder is the only path out of the cluster.
    None,
}

/// The configuration of clients, independent of their formats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// Larder's servers, tried in order. Not empty.
    pub servers: Vec<Server>,
    /// The listed registries.
    pub registries: Vec<Registry>,
    /// Certificates for TLS.
    pub trust: Trust,
    /// How long a client tries to connect to a server.
    pub dial_timeout: Duration,
    /// What a client does when Larder cannot serve a pull.
    pub fallback: Fallback,
    /// For which audience the kubelet requests tokens.
    pub audience: String,
}

/// A configuration file of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Its path in the client's directory; `None` for a client with a single file.
    pub path: Option<String>,
    /// Its content.
    pub text: String,
}

impl Mirror {
    /// The configuration files of a client. For Docker, see also [`Mirror::daemon_json`].
    ///
    /// # Errors
    /// [`MirrorError`] for settings that the client does not support.
    pub fn documents(&self, client: Client) -> Result<Vec<Document>, MirrorError> {
        self.check()?;
        let one = |text| Ok(vec![Document { path: None, text }]);
        match client {
            Client::Containerd => Ok(containerd::documents(self)),
            Client::RegistriesConf => one(registries_conf::text(self)?),
            Client::Docker => one(docker::merged(self, None)?),
            Client::K3s | Client::Rke2 => one(k3s::text(self)),
            Client::BuildKit => one(buildkit::text(self)?),
            Client::Kubelet => one(kubelet::text(self)?),
        }
    }

    /// Docker's existing configuration with the mirrors added: Docker has a single file for all settings.
    ///
    /// # Errors
    /// [`MirrorError`] if the existing configuration cannot be parsed.
    pub fn daemon_json(&self, existing: &str) -> Result<String, MirrorError> {
        self.check()?;
        docker::merged(self, Some(existing))
    }

    /// Why an existing file without [`MARK`] would lose something if the document replaced it; `None` if it
    /// has only what the document has too. Only containerd's format is understood.
    pub fn lost(&self, client: Client, document: &Document, existing: &str) -> Option<String> {
        match client {
            Client::Containerd => hosts_file::lost(self, existing, &document.text),
            _ => Some("its content is not compared".to_owned()),
        }
    }

    fn check(&self) -> Result<(), MirrorError> {
        let is_plain = self.servers.iter().any(|server| !server.is_tls);
        match is_plain && self.trust != Trust::default() {
            true => Err(MirrorError::TrustInTheClear),
            false => Ok(()),
        }
    }

    /// The registries for clients that need an entry for each registry.
    fn explicit_registries(&self) -> Vec<Registry> {
        let mut registries = self.registries.clone();
        // For clients that cannot mirror all registries with one entry. All of these constants are valid names.
        let known =
            Upstream::WELL_KNOWN.iter().filter_map(|name| name.parse().ok().map(Registry::named));
        for known in known {
            if !registries.iter().any(|listed| listed.name == known.name) {
                registries.push(known);
            }
        }
        registries
    }
}

/// The location of a registry on a server, for clients that name the registry in the path.
fn path_on(server: &Server, registry: &Registry) -> Result<String, MirrorError> {
    let name = registry.name.as_str();
    match (&registry.alias, name.contains(':')) {
        (Some(alias), true) => Ok(format!("{}/{alias}", server.authority)),
        (None, true) => Err(MirrorError::NoAlias(registry.name.clone())),
        (_, false) => Ok(format!("{}/{name}", server.authority)),
    }
}

/// A quoted string that is valid in TOML, YAML and JSON.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The first lines for clients that need an entry for each registry.
fn explicit_header() -> String {
    format!(
        "{MARK}, which overwrites this file. Registries without an entry are not\n\
         # mirrored: to add one, repeat the command with --registry NAME.\n"
    )
}

/// Why a client's configuration cannot be generated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MirrorError {
    /// Unknown client.
    Client(String),
    /// Invalid server address.
    Server(String),
    /// Certificates were given for a server without TLS.
    TrustInTheClear,
    /// The client names the registry in the path, which cannot contain a port.
    NoAlias(Upstream),
    /// Docker's existing configuration is not a JSON object, or not in the form that Docker expects.
    DaemonJson(String),
    /// Docker always falls back.
    AlwaysFallsBack,
    /// There is no audience.
    Audience,
    /// No registry is named for which tokens are good.
    NoRegistry,
}

impl fmt::Display for MirrorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MirrorError::Client(text) => {
                let names: Vec<&str> = Client::NAMES.iter().map(|(name, _)| *name).collect();
                write!(f, "unknown client {text}; use one of {}", names.join(", "))
            }
            MirrorError::Server(text) => write!(
                f,
                "{text} is not a server address; use http://HOST:PORT or https://HOST:PORT"
            ),
            MirrorError::TrustInTheClear => f.write_str(
                "certificates require https://, but a server has http://; use https://, or omit the certificate options",
            ),
            MirrorError::NoAlias(name) => write!(
                f,
                "{name} has a port, and this client names the registry in the image's path, which cannot \
                 contain a port; set an alias in Larder's configuration (registries[].aliases)"
            ),
            MirrorError::DaemonJson(reason) => {
                write!(f, "cannot add to Docker's existing configuration: {reason}")
            }
            MirrorError::NoRegistry => f.write_str(
                "name the registries that the nodes reach through Larder alone, which get the tokens of pods (--registry)",
            ),
            MirrorError::Audience => {
                f.write_str("--audience is empty; use that of serverAuthConfig.oidc, such as larder")
            }
            MirrorError::AlwaysFallsBack => f.write_str(
                "Docker and BuildKit always fall back to the registry; omit --no-fallback, or block their \
                 access to the registry in the network",
            ),
        }
    }
}

impl std::error::Error for MirrorError {}

#[cfg(test)]
mod tests;
