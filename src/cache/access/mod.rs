//! Repositories whose registry decides which clients may pull (`registries[].access: client`): it is asked with the
//! credentials of each client, and its permission is used for a while.
//!
//! What is kept of a login is a keyed hash of it together with the repository: in memory ([`verdicts`]), and for permissions
//! also on the disk, so that they count while the registry is down and after a restart. The credentials themselves are in
//! memory only, as long as something is fetched with them ([`pass`]).
//!
//! # Interleavings
//! * *Several requests with the same login arrive at once.* They share one flight. If its outcome is about what the first one
//!   wants only ([`Scope::Wanted`]), the others ask again.
//! * *A check ends between the lookup and the join of another request.* The next flight looks again before it asks.
//! * *A permission is removed from the disk while a check runs.* If the registry confirms it, it is written again.
//! * *Everything is forgotten while a check runs* (a reload, `larder access forget`). The check answers its own clients, and is
//!   not remembered in memory: its generation has passed.
//! * *Another process on the directory refuses a login.* It removes the record, and this one uses its permission until
//!   `accessTtl` ends.

mod check;
mod pass;
mod policy;
mod private;
mod requests;
mod verdicts;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Poll, Waker};
use std::time::{Duration, SystemTime};

use super::core::Core;
use super::{CacheError, PATIENCE, lock};
use crate::client_address::ClientAddress;
use crate::flight::{Flights, Follower};
use crate::oci::{ImageName, KeyedHash, quoted};
use crate::store::{AccessSecret, FUTURE_TOLERANCE, GrantRecord, StoreError, random_secret};
use crate::upstream::{Credentials, Wanted};

use check::Check;
use pass::KeptSources;
use verdicts::{Scope, Verdicts};

pub use pass::Pass;
pub(in crate::cache) use policy::Link;
pub use policy::{AccessPolicy, BlobAccess, PullAccess, RegistryAccess};

pub(super) use pass::{current, enter, source};
pub(super) use private::PrivateDigests;

/// How often permissions that are too old to be used are removed from the disk.
const CLEANED_EVERY: Duration = Duration::from_secs(3600);

/// A user and a password, as a client presents them.
#[derive(Clone)]
pub struct Login {
    /// The user.
    pub user: String,
    /// The password.
    pub password: String,
}

/// Without the password.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Why a login may not pull.
#[derive(Debug, Clone)]
pub enum AccessError {
    /// The registry refuses the login, or its access to the repository.
    Refused {
        /// The status of its response: 401 or 403.
        status: u16,
    },
    /// The registry says that there is no such content, which may mean that the login may not know.
    NotFound,
    /// Too many logins of this client address were refused.
    TooManyGuesses {
        /// The time until another one is checked.
        wait: Duration,
    },
    /// The registry cannot be asked, and has not confirmed this login in the last time (`accessOffline`).
    Unconfirmed(CacheError),
}

/// What is known of a login.
pub enum AccessLookup {
    /// It may pull. The pass is for what has to be fetched.
    Granted(Option<Pass>),
    /// The registry is being asked.
    Wait(AccessWait),
}

/// Waits for the registry.
pub struct AccessWait {
    flight: Follower<(), Verdict, AccessError>,
    pass: Option<Pass>,
    wanted: Wanted,
}

impl AccessWait {
    /// Whether the login may pull, once that is known; `None` if the registry was asked for something else, and its answer is
    /// about that only, so that it has to be asked again.
    pub fn poll(&self, waker: &Waker) -> Poll<Option<Result<Option<Pass>, AccessError>>> {
        self.flight.poll_outcome(waker).map(|outcome| match outcome {
            Ok(verdict) if verdict.scope == Scope::Wanted && verdict.wanted != self.wanted => None,
            Ok(verdict) => Some(verdict.result.map(|()| self.pass.clone())),
            Err(error) => Some(Err(error)),
        })
    }

    /// How long a client waits.
    pub fn patience(&self) -> Duration {
        PATIENCE
    }

    /// Stops waiting. `waker` is the one that was polled with.
    pub fn give_up(self, waker: &Waker) -> AccessError {
        self.flight.forget(waker);
        AccessError::Unconfirmed(CacheError::TimedOut)
    }
}

