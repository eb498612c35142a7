//! Tokens that are accepted and refused, and keys of a file.

mod fetched;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use proptest::prelude::*;
use ring::rand::SystemRandom;
use ring::rsa::PublicKeyComponents;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
    KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256,
    RSA_PSS_SHA384, RSA_PSS_SHA512, RsaKeyPair,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};

use super::keys::KeySet;
use super::*;

const ISSUER: &str = "https://issuer.example";
const NOW: u64 = 1_800_000_000;

/// Another one each time, since an address that presents many wrong tokens is stopped.
fn client() -> ClientAddress {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    IpAddr::from(Ipv4Addr::from(COUNT.fetch_add(1, Ordering::Relaxed))).into()
}

fn encoded(bytes: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// A key of an issuer.
enum Signer {
    Rsa(Box<RsaKeyPair>),
    Ec256(EcdsaKeyPair),
    Ec384(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
}

impl Signer {
    fn rsa() -> Signer {
        let pem = include_bytes!("rsa-2048.pem");
        let key = PrivatePkcs8KeyDer::from_pem_slice(pem).unwrap();
        Signer::Rsa(Box::new(RsaKeyPair::from_pkcs8(key.secret_pkcs8_der()).unwrap()))
    }

    fn ec256() -> Signer {
        let (scheme, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let key = EcdsaKeyPair::generate_pkcs8(scheme, &random).unwrap();
        Signer::Ec256(EcdsaKeyPair::from_pkcs8(scheme, key.as_ref(), &random).unwrap())
    }

    fn ec384() -> Signer {
        let (scheme, random) = (&ECDSA_P384_SHA384_FIXED_SIGNING, SystemRandom::new());
        let key = EcdsaKeyPair::generate_pkcs8(scheme, &random).unwrap();
        Signer::Ec384(EcdsaKeyPair::from_pkcs8(scheme, key.as_ref(), &random).unwrap())
    }

    fn ed() -> Signer {
        let key = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Signer::Ed(Ed25519KeyPair::from_pkcs8(key.as_ref()).unwrap())
    }

    fn public(&self) -> Vec<u8> {
        match self {
            Signer::Rsa(key) => PublicKeyComponents::<Vec<u8>>::from(key.public()).n,
            Signer::Ec256(key) | Signer::Ec384(key) => key.public_key().as_ref().to_vec(),
            Signer::Ed(key) => key.public_key().as_ref().to_vec(),
        }
    }

    fn jwk(&self, kid: &str) -> Value {
        let public = self.public();
        let half = public.len() / 2;
        let point = |curve: &str| {
            let (x, y) = (encoded(&public[1..=half]), encoded(&public[half + 1..]));
            json!({"kty": "EC", "crv": curve, "x": x, "y": y, "kid": kid})
        };
        match self {
            Signer::Rsa(_) => json!({"kty": "RSA", "n": encoded(&public), "e": "AQAB", "kid": kid}),
            Signer::Ec256(_) => point("P-256"),
            Signer::Ec384(_) => point("P-384"),
            Signer::Ed(_) => {
                json!({"kty": "OKP", "crv": "Ed25519", "x": encoded(&public), "kid": kid})
            }
        }
    }

    fn sign(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Signer::Rsa(key) => {
                let scheme: &dyn ring::signature::RsaEncoding = match algorithm {
                    "RS384" => &RSA_PKCS1_SHA384,
                    "RS512" => &RSA_PKCS1_SHA512,
                    "PS256" => &RSA_PSS_SHA256,
                    "PS384" => &RSA_PSS_SHA384,
                    "PS512" => &RSA_PSS_SHA512,
                    _ => &RSA_PKCS1_SHA256,
                };
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(scheme, &random, message, &mut signature).unwrap();
                signature
            }
            Signer::Ec256(key) | Signer::Ec384(key) => {
                key.sign(&random, message).unwrap().as_ref().to_vec()
            }
            Signer::Ed(key) => key.sign(message).as_ref().to_vec(),
        }
    }

    fn token(&self, header: &Value, claims: &Value) -> String {
        let message = format!("{}.{}", encoded(header.to_string()), encoded(claims.to_string()));
        let algorithm = header["alg"].as_str().unwrap();
        format!("{message}.{}", encoded(self.sign(algorithm, message.as_bytes())))
    }
}

fn claims(changes: Value) -> Value {
    let mut claims = json!({
        "iss": ISSUER, "aud": ["larder", "other"], "exp": NOW + 600, "nbf": NOW - 10,
        "sub": "system:serviceaccount:team-a:builder",
        "kubernetes.io": {"namespace": "team-a"},
    });
    let all = claims.as_object_mut().unwrap();
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(all.remove(name)),
            _ => drop(all.insert(name.clone(), value.clone())),
        }
    }
    claims
}

