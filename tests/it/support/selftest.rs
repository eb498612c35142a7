//! Tests of the fake registry and the raw client against each other: with a wrong harness, all other tests would be
//! worthless.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use super::client::{get, head, request};
use super::{
    Connection, End, FakeRegistry, Fault, Gate, Image, Index, On, TokenAnswer, TokenServer,
    absent_digest, base64, bytes, digest_of, media_type, sha512_of,
};

pub(super) const REPOSITORY: &str = "library/alpine";

pub(super) fn blob_path(digest: &str) -> String {
    format!("/v2/{REPOSITORY}/blobs/{digest}")
}

fn manifest_path(reference: &str) -> String {
    format!("/v2/{REPOSITORY}/manifests/{reference}")
}

/// A registry with one blob of 100,000 bytes, and that blob.
pub(super) fn registry_with_blob() -> (FakeRegistry, Vec<u8>, String) {
    let registry = FakeRegistry::start();
    let blob = bytes(100_000, 1);
    let digest = registry.add_blob(REPOSITORY, &blob);
    (registry, blob, digest)
}

/// The message of a panic.
pub(super) fn panic_of(action: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(action)).expect_err("a panic was expected");
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(other) => (*other.downcast::<&str>().expect("a panic with a message")).to_owned(),
    }
}

#[test]
fn helpers_return_known_values() {
    let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    assert_eq!(digest_of(b""), format!("sha256:{empty}"));
    assert_eq!(sha512_of(b"").len(), "sha512:".len() + 128);
    assert_eq!(bytes(10, 3), bytes(20, 3)[..10]);
    assert_ne!(bytes(10, 3), bytes(10, 4));
    for (plain, coded) in [("", ""), ("a", "YQ=="), ("ab", "YWI="), ("abc", "YWJj")] {
        assert_eq!(base64(plain.as_bytes()), coded);
    }
}

#[test]
fn image_is_served_by_tag_and_digest_to_get_and_head() {
    let registry = FakeRegistry::start();
    let image = Image::sample("v1");
    let digest = registry.add(REPOSITORY, "v1", &image);
    for reference in ["v1", &digest] {
        let got = get(registry.address(), &manifest_path(reference));
        assert_eq!((got.status, got.complete, &got.body), (200, true, &image.manifest()));
        let headed = head(registry.address(), &manifest_path(reference));
        assert_eq!(headed.headers, got.headers);
        assert_eq!(headed.header("docker-content-digest"), Some(digest.as_str()));
        assert_eq!(headed.header("content-type"), Some(media_type::OCI_MANIFEST));
        assert!(headed.body.is_empty() && headed.complete);
    }
    for blob in image.layers().iter().chain([&image.config()]) {
        assert_eq!(get(registry.address(), &blob_path(&blob.digest)).body, blob.bytes);
    }
}

#[test]
fn index_publishes_its_children_and_sha512_is_supported() {
    let registry = FakeRegistry::start();
    let child = Image::sample("v1").docker().sha512();
    let index = Index::new().image(&child).docker();
    registry.add(REPOSITORY, "v1", &index);
    let got = get(registry.address(), &manifest_path("v1"));
    assert_eq!(got.header("content-type"), Some(media_type::DOCKER_LIST));
    let named = got.json()["manifests"][0]["digest"].as_str().expect("a digest").to_owned();
    let got = get(registry.address(), &manifest_path(&named));
    assert_eq!(got.header("content-type"), Some(media_type::DOCKER_MANIFEST));
    assert_eq!((sha512_of(&got.body), named.as_str()), (named.clone(), child.digest().as_str()));
    let layer = &child.layers()[0];
    assert!(layer.digest.starts_with("sha512:"));
    assert_eq!(get(registry.address(), &blob_path(&layer.digest)).body, layer.bytes);
}

#[test]
fn requests_are_recorded_in_full_and_in_order() {
    let (registry, _, digest) = registry_with_blob();
    let mut connection = Connection::open(registry.address());
    connection.request("HEAD", &blob_path(&digest), &[("X-Test", "one"), ("x-test", "two")]);
    connection.get("/v2/?a=b%20c");
    let requests = registry.wait_for("*", "/v2/*", 2);
    assert_eq!(requests[0].headers_named("X-TEST"), ["one", "two"]);
    assert_eq!(requests[1].query_value("a").as_deref(), Some("b c"));
    assert!(requests[0].sequence < requests[1].sequence);
    assert_eq!(requests[0].connection, requests[1].connection);
    assert_eq!(registry.count("HEAD", &blob_path(&digest)), 1);
    assert_eq!(registry.count("GET", &blob_path(&digest)), 0);
    assert_eq!(registry.count("*", "/v2/*/blobs/*"), 1);
    assert_eq!(registry.connection_count(), 1);
}

