//! How connections are shared among clients, and which connection a full table closes first.
//!
//! This module must not know sockets or threads. A connection without a complete request (idle, or in the middle of a
//! request head, a TLS handshake or a close) costs its client at most a retry. When the table is full, a new connection
//! takes the place of one of these: the oldest one of the client address that has the most of them. So an attacker
//! closes its own connections. This holds even if it shares an address with others: its unfinished heads get older,
//! while the connections of the others answer requests and become young again.
//!
//! Connections in the middle of a response are never closed for another one. How many connections one client address may
//! hold in total depends on how many places are free, so new connections from other addresses always find a place.
//!
//! **Entries are corrected when they are needed.** The start and the end of a request cost nothing here: a connection is
//! listed when it parks for the first time, and keeps that time. The code that takes the oldest entry compares it with
//! the connection, and lists the connection again if it was used since. Each correction is paid for by at least one
//! request, so closing one connection costs constant time on average, and logarithmic time in the number of connections.

use crate::client_address::ClientAddress;
use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

/// One client address may hold this many connections for each free place: eight ninths of the table if it is the only
/// one, eight seventeenths if it is one of two, and so on.
const HELD_FOR_EACH_FREE: usize = 8;

/// A connection that may be closed for another one: its place, and the time since when that is so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entry<P> {
    pub(super) since: Instant,
    pub(super) place: P,
}

/// Whether a new connection got a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opened {
    /// Yes; the connection is counted.
    Yes,
    /// No: a connection of any client must be closed first.
    TableFull,
    /// No: a connection of the same client must be closed first.
    ShareExceeded,
}

/// How the connections are distributed among clients.
#[derive(Debug)]
pub(super) struct Shares<P> {
    capacity: usize,
    open: usize,
    clients: HashMap<ClientAddress, Held<P>>,
    /// Clients with listed connections, ordered by the number of those.
    ranking: BTreeSet<(usize, ClientAddress)>,
}

#[derive(Debug)]
struct Held<P> {
    open: usize,
    listed: BTreeSet<Entry<P>>,
}

impl<P: Copy + Ord> Shares<P> {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, open: 0, clients: HashMap::new(), ranking: BTreeSet::new() }
    }

    /// Counts one more connection of `client` if a place is free for it.
    pub(super) fn open(&mut self, client: ClientAddress) -> Opened {
        let free = self.capacity.saturating_sub(self.open);
        let held = self.clients.get(&client).map_or(0, |held| held.open);
        match free {
            0 => Opened::TableFull,
            _ if held > free.saturating_mul(HELD_FOR_EACH_FREE) => Opened::ShareExceeded,
            _ => {
                self.open += 1;
                let vacant = || Held { open: 0, listed: BTreeSet::new() };
                self.clients.entry(client).or_insert_with(vacant).open += 1;
                Opened::Yes
            }
        }
    }

    /// Removes one connection of `client`, and its entry if it was listed.
    pub(super) fn close(&mut self, client: ClientAddress, entry: Option<Entry<P>>) {
        if let Some(entry) = entry {
            self.change(client, |listed| {
                listed.remove(&entry);
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

    /// Lists a connection of `client` that may be closed for another one.
    pub(super) fn list(&mut self, client: ClientAddress, entry: Entry<P>) {
        self.change(client, |listed| {
            listed.insert(entry);
        });
    }

    /// Removes and returns the oldest entry of the client `of`, or else of the client with the most entries.
    pub(super) fn take_oldest(&mut self, of: Option<ClientAddress>) -> Option<Entry<P>> {
        let client = of.or_else(|| self.ranking.last().map(|(_, client)| *client))?;
        let mut oldest = None;
        self.change(client, |listed| oldest = listed.pop_first());
        oldest
    }

    fn change(&mut self, client: ClientAddress, change: impl FnOnce(&mut BTreeSet<Entry<P>>)) {
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

    /// A table whose places are numbers, and whose clock advances with every connection.
    struct Table {
        shares: Shares<u32>,
        start: Instant,
        next: u32,
        places: HashMap<u32, (ClientAddress, Entry<u32>)>,
    }

    impl Table {
        fn new(capacity: usize) -> Table {
            let (shares, places) = (Shares::new(capacity), HashMap::new());
            Table { shares, start: Instant::now(), next: 0, places }
        }

        /// Opens a connection of this client. Returns the connection that was closed for it, or `None` if it was
        /// refused.
        fn open(&mut self, number: u8, is_evictable: bool) -> Option<Option<u32>> {
            let closed = match self.shares.open(client(number)) {
                Opened::Yes => None,
                Opened::TableFull => Some(self.shares.take_oldest(None)?),
                Opened::ShareExceeded => Some(self.shares.take_oldest(Some(client(number)))?),
            };
            let closed = closed.map(|entry| entry.place);
            if let Some(place) = closed {
                let (of, _) = self.places.remove(&place).unwrap();
                self.shares.close(of, None);
                assert_eq!(self.shares.open(client(number)), Opened::Yes);
            }
            self.next += 1;
            let since = self.start + Duration::from_millis(self.next.into());
            let entry = Entry { since, place: self.next };
            if is_evictable {
                self.shares.list(client(number), entry);
            }
            self.places.insert(self.next, (client(number), entry));
            Some(closed)
        }

        fn held(&self, number: u8) -> usize {
            self.places.values().filter(|(of, _)| *of == client(number)).count()
        }
    }

    #[test]
    fn a_flood_from_one_address_closes_only_its_own_connections() {
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
        // Other addresses get in, at the expense of the one with the most connections.
        for number in 11..=50 {
            table.open(number, true).unwrap();
            assert_eq!(table.held(number), 1);
        }
        for number in 1..=10 {
            assert_eq!(table.held(number), 1, "client {number} kept its connection");
        }
    }

    #[test]
    fn the_oldest_connection_of_an_address_is_closed_first() {
        let mut table = Table::new(3);
        let closed: Vec<_> = (0..6).map(|_| table.open(1, true).unwrap()).collect();
        assert_eq!(closed, [None, None, None, Some(1), Some(2), Some(3)]);
    }

    #[test]
    fn busy_connections_of_one_address_leave_places_for_others() {
        let mut table = Table::new(9_000);
        let taken = (0..10_000).take_while(|_| table.open(1, false).is_some()).count();
        assert_eq!(taken, 8_001, "eight for each free place");
        for number in 2..=6 {
            assert_eq!(table.open(number, false), Some(None), "client {number}");
        }
        let second = (0..10_000).take_while(|_| table.open(2, false).is_some()).count();
        assert!(second < 900, "{second}");
        assert_eq!(table.open(7, false), Some(None));
    }

    #[test]
    fn two_greedy_addresses_get_equal_shares() {
        let mut table = Table::new(100);
        for _ in 0..500 {
            table.open(1, true).unwrap();
            table.open(2, true).unwrap();
        }
        let (first, second) = (table.held(1), table.held(2));
        assert!(first.abs_diff(second) <= 1 && first + second <= 100, "{first} {second}");
    }

    #[test]
    fn clients_without_connections_use_no_memory() {
        let mut shares = Shares::new(4);
        let entry = Entry { since: Instant::now(), place: 7 };
        shares.open(client(1));
        shares.open(client(1));
        shares.list(client(1), entry);
        shares.close(client(1), Some(entry));
        assert_eq!(shares.take_oldest(None), None);
        shares.close(client(1), None);
        assert!(shares.clients.is_empty() && shares.ranking.is_empty());
        assert_eq!(shares.open, 0);
    }
}
