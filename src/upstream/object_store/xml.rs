//! The XML documents of S3.
//!
//! Threat: a document comes from a server that may be anything. Its size is limited before it is parsed, the parser
//! refuses document type definitions, and neither the parser nor this module recurses.

use std::time::SystemTime;

use roxmltree::{Document, Node, ParsingOptions};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{ListedObject, Page};

/// The most nodes of a document: a page of 1,000 objects has about 20,000.
const NODES_MAX: u32 = 200_000;
/// The longest upload id, token or key of a list, in bytes: Amazon's have a few hundred, and keys up to 1,024.
const NAME_BYTES_MAX: usize = 8 * 1024;
const NAMESPACE: &str = "http://s3.amazonaws.com/doc/2006-03-01/";

/// An `<Error>`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct StoreError {
    pub(super) code: String,
    pub(super) message: String,
    /// The bucket's region, if that is the reason.
    pub(super) region: Option<String>,
    /// The host at which the bucket is, if that is the reason.
    pub(super) endpoint: Option<String>,
}

/// An upload in parts that has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PendingUpload {
    pub(super) key: String,
    pub(super) id: String,
    pub(super) initiated: Option<SystemTime>,
}

/// The part of an upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UploadedPart {
    pub(super) number: u32,
    pub(super) etag: String,
    pub(super) size: u64,
    /// In base64.
    pub(super) sha256: Option<String>,
}

/// A page of a list, and where the next one begins.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Listed<T, N> {
    pub(super) items: Vec<T>,
    pub(super) next: Option<N>,
}

/// An `<Error>`; `None` if the body is another document or none.
pub(super) fn error(body: &[u8]) -> Option<StoreError> {
    let text = std::str::from_utf8(body).ok()?;
    let document = parse(text).ok()?;
    let root = document.root_element();
    // Some stores wrap it.
    let error = root.descendants().take(8).find(|node| node.has_tag_name_of("Error"))?;
    Some(StoreError {
        code: text_of(error, "Code").unwrap_or_default(),
        message: text_of(error, "Message").unwrap_or_default(),
        region: text_of(error, "Region"),
        endpoint: text_of(error, "Endpoint"),
    })
}

/// The result of `ListObjectsV2`. Keys are complete.
pub(super) fn objects(body: &[u8]) -> Result<Page, String> {
    let text = utf8(body)?;
    let document = parse(text)?;
    let root = root(&document, "ListBucketResult")?;
    let decode = key_decoder(root);
    let object = |node| {
        Some(ListedObject {
            key: decode(&text_of(node, "Key")?)?,
            size: text_of(node, "Size")?.trim().parse().ok()?,
            modified: time_of(node, "LastModified")?,
        })
    };
    let objects: Option<Vec<ListedObject>> = children(root, "Contents").map(object).collect();
    let objects = objects.ok_or("an object in the list has no valid key, size and time")?;
    // Tokens are not encoded, unlike keys.
    let next = match is_truncated(root) {
        true => Some(name_of(root, "NextContinuationToken")?),
        false => None,
    };
    Ok(Page { objects, next })
}

/// The result of `CreateMultipartUpload`: the id of the upload.
pub(super) fn upload_id(body: &[u8]) -> Result<String, String> {
    let document = parse(utf8(body)?)?;
    name_of(root(&document, "InitiateMultipartUploadResult")?, "UploadId")
}

/// The result of `ListMultipartUploads`. The next page begins after a key and an upload id.
pub(super) fn uploads(body: &[u8]) -> Result<Listed<PendingUpload, (String, String)>, String> {
    let text = utf8(body)?;
    let document = parse(text)?;
    let root = root(&document, "ListMultipartUploadsResult")?;
    let decode = key_decoder(root);
    let upload = |node| {
        let id = text_of(node, "UploadId").filter(|id| id.len() <= NAME_BYTES_MAX)?;
        let initiated = time_of(node, "Initiated");
        Some(PendingUpload { key: decode(&text_of(node, "Key")?)?, id, initiated })
    };
    let items = children(root, "Upload").filter_map(upload).collect();
    let next = match is_truncated(root) {
        true => {
            let key = decode(&name_of(root, "NextKeyMarker")?).ok_or("its key is invalid")?;
            Some((key, text_of(root, "NextUploadIdMarker").unwrap_or_default()))
        }
        false => None,
    };
    Ok(Listed { items, next })
}

