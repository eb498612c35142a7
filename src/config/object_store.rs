//! `objectStore`: its keys, and the settings of the bucket and of the uploads.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use super::file::{AddressingName, SweepName, TlsEntry};
use super::keys::{Comparison, Section, Unset, Value, not_null, section};
#[cfg(test)]
use super::keys::{Key, Map, Shape};
use super::number::Count;
use super::value::{EndpointUrl, Hidden, Rate, Size, Span, Text};
use super::{ConfigError, aws, registry};
use crate::cache::{BucketLimits, UploadSettings};
use crate::upstream::{
    Addressing, ApiPath, Endpoint, FixedKeys, KeySettings, ObjectStoreSettings, Scheme, Secret,
    SecretSource,
};

/// The host of Amazon's service ends with one of these.
const AMAZON: [&str; 2] = [".amazonaws.com", ".amazonaws.com.cn"];
/// The sizes of parts of a multipart upload, except the last (S3 API reference).
const PART_BYTES: RangeInclusive<u64> = 5 << 20..=5 << 30;
/// The region of stores that have none.
const NO_REGION: &str = "us-east-1";

/// Large enough that the requests cost little, small enough that little is sent again after an interruption.
const PART_SIZE: u64 = 64_000_000;

section! {
    /// `objectStore`.
    ObjectStoreEntry {
        /// The name of the bucket, which must exist.
        "bucket" bucket: String;
        /// The URL of the store.
        "endpoint" endpoint: Option<Text<EndpointUrl>> = None, default "Amazon S3 in `region`";
        /// The region of the bucket.
        "region" region: Option<String> = None, default "`AWS_REGION`, or `us-east-1`";
        /// What precedes all keys, so that several caches can use one bucket: one or more names of letters, digits and `-._=`
        /// with `/` in between.
        "prefix" prefix: Option<String> = None;
        /// How requests name the bucket: `path` (`https://host/bucket/…`) or `virtual` (`https://bucket.host/…`).
        "addressing" addressing: Option<AddressingName> = None, default "`virtual` for Amazon, otherwise `path`";
        /// The access key.
        "accessKeyId" access_key_id: Option<String> = None, default "the sources of Amazon's SDKs";
        /// Its secret.
        "secretAccessKey" secret_access_key: Option<Text<Hidden>> = None;
        /// The environment variable that contains the secret.
        "secretAccessKeyFromEnv" secret_access_key_from_env: Option<String> = None;
        /// A file that contains the secret, read when needed.
        "secretAccessKeyFile" secret_access_key_file: Option<PathBuf> = None;
        /// The profile in the shared credentials file.
        "profile" profile: Option<String> = None;
        /// TLS to the store.
        "tls" tls: Option<TlsEntry> = None;
        /// Only read from the bucket.
        "readOnly" read_only: bool = false, parser "not_null";
        /// How many objects are uploaded at the same time.
        "uploads" uploads: Count = Count(4);
        /// Bytes per second that all uploads may use together.
        "uploadRate" upload_rate: Option<Text<Rate>> = None;
        /// Larger objects are uploaded in parts of this size, and continued after an interruption. From `5MiB` to `5GiB`.
        "partSize" part_size: Text<Size> = Text(Size(PART_SIZE));
        /// The size of the bucket above which the images that were used least recently are removed from it. Images that were
        /// used within a day stay.
        "maxSize" max_size: Option<Text<Size>> = None;
        /// Whether clients get large cached blobs from the bucket, with a signed URL.
        "redirect" redirect: bool = false;
        /// The URL of the store for these clients.
        "redirectEndpoint" redirect_endpoint: Option<Text<EndpointUrl>> = None, default "`endpoint`";
        /// Images that no cache has served for this long are removed from the bucket.
        "unusedFor" unused_for: Option<Text<Span>> = None;
        /// Whether this cache removes images for `maxSize` and `unusedFor`: `auto` if the store supports `If-None-Match: *`, by
        /// which one of all caches does it; `never`; or `always`, for one cache of a store that does not support it.
        "sweep" sweep: SweepName = SweepName::Auto;
    }
}