fn jwks(keys: &[Value]) -> Vec<u8> {
    json!({ "keys": keys }).to_string().into_bytes()
}

fn settings(keys: KeysFrom) -> Settings {
    let rule = |namespace: &str, repositories: &[&str]| Rule {
        claims: vec![("kubernetes.io.namespace".into(), namespace.parse().unwrap())],
        repositories: repositories.iter().map(|each| each.parse().unwrap()).collect(),
    };
    let allow = vec![rule("team-a", &["quay.io/team-a/*", "docker.io"]), rule("ops", &[])];
    let (issuer, audience) = (ISSUER.parse().unwrap(), "larder".into());
    Settings { issuers: vec![IssuerSettings { issuer, audience, keys, user: "sub".into(), allow }] }
}

fn no_source(_: &IssuerUrl, _: &DiscoverySettings) -> Box<dyn KeySource> {
    panic!("the keys are in a file")
}

/// Issuers with the keys of a file.
struct Site {
    directory: tempfile::TempDir,
    issuers: Issuers,
}

impl Site {
    fn new(keys: &[Value]) -> Site {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("jwks.json");
        std::fs::write(&path, jwks(keys)).unwrap();
        let issuers = Issuers::load(&settings(KeysFrom::File(path)), None, no_source).unwrap();
        Site { directory, issuers }
    }

