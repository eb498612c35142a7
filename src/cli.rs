//! The command line: the structures that `argh` parses, without behaviour.

mod access;
mod check;
mod credential_provider;
mod of_server;
mod tags;

use std::path::PathBuf;

use argh::{ArgsInfo, FromArgs};

pub use access::{Access, AccessAction, AccessForget, AccessList};
pub use check::Check;
pub use credential_provider::CredentialProvider;
pub use of_server::{Peers, Sync, SyncAction, SyncNow};
pub use tags::{Tags, TagsAccept, TagsAction, TagsList, TagsReject};

/// Larder: a pull-through cache for container images that keeps working when the network fails.
#[derive(Debug, FromArgs, ArgsInfo)]
pub struct Arguments {
    /// configuration file (YAML)
    #[argh(option, short = 'c')]
    pub config_file: Option<PathBuf>,
    /// cache directory (default /var/lib/larder)
    #[argh(option)]
    pub image_path: Option<PathBuf>,
    /// debug, info, warn or error (default info)
    #[argh(option)]
    pub log_level: Option<String>,
    /// text or json (default text)
    #[argh(option)]
    pub log_format: Option<String>,
    /// log to this file instead of standard error
    #[argh(option)]
    pub log_file: Option<PathBuf>,
    /// same as --log-level debug
    #[argh(switch, short = 'v')]
    pub verbose: bool,
    /// the command to run
    #[argh(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand)]
pub enum Command {
    /// Serve clients.
    Serve(Serve),
    /// List cached images.
    List(List),
    /// Pull images into the cache.
    Load(Load),
    /// List the images that Kubernetes manifests and compose files name.
    Images(Images),
    /// Remove images.
    Prune(Prune),
    /// Keep images from being evicted.
    Pin(Pin),
    /// Let images be evicted again.
    Unpin(Unpin),
    /// Import images from bundles.
    Import(Import),
    /// Export images to a bundle.
    Export(Export),
    /// Check the cache for damage and missing content.
    Verify(Verify),
    /// Check whether registries, parents, the bucket and issuers of tokens can be used.
    Check(Check),
    /// List tags that have moved, and accept or reject moves.
    Tags(Tags),
    /// List or forget what registries let users pull.
    Access(Access),
    /// Turn offline mode on or off.
    Offline(Offline),
    /// Print the members of the group and their state.
    Peers(Peers),
    /// Show which images are kept present, or load them now.
    Sync(Sync),
    /// Configure container clients to pull through Larder.
    HostsToml(HostsToml),
    /// Give the kubelet tokens of service accounts as passwords for Larder.
    CredentialProvider(CredentialProvider),
    /// Check or print the configuration.
    Config(Config),
    /// Print shell completions.
    Completions(Completions),
    /// Print the manual page.
    Man(Man),
    /// Print the version.
    Version(Version),
}

/// Serve container clients from the cache, and fetch what is missing from the registries.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "serve")]
pub struct Serve {
    /// port to listen on (default 8080)
    #[argh(option)]
    pub port: Option<String>,
    /// address to listen on, or localhost (default 0.0.0.0)
    #[argh(option)]
    pub host: Option<String>,
    /// port for GET /health (default: none)
    #[argh(option)]
    pub health: Option<String>,
    /// port for GET /metrics (default: none)
    #[argh(option)]
    pub metrics: Option<String>,
    /// registry for requests that do not name one, e.g. docker.io
    #[argh(option)]
    pub default_ns: Option<String>,
    /// how long to wait for the first byte of a registry's response, e.g. 30s; without a unit, milliseconds
    /// (default 20s)
    #[argh(option)]
    pub pull_timeout: Option<String>,
    /// never contact a registry; answer 404 for content that is not cached
    #[argh(switch)]
    pub air_gapped: bool,
    /// check the registry on every pull of the tag latest
    #[argh(switch)]
    pub always_pull_latest: bool,
    /// add a built-in docker.io/library/hello-world:latest to the cache, for smoke tests
    #[argh(switch)]
    pub hello_world: bool,
    /// file that lists images to load when the server starts
    #[argh(option)]
    pub preload_images: Option<PathBuf>,
    /// operating system of preloaded images (default linux)
    #[argh(option)]
    pub os: Option<String>,
    /// architecture of preloaded images (default: this machine's)
    #[argh(option)]
    pub arch: Option<String>,
}

/// List cached images, whether they are complete, and when they were last pulled. Works with or without
/// a running server.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "list")]
pub struct List {
    /// images to list: references (without a tag: all tags), globs such as docker.io/library/*, or
    /// /regular expressions/ (default: all images)
    #[argh(positional)]
    pub patterns: Vec<String>,
    /// comma-separated regular expressions; matching images are selected
    #[argh(option)]
    pub pattern: Option<String>,
    /// list only pinned images
    #[argh(switch)]
    pub pinned: bool,
    /// sort by name, size, pulled or created (default name)
    #[argh(option)]
    pub sort: Option<String>,
    /// show the manifests and blobs of each image as a tree
    #[argh(switch)]
    pub tree: bool,
    /// print a JSON array
    #[argh(switch)]
    pub json: bool,
    /// print only the names, one per line
    #[argh(switch, short = 'q')]
    pub quiet: bool,
    /// print the digests of all cached blobs and manifests, one per line, for export --except
    #[argh(switch)]
    pub digests: bool,
    /// list the images in the bucket (objectStore in the configuration)
    #[argh(switch)]
    pub bucket: bool,
}

/// Remove images that match all of the given conditions, and the blobs that no other image needs. Safe
/// while servers run on the same cache: images pulled in the meantime are kept.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "prune")]
pub struct Prune {
    /// images to remove: references (without a tag: all tags), globs such as docker.io/library/*, or
    /// /regular expressions/
    #[argh(positional)]
    pub images: Vec<String>,
    /// comma-separated regular expressions; matching images are selected
    #[argh(option)]
    pub pattern: Option<String>,
    /// only images that have not been pulled for this long, e.g. 30d
    #[argh(option)]
    pub unused_for: Option<String>,
    /// only images that were fetched before a date (2026-11-01) or time (2026-11-01T12:00:00, UTC), or
    /// longer ago than a duration (7d)
    #[argh(option)]
    pub created_before: Option<String>,
    /// same as --created-before
    #[argh(option)]
    pub prune_before: Option<String>,
    /// same as --created-before
    #[argh(option)]
    pub date: Option<String>,
    /// remove at most this many images, least recently used first
    #[argh(option)]
    pub count: Option<String>,
    /// remove from the bucket (objectStore in the configuration) what exceeds its maxSize and unusedFor, now; all
    /// other conditions are for the cache directory. Takes ten minutes, unless with --dry-run
    #[argh(switch)]
    pub bucket: bool,
    /// also remove pinned images
    #[argh(switch)]
    pub include_pinned: bool,
    /// print what would be removed, and remove nothing
    #[argh(switch)]
    pub dry_run: bool,
    /// print a JSON object
    #[argh(switch)]
    pub json: bool,
}

/// Pin images, so that they are never evicted. Without arguments, print all pins.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "pin")]
pub struct Pin {
    /// references (without a tag: all tags), globs such as docker.io/library/*, or /regular expressions/
    #[argh(positional)]
    pub images: Vec<String>,
    /// file that lists images, one per line or separated by commas (repeatable)
    #[argh(option)]
    pub list: Vec<PathBuf>,
    /// print all pins as a JSON array
    #[argh(switch)]
    pub json: bool,
}

/// Remove pins, so that the images may be evicted again.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "unpin")]
pub struct Unpin {
    /// pins as printed by larder pin, or as given to it
    #[argh(positional)]
    pub images: Vec<String>,
}

/// Pull images into the cache. Skips what is cached, resumes partial downloads, retries failures. Exits
/// with 1 if an image could not be loaded.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "load")]
pub struct Load {
    /// images such as alpine:3.20 or quay.io/org/app:v1.*, or @FILE for an image list or a bundle
    #[argh(positional)]
    pub images: Vec<String>,
    /// comma-separated image lists and bundles (see larder import); globs are allowed
    #[argh(option)]
    pub image_file: Option<String>,
    /// file or directory of Kubernetes manifests or compose files whose images are loaded, - for standard input
    /// (repeatable; see larder images)
    #[argh(option)]
    pub from: Vec<PathBuf>,
    /// name for the image of a single-image bundle
    #[argh(option)]
    pub resolve_ref: Option<String>,
    /// platform to load of multi-platform images, e.g. linux/arm64, or all (repeatable; default: this
    /// machine's)
    #[argh(option)]
    pub platform: Vec<String>,
    /// number of images to load at the same time (default 4)
    #[argh(option)]
    pub parallel: Option<String>,
    /// number of attempts for each image (default 5)
    #[argh(option)]
    pub attempts: Option<String>,
    /// print only errors
    #[argh(switch, short = 'q')]
    pub quiet: bool,
}

/// List the images in Kubernetes manifests, the output of helm template, kustomizations, compose files and custom
/// resources, with full names, as an image list for larder load. Exits with 1 if there are none, or if a file could
/// not be read.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "images")]
pub struct Images {
    /// files in YAML or JSON, directories of them, - for standard input
    #[argh(positional)]
    pub files: Vec<PathBuf>,
    /// also read repository and tag pairs, as in the values file of a Helm chart
    #[argh(switch)]
    pub values: bool,
    /// print a JSON array
    #[argh(switch)]
    pub json: bool,
}

/// Turn offline mode on or off for all servers on the cache directory; without an argument, show its
/// state. Running servers notice a change within a second.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "offline")]
pub struct Offline {
    /// on: never contact registries; off: contact them as usual
    #[argh(positional)]
    pub switch: Option<String>,
}

/// Hash every blob in the cache, move damaged ones to quarantine, and check that every image is complete.
/// Exits with 1 if problems remain. Works with or without a running server.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "verify")]
pub struct Verify {
    /// images to check: references (without a tag: all tags), globs such as docker.io/library/*, or
    /// /regular expressions/ (default: all images); all blobs are hashed in any case
    #[argh(positional)]
    pub patterns: Vec<String>,
    /// fetch missing and damaged content again
    #[argh(switch)]
    pub repair: bool,
    /// limit on the bytes read per second, with a unit, e.g. 50MB
    #[argh(option)]
    pub rate: Option<String>,
    /// print only problems
    #[argh(switch, short = 'q')]
    pub quiet: bool,
}

/// Import images from OCI image layouts and from the output of docker save, podman save and ctr images
/// export. Reads tar files (also compressed or split into volumes), directories, or standard input (-).
#[derive(Debug, Clone, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "import")]
pub struct Import {
    /// tar files, directories, the first of several volumes (name.001), - for standard input, or
    /// s3://BUCKET/PREFIX in the store of objectStore
    #[argh(positional)]
    pub paths: Vec<PathBuf>,
    /// name for the imported image, e.g. docker.io/library/alpine:3; without a tag, the bundle's tag is kept
    #[argh(option)]
    pub name: Option<String>,
    /// same as --name
    #[argh(option)]
    pub resolve_ref: Option<String>,
    /// pin the imported images, so that they are never evicted
    #[argh(switch)]
    pub pin: bool,
    /// print only errors
    #[argh(switch, short = 'q')]
    pub quiet: bool,
}

/// Export cached images to a bundle that larder import, skopeo, ctr images import and podman load can read.
#[derive(Debug, Clone, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "export")]
pub struct Export {
    /// references (without a tag: all tags), globs such as docker.io/library/*, or /regular expressions/
    #[argh(positional)]
    pub images: Vec<String>,
    /// file that lists images, one per line or separated by commas (repeatable)
    #[argh(option)]
    pub list: Vec<PathBuf>,
    /// export all images
    #[argh(switch)]
    pub all: bool,
    /// file to write, - for standard output, a directory if the name ends with /, or s3://BUCKET/PREFIX in
    /// the store of objectStore
    #[argh(option, short = 'o')]
    pub output: PathBuf,
    /// tar (default) or dir
    #[argh(option)]
    pub format: Option<String>,
    /// gzip, zstd or none (default: by the extension of the output file)
    #[argh(option)]
    pub compress: Option<String>,
    /// export only this platform of multi-platform images, os/architecture[/variant] (repeatable)
    #[argh(option)]
    pub platform: Vec<String>,
    /// file of digests that the destination already has; these blobs are left out
    #[argh(option)]
    pub except: Option<PathBuf>,
    /// only images fetched since a date (2026-11-01), or within a duration (7d)
    #[argh(option)]
    pub since: Option<String>,
    /// split the output into volumes of at most this size, e.g. 4GB
    #[argh(option)]
    pub volume_size: Option<String>,
    /// export incomplete images as far as they are cached
    #[argh(switch)]
    pub partial: bool,
    /// print only errors
    #[argh(switch, short = 'q')]
    pub quiet: bool,
}

/// Print or write the configuration that makes container clients pull through Larder. Each registry in
/// Larder's configuration file gets its own entry.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "hosts-toml")]
pub struct HostsToml {
    /// URLs under which clients reach Larder, e.g. http://localhost:31080, tried in order (default: this
    /// machine, and the configured port)
    #[argh(positional)]
    pub servers: Vec<String>,
    /// the client: containerd (default), crio, podman, docker, k3s, rke2, buildkit, or kubelet (only credentials:
    /// serverAuthConfig.oidc)
    #[argh(option, long = "for")]
    pub client: Option<String>,
    /// a registry to mirror (repeatable); for containerd and k3s, all other registries are mirrored too
    #[argh(option)]
    pub registry: Vec<String>,
    /// for kubelet: what serverAuthConfig.oidc[].audience is (default larder)
    #[argh(option)]
    pub audience: Option<String>,
    /// path on the client's machine to the CA certificate for Larder's certificate (PEM)
    #[argh(option)]
    pub ca: Option<String>,
    /// path on the client's machine to its client certificate for Larder (PEM)
    #[argh(option)]
    pub client_cert: Option<String>,
    /// path on the client's machine to the key of --client-cert (PEM)
    #[argh(option)]
    pub client_key: Option<String>,
    /// do not verify Larder's certificate
    #[argh(switch)]
    pub skip_verify: bool,
    /// how long a client tries to reach Larder before it falls back to the registry, where the client
    /// supports it (default 2s)
    #[argh(option)]
    pub dial_timeout: Option<String>,
    /// never fall back to the registry
    #[argh(switch)]
    pub no_fallback: bool,
    /// write to the client's file or directory, e.g. /etc/containerd/certs.d
    #[argh(option)]
    pub write: Option<PathBuf>,
    /// overwrite files that Larder did not write, and keep a copy of each
    #[argh(switch)]
    pub force: bool,
    /// keep running until SIGTERM, and restore files that are removed or changed
    #[argh(switch)]
    pub stay: bool,
}

/// Check or print the configuration without starting a server.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "config")]
pub struct Config {
    /// the command to run
    #[argh(subcommand)]
    pub action: ConfigAction,
}

/// The commands on the configuration.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand)]
pub enum ConfigAction {
    /// Check whether a server can start with it.
    Check(ConfigCheck),
    /// Print the settings in effect.
    Show(ConfigShow),
}

/// Read the configuration and the files it refers to, as a starting server would, and report problems.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "check")]
pub struct ConfigCheck {}

/// Print the settings in effect, including defaults, as a configuration file. Passwords and tokens are
/// printed as ***.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "show")]
pub struct ConfigShow {}

/// Print shell completions. Load them with source <(larder completions bash), or save them in your shell's
/// directory for completions.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "completions")]
pub struct Completions {
    /// bash, zsh or fish
    #[argh(positional)]
    pub shell: String,
}

/// Print the manual page larder(8). To read it: larder man | man -l -
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "man")]
pub struct Man {}

/// Print the version and exit.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "version")]
pub struct Version {}
