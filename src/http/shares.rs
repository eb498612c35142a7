//! Who holds the connections, and which of them a full table closes first.
//!
//! It must not know sockets or threads. A connection without a complete request (idle, in the middle of
//! a request head, of a TLS handshake or of the end of a connection) costs its client a retry at most.
//! When the table is full, the newcomer takes the place of such a connection: the oldest one of the
//! client address that has most of them. So an attacker closes its own connections; even where it shares
//! an address with others, its unfinished heads age while requests are answered.
//!
//! Connections in the middle of a response are never closed for that. What one client address may hold
//! altogether is bounded by what is free, so that newcomers from other addresses always find a place.
//!
//! **Entries are corrected when they are needed.** Entering and leaving a request costs nothing here: a
//! connection is listed when it is parked for the first time, and stays listed, as old as it was then.
//! Whoever takes the oldest entry compares it with the connection, and lists the connection again if it
//! was used since. Each correction is paid for by at least one request, so the cost of closing one
//! connection is constant on average, and logarithmic in the number of connections.

use crate::client_address::ClientAddress;
use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

/// One client address may hold this many connections for each one that is free: eight ninths of the
/// table if it is alone, eight seventeenths if it is one of two, and so on.
const HELD_FOR_EACH_FREE: usize = 8;

/// A connection that can be closed for another one: since when it has been so, and its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Listing<P> {
    pub(super) since: Instant,
    pub(super) place: P,
}

/// What becomes of a newcomer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// There was a place, and now it is the newcomer's.
    Free,
    /// There is one once a connection of anybody is closed.
    Full,
    /// There is one once a connection of the same client is closed.
    ShareExceeded,
}

/// How the connections are distributed among clients.
#[derive(Debug)]
pub(super) struct Shares<P> {
    capacity: usize,
    open: usize,
    clients: HashMap<ClientAddress, Held<P>>,
    /// Clients with listed connections, by their number.
    ranking: BTreeSet<(usize, ClientAddress)>,
}

#[derive(Debug)]
struct Held<P> {
    open: usize,
    listed: BTreeSet<Listing<P>>,
}