/// The result of `ListParts`. The next page begins after a part number.
pub(super) fn parts(body: &[u8]) -> Result<Listed<UploadedPart, u32>, String> {
    let text = utf8(body)?;
    let document = parse(text)?;
    let root = root(&document, "ListPartsResult")?;
    let part = |node| {
        Some(UploadedPart {
            number: text_of(node, "PartNumber")?.trim().parse().ok()?,
            etag: text_of(node, "ETag").filter(|etag| etag.len() <= NAME_BYTES_MAX)?,
            size: text_of(node, "Size")?.trim().parse().ok()?,
            sha256: text_of(node, "ChecksumSHA256"),
        })
    };
    let items = children(root, "Part").filter_map(part).collect();
    let next = match is_truncated(root) {
        true => text_of(root, "NextPartNumberMarker").and_then(|text| text.trim().parse().ok()),
        false => None,
    };
    Ok(Listed { items, next })
}

/// The result of `CompleteMultipartUpload`: the ETag of the object. The caller checks for an `<Error>` first.
pub(super) fn completed(body: &[u8]) -> Result<Option<String>, String> {
    let document = parse(utf8(body)?)?;
    Ok(text_of(root(&document, "CompleteMultipartUploadResult")?, "ETag"))
}

/// The result of `DeleteObjects`: the code of the first object that could not be deleted.
pub(super) fn first_undeleted(body: &[u8]) -> Result<Option<StoreError>, String> {
    let text = utf8(body)?;
    let document = parse(text)?;
    let root = root(&document, "DeleteResult")?;
    let error = |node| StoreError {
        code: text_of(node, "Code").unwrap_or_default(),
        message: text_of(node, "Message").unwrap_or_default(),
        ..StoreError::default()
    };
    Ok(children(root, "Error").map(error).find(|error| error.code != "NoSuchKey"))
}

/// The body of `DeleteObjects`. `None` if XML cannot contain a key.
pub(super) fn delete_request(keys: &[String]) -> Option<String> {
    let mut body = format!("<Delete xmlns=\"{NAMESPACE}\"><Quiet>true</Quiet>");
    for key in keys {
        if !key.chars().all(is_xml_char) {
            return None;
        }
        body.push_str("<Object><Key>");
        escape_into(&mut body, key);
        body.push_str("</Key></Object>");
    }
    body.push_str("</Delete>");
    Some(body)
}

/// The body of `CompleteMultipartUpload`.
pub(super) fn complete_request(parts: &[UploadedPart]) -> String {
    let mut body = format!("<CompleteMultipartUpload xmlns=\"{NAMESPACE}\">");
    for part in parts {
        body.push_str(&format!("<Part><PartNumber>{}</PartNumber><ETag>", part.number));
        escape_into(&mut body, &part.etag);
        body.push_str("</ETag>");
        if let Some(sha256) = &part.sha256 {
            body.push_str("<ChecksumSHA256>");
            escape_into(&mut body, sha256);
            body.push_str("</ChecksumSHA256>");
        }
        body.push_str("</Part>");
    }
    body.push_str("</CompleteMultipartUpload>");
    body
}

/// The key in a body of `DeleteObjects` with one key.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn only_key(request: &str) -> Option<String> {
    let document = parse(request).ok()?;
    let key = document.descendants().find(|node| node.has_tag_name_of("Key"))?;
    Some(key.text().unwrap_or_default().to_owned())
}

fn utf8(body: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(body).map_err(|_| "it is not UTF-8".to_owned())
}

fn parse(text: &str) -> Result<Document<'_>, String> {
    let options = ParsingOptions { nodes_limit: NODES_MAX, ..ParsingOptions::default() };
    Document::parse_with_options(text, options).map_err(|error| format!("it is not XML: {error}"))
}

/// The names of elements without their namespaces, which some stores leave out.
trait TagName {
    fn has_tag_name_of(&self, name: &str) -> bool;
}

impl TagName for Node<'_, '_> {
    fn has_tag_name_of(&self, name: &str) -> bool {
        self.is_element() && self.tag_name().name() == name
    }
}

