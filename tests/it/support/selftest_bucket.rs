//! Tests of the fake bucket: the operations of S3, with a raw client that does not know S3.

use std::thread;
use std::time::{Duration, SystemTime};

use sha2::{Digest as _, Sha256};
use time::UtcDateTime;
use time::macros::format_description;

use super::bucket::{ACCESS_KEY, REGION};
use super::{Connection, FakeBucket, Operation, Response, base64, bytes, hex};

const MINUTE: Duration = Duration::from_secs(60);

/// `20250101T120000Z`.
pub(super) fn stamp(time: SystemTime) -> String {
    let format = format_description!("[year][month][day]T[hour][minute][second]Z");
    UtcDateTime::from(time).format(format).expect("a time")
}

/// The headers of a request with a signature that is only a hash.
pub(super) fn signed(bucket: &FakeBucket, body: &[u8]) -> Vec<(String, String)> {
    signed_with(bucket, body, ACCESS_KEY, bucket.clock())
}

fn signed_with(
    bucket: &FakeBucket,
    body: &[u8],
    key: &str,
    time: SystemTime,
) -> Vec<(String, String)> {
    let date = stamp(time);
    let names = "host;x-amz-checksum-algorithm;x-amz-checksum-mode;x-amz-checksum-sha256;\
                 x-amz-content-sha256;x-amz-date;x-amz-meta-color";
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={key}/{}/{REGION}/s3/aws4_request, SignedHeaders={names}, \
         Signature={}",
        &date[..8],
        "0a".repeat(32)
    );
    let mut headers = vec![
        ("Host", bucket.address().to_string()),
        ("x-amz-date", date),
        ("x-amz-content-sha256", hex(&Sha256::digest(body))),
        ("Authorization", authorization),
    ];
    if !body.is_empty() {
        headers.push(("Content-Length", body.len().to_string()));
    }
    headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Sends a request with this body. The additional headers replace those of the same name; an empty value removes one.
pub(super) fn send(
    connection: &mut Connection,
    bucket: &FakeBucket,
    (method, target): (&str, &str),
    extra: &[(&str, &str)],
    body: &[u8],
) {
    let mut headers = signed(bucket, body);
    headers.retain(|(name, _)| !extra.iter().any(|(other, _)| name.eq_ignore_ascii_case(other)));
    let headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let extra = extra.iter().copied().filter(|(_, value)| !value.is_empty());
    let headers: Vec<(&str, &str)> = headers.chain(extra).collect();
    connection.send(method, &format!("/larder-test{target}"), &headers);
    // The server may have closed the connection already.
    let _ = connection.try_send_raw(body);
}

pub(super) fn call(
    bucket: &FakeBucket,
    method: &str,
    target: &str,
    extra: &[(&str, &str)],
    body: &[u8],
) -> Response {
    let mut connection = Connection::open(bucket.address());
    send(&mut connection, bucket, (method, target), extra, body);
    connection.read_response()
}

pub(super) fn get(bucket: &FakeBucket, target: &str) -> Response {
    call(bucket, "GET", target, &[], b"")
}

pub(super) fn put(bucket: &FakeBucket, target: &str, body: &[u8]) -> Response {
    call(bucket, "PUT", target, &[("Content-Length", &body.len().to_string())], body)
}

/// The texts of all elements of this name.
pub(super) fn elements(response: &Response, name: &str) -> Vec<String> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let text = response.text();
    let pieces = text.split(open.as_str()).skip(1);
    pieces.filter_map(|piece| Some(piece.split_once(close.as_str())?.0.to_owned())).collect()
}

#[track_caller]
pub(super) fn assert_error(response: &Response, status: u16, code: &str) {
    assert_eq!((response.status, elements(response, "Code")), (status, vec![code.to_owned()]));
    assert!(response.text().contains("<RequestId>"), "{response:?}");
}