impl<P: Copy + Ord> Shares<P> {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, open: 0, clients: HashMap::new(), ranking: BTreeSet::new() }
    }

    /// Counts one more connection of `client` if there is a place.
    pub(super) fn open(&mut self, client: ClientAddress) -> Room {
        let free = self.capacity.saturating_sub(self.open);
        let held = self.clients.get(&client).map_or(0, |held| held.open);
        match free {
            0 => Room::Full,
            _ if held > free.saturating_mul(HELD_FOR_EACH_FREE) => Room::ShareExceeded,
            _ => {
                self.open += 1;
                let vacant = || Held { open: 0, listed: BTreeSet::new() };
                self.clients.entry(client).or_insert_with(vacant).open += 1;
                Room::Free
            }
        }
    }

    /// `client` has one connection less, which was listed like this.
    pub(super) fn closed(&mut self, client: ClientAddress, listing: Option<Listing<P>>) {
        if let Some(listing) = listing {
            self.change(client, |listed| {
                listed.remove(&listing);
            });
        }
        self.open = self.open.saturating_sub(1);
        if let Some(held) = self.clients.get_mut(&client) {
            held.open = held.open.saturating_sub(1);
            if held.open == 0 {
                self.clients.remove(&client);
            }
        }
    }

    /// A connection of `client` can be closed for another one.
    pub(super) fn list(&mut self, client: ClientAddress, listing: Listing<P>) {
        self.change(client, |listed| {
            listed.insert(listing);
        });
    }

    /// The oldest entry of a client, or of the client with most entries. It is listed no longer.
    pub(super) fn take_oldest(&mut self, of: Option<ClientAddress>) -> Option<Listing<P>> {
        let client = of.or_else(|| self.ranking.last().map(|(_, client)| *client))?;
        let mut oldest = None;
        self.change(client, |listed| oldest = listed.pop_first());
        oldest
    }

    fn change(&mut self, client: ClientAddress, change: impl FnOnce(&mut BTreeSet<Listing<P>>)) {
        let Some(held) = self.clients.get_mut(&client) else { return };
        let before = held.listed.len();
        change(&mut held.listed);
        let after = held.listed.len();
        if before != after {
            self.ranking.remove(&(before, client));
            if after > 0 {
                self.ranking.insert((after, client));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{IpAddr, Ipv4Addr};
    use std::time::Duration;

    fn client(number: u8) -> ClientAddress {
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, number)).into()
    }

    /// A table whose places are numbers, and in which time passes with every connection.
    struct Table {
        shares: Shares<u32>,
        start: Instant,
        next: u32,
        places: HashMap<u32, (ClientAddress, Listing<u32>)>,
    }

    impl Table {
        fn new(capacity: usize) -> Table {
            let (shares, places) = (Shares::new(capacity), HashMap::new());
            Table { shares, start: Instant::now(), next: 0, places }
        }

        /// One more connection of this client, and which one was closed for it; `None` if it was refused.
        fn open(&mut self, number: u8, is_losable: bool) -> Option<Option<u32>> {
            let closed = match self.shares.open(client(number)) {
                Room::Free => None,
                Room::Full => Some(self.shares.take_oldest(None)?),
                Room::ShareExceeded => Some(self.shares.take_oldest(Some(client(number)))?),
            };
            let closed = closed.map(|listing| listing.place);
            if let Some(place) = closed {
                let (of, _) = self.places.remove(&place).unwrap();
                self.shares.closed(of, None);
                assert_eq!(self.shares.open(client(number)), Room::Free);
            }
            self.next += 1;
            let since = self.start + Duration::from_millis(self.next.into());
            let listing = Listing { since, place: self.next };
            if is_losable {
                self.shares.list(client(number), listing);
            }
            self.places.insert(self.next, (client(number), listing));
            Some(closed)
        }

        fn held(&self, number: u8) -> usize {
            self.places.values().filter(|(of, _)| *of == client(number)).count()
        }
    }

    #[test]
    fn a_flood_from_one_address_closes_its_own_connections_only() {
        let mut table = Table::new(90);
        for number in 1..=10 {
            table.open(number, true).unwrap();
        }
        for _ in 0..1_000 {
            table.open(99, true).unwrap();
        }
        for number in 1..=10 {
            assert_eq!(table.held(number), 1, "client {number} kept its connection");
        }
        assert!(table.held(99) <= 80);
        // Others come in, at the cost of the one that has most.
        for number in 11..=50 {
            table.open(number, true).unwrap();
            assert_eq!(table.held(number), 1);
        }
        for number in 1..=10 {
            assert_eq!(table.held(number), 1, "client {number} kept its connection");
        }
    }

    #[test]
    fn of_one_address_the_oldest_connection_goes_first() {
        let mut table = Table::new(3);
        let closed: Vec<_> = (0..6).map(|_| table.open(1, true).unwrap()).collect();
        assert_eq!(closed, [None, None, None, Some(1), Some(2), Some(3)]);
    }

    #[test]
    fn connections_that_cannot_be_closed_leave_room_for_other_addresses() {
        let mut table = Table::new(9_000);
        let taken = (0..10_000).take_while(|_| table.open(1, false).is_some()).count();
        assert_eq!(taken, 8_001, "eight for each that is free");
        for number in 2..=6 {
            assert_eq!(table.open(number, false), Some(None), "client {number}");
        }
        let second = (0..10_000).take_while(|_| table.open(2, false).is_some()).count();
        assert!(second < 900, "{second}");
        assert_eq!(table.open(7, false), Some(None));
    }

    #[test]
    fn two_greedy_addresses_have_the_same_share() {
        let mut table = Table::new(100);
        for _ in 0..500 {
            table.open(1, true).unwrap();
            table.open(2, true).unwrap();
        }
        let (first, second) = (table.held(1), table.held(2));
        assert!(first.abs_diff(second) <= 1 && first + second <= 100, "{first} {second}");
    }

    #[test]
    fn nothing_is_left_of_clients_that_left() {
        let mut shares = Shares::new(4);
        let listing = Listing { since: Instant::now(), place: 7 };
        shares.open(client(1));
        shares.open(client(1));
        shares.list(client(1), listing);
        shares.closed(client(1), Some(listing));
        assert_eq!(shares.take_oldest(None), None);
        shares.closed(client(1), None);
        assert!(shares.clients.is_empty() && shares.ranking.is_empty());
        assert_eq!(shares.open, 0);
    }
}
