//! Content digests: names of content that are derived from its hash.
//!
//! Grammar: image-spec `descriptor.md`, "Digests". Accepts the three registered algorithms whose hex has a fixed
//! length. Other digests are refused, because a digest that cannot be verified gives no protection.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256, Sha384, Sha512};

/// The longest hash of the known algorithms, in bytes (sha512).
const HASH_BYTES_MAX: usize = 64;
/// The longest digest as text, in bytes.
const TEXT_BYTES_MAX: usize = "sha512:".len() + 2 * HASH_BYTES_MAX;

/// A hash algorithm that Larder can verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256, used by nearly every image.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// Every algorithm, for code that walks the `blobs/` directory.
    pub const ALL: [Algorithm; 3] = [Algorithm::Sha256, Algorithm::Sha384, Algorithm::Sha512];

    /// The name before the colon.
    pub fn as_str(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha384 => "sha384",
            Algorithm::Sha512 => "sha512",
        }
    }

    /// The length of the hash in bytes; its hex is twice as long.
    pub fn hash_bytes(self) -> usize {
        match self {
            Algorithm::Sha256 => 32,
            Algorithm::Sha384 => 48,
            Algorithm::Sha512 => 64,
        }
    }
}

/// The digest of some content, for example `sha256:b5b2…`. The hash always has the length of its algorithm.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    /// The hash in the first `algorithm.hash_bytes()` bytes, followed by zeros.
    hash: [u8; HASH_BYTES_MAX],
}

impl Digest {
    /// The digest of `content`.
    pub fn of(algorithm: Algorithm, content: &[u8]) -> Digest {
        let mut verifier = Verifier::new(algorithm);
        verifier.update(content);
        verifier.finish()
    }

    /// Whether this is the digest of empty content. Content with any other digest cannot be empty.
    pub fn is_of_nothing(&self) -> bool {
        *self == Digest::of(self.algorithm, b"")
    }

    /// The hash algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The bytes of the hash.
    pub fn as_bytes(&self) -> &[u8] {
        &self.hash[..self.algorithm.hash_bytes()]
    }

    /// The lower-case hex after the colon.
    pub fn hex(&self) -> String {
        let mut buffer = [0; TEXT_BYTES_MAX];
        let start = self.algorithm.as_str().len() + 1;
        self.write(&mut buffer).get(start..).unwrap_or_default().to_owned()
    }

    /// Writes the text to the beginning of `buffer`: every response has digests, so this does not allocate.
    fn write<'a>(&self, buffer: &'a mut [u8; TEXT_BYTES_MAX]) -> &'a str {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let (name, hash) = (self.algorithm.as_str().as_bytes(), self.as_bytes());
        buffer[..name.len()].copy_from_slice(name);
        buffer[name.len()] = b':';
        let start = name.len() + 1;
        for (digits, byte) in buffer[start..].chunks_exact_mut(2).zip(hash) {
            digits[0] = HEX[usize::from(byte >> 4)];
            digits[1] = HEX[usize::from(byte & 15)];
        }
        // It is ASCII.
        str::from_utf8(&buffer[..start + hash.len() * 2]).unwrap_or_default()
    }

    /// Algorithm and hex separated by a dash, for example `sha256-b5b2…`: for names that cannot contain a colon.
    pub fn dashed(&self) -> String {
        format!("{}-{}", self.algorithm.as_str(), self.hex())
    }

    /// Parses the form that [`Digest::dashed`] writes.
    pub fn from_dashed(text: &str) -> Option<Digest> {
        let (algorithm, hex) = text.split_once('-')?;
        format!("{algorithm}:{hex}").parse().ok()
    }

    fn from_hash(algorithm: Algorithm, hash: &[u8]) -> Digest {
        let mut padded = [0; HASH_BYTES_MAX];
        padded[..hash.len()].copy_from_slice(hash);
        Digest { algorithm, hash: padded }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.write(&mut [0; TEXT_BYTES_MAX]))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    /// Parses `algorithm:hex`. Refuses upper-case hex, as the image-spec requires: two spellings of one digest would
    /// be two names for one file.
    fn from_str(text: &str) -> Result<Digest, DigestError> {
        let (name, hex) = text.split_once(':').ok_or(DigestError::NoColon)?;
        let algorithm = Algorithm::ALL
            .into_iter()
            .find(|algorithm| algorithm.as_str() == name)
            .ok_or(DigestError::UnknownAlgorithm)?;
        if hex.len() != algorithm.hash_bytes() * 2 {
            return Err(DigestError::WrongLength { algorithm, hex_chars: hex.len() });
        }
        let mut hash = [0; HASH_BYTES_MAX];
        for (byte, pair) in hash.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Ok(Digest { algorithm, hash })
    }
}

