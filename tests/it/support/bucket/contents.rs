//! The objects of the fake bucket, and the right response to every operation on them.
//!
//! Must not know credentials, faults or sockets.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use sha2::{Digest as _, Sha256};

use super::super::answer::Answer;
use super::super::content::range;
use super::super::wire::Recorded;
use super::super::{base64, hex};
use super::multipart::Upload;
use super::operation::Operation;
use super::refusal::Refusal;
use super::{REGION, xml};

/// The maximum number of keys in a batch deletion.
const BATCH_LIMIT: usize = 1000;

/// A stored object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    pub bytes: Vec<u8>,
    /// In quotes. Not an MD5 sum, which clients must not rely on.
    pub etag: String,
    pub modified: SystemTime,
    /// The SHA-256 checksum in base64, with `-N` after an upload of N parts. `None` if the client sent none.
    pub checksum: Option<String>,
    /// `Content-Type` and `x-amz-meta-…`, with names in lower case.
    pub headers: Vec<(String, String)>,
}

impl Object {
    pub fn new(bytes: Vec<u8>, modified: SystemTime) -> Object {
        let etag = etag_of(&bytes);
        Object { bytes, etag, modified, checksum: None, headers: Vec::new() }
    }

    /// With the right checksum.
    pub fn with_checksum(mut self) -> Object {
        self.checksum = Some(checksum_of(&self.bytes));
        self
    }
}

pub struct Settings {
    pub writes_denied: bool,
    pub full: bool,
    pub preconditions_ignored: bool,
    pub checksums_verified: bool,
    pub content_hashes_verified: bool,
    pub protected: BTreeSet<String>,
    /// Omitted from listings.
    pub hidden: BTreeSet<String>,
    /// In listings although they may have been removed.
    pub kept: BTreeMap<String, Object>,
    pub page_size: usize,
    pub minimum_part: usize,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            writes_denied: false,
            full: false,
            preconditions_ignored: false,
            checksums_verified: true,
            content_hashes_verified: true,
            protected: BTreeSet::new(),
            hidden: BTreeSet::new(),
            kept: BTreeMap::new(),
            page_size: 1000,
            minimum_part: 5 * 1024 * 1024,
        }
    }
}

#[derive(Default)]
pub struct Contents {
    pub objects: BTreeMap<String, Object>,
    /// By key and id, which is the order of listings.
    pub uploads: BTreeMap<(String, String), Upload>,
    pub uploads_started: u64,
    pub settings: Settings,
}

/// A request for an operation on a key.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    pub operation: Operation,
    pub key: &'a str,
    pub request: &'a Recorded,
    pub now: SystemTime,
}

impl Contents {
    /// Performs the operation.
    pub fn perform(&mut self, call: &Call<'_>) -> Result<Answer, Refusal> {
        self.admit(call)?;
        self.verify_body(call.request)?;
        let Call { operation, key, request, now } = *call;
        match operation {
            Operation::HeadBucket => {
                Ok(Answer::new(200, "", Vec::new()).with("x-amz-bucket-region", REGION))
            }
            Operation::ListObjects => self.list_objects(request),
            Operation::DeleteObjects => self.delete_objects(request),
            Operation::GetObject | Operation::HeadObject => self.read(request, key),
            Operation::PutObject => Ok(self.write(request, key, now)),
            Operation::DeleteObject => {
                self.objects.remove(key);
                Ok(Answer::new(204, "", Vec::new()))
            }
            Operation::CreateUpload => Ok(self.create_upload(request, key, now)),
            Operation::UploadPart => self.upload_part(request, key, now),
            Operation::CompleteUpload => self.complete_upload(request, key, now),
            Operation::AbortUpload => self.abort_upload(request, key),
            Operation::ListParts => self.list_parts(request, key),
            Operation::ListUploads => self.list_uploads(request),
            Operation::OtherBucket => {
                let message = "The specified bucket does not exist";
                Err(Refusal::client(404, "NoSuchBucket", message))
            }
            Operation::Unsupported => {
                let message =
                    "A header or query you provided implies functionality that is not implemented";
                Err(Refusal::client(501, "NotImplemented", message))
            }
        }
    }