#[test]
fn object_is_stored_read_and_deleted() {
    let bucket = FakeBucket::start();
    let (content, modified) = (bytes(5000, 1), SystemTime::UNIX_EPOCH + 1000 * MINUTE);
    bucket.set_clock(modified);
    assert_error(&get(&bucket, "/a/b"), 404, "NoSuchKey");
    let headers = [("Content-Type", "text/plain"), ("x-amz-meta-color", "red")];
    let created = call(&bucket, "PUT", "/a/b", &headers, &content);
    assert_eq!((created.status, created.body.len()), (200, 0));
    bucket.advance(MINUTE);
    let got = get(&bucket, "/a/b");
    assert_eq!((got.status, &got.body), (200, &content));
    assert_eq!(got.header("etag"), created.header("etag"));
    assert_eq!(got.header("content-type"), Some("text/plain"));
    assert_eq!(got.header("x-amz-meta-color"), Some("red"));
    assert_eq!(got.header("last-modified"), Some("Thu, 01 Jan 1970 16:40:00 GMT"));
    assert_eq!(got.header("date"), Some("Thu, 01 Jan 1970 16:41:00 GMT"));
    assert!(got.header("x-amz-request-id").is_some());
    assert_eq!(got.header("docker-distribution-api-version"), None);
    let headed = call(&bucket, "HEAD", "/a/b", &[], b"");
    assert_eq!((headed.status, headed.header("content-length")), (200, Some("5000")));
    assert!(headed.body.is_empty() && headed.complete);
    let etag = got.header("etag").expect("an ETag");
    assert_eq!(call(&bucket, "GET", "/a/b", &[("If-None-Match", etag)], b"").status, 304);
    assert_eq!(call(&bucket, "HEAD", "/none", &[], b"").status, 404);
    assert_eq!((bucket.keys(), bucket.object("a/b")), (vec!["a/b".to_owned()], Some(content)));
    for _ in 0..2 {
        assert_eq!(call(&bucket, "DELETE", "/a/b", &[], b"").status, 204);
    }
    assert_eq!((bucket.keys().len(), bucket.count("*", "/larder-test/a/*")), (0, 7));
    assert_eq!(call(&bucket, "HEAD", "/", &[], b"").header("x-amz-bucket-region"), Some(REGION));
}

#[test]
fn encoded_paths_address_the_decoded_key() {
    let bucket = FakeBucket::start();
    assert_eq!(put(&bucket, "/refs/a%3Ab%20c%2Bd+e", b"x").status, 200);
    assert_eq!(bucket.keys(), ["refs/a:b c+d+e"]);
    assert_eq!(bucket.count("PUT", &FakeBucket::path("refs/a:b*")), 1);
    assert_eq!(bucket.count_of(Operation::PutObject, "refs/a:b*"), 1);
}

#[test]
fn ranges_follow_rfc_9110() {
    let bucket = FakeBucket::start();
    let content = bytes(2048, 2);
    bucket.put("blob", &content);
    let ask = |range| call(&bucket, "GET", "/blob", &[("Range", range)], b"");
    for (range, part) in
        [("bytes=500-1499", 500..1500), ("bytes=500-", 500..2048), ("bytes=-500", 1548..2048)]
    {
        let got = ask(range);
        let expected = format!("bytes {}-{}/2048", part.start, part.end - 1);
        assert_eq!((got.status, &got.body), (206, &content[part].to_vec()), "{range}");
        assert_eq!(got.header("content-range"), Some(expected.as_str()));
    }
    let beyond = ask("bytes=2048-");
    assert_error(&beyond, 416, "InvalidRange");
    assert_eq!(beyond.header("content-range"), Some("bytes */2048"));
}

#[test]
fn conditional_put_race_has_one_winner() {
    let bucket = FakeBucket::start();
    for round in 0..20 {
        let target = format!("/sweeps/{round}");
        let start = std::sync::Barrier::new(2);
        let create = |content: &[u8]| {
            start.wait();
            call(&bucket, "PUT", &target, &[("If-None-Match", "*")], content).status
        };
        let (first, second) = thread::scope(|scope| {
            let other = scope.spawn(|| create(b"second"));
            (create(b"first"), other.join().expect("a response"))
        });
        let expected = match (first, second) {
            (200, 412) => &b"first"[..],
            (412, 200) => b"second",
            other => panic!("{other:?}"),
        };
        assert_eq!(bucket.object(&target[1..]).as_deref(), Some(expected));
    }
}

