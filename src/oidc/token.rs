//! A token (RFC 7519 in the compact form of RFC 7515): what it claims, and whether that is true.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Validation};
use serde::Deserialize;
use serde_json::Value;

use super::claims::Claims;
use super::keys::KeySet;

/// The longest token that is checked. Those of Kubernetes and GitHub have 1 to 2 KiB.
pub(super) const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// Padding may be missing, and the unused bits at the end may have any value.
const FORGIVING: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);
/// By how much the clocks of the issuer and of this machine may differ.
pub(super) const LEEWAY: Duration = Duration::from_secs(60);

/// A text in the form of a token, before anything was checked. What it says must only be used to refuse it, or to choose
/// what it is checked with.
pub(super) struct Unverified<'a> {
    text: &'a str,
    algorithm: String,
    pub(super) kid: Option<String>,
    /// The issuer that it claims to be from.
    pub(super) issuer: String,
    claims: Claims,
}

impl Unverified<'_> {
    /// `None` if the text is not a token with an issuer.
    pub(super) fn parse(text: &str) -> Option<Unverified<'_>> {
        #[derive(Deserialize)]
        struct Header {
            alg: String,
            kid: Option<String>,
        }
        let mut parts = text.split('.');
        let (header, payload, signature) = (parts.next()?, parts.next()?, parts.next()?);
        let decode = |part: &str| BASE64_URL_SAFE_NO_PAD.decode(part).ok();
        // Empty for `none`.
        decode(signature)?;
        if parts.next().is_some() {
            return None;
        }
        let header: Header = serde_json::from_slice(&decode(header)?).ok()?;
        let claims: Claims = serde_json::from_slice(&decode(payload)?).ok()?;
        let issuer = claims.get("iss")?.as_str()?.to_owned();
        Some(Unverified { text, algorithm: header.alg, kid: header.kid, issuer, claims })
    }

    /// Checks the audience and the times (RFC 7519, section 4.1), to refuse a token before its signature is verified.
    /// Returns until when it is accepted; [`Unverified::verify`] must follow.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(super) fn check(&self, audience: &str, now: SystemTime) -> Result<SystemTime, Refusal> {
        let is_for_us = match self.claims.get("aud") {
            Some(Value::String(aud)) => aud == audience,
            Some(Value::Array(all)) => all.iter().any(|aud| aud.as_str() == Some(audience)),
            _ => false,
        };
        if !is_for_us {
            return Err(Refusal::Audience);
        }
        let expires = time(self.claims.get("exp").ok_or(Refusal::Claim("exp"))?, "exp")?;
        let begins = self.claims.get("nbf").map(|nbf| time(nbf, "nbf")).transpose()?;
        let ends = expires.checked_add(LEEWAY).unwrap_or(expires);
        if now >= ends {
            return Err(Refusal::Expired);
        }
        if begins.is_some_and(|begins| now.checked_add(LEEWAY).is_some_and(|now| now < begins)) {
            return Err(Refusal::NotYetValid);
        }
        Ok(ends)
    }

    /// The claims of the token, if one of the keys has signed it.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(super) fn verify(&self, keys: &KeySet) -> Result<Claims, Refusal> {
        let algorithm: Algorithm = self.algorithm.parse().map_err(|_| Refusal::Algorithm)?;
        let candidates = keys.candidates(self.kid.as_deref());
        if candidates.is_empty() {
            return Err(Refusal::UnknownKey);
        }
        // The key decides which algorithms are possible, and not the token.
        let mut refusal = Refusal::Algorithm;
        for key in candidates.iter().filter(|key| key.algorithms.contains(&algorithm)) {
            match jsonwebtoken::decode(self.text, &key.decoding, &signature_only(algorithm)) {
                Ok(token) => return Ok(token.claims),
                Err(error) => {
                    refusal = match error.kind() {
                        ErrorKind::InvalidSignature => Refusal::Signature,
                        _ => Refusal::Malformed,
                    };
                }
            }
        }
        Err(refusal)
    }
}