#[test]
fn unscripted_request_fails_the_test_unless_expected() {
    let unknown = manifest_path("nowhere");
    let registry = FakeRegistry::start();
    assert_eq!(get(registry.address(), &unknown).error_code(), "MANIFEST_UNKNOWN");
    let text = panic_of(|| drop(registry));
    assert!(text.contains(&format!("GET {unknown}")), "{text}");

    let registry = FakeRegistry::start();
    registry.expect_unknown(&unknown);
    registry.expect_unknown("/v2/*/blobs/*");
    assert_eq!(get(registry.address(), &unknown).status, 404);
    assert_eq!(get(registry.address(), &blob_path(&absent_digest(1))).status, 404);
    registry.fault(On::tags("other"), Fault::status(503));
    assert_eq!(get(registry.address(), "/v2/other/tags/list").status, 503);
}

#[test]
fn unscripted_method_fails_the_test() {
    let registry = FakeRegistry::start();
    assert_eq!(request(registry.address(), "DELETE", "/v2/", &[]).status, 405);
    assert_eq!(registry.take_unscripted(), ["DELETE /v2/"]);
}

#[test]
fn ranges_follow_rfc_9110() {
    let registry = FakeRegistry::start();
    let blob = bytes(2048, 2);
    let digest = registry.add_blob(REPOSITORY, &blob);
    let ask = |range| request(registry.address(), "GET", &blob_path(&digest), &[("Range", range)]);
    for (range, part) in [
        ("bytes=500-1499", 500..1500),
        ("bytes=500-", 500..2048),
        ("bytes=-500", 1548..2048),
        ("bytes=2000-5000", 2000..2048),
    ] {
        let got = ask(range);
        let content_range = format!("bytes {}-{}/2048", part.start, part.end - 1);
        assert_eq!((got.status, &got.body), (206, &blob[part].to_vec()), "{range}");
        assert_eq!(got.header("content-range"), Some(content_range.as_str()));
    }
    for range in ["bytes=500-0", "bytes=5000-10000", "bytes=2048-"] {
        let got = ask(range);
        assert_eq!((got.status, got.header("content-range")), (416, Some("bytes */2048")));
    }
    for range in ["bytes=0-1,5-6", "lines=1-2", "bytes=a-b"] {
        assert_eq!(ask(range).body, blob, "{range}");
    }
}

#[test]
fn tags_are_paginated_by_relative_links() {
    let registry = FakeRegistry::start();
    let image = Image::sample("v1");
    for tag in ["b", "d", "a", "c", "e"] {
        registry.add(REPOSITORY, tag, &image);
    }
    let mut target = format!("/v2/{REPOSITORY}/tags/list?n=2");
    let mut seen = Vec::new();
    loop {
        let page = get(registry.address(), &target);
        let tags = page.json()["tags"].as_array().expect("a list").clone();
        seen.extend(tags.iter().map(|tag| tag.as_str().expect("a text").to_owned()));
        let Some(link) = page.header("link") else { break };
        let (next, rest) = link[1..].split_once('>').expect("a link in brackets");
        assert_eq!(rest, "; rel=\"next\"");
        target = next.to_owned();
    }
    assert_eq!(seen, ["a", "b", "c", "d", "e"]);
    let none = get(registry.address(), &format!("/v2/{REPOSITORY}/tags/list?n=0"));
    assert_eq!(
        (none.json()["tags"].as_array().map(Vec::len), none.header("link")),
        (Some(0), None)
    );
}

#[test]
fn referrers_are_listed_and_filtered_when_enabled() {
    let registry = FakeRegistry::start();
    let image = Image::sample("v1");
    let subject = registry.add(REPOSITORY, "v1", &image);
    let signature = Image::new("signature").artifact_type("a/sig").subject(image.descriptor());
    let bill = Image::new("bill").artifact_type("a/sbom").subject(image.descriptor());
    registry.add_untagged(REPOSITORY, &signature);
    registry.add_untagged(REPOSITORY, &bill);
    let path = format!("/v2/{REPOSITORY}/referrers/{subject}");
    assert_eq!(get(registry.address(), &path).status, 404);
    assert_eq!(registry.take_unscripted().len(), 1);
    registry.enable_referrers();
    let all = get(registry.address(), &path);
    assert_eq!(all.header("content-type"), Some(media_type::OCI_INDEX));
    assert_eq!(all.json()["manifests"].as_array().map(Vec::len), Some(2));
    let some = get(registry.address(), &format!("{path}?artifactType=a/sig"));
    assert_eq!(some.json()["manifests"][0]["digest"], signature.digest());
    assert_eq!(some.header("oci-filters-applied"), Some("artifactType"));
}

