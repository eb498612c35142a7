//! The URLs of a bucket and of its objects.

use super::{Addressing, ObjectStoreSettings};
use crate::upstream::auth::encoded_path;
use crate::upstream::network::{Endpoint, Location, Scheme};

/// Where a bucket is.
#[derive(Debug)]
pub(super) struct Address {
    https: bool,
    /// Host and port, with the bucket's name if that is a part of the host.
    authority: String,
    /// The path of the bucket: `/bucket`, or empty.
    bucket: String,
    /// The encoded path of the prefix below that: `/prefix/`, or `/`.
    prefix: String,
}

impl Address {
    /// The address of the bucket at one of the settings' endpoints.
    pub(super) fn new(endpoint: &Endpoint, settings: &ObjectStoreSettings) -> Address {
        let https = endpoint.scheme == Scheme::Https;
        let endpoint = Location::new(https, &endpoint.authority, "/");
        let endpoint = endpoint.origin();
        let endpoint = endpoint.split_once("://").map_or(&*endpoint, |(_, authority)| authority);
        let (authority, bucket) = match settings.addressing {
            Addressing::Path => (endpoint.to_owned(), format!("/{}", settings.bucket)),
            Addressing::VirtualHost => (format!("{}.{endpoint}", settings.bucket), String::new()),
        };
        let bucket = encoded_path(&bucket);
        let prefix = encoded_path(&format!("/{}", settings.prefix));
        Address { https, authority, bucket, prefix }
    }

    /// The value of `Host`.
    pub(super) fn host(&self) -> &str {
        &self.authority
    }

    /// The encoded path of an object, or of the bucket.
    pub(super) fn path(&self, key: Option<&str>) -> String {
        match key {
            Some(key) => format!("{}{}{}", self.bucket, self.prefix, encoded_path(key)),
            None if self.bucket.is_empty() => "/".to_owned(),
            None => self.bucket.clone(),
        }
    }

    /// The URL of an encoded path and query.
    pub(super) fn location(&self, path: &str, query: &str) -> Location {
        let separator = if query.is_empty() { "" } else { "?" };
        Location::new(self.https, &self.authority, &format!("{path}{separator}{query}"))
    }

    /// The URL of the bucket and the prefix, for messages.
    pub(super) fn url(&self) -> String {
        self.location(&self.path(Some("")), "").url()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::settings;
    use super::*;

    #[test]
    fn bucket_in_the_path_or_in_the_host() {
        for (addressing, scheme, authority, prefix, url, bucket, key) in [
            (
                Addressing::Path,
                Scheme::Https,
                "s3.example.com",
                "",
                "https://s3.example.com/b/",
                "/b",
                "/b/x/a%20b%2B%3A%C3%BC",
            ),
            (
                Addressing::Path,
                Scheme::Http,
                "127.0.0.1:9000",
                "a/b=c/",
                "http://127.0.0.1:9000/b/a/b%3Dc/",
                "/b",
                "/b/a/b%3Dc/x/a%20b%2B%3A%C3%BC",
            ),
            (
                Addressing::VirtualHost,
                Scheme::Https,
                "S3.example.com:443",
                "p/",
                "https://b.s3.example.com/p/",
                "/",
                "/p/x/a%20b%2B%3A%C3%BC",
            ),
        ] {
            let endpoint = Endpoint::new(scheme, authority);
            let settings = ObjectStoreSettings {
                addressing,
                prefix: prefix.to_owned(),
                ..settings("http://127.0.0.1:1")
            };
            let address = Address::new(&endpoint, &settings);
            assert_eq!(address.url(), url);
            assert_eq!(address.path(None), bucket, "{url}");
            assert_eq!(address.path(Some("x/a b+:ü")), key, "{url}");
        }
    }
}
