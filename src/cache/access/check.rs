//! A check of a login with its registry, on a fetcher.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use super::verdicts::Scope;
use super::{AccessError, AccessService, Login, Verdict};
use crate::cache::lock;
use crate::client_address::ClientAddress;
use crate::metrics::AccessCheck;
use crate::oci::{ImageName, KeyedHash, Reference};
use crate::upstream::{Credentials, Permission, Source, UpstreamError, UpstreamErrorKind, Wanted};

/// How many cached manifests of a repository the registry is asked for, to find out whether the repository may be pulled.
const MANIFESTS_ASKED_MAX: usize = 2;

/// A check of a login.
pub(super) struct Check {
    pub(super) name: ImageName,
    pub(super) login: Login,
    pub(super) wanted: Wanted,
    /// Identifies the login and the repository.
    pub(super) key: KeyedHash,
    /// Identifies the login and the registry.
    pub(super) login_key: KeyedHash,
    pub(super) client: Option<ClientAddress>,
    /// A check that began before everything was forgotten changes nothing.
    pub(super) generation: u64,
}

/// What a registry has let a login do.
struct Granted {
    scope: Scope,
    was_demanded: bool,
    source: Arc<dyn Source>,
}

/// The work of a check, on a fetcher.
impl AccessService {
    pub(super) fn ask(&self, check: &Check) -> Verdict {
        let verdict = |scope, result| Verdict { result, scope, wanted: check.wanted.clone() };
        // A check that has just ended may have found out.
        let now = self.core.now();
        if let Some(known) = lock(&self.verdicts).recall(&check.key, &check.wanted, now) {
            return verdict(Scope::Wanted, known);
        }
        let asked = self.ask_registry(check);
        let (now, ttl) = (self.core.now(), self.core.settings().access.ttl);
        let (verdict, outcome) = match asked {
            Ok(granted) => {
                if self.is_current(check) {
                    self.kept.keep(check.key, granted.source, now + ttl);
                    let mut verdicts = lock(&self.verdicts);
                    verdicts.grant(check.key, granted.scope, &check.wanted, now, ttl);
                    if granted.was_demanded {
                        verdicts.note_good(check.login_key);
                    }
                }
                // A login that was not demanded was not checked: there are as many as clients can invent.
                if granted.was_demanded && granted.scope == Scope::Repository {
                    self.record(check, now);
                }
                (verdict(granted.scope, Ok(())), AccessCheck::Granted)
            }
            Err(error) => {
                let (scope, result, outcome) = self.failed(&error, check, now);
                (verdict(scope, result), outcome)
            }
        };
        self.core.metrics.checked_access(check.name.upstream.as_str(), outcome);
        verdict
    }

    fn is_current(&self, check: &Check) -> bool {
        self.generation.load(Ordering::Acquire) == check.generation
    }

    /// Asks the registry. A manifest proves that the repository may be pulled, whether or not it is the one that the client
    /// wants: that one may be missing, and some registries refuse what is missing. A list or a blob proves nothing else: there
    /// are logins that may only list, and there is less to tell a blob from the response of another server.
    fn ask_registry(&self, check: &Check) -> Result<Granted, UpstreamError> {
        let Check { name, wanted, login, .. } = check;
        let credentials = Credentials::of_client(&login.user, &login.password);
        let source = self.core.sources.source_for(&name.upstream, credentials)?;
        let ask = |wanted: &Wanted| source.ask_to_pull(&name.repository, wanted);
        let granted = |scope, permission: Permission| Granted {
            scope,
            was_demanded: permission.was_demanded,
            source: Arc::clone(&source),
        };
        let known = || {
            let manifests = self.core.store.manifests(name).into_iter();
            let others = manifests.map(|digest| Wanted::Manifest(Reference::Digest(digest)));
            let mut others = others.filter(|other| other != wanted).take(MANIFESTS_ASKED_MAX);
            others.find_map(|other| ask(&other).ok())
        };
        match wanted {
            Wanted::Manifest(_) => match ask(wanted) {
                Ok(permission) => Ok(granted(Scope::Repository, permission)),
                Err(error) if error.is_denied() || error.is_certainly_not_found() => {
                    known().map(|permission| granted(Scope::Repository, permission)).ok_or(error)
                }
                Err(error) => Err(error),
            },
            Wanted::Blob(_) | Wanted::Lists => match known() {
                Some(permission) => Ok(granted(Scope::Repository, permission)),
                None => ask(wanted).map(|permission| granted(Scope::Wanted, permission)),
            },
        }
    }

    fn failed(
        &self,
        error: &UpstreamError,
        check: &Check,
        now: SystemTime,
    ) -> (Scope, Result<(), AccessError>, AccessCheck) {
        let Check { key, wanted, .. } = check;
        let soon = self.core.settings().negative_ttl;
        let (refusal, scope) = match error.kind() {
            _ if error.is_certainly_not_found() => (AccessError::NotFound, Scope::Wanted),
            UpstreamErrorKind::Denied { status } if error.is_denied() => {
                (AccessError::Refused { status: *status }, scope_of_refusal(wanted))
            }
            _ if error.is_denied() => {
                (AccessError::Refused { status: 401 }, scope_of_refusal(wanted))
            }
            _ if self.is_remembered(key, now) => {
                // Shortly, so that the registry is asked again soon.
                if self.is_current(check) {
                    let mut verdicts = lock(&self.verdicts);
                    verdicts.grant(*key, Scope::Repository, wanted, now, soon);
                }
                return (Scope::Repository, Ok(()), AccessCheck::Remembered);
            }
            _ => {
                let error = AccessError::Unconfirmed(error.clone().into());
                return (Scope::Repository, Err(error), AccessCheck::Unknown);
            }
        };
        {
            let mut verdicts = lock(&self.verdicts);
            verdicts.refuse(*key, scope, wanted, &refusal, now, soon);
            if let (Some(client), AccessError::Refused { .. }) = (check.client, &refusal) {
                verdicts.note_guess(client, check.login_key, now);
            }
        }
        if scope == Scope::Repository {
            self.kept.remove(key);
            if let Err(error) = self.core.store.remove_grant(&key.to_string()) {
                log::error!(
                    error:% = error;
                    "access: cannot remove the permission of a login that the registry refuses"
                );
            }
        }
        (scope, Err(refusal), AccessCheck::Refused)
    }
}

/// A refused list says nothing about pulls.
fn scope_of_refusal(wanted: &Wanted) -> Scope {
    match wanted {
        Wanted::Lists => Scope::Wanted,
        Wanted::Manifest(_) | Wanted::Blob(_) => Scope::Repository,
    }
}
