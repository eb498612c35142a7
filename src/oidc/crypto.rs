//! The signatures of tokens, verified by *ring*: `jsonwebtoken` has no cryptography of its own without one of its
//! features, which would bring a second implementation.
//!
//! There is no symmetric algorithm: with one, a public key could be used as a secret.

use std::sync::Once;

use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{ErrorKind, Result};
use jsonwebtoken::signature::{Error as InvalidSignature, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind, EncodingKey};
use ring::signature::{self, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey};

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: no_signer,
    verifier_factory: verifier,
    // For thumbprints and private keys, which are not used.
    key_utils: KeyUtils::new_unimplemented(),
};

/// Makes `jsonwebtoken` use this file. Must precede its first use in the process; further calls do nothing.
pub(super) fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // Fails only if another provider is installed, and nothing else in this program installs one.
        let _ = PROVIDER.install_default();
    });
}

fn no_signer(_: &Algorithm, _: &EncodingKey) -> Result<Box<dyn JwtSigner>> {
    Err(ErrorKind::UnsupportedAlgorithm.into())
}

fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>> {
    // A key of another kind than the algorithm's fails here, whatever the header of a token says.
    let public_key = match (kind_of(*algorithm)?, key.kind()) {
        (Kind::Rsa(parameters), DecodingKeyKind::RsaModulusExponent { n, e }) => {
            PublicKey::Rsa(parameters, RsaPublicKeyComponents { n: number(n), e: number(e) })
        }
        (Kind::Point(scheme), DecodingKeyKind::SecretOrDer(point)) => {
            PublicKey::Point(UnparsedPublicKey::new(scheme, point.clone()))
        }
        _ => return Err(ErrorKind::InvalidKeyFormat.into()),
    };
    Ok(Box::new(RingVerifier { algorithm: *algorithm, public_key }))
}

/// How an algorithm (RFC 7518, section 3.1; RFC 8037) is verified.
enum Kind {
    Rsa(&'static RsaParameters),
    Point(&'static dyn signature::VerificationAlgorithm),
}

fn kind_of(algorithm: Algorithm) -> Result<Kind> {
    Ok(match algorithm {
        Algorithm::RS256 => Kind::Rsa(&signature::RSA_PKCS1_2048_8192_SHA256),
        Algorithm::RS384 => Kind::Rsa(&signature::RSA_PKCS1_2048_8192_SHA384),
        Algorithm::RS512 => Kind::Rsa(&signature::RSA_PKCS1_2048_8192_SHA512),
        Algorithm::PS256 => Kind::Rsa(&signature::RSA_PSS_2048_8192_SHA256),
        Algorithm::PS384 => Kind::Rsa(&signature::RSA_PSS_2048_8192_SHA384),
        Algorithm::PS512 => Kind::Rsa(&signature::RSA_PSS_2048_8192_SHA512),
        Algorithm::ES256 => Kind::Point(&signature::ECDSA_P256_SHA256_FIXED),
        Algorithm::ES384 => Kind::Point(&signature::ECDSA_P384_SHA384_FIXED),
        Algorithm::EdDSA => Kind::Point(&signature::ED25519),
        _ => return Err(ErrorKind::UnsupportedAlgorithm.into()),
    })
}

/// Without leading zeros, which some issuers write and *ring* refuses.
fn number(bytes: &[u8]) -> Vec<u8> {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes[zeros..].to_vec()
}

enum PublicKey {
    Rsa(&'static RsaParameters, RsaPublicKeyComponents<Vec<u8>>),
    Point(UnparsedPublicKey<Vec<u8>>),
}

struct RingVerifier {
    algorithm: Algorithm,
    public_key: PublicKey,
}

impl Verifier<Vec<u8>> for RingVerifier {
    fn verify(
        &self,
        message: &[u8],
        signature: &Vec<u8>,
    ) -> std::result::Result<(), InvalidSignature> {
        let verified = match &self.public_key {
            PublicKey::Rsa(parameters, key) => key.verify(parameters, message, signature),
            PublicKey::Point(key) => key.verify(message, signature),
        };
        verified.map_err(|_| InvalidSignature::new())
    }
}

impl JwtVerifier for RingVerifier {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}
