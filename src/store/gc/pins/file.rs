//! Pins: images that are never evicted, in a file with one pattern per line that users may also edit.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

use crate::store::locks::FileLock;
use crate::store::{Store, StoreError};

/// The first character of a comment line.
const COMMENT: char = '#';
/// Precedes the name of the entry of `sync` to which the following images belong.
const ENTRY: &str = "# entry ";
/// The largest file that is read: a hundred thousand names.
const PINS_BYTES_MAX: u64 = 16 * 1024 * 1024;

impl Store {
    /// The patterns of the pinned images, unparsed.
    ///
    /// # Errors
    /// If the file cannot be read. Callers must then not remove anything.
    pub fn pins(&self) -> io::Result<Vec<String>> {
        read(&self.inner.layout.pins())
    }

    /// The pins in the configuration of the last server on this directory.
    ///
    /// # Errors
    /// Like [`Store::pins`].
    pub fn configured_pins(&self) -> io::Result<Vec<String>> {
        read(&self.inner.layout.configured_pins())
    }

    /// Saves the configured pins for commands that do not read the server's configuration.
    ///
    /// # Errors
    /// [`StoreError`] if a write fails.
    pub fn note_configured_pins(&self, patterns: &[String]) -> Result<(), StoreError> {
        if self.configured_pins().is_ok_and(|noted| noted == patterns) {
            return Ok(());
        }
        let head = "# From the server's configuration; rewritten when that changes.\n";
        self.note_pins(&self.inner.layout.configured_pins(), head, patterns)
    }

    /// The images that `sync` keeps present.
    ///
    /// # Errors
    /// Like [`Store::pins`].
    pub fn synced_pins(&self) -> io::Result<Vec<String>> {
        read(&self.inner.layout.synced_pins())
    }

    /// The images that `sync` keeps present, by the name of the entry.
    ///
    /// # Errors
    /// Like [`Store::pins`].
    pub fn synced_pins_by_entry(&self) -> io::Result<BTreeMap<String, BTreeSet<String>>> {
        let text = match read_text(&self.inner.layout.synced_pins()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            text => text?,
        };
        let (mut pins, mut entry) = (BTreeMap::<String, BTreeSet<String>>::new(), String::new());
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            match line.strip_prefix(ENTRY) {
                Some(name) => name.trim().clone_into(&mut entry),
                None if line.starts_with(COMMENT) => {}
                None => drop(pins.entry(entry.clone()).or_default().insert(line.to_owned())),
            }
        }
        Ok(pins)
    }

    /// Saves the images that `sync` keeps present, by the name of the entry.
    ///
    /// # Errors
    /// [`StoreError`] if a write fails.
    pub fn note_synced_pins(
        &self,
        pins: &BTreeMap<String, BTreeSet<String>>,
    ) -> Result<(), StoreError> {
        if self.synced_pins_by_entry().is_ok_and(|noted| noted == *pins) {
            return Ok(());
        }
        let mut lines = Vec::new();
        for (name, images) in pins {
            lines.push(format!("{ENTRY}{name}"));
            lines.extend(images.iter().cloned());
        }
        let head = "# The images that sync keeps present; rewritten by each run.\n";
        self.note_pins(&self.inner.layout.synced_pins(), head, &lines)
    }

    /// Replaces a file of pins that only the server writes. Pins beyond the largest file that is read are left out,
    /// because a file that cannot be read would stop every removal.
    fn note_pins(&self, path: &Path, head: &str, pins: &[String]) -> Result<(), StoreError> {
        let mut text = head.to_owned();
        for (at, pin) in pins.iter().enumerate() {
            if (text.len() + pin.len()) as u64 >= PINS_BYTES_MAX {
                let left_out = pins.len() - at;
                log::warn!(
                    file:% = path.display(), count = left_out;
                    "some pins do not fit and are left out"
                );
                break;
            }
            text.push_str(pin);
            text.push('\n');
        }
        self.inner.replace(path, text.as_bytes())
    }

    /// Adds patterns. Returns how many are new.
    ///
    /// # Errors
    /// [`StoreError`] if a write fails.
    pub fn add_pins(&self, patterns: &[String]) -> Result<usize, StoreError> {
        self.change_pins(|text| {
            let known: Vec<&str> = lines(&text).collect();
            let fresh = patterns.iter().filter(|each| !known.contains(&each.as_str()));
            let mut fresh: Vec<&str> = fresh.map(String::as_str).collect();
            fresh.sort_unstable();
            fresh.dedup();
            let count = fresh.len();
            let mut changed = text.clone();
            for pattern in fresh {
                if !changed.is_empty() && !changed.ends_with('\n') {
                    changed.push('\n');
                }
                changed.push_str(pattern);
                changed.push('\n');
            }
            (changed, count)
        })
    }

    /// Removes patterns. Returns how many were removed.
    ///
    /// # Errors
    /// [`StoreError`] if a write fails.
    pub fn remove_pins(&self, patterns: &[String]) -> Result<usize, StoreError> {
        self.change_pins(|text| {
            let (mut changed, mut count) = (String::new(), 0);
            for line in text.lines() {
                match patterns.iter().any(|each| each == line.trim()) {
                    true => count += 1,
                    false => {
                        changed.push_str(line);
                        changed.push('\n');
                    }
                }
            }
            (changed, count)
        })
    }

    fn change_pins(
        &self,
        change: impl FnOnce(String) -> (String, usize),
    ) -> Result<usize, StoreError> {
        self.require_writable()?;
        let (path, lock) = (self.inner.layout.pins(), self.inner.layout.pins_lock());
        let lock = self.inner.layout.open_lock(&lock).and_then(FileLock::exclusive);
        let _lock = lock.map_err(|error| StoreError::write(&path, error))?;
        let text = match read_text(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            other => other,
        };
        let text = text.map_err(|error| StoreError::write(&path, error))?;
        let (changed, count) = change(text);
        if count > 0 {
            self.inner.replace(&path, changed.as_bytes())?;
        }
        Ok(count)
    }
}

fn read(path: &Path) -> io::Result<Vec<String>> {
    match read_text(path) {
        Ok(text) => Ok(lines(&text).map(str::to_owned).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Reads a pins file. Users may replace it with a link. Opening a pipe does not block.
fn read_text(path: &Path) -> io::Result<String> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    if metadata.len() > PINS_BYTES_MAX {
        return Err(io::Error::other(format!("it is larger than {PINS_BYTES_MAX} bytes")));
    }
    let mut text = String::new();
    (&file).read_to_string(&mut text)?;
    Ok(text)
}

/// The patterns in a pins file, without comments and empty lines.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with(COMMENT))
}
