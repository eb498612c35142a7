//! The public keys of an issuer: a JSON Web Key Set (RFC 7517).

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{
    AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse,
};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde_json::Value;

use crate::oci::json_reason;
use crate::units::plural;

/// How many keys a token is tried with: more than one only if they have the same `kid`, or none.
const CANDIDATES_MAX: usize = 4;
/// The shortest RSA key that verifies signatures, in bits.
const RSA_BITS_MIN: usize = 2048;

/// Keys that verify the tokens of one issuer. Their number is bounded by the size of the document.
#[derive(Debug, Clone)]
pub(super) struct KeySet {
    keys: Vec<Key>,
}

#[derive(Debug, Clone)]
pub(super) struct Key {
    jwk: Jwk,
    /// The algorithms that may be used with it, whatever the header of a token says.
    pub(super) algorithms: Vec<Algorithm>,
    pub(super) decoding: DecodingKey,
}

impl PartialEq for KeySet {
    fn eq(&self, other: &KeySet) -> bool {
        let jwks = |set: &KeySet| set.keys.iter().map(|key| key.jwk.clone()).collect::<Vec<Jwk>>();
        jwks(self) == jwks(other)
    }
}

impl KeySet {
    /// Parses a set. Keys that cannot verify a signature here are left out: other kinds may appear in a set at any
    /// time (RFC 7517, section 5).
    ///
    /// # Errors
    /// [`KeySetError`] if it is not a set.
    pub(super) fn parse(json: &[u8]) -> Result<KeySet, KeySetError> {
        #[derive(Deserialize)]
        struct Written {
            keys: Vec<Value>,
        }
        let written: Written = serde_json::from_slice(json)
            .map_err(|error| KeySetError::Json { reason: json_reason(&error) })?;
        Ok(KeySet { keys: written.keys.into_iter().filter_map(Key::of).collect() })
    }

    /// The same, with at least one usable key.
    ///
    /// # Errors
    /// [`KeySetError`].
    pub(super) fn or_none_usable(self) -> Result<KeySet, KeySetError> {
        if self.keys.is_empty() { Err(KeySetError::NoneUsable) } else { Ok(self) }
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// The number of its keys, and their algorithms.
    pub(super) fn describe(&self) -> String {
        let mut algorithms: Vec<Algorithm> = Vec::new();
        for algorithm in self.keys.iter().flat_map(|key| &key.algorithms) {
            if !algorithms.contains(algorithm) {
                algorithms.push(*algorithm);
            }
        }
        let names: Vec<String> = algorithms.iter().map(|name| format!("{name:?}")).collect();
        format!("{} ({})", plural(self.keys.len(), "key"), names.join(", "))
    }

    /// The keys for a token: those with its `kid`, or else those without one. For a token without `kid`, also the only key.
    pub(super) fn candidates(&self, kid: Option<&str>) -> Vec<&Key> {
        if let ([only], None) = (&*self.keys, kid) {
            return vec![only];
        }
        let with = |wanted: Option<&str>| -> Vec<&Key> {
            let is_wanted = |key: &&Key| key.jwk.common.key_id.as_deref() == wanted;
            self.keys.iter().filter(is_wanted).take(CANDIDATES_MAX).collect()
        };
        let named = with(kid);
        if named.is_empty() { with(None) } else { named }
    }
}

impl Key {
    fn of(json: Value) -> Option<Key> {
        let jwk: Jwk = serde_json::from_value(json).ok()?;
        let is_for_signatures =
            matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature))
                && jwk
                    .common
                    .key_operations
                    .as_ref()
                    .is_none_or(|operations| operations.contains(&KeyOperations::Verify));
        let algorithms = algorithms(&jwk);
        if !is_for_signatures || algorithms.is_empty() || !has_right_length(&jwk) {
            return None;
        }
        let decoding = DecodingKey::from_jwk(&jwk).ok()?;
        Some(Key { jwk, algorithms, decoding })
    }
}

/// Whether the numbers of a key have the length that its kind demands. Other keys would verify nothing.
fn has_right_length(jwk: &Jwk) -> bool {
    let bytes = |text: &str| BASE64_URL_SAFE_NO_PAD.decode(text).unwrap_or_default();
    match &jwk.algorithm {
        AlgorithmParameters::RSA(key) => {
            let modulus = bytes(&key.n);
            let zeros = modulus.iter().take_while(|byte| **byte == 0).count();
            (modulus.len() - zeros) * 8 >= RSA_BITS_MIN
        }
        AlgorithmParameters::EllipticCurve(key) => {
            let length = if key.curve == EllipticCurve::P384 { 48 } else { 32 };
            [&key.x, &key.y].iter().all(|number| bytes(number).len() == length)
        }
        AlgorithmParameters::OctetKeyPair(key) => bytes(&key.x).len() == 32,
        _ => false,
    }
}

