//! Chooses what the disk may contain after a crash: of all subsets of the unsynced operations, some at each point.

use std::collections::{HashMap, HashSet};

use super::disk::{self, Disk, Fate, Model};
use super::record::{Effect, Trace};

/// A possible content of the disk.
#[derive(Debug, Clone)]
pub struct State {
    pub model: Model,
    /// The number of system calls before the crash.
    pub at: usize,
    /// The unsynced operations and their fates.
    pub pending: Vec<(usize, Fate)>,
    pub disk: Disk,
}

/// All chosen states, each content once for each set of facts: `era` distinguishes the times with different ones.
/// Contents that differ in files which no program reads back count as the same.
///
/// Returns the number of crashes that were considered as well.
pub fn states(trace: &Trace, random: usize, era: impl Fn(usize) -> usize) -> (usize, Vec<State>) {
    let mut unique: HashSet<(usize, Disk)> = HashSet::new();
    let (mut crashes, mut states) = (0, Vec::new());
    for model in [Model::Journal, Model::Weakest] {
        let durable = disk::durable(trace, model);
        let mut points: Vec<usize> =
            trace.operations.iter().flat_map(|each| [each.begun + 1, each.ended + 1]).collect();
        points.extend(trace.syncs.iter().map(|each| each.ended + 1));
        points.push(trace.length + 1);
        points.sort_unstable();
        points.dedup();
        for at in points {
            let mut pending = Vec::new();
            for (number, operation) in trace.operations.iter().enumerate() {
                // Temporary names are never read back, and so count as kept.
                let is_pending = operation.begun < at && durable[number] >= at;
                if is_pending && !operation.is_temporary() {
                    pending.push(number);
                }
            }
            let mut seed = at as u64;
            let choices = match model {
                Model::Journal => journal(trace, &pending),
                Model::Weakest => weakest(trace, &pending, random, &mut seed),
            };
            crashes += choices.len();
            for fates in choices {
                let mut fates: HashMap<usize, Fate> = pending.iter().copied().zip(fates).collect();
                keep_needed(trace, &pending, &mut fates);
                let begun = (0..trace.operations.len()).filter(|n| trace.operations[*n].begun < at);
                let fate =
                    |number: usize| (number, fates.get(&number).copied().unwrap_or(Fate::Kept));
                let disk = disk::after(trace, begun.map(fate));
                let read = disk.of(|path| !path.starts_with("incoming/") && path != "index.json");
                if unique.insert((era(at), read)) {
                    let pending = pending.iter().map(|number| (*number, fates[number])).collect();
                    states.push(State { model, at, pending, disk });
                }
            }
        }
    }
    (crashes, states)
}

/// A rename never loses both names.
fn keep_needed(trace: &Trace, pending: &[usize], fates: &mut HashMap<usize, Fate>) {
    for number in pending {
        let needed = trace.operations[*number].needs;
        if let Some(needed) = needed
            && fates.get(&needed) == Some(&Fate::Lost)
        {
            fates.insert(*number, Fate::Lost);
        }
    }
}

fn is_name(trace: &Trace, number: usize) -> bool {
    matches!(trace.operations[number].effect, Effect::Name(..) | Effect::Unname(_))
}

/// Each prefix of the names, with none, some or all of the bytes.
fn journal(trace: &Trace, pending: &[usize]) -> Vec<Vec<Fate>> {
    let names = pending.iter().filter(|number| is_name(trace, **number)).count();
    let mut all = Vec::new();
    for kept in 0..=names {
        for bytes in [Fate::Lost, Fate::Half, Fate::Kept] {
            let mut named = 0;
            let fates = pending.iter().map(|number| match is_name(trace, *number) {
                true => {
                    named += 1;
                    if named <= kept { Fate::Kept } else { Fate::Lost }
                }
                false => bytes,
            });
            all.push(fates.collect());
        }
    }
    all
}

/// None, all, all but one, only one, zeros instead of bytes, and random subsets.
fn weakest(trace: &Trace, pending: &[usize], random: usize, seed: &mut u64) -> Vec<Vec<Fate>> {
    let count = pending.len();
    let mut all = vec![vec![Fate::Lost; count], vec![Fate::Kept; count]];
    for one in 0..count {
        for (one_fate, others) in [(Fate::Lost, Fate::Kept), (Fate::Kept, Fate::Lost)] {
            let mut fates = vec![others; count];
            fates[one] = one_fate;
            all.push(fates);
        }
    }
    for bytes in [Fate::Lost, Fate::Zeros, Fate::Half] {
        let fate = |number: &usize| if is_name(trace, *number) { Fate::Kept } else { bytes };
        all.push(pending.iter().map(fate).collect());
    }
    if count > 1 {
        for _ in 0..random {
            let fate = |number: &usize| match (next(seed) % 4, is_name(trace, *number)) {
                (0 | 1, true) | (0, false) => Fate::Lost,
                (_, true) | (1, false) => Fate::Kept,
                (2, false) => Fate::Zeros,
                (_, false) => Fate::Half,
            };
            all.push(pending.iter().map(fate).collect());
        }
    }
    all
}

/// splitmix64, as in the integration tests: the same states in every run.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut word = *state;
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}
