//! Objects, lists, failures, and what a store does not support.

use std::fs;

use super::super::content::Hash;
use super::server::{Reply, Server, early, error, ok, with};
use super::*;
use crate::upstream::error::UpstreamErrorKind;

const MODIFIED: &str = "last-modified: Thu, 01 Jan 1970 00:00:10 GMT";

fn text_of(object: Object) -> String {
    let (mut reader, mut text) = (object.reader, String::new());
    reader.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_part_of_an_object() {
    let part = with(206, "content-range: bytes 2-4/10", "cde");
    let server = Server::start([part, ok("abcdefghij")]);
    let store = store_at(&server);
    let object = store.get("blobs/a b", 2, Some(5)).unwrap();
    assert_eq!((object.start, object.end, object.size), (2, Some(5), Some(10)));
    assert_eq!(text_of(object), "cde");
    let object = store.get("blobs/a b", 2, Some(5)).unwrap();
    assert_eq!((object.start, object.end, object.size), (0, None, Some(10)), "no ranges");
    let got = server.got();
    assert_eq!(got[0].line(), "GET /b/p/blobs/a%20b");
    assert_eq!(got[0].header("range"), Some("bytes=2-4"));
    assert_eq!(got[0].header("x-amz-content-sha256"), Some(&*Hash::of(b"").hex()));
    let authorization = got[0].header("authorization").unwrap();
    assert!(
        authorization.contains("SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,"),
        "{authorization}"
    );
}

#[test]
fn nothing_is_left_of_an_object() {
    let beyond = || error(416, "InvalidRange");
    let head = || with(200, &format!("{MODIFIED}\r\ncontent-length: 7"), "");
    let server = Server::start([beyond(), head(), beyond(), head()]);
    let store = store_at(&server);
    let object = store.get("k", 7, None).unwrap();
    assert_eq!((object.start, object.size), (7, Some(7)));
    assert_eq!(text_of(object), "");
    assert!(store.get("k", 8, None).is_err());
    assert_eq!(text_of(store.get("k", 3, Some(3)).unwrap()), "", "no request");
    assert_eq!(server.got().len(), 4);
}

#[test]
fn a_range_other_than_the_requested_one_is_refused() {
    for headers in ["content-range: bytes 3-5/10", "content-range: x", ""] {
        let server = Server::start([with(206, headers, "cde")]);
        let error = store_at(&server).get("k", 2, Some(5)).unwrap_err();
        assert!(matches!(error.kind(), UpstreamErrorKind::BadAnswer { .. }), "{error}");
    }
}

#[test]
fn size_time_and_etag() {
    let headers = format!("{MODIFIED}\r\netag: \"e\"\r\ncontent-length: 3");
    let answer = || with(200, &headers, "abc");
    let server = Server::start([answer(), answer(), answer(), with(200, "", "abc")]);
    let store = store_at(&server);
    let (etag, modified) = (Some("\"e\"".to_owned()), UNIX_EPOCH + Duration::from_secs(10));
    let head = ObjectHead { size: 3, etag: etag.clone(), modified };
    assert_eq!(store.head("k").unwrap(), head);
    let object = ReadObject { bytes: b"abc".to_vec(), etag, modified };
    assert_eq!(store.read("k", 3).unwrap(), object);
    assert!(store.read("k", 2).unwrap_err().to_string().contains("larger than 2 bytes"));
    // Without a time, it would seem to be old enough for removal.
    assert!(store.read("k", 3).unwrap_err().to_string().contains("Last-Modified"));
}

#[test]
fn only_the_store_can_say_that_an_object_is_missing() {
    for (reply, is_not_found) in [
        (error(404, "NoSuchKey"), true),
        (error(404, "NoSuchBucket"), false),
        (with(404, "", "<html>not here</html>"), false),
        (with(404, "", ""), false),
        (error(403, "AccessDenied"), false),
    ] {
        let server = Server::start([reply]);
        let error = store_at(&server).get("k", 0, None).unwrap_err();
        assert_eq!(error.is_not_found(), is_not_found, "{error}");
        assert!(!error.is_temporary(), "{error}");
    }
    let server = Server::start([with(404, "", "")]);
    assert!(store_at(&server).head("k").unwrap_err().is_not_found(), "HEAD has no body");
}

#[test]
fn both_hashes_are_sent() {
    let server = Server::start([with(200, "etag: \"e\"", ""), with(200, "", "")]);
    let store = store_at(&server);
    let done = Put::Done { etag: Some("\"e\"".into()) };
    assert_eq!(store.put("k", b"abc", Condition::None).unwrap(), done);
    // The known hash is not computed again.
    let content = Memory { sha256: Some([7; 32]), ..Memory::of(b"abc") };
    store.upload("k", &content, Condition::IfAbsent).unwrap();
    let got = server.got();
    let hash = Hash::of(b"abc");
    assert_eq!(got[0].header("x-amz-content-sha256"), Some(&*hash.hex()));
    assert_eq!(got[0].header("x-amz-checksum-sha256"), Some(&*hash.base64()));
    assert_eq!(got[0].header("if-none-match"), None);
    assert_eq!(got[1].header("x-amz-content-sha256"), Some(&*"07".repeat(32)));
    assert_eq!(got[1].header("if-none-match"), Some("*"));
    assert!(got.iter().all(|got| got.method == "PUT" && got.body == b"abc"));
}

#[test]
fn a_write_whose_condition_does_not_apply() {
    let matching = || Condition::IfMatch("\"e\"".into());
    for (reply, condition) in [
        (error(412, "PreconditionFailed"), Condition::IfAbsent),
        (error(409, "ConditionalRequestConflict"), Condition::IfAbsent),
        (error(412, "PreconditionFailed"), matching()),
        (error(404, "NoSuchKey"), matching()),
    ] {
        let server = Server::start([reply]);
        assert_eq!(store_at(&server).put("k", b"x", condition).unwrap(), Put::Exists);
        server.got();
    }
}

#[test]
fn large_content_is_sent_after_the_store_has_accepted_the_head() {
    let content: Vec<u8> = (0..1_000_000_u32).map(|at| (at % 251) as u8).collect();
    let server = Server::start([
        ok(""),
        early(error(412, "PreconditionFailed")),
        early(error(403, "AccessDenied")),
        ok(""),
    ]);
    let store = store(ObjectStoreSettings { part_bytes: 1 << 30, ..settings(&server.url) });
    let upload = |condition| store.upload("k", &Memory::of(&content), condition);
    assert_eq!(upload(Condition::None).unwrap(), Put::Done { etag: None });
    assert_eq!(upload(Condition::IfAbsent).unwrap(), Put::Exists);
    assert!(upload(Condition::None).unwrap_err().to_string().contains("do not allow"));
    // The connection of a refused request is not used again.
    assert_eq!(upload(Condition::None).unwrap(), Put::Done { etag: None });
    let got = server.got();
    assert!(got.iter().all(|got| got.header("expect") == Some("100-continue")));
    assert!(got[0].body == content && got[3].body == content);
}

#[test]
fn a_proxy_that_refuses_to_be_asked_before_a_large_body() {
    let content = vec![1; 100_000];
    let server = Server::start([early(with(417, "", "")), ok("")]);
    let store = store(ObjectStoreSettings { part_bytes: 1 << 30, ..settings(&server.url) });
    store.upload("k", &Memory::of(&content), Condition::None).unwrap();
    assert_eq!(server.got()[1].header("expect"), None);
}

#[test]
fn a_refusal_that_is_lost_with_the_connection_is_found_out() {
    // Three attempts, and one that is repeated since its connection might have been idle for too long.
    let lost = || (0..4).map(|_| Reply::Close);
    let content = vec![1; 1_000];
    let part = || with(206, "content-range: bytes 0-0/9", "x");
    let head = || with(200, &format!("{MODIFIED}\r\ncontent-length: 9"), "");
    let upload = |server: &Server, condition| {
        let store = store(ObjectStoreSettings { part_bytes: 1 << 30, ..settings(&server.url) });
        store.upload("k", &Memory::of(&content), condition)
    };
    let server = Server::start(lost().chain([part(), head()]));
    assert_eq!(upload(&server, Condition::IfAbsent).unwrap(), Put::Exists);
    server.got();
    let denied = error(403, "SignatureDoesNotMatch");
    let server = Server::start(lost().chain([denied]));
    let error = upload(&server, Condition::IfAbsent).unwrap_err().to_string();
    assert!(error.contains("secret access key"), "{error}");
    server.got();
    let server = Server::start(lost().chain([part()]));
    let error = upload(&server, Condition::None).unwrap_err();
    assert!(error.is_temporary() && error.to_string().contains("cannot be reached"), "{error}");
    server.got();
}

#[test]
fn refused_headers_are_left_out_from_then_on() {
    let refused = || error(501, "NotImplemented");
    let server = Server::start([
        refused(),
        refused(),
        // Without conditions, HEAD decides.
        with(404, "", ""),
        ok(""),
        with(200, MODIFIED, ""),
        with(200, MODIFIED, ""),
    ]);
    let store = store_at(&server);
    assert_eq!(store.put("k", b"x", Condition::IfAbsent).unwrap(), Put::Done { etag: None });
    assert_eq!(store.put("k", b"x", Condition::IfAbsent).unwrap(), Put::Exists);
    let matching = Condition::IfMatch("\"e\"".into());
    assert_eq!(store.put("k", b"x", matching).unwrap(), Put::Exists, "another ETag");
    let got = server.got();
    let sent = |name| got.iter().map(|got| got.header(name).is_some()).collect::<Vec<_>>();
    let lines: Vec<_> = got.iter().map(|got| &*got.method).collect();
    assert_eq!(lines, ["PUT", "PUT", "HEAD", "PUT", "HEAD", "HEAD"]);
    assert_eq!(sent("x-amz-checksum-sha256"), [true, false, false, false, false, false]);
    assert_eq!(sent("if-none-match"), [true, true, false, false, false, false]);
}

#[test]
fn a_refusal_for_another_reason_changes_nothing() {
    let refused = || error(501, "NotImplemented");
    let server = Server::start([refused(), refused(), ok("")]);
    let store = store_at(&server);
    assert!(store.put("k", b"x", Condition::None).is_err());
    store.put("k", b"x", Condition::None).unwrap();
    assert!(server.got()[2].header("x-amz-checksum-sha256").is_some());
}

#[test]
fn temporary_failures_are_repeated() {
    let slow = with(503, "retry-after: 0", "<Error><Code>SlowDown</Code></Error>");
    let server = Server::start([slow, error(500, "InternalError"), ok("abc")]);
    assert_eq!(text_of(store_at(&server).get("k", 0, None).unwrap()), "abc");
    assert_eq!(server.got().len(), 3);
    // An idle connection that the server has closed does not count.
    let server = Server::start([ok("a"), Reply::Close, Reply::Close, ok("abc")]);
    let store = store_at(&server);
    assert_eq!(text_of(store.get("k", 0, None).unwrap()), "a");
    store.put("k", b"abc", Condition::None).unwrap();
    let got = server.got();
    assert!(got[1..].iter().all(|got| got.body == b"abc"), "the body is sent again");
}

#[test]
fn failures_that_last_are_reported() {
    let server = Server::start((0..3).map(|_| error(503, "SlowDown")));
    let error = store_at(&server).get("k", 0, None).unwrap_err();
    assert!(error.is_temporary() && error.to_string().contains("limits the rate"), "{error}");
    assert_eq!(server.got().len(), 3);
    let server = Server::start([with(503, "retry-after: 3600", "")]);
    let error = store_at(&server).get("k", 0, None).unwrap_err();
    assert_eq!(error.retry_after(), Some(Duration::from_secs(3600)), "longer than is waited");
}

#[test]
fn errors_say_what_to_do() {
    let region = "<Error><Code>AuthorizationHeaderMalformed</Code><Message>m</Message>\
                  <Region>eu-central-1</Region></Error>";
    let redirect = "x-amz-bucket-region: eu-central-1\r\nlocation: http://127.0.0.1:1/";
    let endpoint = "<Error><Code>PermanentRedirect</Code><Message>m</Message>\
                    <Endpoint>b.example.com</Endpoint></Error>";
    let wrong_region = "objectStore.region is us-east-1, but the bucket is in eu-central-1";
    for (reply, words) in [
        (with(400, "", region), wrong_region),
        (with(301, redirect, ""), wrong_region),
        (with(301, "", endpoint), "the bucket is at b.example.com: set objectStore.endpoint"),
        (with(307, "location: http://127.0.0.1:1/", ""), "correct objectStore.endpoint"),
        (
            error(404, "NoSuchBucket"),
            "no bucket b: create it, or correct its name (objectStore.bucket, or the s3:// URL",
        ),
        (error(403, "QuotaExceeded"), "the bucket b is full"),
        (error(400, "XMinioStorageFull"), "the bucket b is full"),
        (error(400, "XMinioAdminBucketQuotaExceeded"), "the bucket b is full"),
        (error(403, "AccessDenied"), "the keys do not allow this (objectStore.accessKeyId)"),
        (error(403, "SignatureDoesNotMatch"), "the secret access key does not belong to"),
        (error(403, "InvalidAccessKeyId"), "does not know the access key id"),
        (error(400, "ExpiredToken"), "not valid any more"),
        (error(403, "RequestTimeTooSkewed"), "set the clock"),
        (error(400, "\u{202e}Odd"), "400 \\u{202e}Odd: the message"),
    ] {
        let server = Server::start([reply]);
        let error = store_at(&server).get("k", 0, None).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("/b/p/k: "), "{error}");
        assert!(!error.contains("hunter2") && !error.contains('\u{202e}'), "{error}");
        assert_eq!(server.got().len(), 1, "redirects are not followed, and nothing is repeated");
    }
}

