//! The command line as it is typed: structures for `argh`, no behaviour.

use std::net::IpAddr;
use std::path::PathBuf;

use argh::{ArgsInfo, FromArgs};

/// Larder: a pull-through cache for container images that keeps working when the network does not.
#[derive(Debug, FromArgs, ArgsInfo)]
pub struct Arguments {
    /// configuration file (YAML)
    #[argh(option)]
    pub config_file: Option<PathBuf>,
    /// cache directory (default /var/lib/larder)
    #[argh(option)]
    pub image_path: Option<PathBuf>,
    /// debug, info, warn or error (default info)
    #[argh(option)]
    pub log_level: Option<String>,
    /// log to this file instead of standard error
    #[argh(option)]
    pub log_file: Option<PathBuf>,
    /// what to do
    #[argh(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand)]
pub enum Command {
    /// Serve clients.
    Serve(Serve),
    /// List what is in the cache.
    List(List),
    /// Pull images into the cache.
    Load(Load),
    /// Remove images.
    Prune(Prune),
    /// Keep images from being evicted.
    Pin(Pin),
    /// Let images be evicted again.
    Unpin(Unpin),
    /// Take images from bundles.
    Import(Import),
    /// Write images to a bundle.
    Export(Export),
    /// Check that everything is whole and undamaged.
    Verify(Verify),
    /// Switch asking upstreams off and on.
    Offline(Offline),
    /// Tell container clients to pull through Larder.
    HostsToml(HostsToml),
    /// Look at the configuration.
    Config(Config),
    /// Print what completes commands in a shell.
    Completions(Completions),
    /// Print the manual page.
    Man(Man),
    /// Print the version.
    Version(Version),
}

/// Serve container clients from the cache, and fetch what is missing from its registry.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "serve")]
pub struct Serve {
    /// port to listen on (default 8080)
    #[argh(option)]
    pub port: Option<u16>,
    /// address to listen on (default 0.0.0.0)
    #[argh(option)]
    pub host: Option<IpAddr>,
    /// port for GET /health (default none)
    #[argh(option)]
    pub health: Option<u16>,
    /// port for GET /metrics (default none)
    #[argh(option)]
    pub metrics: Option<u16>,
    /// registry for requests that name none, e.g. docker.io
    #[argh(option)]
    pub default_ns: Option<String>,
    /// milliseconds that an upstream may take to begin its answer (default 20000)
    #[argh(option)]
    pub pull_timeout: Option<u64>,
    /// never ask an upstream: what is not cached is 404
    #[argh(switch)]
    pub air_gapped: bool,
    /// ask upstream on every pull of a tag named latest
    #[argh(switch)]
    pub always_pull_latest: bool,
    /// serve an image of Larder's own, docker.io/library/hello-world:latest, for a smoke test
    #[argh(switch)]
    pub hello_world: bool,
    /// list of images to load when the server starts
    #[argh(option)]
    pub preload_images: Option<PathBuf>,
    /// operating system of images to preload (default linux)
    #[argh(option)]
    pub os: Option<String>,
    /// architecture of images to preload (default this machine's)
    #[argh(option)]
    pub arch: Option<String>,
}

/// List the images in the cache, whether they are complete, and when they were last pulled. Needs no
/// server, and does not mind one.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "list")]
pub struct List {
    /// images to list: references (all tags if there is none), globs such as docker.io/library/*, or /regular
    /// expressions/ (default all)
    #[argh(positional)]
    pub patterns: Vec<String>,
    /// regular expressions, separated by commas
    #[argh(option)]
    pub pattern: Option<String>,
    /// only images that are pinned
    #[argh(switch)]
    pub pinned: bool,
    /// name, size, pulled or created (default name)
    #[argh(option)]
    pub sort: Option<String>,
    /// show what hangs below each image
    #[argh(switch)]
    pub tree: bool,
    /// print a JSON array
    #[argh(switch)]
    pub json: bool,
    /// print the digest of every blob and manifest that is here, one a line, for export --except
    #[argh(switch)]
    pub digests: bool,
}

/// Remove images of which all holds that is said, and the blobs that no other image needs. Beside running
/// servers, which notice nothing: what is pulled meanwhile stays.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "prune")]
pub struct Prune {
    /// images that may go: references, globs on the full reference such as docker.io/library/*, or regular
    /// expressions between slashes
    #[argh(positional)]
    pub images: Vec<String>,
    /// regular expressions, separated by commas
    #[argh(option)]
    pub pattern: Option<String>,
    /// only images that were not pulled for so long, e.g. 30d
    #[argh(option)]
    pub unused_for: Option<String>,
    /// only images that the cache got before a date (2026-11-01), a time (2026-11-01T12:00:00, UTC), or so
    /// long ago (7d)
    #[argh(option)]
    pub created_before: Option<String>,
    /// the same as --created-before
    #[argh(option)]
    pub prune_before: Option<String>,
    /// the same as --created-before
    #[argh(option)]
    pub date: Option<String>,
    /// of them the least recently used, as many
    #[argh(option)]
    pub count: Option<usize>,
    /// pinned images as well
    #[argh(switch)]
    pub include_pinned: bool,
    /// only say what would go
    #[argh(switch)]
    pub dry_run: bool,
    /// print a JSON object
    #[argh(switch)]
    pub json: bool,
}

/// Keep images from being evicted, whatever room is needed. Without any, print what is pinned.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "pin")]
pub struct Pin {
    /// references (all tags if there is none), globs such as docker.io/library/*, or /regular expressions/
    #[argh(positional)]
    pub images: Vec<String>,
    /// file with images, one or more a line, separated by commas (repeatable)
    #[argh(option)]
    pub list: Vec<PathBuf>,
}

/// Let images be evicted again.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "unpin")]
pub struct Unpin {
    /// pins as larder pin prints them, or as they were typed
    #[argh(positional)]
    pub images: Vec<String>,
}

/// Pull images into the cache, from lists or as typed. What is there is not fetched again, what was begun is
/// gone on with, what fails is tried again; exit code 1 if something could not be had.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "load")]
pub struct Load {
    /// images such as alpine:3.20 or quay.io/org/app:v1.*, or @FILE for a list of them or a bundle
    #[argh(positional)]
    pub images: Vec<String>,
    /// lists of images and bundles (as larder import takes them), separated by commas; globs are fine
    #[argh(option)]
    pub image_file: Option<String>,
    /// import a bundle of one image under this name
    #[argh(option)]
    pub resolve_ref: Option<String>,
    /// platform of multi-platform images, e.g. linux/arm64, or all (repeatable; default this machine's)
    #[argh(option)]
    pub platform: Vec<String>,
    /// images at a time (default 4)
    #[argh(option)]
    pub parallel: Option<usize>,
    /// how often an image is tried (default 5)
    #[argh(option)]
    pub attempts: Option<u32>,
    /// print nothing but the summary
    #[argh(switch)]
    pub quiet: bool,
}

/// Switch asking upstreams off (on) and on again (off) for all servers on the cache directory, which
/// heed it within a second. Without a word, say how it is.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "offline")]
pub struct Offline {
    /// on: no upstream is asked; off: they are
    #[argh(positional)]
    pub switch: Option<String>,
}

/// Hash every blob in the cache, keep damaged ones aside, and look whether every image is whole. Exit code 1
/// if something is wrong. Needs no server, and does not mind one.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "verify")]
pub struct Verify {
    /// images to look at: references (all tags if there is none), globs such as docker.io/library/*, or /regular
    /// expressions/ (default all); blobs are hashed whatever images they belong to
    #[argh(positional)]
    pub patterns: Vec<String>,
    /// fetch what is missing or damaged
    #[argh(switch)]
    pub repair: bool,
    /// bytes a second to read at most, e.g. 50MB
    #[argh(option)]
    pub rate: Option<String>,
}

/// Take images into the cache from OCI image layouts and from what docker save, podman save and ctr images
/// export write: tar files (also compressed, also in volumes), directories, or - for standard input.
#[derive(Debug, Clone, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "import")]
pub struct Import {
    /// tar files, directories, first volumes (name.001), or - for standard input
    #[argh(positional)]
    pub paths: Vec<PathBuf>,
    /// import under this name, e.g. docker.io/library/alpine:3; without a tag the bundle's own tag stays
    #[argh(option)]
    pub name: Option<String>,
    /// the same as --name
    #[argh(option)]
    pub resolve_ref: Option<String>,
    /// pin what is imported, so that it is never evicted
    #[argh(switch)]
    pub pin: bool,
}

/// Write images of the cache to a bundle that larder import, skopeo, ctr images import and podman load read.
#[derive(Debug, Clone, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "export")]
pub struct Export {
    /// references (all tags if there is none), globs such as docker.io/library/*, or /regular expressions/
    #[argh(positional)]
    pub images: Vec<String>,
    /// file with images, one or more a line, separated by commas (repeatable)
    #[argh(option)]
    pub list: Vec<PathBuf>,
    /// all images
    #[argh(switch)]
    pub all: bool,
    /// file to write; - is standard output; a name that ends with / is a directory
    #[argh(option)]
    pub output: PathBuf,
    /// tar (default) or dir
    #[argh(option)]
    pub format: Option<String>,
    /// gzip, zstd or none (default: as the output's name says)
    #[argh(option)]
    pub compress: Option<String>,
    /// of multi-platform images only this one, os/architecture[/variant] (repeatable)
    #[argh(option)]
    pub platform: Vec<String>,
    /// file of digests that the far side has: leave out these blobs
    #[argh(option)]
    pub except: Option<PathBuf>,
    /// only images fetched since a date (2026-11-01) or a time ago (7d)
    #[argh(option)]
    pub since: Option<String>,
    /// split into volumes of at most this size, e.g. 4GB
    #[argh(option)]
    pub volume_size: Option<String>,
    /// export what there is of incomplete images
    #[argh(switch)]
    pub partial: bool,
}

/// Print what container clients have to be told so that they pull through Larder, or write it where they
/// look. Registries of the configuration file are told of one by one.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "hosts-toml")]
pub struct HostsToml {
    /// where clients reach Larder, e.g. http://localhost:31080; several are tried in their order (default
    /// this machine, and the port of the configuration)
    #[argh(positional)]
    pub servers: Vec<String>,
    /// containerd (default), crio, podman, docker, k3s, rke2 or buildkit
    #[argh(option, long = "for")]
    pub client: Option<String>,
    /// a registry to tell of by its name (repeatable); containerd and k3s mirror all others as well
    #[argh(option)]
    pub registry: Vec<String>,
    /// on the client's machine, the authority of Larder's certificate (PEM file)
    #[argh(option)]
    pub ca: Option<String>,
    /// on the client's machine, its certificate for Larder (PEM file)
    #[argh(option)]
    pub client_cert: Option<String>,
    /// and the key of that
    #[argh(option)]
    pub client_key: Option<String>,
    /// let clients accept any certificate
    #[argh(switch)]
    pub skip_verify: bool,
    /// how long a client tries to reach Larder before it asks the registry itself, where it can be told
    /// (default 2s)
    #[argh(option)]
    pub dial_timeout: Option<String>,
    /// never ask the registry itself
    #[argh(switch)]
    pub no_fallback: bool,
    /// write it: the client's file or directory, e.g. /etc/containerd/certs.d
    #[argh(option)]
    pub write: Option<PathBuf>,
    /// write also over what Larder has not written, and keep that beside it
    #[argh(switch)]
    pub force: bool,
    /// stay until SIGTERM, and write again what was removed or changed
    #[argh(switch)]
    pub stay: bool,
}

/// Look at the configuration without starting anything.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "config")]
pub struct Config {
    /// what to do with it
    #[argh(subcommand)]
    pub action: ConfigAction,
}

/// What to do with the configuration.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand)]
pub enum ConfigAction {
    /// Say whether a server could start with it.
    Check(ConfigCheck),
    /// Print what is in force.
    Show(ConfigShow),
}

/// Read the configuration and the files that it names, as a server would that starts, and say what is wrong.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "check")]
pub struct ConfigCheck {}

/// Print all settings that are in force, defaults included, as a configuration file that means the same.
/// Passwords and tokens are printed as ***.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "show")]
pub struct ConfigShow {}

/// Print what completes commands in a shell: bash -c 'source <(larder completions bash)', or put it where the
/// shell looks for such files.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "completions")]
pub struct Completions {
    /// bash, zsh or fish
    #[argh(positional)]
    pub shell: String,
}

/// Print the manual page, larder(8), for man -l -.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "man")]
pub struct Man {}

/// Print the version and exit.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "version")]
pub struct Version {}