#[test]
fn put_obeys_if_match_unless_preconditions_are_ignored() {
    let bucket = FakeBucket::start();
    let put_if = |name, value: &str| call(&bucket, "PUT", "/lock", &[(name, value)], b"new");
    assert_error(&put_if("If-Match", "\"old\""), 404, "NoSuchKey");
    bucket.put("lock", b"old");
    assert_error(&put_if("If-Match", "\"other\""), 412, "PreconditionFailed");
    assert_error(&put_if("If-None-Match", "*"), 412, "PreconditionFailed");
    let etag = bucket.stored("lock").expect("the object").etag;
    assert_eq!(put_if("If-Match", &etag).status, 200);
    assert_eq!(bucket.object("lock").as_deref(), Some(&b"new"[..]));
    bucket.ignore_preconditions(true);
    assert_eq!(put_if("If-None-Match", "*").status, 200);
}

#[test]
fn checksums_and_content_hashes_are_verified_unless_switched_off() {
    let bucket = FakeBucket::start();
    let (right, wrong) = (base64(&Sha256::digest(b"abc")), base64(&Sha256::digest(b"abd")));
    let sum = |value: &str| call(&bucket, "PUT", "/k", &[("x-amz-checksum-sha256", value)], b"abc");
    assert_eq!(sum(&right).header("x-amz-checksum-sha256"), Some(right.as_str()));
    let mode = [("x-amz-checksum-mode", "ENABLED")];
    let got = call(&bucket, "GET", "/k", &mode, b"");
    assert_eq!(got.header("x-amz-checksum-sha256"), Some(right.as_str()));
    assert_eq!(get(&bucket, "/k").header("x-amz-checksum-sha256"), None);
    assert_error(&sum(&wrong), 400, "BadDigest");
    bucket.verify_checksums(false);
    assert_eq!(sum(&wrong).status, 200);
    assert_eq!(bucket.stored("k").expect("the object").checksum, Some(wrong));

    let other = hex(&Sha256::digest(b"other"));
    let hash = |value: &str| call(&bucket, "PUT", "/k", &[("x-amz-content-sha256", value)], b"abc");
    assert_error(&hash(&other), 400, "XAmzContentSHA256Mismatch");
    assert_eq!(hash("UNSIGNED-PAYLOAD").status, 200);
    bucket.verify_content_hashes(false);
    assert_eq!(hash(&other).status, 200);
    let refused = bucket.take_refused();
    assert_eq!(
        refused,
        ["BadDigest: PUT /larder-test/k", "XAmzContentSHA256Mismatch: PUT /larder-test/k"]
    );
}

#[test]
fn listing_pages_cover_every_key_once() {
    let bucket = FakeBucket::start();
    let mut keys: Vec<String> = (0..25).map(|n| format!("blobs/{n:02}")).collect();
    keys.iter().for_each(|key| bucket.put(key, b"abc"));
    bucket.put("other/x", b"");
    bucket.page_size(4);
    let (mut seen, mut pages, mut next) = (Vec::new(), 0, String::new());
    loop {
        let page =
            get(&bucket, &format!("?list-type=2&prefix=blobs%2F&start-after=blobs%2F01{next}"));
        pages += 1;
        seen.extend(elements(&page, "Key"));
        assert_eq!(elements(&page, "KeyCount"), [elements(&page, "Key").len().to_string()]);
        assert!(elements(&page, "Size").iter().all(|size| size == "3"));
        match &elements(&page, "NextContinuationToken")[..] {
            [token] => next = format!("&continuation-token={token}"),
            _ => {
                assert_eq!(elements(&page, "IsTruncated"), ["false"]);
                break;
            }
        }
    }
    assert_eq!((seen, pages), (keys.split_off(2), 6));
    let two = get(&bucket, "/?list-type=2&max-keys=2");
    assert_eq!(elements(&two, "Key"), ["blobs/00", "blobs/01"]);
    let groups = get(&bucket, "?list-type=2&delimiter=/");
    assert_eq!(elements(&groups, "CommonPrefixes").len(), 2);
    assert_eq!(elements(&groups, "Key").len(), 0);
    assert_eq!(bucket.count_of(Operation::ListObjects, "*"), 8);
}

