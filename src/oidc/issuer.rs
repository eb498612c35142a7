//! One issuer: its keys, the thread that fetches them, and the tokens that were accepted.

use std::fs;
use std::mem;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Instant, SystemTime};

use super::accepted::Accepted;
use super::claims::{self, Claims};
use super::keys::KeySet;
use super::schedule::Schedule;
use super::token::{Refusal, Unverified};
use super::wrong_tokens::WrongTokens;
use super::{Identity, IssuerSettings, IssuerStatus, KeySource, OidcError, Unfetched};
use crate::certificates::WatchedFile;
use crate::client_address::ClientAddress;
use crate::flight::{Flights, Follower, Leader};
use crate::oci::{Algorithm, Digest};

pub(super) struct Issuer {
    shared: Arc<Shared>,
    /// The file with its keys.
    file: Option<Mutex<WatchedFile>>,
}

impl Drop for Issuer {
    fn drop(&mut self) {
        let mut fetches = lock(&self.shared.fetches);
        fetches.is_closed = true;
        // Ends the flight of those who wait.
        let leader = fetches.asked.take();
        drop(fetches);
        drop(leader);
        self.shared.fetches_changed.notify_all();
    }
}

struct Shared {
    settings: IssuerSettings,
    /// Held for look-ups and to replace the keys.
    known: Mutex<Known>,
    /// The addresses that presented wrong tokens. Locked for a lookup or a change.
    wrong: Mutex<WrongTokens>,
    running: Flights<(), (), (), Unfetched>,
    /// Held to ask for a fetch, and to begin or end one. Only the locks of flights are taken meanwhile.
    fetches: Mutex<Fetches>,
    fetches_changed: Condvar,
}

#[derive(Default)]
struct Known {
    /// `None` until the first fetch.
    keys: Option<Arc<KeySet>>,
    /// Tokens that were accepted with these keys.
    accepted: Accepted,
    /// Since when newer keys cannot be fetched or read.
    failing_since: Option<SystemTime>,
}

#[derive(Default)]
struct Fetches {
    is_closed: bool,
    schedule: Schedule,
    /// A fetch that a token has caused and that has not begun.
    asked: Option<Leader<(), (), (), Unfetched>>,
}

/// What is known of a token.
pub(super) enum Answer {
    Known(Result<Arc<Identity>, Refusal>),
    /// Newer keys may verify it. If there are none, this is the refusal.
    NeedsKeys(Refusal),
}

impl Issuer {
    pub(super) fn with_file(settings: IssuerSettings, path: &Path) -> Result<Issuer, OidcError> {
        let (file, keys) = WatchedFile::open(path, read)?;
        let shared = Shared::new(settings, Some(Arc::new(keys)));
        Ok(Issuer { shared: Arc::new(shared), file: Some(Mutex::new(file)) })
    }

    /// Begins with the keys of `before`, or else with those that were stored.
    pub(super) fn with_thread(
        settings: IssuerSettings,
        before: Option<&Issuer>,
        source: Box<dyn KeySource>,
    ) -> Result<Issuer, OidcError> {
        let keys = before.and_then(|before| lock(&before.shared.known).keys.clone());
        let stored = || KeySet::parse(&source.stored()?).ok()?.or_none_usable().ok().map(Arc::new);
        let shared = Arc::new(Shared::new(settings, keys.or_else(stored)));
        let fetcher = Arc::clone(&shared);
        thread::Builder::new()
            .name("issuer-keys".into())
            .spawn(move || fetcher.fetch_all(&*source))
            .map_err(|source| OidcError::System { source: Arc::new(source) })?;
        Ok(Issuer { shared, file: None })
    }

    pub(super) fn settings(&self) -> &IssuerSettings {
        &self.shared.settings
    }

    pub(super) fn status(&self) -> IssuerStatus {
        let issuer = self.settings().issuer.clone();
        let known = lock(&self.shared.known);
        let keys = known.keys.as_ref().map_or(0, |keys| keys.len());
        IssuerStatus { issuer, keys, failing_since: known.failing_since }
    }

