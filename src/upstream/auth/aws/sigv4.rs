//! AWS Signature Version 4 for API requests.
//!
//! Supports only requests whose path needs no encoding and that have no query; here the path is always `/`. Pure: keys,
//! time and request in, headers out.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use time::UtcDateTime;
use time::macros::format_description;

use crate::upstream::auth::credentials::Secret;

/// The keys for signing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Keys {
    pub(super) id: String,
    pub(super) secret: Secret,
    /// Only temporary keys have one.
    pub(super) session_token: Option<Secret>,
}

/// The scope of a signature.
pub(super) struct Scope<'a> {
    pub(super) region: &'a str,
    pub(super) service: &'a str,
    pub(super) time: UtcDateTime,
}

/// The request to sign.
pub(super) struct Signed<'a> {
    pub(super) method: &'a str,
    /// `/`, or an encoded path.
    pub(super) path: &'a str,
    pub(super) body: &'a [u8],
    /// With names in lower case; must contain `host`.
    pub(super) headers: Vec<(&'static str, String)>,
}

impl Scope<'_> {
    /// `20150830T123600Z`.
    fn timestamp(&self) -> String {
        let format = format_description!("[year][month][day]T[hour][minute][second]Z");
        // A UtcDateTime has all components of the format, and writing to a String cannot fail.
        self.time.format(format).expect("every component is formatted")
    }

    /// `20150830/us-east-1/ecr/aws4_request`.
    fn credential(&self) -> String {
        let timestamp = self.timestamp();
        format!("{}/{}/{}/aws4_request", &timestamp[..8], self.region, self.service)
    }
}

impl Keys {
    /// All headers of the request: the given ones, the time, the session token and the signature.
    pub(super) fn sign(
        &self,
        scope: &Scope<'_>,
        mut request: Signed<'_>,
    ) -> Vec<(&'static str, String)> {
        request.headers.push(("x-amz-date", scope.timestamp()));
        if let Some(token) = &self.session_token {
            request.headers.push(("x-amz-security-token", token.reveal().to_owned()));
        }
        request.headers.sort();
        let signature = self.signature(scope, &request.canonical());
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={}/{}, SignedHeaders={}, Signature={signature}",
            self.id,
            scope.credential(),
            request.header_names()
        );
        request.headers.push(("authorization", authorization));
        request.headers
    }

    fn signature(&self, scope: &Scope<'_>, canonical: &str) -> String {
        let text = format!(
            "AWS4-HMAC-SHA256\n{}\n{}\n{}",
            scope.timestamp(),
            scope.credential(),
            hex(&Sha256::digest(canonical))
        );
        hex(&hmac(&self.signing_key(scope), &text))
    }

    fn signing_key(&self, scope: &Scope<'_>) -> Vec<u8> {
        let first = format!("AWS4{}", self.secret.reveal()).into_bytes();
        scope.credential().split('/').fold(first, |key, part| hmac(&key, part))
    }
}

impl Signed<'_> {
    fn canonical(&self) -> String {
        let mut lines = String::new();
        for (name, value) in &self.headers {
            lines.push_str(&format!("{name}:{}\n", value.trim()));
        }
        // The third line is the query, which is empty.
        format!(
            "{}\n{}\n\n{lines}\n{}\n{}",
            self.method,
            self.path,
            self.header_names(),
            hex(&Sha256::digest(self.body))
        )
    }

    fn header_names(&self) -> String {
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| *name).collect();
        names.join(";")
    }
}

fn hmac(key: &[u8], text: &str) -> Vec<u8> {
    // HMAC is defined for keys of every length.
    let mut hmac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC accepts keys of any length");
    hmac.update(text.as_bytes());
    hmac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use time::macros::utc_datetime;

    use super::*;

    /// The session token of Amazon's test suite.
    const TOKEN: &str = "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHG\
                         BuFqwAeMicRXmxfpSPfIeoIYRqTflfKD8YUuwthAx7mSEI/qkPpKPi/kMcGdQrmGdeehM4IC1NtB\
                         mUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXDvp75YU9HFvlRd8Tx6q6fE8YQcHNVXAk\
                         iY9q6d+xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8FDrypNC9Yjc8fPOLn9FX9KSY\
                         vKTr4rvx3iSIlTJabIQwj2ICCR/oLxBA==";

    fn keys() -> Keys {
        Keys {
            id: "AKIDEXAMPLE".into(),
            secret: Secret::new("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"),
            session_token: None,
        }
    }

    fn scope(service: &str) -> Scope<'_> {
        Scope { region: "us-east-1", service, time: utc_datetime!(2015-08-30 12:36:00) }
    }

    /// The cases of Amazon's test suite (aws-sig-v4-test-suite) with requests of the supported form, by name.
    #[test]
    fn test_vectors_of_amazon() {
        let form = ("content-type", "application/x-www-form-urlencoded".to_owned());
        let form_utf8 =
            ("content-type", "application/x-www-form-urlencoded; charset=utf8".to_owned());
        let body: &[u8] = b"Param1=value1";
        for (name, method, extra, body, token, names, signature) in [
            (
                "get-vanilla",
                "GET",
                None,
                &b""[..],
                None,
                "host;x-amz-date",
                "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
            ),
            (
                "post-vanilla",
                "POST",
                None,
                b"",
                None,
                "host;x-amz-date",
                "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
            ),
            (
                "post-x-www-form-urlencoded",
                "POST",
                Some(form),
                body,
                None,
                "content-type;host;x-amz-date",
                "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
            ),
            (
                "post-sts-header-before",
                "POST",
                None,
                b"",
                Some(TOKEN),
                "host;x-amz-date;x-amz-security-token",
                "85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead",
            ),
            (
                "post-x-www-form-urlencoded-parameters",
                "POST",
                Some(form_utf8),
                body,
                None,
                "content-type;host;x-amz-date",
                "1a72ec8f64bd914b0e42e42607c7fbce7fb2c7465f63e3092b3b0d39fa77a6fe",
            ),
        ] {
            let keys = Keys { session_token: token.map(Secret::new), ..keys() };
            let mut headers = vec![("host", "example.amazonaws.com".to_owned())];
            headers.extend(extra);
            let request = Signed { method, path: "/", body, headers };
            let signed = keys.sign(&scope("service"), request);
            let expected = format!(
                "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
                 SignedHeaders={names}, Signature={signature}"
            );
            assert_eq!(signed.last(), Some(&("authorization", expected)), "{name}");
        }
    }

    /// From Amazon's documentation, "Create a signature".
    #[test]
    fn the_signing_key_of_the_documentation() {
        assert_eq!(
            hex(&keys().signing_key(&scope("iam"))),
            "c4afb1cc5771d871763a393e44b703571b55cc28424d1a5e86da6ed3c154a4b9"
        );
    }
}
