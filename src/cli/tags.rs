//! `larder tags`.

use argh::{ArgsInfo, FromArgs};

/// List the tags that have moved since they were first cached, and accept or reject moves that are held (tags[].hold).
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "tags")]
pub struct Tags {
    /// list, or accept or reject held moves (default: list)
    #[argh(subcommand)]
    pub action: Option<TagsAction>,
}

/// What to do with tags that have moved.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand)]
pub enum TagsAction {
    /// List tags that have moved.
    List(TagsList),
    /// Accept moves.
    Accept(TagsAccept),
    /// Reject moves.
    Reject(TagsReject),
}

/// List the tags that have moved since they were first cached, with what they referred to before.
#[derive(Debug, Default, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "list")]
pub struct TagsList {
    /// images or patterns (default: all)
    #[argh(positional)]
    pub images: Vec<String>,
    /// only tags whose move is held
    #[argh(switch)]
    pub held: bool,
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

/// Accept what the registry has now: the next pull serves it.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "accept")]
pub struct TagsAccept {
    /// images with a tag
    #[argh(positional)]
    pub images: Vec<String>,
    /// accept only this manifest: the tag may have moved again since it was listed
    #[argh(option)]
    pub digest: Option<String>,
}

/// Never accept what the registry has now. If the tag moves again, that move is held as usual.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "reject")]
pub struct TagsReject {
    /// images with a tag
    #[argh(positional)]
    pub images: Vec<String>,
    /// reject only this manifest: the tag may have moved again since it was listed
    #[argh(option)]
    pub digest: Option<String>,
}