fn root<'a, 'i>(document: &'a Document<'i>, name: &str) -> Result<Node<'a, 'i>, String> {
    let root = document.root_element();
    match root.has_tag_name_of(name) {
        true => Ok(root),
        false => Err(format!("it is not a {name}")),
    }
}

fn children<'a, 'i>(node: Node<'a, 'i>, name: &'static str) -> impl Iterator<Item = Node<'a, 'i>> {
    node.children().filter(move |child| child.has_tag_name_of(name))
}

/// The text of the first child with this name; `None` if it is empty.
fn text_of(node: Node<'_, '_>, name: &'static str) -> Option<String> {
    let text = children(node, name).next()?.text()?;
    (!text.is_empty()).then(|| text.to_owned())
}

fn name_of(node: Node<'_, '_>, name: &'static str) -> Result<String, String> {
    let text = text_of(node, name).filter(|text| text.len() <= NAME_BYTES_MAX);
    text.ok_or_else(|| format!("it has no valid {name}"))
}

fn time_of(node: Node<'_, '_>, name: &'static str) -> Option<SystemTime> {
    let text = text_of(node, name)?;
    OffsetDateTime::parse(text.trim(), &Rfc3339).ok().map(SystemTime::from)
}

fn is_truncated(root: Node<'_, '_>) -> bool {
    text_of(root, "IsTruncated").is_some_and(|text| text.trim() == "true")
}

/// Decodes the keys of a list. Stores that ignore `encoding-type=url` do not encode them.
fn key_decoder(root: Node<'_, '_>) -> impl Fn(&str) -> Option<String> {
    let is_encoded = text_of(root, "EncodingType").is_some_and(|text| text.trim() == "url");
    move |key| if is_encoded { percent_decoded(key) } else { Some(key.to_owned()) }
}

/// The decoded form of an encoded key. Amazon encodes a space as `+`, and a `+` as `%2B`.
fn percent_decoded(text: &str) -> Option<String> {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match first {
            b'+' => bytes.push(b' '),
            b'%' => {
                let digit = |byte: &u8| char::from(*byte).to_digit(16);
                let (high, low) = (digit(rest.first()?)?, digit(rest.get(1)?)?);
                bytes.push(u8::try_from(high * 16 + low).ok()?);
                rest = &rest[2..];
            }
            other => bytes.push(*other),
        }
    }
    String::from_utf8(bytes).ok()
}

/// Whether XML 1.0 can contain this character.
fn is_xml_char(char: char) -> bool {
    matches!(char, '\t' | '\n' | '\r' | ' '..='\u{fffd}' | '\u{10000}'..)
}