#[test]
fn listing_encodes_keys_and_can_be_stale() {
    let bucket = FakeBucket::start();
    for key in ["a&b", "c d:e", "old", "new"] {
        bucket.put(key, b"x");
    }
    assert_eq!(elements(&get(&bucket, "?list-type=2"), "Key")[..2], ["a&amp;b", "c d:e"]);
    let coded = get(&bucket, "?list-type=2&encoding-type=url");
    assert_eq!(elements(&coded, "Key")[..2], ["a%26b", "c+d%3Ae"]);
    bucket.hide_from_listings(&["new"]);
    bucket.keep_in_listings(&["old"]);
    bucket.remove("old");
    assert_eq!(elements(&get(&bucket, "?list-type=2"), "Key")[2..], ["old"]);
    assert_eq!((get(&bucket, "/new").status, get(&bucket, "/old").status), (200, 404));
    bucket.hide_from_listings(&[]);
    bucket.keep_in_listings(&[]);
    assert_eq!(elements(&get(&bucket, "?list-type=2"), "Key")[2..], ["new"]);
}

#[test]
fn batch_deletion_reports_keys_unless_quiet() {
    let bucket = FakeBucket::start();
    for key in ["a&b", "c", "locked", "d"] {
        bucket.put(key, b"x");
    }
    bucket.protect(&["locked"]);
    let delete = |body: &str| {
        call(&bucket, "POST", "/?delete", &[("Content-MD5", "unverified")], body.as_bytes())
    };
    let got = delete(
        "<Delete xmlns=\"x\"><Object><Key>a&amp;b</Key></Object><Object><Key>locked</Key></Object>\
         <Object><Key>missing</Key></Object></Delete>",
    );
    assert_eq!(elements(&got, "Key"), ["a&amp;b", "locked", "missing"]);
    assert_eq!((elements(&got, "Deleted").len(), elements(&got, "Error").len()), (2, 1));
    let quiet = "<Delete><Quiet>true</Quiet><Object><Key>c</Key></Object></Delete>";
    assert_eq!(elements(&delete(quiet), "Key").len(), 0);
    assert_eq!(bucket.keys(), ["d", "locked"]);
    assert_error(&call(&bucket, "DELETE", "/locked", &[], b""), 403, "AccessDenied");
    assert_eq!(bucket.take_refused().len(), 0);
    assert_error(&delete("<Delete></Delete>"), 400, "MalformedXML");
    assert_error(&call(&bucket, "POST", "/?delete", &[], quiet.as_bytes()), 400, "InvalidRequest");
    assert_eq!(bucket.take_refused().len(), 2);
}

/// Starts an upload with these parts. Returns the query `uploadId=…` and the `Part` elements.
fn upload(bucket: &FakeBucket, target: &str, parts: &[&[u8]]) -> (String, Vec<String>) {
    let created = call(bucket, "POST", &format!("{target}?uploads"), &[], b"");
    let query = format!("uploadId={}", elements(&created, "UploadId")[0]);
    let parts = parts.iter().zip(1..).map(|(part, number)| {
        let got = put(bucket, &format!("{target}?partNumber={number}&{query}"), part);
        let etag = got.header("etag").expect("an ETag").to_owned();
        format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>")
    });
    let parts = parts.collect();
    (query, parts)
}

fn completion(parts: &[String]) -> Vec<u8> {
    format!("<CompleteMultipartUpload>{}</CompleteMultipartUpload>", parts.concat()).into_bytes()
}

