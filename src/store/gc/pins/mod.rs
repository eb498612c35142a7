//! Pins: patterns from the configuration, from list files, and from `larder pin`.

mod file;

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::oci::{Choice, Digest, ImageName, Pattern, Reference};
use crate::store::Store;

/// Sources of pins outside the cache directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PinSettings {
    /// `pin`.
    pub pins: Vec<Choice>,
    /// The server's own image, if configured: it must not be evicted, since this cache serves it.
    pub own: Option<Choice>,
    /// `pinLists`: files with one or more pins per line, separated by commas; read again each time.
    pub lists: Vec<PathBuf>,
}

impl PinSettings {
    /// The configured pins without the lists.
    pub fn named(&self) -> impl Iterator<Item = &Choice> {
        self.pins.iter().chain(&self.own)
    }

    /// The current pins, including the lists.
    ///
    /// # Errors
    /// [`PinError`] if a list cannot be read.
    pub fn all(&self) -> Result<Vec<Choice>, PinError> {
        let mut all: Vec<Choice> = self.named().cloned().collect();
        for path in &self.lists {
            all.extend(read_pins(path)?);
        }
        Ok(all)
    }
}

/// Reads the pins in a list.
///
/// # Errors
/// [`PinError`] if it cannot be read, or an entry is not a valid pin.
pub fn read_pins(path: &Path) -> Result<Vec<Choice>, PinError> {
    let text = fs::read_to_string(path)
        .map_err(|source| PinError::Read { path: path.to_owned(), source })?;
    Choice::parse_list(&text).map_err(|reason| PinError::Entry { path: path.to_owned(), reason })
}

/// All pins, prepared for lookups.
#[derive(Debug, Clone, Default)]
pub struct Pins {
    /// All pins as text, for comparison.
    texts: Vec<String>,
    names: HashSet<String>,
    patterns: Vec<Pattern>,
    /// Repositories with a pinned digest.
    of_digests: HashSet<String>,
    /// Whether a pattern may match digests in any repository.
    match_digests: bool,
}

impl Pins {
    /// Loads the current pins.
    ///
    /// # Errors
    /// [`PinError`] if any of them cannot be read: otherwise pinned images would be evicted.
    pub fn load(store: &Store, settings: &PinSettings) -> Result<Pins, PinError> {
        let mut pins = Pins::default();
        settings.all()?.into_iter().for_each(|pin| pins.add(pin));
        for (name, kept) in [
            ("pins", store.pins()),
            ("pins-configured", store.configured_pins()),
            ("pins-synced", store.synced_pins()),
        ] {
            let path = || store.root().join(name);
            for line in kept.map_err(|source| PinError::Read { path: path(), source })? {
                let pin =
                    line.parse().map_err(|reason| PinError::Entry { path: path(), reason })?;
                pins.add(pin);
            }
        }
        Ok(pins)
    }

    /// Pins from their texts.
    ///
    /// # Errors
    /// The text that is not a pin, and why.
    pub fn of(texts: &[String]) -> Result<Pins, String> {
        let mut pins = Pins::default();
        for text in texts {
            pins.add(text.parse().map_err(|reason| format!("{text}: {reason}"))?);
        }
        Ok(pins)
    }

    /// All pins as texts.
    pub fn texts(&self) -> &[String] {
        &self.texts
    }

    /// Whether an image is pinned.
    pub fn cover(&self, name: &ImageName, reference: &Reference) -> bool {
        if self.names.is_empty() && self.patterns.is_empty() {
            return false;
        }
        self.names.contains(&name.with(reference))
            || self.names.contains(&name.to_string())
            || self.patterns.iter().any(|pattern| pattern.matches_image(name, reference))
    }

    /// Whether an image is pinned by its own name, or by the digest of one of its manifests. `manifests` is only
    /// consumed if a digest of the repository may be pinned.
    pub fn cover_any(
        &self,
        name: &ImageName,
        reference: &Reference,
        manifests: impl IntoIterator<Item = Digest>,
    ) -> bool {
        self.cover(name, reference)
            || (self.may_mean_digests_of(name)
                && manifests.into_iter().any(|digest| self.cover(name, &Reference::Digest(digest))))
    }

