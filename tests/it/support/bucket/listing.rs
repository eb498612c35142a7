//! Listings, in pages: objects, uploads, parts.
//!
//! Must not know how objects and uploads come about.

use std::collections::BTreeMap;

use super::super::answer::Answer;
use super::super::hex;
use super::super::wire::Recorded;
use super::contents::{Contents, Object};
use super::multipart::Upload;
use super::refusal::Refusal;
use super::xml::{self, element};
use super::{ACCESS_KEY, BUCKET};

/// The largest page that a client may ask for.
const PAGE_LIMIT: usize = 1000;

/// An entry of an object listing.
enum Entry<'a> {
    Object(&'a str, &'a Object),
    /// All keys with this prefix, which ends with the delimiter.
    Prefix(&'a str),
}

impl Entry<'_> {
    fn name(&self) -> &str {
        match self {
            Entry::Object(key, _) => key,
            Entry::Prefix(prefix) => prefix,
        }
    }
}

impl Contents {
    pub fn list_objects(&self, request: &Recorded) -> Result<Answer, Refusal> {
        let value = |name: &str| request.query_value(name).filter(|value| !value.is_empty());
        if value("list-type").as_deref() != Some("2") {
            return Err(Refusal::invalid_argument("list-type must be 2"));
        }
        let encode = encoding(request)?;
        let prefix = value("prefix").unwrap_or_default();
        let (delimiter, start) = (value("delimiter"), value("start-after"));
        let token = value("continuation-token");
        let after = match &token {
            Some(token) => key_of(token)?,
            None => start.clone().unwrap_or_default(),
        };
        let size = self.page(request, "max-keys")?;
        let mut objects: BTreeMap<&str, &Object> =
            self.settings.kept.iter().map(|(key, object)| (key.as_str(), object)).collect();
        objects.extend(self.objects.iter().map(|(key, object)| (key.as_str(), object)));
        objects.retain(|key, _| key.starts_with(&prefix) && !self.settings.hidden.contains(*key));
        let entries = grouped(&objects, &prefix, delimiter.as_deref());
        let mut entries = entries.into_iter().filter(|entry| entry.name() > after.as_str());
        let page: Vec<Entry<'_>> = entries.by_ref().take(size).collect();
        let truncated = size > 0 && entries.next().is_some();

        let mut body = element("Name", BUCKET) + &element("Prefix", &encode(&prefix));
        for (name, text) in [("Delimiter", &delimiter), ("StartAfter", &start)] {
            body += &text.as_ref().map(|text| element(name, &encode(text))).unwrap_or_default();
        }
        body += &token.map(|token| element("ContinuationToken", &token)).unwrap_or_default();
        body += &encoding_element(request);
        body += &element("MaxKeys", &size.to_string());
        body += &element("KeyCount", &page.len().to_string());
        body += &element("IsTruncated", &truncated.to_string());
        if let Some(last) = page.last().filter(|_| truncated) {
            body += &element("NextContinuationToken", &hex(last.name().as_bytes()));
        }
        body.extend(page.iter().map(|entry| entry_xml(entry, encode)));
        Ok(listing("ListBucketResult", &body))
    }

    pub fn list_uploads(&self, request: &Recorded) -> Result<Answer, Refusal> {
        let value = |name: &str| request.query_value(name).unwrap_or_default();
        let encode = encoding(request)?;
        let (prefix, key, id) = (value("prefix"), value("key-marker"), value("upload-id-marker"));
        let size = self.page(request, "max-uploads")?;
        // Without an id, the marker excludes all uploads of its key.
        let is_after = |upload: &&Upload| {
            upload.key > key || (upload.key == key && !id.is_empty() && upload.id > id)
        };
        let matching = self.uploads.values().filter(|upload| upload.key.starts_with(&prefix));
        let mut left = matching.filter(is_after);
        let page: Vec<&Upload> = left.by_ref().take(size).collect();
        let truncated = size > 0 && left.next().is_some();

        let mut body = element("Bucket", BUCKET)
            + &element("KeyMarker", &encode(&key))
            + &element("UploadIdMarker", &id)
            + &element("Prefix", &encode(&prefix))
            + &encoding_element(request)
            + &element("MaxUploads", &size.to_string())
            + &element("IsTruncated", &truncated.to_string());
        if let Some(last) = page.last().filter(|_| truncated) {
            body += &element("NextKeyMarker", &encode(&last.key));
            body += &element("NextUploadIdMarker", &last.id);
        }
        for upload in page {
            let content = element("Key", &encode(&upload.key))
                + &element("UploadId", &upload.id)
                + &element("StorageClass", "STANDARD")
                + &element("Initiated", &xml::timestamp(upload.initiated));
            body += &format!("<Upload>{content}</Upload>");
        }
        Ok(listing("ListMultipartUploadsResult", &body))
    }

