//! Commands that ask the running server.

use argh::{ArgsInfo, FromArgs};

/// Print the members of the group (peers in the configuration) as the running server sees them: their version,
/// whether they answer, and settings in which they differ. Asks the server at its management port.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "peers")]
pub struct Peers {
    /// a digest or an image: also print in which order the members are responsible for it; the first one asks
    /// the registry
    #[argh(positional)]
    pub content: Option<String>,
    /// print a JSON array
    #[argh(switch)]
    pub json: bool,
}

/// Print what the running server keeps present (sync in the configuration): the state of each entry, how many of its
/// images are cached or missing, and when it runs next. Asks the server at its management port.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "sync")]
pub struct Sync {
    /// print a JSON object
    #[argh(switch)]
    pub json: bool,
    /// the command to run
    #[argh(subcommand)]
    pub action: Option<SyncAction>,
}

/// What can be done with the entries of sync.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand)]
pub enum SyncAction {
    /// Load the images now.
    Now(SyncNow),
}

/// Load the images now, and wait until that has ended. Needs management.tokenFile. Exits with 1 if images are missing.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "now")]
pub struct SyncNow {
    /// entries of sync (default: all entries)
    #[argh(positional)]
    pub names: Vec<String>,
}
