//! Uploads in parts.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::content::Hash;
use super::server::{Server, error, ok, with};
use super::*;
use crate::upstream::error::UpstreamErrorKind;

const CONTENT: &[u8] = b"aaaabbbbcc";
const BEGUN: &str = "<InitiateMultipartUploadResult><UploadId>u+1</UploadId>\
                     </InitiateMultipartUploadResult>";
const COMPLETED: &str = "<CompleteMultipartUploadResult><ETag>\"e-3\"</ETag>\
                         </CompleteMultipartUploadResult>";
const NO_UPLOADS: &str = "<ListMultipartUploadsResult/>";
const NO_PARTS: &str = "<ListPartsResult/>";

fn part(number: u32) -> server::Reply {
    with(200, &format!("etag: \"{number}\""), "")
}

fn uploads(uploads: &[(&str, &str, u32)]) -> String {
    let uploads: Vec<String> = uploads
        .iter()
        .map(|(key, id, minute)| {
            format!(
                "<Upload><Key>{key}</Key><UploadId>{id}</UploadId>\
                 <Initiated>2026-01-01T00:{minute:02}:00Z</Initiated></Upload>"
            )
        })
        .collect();
    format!("<ListMultipartUploadsResult>{}</ListMultipartUploadsResult>", uploads.concat())
}

fn parts(parts: &[(u32, u64, Option<&str>)]) -> String {
    let parts: Vec<String> = parts
        .iter()
        .map(|(number, size, sha256)| {
            let sha256 = sha256.map(|hash| format!("<ChecksumSHA256>{hash}</ChecksumSHA256>"));
            format!(
                "<Part><PartNumber>{number}</PartNumber><ETag>\"old-{number}\"</ETag>\
                 <Size>{size}</Size>{}</Part>",
                sha256.unwrap_or_default()
            )
        })
        .collect();
    format!("<ListPartsResult>{}</ListPartsResult>", parts.concat())
}

const DONE: fn() -> Put = || Put::Done { etag: Some("\"e-3\"".into()) };

#[test]
fn large_content_is_sent_in_parts() {
    let missing = with(404, "", "");
    let begun = [missing, ok(NO_UPLOADS), ok(BEGUN), ok(NO_PARTS)];
    let sent = [part(1), part(2), part(3), ok(COMPLETED)];
    let server = Server::start(begun.into_iter().chain(sent));
    let put = store_at(&server).upload("k", &Memory::of(CONTENT), Condition::IfAbsent).unwrap();
    assert_eq!(put, DONE());
    let got = server.got();
    let bodies: Vec<_> = got[4..7].iter().map(|got| got.body.as_slice()).collect();
    assert_eq!(bodies, [&b"aaaa"[..], b"bbbb", b"cc"]);
    assert_eq!(got[2].header("x-amz-checksum-algorithm"), Some("SHA256"));
    assert_eq!(got[4].header("x-amz-checksum-sha256"), Some(&*Hash::of(b"aaaa").base64()));
    assert_eq!(got[7].header("if-none-match"), Some("*"));
    let body = String::from_utf8_lossy(&got[7].body);
    let last = Hash::of(b"cc").base64();
    let expected = format!(
        "<Part><PartNumber>3</PartNumber><ETag>&quot;3&quot;</ETag>\
         <ChecksumSHA256>{last}</ChecksumSHA256></Part></CompleteMultipartUpload>"
    );
    assert!(body.ends_with(&expected), "{body}");
    let lines = server.lines();
    assert_eq!(
        lines,
        [
            "HEAD /b/p/k",
            "GET /b?prefix=p%2Fk&uploads=",
            "POST /b/p/k?uploads=",
            "GET /b/p/k?uploadId=u%2B1",
            "PUT /b/p/k?partNumber=1&uploadId=u%2B1",
            "PUT /b/p/k?partNumber=2&uploadId=u%2B1",
            "PUT /b/p/k?partNumber=3&uploadId=u%2B1",
            "POST /b/p/k?uploadId=u%2B1",
        ]
    );
}