/// The outcome of a check.
#[derive(Debug, Clone)]
struct Verdict {
    result: Result<(), AccessError>,
    /// What it is about.
    scope: Scope,
    /// What the registry was asked for.
    wanted: Wanted,
}

/// Knows which clients may pull what.
pub(super) struct AccessService {
    core: Arc<Core>,
    secret: OnceLock<AccessSecret>,
    /// Locked for a lookup or a change, as is the next one.
    verdicts: Mutex<Verdicts>,
    times: Mutex<Times>,
    flights: Flights<KeyedHash, (), Verdict, AccessError>,
    /// Counts how often everything was forgotten.
    generation: AtomicU64,
    kept: Arc<KeptSources>,
}

/// When this process last did something.
#[derive(Default)]
struct Times {
    /// When all processes were told to forget what they know, as far as this one has seen.
    forgotten: Option<SystemTime>,
    /// When old permissions were last removed.
    cleaned: Option<SystemTime>,
}

impl AccessService {
    pub(super) fn new(core: Arc<Core>) -> AccessService {
        let times = Times { forgotten: core.store.grants_forgotten(), cleaned: None };
        AccessService {
            core,
            secret: OnceLock::new(),
            verdicts: Mutex::new(Verdicts::new()),
            times: Mutex::new(times),
            flights: Flights::new(),
            generation: AtomicU64::new(0),
            kept: Arc::new(KeptSources::new()),
        }
    }

    /// Whether a login may pull `wanted` from a repository. Does not wait for anything but the local disk.
    ///
    /// # Errors
    /// [`AccessError`] if it is known that it may not.
    pub(super) fn check(
        self: &Arc<Self>,
        name: &ImageName,
        login: &Login,
        wanted: Wanted,
        client: Option<ClientAddress>,
    ) -> Result<AccessLookup, AccessError> {
        let now = self.core.now();
        self.core.stop_if_refused(name).map_err(AccessError::Unconfirmed)?;
        let key = self.key(name, login)?;
        let pass = self.pass(name, login, key, now);
        let known = lock(&self.verdicts).recall(&key, &wanted, now);
        if let Some(known) = known {
            return known.map(|()| AccessLookup::Granted(pass));
        }
        if self.core.is_offline() {
            return match self.is_remembered(&key, now) {
                true => Ok(AccessLookup::Granted(pass)),
                false => Err(AccessError::Unconfirmed(CacheError::NotCached)),
            };
        }
        let login_key = self.login_key(name, login)?;
        let limit =
            client.and_then(|client| lock(&self.verdicts).wait_for_guess(client, &login_key, now));
        // Otherwise wrong logins of an address would keep out confirmed ones whenever accessTtl ends.
        if let Some(wait) = limit
            && !self.is_remembered(&key, now)
        {
            return Err(AccessError::TooManyGuesses { wait });
        }
        let purpose = self.core.purpose(name, client).map_err(AccessError::Unconfirmed)?;
        let joined = self.flights.join(&key, || AccessError::Unconfirmed(CacheError::GivenUp));
        let service = Arc::clone(self);
        let check = Check {
            name: name.clone(),
            login: login.clone(),
            wanted: wanted.clone(),
            key,
            login_key,
            client,
            generation: self.generation.load(Ordering::Acquire),
        };
        let (flight, _) = self.core.run_metadata_flight(joined, purpose, move |leader| {
            leader.finish(Ok(service.ask(&check)));
        });
        Ok(AccessLookup::Wait(AccessWait { flight, pass, wanted }))
    }

    /// Forgets what is in memory: the registries or the rules have changed. Checks under way do not count either.
    pub(super) fn forget(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        lock(&self.verdicts).clear();
        self.kept.clear();
    }

    /// Checks whether `larder access forget` was used since the last check, and drops logins that are not in use.
    pub(super) fn tick(&self) {
        self.kept.drop_old(self.core.now());
        let demanded = self.core.store.grants_forgotten();
        let before = std::mem::replace(&mut lock(&self.times).forgotten, demanded);
        if before != demanded {
            self.forget();
        }
    }

