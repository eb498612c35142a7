//! What is known of logins, in memory. Pure: callers pass in the time.

use std::time::{Duration, SystemTime};

use super::AccessError;
use crate::cache::bounded::BoundedCache;
use crate::client_address::ClientAddress;
use crate::oci::KeyedHash;
use crate::upstream::Wanted;

/// How many permissions are remembered: one for each login and repository.
const GRANTS_REMEMBERED: usize = 16_384;
/// The same for refusals, and for permissions of single blobs and lists. They have tables of their own, so that wrong logins
/// do not displace permissions.
const OTHERS_REMEMBERED: usize = 4_096;
/// How many client addresses with refused logins are remembered.
const ADDRESSES_REMEMBERED: usize = 4_096;
/// How many different logins may be refused for an address in [`GUESSES_EVERY`]. A login counts once, whatever it is refused
/// for, and one that its registry has let in does not count: an old password on many nodes behind one address must not keep
/// others out.
const GUESSES_MAX: usize = 10;
const GUESSES_EVERY: Duration = Duration::from_secs(60);

/// What is known of logins.
pub(super) struct Verdicts {
    /// Logins that may pull from a repository, and how long that counts.
    granted: BoundedCache<KeyedHash, Period>,
    /// Logins that may have one blob or the lists of a repository, of which nothing else is known.
    granted_parts: BoundedCache<(KeyedHash, Wanted), Period>,
    /// Logins that may not pull from a repository; and with what was wanted, refusals about that only.
    refused: BoundedCache<(KeyedHash, Option<Wanted>), (Period, AccessError)>,
    /// Logins that a registry has let in, whatever for.
    good: BoundedCache<KeyedHash, ()>,
    /// The logins of each address that were refused lately.
    guesses: BoundedCache<ClientAddress, (Period, Vec<KeyedHash>)>,
}

/// What a verdict is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// Everything in the repository.
    Repository,
    /// What was wanted.
    Wanted,
}

/// A time from which and a time until which something is valid. If the clock is set back, it is not.
#[derive(Debug, Clone, Copy)]
struct Period {
    from: SystemTime,
    until: SystemTime,
}

impl Period {
    fn of(now: SystemTime, duration: Duration) -> Period {
        Period { from: now, until: now + duration }
    }

    fn has(&self, now: SystemTime) -> bool {
        self.from <= now && now < self.until
    }
}

impl Verdicts {
    pub(super) fn new() -> Verdicts {
        Verdicts {
            granted: BoundedCache::new(GRANTS_REMEMBERED),
            granted_parts: BoundedCache::new(OTHERS_REMEMBERED),
            refused: BoundedCache::new(OTHERS_REMEMBERED),
            good: BoundedCache::new(OTHERS_REMEMBERED),
            guesses: BoundedCache::new(ADDRESSES_REMEMBERED),
        }
    }

    /// What is known of a login that wants something; `None` if the registry has to be asked.
    pub(super) fn recall(
        &self,
        key: &KeyedHash,
        wanted: &Wanted,
        now: SystemTime,
    ) -> Option<Result<(), AccessError>> {
        let is_valid = |period: Option<&Period>| period.is_some_and(|period| period.has(now));
        let part = (*key, wanted.clone());
        if is_valid(self.granted.get(key)) || is_valid(self.granted_parts.get(&part)) {
            return Some(Ok(()));
        }
        let refusal = |wanted: Option<Wanted>| {
            let (period, error) = self.refused.get(&(*key, wanted))?;
            period.has(now).then(|| Err(error.clone()))
        };
        refusal(None).or_else(|| refusal(Some(wanted.clone())))
    }

    /// Remembers that a login may pull from a repository, or what was wanted of it.
    pub(super) fn grant(
        &mut self,
        key: KeyedHash,
        scope: Scope,
        wanted: &Wanted,
        now: SystemTime,
        duration: Duration,
    ) {
        let period = Period::of(now, duration);
        match scope {
            Scope::Repository => self.granted.insert(key, period),
            Scope::Wanted => self.granted_parts.insert((key, wanted.clone()), period),
        }
        self.refused.remove(&(key, None));
        self.refused.remove(&(key, Some(wanted.clone())));
    }

    /// Remembers that a login may not pull from a repository, or not what was wanted of it.
    pub(super) fn refuse(
        &mut self,
        key: KeyedHash,
        scope: Scope,
        wanted: &Wanted,
        error: &AccessError,
        now: SystemTime,
        duration: Duration,
    ) {
        let what = match scope {
            Scope::Repository => {
                self.granted.remove(&key);
                self.granted_parts.retain(|(other, _)| *other != key);
                None
            }
            Scope::Wanted => Some(wanted.clone()),
        };
        self.refused.insert((key, what), (Period::of(now, duration), error.clone()));
    }

    /// Remembers that a registry has let a login in. `login` identifies it at this registry.
    pub(super) fn note_good(&mut self, login: KeyedHash) {
        self.good.insert(login, ());
    }

