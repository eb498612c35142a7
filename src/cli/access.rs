//! `larder access`.

use argh::{ArgsInfo, FromArgs};

/// List which users registries have let pull which repositories (registries[].access: client), or forget that.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "access")]
pub struct Access {
    /// list or forget (default: list)
    #[argh(subcommand)]
    pub action: Option<AccessAction>,
}

/// What to do with permissions.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand)]
pub enum AccessAction {
    /// List permissions.
    List(AccessList),
    /// Forget permissions.
    Forget(AccessForget),
}

/// List which users registries have let pull which repositories, and when they last confirmed it.
#[derive(Debug, Default, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "list")]
pub struct AccessList {
    /// registries, repositories or patterns, e.g. quay.io/org/* (default: all)
    #[argh(positional)]
    pub repositories: Vec<String>,
    /// only this user
    #[argh(option)]
    pub user: Option<String>,
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

/// Forget permissions: the registry is asked again before the next pull, and while it is down there is none.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "forget")]
pub struct AccessForget {
    /// registries, repositories or patterns, e.g. quay.io/org/*
    #[argh(positional)]
    pub repositories: Vec<String>,
    /// only this user
    #[argh(option)]
    pub user: Option<String>,
    /// all permissions
    #[argh(switch)]
    pub all: bool,
}
