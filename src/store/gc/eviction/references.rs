//! Counts approximately how many records refer to each blob or manifest, in little memory: a counting Bloom filter.
//!
//! It may report a reference that does not exist; the blob then stays until the next index, which uses another
//! seed. It never misses a reference that was counted and not released: a counter that reaches its maximum is never
//! decremented.

use std::hash::{BuildHasher, Hasher, RandomState};

use crate::oci::Digest;

/// Counters per key. With eight counters of space per key, 3 % of the keys collide.
const HASHES: u64 = 3;
/// The maximum of a four-bit counter, which is never decremented from there.
const SATURATED: u8 = 15;
/// Counters of space per expected key, and their limits: 32 KiB to 4 MiB of memory.
const COUNTERS_PER_KEY: u64 = 8;
const COUNTERS_MIN: u64 = 64 * 1024;
const COUNTERS_MAX: u64 = 8 * 1024 * 1024;

/// The records whose references are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// The records of all repositories: is a blob needed?
    Everywhere,
    /// The tags and indexes of one repository: is its record of a manifest needed?
    Repository(u64),
}

/// The counting Bloom filter.
#[derive(Debug)]
pub(super) struct References {
    /// Two counters per byte.
    counters: Vec<u8>,
    /// One less than the number of counters, which is a power of two.
    mask: u64,
    seed: RandomState,
}

impl References {
    /// A filter for about this many keys.
    pub(super) fn for_keys(keys: u64) -> References {
        let wanted = keys.saturating_mul(COUNTERS_PER_KEY).clamp(COUNTERS_MIN, COUNTERS_MAX);
        let counters = wanted.next_power_of_two();
        // At most 4 MiB, which fits every usize.
        let bytes = usize::try_from(counters / 2).unwrap_or(usize::MAX);
        References { counters: vec![0; bytes], mask: counters - 1, seed: RandomState::new() }
    }

    /// The scope of a repository.
    pub(super) fn scope_of(&self, repository: &str) -> Scope {
        Scope::Repository(self.seed.hash_one(repository))
    }

    /// Counts a reference.
    pub(super) fn count(&mut self, scope: Scope, digest: &Digest) {
        for at in self.places(scope, digest) {
            let counter = self.get(at);
            if counter < SATURATED {
                self.set(at, counter + 1);
            }
        }
    }

    /// Releases a reference. Returns whether it was the last; `false` if it was never counted.
    pub(super) fn release(&mut self, scope: Scope, digest: &Digest) -> bool {
        if !self.is_named(scope, digest) {
            return false;
        }
        for at in self.places(scope, digest) {
            let counter = self.get(at);
            if counter < SATURATED {
                self.set(at, counter.saturating_sub(1));
            }
        }
        !self.is_named(scope, digest)
    }

    /// Whether a reference may exist.
    pub(super) fn is_named(&self, scope: Scope, digest: &Digest) -> bool {
        self.places(scope, digest).into_iter().all(|at| self.get(at) > 0)
    }

    fn places(&self, scope: Scope, digest: &Digest) -> [u64; HASHES as usize] {
        let mut hasher = self.seed.build_hasher();
        hasher.write_u64(match scope {
            Scope::Everywhere => 0,
            Scope::Repository(hash) => hash | 1,
        });
        std::hash::Hash::hash(digest, &mut hasher);
        let hash = hasher.finish();
        let (first, step) = (hash & 0xffff_ffff, (hash >> 32) | 1);
        std::array::from_fn(|i| first.wrapping_add(step.wrapping_mul(i as u64)) & self.mask)
    }

    /// A place is less than the number of counters, and a byte has two counters.
    fn get(&self, place: u64) -> u8 {
        let byte = self.counters[(place / 2) as usize];
        if place.is_multiple_of(2) { byte & 0x0f } else { byte >> 4 }
    }

    fn set(&mut self, place: u64, value: u8) {
        let byte = &mut self.counters[(place / 2) as usize];
        *byte = match place.is_multiple_of(2) {
            true => (*byte & 0xf0) | value,
            false => (*byte & 0x0f) | (value << 4),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    fn digest(number: u32) -> Digest {
        Digest::of(Algorithm::Sha256, &number.to_be_bytes())
    }

    #[test]
    fn a_counted_reference_that_was_not_released_is_always_found() {
        // Many times more keys than it is sized for: collisions and saturated counters are certain.
        let mut references = References::for_keys(1);
        let scope = references.scope_of("quay.io/a/b");
        for number in 0..40_000 {
            references.count(Scope::Everywhere, &digest(number));
            references.count(scope, &digest(number % 100));
        }
        for number in 0..20_000 {
            references.release(Scope::Everywhere, &digest(number));
        }
        for number in 20_000..40_000 {
            assert!(references.is_named(Scope::Everywhere, &digest(number)), "{number}");
        }
        for number in 0..100 {
            assert!(references.is_named(scope, &digest(number)));
        }
    }

    #[test]
    fn the_last_release_reports_that_none_is_left() {
        let mut references = References::for_keys(1000);
        let (one, other) = (references.scope_of("a"), references.scope_of("b"));
        references.count(one, &digest(1));
        references.count(one, &digest(1));
        assert!(!references.is_named(other, &digest(1)) && !references.release(other, &digest(1)));
        assert!(!references.release(one, &digest(1)));
        assert!(references.release(one, &digest(1)));
        assert!(!references.release(one, &digest(1)), "nothing is left to release");
    }

    #[test]
    fn few_keys_collide_in_a_filter_that_is_large_enough() {
        let mut references = References::for_keys(50_000);
        (0..50_000).for_each(|number| references.count(Scope::Everywhere, &digest(number)));
        let is_named = |number: &u32| references.is_named(Scope::Everywhere, &digest(*number));
        let collisions = (50_000..100_000).filter(is_named).count();
        assert!(collisions < 2500, "{collisions} of 50,000");
    }
}
