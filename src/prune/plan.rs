//! Selects the images to remove. Pure: candidates and criteria in, plan out.

use std::time::{Duration, SystemTime};

/// An image that may be removed.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// When it was last used; `None` if unknown.
    pub used: Option<SystemTime>,
    /// When it was fetched.
    pub fetched: SystemTime,
    /// Whether it is pinned.
    pub is_pinned: bool,
    /// Whether the request selects it.
    pub is_meant: bool,
    /// The numbers of the content that it needs.
    pub content: &'a [u32],
}

/// Which images to prune: those that match all given conditions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Criteria {
    /// Not used for this long.
    pub unused_for: Option<Duration>,
    /// Fetched before this time.
    pub fetched_before: Option<SystemTime>,
    /// At most this many, least recently used first.
    pub count: Option<usize>,
    /// Whether to prune pinned images as well.
    pub include_pinned: bool,
}

/// The images to remove.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Their indexes among the candidates, in order of removal.
    pub remove: Vec<usize>,
    /// Matching images that stay because they are pinned.
    pub pinned: usize,
    /// The bytes that this frees: the content that no other image needs.
    pub freed_bytes: u64,
}

/// Selects the matching images, least recently used first.
pub fn plan_matching(
    candidates: &[Candidate<'_>],
    sizes: &[u64],
    criteria: &Criteria,
    now: SystemTime,
) -> Plan {
    let is_unused = |candidate: &Candidate<'_>| match (criteria.unused_for, candidate.used) {
        // A time in the future counts as now.
        (Some(span), Some(used)) => now.duration_since(used).unwrap_or_default() >= span,
        // An image with an unknown time of use stays.
        (Some(_), None) => false,
        (None, _) => true,
    };
    let is_old = |candidate: &Candidate<'_>| {
        criteria.fetched_before.is_none_or(|before| candidate.fetched < before)
    };
    let mut plan = Plan::default();
    let mut references = References::count(candidates, sizes);
    for place in by_use(candidates) {
        let candidate = &candidates[place];
        if !(candidate.is_meant && is_unused(candidate) && is_old(candidate)) {
            continue;
        }
        if candidate.is_pinned && !criteria.include_pinned {
            plan.pinned += 1;
            continue;
        }
        if criteria.count.is_some_and(|count| plan.remove.len() >= count) {
            continue;
        }
        plan.freed_bytes += references.release(candidate.content);
        plan.remove.push(place);
    }
    plan
}

/// Indexes of the candidates, least recently used first.
fn by_use(candidates: &[Candidate<'_>]) -> Vec<usize> {
    let mut places: Vec<usize> = (0..candidates.len()).collect();
    places.sort_by_key(|place| candidates[*place].used);
    places
}

/// For each number of the content, how many images need it.
struct References<'a> {
    counts: Vec<u32>,
    sizes: &'a [u64],
}

impl References<'_> {
    fn count<'a>(candidates: &[Candidate<'_>], sizes: &'a [u64]) -> References<'a> {
        let mut counts = vec![0; sizes.len()];
        for number in candidates.iter().flat_map(|candidate| candidate.content) {
            counts[*number as usize] += 1;
        }
        References { counts, sizes }
    }

    /// Removes an image from the counts. Returns the bytes that no image needs any more.
    fn release(&mut self, content: &[u32]) -> u64 {
        let mut freed = 0;
        for number in content {
            let number = *number as usize;
            self.counts[number] -= 1;
            if self.counts[number] == 0 {
                freed += self.sizes[number];
            }
        }
        freed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: [u64; 5] = [10, 20, 30, 40, 50];

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn candidate(used: u64, content: &[u32]) -> Candidate<'_> {
        let used = Some(at(used));
        Candidate { used, fetched: at(100), is_pinned: false, is_meant: true, content }
    }

    fn images(places: &[usize]) -> Vec<usize> {
        places.to_vec()
    }

    /// Four images: 0 and 1 share content 1, and 3 is the oldest.
    fn four() -> [Candidate<'static>; 4] {
        [
            candidate(500, &[0, 1]),
            candidate(400, &[1, 2]),
            Candidate { is_pinned: true, ..candidate(300, &[3]) },
            Candidate { fetched: at(50), ..candidate(200, &[4]) },
        ]
    }

    #[test]
    fn criteria_choose_the_least_recently_used_first() {
        let everything = Criteria::default();
        let unused = |seconds| Some(Duration::from_secs(seconds));
        for (criteria, remove, pinned, freed_bytes) in [
            (everything, &[3, 1, 0][..], 1, 110),
            (Criteria { include_pinned: true, ..everything }, &[3, 2, 1, 0], 0, 150),
            (Criteria { count: Some(2), ..everything }, &[3, 1], 1, 80),
            (Criteria { count: Some(0), ..everything }, &[], 1, 0),
            (Criteria { unused_for: unused(150), ..everything }, &[3], 1, 50),
            (Criteria { unused_for: unused(101), ..everything }, &[3], 1, 50),
            (Criteria { unused_for: unused(100), ..everything }, &[3, 1], 1, 80),
            (Criteria { unused_for: unused(1000), ..everything }, &[], 0, 0),
            (Criteria { fetched_before: Some(at(100)), ..everything }, &[3], 0, 50),
            (Criteria { fetched_before: Some(at(101)), ..everything }, &[3, 1, 0], 1, 110),
            (
                Criteria { unused_for: unused(0), fetched_before: Some(at(60)), ..everything },
                &[3],
                0,
                50,
            ),
        ] {
            let plan = plan_matching(&four(), &SIZES, &criteria, at(500));
            let expected = Plan { remove: images(remove), pinned, freed_bytes };
            assert_eq!(plan, expected, "{criteria:?}");
        }
    }

    #[test]
    fn images_that_are_not_selected_or_of_unknown_use_stay() {
        let mut all = four();
        all[3].is_meant = false;
        let plan = plan_matching(&all, &SIZES, &Criteria::default(), at(500));
        assert_eq!(plan.remove, images(&[1, 0]));
        all[1].used = None;
        let criteria = Criteria { unused_for: Some(Duration::ZERO), ..Criteria::default() };
        assert_eq!(plan_matching(&all, &SIZES, &criteria, at(500)).remove, images(&[0]));
    }

    #[test]
    fn shared_content_is_freed_with_its_last_image() {
        let all = four();
        let plan = |count| {
            let criteria = Criteria { count: Some(count), ..Criteria::default() };
            plan_matching(&all, &SIZES, &criteria, at(500)).freed_bytes
        };
        // 50 bytes of the oldest, then 30 that only image 1 has, then 10 and the 20 that both share.
        assert_eq!([plan(1), plan(2), plan(3)], [50, 80, 110]);
    }

    #[test]
    fn an_image_without_content_is_removed() {
        let plan = plan_matching(&[candidate(1, &[])], &[], &Criteria::default(), at(500));
        assert_eq!((plan.remove, plan.freed_bytes), (images(&[0]), 0));
    }
}
