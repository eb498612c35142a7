//! The queue of password checks: client addresses take turns, and so do the users of one address.
//!
//! A check takes about 50 ms of one thread, so anyone who guesses passwords keeps that thread busy. Because addresses
//! take turns, a guesser delays every other address by only one check. An address with several wrong passwords in a row
//! has to pause between its checks. Users who share an address with a guesser take turns with the user names that it
//! guesses, where all names without an entry count as one user, and a password that was checked once is remembered. This
//! module must not know passwords; time is an argument.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::client_address::ClientAddress;

/// How many checks may wait in total. Beyond that, the client with the most of them loses its newest one.
const WAITING_MAX: usize = 512;
/// How many checks of one client address may wait. Beyond that, the user with the most of them loses the newest one. Even
/// with the longest pause between them, they are done before clients time out (`api/login.rs`).
const CLIENT_MAX: usize = 32;
/// How many checks, with different passwords, may wait for one user of one client address.
const USER_MAX: usize = 2;
/// How many wrong passwords in a row an address may present without a pause. This covers a few nodes with an old secret.
const FAILURES_FREE: u32 = 8;
/// The first pause. It doubles with each further wrong password, up to `PAUSE_MAX`.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// How many addresses have their failures remembered. Beyond that, addresses whose pause is over are forgotten; if there
/// are none, new addresses are not remembered.
const FAILING_MAX: usize = 4096;

/// The waiting checks.
#[derive(Debug)]
pub(super) struct FairQueue<T> {
    waiting: usize,
    clients: HashMap<ClientAddress, Client<T>>,
    /// The clients with waiting checks, next one first.
    order: VecDeque<ClientAddress>,
    failing: HashMap<ClientAddress, Failures>,
}

#[derive(Debug)]
struct Client<T> {
    waiting: usize,
    /// The users with waiting checks, next one first. `None` stands for all names without an entry.
    users: VecDeque<(Option<String>, VecDeque<T>)>,
}

#[derive(Debug, Clone, Copy)]
struct Failures {
    in_a_row: u32,
    paused_until: Instant,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<T> {
    /// Run this client's check.
    Check(ClientAddress, T),
    /// Wait until this time: all clients with checks have to pause.
    Pause(Instant),
    /// Wait for a check to arrive.
    Idle,
}

impl<T> FairQueue<T> {
    pub(super) fn new() -> FairQueue<T> {
        FairQueue {
            waiting: 0,
            clients: HashMap::new(),
            order: VecDeque::new(),
            failing: HashMap::new(),
        }
    }

    /// Adds a check for a user, or `None` for a name without an entry. If there is no space, returns the check to refuse:
    /// this one, or the newest check of the user or the client with the most of them.
    pub(super) fn push(
        &mut self,
        client: ClientAddress,
        user: Option<&str>,
        check: T,
    ) -> Option<T> {
        let (held, held_by_user) = self.held(client, user);
        if held_by_user >= USER_MAX {
            return Some(check);
        }
        let mut refused = None;
        if held >= CLIENT_MAX || self.waiting >= WAITING_MAX {
            refused = match held >= CLIENT_MAX {
                true => self.pop_latest(client, held_by_user + 1),
                false => self.client_above(held + 1).and_then(|most| self.pop_latest(most, 0)),
            };
            if refused.is_none() {
                return Some(check);
            }
        }
        let order = &mut self.order;
        let entry = self.clients.entry(client).or_insert_with(|| {
            order.push_back(client);
            Client { waiting: 0, users: VecDeque::new() }
        });
        match entry.users.iter_mut().find(|(name, _)| name.as_deref() == user) {
            Some((_, checks)) => checks.push_back(check),
            None => entry.users.push_back((user.map(str::to_owned), VecDeque::from([check]))),
        }
        entry.waiting += 1;
        self.waiting += 1;
        refused
    }

    /// The client with the most waiting checks, if these are more than `least`.
    fn client_above(&self, least: usize) -> Option<ClientAddress> {
        let most = self.clients.iter().max_by_key(|(_, client)| client.waiting);
        most.filter(|(_, client)| client.waiting > least).map(|(&address, _)| address)
    }

    /// How many checks of a client are waiting, and how many of these for the user.
    fn held(&self, client: ClientAddress, user: Option<&str>) -> (usize, usize) {
        let Some(client) = self.clients.get(&client) else { return (0, 0) };
        let of_user = client.users.iter().find(|(name, _)| name.as_deref() == user);
        (client.waiting, of_user.map_or(0, |(_, checks)| checks.len()))
    }