    /// Checks a token of this issuer. `text` is the token as it was sent.
    pub(super) fn check(
        &self,
        text: &str,
        token: &Unverified<'_>,
        client: ClientAddress,
        now: SystemTime,
    ) -> Answer {
        let digest = Digest::of(Algorithm::Sha256, text.as_bytes());
        let keys = {
            let known = lock(&self.shared.known);
            if let Some(identity) = known.accepted.recall(&digest, now) {
                return Answer::Known(Ok(identity));
            }
            known.keys.clone()
        };
        let audience = &self.settings().audience;
        // Before the signature, which costs more. An expired token is no reason to fetch keys, either.
        let ends = match token.check(audience, now) {
            Ok(ends) => ends,
            Err(refusal) => return Answer::Known(Err(refusal)),
        };
        if lock(&self.shared.wrong).is_too_much(client, now) {
            return Answer::Known(Err(Refusal::TooManyWrong));
        }
        let verified = match &keys {
            Some(keys) => token.verify(keys),
            None => Err(Refusal::NoKeys),
        };
        let claims = match verified {
            Ok(claims) => claims,
            Err(refusal @ (Refusal::NoKeys | Refusal::UnknownKey)) => {
                return Answer::NeedsKeys(refusal);
            }
            Err(refusal) => {
                lock(&self.shared.wrong).note(client, now);
                return Answer::Known(Err(refusal));
            }
        };
        Answer::Known(self.identity(&claims).inspect(|identity| {
            let mut known = lock(&self.shared.known);
            // Otherwise its key may have left the set.
            if known
                .keys
                .as_ref()
                .zip(keys.as_ref())
                .is_some_and(|(now, then)| Arc::ptr_eq(now, then))
            {
                known.accepted.remember(digest, Arc::clone(identity), ends);
            }
        }))
    }

    fn identity(&self, claims: &Claims) -> Result<Arc<Identity>, Refusal> {
        let settings = self.settings();
        let user = claims::user(claims, &settings.user).ok_or(Refusal::User)?;
        match settings.allow.iter().find(|rule| rule.is_for(claims)) {
            Some(rule) => {
                Ok(Arc::new(Identity { user, repositories: Arc::clone(&rule.repositories) }))
            }
            None => Err(Refusal::NoRule { user }),
        }
    }

    /// The running fetch, or a new one. `None` if the last one was a moment ago, or if the keys are those of a file.
    pub(super) fn ask_for_keys(&self, now: Instant) -> Option<Follower<(), (), Unfetched>> {
        if self.file.is_some() {
            return None;
        }
        let shared = &self.shared;
        let mut fetches = lock(&shared.fetches);
        if !fetches.schedule.may_ask(now) {
            return shared.running.find(&());
        }
        let joined = shared.running.join(&(), || Unfetched);
        if let Some(leader) = joined.leader {
            fetches.asked = Some(leader);
            shared.fetches_changed.notify_all();
        }
        Some(joined.flight)
    }

    /// Fetches the keys now, unless that is running or they are those of a file.
    pub(super) fn refresh(&self) {
        if self.file.is_some() {
            return;
        }
        let mut fetches = lock(&self.shared.fetches);
        if let Some(leader) = self.shared.running.join(&(), || Unfetched).leader {
            fetches.asked = Some(leader);
            self.shared.fetches_changed.notify_all();
        }
    }

    /// Reads the file again if it has changed.
    pub(super) fn look(&self) {
        let Some(file) = &self.file else { return };
        let mut file = lock(file);
        match file.reread(read) {
            None => {}
            Some(Ok(keys)) => {
                let count = keys.len();
                self.shared.note(true);
                self.shared.replace(Some(keys));
                log::info!(
                    file:% = file.path().display(), count; "serverAuthConfig.oidc: keys reloaded"
                );
            }
            Some(Err(error)) => {
                self.shared.note(false);
                log::error!(
                    error = error.as_str();
                    "serverAuthConfig: cannot reload keys; keeping the current ones"
                );
            }
        }
    }
}

