//! HTTP as clients use it: old versions, unusual forms, several requests at once.
//!
//! Proves protocol 2.4 and 9.1 (docs/protocol.md), and that responses to pipelined requests keep their order.

use crate::support::larder::{blob, manifest};
use crate::support::{End, FakeRegistry, Larder, bytes};

const REPOSITORY: &str = "team/app";

#[test]
fn http_1_0_request_is_answered_and_the_connection_closed() {
    let registry = FakeRegistry::start();
    let content = bytes(5000, 1);
    let path = blob(REPOSITORY, &registry.add_blob(REPOSITORY, &content));
    let larder = Larder::start(&registry);
    for _ in ["cold", "warm"] {
        let mut connection = larder.connect();
        connection.send_raw(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes());
        let got = connection.read_response();
        assert!(got.status == 200 && got.complete && got.body == content, "{got:?}");
        assert_eq!(connection.eof(), End::Closed);
    }
}

#[test]
fn connection_close_is_honoured_after_the_last_byte() {
    let registry = FakeRegistry::start();
    let content = bytes(5000, 1);
    let path = blob(REPOSITORY, &registry.add_blob(REPOSITORY, &content));
    let larder = Larder::start(&registry);
    for _ in ["cold", "warm"] {
        let mut connection = larder.connect();
        let got = connection.request("GET", &path, &[("Connection", "close")]);
        assert!(got.complete && got.body == content, "{got:?}");
        assert_eq!(connection.eof(), End::Closed);
    }
}

#[test]
fn absolute_form_targets_are_accepted() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let larder = Larder::start(&registry);
    for origin in ["http://larder.local:8080", "http://127.0.0.1"] {
        let target = format!("{origin}{}", manifest(REPOSITORY, "v1"));
        assert!(larder.get(&target).body == image.manifest(), "{target}");
        let with_namespace = format!("{target}?ns={}", registry.host());
        assert!(larder.get(&with_namespace).body == image.manifest(), "{with_namespace}");
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let (registry, image) = FakeRegistry::with_image(REPOSITORY);
    let larder = Larder::start(&registry);
    let mut expected = vec![image.manifest()];
    let mut targets = vec![manifest(REPOSITORY, "v1")];
    for layer in image.layers() {
        targets.push(blob(REPOSITORY, &layer.digest));
        expected.push(layer.bytes);
    }
    let mut connection = larder.connect();
    let all: String =
        targets.iter().map(|target| format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n")).collect();
    connection.send_raw(all.as_bytes());
    for body in expected {
        assert!(connection.read_response().body == body);
    }
}

#[test]
fn ping_answers_as_every_client_expects() {
    let larder = Larder::start_alone(|_| {});
    for path in ["/v2/", "/v2"] {
        for method in ["GET", "HEAD"] {
            let got = larder.request(method, path, &[("Authorization", "Basic eDp5")]);
            assert_eq!((got.status, got.header("content-type")), (200, Some("application/json")));
            assert_eq!(got.header("content-length"), Some("2"), "{method} {path}");
            assert_eq!(got.header("www-authenticate"), None, "{method} {path}");
            assert_eq!(got.text(), if method == "GET" { "{}" } else { "" });
        }
    }
}

#[test]
fn oversized_request_heads_are_refused_cleanly() {
    let larder = Larder::start_alone(|_| {});
    for (length, status) in [(8 * 1024, 200), (20 * 1024, 431)] {
        let cookie = "x".repeat(length);
        let mut connection = larder.connect();
        let head = format!("GET /v2/ HTTP/1.1\r\nHost: x\r\nCookie: {cookie}\r\n\r\n");
        connection.send_raw(head.as_bytes());
        assert_eq!(connection.read_response().status, status, "{length}");
    }
    let target = format!("/v2/{}", "a/".repeat(6000));
    assert!(matches!(larder.get(&target).status, 414 | 431));
}