#[test]
fn a_wrong_clock_is_corrected() {
    let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(3600));
    let skewed = "<Error><Code>RequestTimeTooSkewed</Code></Error>";
    let server = Server::start([
        with(403, &format!("date: {date}"), skewed),
        with(200, &format!("date: {date}"), "abc"),
        ok("abc"),
    ]);
    let store = store_at(&server);
    assert_eq!(text_of(store.get("k", 0, None).unwrap()), "abc");
    store.get("k", 0, None).unwrap();
    let got = server.got();
    let times: Vec<_> = got.iter().map(|got| got.header("x-amz-date").unwrap()).collect();
    assert!(times[0] < times[1] && times[1] <= times[2], "{times:?}");
}

#[test]
fn refused_keys_are_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("secret");
    fs::write(&path, "first").unwrap();
    let refused = || error(403, "SignatureDoesNotMatch");
    let server = Server::start([ok("a"), refused(), ok("b"), refused()]);
    let secret = SecretSource::File(path.clone());
    let fixed = FixedKeys { id: "KEYID".into(), secret, session_token: None };
    let keys = KeySettings { fixed: Some(fixed), ..KeySettings::default() };
    let store = store(ObjectStoreSettings { keys, ..settings(&server.url) });
    store.get("k", 0, None).unwrap();
    fs::write(&path, "second").unwrap();
    assert_eq!(text_of(store.get("k", 0, None).unwrap()), "b");
    assert!(store.get("k", 0, None).is_err(), "not again within a minute");
    assert_eq!(server.got().len(), 4);
}