    /// Counts a login that the registry has refused.
    pub(super) fn note_guess(&mut self, client: ClientAddress, login: KeyedHash, now: SystemTime) {
        if self.good.get(&login).is_some() {
            return;
        }
        match self.guesses.get_mut(&client).filter(|(period, _)| period.has(now)) {
            Some((_, logins)) if logins.contains(&login) || logins.len() >= GUESSES_MAX => {}
            Some((_, logins)) => logins.push(login),
            None => self.guesses.insert(client, (Period::of(now, GUESSES_EVERY), vec![login])),
        }
    }

    /// How long an address has to wait before another unknown login is checked.
    pub(super) fn wait_for_guess(
        &self,
        client: ClientAddress,
        login: &KeyedHash,
        now: SystemTime,
    ) -> Option<Duration> {
        let (period, logins) = self.guesses.get(&client)?;
        let is_limited = period.has(now)
            && logins.len() >= GUESSES_MAX
            && !logins.contains(login)
            && self.good.get(login).is_none();
        is_limited.then(|| period.until.duration_since(now).unwrap_or_default())
    }

    /// Forgets everything about logins.
    pub(super) fn clear(&mut self) {
        self.granted.clear();
        self.granted_parts.clear();
        self.refused.clear();
        self.good.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    const START: SystemTime = SystemTime::UNIX_EPOCH;
    const MINUTE: Duration = Duration::from_secs(60);

    fn key(user: &str) -> KeyedHash {
        KeyedHash::of(b"secret", &[user])
    }

    fn blob(fill: &str) -> Wanted {
        Wanted::Blob(format!("sha256:{}", fill.repeat(64)).parse().unwrap())
    }

    #[test]
    fn a_permission_ends_and_does_not_survive_a_clock_that_is_set_back() {
        let mut verdicts = Verdicts::new();
        let now = START + MINUTE * 10;
        verdicts.grant(key("ann"), Scope::Repository, &blob("a"), now, MINUTE);
        let is_granted =
            |at| matches!(verdicts.recall(&key("ann"), &Wanted::Lists, at), Some(Ok(())));
        assert!(is_granted(now) && is_granted(now + MINUTE / 2));
        assert!(!is_granted(now + MINUTE) && !is_granted(START));
        assert!(verdicts.recall(&key("bob"), &Wanted::Lists, now).is_none());
    }

    #[test]
    fn a_list_or_a_blob_proves_nothing_else() {
        let mut verdicts = Verdicts::new();
        verdicts.grant(key("ann"), Scope::Wanted, &Wanted::Lists, START, MINUTE);
        verdicts.grant(key("bob"), Scope::Wanted, &blob("a"), START, MINUTE);
        let is_granted =
            |user, wanted| matches!(verdicts.recall(&key(user), &wanted, START), Some(Ok(())));
        assert!(is_granted("ann", Wanted::Lists) && is_granted("bob", blob("a")));
        assert!(!is_granted("ann", blob("a")) && !is_granted("bob", blob("b")));
        assert!(!is_granted("bob", Wanted::Lists));
    }

    #[test]
    fn a_refused_login_gets_nothing_and_missing_content_is_about_itself() {
        let mut verdicts = Verdicts::new();
        let refused = AccessError::Refused { status: 401 };
        verdicts.refuse(key("eve"), Scope::Repository, &blob("a"), &refused, START, MINUTE);
        let missing = AccessError::NotFound;
        verdicts.refuse(key("ann"), Scope::Wanted, &blob("a"), &missing, START, MINUTE);
        let known = |user: &str, wanted: &Wanted| verdicts.recall(&key(user), wanted, START);
        assert!(matches!(known("eve", &blob("b")), Some(Err(AccessError::Refused { .. }))));
        assert!(matches!(known("ann", &blob("a")), Some(Err(AccessError::NotFound))));
        assert!(known("ann", &blob("b")).is_none());
        verdicts.grant(key("eve"), Scope::Repository, &blob("a"), START, MINUTE);
        let known = verdicts.recall(&key("eve"), &blob("b"), START);
        assert!(matches!(known, Some(Ok(()))), "the password was changed");
    }

    #[test]
    fn different_logins_are_counted_for_each_address() {
        let address = |last| ClientAddress::from(IpAddr::V4(Ipv4Addr::new(192, 0, 2, last)));
        let mut verdicts = Verdicts::new();
        let wait = |verdicts: &Verdicts, last, user: &str, at| {
            verdicts.wait_for_guess(address(last), &key(user), at)
        };
        verdicts.note_good(key("ann"));
        for guess in 0..GUESSES_MAX {
            assert_eq!(wait(&verdicts, 1, "eve", START), None);
            for login in [format!("guess-{guess}"), "ann".into()] {
                verdicts.note_guess(address(1), key(&login), START);
                verdicts.note_guess(address(1), key(&login), START);
            }
        }
        assert_eq!(wait(&verdicts, 1, "eve", START + MINUTE / 4), Some(MINUTE / 4 * 3));
        assert_eq!(wait(&verdicts, 1, "ann", START), None, "its registry has let it in");
        assert_eq!(wait(&verdicts, 1, "guess-3", START), None, "it counts already");
        assert_eq!(wait(&verdicts, 2, "eve", START), None);
        assert_eq!(wait(&verdicts, 1, "eve", START + MINUTE), None);
    }
}