    /// Replaces the file: a new inode is detected whatever the resolution of time stamps.
    fn put(&self, text: &[u8]) {
        let new = self.directory.path().join("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.directory.path().join("jwks.json")).unwrap();
        self.issuers.look();
    }

    fn check(&self, token: &str) -> Option<Result<Arc<Identity>, Refusal>> {
        known(&self.issuers, token, NOW)
    }

    fn refusal(&self, token: &str) -> Refusal {
        self.check(token).expect("a token of the issuer").expect_err("a refusal")
    }
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn known(issuers: &Issuers, token: &str, now: u64) -> Option<Result<Arc<Identity>, Refusal>> {
    match issuers.check(token, client(), at(now), Instant::now())? {
        Verdict::Known(known) => Some(known),
        Verdict::Wait(_) => panic!("nothing is fetched"),
    }
}

#[test]
fn tokens_of_all_supported_algorithms_are_accepted() {
    for (signer, algorithms) in [
        (Signer::rsa(), &["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"][..]),
        (Signer::ec256(), &["ES256"]),
        (Signer::ec384(), &["ES384"]),
        (Signer::ed(), &["EdDSA"]),
    ] {
        let site = Site::new(&[signer.jwk("k")]);
        for algorithm in algorithms {
            for header in [json!({"alg": algorithm, "kid": "k"}), json!({"alg": algorithm})] {
                let token = signer.token(&header, &claims(json!({"alg": algorithm})));
                let identity = site.check(&token).unwrap();
                let identity = identity.unwrap_or_else(|error| panic!("{algorithm}: {error}"));
                assert_eq!(identity.user(), "system:serviceaccount:team-a:builder");
            }
        }
    }
}

/// RFC 7515, appendices A.2 and A.3.
#[test]
fn signatures_of_the_specification_are_verified() {
    const PAYLOAD: &str = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    crypto::install();
    for (header, signature, key) in [
        (
            "eyJhbGciOiJSUzI1NiJ9",
            "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujG\
             bds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K\
             0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6\
             LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw",
            json!({"kty": "RSA", "e": "AQAB", "n":
                "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4Ql\
                 L-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUs\
                 LA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoud\
                 F8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ"}),
        ),
        (
            "eyJhbGciOiJFUzI1NiJ9",
            "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
            json!({"kty": "EC", "crv": "P-256",
                "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
                "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}),
        ),
    ] {
        let keys = KeySet::parse(&jwks(&[key])).unwrap();
        let text = format!("{header}.{PAYLOAD}.{signature}");
        let token = Unverified::parse(&text).unwrap();
        assert_eq!(token.verify(&keys).unwrap()["iss"], "joe", "{header}");
        let text = format!("{header}.{}.{signature}", encoded(r#"{"iss":"eve"}"#));
        let token = Unverified::parse(&text).unwrap();
        assert_eq!(token.verify(&keys), Err(Refusal::Signature), "{header}");
    }
}

#[test]
fn wrong_claims_are_refused_with_their_reason() {
    let signer = Signer::ec256();
    let site = Site::new(&[signer.jwk("k")]);
    let token =
        |changes: Value| signer.token(&json!({"alg": "ES256", "kid": "k"}), &claims(changes));
    // A valid token, so its user is known.
    let no_rule = Refusal::NoRule { user: "system:serviceaccount:team-a:builder".into() };
    for (changes, refusal) in [
        (json!({"aud": "others"}), Refusal::Audience),
        (json!({"aud": ["a", 1]}), Refusal::Audience),
        (json!({"aud": null}), Refusal::Audience),
        (json!({"aud": {"larder": true}}), Refusal::Audience),
        (json!({"exp": NOW - 60}), Refusal::Expired),
        (json!({"exp": 0}), Refusal::Expired),
        (json!({"exp": null}), Refusal::Claim("exp")),
        (json!({"exp": "never"}), Refusal::Claim("exp")),
        (json!({"exp": -1}), Refusal::Claim("exp")),
        (json!({"exp": 1e300}), Refusal::Claim("exp")),
        (json!({"nbf": NOW + 61}), Refusal::NotYetValid),
        (json!({"nbf": "now"}), Refusal::Claim("nbf")),
        (json!({"sub": null}), Refusal::User),
        (json!({"sub": 7}), Refusal::User),
        (json!({"kubernetes.io": {"namespace": "team-b"}}), no_rule.clone()),
        (json!({"kubernetes.io": null}), no_rule),
    ] {
        assert_eq!(site.refusal(&token(changes.clone())), refusal, "{changes}");
    }
    for changes in [
        json!({"aud": "larder"}),
        json!({"exp": NOW - 59}),
        json!({"exp": NOW as f64 + 0.5}),
        json!({"nbf": NOW + 60}),
        json!({"nbf": null}),
    ] {
        assert!(site.check(&token(changes.clone())).unwrap().is_ok(), "{changes}");
    }
    for changes in [
        json!({"iss": "https://other.example"}),
        json!({"iss": "https://issuer.example/"}),
        json!({"iss": [ISSUER]}),
        json!({"iss": null}),
    ] {
        let token = token(changes.clone());
        assert!(site.check(&token).is_none() && !site.issuers.are_named_by(&token), "{changes}");
    }
}

#[test]
fn the_algorithm_of_a_token_is_that_of_its_key() {
    let (rsa, ec, ed) = (Signer::rsa(), Signer::ec256(), Signer::ed());
    let site = Site::new(&[rsa.jwk("rsa"), ec.jwk("ec"), ed.jwk("ed")]);
    // With a public key as the secret of an HMAC, as some libraries have accepted it.
    for kid in ["rsa", "ec", "ed"] {
        let header = json!({"alg": "HS256", "kid": kid});
        let message =
            format!("{}.{}", encoded(header.to_string()), encoded(claims(json!({})).to_string()));
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &rsa.public());
        let signature = ring::hmac::sign(&key, message.as_bytes());
        let token = format!("{message}.{}", encoded(signature));
        assert_eq!(site.refusal(&token), Refusal::Algorithm, "{kid}");
    }
    for algorithm in ["none", "None", "", "ES512", "ES256K", "HS512", "RS1"] {
        let header = encoded(json!({"alg": algorithm, "kid": "ec"}).to_string());
        for signature in ["", "AAAA"] {
            let token = format!("{header}.{}.{signature}", encoded(claims(json!({})).to_string()));
            assert_eq!(site.refusal(&token), Refusal::Algorithm, "{algorithm}");
        }
    }
    for (signer, algorithm, kid) in [
        (&rsa, "RS256", "ec"),
        (&rsa, "RS256", "ed"),
        (&ec, "ES256", "rsa"),
        (&ec, "ES256", "ed"),
        (&ed, "EdDSA", "ec"),
        (&ec, "ES384", "ec"),
    ] {
        let token = signer.token(&json!({"alg": algorithm, "kid": kid}), &claims(json!({})));
        assert_eq!(site.refusal(&token), Refusal::Algorithm, "{algorithm} {kid}");
    }
    // The key names one of the algorithms of its kind.
    let mut jwk = rsa.jwk("rsa");
    jwk["alg"] = "RS256".into();
    let site = Site::new(&[jwk]);
    for (algorithm, expected) in [("PS256", Some(Refusal::Algorithm)), ("RS256", None)] {
        let token = rsa.token(&json!({"alg": algorithm, "kid": "rsa"}), &claims(json!({})));
        assert_eq!(site.check(&token).unwrap().err(), expected, "{algorithm}");
    }
}

#[test]
fn changed_and_foreign_signatures_are_refused() {
    let (signer, other) = (Signer::ec256(), Signer::ec256());
    let site = Site::new(&[signer.jwk("k")]);
    let header = json!({"alg": "ES256", "kid": "k"});
    let token = signer.token(&header, &claims(json!({})));
    assert!(site.check(&token).unwrap().is_ok());
    assert_eq!(site.refusal(&other.token(&header, &claims(json!({})))), Refusal::Signature);
    let (message, signature) = token.rsplit_once('.').unwrap();
    for changed in ["", "AAAA", &signature[4..], &encoded([0; 64])] {
        assert_eq!(site.refusal(&format!("{message}.{changed}")), Refusal::Signature, "{changed}");
    }
    // Extensions that a reader must understand (RFC 7515, section 4.1.11).
    let header = json!({"alg": "ES256", "kid": "k", "crit": ["new"], "new": 1});
    assert_eq!(site.refusal(&signer.token(&header, &claims(json!({})))), Refusal::Malformed);
    // A key in the header is not one of the issuer.
    let header =
        json!({"alg": "ES256", "kid": "x", "jwk": other.jwk("x"), "jku": "https://e.example"});
    assert_eq!(site.refusal(&other.token(&header, &claims(json!({})))), Refusal::UnknownKey);
}

#[test]
fn other_passwords_are_not_tokens() {
    let signer = Signer::ec256();
    let site = Site::new(&[signer.jwk("k")]);
    let token = signer.token(&json!({"alg": "ES256"}), &claims(json!({})));
    let (header, body) = (encoded(r#"{"alg":"ES256"}"#), encoded(claims(json!({})).to_string()));
    for text in [
        String::new(),
        "secret".into(),
        "a.b.c".into(),
        "..".into(),
        format!("{header}.{}.AAAA", encoded("[]")),
        format!("{header}.{}.AAAA", encoded(r#"{"iss":"https://other.example"}"#)),
    ] {
        assert!(site.check(&text).is_none() && !site.issuers.are_named_by(&text), "{text}");
    }
    // They are not accepted, but whoever gets them could repair them.
    let (first, second) = token.split_at(token.len() / 2);
    for damaged in [
        format!("{token}.x"),
        format!("{token} "),
        format!("\n{token}\n"),
        format!("Bearer {token}"),
        format!("{first}\n{second}"),
        format!("{header}.{body}"),
        format!("{header}.{body}=.AAAA"),
        format!("{}.{body}.AAAA", encoded("{}")),
        format!("{}.{body}.AAAA", encoded("[]")),
        format!("{header}.{body}.+/+/"),
        body.clone(),
    ] {
        assert!(site.check(&damaged).is_none() && site.issuers.are_named_by(&damaged), "{damaged}");
    }
}

#[test]
fn a_token_that_is_too_long_is_refused_before_it_is_verified() {
    let signer = Signer::ec256();
    let site = Site::new(&[signer.jwk("k")]);
    let padded = json!({"more": "x".repeat(TOKEN_BYTES_MAX)});
    let token = signer.token(&json!({"alg": "ES256"}), &claims(padded));
    assert_eq!(site.refusal(&token), Refusal::TooLong);
    assert!(site.issuers.are_named_by(&token));
}

#[test]
fn the_first_rule_that_matches_decides_what_a_token_may_pull() {
    let signer = Signer::ec256();
    let site = Site::new(&[signer.jwk("k")]);
    let may_pull = |namespace: &str, name: &str| {
        let claims = claims(json!({"kubernetes.io": {"namespace": namespace}}));
        let identity = site.check(&signer.token(&json!({"alg": "ES256"}), &claims)).unwrap();
        let (upstream, repository) = name.split_once('/').unwrap();
        let name = ImageName::new(upstream.parse().unwrap(), repository.parse().unwrap());
        identity.unwrap().may_pull(&name)
    };
    for (namespace, name, expected) in [
        ("team-a", "quay.io/team-a/app", true),
        ("team-a", "quay.io/team-b/app", false),
        ("team-a", "docker.io/library/alpine", true),
        ("ops", "quay.io/team-b/app", true),
    ] {
        assert_eq!(may_pull(namespace, name), expected, "{namespace} {name}");
    }
}

#[test]
fn an_accepted_token_expires_although_it_is_remembered() {
    let signer = Signer::ec256();
    let site = Site::new(&[signer.jwk("k")]);
    let token = signer.token(&json!({"alg": "ES256"}), &claims(json!({})));
    for (now, expected) in [(NOW, None), (NOW + 659, None), (NOW + 660, Some(Refusal::Expired))] {
        assert_eq!(known(&site.issuers, &token, now).unwrap().err(), expected, "{now}");
    }
}

#[test]
fn keys_follow_changes_of_their_file() {
    let (old, new) = (Signer::ec256(), Signer::ec256());
    let site = Site::new(&[old.jwk("old")]);
    let token = |signer: &Signer, kid: &str| {
        signer.token(&json!({"alg": "ES256", "kid": kid}), &claims(json!({})))
    };
    let (old_token, new_token) = (token(&old, "old"), token(&new, "new"));
    assert!(site.check(&old_token).unwrap().is_ok());
    assert_eq!(site.refusal(&new_token), Refusal::UnknownKey, "a file is not fetched again");
    site.put(&jwks(&[old.jwk("old"), new.jwk("new")]));
    assert!(site.check(&old_token).unwrap().is_ok() && site.check(&new_token).unwrap().is_ok());
    for broken in ["", "{}", r#"{"keys": []}"#] {
        site.put(broken.as_bytes());
        assert!(site.check(&new_token).unwrap().is_ok(), "{broken:?} must not lock everyone out");
    }
    site.put(&jwks(&[new.jwk("new")]));
    assert!(site.check(&new_token).unwrap().is_ok());
    assert_eq!(site.refusal(&old_token), Refusal::UnknownKey, "although it was remembered");
}

#[test]
fn a_file_without_keys_is_refused_at_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("jwks.json");
    let load = || Issuers::load(&settings(KeysFrom::File(path.clone())), None, no_source);
    assert!(matches!(load(), Err(OidcError::Read { .. })));
    std::fs::write(&path, "{}").unwrap();
    assert!(matches!(load(), Err(OidcError::Keys { .. })));
    let error = settings(KeysFrom::File(path.clone())).check().unwrap_err().to_string();
    assert!(error.contains("jwks.json: not a JSON Web Key Set"), "{error}");
}

proptest! {
    #[test]
    fn no_input_panics(
        header in ".{0,40}", payload in ".{0,80}", bytes in proptest::collection::vec(any::<u8>(), 0..80),
        alg in "(ES256|RS256|EdDSA|none|HS256)", exp in any::<f64>(), text in ".{0,200}",
    ) {
        let signer = Signer::ed();
        let site = Site::new(&[signer.jwk("k"), Signer::rsa().jwk("r")]);
        let claims = claims(json!({"exp": exp, "nbf": exp, "aud": payload}));
        for token in [
            text.clone(),
            format!("{}.{}.{}", encoded(&header), encoded(&payload), encoded(&bytes)),
            format!("{}.{}.{}", encoded(json!({"alg": alg}).to_string()), encoded(claims.to_string()), encoded(&bytes)),
        ] {
            prop_assert!(!matches!(site.check(&token), Some(Ok(_))));
        }
        let _ = KeySet::parse(&bytes);
        let _ = KeySet::parse(&jwks(&[json!({"kty": "RSA", "n": encoded(&bytes), "e": "AQAB"})]));
    }
}