#[test]
fn pages_of_a_list() {
    let page = |key: &str, rest: &str| {
        ok(&format!(
            "<ListBucketResult><EncodingType>url</EncodingType>{rest}<Contents><Key>{key}</Key>\
             <Size>1</Size><LastModified>1970-01-01T00:00:10Z</LastModified></Contents>\
             </ListBucketResult>"
        ))
    };
    let more = "<IsTruncated>true</IsTruncated>\
                <NextContinuationToken>t+/=</NextContinuationToken>";
    let server = Server::start([
        page("p/a/x%2B", more),
        page("p/a/y", ""),
        page("p/b", ""),
        page("p/a/y", more),
    ]);
    let store = store_at(&server);
    let first = store.list("a/", None).unwrap();
    let modified = UNIX_EPOCH + Duration::from_secs(10);
    assert_eq!(first.objects, [ListedObject { key: "a/x+".into(), size: 1, modified }]);
    let second = store.list("a/", first.next.as_deref()).unwrap();
    assert_eq!((second.objects[0].key.as_str(), second.next), ("a/y", None));
    assert!(store.list("a/", None).is_err(), "a key that was not requested");
    assert!(store.list("a/", Some("t+/=")).is_err(), "the same page forever");
    let query = "GET /b?encoding-type=url&list-type=2&max-keys=1000&prefix=p%2Fa%2F";
    let with_token = query.replace("?", "?continuation-token=t%2B%2F%3D&");
    assert_eq!(server.lines(), [query, &*with_token, query, &*with_token]);
}