/// The bucket.
///
/// # Errors
/// [`ConfigError::Value`] if the entry contradicts itself.
pub(super) fn bucket(entry: &ObjectStoreEntry) -> Result<ObjectStoreSettings, ConfigError> {
    let refuse = |reason: String| ConfigError::Value { key: "objectStore", reason };
    let (environment, default_region) =
        aws::environment(|name| std::env::var(name).ok()).map_err(refuse)?;
    check_bucket(&entry.bucket).map_err(refuse)?;
    let region = entry.region.clone().or(default_region);
    region.as_deref().map_or(Ok(()), check_region).map_err(refuse)?;
    for (key, url) in
        [("endpoint", &entry.endpoint), ("redirectEndpoint", &entry.redirect_endpoint)]
    {
        url.as_ref().map_or(Ok(()), |url| check_path(key, &url.0.0)).map_err(refuse)?;
    }
    let endpoint = match (&entry.endpoint, &region) {
        (Some(url), _) => url.0.0.clone(),
        (None, Some(region)) => {
            let domain = if region.starts_with("cn-") { AMAZON[1] } else { AMAZON[0] };
            Endpoint::new(Scheme::Https, &format!("s3.{region}{domain}"))
        }
        (None, None) => {
            return Err(refuse(
                "set endpoint to the URL of the store, or region for Amazon S3".into(),
            ));
        }
    };
    let host = endpoint.authority.split(':').next().unwrap_or_default();
    let is_amazons = AMAZON.iter().any(|domain| host.ends_with(domain));
    let addressing = match entry.addressing {
        Some(AddressingName::Path) => Addressing::Path,
        Some(AddressingName::Virtual) => Addressing::VirtualHost,
        // A bucket with a dot in its name does not match Amazon's certificate.
        None if is_amazons && !entry.bucket.contains('.') => Addressing::VirtualHost,
        None => Addressing::Path,
    };
    let tls = entry.tls.as_ref().map(registry::tls_settings).transpose().map_err(refuse)?;
    let part_bytes = entry.part_size.0.0;
    if !PART_BYTES.contains(&part_bytes) {
        return Err(refuse("partSize must be 5MiB to 5GiB, which S3 requires".into()));
    }
    Ok(ObjectStoreSettings {
        endpoint,
        public_endpoint: entry.redirect_endpoint.as_ref().map(|url| url.0.0.clone()),
        bucket: entry.bucket.clone(),
        prefix: prefix(entry.prefix.as_deref().unwrap_or_default()).map_err(refuse)?,
        region: region.unwrap_or_else(|| NO_REGION.to_owned()),
        addressing,
        tls: tls.unwrap_or_default(),
        keys: KeySettings {
            fixed: fixed_keys(entry).map_err(refuse)?,
            profile: entry.profile.clone(),
            environment,
        },
        part_bytes,
    })
}

/// How content is uploaded, and removed.
///
/// # Errors
/// [`ConfigError::Value`] if the entry contradicts itself.
pub(super) fn tier(entry: &ObjectStoreEntry) -> Result<TierSettings, ConfigError> {
    let refuse = |reason: &str| ConfigError::Value { key: "objectStore", reason: reason.into() };
    let limits = BucketLimits {
        max_bytes: entry.max_size.as_ref().map(|size| size.0.0),
        unused_for: entry.unused_for.as_ref().map(|span| span.0.0),
    };
    if limits.max_bytes == Some(0) || limits.unused_for.is_some_and(|span| span.is_zero()) {
        return Err(refuse(
            "maxSize and unusedFor of 0 would keep nothing; leave them out for no limit",
        ));
    }
    if entry.read_only && limits.is_bounded() {
        return Err(refuse("readOnly excludes maxSize and unusedFor: nothing may be removed"));
    }
    if entry.redirect_endpoint.is_some() && !entry.redirect {
        return Err(refuse("redirectEndpoint has no effect without redirect: true"));
    }
    Ok(TierSettings {
        redirects: entry.redirect,
        uploads: UploadSettings {
            is_read_only: entry.read_only,
            threads: super::count(entry.uploads),
            rate: entry.upload_rate.as_ref().map(|rate| rate.0.0),
        },
        limits,
        sweeps: match entry.sweep {
            SweepName::Auto => None,
            SweepName::Always => Some(true),
            SweepName::Never => Some(false),
        },
    })
}