    pub fn list_parts(&self, request: &Recorded, key: &str) -> Result<Answer, Refusal> {
        let upload = self.upload(request, key)?;
        let marker = request.query_value("part-number-marker").unwrap_or_default();
        let after: u32 = marker.parse().unwrap_or(0);
        let size = self.page(request, "max-parts")?;
        let mut left = upload.parts.range(after + 1..);
        let page: Vec<_> = left.by_ref().take(size).collect();
        let truncated = size > 0 && left.next().is_some();

        let mut body = element("Bucket", BUCKET)
            + &element("Key", key)
            + &element("UploadId", &upload.id)
            + &format!("<Initiator>{}</Initiator>", element("ID", ACCESS_KEY))
            + &element("PartNumberMarker", &after.to_string())
            + &element("MaxParts", &size.to_string())
            + &element("IsTruncated", &truncated.to_string());
        if let Some((number, _)) = page.last().filter(|_| truncated) {
            body += &element("NextPartNumberMarker", &number.to_string());
        }
        for (number, part) in page {
            let mut content = element("PartNumber", &number.to_string())
                + &element("LastModified", &xml::timestamp(part.modified))
                + &element("ETag", &part.etag)
                + &element("Size", &part.bytes.len().to_string());
            if let Some(checksum) = &part.checksum {
                content += &element("ChecksumSHA256", checksum);
            }
            body += &format!("<Part>{content}</Part>");
        }
        Ok(listing("ListPartsResult", &body))
    }

    /// The number of entries of a page.
    fn page(&self, request: &Recorded, parameter: &str) -> Result<usize, Refusal> {
        let asked = match request.query_value(parameter) {
            None => PAGE_LIMIT,
            Some(text) => text
                .parse()
                .map_err(|_| Refusal::invalid_argument(&format!("{parameter} must be a number")))?,
        };
        Ok(asked.min(PAGE_LIMIT).min(self.settings.page_size))
    }
}

fn listing(root: &str, content: &str) -> Answer {
    Answer::new(200, "application/xml", xml::document(root, content))
}

/// Objects, and the prefixes up to the delimiter that replace some of them.
fn grouped<'a>(
    objects: &BTreeMap<&'a str, &'a Object>,
    prefix: &str,
    delimiter: Option<&str>,
) -> Vec<Entry<'a>> {
    let mut entries: Vec<Entry<'a>> = Vec::new();
    for (key, object) in objects {
        let rest = &key[prefix.len()..];
        match delimiter.and_then(|delimiter| Some((rest.find(delimiter)?, delimiter.len()))) {
            None => entries.push(Entry::Object(key, object)),
            Some((at, length)) => {
                let group = &key[..prefix.len() + at + length];
                if entries.last().is_none_or(|last| last.name() != group) {
                    entries.push(Entry::Prefix(group));
                }
            }
        }
    }
    entries
}

fn entry_xml(entry: &Entry<'_>, encode: fn(&str) -> String) -> String {
    match entry {
        Entry::Prefix(prefix) => {
            format!("<CommonPrefixes>{}</CommonPrefixes>", element("Prefix", &encode(prefix)))
        }
        Entry::Object(key, object) => {
            let content = element("Key", &encode(key))
                + &element("LastModified", &xml::timestamp(object.modified))
                + &element("ETag", &object.etag)
                + &element("Size", &object.bytes.len().to_string())
                + &element("StorageClass", "STANDARD");
            format!("<Contents>{content}</Contents>")
        }
    }
}

/// How keys are written.
fn encoding(request: &Recorded) -> Result<fn(&str) -> String, Refusal> {
    match request.query_value("encoding-type").as_deref() {
        None => Ok(str::to_owned),
        Some("url") => Ok(xml::url_encode),
        Some(_) => Err(Refusal::invalid_argument("Invalid Encoding Method specified in Request")),
    }
}

fn encoding_element(request: &Recorded) -> String {
    let kind = request.query_value("encoding-type");
    kind.map(|kind| element("EncodingType", &kind)).unwrap_or_default()
}

/// The key in a continuation token, which is hexadecimal.
fn key_of(token: &str) -> Result<String, Refusal> {
    let digits: Option<Vec<u8>> = (0..token.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(token.get(at..at + 2)?, 16).ok())
        .collect();
    digits
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or_else(|| Refusal::invalid_argument("The continuation token provided is incorrect"))
}