#[test]
fn fault_applies_to_the_selected_requests_only() {
    let (registry, blob, digest) = registry_with_blob();
    let on = On::get_blob(&digest).without_header("range").after(1).times(2);
    registry.fault(on, Fault::status(503));
    let path = blob_path(&digest);
    let statuses: Vec<u16> = (0..4).map(|_| get(registry.address(), &path).status).collect();
    assert_eq!(statuses, [200, 503, 503, 200]);
    registry.fault(On::get_blob(&digest).with_header("range"), Fault::IgnoreRange);
    let got = request(registry.address(), "GET", &path, &[("Range", "bytes=5-")]);
    assert_eq!((got.status, got.body), (200, blob));
}

#[test]
fn every_kind_of_interruption_differs_from_a_complete_response() {
    let (registry, blob, digest) = registry_with_blob();
    let path = blob_path(&digest);
    for (fault, end) in [(Fault::CutAfter(100), End::Closed), (Fault::ResetAfter(100), End::Reset)]
    {
        registry.fault(On::get_blob(&digest).times(1), fault);
        let got = get(registry.address(), &path);
        assert_eq!((got.status, got.complete, got.end), (200, false, end));
        assert_eq!(
            (got.body.as_slice(), got.header("content-length")),
            (&blob[..100], Some("100000"))
        );
    }
    for (fault, end) in
        [(Fault::CloseBeforeHead, End::Closed), (Fault::ResetBeforeHead, End::Reset)]
    {
        registry.fault(On::get_blob(&digest).times(1), fault);
        let mut connection = Connection::open(registry.address());
        connection.send("GET", &path, &[]);
        assert_eq!(connection.eof(), end);
    }
    let cut_chunks = Fault::All(vec![Fault::NoContentLength, Fault::CutAfter(20_000)]);
    registry.fault(On::get_blob(&digest).times(1), cut_chunks);
    let got = get(registry.address(), &path);
    assert_eq!((got.complete, got.body.len()), (false, 20_000));
    assert_eq!(registry.count("GET", &path), 5);
}

#[test]
fn every_framing_carries_the_complete_body() {
    let (registry, blob, digest) = registry_with_blob();
    let path = blob_path(&digest);
    for fault in [Fault::NoContentLength, Fault::CloseDelimited] {
        registry.fault(On::get_blob(&digest).times(1), fault);
        let got = get(registry.address(), &path);
        assert_eq!((got.header("content-length"), got.complete), (None, true));
        assert!(got.body == blob);
    }
    // After a chunked response the connection is usable for another request.
    registry.fault(On::get_blob(&digest).times(1), Fault::NoContentLength);
    let mut connection = Connection::open(registry.address());
    assert!(connection.get(&path).body == blob);
    assert!(connection.get(&path).body == blob);
}

#[test]
fn corrupted_bodies_and_heads_match_their_names() {
    let (registry, blob, digest) = registry_with_blob();
    let spoiled = |fault| {
        registry.fault(On::get_blob(&digest).times(1), fault);
        get(registry.address(), &blob_path(&digest))
    };
    let flipped = spoiled(Fault::WrongBytes);
    assert_eq!(flipped.body.iter().zip(&blob).filter(|(a, b)| a != b).count(), 1);
    assert_eq!((flipped.body.len(), flipped.complete), (blob.len(), true));
    assert_eq!(spoiled(Fault::TooLong(3)).body.len(), blob.len() + 3);
    let short = spoiled(Fault::Truncate(10));
    assert_eq!((short.body.as_slice(), short.complete), (&blob[..10], true));
    assert_eq!(spoiled(Fault::NoDigestHeader).header("docker-content-digest"), None);
    let wrong = spoiled(Fault::WrongDigestHeader);
    assert_ne!(wrong.header("docker-content-digest"), Some(digest.as_str()));
    let coded = spoiled(Fault::ContentEncoding("gzip".to_owned()));
    assert_eq!(coded.header("content-encoding"), Some("gzip"));
    assert!(spoiled(Fault::Html200).text().contains("Sign in"));
    assert_eq!(
        spoiled(Fault::content_type("text/plain")).header("content-type"),
        Some("text/plain")
    );
    assert_eq!(spoiled(Fault::extra_header("Warning", "299")).header("warning"), Some("299"));
    let limited = spoiled(Fault::rate_limited(7));
    assert_eq!((limited.status, limited.header("retry-after")), (429, Some("7")));
    let elsewhere = spoiled(Fault::redirect_to("/elsewhere"));
    assert_eq!((elsewhere.status, elsewhere.header("location")), (307, Some("/elsewhere")));
    assert_eq!(spoiled(Fault::Raw(b"HTTP/1.1 299 Odd\r\n\r\nx".to_vec())).status, 299);
}

