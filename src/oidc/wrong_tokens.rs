//! Client addresses that present wrong tokens. A check of a signature costs up to a millisecond, and anyone can ask for it.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use crate::client_address::ClientAddress;

/// How many wrong tokens of an address are checked in [`EVERY`]. Those that were accepted before do not count.
const WRONG_MAX: u32 = 20;
const EVERY: Duration = Duration::from_secs(60);
/// How many addresses are remembered.
const ADDRESSES_MAX: usize = 4096;

/// See the description of the module. Pure: callers pass in the time.
#[derive(Default)]
pub(super) struct WrongTokens {
    /// When the count began, and the count.
    by_address: HashMap<ClientAddress, (SystemTime, u32)>,
}

impl WrongTokens {
    /// Whether no further token of an address should be checked now.
    pub(super) fn is_too_much(&self, client: ClientAddress, now: SystemTime) -> bool {
        let counted = self.by_address.get(&client);
        counted.is_some_and(|(since, count)| *count >= WRONG_MAX && is_current(*since, now))
    }

    /// Counts a token with a wrong signature.
    pub(super) fn note(&mut self, client: ClientAddress, now: SystemTime) {
        if self.by_address.len() >= ADDRESSES_MAX && !self.by_address.contains_key(&client) {
            self.by_address.retain(|_, (since, _)| is_current(*since, now));
        }
        // Many addresses at once are not counted one by one.
        if self.by_address.len() >= ADDRESSES_MAX {
            self.by_address.clear();
        }
        let (since, count) = self.by_address.entry(client).or_insert((now, 0));
        if !is_current(*since, now) {
            (*since, *count) = (now, 0);
        }
        *count += 1;
    }
}

/// If the clock is set back, the count begins again.
fn is_current(since: SystemTime, now: SystemTime) -> bool {
    now.duration_since(since).is_ok_and(|age| age < EVERY)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    fn client(number: u32) -> ClientAddress {
        IpAddr::V4(Ipv4Addr::from(number)).into()
    }

    #[test]
    fn an_address_is_stopped_for_a_while_and_others_are_not() {
        let (mut wrong, start) = (WrongTokens::default(), SystemTime::UNIX_EPOCH + EVERY);
        for _ in 0..WRONG_MAX {
            assert!(!wrong.is_too_much(client(1), start));
            wrong.note(client(1), start);
        }
        assert!(wrong.is_too_much(client(1), start) && !wrong.is_too_much(client(2), start));
        assert!(!wrong.is_too_much(client(1), start + EVERY));
        assert!(!wrong.is_too_much(client(1), start - Duration::from_secs(1)));
        wrong.note(client(1), start + EVERY);
        assert!(!wrong.is_too_much(client(1), start + EVERY));
    }

    #[test]
    fn the_table_is_bounded() {
        let (mut wrong, start) = (WrongTokens::default(), SystemTime::UNIX_EPOCH);
        for number in 0..3 * u32::try_from(ADDRESSES_MAX).unwrap() {
            wrong.note(client(number), start);
        }
        assert!(wrong.by_address.len() <= ADDRESSES_MAX);
    }
}
