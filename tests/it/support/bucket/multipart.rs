//! Multipart uploads.
//!
//! Must not know credentials, faults or sockets.

use std::collections::BTreeMap;
use std::time::SystemTime;

use sha2::{Digest as _, Sha256};

use super::super::answer::Answer;
use super::super::base64;
use super::super::wire::Recorded;
use super::contents::{Contents, Object, matches_etag, stored, stored_headers};
use super::refusal::Refusal;
use super::xml::{self, element};
use super::{BUCKET, contents};

/// The largest number of a part.
const PART_LIMIT: u32 = 10_000;

/// An unfinished multipart upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upload {
    pub key: String,
    pub id: String,
    pub initiated: SystemTime,
    /// Whether the upload was created with SHA-256 checksums.
    pub with_checksums: bool,
    /// By their numbers, which start at 1.
    pub parts: BTreeMap<u32, Object>,
    /// The headers of the future object.
    pub headers: Vec<(String, String)>,
}

/// A part in the request for a completion.
struct Named {
    number: u32,
    etag: String,
    checksum: Option<String>,
}

impl Contents {
    /// Starts an upload and returns its id.
    pub fn start_upload(
        &mut self,
        key: &str,
        initiated: SystemTime,
        with_checksums: bool,
        headers: Vec<(String, String)>,
    ) -> String {
        self.uploads_started += 1;
        let (key, id) = (key.to_owned(), format!("upload.{:06}", self.uploads_started));
        let parts = BTreeMap::new();
        let upload =
            Upload { key: key.clone(), id: id.clone(), initiated, with_checksums, parts, headers };
        self.uploads.insert((key, id.clone()), upload);
        id
    }

    pub fn create_upload(&mut self, request: &Recorded, key: &str, now: SystemTime) -> Answer {
        let algorithm = request.header("x-amz-checksum-algorithm");
        let with_checksums = algorithm == Some("SHA256");
        let id = self.start_upload(key, now, with_checksums, stored_headers(request));
        let content = element("Bucket", BUCKET) + &element("Key", key) + &element("UploadId", &id);
        let body = xml::document("InitiateMultipartUploadResult", &content);
        Answer::new(200, "application/xml", body)
    }

    pub fn upload_part(
        &mut self,
        request: &Recorded,
        key: &str,
        now: SystemTime,
    ) -> Result<Answer, Refusal> {
        let number = request.query_value("partNumber").and_then(|text| text.parse::<u32>().ok());
        let number =
            number.filter(|number| (1..=PART_LIMIT).contains(number)).ok_or_else(|| {
                Refusal::invalid_argument(
                    "Part number must be an integer between 1 and 10000, inclusive",
                )
            })?;
        let checksum = request.header("x-amz-checksum-sha256").map(str::to_owned);
        let with_checksums = self.upload(request, key)?.with_checksums;
        if with_checksums != checksum.is_some() {
            let kind = |is_present| if is_present { "sha256" } else { "null" };
            let (expected, actual) = (kind(with_checksums), kind(checksum.is_some()));
            let message = format!(
                "Checksum Type mismatch occurred, expected checksum Type: {expected}, actual \
                 checksum Type: {actual}"
            );
            return Err(Refusal::client(400, "InvalidRequest", &message));
        }
        let part = Object { checksum, ..Object::new(request.body.clone(), now) };
        let answer = stored(&part);
        let id = request.query_value("uploadId").unwrap_or_default();
        let upload = self.uploads.get_mut(&(key.to_owned(), id)).ok_or_else(no_such_upload)?;
        upload.parts.insert(number, part);
        Ok(answer)
    }

    pub fn complete_upload(
        &mut self,
        request: &Recorded,
        key: &str,
        now: SystemTime,
    ) -> Result<Answer, Refusal> {
        let upload = self.upload(request, key)?;
        let named = named_parts(&request.body)?;
        let parts = self.checked_parts(upload, &named)?;
        let object = assemble(upload, &parts, now);
        let id = upload.id.clone();
        let mut content = element("Location", &format!("/{BUCKET}/{key}"))
            + &element("Bucket", BUCKET)
            + &element("Key", key)
            + &element("ETag", &object.etag);
        if let Some(checksum) = &object.checksum {
            content += &element("ChecksumSHA256", checksum);
        }
        self.uploads.remove(&(key.to_owned(), id));
        self.objects.insert(key.to_owned(), object);
        let body = xml::document("CompleteMultipartUploadResult", &content);
        Ok(Answer::new(200, "application/xml", body))
    }

