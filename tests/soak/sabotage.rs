//! Proofs that the checks can fail: each breaks something on purpose, which a check must find.

use std::fs::{self, File};
use std::io::Write;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use crate::context::Soak;
use crate::report::lock;
use crate::wire::{Connection, Reading, Tampering};

/// What is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// One byte of a response changes on its way.
    Flip,
    /// A response loses its last byte, and its `Content-Length` is adapted.
    Truncate,
    /// A byte of a cached blob changes on the disk.
    Blob,
    /// The blob of a pinned image is deleted.
    Pin,
    /// The registry serves former images under its tags.
    Tag,
    /// A line is missing in the count of the access log, because it was logged twice.
    Log,
    /// A request of the registry is not in its counts.
    Registry,
    /// Connections that stay open.
    Connections,
    /// A temporary file.
    Leftover,
    /// A file in the cache that grows all the time.
    Disk,
    /// A line about a panic.
    Panic,
}

impl Sabotage {
    const ALL: [(&'static str, Sabotage, &'static str); 11] = [
        ("flip", Sabotage::Flip, "wrong byte"),
        ("truncate", Sabotage::Truncate, "wrong byte"),
        ("blob", Sabotage::Blob, "damage"),
        ("pin", Sabotage::Pin, "pinned image missing"),
        ("tag", Sabotage::Tag, "old tag"),
        ("log", Sabotage::Log, "wrong count"),
        ("registry", Sabotage::Registry, "wrong count"),
        ("connections", Sabotage::Connections, "leak"),
        ("leftover", Sabotage::Leftover, "leftover"),
        ("disk", Sabotage::Disk, "disk usage"),
        ("panic", Sabotage::Panic, "log"),
    ];

    /// The kind of finding that must follow.
    fn expected(self) -> &'static str {
        Sabotage::ALL
            .iter()
            .find(|(_, sabotage, _)| *sabotage == self)
            .map_or("", |(_, _, kind)| *kind)
    }
}

impl FromStr for Sabotage {
    type Err = String;

    fn from_str(name: &str) -> Result<Sabotage, String> {
        let found = Sabotage::ALL.iter().find(|(known, ..)| *known == name);
        let names = Sabotage::ALL.map(|(known, ..)| known).join(", ");
        found
            .map(|(_, sabotage, _)| *sabotage)
            .ok_or_else(|| format!("--sabotage is one of {names}"))
    }
}

/// Breaks something before a calm.
pub fn in_calm(soak: &Soak, sabotage: Option<Sabotage>) {
    match sabotage {
        Some(Sabotage::Flip) => soak.tampering.flip_after.store(50, Ordering::SeqCst),
        Some(Sabotage::Truncate) => soak.tampering.truncate_after.store(50, Ordering::SeqCst),
        Some(Sabotage::Tag) => soak.registry.is_lying.store(true, Ordering::SeqCst),
        Some(Sabotage::Registry) => soak.registry.miscount(),
        _ => {}
    }
}

/// Breaks something at the beginning of a quiet phase.
pub fn in_quiet(soak: &Soak, sabotage: Option<Sabotage>) {
    soak.registry.is_lying.store(false, Ordering::SeqCst);
    let cache = soak.server.site.cache();
    let guarded = lock(&soak.guarded).first().cloned();
    let blob =
        guarded.and_then(|guarded| guarded.image.blobs.first().map(|blob| blob.digest.clone()));
    let path = cache.join("blobs").join(blob.unwrap_or_default().replace(':', "/"));
    let log = |text: &str| {
        let file = File::options().append(true).open(soak.server.log());
        file.and_then(|mut file| file.write_all(text.as_bytes()))
    };
    let done = match sabotage {
        Some(Sabotage::Blob) => fs::read(&path).and_then(|mut bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(&path, bytes)
        }),
        Some(Sabotage::Pin) => fs::remove_file(&path),
        Some(Sabotage::Log) => log(
            "2026-01-01T00:00:00.000Z INFO  GET:/v2/ status=200 latency=1us host=x ip=127.0.0.1 bytes=2\n",
        ),
        Some(Sabotage::Panic) => {
            log("2026-01-01T00:00:00.000Z ERROR a fetch panicked; its clients received an error\n")
        }
        Some(Sabotage::Leftover) => fs::write(cache.join("incoming/tmp-1-2-3"), b"left"),
        Some(Sabotage::Connections) => hold(soak),
        Some(Sabotage::Disk) => grow(soak),
        _ => Ok(()),
    };
    if let Err(error) = done {
        soak.finding("test", &format!("sabotage failed: {error}"), "");
    }
}

/// Opens 40 connections, and uses them until the end of the run, so that they do not expire.
fn hold(soak: &Soak) -> std::io::Result<()> {
    if soak.tally.get("quiets") == 0 {
        return Ok(());
    }
    let address = soak.server.site.address;
    let mut connections =
        (0..40).map(|_| Connection::open(address)).collect::<Result<Vec<_>, _>>()?;
    thread::spawn(move || {
        let mut ping = |connection: &mut Connection| {
            connection.ask("GET", "/v2/", &[], Reading::Complete, &Tampering::none()).is_ok()
        };
        while connections.iter_mut().all(&mut ping) {
            thread::sleep(Duration::from_secs(5));
        }
    });
    Ok(())
}

fn grow(soak: &Soak) -> std::io::Result<()> {
    let mut file = File::create(soak.server.site.cache().join("growing"))?;
    thread::spawn(move || {
        while file.write_all(&[1; 8192]).is_ok() {
            thread::sleep(Duration::from_millis(2));
        }
    });
    Ok(())
}

/// Success if there are no findings, or with sabotage, if there are those that must follow.
pub fn verdict(soak: &Soak, sabotage: Option<Sabotage>) -> ExitCode {
    let found = soak.findings.by_kind();
    let is_as_expected = match sabotage {
        None => found.is_empty(),
        Some(sabotage) => {
            let is_found = found.contains_key(sabotage.expected());
            println!("sabotage {sabotage:?}: {}", if is_found { "found" } else { "NOT FOUND" });
            is_found
        }
    };
    if is_as_expected { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
