//! The command line as it is typed: structures for `argh`, no behaviour.

use std::net::IpAddr;
use std::path::PathBuf;

use argh::FromArgs;

/// Larder: a pull-through cache for container images that keeps working when the network does not.
#[derive(Debug, FromArgs)]
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
#[derive(Debug, FromArgs)]
#[argh(subcommand)]
pub enum Command {
    /// Serve clients.
    Serve(Serve),
    /// List what is in the cache.
    List(List),
    /// Switch asking upstreams off and on.
    Offline(Offline),
    /// Print the version.
    Version(Version),
}

/// Serve container clients from the cache, and fetch what is missing from its registry.
#[derive(Debug, FromArgs)]
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
}

/// List the images in the cache, whether they are complete, and when they were last pulled. Needs no
/// server, and does not mind one.
#[derive(Debug, FromArgs)]
#[argh(subcommand, name = "list")]
pub struct List {
    /// images to list: a glob on the full reference such as docker.io/library/*, or a regular
    /// expression between slashes (default all)
    #[argh(positional)]
    pub patterns: Vec<String>,
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

/// Switch asking upstreams off (on) and on again (off) for all servers on the cache directory, which
/// heed it within a second. Without a word, say how it is.
#[derive(Debug, FromArgs)]
#[argh(subcommand, name = "offline")]
pub struct Offline {
    /// on: no upstream is asked; off: they are
    #[argh(positional)]
    pub switch: Option<String>,
}

/// Print the version and exit.
#[derive(Debug, FromArgs)]
#[argh(subcommand, name = "version")]
pub struct Version {}