#[test]
fn objects_are_deleted_together_or_one_by_one() {
    let keys = || ["a".to_owned(), "b&".to_owned()];
    let failed = "<DeleteResult><Error><Key>p/a</Key><Code>AccessDenied</Code></Error>\
                  </DeleteResult>";
    let server = Server::start([
        ok("<DeleteResult/>"),
        ok(failed),
        error(501, "NotImplemented"),
        with(204, "", ""),
        error(404, "NoSuchKey"),
        with(204, "", ""),
        with(204, "", ""),
        with(204, "", ""),
    ]);
    let store = store_at(&server);
    assert_eq!(store.delete(&keys()).unwrap(), 2);
    let error = store.delete(&keys()).unwrap_err().to_string();
    assert!(error.contains("the keys do not allow this"), "{error}");
    assert_eq!(store.delete(&keys()).unwrap(), 2, "one by one");
    assert_eq!(store.delete(&keys()).unwrap(), 2, "at once one by one");
    assert_eq!(store.delete(&["a".to_owned()]).unwrap(), 1);
    assert_eq!(store.delete(&[]).unwrap(), 0);
    let lines = server.lines();
    assert_eq!(lines[..3], ["POST /b?delete="; 3]);
    let singles = ["/b/p/a", "/b/p/b%26", "/b/p/a", "/b/p/b%26", "/b/p/a"];
    assert_eq!(lines[3..], singles.map(|path| format!("DELETE {path}")));
    let got = server.got();
    assert!(String::from_utf8_lossy(&got[0].body).contains("<Key>p/b&amp;</Key>"));
    let hash = Hash::of(&got[0].body);
    assert_eq!(got[0].header("x-amz-checksum-sha256"), Some(&*hash.base64()));
}

