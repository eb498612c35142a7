//! What is known of logins, in memory. Pure: callers pass in the time.

use std::time::{Duration, SystemTime};

use super::AccessError;
use crate::cache::bounded::BoundedCache;
use crate::client_address::ClientAddress;
use crate::oci::KeyedHash;
use crate::upstream::Wanted;

/// How many permissions are remembered: one for each login and repository.
const GRANTS_REMEMBERED: usize = 16_384;
/// The same for refusals. They have a table of their own, so that wrong logins do not displace permissions.
const REFUSALS_REMEMBERED: usize = 4_096;
/// How many client addresses with refused logins are remembered.
const ADDRESSES_REMEMBERED: usize = 4_096;
/// How many different logins may be refused for an address in [`GUESSES_EVERY`]. Known ones do not count, so that the nodes
/// of a cluster with an old password behind one address do not lock others out.
const GUESSES_MAX: u32 = 10;
const GUESSES_EVERY: Duration = Duration::from_secs(60);

/// What is known of logins.
pub(super) struct Verdicts {
    /// When each permission has to be confirmed again.
    granted: BoundedCache<KeyedHash, Period>,
    /// Refusals of logins; and with what was wanted, answers that there is no such content.
    refused: BoundedCache<(KeyedHash, Option<Wanted>), (Period, AccessError)>,
    guesses: BoundedCache<ClientAddress, (Period, u32)>,
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
            refused: BoundedCache::new(REFUSALS_REMEMBERED),
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
        if self.granted.get(key).is_some_and(|period| period.has(now)) {
            return Some(Ok(()));
        }
        let refusal = |wanted: Option<Wanted>| {
            let (period, error) = self.refused.get(&(*key, wanted))?;
            period.has(now).then(|| Err(error.clone()))
        };
        refusal(None).or_else(|| refusal(Some(wanted.clone())))
    }

    pub(super) fn grant(&mut self, key: KeyedHash, now: SystemTime, duration: Duration) {
        self.granted.insert(key, Period::of(now, duration));
        self.refused.remove(&(key, None));
    }

    /// Remembers that a login is refused, or that what it wants does not exist.
    pub(super) fn refuse(
        &mut self,
        key: KeyedHash,
        wanted: &Wanted,
        error: &AccessError,
        now: SystemTime,
        duration: Duration,
    ) {
        self.granted.remove(&key);
        let what = matches!(error, AccessError::NotFound { .. }).then(|| wanted.clone());
        self.refused.insert((key, what), (Period::of(now, duration), error.clone()));
    }

    /// Whether a refusal of a login is remembered, however old it is: then the same login is no guess.
    pub(super) fn was_refused(&self, key: &KeyedHash) -> bool {
        self.refused.get(&(*key, None)).is_some()
    }

    /// Counts a login that the registry has refused.
    pub(super) fn note_guess(&mut self, client: ClientAddress, now: SystemTime) {
        match self.guesses.get_mut(&client).filter(|(period, _)| period.has(now)) {
            Some((_, count)) => *count = count.saturating_add(1),
            None => self.guesses.insert(client, (Period::of(now, GUESSES_EVERY), 1)),
        }
    }

    /// How long an address has to wait before another unknown login is checked.
    pub(super) fn wait_for_guess(
        &self,
        client: ClientAddress,
        now: SystemTime,
    ) -> Option<Duration> {
        let (period, count) = self.guesses.get(&client)?;
        let is_limited = period.has(now) && *count >= GUESSES_MAX;
        is_limited.then(|| period.until.duration_since(now).unwrap_or_default())
    }

    /// Forgets everything about logins.
    pub(super) fn clear(&mut self) {
        self.granted.clear();
        self.refused.clear();
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
        verdicts.grant(key("ann"), now, MINUTE);
        let is_granted =
            |at| matches!(verdicts.recall(&key("ann"), &Wanted::Lists, at), Some(Ok(())));
        assert!(is_granted(now) && is_granted(now + MINUTE / 2));
        assert!(!is_granted(now + MINUTE) && !is_granted(START));
        assert!(verdicts.recall(&key("bob"), &Wanted::Lists, now).is_none());
    }

    #[test]
    fn a_refused_login_gets_nothing_and_missing_content_is_about_itself() {
        let mut verdicts = Verdicts::new();
        let refused = AccessError::Refused { status: 401 };
        verdicts.refuse(key("eve"), &blob("a"), &refused, START, MINUTE);
        let missing = AccessError::NotFound { wanted: blob("a") };
        verdicts.refuse(key("ann"), &blob("a"), &missing, START, MINUTE);
        let known = |user: &str, wanted: &Wanted| verdicts.recall(&key(user), wanted, START);
        assert!(matches!(known("eve", &blob("b")), Some(Err(AccessError::Refused { .. }))));
        assert!(matches!(known("ann", &blob("a")), Some(Err(AccessError::NotFound { .. }))));
        assert!(known("ann", &blob("b")).is_none());
        verdicts.grant(key("eve"), START, MINUTE);
        let known = verdicts.recall(&key("eve"), &blob("b"), START);
        assert!(matches!(known, Some(Ok(()))), "the password was changed");
    }

    #[test]
    fn guesses_are_limited_for_each_address() {
        let address = |last| ClientAddress::from(IpAddr::V4(Ipv4Addr::new(192, 0, 2, last)));
        let mut verdicts = Verdicts::new();
        for _ in 0..GUESSES_MAX {
            assert_eq!(verdicts.wait_for_guess(address(1), START), None);
            verdicts.note_guess(address(1), START);
        }
        assert_eq!(verdicts.wait_for_guess(address(1), START + MINUTE / 4), Some(MINUTE / 4 * 3));
        assert_eq!(verdicts.wait_for_guess(address(2), START), None);
        assert_eq!(verdicts.wait_for_guess(address(1), START + MINUTE), None);
    }
}