#[test]
fn the_newest_upload_is_continued_and_others_are_aborted() {
    let pending = [("p/k", "old", 1), ("p/k2", "foreign", 9), ("p/k", "new", 5)];
    let right = Hash::of(b"aaaa").base64();
    let wrong = Hash::of(b"x").base64();
    let have = [(1, 4, Some(&*right)), (2, 4, Some(&*wrong)), (3, 1, None), (4, 4, None)];
    let server = Server::start([
        ok(&uploads(&pending)),
        with(204, "", ""),
        ok(&parts(&have)),
        part(2),
        part(3),
        ok(COMPLETED),
    ]);
    let put = store_at(&server).upload("k", &Memory::of(CONTENT), Condition::None).unwrap();
    assert_eq!(put, DONE());
    let lines = server.lines();
    assert_eq!(
        lines[1..],
        [
            "DELETE /b/p/k?uploadId=old",
            "GET /b/p/k?uploadId=new",
            "PUT /b/p/k?partNumber=2&uploadId=new",
            "PUT /b/p/k?partNumber=3&uploadId=new",
            "POST /b/p/k?uploadId=new",
        ]
    );
    let body = String::from_utf8_lossy(&server.got()[5].body).into_owned();
    assert!(body.contains("&quot;old-1&quot;") && body.contains("&quot;3&quot;"), "{body}");
    assert_eq!(body.matches("<Part>").count(), 3, "{body}");
    assert_eq!(body.matches("<ChecksumSHA256>").count(), 3, "{body}");
}

#[test]
fn uploads_of_other_processes_are_not_aborted() {
    let minutes_ago = |minutes: u64| {
        let time = SystemTime::now() - Duration::from_secs(60 * minutes);
        let time = time::OffsetDateTime::from(time);
        time.format(&time::format_description::well_known::Rfc3339).unwrap()
    };
    let upload = |id, minutes| {
        format!(
            "<Upload><Key>p/k</Key><UploadId>{id}</UploadId><Initiated>{}</Initiated></Upload>",
            minutes_ago(minutes)
        )
    };
    let body = format!(
        "<ListMultipartUploadsResult>{}{}{}</ListMultipartUploadsResult>",
        upload("other", 59),
        upload("old", 61),
        upload("new", 1)
    );
    let have = [(1, 4, None), (2, 4, None), (3, 2, None)];
    let server = Server::start([ok(&body), with(204, "", ""), ok(&parts(&have)), ok(COMPLETED)]);
    store_at(&server).upload("k", &Memory::of(CONTENT), Condition::None).unwrap();
    assert_eq!(server.lines()[1..3], ["DELETE /b/p/k?uploadId=old", "GET /b/p/k?uploadId=new"]);
}

#[test]
fn an_error_after_a_status_of_200_is_an_error() {
    let failed = "  \n<Error><Code>InternalError</Code><Message>m</Message></Error>";
    let have = [(1, 4, None), (2, 4, None), (3, 2, None)];
    let server = Server::start([ok(&uploads(&[("p/k", "u", 1)])), ok(&parts(&have)), ok(failed)]);
    let result = store_at(&server).upload("k", &Memory::of(CONTENT), Condition::None);
    let error = result.unwrap_err();
    assert!(error.is_temporary() && error.to_string().contains("InternalError"), "{error}");
    server.got();
}

#[test]
fn an_upload_that_another_process_has_ended_begins_again_or_finds_the_object() {
    let have = [(1, 4, None), (2, 4, None), (3, 2, None)];
    let gone = || error(404, "NoSuchUpload");
    let resumed = || [ok(&uploads(&[("p/k", "u", 1)])), ok(&parts(&have)), gone(), gone()];
    let again = [ok(BEGUN), ok(NO_PARTS), part(1), part(2), part(3), ok(COMPLETED)];
    let server = Server::start(resumed().into_iter().chain(again));
    let store = store_at(&server);
    assert_eq!(store.upload("k", &Memory::of(CONTENT), Condition::None).unwrap(), DONE());
    server.got();
    let head = with(200, "last-modified: Thu, 01 Jan 1970 00:00:10 GMT", "");
    let server = Server::start([with(404, "", "")].into_iter().chain(resumed()).chain([head]));
    let put = store_at(&server).upload("k", &Memory::of(CONTENT), Condition::IfAbsent).unwrap();
    assert_eq!(put, Put::Exists);
    server.got();
}

#[test]
fn parts_are_discarded_if_the_object_exists() {
    let have = [(1, 4, None), (2, 4, None), (3, 2, None)];
    let server = Server::start([
        with(404, "", ""),
        ok(&uploads(&[("p/k", "u", 1)])),
        ok(&parts(&have)),
        error(412, "PreconditionFailed"),
        with(204, "", ""),
    ]);
    let put = store_at(&server).upload("k", &Memory::of(CONTENT), Condition::IfAbsent).unwrap();
    assert_eq!(put, Put::Exists);
    assert_eq!(server.lines()[4], "DELETE /b/p/k?uploadId=u");
}