    /// Refuses what can be refused without the body.
    pub fn admit(&self, call: &Call<'_>) -> Result<(), Refusal> {
        let Call { operation, key, request, .. } = *call;
        let denied = self.settings.writes_denied && (operation.stores() || operation.deletes());
        let protected =
            operation == Operation::DeleteObject && self.settings.protected.contains(key);
        if denied || protected {
            return Err(Refusal::state(403, "AccessDenied", "Access Denied"));
        }
        if self.settings.full && operation.stores() {
            let message = "The bucket has no space left.";
            return Err(Refusal::state(507, "InsufficientStorage", message));
        }
        let with_body = matches!(operation, Operation::PutObject | Operation::UploadPart);
        if with_body && request.content_length().is_none() {
            let message = "You must provide the Content-Length HTTP header.";
            return Err(Refusal::client(411, "MissingContentLength", message));
        }
        let conditional = matches!(
            operation,
            Operation::PutObject | Operation::CompleteUpload | Operation::DeleteObject
        );
        if conditional && !self.settings.preconditions_ignored {
            self.check_preconditions(request, key)?;
        }
        Ok(())
    }

    fn check_preconditions(&self, request: &Recorded, key: &str) -> Result<(), Refusal> {
        let existing = self.objects.get(key);
        match request.header("if-none-match") {
            None => {}
            Some("*") if existing.is_some() => return Err(Refusal::precondition_failed()),
            Some("*") => {}
            Some(_) => {
                let message = "If-None-Match of a write only supports *";
                return Err(Refusal::client(501, "NotImplemented", message));
            }
        }
        match (request.header("if-match"), existing) {
            (None, _) => Ok(()),
            (Some(_), None) => Err(Refusal::no_such_key()),
            (Some(asked), Some(object)) if matches_etag(asked, &object.etag) => Ok(()),
            (Some(_), Some(_)) => Err(Refusal::precondition_failed()),
        }
    }

    /// Compares the body with `x-amz-content-sha256` and `x-amz-checksum-sha256`.
    fn verify_body(&self, request: &Recorded) -> Result<(), Refusal> {
        let not_implemented = |message| Err(Refusal::client(501, "NotImplemented", message));
        let coded =
            request.header("content-encoding").is_some_and(|all| all.contains("aws-chunked"));
        let hash = request.header("x-amz-content-sha256").unwrap_or("UNSIGNED-PAYLOAD");
        if coded || hash.starts_with("STREAMING-") {
            return not_implemented("aws-chunked is not implemented");
        }
        for algorithm in ["crc32", "crc32c", "crc64nvme", "sha1"] {
            if request.header(&format!("x-amz-checksum-{algorithm}")).is_some() {
                return not_implemented("SHA-256 is the only checksum of the fake bucket");
            }
        }
        let verified = self.settings.content_hashes_verified && hash != "UNSIGNED-PAYLOAD";
        if verified && hash != hex(&Sha256::digest(&request.body)) {
            let message =
                "The provided 'x-amz-content-sha256' header does not match what was computed.";
            return Err(Refusal::client(400, "XAmzContentSHA256Mismatch", message));
        }
        let checksum = request.header("x-amz-checksum-sha256");
        let checksum = checksum.filter(|_| self.settings.checksums_verified);
        if checksum.is_some_and(|checksum| checksum != checksum_of(&request.body)) {
            let message = "The SHA256 you specified did not match the calculated checksum.";
            return Err(Refusal::client(400, "BadDigest", message));
        }
        Ok(())
    }

    /// GET and HEAD.
    fn read(&self, request: &Recorded, key: &str) -> Result<Answer, Refusal> {
        let object = self.objects.get(key).ok_or_else(Refusal::no_such_key)?;
        if request.header("if-match").is_some_and(|asked| !matches_etag(asked, &object.etag)) {
            return Err(Refusal::precondition_failed());
        }
        let unchanged = |asked| matches_etag(asked, &object.etag);
        let mut answer = if request.header("if-none-match").is_some_and(unchanged) {
            Answer::new(304, "", Vec::new())
        } else {
            ranged(&object.bytes, request)?
        };
        answer.set("Accept-Ranges", "bytes");
        answer.set("ETag", &object.etag);
        answer.set("Last-Modified", &httpdate::fmt_http_date(object.modified));
        object.headers.iter().for_each(|(name, value)| answer.set(name, value));
        let asked = request.header("x-amz-checksum-mode") == Some("ENABLED");
        if let Some(checksum) = object.checksum.as_ref().filter(|_| asked && answer.status == 200) {
            answer.set("x-amz-checksum-sha256", checksum);
        }
        Ok(answer)
    }

