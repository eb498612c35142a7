//! Authentication with registries: configured credentials, Docker's configuration files, credential helpers, clouds,
//! challenges and bearer tokens.
//!
//! Fetches and caches credentials. The client attaches them to requests and decides which hosts may get them.

mod aws;
mod cached_login;
mod challenge;
mod credentials;
mod docker_config;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod helper;
mod logins;
pub(super) mod realm;
mod refusals;
mod single_flight;
mod token;

pub use aws::{
    AwsEnvironment, ContainerEndpoint, EcrRegistry, EcrSettings, FixedKeys, KeySettings,
    SecretSource,
};
pub use credentials::{Credentials, HelperProgram, HelperSettings, RepositoryPrefix, Secret};

pub(super) use aws::{CachedKeys, Keys, Scope, Signed, encoded_path, encoded_query, hex};
pub(super) use challenge::Challenge;
pub(super) use credentials::{Login, LoginError};
pub(super) use logins::{Logins, Moment};
pub(super) use refusals::Refusals;
pub(super) use token::{Need, Place, TOKEN_BODY_BYTES_MAX, Token, TokenKey, Tokens};