#[test]
fn a_store_without_checksums_and_conditions() {
    let refused = || error(501, "NotImplemented");
    let missing = || with(404, "", "");
    let server = Server::start([
        missing(),
        refused(),
        refused(),
        ok(BEGUN),
        ok(NO_PARTS),
        part(1),
        part(2),
        part(3),
        refused(),
        missing(),
        ok(COMPLETED),
    ]);
    let put = store_at(&server).upload("k", &Memory::of(CONTENT), Condition::IfAbsent).unwrap();
    assert_eq!(put, DONE());
    let got = server.got();
    assert!(got[5..8].iter().all(|got| got.header("x-amz-checksum-sha256").is_none()));
    let body = String::from_utf8_lossy(&got[10].body).into_owned();
    assert!(!body.contains("Checksum") && got[10].header("if-none-match").is_none(), "{body}");
}

#[test]
fn cancelled_uploads_end_and_their_parts_are_discarded_on_request() {
    let server = Server::start([]);
    let cancelled = |bytes| Memory { is_cancelled: true, ..Memory::of(bytes) };
    let store = store_at(&server);
    let error = store.upload("k", &cancelled(b"abc"), Condition::None).unwrap_err();
    assert!(matches!(error.kind(), UpstreamErrorKind::Cancelled), "{error}");
    assert_eq!(server.got().len(), 0);
    let server = Server::start([ok(NO_UPLOADS), ok(BEGUN), ok(NO_PARTS), with(204, "", "")]);
    let error = store_at(&server).upload("k", &cancelled(CONTENT), Condition::None).unwrap_err();
    assert!(matches!(error.kind(), UpstreamErrorKind::Cancelled), "{error}");
    assert_eq!(server.lines()[3], "DELETE /b/p/k?uploadId=u%2B1");
}

/// Content that is shorter than its size, or cannot be opened.
struct Broken {
    is_readable: bool,
    sha256: Option<[u8; 32]>,
}

impl UploadSource for Broken {
    fn size(&self) -> u64 {
        3
    }

    fn sha256(&self) -> Option<[u8; 32]> {
        self.sha256
    }

    fn open(&self, _: u64, _: u64) -> io::Result<Box<dyn Read + Send + '_>> {
        match self.is_readable {
            true => Ok(Box::new(&b"x"[..])),
            false => Err(io::Error::other("the disk failed")),
        }
    }

    fn is_cancelled(&self) -> bool {
        false
    }
}

#[test]
fn content_that_cannot_be_read_is_not_the_fault_of_the_store() {
    for is_readable in [true, false] {
        for sha256 in [None, Some([1; 32])] {
            let server = Server::start([]);
            let store = store_at(&server);
            let error =
                store.upload("k", &Broken { is_readable, sha256 }, Condition::None).unwrap_err();
            assert!(matches!(error.kind(), UpstreamErrorKind::Unreadable { .. }), "{error}");
            assert!(!error.is_temporary() && server.got().is_empty());
        }
    }
}

/// Content that counts how it is opened.
struct Counted {
    sent: AtomicUsize,
    hashed: AtomicUsize,
}

impl UploadSource for Counted {
    fn size(&self) -> u64 {
        CONTENT.len() as u64
    }

    fn sha256(&self) -> Option<[u8; 32]> {
        None
    }

    fn open(&self, from: u64, length: u64) -> io::Result<Box<dyn Read + Send + '_>> {
        self.sent.fetch_add(1, Ordering::Relaxed);
        let from = usize::try_from(from).unwrap();
        Ok(Box::new(&CONTENT[from..from + usize::try_from(length).unwrap()]))
    }

    fn open_for_hash(&self, from: u64, length: u64) -> io::Result<Box<dyn Read + Send + '_>> {
        self.hashed.fetch_add(1, Ordering::Relaxed);
        let from = usize::try_from(from).unwrap();
        Ok(Box::new(&CONTENT[from..from + usize::try_from(length).unwrap()]))
    }

    fn is_cancelled(&self) -> bool {
        false
    }
}

#[test]
fn part_is_opened_once_for_its_hash_and_once_to_be_sent() {
    let missing = with(404, "", "");
    let begun = [missing, ok(NO_UPLOADS), ok(BEGUN), ok(NO_PARTS)];
    let sent = [part(1), part(2), part(3), ok(COMPLETED)];
    let server = Server::start(begun.into_iter().chain(sent));
    let content = Counted { sent: AtomicUsize::new(0), hashed: AtomicUsize::new(0) };
    let put = store_at(&server).upload("k", &content, Condition::IfAbsent).unwrap();
    assert_eq!(put, DONE());
    let counts = [&content.sent, &content.hashed].map(|count| count.load(Ordering::Relaxed));
    assert_eq!(counts, [3, 3]);
}