/// The bucket as a tier of the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TierSettings {
    /// How content is uploaded.
    pub uploads: UploadSettings,
    /// Whether clients are redirected to the bucket.
    pub redirects: bool,
    /// What may stay in the bucket.
    pub limits: BucketLimits,
    /// Whether this cache removes what may not stay; `None` if that depends on the store.
    pub sweeps: Option<bool>,
}

/// The keys of the entry, if it has some.
fn fixed_keys(entry: &ObjectStoreEntry) -> Result<Option<FixedKeys>, String> {
    let secret = match (
        &entry.secret_access_key,
        &entry.secret_access_key_from_env,
        &entry.secret_access_key_file,
    ) {
        (None, None, None) => None,
        (Some(secret), None, None) => Some(SecretSource::Literal(secret.0.0.clone())),
        (None, Some(variable), None) => {
            let secret = std::env::var(variable).map_err(|_| {
                format!("secretAccessKeyFromEnv: the environment variable {variable} is not set")
            })?;
            Some(SecretSource::Literal(Secret::new(secret)))
        }
        (None, None, Some(path)) => Some(SecretSource::File(path.clone())),
        _ => {
            return Err("keep one of secretAccessKey, secretAccessKeyFromEnv and \
                        secretAccessKeyFile"
                .into());
        }
    };
    if entry.access_key_id.is_some() && entry.profile.is_some() {
        return Err("keep either accessKeyId or profile: each says where the keys are".into());
    }
    match (&entry.access_key_id, secret) {
        (None, None) => Ok(None),
        (Some(id), Some(_)) if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_graphic()) => {
            Err(format!("accessKeyId: {id:?} is not an access key id"))
        }
        (Some(id), Some(secret)) => {
            Ok(Some(FixedKeys { id: id.clone(), secret, session_token: None }))
        }
        _ => Err("accessKeyId and secretAccessKey belong together: set both, or neither to use \
                  the sources of Amazon's SDKs"
            .into()),
    }
}

/// A prefix that is empty or ends with a slash.
///
/// # Errors
/// What is allowed.
pub fn prefix(text: &str) -> Result<String, String> {
    let trimmed = text.trim_matches('/');
    let is_segment = |segment: &str| {
        !matches!(segment, "" | "." | "..")
            && segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._=".contains(&byte))
    };
    match trimmed {
        "" => Ok(String::new()),
        path if path.split('/').all(is_segment) => Ok(format!("{path}/")),
        _ => {
            Err("prefix is one or more names of letters, digits and -._= with / in between".into())
        }
    }
}

/// A region is a part of signatures, and of the host of Amazon's service.
fn check_region(name: &str) -> Result<(), String> {
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    match (1..=63).contains(&name.len()) && name.bytes().all(is_legal) {
        true => Ok(()),
        false => Err(format!("region: {name:?} is not the name of a region")),
    }
}

/// The bucket, or the object, follows the host.
fn check_path(key: &str, endpoint: &Endpoint) -> Result<(), String> {
    match endpoint.api == ApiPath::default() {
        true => Ok(()),
        false => Err(format!(
            "{key}: leave out the path after {}: the bucket is set by bucket, and what precedes its keys by prefix",
            endpoint.authority
        )),
    }
}

/// Checks the name of a bucket.
///
/// # Errors
/// What is wrong.
pub fn check_bucket(name: &str) -> Result<(), String> {
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    match (1..=255).contains(&name.len()) && name.bytes().all(is_legal) && !name.contains("..") {
        true => Ok(()),
        false => Err(format!("bucket: {name:?} is not the name of a bucket")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes() {
        for (text, expected) in [
            ("", Some("")),
            ("/", Some("")),
            ("a", Some("a/")),
            ("/team=x/larder/", Some("team=x/larder/")),
            ("a//b", None),
            ("a/../b", None),
            ("a b", None),
        ] {
            assert_eq!(prefix(text).ok().as_deref(), expected, "{text}");
        }
    }
}