fn nibble(char: u8) -> Result<u8, DigestError> {
    match char {
        b'0'..=b'9' => Ok(char - b'0'),
        b'a'..=b'f' => Ok(char - b'a' + 10),
        _ => Err(DigestError::NotHex),
    }
}

/// Why a text is not a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DigestError {
    /// The text has no `:` between algorithm and hex.
    NoColon,
    /// The algorithm is not sha256, sha384 or sha512.
    UnknownAlgorithm,
    /// The hex is not as long as the algorithm's hash.
    WrongLength {
        /// The algorithm in the digest.
        algorithm: Algorithm,
        /// How many characters follow the colon.
        hex_chars: usize,
    },
    /// A character is not one of `0-9a-f`; upper case is refused.
    NotHex,
}

impl fmt::Display for DigestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DigestError::NoColon => write!(f, "a digest must have the form algorithm:hex"),
            DigestError::UnknownAlgorithm => {
                write!(f, "the algorithm of the digest is not sha256, sha384 or sha512")
            }
            DigestError::WrongLength { algorithm, hex_chars } => write!(
                f,
                "a {} digest has {} hex characters, not {hex_chars}",
                algorithm.as_str(),
                algorithm.hash_bytes() * 2
            ),
            DigestError::NotHex => write!(f, "the hex of a digest may contain only 0-9 and a-f"),
        }
    }
}

impl std::error::Error for DigestError {}

/// Hashes content incrementally. Cloning keeps the state for a prefix of the content.
#[derive(Clone)]
pub struct Verifier(State);

#[derive(Clone)]
enum State {
    Sha256(Sha256),
    Sha384(Sha384),
    Sha512(Sha512),
}

impl Verifier {
    /// A verifier for new content.
    pub fn new(algorithm: Algorithm) -> Verifier {
        Verifier(match algorithm {
            Algorithm::Sha256 => State::Sha256(Sha256::new()),
            Algorithm::Sha384 => State::Sha384(Sha384::new()),
            Algorithm::Sha512 => State::Sha512(Sha512::new()),
        })
    }

    /// Hashes the next bytes of the content.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(hasher) => hasher.update(bytes),
            State::Sha384(hasher) => hasher.update(bytes),
            State::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of the content so far.
    pub fn finish(self) -> Digest {
        match self.0 {
            State::Sha256(hasher) => Digest::from_hash(Algorithm::Sha256, &hasher.finalize()),
            State::Sha384(hasher) => Digest::from_hash(Algorithm::Sha384, &hasher.finalize()),
            State::Sha512(hasher) => Digest::from_hash(Algorithm::Sha512, &hasher.finalize()),
        }
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FIPS 180-4 test vectors of "abc".
    const ABC: [&str; 3] = [
        "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "sha384:cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed8086072ba1e7cc2358baeca134c825a7",
        "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
    ];

    #[test]
    fn each_algorithm_computes_its_own_hash() {
        for (algorithm, expected) in Algorithm::ALL.into_iter().zip(ABC) {
            assert_eq!(Digest::of(algorithm, b"abc").to_string(), expected);
        }
    }

    #[test]
    fn accepted_digests_print_as_they_were_written() {
        for text in ABC {
            assert_eq!(text.parse::<Digest>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn refused_digests() {
        let upper = ABC[0].to_uppercase().replace("SHA256", "sha256");
        let short = &ABC[0][..ABC[0].len() - 1];
        let swapped = ABC[0].replace("sha256", "sha512");
        let table = [
            ("", DigestError::NoColon),
            ("sha256", DigestError::NoColon),
            ("sha256:", DigestError::WrongLength { algorithm: Algorithm::Sha256, hex_chars: 0 }),
            (short, DigestError::WrongLength { algorithm: Algorithm::Sha256, hex_chars: 63 }),
            (&swapped, DigestError::WrongLength { algorithm: Algorithm::Sha512, hex_chars: 64 }),
            (&upper, DigestError::NotHex),
            ("md5:d41d8cd98f00b204e9800998ecf8427e", DigestError::UnknownAlgorithm),
            ("SHA256:ba78", DigestError::UnknownAlgorithm),
            (
                "sha256:totallywrong",
                DigestError::WrongLength { algorithm: Algorithm::Sha256, hex_chars: 12 },
            ),
        ];
        for (text, error) in table {
            assert_eq!(text.parse::<Digest>(), Err(error), "{text}");
        }
    }

    #[test]
    fn hashing_in_pieces_equals_hashing_at_once() {
        let mut pieces = Verifier::new(Algorithm::Sha512);
        pieces.update(b"a");
        pieces.update(b"");
        pieces.update(b"bc");
        assert_eq!(pieces.finish(), Digest::of(Algorithm::Sha512, b"abc"));
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in ".{0,160}") {
            if let Ok(digest) = text.parse::<Digest>() {
                proptest::prop_assert_eq!(digest.to_string(), text);
            }
        }
    }
}
