//! Which clients may use this server.

use std::sync::Arc;

use crate::oidc::{Identity, IssuerStatus, Issuers};
use crate::users::Users;

/// The users and issuers of `serverAuthConfig`. Without either, everyone may use this server.
#[derive(Clone, Default)]
pub struct ServerAuth {
    /// The users of the htpasswd file.
    pub users: Option<Arc<Users>>,
    /// The issuers whose tokens are passwords.
    pub issuers: Option<Arc<Issuers>>,
}

impl ServerAuth {
    /// Whether clients need credentials.
    pub(super) fn is_required(&self) -> bool {
        self.users.is_some() || self.issuers.is_some()
    }

    /// The keys of the issuers.
    pub(super) fn issuer_status(&self) -> Vec<IssuerStatus> {
        self.issuers.as_ref().map(|issuers| issuers.status()).unwrap_or_default()
    }

    /// Whether these credentials are for this server, valid or not. Then no registry may see them.
    pub(super) fn owns(&self, user: &str, password: &str) -> bool {
        self.users.as_ref().is_some_and(|users| users.has(user))
            || self
                .issuers
                .as_ref()
                .is_some_and(|issuers| issuers.are_named_by(password) || issuers.are_named_by(user))
    }
}

/// What a client may use.
#[derive(Clone, Copy)]
pub(super) enum Admission<'a> {
    /// Only what a registry lets it pull.
    None,
    /// What its token allows.
    Token(&'a Identity),
    /// Everything.
    Everything,
}
