//! Tests of the fake bucket: faults, switches and records.

use std::io::ErrorKind;

use super::selftest::panic_of;
use super::selftest_bucket::{assert_error, call, elements, get, put, send};
use super::{Connection, End, FakeBucket, Fault, Gate, On, Operation, bytes};

/// A bucket with an object `k` of 100,000 bytes.
fn bucket_with_object() -> (FakeBucket, Vec<u8>) {
    let bucket = FakeBucket::start();
    let content = bytes(100_000, 1);
    bucket.put("k", &content);
    (bucket, content)
}

#[test]
fn fault_applies_to_the_selected_operation_and_key() {
    let (bucket, _) = bucket_with_object();
    bucket.fault(On::s3(Operation::GetObject, "k*").after(1).times(2), Fault::slow_down());
    let statuses: Vec<u16> = (0..4).map(|_| get(&bucket, "/k").status).collect();
    assert_eq!(statuses, [200, 503, 503, 200]);
    bucket.fault(On::s3(Operation::ListObjects, "*"), Fault::s3_error(500, "InternalError"));
    assert_error(&get(&bucket, "?list-type=2"), 500, "InternalError");
    assert_eq!((get(&bucket, "/?uploads").status, get(&bucket, "/k").status), (200, 200));
    bucket.fault(On::path("GET", "/larder-test/k").times(1), Fault::no_such_key());
    assert_error(&get(&bucket, "/k"), 404, "NoSuchKey");
    bucket.clear_faults();
    assert_eq!(get(&bucket, "?list-type=2").status, 200);
}

#[test]
fn fault_instead_of_a_response_prevents_the_effect_unless_performed() {
    let bucket = FakeBucket::start();
    let fault = |fault| bucket.fault(On::s3(Operation::PutObject, "k").times(1), fault);
    let try_put = || {
        let mut connection = Connection::open(bucket.address());
        send(&mut connection, &bucket, ("PUT", "/k"), &[("If-None-Match", "*")], b"abc");
        connection.try_read_head().map(|head| head.status)
    };
    for (kind, status) in [
        (Fault::s3_error(507, "InsufficientStorage"), Some(507)),
        (Fault::s3_error_in_200("InternalError"), Some(200)),
        (Fault::CloseBeforeHead, None),
        (Fault::ResetBeforeHead, None),
        (Fault::CutRequest(2), None),
    ] {
        fault(kind);
        assert_eq!((try_put(), bucket.object("k")), (status, None));
    }
    fault(Fault::response_lost());
    assert_eq!((try_put(), bucket.object("k")), (None, Some(b"abc".to_vec())));
    assert_eq!(try_put(), Some(412));
}

#[test]
fn damaged_and_interrupted_bodies_differ_from_the_object() {
    let (bucket, content) = bucket_with_object();
    let spoiled = |fault| {
        bucket.fault(On::s3(Operation::GetObject, "k").times(1), fault);
        get(&bucket, "/k")
    };
    let flipped = spoiled(Fault::WrongBytes);
    assert_eq!(flipped.body.iter().zip(&content).filter(|(a, b)| a != b).count(), 1);
    assert_eq!(flipped.header("etag"), get(&bucket, "/k").header("etag"));
    let short = spoiled(Fault::Truncate(10));
    assert_eq!((short.body.as_slice(), short.complete), (&content[..10], true));
    for (fault, end) in [(Fault::CutAfter(100), End::Closed), (Fault::ResetAfter(100), End::Reset)]
    {
        let got = spoiled(fault);
        assert_eq!((got.body.as_slice(), got.complete, got.end), (&content[..100], false, end));
    }
    let before = bucket.stored("k").expect("the object");
    bucket.corrupt("k");
    let after = bucket.stored("k").expect("the object");
    assert_eq!((&before.etag, &before.checksum), (&after.etag, &after.checksum));
    assert!(before.bytes != after.bytes && get(&bucket, "/k").body == after.bytes);
}

#[test]
fn gates_hold_responses_and_uploads() {
    let (bucket, content) = bucket_with_object();
    let (before, within) = (Gate::new(), Gate::new());
    bucket.fault(
        On::s3(Operation::GetObject, "k"),
        Fault::All(vec![Fault::Gate(before.clone()), Fault::GateAfter(1000, within.clone())]),
    );
    let mut connection = Connection::open(bucket.address());
    send(&mut connection, &bucket, ("GET", "/k"), &[], b"");
    before.wait_until_reached(1);
    assert_eq!(bucket.body_bytes_sent(), 0);
    before.open();
    connection.read_head();
    assert_eq!(connection.read_body(1000), content[..1000]);
    within.wait_until_reached(1);
    within.open();
    assert!(connection.read_to_end() == (content[1000..].to_vec(), true));

    // The same for a request body: the object does not exist before the gate opens.
    let upload = Gate::new();
    bucket.fault(On::s3(Operation::PutObject, "new"), Fault::GateRequest(3, upload.clone()));
    send(&mut connection, &bucket, ("PUT", "/new"), &[], b"abcdef");
    upload.wait_until_reached(1);
    assert_eq!((bucket.object("new"), bucket.count_of(Operation::PutObject, "new")), (None, 1));
    upload.open();
    assert_eq!(connection.read_response().status, 200);
    assert_eq!(bucket.wait_for_object("new"), b"abcdef");
    assert_eq!(bucket.wait_for(Operation::PutObject, "new", 1)[0].body, b"abcdef");
}

