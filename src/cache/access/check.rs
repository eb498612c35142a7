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

/// Why a registry lets a login do nothing.
struct Denial {
    error: UpstreamError,
    /// Whether it also refuses or hides what is cached of the repository.
    is_complete: bool,
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
            Err(denial) => {
                let (scope, result, outcome) = self.failed(&denial, check, now);
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
    ///
    /// A wrong login is sent only once: some registries count, and the time must not depend on what is cached.
    fn ask_registry(&self, check: &Check) -> Result<Granted, Denial> {
        let Check { name, wanted, login, .. } = check;
        let credentials = Credentials::of_client(&login.user, &login.password);
        let source = self.core.sources.source_for(&name.upstream, credentials);
        let source = source.map_err(|error| Denial { error, is_complete: false })?;
        let ask = |wanted: &Wanted| source.ask_to_pull(&name.repository, wanted);
        let granted = |scope, permission: Permission| Granted {
            scope,
            was_demanded: permission.was_demanded,
            source: Arc::clone(&source),
        };
        let known = || {
            let manifests = self.core.store.manifests(name).into_iter();
            let others = manifests.map(|digest| Wanted::Manifest(Reference::Digest(digest)));
            let others = others.filter(|other| other != wanted).take(MANIFESTS_ASKED_MAX);
            let mut denial = None;
            for other in others {
                match ask(&other) {
                    Ok(permission) => return Some(Ok(permission)),
                    Err(error) => {
                        let before = denial.is_none_or(|before: Denial| before.is_complete);
                        let is_complete = before && is_refusal(&error);
                        let is_wrong_login = is_wrong_login(&error);
                        denial = Some(Denial { error, is_complete });
                        if is_wrong_login {
                            break;
                        }
                    }
                }
            }
            denial.map(Err)
        };
        let of_repository = |permission| granted(Scope::Repository, permission);
        match wanted {
            Wanted::Manifest(_) => match ask(wanted) {
                Ok(permission) => Ok(of_repository(permission)),
                Err(error) if is_refusal(&error) && !is_wrong_login(&error) => match known() {
                    Some(Ok(permission)) => Ok(of_repository(permission)),
                    Some(Err(denial)) => Err(Denial { error, ..denial }),
                    None => Err(Denial { error, is_complete: false }),
                },
                Err(error) => Err(Denial { error, is_complete: false }),
            },
            Wanted::Blob(_) | Wanted::Lists => match known() {
                Some(Ok(permission)) => Ok(of_repository(permission)),
                Some(Err(denial)) if is_wrong_login(&denial.error) => Err(denial),
                before => match ask(wanted) {
                    Ok(permission) => Ok(granted(Scope::Wanted, permission)),
                    Err(error) => {
                        let is_complete = before
                            .is_some_and(|before| before.is_err_and(|before| before.is_complete));
                        Err(Denial { error, is_complete })
                    }
                },
            },
        }
    }

    fn failed(
        &self,
        denial: &Denial,
        check: &Check,
        now: SystemTime,
    ) -> (Scope, Result<(), AccessError>, AccessCheck) {
        let Check { key, wanted, .. } = check;
        let Denial { error, is_complete } = denial;
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
        // A registry that hides what a user may not see says that it is not there.
        let is_hidden = *is_complete && error.is_certainly_not_found();
        if scope == Scope::Repository || is_hidden {
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

/// Whether a registry says that the login may not have something, or that there is no such thing.
fn is_refusal(error: &UpstreamError) -> bool {
    error.is_denied() || error.is_certainly_not_found()
}

/// Whether a registry refuses the login, whatever it wants.
fn is_wrong_login(error: &UpstreamError) -> bool {
    matches!(error.kind(), UpstreamErrorKind::Denied { status: 401 })
}

/// A refused list says nothing about pulls.
fn scope_of_refusal(wanted: &Wanted) -> Scope {
    match wanted {
        Wanted::Lists => Scope::Wanted,
        Wanted::Manifest(_) | Wanted::Blob(_) => Scope::Repository,
    }
}
