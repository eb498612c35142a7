//! Memory, descriptors, threads and child processes of the server, and the disk that its cache uses.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::context::Soak;

/// Resident memory at any time: docs/operations.md says that 64 MiB are enough for a small cache.
pub const RSS_MAX_KIB: u64 = 64 * 1024;
/// 16 workers (`workers`), 32 and 64 fetchers, 16 committers, and one thread for each of about fifteen tasks.
pub const THREADS_MAX: u64 = 152;
/// Two for each of at most 70 connections of this test (ten clients, some of them crowds of five), three for each of
/// 24 downloads (connection, file, lock), one for each of 64 other requests, and about 16 for the process itself.
pub const DESCRIPTORS_MAX: u64 = 300;

/// In quiet phases, against the first quiet phase of the process. The tables of names and sizes grow by less than
/// 2 MiB, since this test has few different names. In 20 minutes of 100 requests per second, a leak of 50 bytes per
/// request exceeds this.
pub const RSS_GROWTH_MAX_KIB: u64 = 6 * 1024;
/// Idle connections to the registry, which are closed when the next request finds that they are too old.
pub const DESCRIPTOR_GROWTH_MAX: u64 = 24;

/// The resources of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    pub rss_kib: u64,
    pub threads: u64,
    pub descriptors: u64,
}

impl Resources {
    /// `None` if the process does not run.
    pub fn of(pid: i32) -> Option<Resources> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64;
        Some(Resources { rss_kib: field("VmRSS:")?, threads: field("Threads:")?, descriptors })
    }

    /// Reports limits that are exceeded.
    pub fn check(&self, soak: &Soak) {
        for (what, value, limit) in [
            ("KiB of resident memory", self.rss_kib, RSS_MAX_KIB),
            ("threads", self.threads, THREADS_MAX),
            ("descriptors", self.descriptors, DESCRIPTORS_MAX),
        ] {
            if value > limit {
                soak.finding(
                    "limit",
                    &format!("{value} {what}, at most {limit}"),
                    &soak.open_files(),
                );
            }
        }
    }

    /// Reports what did not return to the level of an earlier quiet phase.
    pub fn compare(&self, soak: &Soak, base: &Resources) {
        for (what, value, before, growth) in [
            ("KiB of resident memory", self.rss_kib, base.rss_kib, RSS_GROWTH_MAX_KIB),
            ("threads", self.threads, base.threads, 1),
            ("descriptors", self.descriptors, base.descriptors, DESCRIPTOR_GROWTH_MAX),
        ] {
            if value > before + growth {
                let text = format!(
                    "{value} {what} in a quiet phase, {before} in the first of this process"
                );
                soak.finding("leak", &text, &soak.open_files());
            }
        }
    }
}

impl Soak {
    /// What the descriptors of the server refer to.
    fn open_files(&self) -> String {
        let Some(pid) = self.server.pid() else { return String::new() };
        let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let targets = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
        targets.fold(String::new(), |text, target| format!("{text}{}\n", target.display()))
    }
}

/// The child processes of a process: their numbers, states and names.
pub fn children(parent: i32) -> Vec<String> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let stats = processes.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    // The name is in parentheses and may contain anything; the state and the parent follow it.
    let is_child = |stat: &String| {
        let fields = stat.rsplit_once(") ").map(|(_, fields)| fields.split(' '));
        fields.is_some_and(|mut fields| fields.nth(1) == Some(&parent.to_string()))
    };
    stats.filter(is_child).map(|stat| stat.chars().take(60).collect()).collect()
}

/// The disk usage of a directory in bytes, as `du` counts it: allocated blocks, each file once.
pub fn disk_usage(directory: &Path) -> u64 {
    let mut seen = HashSet::new();
    let own = fs::symlink_metadata(directory).map_or(0, |metadata| metadata.blocks() * 512);
    own + below(directory, &mut seen)
}

fn below(directory: &Path, seen: &mut HashSet<(u64, u64)>) -> u64 {
    let mut bytes = 0;
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(metadata) = fs::symlink_metadata(entry.path()) else { continue };
        if metadata.is_dir() {
            bytes += metadata.blocks() * 512 + below(&entry.path(), seen);
        } else if seen.insert((metadata.dev(), metadata.ino())) {
            bytes += metadata.blocks() * 512;
        }
    }
    bytes
}

/// Temporary files of Larder, which no process may leave behind for long.
pub fn leftovers(cache: &Path) -> Vec<String> {
    let names = |directory: &Path| {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries.map(|entry| entry.path().display().to_string()).collect::<Vec<_>>()
    };
    let mut found = names(&cache.join("incoming"));
    found.retain(|name| !name.ends_with(".lock"));
    found
}

/// Those of [`leftovers`] that a killed process has left: its own, and locks that nobody holds.
pub fn left_by(pid: u32, cache: &Path) -> Vec<String> {
    let is_unlocked = |name: &str| File::open(name).is_ok_and(|file| file.try_lock().is_ok());
    let mut found = leftovers(cache);
    found.retain(|name| {
        name.contains(&format!("/tmp-{pid}-"))
            || (name.contains("/tmp-fetch-") && is_unlocked(name))
    });
    found
}

/// Partial downloads.
pub fn partials(cache: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for upstream in fs::read_dir(cache.join("partials")).into_iter().flatten().flatten() {
        for entry in fs::read_dir(upstream.path()).into_iter().flatten().flatten() {
            found.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    found.retain(|name| !name.ends_with(".json"));
    found
}