#[test]
fn multipart_upload_is_assembled_in_order() {
    let bucket = FakeBucket::start();
    bucket.minimum_part_size(3);
    let (query, parts) = upload(&bucket, "/big", &[b"abc", b"defg", b"h"]);
    assert_eq!(bucket.keys().len(), 0);
    let unfinished = bucket.uploads();
    assert_eq!((unfinished.len(), unfinished[0].parts.len()), (1, 3));
    bucket.page_size(2);
    let page = get(&bucket, &format!("/big?{query}"));
    assert_eq!(elements(&page, "Size"), ["3", "4"]);
    assert_eq!(elements(&page, "NextPartNumberMarker"), ["2"]);
    let page = get(&bucket, &format!("/big?{query}&part-number-marker=2"));
    assert_eq!(
        (elements(&page, "Size"), elements(&page, "IsTruncated")[0].as_str()),
        (vec!["1".to_owned()], "false")
    );

    let complete = |parts: &[String], extra: &[(&str, &str)]| {
        call(&bucket, "POST", &format!("/big?{query}"), extra, &completion(parts))
    };
    let mut swapped = parts.clone();
    swapped.swap(0, 1);
    assert_error(&complete(&swapped, &[]), 400, "InvalidPartOrder");
    let wrong = vec![parts[0].replace("<ETag>\"", "<ETag>\"0")];
    assert_error(&complete(&wrong, &[]), 400, "InvalidPart");
    assert_error(&complete(&[], &[]), 400, "MalformedXML");
    bucket.minimum_part_size(4);
    assert_error(&complete(&parts, &[]), 400, "EntityTooSmall");
    assert_eq!(bucket.take_refused().len(), 4);
    bucket.minimum_part_size(3);
    bucket.put("big", b"existing");
    assert_error(&complete(&parts, &[("If-None-Match", "*")]), 412, "PreconditionFailed");
    bucket.remove("big");
    let done = complete(&parts, &[("If-None-Match", "*")]);
    assert_eq!(done.status, 200, "{done:?}");
    assert_eq!(bucket.object("big").as_deref(), Some(&b"abcdefgh"[..]));
    let etag = bucket.stored("big").expect("the object").etag;
    assert!(etag.ends_with("-3\"") && bucket.uploads().is_empty());
    assert_error(&complete(&parts, &[]), 404, "NoSuchUpload");
}

#[test]
fn parts_have_checksums_if_the_upload_has() {
    let bucket = FakeBucket::start();
    let create = [("x-amz-checksum-algorithm", "SHA256")];
    let created = call(&bucket, "POST", "/k?uploads", &create, b"");
    let id = &elements(&created, "UploadId")[0];
    let target = format!("/k?partNumber=1&uploadId={id}");
    assert_error(&put(&bucket, &target, b"abc"), 400, "InvalidRequest");
    let sum = base64(&Sha256::digest(b"abc"));
    let part = call(&bucket, "PUT", &target, &[("x-amz-checksum-sha256", &sum)], b"abc");
    let etag = part.header("etag").expect("an ETag");
    let complete = |checksum: &str| {
        let part = format!("<PartNumber>1</PartNumber><ETag>{etag}</ETag>{checksum}");
        let body = completion(&[format!("<Part>{part}</Part>")]);
        call(&bucket, "POST", &format!("/k?uploadId={id}"), &[], &body)
    };
    assert_error(&complete(""), 400, "InvalidRequest");
    let done = complete(&format!("<ChecksumSHA256>{sum}</ChecksumSHA256>"));
    let whole = format!("{}-1", base64(&Sha256::digest(Sha256::digest(b"abc"))));
    assert_eq!(elements(&done, "ChecksumSHA256"), [whole]);
    assert_eq!(bucket.take_refused().len(), 2);
}

