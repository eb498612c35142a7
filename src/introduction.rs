//! What a Larder tells its peers about itself: its version, and the settings that they should have in common.
//!
//! Peers with other versions or settings work together, since each of them verifies what it receives. But then it
//! depends on the responsible one which registry is asked, and how fresh a tag is, so the difference is reported. The
//! settings are compared by short hashes, against which a guess can be checked. They contain no secrets: they are of what
//! `config show` prints.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use crate::oci::{Algorithm, Digest};

/// The response header with an introduction.
pub const HEADER: &str = "Larder-Peer";

/// How many digits of a hash are sent.
const HASH_DIGITS: usize = 8;
/// How many settings of another Larder are considered: more than there are.
const KEYS_MAX: usize = 64;

/// The introduction of one Larder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Introduction {
    version: String,
    /// The hash of each setting.
    settings: BTreeMap<String, String>,
}

static OWN: RwLock<Option<Arc<Introduction>>> = RwLock::new(None);

/// The introduction of this process, if it has peers.
pub fn own() -> Option<Arc<Introduction>> {
    OWN.read().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Replaces the introduction of this process.
pub fn set_own(introduction: Option<Introduction>) {
    *OWN.write().unwrap_or_else(PoisonError::into_inner) = introduction.map(Arc::new);
}

impl Introduction {
    /// An introduction with the texts of these settings.
    pub fn new<'a>(settings: impl IntoIterator<Item = (&'a str, String)>) -> Introduction {
        let hash = |text: String| {
            let digest = Digest::of(Algorithm::Sha256, text.as_bytes());
            digest.hex().chars().take(HASH_DIGITS).collect()
        };
        let settings = settings.into_iter().map(|(key, text)| (key.to_owned(), hash(text)));
        Introduction { version: env!("CARGO_PKG_VERSION").to_owned(), settings: settings.collect() }
    }

    /// Parses the value of [`HEADER`]. `None` if it is not one.
    pub fn parse(value: &str) -> Option<Introduction> {
        let is_word = |word: &str| {
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".+-".contains(&byte);
            (1..=32).contains(&word.len()) && word.bytes().all(is_plain)
        };
        let mut pairs = value.split(' ').map(|pair| pair.split_once('='));
        let ("version", version) = pairs.next()?? else { return None };
        let settings: Option<BTreeMap<String, String>> = pairs
            .take(KEYS_MAX)
            .map(|pair| {
                let (key, hash) = pair.filter(|(key, hash)| is_word(key) && is_word(hash))?;
                Some((key.to_owned(), hash.to_owned()))
            })
            .collect();
        let (version, settings) = (version.to_owned(), settings?);
        is_word(&version).then_some(Introduction { version, settings })
    }

    /// The version of the program.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// What is different in another Larder: `version`, and the names of settings.
    pub fn differences(&self, other: &Introduction) -> Vec<String> {
        let version = (self.version != other.version).then(|| "version".to_owned());
        let differs = |key: &&String| self.settings.get(*key) != other.settings.get(*key);
        let own = self.settings.keys().filter(differs);
        let unknown = other.settings.keys().filter(|key| !self.settings.contains_key(*key));
        version.into_iter().chain(own.chain(unknown).cloned()).collect()
    }
}

/// The value of [`HEADER`].
impl fmt::Display for Introduction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "version={}", self.version)?;
        self.settings.iter().try_for_each(|(key, hash)| write!(f, " {key}={hash}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(settings: &[(&'static str, &str)]) -> Introduction {
        Introduction::new(settings.iter().map(|(key, text)| (*key, (*text).to_owned())))
    }

    #[test]
    fn differences_are_named_and_an_introduction_survives_the_header() {
        let one = of(&[("registries", "a"), ("tagTtl", "5m"), ("tags", "")]);
        let parsed = Introduction::parse(&one.to_string()).unwrap();
        assert_eq!(parsed, one);
        assert!(one.differences(&parsed).is_empty());
        let other = of(&[("registries", "a"), ("tagTtl", "1h"), ("newKey", "x")]);
        assert_eq!(one.differences(&other), ["tagTtl", "tags", "newKey"]);
        let newer = Introduction { version: "9.9.9".into(), ..one.clone() };
        assert_eq!(one.differences(&newer), ["version"]);
    }

    #[test]
    fn what_is_not_an_introduction_is_ignored() {
        for value in
            ["", "version", "version=", "tags=1 version=2", "version=1 a", "version=1 \u{7}=b"]
        {
            assert_eq!(Introduction::parse(value), None, "{value}");
        }
        let many: String = (0..1000).map(|number| format!(" k{number}=1")).collect();
        let parsed = Introduction::parse(&format!("version=1{many}")).unwrap();
        assert_eq!(parsed.settings.len(), KEYS_MAX);
    }
}