/// The algorithms of a key: by its kind, and the one that it names. None for symmetric keys.
fn algorithms(jwk: &Jwk) -> Vec<Algorithm> {
    use {Algorithm as A, KeyAlgorithm as K};
    let of_kind: &[(A, K)] = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => &[
            (A::RS256, K::RS256),
            (A::RS384, K::RS384),
            (A::RS512, K::RS512),
            (A::PS256, K::PS256),
            (A::PS384, K::PS384),
            (A::PS512, K::PS512),
        ],
        AlgorithmParameters::EllipticCurve(key) => match key.curve {
            EllipticCurve::P256 => &[(A::ES256, K::ES256)],
            EllipticCurve::P384 => &[(A::ES384, K::ES384)],
            _ => &[],
        },
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            &[(A::EdDSA, K::EdDSA)]
        }
        _ => &[],
    };
    let named = jwk.common.key_algorithm;
    let is_allowed = |of_key: &K| named.is_none_or(|named| named == *of_key);
    of_kind
        .iter()
        .filter(|(_, of_key)| is_allowed(of_key))
        .map(|(algorithm, _)| *algorithm)
        .collect()
}

/// Why a text is not a usable set of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum KeySetError {
    Json { reason: String },
    NoneUsable,
}

impl fmt::Display for KeySetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeySetError::Json { reason } => write!(f, "not a JSON Web Key Set: {reason}"),
            KeySetError::NoneUsable => write!(
                f,
                "the set has no key for signatures (RSA of 2048 bits or more, P-256, P-384, Ed25519)"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ec(more: Value) -> Value {
        let mut key = json!({
            "kty": "EC", "crv": "P-256",
            "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
            "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
        });
        key.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        key
    }

    fn parse(keys: Value) -> Result<KeySet, KeySetError> {
        KeySet::parse(json!({ "keys": keys }).to_string().as_bytes())
    }

    #[test]
    fn keys_that_cannot_verify_a_signature_are_left_out() {
        for unusable in [
            json!({"kty": "oct", "k": "c2VjcmV0"}),
            json!({"kty": "new", "x": 1}),
            json!(7),
            ec(json!({"use": "enc"})),
            ec(json!({"key_ops": ["encrypt"]})),
            ec(json!({"alg": "HS256"})),
            ec(json!({"alg": "RS256"})),
            ec(json!({"crv": "P-521"})),
            ec(json!({"x": "not base64!"})),
            ec(json!({"x": "AA"})),
            json!({"kty": "OKP", "crv": "Ed25519", "x": "AA"}),
            json!({"kty": "RSA", "e": "AQAB", "n": "AQAB"}),
            json!({"kty": "RSA", "e": "AQAB", "n": BASE64_URL_SAFE_NO_PAD.encode([255; 255])}),
            json!({"kty": "RSA", "e": "AQAB", "n": BASE64_URL_SAFE_NO_PAD.encode([[0; 128], [255; 128]].concat())}),
        ] {
            let none = parse(json!([unusable])).unwrap().or_none_usable();
            assert_eq!(none, Err(KeySetError::NoneUsable), "{unusable}");
            assert_eq!(parse(json!([unusable, ec(json!({}))])).unwrap().len(), 1, "{unusable}");
        }
        for usable in
            [json!({"use": "sig"}), json!({"key_ops": ["verify"]}), json!({"alg": "ES256"})]
        {
            assert_eq!(parse(json!([ec(usable.clone())])).unwrap().len(), 1, "{usable}");
        }
        let two = parse(json!([ec(json!({})), ec(json!({"kid": "b"})), json!(7)])).unwrap();
        assert_eq!(two.describe(), "2 keys (ES256)");
    }

    #[test]
    fn sets_that_are_damaged_are_refused() {
        let many: KeySet = parse((0..100).map(|_| ec(json!({}))).collect()).unwrap();
        assert_eq!((many.len(), many.candidates(None).len()), (100, CANDIDATES_MAX));
        for text in ["", "[]", "{}", "{\"keys\": {}}", "{\"keys\": ["] {
            let error = KeySet::parse(text.as_bytes()).unwrap_err();
            assert!(matches!(error, KeySetError::Json { .. }), "{text}: {error}");
        }
    }

    #[test]
    fn a_key_is_chosen_by_its_id() {
        let named = |kid: &str| ec(json!({ "kid": kid }));
        let set = parse(json!([named("a"), named("b"), ec(json!({}))])).unwrap();
        let ids = |kid: Option<&str>| -> Vec<Option<String>> {
            set.candidates(kid).into_iter().map(|key| key.jwk.common.key_id.clone()).collect()
        };
        assert_eq!(ids(Some("b")), [Some("b".into())]);
        assert_eq!(ids(Some("c")), [None]);
        assert_eq!(ids(None), [None]);
        let set = parse(json!([named("a")])).unwrap();
        assert!(set.candidates(Some("c")).is_empty());
        assert_eq!(set.candidates(None).len(), 1);
        assert!(parse(json!([named("a"), named("b")])).unwrap().candidates(None).is_empty());
    }
}