#[test]
fn head_can_be_refused_while_get_works() {
    let (registry, _, digest) = registry_with_blob();
    registry.fault(On::any_blob(), Fault::HeadNotAllowed);
    assert_eq!(head(registry.address(), &blob_path(&digest)).status, 405);
    assert_eq!(get(registry.address(), &blob_path(&digest)).status, 200);
}

#[test]
fn gate_holds_requests_until_the_test_opens_it() {
    let (registry, blob, digest) = registry_with_blob();
    let (before, within) = (Gate::new(), Gate::new());
    registry.fault(
        On::get_blob(&digest),
        Fault::All(vec![Fault::Gate(before.clone()), Fault::GateAfter(1000, within.clone())]),
    );
    let mut connections: Vec<Connection> =
        (0..3).map(|_| Connection::open(registry.address())).collect();
    connections.iter_mut().for_each(|c| c.send("GET", &blob_path(&digest), &[]));
    before.wait_until_reached(3);
    assert_eq!((registry.body_bytes_sent(), within.reached()), (0, 0));
    before.open();
    for connection in &mut connections {
        assert_eq!(connection.read_head().content_length(), Some(100_000));
        assert_eq!(connection.read_body(1000), blob[..1000]);
    }
    within.wait_until_reached(3);
    assert_eq!(registry.body_bytes_sent(), 3000);
    within.open();
    for connection in &mut connections {
        let (rest, complete) = connection.read_to_end();
        assert!(complete && rest == blob[1000..]);
    }
}

#[test]
fn dropping_the_registry_ends_stalls_and_open_gates() {
    let (registry, _, digest) = registry_with_blob();
    registry.fault(On::get_blob(&digest).times(1), Fault::StallForever);
    registry.fault(On::get_blob(&digest).times(1), Fault::StallAfter(10));
    let forgotten = Gate::new();
    registry.fault(On::get_blob(&digest).times(1), Fault::Gate(forgotten.clone()));
    let waiting: Vec<Connection> = (1..=3)
        .map(|n| {
            let mut connection = Connection::open(registry.address());
            connection.send("GET", &blob_path(&digest), &[]);
            registry.wait_for("GET", "/v2/*", n);
            connection
        })
        .collect();
    forgotten.wait_until_reached(1);
    drop(registry);
    drop(waiting);
}

#[test]
fn stopped_registry_refuses_connections_and_restarts_on_its_port() {
    let (registry, blob, digest) = registry_with_blob();
    let mut connection = Connection::open(registry.address());
    connection.get("/v2/");
    registry.stop();
    assert_ne!(connection.eof(), End::Open);
    let refused = Connection::try_open(registry.address()).err().map(|error| error.kind());
    assert_eq!(refused, Some(std::io::ErrorKind::ConnectionRefused));
    registry.start_again();
    assert!(get(registry.address(), &blob_path(&digest)).body == blob);
}

#[test]
fn wait_for_sees_later_requests() {
    let registry = FakeRegistry::start();
    let address = registry.address();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| registry.wait_for("GET", "/v2/", 1).len());
        get(address, "/v2/");
        assert_eq!(waiter.join().expect("a successful wait"), 1);
    });
}

#[test]
fn pipelined_requests_and_http_1_0_are_answered() {
    let registry = FakeRegistry::start();
    let mut connection = Connection::open(registry.address());
    connection.send_raw(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\nGET /v2/ HTTP/1.0\r\n\r\n");
    assert_eq!(connection.read_response().status, 200);
    assert_eq!(connection.read_response().text(), "{}");
    connection.finish_sending();
    assert_eq!(connection.eof(), End::Closed);
}