#[test]
fn unfinished_uploads_are_listed_and_aborted() {
    let bucket = FakeBucket::start();
    let long_ago = SystemTime::UNIX_EPOCH + 5 * MINUTE;
    let ids: Vec<String> =
        ["p/a", "p/a", "p/b", "q"].iter().map(|key| bucket.abandon_upload(key, long_ago)).collect();
    bucket.page_size(2);
    let page = get(&bucket, "/?uploads&prefix=p/");
    assert_eq!(elements(&page, "UploadId"), ids[..2]);
    assert_eq!(elements(&page, "Initiated")[0], "1970-01-01T00:05:00.000Z");
    let [key, id] =
        ["NextKeyMarker", "NextUploadIdMarker"].map(|name| elements(&page, name).remove(0));
    let target = format!("/?uploads&prefix=p/&key-marker={key}&upload-id-marker={id}");
    let page = get(&bucket, &target);
    assert_eq!(
        (elements(&page, "UploadId"), elements(&page, "NextKeyMarker").len()),
        (vec![ids[2].clone()], 0)
    );
    let target = format!("/p/b?uploadId={}", ids[2]);
    assert_eq!(call(&bucket, "DELETE", &target, &[], b"").status, 204);
    assert_error(&call(&bucket, "DELETE", &target, &[], b""), 404, "NoSuchUpload");
    assert_eq!(bucket.uploads().len(), 3);
    bucket.clear();
    assert_eq!(bucket.uploads().len(), 0);
}

#[test]
fn credentials_scope_and_time_are_checked() {
    let bucket = FakeBucket::start();
    bucket.put("k", b"x");
    let now = bucket.clock();
    let with = |key: &str, time: SystemTime, edit: &dyn Fn(&str) -> String| {
        let headers = signed_with(&bucket, b"", key, time);
        let authorization = edit(&headers[3].1);
        let date = headers[1].1.as_str();
        call(&bucket, "GET", "/k", &[("Authorization", &authorization), ("x-amz-date", date)], b"")
    };
    let same = |text: &str| text.to_owned();
    for time in [now, now + 14 * MINUTE, now - 14 * MINUTE] {
        assert_eq!(with(ACCESS_KEY, time, &same).status, 200);
    }
    assert_error(&with("other", now, &same), 403, "InvalidAccessKeyId");
    for time in [now + 16 * MINUTE, now - 16 * MINUTE] {
        assert_error(&with(ACCESS_KEY, time, &same), 403, "RequestTimeTooSkewed");
    }
    for (from, to, status, code) in [
        (REGION, "eu-west-1", 400, "AuthorizationHeaderMalformed"),
        ("0a0a", "0A0A", 400, "AuthorizationHeaderMalformed"),
        ("x-amz-date;", "", 403, "AccessDenied"),
        ("AWS4-HMAC-SHA256", "Basic", 403, "AccessDenied"),
    ] {
        let got = with(ACCESS_KEY, now, &|text: &str| text.replace(from, to));
        assert_error(&got, status, code);
    }
    assert_error(&call(&bucket, "GET", "/k", &[("Authorization", "")], b""), 403, "AccessDenied");
    bucket.set_clock(now + 20 * MINUTE);
    assert_error(&with(ACCESS_KEY, now, &same), 403, "RequestTimeTooSkewed");
    bucket.accept_key("rotated");
    assert_error(&with(ACCESS_KEY, now + 20 * MINUTE, &same), 403, "InvalidAccessKeyId");
    assert_eq!(bucket.take_refused().len(), 10);
}

#[test]
fn presigned_url_needs_no_header_and_expires() {
    let bucket = FakeBucket::start();
    bucket.put("k", b"x");
    let date = stamp(bucket.clock());
    let credential = format!("{ACCESS_KEY}%2F{}%2F{REGION}%2Fs3%2Faws4_request", &date[..8]);
    let target = format!(
        "/larder-test/k?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={credential}&\
         X-Amz-Date={date}&X-Amz-Expires=60&X-Amz-SignedHeaders=host&X-Amz-Signature={}",
        "0a".repeat(32)
    );
    assert_eq!(super::client::get(bucket.address(), &target).body, b"x");
    bucket.advance(2 * MINUTE);
    assert_error(&super::client::get(bucket.address(), &target), 403, "AccessDenied");
    bucket.expect_refusals();
}
