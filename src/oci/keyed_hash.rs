//! A hash that only those can compute who know a secret: names for what must not be found out by trying.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// HMAC-SHA256 (RFC 2104) of a list of texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyedHash([u8; 32]);

impl KeyedHash {
    /// The hash of these texts, in this order. No other list of texts has the same.
    pub fn of(secret: &[u8], texts: &[&str]) -> KeyedHash {
        // HMAC accepts keys of any length.
        let mut hmac = Hmac::<Sha256>::new_from_slice(secret).expect("any length is valid");
        for text in texts {
            hmac.update(&(text.len() as u64).to_be_bytes());
            hmac.update(text.as_bytes());
        }
        KeyedHash(hmac.finalize().into_bytes().into())
    }
}

/// As hexadecimal digits.
impl fmt::Display for KeyedHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_secret_and_each_text_count() {
        let hash = |secret: &str, texts: &[&str]| KeyedHash::of(secret.as_bytes(), texts);
        let one = hash("secret", &["ann", "pw", "quay.io/a"]);
        assert_eq!(one, hash("secret", &["ann", "pw", "quay.io/a"]));
        for other in [
            hash("other", &["ann", "pw", "quay.io/a"]),
            hash("secret", &["annp", "w", "quay.io/a"]),
            hash("secret", &["ann", "pwquay.io/a"]),
            hash("secret", &["ann", "pw", "quay.io/a", ""]),
        ] {
            assert_ne!(one, other);
        }
        assert_eq!(one.to_string().len(), 64);
    }
}
