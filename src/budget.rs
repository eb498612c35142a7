//! A bounded amount of a resource, shared among clients.
//!
//! A client may hold as much as is still free. So a single client gets at most half of the total, two clients get a
//! third each, and some is always left for a new client. An item that several responses share is counted once in the
//! total and once for each client.
//!
//! This module must not know what is counted.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::client_address::ClientAddress;

/// The budget. `K` identifies an item, such as the address of an allocation.
#[derive(Debug)]
pub struct Budget<K> {
    total: u64,
    /// Held for lookups only.
    state: Mutex<State<K>>,
}

#[derive(Debug)]
struct State<K> {
    used: u64,
    items: HashMap<K, Item>,
    clients: HashMap<ClientAddress, u64>,
}

#[derive(Debug)]
struct Item {
    amount: u64,
    /// How many charges each client holds on this item.
    holders: HashMap<ClientAddress, usize>,
}

impl<K: Hash + Eq + Clone> Budget<K> {
    /// Creates a budget of `total`.
    pub fn new(total: u64) -> Arc<Budget<K>> {
        let state = State { used: 0, items: HashMap::new(), clients: HashMap::new() };
        Arc::new(Budget { total, state: Mutex::new(state) })
    }

    /// Counts `item` against the total and against `client` until the charge is dropped. Returns `None` if that would
    /// exceed the client's share.
    pub fn charge(
        self: &Arc<Self>,
        item: K,
        amount: u64,
        client: ClientAddress,
    ) -> Option<Charge<K>> {
        let mut state = self.lock();
        let State { used, items, clients } = &mut *state;
        let known = items.get(&item);
        let new_in_total = if known.is_some() { 0 } else { amount };
        let is_held = known.is_some_and(|item| item.holders.contains_key(&client));
        let new_for_client = if is_held { 0 } else { amount };
        let held = clients.get(&client).copied().unwrap_or_default() + new_for_client;
        // An item that is already charged adds nothing to the total.
        let free = self.total.checked_sub(*used + new_in_total)?;
        if new_in_total > 0 && held > free {
            return None;
        }
        *used += new_in_total;
        if new_for_client > 0 {
            clients.insert(client, held);
        }
        let entry = items
            .entry(item.clone())
            .or_insert_with(|| Item { amount, holders: HashMap::with_capacity(1) });
        *entry.holders.entry(client).or_default() += 1;
        drop(state);
        Some(Charge { budget: Arc::clone(self), item, client })
    }

    /// How much is in use.
    pub fn used(&self) -> u64 {
        self.lock().used
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        // Nothing that can panic runs under this lock, so the data of a poisoned lock is consistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn release(&self, item: &K, client: ClientAddress) {
        let mut state = self.lock();
        let State { used, items, clients } = &mut *state;
        let Some(held) = items.get_mut(item) else { return };
        let Entry::Occupied(mut holder) = held.holders.entry(client) else { return };
        *holder.get_mut() -= 1;
        if *holder.get() > 0 {
            return;
        }
        holder.remove();
        let amount = held.amount;
        if held.holders.is_empty() {
            items.remove(item);
            *used = used.saturating_sub(amount);
        }
        if let Entry::Occupied(mut client) = clients.entry(client) {
            *client.get_mut() = client.get().saturating_sub(amount);
            if *client.get() == 0 {
                client.remove();
            }
        }
    }
}

/// A part of a budget. Dropping it returns that part.
#[derive(Debug)]
pub struct Charge<K: Hash + Eq + Clone> {
    budget: Arc<Budget<K>>,
    item: K,
    client: ClientAddress,
}

impl<K: Hash + Eq + Clone> Drop for Charge<K> {
    fn drop(&mut self) {
        self.budget.release(&self.item, self.client);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    fn client(number: u8) -> ClientAddress {
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, number)).into()
    }

    /// Charges items of 1 until the client is refused.
    fn greedy(budget: &Arc<Budget<u32>>, number: u8) -> Vec<Charge<u32>> {
        (0..1000)
            .map_while(|item| budget.charge(u32::from(number) * 1000 + item, 1, client(number)))
            .collect()
    }

    #[test]
    fn one_client_gets_half_and_some_is_always_left_for_the_next() {
        let budget = Budget::new(100);
        let first = greedy(&budget, 1);
        assert_eq!((first.len(), budget.used()), (50, 50));
        let second = greedy(&budget, 2);
        assert_eq!(second.len(), 25);
        let third = greedy(&budget, 3);
        assert!(!third.is_empty() && budget.used() < 100, "{}", budget.used());
        drop((first, second, third));
        assert_eq!(budget.used(), 0);
        assert!(budget.lock().items.is_empty() && budget.lock().clients.is_empty());
    }

    #[test]
    fn a_shared_item_is_counted_once() {
        let budget = Budget::new(100);
        let many: Vec<_> = (0..5000).map(|_| budget.charge(7, 50, client(1)).unwrap()).collect();
        let other = budget.charge(7, 50, client(2)).unwrap();
        assert_eq!(budget.used(), 50);
        assert!(budget.charge(8, 51, client(3)).is_none(), "more than is free");
        drop(many);
        assert_eq!(budget.used(), 50, "another client still holds it");
        assert_eq!(budget.lock().clients.len(), 1);
        drop(other);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn an_item_larger_than_the_share_is_refused_and_leaves_no_trace() {
        let budget = Budget::new(100);
        assert!(budget.charge(1, 51, client(1)).is_none());
        assert!(budget.charge(1, 101, client(1)).is_none());
        assert_eq!(budget.used(), 0);
        assert!(budget.lock().items.is_empty() && budget.lock().clients.is_empty());
        assert!(budget.charge(1, 50, client(1)).is_some());
    }
}