impl Shared {
    fn new(settings: IssuerSettings, keys: Option<Arc<KeySet>>) -> Shared {
        Shared {
            settings,
            known: Mutex::new(Known { keys, ..Known::default() }),
            wrong: Mutex::default(),
            running: Flights::new(),
            fetches: Mutex::default(),
            fetches_changed: Condvar::new(),
        }
    }

    /// Returns whether the keys have changed. An issuer may withdraw all of them.
    fn replace(&self, keys: Option<KeySet>) -> bool {
        let mut known = lock(&self.known);
        if known.keys.as_deref() == keys.as_ref() {
            return false;
        }
        // Tokens that were signed with a key that has left the set are refused from now on.
        known.keys = keys.map(Arc::new);
        known.accepted = Accepted::default();
        true
    }

    /// Notes whether the keys could be fetched or read.
    fn note(&self, is_ok: bool) {
        let mut known = lock(&self.known);
        known.failing_since = match is_ok {
            true => None,
            false => known.failing_since.or_else(|| Some(SystemTime::now())),
        };
    }

    /// Waits for the time of the next fetch, and begins it. Returns `None` once the issuer is dropped.
    fn next_fetch(&self) -> Option<Leader<(), (), (), Unfetched>> {
        let mut fetches = lock(&self.fetches);
        while !fetches.is_closed {
            let now = Instant::now();
            let wait = fetches.schedule.wait(now);
            if fetches.asked.is_some() || wait.is_zero() {
                fetches.schedule.begin(now);
                let asked = mem::take(&mut fetches.asked);
                // Without a leader in `asked` no flight is running: this thread finishes one before the next.
                return asked.or_else(|| self.running.join(&(), || Unfetched).leader);
            }
            let waited = self.fetches_changed.wait_timeout(fetches, wait);
            fetches = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        None
    }

    fn fetch_all(&self, source: &dyn KeySource) {
        let mut logged: Option<String> = None;
        while let Some(leader) = self.next_fetch() {
            let fetched = source.fetch().and_then(|json| {
                let keys = KeySet::parse(&json).map_err(|error| error.to_string())?;
                source.store(&json);
                Ok(keys.or_none_usable())
            });
            let has_keys = matches!(fetched, Ok(Ok(_)));
            lock(&self.fetches).schedule.end(!has_keys);
            self.note(has_keys);
            let issuer = self.settings.issuer.as_str();
            match fetched {
                Ok(Ok(keys)) => {
                    let count = keys.len();
                    if self.replace(Some(keys)) || logged.is_some() {
                        log::info!(issuer, count; "serverAuthConfig.oidc: keys fetched");
                    }
                    logged = None;
                }
                Ok(Err(error)) => {
                    self.replace(None);
                    let error = error.to_string();
                    if logged.as_ref() != Some(&error) {
                        log::error!(
                            issuer, error = error.as_str();
                            "serverAuthConfig.oidc: an issuer has no usable keys; its tokens are refused"
                        );
                    }
                    logged = Some(error);
                }
                Err(error) => {
                    let has_keys = lock(&self.known).keys.is_some();
                    match logged.as_ref() == Some(&error) {
                        true => {}
                        false if has_keys => log::error!(
                            issuer, error = error.as_str();
                            "serverAuthConfig.oidc: cannot fetch the keys of an issuer; the last ones stay valid"
                        ),
                        false => log::error!(
                            issuer, error = error.as_str();
                            "serverAuthConfig.oidc: cannot fetch the keys of an issuer; there are none, so its tokens are refused"
                        ),
                    }
                    logged = Some(error);
                }
            }
            leader.finish(Ok(()));
        }
    }
}

/// The keys in a file.
pub(super) fn read(path: &Path) -> Result<KeySet, OidcError> {
    let json = fs::read(path)
        .map_err(|source| OidcError::Read { path: path.to_owned(), source: Arc::new(source) })?;
    // A set without keys is what an interrupted copy leaves.
    KeySet::parse(&json)
        .and_then(KeySet::or_none_usable)
        .map_err(|error| OidcError::Keys { path: path.to_owned(), reason: error.to_string() })
}

/// Nothing that can panic runs under these locks, so the data of a poisoned lock is consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
