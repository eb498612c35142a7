//! Bounded tables that forget the oldest entries.

use std::collections::HashMap;
use std::hash::Hash;

/// A map of at most `capacity` entries that drops the oldest half at a time.
///
/// It has two generations. Inserts go to the young one; when it reaches half of the capacity, it becomes the old one,
/// and the former old one is dropped. Coarser than an LRU list, but a read changes nothing.
#[derive(Debug)]
pub(super) struct BoundedCache<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    generation_max: usize,
}

impl<K: Eq + Hash, V> BoundedCache<K, V> {
    pub(super) fn new(capacity: usize) -> BoundedCache<K, V> {
        let generation_max = without_doubling((capacity / 2).max(1));
        BoundedCache { young: HashMap::new(), old: HashMap::new(), generation_max }
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.young.get(key).or_else(|| self.old.get(key))
    }

    pub(super) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.young.get_mut(key).or_else(|| self.old.get_mut(key))
    }

    pub(super) fn insert(&mut self, key: K, value: V) {
        if self.young.len() >= self.generation_max && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }

    pub(super) fn remove(&mut self, key: &K) {
        self.young.remove(key);
        self.old.remove(key);
    }

    pub(super) fn retain(&mut self, keep: impl Fn(&K) -> bool) {
        self.young.retain(|key, _| keep(key));
        self.old.retain(|key, _| keep(key));
    }

    /// As [`BoundedCache::retain`], by the values as well.
    pub(super) fn retain_entries(&mut self, keep: impl Fn(&K, &V) -> bool) {
        self.young.retain(|key, value| keep(key, value));
        self.old.retain(|key, value| keep(key, value));
    }

    pub(super) fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
    }
}

/// At most `entries`, and fewer where a table of that many entries would be half empty: a hash table has a power of two
/// of slots, uses seven eighths of them, and doubles beyond that.
fn without_doubling(entries: usize) -> usize {
    let used = entries.next_power_of_two() / 8 * 7;
    if used == 0 { entries } else { entries.min(used) }
}

/// Two tables, so that entries about registries that a client invents do not displace entries about other registries.
#[derive(Debug)]
pub(super) struct PartitionedCache<K, V> {
    proven: BoundedCache<K, V>,
    unproven: BoundedCache<K, V>,
}

/// The part that an entry belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// About a registry that is listed, or has answered with content.
    Proven,
    /// About any other.
    Unproven,
}

impl<K: Eq + Hash, V> PartitionedCache<K, V> {
    /// Each part has at most `capacity` entries.
    pub(super) fn new(capacity: usize) -> PartitionedCache<K, V> {
        PartitionedCache {
            proven: BoundedCache::new(capacity),
            unproven: BoundedCache::new(capacity),
        }
    }

    /// Looks in both parts: a registry may have been proven since the insertion.
    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.proven.get(key).or_else(|| self.unproven.get(key))
    }

    pub(super) fn insert(&mut self, part: Part, key: K, value: V) {
        match part {
            Part::Proven => {
                self.unproven.remove(&key);
                self.proven.insert(key, value);
            }
            Part::Unproven => self.unproven.insert(key, value),
        }
    }

    pub(super) fn remove(&mut self, key: &K) {
        self.proven.remove(key);
        self.unproven.remove(key);
    }

    pub(super) fn retain(&mut self, keep: impl Fn(&K) -> bool) {
        self.proven.retain(&keep);
        self.unproven.retain(&keep);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_entries_are_dropped_at_the_capacity() {
        let mut recent = BoundedCache::new(4);
        for number in 0..100 {
            recent.insert(number, number);
            assert_eq!(recent.get(&number), Some(&number));
            assert!(recent.young.len() + recent.old.len() <= 4);
        }
        assert_eq!(recent.get(&0), None);
        assert_eq!(recent.get(&98), Some(&98));
    }

    #[test]
    fn a_full_generation_does_not_occupy_twice_the_memory_that_it_needs() {
        for capacity in [16, 100, 512, 4096, 10_000, 16_384] {
            let mut recent = BoundedCache::new(capacity);
            let mut slots = 0;
            for number in 0..capacity {
                recent.insert(number, ());
                slots = slots.max(recent.young.capacity() + recent.old.capacity());
                assert!(recent.young.len() + recent.old.len() <= capacity);
            }
            assert!(slots <= capacity.next_power_of_two(), "{capacity}: {slots}");
            assert!(recent.generation_max * 16 >= capacity * 7, "{}", recent.generation_max);
        }
    }

    #[test]
    fn a_newer_value_replaces_an_older_one_and_remove_clears_both_generations() {
        let mut recent = BoundedCache::new(2);
        for (key, value) in [('a', 1), ('b', 2), ('a', 3)] {
            recent.insert(key, value);
        }
        assert_eq!(recent.get(&'a'), Some(&3));
        recent.remove(&'a');
        assert_eq!(recent.get(&'a'), None);
    }

    #[test]
    fn retain_applies_to_both_generations() {
        let mut recent = BoundedCache::new(4);
        for number in 0..4 {
            recent.insert(number, number);
        }
        recent.retain(|number| number % 2 == 1);
        assert_eq!(
            [0, 1, 2, 3].map(|number| recent.get(&number).is_some()),
            [false, true, false, true]
        );
        recent.clear();
        assert_eq!(recent.get(&3), None);
    }

    #[test]
    fn unproven_entries_do_not_displace_proven_ones() {
        let mut table = PartitionedCache::new(4);
        table.insert(Part::Unproven, 0, "before");
        table.insert(Part::Proven, 0, "known");
        for number in 1..100 {
            table.insert(Part::Unproven, number, "invented");
        }
        assert_eq!((table.get(&0), table.get(&99)), (Some(&"known"), Some(&"invented")));
        assert_eq!(table.get(&1), None);
        table.retain(|number| *number != 99);
        table.remove(&0);
        assert_eq!((table.get(&0), table.get(&99)), (None, None));
    }
}