/// The issuers that are named by tokens in a text, also by damaged ones: whoever gets the text could repair them.
pub(super) fn issuers_in(text: &str) -> Vec<String> {
    let is_of_token = |char: char| char.is_ascii_alphanumeric() || "-_+/".contains(char);
    let joined: String = text.chars().filter(|char| !char.is_whitespace()).collect();
    let parts =
        [text, joined.as_str()].into_iter().flat_map(|text| text.split(|char| !is_of_token(char)));
    let issuer = |part: &str| {
        let part = part.replace('+', "-").replace('/', "_");
        let json = FORGIVING.decode(part).ok()?;
        let claims: Value = serde_json::from_slice(&json).ok()?;
        Some(claims.get("iss")?.as_str()?.to_owned())
    };
    parts.filter_map(issuer).collect()
}

/// The claims are checked here, at the time that the caller gives.
fn signature_only(algorithm: Algorithm) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.required_spec_claims.clear();
    (validation.validate_exp, validation.validate_nbf, validation.validate_aud) =
        (false, false, false);
    validation
}

/// A number of seconds since 1970, possibly with a fraction.
fn time(value: &Value, name: &'static str) -> Result<SystemTime, Refusal> {
    let seconds = value.as_f64().ok_or(Refusal::Claim(name))?;
    let since = Duration::try_from_secs_f64(seconds).map_err(|_| Refusal::Claim(name))?;
    UNIX_EPOCH.checked_add(since).ok_or(Refusal::Claim(name))
}

/// Why a token is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It is longer than any real token.
    TooLong,
    /// Its algorithm is not one of its key, or not supported.
    Algorithm,
    /// It was signed with a key that the issuer does not publish.
    UnknownKey,
    /// Its signature is wrong.
    Signature,
    /// It has expired.
    Expired,
    /// It is not valid yet.
    NotYetValid,
    /// It is for another audience.
    Audience,
    /// It has claims or parameters that it must not have.
    Malformed,
    /// Too many tokens of this client address had a wrong signature.
    TooManyWrong,
    /// A claim is missing or has another type.
    Claim(&'static str),
    /// The claim that is the user is missing or not a text.
    User,
    /// No rule of `allow` is for it.
    NoRule {
        /// The user, as text that is safe to print.
        user: String,
    },
    /// The keys of the issuer have not been fetched yet.
    NoKeys,
}

impl Refusal {
    /// The word for the log if a valid token may not pull a repository, or anything.
    pub const DENIED: &'static str = "token-denied";

    /// The user, if the token itself is valid, but not for anything here.
    pub fn denied_user(&self) -> Option<&str> {
        match self {
            Refusal::NoRule { user } => Some(user),
            _ => None,
        }
    }

    /// Whether the token may be accepted later.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Refusal::NoKeys | Refusal::TooManyWrong)
    }

    /// A word for the log.
    pub fn word(&self) -> &'static str {
        match self {
            Refusal::TooLong => "token-too-long",
            Refusal::Algorithm => "token-algorithm",
            Refusal::UnknownKey => "token-key-unknown",
            Refusal::Signature => "token-signature",
            Refusal::Expired => "token-expired",
            Refusal::NotYetValid => "token-not-yet-valid",
            Refusal::Audience => "token-audience",
            Refusal::Malformed | Refusal::Claim(_) | Refusal::User => "token-claims",
            Refusal::TooManyWrong => "token-guesses",
            Refusal::NoRule { .. } => Refusal::DENIED,
            Refusal::NoKeys => "token-unchecked",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::TooLong => write!(f, "the token is longer than {TOKEN_BYTES_MAX} bytes"),
            Refusal::Algorithm => write!(f, "the algorithm of the token is not that of its key"),
            Refusal::UnknownKey => write!(f, "the token was signed with an unknown key"),
            Refusal::Signature => write!(f, "the token has a wrong signature"),
            Refusal::Expired => write!(f, "the token has expired"),
            Refusal::NotYetValid => write!(f, "the token is not valid yet"),
            Refusal::Audience => write!(f, "the token is for another audience"),
            Refusal::Malformed => {
                write!(f, "the token has claims or parameters that it must not have")
            }
            Refusal::TooManyWrong => {
                write!(f, "too many wrong tokens from this address; wait a minute")
            }
            Refusal::Claim(name) => write!(f, "the token has no valid claim {name}"),
            Refusal::User => write!(f, "the token has no claim with the user"),
            Refusal::NoRule { .. } => {
                write!(f, "no rule in serverAuthConfig.oidc allows this token")
            }
            Refusal::NoKeys => write!(f, "the keys of the token's issuer cannot be fetched"),
        }
    }
}