    fn key(&self, name: &ImageName, login: &Login) -> Result<KeyedHash, AccessError> {
        Ok(KeyedHash::of(self.secret()?, &[&login.user, &login.password, &name.to_string()]))
    }

    /// Identifies a login at a registry, whatever repository it is for.
    fn login_key(&self, name: &ImageName, login: &Login) -> Result<KeyedHash, AccessError> {
        Ok(KeyedHash::of(self.secret()?, &[&login.user, &login.password, name.upstream.as_str()]))
    }

    fn secret(&self) -> Result<&AccessSecret, AccessError> {
        Ok(match self.secret.get() {
            Some(secret) => secret,
            None => {
                let secret = self.find_secret().map_err(AccessError::Unconfirmed)?;
                self.secret.get_or_init(|| secret)
            }
        })
    }

    /// The secret of the directory; of this process if the directory cannot be written.
    fn find_secret(&self) -> Result<AccessSecret, CacheError> {
        match self.core.store.access_secret() {
            Ok(secret) => Ok(secret),
            Err(error @ StoreError::Read { .. }) => {
                log::error!(error:% = error; "access: cannot read the secret of the cache directory");
                Err(error.into())
            }
            Err(error) => {
                log::warn!(
                    error:% = error;
                    "access: permissions are not kept on the disk, so none will count after a restart while a registry is down"
                );
                let unavailable = |error| CacheError::from(StoreError::random(error));
                random_secret().map_err(unavailable)
            }
        }
    }

    /// What a client's requests are fetched with, if the configuration has no credentials for the repository.
    fn pass(
        &self,
        name: &ImageName,
        login: &Login,
        key: KeyedHash,
        now: SystemTime,
    ) -> Option<Pass> {
        if self.core.sources.has_credentials(name) {
            return None;
        }
        let credentials = Credentials::of_client(&login.user, &login.password);
        let until = now + self.core.settings().access.ttl;
        Some(Pass::new(name, key, credentials, until, &self.kept, &self.core.sources))
    }
}

/// What is on the disk.
impl AccessService {
    /// Whether the registry has confirmed this login in the last time.
    fn is_remembered(&self, key: &KeyedHash, now: SystemTime) -> bool {
        match self.core.store.grant(&key.to_string()) {
            Ok(record) => record.is_some_and(|record| self.is_valid(&record, now)),
            Err(error) => {
                log::warn!(error:% = error; "access: cannot read the permission of a login");
                false
            }
        }
    }

    fn is_valid(&self, record: &GrantRecord, now: SystemTime) -> bool {
        match now.duration_since(record.confirmed()) {
            Ok(age) => age <= self.core.settings().access.offline,
            Err(ahead) => ahead.duration() <= FUTURE_TOLERANCE,
        }
    }

    fn record(&self, check: &Check, now: SystemTime) {
        let Check { name, login, key, .. } = check;
        let store = &self.core.store;
        if !store.is_writable() {
            return;
        }
        self.remove_old_records(now);
        if self.core.settings().access.offline.is_zero() {
            return;
        }
        let user = quoted(&login.user);
        if let Err(error) = store.put_grant(&key.to_string(), &GrantRecord::new(name, &user, now)) {
            log::warn!(
                repository:% = name, error:% = error;
                "access: a permission is not kept on the disk, so it will not count while the registry is down"
            );
        }
    }

    fn remove_old_records(&self, now: SystemTime) {
        {
            let mut times = lock(&self.times);
            let is_due = times.cleaned.is_none_or(|last| {
                now.duration_since(last).map_or(true, |since| since >= CLEANED_EVERY)
            });
            if !is_due {
                return;
            }
            times.cleaned = Some(now);
        }
        let store = &self.core.store;
        let removed = store.grants().and_then(|grants| {
            let old = grants.into_iter().filter(|(_, record)| !self.is_valid(record, now));
            old.map(|(key, _)| key).try_for_each(|key| store.remove_grant(&key))
        });
        if let Err(error) = removed {
            log::warn!(error:% = error; "access: cannot remove old permissions");
        }
        if let Err(error) = store.remove_old_private_marks(now) {
            log::warn!(error:% = error; "access: cannot remove the marks of private content that is gone");
        }
    }
}
