//! A model of the store: random operations of two processes on one directory, compared with plain maps.
//!
//! Each case opens a directory twice and runs a random sequence of operations: complete, partial, resumed, aborted
//! and wrong downloads; manifests below and above the size that stays in memory; tags, pins, prunes, evictions,
//! scrubs, counts; kills that clean nothing up; clock jumps; damage to files. During a prune or an eviction the
//! other process may commit something, at any request whether to continue.
//!
//! # Invariants
//! Checked after every operation, through the interface of one process and on the disk:
//! * What the model has exists, with the right bytes. What it does not have is a miss.
//! * Wrong and incomplete bytes never get a name. A partial is resumed where it was left, by one writer.
//! * A removal takes nothing that is pinned, referenced, young, recently used, or being written, and nothing during
//!   an import. One that nothing disturbs takes everything else, least recently used first.
//! * Tags refer to what was set last.
//! * A count agrees with the allocated bytes on the disk, and what is followed in between stays close to it.
//! * Opening a directory changes nothing.
//!
//! # Time
//! The clock of the file system cannot be set. A jump forward is the same as making every time in the directory
//! and in the memory of the processes earlier.
//!
//! # Run
//! `cargo test --lib store::tests::model` runs the same cases each time. With `PROPTEST_CASES` set, that many
//! other cases run: `PROPTEST_CASES=20000 TMPDIR=/dev/shm cargo test --lib store::tests::model`. A failure prints
//! the shortest sequence that was found; pasted into [`replay`], it becomes a regression test.

mod check;
mod content;
mod damage;
mod disk;
mod expected;
mod names;
mod operation;
mod removal;
mod world;

use std::fmt;

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use operation::{Line, sequences};
use world::World;

/// Cases of `cargo test`: a few seconds.
const CASES: u32 = 120;
/// The longest sequence.
const OPERATIONS_MAX: usize = 50;

/// An invariant that does not hold, or an operation that failed.
#[derive(Debug, Clone)]
struct Failed(String);

impl Failed {
    fn new(reason: impl Into<String>) -> Failed {
        Failed(reason.into())
    }

    fn of(error: impl fmt::Display) -> Failed {
        Failed(error.to_string())
    }
}

macro_rules! ensure {
    ($holds:expr, $($reason:tt)+) => {
        if !$holds {
            return Err(Failed::new(format!($($reason)+)));
        }
    };
}
use ensure;

/// How often each kind of event happened.
#[derive(Debug, Default, Clone, Copy)]
struct Tally {
    committed: usize,
    refused: usize,
    resumed: usize,
    locked: usize,
    imported: usize,
    killed: usize,
    pruned: usize,
    evicted: usize,
    blobs_removed: usize,
    partials_removed: usize,
    complete_removals: usize,
    kept_out: usize,
    meanwhile: usize,
    counted: usize,
    walked: usize,
    damaged: usize,
    quarantined: usize,
    put_back: usize,
}

impl Tally {
    fn add(&mut self, other: &Tally) {
        for (sum, count) in self.fields_mut().into_iter().zip(other.clone().fields_mut()) {
            *sum += *count;
        }
    }

    fn fields_mut(&mut self) -> [&mut usize; 18] {
        [
            &mut self.committed,
            &mut self.refused,
            &mut self.resumed,
            &mut self.locked,
            &mut self.imported,
            &mut self.killed,
            &mut self.pruned,
            &mut self.evicted,
            &mut self.blobs_removed,
            &mut self.partials_removed,
            &mut self.complete_removals,
            &mut self.kept_out,
            &mut self.meanwhile,
            &mut self.counted,
            &mut self.walked,
            &mut self.damaged,
            &mut self.quarantined,
            &mut self.put_back,
        ]
    }
}

/// Runs a sequence from an empty directory.
fn replay(sequence: &[Line]) -> Result<Tally, Failed> {
    let mut world = World::new();
    for Line(op) in sequence {
        world.step(op).map_err(|Failed(reason)| Failed(format!("{op:?}: {reason}")))?;
    }
    Ok(world.tally)
}

#[test]
fn two_processes_agree_with_the_model() {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    let config = Config {
        cases: cases.unwrap_or(CASES),
        failure_persistence: None,
        max_shrink_iters: 4_000,
        ..Config::default()
    };
    let mut runner = match cases {
        Some(_) => TestRunner::new(config),
        None => {
            let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
            TestRunner::new_with_rng(config, rng)
        }
    };
    let tally = std::cell::RefCell::new(Tally::default());
    let result = runner.run(&sequences(OPERATIONS_MAX), |sequence| match replay(&sequence) {
        Ok(counts) => {
            tally.borrow_mut().add(&counts);
            Ok(())
        }
        Err(Failed(reason)) => Err(TestCaseError::fail(reason)),
    });
    if let Err(TestError::Fail(reason, sequence)) = &result {
        let lines: Vec<String> = sequence.iter().map(|line| format!("    {line:?}")).collect();
        panic!("{reason}\nafter\n{}", lines.join("\n"));
    }
    result.unwrap();
    let mut tally = tally.into_inner();
    println!("{tally:?}");

    assert!(tally.fields_mut().iter().all(|count| **count > 0), "unreached: {tally:?}");
}