fn escape_into(out: &mut String, text: &str) {
    for char in text.chars() {
        match char {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // Otherwise parsers replace them by other white space.
            '\t' | '\n' | '\r' => out.push_str(&format!("&#{};", u32::from(char))),
            other => out.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn list(encoding: &str, key: &str) -> String {
        format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult xmlns=\"{NAMESPACE}\">\
             <Name>b</Name>{encoding}<IsTruncated>true</IsTruncated><KeyCount>1</KeyCount>\
             <Contents><Key>{key}</Key><LastModified>1970-01-01T00:00:10.5Z</LastModified>\
             <ETag>&quot;e&quot;</ETag><Size>7</Size></Contents>\
             <NextContinuationToken>a+b/c=</NextContinuationToken></ListBucketResult>"
        )
    }

    #[test]
    fn keys_are_decoded_if_the_list_says_that_they_are_encoded() {
        let encoded = "<EncodingType>url</EncodingType>";
        for (encoding, key, expected) in [
            ("", "a/b+c d%20&amp;&lt;", "a/b+c d%20&<"),
            ("", "a<![CDATA[&b]]>", "a&b"),
            (encoded, "a%2Fb%2Bc+d%C3%BC", "a/b+c dü"),
            (encoded, "a/b%20c", "a/b c"),
        ] {
            let page = objects(list(encoding, key).as_bytes()).unwrap();
            let modified = SystemTime::UNIX_EPOCH + Duration::from_millis(10_500);
            let object = ListedObject { key: expected.into(), size: 7, modified };
            assert_eq!(page, Page { objects: vec![object], next: Some("a+b/c=".into()) }, "{key}");
        }
        for key in ["%", "%2", "%zz", "%ff"] {
            assert!(objects(list(encoded, key).as_bytes()).is_err(), "{key}");
        }
    }

    #[test]
    fn hostile_documents_are_refused() {
        let entity = "<!DOCTYPE x [<!ENTITY a \"b\">]><ListBucketResult>&a;</ListBucketResult>";
        let many = format!("<ListBucketResult>{}</ListBucketResult>", "<a/>".repeat(300_000));
        let unclosed = "<ListBucketResult>".repeat(100_000);
        for text in [
            "",
            "x",
            "{}",
            "<html/>",
            entity,
            &many,
            &unclosed,
            "<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>",
            "<ListBucketResult><Contents><Key>a</Key></Contents></ListBucketResult>",
        ] {
            let reason = objects(text.as_bytes()).unwrap_err();
            assert!(reason.len() < 300, "{reason}");
        }
        let deep = format!("{}{}", "<a>".repeat(90_000), "</a>".repeat(90_000));
        assert!(objects(deep.as_bytes()).is_err(), "no stack overflow");
        assert_eq!(error(deep.as_bytes()), None);
        assert!(objects(b"\xff").is_err());
    }

    #[test]
    fn errors_name_the_right_region() {
        let body = b"<Error><Code>AuthorizationHeaderMalformed</Code><Message>m</Message>\
                     <Region>eu-west-1</Region></Error>";
        let expected = StoreError {
            code: "AuthorizationHeaderMalformed".into(),
            message: "m".into(),
            region: Some("eu-west-1".into()),
            endpoint: None,
        };
        assert_eq!(error(body), Some(expected));
        assert_eq!(error(b"<html><body>no</body></html>"), None);
    }

    #[test]
    fn uploads_and_their_parts() {
        let body = "<ListMultipartUploadsResult><Bucket>b</Bucket><IsTruncated>true</IsTruncated>\
                    <NextKeyMarker>k</NextKeyMarker><NextUploadIdMarker>u1</NextUploadIdMarker>\
                    <Upload><Key>k</Key><UploadId>u1</UploadId>\
                    <Initiated>1970-01-01T00:00:10Z</Initiated></Upload>\
                    </ListMultipartUploadsResult>";
        let listed = uploads(body.as_bytes()).unwrap();
        let initiated = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(10));
        let upload = PendingUpload { key: "k".into(), id: "u1".into(), initiated };
        let next = Some(("k".to_owned(), "u1".to_owned()));
        assert_eq!(listed, Listed { items: vec![upload], next });
        let body = "<ListPartsResult><Part><PartNumber>2</PartNumber><ETag>\"x\"</ETag>\
                    <Size>5</Size><ChecksumSHA256>c=</ChecksumSHA256></Part>\
                    <IsTruncated>false</IsTruncated></ListPartsResult>";
        let listed = parts(body.as_bytes()).unwrap();
        let part =
            UploadedPart { number: 2, etag: "\"x\"".into(), size: 5, sha256: Some("c=".into()) };
        assert_eq!(listed, Listed { items: vec![part.clone()], next: None });
        let request = complete_request(&[part]);
        assert!(
            request.contains(
                "<Part><PartNumber>2</PartNumber><ETag>&quot;x&quot;</ETag>\
                 <ChecksumSHA256>c=</ChecksumSHA256></Part>"
            ),
            "{request}"
        );
    }

    #[test]
    fn deletions_are_escaped() {
        let keys = ["a&<b>\r".to_owned(), "ü".to_owned()];
        let request = delete_request(&keys).unwrap();
        let document = parse(&request).unwrap();
        let found = document.descendants().filter(|node| node.has_tag_name_of("Key"));
        let found: Vec<_> = found.filter_map(|node| node.text()).collect();
        assert_eq!(found, ["a&<b>\r", "ü"]);
        assert_eq!(delete_request(&["a\u{1}".to_owned()]), None);
        let body = b"<DeleteResult><Deleted><Key>a</Key></Deleted><Error><Code>NoSuchKey</Code>\
                     </Error><Error><Key>b</Key><Code>AccessDenied</Code></Error></DeleteResult>";
        assert_eq!(first_undeleted(body).unwrap().unwrap().code, "AccessDenied");
        assert_eq!(first_undeleted(b"<DeleteResult/>").unwrap(), None);
    }
}