    /// Removes and returns the next check.
    pub(super) fn next(&mut self, now: Instant) -> Next<T> {
        let mut soonest: Option<Instant> = None;
        for _ in 0..self.order.len() {
            let Some(client) = self.order.pop_front() else { break };
            if let Some(until) = self.paused_until(client).filter(|until| *until > now) {
                soonest = Some(soonest.map_or(until, |soonest| soonest.min(until)));
                self.order.push_back(client);
                continue;
            }
            if let Some(check) = self.pop_first(client) {
                return Next::Check(client, check);
            }
        }
        soonest.map_or(Next::Idle, Next::Pause)
    }

    /// Records whether a password of this client was correct.
    pub(super) fn checked(&mut self, client: ClientAddress, is_correct: bool, now: Instant) {
        if is_correct {
            self.failing.remove(&client);
            return;
        }
        if self.failing.len() >= FAILING_MAX && !self.failing.contains_key(&client) {
            self.failing.retain(|_, failures| failures.paused_until > now);
            if self.failing.len() >= FAILING_MAX {
                return;
            }
        }
        let new = Failures { in_a_row: 0, paused_until: now };
        let failures = self.failing.entry(client).or_insert(new);
        failures.in_a_row = failures.in_a_row.saturating_add(1);
        failures.paused_until = now + pause_after(failures.in_a_row);
    }

    fn paused_until(&self, client: ClientAddress) -> Option<Instant> {
        self.failing.get(&client).map(|failures| failures.paused_until)
    }

    /// Removes the first check of the client's next user, and moves both the user and the client to the end.
    fn pop_first(&mut self, client: ClientAddress) -> Option<T> {
        let entry = self.clients.get_mut(&client)?;
        let (user, mut checks) = entry.users.pop_front()?;
        let check = checks.pop_front();
        if !checks.is_empty() {
            entry.users.push_back((user, checks));
        }
        if check.is_some() {
            entry.waiting -= 1;
            self.waiting -= 1;
        }
        match entry.users.is_empty() {
            true => {
                self.clients.remove(&client);
            }
            false => self.order.push_back(client),
        }
        check
    }