    fn may_mean_digests_of(&self, name: &ImageName) -> bool {
        self.match_digests || self.of_digests.contains(&name.to_string())
    }

    fn add(&mut self, pin: Choice) {
        let text = pin.to_string();
        self.texts.push(text.clone());
        match pin {
            Choice::Matching(pattern) => {
                self.match_digests |= text.contains('@');
                self.patterns.push(pattern);
            }
            Choice::Exact(part) => {
                if matches!(part.reference, Some(Reference::Digest(_))) {
                    self.of_digests.insert(part.name.to_string());
                }
                self.names.insert(text);
            }
        }
    }
}

impl PartialEq for Pins {
    fn eq(&self, other: &Pins) -> bool {
        self.texts == other.texts
    }
}

/// The pins are unknown, so nothing may be evicted.
#[derive(Debug)]
pub enum PinError {
    /// A file of pins cannot be read (`pinLists`, or `pins` in the cache directory).
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// An entry is not a valid pin.
    Entry {
        /// The file.
        path: PathBuf,
        /// The problem.
        reason: String,
    },
}

impl fmt::Display for PinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PinError::Read { path, source } => write!(
                f,
                "cannot read the pins in {}: {source}; nothing is evicted until they can be read",
                path.display()
            ),
            PinError::Entry { path, reason } => {
                write!(f, "{}: {reason}; nothing is evicted until this is fixed", path.display())
            }
        }
    }
}

impl std::error::Error for PinError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            PinError::Read { source, .. } => Some(source),
            PinError::Entry { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Settings;

    fn image(text: &str) -> (ImageName, Reference) {
        crate::oci::PartReference::parse(text).unwrap().or_latest()
    }

    #[test]
    fn a_pin_is_an_image_a_repository_or_a_pattern() {
        for (pin, shown, covered, not_covered) in [
            ("alpine:3", "docker.io/library/alpine:3", "alpine:3", "alpine:4"),
            ("alpine", "docker.io/library/alpine", "alpine:4", "redis:4"),
            ("quay.io/*", "quay.io/*", "quay.io/a/b:1", "alpine:4"),
            ("/:v[0-9]+$/", "/:v[0-9]+$/", "quay.io/a/b:v1", "quay.io/a/b:w1"),
        ] {
            let pin: Choice = pin.parse().unwrap();
            assert_eq!(pin.to_string(), shown);
            let mut pins = Pins::default();
            pins.add(pin);
            for (text, expected) in [(covered, true), (not_covered, false)] {
                let (name, reference) = image(text);
                assert_eq!(pins.cover(&name, &reference), expected, "{shown} {text}");
            }
        }
        for text in ["", "/(/", "a b", "UPPER"] {
            assert!(text.parse::<Choice>().is_err(), "{text}");
        }
    }

    #[test]
    fn pins_come_from_settings_lists_and_the_cache_and_all_must_be_readable() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("cache");
        let store = Store::open(&Settings { root, fsync: false }).unwrap();
        let list = directory.path().join("list");
        fs::write(&list, "# base images\nalpine:3, busybox # both\n\nquay.io/a/*\n").unwrap();
        assert_eq!(store.add_pins(&["docker.io/library/redis:7".into()]).unwrap(), 1);
        let pins = vec!["ghcr.io/x/y:1".parse().unwrap()];
        let settings = PinSettings { pins, lists: vec![list.clone()], ..PinSettings::default() };
        let pins = Pins::load(&store, &settings).unwrap();
        for (text, expected) in [
            ("alpine:3", true),
            ("alpine:4", false),
            ("busybox:1", true),
            ("quay.io/a/b:2", true),
            ("redis:7", true),
            ("redis:8", false),
            ("ghcr.io/x/y:1", true),
        ] {
            let (name, reference) = image(text);
            assert_eq!(pins.cover(&name, &reference), expected, "{text}");
        }
        fs::write(&list, "not an image name\n").unwrap();
        let wrong = Pins::load(&store, &settings).unwrap_err().to_string();
        assert!(wrong.contains("not an image name") && wrong.contains("nothing is evicted"));
        fs::remove_file(&list).unwrap();
        assert!(matches!(Pins::load(&store, &settings), Err(PinError::Read { .. })));
    }
}
