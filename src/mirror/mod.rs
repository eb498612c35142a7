//! What container clients have to be told so that they pull through Larder: their own mirror configuration.
//!
//! Pure: a [`Mirror`] and a [`Client`] give [`Document`]s. Each client has its own file here, with what is
//! peculiar about it. This room must not know files, or how Larder itself is configured.

mod buildkit;
mod containerd;
mod docker;
mod k3s;
mod registries_conf;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::oci::Upstream;

/// The first words of every text from here, by which it is known again: what somebody else has written must
/// not be written over.
pub const MARK: &str = "# Written by larder hosts-toml";

/// How long a client tries to reach Larder before it asks the next, if nobody says: on a node's own network
/// an answer takes milliseconds, and a node without Larder must not be slow.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(2);

/// The registries that clients without a mirror for all are told of, beside those that are listed.
const WELL_KNOWN: [&str; 9] = [
    "docker.io",
    "gcr.io",
    "ghcr.io",
    "mcr.microsoft.com",
    "nvcr.io",
    "public.ecr.aws",
    "quay.io",
    "registry.gitlab.com",
    "registry.k8s.io",
];

/// What pulls images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// containerd by itself, as in kubeadm clusters, kind, nerdctl: `certs.d`.
    Containerd,
    /// CRI-O, podman, buildah, skopeo: `registries.conf`.
    RegistriesConf,
    /// Docker: `daemon.json`.
    Docker,
    /// k3s: `registries.yaml`.
    K3s,
    /// RKE2: the same elsewhere.
    Rke2,
    /// BuildKit: `buildkitd.toml`.
    BuildKit,
}

impl Client {
    /// The names by which it is asked for.
    const NAMES: [(&'static str, Client); 9] = [
        ("containerd", Client::Containerd),
        ("crio", Client::RegistriesConf),
        ("podman", Client::RegistriesConf),
        ("buildah", Client::RegistriesConf),
        ("skopeo", Client::RegistriesConf),
        ("docker", Client::Docker),
        ("k3s", Client::K3s),
        ("rke2", Client::Rke2),
        ("buildkit", Client::BuildKit),
    ];

    /// Where it looks for this usually: a file, or a directory for what has several files.
    pub fn usual_place(self) -> &'static str {
        match self {
            Client::Containerd => "/etc/containerd/certs.d",
            Client::RegistriesConf => "/etc/containers/registries.conf.d/50-larder.conf",
            Client::Docker => "/etc/docker/daemon.json",
            Client::K3s => "/etc/rancher/k3s/registries.yaml",
            Client::Rke2 => "/etc/rancher/rke2/registries.yaml",
            Client::BuildKit => "/etc/buildkit/buildkitd.toml",
        }
    }

    /// When it heeds what was written there.
    pub fn heeds(self) -> &'static str {
        match self {
            Client::Containerd => {
                "containerd heeds it at the next pull, if its own configuration names the directory as \
                 config_path"
            }
            Client::RegistriesConf => {
                "podman heeds it at the next pull, CRI-O after systemctl reload crio"
            }
            Client::Docker => {
                "Docker heeds it after systemctl reload docker, for images of docker.io; it does not say \
                 so itself, so Larder wants defaultNs: docker.io"
            }
            Client::K3s => "k3s heeds it after a restart",
            Client::Rke2 => "RKE2 heeds it after a restart",
            Client::BuildKit => "buildkitd heeds it after a restart",
        }
    }
}

impl FromStr for Client {
    type Err = MirrorError;

    fn from_str(text: &str) -> Result<Client, MirrorError> {
        let lower = text.to_ascii_lowercase().replace("cri-o", "crio");
        let known = Client::NAMES.iter().find(|(name, _)| *name == lower);
        known.map(|(_, client)| *client).ok_or_else(|| MirrorError::Client(text.to_owned()))
    }
}

/// Where clients reach Larder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    is_tls: bool,
    /// Host and port, as they were given.
    authority: String,
}

impl Server {
    /// A server by host and port.
    pub fn new(is_tls: bool, authority: String) -> Server {
        Server { is_tls, authority }
    }

    fn url(&self) -> String {
        format!("{}://{}", if self.is_tls { "https" } else { "http" }, self.authority)
    }
}

impl FromStr for Server {
    type Err = MirrorError;

    fn from_str(text: &str) -> Result<Server, MirrorError> {
        let refuse = || MirrorError::Server(text.to_owned());
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let is_tls = match scheme {
            "http" => false,
            "https" => true,
            _ => return Err(refuse()),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        // The grammar of a registry's name is that of an authority.
        authority.parse::<Upstream>().map_err(|_| refuse())?;
        Ok(Server { is_tls, authority: authority.to_owned() })
    }
}

/// A registry that is listed, which is what clients fall back to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registry {
    /// Its name.
    pub name: Upstream,
    /// What it is called in paths, for clients that say it there: a port cannot stand in one.
    pub alias: Option<String>,
    /// Whether it is itself spoken to in the clear.
    pub is_plain: bool,
}

impl Registry {
    /// One that nothing is known of but its name.
    pub fn named(name: Upstream) -> Registry {
        Registry { name, alias: None, is_plain: false }
    }

    /// Where it is itself.
    fn url(&self) -> String {
        // Docker Hub has no other way.
        let is_tls = !self.is_plain || self.name.is_docker_hub();
        Server::new(is_tls, self.name.api_authority().to_owned()).url()
    }
}