#[test]
fn stopped_bucket_refuses_connections_and_restarts_on_its_port() {
    let (bucket, content) = bucket_with_object();
    let mut connection = Connection::open(bucket.address());
    send(&mut connection, &bucket, ("GET", "/k"), &[], b"");
    assert!(connection.read_response().body == content);
    bucket.down();
    assert_ne!(connection.eof(), End::Open);
    let refused = Connection::try_open(bucket.address()).err().map(|error| error.kind());
    assert_eq!(refused, Some(ErrorKind::ConnectionRefused));
    bucket.up();
    assert!(get(&bucket, "/k").body == content);
}

#[test]
fn dropping_the_bucket_ends_stalls_and_open_gates() {
    let (bucket, _) = bucket_with_object();
    let forgotten = Gate::new();
    for fault in [
        Fault::StallForever,
        Fault::StallAfter(10),
        Fault::Performed(Box::new(Fault::Gate(forgotten.clone()))),
        Fault::GateRequest(0, forgotten.clone()),
    ] {
        bucket.fault(On::s3(Operation::GetObject, "k").times(1), fault);
    }
    let mut waiting: Vec<Connection> = Vec::new();
    for n in 1..=4 {
        let mut connection = Connection::open(bucket.address());
        send(&mut connection, &bucket, ("GET", "/k"), &[], b"");
        bucket.wait_for(Operation::GetObject, "k", n);
        waiting.push(connection);
    }
    forgotten.wait_until_reached(2);
    drop(bucket);
    drop(waiting);
}

#[test]
fn full_bucket_and_denied_writes_leave_reads_alone() {
    let (bucket, content) = bucket_with_object();
    bucket.full(true);
    assert_error(&put(&bucket, "/new", b"x"), 507, "InsufficientStorage");
    assert_error(&call(&bucket, "POST", "/new?uploads", &[], b""), 507, "InsufficientStorage");
    bucket.put("other", b"x");
    assert_eq!(call(&bucket, "DELETE", "/other", &[], b"").status, 204);
    bucket.full(false);
    bucket.deny_writes(true);
    assert_error(&put(&bucket, "/new", b"x"), 403, "AccessDenied");
    assert_error(&call(&bucket, "DELETE", "/k", &[], b""), 403, "AccessDenied");
    assert!(get(&bucket, "/k").body == content);
    bucket.deny_writes(false);
    assert_eq!(put(&bucket, "/new", b"").status, 200);
}

#[test]
fn client_that_waits_for_permission_is_refused_before_its_body() {
    let (bucket, _) = bucket_with_object();
    let ask = |target, extra: &[(&str, &str)]| {
        let mut connection = Connection::open(bucket.address());
        let length = [("Content-Length", "3"), ("Expect", "100-continue")];
        let hash = [("x-amz-content-sha256", "UNSIGNED-PAYLOAD")];
        let extra = [&length, &hash[..], extra].concat();
        send(&mut connection, &bucket, ("PUT", target), &extra, b"");
        (connection.read_head().status, connection)
    };
    let (status, mut connection) = ask("/new", &[]);
    assert_eq!(status, 100);
    connection.send_raw(b"abc");
    assert_eq!(connection.read_response().status, 200);
    assert_eq!(ask("/k", &[("If-None-Match", "*")]).0, 412);
    bucket.fault(On::s3(Operation::PutObject, "*").times(1), Fault::slow_down());
    assert_eq!(ask("/new", &[]).0, 503);
    assert_eq!(ask("/new", &[("Authorization", "")]).0, 403);
    assert_eq!(bucket.take_refused().len(), 1);
}

#[test]
fn faulty_request_fails_the_test_unless_expected() {
    let bucket = FakeBucket::start();
    assert_error(&get(&bucket, "/k?acl"), 501, "NotImplemented");
    let text = panic_of(|| drop(bucket));
    assert!(text.contains("NotImplemented: GET /larder-test/k?acl"), "{text}");

    let bucket = FakeBucket::start();
    bucket.expect_refusals();
    for (method, target, extra, status, code) in [
        ("GET", "2/k", None, 404, "NoSuchBucket"),
        ("PATCH", "/k", None, 501, "NotImplemented"),
        ("PUT", "/k", None, 411, "MissingContentLength"),
        ("PUT", "/k", Some(("Transfer-Encoding", "chunked")), 501, "NotImplemented"),
        ("PUT", "/k", Some(("Content-Length", "9000000000")), 400, "EntityTooLarge"),
        ("GET", "?list-type=1", None, 400, "InvalidArgument"),
        ("GET", "?list-type=2&max-keys=x", None, 400, "InvalidArgument"),
        ("GET", "?list-type=2&continuation-token=x", None, 400, "InvalidArgument"),
    ] {
        let extra: Vec<(&str, &str)> = extra.into_iter().collect();
        assert_error(&call(&bucket, method, target, &extra, b""), status, code);
    }
    assert_eq!(elements(&get(&bucket, "/k"), "Code"), ["NoSuchKey"]);
}