    pub fn abort_upload(&mut self, request: &Recorded, key: &str) -> Result<Answer, Refusal> {
        let id = self.upload(request, key)?.id.clone();
        self.uploads.remove(&(key.to_owned(), id));
        Ok(Answer::new(204, "", Vec::new()))
    }

    /// The upload of a request.
    pub fn upload(&self, request: &Recorded, key: &str) -> Result<&Upload, Refusal> {
        let id = request.query_value("uploadId").unwrap_or_default();
        self.uploads.get(&(key.to_owned(), id)).ok_or_else(no_such_upload)
    }

    /// The named parts, if they are in order, exist as named and are large enough.
    fn checked_parts<'a>(
        &self,
        upload: &'a Upload,
        named: &[Named],
    ) -> Result<Vec<&'a Object>, Refusal> {
        if !named.is_sorted_by(|first, second| first.number < second.number) {
            let message = "The list of parts was not in ascending order.";
            return Err(Refusal::client(400, "InvalidPartOrder", message));
        }
        let mut parts = Vec::new();
        for Named { number, etag, checksum } in named {
            if upload.with_checksums && checksum.is_none() {
                let message = format!(
                    "The upload was created using a sha256 checksum. The complete request must \
                     include the checksum for each part. It was missing for part {number} in the \
                     request."
                );
                return Err(Refusal::client(400, "InvalidRequest", &message));
            }
            let part = upload.parts.get(number).filter(|part| {
                matches_etag(etag, &part.etag) && (checksum.is_none() || *checksum == part.checksum)
            });
            parts.push(part.ok_or_else(|| {
                let message = format!("Part {number} could not be found, or its ETag differs.");
                Refusal::client(400, "InvalidPart", &message)
            })?);
        }
        let but_last = &parts[..parts.len() - 1];
        if but_last.iter().any(|part| part.bytes.len() < self.settings.minimum_part) {
            let message = "Your proposed upload is smaller than the minimum allowed size";
            return Err(Refusal::client(400, "EntityTooSmall", message));
        }
        Ok(parts)
    }
}

/// The object of the parts, with an ETag and a checksum of those of the parts.
fn assemble(upload: &Upload, parts: &[&Object], now: SystemTime) -> Object {
    let mut object = Object::new(Vec::new(), now);
    let (mut etags, mut hashes) = (String::new(), Vec::new());
    for part in parts {
        object.bytes.extend_from_slice(&part.bytes);
        etags.push_str(&part.etag);
        hashes.extend_from_slice(&Sha256::digest(&part.bytes));
    }
    let (count, bare) = (parts.len(), contents::etag_of(etags.as_bytes()));
    object.etag = format!("\"{}-{count}\"", bare.trim_matches('"'));
    object.headers = upload.headers.clone();
    if upload.with_checksums {
        object.checksum = Some(format!("{}-{count}", base64(&Sha256::digest(&hashes))));
    }
    object
}

/// At least one part.
fn named_parts(body: &[u8]) -> Result<Vec<Named>, Refusal> {
    let text = String::from_utf8_lossy(body);
    let is_list = text.contains("<CompleteMultipartUpload");
    let parse = |part: &str| {
        Some(Named {
            number: xml::text(part, "PartNumber")?.parse().ok()?,
            etag: xml::text(part, "ETag")?,
            checksum: xml::text(part, "ChecksumSHA256"),
        })
    };
    let named: Option<Vec<Named>> = xml::all(&text, "Part").into_iter().map(parse).collect();
    named.filter(|named| is_list && !named.is_empty()).ok_or_else(Refusal::malformed_xml)
}

fn no_such_upload() -> Refusal {
    let message = "The specified upload does not exist. The upload ID may be invalid, or the upload \
                   may have been aborted or completed.";
    Refusal::state(404, "NoSuchUpload", message)
}
