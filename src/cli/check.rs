//! The command line of `larder check`.

use std::path::PathBuf;

use argh::{ArgsInfo, FromArgs};

/// Try what a pull needs, step by step: name, addresses, proxy, TLS and its certificate, the registry's API, and with an
/// image the login, the remaining rate limit, ranges and the throughput of a layer. Says what to do about each failure,
/// and exits with 1 if there is one. Uses no content of the cache, and counts as one pull for the registry. With --server,
/// pulls all of an image from a running Larder, as container clients do, and compares it with its digests.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "check")]
pub struct Check {
    /// registries such as docker.io, or images such as ghcr.io/org/app:1 (default: all registries in the
    /// configuration, the parents, the bucket, and the issuers of tokens)
    #[argh(positional)]
    pub targets: Vec<String>,
    /// URL under which clients reach a Larder, e.g. http://localhost:31080: pull from there, for this machine's
    /// platform; needs images as targets
    #[argh(option)]
    pub server: Option<String>,
    /// CA certificate for the certificate of --server (PEM)
    #[argh(option)]
    pub ca: Option<PathBuf>,
    /// client certificate for --server (PEM)
    #[argh(option)]
    pub client_cert: Option<PathBuf>,
    /// key of --client-cert (PEM)
    #[argh(option)]
    pub client_key: Option<PathBuf>,
    /// do not verify the certificate of --server
    #[argh(switch)]
    pub skip_verify: bool,
    /// user for --server
    #[argh(option)]
    pub user: Option<String>,
    /// file with the password of --user
    #[argh(option)]
    pub password_file: Option<PathBuf>,
    /// print a JSON array
    #[argh(switch)]
    pub json: bool,
}
