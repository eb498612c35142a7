//! What the errors of a store mean, and what to do about them.

use std::sync::Arc;
use std::time::SystemTime;

use ureq::Body;
use ureq::http::{HeaderMap, Response, header};

use super::xml::{self, StoreError};
use super::{Addressing, ObjectStoreSettings};
use crate::oci::quoted;
use crate::units::duration;
use crate::upstream::error::{NO_SUCH_KEY, UpstreamError, UpstreamErrorKind};
use crate::upstream::response::{ERROR_BODY_BYTES_MAX, http_date, read_body, retry_after, text};

/// The code of a store that refuses the time of a signature.
pub(super) const TIME_TOO_SKEWED: &str = "RequestTimeTooSkewed";
/// The codes of a store that does not accept the keys.
const KEY_CODES: [&str; 4] =
    ["ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "TokenRefreshRequired"];
/// The codes of a store without space, or of a bucket that has reached its quota, in whatever status.
const FULL_CODES: [&str; 6] = [
    "InsufficientStorage",
    "QuotaExceeded",
    "XAdminBucketQuotaExceeded",
    "XMinioAdminBucketQuotaExceeded",
    "XMinioStorageFull",
    "XMinioDiskFull",
];

/// A response that is not a success.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: UpstreamError,
    /// The store's time.
    pub(super) date: Option<SystemTime>,
}

impl From<UpstreamError> for Failure {
    fn from(error: UpstreamError) -> Failure {
        Failure { error, date: None }
    }
}

impl Failure {
    /// Reads a response. HEAD has no body, and thus no code.
    pub(super) fn read(
        settings: &ObjectStoreSettings,
        response: Response<Body>,
        request: &Arc<str>,
    ) -> Failure {
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let is_head = request.starts_with("HEAD ");
        let body = read_body(response, ERROR_BODY_BYTES_MAX, request).unwrap_or_default();
        let error = match xml::error(&body) {
            // The headers of HEAD are all there is.
            None if is_head && status == 404 => {
                StoreError { code: NO_SUCH_KEY.to_owned(), ..StoreError::default() }
            }
            found => found.unwrap_or_default(),
        };
        let date = date_of(&headers);
        Failure { error: described(settings, status, &headers, &error, request), date }
    }

    /// Whether the store may accept the request with other keys.
    pub(super) fn is_about_keys(&self) -> bool {
        let Some((status, code)) = self.error.store_code() else { return false };
        status == 403 || KEY_CODES.contains(&code)
    }
}

pub(super) fn date_of(headers: &HeaderMap) -> Option<SystemTime> {
    text(headers, header::DATE).and_then(http_date)
}

/// The error for an `<Error>` in a response.
pub(super) fn described(
    settings: &ObjectStoreSettings,
    status: u16,
    headers: &HeaderMap,
    error: &StoreError,
    request: &Arc<str>,
) -> UpstreamError {
    let code = quoted(&error.code);
    let kind = UpstreamErrorKind::ObjectStore {
        status,
        reason: reason(settings, status, headers, error).into(),
        code: (!code.is_empty()).then(|| code.into()),
        retry_after: retry_after(headers),
    };
    UpstreamError::new(Arc::clone(request), kind)
}

fn reason(
    settings: &ObjectStoreSettings,
    status: u16,
    headers: &HeaderMap,
    error: &StoreError,
) -> String {
    let (bucket, region) = (quoted(&settings.bucket), quoted(&settings.region));
    let right_region = error.region.as_deref().or(text(headers, "x-amz-bucket-region"));
    if let Some(right) = right_region.filter(|right| *right != settings.region && status < 500) {
        let right = quoted(right);
        return format!("objectStore.region is {region}, but the bucket is in {right}");
    }
    let details = match (&*error.code, &*error.message) {
        ("", "") => format!("status {status}"),
        (code, "") => format!("{status} {}", quoted(code)),
        (code, message) => format!("{status} {}: {}", quoted(code), quoted(message)),
    };
    let advice = match (&*error.code, status) {
        (NO_SUCH_KEY, _) => return "the store has no such object".to_owned(),
        ("NoSuchBucket", _) => {
            let other = match settings.addressing {
                Addressing::Path => "virtual",
                Addressing::VirtualHost => "path",
            };
            format!(
                "the store has no bucket {bucket}: create it, or correct its name (objectStore.bucket, or \
                 the s3:// URL of the command); some stores need objectStore.addressing: {other}"
            )
        }
        ("InvalidAccessKeyId" | "XAdminUserNotFound", _) => {
            "the store does not know the access key id (objectStore.accessKeyId)".to_owned()
        }
        ("SignatureDoesNotMatch", _) => {
            "the secret access key does not belong to the access key id \
             (objectStore.secretAccessKey), or a proxy changes the request"
                .to_owned()
        }
        ("ExpiredToken" | "InvalidToken" | "TokenRefreshRequired", _) => {
            "the session token of the keys is not valid any more (AWS_SESSION_TOKEN or the source of the keys)".to_owned()
        }
        (TIME_TOO_SKEWED, _) => match date_of(headers).map(|date| skew(date, SystemTime::now())) {
            Some(skew) => format!("{skew}: set the clock"),
            None => "this machine's clock differs from the store's: set the clock".to_owned(),
        },
        (code, status) if status == 507 || FULL_CODES.contains(&code) => format!(
            "the bucket {bucket} is full: give it or the store more space, or remove images \
             (objectStore.maxSize, objectStore.unusedFor)"
        ),
        ("AccessDenied" | "AllAccessDisabled", _) | (_, 401 | 403) => format!(
            "the keys do not allow this (objectStore.accessKeyId): they need to get, put, delete and list \
             objects in the bucket {bucket}, and to list and abort multipart uploads"
        ),
        ("PermanentRedirect" | "TemporaryRedirect", _) | (_, 300..=399) => match &error.endpoint {
            Some(endpoint) => {
                format!("the bucket is at {}: set objectStore.endpoint", quoted(endpoint))
            }
            None => "the bucket is elsewhere: correct objectStore.endpoint and objectStore.region"
                .to_owned(),
        },
        ("EntityTooLarge", _) | (_, 413) => "the store, or a proxy before it, does not accept \
                                             requests of this size: set a smaller part size"
            .to_owned(),
        ("EntityTooSmall", _) => {
            "the store does not accept parts of this size: set a larger part size".to_owned()
        }
        ("SlowDown", _) | (_, 429) => "the store limits the rate of requests".to_owned(),
        ("", 400) => "the store refused the request; objectStore.region may be wrong".to_owned(),
        ("", 404) => {
            "the response does not come from an object store: correct objectStore.endpoint"
                .to_owned()
        }
        (_, 500..) => "the store failed".to_owned(),
        _ => "the store refused the request".to_owned(),
    };
    format!("{advice} ({details})")
}

/// The difference between the clocks, for messages.
pub(super) fn skew(date: SystemTime, now: SystemTime) -> String {
    match now.duration_since(date) {
        Ok(ahead) => format!("this machine's clock is {} ahead of the store's", duration(ahead)),
        Err(behind) => {
            let behind = duration(behind.duration());
            format!("this machine's clock is {behind} behind the store's")
        }
    }
}
