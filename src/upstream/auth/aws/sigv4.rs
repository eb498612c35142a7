//! AWS Signature Version 4 for API requests, and for the URLs and requests of S3.
//!
//! The path is encoded once, as S3 demands; all other services of Amazon that are used here have the path `/`. Pure:
//! keys, time and request in, headers or a URL's query out.

use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use time::UtcDateTime;
use time::macros::format_description;

use crate::upstream::auth::credentials::Secret;

/// The hash of a presigned URL's body, which is not known when the URL is signed.
const UNSIGNED_PAYLOAD: &str = "UNSIGNED-PAYLOAD";

/// The keys for signing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::upstream) struct Keys {
    pub(in crate::upstream) id: String,
    pub(in crate::upstream) secret: Secret,
    /// Only temporary keys have one.
    pub(in crate::upstream) session_token: Option<Secret>,
}

/// The scope of a signature.
pub(in crate::upstream) struct Scope<'a> {
    pub(in crate::upstream) region: &'a str,
    pub(in crate::upstream) service: &'a str,
    pub(in crate::upstream) time: UtcDateTime,
}

/// The request to sign.
pub(in crate::upstream) struct Signed<'a> {
    pub(in crate::upstream) method: &'a str,
    /// `/`, or a path encoded by [`encoded_path`].
    pub(in crate::upstream) path: &'a str,
    /// Empty, or a query encoded by [`encoded_query`].
    pub(in crate::upstream) query: &'a str,
    /// The hash of the body, as [`hash`] returns it.
    pub(in crate::upstream) payload: &'a str,
    /// With names in lower case; must contain `host`.
    pub(in crate::upstream) headers: Vec<(&'static str, String)>,
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
    pub(in crate::upstream) fn sign(
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

    /// The query of a presigned URL: `pairs` are its other parameters. Only `host` is signed of the headers.
    pub(in crate::upstream) fn presign(
        &self,
        scope: &Scope<'_>,
        host: &str,
        path: &str,
        mut pairs: Vec<(&'static str, String)>,
        expires: Duration,
    ) -> String {
        pairs.push(("X-Amz-Algorithm", "AWS4-HMAC-SHA256".to_owned()));
        pairs.push(("X-Amz-Credential", format!("{}/{}", self.id, scope.credential())));
        pairs.push(("X-Amz-Date", scope.timestamp()));
        pairs.push(("X-Amz-Expires", expires.as_secs().to_string()));
        pairs.push(("X-Amz-SignedHeaders", "host".to_owned()));
        if let Some(token) = &self.session_token {
            pairs.push(("X-Amz-Security-Token", token.reveal().to_owned()));
        }
        let query = encoded_query(&pairs);
        let headers = vec![("host", host.to_owned())];
        let request =
            Signed { method: "GET", path, query: &query, payload: UNSIGNED_PAYLOAD, headers };
        let signature = self.signature(scope, &request.canonical());
        format!("{query}&X-Amz-Signature={signature}")
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
        format!(
            "{}\n{}\n{}\n{lines}\n{}\n{}",
            self.method,
            self.path,
            self.query,
            self.header_names(),
            self.payload
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

/// A path for [`Signed::path`] and for the URL: everything except RFC 3986's unreserved characters and `/` is
/// percent-encoded.
pub(in crate::upstream) fn encoded_path(path: &str) -> String {
    let mut encoded = String::with_capacity(path.len());
    encode_into(&mut encoded, path, b"-._~/");
    encoded
}

/// A query for [`Signed::query`] and for the URL: encoded, and sorted by name and value.
pub(in crate::upstream) fn encoded_query(pairs: &[(&str, String)]) -> String {
    let encoded = |text: &str| {
        let mut out = String::with_capacity(text.len());
        encode_into(&mut out, text, b"-._~");
        out
    };
    let mut pairs: Vec<(String, String)> =
        pairs.iter().map(|(name, value)| (encoded(name), encoded(value))).collect();
    pairs.sort();
    let pairs: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
    pairs.join("&")
}

fn encode_into(out: &mut String, text: &str, unencoded: &[u8]) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || unencoded.contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
}

/// The hash of a request's body, in hexadecimal.
pub(in crate::upstream) fn hash(body: &[u8]) -> String {
    hex(&Sha256::digest(body))
}

/// Lower-case hexadecimal.
pub(in crate::upstream) fn hex(bytes: &[u8]) -> String {
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
            let payload = hash(body);
            let request = Signed { method, path: "/", query: "", payload: &payload, headers };
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

    fn keys_of_s3() -> Keys {
        Keys {
            id: "AKIAIOSFODNN7EXAMPLE".into(),
            secret: Secret::new("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
            session_token: None,
        }
    }

    fn scope_of_s3() -> Scope<'static> {
        Scope { region: "us-east-1", service: "s3", time: utc_datetime!(2013-05-24 00:00:00) }
    }

    /// From Amazon's documentation, "Authenticating Requests: Using the Authorization Header" and "Using Query
    /// Parameters".
    #[test]
    fn the_examples_of_the_s3_documentation() {
        let empty = hash(b"");
        let text = hash(b"Welcome to Amazon S3.");
        let pairs = |pairs: &[(&str, &str)]| {
            let pairs: Vec<_> =
                pairs.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
            encoded_query(&pairs)
        };
        for (method, path, query, payload, extra, signature) in [
            (
                "GET",
                "/test.txt",
                String::new(),
                &empty,
                vec![("range", "bytes=0-9".to_owned())],
                "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
            ),
            (
                "PUT",
                "/test$file.text",
                String::new(),
                &text,
                vec![
                    ("date", "Fri, 24 May 2013 00:00:00 GMT".to_owned()),
                    ("x-amz-storage-class", "REDUCED_REDUNDANCY".to_owned()),
                ],
                "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
            ),
            (
                "GET",
                "/",
                pairs(&[("lifecycle", "")]),
                &empty,
                vec![],
                "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
            ),
            (
                "GET",
                "/",
                pairs(&[("prefix", "J"), ("max-keys", "2")]),
                &empty,
                vec![],
                "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
            ),
        ] {
            let mut headers = extra;
            headers.push(("host", "examplebucket.s3.amazonaws.com".to_owned()));
            headers.push(("x-amz-content-sha256", payload.clone()));
            let path = encoded_path(path);
            let request = Signed { method, path: &path, query: &query, payload, headers };
            let signed = keys_of_s3().sign(&scope_of_s3(), request);
            let authorization = &signed.last().unwrap().1;
            assert!(
                authorization.ends_with(&format!("Signature={signature}")),
                "{path}: {authorization}"
            );
        }
        let query = keys_of_s3().presign(
            &scope_of_s3(),
            "examplebucket.s3.amazonaws.com",
            "/test.txt",
            Vec::new(),
            Duration::from_secs(86_400),
        );
        let expected = "aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404";
        assert!(query.ends_with(&format!("&X-Amz-Signature={expected}")), "{query}");
    }

    #[test]
    fn every_byte_is_encoded_unless_it_is_unreserved() {
        let ascii: String = (0..=127_u8).map(char::from).collect();
        let encoded = encoded_path(&ascii);
        for byte in 0..=127_u8 {
            let char = char::from(byte);
            let is_kept = char.is_ascii_alphanumeric() || "-._~/".contains(char);
            let expected = if is_kept { char.to_string() } else { format!("%{byte:02X}") };
            assert_eq!(encoded_path(&char.to_string()), expected);
            assert!(encoded.contains(&expected), "{expected}");
        }
        assert_eq!(encoded_path("a//b/ü"), "a//b/%C3%BC");
        let query = encoded_query(&[("b", "/ +=&".to_owned()), ("a", String::new())]);
        assert_eq!(query, "a=&b=%2F%20%2B%3D%26");
    }

    proptest::proptest! {
        /// Another implementation signs the same URLs in the same way. It does not sign headers other than `host`, but
        /// both kinds of signature cover the same canonical request here.
        #[test]
        fn signatures_are_those_of_rusty_s3(
            key in "([a-z]{0,3}|[ -~]{0,8}|\\PC{0,8}|[\u{0}-\u{ff}]{0,8})(/[ -~üß]{0,8}){0,3}",
            prefix in "\\PC{0,10}",
            marker in "[ -~\u{0}-\u{ff}]{0,20}",
            seconds in 0_i64..4_000_000_000,
            id in "[A-Z0-9]{1,20}",
            secret in "[ -~]{0,40}",
            token in proptest::option::of("[A-Za-z0-9/+=]{1,60}"),
            region in "[a-z0-9-]{1,15}",
            expires in 1_u64..604_800,
            port in proptest::option::of(1024_u16..),
        ) {
            // URLs resolve these.
            proptest::prop_assume!(!key.split('/').any(|part| matches!(part, "." | "..")));
            let host = match port {
                Some(port) => format!("s3.example.com:{port}"),
                None => "s3.example.com".to_owned(),
            };
            let url = format!("https://{host}").parse().unwrap();
            let style = rusty_s3::UrlStyle::Path;
            let bucket = rusty_s3::Bucket::new(url, style, "bucket", region.clone()).unwrap();
            let url = bucket.object_url(&key);
            let path = encoded_path(&format!("/bucket/{key}"));
            proptest::prop_assert_eq!(url.path(), &path);
            let pairs = [("marker", &*marker), ("prefix", &*prefix)];
            let expected = rusty_s3::signing::sign(
                &jiff::Timestamp::from_second(seconds).unwrap(),
                rusty_s3::Method::Get,
                url,
                &id,
                &secret,
                token.as_deref(),
                &region,
                expires,
                pairs.into_iter(),
                std::iter::empty(),
            );
            let session_token = token.map(Secret::new);
            let keys = Keys { id, secret: Secret::new(secret), session_token };
            let time = UtcDateTime::from_unix_timestamp(seconds).unwrap();
            let scope = Scope { region: &region, service: "s3", time };
            let pairs = vec![("prefix", prefix.clone()), ("marker", marker.clone())];
            let query = keys.presign(&scope, &host, &path, pairs, Duration::from_secs(expires));
            proptest::prop_assert_eq!(format!("https://{host}{path}?{query}"), expected.as_str());
        }
    }
}
