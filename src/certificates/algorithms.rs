//! The signature algorithms for certificates and handshakes: those of *ring*, and ECDSA with P-521 or SHA-512.
//!
//! *ring* cannot verify these two, and TLS-inspecting proxies use both; curl, Docker and containerd accept them.
//! RustCrypto's curves add them in pure Rust. They are used for verification only, their input is public, and they
//! only see certificates that *ring* cannot verify.

use std::fmt;
use std::sync::{Arc, OnceLock};

use p256::ecdsa::signature::hazmat::PrehashVerifier;
use rustls::SignatureScheme;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{
    AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm, alg_id,
};
use sha2::{Digest, Sha256, Sha384, Sha512};

/// The cryptography provider of all TLS connections, incoming and outgoing. Every use names it explicitly: with two
/// providers in one program, rustls refuses to choose one.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| {
        let ring = rustls::crypto::ring::default_provider();
        let algorithms = extended(&ring.signature_verification_algorithms);
        Arc::new(CryptoProvider { signature_verification_algorithms: algorithms, ..ring })
    }))
}

type Algorithm = &'static dyn SignatureVerificationAlgorithm;

/// Adds to *ring*'s algorithms. Leaks some short lists once per process, because rustls needs static ones.
fn extended(ring: &WebPkiSupportedAlgorithms) -> WebPkiSupportedAlgorithms {
    let all: Vec<Algorithm> = ring.all.iter().copied().chain(ADDED.iter().copied()).collect();
    // In TLS 1.3, the scheme names the curve and the first algorithm is used. In TLS 1.2, it names only the hash.
    let sha512: Vec<Algorithm> = vec![&P521_SHA512, &P384_SHA512, &P256_SHA512];
    let with_p521 = |(scheme, algorithms): &(SignatureScheme, &'static [Algorithm])| {
        let added: Option<Algorithm> = match scheme {
            SignatureScheme::ECDSA_NISTP256_SHA256 => Some(&P521_SHA256),
            SignatureScheme::ECDSA_NISTP384_SHA384 => Some(&P521_SHA384),
            _ => None,
        };
        let all = algorithms.iter().copied().chain(added).collect();
        (*scheme, &*Vec::leak::<'static>(all))
    };
    let mut mapping: Vec<(SignatureScheme, &'static [Algorithm])> =
        ring.mapping.iter().map(with_p521).collect();
    mapping.push((SignatureScheme::ECDSA_NISTP521_SHA512, Vec::leak(sha512)));
    WebPkiSupportedAlgorithms { all: Vec::leak(all), mapping: Vec::leak(mapping) }
}

const ADDED: [Algorithm; 5] =
    [&P256_SHA512, &P384_SHA512, &P521_SHA256, &P521_SHA384, &P521_SHA512];

static P256_SHA512: Ecdsa = Ecdsa { curve: Curve::P256, hash: Hash::Sha512 };
static P384_SHA512: Ecdsa = Ecdsa { curve: Curve::P384, hash: Hash::Sha512 };
static P521_SHA256: Ecdsa = Ecdsa { curve: Curve::P521, hash: Hash::Sha256 };
static P521_SHA384: Ecdsa = Ecdsa { curve: Curve::P521, hash: Hash::Sha384 };
static P521_SHA512: Ecdsa = Ecdsa { curve: Curve::P521, hash: Hash::Sha512 };

/// ECDSA with a curve and a hash (RFC 5758).
#[derive(Clone, Copy)]
struct Ecdsa {
    curve: Curve,
    hash: Hash,
}

#[derive(Debug, Clone, Copy)]
enum Curve {
    P256,
    P384,
    P521,
}

#[derive(Debug, Clone, Copy)]
enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

/// The size of a field element of P-521 in bytes.
const P521_BYTES: usize = 66;

impl Ecdsa {
    fn digest(self, message: &[u8]) -> Vec<u8> {
        let digest = match self.hash {
            Hash::Sha256 => Sha256::digest(message).to_vec(),
            Hash::Sha384 => Sha384::digest(message).to_vec(),
            Hash::Sha512 => Sha512::digest(message).to_vec(),
        };
        match self.curve {
            // ECDSA interprets the digest as a number. RustCrypto requires a digest that is not much shorter than
            // the curve's order, and leading zeros do not change the number.
            Curve::P521 => [vec![0; P521_BYTES - digest.len()], digest].concat(),
            Curve::P256 | Curve::P384 => digest,
        }
    }
}

/// Verifies a signature: the same three steps for each curve, whose types differ.
macro_rules! verify {
    ($curve:ident, $public_key:expr, $digest:expr, $signature:expr) => {{
        let key = $curve::ecdsa::VerifyingKey::from_sec1_bytes($public_key);
        let signature = $curve::ecdsa::Signature::from_der($signature);
        match (key, signature) {
            (Ok(key), Ok(signature)) => key.verify_prehash($digest, &signature).is_ok(),
            _ => false,
        }
    }};
}

impl SignatureVerificationAlgorithm for Ecdsa {
    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        let digest = self.digest(message);
        let is_valid = match self.curve {
            Curve::P256 => verify!(p256, public_key, &digest, signature),
            Curve::P384 => verify!(p384, public_key, &digest, signature),
            Curve::P521 => verify!(p521, public_key, &digest, signature),
        };
        if is_valid { Ok(()) } else { Err(InvalidSignature) }
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        match self.curve {
            Curve::P256 => alg_id::ECDSA_P256,
            Curve::P384 => alg_id::ECDSA_P384,
            Curve::P521 => alg_id::ECDSA_P521,
        }
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        match self.hash {
            Hash::Sha256 => alg_id::ECDSA_SHA256,
            Hash::Sha384 => alg_id::ECDSA_SHA384,
            Hash::Sha512 => alg_id::ECDSA_SHA512,
        }
    }
}

impl fmt::Debug for Ecdsa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ECDSA {:?} {:?}", self.curve, self.hash)
    }
}

