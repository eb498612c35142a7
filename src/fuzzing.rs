//! The fuzz targets: functions that take any bytes and panic if a property does not hold.
//!
//! A target is in the file `fuzzing.rs` of the module that it tests, and may use the module's private items. `fuzz/` has a
//! binary for each target (`make fuzz`). Unit tests run all targets over the corpora in `fuzz/corpus/`, so an input that
//! once failed is a regression test.
//!
//! Inputs are text where possible: lines with the parameters, and then a document. So seeds can be read and written
//! manually, and a fuzzer can exchange parts of them.

use std::fmt::{Debug, Display};
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{api, bundle, config, http, image_references, oci, store, upstream, users};

/// A target, which panics if a property does not hold for its input.
type Target = fn(&[u8]);

/// The targets by name. A new one also needs a binary in `fuzz/Cargo.toml` and a folder in `fuzz/corpus/`.
const TARGETS: &[(&str, Target)] = &[
    ("request", api::fuzzing::request),
    ("request_body", http::fuzzing::request_body),
    ("management_query", api::fuzzing::management_query),
    ("response_head", upstream::fuzzing::response_head),
    ("challenge", upstream::fuzzing::challenge),
    ("token", upstream::fuzzing::token),
    ("link", upstream::fuzzing::link),
    ("tag_list", upstream::fuzzing::tag_list),
    ("referrers", upstream::fuzzing::referrers),
    ("location", upstream::fuzzing::location),
    ("proxy", upstream::fuzzing::proxy),
    ("docker_config", upstream::fuzzing::docker_config),
    ("credential_helper", upstream::fuzzing::credential_helper),
    ("aws", upstream::fuzzing::aws),
    ("object_store", upstream::fuzzing::object_store),
    ("manifest", oci::fuzzing::manifest),
    ("names", oci::fuzzing::names),
    ("pattern", oci::fuzzing::pattern),
    ("htpasswd", users::fuzzing::htpasswd),
    ("config", config::fuzzing::config),
    ("values", config::fuzzing::values),
    ("records", store::fuzzing::records),
    ("resume", store::fuzzing::resume),
    ("bundle_tar", bundle::fuzzing::bundle_tar),
    ("bundle_files", bundle::fuzzing::bundle_files),
    ("compression", bundle::fuzzing::compression),
    ("image_references", image_references::fuzzing::image_references),
];

/// Runs the target `name`.
///
/// # Panics
/// If a property does not hold for `data`, or there is no such target.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|target| target.0 == name);
    let (_, target) = target.unwrap_or_else(|| panic!("no fuzz target is named {name}"));
    target(data);
}

/// Splits the first line off. The line is text, whatever its bytes are.
pub(crate) fn line(data: &[u8]) -> (String, &[u8]) {
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let text = String::from_utf8_lossy(&data[..end]).into_owned();
    (text, data.get(end + 1..).unwrap_or_default())
}

/// Parses a text; what it prints must parse to the same value.
pub(crate) fn round_trip<T>(text: &str) -> Option<T>
where
    T: FromStr + Display + PartialEq + Debug,
    T::Err: Debug + Display,
{
    match text.parse::<T>() {
        Ok(value) => {
            assert_round_trip(&value);
            Some(value)
        }
        Err(error) => {
            assert_is_safe_text(&error.to_string());
            None
        }
    }
}

pub(crate) fn assert_round_trip<T>(value: &T)
where
    T: FromStr + Display + PartialEq + Debug,
    T::Err: Debug,
{
    assert_eq!(value.to_string().parse::<T>().as_ref().ok(), Some(value));
}

/// Texts from outside reach logs and terminals only without characters that control them or change the direction of text.
pub(crate) fn assert_is_safe_text(text: &str) {
    let is_unsafe = |char: char| {
        let changes_direction = matches!(char, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        char.is_control() || changes_direction || matches!(char, '\u{2028}' | '\u{2029}')
    };
    assert!(!text.contains(is_unsafe), "{text:?}");
    assert!(text.chars().count() <= 4096, "{} bytes", text.len());
}

/// The positions at which an input is split: all of a short one, and some of a long one.
pub(crate) fn splits(data: &[u8]) -> impl Iterator<Item = usize> + use<> {
    const ALL_UP_TO_BYTES: usize = 200;
    const SOME: usize = 40;
    let step = if data.len() <= ALL_UP_TO_BYTES { 1 } else { data.len() / SOME };
    // The first position depends on the content, so that other inputs are split elsewhere.
    let first = data.iter().map(|byte| usize::from(*byte)).sum::<usize>() % step;
    (first..=data.len()).step_by(step)
}

/// A directory in memory, which is removed when this is dropped.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Scratch {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("larder-fuzz-{}-{count}", std::process::id()));
        fs::create_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Scratch(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn store(&self, name: &str) -> store::Store {
        let root = self.0.join(name);
        store::Store::open(&store::Settings { root, fsync: false }).expect("the directory is ours")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fuzz(path: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(path)
    }

    fn names_in(path: &str) -> Vec<String> {
        let entries = fs::read_dir(fuzz(path)).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn every_corpus_passes() {
        let mut failed = Vec::new();
        for (name, target) in TARGETS {
            let folder = format!("corpus/{name}");
            let inputs = names_in(&folder);
            assert!(!inputs.is_empty(), "{name} has no corpus");
            for input in inputs {
                let data = fs::read(fuzz(&folder).join(&input)).unwrap();
                let passed = std::panic::catch_unwind(|| target(&data));
                if passed.is_err() {
                    failed.push(format!("{folder}/{input}"));
                }
            }
        }
        assert!(failed.is_empty(), "these inputs fail: {failed:#?}");
    }

    #[test]
    fn every_target_has_a_binary_and_nothing_else_has_one() {
        let mut names: Vec<String> = TARGETS.iter().map(|target| target.0.to_owned()).collect();
        names.sort();
        let manifest = fs::read_to_string(fuzz("Cargo.toml")).unwrap();
        let mut bins: Vec<String> = manifest
            .lines()
            .filter_map(|line| line.strip_prefix("path = \"fuzz_targets/")?.strip_suffix(".rs\""))
            .map(str::to_owned)
            .collect();
        bins.sort();
        assert_eq!(bins, names, "fuzz/Cargo.toml");
        assert_eq!(names_in("corpus"), names, "fuzz/corpus");
        let sources: Vec<String> = names.iter().map(|name| format!("{name}.rs")).collect();
        assert_eq!(names_in("fuzz_targets"), sources, "fuzz/fuzz_targets");
    }
}
