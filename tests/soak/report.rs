//! What a run found and counted.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// After this many findings, further ones are only counted: they probably have the same cause.
const FINDINGS_MAX: usize = 40;

/// Violations of invariants, with evidence.
pub struct Findings {
    directory: PathBuf,
    began: Instant,
    /// By kind, in the order of the alphabet.
    found: Mutex<BTreeMap<String, u64>>,
    written: AtomicU64,
}

impl Findings {
    pub fn new(directory: PathBuf) -> Findings {
        let (found, written) = (Mutex::default(), AtomicU64::new(0));
        Findings { directory, began: Instant::now(), found, written }
    }

    /// Reports a violation at once, and writes its evidence to a file.
    pub fn add(&self, kind: &str, text: &str, evidence: &str) {
        *lock(&self.found).entry(kind.to_owned()).or_default() += 1;
        let number = self.written.fetch_add(1, Ordering::SeqCst);
        if number >= FINDINGS_MAX as u64 {
            return;
        }
        let path = self.directory.join(format!("{number:03}-{}.txt", kind.replace(' ', "-")));
        let elapsed = self.began.elapsed().as_secs_f64();
        println!(
            "FINDING {number} at {elapsed:.1} s: {kind}: {text}\n        evidence: {}",
            path.display()
        );
        // If it cannot be written, the line above remains.
        let _ = fs::create_dir_all(&self.directory);
        let _ = fs::write(
            &path,
            format!("{kind}\n{elapsed:.3} s after the start\n{text}\n\n{evidence}"),
        );
    }

    pub fn by_kind(&self) -> BTreeMap<String, u64> {
        lock(&self.found).clone()
    }

    pub fn is_empty(&self) -> bool {
        lock(&self.found).is_empty()
    }
}

/// Named counters.
#[derive(Default)]
pub struct Tally(Mutex<BTreeMap<String, u64>>);

impl Tally {
    pub fn add(&self, name: &str, count: u64) {
        let mut counters = lock(&self.0);
        match counters.get_mut(name) {
            Some(counter) => *counter += count,
            None => drop(counters.insert(name.to_owned(), count)),
        }
    }

    pub fn raise(&self, name: &str, to: u64) {
        let mut counters = lock(&self.0);
        let counter = counters.entry(name.to_owned()).or_default();
        *counter = to.max(*counter);
    }

    pub fn get(&self, name: &str) -> u64 {
        lock(&self.0).get(name).copied().unwrap_or_default()
    }

    /// All counters whose names begin like this, with the rest of their names.
    pub fn below(&self, prefix: &str) -> BTreeMap<String, u64> {
        let counters = lock(&self.0);
        let matching =
            counters.iter().filter_map(|(name, count)| Some((name.strip_prefix(prefix)?, *count)));
        matching.map(|(name, count)| (name.to_owned(), count)).collect()
    }
}

/// The differences of two snapshots that are not zero.
pub fn growth(
    before: &BTreeMap<String, u64>,
    after: &BTreeMap<String, u64>,
) -> BTreeMap<String, u64> {
    let grown = after.iter().map(|(name, count)| {
        (name.clone(), count - before.get(name).copied().unwrap_or_default().min(*count))
    });
    grown.filter(|(_, count)| *count > 0).collect()
}

/// Bytes in the unit in which people read them.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

/// A lock that stays usable if a thread panicked while it held it: the panic itself is reported.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