#[cfg(test)]
mod tests {
    use p521::ecdsa::signature::hazmat::PrehashSigner;

    use super::*;

    /// The public key of a new key pair, and its signature of the algorithm's digest of a message.
    macro_rules! signed {
        ($curve:ident, $algorithm:expr, $message:expr) => {{
            let mut secret = vec![0; $curve::FieldBytes::default().len()];
            // Any number below the order of the curve is a key.
            *secret.last_mut().unwrap() = 7;
            let key = $curve::ecdsa::SigningKey::from_slice(&secret).unwrap();
            let digest = $algorithm.digest($message);
            let signature: $curve::ecdsa::Signature = key.sign_prehash(&digest).unwrap();
            let public = key.verifying_key().to_sec1_point(false);
            (public.as_bytes().to_vec(), signature.to_der().as_bytes().to_vec())
        }};
    }

    #[test]
    fn each_added_algorithm_accepts_its_own_signature_and_no_other() {
        let message = b"to be signed";
        for algorithm in [P256_SHA512, P384_SHA512, P521_SHA256, P521_SHA384, P521_SHA512] {
            let (public, signature) = match algorithm.curve {
                Curve::P256 => signed!(p256, algorithm, message),
                Curve::P384 => signed!(p384, algorithm, message),
                Curve::P521 => signed!(p521, algorithm, message),
            };
            algorithm.verify_signature(&public, message, &signature).unwrap();
            for (public, message, signature) in [
                (&public[..], &b"something else"[..], &signature[..]),
                (&public[1..], &message[..], &signature[..]),
                (&public[..], &message[..], &signature[1..]),
                (&public[..], &message[..], &[]),
                (&[], &message[..], &signature[..]),
            ] {
                let refused = algorithm.verify_signature(public, message, signature);
                assert!(refused.is_err(), "{algorithm:?}");
            }
        }
    }

    #[test]
    fn rings_algorithms_are_kept_and_p_521_is_offered() {
        let ring = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        let extended = provider().signature_verification_algorithms;
        assert_eq!(extended.all.len(), ring.all.len() + ADDED.len());
        assert!(extended.supported_schemes().contains(&SignatureScheme::ECDSA_NISTP521_SHA512));
    }
}
