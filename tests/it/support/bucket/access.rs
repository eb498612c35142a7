//! Whether a request may be handled: credentials, scope, time and signed headers. The signature itself is not verified.
//!
//! Must not know operations.

use std::time::{Duration, SystemTime};

use time::PrimitiveDateTime;
use time::macros::format_description;

use super::super::wire::Recorded;
use super::REGION;
use super::refusal::Refusal;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// The largest difference between the time of a request and the clock of the server.
const SKEW_LIMIT: Duration = Duration::from_secs(15 * 60);

/// The largest lifetime of a presigned URL.
const LIFETIME_LIMIT: u64 = 7 * 24 * 3600;

/// What the server requires.
pub struct Required<'a> {
    pub now: SystemTime,
    pub access_key: &'a str,
    pub session_token: Option<&'a str>,
}

impl Required<'_> {
    pub fn check(&self, request: &Recorded) -> Result<(), Refusal> {
        match request.query_value("X-Amz-Signature") {
            Some(signature) => self.check_presigned(request, &signature),
            None => self.check_header(request),
        }
    }

    fn check_presigned(&self, request: &Recorded, signature: &str) -> Result<(), Refusal> {
        let value = |name: &str| request.query_value(name).unwrap_or_default();
        let malformed =
            |message: &str| Refusal::client(400, "AuthorizationQueryParametersError", message);
        if value("X-Amz-Algorithm") != ALGORITHM {
            return Err(malformed("X-Amz-Algorithm only supports AWS4-HMAC-SHA256"));
        }
        let date = value("X-Amz-Date");
        self.check_credential(&value("X-Amz-Credential"), &date)?;
        self.check_token(request.query_value("X-Amz-Security-Token").as_deref())?;
        let start = time_of(&date).ok_or_else(|| malformed("X-Amz-Date must be a time"))?;
        let lifetime = value("X-Amz-Expires").parse().unwrap_or(0);
        if !(1..=LIFETIME_LIMIT).contains(&lifetime) {
            return Err(malformed("X-Amz-Expires must be from one second to seven days"));
        }
        if start > self.now + SKEW_LIMIT {
            return Err(Refusal::client(403, "AccessDenied", "Request is not yet valid"));
        }
        if start + Duration::from_secs(lifetime) < self.now {
            return Err(Refusal::client(403, "AccessDenied", "Request has expired"));
        }
        check_signed_headers(request, &value("X-Amz-SignedHeaders"))?;
        check_signature(signature)
    }

    fn check_header(&self, request: &Recorded) -> Result<(), Refusal> {
        let denied = |message: &str| Refusal::client(403, "AccessDenied", message);
        let fields = request.header("authorization").and_then(|text| text.strip_prefix(ALGORITHM));
        let fields = fields.ok_or_else(|| denied("Access Denied"))?;
        let field = |name: &str| {
            let pairs = fields.split(',').filter_map(|field| field.trim().split_once('='));
            let found = pairs.into_iter().find(|(key, _)| *key == name).map(|(_, value)| value);
            found.ok_or_else(|| malformed(&format!("missing {name}")))
        };
        let missing = "AWS authentication requires a valid Date or x-amz-date header";
        let date = request.header("x-amz-date").ok_or_else(|| denied(missing))?;
        self.check_credential(field("Credential")?, date)?;
        self.check_token(request.header("x-amz-security-token"))?;
        let time = time_of(date).ok_or_else(|| denied(missing))?;
        if time > self.now + SKEW_LIMIT || self.now > time + SKEW_LIMIT {
            let message =
                "The difference between the request time and the current time is too large.";
            return Err(Refusal::client(403, "RequestTimeTooSkewed", message));
        }
        check_signed_headers(request, field("SignedHeaders")?)?;
        check_signature(field("Signature")?)?;
        if request.header("x-amz-content-sha256").is_none() {
            let message = "Missing required header for this request: x-amz-content-sha256";
            return Err(Refusal::client(400, "InvalidRequest", message));
        }
        Ok(())
    }

    /// `KEY/20250101/us-east-1/s3/aws4_request`, of the day of the request.
    fn check_credential(&self, credential: &str, date: &str) -> Result<(), Refusal> {
        let (key, scope) = credential.split_once('/').ok_or_else(|| malformed("no scope"))?;
        if key != self.access_key {
            let message = "The AWS Access Key Id you provided does not exist in our records.";
            return Err(Refusal::client(403, "InvalidAccessKeyId", message));
        }
        let day = date.get(..8).unwrap_or("");
        let expected = format!("{day}/{REGION}/s3/aws4_request");
        if scope != expected {
            return Err(malformed(&format!("expecting the scope '{expected}', not '{scope}'")));
        }
        Ok(())
    }

    fn check_token(&self, shown: Option<&str>) -> Result<(), Refusal> {
        if self.session_token.is_some() && shown != self.session_token {
            let message = "The provided token has expired.";
            return Err(Refusal::client(400, "ExpiredToken", message));
        }
        Ok(())
    }
}

/// `Host` and all `x-amz-*` headers must be signed.
fn check_signed_headers(request: &Recorded, signed: &str) -> Result<(), Refusal> {
    let is_signed = |name: &str| signed.split(';').any(|signed| signed == name);
    let names = request.headers.iter().map(|(name, _)| name.to_ascii_lowercase());
    let mut demanded = names.filter(|name| name == "host" || name.starts_with("x-amz-"));
    match demanded.find(|name| !is_signed(name)) {
        Some(name) => {
            let message =
                format!("There were headers present in the request which were not signed: {name}");
            Err(Refusal::client(403, "AccessDenied", &message))
        }
        None => Ok(()),
    }
}

fn check_signature(signature: &str) -> Result<(), Refusal> {
    let is_hash = signature.len() == 64
        && signature.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if is_hash { Ok(()) } else { Err(malformed("the signature is not a hash in hexadecimal")) }
}

fn malformed(message: &str) -> Refusal {
    let message = format!("The authorization is malformed: {message}");
    Refusal::client(400, "AuthorizationHeaderMalformed", &message)
}

/// Parses `20250101T120000Z`.
fn time_of(text: &str) -> Option<SystemTime> {
    let format = format_description!("[year][month][day]T[hour][minute][second]Z");
    Some(PrimitiveDateTime::parse(text, format).ok()?.assume_utc().into())
}
