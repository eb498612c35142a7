//! Tokens of identity providers as passwords: signed statements (JWT, RFC 7519) of an issuer that the operator trusts,
//! such as a Kubernetes cluster or GitHub Actions. They replace passwords that would have to be stored somewhere.
//!
//! [`Issuers::check`] does not block. The keys of an issuer are fetched by a thread of its own ([`KeySource`]), or read
//! from a file. A key that has left the set is not accepted after the next fetch. While the issuer cannot be reached, the
//! last keys stay valid, also after a restart.
//!
//! # Security rules
//! * The key decides which algorithms are possible, and not the token: there is no `none`, and no symmetric algorithm.
//! * A token is accepted only from its issuer, for the configured audience, between `nbf` and `exp`.
//! * What an unverified token says is used only to refuse it, or to choose its issuer and key.
//! * Tokens are not stored. The digests of accepted ones are remembered until they expire.
//!
//! This module must not know HTTP requests of clients, routes, the command line, or files except those with keys.

mod accepted;
mod claims;
mod crypto;
mod issuer;
mod keys;
mod schedule;
#[cfg(test)]
mod tests;
mod token;
mod wrong_tokens;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Instant, SystemTime};

use crate::client_address::ClientAddress;
use crate::flight::Follower;
use crate::oci::{ImageName, NamePattern, Pattern};
use crate::upstream::{DiscoverySettings, IssuerUrl};
use issuer::{Answer, Issuer};
use keys::KeySet;
use token::{TOKEN_BYTES_MAX, Unverified};

pub use claims::check_path;
pub use token::Refusal;

/// The claim that is the user, unless the configuration names another one.
pub const SUBJECT: &str = "sub";

/// `serverAuthConfig.oidc`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// The issuers; their URLs differ.
    pub issuers: Vec<IssuerSettings>,
}

/// An issuer that is trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuerSettings {
    /// The claim `iss` of its tokens.
    pub issuer: IssuerUrl,
    /// What the claim `aud` of its tokens must contain.
    pub audience: String,
    /// Where its keys are from.
    pub keys: KeysFrom,
    /// The path of the claim that is the user.
    pub user: String,
    /// What its tokens are good for. The first rule whose claims match applies.
    pub allow: Vec<Rule>,
}

/// Where the keys of an issuer are from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeysFrom {
    /// A JSON Web Key Set in a file, which is read again when it changes.
    File(PathBuf),
    /// The issuer itself (OpenID Connect Discovery 1.0).
    Discovery(DiscoverySettings),
}

/// Which tokens may pull what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Paths of claims, and patterns for their values. All must match.
    pub claims: Vec<(String, Pattern)>,
    /// What these tokens may pull; everything if empty.
    pub repositories: Arc<[NamePattern]>,
}

/// Fetches the keys of an issuer, and keeps the last ones over a restart.
pub trait KeySource: Send {
    /// The current JSON Web Key Set. Blocks.
    ///
    /// # Errors
    /// The reason, for the log.
    fn fetch(&self) -> Result<Vec<u8>, String>;

    /// The set that was stored last.
    fn stored(&self) -> Option<Vec<u8>>;

    /// Stores a set that was fetched. A failure is logged by the implementation.
    fn store(&self, keys: &[u8]);
}

/// The user of a valid token, and the repositories that it may pull.
#[derive(Debug, PartialEq, Eq)]
pub struct Identity {
    user: String,
    repositories: Arc<[NamePattern]>,
}

impl Identity {
    /// The user, as text that is safe to print.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Whether the token is good for some repositories only.
    pub fn is_restricted(&self) -> bool {
        !self.repositories.is_empty()
    }

    /// Whether the token is good for this repository.
    pub fn may_pull(&self, name: &ImageName) -> bool {
        !self.is_restricted() || self.repositories.iter().any(|each| each.covers(name))
    }
}

/// The keys of an issuer, for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuerStatus {
    /// The issuer.
    pub issuer: IssuerUrl,
    /// The number of its keys. Without one, its tokens cannot be verified.
    pub keys: usize,
    /// Since when newer keys cannot be fetched or read.
    pub failing_since: Option<SystemTime>,
}

/// The result of a check.
pub enum Verdict {
    /// It is known.
    Known(Result<Arc<Identity>, Refusal>),
    /// The keys of the issuer are being fetched. Check again with [`Issuers::recheck`] afterwards.
    Wait(KeyWait),
}

/// Waits for a fetch of keys.
pub struct KeyWait {
    flight: Follower<(), (), Unfetched>,
}

/// The thread that fetches the keys has ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unfetched;

impl KeyWait {
    /// Ready when the fetch has ended, successfully or not.
    pub fn poll(&self, waker: &Waker) -> Poll<()> {
        self.flight.poll_outcome(waker).map(drop)
    }

    /// Stops waiting. `waker` is the one that was passed to `poll`.
    pub fn give_up(self, waker: &Waker) {
        self.flight.forget(waker);
    }
}

/// The issuers that are trusted. Dropping them ends their threads.
pub struct Issuers {
    settings: Settings,
    issuers: Vec<Issuer>,
}