    fn write(&mut self, request: &Recorded, key: &str, now: SystemTime) -> Answer {
        let mut object = Object::new(request.body.clone(), now);
        object.checksum = request.header("x-amz-checksum-sha256").map(str::to_owned);
        object.headers = stored_headers(request);
        let answer = stored(&object);
        self.objects.insert(key.to_owned(), object);
        answer
    }

    /// A key that does not exist is reported as deleted.
    fn delete_objects(&mut self, request: &Recorded) -> Result<Answer, Refusal> {
        let has_checksum = ["content-md5", "x-amz-checksum-sha256"];
        if !has_checksum.iter().any(|name| request.header(name).is_some()) {
            let message = "Missing required header for this request: Content-MD5";
            return Err(Refusal::client(400, "InvalidRequest", message));
        }
        let text = String::from_utf8_lossy(&request.body);
        let is_delete = text.contains("<Delete") && text.trim_end().ends_with("</Delete>");
        let entries = xml::all(&text, "Object");
        let keys: Option<Vec<String>> =
            entries.iter().map(|entry| xml::text(entry, "Key")).collect();
        let valid = is_delete && (1..=BATCH_LIMIT).contains(&entries.len());
        let keys = keys.filter(|_| valid).ok_or_else(Refusal::malformed_xml)?;
        let quiet = xml::text(&text, "Quiet").is_some_and(|value| value == "true");
        let mut result = String::new();
        for key in keys {
            let name = xml::element("Key", &key);
            if self.settings.protected.contains(&key) {
                let code = xml::element("Code", "AccessDenied");
                let message = xml::element("Message", "Access Denied");
                result += &format!("<Error>{name}{code}{message}</Error>");
            } else {
                self.objects.remove(&key);
                if !quiet {
                    result += &format!("<Deleted>{name}</Deleted>");
                }
            }
        }
        Ok(Answer::new(200, "application/xml", xml::document("DeleteResult", &result)))
    }
}

/// The response to a write.
pub fn stored(object: &Object) -> Answer {
    let mut answer = Answer::new(200, "", Vec::new()).with("ETag", &object.etag);
    if let Some(checksum) = &object.checksum {
        answer.set("x-amz-checksum-sha256", checksum);
    }
    answer
}

/// The headers that are stored with an object.
pub fn stored_headers(request: &Recorded) -> Vec<(String, String)> {
    let headers = request.headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value));
    let kept =
        headers.filter(|(name, _)| name == "content-type" || name.starts_with("x-amz-meta-"));
    kept.map(|(name, value)| (name, value.clone())).collect()
}

pub fn etag_of(bytes: &[u8]) -> String {
    format!("\"{}\"", &hex(&Sha256::digest(bytes))[..32])
}

pub fn checksum_of(bytes: &[u8]) -> String {
    base64(&Sha256::digest(bytes))
}

/// Whether a list of ETags, with or without quotes, contains this one.
pub fn matches_etag(asked: &str, etag: &str) -> bool {
    let bare = |text: &str| text.trim().trim_matches('"').to_owned();
    asked.split(',').any(|asked| asked.trim() == "*" || bare(asked) == bare(etag))
}

fn ranged(bytes: &[u8], request: &Recorded) -> Result<Answer, Refusal> {
    let (total, kind) = (bytes.len(), "binary/octet-stream");
    match request.header("range").and_then(|text| range(text, total)) {
        None => Ok(Answer::new(200, kind, bytes.to_vec())),
        Some(Ok(part)) => Ok(Answer::new(206, kind, bytes[part.clone()].to_vec())
            .with("Content-Range", &format!("bytes {}-{}/{total}", part.start, part.end - 1))),
        Some(Err(())) => {
            let message = "The requested range is not satisfiable";
            Err(Refusal::state(416, "InvalidRange", message)
                .with("Content-Range", &format!("bytes */{total}")))
        }
    }
}