#[test]
fn a_probe_finds_out_what_is_checked() {
    let modified = |body: &str| with(200, MODIFIED, body);
    let content = "written by Larder to find out what this store supports: probe/n";
    let server = Server::start([
        with(204, "", ""),
        ok(""),
        modified(content),
        error(412, "PreconditionFailed"),
        error(400, "BadDigest"),
        ok(""),
        with(204, "", ""),
    ]);
    let probe = store_at(&server).probe("n");
    assert!(probe.error.is_none(), "{probe:?}");
    assert!(probe.is_readable && probe.is_writable && probe.has_create_if_absent, "{probe:?}");
    assert!(probe.verifies_checksum && !probe.verifies_content_hash, "{probe:?}");
    assert_eq!(probe.clock_skew, None);
    assert_eq!(server.lines().last().unwrap(), "DELETE /b/p/probe/n");
}

#[test]
fn a_probe_of_a_store_that_refuses_or_is_down() {
    let server = Server::start([
        with(
            403,
            "date: Thu, 01 Jan 2026 00:00:00 GMT",
            "<Error><Code>AccessDenied</Code></Error>",
        ),
        error(403, "AccessDenied"),
        error(404, "NoSuchKey"),
    ]);
    let probe = store_at(&server).probe("n");
    assert!(probe.error.unwrap().to_string().contains("do not allow"));
    assert!(probe.is_readable && !probe.is_writable && !probe.has_create_if_absent);
    assert!(probe.clock_skew.is_some());
    server.got();
    let refusing = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let probe = store(settings(&format!("http://{refusing}"))).probe("n");
    assert!(probe.error.unwrap().is_temporary() && !probe.is_readable);
}

#[test]
fn a_probe_leaves_out_what_is_refused() {
    let refused = || error(501, "NotImplemented");
    let content = "written by Larder to find out what this store supports: probe/n";
    let server = Server::start([
        with(204, "", ""),
        refused(),
        ok(""),
        with(200, MODIFIED, content),
        refused(),
        error(400, "XAmzContentSHA256Mismatch"),
        with(204, "", ""),
        with(404, "", ""),
        ok(""),
    ]);
    let store = store_at(&server);
    let probe = store.probe("n");
    assert!(probe.error.is_none() && probe.is_writable && probe.is_readable, "{probe:?}");
    assert!(!probe.has_create_if_absent && !probe.verifies_checksum, "{probe:?}");
    assert!(probe.verifies_content_hash);
    store.put("k", b"x", Condition::IfAbsent).unwrap();
    let got = server.got();
    let put = got.last().unwrap();
    assert!(put.header("if-none-match").is_none() && put.header("x-amz-checksum-sha256").is_none());
}

#[test]
fn nothing_prints_secrets() {
    let server = Server::start([ok("x")]);
    let public_endpoint = Some(Endpoint::new(Scheme::Https, "s3.example.com"));
    let store = store(ObjectStoreSettings { public_endpoint, ..settings(&server.url) });
    assert_eq!(store.url(), format!("{}/b/p/", server.url));
    assert_eq!(store.public_url(), "https://s3.example.com/b/p/");
    let text = format!("{:?} {:?}", store.settings(), store.client);
    assert!(text.contains("KEYID") && !text.contains("hunter2"), "{text}");
    assert_eq!(store.presigned_get("a b", Duration::from_secs(60)), None, "no keys yet");
    store.get("k", 0, None).unwrap();
    let url = store.presigned_get("a b", Duration::from_secs(60)).unwrap();
    assert!(url.starts_with("https://s3.example.com/b/p/a%20b?X-Amz-Algorithm="), "{url}");
    assert!(url.contains("&X-Amz-Expires=60&") && !url.contains("hunter2"), "{url}");
}