    /// Removes the newest check of the user with the most checks of this client, if these are more than `least`. Of equals,
    /// the user whose turn is last. A client has no empty users.
    fn pop_latest(&mut self, client: ClientAddress, least: usize) -> Option<T> {
        let entry = self.clients.get_mut(&client)?;
        let users = entry.users.iter().enumerate();
        let (position, most) = users.max_by_key(|(_, (_, checks))| checks.len())?;
        if most.1.len() <= least {
            return None;
        }
        let checks = &mut entry.users[position].1;
        let check = checks.pop_back()?;
        if checks.is_empty() {
            entry.users.remove(position);
        }
        entry.waiting -= 1;
        self.waiting -= 1;
        Some(check)
    }
}

fn pause_after(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(FAILURES_FREE);
    match doublings {
        0 => Duration::ZERO,
        // Eight doublings exceed `PAUSE_MAX`.
        _ => PAUSE_FIRST.saturating_mul(1 << (doublings - 1).min(8)).min(PAUSE_MAX),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    fn client(number: u16) -> ClientAddress {
        let [high, low] = number.to_be_bytes();
        IpAddr::V4(Ipv4Addr::new(10, 0, high, low)).into()
    }

    fn drain(queue: &mut FairQueue<String>, now: Instant) -> Vec<String> {
        let mut order = Vec::new();
        while let Next::Check(_, check) = queue.next(now) {
            order.push(check);
        }
        order
    }

    #[test]
    fn addresses_take_turns_and_so_do_their_users() {
        let (mut queue, now) = (FairQueue::new(), Instant::now());
        for (of, user, check) in [
            (1, "ann", "1-ann-1"),
            (1, "ann", "1-ann-2"),
            (1, "bob", "1-bob-1"),
            (2, "ann", "2-ann-1"),
            (2, "ann", "2-ann-2"),
        ] {
            assert_eq!(queue.push(client(of), Some(user), check.to_owned()), None);
        }
        let order = drain(&mut queue, now);
        assert_eq!(order, ["1-ann-1", "2-ann-1", "1-bob-1", "2-ann-2", "1-ann-2"]);
        assert!(queue.clients.is_empty() && queue.order.is_empty() && queue.waiting == 0);
    }

    #[test]
    fn a_guesser_delays_another_address_by_one_check() {
        let (mut queue, now) = (FairQueue::new(), Instant::now());
        let refused = (0..1_000).filter(|guess| {
            queue.push(client(1), Some(&format!("user{guess}")), String::new()).is_some()
        });
        assert_eq!(refused.count(), 1_000 - CLIENT_MAX);
        assert_eq!(queue.push(client(2), Some("ann"), "right".to_owned()), None);
        let order = drain(&mut queue, now);
        assert_eq!(order.iter().position(|check| check == "right"), Some(1));
    }

    #[test]
    fn guessing_one_user_leaves_space_for_others_at_the_same_address() {
        let (mut queue, now) = (FairQueue::new(), Instant::now());
        for _ in 0..1_000 {
            queue.push(client(1), Some("root"), String::new());
        }
        assert_eq!(queue.push(client(1), Some("ann"), "right".to_owned()), None);
        let order = drain(&mut queue, now);
        assert_eq!(order.iter().position(|check| check == "right"), Some(1));
    }

    #[test]
    fn invented_names_are_one_user_and_leave_space_for_those_at_the_same_address() {
        let (mut queue, now) = (FairQueue::new(), Instant::now());
        let refused = (0..1_000).filter(|_| queue.push(client(1), None, String::new()).is_some());
        assert_eq!(refused.count(), 1_000 - USER_MAX);
        assert_eq!(queue.push(client(1), Some("ann"), "right".to_owned()), None);
        let order = drain(&mut queue, now);
        assert_eq!(order.iter().position(|check| check == "right"), Some(1));
    }

    #[test]
    fn guessing_several_users_leaves_space_for_another_one_at_the_same_address() {
        let (mut queue, now) = (FairQueue::new(), Instant::now());
        for guess in 0..1_000 {
            let user = format!("user{}", guess % (CLIENT_MAX / USER_MAX));
            queue.push(client(1), Some(&user), user.clone());
        }
        let refused = queue.push(client(1), Some("ann"), "right".to_owned());
        assert!(refused.is_some_and(|check| check.starts_with("user")));
        let order = drain(&mut queue, now);
        assert_eq!(order.len(), CLIENT_MAX);
        assert!(order.contains(&"right".to_owned()));
        assert!(queue.clients.is_empty() && queue.order.is_empty() && queue.waiting == 0);
    }

    #[test]
    fn the_client_with_most_checks_loses_one_when_the_queue_is_full() {
        let (mut queue, now) = (FairQueue::new(), Instant::now());
        for number in 0..u16::try_from(WAITING_MAX / CLIENT_MAX).unwrap() {
            for user in 0..CLIENT_MAX {
                let check = format!("guess {number} {user}");
                assert_eq!(queue.push(client(number), Some(&format!("user{user}")), check), None);
            }
        }
        let refused = queue.push(client(999), Some("ann"), "right".to_owned()).unwrap();
        assert!(refused.starts_with("guess"), "{refused}");
        assert!(drain(&mut queue, now).contains(&"right".to_owned()));
    }

    #[test]
    fn wrong_passwords_in_a_row_pause_an_address_until_a_correct_one() {
        let (mut queue, start) = (FairQueue::new(), Instant::now());
        for _ in 0..FAILURES_FREE {
            queue.checked(client(1), false, start);
        }
        queue.push(client(1), Some("ann"), "1".to_owned());
        assert_eq!(queue.next(start), Next::Check(client(1), "1".to_owned()));
        queue.checked(client(1), false, start);
        queue.push(client(1), Some("ann"), "2".to_owned());
        assert_eq!(queue.next(start), Next::Pause(start + PAUSE_FIRST));
        queue.push(client(2), Some("bob"), "3".to_owned());
        assert_eq!(queue.next(start), Next::Check(client(2), "3".to_owned()));
        let later = start + PAUSE_FIRST;
        assert_eq!(queue.next(later), Next::Check(client(1), "2".to_owned()));
        for _ in 0..1_000 {
            queue.checked(client(1), false, later);
        }
        queue.push(client(1), Some("ann"), "4".to_owned());
        assert_eq!(queue.next(later), Next::Pause(later + PAUSE_MAX));
        queue.checked(client(1), true, later);
        assert_eq!(queue.next(later), Next::Check(client(1), "4".to_owned()));
        assert_eq!(queue.next(later), Next::Idle);
    }

    #[test]
    fn the_number_of_remembered_failures_is_bounded() {
        let (mut queue, now) = (FairQueue::<String>::new(), Instant::now());
        for number in 0..=u16::MAX {
            queue.checked(client(number), false, now);
        }
        assert!(queue.failing.len() <= FAILING_MAX);
    }
}