impl Issuers {
    /// Reads the files with keys, and starts a thread for each of the other issuers. Does not wait for them. Keys that
    /// `previous` has of the same issuer stay in use until they are fetched again.
    ///
    /// # Errors
    /// [`OidcError`] for a file that cannot be used, or a thread that cannot be started.
    pub fn load(
        settings: &Settings,
        previous: Option<&Issuers>,
        mut source: impl FnMut(&IssuerUrl, &DiscoverySettings) -> Box<dyn KeySource>,
    ) -> Result<Issuers, OidcError> {
        crypto::install();
        let load = |entry: &IssuerSettings| {
            let before = previous.and_then(|previous| {
                let same = |other: &&Issuer| {
                    let other = other.settings();
                    (&other.issuer, &other.keys) == (&entry.issuer, &entry.keys)
                };
                previous.issuers.iter().find(same)
            });
            match &entry.keys {
                KeysFrom::File(path) => Issuer::with_file(entry.clone(), path),
                KeysFrom::Discovery(discovery) => {
                    Issuer::with_thread(entry.clone(), before, source(&entry.issuer, discovery))
                }
            }
        };
        let issuers = settings.issuers.iter().map(load).collect::<Result<_, _>>()?;
        Ok(Issuers { settings: settings.clone(), issuers })
    }

    /// The settings of these issuers.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Whether a text contains a token that claims to be from one of the issuers, or a part of one, valid or not. Nobody else
    /// may see it.
    pub fn are_named_by(&self, text: &str) -> bool {
        let is_ours =
            |issuer: &str| self.issuers.iter().any(|it| it.settings().issuer.as_str() == issuer);
        token::issuers_in(text).iter().any(|issuer| is_ours(issuer))
    }

    /// Checks a password. `None` if it is not a token that claims to be from one of the issuers. Does not block.
    pub fn check(
        &self,
        password: &str,
        client: ClientAddress,
        now: SystemTime,
        instant: Instant,
    ) -> Option<Verdict> {
        let token = Unverified::parse(password)?;
        let issuer = self.issuer_of(&token)?;
        if password.len() > TOKEN_BYTES_MAX {
            return Some(Verdict::Known(Err(Refusal::TooLong)));
        }
        Some(match issuer.check(password, &token, client, now) {
            Answer::Known(known) => Verdict::Known(known),
            Answer::NeedsKeys(refusal) => match issuer.ask_for_keys(instant) {
                Some(flight) => Verdict::Wait(KeyWait { flight }),
                None => Verdict::Known(Err(refusal)),
            },
        })
    }

    /// The state of each issuer.
    pub fn status(&self) -> Vec<IssuerStatus> {
        self.issuers.iter().map(Issuer::status).collect()
    }

    /// Checks a password again after [`Verdict::Wait`], and does not wait any more.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn recheck(
        &self,
        password: &str,
        client: ClientAddress,
        now: SystemTime,
    ) -> Result<Arc<Identity>, Refusal> {
        let token = Unverified::parse(password).ok_or(Refusal::Signature)?;
        let issuer = self.issuer_of(&token).ok_or(Refusal::UnknownKey)?;
        match issuer.check(password, &token, client, now) {
            Answer::Known(known) => known,
            Answer::NeedsKeys(refusal) => Err(refusal),
        }
    }

    /// Reads files with keys again if they have changed. If one cannot be used, its current keys stay, and that is
    /// logged once.
    pub fn look(&self) {
        self.issuers.iter().for_each(Issuer::look);
    }

    /// Fetches the keys of all issuers now. Does not wait for that.
    pub fn refresh(&self) {
        self.issuers.iter().for_each(Issuer::refresh);
    }

    fn issuer_of(&self, token: &Unverified<'_>) -> Option<&Issuer> {
        self.issuers.iter().find(|issuer| issuer.settings().issuer.as_str() == token.issuer)
    }
}

/// What a JSON Web Key Set consists of, for `larder check`: the number of its usable keys, and their algorithms.
///
/// # Errors
/// Why it cannot be used.
pub fn describe_keys(json: &[u8]) -> Result<String, String> {
    let keys = KeySet::parse(json).and_then(KeySet::or_none_usable);
    keys.map(|keys| keys.describe()).map_err(|error| error.to_string())
}

impl Settings {
    /// Reads the files with keys once and reports what is wrong with them.
    ///
    /// # Errors
    /// [`OidcError`].
    pub fn check(&self) -> Result<(), OidcError> {
        for entry in &self.issuers {
            if let KeysFrom::File(path) = &entry.keys {
                issuer::read(path)?;
            }
        }
        Ok(())
    }
}

/// Why `serverAuthConfig.oidc` cannot be used.
#[derive(Debug, Clone)]
pub enum OidcError {
    /// A file with keys cannot be read.
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: Arc<io::Error>,
    },
    /// A file has no usable keys.
    Keys {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A thread cannot be started.
    System {
        /// The system's error.
        source: Arc<io::Error>,
    },
}

impl fmt::Display for OidcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OidcError::Read { path, source } => {
                write!(f, "oidc: keys: cannot read {}: {source}", path.display())
            }
            OidcError::Keys { path, reason } => {
                write!(f, "oidc: keys: {}: {reason}", path.display())
            }
            OidcError::System { source } => write!(f, "oidc: cannot fetch keys: {source}"),
        }
    }
}

impl std::error::Error for OidcError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            OidcError::Read { source, .. } | OidcError::System { source } => Some(source),
            OidcError::Keys { .. } => None,
        }
    }
}
