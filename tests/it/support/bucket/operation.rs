//! Which S3 operation a request asks for.
//!
//! Must not know objects, credentials or scripts.

use super::super::wire::{Recorded, pairs, percent_decode};
use super::BUCKET;

/// The supported operations, by their names in the S3 API reference where these are short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    HeadBucket,
    ListObjects,
    DeleteObjects,
    GetObject,
    HeadObject,
    PutObject,
    DeleteObject,
    CreateUpload,
    UploadPart,
    CompleteUpload,
    AbortUpload,
    ListParts,
    ListUploads,
    /// Anything in another bucket.
    OtherBucket,
    /// Any other method, resource or parameter.
    Unsupported,
}

/// Query parameters that select no other operation.
const PARAMETERS: &[&str] = &[
    "x-id",
    "list-type",
    "prefix",
    "delimiter",
    "start-after",
    "continuation-token",
    "max-keys",
    "encoding-type",
    "delete",
    "uploads",
    "uploadId",
    "partNumber",
    "part-number-marker",
    "max-parts",
    "key-marker",
    "upload-id-marker",
    "max-uploads",
];

impl Operation {
    pub fn stores(self) -> bool {
        use Operation::{CompleteUpload, CreateUpload, PutObject, UploadPart};
        matches!(self, PutObject | CreateUpload | UploadPart | CompleteUpload)
    }

    pub fn deletes(self) -> bool {
        use Operation::{AbortUpload, DeleteObject, DeleteObjects};
        matches!(self, DeleteObject | DeleteObjects | AbortUpload)
    }
}

/// The operation and its key, decoded. The key is empty for operations on the bucket.
pub fn target(request: &Recorded) -> (Operation, String) {
    let path = percent_decode(&request.path);
    let inside = path.strip_prefix('/').unwrap_or(&path);
    let (bucket, key) = inside.split_once('/').unwrap_or((inside, ""));
    if bucket != BUCKET {
        return (Operation::OtherBucket, key.to_owned());
    }
    let query = pairs(request.query.as_deref().unwrap_or(""));
    let known = |name: &String| name.starts_with("X-Amz-") || PARAMETERS.contains(&name.as_str());
    let copies = request.header("x-amz-copy-source").is_some();
    if copies || !query.iter().all(|(name, _)| known(name)) {
        return (Operation::Unsupported, key.to_owned());
    }
    let has = |name: &str| query.iter().any(|(key, _)| key == name);
    let operation = match request.method.as_str() {
        method if key.is_empty() => of_bucket(method, has),
        method => of_object(method, has),
    };
    (operation, key.to_owned())
}

fn of_bucket(method: &str, has: impl Fn(&str) -> bool) -> Operation {
    match method {
        "HEAD" => Operation::HeadBucket,
        "GET" if has("uploads") => Operation::ListUploads,
        "GET" if has("list-type") => Operation::ListObjects,
        "POST" if has("delete") => Operation::DeleteObjects,
        _ => Operation::Unsupported,
    }
}

fn of_object(method: &str, has: impl Fn(&str) -> bool) -> Operation {
    match (method, has("uploadId")) {
        ("GET", true) => Operation::ListParts,
        ("GET", false) => Operation::GetObject,
        ("HEAD", false) => Operation::HeadObject,
        ("PUT", true) => Operation::UploadPart,
        ("PUT", false) => Operation::PutObject,
        ("POST", true) => Operation::CompleteUpload,
        ("POST", false) if has("uploads") => Operation::CreateUpload,
        ("DELETE", true) => Operation::AbortUpload,
        ("DELETE", false) => Operation::DeleteObject,
        _ => Operation::Unsupported,
    }
}