/// Certificates, by their paths on the client's machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Trust {
    /// The authority of Larder's certificate, if the client's system does not know it.
    pub ca: Option<String>,
    /// The client's own certificate and its key, if Larder wants to see one.
    pub identity: Option<(String, String)>,
    /// Whether any certificate will do.
    pub is_unverified: bool,
}

/// What becomes of a pull that Larder cannot serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fallback {
    /// The registry itself is asked.
    #[default]
    Registry,
    /// It fails: nothing leaves the cluster but by Larder.
    None,
}

/// What clients are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// Where Larder is; several are tried in their order. Not empty.
    pub servers: Vec<Server>,
    /// The registries that are listed.
    pub registries: Vec<Registry>,
    /// Certificates for TLS.
    pub trust: Trust,
    /// How long a server may take to be reached.
    pub dial_timeout: Duration,
    /// What becomes of what cannot be served.
    pub fallback: Fallback,
}

/// A file for a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Where it belongs below the client's directory; `None` for a client with one file.
    pub path: Option<String>,
    /// What is in it.
    pub text: String,
}

impl Mirror {
    /// What a client is told. For Docker see [`Mirror::daemon_json`] as well.
    ///
    /// # Errors
    /// [`MirrorError`] for what that client cannot be told.
    pub fn documents(&self, client: Client) -> Result<Vec<Document>, MirrorError> {
        self.check()?;
        let one = |text| Ok(vec![Document { path: None, text }]);
        match client {
            Client::Containerd => Ok(containerd::documents(self)),
            Client::RegistriesConf => one(registries_conf::text(self)?),
            Client::Docker => one(docker::merged(self, None)?),
            Client::K3s | Client::Rke2 => one(k3s::text(self)),
            Client::BuildKit => one(buildkit::text(self)?),
        }
    }

    /// Docker's configuration with this in it: it is one file with everything else that Docker is told.
    ///
    /// # Errors
    /// [`MirrorError`] if what there is is not understood.
    pub fn daemon_json(&self, existing: &str) -> Result<String, MirrorError> {
        self.check()?;
        docker::merged(self, Some(existing))
    }

    fn check(&self) -> Result<(), MirrorError> {
        let is_clear = self.servers.iter().any(|server| !server.is_tls);
        match is_clear && self.trust != Trust::default() {
            true => Err(MirrorError::TrustInTheClear),
            false => Ok(()),
        }
    }

    /// The registries that a client is told of one by one.
    fn one_by_one(&self) -> Vec<Registry> {
        let mut registries = self.registries.clone();
        // Names of ours, which are names.
        let known = WELL_KNOWN.iter().filter_map(|name| name.parse().ok().map(Registry::named));
        for known in known {
            if !registries.iter().any(|listed| listed.name == known.name) {
                registries.push(known);
            }
        }
        registries
    }
}

/// Where a client that says the registry in the path finds it on a server.
fn path_on(server: &Server, registry: &Registry) -> Result<String, MirrorError> {
    let name = registry.name.as_str();
    match (&registry.alias, name.contains(':')) {
        (Some(alias), true) => Ok(format!("{}/{alias}", server.authority)),
        (None, true) => Err(MirrorError::NoAlias(registry.name.clone())),
        (_, false) => Ok(format!("{}/{name}", server.authority)),
    }
}

/// A string as TOML, YAML and JSON all read it.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// How a text begins for a client that is told of registries one by one.
fn head_of_some() -> String {
    format!(
        "{MARK}, which writes over it. A registry that is not here is not mirrored:\n\
         # repeat the command with --registry NAME.\n"
    )
}

/// Why a client cannot be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MirrorError {
    /// No such client.
    Client(String),
    /// No address.
    Server(String),
    /// Certificates, for a server without TLS.
    TrustInTheClear,
    /// A port cannot stand in a path.
    NoAlias(Upstream),
    /// What Docker is told already is no JSON object, or not of the form that Docker wants.
    DaemonJson(String),
    /// Docker always falls back.
    AlwaysFallsBack,
}

impl fmt::Display for MirrorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MirrorError::Client(text) => {
                let names: Vec<&str> = Client::NAMES.iter().map(|(name, _)| *name).collect();
                write!(f, "{text} is none of the clients known here: {}", names.join(", "))
            }
            MirrorError::Server(text) => write!(
                f,
                "{text} is no address of a server, which is http://HOST:PORT or https://HOST:PORT"
            ),
            MirrorError::TrustInTheClear => f.write_str(
                "certificates are for https://, and a server is given as http://; leave them out, or say https://",
            ),
            MirrorError::NoAlias(name) => write!(
                f,
                "{name} has a port, which cannot stand in an image's path, and these clients say the \
                 registry there; give it an alias in Larder's configuration (registries[].aliases)"
            ),
            MirrorError::DaemonJson(reason) => {
                write!(f, "what Docker is told already cannot be added to: {reason}")
            }
            MirrorError::AlwaysFallsBack => f.write_str(
                "Docker and BuildKit always fall back to the registry; leave out --no-fallback, or keep \
                 them from reaching it",
            ),
        }
    }
}

impl std::error::Error for MirrorError {}

#[cfg(test)]
mod tests;
